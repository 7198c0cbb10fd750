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
        self.weights_of_some(lengths, &vec![true; lengths.len()], max_length)
    }

    /// [`Aggregation::weights`] where only some responses carry loss: the tokens of the others weigh 0, and as if they had none they do not
    /// count in any mean.
    ///
    /// # Errors
    /// As for [`Aggregation::weights`].
    ///
    /// # Panics
    /// When there are fewer flags than responses.
    pub fn weights_of_some(
        self,
        lengths: &[usize],
        carries: &[bool],
        max_length: usize,
    ) -> Result<Vec<f32>> {
        ensure!(
            self != Aggregation::SeqMeanTokenSumNorm || max_length > 0,
            "{self} divides by the greatest length of a response, which must not be 0"
        );
        let counted = |i: usize| if carries[i] { lengths[i] } else { 0 };
        let tokens: usize = (0..lengths.len()).map(counted).sum();
        let responses = (0..lengths.len()).filter(|&i| counted(i) > 0).count() as f64;
        let mut weights = Vec::with_capacity(lengths.iter().sum());
        for (i, &length) in lengths.iter().enumerate() {
            let weight = match self {
                _ if !carries[i] => 0.0,
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

/// How a configuration writes an aggregation that may be left to the policy's loss: its name, or "auto".
pub mod or_auto {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Aggregation;

    /// # Errors
    /// What the serializer says.
    pub fn serialize<S: Serializer>(
        aggregation: &Option<Aggregation>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(aggregation.map_or("auto", Aggregation::name))
    }

    /// # Errors
    /// When the name is unknown.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Aggregation>, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "auto" => Ok(None),
            name => {
                name.parse().map(Some).map_err(|error| D::Error::custom(format!("{error}, auto")))
            }
        }
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
    fn a_response_that_carries_no_loss_counts_in_no_mean() {
        for &aggregation in Aggregation::ALL {
            let some = aggregation.weights_of_some(&[2, 3, 0, 1], &[true, false, true, true], 4);
            let without = aggregation.weights(&[2, 1], 4).unwrap();
            let expected = [&without[..2], &[0.0; 3], &without[2..]].concat();
            assert_eq!(some.unwrap(), expected, "{aggregation}");
            let none = aggregation.weights_of_some(&[2, 1], &[false, false], 4).unwrap();
            assert_eq!(none, [0.0; 3], "{aggregation}");
        }
    }

    #[test]
    fn nothing_weighs_nothing_and_a_greatest_length_of_nothing_is_refused() {
        for &aggregation in Aggregation::ALL {
            assert!(aggregation.weights(&[0, 0], 1).unwrap().is_empty());
        }
        assert!(Aggregation::SeqMeanTokenSumNorm.weights(&[1], 0).is_err());
    }
}
