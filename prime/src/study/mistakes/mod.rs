//! `prime study mistakes`: what an implicit PRM gives to a mistake, to what follows it, and to its repair.
//!
//! On matched triples of held-out problems ([`triples`]) the log-ratios of a PRM and its frozen reference are summed over the pieces
//! ([`rewards`]) and compared with the true change of the chance of success, estimated by continuations of the policy ([`values`]). The
//! policy's own mistakes and repairs are looked at too ([`own`]). For each seed:
//!
//! 1. SFT on demonstrations whose slips are of every kind of mistake.
//! 2. Each [`Condition`]: a PRM trained on the fixed SFT policy's rollouts ("offline"), or in a PRIME run ("online"), looked at at several
//!    checkpoints. The reference is the SFT model each time: against the running policy a signal that the policy has absorbed is gone.
//! 3. Each [`Teaching`]: SFT models that repair rarely or often, well or badly, each with a PRM trained on its own rollouts.
//! 4. RL with PRIME (the run of the online condition) and on outcomes alone from the same start: how often responses err and repair.
//!
//! Every finished part is a file in the study's folder, so that a study that was stopped goes on with the next.

pub mod own;
pub mod rewards;
mod summary;
pub mod triples;
pub mod values;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use prime_model::{Generator, Sampling};
use prime_runtime::checkpoint;
use serde::Serialize;
use serde_json::{Value, json};

use crate::config::{Config, Reference};
use crate::evaluate;
use crate::prompts::Prompts;
use crate::run::{self, End, folder::RunFolder, interrupt};
use crate::score::Scorer;
use crate::setup;
use crate::step::rollout::Stop;
use crate::tasks::worked::Worked;
use crate::tasks::{NAMES, Split, Task, TaskSettings};
use crate::trainer::{Model, Trainer};
pub(super) use summary::{tables, taught};
use triples::Triple;

/// A way to train a PRM.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Condition {
    /// Its file's name.
    pub name: &'static str,
    /// What it is called in tables.
    pub label: &'static str,
    /// Whether the policy learns too, in a PRIME run.
    pub online: bool,
    /// Settings over the study's.
    pub set: &'static [&'static str],
}

/// The conditions, the plain one first.
pub const CONDITIONS: [Condition; 6] = [
    Condition { name: "ce", label: "cross-entropy, offline", online: false, set: &[] },
    Condition { name: "online", label: "cross-entropy, in a PRIME run", online: true, set: &[] },
    Condition {
        name: "beta-0.05",
        label: "cross-entropy, beta 0.05, offline",
        online: false,
        set: &["prm.beta=0.05"],
    },
    Condition {
        name: "beta-2",
        label: "cross-entropy, beta 2, offline",
        online: false,
        set: &["prm.beta=2"],
    },
    Condition {
        name: "dpo",
        label: "detached DPO, offline",
        online: false,
        set: &["prm.loss=dpo", "prm.update=reverse"],
    },
    Condition {
        name: "prefix-value",
        label: "prefix value, beta 10, offline",
        online: false,
        set: &["prm.loss=prefix-value", "prm.beta=10"],
    },
];

/// What demonstrations teach of repairs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Teaching {
    /// Its file's name.
    pub name: &'static str,
    /// What it is called in tables.
    pub label: &'static str,
    /// The task's `repair`: how often one line of a demonstration is taken back.
    pub repair: f32,
    /// The task's `repair_success`.
    pub repair_success: f32,
}

/// Few and many repairs, that succeed always or seldom.
pub const TEACHINGS: [Teaching; 4] = [
    Teaching {
        name: "few-good",
        label: "few repairs (10 %), right",
        repair: 0.1,
        repair_success: 1.0,
    },
    Teaching {
        name: "many-good",
        label: "many repairs (50 %), right",
        repair: 0.5,
        repair_success: 1.0,
    },
    Teaching {
        name: "few-bad",
        label: "few repairs (10 %), one in four right",
        repair: 0.1,
        repair_success: 0.25,
    },
    Teaching {
        name: "many-bad",
        label: "many repairs (50 %), one in four right",
        repair: 0.5,
        repair_success: 0.25,
    },
];

/// Of the continuations that estimate a value, those of models that were taught otherwise are so many fewer: of them means alone are shown.
const FEWER: usize = 4;

/// Runs what is not done yet, and returns everything that was found: `seeds`, a list of objects by part. None when it was interrupted.
///
/// # Errors
/// When a part fails, or the configuration is of a task without planted mistakes.
pub fn run(config: &Config, folder: &Path) -> Result<Option<Value>> {
    worked(&*setup::task(config)?)?;
    prime_kernels::numerics::choose(config.numerics());
    let mut seeds = Vec::new();
    for index in 0..config.study.seeds {
        let seed = config.seed + index;
        let Some(found) = run_seed(config, &folder.join(format!("seed-{seed}")), seed)? else {
            return Ok(None);
        };
        seeds.push(found);
    }
    Ok(Some(json!({ "conditions": CONDITIONS, "teachings": TEACHINGS, "seeds": seeds })))
}

/// A configuration of the study with more settings over it; `of_task` are those of its task.
fn with(config: &Config, seed: u64, set: &[&str], of_task: &[String]) -> Result<Config> {
    let task = config.task.name.name();
    let mut more = vec![format!("seed={seed}"), format!("task.{task}.slips=all")];
    more.extend(set.iter().map(|text| text.to_string()));
    more.extend(of_task.iter().map(|text| format!("task.{task}.{text}")));
    Config::load_over(&config.to_toml()?, &[], &more)
}

/// The study's task, if it is one that can be spoilt.
fn worked(task: &dyn Task) -> Result<&dyn Worked> {
    task.worked().with_context(|| {
        let worked = NAMES.iter().copied().filter(|name| {
            let task = TaskSettings::by_name(name).and_then(|settings| settings.build(0));
            task.is_ok_and(|task| task.worked().is_some())
        });
        format!(
            "study mistakes plants mistakes in worked solutions, which the task {} has none of that it can check: set task.name to one of {}",
            task.name(),
            worked.collect::<Vec<_>>().join(", ")
        )
    })
}

/// Reads a finished part, or makes and writes it; none when the study was interrupted in it.
fn part(
    folder: &Path,
    name: &str,
    make: impl FnOnce() -> Result<Option<Value>>,
) -> Result<Option<Value>> {
    let path = folder.join(format!("{name}.json"));
    if path.exists() {
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        return Ok(Some(serde_json::from_str(&text).with_context(|| {
            format!("{} is damaged: remove it, and the study makes it again", path.display())
        })?));
    }
    if interrupt::is_requested() {
        return Ok(None);
    }
    eprintln!("{}: {name}", folder.display());
    let Some(made) = make()? else { return Ok(None) };
    let text = serde_json::to_string_pretty(&made)? + "\n";
    checkpoint::atomic_write(&path, text.as_bytes())?;
    Ok(Some(made))
}

/// What the parts of a seed share.
struct Seed<'a> {
    config: &'a Config,
    seed: u64,
    prompts: Prompts,
    triples: Vec<Triple>,
}

fn run_seed(config: &Config, folder: &Path, seed: u64) -> Result<Option<Value>> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let plain = with(config, seed, &[], &[])?;
    let prompts = setup::prompts(&plain, None)?;
    let triples = triples::triples(worked(prompts.task())?, config.study.triples, seed);
    ensure!(
        triples.len() >= 8,
        "only {} held-out problems give occasion for a mistake: longer ones do, such as task.arithmetic.min_operations=3",
        triples.len()
    );
    let Some(start) = sft(&plain, &folder.join("sft"))? else { return Ok(None) };
    let shared = Seed { config: &plain, seed, prompts, triples };
    let mut found = serde_json::Map::new();
    found.insert("seed".into(), seed.into());

    let Some(truth) =
        part(folder, "values", || shared.values(&start, config.study.continuations).map(Some))?
    else {
        return Ok(None);
    };
    let asked = |names: &[String], name: &str| names.iter().any(|asked| asked == name);
    for condition in CONDITIONS {
        if !asked(&config.study.conditions, condition.name) {
            continue;
        }
        let name = format!("prm-{}", condition.name);
        let made = part(folder, &name, || {
            let config = with(config, seed, condition.set, &[])?;
            shared.condition(&config, &start, condition.online, &truth)
        })?;
        let Some(made) = made else { return Ok(None) };
        found.insert(name, made);
    }
    for Teaching { name, repair, repair_success, .. } in TEACHINGS {
        if !asked(&config.study.teachings, name) {
            continue;
        }
        let of_task = [format!("repair={repair}"), format!("repair_success={repair_success}")];
        let taught = with(config, seed, &[], &of_task)?;
        let part_name = format!("taught-{name}");
        // What the study's own start was taught has been looked at above.
        if taught == plain {
            let same = found.get("prm-ce").cloned().unwrap_or_default();
            found.insert(part_name, same);
            continue;
        }
        let made = part(folder, &part_name, || {
            let Some(start) = sft(&taught, &folder.join(format!("sft-{name}")))? else {
                return Ok(None);
            };
            let truth = shared.values(&start, config.study.continuations.div_ceil(FEWER))?;
            shared.condition(&taught, &start, false, &truth)
        })?;
        let Some(made) = made else { return Ok(None) };
        found.insert(part_name, made);
    }
    let name = "rl-outcome-only";
    let Some(made) = part(folder, name, || shared.outcome_only(&start))? else { return Ok(None) };
    found.insert(name.into(), made);
    found.insert("values".into(), truth);
    Ok(Some(Value::Object(found)))
}

/// The model after SFT, trained in a run's folder of its own; none when it was interrupted.
fn sft(config: &Config, path: &Path) -> Result<Option<Model>> {
    let mut folder = if path.join("config.toml").exists() {
        RunFolder::resume(path, Some(config))?.0
    } else {
        RunFolder::create(path, config)?
    };
    match run::sft(config, &mut folder)? {
        End::Interrupted(_) => Ok(None),
        End::Complete(_) => {
            let prompts = setup::prompts(config, None)?;
            let model = path.join("sft").join("policy");
            Ok(Some(setup::load_model(config, &model, prompts.tokenizer())?))
        }
    }
}

impl Seed<'_> {
    fn generator(&self, model: &Model) -> Result<(Generator, Stop)> {
        let limits = self.config.generation_limits();
        let generator = Generator::new(&model.config, &model.weights, limits)?;
        Ok((generator, self.prompts.stop(&model.config)))
    }

    /// True values of the triples' prefixes under a policy.
    fn values(&self, policy: &Model, continuations: usize) -> Result<Value> {
        let (mut generator, stop) = self.generator(policy)?;
        let values = values::estimate(
            &mut generator,
            &self.prompts,
            &stop.tokens,
            &self.triples,
            continuations,
            self.config.rollout.max_new_tokens,
            self.seed,
        )?;
        Ok(serde_json::to_value(values)?)
    }

    /// Samples of a policy on held-out problems, with their work.
    fn samples(&self, generator: &mut Generator, stop: &Stop) -> Result<Vec<own::Sample>> {
        let sampling =
            Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: self.seed };
        let settings = evaluate::Settings {
            split: Split::HeldOut,
            problems: self.config.study.triples,
            samples: 4,
            sampling,
            max_new_tokens: self.config.rollout.max_new_tokens,
            grading: self.config.grader.clone(),
        };
        let (graded, _) = evaluate::evaluate(generator, &self.prompts, stop, &settings, |_| ())?;
        let task = worked(self.prompts.task())?;
        let mut samples = Vec::new();
        for problem in graded {
            let prompt = self.prompts.task().problem(Split::HeldOut, problem.index);
            let prompt =
                prompt.with_context(|| format!("there is no problem {}", problem.index))?;
            for (text, score) in problem.texts.into_iter().zip(problem.scores) {
                samples.extend(own::Sample::new(task, prompt.prompt.clone(), text, score >= 0.5));
            }
        }
        Ok(samples)
    }

    /// Trains a PRM under a condition and looks at it at every checkpoint.
    fn condition(
        &self,
        config: &Config,
        start: &Model,
        online: bool,
        truth: &Value,
    ) -> Result<Option<Value>> {
        let study = &config.study;
        let values: Vec<values::Values> = serde_json::from_value(truth.clone())?;
        let (mut generator, stop) = self.generator(start)?;
        let samples = self.samples(&mut generator, &stop)?;
        drop(generator);
        let kinds = worked(self.prompts.task())?.mistakes();
        let tokenizer = self.prompts.tokenizer();
        let mut scorer = Scorer::new(start.duplicate()?)?;
        let reference = rewards::log_probs(&mut scorer, tokenizer, &self.triples)?;
        let own_reference = own::log_probs(&mut scorer, tokenizer, &samples)?;

        let mut config = config.clone();
        let (batches, steps) = (study.batches.clone(), study.steps.clone());
        let reference_model = if online {
            // The policy as it samples is what a default run compares with; the tables compare with the SFT model all the same.
            (config.prm.reference == Reference::Frozen).then(|| start.duplicate()).transpose()?
        } else {
            config.prm.reference = Reference::Frozen;
            config.prm.warmup_batches = batches.iter().copied().max().unwrap_or(0);
            Some(start.duplicate()?)
        };
        config.train.steps = steps.iter().copied().max().unwrap_or(0);
        let prm = Some((start.duplicate()?, reference_model));
        let mut trainer = Trainer::new(&config, self.prompts.share(), start.duplicate()?, prm)?;

        let (mut checkpoints, mut examples) = (Vec::new(), Vec::new());
        let mut look = |trainer: &Trainer, batches: u64, steps: u64| -> Result<()> {
            let weights = trainer.prm().context("a PRM is trained")?;
            let mut scorer =
                Scorer::new(Model { config: start.config.clone(), weights: weights.duplicate()? })?;
            let prm = rewards::log_probs(&mut scorer, tokenizer, &self.triples)?;
            let own_prm = own::log_probs(&mut scorer, tokenizer, &samples)?;
            let sums = rewards::triple_sums(tokenizer, &self.triples, &prm, &reference)?;
            let of = |kind| rewards::findings(&self.triples, &sums, kind, self.seed);
            let by_kind: Vec<Value> = kinds
                .iter()
                .map(|&kind| json!({ "mistake": kind, "findings": of(Some(kind)) }))
                .collect();
            examples = self.examples(&prm, &reference)?;
            let own = own::own_findings(tokenizer, &samples, &own_prm, &own_reference, self.seed)?;
            checkpoints.push(json!({
                "batches": batches,
                "steps": steps,
                "all": of(None),
                "by_mistake": by_kind,
                "agreement": values::agreement(&self.triples, &sums, &values),
                "own": own,
            }));
            Ok(())
        };
        while trainer.is_warming_up() {
            if interrupt::is_requested() {
                return Ok(None);
            }
            trainer.warm_up(&mut |_| ())?;
            let done = trainer.state().warmup_batches;
            if !online && batches.contains(&done) {
                look(&trainer, done, 0)?;
            }
        }
        let mut habits = Vec::new();
        if online {
            habits.push(own::habits(0, &samples));
            let warmup = trainer.state().warmup_batches;
            look(&trainer, warmup, 0)?;
            while trainer.state().step < config.train.steps {
                if interrupt::is_requested() {
                    return Ok(None);
                }
                trainer.step(&mut |_| ())?;
                let step = trainer.state().step;
                if steps.contains(&step) {
                    look(&trainer, warmup + step, step)?;
                    // On held-out problems: what is trained on are the problems that passed the filter.
                    habits.push(own::habits(step, &self.samples(trainer.generator()?, &stop)?));
                }
            }
        }
        Ok(Some(json!({
            "beta": config.prm.beta,
            "checkpoints": checkpoints,
            "examples": examples,
            "habits": habits,
        })))
    }

    /// One triple of each kind of mistake, token by token.
    fn examples(&self, prm: &[Vec<f32>], reference: &[Vec<f32>]) -> Result<Vec<Value>> {
        let tokenizer = self.prompts.tokenizer();
        let shown =
            self.triples.iter().enumerate().take(worked(self.prompts.task())?.mistakes().len());
        shown
            .map(|(i, triple)| {
                let mut versions = Vec::new();
                let texts = [&triple.clean, &triple.wrong, &triple.repaired];
                for (place, (version, note)) in
                    texts.into_iter().zip(["clean", "wrong", "repaired"]).enumerate()
                {
                    let ids = rewards::tokens(tokenizer, &version.text)?.ids;
                    let mut pieces = ids
                        .iter()
                        .map(|&id| tokenizer.decode(&[id], false))
                        .collect::<prime_model::Result<Vec<_>>>()?;
                    pieces.extend(tokenizer.eos_token().map(str::to_owned));
                    versions.push(json!({
                        "texts": pieces,
                        "note": note,
                        "outcome": if note == "wrong" { 0.0 } else { 1.0 },
                        "prm_log_probs": prm[3 * i + place],
                        "ref_log_probs": reference[3 * i + place],
                    }));
                }
                let mistake = triple.mistake.to_string();
                Ok(json!({ "mistake": mistake, "prompt": triple.prompt, "versions": versions }))
            })
            .collect()
    }

    /// RL on outcomes alone from the start, and how often its responses err and repair.
    fn outcome_only(&self, start: &Model) -> Result<Option<Value>> {
        let mut config = self.config.clone();
        config.train.steps = config.study.steps.iter().copied().max().unwrap_or(0);
        let mut trainer = Trainer::new(&config, self.prompts.share(), start.duplicate()?, None)?;
        while trainer.is_warming_up() {
            if interrupt::is_requested() {
                return Ok(None);
            }
            trainer.warm_up(&mut |_| ())?;
        }
        let stop = self.prompts.stop(&start.config);
        let mut habits = Vec::new();
        loop {
            let step = trainer.state().step;
            if step == 0 || config.study.steps.contains(&step) {
                let samples = self.samples(trainer.generator()?, &stop)?;
                habits.push(own::habits(step, &samples));
            }
            if step >= config.train.steps {
                break;
            }
            if interrupt::is_requested() {
                return Ok(None);
            }
            trainer.step(&mut |_| ())?;
        }
        Ok(Some(serde_json::to_value(habits)?))
    }
}
