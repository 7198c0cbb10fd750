//! A pack of sequences, laid end to end, and the places where a loss or a score is taken.

use prime_runtime::View;

use crate::transfer::Upload;
use crate::{Error, Result};

/// Sequences laid end to end, never padded, with the positions whose next token is scored.
///
/// Sequence i covers `tokens[cu_seqlens[i]..cu_seqlens[i + 1]]`. `picked[j]` is a row of the pack, and `targets[j]` the token
/// whose log-probability is taken there; rows rise.
#[derive(Clone, Debug, Default)]
pub struct Pack {
    /// Token ids of all sequences.
    pub tokens: Vec<u32>,
    /// The place of each token in its sequence.
    pub positions: Vec<u32>,
    /// Where each sequence begins, and the end.
    pub cu_seqlens: Vec<u32>,
    /// Rows at which a next token is scored, rising.
    pub picked: Vec<u32>,
    /// The token scored at each picked row.
    pub targets: Vec<u32>,
}

impl Pack {
    /// An empty pack with room for what a plan allows, so that filling it again and again allocates nothing.
    pub fn with_capacity(tokens: usize, sequences: usize) -> Self {
        let mut pack = Pack {
            tokens: Vec::with_capacity(tokens),
            positions: Vec::with_capacity(tokens),
            cu_seqlens: Vec::with_capacity(sequences + 1),
            picked: Vec::with_capacity(tokens),
            targets: Vec::with_capacity(tokens),
        };
        pack.clear();
        pack
    }

    /// Forgets all sequences.
    pub fn clear(&mut self) {
        for list in [&mut self.tokens, &mut self.positions, &mut self.picked, &mut self.targets] {
            list.clear();
        }
        self.cu_seqlens.clear();
        self.cu_seqlens.push(0);
    }

    /// Adds a sequence; nothing of it is scored yet.
    pub fn push(&mut self, tokens: impl IntoIterator<Item = u32>) {
        let start = self.tokens.len();
        self.tokens.extend(tokens);
        self.positions.extend(0..(self.tokens.len() - start) as u32);
        self.cu_seqlens.push(self.tokens.len() as u32);
    }

    /// Scores `target` as the token after `position` of the last sequence.
    pub fn pick(&mut self, position: usize, target: u32) {
        let start = self.cu_seqlens[self.cu_seqlens.len() - 2];
        self.picked.push(start + position as u32);
        self.targets.push(target);
    }

    /// Adds `prompt` followed by `response` and scores every token of the response. The response's last token is only a target:
    /// what follows it is never asked for.
    ///
    /// # Panics
    /// When the prompt is empty: the first token of a response needs something before it.
    pub fn push_response(&mut self, prompt: &[u32], response: &[u32]) {
        assert!(!prompt.is_empty(), "a response needs a prompt of at least one token");
        let shown = response.len().saturating_sub(1);
        self.push(prompt.iter().chain(&response[..shown]).copied());
        for (i, &token) in response.iter().enumerate() {
            self.pick(prompt.len() - 1 + i, token);
        }
    }

    /// Checks every list, here where they can be read: kernels on a device take them as they are.
    ///
    /// # Errors
    /// A sentence when a token is outside the vocabulary, a position is outside the tables, or lists do not agree.
    pub(crate) fn check(&self, vocabulary: usize, positions: usize) -> Result<()> {
        let fail = |message: String| Err(Error::Value(message));
        let (rows, picked) = (self.tokens.len(), self.picked.len());
        if self.positions.len() != rows || self.targets.len() != picked {
            return fail(format!(
                "a pack of {rows} tokens has {} positions, and {picked} picked rows with {} targets",
                self.positions.len(),
                self.targets.len()
            ));
        }
        let ends = self.cu_seqlens.first().zip(self.cu_seqlens.last());
        if !self.cu_seqlens.is_sorted()
            || ends.is_none_or(|(&first, &last)| first != 0 || last as usize != rows)
        {
            return fail(format!(
                "the sequences of a pack must begin at 0, never fall, and end at its {rows} tokens"
            ));
        }
        for (name, tokens) in [("token", &self.tokens), ("target", &self.targets)] {
            if let Some(i) = tokens.iter().position(|&token| token as usize >= vocabulary) {
                return fail(format!(
                    "{name} {i} of a pack is {}, but the model's vocabulary ends at {}",
                    tokens[i],
                    vocabulary.saturating_sub(1)
                ));
            }
        }
        if let Some(position) = self.positions.iter().find(|&&p| p as usize >= positions) {
            return fail(format!(
                "a sequence of a pack reaches position {position}, but the decoder was made for sequences of up to {positions} tokens"
            ));
        }
        let rises = self.picked.windows(2).all(|pair| pair[0] < pair[1]);
        if !rises || self.picked.last().is_some_and(|&last| last as usize >= rows) {
            return fail(format!("the picked rows of a pack must rise and be among its {rows}"));
        }
        Ok(())
    }

    /// How many sequences.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len().saturating_sub(1)
    }

    /// Tokens that [`Pack::push_response`] takes for a prompt and a response of these lengths.
    pub fn response_tokens(prompt: usize, response: usize) -> usize {
        prompt + response.saturating_sub(1)
    }
}

/// A pack's lists as kernels read them.
#[derive(Clone, Copy)]
pub(crate) struct PackViews<'a> {
    pub(crate) tokens: View<'a>,     // (tokens)
    pub(crate) positions: View<'a>,  // (tokens)
    pub(crate) cu_seqlens: View<'a>, // (sequences + 1)
    pub(crate) picked: View<'a>,     // (picked)
    pub(crate) targets: View<'a>,    // (picked)
}

/// Where the lists of packs go on a device.
pub(crate) struct PackUpload(Upload<u32, 5>);

impl PackUpload {
    /// Plans for packs of up to `tokens` tokens, as many sequences, and `picked` picked rows.
    pub(crate) fn new(device: prime_runtime::Device, tokens: usize, picked: usize) -> Result<Self> {
        Ok(PackUpload(Upload::new(device, [tokens, tokens, tokens + 1, picked, picked])?))
    }

    pub(crate) fn send(&mut self, pack: &Pack) -> Result<()> {
        self.0.send(lists(pack))
    }

    /// The lists of the pack that was sent last.
    pub(crate) fn views<'a>(&'a self, pack: &'a Pack) -> PackViews<'a> {
        let [tokens, positions, cu_seqlens, picked, targets] = self.0.views(lists(pack));
        PackViews { tokens, positions, cu_seqlens, picked, targets }
    }
}

fn lists(pack: &Pack) -> [&[u32]; 5] {
    [&pack.tokens, &pack.positions, &pack.cu_seqlens, &pack.picked, &pack.targets]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_that_no_kernel_could_check_are_refused_with_a_sentence() {
        let mut sound = Pack::default();
        sound.clear();
        sound.push_response(&[1, 2], &[3, 4]);
        sound.push_response(&[0], &[4]);
        sound.check(5, 3).unwrap();
        let refusal = |change: &dyn Fn(&mut Pack)| {
            let mut pack = sound.clone();
            change(&mut pack);
            pack.check(5, 3).unwrap_err().to_string()
        };
        let vocabulary = "but the model's vocabulary ends at 4";
        assert_eq!(refusal(&|p| p.tokens[1] = 5), format!("token 1 of a pack is 5, {vocabulary}"));
        assert_eq!(
            refusal(&|p| p.targets[2] = 7),
            format!("target 2 of a pack is 7, {vocabulary}")
        );
        assert!(refusal(&|p| p.positions[0] = 3).contains("reaches position 3"));
        assert!(refusal(&|p| p.positions.truncate(3)).contains("4 tokens has 3 positions"));
        for wrong in [&[0, 5, 4][..], &[1, 3, 4], &[0, 3], &[]] {
            let message = refusal(&|p| p.cu_seqlens = wrong.to_vec());
            assert!(message.contains("end at its 4 tokens"), "{message}");
        }
        for wrong in [[1, 1, 3], [1, 2, 4]] {
            let message = refusal(&|p| p.picked = wrong.to_vec());
            assert!(message.contains("must rise"), "{message}");
        }
    }
}
