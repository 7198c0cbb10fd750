//! Left-deep chains of operations, and how they are written.

use std::fmt;

use prime_runtime::random::Generator;

/// An operator of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
}

impl Operator {
    const ALL: [Operator; 3] = [Operator::Add, Operator::Subtract, Operator::Multiply];

    fn symbol(self) -> char {
        match self {
            Operator::Add => '+',
            Operator::Subtract => '-',
            Operator::Multiply => '*',
        }
    }
}

/// An operator with its right operand, a digit from 1 to 9.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The operator.
    pub operator: Operator,
    /// The right operand.
    pub digit: u32,
}

impl Operation {
    /// The result on a value, when it is one from 0 to `highest`.
    fn apply(self, value: u32, highest: u32) -> Option<u32> {
        let result = match self.operator {
            Operator::Add => value.checked_add(self.digit),
            Operator::Subtract => value.checked_sub(self.digit),
            Operator::Multiply => value.checked_mul(self.digit),
        };
        result.filter(|&result| result <= highest)
    }
}

/// A first value and operations applied to it one after the other. Written, it is an expression with the usual
/// precedence and the fewest brackets: a product of a sum is bracketed, `(9-8)*5`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The value that the operations start from.
    pub first: u32,
    /// The operations, in the order in which they are done.
    pub operations: Vec<Operation>,
}

impl Chain {
    /// A random chain whose values all lie in 0 to `highest`. Each operator is uniform among those that some digit
    /// allows, then the digit among those it allows; multiplication by 1 is left out.
    pub(super) fn random(operations: usize, highest: u32, random: &mut Generator) -> Chain {
        let first = 1 + random.below(9);
        let mut chain = Chain { first, operations: Vec::with_capacity(operations) };
        let mut value = first;
        for _ in 0..operations {
            // The digits an operator allows form a range that starts at its lowest digit.
            let choices: Vec<(Operator, u32, u32)> = Operator::ALL
                .into_iter()
                .filter_map(|operator| {
                    let lowest = if operator == Operator::Multiply { 2 } else { 1 };
                    let allowed = (lowest..=9)
                        .take_while(|&digit| {
                            Operation { operator, digit }.apply(value, highest).is_some()
                        })
                        .count() as u32;
                    (allowed > 0).then_some((operator, lowest, allowed))
                })
                .collect();
            let (operator, lowest, allowed) = choices[random.below(choices.len() as u32) as usize];
            let operation = Operation { operator, digit: lowest + random.below(allowed) };
            value = operation.apply(value, highest).unwrap_or(value);
            chain.operations.push(operation);
        }
        chain
    }

    /// The chain's value.
    pub fn value(&self) -> u32 {
        // Chains are made by `random` and `parse`, which leave no result outside u32.
        self.operations
            .iter()
            .fold(self.first, |value, operation| operation.apply(value, u32::MAX).unwrap_or(value))
    }

    /// The chain's value, when every value on the way lies in 0 to `highest`.
    pub fn checked_value(&self, highest: u32) -> Option<u32> {
        let apply = |value, operation: &Operation| operation.apply(value, highest);
        self.operations.iter().try_fold(self.first, apply)
    }

    /// Reads a chain as it is written. `None` when the text is no chain, has other brackets than the fewest, or has a
    /// value below 0 or beyond 32 bits.
    pub fn parse(text: &str) -> Option<Chain> {
        // A chain is left-deep: its operators stand in the order in which they are done, brackets or not.
        let bare: String = text.chars().filter(|c| !matches!(c, '(' | ')')).collect();
        let end = bare.find(|c: char| !c.is_ascii_digit()).unwrap_or(bare.len());
        let mut chain = Chain { first: bare[..end].parse().ok()?, operations: Vec::new() };
        let mut value = chain.first;
        let mut rest = bare[end..].chars();
        while let Some(symbol) = rest.next() {
            let operator =
                Operator::ALL.into_iter().find(|operator| operator.symbol() == symbol)?;
            let digit = rest.next()?.to_digit(10)?;
            let operation = Operation { operator, digit };
            value = operation.apply(value, u32::MAX)?;
            chain.operations.push(operation);
        }
        (chain.to_string() == text).then_some(chain)
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.first.to_string();
        let mut is_sum = false;
        for operation in &self.operations {
            let product = operation.operator == Operator::Multiply;
            if product && is_sum {
                text = format!("({text})");
            }
            is_sum = !product;
            text.push(operation.operator.symbol());
            text += &operation.digit.to_string();
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graders::expression::evaluate;
    use crate::graders::number::Rational;
    use prime_runtime::random::Stream;

    #[test]
    fn what_is_written_has_the_chain_s_value_under_the_usual_precedence() {
        let mut random = Generator::new(5, Stream::Test, 0);
        for operations in 1..=9 {
            for _ in 0..500 {
                let chain = Chain::random(operations, 29, &mut random);
                let text = chain.to_string();
                let evaluated = evaluate(&text).unwrap();
                assert_eq!(evaluated.value, Rational::integer(i64::from(chain.value())), "{text}");
                assert_eq!(evaluated.operations, operations);
                assert_eq!(Chain::parse(&text), Some(chain), "{text}");
            }
        }
    }

    #[test]
    fn values_stay_in_range_and_nothing_is_multiplied_by_one() {
        let mut random = Generator::new(6, Stream::Test, 0);
        for _ in 0..5000 {
            let chain = Chain::random(6, 29, &mut random);
            let mut value = chain.first;
            assert!((1..=9).contains(&value));
            for &operation in &chain.operations {
                value = operation.apply(value, 29).unwrap();
                assert!((1..=9).contains(&operation.digit));
                assert!(operation.operator != Operator::Multiply || operation.digit > 1, "{chain}");
            }
        }
    }

    #[test]
    fn operators_are_uniform_among_the_possible_ones() {
        let mut random = Generator::new(7, Stream::Test, 0);
        let mut counts = [0u32; 3];
        for _ in 0..30_000 {
            // From a first value of 1 to 9 all three operators are possible.
            counts[Chain::random(1, 29, &mut random).operations[0].operator as usize] += 1;
        }
        // Binomial with n = 30,000 and p = 1/3: standard deviation 82.
        assert!(counts.iter().all(|count| count.abs_diff(10_000) < 4 * 82), "{counts:?}");
    }

    #[test]
    fn other_brackets_and_values_are_no_chain() {
        for text in [
            "",
            "+",
            "1+",
            "(1+2)",
            "1+2*3",
            "((1+2))*3",
            "1-2",
            "a",
            "1/2",
            "1+2:",
            "99999999999",
            "4294967295+1",
        ] {
            assert_eq!(Chain::parse(text), None, "{text}");
        }
        assert!(Chain::parse("7").is_some_and(|chain| chain.value() == 7));
    }
}
