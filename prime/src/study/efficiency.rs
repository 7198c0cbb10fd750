//! `prime study efficiency`: PRIME against RL on outcomes alone, from one SFT start for each seed.
//!
//! Each seed is a run of [`crate::run::train`] with its comparison in a folder of its own: SFT, the PRM's warm-up, PRIME, then
//! outcome-only RL for as many batches as PRIME sampled. What is said of them is read from the runs' own records. The training reward
//! is the accuracy of all responses that a batch sampled, before the filter, averaged over the last [`WINDOW`] batches.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use super::statistics::{OverRuns, mean};
use super::table::{Table, share, shown};

/// Batches over which the training reward is averaged.
pub const WINDOW: usize = 10;

/// The phases of a step, as the metrics name them.
const PHASES: [&str; 5] = ["rollout", "grade", "reference", "prm", "policy"];

/// One point of a held-out evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Policy updates, counted in batches.
    pub step: u64,
    /// Samples drawn for training until then, the PRM's warm-up included.
    pub samples: u64,
    /// Mean score of a sample.
    pub accuracy: f64,
    /// Score at temperature 0.
    pub greedy: f64,
}

/// What one RL loop of one seed did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Course {
    /// The training reward of each batch that updated the policy.
    pub reward: Vec<f64>,
    /// Mean tokens of a response, likewise.
    pub length: Vec<f64>,
    /// Seconds of each of these batches.
    pub seconds: Vec<f64>,
    /// Seconds that processors worked for each of these, which other work on the machine does not lengthen; empty where a run did not record them.
    pub processor: Vec<f64>,
    /// Mean seconds of a batch by phase.
    pub phases: BTreeMap<String, f64>,
    /// Batches before the first policy update, which trained the PRM alone.
    pub warmup_batches: usize,
    /// Seconds of these.
    pub warmup_seconds: f64,
    /// Processors' seconds of these.
    pub warmup_processor: f64,
    /// Held-out evaluations in the order of steps, the start first.
    pub evaluations: Vec<Evaluation>,
}

impl Course {
    /// The training reward averaged over the window that ends at each batch; shorter windows at the beginning.
    pub fn smoothed(&self) -> Vec<f64> {
        (1..=self.reward.len())
            .map(|end| mean(&self.reward[end.saturating_sub(WINDOW)..end]).unwrap_or(0.0))
            .collect()
    }

    /// The training reward over the last window of the first `steps` batches.
    pub fn reward_at(&self, steps: usize) -> Option<f64> {
        mean(self.reward.get(steps.saturating_sub(WINDOW)..steps)?)
    }

    /// The first step whose smoothed training reward reaches `level`.
    pub fn steps_to(&self, level: f64) -> Option<usize> {
        // A window that is not full yet is too noisy to have reached anything.
        let full = WINDOW.min(self.reward.len());
        self.smoothed()
            .iter()
            .enumerate()
            .skip(full.saturating_sub(1))
            .find(|(_, reward)| **reward >= level)
            .map(|(index, _)| index + 1)
    }

    /// Seconds from the start, warm-up included, to the end of a step.
    pub fn seconds_to(&self, step: usize) -> f64 {
        self.warmup_seconds + self.seconds[..step.min(self.seconds.len())].iter().sum::<f64>()
    }

    /// As [`Course::seconds_to`], of processors' time; none where it was not recorded.
    pub fn processor_to(&self, step: usize) -> Option<f64> {
        Some(self.warmup_processor + self.processor.get(..step)?.iter().sum::<f64>())
    }

    fn evaluation(&self, step: u64) -> Option<&Evaluation> {
        self.evaluations.iter().find(|evaluation| evaluation.step == step)
    }
}

/// Both loops of one seed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SeedCourses {
    /// The run's seed.
    pub seed: u64,
    /// The SFT model's held-out accuracy.
    pub start: f64,
    /// PRIME.
    pub prime: Course,
    /// RL on outcomes alone.
    pub outcome_only: Course,
}

impl SeedCourses {
    /// Reads what a complete run recorded.
    ///
    /// # Errors
    /// When the folder has no metrics, or they are not those of such a run.
    pub fn read(folder: &Path, seed: u64) -> Result<SeedCourses> {
        let path = folder.join("metrics.jsonl");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let lines: Vec<Value> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Self::of(&lines, seed)
            .with_context(|| format!("{} is not of a whole run with a comparison", path.display()))
    }

    fn of(lines: &[Value], seed: u64) -> Option<SeedCourses> {
        let start = evaluations(lines, "start").into_iter().next()?;
        let mut prime = course(lines, "prime");
        let mut outcome_only = course(lines, "outcome_only");
        let warmup: Vec<&Value> = of_stage(lines, "prm_warmup").collect();
        prime.warmup_batches = warmup.len();
        let sum = |name: &str| warmup.iter().filter_map(|line| line.get(name)?.as_f64()).sum();
        prime.warmup_seconds = sum("seconds/step");
        prime.warmup_processor = sum("processor/seconds");
        for course in [&mut prime, &mut outcome_only] {
            course.evaluations.insert(0, start.clone());
        }
        let whole = !prime.reward.is_empty() && !outcome_only.reward.is_empty();
        whole.then_some(SeedCourses { seed, start: start.accuracy, prime, outcome_only })
    }
}

fn of_stage<'a>(lines: &'a [Value], stage: &'a str) -> impl Iterator<Item = &'a Value> {
    lines.iter().filter(move |line| line.get("stage").and_then(Value::as_str) == Some(stage))
}

fn course(lines: &[Value], stage: &str) -> Course {
    let column = |name: &str| -> Vec<f64> {
        of_stage(lines, stage).filter_map(|line| line.get(name)?.as_f64()).collect()
    };
    let phases = PHASES
        .iter()
        .filter_map(|phase| Some((phase.to_string(), mean(&column(&format!("seconds/{phase}")))?)));
    Course {
        reward: column("reward/accuracy"),
        length: column("response/length"),
        seconds: column("seconds/step"),
        processor: column("processor/seconds"),
        phases: phases.collect(),
        warmup_batches: 0,
        warmup_seconds: 0.0,
        warmup_processor: 0.0,
        evaluations: evaluations(lines, stage),
    }
}

fn evaluations(lines: &[Value], stage: &str) -> Vec<Evaluation> {
    of_stage(lines, "eval")
        .filter_map(|line| {
            let value = |name: &str| line.get(format!("{stage}/{name}"))?.as_f64();
            Some(Evaluation {
                step: line.get("step")?.as_u64()?,
                samples: value("samples")? as u64,
                accuracy: value("mean_score")?,
                greedy: value("greedy")?,
            })
        })
        .collect()
}

/// One line of the result: a quantity over seeds, and what the paper says of it where it says something.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// What it is.
    pub name: &'static str,
    /// In what.
    pub unit: &'static str,
    /// Over the seeds for which it is defined; none where it is defined for none.
    pub value: Option<OverRuns>,
    /// Seeds for which it is not defined, such as those whose PRIME never reached the level.
    pub undefined: usize,
    /// What arXiv 2502.01456 reports of its own setting.
    pub paper: Option<&'static str>,
}

/// What all seeds say together.
pub fn findings(seeds: &[SeedCourses]) -> Vec<Finding> {
    let over = |name, unit, paper, value: &dyn Fn(&SeedCourses) -> Option<f64>| {
        let values: Vec<f64> = seeds.iter().filter_map(value).collect();
        let undefined = seeds.len() - values.len();
        Finding { name, unit, value: OverRuns::of(&values), undefined, paper }
    };
    let steps = |seed: &SeedCourses| seed.prime.reward.len().min(seed.outcome_only.reward.len());
    let final_reward = |seed: &SeedCourses| {
        seed.outcome_only.reward_at(steps(seed)).map(|level| (level, steps(seed)))
    };
    let reach = |seed: &SeedCourses| {
        let (level, _) = final_reward(seed)?;
        Some((seed.prime.steps_to(level)?, seed.outcome_only.steps_to(level)?))
    };
    let held_out = |seed: &SeedCourses| {
        let step = steps(seed) as u64;
        let prime = seed.prime.evaluation(step)?.accuracy;
        Some((prime, seed.outcome_only.evaluation(step)?.accuracy))
    };
    let at_equal_rollouts = |seed: &SeedCourses| {
        let prime = seed.prime.evaluations.last()?;
        let other = seed.outcome_only.evaluations.iter().find(|e| e.samples >= prime.samples)?;
        Some(prime.accuracy - other.accuracy)
    };
    vec![
        over("held-out accuracy of the SFT start", "%", None, &|seed| Some(100.0 * seed.start)),
        over("held-out accuracy after PRIME", "%", None, &|seed| Some(100.0 * held_out(seed)?.0)),
        over("held-out accuracy after outcome-only RL, equal steps", "%", None, &|seed| {
            Some(100.0 * held_out(seed)?.1)
        }),
        over(
            "PRIME over its SFT start, held-out accuracy",
            "points",
            Some("+15.1 points over SFT, mean of seven benchmarks"),
            &|seed| Some(100.0 * (held_out(seed)?.0 - seed.start)),
        ),
        over(
            "PRIME over outcome-only, held-out accuracy at equal steps",
            "points",
            None,
            &|seed| {
                let (prime, other) = held_out(seed)?;
                Some(100.0 * (prime - other))
            },
        ),
        over(
            "PRIME over outcome-only, held-out accuracy at equal rollouts",
            "points",
            None,
            &|seed| Some(100.0 * at_equal_rollouts(seed)?),
        ),
        over(
            "PRIME over outcome-only, final training reward at equal steps",
            "% of outcome-only's",
            Some("+6.9 %"),
            &|seed| {
                let (level, steps) = final_reward(seed)?;
                Some(100.0 * (seed.prime.reward_at(steps)? / level - 1.0))
            },
        ),
        over(
            "PRIME's steps to outcome-only's final training reward",
            "% of outcome-only's steps to it",
            Some("40 % of the steps"),
            &|seed| {
                let (prime, other) = reach(seed)?;
                Some(100.0 * prime as f64 / other as f64)
            },
        ),
        over(
            "the same in seconds, the PRM's warm-up included",
            "% of outcome-only's seconds to it",
            Some("about half the wall clock"),
            &|seed| {
                let (prime, other) = reach(seed)?;
                let other = seed.outcome_only.seconds_to(other);
                Some(100.0 * seed.prime.seconds_to(prime) / other)
            },
        ),
        over(
            "its processor time to it, the PRM's warm-up included",
            "% of outcome-only's time to it",
            None,
            &|seed| {
                let (prime, other) = reach(seed)?;
                let other = seed.outcome_only.processor_to(other)?;
                Some(100.0 * seed.prime.processor_to(prime)? / other)
            },
        ),
        over(
            "a PRIME step over an outcome-only step",
            "% more time",
            Some("+28 % by its own table; its text says 24 %"),
            &|seed| {
                let (prime, other) =
                    (mean(&seed.prime.seconds)?, mean(&seed.outcome_only.seconds)?);
                Some(100.0 * (prime / other - 1.0))
            },
        ),
        over(
            "a PRIME step over an outcome-only step, processor time",
            "% more time",
            None,
            &|seed| {
                let (prime, other) =
                    (mean(&seed.prime.processor)?, mean(&seed.outcome_only.processor)?);
                Some(100.0 * (prime / other - 1.0))
            },
        ),
    ]
}

/// The tables of a result.
pub(super) fn tables(seeds: &[SeedCourses], findings: &[Finding]) -> Vec<Table> {
    let mut main = Table::new(
        format!(
            "PRIME against RL on outcomes alone from one SFT start, {} seeds; mean and 95 % interval over seeds. The training reward is the \
             accuracy of all sampled responses over the last {WINDOW} batches. A seed has none where PRIME did not reach the level, or what is \
             asked was not recorded.",
            seeds.len()
        ),
        &["quantity", "here", "unit", "the paper, of its setting"],
    );
    for finding in findings {
        let mut value = shown(finding.value, 1.0, 1);
        if finding.undefined > 0 {
            value += &format!(" ({} of {} seeds: none)", finding.undefined, seeds.len());
        }
        let paper = finding.paper.unwrap_or("").to_string();
        main.rows.push(vec![finding.name.into(), value, finding.unit.into(), paper]);
    }
    let mut phases = Table::new(
        "Mean seconds of a batch by phase; mean and 95 % interval over seeds.",
        &["phase", "PRIME", "outcome-only"],
    );
    for phase in PHASES {
        let of = |course: fn(&SeedCourses) -> &Course| {
            let values: Vec<f64> =
                seeds.iter().filter_map(|seed| course(seed).phases.get(phase).copied()).collect();
            share(OverRuns::of(&values), 1.0, 4)
        };
        let row = vec![phase.to_string(), of(|seed| &seed.prime), of(|seed| &seed.outcome_only)];
        phases.rows.push(row);
    }
    vec![main, phases, over_steps(seeds)]
}

/// Held-out accuracy at the steps at which both loops of every seed were evaluated.
fn over_steps(seeds: &[SeedCourses]) -> Table {
    let mut table = Table::new(
        "Held-out accuracy over the policy's steps, in percent; the difference is paired by seed.",
        &["step", "PRIME", "outcome-only", "PRIME - outcome-only"],
    );
    let steps = seeds.first().map_or(&[][..], |seed| &seed.prime.evaluations);
    for step in steps.iter().map(|evaluation| evaluation.step) {
        let pairs: Option<Vec<(f64, f64)>> = seeds
            .iter()
            .map(|seed| {
                let at = |course: &Course| Some(course.evaluation(step)?.accuracy);
                at(&seed.prime).zip(at(&seed.outcome_only))
            })
            .collect();
        let Some(pairs) = pairs else { continue };
        let over = |value: fn(&(f64, f64)) -> f64| {
            OverRuns::of(&pairs.iter().map(value).collect::<Vec<_>>())
        };
        table.rows.push(vec![
            step.to_string(),
            share(over(|pair| pair.0), 100.0, 1),
            share(over(|pair| pair.1), 100.0, 1),
            shown(over(|pair| pair.0 - pair.1), 100.0, 1),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lines(prime: &[f64], outcome_only: &[f64]) -> Vec<Value> {
        let eval = |stage: &str, step: usize, accuracy: f64, samples: usize| {
            json!({
                "stage": "eval", "step": step, format!("{stage}/samples"): samples,
                format!("{stage}/mean_score"): accuracy, format!("{stage}/greedy"): 1.0,
            })
        };
        let batch = |stage: &str, step: usize, reward: f64, seconds: f64| {
            json!({
                "stage": stage, "step": step, "reward/accuracy": reward, "response/length": 20.0,
                "seconds/step": seconds, "seconds/rollout": seconds / 2.0, "processor/seconds": seconds + 1.0,
            })
        };
        let mut lines = vec![eval("start", 0, 0.5, 0)];
        lines.extend((1..=4).map(|step| batch("prm_warmup", step, 0.5, 3.0)));
        lines.extend(prime.iter().enumerate().map(|(i, &r)| batch("prime", i + 1, r, 2.0)));
        let steps = prime.len();
        lines.push(eval("prime", steps, 0.9, 10 * (steps + 4)));
        lines.extend(
            outcome_only.iter().enumerate().map(|(i, &r)| batch("outcome_only", i + 1, r, 1.0)),
        );
        lines.push(eval("outcome_only", steps, 0.8, 10 * steps));
        lines.push(eval("outcome_only", outcome_only.len(), 0.85, 10 * outcome_only.len()));
        lines
    }

    fn finding(findings: &[Finding], start: &str) -> f64 {
        let found = findings.iter().find(|finding| finding.name.starts_with(start)).unwrap();
        found.value.unwrap().mean
    }

    #[test]
    fn a_run_that_learns_twice_as_fast_is_found_to_take_half_the_steps() {
        // Rewards rise in a straight line, twice as steeply under PRIME.
        let prime: Vec<f64> = (1..=40).map(|i| 0.02 * i as f64).collect();
        let other: Vec<f64> = (1..=44).map(|i| 0.01 * i as f64).collect();
        let seed = SeedCourses::of(&lines(&prime, &other), 7).unwrap();
        // Outcome-only's last window of the 40 common steps has mean 0.01 * 35.5; PRIME's window ends there at step 22 or 23.
        assert!((seed.outcome_only.reward_at(40).unwrap() - 0.355).abs() < 1e-12);
        assert_eq!(seed.prime.steps_to(0.355), Some(23));
        assert_eq!(seed.outcome_only.steps_to(0.355 - 1e-9), Some(40));
        assert_eq!(seed.prime.seconds_to(2), 12.0 + 4.0);
        // Processors work 1 more second a batch here: 4 of 4 s in the warm-up, 3 s and 2 s a step.
        assert_eq!(seed.prime.processor_to(2), Some(16.0 + 6.0));
        assert_eq!(seed.prime.processor_to(41), None);
        let found = findings(&[seed]);
        let time = found.iter().find(|f| f.name.ends_with("step, processor time")).unwrap();
        assert!((time.value.unwrap().mean - 50.0).abs() < 1e-9);
        assert!((finding(&found, "PRIME over its SFT start") - 40.0).abs() < 1e-9);
        let lead = finding(&found, "PRIME over outcome-only, held-out accuracy at equal steps");
        assert!((lead - 10.0).abs() < 1e-9);
        let lead = finding(&found, "PRIME over outcome-only, held-out accuracy at equal rollouts");
        assert!((lead - 5.0).abs() < 1e-9);
        assert!((finding(&found, "PRIME's steps to") - 100.0 * 23.0 / 40.0).abs() < 1e-9);
        assert!((finding(&found, "a PRIME step over an outcome-only step") - 100.0).abs() < 1e-9);
    }

    #[test]
    fn held_out_accuracy_is_compared_where_both_were_evaluated() {
        let seed = SeedCourses::of(&lines(&[0.5; 20], &[0.5; 24]), 1).unwrap();
        let table = over_steps(&[seed]);
        let cells = |row: [&str; 4]| row.map(str::to_owned).to_vec();
        assert_eq!(
            table.rows,
            [cells(["0", "50.0", "50.0", "+0.0"]), cells(["20", "90.0", "80.0", "+10.0"])]
        );
    }

    #[test]
    fn a_level_that_is_never_reached_is_counted_and_not_invented() {
        let seed = SeedCourses::of(&lines(&[0.1; 20], &[0.5; 24]), 1).unwrap();
        let found = findings(&[seed]);
        let reach = found.iter().find(|f| f.name.starts_with("PRIME's steps to")).unwrap();
        assert_eq!((reach.value, reach.undefined), (None, 1));
    }

    #[test]
    fn metrics_without_a_comparison_are_refused() {
        let all = lines(&[0.5; 3], &[0.5; 3]);
        let bare: Vec<Value> =
            all.into_iter().filter(|line| line["stage"] != "outcome_only").collect();
        assert_eq!(SeedCourses::of(&bare, 1), None);
    }
}
