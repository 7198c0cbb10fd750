//! `prime prm`: an implicit PRM trained offline, from its first update to its folder.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use prime_model::{ChatTemplate, Tokenizer};

use super::folder::RunFolder;
use super::interrupt;
use super::progress::Progress;
use crate::adapters::{self, Owner};
use crate::config::Config;
use crate::graded::{self, Encoder, GradedPrompt};
use crate::metrics::Metrics;
use crate::prm::Offline;
use crate::setup;
use crate::tasks::Split;

/// How a training ended.
#[derive(Debug)]
pub enum End {
    /// It is complete.
    Complete(Report),
    /// It was asked to stop, and saved what it had; the sentence says where it stands.
    Interrupted(String),
}

/// What a complete training says.
#[derive(Debug)]
pub struct Report {
    /// The PRM's folder.
    pub folder: PathBuf,
    /// Its evaluations on held-out prompts: before the first update, and after the last. None where nothing is held out.
    pub evaluations: Vec<Metrics>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.evaluations.is_empty() {
            writeln!(f, "| update | held-out loss | pairwise accuracy % | AUC % |")?;
            writeln!(f, "|---|---|---|---|")?;
        }
        for metrics in &self.evaluations {
            let value = |name: &str| metrics.get(name).unwrap_or(f64::NAN);
            writeln!(
                f,
                "| {} | {:.4} | {:.1} | {:.1} |",
                metrics.step(),
                value("prm/loss"),
                100.0 * value("prm/pairwise_accuracy"),
                100.0 * value("prm/auc")
            )?;
        }
        writeln!(f, "the PRM is {}", self.folder.display())
    }
}

/// The graded responses of a configuration.
pub struct Data {
    /// Those to train on.
    pub train: Vec<GradedPrompt>,
    /// Those never trained on.
    pub held_out: Vec<GradedPrompt>,
}

impl Data {
    /// Reads the files of `[offline]`.
    ///
    /// # Errors
    /// When a file cannot be used, or nothing is left to train on.
    pub fn read(config: &Config) -> Result<Data> {
        let offline = &config.offline;
        ensure!(
            !offline.files.is_empty(),
            "there are no graded responses to train on: name files with --data (or offline.files)"
        );
        let source = model_folder(config)?;
        let tokenizer = Tokenizer::load(source)?;
        let chat = if offline.chat { Some(ChatTemplate::load(source)?) } else { None };
        let encoder =
            Encoder { tokenizer: &tokenizer, chat: chat.as_ref(), max_tokens: offline.max_tokens };
        let read = graded::read(&offline.files, &encoder)?;
        let mut left_out = read.left_out;
        let (train, held_out) = if offline.held_out.is_empty() {
            read.prompts.into_iter().partition(|prompt| {
                offline.held_out_one_in == 0
                    || Split::of(&held_out_key(&prompt.text), offline.held_out_one_in)
                        == Split::Train
            })
        } else {
            let held_out = graded::read(&[&offline.held_out], &encoder)?;
            left_out += held_out.left_out;
            // What is held out is never trained on, in whichever file it stands.
            let texts: std::collections::HashSet<&str> =
                held_out.prompts.iter().map(|prompt| prompt.text.as_str()).collect();
            let train: Vec<GradedPrompt> = read
                .prompts
                .into_iter()
                .filter(|prompt| !texts.contains(prompt.text.as_str()))
                .collect();
            (train, held_out.prompts)
        };
        let count = |prompts: &[GradedPrompt]| -> usize {
            prompts.iter().map(|prompt| prompt.responses.len()).sum()
        };
        eprintln!(
            "{} responses to {} prompts to train on, {} to {} held out",
            count(&train),
            train.len(),
            count(&held_out),
            held_out.len()
        );
        if left_out > 0 {
            eprintln!(
                "{left_out} responses were left out: they are empty, or longer with their prompts than offline.max_tokens, {}",
                offline.max_tokens
            );
        }
        ensure!(
            !train.is_empty(),
            "nothing is left to train on: raise offline.max_tokens, or hold out fewer prompts"
        );
        Ok(Data { train, held_out })
    }
}

/// What is held out of a file must not go by the hash that tells a task's training problems: of these none would be held out, or all.
fn held_out_key(text: &str) -> String {
    format!("graded: {text}")
}

fn model_folder(config: &Config) -> Result<&Path> {
    ensure!(
        !config.model.path.is_empty(),
        "an implicit PRM begins as a model: name its folder with --model (or model.path)"
    );
    let folder = Path::new(&config.model.path);
    ensure!(folder.is_dir(), "there is no model folder {}", folder.display());
    Ok(folder)
}

/// Trains a PRM: its checkpoints are in `checkpoints/` of the run's folder, itself in `prm/`.
///
/// # Errors
/// When anything the training depends on is not right, or a step is refused.
pub fn prm(config: &Config, folder: &mut RunFolder) -> Result<End> {
    prime_kernels::numerics::choose(config.numerics());
    let data = Data::read(config)?;
    let source = model_folder(config)?;
    let tokenizer = Tokenizer::load(source)?;
    let model = setup::load_model(config, source, &tokenizer)?;
    let reference = match config.offline.reference.as_str() {
        "" => Some(adapters::reference(config, &model)?),
        "none" if config.prm.reference_offload => bail!(
            "prm.reference_offload is true, but offline.reference is \"none\": there is no reference to offload"
        ),
        "none" => None,
        path => {
            let path = Path::new(path);
            setup::check_model(path, &tokenizer).context("offline.reference")?;
            Some(setup::load_reference(config, path, &tokenizer)?)
        }
    };
    // The model's weights are then shared with the reference, and stay as they are.
    let model = match config.lora.prm() {
        Some(lora) => {
            let base = match model.weights.adapter() {
                Some(adapter) => adapter.base().to_path_buf(),
                None => std::path::absolute(source)?,
            };
            adapters::attach(&model, &lora, &base, config.seed, Owner::Prm)?
        }
        None => model,
    };
    let longest = model.config.max_position_embeddings;
    if config.offline.max_tokens > longest {
        bail!(
            "offline.max_tokens is {}, but the model was made for sequences of up to {longest}",
            config.offline.max_tokens
        );
    }
    let mut offline = Offline::new(config, model, reference, source, data.train, &data.held_out)?;
    drop(data.held_out);
    if let Some(checkpoint) = folder.newest("checkpoints")? {
        offline.restore(&checkpoint)?;
    }
    let total = offline.total();
    let mut evaluations = Vec::new();
    if offline.steps() == 0 {
        evaluations.extend(evaluate(&mut offline, folder)?);
    }
    let mut progress = Progress::new("prm", total, offline.steps());
    while offline.steps() < total {
        if interrupt::stops_here() {
            save(&offline, folder, config)?;
            return Ok(End::Interrupted(format!(
                "stopped and saved; go on with: prime prm --resume --out {}",
                folder.path().display()
            )));
        }
        let metrics = match offline.step() {
            Ok(metrics) => metrics,
            Err(error) => {
                let saved = save(&offline, folder, config)?;
                return Err(error.context(format!(
                    "prm update {} was refused; the PRM before it is in {}",
                    offline.steps() + 1,
                    saved.display()
                )));
            }
        };
        folder.record(&metrics)?;
        let value = |name: &str| metrics.get(name).unwrap_or(f64::NAN);
        progress.step(
            offline.steps(),
            &format!(
                "loss {:.3} pairwise accuracy {:.3}",
                value("prm/loss"),
                value("prm/pairwise_accuracy")
            ),
        );
        let step = offline.steps();
        if step.is_multiple_of(config.offline.eval_every)
            && step < total
            && let Some(metrics) = evaluate(&mut offline, folder)?
        {
            let value = |name: &str| metrics.get(name).unwrap_or(f64::NAN);
            progress.say(&format!(
                "held out after update {step}: loss {:.4}, pairwise accuracy {:.3}, AUC {:.3}",
                value("prm/loss"),
                value("prm/pairwise_accuracy"),
                value("prm/auc")
            ));
        }
        if step.is_multiple_of(config.train.save_every) && step < total {
            save(&offline, folder, config)?;
        }
    }
    progress.finish();
    let done = folder.path().join("prm");
    evaluations.extend(evaluate(&mut offline, folder)?);
    if !done.is_dir() {
        save(&offline, folder, config)?;
        folder.save("", "prm", 0, |path| offline.save_model(path))?;
    }
    Ok(End::Complete(Report { folder: done, evaluations }))
}

/// Evaluates where something is held out, and records it unless an earlier part of this run did.
fn evaluate(offline: &mut Offline, folder: &mut RunFolder) -> Result<Option<Metrics>> {
    if !offline.evaluates() {
        return Ok(None);
    }
    let metrics = offline.evaluate()?;
    let step = offline.steps();
    if !folder.recorded()?.iter().any(|line| line["stage"] == "eval" && line["step"] == step) {
        folder.record(&metrics)?;
    }
    Ok(Some(metrics))
}

fn save(offline: &Offline, folder: &mut RunFolder, config: &Config) -> Result<PathBuf> {
    let name = format!("step-{}", offline.steps());
    folder.save("checkpoints", &name, config.train.keep, |path| offline.save(path))
}
