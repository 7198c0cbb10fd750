//! Where every parameter lies in one flat buffer.
//!
//! Weights, their gradients, float32 masters and optimiser moments are four buffers of one layout, so the optimiser, the norm of
//! the gradients and a collective each walk memory once, end to end. Matrices come first and vectors (norms and biases) last: weight decay covers
//! one range and spares the other. The projections of q, k and v lie one behind the other and serve as one matrix, and so do gate and up.

use std::ops::Range;

use crate::Config;
use crate::value_head::ValueHead;

/// Every group begins on such a boundary: 64 bytes of bf16, a cache line and a register.
const ALIGNMENT: usize = 32;

/// The first boundary from an element on.
pub(crate) fn aligned(element: usize) -> usize {
    element.next_multiple_of(ALIGNMENT)
}

/// A parameter as checkpoints name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedTensor {
    /// The Hugging Face name.
    pub name: String,
    /// Its dimensions.
    pub dims: Vec<usize>,
    /// Its elements in the buffer.
    pub range: Range<usize>,
}

/// The parameters of one block. Names in brackets are dimensions; `q` is `num_heads * head_dim`, `kv` is `num_kv_heads * head_dim`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerLayout {
    /// `[hidden]`: the norm before attention.
    pub input_norm: Range<usize>,
    /// `[q + 2 kv, hidden]`: the projections of q, k and v, one behind the other.
    pub qkv: Range<usize>,
    /// `[q + 2 kv]`.
    pub qkv_bias: Option<Range<usize>>,
    /// `[head_dim]`: the norm of every query head.
    pub q_norm: Option<Range<usize>>,
    /// `[head_dim]`: the norm of every key head.
    pub k_norm: Option<Range<usize>>,
    /// `[hidden, q]`: the attention's output projection.
    pub output: Range<usize>,
    /// `[hidden]`.
    pub output_bias: Option<Range<usize>>,
    /// `[hidden]`: the norm before the feed-forward network.
    pub post_norm: Range<usize>,
    /// `[2 intermediate, hidden]`: the gate, then the up projection.
    pub gate_up: Range<usize>,
    /// `[hidden, intermediate]`.
    pub down: Range<usize>,
}

/// The parameters of a model in one flat buffer of `elements` elements; what lies between groups is zero and stays zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Elements of the buffer.
    pub elements: usize,
    /// `[vocab, hidden]`.
    pub embedding: Range<usize>,
    /// The blocks, first to last.
    pub layers: Vec<LayerLayout>,
    /// `[hidden]`: the norm before the final projection.
    pub final_norm: Range<usize>,
    /// `[vocab, hidden]`: the final projection; equals `embedding` where they are tied.
    pub lm_head: Range<usize>,
    /// Every parameter once, by its Hugging Face name.
    pub tensors: Vec<NamedTensor>,
    /// Whether the final projection is the embedding.
    pub tied: bool,
    /// A critic's head, behind all others and not among `tensors`.
    pub value_head: Option<ValueHead>,
    pub(crate) matrices_end: usize,
}

#[derive(Default)]
pub(crate) struct Arena {
    end: usize,
    tensors: Vec<NamedTensor>,
}

impl Arena {
    /// Tensors one behind the other, as one range that begins on a boundary.
    pub(crate) fn group(&mut self, parts: &[(String, &[usize])]) -> Range<usize> {
        let start = aligned(self.end);
        self.end = start;
        for (name, dims) in parts {
            let range = self.end..self.end + dims.iter().product::<usize>();
            self.end = range.end;
            self.tensors.push(NamedTensor { name: name.clone(), dims: dims.to_vec(), range });
        }
        start..self.end
    }

    /// Elements of the whole buffer, and every tensor.
    pub(crate) fn finish(self) -> (usize, Vec<NamedTensor>) {
        (aligned(self.end), self.tensors)
    }
}

impl Layout {
    /// The layout of a configuration.
    pub fn new(config: &Config) -> Layout {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let q = config.num_heads * config.head_dim;
        let kv = config.num_kv_heads * config.head_dim;
        let mut arena = Arena::default();

        let embedding =
            arena.group(&[("model.embed_tokens.weight".into(), &[config.vocab_size, hidden])]);
        let mut layers: Vec<LayerLayout> = Vec::with_capacity(config.num_layers);
        for index in 0..config.num_layers {
            let name = |part: &str| format!("model.layers.{index}.{part}.weight");
            layers.push(LayerLayout {
                qkv: arena.group(&[
                    (name("self_attn.q_proj"), &[q, hidden]),
                    (name("self_attn.k_proj"), &[kv, hidden]),
                    (name("self_attn.v_proj"), &[kv, hidden]),
                ]),
                output: arena.group(&[(name("self_attn.o_proj"), &[hidden, q])]),
                gate_up: arena.group(&[
                    (name("mlp.gate_proj"), &[intermediate, hidden]),
                    (name("mlp.up_proj"), &[intermediate, hidden]),
                ]),
                down: arena.group(&[(name("mlp.down_proj"), &[hidden, intermediate])]),
                input_norm: 0..0,
                qkv_bias: None,
                q_norm: None,
                k_norm: None,
                output_bias: None,
                post_norm: 0..0,
            });
        }
        let lm_head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            arena.group(&[("lm_head.weight".into(), &[config.vocab_size, hidden])])
        };

        let matrices_end = aligned(arena.end);
        for (index, layer) in layers.iter_mut().enumerate() {
            let name = |part: &str| format!("model.layers.{index}.{part}");
            layer.input_norm = arena.group(&[(name("input_layernorm.weight"), &[hidden])]);
            if config.qkv_bias {
                layer.qkv_bias = Some(arena.group(&[
                    (name("self_attn.q_proj.bias"), &[q]),
                    (name("self_attn.k_proj.bias"), &[kv]),
                    (name("self_attn.v_proj.bias"), &[kv]),
                ]));
            }
            if config.qk_norm {
                let dims: &[usize] = &[config.head_dim];
                layer.q_norm = Some(arena.group(&[(name("self_attn.q_norm.weight"), dims)]));
                layer.k_norm = Some(arena.group(&[(name("self_attn.k_norm.weight"), dims)]));
            }
            if config.output_bias {
                layer.output_bias =
                    Some(arena.group(&[(name("self_attn.o_proj.bias"), &[hidden])]));
            }
            layer.post_norm = arena.group(&[(name("post_attention_layernorm.weight"), &[hidden])]);
        }
        let final_norm = arena.group(&[("model.norm.weight".into(), &[hidden])]);

        Layout {
            elements: aligned(arena.end),
            embedding,
            layers,
            final_norm,
            lm_head,
            tensors: arena.tensors,
            tied: config.tie_word_embeddings,
            value_head: None,
            matrices_end,
        }
    }

    /// The layout of a configuration with a value head behind it: what lies before keeps its place. The head is not decayed.
    pub fn with_value_head(config: &Config) -> Layout {
        let mut layout = Layout::new(config);
        let weight = layout.elements..layout.elements + config.hidden_size;
        let start = aligned(weight.end);
        layout.elements = aligned(start + 1);
        layout.value_head = Some(ValueHead { weight, bias: start..start + 1 });
        layout
    }

    /// The range that weight decay covers: the matrices. The zeros between groups lie inside, where decay changes nothing.
    pub fn decayed(&self) -> Range<usize> {
        0..self.matrices_end
    }

    /// The range that weight decay spares: norms, biases and a value head.
    pub fn undecayed(&self) -> Range<usize> {
        self.matrices_end..self.elements
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{llama, qwen2, qwen3};

    #[test]
    fn parameters_fill_the_buffer_once_each_in_aligned_groups() {
        for config in [qwen2(), qwen3(), llama()] {
            let layout = Layout::new(&config);
            let mut ranges: Vec<_> = layout.tensors.iter().map(|t| t.range.clone()).collect();
            ranges.sort_by_key(|range| range.start);
            assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
            assert!(ranges.last().unwrap().end <= layout.elements);
            let total: usize = ranges.iter().map(ExactSizeIterator::len).sum();
            assert_eq!(total, config.parameters(), "{}", config.architecture.name());
            for layer in &layout.layers {
                for group in [&layer.qkv, &layer.output, &layer.gate_up, &layer.down] {
                    assert_eq!(group.start % ALIGNMENT, 0);
                }
            }
        }
    }

    #[test]
    fn q_k_and_v_are_one_matrix_and_so_are_gate_and_up() {
        let config = qwen2();
        let layout = Layout::new(&config);
        let range = |name: &str| {
            let name = format!("model.layers.1.{name}");
            layout.tensors.iter().find(|t| t.name == name).unwrap().range.clone()
        };
        let layer = &layout.layers[1];
        let parts = ["q", "k", "v"].map(|part| range(&format!("self_attn.{part}_proj.weight")));
        assert_eq!(layer.qkv, parts[0].start..parts[2].end);
        assert!(parts[0].end == parts[1].start && parts[1].end == parts[2].start);
        let parts = ["q", "k", "v"].map(|part| range(&format!("self_attn.{part}_proj.bias")));
        assert_eq!(layer.qkv_bias, Some(parts[0].start..parts[2].end));
        assert!(parts[0].end == parts[1].start && parts[1].end == parts[2].start);
        let (gate, up) = (range("mlp.gate_proj.weight"), range("mlp.up_proj.weight"));
        assert!(layer.gate_up == (gate.start..up.end) && gate.end == up.start);
    }

    #[test]
    fn weight_decay_covers_every_matrix_and_no_vector() {
        for config in [qwen2(), qwen3(), llama()] {
            let layout = Layout::new(&config);
            for tensor in &layout.tensors {
                let inside = |range: &Range<usize>| {
                    range.start <= tensor.range.start && tensor.range.end <= range.end
                };
                let is_matrix = tensor.dims.len() == 2;
                assert_eq!(inside(&layout.decayed()), is_matrix);
                assert_eq!(inside(&layout.undecayed()), !is_matrix);
            }
        }
    }

    #[test]
    fn a_tied_projection_is_the_embedding() {
        let tied = Layout::new(&qwen2());
        assert_eq!(tied.lm_head, tied.embedding);
        assert!(tied.tensors.iter().all(|t| t.name != "lm_head.weight"));
        let untied = Layout::new(&qwen3());
        assert_eq!(untied.lm_head.len(), untied.embedding.len());
        assert_ne!(untied.lm_head, untied.embedding);
    }
}
