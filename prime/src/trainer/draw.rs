//! Which prompts a round samples.

use anyhow::{Result, bail};

use super::Trainer;
use super::sample::Sampled;
use crate::step::rollout::Prompt;
use crate::tasks::{Purpose, Split};

impl Trainer {
    /// The next prompts: first those of the buffer, then the task's. Those longer than the limit, and solved ones where they are not wanted, are
    /// left out and counted.
    pub(super) fn draw_prompts(
        &mut self,
        count: usize,
        sampled: &mut Sampled,
    ) -> Result<Vec<Prompt>> {
        let mut drawn = Vec::with_capacity(count);
        let buffered = self.state.buffer.len().min(count);
        for index in self.state.buffer.drain(..buffered) {
            drawn.extend(self.prompts.prompt(Split::Train, index)?);
        }
        let (mut in_a_row, mut solved_among) = (0, false);
        while drawn.len() < count {
            let index =
                self.prompts.training_index(self.state.prompts, self.config.seed, Purpose::Rl);
            self.state.prompts += 1;
            if self.config.filter.skip_solved && self.state.curriculum.is_solved(index) {
                sampled.solved += 1;
                (in_a_row, solved_among) = (in_a_row + 1, true);
            } else if let Some(prompt) = self.prompts.prompt(Split::Train, index)? {
                drawn.push(prompt);
                (in_a_row, solved_among) = (0, false);
            } else {
                sampled.too_long += 1;
                in_a_row += 1;
            }
            if in_a_row >= self.prompts.patience() {
                if !solved_among {
                    bail!(
                        "{in_a_row} prompts in a row were longer than rollout.max_prompt_tokens, {}",
                        self.config.rollout.max_prompt_tokens
                    );
                }
                self.state.curriculum.begin_anew();
                (in_a_row, solved_among) = (0, false);
            }
        }
        Ok(drawn)
    }
}
