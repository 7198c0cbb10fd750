//! A model that stays as it is and only scores: the reference of a PRM or of the policy's KL penalties.

use anyhow::Result;
use prime_model::{Config as ModelConfig, Mode, Offloaded, Parts, Weights};

use crate::config::Config;
use crate::engine::{Engine, Sample};
use crate::trainer::Model;

/// A frozen model, with buffers of its own where its shape is not that of the model beside it.
pub(crate) struct Frozen {
    engine: Option<Engine>,
    weights: Held,
}

/// Where its weights lie.
enum Held {
    OnDevice(Weights),
    OnHost(Box<Offloaded>),
}

impl Frozen {
    /// A model beside one of shape `beside`, for micro-batches of `tokens` tokens; its weights stay in the host's memory where that is asked for.
    ///
    /// # Errors
    /// When memory is not to be had, or the weights cannot be offloaded.
    pub(crate) fn new(
        config: &Config,
        model: Model,
        beside: &ModelConfig,
        tokens: usize,
        offload: bool,
    ) -> Result<Frozen> {
        let (device, dtype) = (config.device(), config.dtype());
        let engine = (&model.config != beside)
            .then(|| Engine::new(&model.config, device, dtype, tokens, Mode::Score))
            .transpose()?;
        let weights = match offload {
            true => Held::OnHost(Box::new(Offloaded::new(model.weights, &model.config, device)?)),
            false => Held::OnDevice(model.weights),
        };
        Ok(Frozen { engine, weights })
    }

    /// Log-probabilities of samples' tokens at a temperature; `shared` are the buffers of the model beside this one.
    ///
    /// # Errors
    /// As for [`Engine::score`].
    pub(crate) fn score(
        &mut self,
        shared: &mut Engine,
        samples: &[Sample<'_>],
        temperature: f32,
    ) -> Result<Vec<f32>> {
        let weights = match &mut self.weights {
            Held::OnDevice(weights) => Parts::from(&*weights),
            Held::OnHost(weights) => Parts::from(&mut **weights),
        };
        let mut log_probs = Vec::with_capacity(samples.iter().map(|s| s.response.len()).sum());
        let engine = self.engine.as_mut().unwrap_or(shared);
        engine.score(weights, samples, temperature, &mut log_probs, &mut Vec::new())?;
        Ok(log_probs)
    }
}
