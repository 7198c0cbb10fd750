//! Launchers of log_prob on Hopper: bfloat16 whose rows begin at multiples of 16 bytes, where numerics need not be invariant. All numbers of tokens
//! go the same way, so that a token has the same bits in every batch, and [`crate::sample`] has those of the trainer.

use prime_runtime::{DType, Result, View, ViewMut};

use super::cuda::{CODE, Inverse, SEGMENT, Vectors};
use crate::device::{
    self, DeviceStruct, Launch, Pointer, StructLayout, TensorMap, Tier, device_struct,
};
use crate::matmul::hopper::{Rows, THREADS, operand, shared_bytes};
use crate::numerics::{self, Numerics};

device_struct! {
    struct LogProbForwardHopper {
        hidden: TensorMap,
        weight: TensorMap,
        partials: Pointer,
        log_probs: Pointer,
        logits: Pointer,
        targets: Pointer,
        inverses: Pointer,
        logits_stride: u64,
        tokens: u32,
        vocabulary: u32,
        width: u32,
        inverse: f32,
    }

    struct LogProbGradientHopper {
        hidden: TensorMap,
        weight: TensorMap,
        d_logits: TensorMap,
        targets: Pointer,
        d_log_probs: Pointer,
        d_entropy: Pointer,
        lse: Pointer,
        entropy: Pointer,
        tokens: u32,
        vocabulary: u32,
        width: u32,
        inverse: f32,
    }
}

pub(super) const LAYOUTS: [StructLayout; 2] =
    [LogProbForwardHopper::LAYOUT, LogProbGradientHopper::LAYOUT];

/// Vocabulary entries of a tile, and stages of the ring.
const TILE: usize = 128;
const STAGES: usize = 6;

/// What the chip is, where logits of these factors are computed here.
///
/// # Errors
/// When the device cannot be used.
pub(super) fn tier(hidden: View<'_>, weight: View<'_>) -> Result<Option<Tier>> {
    // The distance of rows counts even of a single one, which belongs to a batch elsewhere.
    let apart = |view: View<'_>| view.row_stride().is_multiple_of(8) && device::aligned(&[view]);
    let some = hidden.dim(0) > 0 && hidden.dim(1) > 0 && weight.dim(0) > 0;
    if hidden.dtype() != DType::BF16
        || numerics::chosen() == Numerics::Invariant
        || !some
        || !apart(hidden)
        || !apart(weight)
    {
        return Ok(None);
    }
    let tier = device::tier(hidden.device())?;
    Ok(tier.hopper().then_some(tier))
}

/// How rows of tokens are cut into blocks.
struct Shape {
    /// Template arguments.
    name: &'static str,
    /// Rows of a block, and blocks of a cluster.
    rows: usize,
    cluster: usize,
}

impl Shape {
    fn of(tokens: usize) -> Shape {
        match tokens {
            0..=64 => Shape { name: "64, SHARE_NONE", rows: 64, cluster: 1 },
            _ => Shape { name: "128, SHARE_B", rows: 128, cluster: 2 },
        }
    }

    /// Starts a kernel by as many blocks as run at once, or as there are `columns` for each row of clusters.
    fn start<S: DeviceStruct>(
        &self,
        launch: Launch<'_>,
        tier: Tier,
        [tokens, columns]: [usize; 2],
        arguments: &S,
    ) -> Result<()> {
        let blocks = tokens.div_ceil(self.rows * self.cluster) * columns * self.cluster;
        let shared = shared_bytes(self.rows, TILE, STAGES);
        let launch = launch.cluster(self.cluster as u32).block(THREADS).shared(shared);
        let resident = launch.resident_blocks(tier.multiprocessors)?;
        launch.grid([blocks.min(resident), 1, 1]).run(arguments)
    }
}

/// See [`super::cuda::states`].
pub(super) fn states(
    tier: Tier,
    mut partials: ViewMut<'_>,
    mut logits: Option<ViewMut<'_>>,
    targets: Option<(ViewMut<'_>, View<'_>)>,
    hidden: View<'_>,
    weight: View<'_>,
    inverse: Inverse<'_>,
) -> Result<()> {
    let (device, tokens, vocabulary) = (hidden.device(), hidden.dim(0), weight.dim(0));
    let shape = Shape::of(tokens);
    let kernel = format!("log_prob_forward_hopper<{}>", shape.name);
    let (mut log_probs, targets) = targets.unzip();
    let logits_stride = logits.as_ref().map_or(0, |logits| logits.row_stride() as u64);
    let (same, each) = inverse.parts();
    let mut launch = Launch::new(&CODE.sources[1], kernel, device);
    let arguments = LogProbForwardHopper {
        hidden: operand(device, launch.read(hidden), hidden)?,
        weight: operand(device, launch.read(weight), weight)?,
        partials: launch.write(&mut partials),
        log_probs: launch.write_if(log_probs.as_mut()),
        logits: launch.write_if(logits.as_mut()),
        targets: launch.read_if(targets),
        inverses: launch.read_if(each),
        logits_stride,
        tokens: tokens as u32,
        vocabulary: vocabulary as u32,
        width: hidden.dim(1) as u32,
        inverse: same,
    };
    shape.start(launch, tier, [tokens, vocabulary.div_ceil(SEGMENT)], &arguments)
}

/// The gradient by the raw logits of a wave's tokens, `rows` of all.
pub(super) fn gradient(
    tier: Tier,
    d_logits: ViewMut<'_>,
    of_tokens: Vectors<'_>,
    rows: std::ops::Range<usize>,
    hidden: View<'_>,
    weight: View<'_>,
    inverse: f32,
) -> Result<()> {
    let (device, tokens, vocabulary) = (hidden.device(), hidden.dim(0), weight.dim(0));
    let shape = Shape::of(tokens);
    let kernel = format!("log_prob_gradient_hopper<{}>", shape.name);
    let mut launch = Launch::new(&CODE.sources[1], kernel, device);
    let mut d_logits = d_logits.into_columns(0..vocabulary);
    let of_result = Rows::of(d_logits.as_view());
    let arguments = LogProbGradientHopper {
        hidden: operand(device, launch.read(hidden), hidden)?,
        weight: operand(device, launch.read(weight), weight)?,
        d_logits: of_result.map(device, launch.write(&mut d_logits), 1)?,
        targets: launch.read(of_tokens.targets.rows(rows.clone())),
        d_log_probs: launch.read(of_tokens.d_log_probs.rows(rows.clone())),
        d_entropy: launch.read_if(of_tokens.d_entropy.map(|view| view.rows(rows.clone()))),
        lse: launch.read(of_tokens.lse.rows(rows.clone())),
        entropy: launch.read(of_tokens.entropy.rows(rows)),
        tokens: tokens as u32,
        vocabulary: vocabulary as u32,
        width: hidden.dim(1) as u32,
        inverse,
    };
    shape.start(launch, tier, [tokens, vocabulary.div_ceil(TILE)], &arguments)
}
