//! The configuration of a model, read from the `config.json` of a Hugging Face folder and written for it.
//!
//! Two dialects are in the wild and both are read: `rope_theta`, `rope_scaling` and `torch_dtype` (transformers 4), and
//! `rope_parameters` and `dtype` (transformers 5). What this crate does not compute is refused here, with the key that asks for it.

use std::path::Path;

use prime_kernels::working_memory;
use prime_runtime::DType;
use serde_json::{Value, json};

use crate::keys::{self, Keys};
use crate::{Error, Result};

/// The families of decoders this crate computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3.
    Llama,
    /// Qwen 2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Qwen 3: RMS norms on the heads of q and k.
    Qwen3,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Architecture; 3] =
        [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3];

    /// The name in `architectures`.
    pub const fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "LlamaForCausalLM",
            Architecture::Qwen2 => "Qwen2ForCausalLM",
            Architecture::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// The name in `model_type`.
    pub const fn model_type(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
        }
    }
}

/// How rotary frequencies are stretched for positions beyond those of the first training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// As they are.
    None,
    /// All divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, those between blended (Llama 3.1 and later).
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// The context of the first training.
        original_max_position_embeddings: usize,
    },
}

/// The shape of a decoder and the constants of its arithmetic.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The family.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward network.
    pub intermediate_size: usize,
    /// Blocks of attention and feed-forward.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Added to the mean square in every RMS norm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Whether the final projection is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether the q, k and v projections have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether every head of q and k is normalised before rotation.
    pub qk_norm: bool,
    /// The longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Type of the stored weights.
    pub dtype: DType,
    /// Token that begins a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Token that fills rows; never computed here, kept for other programs.
    pub pad_token_id: Option<u32>,
    /// Standard deviation of random initial weights.
    pub initializer_range: f32,
}

/// The largest size of each dimension. Generous, and small enough that no product of them leaves 64 bits.
const MAX_VOCAB: usize = 1 << 24;
const MAX_HIDDEN: usize = 1 << 18;
const MAX_INTERMEDIATE: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 12;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1 << 12;
const MAX_POSITIONS: usize = 1 << 30;

impl Config {
    /// What decides about the working memory of kernels on a device.
    pub fn working_memory(&self, dtype: DType) -> working_memory::Sizes {
        let qkv = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim;
        working_memory::Sizes {
            dtype,
            hidden: self.hidden_size,
            widest: qkv.max(2 * self.intermediate_size),
            heads: self.num_heads,
            kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            vocabulary: self.vocab_size,
        }
    }

    /// Reads the text of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// A sentence with the key, what it is, and what would be right.
    pub fn from_json(path: impl AsRef<Path>, text: &str) -> Result<Config> {
        read(text).map_err(|message| Error::file(path, message))
    }

    /// Reads `config.json` of a folder, and the tokens that end a text from `generation_config.json` where it names any.
    ///
    /// # Errors
    /// A sentence with the file, the key, what it is, and what would be right.
    pub fn load(dir: &Path) -> Result<Config> {
        let path = dir.join("config.json");
        let mut config = Config::from_json(&path, &keys::read_text(&path)?)?;
        let path = dir.join("generation_config.json");
        if path.exists() {
            let text = keys::read_text(&path)?;
            read_generation(&mut config, &text).map_err(|message| Error::file(&path, message))?;
        }
        Ok(config)
    }

    /// The configuration as `config.json` holds it, in both dialects at once.
    pub fn to_json(&self) -> Value {
        let mut rope = json!({});
        match self.rope_scaling {
            RopeScaling::None => rope["rope_type"] = json!("default"),
            RopeScaling::Linear { factor } => {
                rope["rope_type"] = json!("linear");
                rope["factor"] = json!(factor);
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                rope["rope_type"] = json!("llama3");
                rope["factor"] = json!(factor);
                rope["low_freq_factor"] = json!(low_freq_factor);
                rope["high_freq_factor"] = json!(high_freq_factor);
                rope["original_max_position_embeddings"] = json!(original_max_position_embeddings);
            }
        }
        let scaling =
            if self.rope_scaling == RopeScaling::None { Value::Null } else { rope.clone() };
        rope["rope_theta"] = json!(self.rope_theta);
        let eos = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [id] => json!(id),
            ids => json!(ids),
        };
        let mut value = json!({
            "architectures": [self.architecture.name()],
            "model_type": self.architecture.model_type(),
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": shortest(self.rms_norm_eps),
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "rope_parameters": rope,
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "attention_dropout": 0.0,
            "initializer_range": shortest(self.initializer_range),
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "pad_token_id": self.pad_token_id,
            "use_cache": true,
            "dtype": self.dtype.name(),
            "torch_dtype": self.dtype.name(),
        });
        match self.architecture {
            Architecture::Llama => {
                value["attention_bias"] = json!(self.qkv_bias);
                value["mlp_bias"] = json!(false);
            }
            Architecture::Qwen2 => value["use_sliding_window"] = json!(false),
            Architecture::Qwen3 => {
                value["attention_bias"] = json!(self.qkv_bias);
                value["use_sliding_window"] = json!(false);
            }
        }
        value
    }

    /// How many parameters the model has; a tied projection counts once.
    pub fn parameters(&self) -> usize {
        let (q, kv) = (self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim);
        let attention = self.hidden_size * (2 * q + 2 * kv)
            + if self.qkv_bias { q + 2 * kv } else { 0 }
            + if self.output_bias { self.hidden_size } else { 0 }
            + if self.qk_norm { 2 * self.head_dim } else { 0 };
        let layer =
            attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size;
        let projections = if self.tie_word_embeddings { 1 } else { 2 };
        projections * self.vocab_size * self.hidden_size
            + self.num_layers * layer
            + self.hidden_size
    }

    /// Checks what a configuration made by hand may get wrong; one that was read has passed it.
    ///
    /// # Errors
    /// A sentence with the key, what it is, and what would be right.
    pub fn validate(&self) -> Result<()> {
        self.check().map_err(Error::Value)
    }

    fn check(&self) -> std::result::Result<(), String> {
        for (key, value, most) in [
            ("vocab_size", self.vocab_size, MAX_VOCAB),
            ("hidden_size", self.hidden_size, MAX_HIDDEN),
            ("intermediate_size", self.intermediate_size, MAX_INTERMEDIATE),
            ("num_hidden_layers", self.num_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_heads, MAX_HEADS),
            ("num_key_value_heads", self.num_kv_heads, MAX_HEADS),
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
            ("max_position_embeddings", self.max_position_embeddings, MAX_POSITIONS),
        ] {
            if !(1..=most).contains(&value) {
                return Err(format!("`{key}` is {value}, expected 1 to {most}"));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Err(format!(
                "`num_attention_heads` is {}, which `num_key_value_heads` ({}) does not divide",
                self.num_heads, self.num_kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!(
                "`head_dim` is {}, but rotary embedding needs an even number",
                self.head_dim
            ));
        }
        check_range("rms_norm_eps", f64::from(self.rms_norm_eps), 0.0, 1.0)?;
        check_range("initializer_range", f64::from(self.initializer_range), 0.0, 1e3)?;
        check_range("rope_theta", self.rope_theta, 1.0, 1e15)?;
        check_scaling(self.rope_scaling)?;
        if self.dtype == DType::U32 {
            return Err("`dtype` is uint32, expected float32, bfloat16 or float16".into());
        }
        if self.qkv_bias != (self.architecture == Architecture::Qwen2 || self.output_bias)
            || (self.output_bias && self.architecture == Architecture::Qwen2)
        {
            return Err(format!(
                "the biases on q, k, v ({}) and on the output projection ({}) are not those of {}: Qwen2 has the \
                 former alone, the others have both or neither",
                self.qkv_bias,
                self.output_bias,
                self.architecture.name()
            ));
        }
        if self.qk_norm != (self.architecture == Architecture::Qwen3) {
            return Err("the norms on q and k belong to Qwen3ForCausalLM, and to it alone".into());
        }
        let ids = [("bos_token_id", self.bos_token_id), ("pad_token_id", self.pad_token_id)];
        let eos = self.eos_token_ids.iter().map(|&id| ("eos_token_id", Some(id)));
        for (key, id) in ids.into_iter().chain(eos) {
            if let Some(id) = id.filter(|&id| id as usize >= self.vocab_size) {
                return Err(format!(
                    "`{key}` is {id}, but `vocab_size` is {}: ids end at {}",
                    self.vocab_size,
                    self.vocab_size - 1
                ));
            }
        }
        Ok(())
    }
}

/// The double that prints as the float does, so that 1e-6 is written as 1e-6.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn check_range(key: &str, value: f64, low: f64, high: f64) -> std::result::Result<(), String> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(format!("`{key}` is {value}, expected {low} to {high}"))
}

fn check_scaling(scaling: RopeScaling) -> std::result::Result<(), String> {
    match scaling {
        RopeScaling::None => Ok(()),
        RopeScaling::Linear { factor } => check_range("factor", factor, 1e-3, 1e6),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            check_range("factor", factor, 1e-3, 1e6)?;
            check_range("low_freq_factor", low_freq_factor, 1e-3, 1e6)?;
            check_range("high_freq_factor", high_freq_factor, 1e-3, 1e6)?;
            if high_freq_factor <= low_freq_factor {
                return Err(format!(
                    "`high_freq_factor` is {high_freq_factor}, expected more than `low_freq_factor` ({low_freq_factor})"
                ));
            }
            if !(1..=MAX_POSITIONS).contains(&original_max_position_embeddings) {
                return Err(format!(
                    "`original_max_position_embeddings` is {original_max_position_embeddings}, expected 1 to {MAX_POSITIONS}"
                ));
            }
            Ok(())
        }
    }
}

fn read(text: &str) -> std::result::Result<Config, String> {
    let keys = Keys::parse(text)?;
    let architecture = read_architecture(&keys)?;
    refuse_unsupported(&keys)?;
    let hidden_size = keys.size("hidden_size", MAX_HIDDEN)?;
    let num_layers = keys.size("num_hidden_layers", MAX_LAYERS)?;
    let num_heads = keys.size("num_attention_heads", MAX_HEADS)?;
    let num_kv_heads = keys.optional_size("num_key_value_heads", MAX_HEADS)?.unwrap_or(num_heads);
    let head_dim = match keys.optional_size("head_dim", MAX_HEAD_DIM)? {
        Some(head_dim) => head_dim,
        // Qwen3 is the one family whose default is a constant.
        None if architecture == Architecture::Qwen3 && !keys.contains("head_dim") => 128,
        None if !hidden_size.is_multiple_of(num_heads) => {
            return Err(format!(
                "`hidden_size` is {hidden_size}, which `num_attention_heads` ({num_heads}) does not divide, and there is no `head_dim`"
            ));
        }
        None => hidden_size / num_heads,
    };
    refuse_sliding_window(&keys, architecture, num_layers)?;
    let attention_bias = keys.flag("attention_bias")?.unwrap_or(false);
    let (qkv_bias, output_bias) = match architecture {
        Architecture::Qwen2 => (true, false),
        Architecture::Llama | Architecture::Qwen3 => (attention_bias, attention_bias),
    };
    let (rope_theta, rope_scaling) = read_rope(&keys)?;
    let positions = if architecture == Architecture::Llama { 2048 } else { 32_768 };
    let config = Config {
        architecture,
        vocab_size: keys.size("vocab_size", MAX_VOCAB)?,
        hidden_size,
        intermediate_size: keys.size("intermediate_size", MAX_INTERMEDIATE)?,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope_theta,
        rope_scaling,
        tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias,
        output_bias,
        qk_norm: architecture == Architecture::Qwen3,
        max_position_embeddings: keys
            .optional_size("max_position_embeddings", MAX_POSITIONS)?
            .unwrap_or(positions),
        dtype: read_dtype(&keys)?,
        bos_token_id: keys.token_id("bos_token_id")?,
        eos_token_ids: keys.token_ids("eos_token_id")?,
        pad_token_id: keys.token_id("pad_token_id")?,
        initializer_range: keys.number("initializer_range")?.unwrap_or(0.02) as f32,
    };
    config.check()?;
    Ok(config)
}

fn read_architecture(keys: &Keys<'_>) -> std::result::Result<Architecture, String> {
    let known = || {
        let names: Vec<_> = Architecture::ALL.iter().map(|a| format!("`{}`", a.name())).collect();
        names.join(", ")
    };
    let named = match keys.get("architectures") {
        None => None,
        Some(Value::Array(names)) if names.is_empty() => None,
        Some(Value::Array(names)) => match &names[0] {
            Value::String(name) => Some(name),
            other => {
                return Err(format!("`architectures` holds {}, expected names", keys::kind(other)));
            }
        },
        Some(other) => {
            return Err(format!(
                "`architectures` is {}, expected a list of names",
                keys::kind(other)
            ));
        }
    };
    if let Some(name) = named {
        return Architecture::ALL.into_iter().find(|a| a.name() == name).ok_or_else(|| {
            format!(
                "the architecture `{}` is not implemented; known are {}",
                keys::short(name),
                known()
            )
        });
    }
    match keys.text("model_type")? {
        Some(name) => {
            Architecture::ALL.into_iter().find(|a| a.model_type() == name).ok_or_else(|| {
                format!(
                    "there is no `architectures`, and the `model_type` `{}` is not implemented; known architectures are {}",
                    keys::short(name),
                    known()
                )
            })
        }
        None => Err(format!("there is no `architectures`; known are {}", known())),
    }
}

fn refuse_unsupported(keys: &Keys<'_>) -> std::result::Result<(), String> {
    if keys.get("quantization_config").is_some() {
        return Err("`quantization_config` is set, but quantised weights are not implemented; use a float32, bfloat16 or float16 copy".into());
    }
    if keys.flag("mlp_bias")? == Some(true) {
        return Err("`mlp_bias` is true, but feed-forward biases are not implemented".into());
    }
    if let Some(name) = keys.text("hidden_act")?
        && name != "silu"
        && name != "swish"
    {
        return Err(format!(
            "`hidden_act` is `{}`, but only `silu` is implemented",
            keys::short(name)
        ));
    }
    match keys.number("partial_rotary_factor")? {
        Some(factor) if factor != 1.0 => Err(format!(
            "`partial_rotary_factor` is {factor}, but only whole heads are rotated here: expected 1"
        )),
        _ => Ok(()),
    }
}

fn refuse_sliding_window(
    keys: &Keys<'_>,
    architecture: Architecture,
    num_layers: usize,
) -> std::result::Result<(), String> {
    if let Some(types) = keys.get("layer_types") {
        let types = types
            .as_array()
            .ok_or_else(|| format!("`layer_types` is {}, expected a list", keys::kind(types)))?;
        return match types.iter().find(|value| *value != "full_attention") {
            Some(other) => Err(format!(
                "`layer_types` holds {}, but only `full_attention` is implemented",
                keys::short(&other.to_string())
            )),
            None => Ok(()),
        };
    }
    if architecture == Architecture::Llama || keys.flag("use_sliding_window")? != Some(true) {
        return Ok(());
    }
    let first = keys.optional_size("max_window_layers", usize::MAX >> 1)?.unwrap_or(28);
    match keys.get("sliding_window") {
        Some(window) if first < num_layers => Err(format!(
            "`use_sliding_window` is true with a window of {}, but sliding-window attention is not implemented",
            keys::short(&window.to_string())
        )),
        _ => Ok(()),
    }
}

fn read_rope(keys: &Keys<'_>) -> std::result::Result<(f64, RopeScaling), String> {
    // `rope_scaling` wins over `rope_parameters`, as in transformers.
    let scaling = match keys.object("rope_scaling")? {
        Some(object) => Some(object),
        None => keys.object("rope_parameters")?,
    };
    let outer = keys.number("rope_theta")?;
    let Some(scaling) = scaling else {
        return Ok((outer.unwrap_or(10_000.0), RopeScaling::None));
    };
    let theta = match (outer, scaling.number("rope_theta")?) {
        (Some(outer), Some(inner)) if outer != inner => {
            return Err(format!(
                "`rope_theta` is {outer} at the top and {inner} inside `rope_parameters`: which one?"
            ));
        }
        (outer, inner) => inner.or(outer).unwrap_or(10_000.0),
    };
    if let Some(factor) = scaling.number("partial_rotary_factor")?.filter(|&factor| factor != 1.0) {
        return Err(format!(
            "`partial_rotary_factor` is {factor}, but only whole heads are rotated here: expected 1"
        ));
    }
    let name = match scaling.text("rope_type")? {
        Some(name) => Some(name),
        None => scaling.text("type")?,
    };
    let scaling = match name {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: scaling.required_number("factor")? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: scaling.required_number("factor")?,
            low_freq_factor: scaling.required_number("low_freq_factor")?,
            high_freq_factor: scaling.required_number("high_freq_factor")?,
            original_max_position_embeddings: scaling
                .size("original_max_position_embeddings", MAX_POSITIONS)?,
        },
        Some(other) => {
            return Err(format!(
                "`rope_type` is `{}`, which is not implemented; known are `default`, `linear`, `llama3`",
                keys::short(other)
            ));
        }
    };
    Ok((theta, scaling))
}

fn read_dtype(keys: &Keys<'_>) -> std::result::Result<DType, String> {
    for key in ["dtype", "torch_dtype"] {
        if let Some(name) = keys.text(key)? {
            return DType::parse(name).ok_or_else(|| {
                format!(
                    "`{key}` is `{}`, expected `float32`, `bfloat16` or `float16`",
                    keys::short(name)
                )
            });
        }
    }
    Ok(DType::F32)
}

/// What `generation_config.json` says of special tokens stands above `config.json`.
fn read_generation(config: &mut Config, text: &str) -> std::result::Result<(), String> {
    let keys = Keys::parse(text)?;
    let eos = keys.token_ids("eos_token_id")?;
    if !eos.is_empty() {
        config.eos_token_ids = eos;
    }
    config.bos_token_id = keys.token_id("bos_token_id")?.or(config.bos_token_id);
    config.pad_token_id = keys.token_id("pad_token_id")?.or(config.pad_token_id);
    config.check()
}

#[cfg(test)]
#[path = "config_tests.rs"]
pub(crate) mod tests;
