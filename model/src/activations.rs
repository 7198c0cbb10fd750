//! The buffers of a training or scoring step, laid out once for the largest pack.

use prime_runtime::{DType, Device, Memory, Plan, Slot, Tensor, View};

use crate::lora::LowRankBuffers;
use crate::pack::PackUpload;
use crate::{Config, Error, Pack, Result, Weights};

/// What a step is planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of a pack, all sequences together.
    pub tokens: usize,
    /// Rows of a pack that are scored.
    pub picked: usize,
}

/// Whether and how a step goes backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Forward only: one layer's buffers, used by every layer.
    Score,
    /// Forward and backward, every layer's activations kept.
    Train,
    /// Forward and backward, only the input of each layer kept; a layer is computed again on the way back.
    TrainCheckpointed,
}

/// One layer's activations.
pub(crate) struct LayerBuffers {
    pub(crate) input_rstd: Tensor,   // (tokens)
    pub(crate) input_normed: Tensor, // (tokens, hidden)
    pub(crate) qkv: Tensor, // (tokens, (heads + 2 kv_heads) * head_dim), q and k rotated unless there is a QK-norm
    pub(crate) qk: Option<QkNormBuffers>,
    pub(crate) attended: Tensor,    // (tokens, heads * head_dim)
    pub(crate) lse: Tensor,         // (tokens, heads)
    pub(crate) middle: Tensor, // (tokens, hidden): the residual stream between attention and MLP
    pub(crate) post_rstd: Tensor, // (tokens)
    pub(crate) post_normed: Tensor, // (tokens, hidden)
    pub(crate) gate_up: Tensor, // (tokens, 2 intermediate)
    pub(crate) activated: Tensor, // (tokens, intermediate)
}

/// What a QK-norm adds to a layer.
pub(crate) struct QkNormBuffers {
    pub(crate) normed: Tensor, // (tokens, (heads + kv_heads) * head_dim), rotated
    pub(crate) q_rstd: Tensor, // (tokens, heads)
    pub(crate) k_rstd: Tensor, // (tokens, kv_heads)
}

/// What the way back needs besides: gradients of one layer's activations.
pub(crate) struct BackwardBuffers {
    pub(crate) picked: Tensor,        // (picked, hidden)
    pub(crate) picked_normed: Tensor, // (picked, hidden)
    pub(crate) stream: Tensor,        // (tokens, hidden)
    pub(crate) middle: Tensor,        // (tokens, hidden)
    pub(crate) normed: Tensor,        // (tokens, hidden)
    pub(crate) qkv: Tensor,           // (tokens, (heads + 2 kv_heads) * head_dim)
    pub(crate) qk: Option<Tensor>,    // (tokens, (heads + kv_heads) * head_dim)
    pub(crate) attended: Tensor,      // (tokens, heads * head_dim)
    pub(crate) gate_up: Tensor,       // (tokens, 2 intermediate)
    pub(crate) activated: Tensor,     // (tokens, intermediate)
    pub(crate) values: Tensor,        // (picked)
}

/// All buffers of a step.
pub struct Activations {
    pub(crate) limits: Limits,
    pub(crate) mode: Mode,
    /// The lists of the pack at hand.
    pub(crate) pack: PackUpload,
    /// The residual stream before each layer, and after the last: two that take turns when there is no way back.
    pub(crate) streams: Vec<Tensor>,
    /// A set for each layer, or one for all.
    pub(crate) layers: Vec<LayerBuffers>,
    pub(crate) picked: Tensor,        // (picked, hidden)
    pub(crate) picked_rstd: Tensor,   // (picked)
    pub(crate) picked_normed: Tensor, // (picked, hidden)
    pub(crate) log_probs: Tensor,     // (picked)
    pub(crate) entropy: Tensor,       // (picked)
    pub(crate) lse: Tensor,           // (picked)
    pub(crate) values: Tensor,        // (picked)
    pub(crate) backward: Option<BackwardBuffers>,
    /// What adapters work in, reserved with the first pass of weights that have some.
    pub(crate) low_rank: Option<LowRankBuffers>,
    bytes: usize,
}

struct LayerSlots {
    input_rstd: Slot,
    input_normed: Slot,
    qkv: Slot,
    qk: Option<[Slot; 3]>,
    attended: Slot,
    lse: Slot,
    middle: Slot,
    post_rstd: Slot,
    post_normed: Slot,
    gate_up: Slot,
    activated: Slot,
}

struct Slots {
    streams: Vec<Slot>,
    layers: Vec<LayerSlots>,
    picked: [Slot; 7],
    backward: Option<(Vec<Slot>, Slot, Option<Slot>)>,
}

fn lay_out(config: &Config, dtype: DType, limits: Limits, mode: Mode) -> (Plan, Slots) {
    let mut plan = Plan::new();
    let tokens = ("tokens", limits.tokens);
    let picked = ("picked", limits.picked);
    let hidden = ("hidden", config.hidden_size);
    let intermediate = ("intermediate", config.intermediate_size);
    let gate_up = ("gate_up", 2 * config.intermediate_size);
    let q_size = config.num_heads * config.head_dim;
    let k_size = config.num_kv_heads * config.head_dim;
    let (q, qk, qkv) = (("q", q_size), ("qk", q_size + k_size), ("qkv", q_size + 2 * k_size));
    let (heads, kv_heads) = (("heads", config.num_heads), ("kv_heads", config.num_kv_heads));
    let (stream_count, layer_count) = match mode {
        Mode::Score => (2, 1),
        Mode::Train => (config.num_layers + 1, config.num_layers),
        Mode::TrainCheckpointed => (config.num_layers + 1, 1),
    };
    let streams = (0..stream_count)
        .map(|i| plan.add(format!("stream.{i}"), dtype, &[tokens, hidden]))
        .collect();
    let layers = (0..layer_count)
        .map(|i| {
            let name = |part: &str| format!("layer.{i}.{part}");
            LayerSlots {
                input_rstd: plan.add(name("input_rstd"), DType::F32, &[tokens]),
                input_normed: plan.add(name("input_normed"), dtype, &[tokens, hidden]),
                qkv: plan.add(name("qkv"), dtype, &[tokens, qkv]),
                qk: config.qk_norm.then(|| {
                    [
                        plan.add(name("qk_normed"), dtype, &[tokens, qk]),
                        plan.add(name("q_rstd"), DType::F32, &[tokens, heads]),
                        plan.add(name("k_rstd"), DType::F32, &[tokens, kv_heads]),
                    ]
                }),
                attended: plan.add(name("attended"), dtype, &[tokens, q]),
                lse: plan.add(name("lse"), DType::F32, &[tokens, heads]),
                middle: plan.add(name("middle"), dtype, &[tokens, hidden]),
                post_rstd: plan.add(name("post_rstd"), DType::F32, &[tokens]),
                post_normed: plan.add(name("post_normed"), dtype, &[tokens, hidden]),
                gate_up: plan.add(name("gate_up"), dtype, &[tokens, gate_up]),
                activated: plan.add(name("activated"), dtype, &[tokens, intermediate]),
            }
        })
        .collect();
    let picked_slots = [
        plan.add("picked", dtype, &[picked, hidden]),
        plan.add("picked_rstd", DType::F32, &[picked]),
        plan.add("picked_normed", dtype, &[picked, hidden]),
        plan.add("log_probs", DType::F32, &[picked]),
        plan.add("entropy", DType::F32, &[picked]),
        plan.add("lse", DType::F32, &[picked]),
        plan.add("values", DType::F32, &[picked]),
    ];
    let backward = (mode != Mode::Score).then(|| {
        let buffers = [
            ("d_picked", [picked, hidden]),
            ("d_picked_normed", [picked, hidden]),
            ("d_stream", [tokens, hidden]),
            ("d_middle", [tokens, hidden]),
            ("d_normed", [tokens, hidden]),
            ("d_qkv", [tokens, qkv]),
            ("d_attended", [tokens, q]),
            ("d_gate_up", [tokens, gate_up]),
            ("d_activated", [tokens, intermediate]),
        ];
        let slots = buffers.into_iter().map(|(name, dims)| plan.add(name, dtype, &dims)).collect();
        let values = plan.add("d_values", dtype, &[picked]);
        (slots, values, config.qk_norm.then(|| plan.add("d_qk", dtype, &[tokens, qk])))
    });
    (plan, Slots { streams, layers, picked: picked_slots, backward })
}

impl LayerBuffers {
    fn take(memory: &mut Memory, slots: LayerSlots) -> Self {
        LayerBuffers {
            input_rstd: memory.take(slots.input_rstd),
            input_normed: memory.take(slots.input_normed),
            qkv: memory.take(slots.qkv),
            qk: slots.qk.map(|[normed, q_rstd, k_rstd]| QkNormBuffers {
                normed: memory.take(normed),
                q_rstd: memory.take(q_rstd),
                k_rstd: memory.take(k_rstd),
            }),
            attended: memory.take(slots.attended),
            lse: memory.take(slots.lse),
            middle: memory.take(slots.middle),
            post_rstd: memory.take(slots.post_rstd),
            post_normed: memory.take(slots.post_normed),
            gate_up: memory.take(slots.gate_up),
            activated: memory.take(slots.activated),
        }
    }
}

impl Activations {
    /// The plan of a step, before any memory is reserved: its buffers by name, and their bytes.
    pub fn plan(config: &Config, dtype: DType, limits: Limits, mode: Mode) -> Plan {
        lay_out(config, dtype, limits, mode).0
    }

    /// Reserves a step's buffers.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn new(
        config: &Config,
        device: Device,
        dtype: DType,
        limits: Limits,
        mode: Mode,
    ) -> Result<Self> {
        let (plan, slots) = lay_out(config, dtype, limits, mode);
        let bytes = plan.bytes();
        let mut memory = plan.allocate(device)?;
        let streams = slots.streams.into_iter().map(|slot| memory.take(slot)).collect();
        let layers =
            slots.layers.into_iter().map(|slots| LayerBuffers::take(&mut memory, slots)).collect();
        let [picked, picked_rstd, picked_normed, log_probs, entropy, lse, values] =
            slots.picked.map(|slot| memory.take(slot));
        let backward = slots.backward.map(|(slots, values, qk)| {
            let mut next = slots.into_iter();
            let mut take = || memory.take(next.next().expect("as many slots as fields"));
            BackwardBuffers {
                picked: take(),
                picked_normed: take(),
                stream: take(),
                middle: take(),
                normed: take(),
                qkv: take(),
                attended: take(),
                gate_up: take(),
                activated: take(),
                values: memory.take(values),
                qk: qk.map(|slot| memory.take(slot)),
            }
        });
        Ok(Activations {
            limits,
            mode,
            pack: PackUpload::new(device, limits.tokens, limits.picked)?,
            streams,
            layers,
            picked,
            picked_rstd,
            picked_normed,
            log_probs,
            entropy,
            lse,
            values,
            backward,
            low_rank: None,
            bytes,
        })
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> usize {
        self.bytes + self.low_rank.as_ref().map_or(0, LowRankBuffers::bytes)
    }

    /// Makes sure of working memory for the adapters of these weights.
    pub(crate) fn reserve_low_rank(&mut self, weights: &Weights) -> Result<()> {
        let tokens = self.limits.tokens;
        let fits = match &self.low_rank {
            None => weights.adapter().is_none(),
            Some(buffers) => buffers.fits(weights, tokens),
        };
        if !fits {
            self.low_rank = LowRankBuffers::new(weights, tokens, self.mode != Mode::Score)?;
        }
        Ok(())
    }

    /// The largest pack that fits.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Where the buffers are.
    pub fn device(&self) -> Device {
        self.log_probs.device()
    }

    /// Log-probability of each picked row's target, after a forward pass over a pack of `picked` picked rows: float32 `[picked]`.
    pub fn log_probs(&self, picked: usize) -> View<'_> {
        self.log_probs.head(picked)
    }

    /// Entropy (nats) of the distribution at each picked row, likewise.
    pub fn entropy(&self, picked: usize) -> View<'_> {
        self.entropy.head(picked)
    }

    /// A critic's value at each picked row: of the text before the row's target. Likewise, where the model has a value head.
    pub fn values(&self, picked: usize) -> View<'_> {
        self.values.head(picked)
    }

    pub(crate) fn check(&self, pack: &Pack) -> Result<()> {
        let (tokens, picked) = (pack.tokens.len(), pack.picked.len());
        if tokens > self.limits.tokens || picked > self.limits.picked {
            return Err(Error::Value(format!(
                "a pack of {tokens} tokens, {picked} of them scored, does not fit a plan for {} and {}",
                self.limits.tokens, self.limits.picked
            )));
        }
        if pack.sequences() > self.limits.tokens {
            return Err(Error::Value(format!(
                "a pack of {} sequences does not fit a plan for {} tokens",
                pack.sequences(),
                self.limits.tokens
            )));
        }
        Ok(())
    }
}
