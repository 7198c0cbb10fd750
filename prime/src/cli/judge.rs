//! What `prime eval` does with implicit PRMs: best-of-N, and ProcessBench.

use std::fmt::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use prime_model::{ChatTemplate, Message, Tokenizer};
use prime_runtime::{DType, Device};
use serde::Serialize;

use super::files::{self, Output};
use super::{models, values};
use crate::best_of::{Baselines, Row, rank};
use crate::config::Config;
use crate::evaluate::{Estimate, Graded};
use crate::process_bench::{self, Found, Scored, Signal};
use crate::prompts::Prompts;
use crate::run::progress::Progress;
use crate::score::{Scorer, Sequence};
use crate::steps::{Judge, encode_steps, step_ends, step_rewards};
use crate::tasks::Split;

/// Flags of implicit PRMs that judge.
#[derive(Args)]
pub(super) struct JudgeArgs {
    /// Rank N samples of each problem by --prm: how often the best is right, beside a sample, the majority, and any of them
    #[arg(long, value_name = "N", requires = "prm", conflicts_with = "samples", value_parser = clap::value_parser!(u32).range(2..=1 << 16))]
    pub(super) best_of: Option<u32>,
    /// Model folder of an implicit PRM with the model's tokenizer, or the folder of a run that trained one; may be repeated
    #[arg(long, value_name = "DIR")]
    pub(super) prm: Vec<PathBuf>,
    /// Model folder of the PRMs' reference [default: none, the PRM's log-probabilities alone]
    #[arg(long = "ref", value_name = "DIR", requires = "prm")]
    reference: Option<PathBuf>,
    /// Scale of the log-ratios, as the PRM was trained with
    #[arg(long, value_name = "F", default_value = "0.05", allow_negative_numbers = true, value_parser = values::beta)]
    beta: f64,
    /// The text that ends a step of a response; \n is a new line, and empty makes every token a step
    #[arg(long, value_name = "TEXT", default_value = "\\n", allow_hyphen_values = true, value_parser = values::separator)]
    separator: String,
    /// Find the first wrong step of worked solutions by --prm: a file in ProcessBench's form (problem, steps, label), JSON or JSON Lines
    #[arg(long, value_name = "FILE", requires = "prm", conflicts_with_all = ["model", "task", "data", "best_of", "samples", "problems"])]
    pub(super) processbench: Option<PathBuf>,
    /// With --processbench: the problem is a user's message, to be put in the PRM's chat template [default: task.jsonl.template]
    #[arg(long, requires = "processbench")]
    processbench_chat: bool,
}

impl JudgeArgs {
    /// The PRMs by their folders, each with the reference.
    fn judge(
        &self,
        folder: &Path,
        tokenizer: &Tokenizer,
        device: Device,
        dtype: DType,
    ) -> Result<Judge> {
        let load = |folder: &Path| -> Result<Scorer> {
            tokenizer.check_same(&models::tokenizer(folder)?)?;
            Scorer::new(models::load(folder, None, tokenizer, device, dtype)?)
        };
        let reference = match &self.reference {
            None => None,
            Some(reference) => Some(load(&models::of_run_or_itself(reference)?)?),
        };
        Ok(Judge::new(load(&models::prm_of_run_or_itself(folder)?)?, reference, self.beta))
    }
}

/// How the samples of an evaluation fare under one PRM.
#[derive(Serialize)]
pub(super) struct Ranking {
    prm: String,
    samples: usize,
    /// Problems whose longest sample is too long for the PRM.
    left_out: usize,
    baselines: Baselines,
    rows: Vec<Row>,
}

/// Ranks the samples of every problem by every PRM.
pub(super) fn rankings(
    args: &JudgeArgs,
    config: &Config,
    prompts: &Prompts,
    split: Split,
    graded: &[Graded],
) -> Result<Vec<Ranking>> {
    let tokenizer = prompts.tokenizer();
    let mut rankings = Vec::with_capacity(args.prm.len());
    for prm in &args.prm {
        let mut judge = args.judge(prm, tokenizer, config.device(), config.dtype())?;
        let mut progress = Progress::new("score", graded.len() as u64, 0);
        let (mut kept, mut with, mut alone) = (Vec::new(), Vec::new(), Vec::new());
        for (i, entry) in graded.iter().enumerate() {
            let prompt =
                prompts.prompt(split, entry.index)?.context("a graded problem's prompt")?;
            let sequences: Vec<Sequence> = entry
                .tokens
                .iter()
                .map(|tokens| Sequence::response(prompt.tokens.to_vec(), tokens))
                .collect();
            if sequences.iter().any(|sequence| sequence.tokens.len() > judge.longest()) {
                continue;
            }
            let rewards = judge.rewards(&sequences)?;
            let (mut of_problem, mut of_problem_alone) = (Vec::new(), Vec::new());
            for (tokens, rewards) in entry.tokens.iter().zip(&rewards) {
                let ends = step_ends(tokenizer, tokens, &args.separator)?;
                if let Some(rewards) = &rewards.with_reference {
                    of_problem.push(step_rewards(rewards, &ends));
                }
                of_problem_alone.push(step_rewards(&rewards.alone, &ends));
            }
            let finite = |steps: &Vec<f64>| steps.iter().all(|x| x.is_finite());
            ensure!(
                of_problem.iter().chain(&of_problem_alone).all(finite),
                "{} gives a log-probability that is not finite",
                prm.display()
            );
            with.push(of_problem);
            alone.push(of_problem_alone);
            kept.push(entry.clone());
            progress.step(i as u64 + 1, "problems");
        }
        progress.finish();
        ensure!(
            !kept.is_empty(),
            "no problem's samples fit the PRM {}, made for sequences of up to {} tokens",
            prm.display(),
            judge.longest()
        );
        let mut rows = Vec::new();
        if args.reference.is_some() {
            rows.extend(rank(&kept, &with, true, config.seed));
        }
        rows.extend(rank(&kept, &alone, false, config.seed));
        rankings.push(Ranking {
            prm: prm.display().to_string(),
            samples: kept[0].scores.len(),
            left_out: graded.len() - kept.len(),
            baselines: Baselines::of(&kept, config.seed),
            rows,
        });
    }
    Ok(rankings)
}

impl fmt::Display for Ranking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.samples;
        writeln!(f, "\nbest of {n} by {}", self.prm)?;
        if self.left_out > 0 {
            writeln!(f, "{} problems were left out: samples are too long for it", self.left_out)?;
        }
        let shown = |Estimate { mean, low, high }: Estimate| {
            format!("{:.1} | {:.1} to {:.1}", 100.0 * mean, 100.0 * low, 100.0 * high)
        };
        writeln!(f, "\n| measure | % | 95 % interval |\n|---|---|---|")?;
        writeln!(f, "| pass@1 | {} |", shown(self.baselines.pass_at_1))?;
        writeln!(f, "| maj@{n} | {} |", shown(self.baselines.majority))?;
        writeln!(f, "| pass@{n}, any of them | {} |", shown(self.baselines.oracle))?;
        writeln!(
            f,
            "\n| score | reference | best-of-{n} % | 95 % interval | weighted maj@{n} % | 95 % interval |\n|---|---|---|---|---|---|"
        )?;
        for row in &self.rows {
            writeln!(
                f,
                "| {} | {} | {} | {} |",
                row.aggregate,
                if row.reference { "with" } else { "without" },
                shown(row.best),
                shown(row.weighted_majority)
            )?;
        }
        Ok(())
    }
}

/// What is printed of ProcessBench under one PRM.
#[derive(Serialize)]
struct BenchReport {
    file: String,
    prm: String,
    reference: bool,
    solutions: usize,
    /// With a wrong step.
    wrong: usize,
    /// Solutions too long for the models.
    left_out: usize,
    found: Vec<Found>,
}

/// A line of the details.
#[derive(Serialize)]
struct Detail<'a> {
    prm: &'a str,
    id: &'a str,
    label: i64,
    step_rewards: Vec<f64>,
    predicted: Vec<(Signal, i64)>,
}

/// Finds the first wrong steps of worked solutions by every PRM.
pub(super) fn process_bench(
    args: &JudgeArgs,
    config: &Config,
    file: &Path,
    output: Option<&Path>,
    json: bool,
) -> Result<()> {
    let shown = file.display();
    let solutions = process_bench::read(file)?;
    let mut details = output.map(Output::create).transpose()?;
    let mut printed = String::new();
    for prm in &args.prm {
        let folder = models::prm_of_run_or_itself(prm)?;
        let tokenizer = models::tokenizer(&folder)?;
        let chat = if args.processbench_chat { Some(ChatTemplate::load(&folder)?) } else { None };
        let mut judge = args.judge(prm, &tokenizer, config.device(), config.dtype())?;
        let mut progress = Progress::new("score", solutions.len() as u64, 0);
        let (mut kept, mut rewards) = (Vec::new(), Vec::new());
        for (i, solution) in solutions.iter().enumerate() {
            let prompt = match &chat {
                None => {
                    let template = &config.task.jsonl.source.template;
                    tokenizer.encode(&template.replace("{prompt}", &solution.problem), true)?
                }
                Some(chat) => {
                    let turns = [Message::new("user", &*solution.problem)];
                    tokenizer.encode(&chat.render(&turns, true)?, false)?
                }
            };
            ensure!(!prompt.is_empty(), "solution {}: the problem has no tokens", i + 1);
            let (tokens, ends) = encode_steps(&tokenizer, &solution.steps, &args.separator)?;
            let sequence = Sequence::response(prompt, &tokens);
            progress.step(i as u64 + 1, "solutions");
            if sequence.tokens.len() > judge.longest() {
                continue;
            }
            let [of_tokens] = &judge.rewards(&[sequence])?[..] else {
                anyhow::bail!("one sequence was scored, and not one came back")
            };
            let of_tokens = of_tokens.with_reference.as_ref().unwrap_or(&of_tokens.alone);
            ensure!(
                of_tokens.iter().all(|x| x.is_finite()),
                "solution {}: a log-probability is not finite",
                i + 1
            );
            kept.push(solution);
            rewards.push((of_tokens.clone(), ends));
        }
        progress.finish();
        ensure!(
            !kept.is_empty(),
            "no solution of {shown} fits the models, made for sequences of up to {} tokens",
            judge.longest()
        );
        let mut found = Vec::new();
        let mut predicted = vec![Vec::new(); kept.len()];
        for &signal in Signal::ALL {
            let scored: Vec<Scored<'_>> = kept
                .iter()
                .zip(&rewards)
                .map(|(solution, (rewards, ends))| Scored {
                    solution,
                    scores: signal.scores(rewards, ends),
                })
                .collect();
            let of_signal = process_bench::find(signal, &scored)?;
            for (scored, predicted) in scored.iter().zip(&mut predicted) {
                predicted.push((signal, as_label(scored.predicted(of_signal.threshold))));
            }
            found.push(of_signal);
        }
        let name = prm.display().to_string();
        if let Some(details) = &mut details {
            for ((solution, (rewards, ends)), predicted) in kept.iter().zip(&rewards).zip(predicted)
            {
                details.line(&Detail {
                    prm: &name,
                    id: &solution.id,
                    label: as_label(solution.first_wrong),
                    step_rewards: step_rewards(rewards, ends),
                    predicted,
                })?;
            }
        }
        let report = BenchReport {
            file: shown.to_string(),
            prm: name,
            reference: args.reference.is_some(),
            solutions: kept.len(),
            wrong: kept.iter().filter(|solution| solution.first_wrong.is_some()).count(),
            left_out: solutions.len() - kept.len(),
            found,
        };
        if json {
            writeln!(printed, "{}", serde_json::to_string(&report)?)?;
        } else {
            write!(printed, "{report}")?;
        }
    }
    files::print(printed)?;
    details.map_or(Ok(()), Output::finish)
}

fn as_label(step: Option<usize>) -> i64 {
    step.map_or(-1, |step| step as i64)
}

impl fmt::Display for BenchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} solutions, {} of them with a wrong step, by {} {} a reference",
            self.file,
            self.solutions,
            self.wrong,
            self.prm,
            if self.reference { "against" } else { "without" }
        )?;
        if self.left_out > 0 {
            writeln!(f, "{} solutions were left out: they are too long", self.left_out)?;
        }
        writeln!(
            f,
            "\n| signal | F1 | right solutions % | wrong solutions % | threshold | F1 where it was chosen |\n|---|---|---|---|---|---|"
        )?;
        for found in &self.found {
            writeln!(
                f,
                "| {} | {:.3} | {:.1} | {:.1} | {:.6} | {:.3} |",
                found.signal,
                found.f1,
                100.0 * found.right,
                100.0 * found.wrong,
                found.threshold,
                found.chosen_f1
            )?;
        }
        Ok(())
    }
}
