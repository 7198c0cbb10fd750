//! Launchers of log_prob, and of the states that [`crate::sample`] needs of the same logits.

use prime_runtime::{DType, Result, View, ViewMut};

use super::hopper;
use crate::device::{Code, DeviceStruct, Launch, Pointer, device_struct, source, vectorised};
use crate::matmul::{self, Epilogue, Layout};
use crate::scratch;

pub(crate) const CODE: Code = Code {
    sources: &[source!("log_prob", "log_prob.cu"), source!("log_prob", "log_prob_sm90.cu")],
    structs: &[
        LogProbForward::LAYOUT,
        LogProbGradient::LAYOUT,
        LogProbFinish::LAYOUT,
        hopper::LAYOUTS[0],
        hopper::LAYOUTS[1],
    ],
};

device_struct! {
    struct LogProbForward {
        partials: Pointer,
        log_probs: Pointer,
        logits: Pointer,
        hidden: Pointer,
        weight: Pointer,
        targets: Pointer,
        inverses: Pointer,
        tokens: u32,
        vocabulary: u32,
        width: u32,
        tiles: u32,
        hidden_stride: u64,
        weight_stride: u64,
        logits_stride: u64,
        inverse: f32,
    }

    struct LogProbGradient {
        d_logits: Pointer,
        hidden: Pointer,
        weight: Pointer,
        targets: Pointer,
        d_log_probs: Pointer,
        d_entropy: Pointer,
        lse: Pointer,
        entropy: Pointer,
        tokens: u32,
        vocabulary: u32,
        width: u32,
        tiles: u32,
        hidden_stride: u64,
        weight_stride: u64,
        d_logits_stride: u64,
        inverse: f32,
    }

    struct LogProbFinish {
        log_probs: Pointer,
        entropy: Pointer,
        lse: Pointer,
        partials: Pointer,
        targets: Pointer,
        tokens: u32,
        vocabulary: u32,
        slots: u32,
    }
}

/// Vocabulary entries of a tile.
const TILE: usize = 128;

/// Vocabulary entries whose sums one state holds.
pub(crate) const SEGMENT: usize = 8 * TILE;

/// States of a row and segment, one a column of warps.
pub(crate) const STATES: usize = 4;

/// Float32 values of a state.
pub(crate) const STATE: usize = 4;

/// States of a row.
pub(crate) fn slots(vocabulary: usize) -> usize {
    vocabulary.div_ceil(SEGMENT) * STATES
}

/// Bytes of states held at once, at most, unless those of a block of rows are more.
const HELD_STATES: usize = 64 << 20;

/// Bytes of gradients by logits held at once, at most, unless those of a block of rows are more.
const HELD_GRADIENTS: usize = 256 << 20;

/// Blocks of a launch, about: several times as many as the largest chips run at once, so that the last ones to end leave few idle.
const BLOCKS: usize = 1024;

/// The most rows of a block; waves of tokens are cut at multiples of it.
const MOST_ROWS: usize = 128;

/// A tile shape: how `.cu` text names it, rows of a block, its threads and the bytes of its stages.
struct Shape {
    name: &'static str,
    rows: usize,
    threads: u32,
    shared: usize,
}

impl Shape {
    fn of(tokens: usize, hidden: View<'_>, weight: View<'_>) -> Shape {
        let shape = |name, rows: usize, threads, stages| Shape {
            name,
            rows,
            threads,
            shared: (rows + TILE) * 128 * stages,
        };
        if vectorised(hidden.dim(1), &[hidden, weight]) == 1 {
            return shape("2, 2, false", 64, 256, 4);
        }
        match tokens {
            0..=16 => shape("1, 1, true", 16, 128, 4),
            17..=64 => shape("2, 2, true", 64, 256, 4),
            _ => shape("4, 2, true", MOST_ROWS, 256, 3),
        }
    }

    /// Blocks of rows by runs of vocabulary tiles, and the tiles of a run: whole segments.
    fn grid(&self, tokens: usize, vocabulary: usize) -> ([usize; 3], u32) {
        let (rows, segments) = (tokens.div_ceil(self.rows), vocabulary.div_ceil(SEGMENT));
        let runs = (BLOCKS / rows.max(1)).clamp(1, segments.max(1));
        let run = segments.div_ceil(runs).max(1);
        ([rows, segments.div_ceil(run), 1], (run * SEGMENT / TILE) as u32)
    }

    fn kernel(&self, name: &str, dtype: DType) -> String {
        let dtype = if dtype == DType::BF16 { "bf16" } else { "float" };
        format!("{name}<{dtype}, {}>", self.name)
    }
}

/// `0..tokens` cut where a wave's scratch would exceed `held` bytes at `bytes` a token.
fn waves(tokens: usize, bytes: usize, held: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let wave = (held / bytes.max(1) / MOST_ROWS * MOST_ROWS).max(MOST_ROWS);
    (0..tokens).step_by(wave).map(move |start| start..(start + wave).min(tokens))
}

/// The most bytes that forward and backward borrow, beside those of their products.
pub(crate) fn most_scratch(dtype: DType, tokens: usize, vocabulary: usize) -> usize {
    let longest =
        |bytes: usize, held| waves(tokens, bytes, held).next().map_or(0, |wave| wave.len());
    let states = slots(vocabulary) * STATE;
    let gradients = vocabulary.next_multiple_of(16 / dtype.size());
    scratch::device_bytes(DType::F32, longest(4 * states, HELD_STATES) * states)
        + scratch::device_bytes(
            dtype,
            longest(gradients * dtype.size(), HELD_GRADIENTS) * gradients,
        )
}

/// What a logit is multiplied by.
#[derive(Clone, Copy)]
pub(crate) enum Inverse<'a> {
    /// One number for all rows.
    Same(f32),
    /// One a row.
    Each(View<'a>),
}

impl<'a> Inverse<'a> {
    /// The one number, 1 where there are several, and those.
    pub(super) fn parts(self) -> (f32, Option<View<'a>>) {
        match self {
            Inverse::Same(same) => (same, None),
            Inverse::Each(each) => (1.0, Some(each)),
        }
    }
}

/// The states of some rows (`[rows, slots * STATE]`), and what else is wanted of their logits over the temperature: all of them (float32, with
/// room for an even number a row), and those of the targets.
pub(crate) fn states(
    mut partials: ViewMut<'_>,
    mut logits: Option<ViewMut<'_>>,
    targets: Option<(ViewMut<'_>, View<'_>)>,
    hidden: View<'_>,
    weight: View<'_>,
    inverse: Inverse<'_>,
) -> Result<()> {
    if let Some(tier) = hopper::tier(hidden, weight)? {
        return hopper::states(tier, partials, logits, targets, hidden, weight, inverse);
    }
    let (tokens, vocabulary, dtype) = (hidden.dim(0), weight.dim(0), hidden.dtype());
    let shape = Shape::of(tokens, hidden, weight);
    let (grid, tiles) = shape.grid(tokens, vocabulary);
    let (mut log_probs, targets) = targets.unzip();
    let logits_stride = logits.as_ref().map_or(0, |logits| logits.row_stride() as u64);
    let mut launch =
        Launch::new(&CODE.sources[0], shape.kernel("log_prob_forward", dtype), hidden.device());
    let (same, each) = inverse.parts();
    let arguments = LogProbForward {
        partials: launch.write(&mut partials),
        log_probs: launch.write_if(log_probs.as_mut()),
        logits: launch.write_if(logits.as_mut()),
        hidden: launch.read(hidden),
        weight: launch.read(weight),
        targets: launch.read_if(targets),
        inverses: launch.read_if(each),
        tokens: tokens as u32,
        vocabulary: vocabulary as u32,
        width: hidden.dim(1) as u32,
        tiles,
        hidden_stride: hidden.row_stride() as u64,
        weight_stride: weight.row_stride() as u64,
        logits_stride,
        inverse: same,
    };
    launch.grid(grid).block(shape.threads).shared(shape.shared).run(&arguments)
}

/// Joins the states of each row. `log_probs` holds the targets' logits and receives their log-probabilities; that of a target beyond the
/// vocabulary is NaN.
pub(crate) fn finish(
    mut log_probs: ViewMut<'_>,
    mut entropy: ViewMut<'_>,
    mut lse: Option<ViewMut<'_>>,
    partials: View<'_>,
    targets: View<'_>,
    vocabulary: usize,
) -> Result<()> {
    let tokens = targets.dim(0);
    let mut launch = Launch::new(&CODE.sources[0], "log_prob_finish", targets.device());
    let arguments = LogProbFinish {
        log_probs: launch.write(&mut log_probs),
        entropy: launch.write(&mut entropy),
        lse: launch.write_if(lse.as_mut()),
        partials: launch.read(partials),
        targets: launch.read(targets),
        tokens: tokens as u32,
        vocabulary: vocabulary as u32,
        slots: slots(vocabulary) as u32,
    };
    // A warp a row.
    launch.grid([tokens.div_ceil(4), 1, 1]).block(128).run(&arguments)
}

pub(super) fn forward(
    mut log_probs: ViewMut<'_>,
    mut entropy: ViewMut<'_>,
    mut lse: ViewMut<'_>,
    hidden: View<'_>,
    weight: View<'_>,
    targets: View<'_>,
    inverse: f32,
) -> Result<()> {
    let vocabulary = weight.dim(0);
    let columns = slots(vocabulary) * STATE;
    for rows in waves(hidden.dim(0), columns * 4, HELD_STATES) {
        let mut partials = scratch::device(hidden.device(), DType::F32, rows.len(), columns)?;
        let targets = targets.rows(rows.clone());
        let mut log_probs = log_probs.reborrow().into_rows(rows.clone());
        states(
            partials.view_mut(),
            None,
            Some((log_probs.reborrow(), targets)),
            hidden.rows(rows.clone()),
            weight,
            Inverse::Same(inverse),
        )?;
        let entropy = entropy.reborrow().into_rows(rows.clone());
        let lse = lse.reborrow().into_rows(rows.clone());
        finish(log_probs, entropy, Some(lse), partials.view(), targets, vocabulary)?;
    }
    Ok(())
}

/// One value a token.
#[derive(Clone, Copy)]
pub(super) struct Vectors<'a> {
    pub(super) targets: View<'a>,
    pub(super) d_log_probs: View<'a>,
    pub(super) d_entropy: Option<View<'a>>,
    pub(super) lse: View<'a>,
    pub(super) entropy: View<'a>,
}

pub(super) fn backward(
    mut d_hidden: ViewMut<'_>,
    mut d_weight: Option<ViewMut<'_>>,
    of_tokens: Vectors<'_>,
    hidden: View<'_>,
    weight: View<'_>,
    inverse: f32,
) -> Result<()> {
    let (device, dtype, vocabulary) = (hidden.device(), hidden.dtype(), weight.dim(0));
    // Rows of whole vectors of 16 bytes, so that the products may copy them whole.
    let columns = vocabulary.next_multiple_of(16 / dtype.size());
    for rows in waves(hidden.dim(0), columns * dtype.size(), HELD_GRADIENTS) {
        let mut d_logits = scratch::device(device, dtype, rows.len(), columns)?;
        let hidden = hidden.rows(rows.clone());
        gradient(d_logits.view_mut(), of_tokens, rows.clone(), hidden, weight, inverse)?;
        let d_logits = d_logits.view().columns(0..vocabulary);
        let d_hidden = d_hidden.reborrow().into_rows(rows);
        matmul::forward(d_hidden, d_logits, weight, Layout::NN, Epilogue::default())?;
        if let Some(d_weight) = &mut d_weight {
            matmul::accumulate(d_weight.reborrow(), d_logits, hidden, Layout::TN)?;
        }
    }
    Ok(())
}

/// The gradient by the raw logits of a wave's tokens, `rows` of all.
fn gradient(
    mut d_logits: ViewMut<'_>,
    of_tokens: Vectors<'_>,
    rows: std::ops::Range<usize>,
    hidden: View<'_>,
    weight: View<'_>,
    inverse: f32,
) -> Result<()> {
    if let Some(tier) = hopper::tier(hidden, weight)? {
        return hopper::gradient(tier, d_logits, of_tokens, rows, hidden, weight, inverse);
    }
    let (tokens, vocabulary, device) = (hidden.dim(0), weight.dim(0), hidden.device());
    let shape = Shape::of(tokens, hidden, weight);
    let (grid, tiles) = shape.grid(tokens, vocabulary);
    let d_logits_stride = d_logits.row_stride() as u64;
    let kernel = shape.kernel("log_prob_gradient", hidden.dtype());
    let mut launch = Launch::new(&CODE.sources[0], kernel, device);
    let arguments = LogProbGradient {
        d_logits: launch.write(&mut d_logits),
        hidden: launch.read(hidden),
        weight: launch.read(weight),
        targets: launch.read(of_tokens.targets.rows(rows.clone())),
        d_log_probs: launch.read(of_tokens.d_log_probs.rows(rows.clone())),
        d_entropy: launch.read_if(of_tokens.d_entropy.map(|view| view.rows(rows.clone()))),
        lse: launch.read(of_tokens.lse.rows(rows.clone())),
        entropy: launch.read(of_tokens.entropy.rows(rows.clone())),
        tokens: tokens as u32,
        vocabulary: vocabulary as u32,
        width: hidden.dim(1) as u32,
        tiles,
        hidden_stride: hidden.row_stride() as u64,
        weight_stride: weight.row_stride() as u64,
        d_logits_stride,
        inverse,
    };
    launch.grid(grid).block(shape.threads).shared(shape.shared).run(&arguments)
}
