//! `prime data`: what a configuration's data are, before anything is trained on them.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;

use super::train::SettingsArgs;
use super::{Failure, files, in_pool, models};
use crate::config::Config;
use crate::prompts::Prompts;
use crate::setup;
use crate::tasks::{Problem, Purpose, Split, Task};

/// Show a configuration's data: what was read, what was left out and why, how long it is, and how prompts look to the model
///
/// Rows by source with those that could not be used, duplicates, and training problems whose questions are held out; who grades what;
/// how long prompts and solutions are in tokens, and how many are over the limits of the configuration; and the first prompts of the run's
/// order as the model reads them, special tokens included. Without a model or tokenizer, lengths are characters.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  prime data
  prime data --config prime/configs/gsm8k.toml --model models/Qwen2.5-0.5B
  prime data --set task.name=jsonl --set task.jsonl.train=train.parquet --show 1")]
pub(super) struct DataArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// A model folder whose tokenizer and chat template are used [default: the configuration's model.path or model.tokenizer]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Prompts to show
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u16).range(0..=1000))]
    show: u16,
    /// The most problems of a split whose lengths are measured
    #[arg(long, value_name = "N", default_value = "20000", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    measure: u32,
}

pub(super) fn run(args: &DataArgs, threads: Option<usize>) -> Result<(), Failure> {
    let config = args.settings.load(&[])?;
    in_pool(Some(threads.unwrap_or(config.threads)), || {
        let data = Data::of(args, &config)?;
        files::print(data.report(args, &config)?)?;
        Ok(())
    })
}

/// A task, with the tokenizer that it is read through where there is one.
struct Data {
    task: Arc<dyn Task>,
    prompts: Option<Prompts>,
}

impl Data {
    fn of(args: &DataArgs, config: &Config) -> Result<Data> {
        let task = setup::task(config)?;
        let named = (!config.model.path.is_empty()).then(|| Path::new(&config.model.path));
        let folder = args.model.as_deref().or(named);
        folder.map_or(Ok(()), models::check)?;
        let readable =
            folder.is_some() || !config.model.tokenizer.is_empty() || task.alphabet().is_some();
        let prompts = readable.then(|| setup::prompts_of(config, task.clone(), folder));
        Ok(Data { task, prompts: prompts.transpose()? })
    }

    fn report(&self, args: &DataArgs, config: &Config) -> Result<String> {
        let mut text = String::new();
        let name = self.task.name();
        match (self.task.len(Split::Train), self.task.len(Split::HeldOut)) {
            (Some(train), Some(held_out)) => {
                writeln!(text, "{name}: {train} problems to train on, {held_out} held out")?;
            }
            _ => writeln!(text, "{name}: problems without end, made as they are needed")?,
        }
        self.sources(&mut text)?;
        self.groups(&mut text)?;
        self.lengths(args, config, &mut text)?;
        self.examples(args, config, &mut text)?;
        Ok(text)
    }

    fn sources(&self, text: &mut String) -> fmt::Result {
        let parts = self.task.parts();
        if parts.is_empty() {
            return Ok(());
        }
        let shares = [Purpose::Rl, Purpose::Sft].map(|purpose| self.task.shares(purpose));
        let totals =
            shares.clone().map(|shares| shares.iter().map(|share| share.draws).sum::<u64>());
        let head = [
            "source",
            "rows",
            "unusable",
            "held out",
            "similar",
            "twice",
            "to train on",
            "to evaluate on",
            "of RL",
            "of SFT",
        ];
        let mut rows = vec![head.map(String::from).to_vec()];
        for part in parts {
            let part_of = |purpose: usize| {
                let mut own = shares[purpose].iter().filter(|share| share.problems == part.train);
                let share = own.next().map_or(0.0, |share| {
                    100.0 * share.draws as f64 / totals[purpose].max(1) as f64
                });
                format!("{share:.1} %")
            };
            let numbers = [
                part.rows,
                part.faulty,
                part.overlaps,
                part.similar,
                part.duplicates,
                part.train.end - part.train.start,
                part.held_out,
            ];
            let mut row = vec![part.name.clone()];
            row.extend(numbers.map(|number| number.to_string()));
            row.extend([part_of(0), part_of(1)]);
            rows.push(row);
        }
        writeln!(text)?;
        table(text, &rows)?;
        for part in parts {
            if let Some(fault) = &part.fault {
                writeln!(text, "the first unusable row of {}: {fault}", part.name)?;
            }
        }
        Ok(())
    }

    /// Who grades how many problems.
    fn groups(&self, text: &mut String) -> fmt::Result {
        let mut counts: BTreeMap<(String, String), [u64; 2]> = BTreeMap::new();
        for (place, split) in [Split::Train, Split::HeldOut].into_iter().enumerate() {
            for index in 0..self.task.len(split).unwrap_or(0) {
                let Some(problem) = self.task.problem(split, index) else { continue };
                let (name, grader) = self.task.group(&problem);
                let grader = grader.unwrap_or("-").to_owned();
                counts.entry((name.to_owned(), grader)).or_default()[place] += 1;
            }
        }
        if counts.is_empty() {
            return Ok(());
        }
        let mut rows =
            vec![["graded as", "by", "to train on", "to evaluate on"].map(String::from).to_vec()];
        for ((name, grader), [train, held_out]) in counts {
            rows.push(vec![name, grader, train.to_string(), held_out.to_string()]);
        }
        writeln!(text)?;
        table(text, &rows)
    }

    fn lengths(&self, args: &DataArgs, config: &Config, text: &mut String) -> Result<()> {
        let most = u64::from(args.measure);
        let count = |split| self.task.len(split).unwrap_or(u64::MAX).min(most);
        let mut prompts = Vec::new();
        let mut solutions = Vec::new();
        for place in 0..count(Split::Train) {
            prompts.push(self.prompt_length(&self.training_problem(
                place,
                config,
                Purpose::Rl,
            )?)?);
        }
        let demonstrations: u64 = match self.task.len(Split::Train) {
            None => most,
            Some(_) => self
                .task
                .shares(Purpose::Sft)
                .iter()
                .map(|share| share.draws)
                .sum::<u64>()
                .min(most),
        };
        for place in 0..demonstrations {
            let problem = self.training_problem(place, config, Purpose::Sft)?;
            if let Some(solution) = &problem.solution {
                solutions.push(self.solution_length(solution)?);
            }
        }
        let mut evaluated = Vec::new();
        for index in 0..count(Split::HeldOut) {
            let problem = self.task.problem(Split::HeldOut, index).context("a held-out problem")?;
            evaluated.push(self.prompt_length(&problem)?);
        }
        let unit = if self.prompts.is_some() { "tokens of" } else { "characters of" };
        let head = [unit, "seen", "least", "median", "90 %", "99 %", "most", "over the limit"];
        let mut rows = vec![head.map(String::from).to_vec()];
        let limits = [
            ("rollout.max_prompt_tokens", config.rollout.max_prompt_tokens),
            ("sft.max_solution_tokens", config.sft.max_solution_tokens),
            ("rollout.max_prompt_tokens", config.rollout.max_prompt_tokens),
        ];
        let names = ["training prompts", "solutions", "held-out prompts"];
        for ((name, lengths), (key, limit)) in
            names.into_iter().zip([prompts, solutions, evaluated]).zip(limits)
        {
            if !lengths.is_empty() {
                // Characters are not what the limits count, and 0 is no limit.
                let limited = self.prompts.is_some() && limit > 0;
                rows.push(row_of_lengths(name, lengths, limited.then_some((key, limit))));
            }
        }
        writeln!(text)?;
        table(text, &rows)?;
        Ok(())
    }

    /// The problem at a place of the run's order.
    fn training_problem(&self, place: u64, config: &Config, purpose: Purpose) -> Result<Problem> {
        let index = match &self.prompts {
            Some(prompts) => prompts.training_index(place, config.seed, purpose),
            None => place,
        };
        let problem = self.task.problem(Split::Train, index);
        problem.with_context(|| format!("{} has no problem {index}", self.task.name()))
    }

    fn prompt_length(&self, problem: &Problem) -> Result<usize> {
        Ok(match &self.prompts {
            Some(prompts) => prompts.encode_prompt(problem)?.len(),
            None => said(problem).chars().count(),
        })
    }

    fn solution_length(&self, solution: &str) -> Result<usize> {
        Ok(match &self.prompts {
            // With the token that ends it.
            Some(prompts) => prompts.tokenizer().encode(solution, false)?.len() + 1,
            None => solution.chars().count(),
        })
    }

    fn examples(&self, args: &DataArgs, config: &Config, text: &mut String) -> Result<()> {
        let count = self.task.len(Split::Train).unwrap_or(u64::MAX).min(u64::from(args.show));
        for place in 0..count {
            let problem = self.training_problem(place, config, Purpose::Rl)?;
            let (group, grader) = self.task.group(&problem);
            let shown = match &self.prompts {
                Some(prompts) => {
                    let tokens = prompts.encode_prompt(&problem)?;
                    prompts.tokenizer().decode(&tokens, false)?
                }
                None => said(&problem),
            };
            writeln!(text, "\ntraining prompt {} of the run", place + 1)?;
            if let Some(grader) = grader {
                write!(text, "{group}, graded by {grader}; ")?;
            }
            writeln!(text, "the answer is {}", short(&problem.answer))?;
            for line in shown.split('\n') {
                writeln!(text, "  | {line}")?;
            }
        }
        Ok(())
    }
}

/// A prompt without a chat template.
fn said(problem: &Problem) -> String {
    if problem.messages.is_empty() {
        return problem.prompt.clone();
    }
    let turns = problem.messages.iter().map(|turn| format!("{}: {}", turn.role, turn.content));
    turns.collect::<Vec<_>>().join("\n")
}

/// A text on one line, cut where it is long: tests of a program are.
fn short(text: &str) -> String {
    const LONGEST: usize = 200;
    let line = text.replace('\n', "\\n");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}... ({} characters)", &line[..end], text.chars().count()),
        None => line,
    }
}

fn row_of_lengths(
    name: &str,
    mut lengths: Vec<usize>,
    limit: Option<(&str, usize)>,
) -> Vec<String> {
    lengths.sort_unstable();
    let at =
        |share: f64| lengths[((lengths.len() - 1) as f64 * share).round() as usize].to_string();
    let over = match limit {
        None => "-".to_owned(),
        Some((key, limit)) => {
            let over = lengths.iter().filter(|&&length| length > limit).count();
            format!("{over} over {key}, {limit}")
        }
    };
    vec![
        name.to_owned(),
        lengths.len().to_string(),
        at(0.0),
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0),
        over,
    ]
}

/// Columns side by side: the first and the last to the left, numbers to the right.
fn table(text: &mut String, rows: &[Vec<String>]) -> fmt::Result {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let is_number =
        |cell: &str| cell.starts_with(|c: char| c.is_ascii_digit()) && !cell.contains("over");
    for (i, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let to_the_right =
                rows.get(1).and_then(|row| row.get(column)).is_some_and(|cell| is_number(cell));
            let width = widths[column];
            if to_the_right && (i == 0 || is_number(cell)) {
                write!(line, "{cell:>width$}  ")?;
            } else {
                write!(line, "{cell:<width$}  ")?;
            }
        }
        writeln!(text, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_summed_up_by_their_quantiles_and_what_is_over_the_limit() {
        let row = row_of_lengths("x", (0..=100).rev().collect(), Some(("key", 97)));
        assert_eq!(row, ["x", "101", "0", "50", "90", "99", "100", "3 over key, 97"]);
        assert_eq!(row_of_lengths("y", vec![7], None)[2..], ["7", "7", "7", "7", "7", "-"]);
    }

    #[test]
    fn a_long_answer_is_cut_on_one_line() {
        assert_eq!(short("a\nb"), "a\\nb");
        let long = short(&"é".repeat(500));
        assert!(long.ends_with("... (500 characters)") && long.chars().count() < 230, "{long}");
    }
}
