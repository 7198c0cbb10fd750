//! Launchers of the PRM's losses: a block a response, or a warp a response where its prefixes count.

use prime_runtime::{Result, ViewMut};

use super::{Cost, Over, Settings};
use crate::device::{Code, DeviceStruct, Launch, Pointer, device_struct, source};
use crate::reduce::cuda::{Partials, SUM_SHARED};

pub(crate) const CODE: Code = Code {
    sources: &[source!("prm_loss", "prm_loss.cu")],
    structs: &[Inputs::LAYOUT, PrmLossForward::LAYOUT, PrmLossBackward::LAYOUT],
};

device_struct! {
    struct Inputs {
        prm_log_probs: Pointer,
        ref_log_probs: Pointer,
        cu_seqlens: Pointer,
        labels: Pointer,
        offsets: Pointer,
        weights: Pointer,
        cu_targets: Pointer,
        divisor: f64,
        sequences: u32,
        beta: f32,
    }

    struct PrmLossForward {
        losses: Pointer,
        inputs: Inputs,
    }

    struct PrmLossBackward {
        d_prm_log_probs: Pointer,
        inputs: Inputs,
    }
}

const THREADS: u32 = 128;

impl Inputs {
    fn new<'a>(launch: &mut Launch<'a>, inputs: &super::Inputs<'a>, settings: &Settings) -> Self {
        let targets = &inputs.targets;
        Inputs {
            prm_log_probs: launch.read(inputs.prm_log_probs),
            ref_log_probs: launch.read(inputs.ref_log_probs),
            cu_seqlens: launch.read(inputs.cu_seqlens),
            labels: launch.read(targets.labels),
            offsets: launch.read(targets.offsets),
            weights: launch.read(targets.weights),
            cu_targets: launch.read(targets.cu_targets),
            divisor: settings.divisor,
            sequences: inputs.cu_seqlens.dim(0) as u32 - 1,
            beta: settings.beta,
        }
    }
}

/// The name of an instance.
macro_rules! kernel {
    ($settings:expr, $direction:literal) => {
        match ($settings.over, $settings.cost) {
            (Over::Responses, Cost::CrossEntropy) => {
                concat!("prm_loss_", $direction, "<false>")
            }
            (Over::Responses, Cost::Error) => concat!("prm_loss_", $direction, "<true>"),
            (Over::Prefixes, Cost::CrossEntropy) => {
                concat!("prm_loss_prefixes_", $direction, "<false>")
            }
            (Over::Prefixes, Cost::Error) => concat!("prm_loss_prefixes_", $direction, "<true>"),
        }
    };
}

fn blocks(sequences: usize, settings: &Settings) -> usize {
    match settings.over {
        Over::Responses => sequences,
        Over::Prefixes => sequences.div_ceil(4),
    }
}

pub(super) fn forward(inputs: &super::Inputs<'_>, settings: &Settings) -> Result<f64> {
    let device = inputs.prm_log_probs.device();
    let sequences = inputs.cu_seqlens.dim(0) - 1;
    if sequences == 0 {
        return Ok(0.0);
    }
    let mut losses = Partials::new(device, sequences, 1)?;
    {
        let mut view = losses.scratch.view_mut();
        let mut launch = Launch::new(&CODE.sources[0], kernel!(settings, "forward"), device);
        let arguments = PrmLossForward {
            losses: launch.write(&mut view),
            inputs: Inputs::new(&mut launch, inputs, settings),
        };
        let grid = [blocks(sequences, settings), 1, 1];
        launch.grid(grid).block(THREADS).shared(SUM_SHARED).run(&arguments)?;
    }
    let [total] = losses.finish()?;
    Ok(total / settings.divisor)
}

pub(super) fn backward(
    mut d_prm_log_probs: ViewMut<'_>,
    inputs: &super::Inputs<'_>,
    settings: &Settings,
) -> Result<()> {
    let device = inputs.prm_log_probs.device();
    let sequences = inputs.cu_seqlens.dim(0) - 1;
    let mut launch = Launch::new(&CODE.sources[0], kernel!(settings, "backward"), device);
    let arguments = PrmLossBackward {
        d_prm_log_probs: launch.write(&mut d_prm_log_probs),
        inputs: Inputs::new(&mut launch, inputs, settings),
    };
    let grid = [blocks(sequences, settings), 1, 1];
    launch.grid(grid).block(THREADS).shared(SUM_SHARED).run(&arguments)
}
