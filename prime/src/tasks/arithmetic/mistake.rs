//! Mistakes of named kinds, planted in a line of work.

use std::ops::Range;

use prime_runtime::random::Generator;

use super::chain::{Chain, Operator};
use crate::tasks::worked::{Mistake, Planted, Spoilt, near_miss};

/// Makes a mistake of a kind in the line of `part`, a value and the operations that the line does to it. All values stay within 0 to
/// `highest`. `None` where the line gives no occasion for that kind: a carry that is not there, a copy of a first number of the prompt
/// (`first_line`), an operator that no other can stand in for, or more than one operation where one is what goes wrong.
pub fn plant(
    part: &Chain,
    mistake: Mistake,
    first_line: bool,
    highest: u32,
    random: &mut Generator,
) -> Option<Planted> {
    let (left, result) = (part.to_string(), part.value());
    let stated = |wrong_result: u32| {
        let at = left.len() + 1;
        let text = format!("{left}={wrong_result}");
        let right = at..at + result.to_string().len();
        Planted { wrong: at..text.len(), right, text, result: wrong_result }
    };
    let [operation] = part.operations[..] else {
        return (mistake == Mistake::WrongResult)
            .then(|| stated(near_miss(result, highest, random)));
    };
    let digits = part.first.to_string().len();
    let changed = |changed: &Chain, wrong: Range<usize>, right: Range<usize>| {
        let value = changed.checked_value(highest)?;
        (value != result).then(|| Planted {
            text: format!("{changed}={value}"),
            result: value,
            wrong,
            right,
        })
    };
    match mistake {
        Mistake::WrongResult => Some(stated(near_miss(result, highest, random))),
        Mistake::WrongCarry => {
            let units = part.first % 10;
            let lost = match operation.operator {
                Operator::Add if units + operation.digit >= 10 => result.checked_sub(10),
                Operator::Subtract if units < operation.digit => result.checked_add(10),
                Operator::Multiply if units * operation.digit >= 10 => result.checked_sub(10),
                _ => None,
            };
            lost.filter(|&value| value <= highest).map(stated)
        }
        Mistake::WrongCopy if first_line => None,
        Mistake::WrongCopy => {
            let first = near_miss(part.first, highest, random);
            let other = Chain { first, operations: part.operations.clone() };
            changed(&other, 0..first.to_string().len(), 0..digits)
        }
        Mistake::WrongOperation => {
            let mut others = [Operator::Add, Operator::Subtract, Operator::Multiply]
                .into_iter()
                .filter(|&operator| operator != operation.operator)
                .collect::<Vec<_>>();
            random.shuffle(&mut others);
            others.into_iter().find_map(|operator| {
                let mut other = part.clone();
                other.operations[0].operator = operator;
                changed(&other, digits..digits + 1, digits..digits + 1)
            })
        }
    }
}

/// A mistake in one line of a chain's work, carried on within the range of values to a wrong answer (see
/// [`crate::tasks::worked::Worked::spoil`]).
pub(super) fn spoil(
    chain: &Chain,
    mistake: Mistake,
    highest: u32,
    random: &mut Generator,
) -> Option<Spoilt> {
    let (right, right_value) = lines_from(chain.first, chain, 0, highest)?;
    let mut places: Vec<usize> = (0..chain.operations.len()).collect();
    random.shuffle(&mut places);
    places.into_iter().find_map(|place| {
        let before = Chain { first: chain.first, operations: chain.operations[..place].to_vec() };
        let part = Chain { first: before.value(), operations: vec![chain.operations[place]] };
        let planted = plant(&part, mistake, place == 0, highest, random)?;
        let (rest, wrong_value) = lines_from(planted.result, chain, place + 1, highest)?;
        let mut wrong = right[..place].to_vec();
        wrong.push(planted.text);
        wrong.extend(rest);
        (wrong_value != right_value).then(|| Spoilt {
            place,
            right: right.clone(),
            wrong,
            right_span: planted.right,
            wrong_span: planted.wrong,
            right_answer: right_value.to_string(),
            wrong_answer: wrong_value.to_string(),
        })
    })
}

/// The lines of one operation each from a value on, and what they come to; none when a value leaves the range.
fn lines_from(value: u32, chain: &Chain, place: usize, highest: u32) -> Option<(Vec<String>, u32)> {
    let (mut lines, mut value) = (Vec::new(), value);
    for &operation in &chain.operations[place..] {
        let part = Chain { first: value, operations: vec![operation] };
        value = part.checked_value(highest)?;
        lines.push(format!("{part}={value}"));
    }
    Some((lines, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::arithmetic::Operation;
    use prime_runtime::random::Stream;

    fn line(first: u32, operator: Operator, digit: u32) -> Chain {
        Chain { first, operations: vec![Operation { operator, digit }] }
    }

    #[test]
    fn each_kind_changes_what_it_names_and_nothing_else() {
        let mut random = Generator::new(1, Stream::Test, 0);
        for first in 0..=29 {
            for operator in [Operator::Add, Operator::Subtract, Operator::Multiply] {
                for digit in 1..=9 {
                    let part = line(first, operator, digit);
                    let Some(right) = part.checked_value(29) else { continue };
                    let clean = format!("{part}={right}");
                    for mistake in Mistake::ALL {
                        let Some(planted) = plant(&part, mistake, false, 29, &mut random) else {
                            continue;
                        };
                        assert_ne!(planted.result, right, "{mistake}: {clean}");
                        assert!(planted.text.ends_with(&format!("={}", planted.result)));
                        // Beside the wrong characters, the left sides are alike.
                        let (wrong, stated) = (&planted.text, &planted.text[planted.wrong.clone()]);
                        let meant = &clean[planted.right.clone()];
                        assert_ne!(stated, meant, "{mistake}: {wrong} for {clean}");
                        let left = |text: &str| text.split('=').next().unwrap().to_string();
                        match mistake {
                            Mistake::WrongResult => {
                                assert!(planted.result.abs_diff(right) <= 3);
                                assert_eq!(left(wrong), left(&clean));
                            }
                            Mistake::WrongCarry => {
                                assert_eq!(planted.result.abs_diff(right), 10);
                                assert_eq!(left(wrong), left(&clean));
                            }
                            Mistake::WrongCopy => {
                                let rest = |text: &str, at: usize| left(text)[at..].to_string();
                                let (wrong_end, right_end) = (planted.wrong.end, planted.right.end);
                                assert_eq!(rest(wrong, wrong_end), rest(&clean, right_end));
                            }
                            Mistake::WrongOperation => assert_eq!(stated.len(), 1),
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_kind_without_an_occasion_is_not_forced() {
        let mut random = Generator::new(2, Stream::Test, 0);
        let mut made = |part: &Chain, mistake, first_line| {
            plant(part, mistake, first_line, 29, &mut random).map(|planted| planted.text)
        };
        assert_eq!(made(&line(5, Operator::Add, 4), Mistake::WrongCarry, false), None);
        assert_eq!(
            made(&line(5, Operator::Add, 9), Mistake::WrongCarry, false).as_deref(),
            Some("5+9=4")
        );
        assert_eq!(
            made(&line(14, Operator::Subtract, 8), Mistake::WrongCarry, false).as_deref(),
            Some("14-8=16")
        );
        assert_eq!(made(&line(5, Operator::Add, 9), Mistake::WrongCopy, true), None);
        // 29 + 1 is out of range as 29 * 9 is; only the difference is left.
        assert_eq!(
            made(&line(20, Operator::Add, 9), Mistake::WrongOperation, false).as_deref(),
            Some("20-9=11")
        );
    }
}
