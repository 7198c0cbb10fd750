//! Where the steps of a response end: with the tokens that complete a separating text.

use anyhow::{Result, ensure};
use prime_model::Tokenizer;

use super::Rollouts;

/// Marks the ends of steps of every response of a batch whose tokens are known. A token that completes several separators ends one step.
///
/// # Errors
/// When the separator is empty or a token is not the tokenizer's.
pub fn mark(batch: &mut Rollouts, tokenizer: &Tokenizer, separator: &str) -> Result<()> {
    ensure!(!separator.is_empty(), "the text that separates steps is empty");
    let mut ends = Vec::with_capacity(batch.token_count());
    for response in 0..batch.len() {
        ends.extend(ends_of(&batch.tokens[batch.span(response)], tokenizer, separator)?);
    }
    batch.step_ends = ends;
    Ok(())
}

fn ends_of(tokens: &[u32], tokenizer: &Tokenizer, separator: &str) -> Result<Vec<bool>> {
    let mut stream = tokenizer.stream(false);
    // The text since the last separator, as far back as the next may have begun. Separators are found from left to right and do not overlap.
    let mut text = String::new();
    let mut ends = Vec::with_capacity(tokens.len());
    for &token in tokens {
        text.push_str(&stream.push(token)?);
        let last = text.match_indices(separator).last().map(|(at, found)| at + found.len());
        ends.push(last.is_some());
        let mut kept = last.unwrap_or(0).max((text.len() + 1).saturating_sub(separator.len()));
        while !text.is_char_boundary(kept) {
            kept += 1;
        }
        text.drain(..kept);
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::super::Response;
    use super::*;

    fn ends(texts: &[&str], separator: &str) -> Vec<bool> {
        let tokenizer = Tokenizer::characters("abé;\n", "<pad>", "<eos>").unwrap();
        let response = |text: &&str| {
            let tokens = tokenizer.encode(text, false).unwrap();
            let old_log_probs = vec![-1.0; tokens.len()];
            Response { tokens, old_log_probs, outcome: 0.0, finished: true }
        };
        let responses: Vec<_> = texts.iter().map(response).collect();
        let mut batch = Rollouts::new();
        batch.push_group("p", vec![1], &responses).unwrap();
        mark(&mut batch, &tokenizer, separator).unwrap();
        batch.check().unwrap();
        batch.step_ends
    }

    fn at(length: usize, marked: &[usize]) -> Vec<bool> {
        (0..length).map(|t| marked.contains(&t)).collect()
    }

    #[test]
    fn a_step_ends_with_the_token_that_completes_the_separator() {
        assert_eq!(ends(&["a;b", ";", ""], ";"), at(4, &[1, 3]));
        assert_eq!(ends(&["a\n\nb\n"], "\n\n"), at(5, &[2]));
        // From left to right, without overlap.
        assert_eq!(ends(&["aaaaa"], "aa"), at(5, &[1, 3]));
        assert_eq!(ends(&["aéaéb"], "éaé"), at(5, &[3]));
        // A separator does not reach over the end of a response.
        assert_eq!(ends(&["a;", ";b"], ";;"), at(4, &[]));
        assert_eq!(ends(&["ab"], "x"), at(2, &[]));
    }

    #[test]
    fn an_empty_separator_is_refused() {
        let tokenizer = Tokenizer::characters("a", "<pad>", "<eos>").unwrap();
        assert!(mark(&mut Rollouts::new(), &tokenizer, "").is_err());
    }
}
