//! Launchers of the policy loss: a thread a token.

use prime_runtime::{Result, ViewMut};

use super::{Clip, Statistics};
use crate::device::{Code, DeviceStruct, Launch, Pointer, THREADS, device_struct, source};
use crate::reduce::cuda::{Partials, SUM_SHARED};

pub(crate) const CODE: Code = Code {
    sources: &[source!("policy_loss", "policy_loss.cu")],
    structs: &[Inputs::LAYOUT, PolicyLossForward::LAYOUT, PolicyLossBackward::LAYOUT],
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
    }

    struct PolicyLossForward {
        partials: Pointer,
        inputs: Inputs,
    }

    struct PolicyLossBackward {
        d_log_probs: Pointer,
        inputs: Inputs,
    }
}

/// Blocks that the statistics are spread over at most.
const MOST_BLOCKS: usize = 256;

impl Inputs {
    fn new<'a>(launch: &mut Launch<'a>, inputs: &super::Inputs<'a>, clip: Clip) -> Inputs {
        Inputs {
            new_log_probs: launch.read(inputs.new),
            old_log_probs: launch.read(inputs.old),
            advantages: launch.read(inputs.advantages),
            weights: launch.read(inputs.weights),
            tokens: inputs.new.dim(0) as u32,
            low: 1.0 - clip.low,
            high: 1.0 + clip.high,
            dual: clip.dual.unwrap_or(f32::INFINITY),
        }
    }
}

pub(super) fn forward(inputs: super::Inputs<'_>, clip: Clip) -> Result<Statistics> {
    let (device, tokens) = (inputs.new.device(), inputs.new.dim(0));
    if tokens == 0 {
        return Ok(Statistics::default());
    }
    let blocks = tokens.div_ceil(THREADS as usize).min(MOST_BLOCKS);
    let mut partials = Partials::new(device, blocks, 4)?;
    {
        let mut view = partials.scratch.view_mut();
        let mut launch = Launch::new(&CODE.sources[0], "policy_loss_forward", device);
        let arguments = PolicyLossForward {
            partials: launch.write(&mut view),
            inputs: Inputs::new(&mut launch, &inputs, clip),
        };
        launch.grid([blocks, 1, 1]).block(THREADS).shared(SUM_SHARED).run(&arguments)?;
    }
    let [loss, clipped, clipped_dual, kl] = partials.finish()?;
    Ok(Statistics { loss, clipped, clipped_dual, kl, tokens: tokens as f64 })
}

pub(super) fn backward(
    mut d_log_probs: ViewMut<'_>,
    inputs: super::Inputs<'_>,
    clip: Clip,
) -> Result<()> {
    let mut launch = Launch::new(&CODE.sources[0], "policy_loss_backward", inputs.new.device());
    let arguments = PolicyLossBackward {
        d_log_probs: launch.write(&mut d_log_probs),
        inputs: Inputs::new(&mut launch, &inputs, clip),
    };
    let blocks = inputs.new.dim(0).div_ceil(THREADS as usize);
    launch.grid([blocks, 1, 1]).block(THREADS).run(&arguments)
}
