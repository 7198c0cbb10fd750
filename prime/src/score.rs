//! Log-probabilities of given tokens under a model: what a trainer's forward pass computes for them, bit for bit.

use std::ops::Range;

use anyhow::{Result, ensure};
use prime_model::{Activations, Decoder, Limits, Mode, Pack, on_host};

use crate::trainer::Model;

/// Tokens of one forward pass, unless one sequence alone has more.
pub const PASS_TOKENS: usize = 2048;

/// A sequence of tokens and which of them are scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// All tokens.
    pub tokens: Vec<u32>,
    /// Which of them get a log-probability; none at place 0, since nothing comes before it.
    pub scored: Range<usize>,
    /// Whether the distribution after the last token is looked at too.
    pub open_end: bool,
}

impl Sequence {
    /// A text whose tokens are scored from the second on; its entropy is taken after every token, the last included.
    pub fn text(tokens: Vec<u32>) -> Sequence {
        let scored = 1..tokens.len().max(1);
        Sequence { tokens, scored, open_end: true }
    }

    /// A prompt and the response to it, which is scored.
    pub fn response(mut prompt: Vec<u32>, response: &[u32]) -> Sequence {
        let start = prompt.len();
        prompt.extend_from_slice(response);
        let scored = start..prompt.len();
        Sequence { tokens: prompt, scored, open_end: false }
    }

    /// Tokens that pass through the model: a last token that is only a target does not.
    fn rows(&self) -> usize {
        if self.open_end { self.tokens.len() } else { self.tokens.len() - 1 }
    }
}

/// What a model says of a [`Sequence`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// Log-probability of each scored token.
    pub log_probs: Vec<f32>,
    /// Entropy (nats) of the distribution that each was taken from, and of the one after the last token of an open end.
    pub entropy: Vec<f32>,
}

/// A model with the buffers of a forward pass, which grow to the longest sequence seen.
pub struct Scorer {
    model: Model,
    decoder: Decoder,
    activations: Activations,
    pack: Pack,
}

impl Scorer {
    /// Plans forward passes of a model.
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub fn new(model: Model) -> Result<Self> {
        let (decoder, activations) = plan(&model, PASS_TOKENS)?;
        let pack = Pack::with_capacity(PASS_TOKENS, PASS_TOKENS);
        Ok(Scorer { model, decoder, activations, pack })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Scores sequences, each on its own: the others of the list do not change its bits.
    ///
    /// # Errors
    /// When a sequence is empty, scores its first token, or has a token outside the vocabulary; when a longer plan does not fit in memory.
    pub fn score(&mut self, sequences: &[Sequence], temperature: f32) -> Result<Vec<Scores>> {
        for sequence in sequences {
            ensure!(!sequence.tokens.is_empty(), "there are no tokens to score");
            ensure!(sequence.scored.start > 0, "there is no token before the first one to score");
        }
        let longest = sequences.iter().map(Sequence::rows).max().unwrap_or(0);
        if longest > self.activations.limits().tokens {
            (self.decoder, self.activations) = plan(&self.model, longest)?;
        }
        let limit = self.activations.limits().tokens;
        let mut scores = Vec::with_capacity(sequences.len());
        let mut rest = sequences;
        while !rest.is_empty() {
            self.pack.clear();
            let mut count = 0;
            while count < rest.len() && self.pack.tokens.len() + rest[count].rows() <= limit {
                self.push(&rest[count]);
                count += 1;
            }
            self.pass(&rest[..count], temperature, &mut scores)?;
            rest = &rest[count..];
        }
        Ok(scores)
    }

    fn push(&mut self, sequence: &Sequence) {
        self.pack.push(sequence.tokens[..sequence.rows()].iter().copied());
        for place in sequence.scored.clone() {
            self.pack.pick(place - 1, sequence.tokens[place]);
        }
        if sequence.open_end {
            // The entropy there is asked for, the log-probability of a token is not: any target will do.
            self.pack.pick(sequence.tokens.len() - 1, 0);
        }
    }

    fn pass(
        &mut self,
        sequences: &[Sequence],
        temperature: f32,
        scores: &mut Vec<Scores>,
    ) -> Result<()> {
        self.decoder.forward(
            &self.model.weights,
            &self.pack,
            temperature,
            &mut self.activations,
        )?;
        let picked = self.pack.picked.len();
        let log_probs = on_host::<f32>(self.activations.log_probs(picked))?;
        let entropy = on_host::<f32>(self.activations.entropy(picked))?;
        let (mut log_probs, mut entropy) = (&*log_probs, &*entropy);
        for sequence in sequences {
            let scored = sequence.scored.len();
            let taken = scored + usize::from(sequence.open_end);
            scores.push(Scores {
                log_probs: log_probs[..scored].to_vec(),
                entropy: entropy[..taken].to_vec(),
            });
            (log_probs, entropy) = (&log_probs[taken..], &entropy[taken..]);
        }
        Ok(())
    }
}

fn plan(model: &Model, tokens: usize) -> Result<(Decoder, Activations)> {
    let (device, dtype) = (model.weights.data().device(), model.weights.dtype());
    let limits = Limits { tokens, picked: tokens };
    let activations = Activations::new(&model.config, device, dtype, limits, Mode::Score)?;
    Ok((Decoder::new(&model.config, device, tokens)?, activations))
}
