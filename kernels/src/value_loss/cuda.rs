//! Launchers of the value loss: a thread a token.

use prime_runtime::{Result, ViewMut};

use super::Statistics;
use crate::device::{Code, DeviceStruct, Launch, Pointer, THREADS, device_struct, source};
use crate::reduce::cuda::{Partials, SUM_SHARED};

pub(crate) const CODE: Code = Code {
    sources: &[source!("value_loss", "value_loss.cu")],
    structs: &[ValueInputs::LAYOUT, ValueLossForward::LAYOUT, ValueLossBackward::LAYOUT],
};

device_struct! {
    struct ValueInputs {
        values: Pointer,
        old_values: Pointer,
        returns: Pointer,
        weights: Pointer,
        tokens: u32,
        clip: f32,
    }

    struct ValueLossForward {
        partials: Pointer,
        inputs: ValueInputs,
    }

    struct ValueLossBackward {
        d_values: Pointer,
        inputs: ValueInputs,
    }
}

/// Blocks that the statistics are spread over at most.
const MOST_BLOCKS: usize = 256;

impl ValueInputs {
    fn new<'a>(launch: &mut Launch<'a>, inputs: &super::Inputs<'a>, clip: f32) -> ValueInputs {
        ValueInputs {
            values: launch.read(inputs.values),
            old_values: launch.read(inputs.old),
            returns: launch.read(inputs.returns),
            weights: launch.read(inputs.weights),
            tokens: inputs.values.dim(0) as u32,
            clip,
        }
    }
}

pub(super) fn forward(inputs: super::Inputs<'_>, clip: f32) -> Result<Statistics> {
    let (device, tokens) = (inputs.values.device(), inputs.values.dim(0));
    if tokens == 0 {
        return Ok(Statistics::default());
    }
    let blocks = tokens.div_ceil(THREADS as usize).min(MOST_BLOCKS);
    let mut partials = Partials::new(device, blocks, 2)?;
    {
        let mut view = partials.scratch.view_mut();
        let mut launch = Launch::new(&CODE.sources[0], "value_loss_forward", device);
        let arguments = ValueLossForward {
            partials: launch.write(&mut view),
            inputs: ValueInputs::new(&mut launch, &inputs, clip),
        };
        launch.grid([blocks, 1, 1]).block(THREADS).shared(SUM_SHARED).run(&arguments)?;
    }
    let [loss, clipped] = partials.finish()?;
    Ok(Statistics { loss, clipped, tokens: tokens as f64 })
}

pub(super) fn backward(
    mut d_values: ViewMut<'_>,
    inputs: super::Inputs<'_>,
    clip: f32,
) -> Result<()> {
    let mut launch = Launch::new(&CODE.sources[0], "value_loss_backward", inputs.values.device());
    let arguments = ValueLossBackward {
        d_values: launch.write(&mut d_values),
        inputs: ValueInputs::new(&mut launch, &inputs, clip),
    };
    let blocks = inputs.values.dim(0).div_ceil(THREADS as usize);
    launch.grid([blocks, 1, 1]).block(THREADS).run(&arguments)
}
