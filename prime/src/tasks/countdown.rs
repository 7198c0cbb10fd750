//! Countdown: reach a target from given numbers, each used at most once.
//!
//! ```text
//! prompt         3,5,7=22:
//! demonstration  5*3=15;15+7=22;#5*3+7
//! ```
//!
//! The demonstration is a shortest solution, found by search: its steps, then the expression they make up.

use anyhow::{Result, ensure};
use prime_runtime::random::Generator;
use serde::{Deserialize, Serialize};

use super::{Problem, Split, Task, generated};
use crate::graders::{self, Grade, Grader};

/// Settings of the countdown task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CountdownSettings {
    /// Fewest numbers given.
    pub min_numbers: u32,
    /// Most numbers given; how many there are is uniform in the range.
    pub max_numbers: u32,
    /// The smallest given number.
    pub smallest: u32,
    /// The largest given number.
    pub largest: u32,
    /// The smallest target.
    pub min_target: u32,
    /// The largest target.
    pub max_target: u32,
    /// The largest value of a demonstrated step.
    pub highest: u32,
    /// One problem in so many is held out; the order in which the numbers are given makes no difference to which.
    pub held_out_one_in: u32,
}

impl Default for CountdownSettings {
    fn default() -> Self {
        CountdownSettings {
            min_numbers: 3,
            max_numbers: 4,
            smallest: 1,
            largest: 20,
            min_target: 10,
            max_target: 99,
            highest: 999,
            held_out_one_in: 16,
        }
    }
}

/// The countdown task.
pub struct Countdown {
    settings: CountdownSettings,
    seed: u64,
}

impl Countdown {
    /// The task of these settings.
    pub fn new(settings: CountdownSettings, seed: u64) -> Result<Self> {
        let CountdownSettings {
            min_numbers,
            max_numbers,
            smallest,
            largest,
            min_target,
            max_target,
            highest,
            ..
        } = settings;
        ensure!(
            2 <= min_numbers && min_numbers <= max_numbers && max_numbers <= 6,
            "min_numbers and max_numbers must satisfy 2 <= min <= max <= 6, and are {min_numbers} and {max_numbers}"
        );
        ensure!(
            1 <= smallest && smallest <= largest && largest <= highest,
            "smallest and largest must satisfy 1 <= smallest <= largest <= highest, and are {smallest} and {largest} \
             with highest {highest}"
        );
        ensure!(
            1 <= min_target
                && min_target <= max_target
                && max_target <= highest
                && highest <= 99_999,
            "min_target and max_target must satisfy 1 <= min <= max <= highest <= 99999, and are {min_target} and \
             {max_target} with highest {highest}"
        );
        for count in min_numbers..=max_numbers {
            let what = format!("{count} numbers");
            generated::check(&what, settings.held_out_one_in, |random| {
                candidate(count, &settings, random)
            })?;
        }
        Ok(Countdown { settings, seed })
    }
}

/// Numbers and a target that some way of combining all of them reaches, with the text that decides the split: the
/// numbers in order of size, so that a held-out problem does not come back in training with its numbers moved.
fn candidate(
    count: u32,
    settings: &CountdownSettings,
    random: &mut Generator,
) -> Option<(String, (Vec<u32>, u32))> {
    let numbers: Vec<u32> = (0..count)
        .map(|_| random.between(i64::from(settings.smallest), i64::from(settings.largest)) as u32)
        .collect();
    let mut pool = numbers.clone();
    while pool.len() > 1 {
        let a = pool.swap_remove(random.below(pool.len() as u32) as usize);
        let b = pool.swap_remove(random.below(pool.len() as u32) as usize);
        let steps = Step::all(a, b, settings.highest);
        pool.push(
            steps[random.below(u32::try_from(steps.len()).ok().filter(|&n| n > 0)?) as usize]
                .result,
        );
    }
    let target = pool[0];
    if !(settings.min_target..=settings.max_target).contains(&target) || numbers.contains(&target) {
        return None;
    }
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    Some((problem_text(&sorted, target), (numbers, target)))
}

/// The problem as the grader reads it: `3,5,7=22`.
fn problem_text(numbers: &[u32], target: u32) -> String {
    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
    format!("{}={target}", numbers.join(","))
}

/// One step of a solution, on whole numbers above 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    left: u32,
    operator: char,
    right: u32,
    result: u32,
}

impl Step {
    /// The steps that two numbers allow, the larger one to the left: differences above 0, divisions without remainder, and
    /// nothing that gives one of the two back.
    fn all(a: u32, b: u32, highest: u32) -> Vec<Step> {
        let (left, right) = (a.max(b), a.min(b));
        let product = left.checked_mul(right).filter(|_| right > 1);
        let quotient = (right > 1 && left % right == 0).then(|| left / right);
        let results = [
            ('+', left.checked_add(right)),
            ('-', left.checked_sub(right)),
            ('*', product),
            ('/', quotient),
        ];
        results
            .into_iter()
            .filter_map(|(operator, result)| {
                let result = result.filter(|result| (1..=highest).contains(result))?;
                Some(Step { left, operator, right, result })
            })
            .collect()
    }
}

/// A shortest way to the target, of the fewest steps.
fn solve(numbers: &[u32], target: u32, highest: u32) -> Option<Vec<Step>> {
    (1..numbers.len()).find_map(|steps| {
        let mut found = Vec::new();
        search(&mut numbers.to_vec(), target, highest, steps, &mut found).then_some(found)
    })
}

/// Depth-first search for a way of exactly `steps` steps; leaves it in `found`.
fn search(
    pool: &mut Vec<u32>,
    target: u32,
    highest: u32,
    steps: usize,
    found: &mut Vec<Step>,
) -> bool {
    for i in 1..pool.len() {
        for j in 0..i {
            let (a, b) = (pool[i], pool[j]);
            for step in Step::all(a, b, highest) {
                if steps == 1 && step.result != target {
                    continue;
                }
                found.push(step);
                if steps == 1 {
                    return true;
                }
                pool.swap_remove(i);
                pool[j] = step.result;
                if search(pool, target, highest, steps - 1, found) {
                    return true;
                }
                // Undo the removal: what was last goes back to its place.
                pool[j] = b;
                pool.push(a);
                let last = pool.len() - 1;
                pool.swap(i, last);
                found.pop();
            }
        }
    }
    false
}

/// A value with the expression that makes it up.
struct Term {
    value: u32,
    text: String,
    /// The operator applied last; `None` for a given number.
    operator: Option<char>,
}

/// The demonstration: the steps, then their expression with the fewest brackets.
fn demonstration(numbers: &[u32], steps: &[Step]) -> String {
    let mut terms: Vec<Term> = numbers
        .iter()
        .map(|&value| Term { value, text: value.to_string(), operator: None })
        .collect();
    let mut out = String::new();
    for step in steps {
        // The newest term of a value first: a step goes on from what was just made.
        let mut take = |value: u32| {
            terms.iter().rposition(|term| term.value == value).map(|place| terms.remove(place))
        };
        let (Some(left), Some(right)) = (take(step.left), take(step.right)) else { break };
        out += &format!("{}{}{}={};", step.left, step.operator, step.right, step.result);
        let is_sum = |term: &Term| matches!(term.operator, Some('+' | '-'));
        let product = matches!(step.operator, '*' | '/');
        let bracket =
            |term: Term, needed: bool| if needed { format!("({})", term.text) } else { term.text };
        let bracket_left = product && is_sum(&left);
        let bracket_right = match step.operator {
            '/' => right.operator.is_some(),
            '*' | '-' => is_sum(&right),
            _ => false,
        };
        let text = format!(
            "{}{}{}",
            bracket(left, bracket_left),
            step.operator,
            bracket(right, bracket_right)
        );
        terms.push(Term { value: step.result, text, operator: Some(step.operator) });
    }
    let expression = terms.pop().map_or_else(String::new, |term| term.text);
    out + "#" + &expression
}

impl Task for Countdown {
    fn name(&self) -> &str {
        "countdown"
    }

    fn len(&self, _split: Split) -> Option<u64> {
        None
    }

    fn problem(&self, split: Split, index: u64) -> Option<Problem> {
        let settings = &self.settings;
        let mut random = generated::generator(self.seed, split, index);
        // How many numbers there are is drawn before the split is asked: both splits have the same counts.
        let (least, most) = (settings.min_numbers, settings.max_numbers);
        let count = least + random.below(most - least + 1);
        let (numbers, target) =
            generated::draw(&mut random, split, settings.held_out_one_in, |random| {
                candidate(count, settings, random)
            });
        let steps = solve(&numbers, target, settings.highest)?;
        let text = problem_text(&numbers, target);
        Some(Problem {
            id: index,
            prompt: format!("{text}:"),
            answer: text,
            solution: Some(demonstration(&numbers, &steps)),
            level: steps.len() as u32,
            ..Problem::default()
        })
    }

    fn grade(&self, problem: &Problem, response: &str, finished: bool) -> Grade {
        let grade = graders::countdown::Countdown.grade(response, &problem.answer);
        if finished { grade } else { grade.cut_off() }
    }

    fn alphabet(&self) -> Option<&str> {
        Some("0123456789+-*/()=,;#:")
    }

    fn longest_prompt(&self) -> Option<usize> {
        let digits = |number: u32| number.to_string().len();
        let count = self.settings.max_numbers as usize;
        Some(count * (digits(self.settings.largest) + 1) + digits(self.settings.max_target) + 1)
    }

    fn longest_solution(&self) -> Option<usize> {
        let digits = |number: u32| number.to_string().len();
        let count = self.settings.max_numbers as usize;
        let steps = (count - 1) * (3 * digits(self.settings.highest) + 3);
        let expression = count * digits(self.settings.largest) + (count - 1) + 2 * (count - 2);
        Some(steps + 1 + expression)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_search_finds_a_shortest_solution() {
        let demonstrate = |numbers: &[u32], target| {
            solve(numbers, target, 999).map(|steps| demonstration(numbers, &steps))
        };
        assert_eq!(demonstrate(&[3, 5, 7], 22).as_deref(), Some("5*3=15;15+7=22;#5*3+7"));
        assert_eq!(demonstrate(&[3, 5, 7], 12).as_deref(), Some("7+5=12;#7+5"));
        assert_eq!(
            demonstrate(&[2, 3, 4, 5], 45).as_deref(),
            Some("3+2=5;5+4=9;9*5=45;#(3+2+4)*5")
        );
        assert_eq!(demonstrate(&[2, 2], 5), None);
        assert_eq!(demonstrate(&[1, 1, 1, 1, 1, 1], 999), None);
    }

    #[test]
    fn brackets_keep_the_value_of_the_steps() {
        let grader = graders::countdown::Countdown;
        let task = Countdown::new(
            CountdownSettings { min_numbers: 2, max_numbers: 5, largest: 12, ..Default::default() },
            4,
        )
        .unwrap();
        for index in 0..1000 {
            let problem = task.problem(Split::Train, index).unwrap();
            let solution = problem.solution.unwrap();
            assert_eq!(grader.grade(&solution, &problem.answer).score, 1.0, "{solution}");
            // Every step is right, and every step is needed.
            assert_eq!(solution.matches(';').count() as u32, problem.level);
            for step in solution.split('#').next().unwrap().split_terminator(';') {
                let (left, right) = step.split_once('=').unwrap();
                let evaluated = graders::expression::evaluate(left).unwrap().value;
                assert_eq!(
                    evaluated,
                    graders::number::Rational::integer(right.parse().unwrap()),
                    "{step}"
                );
            }
        }
    }

    #[test]
    fn numbers_in_another_order_stay_in_their_split() {
        let task =
            Countdown::new(CountdownSettings { max_numbers: 3, ..Default::default() }, 1).unwrap();
        let sorted = |split: Split, count: u64| -> HashSet<(Vec<u64>, u64)> {
            (0..count)
                .map(|index| {
                    let problem = task.problem(split, index).unwrap();
                    let (mut numbers, target) =
                        graders::countdown::parse_problem(&problem.answer).unwrap();
                    numbers.sort_unstable();
                    (numbers, target)
                })
                .collect()
        };
        assert!(sorted(Split::HeldOut, 3000).is_disjoint(&sorted(Split::Train, 20_000)));
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let default = CountdownSettings::default;
        for (settings, name) in [
            (CountdownSettings { min_numbers: 1, ..default() }, "min_numbers"),
            (CountdownSettings { max_numbers: 7, ..default() }, "max_numbers"),
            (CountdownSettings { smallest: 21, ..default() }, "smallest"),
            (CountdownSettings { max_target: 1000, ..default() }, "max_target"),
            (CountdownSettings { largest: 2, min_target: 90, ..default() }, "too few problems"),
        ] {
            let message = Countdown::new(settings, 0).err().unwrap().to_string();
            assert!(message.contains(name), "{message}");
        }
    }
}
