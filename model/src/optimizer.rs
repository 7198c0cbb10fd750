//! AdamW over a model's flat arena, float32 master weights, gradient clipping by global norm, learning-rate schedules.

use std::path::Path;

use prime_kernels::{adamw, cast};
use prime_runtime::safetensors;
use prime_runtime::{DType, Tensor, View};

use crate::{Error, Gradients, Result, Weights};

/// What stays the same over a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay of matrices; norms and biases are not decayed.
    pub weight_decay: f64,
    /// Gradients of a greater Euclidean norm are scaled down to it; 0 turns clipping off.
    pub max_gradient_norm: f64,
}

/// The learning rate's course after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    /// It stays.
    Constant,
    /// Half a cosine down to the final fraction.
    Cosine,
    /// A straight line down to the final fraction.
    Linear,
}

/// A learning rate as a function of the update's number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The rate at the end of the warm-up.
    pub peak: f64,
    /// Updates over which the rate rises from 0 in a straight line.
    pub warmup: u64,
    /// Updates of the whole run; where a decay ends.
    pub total: u64,
    /// The course after the warm-up.
    pub decay: Decay,
    /// The fraction of the peak at which a decay ends.
    pub final_fraction: f64,
}

impl Schedule {
    /// The learning rate of update `step`, counted from 1.
    pub fn rate(&self, step: u64) -> f64 {
        if step <= self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        let span = self.total.saturating_sub(self.warmup).max(1);
        let progress = ((step - self.warmup) as f64 / span as f64).min(1.0);
        let remaining = match self.decay {
            Decay::Constant => return self.peak,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Decay::Linear => 1.0 - progress,
        };
        let floor = self.final_fraction;
        self.peak * (floor + (1.0 - floor) * remaining)
    }
}

/// Moments, master weights, and the number of updates made.
pub struct AdamW {
    settings: AdamWSettings,
    /// float32 copies of the weights; absent where the weights are float32 themselves.
    master: Option<Tensor>,
    m: Tensor,
    v: Tensor,
    step: u64,
}

impl AdamW {
    /// Fresh state for these weights, on their device.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn new(weights: &Weights, settings: AdamWSettings) -> Result<Self> {
        let trainable = weights.trainable();
        let (device, elements) = (trainable.device(), trainable.dims()[0]);
        let zeros = || Tensor::zeros(device, DType::F32, &[elements]);
        let master = match trainable.dtype() {
            DType::F32 => None,
            _ => {
                let mut master = zeros()?;
                cast::forward(master.view_mut(), trainable.view())?;
                Some(master)
            }
        };
        Ok(AdamW { settings, master, m: zeros()?, v: zeros()?, step: 0 })
    }

    /// Updates made so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Clips the gradients and updates the weights; returns the gradients' norm before clipping.
    ///
    /// # Errors
    /// [`Error::NonFinite`] when the norm is NaN or infinite: nothing is changed then.
    pub fn update(
        &mut self,
        weights: &mut Weights,
        gradients: &Gradients,
        learning_rate: f64,
    ) -> Result<f64> {
        let norm = adamw::norm(gradients.data())?;
        if !norm.is_finite() {
            return Err(Error::NonFinite(format!("the gradient's norm is {norm}")));
        }
        self.step += 1;
        let limit = self.settings.max_gradient_norm;
        let gradient_scale = if limit > 0.0 && norm > limit { limit / (norm + 1e-6) } else { 1.0 };
        let [decayed, undecayed] = weights.decay_ranges();
        let decayed = decayed.into_iter().map(|range| (range, self.settings.weight_decay));
        let undecayed = undecayed.into_iter().map(|range| (range, 0.0));
        for (range, weight_decay) in decayed.chain(undecayed) {
            let settings = adamw::Settings {
                learning_rate,
                beta1: self.settings.beta1,
                beta2: self.settings.beta2,
                epsilon: self.settings.epsilon,
                weight_decay,
                step: self.step,
                gradient_scale,
            };
            let m = self.m.view_mut().into_rows(range.clone());
            let v = self.v.view_mut().into_rows(range.clone());
            let gradient = gradients.data().rows(range.clone());
            let compute = weights.trainable_mut().view_mut().into_rows(range.clone());
            match &mut self.master {
                None => adamw::update(compute, None, m, v, gradient, settings)?,
                Some(master) => {
                    let master = master.view_mut().into_rows(range);
                    adamw::update(master, Some(compute), m, v, gradient, settings)?;
                }
            }
        }
        Ok(norm)
    }

    /// The state as named tensors, to be saved: `m`, `v`, and `master` where there is one.
    pub fn tensors(&self) -> impl Iterator<Item = (&'static str, View<'_>)> {
        let master = self.master.as_ref().map(|master| ("master", master.view()));
        [("m", self.m.view()), ("v", self.v.view())].into_iter().chain(master)
    }

    /// Restores what [`AdamW::tensors`] named, from a safetensors file, after `step` updates.
    ///
    /// # Errors
    /// When a tensor is missing or has another size.
    pub fn restore(&mut self, path: &Path, step: u64) -> Result<()> {
        let file = safetensors::File::open(path)?;
        let mut targets = vec![("m", &mut self.m), ("v", &mut self.v)];
        targets.extend(self.master.as_mut().map(|master| ("master", master)));
        for (name, tensor) in targets {
            let saved = file.view(name).ok_or_else(|| {
                prime_runtime::Error::format(
                    path,
                    format!("there is no optimiser state `{name}` in it"),
                )
            })?;
            if saved.dtype() != DType::F32 || saved.dims() != tensor.dims() {
                let message = format!(
                    "optimiser state `{name}` is {saved:?}, expected float32 {:?}",
                    tensor.dims()
                );
                return Err(prime_runtime::Error::format(path, message).into());
            }
            tensor.view_mut().copy_from(saved)?;
        }
        self.step = step;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_to_its_peak_and_falls_to_its_floor() {
        let schedule = Schedule {
            peak: 2.0,
            warmup: 4,
            total: 104,
            decay: Decay::Cosine,
            final_fraction: 0.1,
        };
        assert_eq!(schedule.rate(1), 0.5);
        assert_eq!(schedule.rate(4), 2.0);
        assert!((schedule.rate(54) - 1.1).abs() < 1e-6);
        assert!((schedule.rate(104) - 0.2).abs() < 1e-6);
        assert!((schedule.rate(1000) - 0.2).abs() < 1e-6);
        let linear = Schedule { decay: Decay::Linear, ..schedule };
        assert!((linear.rate(54) - 1.1).abs() < 1e-6);
        assert_eq!(Schedule { decay: Decay::Constant, ..schedule }.rate(77), 2.0);
    }
}
