//! Frozen weights that lie in the host's memory and pass through a device part by part, forward only: the embedding, each layer, and the last norm
//! with the final projection. On the device there is room for the largest of these, and a pass brings each part there before it is computed
//! with. The kernels and what they read are those of weights on the device, and so are the results, to the bit.
//!
//! A part is brought by the device's one stream, behind the work that reads the part before: the buffer needs no second one, and copies do not
//! overlap with computing. The host's side does: it fills the next pinned buffer while the device works.

use std::ops::Range;

use prime_runtime::{DType, Device};

use crate::layout::{LayerLayout, aligned};
use crate::{Config, Error, Layout, Result, Weights};

/// What of a model is on the device at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Embedding,
    Layer(usize),
    /// The last norm and the final projection.
    Head,
}

/// The weights of a forward pass: on the device, or to be brought there.
pub enum Parts<'a> {
    /// All of them are on the device.
    Resident(&'a Weights),
    /// They pass through it.
    Offloaded(&'a mut Offloaded),
}

impl<'a> From<&'a Weights> for Parts<'a> {
    fn from(weights: &'a Weights) -> Self {
        Parts::Resident(weights)
    }
}

impl<'a> From<&'a mut Offloaded> for Parts<'a> {
    fn from(weights: &'a mut Offloaded) -> Self {
        Parts::Offloaded(weights)
    }
}

impl Parts<'_> {
    /// The same weights, for one call more.
    pub fn reborrow(&mut self) -> Parts<'_> {
        match self {
            Parts::Resident(weights) => Parts::Resident(weights),
            Parts::Offloaded(weights) => Parts::Offloaded(weights),
        }
    }

    /// Weights that hold a part where their layout says.
    pub(crate) fn bring(&mut self, part: Part) -> Result<&Weights> {
        match self {
            Parts::Resident(weights) => Ok(weights),
            Parts::Offloaded(weights) => weights.bring(part),
        }
    }
}

/// Weights in the host's memory, with a buffer on a device through which they pass.
#[derive(Debug)]
pub struct Offloaded {
    host: Weights,
    /// Its layout puts every part at the beginning of the buffer.
    staging: Weights,
    held: Option<Part>,
}

impl Offloaded {
    /// Moves weights to the host's memory, if they are not there, to be computed with on a device.
    ///
    /// # Errors
    /// When they have an adapter or a value head, or the memory is not to be had.
    pub fn new(weights: Weights, config: &Config, device: Device) -> Result<Offloaded> {
        if weights.adapter().is_some() || weights.layout().value_head.is_some() {
            return Err(Error::Value(
                "weights with an adapter or a value head cannot be offloaded; an adapter can be merged into its weights (prime merge)"
                    .to_string(),
            ));
        }
        let host = weights.to(Device::Cpu)?;
        let staging = Weights::zeros_of(staged(&Layout::new(config)), device, host.dtype())?;
        Ok(Offloaded { host, staging, held: None })
    }

    /// The weights where they lie.
    pub fn host(&self) -> &Weights {
        &self.host
    }

    /// Bytes of the buffer on the device for a model in a dtype.
    pub fn staging_bytes(config: &Config, dtype: DType) -> usize {
        staged(&Layout::new(config)).elements * dtype.size()
    }

    fn bring(&mut self, part: Part) -> Result<&Weights> {
        if self.held != Some(part) {
            // A copy that fails half way leaves no part.
            self.held = None;
            let from = ranges(self.host.layout(), part);
            let to = ranges(&self.staging.layout().clone(), part);
            for (from, to) in from.into_iter().zip(to) {
                let from = self.host.data().view().rows(from);
                self.staging.data_mut().view_mut().into_rows(to).copy_from(from)?;
            }
            self.held = Some(part);
        }
        Ok(&self.staging)
    }
}

/// The runs of elements that a part consists of.
fn ranges(layout: &Layout, part: Part) -> Vec<Range<usize>> {
    match part {
        Part::Embedding => vec![layout.embedding.clone()],
        Part::Layer(index) => {
            let layer = &layout.layers[index];
            // As they were laid out: matrices one behind the other, and vectors likewise, far from them.
            vec![layer.qkv.start..layer.down.end, layer.input_norm.start..layer.post_norm.end]
        }
        Part::Head => vec![layout.lm_head.clone(), layout.final_norm.clone()],
    }
}

/// The layout of the buffer that parts pass through: each part begins at 0, and what a part has of vectors follows its matrices.
fn staged(layout: &Layout) -> Layout {
    let place = |part: Part| -> Vec<(usize, usize)> {
        let mut end = 0;
        let starts = ranges(layout, part).into_iter().map(|range| {
            let start = aligned(end);
            end = start + range.len();
            (range.start, start)
        });
        starts.collect()
    };
    let moved = |range: &Range<usize>, (from, to): (usize, usize)| {
        range.start - from + to..range.end - from + to
    };
    let layers: Vec<LayerLayout> = (0..layout.layers.len())
        .map(|index| {
            let places = place(Part::Layer(index));
            let (matrices, vectors) = (places[0], places[1]);
            let layer = &layout.layers[index];
            let vector = |range: &Range<usize>| moved(range, vectors);
            LayerLayout {
                input_norm: vector(&layer.input_norm),
                qkv: moved(&layer.qkv, matrices),
                qkv_bias: layer.qkv_bias.as_ref().map(vector),
                q_norm: layer.q_norm.as_ref().map(vector),
                k_norm: layer.k_norm.as_ref().map(vector),
                output: moved(&layer.output, matrices),
                output_bias: layer.output_bias.as_ref().map(vector),
                post_norm: vector(&layer.post_norm),
                gate_up: moved(&layer.gate_up, matrices),
                down: moved(&layer.down, matrices),
            }
        })
        .collect();
    let head = place(Part::Head);
    let mut staged = Layout {
        embedding: moved(&layout.embedding, place(Part::Embedding)[0]),
        layers,
        lm_head: moved(&layout.lm_head, head[0]),
        final_norm: moved(&layout.final_norm, head[1]),
        // Nothing is saved or updated by this layout.
        tensors: Vec::new(),
        tied: layout.tied,
        value_head: None,
        elements: 0,
        matrices_end: 0,
    };
    let first_layer = (!staged.layers.is_empty()).then_some(Part::Layer(0));
    let parts = [Some(Part::Embedding), first_layer, Some(Part::Head)];
    let ends = parts.into_iter().flatten().flat_map(|part| ranges(&staged, part));
    staged.elements = aligned(ends.map(|range| range.end).max().unwrap_or(0));
    staged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{llama, qwen2, qwen3};

    #[test]
    fn the_buffer_takes_the_largest_part_and_no_part_reaches_beyond_it() {
        for config in [qwen2(), qwen3(), llama()] {
            let (layout, staged) = (Layout::new(&config), staged(&Layout::new(&config)));
            let parts = (0..config.num_layers).map(Part::Layer);
            let parts: Vec<Part> = parts.chain([Part::Embedding, Part::Head]).collect();
            let mut largest = 0;
            for part in parts {
                let (from, to) = (ranges(&layout, part), ranges(&staged, part));
                assert!(from.iter().map(Range::len).eq(to.iter().map(Range::len)), "{part:?}");
                assert!(to.windows(2).all(|pair| pair[0].end <= pair[1].start), "{part:?}");
                assert_eq!(to[0].start, 0);
                largest = largest.max(to.last().unwrap().end);
            }
            assert_eq!(staged.elements, aligned(largest));
            assert!(staged.elements < layout.elements);
        }
    }

    #[test]
    fn parts_hold_the_weights_wherever_they_were_asked_for_before() {
        let config = qwen3();
        let weights = Weights::random(&config, DType::F32, 3).unwrap();
        let (copy, layout) = (weights.duplicate().unwrap(), Layout::new(&config));
        let mut offloaded = Offloaded::new(copy, &config, Device::Cpu).unwrap();
        for part in [Part::Layer(1), Part::Head, Part::Embedding, Part::Layer(0), Part::Head] {
            let held = offloaded.bring(part).unwrap();
            let there = ranges(held.layout(), part);
            for (range, there) in ranges(&layout, part).into_iter().zip(there) {
                let expected = &weights.data().as_slice::<f32>()[range];
                assert_eq!(&held.data().as_slice::<f32>()[there], expected, "{part:?}");
            }
        }
    }
}
