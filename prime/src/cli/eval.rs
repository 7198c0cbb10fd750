//! `prime eval`: how often a model is right, with intervals.

use std::fmt::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use prime_kernels::numerics;
use prime_model::{GenerationLimits, Generator};
use prime_runtime::Device;
use serde::Serialize;

use super::files::{self, Output};
use super::judge::{self, JudgeArgs, Ranking};
use super::train::SettingsArgs;
use super::values::{self, Precision, Truncation};
use super::{Failure, in_pool, misuse, models};
use crate::config::{Config, TaskName};
use crate::evaluate::{Estimate, Graded, Settings, Summary, evaluate};
use crate::prompts::Prompts;
use crate::run::progress::Progress;
use crate::tasks::Split;
use crate::trainer::Model;
use crate::{setup, tasks};

/// Evaluate a model on problems it was not trained on
///
/// Draws samples for each problem, grades them, and prints pass@1 (a sample is right), avg@k (its mean score), pass@k (at least one of k is
/// right, unbiased) and maj@k (the answer that most of k give is right), with 95 % intervals over problems by resampling them.
///
/// The problems are those of the configuration's task, or of --data: a file such as GSM8K's test set.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  prime eval --model runs/first
  prime eval --model runs/first/sft/policy --problems 500 --samples 8 --output graded.jsonl
  prime eval --model DIR --data gsm8k/test.jsonl --temperature 0 --max-new-tokens 256
  prime eval --model DIR --data math.jsonl --prompt-field problem --grader math --chat
  prime eval --model DIR --split train --problems 2000 --samples 8 --output rollouts.jsonl
  prime eval --model DIR --best-of 16 --prm PRM --ref DIR --separator ';'
  prime eval --processbench gsm8k.json --prm PRM --ref DIR --separator '\n\n'")]
pub(super) struct EvalArgs {
    /// Model folder (Hugging Face: config.json, safetensors, tokenizer.json), or a run's, whose newest policy is taken
    #[arg(long, value_name = "DIR", required_unless_present = "processbench")]
    model: Option<PathBuf>,
    /// An adapter's folder as PEFT writes it, to stand beside the model (a run with [lora] saves such as its policy, which --model takes too)
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Built-in task, or jsonl; may be repeated [default: the configuration's]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(tasks::NAMES))]
    task: Vec<String>,
    /// A file of problems (JSON Lines, JSON or Parquet), all of them to evaluate on
    #[arg(long, value_name = "FILE", conflicts_with = "task")]
    data: Option<PathBuf>,
    /// The field of the prompt [default: the configuration's, "question"]
    #[arg(long, value_name = "NAME", requires = "data")]
    prompt_field: Option<String>,
    /// The field of the answer [default: the configuration's, "answer"]
    #[arg(long, value_name = "NAME", requires = "data")]
    answer_field: Option<String>,
    /// The mark in the answer's field after which the answer stands; empty takes all of it [default: "####" for gsm8k's graders]
    #[arg(long, value_name = "TEXT", requires = "data")]
    answer_after: Option<String>,
    /// Who grades: a name that `prime grade` takes, such as gsm8k, math or code [default: the configuration's, gsm8k]
    #[arg(long, value_name = "NAME", requires = "data")]
    grader: Option<String>,
    /// The prompt is a user's message: put it in the model's chat template
    #[arg(long, requires = "data")]
    chat: bool,
    /// Which problems
    #[arg(long, value_enum, default_value = "held-out", conflicts_with = "data")]
    split: SplitName,
    #[command(flatten)]
    settings: SettingsArgs,
    /// How many problems; a smaller set is taken whole [default: the configuration's, 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    problems: Option<u32>,
    /// Samples of each [default: the configuration's, 1]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    samples: Option<u32>,
    /// 0 takes the most likely token each time [default: the configuration's, 1]
    #[arg(long, value_name = "T", allow_negative_numbers = true, value_parser = values::temperature)]
    temperature: Option<f32>,
    #[command(flatten)]
    truncation: Truncation,
    /// The most tokens of a response [default: the configuration's rollout.max_new_tokens]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    max_new_tokens: Option<u32>,
    /// Fixes the draws and the intervals [default: the configuration's, 1]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Where to compute: cpu, cuda (the first GPU), cuda:N, or emulated (the GPU's kernels run and checked on the host, slowly) [default: the configuration's, cpu]
    #[arg(long, value_name = "DEVICE", value_parser = values::device)]
    device: Option<Device>,
    /// What the model computes in [default: the configuration's, float32]
    #[arg(long, value_enum)]
    dtype: Option<Precision>,
    #[command(flatten)]
    judge: JudgeArgs,
    /// Write each problem with its samples, scores and answers as JSON Lines, which prime prm reads; of --processbench, each solution
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print the figures as JSON, a line a task
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SplitName {
    /// Never trained on.
    HeldOut,
    /// Those that training draws from.
    Train,
}

impl EvalArgs {
    /// The configuration with the flags over it.
    fn config(&self) -> Result<Config, Failure> {
        let mut config = self.settings.load(&[])?;
        if let Some(data) = &self.data {
            let path = data.to_str().context("the path of --data is not UTF-8").map_err(misuse)?;
            config.task.name = TaskName::Jsonl;
            config.task.jsonl.mix.clear();
            let jsonl = &mut config.task.jsonl.source;
            (jsonl.train, jsonl.test) = (String::new(), path.to_string());
            jsonl.solution_field = String::new();
            let set = |field: &mut String, flag: &Option<String>| {
                if let Some(value) = flag {
                    field.clone_from(value);
                }
            };
            if self.grader.as_ref().is_some_and(|grader| !grader.starts_with("gsm8k")) {
                jsonl.answer_after = String::new();
            }
            set(&mut jsonl.grader, &self.grader);
            set(&mut jsonl.prompt_field, &self.prompt_field);
            set(&mut jsonl.answer_field, &self.answer_field);
            set(&mut jsonl.answer_after, &self.answer_after);
            if self.chat {
                jsonl.chat = true;
                jsonl.template = "{prompt}".to_string();
            }
            if jsonl.grader != tasks::jsonl::BY_SOURCE {
                crate::graders::by_name(&jsonl.grader, &config.grader).map_err(misuse)?;
            }
        }
        let or = |flag: Option<u32>, value: usize| flag.map_or(value, |flag| flag as usize);
        config.eval.problems = or(self.problems, config.eval.problems);
        config.eval.samples = or(self.samples.or(self.judge.best_of), config.eval.samples);
        config.eval.temperature = self.temperature.unwrap_or(config.eval.temperature);
        config.rollout.max_new_tokens = or(self.max_new_tokens, config.rollout.max_new_tokens);
        config.seed = self.seed.unwrap_or(config.seed);
        if let Some(device) = self.device {
            config.device = device.to_string();
        }
        if let Some(dtype) = self.dtype {
            config.model.dtype = dtype.dtype().name().to_string();
        }
        Ok(config)
    }

    fn tasks(&self, config: &Config) -> Vec<TaskName> {
        if self.task.is_empty() {
            return vec![config.task.name];
        }
        let name = |name: &String| match name.as_str() {
            "arithmetic" => TaskName::Arithmetic,
            "columns" => TaskName::Columns,
            "countdown" => TaskName::Countdown,
            _ => TaskName::Jsonl,
        };
        self.task.iter().map(name).collect()
    }
}

pub(super) fn run(args: EvalArgs, threads: Option<usize>) -> Result<(), Failure> {
    let config = args.config()?;
    in_pool(Some(threads.unwrap_or(config.threads)), || Ok(evaluate_tasks(&args, config)?))
}

fn evaluate_tasks(args: &EvalArgs, mut config: Config) -> Result<()> {
    numerics::choose(config.numerics());
    if let Some(file) = &args.judge.processbench {
        let output = args.output.as_deref();
        return judge::process_bench(&args.judge, &config, file, output, args.json);
    }
    let model = args.model.as_ref().context("--model is missing")?;
    let folder = models::of_run_or_itself(model)?;
    let tokenizer = models::tokenizer(&folder)?;
    let mut details = args.output.as_deref().map(Output::create).transpose()?;
    let model = models::load(
        &folder,
        args.adapter.as_deref(),
        &tokenizer,
        config.device(),
        config.dtype(),
    )?;
    let most = model.config.max_position_embeddings;
    let max_new_tokens = config.rollout.max_new_tokens;
    ensure!(
        max_new_tokens < most,
        "a response of up to {max_new_tokens} tokens leaves no room for a prompt: the model was made for sequences of up to {most}; lower --max-new-tokens"
    );
    config.rollout.max_prompt_tokens = most - max_new_tokens;
    let mut text = String::new();
    let split = match args.split {
        SplitName::HeldOut => Split::HeldOut,
        SplitName::Train => Split::Train,
    };
    for task in args.tasks(&config) {
        config.task.name = task;
        let prompts = setup::prompts(&config, Some(&folder))?;
        let (mut report, graded) = evaluate_task(args, &config, &model, &prompts)?;
        if args.judge.best_of.is_some() {
            report.best_of = judge::rankings(&args.judge, &config, &prompts, split, &graded)?;
        }
        if let Some(details) = &mut details {
            for graded in &graded {
                details.line(&Detail::of(&report, &prompts, graded)?)?;
            }
        }
        if args.json {
            writeln!(text, "{}", serde_json::to_string(&report)?)?;
        } else {
            write!(text, "{report}")?;
        }
    }
    // A file that cannot be written must not cost the figures.
    files::print(text)?;
    details.map_or(Ok(()), Output::finish)
}

fn evaluate_task(
    args: &EvalArgs,
    config: &Config,
    model: &Model,
    prompts: &Prompts,
) -> Result<(Report, Vec<Graded>)> {
    let split = match args.split {
        SplitName::HeldOut => Split::HeldOut,
        SplitName::Train => Split::Train,
    };
    let sampling = args.truncation.sampling(config.eval.temperature, config.seed);
    let settings = Settings {
        split,
        problems: config.eval.problems,
        samples: config.eval.samples,
        sampling,
        max_new_tokens: config.rollout.max_new_tokens,
        grading: config.grader.clone(),
    };
    prompts.task().ready()?;
    let count = prompts.task().len(split).unwrap_or(u64::MAX).min(settings.problems as u64);
    let mut longest = 1;
    for index in 0..count {
        let prompt = prompts.prompt(split, index)?;
        longest = longest.max(prompt.map_or(0, |prompt| prompt.tokens.len()));
    }
    let samples = count * settings.samples as u64;
    let slots = config.rollout.slots.min(samples as usize).max(1);
    let limits = GenerationLimits {
        slots,
        positions: longest + settings.max_new_tokens,
        step_tokens: config.rollout.pass_tokens.max(slots),
    };
    let mut generator = Generator::new(&model.config, &model.weights, limits)?;
    let stop = prompts.stop(&model.config);
    let mut progress = Progress::new("eval", samples, 0);
    let (graded, left_out) = evaluate(&mut generator, prompts, &stop, &settings, |done| {
        progress.step(done as u64, "samples");
    })?;
    progress.finish();
    let report = Report {
        task: prompts.task().name().to_string(),
        split: if split == Split::HeldOut { "held-out" } else { "train" },
        temperature: settings.sampling.temperature,
        max_new_tokens: settings.max_new_tokens,
        seed: config.seed,
        best_of: Vec::new(),
        left_out,
        summary: Summary::of(&graded, config.seed),
    };
    Ok((report, graded))
}

/// What is printed of one task.
#[derive(Serialize)]
struct Report {
    task: String,
    split: &'static str,
    temperature: f32,
    max_new_tokens: usize,
    seed: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    best_of: Vec<Ranking>,
    /// Problems whose prompts were too long.
    left_out: usize,
    #[serde(flatten)]
    summary: Summary,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { problems, samples, .. } = self.summary;
        writeln!(
            f,
            "{}: {problems} {} problems, {samples} sample{} each at temperature {}",
            self.task,
            self.split,
            if samples == 1 { "" } else { "s" },
            self.temperature
        )?;
        if self.left_out > 0 {
            writeln!(f, "{} problems were left out: their prompts are too long", self.left_out)?;
        }
        writeln!(f, "\n| measure | % | 95 % interval |\n|---|---|---|")?;
        let mut row = |name: String, Estimate { mean, low, high }: Estimate| {
            writeln!(
                f,
                "| {name} | {:.1} | {:.1} to {:.1} |",
                100.0 * mean,
                100.0 * low,
                100.0 * high
            )
        };
        for &(k, estimate) in &self.summary.pass_at {
            row(format!("pass@{k}"), estimate)?;
            if k == 1 {
                row(format!("avg@{samples}"), self.summary.mean_score)?;
            }
        }
        for &(k, estimate) in &self.summary.majority_at {
            row(format!("maj@{k}"), estimate)?;
        }
        writeln!(
            f,
            "\nresponses: {:.1} tokens on average, {:.1} % cut off at {}",
            self.summary.length,
            100.0 * self.summary.truncated,
            self.max_new_tokens
        )?;
        if self.summary.failures > 0 {
            writeln!(
                f,
                "{} responses could not be graded, and count as wrong here; --output shows why",
                self.summary.failures
            )?;
        }
        if !self.summary.levels.is_empty() {
            let level = |&(level, score, count): &(u32, f64, usize)| {
                format!("{level}: {:.1} % of {count}", 100.0 * score)
            };
            let levels: Vec<String> = self.summary.levels.iter().map(level).collect();
            writeln!(f, "by level: {}", levels.join(", "))?;
        }
        for ranking in &self.best_of {
            write!(f, "{ranking}")?;
        }
        Ok(())
    }
}

/// What is written of one problem.
#[derive(Serialize)]
struct Detail<'a> {
    task: &'a str,
    split: &'a str,
    index: u64,
    level: u32,
    prompt: String,
    answer: String,
    scores: &'a [f32],
    extracted: &'a [Option<String>],
    lengths: &'a [usize],
    finished: &'a [bool],
    texts: &'a [String],
    errors: &'a [Option<String>],
}

impl<'a> Detail<'a> {
    fn of(report: &'a Report, prompts: &Prompts, graded: &'a Graded) -> Result<Detail<'a>> {
        let split = if report.split == "train" { Split::Train } else { Split::HeldOut };
        let problem = prompts.task().problem(split, graded.index).context("a graded problem")?;
        Ok(Detail {
            task: &report.task,
            split: report.split,
            index: graded.index,
            level: graded.level,
            prompt: problem.prompt,
            answer: problem.answer,
            scores: &graded.scores,
            extracted: &graded.answers,
            lengths: &graded.lengths,
            finished: &graded.finished,
            texts: &graded.texts,
            errors: &graded.failures,
        })
    }
}
