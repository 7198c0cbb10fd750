//! Addition of numbers of several digits, worked column by column from the units.
//!
//! ```text
//! prompt    478+296:
//! careful   8+6=14;7+9+1=17;4+2+1=7;#774
//! skipping  78+96=174;4+2+1=7;#774
//! repair    8+6=14;7+9+1=16!7+9+1=17;4+2+1=7;#774
//! ```
//!
//! A line adds the digits of a column and, but for the first, what is carried; the last digit of its result is the answer's. As in
//! `arithmetic`, demonstrations have habits: a line may do two columns at once, which a small model copies before it can do it, and a line
//! may hold a slip, cancelled by `!` and done again at once.

mod sum;
mod work;

use anyhow::{Result, ensure};
use prime_runtime::random::Generator;
use serde::{Deserialize, Serialize};

pub use sum::Sum;
pub use work::check_work;

use self::sum::Reached;
use super::worked::{Mistake, Slips, Spoilt, Work, Worked, near_miss};
use super::{Problem, Split, Task, generated};
use crate::graders::{self, Grade, Grader};

/// Settings of the columns task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColumnsSettings {
    /// Fewest digits of the numbers, which all have as many.
    pub min_digits: u32,
    /// Most digits; how many there are is uniform in the range.
    pub max_digits: u32,
    /// Fewest numbers to add.
    pub min_addends: u32,
    /// Most numbers; how many there are is uniform in the range.
    pub max_addends: u32,
    /// Probability that a demonstrated line does two columns at once.
    pub skip_two: f32,
    /// Probability that one line of a demonstration holds a slip that is repaired at once.
    pub repair: f32,
    /// Whether a slip is of any kind, or a wrong result each time.
    pub slips: Slips,
    /// Probability that a repair is right; one that is not states another wrong result, and the answer is wrong.
    pub repair_success: f32,
    /// One problem in so many is held out; the order of the numbers makes no difference to which.
    pub held_out_one_in: u32,
}

impl Default for ColumnsSettings {
    fn default() -> Self {
        ColumnsSettings {
            min_digits: 2,
            max_digits: 4,
            min_addends: 2,
            max_addends: 3,
            skip_two: 0.25,
            repair: 0.10,
            slips: Slips::Result,
            repair_success: 1.0,
            held_out_one_in: 16,
        }
    }
}

/// The columns task.
pub struct Columns {
    settings: ColumnsSettings,
    seed: u64,
}

impl Columns {
    /// The task of these settings.
    pub fn new(settings: ColumnsSettings, seed: u64) -> Result<Self> {
        let ColumnsSettings { min_digits, max_digits, min_addends, max_addends, .. } = settings;
        ensure!(
            1 <= min_digits && min_digits <= max_digits && max_digits <= 9,
            "min_digits and max_digits must satisfy 1 <= min <= max <= 9, and are {min_digits} and {max_digits}"
        );
        ensure!(
            2 <= min_addends && min_addends <= max_addends && max_addends <= 9,
            "min_addends and max_addends must satisfy 2 <= min <= max <= 9, and are {min_addends} and {max_addends}"
        );
        for (name, value) in [
            ("skip_two", settings.skip_two),
            ("repair", settings.repair),
            ("repair_success", settings.repair_success),
        ] {
            ensure!((0.0..=1.0).contains(&value), "{name} must lie in 0 to 1, and is {value}");
        }
        for digits in min_digits..=max_digits {
            for addends in min_addends..=max_addends {
                let what = format!("{addends} numbers of {digits} digits");
                generated::check(&what, settings.held_out_one_in, |random| {
                    Some(candidate(addends, digits, random))
                })?;
            }
        }
        Ok(Columns { settings, seed })
    }

    /// A demonstration of a sum, with the habits of the settings.
    fn demonstration(&self, sum: &Sum, random: &mut Generator) -> String {
        let settings = &self.settings;
        let (mut widths, mut done) = (Vec::new(), 0);
        while done < sum.columns() {
            let at_once = if random.uniform() < settings.skip_two { 2 } else { 1 };
            let width = at_once.min(sum.columns() - done);
            widths.push(width);
            done += width;
        }
        let slip = (random.uniform() < settings.repair)
            .then(|| random.below(widths.len() as u32) as usize);
        let (mut text, mut reached) = (String::new(), Reached::default());
        for (place, width) in widths.into_iter().enumerate() {
            let (left, mut result) = sum.line(&reached, width);
            if slip == Some(place) {
                text += &format!("{}!", self.slip(sum, &reached, width, random));
                if settings.repair_success < 1.0 && random.uniform() >= settings.repair_success {
                    result = near_miss(result, sum.highest(width), random);
                }
            }
            text += &format!("{left}={result};");
            reached.next(width, result, sum);
        }
        text + "#" + &reached.digits
    }

    /// A line that is about to be taken back.
    fn slip(&self, sum: &Sum, reached: &Reached, width: usize, random: &mut Generator) -> String {
        let kinds = match self.settings.slips {
            Slips::Result => &MISTAKES[..1],
            Slips::All => MISTAKES,
        };
        let mistake = kinds[random.below(kinds.len() as u32) as usize];
        let planted = sum
            .plant(reached, width, mistake, random)
            .or_else(|| sum.plant(reached, width, Mistake::WrongResult, random));
        planted.map_or_else(String::new, |planted| planted.text)
    }
}

/// What can go wrong in a column; a wrong result always can, and is the first.
const MISTAKES: &[Mistake] = &[Mistake::WrongResult, Mistake::WrongCarry, Mistake::WrongCopy];

/// A random sum, with the text that decides its split: the numbers in order of size, so that a held-out sum does not come back in training with
/// its numbers moved.
fn candidate(addends: u32, digits: u32, random: &mut Generator) -> (String, Sum) {
    let sum = Sum::random(addends, digits, random);
    (prompt(&sum.sorted()), sum)
}

fn prompt(sum: &Sum) -> String {
    format!("{sum}:")
}

impl Worked for Columns {
    fn mistakes(&self) -> &'static [Mistake] {
        MISTAKES
    }

    fn spoil(&self, prompt: &str, mistake: Mistake, random: &mut Generator) -> Option<Spoilt> {
        Sum::parse(prompt.strip_suffix(':')?)?.spoil(mistake, random)
    }

    fn check(&self, prompt: &str, response: &str) -> Option<Work> {
        check_work(prompt, response)
    }
}

impl Task for Columns {
    fn name(&self) -> &str {
        "columns"
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
        // The size is drawn before the split is asked: both splits have the same sizes.
        let mut within = |least: u32, most: u32| least + random.below(most - least + 1);
        let digits = within(settings.min_digits, settings.max_digits);
        let addends = within(settings.min_addends, settings.max_addends);
        let sum = generated::draw(&mut random, split, settings.held_out_one_in, |random| {
            Some(candidate(addends, digits, random))
        });
        Some(Problem {
            id: index,
            prompt: prompt(&sum),
            answer: sum.value().to_string(),
            solution: Some(self.demonstration(&sum, &mut random)),
            level: digits,
            ..Problem::default()
        })
    }

    fn grade(&self, problem: &Problem, response: &str, finished: bool) -> Grade {
        let grade = graders::arithmetic::Arithmetic.grade(response, &problem.answer);
        if finished { grade } else { grade.cut_off() }
    }

    fn alphabet(&self) -> Option<&str> {
        Some("0123456789+=;!#:")
    }

    fn longest_prompt(&self) -> Option<usize> {
        Some((self.settings.max_addends * (self.settings.max_digits + 1)) as usize)
    }

    fn longest_solution(&self) -> Option<usize> {
        // A line of k columns: k digits of each number with a plus sign behind, the carry, `=`, at most k + 1 digits, and `;` or `!`. Two columns
        // at once are never longer than two lines, and the line that is taken back may do two.
        let (digits, addends) =
            (self.settings.max_digits as usize, self.settings.max_addends as usize);
        let line = |k: usize| addends * (k + 1) + 1 + 1 + k + 1 + 1;
        Some(digits * line(1) + line(2.min(digits)) + 1 + digits + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::worked::Line;

    fn task(settings: ColumnsSettings) -> Columns {
        Columns::new(settings, 3).unwrap()
    }

    #[test]
    fn demonstrations_have_the_habits_of_the_settings() {
        let task = task(ColumnsSettings { slips: Slips::All, ..ColumnsSettings::default() });
        let (mut answers, mut repaired) = (0u32, 0u32);
        // Lines by how many columns they do, where two were left to do.
        let mut lines = [0u32; 3];
        for index in 0..20_000 {
            let problem = task.problem(Split::Train, index).unwrap();
            let work = check_work(&problem.prompt, problem.solution.as_ref().unwrap()).unwrap();
            assert!(work.valid() && work.answer.as_ref() == Some(&problem.answer), "{problem:?}");
            let mut left = problem.level as usize;
            for line in &work.lines {
                assert_eq!(line.right(), !line.cancelled, "{problem:?}");
                if !line.cancelled {
                    if left >= 2 {
                        lines[line.operations] += 1;
                    }
                    left -= line.operations;
                }
            }
            answers += 1;
            repaired += work.lines.iter().filter(|line| line.cancelled).count() as u32;
        }
        let share = f64::from(lines[2]) / f64::from(lines[1] + lines[2]);
        let deviation = (0.25 * 0.75 / f64::from(lines[1] + lines[2])).sqrt();
        assert!((share - 0.25).abs() < 4.0 * deviation, "{share}");
        let share = f64::from(repaired) / f64::from(answers);
        assert!((share - 0.1).abs() < 4.0 * (0.09 / f64::from(answers)).sqrt(), "{share}");
    }

    #[test]
    fn repairs_fail_as_often_as_is_asked_and_then_the_answer_is_wrong() {
        let task = task(ColumnsSettings {
            repair: 1.0,
            repair_success: 0.25,
            ..ColumnsSettings::default()
        });
        let (mut right, all) = (0u32, 4000u32);
        for index in 0..u64::from(all) {
            let problem = task.problem(Split::Train, index).unwrap();
            let solution = problem.solution.as_ref().unwrap();
            let work = check_work(&problem.prompt, solution).unwrap();
            assert_eq!(
                work.valid(),
                task.grade(&problem, solution, true).score == 1.0,
                "{problem:?}"
            );
            assert!(work.complete, "{problem:?}");
            assert_eq!(work.lines.iter().filter(|line| line.cancelled).count(), 1);
            right += u32::from(work.valid());
        }
        let share = f64::from(right) / f64::from(all);
        assert!((share - 0.25).abs() < 4.0 * (0.1875 / f64::from(all)).sqrt(), "{share}");
    }

    #[test]
    fn settings_without_habits_write_every_column() {
        let task = task(ColumnsSettings { skip_two: 0.0, repair: 0.0, ..Default::default() });
        for index in 0..500 {
            let problem = task.problem(Split::HeldOut, index).unwrap();
            let work = check_work(&problem.prompt, &problem.solution.unwrap()).unwrap();
            assert_eq!(work.lines.len(), problem.level as usize);
            assert!(work.lines.iter().all(Line::right));
        }
    }

    #[test]
    fn a_sum_with_its_numbers_moved_is_in_the_same_split() {
        let task = task(ColumnsSettings::default());
        for index in 0..2000 {
            let problem = task.problem(Split::HeldOut, index).unwrap();
            let mut numbers: Vec<&str> = problem.prompt.trim_end_matches(':').split('+').collect();
            numbers.sort_unstable();
            assert_eq!(Split::of(&format!("{}:", numbers.join("+")), 16), Split::HeldOut);
        }
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let default = ColumnsSettings::default;
        for (settings, name) in [
            (ColumnsSettings { min_digits: 0, ..default() }, "min_digits"),
            (ColumnsSettings { max_digits: 10, ..default() }, "max_digits"),
            (ColumnsSettings { min_addends: 1, ..default() }, "min_addends"),
            (ColumnsSettings { max_addends: 1, ..default() }, "max_addends"),
            (ColumnsSettings { repair: f32::NAN, ..default() }, "repair"),
            (ColumnsSettings { skip_two: 1.5, ..default() }, "skip_two"),
            (ColumnsSettings { held_out_one_in: 1, ..default() }, "held_out_one_in"),
            (ColumnsSettings { held_out_one_in: u32::MAX, ..default() }, "too few problems"),
        ] {
            let message = Columns::new(settings, 0).err().unwrap().to_string();
            assert!(message.contains(name), "{message}");
        }
    }
}
