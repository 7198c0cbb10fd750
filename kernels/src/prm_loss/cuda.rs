//! Launchers of the PRM's loss: a block a response.

use prime_runtime::{Result, View, ViewMut};

use crate::device::{Code, DeviceStruct, Launch, Pointer, device_struct, source};
use crate::reduce::cuda::{Partials, SUM_SHARED};

pub(crate) const CODE: Code = Code {
    sources: &[source!("prm_loss", "prm_loss.cu")],
    structs: &[PrmLossForward::LAYOUT, PrmLossBackward::LAYOUT],
};

device_struct! {
    struct PrmLossForward {
        probabilities: Pointer,
        losses: Pointer,
        prm_log_probs: Pointer,
        ref_log_probs: Pointer,
        outcomes: Pointer,
        cu_seqlens: Pointer,
        beta: f32,
    }

    struct PrmLossBackward {
        d_prm_log_probs: Pointer,
        probabilities: Pointer,
        outcomes: Pointer,
        cu_seqlens: Pointer,
        scale: f64,
    }
}

const THREADS: u32 = 128;

pub(super) fn forward(
    mut probabilities: ViewMut<'_>,
    prm_log_probs: View<'_>,
    ref_log_probs: View<'_>,
    outcomes: View<'_>,
    cu_seqlens: View<'_>,
    beta: f32,
    responses: usize,
) -> Result<f64> {
    let (device, sequences) = (prm_log_probs.device(), outcomes.dim(0));
    if sequences == 0 {
        return Ok(0.0);
    }
    let mut losses = Partials::new(device, sequences, 1)?;
    {
        let mut view = losses.scratch.view_mut();
        let mut launch = Launch::new(&CODE.sources[0], "prm_loss_forward", device);
        let arguments = PrmLossForward {
            probabilities: launch.write(&mut probabilities),
            losses: launch.write(&mut view),
            prm_log_probs: launch.read(prm_log_probs),
            ref_log_probs: launch.read(ref_log_probs),
            outcomes: launch.read(outcomes),
            cu_seqlens: launch.read(cu_seqlens),
            beta,
        };
        launch.grid([sequences, 1, 1]).block(THREADS).shared(SUM_SHARED).run(&arguments)?;
    }
    let [total] = losses.finish()?;
    Ok(total / responses.max(1) as f64)
}

pub(super) fn backward(
    mut d_prm_log_probs: ViewMut<'_>,
    probabilities: View<'_>,
    outcomes: View<'_>,
    cu_seqlens: View<'_>,
    beta: f32,
    responses: usize,
) -> Result<()> {
    let (device, sequences) = (d_prm_log_probs.device(), outcomes.dim(0));
    let mut launch = Launch::new(&CODE.sources[0], "prm_loss_backward", device);
    let arguments = PrmLossBackward {
        d_prm_log_probs: launch.write(&mut d_prm_log_probs),
        probabilities: launch.read(probabilities),
        outcomes: launch.read(outcomes),
        cu_seqlens: launch.read(cu_seqlens),
        scale: f64::from(beta) / responses.max(1) as f64,
    };
    launch.grid([sequences, 1, 1]).block(THREADS).run(&arguments)
}
