//! AdamW over a flat arena, gradient clipping by global norm, learning-rate schedules. State is float32, or smaller, and lies beside the
//! weights or in the host's memory.

use std::ops::Range;
use std::path::Path;

use prime_kernels::adamw::{self, BLOCK};
use prime_kernels::cast;
use prime_runtime::safetensors;
use prime_runtime::{DType, Device, Tensor, View, ViewMut};

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
    /// What the state is held in, and where.
    pub state: StateSettings,
}

/// What an optimiser's state is held in, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSettings {
    /// Moments of eight bits in place of float32.
    pub int8: bool,
    /// Float32 masters beside weights that are not float32. Without, each update rounds them up or down at random.
    pub masters: bool,
    /// The state lies in the host's memory, and passes through the device in pieces.
    pub offload: bool,
    /// Fixes the random bits of rounding.
    pub seed: u64,
}

impl Default for StateSettings {
    fn default() -> Self {
        StateSettings { int8: false, masters: true, offload: false, seed: 0 }
    }
}

impl StateSettings {
    /// Bytes of the state of so many parameters in a dtype: where it lies, and the buffers on the device through which it passes where that
    /// is another place.
    pub fn bytes(&self, elements: usize, dtype: DType) -> (usize, usize) {
        let of = |elements: usize, blocks: usize| -> usize {
            let moments =
                if self.int8 { 2 * (elements.div_ceil(4) + blocks) } else { 2 * elements };
            let masters = if self.masters && dtype != DType::F32 { elements } else { 0 };
            4 * (moments + masters)
        };
        // A range that weight decay spares has blocks of its own, of which the last may be short.
        let state = of(elements, elements.div_ceil(BLOCK) + 1);
        let piece = PIECE.min(elements);
        (state, if self.offload { of(piece, piece.div_ceil(BLOCK)) } else { 0 })
    }
}

/// Parameters whose state is on a device at once where it lies in the host's memory: whole blocks.
const PIECE: usize = 1 << 18;

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
    /// float32 copies of the weights, where these are not float32 and are to have some.
    master: Option<State>,
    m: State,
    v: State,
    /// Of moments of eight bits, a scale a block.
    scales: Option<[State; 2]>,
    step: u64,
}

/// One array of the state, and where it passes through the device if it does not lie there.
struct State {
    tensor: Tensor,
    staging: Option<Tensor>,
    /// Parameters of an element.
    each: usize,
}

impl State {
    fn new(
        device: Device,
        settings: &StateSettings,
        dtype: DType,
        parameters: usize,
        elements: usize,
        each: usize,
    ) -> Result<State> {
        let offload = settings.offload && device != Device::Cpu;
        let tensor = Tensor::zeros(if offload { Device::Cpu } else { device }, dtype, &[elements])?;
        let piece = PIECE.min(parameters).div_ceil(each);
        let staging = offload.then(|| Tensor::zeros(device, dtype, &[piece])).transpose()?;
        Ok(State { tensor, staging, each })
    }

    /// The elements of a range of parameters, of which `first` is the first element.
    fn elements(&self, first: usize, parameters: usize) -> Range<usize> {
        first..first + parameters.div_ceil(self.each)
    }

    /// Makes a range ready for the device.
    fn bring(&mut self, range: Range<usize>) -> Result<()> {
        let State { tensor, staging: Some(staging), .. } = self else { return Ok(()) };
        staging.head_mut(range.len()).copy_from(tensor.view().rows(range))?;
        Ok(())
    }

    /// The range on the device.
    fn view_mut(&mut self, range: Range<usize>) -> ViewMut<'_> {
        match &mut self.staging {
            Some(staging) => staging.head_mut(range.len()),
            None => self.tensor.view_mut().into_rows(range),
        }
    }

    /// Takes back what the device made of the range.
    fn keep(&mut self, range: Range<usize>) -> Result<()> {
        let State { tensor, staging: Some(staging), .. } = self else { return Ok(()) };
        let from = staging.head(range.len());
        tensor.view_mut().into_rows(range).copy_from(from)?;
        Ok(())
    }
}

impl AdamW {
    /// Fresh state for these weights, on their device or, where that is asked for, in the host's memory.
    ///
    /// # Errors
    /// When there is not enough memory, or float32 weights are to have no masters: they are their own.
    pub fn new(weights: &Weights, settings: AdamWSettings) -> Result<Self> {
        let trainable = weights.trainable();
        let (device, elements) = (trainable.device(), trainable.dims()[0]);
        let state = &settings.state;
        let of = |dtype, count, each| State::new(device, state, dtype, elements, count, each);
        let master = match trainable.dtype() {
            DType::F32 => None,
            _ if !state.masters => None,
            _ => {
                let mut master = of(DType::F32, elements, 1)?;
                for start in (0..elements).step_by(PIECE) {
                    let range = start..(start + PIECE).min(elements);
                    let weights = trainable.view().rows(range.clone());
                    cast::forward(master.view_mut(range.clone()), weights)?;
                    master.keep(range)?;
                }
                Some(master)
            }
        };
        let [m, v] = match state.int8 {
            false => [of(DType::F32, elements, 1)?, of(DType::F32, elements, 1)?],
            true => {
                let words = elements.div_ceil(4);
                [of(DType::U32, words, 4)?, of(DType::U32, words, 4)?]
            }
        };
        let scales = match state.int8 {
            false => None,
            true => {
                let ranges = weights.decay_ranges();
                let blocks = ranges.iter().map(|range| range.len().div_ceil(BLOCK)).sum();
                Some([of(DType::F32, blocks, BLOCK)?, of(DType::F32, blocks, BLOCK)?])
            }
        };
        Ok(AdamW { settings, master, m, v, scales, step: 0 })
    }

    /// Updates made so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Bytes of the state where it lies, and of the buffers on the device through which it passes where that is another place.
    pub fn bytes(&self) -> (usize, usize) {
        let all = self.states().map(|(_, state)| state);
        let bytes = |tensor: &Tensor| tensor.dims()[0] * tensor.dtype().size();
        all.fold((0, 0), |(state, staging), part| {
            (state + bytes(&part.tensor), staging + part.staging.as_ref().map_or(0, bytes))
        })
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
        let piece = if self.m.staging.is_some() { PIECE } else { usize::MAX };
        let mut block = 0;
        let decays = [self.settings.weight_decay, 0.0];
        for (range, weight_decay) in weights.decay_ranges().into_iter().zip(decays) {
            let mut start = range.start;
            while start < range.end {
                let part = start..start.saturating_add(piece).min(range.end);
                let settings = adamw::Settings {
                    learning_rate,
                    beta1: self.settings.beta1,
                    beta2: self.settings.beta2,
                    epsilon: self.settings.epsilon,
                    weight_decay,
                    step: self.step,
                    gradient_scale,
                    seed: self.settings.state.seed,
                    first: part.start as u64,
                };
                self.update_part(weights, gradients, part.clone(), block, settings)?;
                block += part.len().div_ceil(BLOCK);
                start = part.end;
            }
        }
        Ok(norm)
    }

    /// Updates a range of parameters, whose first block has that number.
    fn update_part(
        &mut self,
        weights: &mut Weights,
        gradients: &Gradients,
        part: Range<usize>,
        block: usize,
        settings: adamw::Settings,
    ) -> Result<()> {
        let AdamW { master, m, v, scales, .. } = self;
        let (count, moments) = (part.len(), m.elements(part.start / m.each, part.len()));
        m.bring(moments.clone())?;
        v.bring(moments.clone())?;
        if let Some(master) = master {
            master.bring(part.clone())?;
        }
        for scales in scales.iter_mut().flatten() {
            scales.bring(scales.elements(block, count))?;
        }
        let compute = weights.trainable_mut().view_mut().into_rows(part.clone());
        let parameters = match (master.as_mut(), compute.dtype()) {
            (Some(master), _) => {
                adamw::Parameters::Masters(master.view_mut(part.clone()), Some(compute))
            }
            (None, DType::F32) => adamw::Parameters::Masters(compute, None),
            (None, _) => adamw::Parameters::Rounded(compute),
        };
        let (m_view, v_view) = (m.view_mut(moments.clone()), v.view_mut(moments.clone()));
        let state = match scales.as_mut() {
            None => adamw::Moments::Float32 { m: m_view, v: v_view },
            Some([m_scales, v_scales]) => {
                let blocks = m_scales.elements(block, count);
                adamw::Moments::Int8 {
                    m: m_view,
                    m_scales: m_scales.view_mut(blocks.clone()),
                    v: v_view,
                    v_scales: v_scales.view_mut(blocks),
                }
            }
        };
        adamw::update(parameters, state, gradients.data().rows(part.clone()), settings)?;
        m.keep(moments.clone())?;
        v.keep(moments)?;
        if let Some(master) = master {
            master.keep(part)?;
        }
        for scales in scales.iter_mut().flatten() {
            scales.keep(scales.elements(block, count))?;
        }
        Ok(())
    }

    fn states(&self) -> impl Iterator<Item = (&'static str, &State)> {
        let master = self.master.as_ref().map(|master| ("master", master));
        let scales = self.scales.iter().flat_map(|[m, v]| [("m_scales", m), ("v_scales", v)]);
        [("m", &self.m), ("v", &self.v)].into_iter().chain(master).chain(scales)
    }

    /// The state as named tensors, to be saved: `m`, `v`, `master` where there is one, and the scales of moments of eight bits.
    pub fn tensors(&self) -> impl Iterator<Item = (&'static str, View<'_>)> {
        self.states().map(|(name, state)| (name, state.tensor.view()))
    }

    /// Restores what [`AdamW::tensors`] named, from a safetensors file, after `step` updates.
    ///
    /// # Errors
    /// When a tensor is missing or has another size or type.
    pub fn restore(&mut self, path: &Path, step: u64) -> Result<()> {
        let file = safetensors::File::open(path)?;
        let mut targets = vec![("m", &mut self.m), ("v", &mut self.v)];
        targets.extend(self.master.as_mut().map(|master| ("master", master)));
        if let Some([m, v]) = &mut self.scales {
            targets.extend([("m_scales", m), ("v_scales", v)]);
        }
        for (name, State { tensor, .. }) in targets {
            let saved = file.view(name).ok_or_else(|| {
                prime_runtime::Error::format(
                    path,
                    format!("there is no optimiser state `{name}` in it"),
                )
            })?;
            if saved.dtype() != tensor.dtype() || saved.dims() != tensor.dims() {
                let message = format!(
                    "optimiser state `{name}` is {saved:?}, expected {} {:?}",
                    tensor.dtype(),
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
