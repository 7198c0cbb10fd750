//! A pack of sequences, laid end to end, and the places where a loss or a score is taken.

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

    /// How many sequences.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len().saturating_sub(1)
    }

    /// Tokens that [`Pack::push_response`] takes for a prompt and a response of these lengths.
    pub fn response_tokens(prompt: usize, response: usize) -> usize {
        prompt + response.saturating_sub(1)
    }
}
