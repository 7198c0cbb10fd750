//! Decode steps of a GPU as graphs: recorded once for a number of sequences, then started with one call.
//!
//! A graph remembers addresses and sizes. Weights, caches, buffers and lists of a generator stay where they are, and what changes from step to
//! step (tokens, positions, spans, how each row is drawn) is in the lists, so that all steps of as many sequences are one graph, the draw included.

use prime_runtime::Device;
use prime_runtime::cuda::Graph;

use super::pass::Step;
use crate::{Error, Result};

/// Graphs that are kept; that of the size used longest ago gives way.
const KEPT: usize = 32;

/// Recorded decode steps.
pub(super) struct Graphs {
    device: Device,
    /// By number of sequences, the size used last at the end.
    sizes: Vec<(usize, Recorded)>,
    /// Whether it was said that steps cannot be recorded.
    said: bool,
}

enum Recorded {
    /// A step of this size has run: its kernels are compiled and its working memory is reserved.
    Ready,
    Graph(Graph),
    /// A step of this size cannot be recorded, and is started kernel by kernel.
    Unrecordable,
}

impl Graphs {
    pub(super) fn new(device: Device) -> Self {
        Graphs { device, sizes: Vec::new(), said: false }
    }

    /// Does the work of a step, recorded where it is a decode step that comes again.
    pub(super) fn run(&mut self, step: &Step, mut work: impl FnMut() -> Result<()>) -> Result<()> {
        let sequences = step.spans.len() / 4;
        let Device::Cuda(number) = self.device else { return work() };
        if !step.decodes() {
            return work();
        }
        let known = self.sizes.iter().position(|&(size, _)| size == sequences);
        let recorded = match known.map(|index| self.sizes.remove(index).1) {
            None => {
                work()?;
                Recorded::Ready
            }
            Some(Recorded::Graph(graph)) => {
                graph.launch()?;
                Recorded::Graph(graph)
            }
            Some(Recorded::Ready) => match Graph::capture(number, || work().map_err(of_runtime)) {
                Ok(graph) => {
                    graph.launch()?;
                    Recorded::Graph(graph)
                }
                // Nothing has run yet: what is wrong beside the recording shows now.
                Err(error) => {
                    work()?;
                    if !std::mem::replace(&mut self.said, true) {
                        eprintln!(
                            "decode steps of {sequences} sequences cannot be recorded as a graph, and are started kernel by kernel, which is slower: {error}"
                        );
                    }
                    Recorded::Unrecordable
                }
            },
            Some(Recorded::Unrecordable) => {
                work()?;
                Recorded::Unrecordable
            }
        };
        if self.sizes.len() == KEPT {
            self.sizes.remove(0);
        }
        self.sizes.push((sequences, recorded));
        Ok(())
    }
}

fn of_runtime(error: Error) -> prime_runtime::Error {
    match error {
        Error::Runtime(error) => error,
        other => prime_runtime::Error::Value(other.to_string()),
    }
}
