//! From the loss of a token to the loss of a minibatch: the weight of each token.
//!
//! loss = sum over tokens of weight\[t\] * loss\[t\]. The weights are those of the whole minibatch, so that the losses and
//! gradients of its micro-batches add up to its own, however it is cut.

use anyhow::{Result, ensure};

named! {
    /// How token losses make the loss of a minibatch. Responses of no tokens do not count in any mean.
    Aggregation, "loss aggregation" {
        /// Mean over all tokens: long responses weigh more.
        TokenMean = "token-mean",
        /// Mean over responses of the sum over tokens.
        SeqMeanTokenSum = "seq-mean-token-sum",
        /// Mean over responses of the mean over tokens: each response weighs the same, and a token of a long one less.
        SeqMeanTokenMean = "seq-mean-token-mean",
        /// Mean over responses of the sum over tokens, divided by the greatest length a response may have
        /// (arXiv 2503.20783).
        SeqMeanTokenSumNorm = "seq-mean-token-sum-norm",
    }
}

impl Aggregation {
    /// The weight of every token of a minibatch whose responses have these lengths, packed end to end.
    /// `max_length`, the greatest length a response may have, matters to [`Aggregation::SeqMeanTokenSumNorm`] alone.
    ///
    /// # Errors
    /// When that aggregation is given a `max_length` of 0.
    pub fn weights(self, lengths: &[usize], max_length: usize) -> Result<Vec<f32>> {
        ensure!(
            self != Aggregation::SeqMeanTokenSumNorm || max_length > 0,
            "{self} divides by the greatest length of a response, which must not be 0"
        );
        let tokens: usize = lengths.iter().sum();
        let responses = lengths.iter().filter(|&&length| length > 0).count() as f64;
        let mut weights = Vec::with_capacity(tokens);
        for &length in lengths {
            let weight = match self {
                Aggregation::TokenMean => 1.0 / tokens as f64,
                Aggregation::SeqMeanTokenSum => 1.0 / responses,
                Aggregation::SeqMeanTokenMean => 1.0 / (responses * length as f64),
                Aggregation::SeqMeanTokenSumNorm => 1.0 / (responses * max_length as f64),
            };
            weights.extend(std::iter::repeat_n(weight as f32, length));
        }
        Ok(weights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_aggregation_weighs_the_tokens_of_short_and_long_responses_as_its_name_says() {
        let weights = |aggregation: Aggregation| aggregation.weights(&[1, 0, 3], 4).unwrap();
        assert_eq!(weights(Aggregation::TokenMean), [0.25; 4]);
        assert_eq!(weights(Aggregation::SeqMeanTokenSum), [0.5; 4]);
        let sixth = (1.0_f64 / 6.0) as f32;
        assert_eq!(weights(Aggregation::SeqMeanTokenMean), [0.5, sixth, sixth, sixth]);
        assert_eq!(weights(Aggregation::SeqMeanTokenSumNorm), [0.125; 4]);
    }

    #[test]
    fn nothing_weighs_nothing_and_a_greatest_length_of_nothing_is_refused() {
        for &aggregation in Aggregation::ALL {
            assert!(aggregation.weights(&[0, 0], 1).unwrap().is_empty());
        }
        assert!(Aggregation::SeqMeanTokenSumNorm.weights(&[1], 0).is_err());
    }
}
