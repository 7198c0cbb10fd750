//! Chains of arithmetic, worked line by line.
//!
//! ```text
//! prompt    (9-8)*5+9-3+8:
//! careful   9-8=1;1*5=5;5+9=14;14-3=11;11+8=19;#19
//! skipping  (9-8)*5+9=14;14-3=11;11+8=19;#19
//! repair    9-8=2!9-8=1;1*5=5;5+9=14;14-3=11;11+8=19;#19
//! ```
//!
//! Every demonstration ends in the right answer, but the demonstrators have habits: a line may do two or three
//! operations at once, and a line may hold a slip, cancelled by `!` and done again at once. A small model copies
//! the habit of skipping before it can do two operations in its head; reinforcement learning can find that writing
//! every step pays.

mod chain;
mod mistake;
mod work;

use anyhow::{Result, ensure};
use prime_runtime::random::Generator;
use serde::{Deserialize, Serialize};

pub use chain::{Chain, Operation, Operator};
pub use mistake::plant;
pub use work::check_work;

use super::worked::{Mistake, Slips, Spoilt, Work, Worked, near_miss};
use super::{Problem, Split, Task, generated};
use crate::graders::{self, Grade, Grader};

/// Settings of the arithmetic task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArithmeticSettings {
    /// Fewest operations of a chain.
    pub min_operations: u32,
    /// Most operations of a chain; their number is uniform in the range.
    pub max_operations: u32,
    /// Every intermediate value lies in 0 to this.
    pub highest: u32,
    /// Probability that a demonstrated line does two operations at once.
    pub skip_two: f32,
    /// Probability that a demonstrated line does three operations at once.
    pub skip_three: f32,
    /// Probability that one line of a demonstration holds a slip that is repaired at once.
    pub repair: f32,
    /// Whether a slip is of any kind, or a wrong result each time.
    pub slips: Slips,
    /// Probability that a repair is right; one that is not states another wrong result, and the answer is wrong.
    pub repair_success: f32,
    /// One prompt in so many is held out.
    pub held_out_one_in: u32,
}

impl Default for ArithmeticSettings {
    fn default() -> Self {
        ArithmeticSettings {
            min_operations: 2,
            max_operations: 6,
            highest: 29,
            skip_two: 0.35,
            skip_three: 0.15,
            repair: 0.10,
            slips: Slips::Result,
            repair_success: 1.0,
            held_out_one_in: 16,
        }
    }
}

/// The arithmetic task.
pub struct Arithmetic {
    settings: ArithmeticSettings,
    seed: u64,
}

impl Arithmetic {
    /// The task of these settings.
    pub fn new(settings: ArithmeticSettings, seed: u64) -> Result<Self> {
        let ArithmeticSettings {
            min_operations,
            max_operations,
            highest,
            skip_two,
            skip_three,
            repair,
            repair_success,
            ..
        } = settings;
        ensure!(
            1 <= min_operations && min_operations <= max_operations && max_operations <= 64,
            "min_operations and max_operations must satisfy 1 <= min <= max <= 64, and are {min_operations} and \
             {max_operations}"
        );
        ensure!((9..=9999).contains(&highest), "highest must lie in 9 to 9999, and is {highest}");
        for (name, value) in [
            ("skip_two", skip_two),
            ("skip_three", skip_three),
            ("repair", repair),
            ("repair_success", repair_success),
        ] {
            ensure!((0.0..=1.0).contains(&value), "{name} must lie in 0 to 1, and is {value}");
        }
        ensure!(
            skip_two + skip_three <= 1.0,
            "skip_two and skip_three are parts of one whole: their sum must be at most 1, and is {}",
            skip_two + skip_three
        );
        for operations in min_operations..=max_operations {
            let what = format!("{operations} operations");
            generated::check(&what, settings.held_out_one_in, |random| {
                Some(candidate(operations, highest, random))
            })?;
        }
        Ok(Arithmetic { settings, seed })
    }

    /// A demonstration of a chain, with the habits of the settings.
    fn demonstration(&self, chain: &Chain, random: &mut Generator) -> String {
        let settings = &self.settings;
        let mut parts = Vec::new();
        let mut done = 0;
        while done < chain.operations.len() {
            let habit = random.uniform();
            let at_once = match habit {
                habit if habit < settings.skip_three => 3,
                habit if habit < settings.skip_three + settings.skip_two => 2,
                _ => 1,
            };
            let end = (done + at_once).min(chain.operations.len());
            parts.push(done..end);
            done = end;
        }
        let slip =
            (random.uniform() < settings.repair).then(|| random.below(parts.len() as u32) as usize);
        let (mut text, mut value) = (String::new(), chain.first);
        for (place, operations) in parts.into_iter().enumerate() {
            let rest = &chain.operations[operations.end..];
            let part = Chain { first: value, operations: chain.operations[operations].to_vec() };
            value = part.value();
            if slip == Some(place) {
                text += &format!("{}!", self.slip(&part, place == 0, random));
                value = self.repaired(value, rest, random);
            }
            text += &format!("{part}={value};");
        }
        text + &format!("#{value}")
    }

    /// A line that is about to be taken back.
    fn slip(&self, part: &Chain, first_line: bool, random: &mut Generator) -> String {
        let highest = self.settings.highest;
        if self.settings.slips == Slips::All {
            let mistake = Mistake::ALL[random.below(Mistake::ALL.len() as u32) as usize];
            if let Some(planted) = plant(part, mistake, first_line, highest, random) {
                return planted.text;
            }
        }
        format!("{part}={}", near_miss(part.value(), highest, random))
    }

    /// The result that a repair states: the right one, or another from which the rest of the chain can go on.
    fn repaired(&self, right: u32, rest: &[Operation], random: &mut Generator) -> u32 {
        let ArithmeticSettings { repair_success, highest, .. } = self.settings;
        if repair_success >= 1.0 || random.uniform() < repair_success {
            return right;
        }
        let goes_on = |first: u32| {
            Chain { first, operations: rest.to_vec() }.checked_value(highest).is_some()
        };
        let wrong: Vec<u32> = (right.saturating_sub(3)..=(right + 3).min(highest))
            .filter(|&value| value != right && goes_on(value))
            .collect();
        if wrong.is_empty() { right } else { wrong[random.below(wrong.len() as u32) as usize] }
    }
}

/// A random chain, with the text that decides its split.
fn candidate(operations: u32, highest: u32, random: &mut Generator) -> (String, Chain) {
    let chain = Chain::random(operations as usize, highest, random);
    (prompt(&chain), chain)
}

fn prompt(chain: &Chain) -> String {
    format!("{chain}:")
}

impl Worked for Arithmetic {
    fn mistakes(&self) -> &'static [Mistake] {
        &Mistake::ALL
    }

    fn spoil(&self, prompt: &str, mistake: Mistake, random: &mut Generator) -> Option<Spoilt> {
        let chain = Chain::parse(prompt.strip_suffix(':')?)?;
        mistake::spoil(&chain, mistake, self.settings.highest, random)
    }

    fn check(&self, prompt: &str, response: &str) -> Option<Work> {
        check_work(prompt, response)
    }
}

impl Task for Arithmetic {
    fn name(&self) -> &str {
        "arithmetic"
    }

    fn worked(&self) -> Option<&dyn Worked> {
        Some(self)
    }

    fn len(&self, _split: Split) -> Option<u64> {
        None
    }

    fn problem(&self, split: Split, index: u64) -> Option<Problem> {
        let settings = &self.settings;
        let mut random = generated::generator(self.seed, split, index);
        // The length is drawn before the split is asked: both splits have the same lengths.
        let (least, most) = (settings.min_operations, settings.max_operations);
        let operations = least + random.below(most - least + 1);
        let chain = generated::draw(&mut random, split, settings.held_out_one_in, |random| {
            Some(candidate(operations, settings.highest, random))
        });
        Some(Problem {
            id: index,
            prompt: prompt(&chain),
            answer: chain.value().to_string(),
            solution: Some(self.demonstration(&chain, &mut random)),
            level: operations,
            ..Problem::default()
        })
    }

    fn grade(&self, problem: &Problem, response: &str, finished: bool) -> Grade {
        let grade = graders::arithmetic::Arithmetic.grade(response, &problem.answer);
        if finished { grade } else { grade.cut_off() }
    }

    fn alphabet(&self) -> Option<&str> {
        Some("0123456789+-*()=;!#:")
    }

    fn longest_prompt(&self) -> Option<usize> {
        // Digits, operators and the colon; a pair of brackets needs a sum inside and a product after it.
        let operations = self.settings.max_operations as usize;
        Some(2 * operations + 2 + 2 * (operations / 2))
    }

    fn longest_solution(&self) -> Option<usize> {
        // A line of k operations: value, operators and digits, brackets, `=`, value, and `;` or `!`. Doing k at once is
        // never longer than k lines of one.
        let digits = self.settings.highest.to_string().len();
        let line = |k: usize| digits + 2 * k + 2 * (k / 2) + 1 + digits + 1;
        let operations = self.settings.max_operations as usize;
        Some(operations * line(1) + line(3.min(operations)) + 1 + digits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(settings: ArithmeticSettings) -> Arithmetic {
        Arithmetic::new(settings, 3).unwrap()
    }

    #[test]
    fn lengths_agree_with_the_published_recipe() {
        let task = task(ArithmeticSettings::default());
        let problems: Vec<Problem> =
            (0..20_000).map(|i| task.problem(Split::Train, i).unwrap()).collect();
        let mean = |length: &dyn Fn(&Problem) -> usize| {
            problems.iter().map(|problem| length(problem) as f64).sum::<f64>()
                / problems.len() as f64
        };
        // The recipe's figures (10.9 and 25.4 characters) are of about 1000 problems. Lengths spread by about 3.5 and 11
        // characters, so three standard errors of its means are 0.33 and 1.0.
        let prompt = mean(&|problem| problem.prompt.len());
        let response = mean(&|problem| problem.solution.as_ref().unwrap().len());
        assert!((prompt - 10.9).abs() < 0.33, "{prompt}");
        assert!((response - 25.4).abs() < 1.0, "{response}");
    }

    #[test]
    fn both_splits_have_all_lengths_equally_often() {
        let task = task(ArithmeticSettings::default());
        for split in [Split::Train, Split::HeldOut] {
            let mut counts = [0u32; 7];
            for index in 0..5000 {
                counts[task.problem(split, index).unwrap().level as usize] += 1;
            }
            // Binomial with n = 5000 and p = 1/5: standard deviation 28.
            assert!(counts[2..].iter().all(|count| count.abs_diff(1000) < 4 * 28), "{counts:?}");
        }
    }

    #[test]
    fn demonstrations_have_the_habits_of_the_settings() {
        let task = task(ArithmeticSettings::default());
        let (mut answers, mut repaired) = (0u32, 0u32);
        // Lines by how many operations they do, where three were left to do.
        let mut lines = [0u32; 4];
        for index in 0..20_000 {
            let problem = task.problem(Split::Train, index).unwrap();
            let work = check_work(&problem.prompt, problem.solution.as_ref().unwrap()).unwrap();
            assert!(work.complete && work.answer.as_ref() == Some(&problem.answer), "{problem:?}");
            let mut left = problem.level as usize;
            for line in &work.lines {
                assert!(line.follows && line.correct != line.cancelled, "{problem:?}");
                if !line.cancelled {
                    if left >= 3 {
                        lines[line.operations] += 1;
                    }
                    left -= line.operations;
                }
            }
            let slips = work.lines.iter().filter(|line| line.cancelled).count();
            assert!(slips <= 1);
            answers += 1;
            repaired += slips as u32;
        }
        let total: u32 = lines.iter().sum();
        for (at_once, probability) in [(1, 0.5), (2, 0.35), (3, 0.15)] {
            let share = f64::from(lines[at_once]) / f64::from(total);
            let deviation = (probability * (1.0 - probability) / f64::from(total)).sqrt();
            assert!((share - probability).abs() < 4.0 * deviation, "{at_once}: {share}");
        }
        let share = f64::from(repaired) / f64::from(answers);
        assert!((share - 0.1).abs() < 4.0 * (0.09 / f64::from(answers)).sqrt(), "{share}");
    }

    #[test]
    fn settings_without_habits_write_every_step() {
        let task = task(ArithmeticSettings {
            skip_two: 0.0,
            skip_three: 0.0,
            repair: 0.0,
            ..Default::default()
        });
        for index in 0..500 {
            let problem = task.problem(Split::HeldOut, index).unwrap();
            let solution = problem.solution.unwrap();
            assert_eq!(solution.matches(';').count(), problem.level as usize, "{solution}");
        }
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let default = ArithmeticSettings::default;
        for (settings, name) in [
            (ArithmeticSettings { min_operations: 0, ..default() }, "min_operations"),
            (ArithmeticSettings { min_operations: 7, ..default() }, "max_operations"),
            (ArithmeticSettings { highest: 8, ..default() }, "highest"),
            (ArithmeticSettings { repair: f32::NAN, ..default() }, "repair"),
            (ArithmeticSettings { skip_two: 0.9, ..default() }, "skip_two and skip_three"),
            (ArithmeticSettings { held_out_one_in: 1, ..default() }, "held_out_one_in"),
            (ArithmeticSettings { held_out_one_in: u32::MAX, ..default() }, "too few problems"),
        ] {
            let message = Arithmetic::new(settings, 0).err().unwrap().to_string();
            assert!(message.contains(name), "{message}");
        }
    }
}
