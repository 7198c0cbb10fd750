//! The parameters of a model: one flat tensor and its layout, and the adapters that stand beside it.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use prime_runtime::random::{self, Stream};
use prime_runtime::safetensors::{Dtype, Folder};
use prime_runtime::{DType, Device, Element, Tensor, View, ViewMut, bf16};
use rayon::prelude::*;

use crate::{Adapter, Config, Error, Layout, Result, keys};

/// All parameters of a model in one buffer, float32 or bfloat16. Weights that adapters stand beside are frozen, and may be shared.
#[derive(Debug)]
pub struct Weights {
    layout: Arc<Layout>,
    data: Arc<Tensor>,
    adapter: Option<Adapter>,
}

/// Elements that one task of a parallel loop fills or converts.
const CHUNK: usize = 1 << 14;

impl Weights {
    /// Zeros.
    ///
    /// # Errors
    /// When the configuration is not valid, the dtype is not float32 or bfloat16, or the device has not the memory.
    pub fn zeros(config: &Config, device: Device, dtype: DType) -> Result<Weights> {
        config.validate()?;
        Weights::zeros_of(Layout::new(config), device, dtype)
    }

    /// Zeros of a layout.
    pub(crate) fn zeros_of(layout: Layout, device: Device, dtype: DType) -> Result<Weights> {
        if !matches!(dtype, DType::F32 | DType::BF16) {
            return Err(Error::Value(format!(
                "weights cannot be held in {dtype}, expected float32 or bfloat16"
            )));
        }
        let data = Tensor::zeros(device, dtype, &[layout.elements])?;
        Ok(Weights { layout: Arc::new(layout), data: Arc::new(data), adapter: None })
    }

    /// Random weights on the host: matrices normal with the configuration's `initializer_range` (those that write into the residual stream smaller by
    /// sqrt(2 layers), so that its variance does not grow with depth), norms 1, biases 0.
    ///
    /// # Errors
    /// As for [`Weights::zeros`].
    pub fn random(config: &Config, dtype: DType, seed: u64) -> Result<Weights> {
        let mut weights = Weights::zeros(config, Device::Cpu, dtype)?;
        let layout = weights.layout.clone();
        let residual = config.initializer_range / (2.0 * config.num_layers as f32).sqrt();
        for (index, tensor) in layout.tensors.iter().enumerate() {
            let writes_residual =
                tensor.name.ends_with("o_proj.weight") || tensor.name.ends_with("down_proj.weight");
            let deviation = if writes_residual { residual } else { config.initializer_range };
            let is_norm = tensor.name.ends_with("norm.weight");
            let is_matrix = tensor.dims.len() == 2;
            match (is_matrix, is_norm) {
                (true, _) => {
                    let range = tensor.range.clone();
                    match dtype {
                        DType::F32 => {
                            fill_normal(weights.slice_mut::<f32>(range), deviation, seed, index)
                        }
                        _ => fill_normal(weights.slice_mut::<bf16>(range), deviation, seed, index),
                    }
                }
                (false, true) => match dtype {
                    DType::F32 => weights.slice_mut::<f32>(tensor.range.clone()).fill(1.0),
                    _ => weights.slice_mut::<bf16>(tensor.range.clone()).fill(bf16::ONE),
                },
                (false, false) => {}
            }
        }
        Ok(weights)
    }

    /// Reads the safetensors of a folder to a device, converted to `dtype` straight from the mapped files.
    ///
    /// # Errors
    /// As for [`Weights::zeros`], and a sentence with the tensor's name when one is missing, has another shape, is of no float type, or is not of this model.
    pub fn load(dir: &Path, config: &Config, device: Device, dtype: DType) -> Result<Weights> {
        config.validate()?;
        let folder = Folder::open(dir)?;
        let layout = Layout::new(config);
        // Before memory is reserved: a configuration that does not fit its files may ask for any amount.
        check_names(&folder, &layout)?;
        check_shapes(&folder, &layout)?;
        let mut weights = Weights::zeros(config, device, dtype)?;
        match (device, dtype) {
            (Device::Cpu, DType::F32) => {
                read::<f32>(&folder, &layout, weights.data_mut().as_mut_slice())?
            }
            (Device::Cpu, _) => read::<bf16>(&folder, &layout, weights.data_mut().as_mut_slice())?,
            _ => {
                for tensor in &layout.tensors {
                    let part = weights.data_mut().view_mut().into_rows(tensor.range.clone());
                    folder.read_into(&tensor.name, &mut part.into_shape(&tensor.dims))?;
                }
            }
        }
        Ok(weights)
    }

    /// The same weights on a device, without adapters: themselves where they are there already.
    ///
    /// # Errors
    /// When the device has not the memory, or fails.
    pub fn to(self, device: Device) -> Result<Weights> {
        if self.data.device() == device {
            return Ok(self);
        }
        self.copy_to(device)
    }

    /// A copy on a device, be it the same, without adapters.
    ///
    /// # Errors
    /// When the device has not the memory, or fails.
    pub fn copy_to(&self, device: Device) -> Result<Weights> {
        let data = Arc::new(self.data.to(device)?);
        Ok(Weights { data, layout: self.layout.clone(), adapter: None })
    }

    /// The same memory once more, without adapters. It cannot be written from then on.
    pub fn share(&self) -> Weights {
        Weights { layout: self.layout.clone(), data: self.data.clone(), adapter: None }
    }

    /// These weights, frozen, with an adapter beside them.
    pub fn with_adapter(self, adapter: Adapter) -> Weights {
        Weights { adapter: Some(adapter), ..self }
    }

    /// What stands beside the weights and learns in their place.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// As [`Weights::adapter`], to write.
    pub fn adapter_mut(&mut self) -> Option<&mut Adapter> {
        self.adapter.as_mut()
    }

    /// Whether two models have the same memory for their weights, adapters aside.
    pub fn shares_with(&self, other: &Weights) -> bool {
        Arc::ptr_eq(&self.data, &other.data)
    }

    /// Other weights of the same numbers: weights that an adapter stands beside are shared, and the adapter is copied.
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub fn duplicate(&self) -> Result<Weights> {
        if let Some(adapter) = &self.adapter {
            return Ok(self.share().with_adapter(adapter.duplicate()?));
        }
        let mut data = Tensor::zeros(self.data.device(), self.data.dtype(), self.data.dims())?;
        prime_kernels::cast::forward(data.view_mut(), self.data.view())?;
        Ok(Weights { layout: self.layout.clone(), data: Arc::new(data), adapter: None })
    }

    /// Takes over the numbers of a folder that was saved of this model: the adapter's where there is one, else the weights'.
    ///
    /// # Errors
    /// As for [`Weights::load`] and [`Adapter::load`].
    pub fn reload(&mut self, dir: &Path, config: &Config) -> Result<()> {
        match &mut self.adapter {
            Some(adapter) => adapter.reload(dir),
            None => {
                *self = Weights::load(dir, config, self.data.device(), self.data.dtype())?;
                Ok(())
            }
        }
    }

    /// What learns: the adapters, or the weights where there are none.
    pub fn trainable(&self) -> &Tensor {
        self.adapter.as_ref().map_or(&self.data, Adapter::data)
    }

    /// As [`Weights::trainable`], to write.
    pub(crate) fn trainable_mut(&mut self) -> &mut Tensor {
        match &mut self.adapter {
            Some(adapter) => adapter.data_mut(),
            None => exclusive(&mut self.data),
        }
    }

    /// The range of [`Weights::trainable`] that weight decay covers, and the one that it spares.
    pub(crate) fn decay_ranges(&self) -> [Range<usize>; 2] {
        match &self.adapter {
            Some(adapter) => {
                let elements = adapter.layout().elements;
                [0..elements, elements..elements]
            }
            None => [self.layout.decayed(), self.layout.undecayed()],
        }
    }

    /// Where each parameter lies.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The buffer, `[layout.elements]`.
    pub fn data(&self) -> &Tensor {
        &self.data
    }

    /// The buffer, to write.
    ///
    /// # Panics
    /// When the weights are shared.
    pub fn data_mut(&mut self) -> &mut Tensor {
        exclusive(&mut self.data)
    }

    /// Float32 or bfloat16.
    pub fn dtype(&self) -> DType {
        self.data.dtype()
    }

    /// Part of the buffer under the dimensions it has.
    ///
    /// # Panics
    /// When the range is out of bounds or has not as many elements as `dims` says.
    pub fn view(&self, range: &Range<usize>, dims: &[usize]) -> View<'_> {
        self.data.view().rows(range.clone()).reshape(dims)
    }

    fn slice_mut<E: Element>(&mut self, range: Range<usize>) -> &mut [E] {
        &mut self.data_mut().as_mut_slice::<E>()[range]
    }
}

fn exclusive(data: &mut Arc<Tensor>) -> &mut Tensor {
    Arc::get_mut(data).expect("weights that models share are frozen")
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const LM_HEAD: &str = "lm_head.weight";

/// Checks that the files hold every tensor of the layout and nothing that would be lost.
fn check_names(folder: &Folder, layout: &Layout) -> Result<()> {
    let fail = |message: String| Err(Error::file(folder.path(), message));
    let missing = |name: &str| folder.tensor(name).is_none();
    if !layout.tied && missing(LM_HEAD) && !missing(EMBEDDING) {
        return fail(format!(
            "there is no tensor `{LM_HEAD}`, but `tie_word_embeddings` is false: the final projection has no weights"
        ));
    }
    let absent =
        layout.tensors.iter().map(|tensor| tensor.name.as_str()).filter(|name| missing(name));
    if let Some(sentence) = some_of(absent) {
        return fail(format!("the model needs tensors that the files do not hold: {sentence}"));
    }
    let known: std::collections::HashSet<&str> =
        layout.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    // Older programs saved the rotary frequencies, which follow from the configuration.
    let strange = folder.names().filter(|name| {
        !known.contains(name) && *name != LM_HEAD && !name.ends_with(".rotary_emb.inv_freq")
    });
    if let Some(sentence) = some_of(strange) {
        return fail(format!(
            "the files hold tensors that this model has no place for: {sentence}; is config.json of another model?"
        ));
    }
    if let (true, Some(head), Some(embedding)) =
        (layout.tied, folder.tensor(LM_HEAD), folder.tensor(EMBEDDING))
        && (head.dtype, head.bytes) != (embedding.dtype, embedding.bytes)
    {
        return fail(format!(
            "`tie_word_embeddings` is true, but `{LM_HEAD}` and `{EMBEDDING}` differ: which one is meant?"
        ));
    }
    Ok(())
}

/// Up to three names and how many more there are; none when there are none.
fn some_of<'a>(names: impl Iterator<Item = &'a str>) -> Option<String> {
    let names: Vec<&str> = names.collect();
    let shown: Vec<_> =
        names.iter().take(3).map(|name| format!("`{}`", keys::short(name))).collect();
    match names.len() {
        0 => None,
        1..=3 => Some(shown.join(", ")),
        count => Some(format!("{} and {} more", shown.join(", "), count - 3)),
    }
}

fn check_shapes(folder: &Folder, layout: &Layout) -> Result<()> {
    for expected in &layout.tensors {
        let Some(found) = folder.tensor(&expected.name) else { continue };
        if found.dims != expected.dims {
            return Err(Error::file(
                folder.path(),
                format!(
                    "tensor `{}` has shape {:?}, but config.json makes it {:?}",
                    expected.name, found.dims, expected.dims
                ),
            ));
        }
        if !matches!(found.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
            return Err(Error::file(
                folder.path(),
                format!("tensor `{}` is {}, expected F32, BF16 or F16", expected.name, found.dtype),
            ));
        }
    }
    Ok(())
}

fn read<E: Element>(folder: &Folder, layout: &Layout, mut data: &mut [E]) -> Result<()> {
    let mut parts = Vec::with_capacity(layout.tensors.len());
    let mut start = 0;
    for tensor in &layout.tensors {
        let (_, rest) = data.split_at_mut(tensor.range.start - start);
        let (part, rest) = rest.split_at_mut(tensor.range.len());
        parts.push((tensor, part));
        (data, start) = (rest, tensor.range.end);
    }
    parts.into_par_iter().try_for_each(|(tensor, part)| {
        folder.read_into(&tensor.name, &mut ViewMut::from_slice(part, &tensor.dims))
    })?;
    Ok(())
}

/// Normal numbers of one tensor's own stream: each block of four elements depends on its place alone.
fn fill_normal<E: Element>(values: &mut [E], deviation: f32, seed: u64, tensor: usize) {
    let pair = |first: u32, second: u32| {
        let radius = (-2.0 * f64::from(random::uniform(first)).ln()).sqrt();
        let (sine, cosine) = (std::f64::consts::TAU * f64::from(random::uniform(second))).sin_cos();
        [radius * cosine, radius * sine]
    };
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        for (block, values) in values.chunks_mut(4).enumerate() {
            let position = (chunk * (CHUNK / 4) + block) as u32;
            let words = random::block(seed, Stream::Weights, tensor as u64, position);
            let [a, b] = pair(words[0], words[1]);
            let [c, d] = pair(words[2], words[3]);
            for (value, normal) in values.iter_mut().zip([a, b, c, d]) {
                *value = E::from_f32(normal as f32 * deviation);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{llama, qwen2};

    #[test]
    fn random_weights_depend_on_the_seed_and_have_the_deviation_asked_for() {
        let config =
            Config { hidden_size: 64, vocab_size: 1000, initializer_range: 0.5, ..qwen2() };
        let weights = Weights::random(&config, DType::F32, 3).unwrap();
        let again = Weights::random(&config, DType::F32, 3).unwrap();
        let other = Weights::random(&config, DType::F32, 4).unwrap();
        assert_eq!(weights.data().as_slice::<f32>(), again.data().as_slice::<f32>());
        assert_ne!(weights.data().as_slice::<f32>(), other.data().as_slice::<f32>());

        let embedding = &weights.data().as_slice::<f32>()[weights.layout().embedding.clone()];
        let count = embedding.len() as f64;
        let mean = embedding.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let variance = embedding.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / count;
        // Five standard errors of the mean, and of the variance of a normal distribution.
        assert!(mean.abs() < 5.0 * 0.5 / count.sqrt(), "{mean}");
        assert!((variance / 0.25 - 1.0).abs() < 5.0 * (2.0 / count).sqrt(), "{variance}");

        let layer = &weights.layout().layers[0];
        let power = |range: &Range<usize>| {
            let values = &weights.data().as_slice::<f32>()[range.clone()];
            values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / values.len() as f64
        };
        let expected = 1.0 / (2.0 * config.num_layers as f64);
        let ratio = power(&layer.down) / power(&layer.gate_up);
        let error = 5.0 * (2.0 / layer.down.len() as f64 + 2.0 / layer.gate_up.len() as f64).sqrt();
        assert!((ratio / expected - 1.0).abs() < error, "{ratio} beside {expected}");
        assert_eq!(power(&layer.input_norm), 1.0);
        assert_eq!(power(layer.qkv_bias.as_ref().unwrap()), 0.0);
    }

    #[test]
    fn bf16_weights_are_the_rounded_float32_ones() {
        let wide = Weights::random(&llama(), DType::F32, 1).unwrap();
        let narrow = Weights::random(&llama(), DType::BF16, 1).unwrap();
        let rounded: Vec<bf16> =
            wide.data().as_slice::<f32>().iter().map(|&x| <bf16 as Element>::from_f32(x)).collect();
        assert_eq!(narrow.data().as_slice::<bf16>(), rounded);
    }

    #[test]
    fn weights_in_a_dtype_that_nothing_computes_in_are_refused() {
        let error = Weights::zeros(&llama(), Device::Cpu, DType::F16).unwrap_err().to_string();
        assert_eq!(error, "weights cannot be held in float16, expected float32 or bfloat16");
    }
}
