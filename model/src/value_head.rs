//! A critic: a decoder with a value head, a linear map from the last norm's output to one number.
//!
//! The head lies behind all other parameters in the flat buffer, so that a model with a head is the model itself as far as a decoder, a
//! generator or a saved folder is concerned. It is kept in a file of its own beside the Hugging Face weights, which stay loadable; its tensors bear
//! the names that `transformers` gives to the head of a token classifier.

use std::ops::Range;
use std::path::Path;

use prime_kernels::matmul::{self, Epilogue, Layout as Product};
use prime_kernels::{cast, log_prob};
use prime_runtime::View;
use prime_runtime::safetensors::{self, Source};

use crate::activations::BackwardBuffers;
use crate::{Activations, Config, Decoder, Error, Gradients, Layout, Pack, Parts, Result, Weights};

/// The file beside a model's weights that holds its value head.
pub const VALUE_HEAD_FILE: &str = "value_head.safetensors";

const WEIGHT: &str = "score.weight";
const BIAS: &str = "score.bias";

/// Where a value head lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueHead {
    /// `[1, hidden]`.
    pub weight: Range<usize>,
    /// `[1]`.
    pub bias: Range<usize>,
}

impl Weights {
    /// Puts a value head of zeros, which says 0 of every text, on these weights; they keep the one that they have.
    ///
    /// # Errors
    /// When the device has not the memory.
    pub fn add_value_head(&mut self, config: &Config) -> Result<()> {
        if self.layout().value_head.is_some() {
            return Ok(());
        }
        let device = self.data().device();
        let mut with = Weights::zeros_of(Layout::with_value_head(config), device, self.dtype())?;
        let trunk = with.data_mut().view_mut().into_rows(0..self.layout().elements);
        cast::forward(trunk, self.data().view())?;
        *self = with;
        Ok(())
    }

    /// Takes over another model's parameters, without its value head where it has one.
    pub(crate) fn copy_model(&mut self, from: &Weights) -> Result<()> {
        let model = match from.layout().value_head {
            Some(_) => from.data().view().rows(0..self.layout().elements),
            None => from.data().view(),
        };
        Ok(cast::forward(self.data_mut().view_mut(), model)?)
    }

    /// Writes the value head into a folder.
    ///
    /// # Errors
    /// When there is no head, or the disk refuses.
    pub fn save_value_head(&self, folder: &Path) -> Result<()> {
        let path = folder.join(VALUE_HEAD_FILE);
        let Some((weight, bias)) = self.value_head() else {
            return Err(Error::file(&path, "this model has no value head to be saved"));
        };
        let tensors = [(WEIGHT, weight), (BIAS, bias)];
        let sources = tensors.into_iter().map(|(name, view)| Source::view(name, view));
        Ok(safetensors::write(&path, sources, &[])?)
    }

    /// Reads the value head from a folder, converted to the dtype of these weights.
    ///
    /// # Errors
    /// When these weights have no place for one, or the file is missing or holds the head of another model.
    pub fn load_value_head(&mut self, folder: &Path) -> Result<()> {
        let path = folder.join(VALUE_HEAD_FILE);
        let Some(ValueHead { weight, bias }) = self.layout().value_head.clone() else {
            return Err(Error::file(&path, "this model has no place for a value head"));
        };
        let file = safetensors::File::open(&path)?;
        let hidden = weight.len();
        for (name, range, dims) in [(WEIGHT, weight, &[1, hidden][..]), (BIAS, bias, &[1])] {
            let part = self.data_mut().view_mut().into_rows(range);
            file.read_into(name, &mut part.into_shape(dims))?;
        }
        Ok(())
    }

    /// The head's weight `[1, hidden]` and bias `[1]`, where there is one.
    pub fn value_head(&self) -> Option<(View<'_>, View<'_>)> {
        let head = self.layout().value_head.as_ref()?;
        let weight = self.view(&head.weight, &[1, head.weight.len()]);
        Some((weight, self.view(&head.bias, &[1])))
    }
}

/// The gradient of a loss with respect to what a pass computed at its picked rows: float32 `[picked]` each, none where the loss does not depend on it.
#[derive(Clone, Copy, Default)]
pub struct OutputGradients<'a> {
    /// With respect to the log-probabilities.
    pub log_probs: Option<View<'a>>,
    /// With respect to the entropies; needs the log-probabilities' to be given too.
    pub entropy: Option<View<'a>>,
    /// With respect to the value head's values.
    pub values: Option<View<'a>>,
}

impl Decoder {
    /// Runs a pack through a model with a value head and takes the value at its picked rows, and nothing else there; read them with
    /// [`Activations::values`]. [`Decoder::forward`] takes them besides its log-probabilities.
    ///
    /// # Errors
    /// As for [`Decoder::forward`], and when the model has no value head.
    pub fn forward_values<'a>(
        &self,
        weights: impl Into<Parts<'a>>,
        pack: &Pack,
        activations: &mut Activations,
    ) -> Result<()> {
        let mut parts = weights.into();
        // Offloaded weights have none.
        let weights = match &parts {
            Parts::Resident(weights) if weights.layout().value_head.is_some() => *weights,
            _ => return Err(no_head()),
        };
        self.trunk_forward(&mut parts, pack, activations)?;
        self.head_forward(weights, pack, activations)
    }

    /// The values at the picked rows, after the last norm; nothing where the model has no value head.
    pub(crate) fn head_forward(
        &self,
        weights: &Weights,
        pack: &Pack,
        activations: &mut Activations,
    ) -> Result<()> {
        let Some((weight, bias)) = weights.value_head() else { return Ok(()) };
        let picked = pack.picked.len();
        matmul::forward(
            activations.values.head_mut(picked).into_shape(&[picked, 1]),
            activations.picked_normed.head(picked),
            weight,
            Product::NT,
            Epilogue { bias: Some(bias), ..Epilogue::default() },
        )?;
        Ok(())
    }

    /// Adds to `gradients` those of the sum of gradient times output over all outputs of the last forward pass, which must have been over this pack
    /// with these weights and this temperature, and must have computed what `d` speaks of.
    ///
    /// # Errors
    /// When the activations were planned for scoring only, the model has no value head but `d` has values, or sizes disagree.
    pub fn backward_from(
        &self,
        weights: &Weights,
        pack: &Pack,
        temperature: f32,
        d: OutputGradients<'_>,
        activations: &mut Activations,
        gradients: &mut Gradients,
    ) -> Result<()> {
        activations.check(pack)?;
        let picked = pack.picked.len();
        let hidden = self.config().hidden_size;
        let Some(back) = &mut activations.backward else {
            return Err(Error::Value(
                "these activations were planned for scoring only: there is no way back".to_string(),
            ));
        };
        if let Some(d_log_probs) = d.log_probs {
            let lists = activations.pack.views(pack);
            let table = [self.config().vocab_size, hidden];
            // Where values join, they do so on their way out of this buffer, which the norm's gradient takes over afterwards.
            let out = if d.values.is_some() { &mut back.picked } else { &mut back.picked_normed };
            log_prob::backward(
                out.head_mut(picked),
                gradients.view_mut(&self.layout().lm_head, &table),
                d_log_probs,
                d.entropy,
                activations.picked_normed.head(picked),
                weights.view(&self.layout().lm_head, &table),
                lists.targets,
                activations.lse.head(picked),
                activations.entropy.head(picked),
                temperature,
            )?;
        }
        match d.values {
            Some(d_values) => {
                let normed = activations.picked_normed.head(picked);
                let joined = d.log_probs.is_some();
                head_backward(weights, d_values, joined, normed, back, gradients)?;
            }
            None if d.log_probs.is_none() => {
                return Err(Error::Value(
                    "a way back needs the gradient of log-probabilities or values".to_string(),
                ));
            }
            None => {}
        }
        self.trunk_backward(weights, pack, activations, gradients)
    }
}

/// The head's own gradients, and that of the last norm's output: over what is there, or `joined` to what [`BackwardBuffers::picked`] holds.
fn head_backward(
    weights: &Weights,
    d_values: View<'_>,
    joined: bool,
    normed: View<'_>,
    back: &mut BackwardBuffers,
    gradients: &mut Gradients,
) -> Result<()> {
    let Some((weight, _)) = weights.value_head() else { return Err(no_head()) };
    let (picked, hidden) = (normed.dim(0), normed.dim(1));
    let BackwardBuffers { picked: others, picked_normed, values, .. } = back;
    cast::forward(values.head_mut(picked), d_values)?;
    let d_values = values.head(picked).reshape(&[picked, 1]);
    let residual = joined.then(|| others.head(picked));
    matmul::forward(
        picked_normed.head_mut(picked),
        d_values,
        weight,
        Product::NN,
        Epilogue { residual, ..Epilogue::default() },
    )?;
    let head = weights.layout().value_head.as_ref().expect("a head has a place");
    let (d_weight, d_bias) = gradients.weight_and_bias(&head.weight, [1, hidden], Some(&head.bias));
    matmul::backward(None, d_weight, d_bias, d_values, normed, weight, Product::NT)?;
    Ok(())
}

fn no_head() -> Error {
    Error::Value("this model has no value head: it says nothing of the value of a text".to_string())
}
