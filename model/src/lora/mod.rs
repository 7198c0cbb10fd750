//! Low-rank adapters: small matrices beside frozen weights, y = x W^T + (alpha / rank) (x A^T) B^T.
//!
//! The frozen weights are shared: policy, PRM and reference of one base hold its memory once. A and B of all layers lie in one flat
//! buffer of their own [`AdapterLayout`], in the dtype of the weights, so that optimiser, gradient norm and checkpoints walk it as they walk
//! weights. The A of projections that share their input (q, k and v; gate and up) lie one behind the other and are one product.
//!
//! Forward, backward and generation add the same products in the same order to what the base computed, so a sampled token's log-probability
//! is the trainer's with adapters as without. With B zero, as it begins, the numbers are the base's.
//!
//! Source: Hu et al., arXiv 2106.09685; initial values and names in files as in PEFT.

pub(crate) mod peft;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prime_kernels::matmul::{self, Epilogue, Layout as Product};
use prime_kernels::{cast, scale};
use prime_runtime::random::{self, Stream};
use prime_runtime::{DType, Device, Element, Tensor, View, ViewMut, bf16};

use crate::layout::Arena;
use crate::{Config, Error, Gradients, NamedTensor, Result, Weights};

pub use peft::{base_of, merge};

/// The linear layers of a block that may have adapters, by the names that files give them.
pub const TARGETS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// What an adapter is like.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSettings {
    /// Columns of the product between A and B.
    pub rank: usize,
    /// The adapter's part is multiplied by alpha / rank.
    pub alpha: f64,
    /// Which linear layers have one, of [`TARGETS`].
    pub targets: Vec<String>,
}

impl LoraSettings {
    /// Checks the settings.
    ///
    /// # Errors
    /// When the rank is 0, alpha is not a positive number, or a target is unknown, named twice, or missing.
    pub fn check(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Value(message));
        if self.rank == 0 || self.rank > 1 << 14 {
            return fail(format!("an adapter's rank is {}, expected 1 to 16384", self.rank));
        }
        if !(self.alpha > 0.0 && self.alpha < 1e6) {
            return fail(format!("an adapter's alpha is {}, expected above 0, to 1e6", self.alpha));
        }
        if self.targets.is_empty() {
            return fail(format!("an adapter has no target; name some of {}", TARGETS.join(", ")));
        }
        for (index, target) in self.targets.iter().enumerate() {
            if !TARGETS.contains(&target.as_str()) {
                let known = TARGETS.join(", ");
                return fail(format!("`{target}` is no target of an adapter, expected {known}"));
            }
            if self.targets[..index].contains(target) {
                return fail(format!("the target `{target}` of an adapter is named twice"));
            }
        }
        Ok(())
    }

    /// alpha / rank, rounded once.
    fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }
}

/// The products of a block that adapters join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Qkv,
    Output,
    GateUp,
    Down,
}

/// The adapters of one product of a block: that of each of its projections that is a target.
#[derive(Clone, Debug, PartialEq, Eq)]
struct LowRank {
    /// `[parts * rank, inputs]`
    a: Range<usize>,
    inputs: usize,
    parts: Vec<Part>,
}

/// The adapter of one projection.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    /// `[columns, rank]`
    b: Range<usize>,
    /// Of the product's output.
    columns: Range<usize>,
}

/// Where the matrices of a model's adapters lie in one flat buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterLayout {
    /// What the adapters are like.
    pub settings: LoraSettings,
    /// Elements of the buffer.
    pub elements: usize,
    /// Every matrix once, by the name that PEFT gives it.
    pub tensors: Vec<NamedTensor>,
    layers: Vec<[Option<LowRank>; 4]>,
    /// Columns of the widest product with A.
    width: usize,
}

impl AdapterLayout {
    /// The layout for a model.
    ///
    /// # Errors
    /// As for [`LoraSettings::check`].
    pub fn new(config: &Config, settings: &LoraSettings) -> Result<AdapterLayout> {
        settings.check()?;
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let q = config.num_heads * config.head_dim;
        let kv = config.num_kv_heads * config.head_dim;
        // In the order of `Place`: the block's part, its inputs, and its projections with their outputs.
        type Product<'a> = (&'a str, usize, &'a [(&'a str, usize)]);
        let products: [Product<'_>; 4] = [
            ("self_attn", hidden, &[("q_proj", q), ("k_proj", kv), ("v_proj", kv)]),
            ("self_attn", q, &[("o_proj", hidden)]),
            ("mlp", hidden, &[("gate_proj", intermediate), ("up_proj", intermediate)]),
            ("mlp", intermediate, &[("down_proj", hidden)]),
        ];
        let rank = settings.rank;
        let mut arena = Arena::default();
        let mut width = 0;
        let layers = (0..config.num_layers)
            .map(|layer| {
                products.map(|(module, inputs, projections)| {
                    let mut column = 0;
                    let placed = projections.iter().map(|&(name, outputs)| {
                        let columns = column..column + outputs;
                        column = columns.end;
                        (name, columns)
                    });
                    let targets: Vec<_> = placed
                        .filter(|(name, _)| settings.targets.iter().any(|target| target == name))
                        .collect();
                    if targets.is_empty() {
                        return None;
                    }
                    let name = |projection: &str, matrix: &str| {
                        format!(
                            "base_model.model.model.layers.{layer}.{module}.{projection}.lora_{matrix}.weight"
                        )
                    };
                    let dims = [rank, inputs];
                    let of_a: Vec<(String, &[usize])> =
                        targets.iter().map(|(target, _)| (name(target, "A"), &dims[..])).collect();
                    let a = arena.group(&of_a);
                    let parts: Vec<Part> = targets
                        .iter()
                        .map(|(target, columns)| Part {
                            b: arena.group(&[(name(target, "B"), &[columns.len(), rank])]),
                            columns: columns.clone(),
                        })
                        .collect();
                    width = width.max(parts.len() * rank);
                    Some(LowRank { a, inputs, parts })
                })
            })
            .collect();
        let (elements, tensors) = arena.finish();
        Ok(AdapterLayout { settings: settings.clone(), elements, tensors, layers, width })
    }

    /// Columns of the widest product with A: each token needs as many numbers of working memory, twice on the way back.
    pub fn width(&self) -> usize {
        self.width
    }

    fn low_rank(&self, layer: usize, place: Place) -> Option<&LowRank> {
        self.layers[layer][place as usize].as_ref()
    }
}

/// The adapters of a model: A and B of every target, in the dtype and on the device of the weights beside which they stand.
#[derive(Debug)]
pub struct Adapter {
    layout: Arc<AdapterLayout>,
    data: Tensor,
    base: PathBuf,
}

impl Adapter {
    /// Adapters that change nothing yet: A uniform within one over the root of its inputs, B zero. `base` is the folder that the weights
    /// beside them come from; adapters of one seed and different `number` begin with different A.
    ///
    /// # Errors
    /// As for [`LoraSettings::check`], and when the memory is not to be had.
    pub fn new(
        config: &Config,
        settings: &LoraSettings,
        weights: &Weights,
        base: &Path,
        seed: u64,
        number: u32,
    ) -> Result<Adapter> {
        let layout = Arc::new(AdapterLayout::new(config, settings)?);
        let mut data = Tensor::zeros(Device::Cpu, weights.dtype(), &[layout.elements])?;
        for (index, tensor) in layout.tensors.iter().enumerate() {
            if tensor.name.ends_with("lora_B.weight") {
                continue;
            }
            let bound = 1.0 / (tensor.dims[1] as f64).sqrt();
            // Weights' own parameters are numbered from 0.
            let sequence = u64::from(number + 1) << 32 | index as u64;
            let range = tensor.range.clone();
            match weights.dtype() {
                DType::F32 => {
                    fill_uniform(&mut data.as_mut_slice::<f32>()[range], bound, seed, sequence)
                }
                _ => fill_uniform(&mut data.as_mut_slice::<bf16>()[range], bound, seed, sequence),
            }
        }
        let device = weights.data().device();
        let data = if device == Device::Cpu { data } else { data.to(device)? };
        Ok(Adapter { layout, data, base: base.to_path_buf() })
    }

    /// Adapters of a layout, all zero, on the device of the weights.
    fn zeros(layout: Arc<AdapterLayout>, weights: &Weights, base: &Path) -> Result<Adapter> {
        let data = Tensor::zeros(weights.data().device(), weights.dtype(), &[layout.elements])?;
        Ok(Adapter { layout, data, base: base.to_path_buf() })
    }

    /// Another buffer with the same numbers.
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub(crate) fn duplicate(&self) -> Result<Adapter> {
        let mut data = Tensor::zeros(self.data.device(), self.data.dtype(), self.data.dims())?;
        cast::forward(data.view_mut(), self.data.view())?;
        Ok(Adapter { layout: self.layout.clone(), data, base: self.base.clone() })
    }

    /// Where each matrix lies.
    pub fn layout(&self) -> &Arc<AdapterLayout> {
        &self.layout
    }

    /// The buffer, `[layout.elements]`.
    pub fn data(&self) -> &Tensor {
        &self.data
    }

    /// The buffer, to write.
    pub fn data_mut(&mut self) -> &mut Tensor {
        &mut self.data
    }

    /// The folder of the weights beside which the adapters stand.
    pub fn base(&self) -> &Path {
        &self.base
    }

    fn view(&self, range: &Range<usize>, dims: &[usize]) -> View<'_> {
        self.data.view().rows(range.clone()).reshape(dims)
    }
}

fn fill_uniform<E: Element>(values: &mut [E], bound: f64, seed: u64, sequence: u64) {
    for (block, values) in values.chunks_mut(4).enumerate() {
        let words = random::block(seed, Stream::Weights, sequence, block as u32);
        for (value, word) in values.iter_mut().zip(words) {
            *value = E::from_f32(((2.0 * f64::from(random::uniform(word)) - 1.0) * bound) as f32);
        }
    }
}

/// Working memory of products with A: x A^T, and its gradient.
pub(crate) struct LowRankBuffers {
    product: Tensor, // (tokens, width)
    gradient: Tensor,
}

impl LowRankBuffers {
    /// For so many tokens. Nothing on the way back needs the second buffer where there is none.
    pub(crate) fn new(weights: &Weights, tokens: usize, backward: bool) -> Result<Option<Self>> {
        let Some(adapter) = weights.adapter() else { return Ok(None) };
        let width = adapter.layout.width;
        let zeros = |tokens: usize| {
            Tensor::zeros(adapter.data.device(), adapter.data.dtype(), &[tokens * width])
        };
        let gradient = zeros(if backward { tokens } else { 0 })?;
        Ok(Some(LowRankBuffers { product: zeros(tokens)?, gradient }))
    }

    /// Whether products of these weights fit.
    pub(crate) fn fits(&self, weights: &Weights, tokens: usize) -> bool {
        weights
            .adapter()
            .is_none_or(|adapter| tokens * adapter.layout.width <= self.product.dims()[0])
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        let elements = self.product.dims()[0] + self.gradient.dims()[0];
        elements * self.product.dtype().size()
    }
}

/// Whether a product of a layer has an adapter.
pub(crate) fn is_at(weights: &Weights, layer: usize, place: Place) -> bool {
    weights.adapter().is_some_and(|adapter| adapter.layout.low_rank(layer, place).is_some())
}

fn reserved(buffers: Option<&mut LowRankBuffers>) -> Result<&mut LowRankBuffers> {
    buffers.ok_or_else(|| {
        Error::Value("these buffers were planned for weights without adapters".to_string())
    })
}

/// alpha / rank * x A^T.
fn product<'a>(
    adapter: &Adapter,
    low_rank: &LowRank,
    x: View<'_>,
    buffer: &'a mut Tensor,
) -> Result<View<'a>> {
    let (tokens, columns) = (x.dim(0), low_rank.parts.len() * adapter.layout.settings.rank);
    let mut out = buffer.head_mut(tokens * columns).into_shape(&[tokens, columns]);
    let a = adapter.view(&low_rank.a, &[columns, low_rank.inputs]);
    matmul::forward(out.reborrow(), x, a, Product::NT, Epilogue::default())?;
    scale::forward(out, adapter.layout.settings.scale())?;
    Ok(buffer.head(tokens * columns).reshape(&[tokens, columns]))
}

/// Adds to a product's output what the adapters there make of its input; nothing where there are none.
pub(crate) fn forward(
    weights: &Weights,
    layer: usize,
    place: Place,
    mut out: ViewMut<'_>,
    x: View<'_>,
    buffers: Option<&mut LowRankBuffers>,
) -> Result<()> {
    let Some(adapter) = weights.adapter() else { return Ok(()) };
    let Some(low_rank) = adapter.layout.low_rank(layer, place) else { return Ok(()) };
    let buffers = reserved(buffers)?;
    let rank = adapter.layout.settings.rank;
    let product = product(adapter, low_rank, x, &mut buffers.product)?;
    for (index, part) in low_rank.parts.iter().enumerate() {
        let b = adapter.view(&part.b, &[part.columns.len(), rank]);
        let product = product.columns(index * rank..(index + 1) * rank);
        let out = out.reborrow().into_columns(part.columns.clone());
        matmul::accumulate(out, product, b, Product::NT)?;
    }
    Ok(())
}

/// The way back of [`forward`]: adds to the gradients of A and B, and to that of the input.
pub(crate) fn backward(
    weights: &Weights,
    layer: usize,
    place: Place,
    d_x: ViewMut<'_>,
    gradients: &mut Gradients,
    d_out: View<'_>,
    x: View<'_>,
    buffers: Option<&mut LowRankBuffers>,
) -> Result<()> {
    let Some(adapter) = weights.adapter() else { return Ok(()) };
    let Some(low_rank) = adapter.layout.low_rank(layer, place) else { return Ok(()) };
    let buffers = reserved(buffers)?;
    let rank = adapter.layout.settings.rank;
    let (tokens, columns) = (x.dim(0), low_rank.parts.len() * rank);
    // Computed again rather than kept for every layer: it is a small product.
    let product = product(adapter, low_rank, x, &mut buffers.product)?;
    let mut d_product = buffers.gradient.head_mut(tokens * columns).into_shape(&[tokens, columns]);
    for (index, part) in low_rank.parts.iter().enumerate() {
        let dims = [part.columns.len(), rank];
        let own = index * rank..(index + 1) * rank;
        let d_out = d_out.columns(part.columns.clone());
        matmul::accumulate(
            gradients.adapter_mut(&part.b, &dims),
            d_out,
            product.columns(own.clone()),
            Product::TN,
        )?;
        let d_product = d_product.reborrow().into_columns(own);
        let b = adapter.view(&part.b, &dims);
        matmul::forward(d_product, d_out, b, Product::NN, Epilogue::default())?;
    }
    scale::forward(d_product.reborrow(), adapter.layout.settings.scale())?;
    let dims = [columns, low_rank.inputs];
    matmul::accumulate(
        gradients.adapter_mut(&low_rank.a, &dims),
        d_product.as_view(),
        x,
        Product::TN,
    )?;
    let a = adapter.view(&low_rank.a, &dims);
    matmul::accumulate(d_x, d_product.as_view(), a, Product::NN)?;
    Ok(())
}
