//! Steps of a worked solution, and what an implicit PRM says of each.
//!
//! With r\[t\] = beta * (log pi_prm(y_t) - log pi_ref(y_t)), a step's reward is the sum over its tokens, and the value of the prefix that ends
//! with it the sum of the rewards of all steps so far (arXiv 2412.01981). Without a reference log pi_ref is left out.

use anyhow::Result;
use prime_model::Tokenizer;

use crate::score::{Scorer, Sequence};

/// Where the steps of a response end: the number of its tokens up to the end of each. A step ends behind a run of separators that follows
/// something; what comes after the last of them is a step too. An empty separator makes every token a step.
///
/// # Errors
/// When a token is not the tokenizer's.
pub fn step_ends(tokenizer: &Tokenizer, tokens: &[u32], separator: &str) -> Result<Vec<usize>> {
    if separator.is_empty() {
        return Ok((1..=tokens.len()).collect());
    }
    let lengths = text_lengths(tokenizer, tokens)?;
    let text = tokenizer.decode(tokens, true)?;
    let mut ends = Vec::new();
    let mut from = 0;
    while let Some(place) = text[from..].find(separator) {
        let begins = from + place;
        let mut behind = begins + separator.len();
        while text[behind..].starts_with(separator) {
            behind += separator.len();
        }
        // Separators before the first step belong to it.
        if !text[ends.last().map_or(0, |_| from)..begins].trim().is_empty() {
            ends.push(behind);
        }
        from = behind;
    }
    Ok(at_tokens(&ends, &lengths))
}

/// A solution's steps as one text, and where each ends in its tokens. Two steps are joined by the separator, which belongs to the first.
///
/// # Errors
/// When a text cannot be encoded.
pub fn encode_steps(
    tokenizer: &Tokenizer,
    steps: &[String],
    separator: &str,
) -> Result<(Vec<u32>, Vec<usize>)> {
    let text = steps.join(separator);
    let tokens = tokenizer.encode(&text, false)?;
    let lengths = text_lengths(tokenizer, &tokens)?;
    if tokenizer.decode(&tokens, true)? == text && lengths.last() == Some(&text.len()) {
        let mut end = 0;
        let ends: Vec<usize> = steps
            .iter()
            .map(|step| {
                end += step.len() + separator.len();
                end.min(text.len())
            })
            .collect();
        return Ok((tokens, at_tokens_exactly(&ends, &lengths)));
    }
    // The tokenizer changes texts, so that places in them mean nothing: steps are encoded one by one.
    let (mut tokens, mut ends) = (Vec::new(), Vec::new());
    for (i, step) in steps.iter().enumerate() {
        let separator = if i + 1 < steps.len() { separator } else { "" };
        tokens.extend(tokenizer.encode(&format!("{step}{separator}"), false)?);
        ends.push(tokens.len());
    }
    Ok((tokens, ends))
}

/// Bytes of text up to each token.
fn text_lengths(tokenizer: &Tokenizer, tokens: &[u32]) -> Result<Vec<usize>> {
    let mut stream = tokenizer.stream(true);
    let mut length = 0;
    tokens
        .iter()
        .map(|&token| {
            length += stream.push(token)?.len();
            Ok(length)
        })
        .collect()
}

/// The number of tokens up to each place in a text; a last step behind the last place, where tokens are left.
fn at_tokens(ends: &[usize], lengths: &[usize]) -> Vec<usize> {
    let mut places = at_tokens_exactly(ends, lengths);
    places.dedup();
    let last = places.last().copied().unwrap_or(0);
    let rest = lengths.last().copied().unwrap_or(0) - last.checked_sub(1).map_or(0, |t| lengths[t]);
    if rest > 0 || places.is_empty() {
        places.push(lengths.len());
    } else if let Some(last) = places.last_mut() {
        // What has no text of its own, such as the end of it, belongs to the last step.
        *last = lengths.len();
    }
    places
}

fn at_tokens_exactly(ends: &[usize], lengths: &[usize]) -> Vec<usize> {
    let tokens = |end: &usize| lengths.partition_point(|length| length < end) + 1;
    ends.iter().map(|end| tokens(end).min(lengths.len())).collect()
}

/// An implicit PRM that scores.
pub struct Judge {
    prm: Scorer,
    reference: Option<Scorer>,
    beta: f64,
}

/// Rewards of a response's tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRewards {
    /// Against the reference, where there is one.
    pub with_reference: Option<Vec<f64>>,
    /// Of the PRM alone.
    pub alone: Vec<f64>,
}

impl Judge {
    /// A PRM with or without a reference.
    pub fn new(prm: Scorer, reference: Option<Scorer>, beta: f64) -> Self {
        Judge { prm, reference, beta }
    }

    /// The longest sequence that both models were made for.
    pub fn longest(&self) -> usize {
        let of = |scorer: &Scorer| scorer.model().config.max_position_embeddings;
        self.reference.iter().map(of).fold(of(&self.prm), usize::min)
    }

    /// The rewards of the scored tokens of sequences.
    ///
    /// # Errors
    /// As for [`Scorer::score`].
    pub fn rewards(&mut self, sequences: &[Sequence]) -> Result<Vec<TokenRewards>> {
        let prm = self.prm.score(sequences, 1.0)?;
        let reference = match &mut self.reference {
            None => None,
            Some(reference) => Some(reference.score(sequences, 1.0)?),
        };
        let scaled = |x: f64| self.beta * x;
        Ok(prm
            .iter()
            .enumerate()
            .map(|(i, scores)| {
                let alone = scores.log_probs.iter().map(|&x| scaled(f64::from(x))).collect();
                let with_reference = reference.as_ref().map(|reference| {
                    let pairs = scores.log_probs.iter().zip(&reference[i].log_probs);
                    pairs.map(|(&a, &b)| scaled(f64::from(a) - f64::from(b))).collect()
                });
                TokenRewards { with_reference, alone }
            })
            .collect())
    }
}

/// The reward of each step.
pub fn step_rewards(rewards: &[f64], ends: &[usize]) -> Vec<f64> {
    let mut start = 0;
    ends.iter()
        .map(|&end| {
            let sum = rewards[start..end].iter().sum();
            start = end;
            sum
        })
        .collect()
}

/// The value of the prefix that ends with each step.
pub fn prefix_values(step_rewards: &[f64]) -> Vec<f64> {
    let mut sum = 0.0;
    let running = |reward: &f64| {
        sum += reward;
        sum
    };
    step_rewards.iter().map(running).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        Tokenizer::characters("0123456789+=; ", "<pad>", "<eos>").unwrap()
    }

    fn ends(text: &str, separator: &str) -> Vec<usize> {
        let tokenizer = tokenizer();
        let mut tokens = tokenizer.encode(text, false).unwrap();
        tokens.push(tokenizer.eos_id().unwrap());
        step_ends(&tokenizer, &tokens, separator).unwrap()
    }

    #[test]
    fn steps_end_behind_separators_and_the_end_of_the_text_belongs_to_the_last() {
        assert_eq!(ends("1+1=2;2+2=4", ";"), [6, 12]);
        assert_eq!(ends("1+1=2;2+2=4;", ";"), [6, 13]);
        assert_eq!(ends("1+1=2;;2", ";"), [7, 9]);
        assert_eq!(ends(";1;2", ";"), [3, 5]);
        assert_eq!(ends("12", ";"), [3]);
        assert_eq!(ends("", ";"), [1]);
        assert_eq!(ends("12", ""), [1, 2, 3]);
        assert!(step_ends(&tokenizer(), &[], "").unwrap().is_empty());
    }

    #[test]
    fn given_steps_end_where_they_were_joined() {
        let steps = ["1+1=2".to_string(), "2".to_string(), "3".to_string()];
        let (tokens, ends) = encode_steps(&tokenizer(), &steps, "; ").unwrap();
        assert_eq!((tokens.len(), ends), (11, vec![7, 10, 11]));
    }

    #[test]
    fn rewards_of_steps_are_sums_and_values_are_sums_of_those() {
        let steps = step_rewards(&[1.0, -2.0, 0.5, 4.0], &[2, 3, 4]);
        assert_eq!(steps, [-1.0, 0.5, 4.0]);
        assert_eq!(prefix_values(&steps), [-1.0, -0.5, 3.5]);
    }
}
