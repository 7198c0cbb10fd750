//! Tasks: where problems come from and how responses to them are graded.
//!
//! A problem is a pure function of the task's settings, its seed, the split and an index: training resumes at an index
//! without any state, and a sample does not depend on which problems were drawn before it.
//!
//! What is held out is decided by the text of a prompt alone, not by the seed or the index: a prompt that evaluation
//! may show is never shown by SFT or RL, whatever seeds and lengths they use.

pub mod arithmetic;
pub mod columns;
pub mod countdown;
mod generated;
pub mod jsonl;
pub mod published;
pub mod worked;

use std::ops::Range;

use anyhow::{Result, bail};
use prime_model::Message;
use serde::{Deserialize, Serialize};

use crate::graders::{Grade, nearest};

pub use arithmetic::{Arithmetic, ArithmeticSettings};
pub use columns::{Columns, ColumnsSettings};
pub use countdown::{Countdown, CountdownSettings};
pub use jsonl::{Jsonl, JsonlSettings};

/// One problem.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problem {
    /// Its index within its split.
    pub id: u64,
    /// What the model is given; of a conversation, its last message.
    pub prompt: String,
    /// The conversation that the model is given through its chat template; empty where `prompt` is all.
    pub messages: Vec<Message>,
    /// The reference answer, in the form that the task's grader reads.
    pub answer: String,
    /// A worked response for SFT; `None` where a data set has none.
    pub solution: Option<String>,
    /// How long the problem's solution is, for figures by difficulty: operations of a generated task, 0 for data sets.
    pub level: u32,
    /// Which of the task's groups it belongs to (see [`Task::group`]).
    pub group: u32,
}

/// What training problems are drawn for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Demonstrations, with worked solutions.
    Sft,
    /// Rollouts, which are graded.
    Rl,
}

/// Training problems that are drawn in a proportion of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which of the training problems.
    pub problems: Range<u64>,
    /// How many draws of them make an epoch.
    pub draws: u64,
}

/// Which problems: those to train on, or those never trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// For SFT and RL.
    Train,
    /// For evaluation only.
    HeldOut,
}

impl Split {
    /// The split of a text when one in `one_in` is held out.
    pub fn of(text: &str, one_in: u32) -> Split {
        if hash(text).is_multiple_of(u64::from(one_in.max(1))) {
            Split::HeldOut
        } else {
            Split::Train
        }
    }
}

/// A hash of a text that is the same on every machine and in every version: FNV-1a, then a mixer, since the low bits
/// of FNV alone depend on few bits of the text.
fn hash(text: &str) -> u64 {
    let mut state: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in text.bytes() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    state = (state ^ (state >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    state = (state ^ (state >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    state ^ (state >> 32)
}

/// A source of problems with its grader.
pub trait Task: Send + Sync {
    /// The name, for reports and metrics.
    fn name(&self) -> &str;

    /// The number of problems of a split; `None` when there is no end to them.
    fn len(&self, split: Split) -> Option<u64>;

    /// Whether a split has no problems.
    fn is_empty(&self, split: Split) -> bool {
        self.len(split) == Some(0)
    }

    /// The problem of an index; `None` past the end. A pure function: the same index gives the same problem.
    /// Indices of a generated task are independent draws, so short problems may recur within a split.
    fn problem(&self, split: Split, index: u64) -> Option<Problem>;

    /// Grades a response. `finished` says that it ended by itself and was not cut off at the limit of its length.
    fn grade(&self, problem: &Problem, response: &str, finished: bool) -> Grade;

    /// How a finite training set is drawn from; a part with as many draws as problems shows each once an epoch. Empty for an endless task.
    /// Problems for SFT alone have indices past the end of the split.
    fn shares(&self, _purpose: Purpose) -> Vec<Share> {
        let share = |count| Share { problems: 0..count, draws: count };
        self.len(Split::Train).map(share).into_iter().collect()
    }

    /// The name of the part of the data that a problem belongs to, and its grader, where the task names them.
    fn group(&self, _problem: &Problem) -> (&str, Option<&str>) {
        ("", None)
    }

    /// What became of each source of a data set.
    fn parts(&self) -> &[jsonl::Part] {
        &[]
    }

    /// The grades of all responses to a problem, in order. Each comes with whether it ended by itself.
    fn grade_group(&self, problem: &Problem, responses: &[(&str, bool)]) -> Vec<Grade> {
        responses.iter().map(|&(text, finished)| self.grade(problem, text, finished)).collect()
    }

    /// Whether [`Task::grade_group`] compares the responses with each other.
    fn compares(&self) -> bool {
        false
    }

    /// The task as one of worked solutions that can be checked and spoilt, where it is one.
    fn worked(&self) -> Option<&dyn worked::Worked> {
        None
    }

    /// Checks that what grading needs of the machine is there.
    ///
    /// # Errors
    /// A sentence about what is missing.
    fn ready(&self) -> Result<()> {
        Ok(())
    }

    /// Whether grading a response takes so long that several are worth grading at once.
    fn is_slow(&self) -> bool {
        false
    }

    /// The characters of prompts and responses, for a task that brings its own character tokenizer; `None` for texts
    /// that need a model's tokenizer.
    fn alphabet(&self) -> Option<&str>;

    /// The most characters a prompt has, where that is known.
    fn longest_prompt(&self) -> Option<usize>;

    /// The most characters a solution has, where that is known.
    fn longest_solution(&self) -> Option<usize>;

    /// What a person should know about how the data were read, such as duplicates removed; one sentence each.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The settings of a task: `name` chooses which, the other keys are its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum TaskSettings {
    /// Chains of arithmetic, worked step by step.
    Arithmetic(ArithmeticSettings),
    /// Addition of numbers of several digits, column by column.
    Columns(ColumnsSettings),
    /// Reaching a target from given numbers.
    Countdown(CountdownSettings),
    /// Problems read from files.
    Jsonl(Box<JsonlSettings>),
}

/// The names of the tasks.
pub const NAMES: &[&str] = &["arithmetic", "columns", "countdown", "jsonl"];

impl TaskSettings {
    /// The default settings of a task of this name.
    pub fn by_name(name: &str) -> Result<TaskSettings> {
        Ok(match name {
            "arithmetic" => TaskSettings::Arithmetic(ArithmeticSettings::default()),
            "columns" => TaskSettings::Columns(ColumnsSettings::default()),
            "countdown" => TaskSettings::Countdown(CountdownSettings::default()),
            "jsonl" => TaskSettings::Jsonl(Box::default()),
            _ => {
                let hint = match nearest(name, NAMES.iter().copied()) {
                    Some(near) => format!("; did you mean {near:?}?"),
                    None => String::new(),
                };
                bail!("there is no task {name:?}{hint} The tasks are {}.", NAMES.join(", "));
            }
        })
    }

    /// The task of these settings. The seed decides which problems a generated task draws, not which are held out.
    pub fn build(&self, seed: u64) -> Result<Box<dyn Task>> {
        Ok(match self {
            TaskSettings::Arithmetic(settings) => {
                Box::new(Arithmetic::new(settings.clone(), seed)?)
            }
            TaskSettings::Columns(settings) => Box::new(Columns::new(settings.clone(), seed)?),
            TaskSettings::Countdown(settings) => Box::new(Countdown::new(settings.clone(), seed)?),
            TaskSettings::Jsonl(settings) => Box::new(Jsonl::load(settings)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_split_of_a_text_never_changes() {
        // Runs of different versions must agree on what is held out: values of a second implementation.
        assert_eq!(hash(""), 0x2180_a923_50d4_9cce);
        assert_eq!(hash("(9-8)*5+9-3+8:"), 0x19b5_4f67_3b06_8d7d);
        let held_out: Vec<u32> =
            (0..100).filter(|i| Split::of(&format!("1+{i}:"), 16) == Split::HeldOut).collect();
        assert_eq!(held_out, [4, 38, 44, 46, 58, 90, 91]);
    }

    #[test]
    fn one_text_in_so_many_is_held_out() {
        let held_out =
            (0..64_000).filter(|i| Split::of(&format!("{i}*7-2:"), 16) == Split::HeldOut).count();
        // Binomial with n = 64,000 and p = 1/16: mean 4000, standard deviation 61.
        assert!(held_out.abs_diff(4000) < 4 * 61, "{held_out}");
    }

    #[test]
    fn no_held_out_prompt_is_ever_a_training_prompt() {
        for name in ["arithmetic", "columns", "countdown"] {
            let settings = TaskSettings::by_name(name).unwrap();
            let evaluated = settings.build(1).unwrap();
            let held_out: HashSet<String> =
                (0..3000).map(|i| evaluated.problem(Split::HeldOut, i).unwrap().prompt).collect();
            for seed in [1, 2] {
                let trained = settings.build(seed).unwrap();
                for index in 0..20_000 {
                    let problem = trained.problem(Split::Train, index).unwrap();
                    assert!(!held_out.contains(&problem.prompt), "{name}: {}", problem.prompt);
                }
            }
        }
    }

    #[test]
    fn generated_problems_are_solved_by_their_solutions_within_the_stated_bounds() {
        for name in ["arithmetic", "columns", "countdown"] {
            let task = TaskSettings::by_name(name).unwrap().build(9).unwrap();
            let alphabet = task.alphabet().unwrap();
            for split in [Split::Train, Split::HeldOut] {
                for index in 0..2000 {
                    let problem = task.problem(split, index).unwrap();
                    assert_eq!(task.problem(split, index).unwrap(), problem);
                    let solution = problem.solution.clone().unwrap();
                    assert_eq!(task.grade(&problem, &solution, true).score, 1.0, "{problem:?}");
                    assert_eq!(task.grade(&problem, &solution, false).score, 0.0);
                    assert!(problem.prompt.len() <= task.longest_prompt().unwrap(), "{problem:?}");
                    assert!(solution.len() <= task.longest_solution().unwrap(), "{problem:?}");
                    assert!(
                        problem
                            .prompt
                            .chars()
                            .chain(solution.chars())
                            .all(|c| alphabet.contains(c))
                    );
                }
            }
        }
    }

    #[test]
    fn another_seed_draws_other_problems() {
        let settings = TaskSettings::by_name("arithmetic").unwrap();
        let (a, b) = (settings.build(1).unwrap(), settings.build(2).unwrap());
        let same =
            (0..200).filter(|&i| a.problem(Split::Train, i) == b.problem(Split::Train, i)).count();
        assert!(same < 20, "{same}");
    }

    #[test]
    fn an_unknown_task_is_refused_with_the_nearest_name() {
        let message = TaskSettings::by_name("aritmetic").unwrap_err().to_string();
        assert!(message.contains("did you mean \"arithmetic\"?"), "{message}");
    }
}
