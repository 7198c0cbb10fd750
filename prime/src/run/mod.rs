//! A run from beginning to end: SFT, evaluation, PRIME, the outcome-only run beside it, and the table.

mod best;
pub mod folder;
pub mod interrupt;
mod models;
pub mod offline;
pub(crate) mod progress;
pub mod record;
pub mod session;
mod table;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use prime_kernels::numerics;
use prime_model::{Generator, Sampling};
use prime_runtime::checkpoint;

use crate::adapters::{self, Owner};
use crate::config::Config;
use crate::evaluate::{self, Summary};
use crate::metrics::Metrics;
use crate::prompts::Prompts;
use crate::setup;
use crate::sft::Sft;
use crate::step::rollout::Stop;
use crate::tasks::Split;
use crate::trainer::{Model, State, Trainer};
use folder::RunFolder;
use models::{check_critic_folder, check_prm_folders, kl_reference, prm_models};
use progress::Progress;

pub use best::Best;
pub use table::{Entry, Table};

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// It is complete.
    Complete(Table),
    /// It was asked to stop, and saved what it had; the sentence says where it stands.
    Interrupted(String),
}

/// SFT and nothing else: the model is left in `sft/` of the run folder.
///
/// # Errors
/// When anything the run depends on is not right, or a step is refused.
pub fn sft(config: &Config, folder: &mut RunFolder) -> Result<End> {
    if config.sft.steps == 0 {
        bail!("sft.steps is 0: there is nothing to train");
    }
    numerics::choose(config.numerics());
    let prompts = setup::prompts(config, model_folder(config))?;
    // Conversations have no answers: what cannot be evaluated can be learned from all the same.
    let evaluates = !prompts.task().is_empty(Split::HeldOut);
    if evaluates {
        prompts.check(config.eval.problems as u64)?;
    } else {
        prompts.check_demonstrations()?;
    }
    note(&prompts);
    let Some(model) = warm_up_model(config, &prompts, folder)? else {
        return Ok(interrupted("sft", folder));
    };
    let mut table = Table::default();
    if evaluates {
        table.push(evaluate_model(config, &prompts, &model, folder, "sft", config.sft.steps)?);
    }
    table.save(folder)?;
    Ok(End::Complete(table))
}

/// A whole run: SFT, PRIME (or RL on outcomes alone), the run to compare with, the table.
///
/// # Errors
/// When anything the run depends on is not right, or a step is refused.
pub fn train(config: &Config, folder: &mut RunFolder) -> Result<End> {
    numerics::choose(config.numerics());
    let prompts = usable_prompts(config)?;
    if !config.train.outcome_only {
        check_prm_folders(config, &prompts)?;
    }
    if !config.policy.kl_reference.is_empty() {
        setup::check_model(Path::new(&config.policy.kl_reference), prompts.tokenizer())
            .context("policy.kl_reference must be a model with the policy's tokenizer")?;
    }
    check_critic_folder(config, &prompts)?;
    let Some(start) = warm_up_model(config, &prompts, folder)? else {
        return Ok(interrupted("train", folder));
    };
    let mut table = Table::default();
    table.push(evaluate_model(config, &prompts, &start, folder, "start", 0)?);

    let base = match config.lora.policy() {
        Some(_) => adapters::base_folder(config, &prompts, folder, &start)?,
        None => PathBuf::new(),
    };
    let prime = if config.train.outcome_only {
        None
    } else {
        Some(prm_models(config, &prompts, &start, &base)?)
    };
    let start = match config.lora.policy() {
        Some(lora) => adapters::attach(&start, &lora, &base, config.seed, Owner::Policy)?,
        None => start,
    };
    let stage = if prime.is_some() { Stage::PRIME } else { Stage::OUTCOME_ONLY };
    let compare =
        (config.train.compare && prime.is_some()).then(|| start.duplicate()).transpose()?;
    let reference = kl_reference(config, &prompts, &start)?;
    let trainer =
        Trainer::new(config, prompts.share(), start, prime)?.with_kl_reference(reference)?;
    let warmup = trainer.warmup_batches();
    let Some(entries) =
        reinforce(config, trainer, folder, &stage, "checkpoints", config.train.steps)?
    else {
        return Ok(interrupted("train", folder));
    };
    let steps = entries.last().map_or(config.train.steps, |last| last.step);
    table.entries.extend(entries);
    table.best.extend(Best::recorded(folder, stage.name, "checkpoints")?);
    if let Some(start) = compare {
        // As many batches of rollouts as PRIME took, its warm-up included; where PRIME stopped early, this run goes as far and no further.
        let mut longer = config.clone();
        longer.train.steps = steps + warmup;
        longer.train.stop_after = 0;
        let reference = kl_reference(config, &prompts, &start)?;
        let trainer =
            Trainer::new(&longer, prompts.share(), start, None)?.with_kl_reference(reference)?;
        longer.train.steps -= trainer.warmup_batches();
        let stage = Stage { also_evaluate: Some(steps), ..Stage::OUTCOME_ONLY };
        let checkpoints = "outcome-only/checkpoints";
        let Some(entries) =
            reinforce(&longer, trainer, folder, &stage, checkpoints, longer.train.steps)?
        else {
            return Ok(interrupted("train", folder));
        };
        table.entries.extend(entries);
        table.best.extend(Best::recorded(folder, stage.name, checkpoints)?);
    }
    table.save(folder)?;
    Ok(End::Complete(table))
}

/// The folder that the run's model starts from.
fn model_folder(config: &Config) -> Option<&Path> {
    (!config.model.path.is_empty()).then(|| Path::new(&config.model.path))
}

/// The task's prompts, once it is known that some can be trained on and some evaluated: not after an hour of SFT.
fn usable_prompts(config: &Config) -> Result<Prompts> {
    let prompts = setup::prompts(config, model_folder(config))?;
    prompts.check(config.eval.problems as u64)?;
    note(&prompts);
    Ok(prompts)
}

/// Says what became of the data.
fn note(prompts: &Prompts) {
    for note in prompts.task().notes() {
        eprintln!("{note}");
    }
}

fn interrupted(command: &str, folder: &RunFolder) -> End {
    let path = folder.path().display();
    End::Interrupted(format!(
        "stopped and saved; go on with: prime {command} --resume --out {path}"
    ))
}

/// The model after SFT: trained now, taken up where a killed run left it, or the one that is there. None when the run was interrupted.
fn warm_up_model(
    config: &Config,
    prompts: &Prompts,
    folder: &mut RunFolder,
) -> Result<Option<Model>> {
    let done = folder.path().join("sft");
    if done.is_dir() {
        checkpoint::verify(&done)?;
        return Ok(Some(setup::load_model(config, &done.join("policy"), prompts.tokenizer())?));
    }
    let model = setup::base_model(config, prompts)?;
    if config.sft.steps == 0 {
        return Ok(Some(model));
    }
    let model = match config.lora.policy().filter(|_| config.lora.sft) {
        Some(lora) => {
            if config.model.path.is_empty() {
                bail!(
                    "lora.rank is {}, and the new model's random weights would stay as they are in SFT: set lora.sft=false, or start from a trained model (model.path)",
                    lora.rank
                );
            }
            let base = adapters::base_folder(config, prompts, folder, &model)?;
            adapters::attach(&model, &lora, &base, config.seed, Owner::Policy)?
        }
        None => model,
    };
    let mut sft = Sft::new(config, prompts.share(), model)?;
    if let Some(checkpoint) = folder.newest("sft-checkpoints")? {
        sft.restore(&checkpoint)?;
    }
    // As often in tokens seen as RL saves: its steps are shorter.
    let save_every = config.train.save_every * 25;
    let mut progress = Progress::new("sft", config.sft.steps, sft.steps());
    while sft.steps() < config.sft.steps {
        if interrupt::stops_here() {
            save_sft(&sft, folder, config)?;
            return Ok(None);
        }
        let metrics = match sft.step() {
            Ok(metrics) => metrics,
            Err(error) => {
                let saved = save_sft(&sft, folder, config)?;
                return Err(error.context(format!(
                    "sft step {} was refused; the model before it is in {}",
                    sft.steps() + 1,
                    saved.display()
                )));
            }
        };
        folder.record(&metrics)?;
        let value = |name: &str| metrics.get(name).unwrap_or(f64::NAN);
        let rate = value("throughput/sft_tokens_per_second");
        progress.step(sft.steps(), &format!("loss {:.3} {rate:.0} tokens/s", value("sft/loss")));
        if sft.steps().is_multiple_of(save_every) && sft.steps() < config.sft.steps {
            save_sft(&sft, folder, config)?;
        }
    }
    progress.finish();
    folder.save("", "sft", 0, |path| sft.save(path))?;
    folder.remove("sft-checkpoints")?;
    Ok(Some(sft.into_model()))
}

fn save_sft(sft: &Sft, folder: &mut RunFolder, config: &Config) -> Result<PathBuf> {
    folder.save("sft-checkpoints", &format!("step-{}", sft.steps()), config.train.keep, |path| {
        sft.save(path)
    })
}

/// One of the two RL loops.
struct Stage {
    name: &'static str,
    label: &'static str,
    /// A step at which the model is evaluated for the table, besides the last.
    also_evaluate: Option<u64>,
}

impl Stage {
    const PRIME: Stage = Stage { name: "prime", label: "prime", also_evaluate: None };
    const OUTCOME_ONLY: Stage =
        Stage { name: "outcome_only", label: "outcome-only", also_evaluate: None };
}

/// RL from step 0 or the newest checkpoint to the last step. Returns the table's entries; none when the run was interrupted.
fn reinforce(
    config: &Config,
    mut trainer: Trainer,
    folder: &mut RunFolder,
    stage: &Stage,
    checkpoints: &str,
    steps: u64,
) -> Result<Option<Vec<Entry>>> {
    let resumed_from = folder.newest(checkpoints)?;
    if let Some(checkpoint) = &resumed_from {
        trainer.restore(checkpoint)?;
    }
    let is_over = |folder: &RunFolder| -> Result<bool> {
        let best = Best::recorded(folder, stage.name, checkpoints)?;
        Ok(best.is_some_and(|best| best.is_over(config.train.stop_after)))
    };
    let mut stops_early = is_over(folder)?;
    let was_at_end = resumed_from.is_some() && (trainer.state().step == steps || stops_early);
    if trainer.state().step == 0 {
        best::keep(&trainer, folder, stage.name, checkpoints)?;
    }
    if !warm_up(config, &mut trainer, folder, checkpoints)? {
        return Ok(None);
    }
    let mut progress = Progress::new(stage.label, steps, trainer.state().step);
    while trainer.state().step < steps && !stops_early {
        if interrupt::stops_here() {
            save(&trainer, folder, checkpoints, config)?;
            return Ok(None);
        }
        let before = trainer.state().clone();
        let step = before.step + 1;
        let (metrics, batch) = match trainer.step(&mut |_| ()) {
            Ok(done) => done,
            Err(error) => {
                let name = format!("{} step {step}", stage.label);
                return Err(refused(error, &name, &before, &trainer, folder, checkpoints, config));
            }
        };
        let metrics = metrics.in_stage(stage.name);
        folder.record(&metrics)?;
        if records(config, step) && !batch.is_empty() {
            let updated = records_update(config, step)
                .then(|| trainer.policy_log_probs(&batch))
                .transpose()?;
            let tokenizer = trainer.prompts().tokenizer();
            folder.record_rollouts(stage.name, step, &batch, tokenizer, updated.as_deref())?;
        }
        let value = |name: &str| metrics.get(name).unwrap_or(f64::NAN);
        progress.step(
            step,
            &format!(
                "accuracy {:.3} kept {:.0} length {:.1} {:.1} s",
                value("reward/accuracy"),
                value("filter/kept"),
                value("response/length"),
                value("seconds/step")
            ),
        );
        let due = step.is_multiple_of(config.eval.every) || stage.also_evaluate == Some(step);
        if due && step < steps {
            let entry = evaluate_trainer(config, &mut trainer, folder, stage, checkpoints)?;
            progress.say(&format!("{} after step {step}: {entry}", stage.label));
            stops_early = is_over(folder)?;
            if stops_early {
                let evaluations = config.train.stop_after;
                progress.say(&format!("stopping: no better in {evaluations} evaluations"));
                break;
            }
        }
        if step.is_multiple_of(config.train.save_every) && step < steps {
            save(&trainer, folder, checkpoints, config)?;
        }
    }
    progress.finish();
    let steps = trainer.state().step;
    // What was evaluated before a run was killed is in the metrics, so the table's entries are read from there.
    let last = match Entry::recorded(folder, stage.name, steps)? {
        Some(entry) => entry,
        None => evaluate_trainer(config, &mut trainer, folder, stage, checkpoints)?,
    };
    if !was_at_end {
        save(&trainer, folder, checkpoints, config)?;
    }
    let mut entries = Vec::new();
    if let Some(step) = stage.also_evaluate.filter(|&step| step < steps) {
        entries.extend(Entry::recorded(folder, stage.name, step)?);
    }
    entries.push(last);
    Ok(Some(entries))
}

/// Trains PRM and critic alone until their warm-up is over; false when the run was interrupted.
fn warm_up(
    config: &Config,
    trainer: &mut Trainer,
    folder: &mut RunFolder,
    checkpoints: &str,
) -> Result<bool> {
    if !trainer.is_warming_up() {
        return Ok(true);
    }
    let label = if trainer.prm().is_some() { "prm warm-up" } else { "critic warm-up" };
    let mut progress =
        Progress::new(label, trainer.warmup_batches(), trainer.state().warmup_batches);
    while trainer.is_warming_up() {
        if interrupt::stops_here() {
            save(trainer, folder, checkpoints, config)?;
            return Ok(false);
        }
        let before = trainer.state().clone();
        let (metrics, batch) = match trainer.warm_up(&mut |_| ()) {
            Ok(done) => done,
            Err(error) => {
                let name = format!("{label} batch {}", before.warmup_batches + 1);
                return Err(refused(error, &name, &before, trainer, folder, checkpoints, config));
            }
        };
        folder.record(&metrics)?;
        if records(config, metrics.step()) && !batch.is_empty() {
            let tokenizer = trainer.prompts().tokenizer();
            folder.record_rollouts(metrics.stage(), metrics.step(), &batch, tokenizer, None)?;
        }
        let shown = [
            ("pairwise accuracy", metrics.get("prm/pairwise_accuracy")),
            ("explained variance", metrics.get("critic/explained_variance")),
        ];
        let shown = shown.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let shown: Vec<String> = shown.map(|(name, value)| format!("{name} {value:.3}")).collect();
        progress.step(metrics.step(), &shown.join(" "));
        let due = metrics.step().is_multiple_of(config.train.save_every);
        if due || !trainer.is_warming_up() {
            save(trainer, folder, checkpoints, config)?;
        }
    }
    progress.finish();
    Ok(true)
}

fn records(config: &Config, step: u64) -> bool {
    step.is_multiple_of(config.train.record_every)
}

/// Whether a recorded step is scored once more, to see what its update did.
fn records_update(config: &Config, step: u64) -> bool {
    step.is_multiple_of(config.train.record_update_every)
}

fn save(
    trainer: &Trainer,
    folder: &mut RunFolder,
    checkpoints: &str,
    config: &Config,
) -> Result<PathBuf> {
    let name = format!("step-{}", trainer.state().step);
    folder.save(checkpoints, &name, config.train.keep, |path| trainer.save(path))
}

/// The error of a refused step, with what is saved. A resumed run goes on from before the step, so a step that had updated a model
/// already is not saved among the steps.
fn refused(
    error: anyhow::Error,
    name: &str,
    before: &State,
    trainer: &Trainer,
    folder: &mut RunFolder,
    checkpoints: &str,
    config: &Config,
) -> anyhow::Error {
    let saved = if trainer.state() == before {
        save(trainer, folder, checkpoints, config)
            .map(|path| format!("the models before it are in {}", path.display()))
    } else {
        let updates = (trainer.state().prm_updates - before.prm_updates)
            + (trainer.state().critic_updates - before.critic_updates)
            + (trainer.state().policy_updates - before.policy_updates);
        let folder_name = format!("refused-{}", name.replace(' ', "-"));
        folder.save(checkpoints, &folder_name, 0, |path| trainer.save(path)).map(|path| {
            format!(
                "the models as its first updates, {updates}, left them are in {}",
                path.display()
            )
        })
    };
    match saved {
        Ok(saved) => error.context(format!("{name} was refused; {saved}")),
        Err(unsaved) => error.context(format!("{name} was refused; and then: {unsaved:#}")),
    }
}

/// Evaluates the policy as it stands. Where it cannot be sampled from, as one that has diverged cannot, it is saved like that before a
/// step that was refused.
fn evaluate_trainer(
    config: &Config,
    trainer: &mut Trainer,
    folder: &mut RunFolder,
    stage: &Stage,
    checkpoints: &str,
) -> Result<Entry> {
    let prompts = trainer.prompts().share();
    let stop = prompts.stop(trainer.model_config());
    let state = trainer.state().clone();
    match evaluate_with(config, &prompts, trainer.generator()?, &stop) {
        Ok(entry) => {
            let entry = record_evaluation(folder, entry, stage.name, state.step, state.samples)?;
            best::keep(trainer, folder, stage.name, checkpoints)?;
            Ok(entry)
        }
        Err(error) => {
            let name = format!("the evaluation after {} step {}", stage.label, state.step);
            Err(refused(error, &name, &state, trainer, folder, checkpoints, config))
        }
    }
}

fn evaluate_model(
    config: &Config,
    prompts: &Prompts,
    model: &Model,
    folder: &mut RunFolder,
    stage: &'static str,
    step: u64,
) -> Result<Entry> {
    if let Some(entry) = Entry::recorded(folder, stage, step)? {
        return Ok(entry);
    }
    let mut generator = Generator::new(&model.config, &model.weights, config.generation_limits())?;
    let stop = prompts.stop(&model.config);
    let entry = evaluate_with(config, prompts, &mut generator, &stop)
        .with_context(|| format!("the evaluation of the model at the {stage} was refused"))?;
    record_evaluation(folder, entry, stage, step, 0)
}

/// Sampled at the evaluation's temperature, and greedy.
fn evaluate_with(
    config: &Config,
    prompts: &Prompts,
    generator: &mut Generator,
    stop: &Stop,
) -> Result<(Summary, Summary)> {
    let mut summaries = Vec::with_capacity(2);
    for (samples, temperature) in [(config.eval.samples, config.eval.temperature), (1, 0.0)] {
        let settings = evaluate::Settings {
            split: Split::HeldOut,
            problems: config.eval.problems,
            samples,
            sampling: Sampling { temperature, top_k: 0, top_p: 1.0, min_p: 0.0, seed: config.seed },
            max_new_tokens: config.rollout.max_new_tokens,
            grading: config.grader.clone(),
        };
        let (graded, _) = evaluate::evaluate(generator, prompts, stop, &settings, |_| ())?;
        summaries.push(Summary::of(&graded, config.seed));
    }
    let greedy = summaries.pop().context("two evaluations")?;
    Ok((summaries.pop().context("two evaluations")?, greedy))
}

fn record_evaluation(
    folder: &mut RunFolder,
    (sampled, greedy): (Summary, Summary),
    stage: &'static str,
    step: u64,
    samples: u64,
) -> Result<Entry> {
    let mut metrics = Metrics::new("eval", step);
    metrics.set(format!("{stage}/samples"), samples as f64);
    metrics.set(format!("{stage}/grade_failures"), (sampled.failures + greedy.failures) as f64);
    metrics.set(format!("{stage}/mean_score"), sampled.mean_score.mean);
    metrics.set(format!("{stage}/mean_score_low"), sampled.mean_score.low);
    metrics.set(format!("{stage}/mean_score_high"), sampled.mean_score.high);
    for (k, estimate) in sampled.pass_at.iter().skip(1) {
        metrics.set(format!("{stage}/pass_at_{k}"), estimate.mean);
    }
    for (k, estimate) in &sampled.majority_at {
        metrics.set(format!("{stage}/majority_at_{k}"), estimate.mean);
    }
    metrics.set(format!("{stage}/greedy"), greedy.mean_score.mean);
    metrics.set(format!("{stage}/length"), sampled.length);
    metrics.set(format!("{stage}/truncated"), sampled.truncated);
    for (level, score, _) in &sampled.levels {
        metrics.set(format!("{stage}/level_{level}"), *score);
    }
    folder.record(&metrics)?;
    Entry::recorded(folder, stage, step)?.context("the evaluation that was just recorded")
}
