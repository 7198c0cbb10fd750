//! Launchers of the policy loss: a thread a token, or a block a sequence.

use prime_runtime::{Result, ViewMut};

use super::{Numbers, Objective, Statistics};
use crate::device::{Code, DeviceStruct, Launch, Pointer, THREADS, device_struct, source};
use crate::reduce::cuda::{Partials, SUM_SHARED};

pub(crate) const CODE: Code = Code {
    sources: &[source!("policy_loss", "policy_loss.cu")],
    structs: &[
        Inputs::LAYOUT,
        PolicyLossForward::LAYOUT,
        PolicyLossBackward::LAYOUT,
        PolicyLossSequencesForward::LAYOUT,
        PolicyLossSequencesBackward::LAYOUT,
    ],
};

device_struct! {
    struct Inputs {
        new_log_probs: Pointer,
        old_log_probs: Pointer,
        advantages: Pointer,
        weights: Pointer,
        tokens: u32,
        low: f32,
        high: f32,
        dual: f32,
        least: f32,
        most: f32,
        weighs: u32,
    }

    struct PolicyLossForward {
        partials: Pointer,
        inputs: Inputs,
    }

    struct PolicyLossBackward {
        d_log_probs: Pointer,
        inputs: Inputs,
    }

    struct PolicyLossSequencesForward {
        partials: Pointer,
        cu_seqlens: Pointer,
        inputs: Inputs,
    }

    struct PolicyLossSequencesBackward {
        d_log_probs: Pointer,
        cu_seqlens: Pointer,
        inputs: Inputs,
    }
}

/// Blocks that the statistics are spread over at most.
const MOST_BLOCKS: usize = 256;

/// Threads that share a sequence.
const SEQUENCE_THREADS: u32 = 128;

impl Inputs {
    fn new<'a>(
        launch: &mut Launch<'a>,
        inputs: &super::Inputs<'a>,
        objective: Objective<'_>,
    ) -> Inputs {
        let Numbers { low, high, dual, least, most, weighs } = objective.into();
        Inputs {
            new_log_probs: launch.read(inputs.new),
            old_log_probs: launch.read(inputs.old),
            advantages: launch.read(inputs.advantages),
            weights: launch.read(inputs.weights),
            tokens: inputs.new.dim(0) as u32,
            low,
            high,
            dual,
            least,
            most,
            weighs: u32::from(weighs),
        }
    }
}

pub(super) fn forward(inputs: super::Inputs<'_>, objective: Objective<'_>) -> Result<Statistics> {
    let (device, tokens) = (inputs.new.device(), inputs.new.dim(0));
    if tokens == 0 {
        return Ok(Statistics::default());
    }
    let blocks = match objective {
        Objective::SequenceClip { cu_seqlens, .. } => cu_seqlens.dim(0) - 1,
        _ => tokens.div_ceil(THREADS as usize).min(MOST_BLOCKS),
    };
    let mut partials = Partials::new(device, blocks, 4)?;
    {
        let mut view = partials.scratch.view_mut();
        match objective {
            Objective::SequenceClip { cu_seqlens, .. } => {
                let kernel = "policy_loss_sequences_forward";
                let mut launch = Launch::new(&CODE.sources[0], kernel, device);
                let arguments = PolicyLossSequencesForward {
                    partials: launch.write(&mut view),
                    cu_seqlens: launch.read(cu_seqlens),
                    inputs: Inputs::new(&mut launch, &inputs, objective),
                };
                let launch = launch.grid([blocks, 1, 1]).block(SEQUENCE_THREADS);
                launch.shared(SUM_SHARED).run(&arguments)?;
            }
            _ => {
                let mut launch = Launch::new(&CODE.sources[0], "policy_loss_forward", device);
                let arguments = PolicyLossForward {
                    partials: launch.write(&mut view),
                    inputs: Inputs::new(&mut launch, &inputs, objective),
                };
                launch.grid([blocks, 1, 1]).block(THREADS).shared(SUM_SHARED).run(&arguments)?;
            }
        }
    }
    let [loss, clipped, clipped_dual, kl] = partials.finish()?;
    Ok(Statistics { loss, clipped, clipped_dual, kl, tokens: tokens as f64 })
}

pub(super) fn backward(
    mut d_log_probs: ViewMut<'_>,
    inputs: super::Inputs<'_>,
    objective: Objective<'_>,
) -> Result<()> {
    let device = inputs.new.device();
    if let Objective::SequenceClip { cu_seqlens, .. } = objective {
        let kernel = "policy_loss_sequences_backward";
        let mut launch = Launch::new(&CODE.sources[0], kernel, device);
        let arguments = PolicyLossSequencesBackward {
            d_log_probs: launch.write(&mut d_log_probs),
            cu_seqlens: launch.read(cu_seqlens),
            inputs: Inputs::new(&mut launch, &inputs, objective),
        };
        let sequences = cu_seqlens.dim(0) - 1;
        let launch = launch.grid([sequences, 1, 1]).block(SEQUENCE_THREADS);
        return launch.shared(SUM_SHARED).run(&arguments);
    }
    let mut launch = Launch::new(&CODE.sources[0], "policy_loss_backward", device);
    let arguments = PolicyLossBackward {
        d_log_probs: launch.write(&mut d_log_probs),
        inputs: Inputs::new(&mut launch, &inputs, objective),
    };
    let blocks = inputs.new.dim(0).div_ceil(THREADS as usize);
    launch.grid([blocks, 1, 1]).block(THREADS).run(&arguments)
}
