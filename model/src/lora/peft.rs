//! Adapters in PEFT's files: `adapter_config.json` and `adapter_model.safetensors`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use prime_kernels::cast;
use prime_kernels::matmul::{self, Layout as Product};
use prime_runtime::safetensors::{File, Source, write as write_safetensors};
use prime_runtime::{DType, Device, Tensor, checkpoint};
use serde_json::json;

use super::{Adapter, AdapterLayout, LoraSettings, TARGETS};
use crate::keys::{Keys, kind, read_text, short};
use crate::{Config, Error, Result, Weights};

const CONFIG: &str = "adapter_config.json";
const MODEL: &str = "adapter_model.safetensors";

/// Writes the files of an adapter into a folder.
pub(crate) fn write(dir: &Path, adapter: &Adapter) -> Result<()> {
    let layout = &adapter.layout;
    let sources = layout
        .tensors
        .iter()
        .map(|tensor| Source::view(tensor.name.clone(), adapter.view(&tensor.range, &tensor.dims)));
    write_safetensors(dir.join(MODEL), sources, &[("format", "pt")])?;
    let LoraSettings { rank, alpha, targets } = &layout.settings;
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base.to_string_lossy(),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": false,
        "use_dora": false,
    });
    // Last: a folder with it is a whole one.
    checkpoint::atomic_write(dir.join(CONFIG), format!("{config:#}\n").as_bytes())?;
    Ok(())
}

/// The folder of the model that an adapter belongs to; none where the folder holds no adapter.
///
/// # Errors
/// When the adapter's configuration cannot be read, or names no base.
pub fn base_of(dir: &Path) -> Result<Option<PathBuf>> {
    let path = dir.join(CONFIG);
    if !path.exists() {
        return Ok(None);
    }
    let fail = |message: String| Error::file(&path, message);
    let text = read_text(&path)?;
    let keys = Keys::parse(&text).map_err(fail)?;
    match keys.text("base_model_name_or_path").map_err(fail)? {
        Some(base) => Ok(Some(PathBuf::from(base))),
        None => Err(fail(
            "`base_model_name_or_path` is missing: which model does the adapter belong to?".into(),
        )),
    }
}

/// What an adapter folder's configuration says. What this program lacks is refused by name.
fn settings(dir: &Path) -> Result<LoraSettings> {
    let path = dir.join(CONFIG);
    read_settings(&read_text(&path)?).map_err(|message| Error::file(&path, message))
}

pub(super) fn read_settings(text: &str) -> std::result::Result<LoraSettings, String> {
    let keys = Keys::parse(text)?;
    let peft_type = keys.text("peft_type")?.unwrap_or("LORA");
    if peft_type != "LORA" {
        return Err(format!("`peft_type` is `{}`, expected LORA", short(peft_type)));
    }
    for key in ["use_dora", "fan_in_fan_out", "lora_bias", "use_qalora"] {
        if keys.flag(key)?.unwrap_or(false) {
            return Err(format!("`{key}` is true, which this program does not compute"));
        }
    }
    if let Some(bias) = keys.text("bias")?.filter(|&bias| bias != "none") {
        return Err(format!("`bias` is `{}`: only adapters of matrices are computed", short(bias)));
    }
    let lists = ["modules_to_save", "layers_to_transform", "rank_pattern", "alpha_pattern"];
    for key in lists {
        let Some(value) = keys.get(key) else { continue };
        let empty = match value {
            serde_json::Value::Array(list) => list.is_empty(),
            serde_json::Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if !empty {
            return Err(format!(
                "`{key}` is {}, expected none: every layer has the same adapters",
                kind(value)
            ));
        }
    }
    let rank = keys.size("r", 1 << 14)?;
    let mut alpha = keys.number("lora_alpha")?.unwrap_or(8.0);
    if keys.flag("use_rslora")?.unwrap_or(false) {
        // It divides by the root of the rank.
        alpha *= (rank as f64).sqrt();
    }
    // Which modules have adapters is read from the weights: the configuration may say it by a pattern.
    Ok(LoraSettings { rank, alpha, targets: Vec::new() })
}

impl Adapter {
    /// Reads an adapter folder for the weights beside which it is to stand, on their device and in their dtype.
    ///
    /// # Errors
    /// A sentence with what the folder lacks, what it holds of another model, or what this program does not compute.
    pub fn load(dir: &Path, config: &Config, weights: &Weights, base: &Path) -> Result<Adapter> {
        if !dir.join(CONFIG).exists() {
            return Err(Error::file(
                dir,
                format!("it is not the folder of an adapter: it has no {CONFIG}"),
            ));
        }
        let mut settings = settings(dir)?;
        let file = File::open(dir.join(MODEL))?;
        settings.targets = TARGETS
            .iter()
            .filter(|target| file.names().any(|name| name.contains(&format!(".{target}.lora_"))))
            .map(|target| target.to_string())
            .collect();
        let layout = AdapterLayout::new(config, &settings)
            .map_err(|error| Error::file(dir.join(MODEL), error.to_string()))?;
        let mut adapter = Adapter::zeros(Arc::new(layout), weights, base)?;
        adapter.read(&file, dir)?;
        Ok(adapter)
    }

    /// Takes over the numbers of an adapter folder that was saved of this adapter.
    pub(crate) fn reload(&mut self, dir: &Path) -> Result<()> {
        let saved = settings(dir)?;
        let own = &self.layout.settings;
        if (saved.rank, saved.alpha) != (own.rank, own.alpha) {
            return Err(Error::file(
                dir.join(CONFIG),
                format!(
                    "its rank is {} and its alpha {}, expected {} and {}",
                    saved.rank, saved.alpha, own.rank, own.alpha
                ),
            ));
        }
        self.read(&File::open(dir.join(MODEL))?, dir)
    }

    fn read(&mut self, file: &File, dir: &Path) -> Result<()> {
        let fail = |message: String| Err(Error::file(dir.join(MODEL), message));
        let layout = self.layout.clone();
        for tensor in &layout.tensors {
            let Some(found) = file.tensor(&tensor.name) else {
                return fail(format!("there is no tensor `{}` in it", tensor.name));
            };
            if found.dims != tensor.dims {
                return fail(format!(
                    "tensor `{}` has shape {:?}, but model and adapter make it {:?}",
                    tensor.name, found.dims, tensor.dims
                ));
            }
            let part = self.data.view_mut().into_rows(tensor.range.clone());
            file.read_into(&tensor.name, &mut part.into_shape(&tensor.dims))?;
        }
        let known: std::collections::HashSet<&str> =
            layout.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        match file.names().find(|name| !known.contains(name)) {
            Some(name) => {
                fail(format!("tensor `{}` has no place in this model's adapters", short(name)))
            }
            None => Ok(()),
        }
    }
}

/// The weights with their adapter multiplied into them: W + (alpha / rank) B A, summed in float32 and rounded once to the dtype. They lie on
/// the host and share nothing.
///
/// # Errors
/// When the weights have no adapter, do not lie on the host, or the memory is not to be had.
pub fn merge(config: &Config, weights: &Weights) -> Result<Weights> {
    let Some(adapter) = weights.adapter() else {
        return Err(Error::Value("these weights have no adapter to merge".to_string()));
    };
    if weights.data().device() != Device::Cpu {
        return Err(Error::Value("adapters are merged on the host".to_string()));
    }
    let mut merged = Weights::zeros(config, Device::Cpu, weights.dtype())?;
    cast::forward(merged.data_mut().view_mut(), weights.data().view())?;
    let rank = adapter.layout.settings.rank;
    let wide = |view: prime_runtime::View<'_>| -> Result<Tensor> {
        let mut out = Tensor::zeros(Device::Cpu, DType::F32, view.dims())?;
        cast::forward(out.view_mut(), view)?;
        Ok(out)
    };
    let tensors = weights.layout().tensors.clone();
    for b in adapter.layout.tensors.iter().filter(|t| t.name.ends_with("lora_B.weight")) {
        let stem = b.name.trim_end_matches("lora_B.weight");
        let find = |name: String| {
            adapter.layout.tensors.iter().find(|tensor| tensor.name == name).expect("A beside B")
        };
        let a = find(format!("{stem}lora_A.weight"));
        let name = format!(
            "{}.weight",
            stem.trim_start_matches("base_model.model.").trim_end_matches('.')
        );
        let target = tensors.iter().find(|tensor| tensor.name == name).expect("a layer's matrix");
        let mut sum = wide(merged.view(&target.range, &target.dims))?;
        let mut b = wide(adapter.view(&b.range, &[target.dims[0], rank]))?;
        prime_kernels::scale::forward(b.view_mut(), adapter.layout.settings.scale())?;
        let a = wide(adapter.view(&a.range, &a.dims))?;
        matmul::accumulate(sum.view_mut(), b.view(), a.view(), Product::NN)?;
        let out = merged.data_mut().view_mut().into_rows(target.range.clone());
        cast::forward(out.into_shape(&target.dims), sum.view())?;
    }
    Ok(merged)
}
