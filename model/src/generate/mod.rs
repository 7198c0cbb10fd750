//! Generation over a key/value cache with continuous batching: finished sequences leave, waiting ones enter.
//!
//! Each step feeds a ragged batch: one token of every sequence under way, and prompts of those that enter, up to a fixed number of
//! tokens. The kernels and their reduction orders are those of training, so the log-probability that a sample is reported with is the one
//! that [`crate::Decoder::forward`] computes for it, bit for bit, whatever else was in the batch.

mod graphs;
mod linear;
mod pass;

use std::sync::Arc;

use prime_kernels::{device, embedding, gather, rms_norm, sample};
use prime_runtime::{DType, Device, Tensor};

use crate::decoder::Sizes;
use crate::transfer::fetch;
use crate::{AdapterLayout, Config, Error, Layout, Result, Weights, rope_tables};

use graphs::Graphs;
use linear::{LayerLinears, Linear};
use pass::{Buffers, Drawn, Step, StepUpload, copy_rows, layer_forward, plan_buffers};

/// How a sample is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token each time.
    pub temperature: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the fewest most likely tokens whose probabilities sum to at least this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// The run's seed.
    pub seed: u64,
}

/// One sample to draw.
#[derive(Clone, Debug)]
pub struct Request {
    /// The prompt's tokens, shared by the samples of one prompt, which is then computed once.
    pub prompt: Arc<[u32]>,
    /// The sample's own number: with the seed it fixes the sample, whatever the batch.
    pub sequence: u64,
    /// How it is drawn.
    pub sampling: Sampling,
    /// The most tokens to draw.
    pub max_new_tokens: usize,
}

/// Why a sample ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token was drawn (it is the last token), or whoever watched the sample saw its end.
    Stop,
    /// It reached its limit, or the cache's.
    Length,
}

/// A finished sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The drawn tokens, with the stop token where there was one.
    pub tokens: Vec<u32>,
    /// Log-probability of each under the whole distribution at the sample's temperature (1 for temperature 0), before truncation.
    pub log_probs: Vec<f32>,
    /// Entropy (nats) of that distribution at each.
    pub entropy: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
}

impl Completion {
    fn empty() -> Self {
        Completion {
            tokens: Vec::new(),
            log_probs: Vec::new(),
            entropy: Vec::new(),
            finish: Finish::Length,
        }
    }
}

/// What generation is planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerationLimits {
    /// Sequences under way at once.
    pub slots: usize,
    /// Tokens of a sequence, prompt and response together.
    pub positions: usize,
    /// Tokens fed in one step; at least `slots`.
    pub step_tokens: usize,
}

/// A sequence under way.
struct Active {
    request: usize,
    prompt: Arc<[u32]>,
    cached: usize,
    drawn: Completion,
}

/// A model ready to generate on the device of its weights: these, on the host with their matrices packed, caches and buffers.
pub struct Generator {
    config: Config,
    layout: Arc<Layout>,
    limits: GenerationLimits,
    weights: Weights,
    layers: Vec<LayerLinears>,
    head: Linear,
    cos: Tensor,
    sin: Tensor,
    keys: Vec<Tensor>,   // a layer: (slots * positions, kv_heads * head_dim)
    values: Vec<Tensor>, // likewise
    buffers: Buffers,
    step: Step,
    upload: StepUpload,
    drawn: Drawn,
    graphs: Graphs,
    /// Whether kernels of steps with prompts, and of those without, have yet to be made ready.
    cold: [bool; 2],
    /// The prompt whose keys and values the first rows of a slot hold.
    resident: Vec<Option<Arc<[u32]>>>,
    active: Vec<Option<Active>>,
}

impl Generator {
    /// Takes the weights over, packs them where the device gains by it, and reserves caches and buffers on that device.
    ///
    /// # Errors
    /// When a limit is 0 or the device has not enough memory.
    pub fn new(config: &Config, weights: &Weights, limits: GenerationLimits) -> Result<Self> {
        if limits.slots == 0 || limits.positions == 0 || limits.step_tokens < limits.slots {
            return Err(Error::Value(format!(
                "generation needs at least one slot, one position and as many tokens a step as slots, got {limits:?}"
            )));
        }
        let (device, dtype) = (weights.data().device(), weights.dtype());
        let (cos, sin) = rope_tables(config, device, limits.positions)?;
        let layout = weights.layout().clone();
        let sizes = Sizes::new(config, limits.step_tokens);
        let layers = layout.layers.iter().map(|layer| LayerLinears::new(weights, layer, sizes));
        let layers = layers.collect::<Result<_>>()?;
        let head = Linear::new(weights, &layout.lm_head, [config.vocab_size, sizes.hidden])?;
        // Frozen weights are shared with whoever has them; of their adapters this is a copy.
        let own = if weights.adapter().is_some() {
            weights.duplicate()?
        } else {
            let mut own = Weights::zeros(config, device, dtype)?;
            own.copy_model(weights)?;
            own
        };
        let cache = || Tensor::zeros(device, dtype, &[limits.slots * limits.positions, sizes.kv()]);
        let keys = (0..config.num_layers).map(|_| cache()).collect::<prime_runtime::Result<_>>()?;
        let values =
            (0..config.num_layers).map(|_| cache()).collect::<prime_runtime::Result<_>>()?;
        Ok(Generator {
            config: config.clone(),
            layout,
            limits,
            weights: own,
            layers,
            head,
            cos,
            sin,
            keys,
            values,
            buffers: Buffers::new(config, weights, limits)?,
            step: Step::default(),
            upload: StepUpload::new(device, limits)?,
            drawn: Drawn::new(device, limits),
            graphs: Graphs::new(device),
            cold: [true; 2],
            resident: vec![None; limits.slots],
            active: (0..limits.slots).map(|_| None).collect(),
        })
    }

    /// Bytes of weights, caches and buffers for a configuration on a device: with adapters, the weights themselves are those of whoever has them.
    pub fn bytes(
        config: &Config,
        device: Device,
        dtype: DType,
        limits: GenerationLimits,
        adapter: Option<&AdapterLayout>,
    ) -> usize {
        let sizes = Sizes::new(config, limits.step_tokens);
        let cache =
            2 * config.num_layers * limits.slots * limits.positions * sizes.kv() * dtype.size();
        let weights = Layout::new(config).elements;
        // On the host, packed besides.
        let packed = if device == Device::Cpu { weights } else { 0 };
        let own = adapter
            .map_or(weights, |adapter| adapter.elements + limits.step_tokens * adapter.width());
        cache + (packed + own) * dtype.size() + plan_buffers(config, dtype, limits).0.bytes()
    }

    /// Takes over new weights of the same model, from the same device: of weights that are shared, the adapter.
    ///
    /// # Errors
    /// When they have another dtype or size, or an adapter of another kind.
    pub fn load_weights(&mut self, weights: &Weights) -> Result<()> {
        // What the caches hold was computed with the old weights.
        self.resident.fill(None);
        if self.weights.shares_with(weights) {
            let (Some(own), Some(new)) = (self.weights.adapter_mut(), weights.adapter()) else {
                return Ok(());
            };
            if own.layout() != new.layout() {
                return Err(Error::Value(
                    "the generator was made for an adapter of another rank or other targets"
                        .to_string(),
                ));
            }
            return Ok(prime_kernels::cast::forward(own.data_mut().view_mut(), new.data().view())?);
        }
        if self.weights.adapter().is_some() || weights.adapter().is_some() {
            return Err(Error::Value(
                "a generator with an adapter takes over adapters of the weights that it was made with"
                    .to_string(),
            ));
        }
        self.weights.copy_model(weights)?;
        for layer in &mut self.layers {
            layer.load(weights)?;
        }
        self.head.load(weights)?;
        Ok(())
    }

    /// Draws all samples; `stop` says which tokens end one. `progress` is called with the number finished, at each.
    ///
    /// # Errors
    /// When a prompt is empty, leaves no room for a token, or has a token outside the vocabulary.
    pub fn generate(
        &mut self,
        requests: &[Request],
        stop: &[u32],
        mut progress: impl FnMut(usize),
    ) -> Result<Vec<Completion>> {
        let mut count = 0;
        let mut finished = |_: usize, _: &Completion| {
            count += 1;
            progress(count);
        };
        self.generate_watched(requests, stop, &mut finished, &mut |_, _| None)
    }

    /// As [`Generator::generate`]; `finished` sees each sample when it has ended, while others go on, and `watch` each token when it is
    /// drawn, both with the index of the request. `watch` may end the sample there.
    ///
    /// # Errors
    /// As [`Generator::generate`].
    pub fn generate_watched(
        &mut self,
        requests: &[Request],
        stop: &[u32],
        finished: &mut dyn FnMut(usize, &Completion),
        watch: &mut dyn FnMut(usize, u32) -> Option<Finish>,
    ) -> Result<Vec<Completion>> {
        for (i, request) in requests.iter().enumerate() {
            self.check(i, request)?;
        }
        self.active.iter_mut().for_each(|slot| *slot = None);
        let mut completions: Vec<Option<Completion>> = requests.iter().map(|_| None).collect();
        let mut waiting: Vec<usize> = (0..requests.len()).collect();
        let mut ended = 0;
        while ended < requests.len() {
            self.step.clear();
            self.feed_active(requests);
            self.admit(requests, &mut waiting)?;
            self.forward()?;
            ended += self.collect(requests, stop, watch, finished, &mut completions)?;
        }
        Ok(completions
            .into_iter()
            .map(|completion| completion.expect("all are finished"))
            .collect())
    }

    fn check(&self, index: usize, request: &Request) -> Result<()> {
        let prompt = &request.prompt;
        if prompt.is_empty() {
            return Err(Error::Value(format!(
                "prompt {index} is empty: generation starts after at least one token"
            )));
        }
        if prompt.len() >= self.limits.positions {
            return Err(Error::Value(format!(
                "prompt {index} has {} tokens, which leaves no room for a response within {} positions",
                prompt.len(),
                self.limits.positions
            )));
        }
        match prompt.iter().find(|&&token| token as usize >= self.config.vocab_size) {
            Some(token) => Err(Error::Value(format!(
                "prompt {index} has token {token}, but the model's vocabulary ends at {}",
                self.config.vocab_size - 1
            ))),
            None => Ok(()),
        }
    }

    /// One token of every sequence that is drawing, or a further piece of a long prompt.
    fn feed_active(&mut self, requests: &[Request]) {
        for slot in 0..self.active.len() {
            let Some(active) = &self.active[slot] else { continue };
            // Later slots are under way too: leave a token for each of them.
            let later = self.active[slot + 1..].iter().flatten().count();
            let room = self.limits.step_tokens - self.step.tokens.len() - later;
            let left = active.prompt.len() + active.drawn.tokens.len() - active.cached;
            self.feed(slot, left.min(room), requests);
        }
    }

    /// Lets waiting requests into free slots while the step has room. Samples of one prompt wait until it has been computed once, then copy it;
    /// others pass them by.
    fn admit(&mut self, requests: &[Request], waiting: &mut Vec<usize>) -> Result<()> {
        let mut index = 0;
        while index < waiting.len() && self.step.tokens.len() < self.limits.step_tokens {
            if self.active.iter().all(Option::is_some) {
                break;
            }
            let prompt = requests[waiting[index]].prompt.clone();
            match self.place(&prompt)? {
                None => index += 1,
                Some((slot, cached)) => {
                    let request = waiting.remove(index);
                    let (left, room) =
                        (prompt.len() - cached, self.limits.step_tokens - self.step.tokens.len());
                    self.active[slot] =
                        Some(Active { request, prompt, cached, drawn: Completion::empty() });
                    self.feed(slot, left.min(room), requests);
                }
            }
        }
        Ok(())
    }

    /// A free slot for a prompt, and how many of its tokens are cached there; none while another slot is still computing the prompt.
    fn place(&mut self, prompt: &Arc<[u32]>) -> Result<Option<(usize, usize)>> {
        let same = |other: &Arc<[u32]>| Arc::ptr_eq(other, prompt) || other == prompt;
        let computing = |(active, resident): (&Option<Active>, &Option<_>)| {
            resident.is_none() && active.as_ref().is_some_and(|active| same(&active.prompt))
        };
        if self.active.iter().zip(&self.resident).any(computing) {
            return Ok(None);
        }
        let free = |slot: &usize| self.active[*slot].is_none();
        let source = self.resident.iter().position(|resident| resident.as_ref().is_some_and(same));
        // Best is a free slot that holds this prompt, then one that holds none, so that other prompts stay to be copied.
        let slots = || (0..self.active.len()).filter(free);
        let slot = source
            .filter(free)
            .or_else(|| slots().find(|&slot| self.resident[slot].is_none()))
            .or_else(|| slots().next());
        let Some(slot) = slot else { return Ok(None) };
        self.resident[slot] = None;
        let Some(source) = source else { return Ok(Some((slot, 0))) };
        // The last token of the prompt is fed again: the draw needs its hidden state.
        let cached = prompt.len() - 1;
        self.copy_prefix(source, slot, cached)?;
        Ok(Some((slot, cached)))
    }

    fn feed(&mut self, slot: usize, count: usize, requests: &[Request]) {
        let Some(active) = &mut self.active[slot] else { return };
        let (start, first_row) = (self.step.tokens.len(), slot * self.limits.positions);
        for position in active.cached..active.cached + count {
            let token = match position.checked_sub(active.prompt.len()) {
                None => active.prompt[position],
                Some(drawn) => active.drawn.tokens[drawn],
            };
            self.step.tokens.push(token);
            self.step.positions.push(position as u32);
            self.step.cache_rows.push((first_row + position) as u32);
        }
        active.cached += count;
        self.step.spans.extend([start, count, first_row, active.cached].map(|x| x as u32));
        if active.cached < active.prompt.len() {
            return;
        }
        let (request, sampling) = (&requests[active.request], requests[active.request].sampling);
        self.step.picked.push((start + count - 1) as u32);
        self.step.drawn_slots.push(slot);
        self.step.rows.push(sample::Row {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            seed: sampling.seed,
            sequence: request.sequence,
            position: active.drawn.tokens.len() as u32,
        });
    }

    fn copy_prefix(&mut self, from: usize, to: usize, count: usize) -> Result<()> {
        if from == to {
            return Ok(());
        }
        let (from, to) = (from * self.limits.positions, to * self.limits.positions);
        let mut caches = self.keys.iter_mut().chain(&mut self.values);
        caches.try_for_each(|cache| copy_rows(cache, from, to, count))
    }

    /// Takes the drawn tokens over; returns how many samples ended.
    fn collect(
        &mut self,
        requests: &[Request],
        stop: &[u32],
        watch: &mut dyn FnMut(usize, u32) -> Option<Finish>,
        finished: &mut dyn FnMut(usize, &Completion),
        completions: &mut [Option<Completion>],
    ) -> Result<usize> {
        let count = self.step.drawn_slots.len();
        let tokens: &[u32] = fetch(self.buffers.tokens.head(count), &mut self.drawn.tokens)?;
        let log_probs: &[f32] =
            fetch(self.buffers.log_probs.head(count), &mut self.drawn.log_probs)?;
        let entropy: &[f32] = fetch(self.buffers.entropy.head(count), &mut self.drawn.entropy)?;
        sample::check_drawn(tokens, &self.step.rows)?;
        let mut ended = 0;
        for (row, &slot) in self.step.drawn_slots.iter().enumerate() {
            let Some(active) = &mut self.active[slot] else { continue };
            if self.resident[slot].is_none() {
                self.resident[slot] = Some(active.prompt.clone());
            }
            let token = tokens[row];
            active.drawn.tokens.push(token);
            active.drawn.log_probs.push(log_probs[row]);
            active.drawn.entropy.push(entropy[row]);
            let drawn = active.drawn.tokens.len();
            let watched = watch(active.request, token);
            let full = drawn >= requests[active.request].max_new_tokens
                || active.prompt.len() + drawn >= self.limits.positions;
            let stopped = stop.contains(&token).then_some(Finish::Stop);
            if let Some(finish) = stopped.or(watched).or(full.then_some(Finish::Length)) {
                active.drawn.finish = finish;
                let active = self.active[slot].take().expect("matched above");
                finished(active.request, &active.drawn);
                completions[active.request] = Some(active.drawn);
                ended += 1;
            }
        }
        Ok(ended)
    }

    /// One pass of the ragged batch through the model, and the draws.
    fn forward(&mut self) -> Result<()> {
        let Generator {
            config,
            layout,
            weights,
            layers,
            head,
            cos,
            sin,
            keys,
            values,
            buffers,
            step,
            upload,
            graphs,
            cold,
            ..
        } = self;
        let device = weights.data().device();
        if device != Device::Cpu {
            sample::settings(&mut step.settings, &step.rows)?;
        }
        upload.send(step)?;
        let lists = upload.views(step);
        let (tokens, picked) = (step.tokens.len(), step.picked.len());
        let sizes = Sizes::new(config, tokens);
        let mut work = || {
            let table = weights.view(&layout.embedding, &[config.vocab_size, sizes.hidden]);
            embedding::forward(buffers.stream.head_mut(tokens), lists.tokens, table)?;
            for (index, linears) in layers.iter().enumerate() {
                let caches = (&mut keys[index], &mut values[index]);
                layer_forward(
                    config,
                    weights,
                    index,
                    linears,
                    lists,
                    (cos, sin),
                    caches,
                    sizes,
                    buffers,
                )?;
            }
            if picked == 0 {
                return Ok(());
            }
            gather::forward(
                buffers.picked.head_mut(picked),
                buffers.stream.head(tokens),
                lists.picked,
            )?;
            rms_norm::forward(
                buffers.picked_normed.head_mut(picked),
                buffers.rstd.head_mut(picked),
                buffers.picked.head(picked),
                weights.view(&layout.final_norm, &[sizes.hidden]),
                config.rms_norm_eps,
            )?;
            head.sample(
                buffers.tokens.head_mut(picked),
                buffers.log_probs.head_mut(picked),
                buffers.entropy.head_mut(picked),
                buffers.picked_normed.head(picked),
                weights,
                &step.rows,
                lists.settings,
            )
        };
        if std::mem::take(&mut cold[usize::from(step.decodes())]) {
            device::prepare(device, &mut work)?;
        }
        graphs.run(step, work)
    }
}
