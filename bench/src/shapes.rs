//! The one table of shapes: layers of published models in training, prefill and decoding, this project's own models, and awkward ones.

use prime_kernels::matmul::Layout;

/// What kernels see of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// Its name.
    pub name: &'static str,
    /// Columns of its residual stream.
    pub hidden: usize,
    /// Columns of each of gate and up.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
    /// Rows of its embedding.
    pub vocabulary: usize,
}

const fn model(
    name: &'static str,
    [hidden, intermediate, heads, kv_heads, head_dim, vocabulary]: [usize; 6],
) -> Model {
    Model { name, hidden, intermediate, heads, kv_heads, head_dim, vocabulary }
}

/// The model that a default run of this project could have, and one of 26 million parameters.
pub const OWN: [Model; 2] =
    [model("small", [192, 512, 6, 2, 32, 64]), model("medium", [512, 1408, 8, 2, 64, 6400])];

/// Published models, from their `config.json`. Llama 3 of one billion parameters is Llama 3.2 1B.
pub const PUBLISHED: [Model; 5] = [
    model("Qwen2.5 0.5B", [896, 4864, 14, 2, 64, 151_936]),
    model("Qwen2.5 1.5B", [1536, 8960, 12, 2, 128, 151_936]),
    model("Qwen2.5 7B", [3584, 18_944, 28, 4, 128, 152_064]),
    model("Llama 3 1B", [2048, 8192, 32, 8, 64, 128_256]),
    model("Llama 3 8B", [4096, 14_336, 32, 8, 128, 128_256]),
];

/// One that the emulated device runs in moments.
pub const TINY: Model = model("tiny", [64, 96, 4, 2, 16, 200]);

impl Model {
    /// Rows of the fused projection to queries, keys and values.
    pub fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Whether it is one of [`OWN`].
    pub fn is_own(&self) -> bool {
        OWN.contains(self)
    }
}

/// How much of everything there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// For devices that compute.
    Real,
    /// The same paths at sizes for the emulated device.
    Tiny,
}

impl Scale {
    /// The models, small ones first.
    pub fn models(self) -> Vec<Model> {
        match self {
            Scale::Real => OWN.into_iter().chain(PUBLISHED).collect(),
            Scale::Tiny => vec![TINY],
        }
    }

    /// Tokens of a training batch.
    pub fn training(self) -> usize {
        if self == Scale::Real { 4096 } else { 40 }
    }

    /// Tokens of a prompt that is fed at once.
    pub fn prefill(self) -> usize {
        if self == Scale::Real { 512 } else { 24 }
    }

    /// Sequences that decode side by side.
    pub fn decode(self) -> Vec<usize> {
        if self == Scale::Real { vec![1, 8, 64] } else { vec![3] }
    }

    /// Keys that a decoding sequence sees.
    pub fn context(self) -> usize {
        if self == Scale::Real { 4096 } else { 64 }
    }

    /// Lengths of the sequences of a training batch, in tokens: equal ones that fill it.
    pub fn lengths(self) -> Vec<usize> {
        if self == Scale::Real { vec![1024; 4] } else { vec![20; 2] }
    }

    /// Lengths that fill no tile: a prompt of one token beside a long one, and sizes that are multiples of nothing.
    pub fn awkward_lengths(self) -> Vec<usize> {
        if self == Scale::Real { vec![1, 777, 63, 2049, 5, 129] } else { vec![1, 17, 3] }
    }
}

/// A product of matrices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    /// The model and the layer, or what is particular to it.
    pub name: String,
    /// How A and B lie.
    pub layout: Layout,
    /// Rows of C, its columns, and terms of its sums.
    pub dims: [usize; 3],
    /// Whether it is measured in float32 too: shapes of published models are in bfloat16 alone.
    pub floats: bool,
}

/// Every product: linear layers of all models, forward and both gradients, and awkward ones.
pub fn products(scale: Scale) -> Vec<Product> {
    use Layout::{NN, NT, TN};
    let mut products = Vec::new();
    for model in scale.models() {
        let floats = model.is_own() || model == TINY;
        let mut add = |layer: &str, layout, dims| {
            let name = format!("{} {layer}", model.name);
            products.push(Product { name, layout, dims, floats });
        };
        let Model { hidden, intermediate, vocabulary, .. } = model;
        let (qkv, both, attended) = (model.qkv(), 2 * intermediate, model.heads * model.head_dim);
        let tokens = scale.training();
        add("training, q k v", NT, [tokens, qkv, hidden]);
        add("training, attention out", NT, [tokens, hidden, attended]);
        add("training, gate up", NT, [tokens, both, hidden]);
        add("training, down", NT, [tokens, hidden, intermediate]);
        add("training, gradient of gate up's input", NN, [tokens, hidden, both]);
        add("training, gradient of q k v's input", NN, [tokens, hidden, qkv]);
        add("training, gradient of gate up", TN, [both, hidden, tokens]);
        add("training, gradient of down", TN, [hidden, intermediate, tokens]);
        add("prefill, gate up", NT, [scale.prefill(), both, hidden]);
        add("prefill, down", NT, [scale.prefill(), hidden, intermediate]);
        for rows in scale.decode() {
            add(&format!("decode {rows}, gate up"), NT, [rows, both, hidden]);
            add(&format!("decode {rows}, down"), NT, [rows, hidden, intermediate]);
        }
        add("decode 1, logits", NT, [1, vocabulary, hidden]);
    }
    let sides: &[usize] = if scale == Scale::Real { &[512, 2048, 4096, 8192] } else { &[64] };
    for &side in sides {
        for layout in [NN, NT, TN] {
            products.push(Product {
                name: "square".to_owned(),
                layout,
                dims: [side; 3],
                floats: side <= 2048,
            });
        }
    }
    let awkward: &[[usize; 3]] = match scale {
        Scale::Real => &[[1000, 1001, 999], [4095, 4097, 129], [129, 65, 16_385], [7, 3000, 77]],
        Scale::Tiny => &[[33, 65, 17]],
    };
    for &dims in awkward {
        for layout in [NN, NT, TN] {
            products.push(Product { name: "awkward".to_owned(), layout, dims, floats: true });
        }
    }
    products
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_tell_products_apart_and_every_model_has_all_layouts() {
        for scale in [Scale::Real, Scale::Tiny] {
            let products = products(scale);
            let names: HashSet<_> =
                products.iter().map(|p| (&p.name, p.layout as usize, p.dims)).collect();
            assert_eq!(names.len(), products.len());
            for model in scale.models() {
                let layouts: HashSet<_> = products
                    .iter()
                    .filter(|product| product.name.starts_with(model.name))
                    .map(|product| product.layout as usize)
                    .collect();
                assert_eq!(layouts.len(), 3, "{}", model.name);
            }
        }
    }

    #[test]
    fn lengths_fill_the_training_batch() {
        for scale in [Scale::Real, Scale::Tiny] {
            assert_eq!(scale.lengths().iter().sum::<usize>(), scale.training());
        }
    }
}
