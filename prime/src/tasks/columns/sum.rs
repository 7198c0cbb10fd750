//! Sums of numbers with as many digits each, and how their columns are written.

use std::fmt;
use std::ops::Range;

use prime_runtime::random::Generator;

use crate::tasks::worked::{Mistake, Planted, Spoilt, near_miss};

/// Numbers to add. Columns are counted from the units, from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// The numbers, all of as many digits, the first of which is not 0.
    addends: Vec<String>,
}

/// What the lines so far came to: the answer's last digits, and what is carried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reached {
    /// How many columns are done.
    pub columns: usize,
    /// What is carried into the next one.
    pub carry: u32,
    /// The digits of the answer so far; once all columns are done, the answer.
    pub digits: String,
}

impl Reached {
    /// Goes on with the stated result of the next `width` columns, which may be the last.
    pub fn next(&mut self, width: usize, result: u32, sum: &Sum) {
        self.columns += width;
        let low = 10u32.saturating_pow(width as u32);
        let last = self.columns >= sum.columns();
        let digits = if last { result.to_string() } else { format!("{:0width$}", result % low) };
        self.digits.insert_str(0, &digits);
        self.carry = result / low;
    }
}

impl Sum {
    /// Random numbers of so many digits.
    pub(super) fn random(addends: u32, digits: u32, random: &mut Generator) -> Sum {
        let number = |random: &mut Generator| -> String {
            let first = 1 + random.below(9);
            let rest = (1..digits).map(|_| random.below(10));
            std::iter::once(first).chain(rest).map(|digit| digit.to_string()).collect()
        };
        Sum { addends: (0..addends).map(|_| number(random)).collect() }
    }

    /// Reads a sum as it is written; none when the text is none: one number alone, more than 9, or numbers that differ in length.
    pub fn parse(text: &str) -> Option<Sum> {
        let addends: Vec<String> = text.split('+').map(str::to_owned).collect();
        let digits = addends.first()?.len();
        let number = |text: &String| {
            text.len() == digits
                && text.bytes().all(|byte| byte.is_ascii_digit())
                && !text.starts_with('0')
        };
        let right = (1..=9).contains(&digits) && (2..=9).contains(&addends.len());
        (right && addends.iter().all(number)).then_some(Sum { addends })
    }

    /// How many columns there are.
    pub fn columns(&self) -> usize {
        self.addends.first().map_or(0, String::len)
    }

    /// What the numbers come to.
    pub fn value(&self) -> u64 {
        self.addends.iter().filter_map(|number| number.parse::<u64>().ok()).sum()
    }

    /// The numbers in order of size: what is the same sum, written in any order.
    pub(super) fn sorted(&self) -> Sum {
        let mut addends = self.addends.clone();
        addends.sort_unstable();
        Sum { addends }
    }

    /// What a line about some columns adds, one part a number and behind the first line the carry.
    fn parts(&self, columns: Range<usize>, carry: u32) -> Vec<String> {
        let all = self.columns();
        let digits = all - columns.end..all - columns.start;
        let mut parts: Vec<String> =
            self.addends.iter().map(|number| number[digits.clone()].to_owned()).collect();
        if columns.start > 0 {
            parts.push(carry.to_string());
        }
        parts
    }

    /// The left side of a line about the `width` columns behind what was reached.
    pub(super) fn left(&self, reached: &Reached, width: usize) -> String {
        self.parts(reached.columns..reached.columns + width, reached.carry).join("+")
    }

    /// As [`Sum::left`], with its value. Of few columns: that of all columns of long numbers is beyond 32 bits.
    pub(super) fn line(&self, reached: &Reached, width: usize) -> (String, u32) {
        let parts = self.parts(reached.columns..reached.columns + width, reached.carry);
        (parts.join("+"), value_of(&parts))
    }

    /// The largest result that a line of so many columns can have.
    pub(super) fn highest(&self, width: usize) -> u32 {
        let count = self.addends.len() as u32;
        count * (10u32.saturating_pow(width as u32) - 1) + count - 1
    }

    /// A line about the next `width` columns with a mistake of a kind in it; none where the line gives no occasion for it: the first one has
    /// no carry, and there is no other operation than addition.
    pub(super) fn plant(
        &self,
        reached: &Reached,
        width: usize,
        mistake: Mistake,
        random: &mut Generator,
    ) -> Option<Planted> {
        let mut parts = self.parts(reached.columns..reached.columns + width, reached.carry);
        let right = value_of(&parts);
        let left = parts.join("+");
        // Where a part begins; those before one that is changed keep their lengths.
        let start = |parts: &[String], part: usize| -> usize {
            parts[..part].iter().map(|text| text.len() + 1).sum()
        };
        let changed = |parts: &[String], wrong: Range<usize>, meant: Range<usize>| {
            let result = value_of(parts);
            Planted { text: format!("{}={result}", parts.join("+")), result, wrong, right: meant }
        };
        match mistake {
            Mistake::WrongResult => {
                let result = near_miss(right, self.highest(width), random);
                let at = left.len() + 1;
                let text = format!("{left}={result}");
                let meant = at..at + right.to_string().len();
                Some(Planted { wrong: at..text.len(), right: meant, text, result })
            }
            Mistake::WrongCarry if reached.columns == 0 => None,
            Mistake::WrongCarry => {
                let most = (self.addends.len() as u32 - 1).max(reached.carry);
                let others: Vec<u32> = (0..=most).filter(|&carry| carry != reached.carry).collect();
                let carry = others[random.below(others.len() as u32) as usize].to_string();
                let place = parts.len() - 1;
                let at = start(&parts, place);
                let (meant, wrong) = (at..at + parts[place].len(), at..at + carry.len());
                parts[place] = carry;
                Some(changed(&parts, wrong, meant))
            }
            Mistake::WrongCopy => {
                let part = random.below(self.addends.len() as u32) as usize;
                let digit = random.below(width as u32) as usize;
                let at = start(&parts, part) + digit;
                let old = u32::from(parts[part].as_bytes()[digit] - b'0');
                let new = (old + 1 + random.below(9)) % 10;
                parts[part].replace_range(digit..digit + 1, &new.to_string());
                Some(changed(&parts, at..at + 1, at..at + 1))
            }
            Mistake::WrongOperation => None,
        }
    }

    /// The columns behind what was reached, one a line. Ends in the answer that they come to.
    fn rest(&self, mut reached: Reached) -> (Vec<String>, String) {
        let mut lines = Vec::new();
        while reached.columns < self.columns() {
            let (left, result) = self.line(&reached, 1);
            lines.push(format!("{left}={result}"));
            reached.next(1, result, self);
        }
        (lines, reached.digits)
    }

    /// A mistake in one line of the work, carried on to a wrong answer (see [`crate::tasks::worked::Worked::spoil`]).
    pub(super) fn spoil(&self, mistake: Mistake, random: &mut Generator) -> Option<Spoilt> {
        let (right, right_answer) = self.rest(Reached::default());
        let mut places: Vec<usize> = (0..self.columns()).collect();
        random.shuffle(&mut places);
        places.into_iter().find_map(|place| {
            let mut reached = Reached::default();
            for _ in 0..place {
                let (_, result) = self.line(&reached, 1);
                reached.next(1, result, self);
            }
            let planted = self.plant(&reached, 1, mistake, random)?;
            reached.next(1, planted.result, self);
            let (rest, wrong_answer) = self.rest(reached);
            let mut wrong = right[..place].to_vec();
            wrong.push(planted.text);
            wrong.extend(rest);
            (wrong_answer != right_answer).then(|| Spoilt {
                place,
                right: right.clone(),
                wrong,
                right_span: planted.right,
                wrong_span: planted.wrong,
                right_answer: right_answer.clone(),
                wrong_answer,
            })
        })
    }
}

fn value_of(parts: &[String]) -> u32 {
    parts.iter().filter_map(|part| part.parse::<u32>().ok()).sum()
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.addends.join("+"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prime_runtime::random::Stream;

    #[test]
    fn columns_one_a_line_come_to_the_sum() {
        let mut random = Generator::new(1, Stream::Test, 0);
        for digits in 1..=9 {
            for addends in 2..=9 {
                let sum = Sum::random(addends, digits, &mut random);
                assert_eq!(Sum::parse(&sum.to_string()).as_ref(), Some(&sum));
                let (lines, answer) = sum.rest(Reached::default());
                assert_eq!(answer, sum.value().to_string(), "{sum}");
                assert_eq!(lines.len(), digits as usize);
            }
        }
        let (lines, _) = Sum::parse("478+296").unwrap().rest(Reached::default());
        assert_eq!(lines, ["8+6=14", "7+9+1=17", "4+2+1=7"]);
    }

    #[test]
    fn what_is_no_sum_is_not_read_as_one() {
        for text in ["", "478", "478+29", "478+096", "4x8+296", "478+296+", "1234567890+1234567890"]
        {
            assert_eq!(Sum::parse(text), None, "{text}");
        }
        assert_eq!(Sum::parse(&["1"; 10].join("+")), None);
    }

    #[test]
    fn each_kind_changes_what_it_names_and_nothing_else() {
        let mut random = Generator::new(2, Stream::Test, 0);
        for case in 0..2000 {
            let sum = Sum::random(2 + case % 2, 3, &mut random);
            for width in [1, 2] {
                let mut reached = Reached::default();
                for mistake in Mistake::ALL {
                    let planted = sum.plant(&reached, width, mistake, &mut random);
                    assert_eq!(
                        planted.is_some(),
                        matches!(mistake, Mistake::WrongResult | Mistake::WrongCopy)
                    );
                }
                let (_, result) = sum.line(&reached, 1);
                reached.next(1, result, &sum);
                let (left, result) = sum.line(&reached, width);
                for mistake in [Mistake::WrongResult, Mistake::WrongCarry, Mistake::WrongCopy] {
                    let planted = sum.plant(&reached, width, mistake, &mut random).unwrap();
                    let (wrong_left, stated) = planted.text.split_once('=').unwrap();
                    assert_eq!(stated, planted.result.to_string());
                    assert_ne!(planted.result, result, "{mistake}: {}", planted.text);
                    let clean = format!("{left}={result}");
                    let (wrong, meant) =
                        (&planted.text[planted.wrong.clone()], &clean[planted.right.clone()]);
                    assert_ne!(wrong, meant);
                    assert_eq!(planted.text[..planted.wrong.start], clean[..planted.right.start]);
                    let parts: Vec<String> = wrong_left.split('+').map(str::to_owned).collect();
                    match mistake {
                        Mistake::WrongResult => assert_eq!(wrong_left, left),
                        _ => {
                            assert_eq!(planted.result, value_of(&parts), "the wrong numbers' own");
                            assert_eq!(
                                wrong_left[planted.wrong.end..],
                                left[planted.right.end..],
                                "one thing alone is wrong"
                            );
                        }
                    }
                    let carry = planted.wrong.end == wrong_left.len();
                    assert_eq!(mistake == Mistake::WrongCarry, carry && wrong_left != left);
                }
            }
        }
    }
}
