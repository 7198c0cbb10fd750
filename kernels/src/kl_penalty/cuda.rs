//! Launchers of the penalty: a thread a token.

use prime_runtime::{Result, View, ViewMut};

use super::{Kind, Statistics};
use crate::device::{Code, DeviceStruct, Launch, Pointer, THREADS, device_struct, source};
use crate::reduce::cuda::{Partials, SUM_SHARED};

pub(crate) const CODE: Code = Code {
    sources: &[source!("kl_penalty", "kl_penalty.cu")],
    structs: &[KlPenaltyForward::LAYOUT, KlPenaltyBackward::LAYOUT],
};

device_struct! {
    struct KlPenaltyForward {
        partials: Pointer,
        penalties: Pointer,
        new_log_probs: Pointer,
        reference_log_probs: Pointer,
        weights: Pointer,
        tokens: u32,
        kind: u32,
    }

    struct KlPenaltyBackward {
        d_log_probs: Pointer,
        new_log_probs: Pointer,
        reference_log_probs: Pointer,
        weights: Pointer,
        tokens: u32,
        kind: u32,
    }
}

/// Blocks that the sums are spread over at most.
const MOST_BLOCKS: usize = 256;

pub(super) fn forward(
    mut penalties: ViewMut<'_>,
    new_log_probs: View<'_>,
    reference_log_probs: View<'_>,
    weights: View<'_>,
    kind: Kind,
) -> Result<Statistics> {
    let (device, tokens) = (new_log_probs.device(), new_log_probs.dim(0));
    if tokens == 0 {
        return Ok(Statistics::default());
    }
    let blocks = tokens.div_ceil(THREADS as usize).min(MOST_BLOCKS);
    let mut partials = Partials::new(device, blocks, 2)?;
    {
        let mut view = partials.scratch.view_mut();
        let mut launch = Launch::new(&CODE.sources[0], "kl_penalty_forward", device);
        let arguments = KlPenaltyForward {
            partials: launch.write(&mut view),
            penalties: launch.write(&mut penalties),
            new_log_probs: launch.read(new_log_probs),
            reference_log_probs: launch.read(reference_log_probs),
            weights: launch.read(weights),
            tokens: tokens as u32,
            kind: kind as u32,
        };
        launch.grid([blocks, 1, 1]).block(THREADS).shared(SUM_SHARED).run(&arguments)?;
    }
    let [loss, penalty] = partials.finish()?;
    Ok(Statistics { loss, penalty })
}

pub(super) fn backward(
    mut d_log_probs: ViewMut<'_>,
    new_log_probs: View<'_>,
    reference_log_probs: View<'_>,
    weights: View<'_>,
    kind: Kind,
) -> Result<()> {
    let (device, tokens) = (new_log_probs.device(), new_log_probs.dim(0));
    let mut launch = Launch::new(&CODE.sources[0], "kl_penalty_backward", device);
    let arguments = KlPenaltyBackward {
        d_log_probs: launch.write(&mut d_log_probs),
        new_log_probs: launch.read(new_log_probs),
        reference_log_probs: launch.read(reference_log_probs),
        weights: launch.read(weights),
        tokens: tokens as u32,
        kind: kind as u32,
    };
    let blocks = tokens.div_ceil(THREADS as usize);
    launch.grid([blocks, 1, 1]).block(THREADS).run(&arguments)
}
