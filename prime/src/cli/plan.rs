//! `prime plan`: what a configuration takes, before it is run.

mod work;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use prime_model::{Activations, Config as ModelConfig, Generator, Layout, Limits, Mode};
use prime_runtime::{DType, Device, cuda, process};

use super::measure::matmul_rate_on;
use super::train::SettingsArgs;
use super::{Failure, files, in_pool, models, values};
use crate::config::{Config, Reference};
use crate::prompts::Prompts;
use crate::setup;
use crate::step::Estimator;
use work::{Lengths, Work};

/// Show what a run takes before running it: parameters, memory, work, time
///
/// Memory is listed by use, as a run lays it out; nothing of it is reserved. Work is counted from the products of matrices and the
/// attention of each stage; the time is that work at the rate at which the device multiplies matrices of the model's size, measured now.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  prime plan
  prime plan --config mine.toml --set model.hidden_size=512
  prime plan --model DIR --set model.dtype=bfloat16 --set rollout.max_new_tokens=1024")]
pub(super) struct PlanArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// A model folder to start from, of which config.json is read [default: the configuration's model.path]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Where to compute: cpu, cuda (the first GPU), cuda:N, or emulated (the GPU's kernels run and checked on the host, slowly) [default: the configuration's, cpu]
    #[arg(long, value_name = "DEVICE", value_parser = values::device)]
    device: Option<Device>,
}

pub(super) fn run(args: PlanArgs, threads: Option<usize>) -> Result<(), Failure> {
    let device: Vec<String> = args.device.iter().map(|device| format!("device={device}")).collect();
    let config = args.settings.load(&device)?;
    in_pool(Some(threads.unwrap_or(config.threads)), || {
        let outline = match &args.model {
            Some(folder) => Outline::of_folder(&config, folder)?,
            None => Outline::of_run(&config)?,
        };
        files::print(Plan::of(&config, &outline)?)?;
        Ok(())
    })
}

/// The shapes of a run's models, and how long its texts are.
pub(super) struct Outline {
    policy: ModelConfig,
    prm: Option<ModelConfig>,
    reference: Option<ModelConfig>,
    /// A critic of its own; a shared one is all but nothing beside the policy.
    critic: Option<ModelConfig>,
    kl_reference: Option<ModelConfig>,
    lengths: Lengths,
}

impl Outline {
    /// Of a run as its configuration describes it: tokenizer and data are read, weights are not.
    pub(super) fn of_run(config: &Config) -> Result<Outline> {
        let folder = (!config.model.path.is_empty()).then(|| Path::new(&config.model.path));
        folder.map_or(Ok(()), models::check).context("model.path")?;
        let prompts = setup::prompts(config, folder)?;
        let policy = match folder {
            Some(folder) => {
                let model = ModelConfig::load(folder)?;
                prompts.tokenizer().check(&model)?;
                model
            }
            None => setup::new_config(config, prompts.tokenizer())?,
        };
        Outline::new(config, policy, Some(&prompts))
    }

    /// Of a model folder, whose tokenizer and task are not looked at.
    fn of_folder(config: &Config, folder: &Path) -> Result<Outline> {
        models::check(folder)?;
        Outline::new(config, ModelConfig::load(folder)?, None)
    }

    fn new(config: &Config, policy: ModelConfig, prompts: Option<&Prompts>) -> Result<Outline> {
        let shape = |path: &str, key: &'static str| -> Result<ModelConfig> {
            if path.is_empty() {
                return Ok(policy.clone());
            }
            models::check(Path::new(path)).context(key)?;
            ModelConfig::load(Path::new(path)).context(key)
        };
        let mut outline = Outline {
            prm: None,
            reference: None,
            critic: None,
            kl_reference: None,
            lengths: Lengths::of(config, prompts)?,
            policy: policy.clone(),
        };
        if config.needs_kl_reference() {
            outline.kl_reference = Some(shape(&config.policy.kl_reference, "policy.kl_reference")?);
        }
        if config.advantage.estimator == Estimator::Gae && !config.critic.shared {
            outline.critic = Some(shape(&config.critic.path, "critic.path")?);
        }
        if config.train.outcome_only {
            return Ok(outline);
        }
        outline.prm = Some(shape(&config.prm.path, "prm.path")?);
        if config.prm.reference == Reference::Frozen {
            outline.reference = match config.prm.reference_path.as_str() {
                "" => outline.prm.clone(),
                path => Some(shape(path, "prm.reference_path")?),
            };
        }
        Ok(outline)
    }
}

/// What a run takes.
pub(super) struct Plan {
    policy: ModelConfig,
    device: Device,
    dtype: DType,
    has_sft: bool,
    /// Name, bytes during SFT, bytes during RL.
    memory: Vec<(&'static str, usize, usize)>,
    work: Work,
    /// Operations a second of a product of the policy's size on the device; or why they cannot be measured here.
    rate: std::result::Result<f64, String>,
}

impl Plan {
    /// Counts, and measures the rate.
    pub(super) fn of(config: &Config, outline: &Outline) -> Result<Plan> {
        let policy = &outline.policy;
        // As large as the policy's products, within what takes a moment.
        let product = [
            config.micro_batch_tokens().min(1024),
            (2 * policy.intermediate_size).min(4096),
            policy.hidden_size.min(2048),
        ];
        let (device, dtype) = (config.device(), config.dtype());
        let rate = prime_kernels::device::check(device)
            .map_err(anyhow::Error::from)
            .and_then(|()| matmul_rate_on(device, product, dtype, Duration::from_millis(300)));
        Ok(Plan {
            policy: policy.clone(),
            device,
            dtype,
            has_sft: config.sft.steps > 0,
            memory: memory(config, outline),
            work: Work::of(config, outline),
            rate: rate.map_err(|error| format!("{error:#}")),
        })
    }
}

/// The buffers of the two stages, as they are laid out.
fn memory(config: &Config, outline: &Outline) -> Vec<(&'static str, usize, usize)> {
    let dtype = config.dtype();
    let elements = |model: &ModelConfig| Layout::new(model).elements;
    let policy = elements(&outline.policy);
    let prm = outline.prm.as_ref().map_or(0, elements);
    let reference = outline.reference.as_ref().map_or(0, elements);
    let critic = outline.critic.as_ref().map_or(0, elements);
    let kl_reference = outline.kl_reference.as_ref().map_or(0, elements);
    let compared = if config.train.compare && outline.prm.is_some() { policy } else { 0 };
    let master = if dtype == DType::F32 { 0 } else { 4 };
    let mode =
        if config.train.checkpoint_activations { Mode::TrainCheckpointed } else { Mode::Train };
    let tokens = config.micro_batch_tokens();
    let activations = |model: &ModelConfig, mode| {
        Activations::plan(model, dtype, Limits { tokens, picked: tokens }, mode).bytes()
    };
    // Models of one shape share the buffers.
    let other = |model: &Option<ModelConfig>, mode| {
        let model = model.as_ref().filter(|model| **model != outline.policy);
        model.map_or(0, |model| activations(model, mode))
    };
    let shared = activations(&outline.policy, mode);
    let separate = other(&outline.prm, mode)
        + other(&outline.reference, Mode::Score)
        + other(&outline.critic, mode)
        + other(&outline.kl_reference, Mode::Score);
    let limits = config.generation_limits();
    let size = dtype.size();
    let kv = outline.policy.num_kv_heads * outline.policy.head_dim;
    let cache = 2 * outline.policy.num_layers * limits.slots * limits.positions * kv * size;
    let generation = Generator::bytes(&outline.policy, config.device(), dtype, limits);
    // On the host it is small, and depends on the number of threads.
    let (of_training, of_generation) = match config.device() {
        Device::Cpu => (0, 0),
        _ => {
            let sizes = outline.policy.working_memory(dtype);
            (sizes.training(tokens), sizes.decoding(limits.slots, limits.positions))
        }
    };
    vec![
        ("policy: weights", policy * size, policy * size),
        ("policy: master weights", policy * master, policy * master),
        ("policy: moments", policy * 8, policy * 8),
        ("policy: gradients", policy * 4, policy * 4),
        ("PRM: weights", 0, prm * size),
        ("PRM: master weights", 0, prm * master),
        ("PRM: moments", 0, prm * 8),
        ("PRM: gradients", 0, prm * 4),
        ("reference: weights", 0, reference * size),
        ("reference of KL: weights", 0, kl_reference * size),
        ("critic: weights", 0, critic * size),
        ("critic: master weights", 0, critic * master),
        ("critic: moments", 0, critic * 8),
        ("critic: gradients", 0, critic * 4),
        ("start of the run to compare with", 0, compared * size),
        ("activations", shared, shared + separate),
        ("generation: KV cache", 0, cache),
        ("generation: weights of its own, buffers", 0, generation - cache),
        ("working memory of kernels, at most", of_training, of_training + of_generation),
    ]
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let model = &self.policy;
        writeln!(
            f,
            "model: {}, {} layers, hidden {}, {} heads ({} for keys) of {}, intermediate {}, vocabulary {}",
            model.architecture.model_type(),
            model.num_layers,
            model.hidden_size,
            model.num_heads,
            model.num_kv_heads,
            model.head_dim,
            model.intermediate_size,
            model.vocab_size
        )?;
        writeln!(
            f,
            "parameters: {}, in {} on {}\n",
            grouped(model.parameters()),
            self.dtype,
            self.device
        )?;
        self.write_memory(f)?;
        writeln!(f)?;
        self.write_work(f)
    }
}

impl Plan {
    fn write_memory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| {
            if bytes == 0 {
                String::new()
            } else {
                format!("{:.1}", bytes as f64 / f64::from(1 << 20))
            }
        };
        let mut row = |name: &str, sft: &str, rl: &str| {
            if self.has_sft {
                writeln!(f, "{name:<36} {sft:>10} {rl:>10}")
            } else {
                writeln!(f, "{name:<36} {rl:>10}")
            }
        };
        row("memory in MiB", "SFT", "RL")?;
        let (mut sft_total, mut rl_total) = (0, 0);
        for &(name, sft, rl) in &self.memory {
            sft_total += sft;
            rl_total += rl;
            if sft + rl > 0 {
                row(name, &mib(sft), &mib(rl))?;
            }
        }
        row("together", &mib(sft_total), &mib(rl_total))?;
        let needed = if self.has_sft { sft_total.max(rl_total) } else { rl_total };
        let free = match self.device {
            Device::Cuda(number) => cuda::memory(number).ok().map(|(free, _)| free as u64),
            _ => process::memory().map(|memory| memory.available),
        };
        match free {
            Some(free) if needed as u64 > free => writeln!(
                f,
                "{} has {} MiB free: it will not fit. Lower train.micro_batch_tokens or rollout.slots, set train.checkpoint_activations, or take bfloat16",
                if self.device == Device::Cpu {
                    "this machine".to_string()
                } else {
                    self.device.to_string()
                },
                free >> 20
            ),
            _ => Ok(()),
        }
    }

    fn write_work(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.work.assumption)?;
        writeln!(f, "{:<24} {:>8} {:>14} {:>12}", "work", "steps", "GFLOP a step", "seconds")?;
        let mut total = 0.0;
        for stage in self.work.stages.iter().filter(|stage| stage.steps > 0) {
            let seconds = self.rate.as_ref().map(|rate| stage.steps as f64 * stage.flops / rate);
            total += seconds.as_ref().unwrap_or(&0.0);
            writeln!(
                f,
                "{:<24} {:>8} {:>14.2} {:>12}",
                stage.name,
                stage.steps,
                stage.flops / 1e9,
                seconds.map_or("unknown".to_string(), rounded)
            )?;
        }
        let rate = match &self.rate {
            Ok(rate) => rate / 1e9,
            Err(reason) => return writeln!(f, "\nthe time is unknown: {reason}"),
        };
        writeln!(f, "{:<24} {:>8} {:>14} {:>12}", "together", "", "", rounded(total))?;
        writeln!(
            f,
            "\nat {:.1} GFLOP/s, which a product of this model's size reaches here. Everything but products (attention's memory\n\
            traffic, norms, optimiser, drawing, grading, evaluation) comes on top: expect a multiple for small models.",
            rate
        )
    }
}

fn rounded(seconds: f64) -> String {
    if seconds < 10.0 { format!("{seconds:.1}") } else { format!("{seconds:.0}") }
}

/// A number with its thousands apart.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(overrides: &[&str]) -> (Config, Outline) {
        let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
        let config = Config::load(&[], &overrides).unwrap();
        let outline = Outline::of_run(&config).unwrap();
        (config, outline)
    }

    fn total(memory: &[(&str, usize, usize)]) -> usize {
        memory.iter().map(|&(_, _, rl)| rl).sum()
    }

    #[test]
    fn thousands_are_set_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1234567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn memory_follows_from_what_a_run_holds() {
        let (config, outline) = plan(&[]);
        let rows = memory(&config, &outline);
        let of = |name: &str| rows.iter().find(|(n, ..)| *n == name).unwrap().2;
        let elements = Layout::new(&outline.policy).elements;
        assert_eq!(of("policy: weights"), 4 * elements);
        assert_eq!(of("policy: master weights"), 0);
        assert_eq!(of("PRM: moments"), 8 * elements);
        assert_eq!(of("reference: weights"), 0);

        let (frozen, outline) = plan(&["prm.reference=frozen", "model.dtype=bfloat16"]);
        let rows = memory(&frozen, &outline);
        let of = |name: &str| rows.iter().find(|(n, ..)| *n == name).unwrap().2;
        assert_eq!(of("policy: master weights"), 4 * elements);
        assert_eq!(of("reference: weights"), 2 * elements);

        let (held, outline) = plan(&["policy.kl_coef=0.1"]);
        let rows = memory(&held, &outline);
        let of = |name: &str| rows.iter().find(|(n, ..)| *n == name).unwrap().2;
        assert_eq!(of("reference of KL: weights"), 4 * elements);

        let full = total(&memory(&config, &plan(&[]).1));
        let (alone, outline) = plan(&["train.outcome_only=true"]);
        let without = total(&memory(&alone, &outline));
        // Weights, moments, gradients, and the start to compare with.
        assert_eq!(full - without, (4 + 8 + 4 + 4) * elements);
        let (checkpointed, outline) = plan(&["train.checkpoint_activations=true"]);
        assert!(total(&memory(&checkpointed, &outline)) < full);
    }

    #[test]
    fn a_plan_names_its_parameters_and_stages() {
        let (config, outline) = plan(&["prm.warmup_batches=0"]);
        let text = Plan::of(&config, &outline).unwrap().to_string();
        assert!(text.contains(&grouped(outline.policy.parameters())), "{text}");
        assert!(text.contains("SFT") && text.contains("PRIME") && text.contains("outcome-only"));
        assert!(!text.contains("PRM warm-up"), "{text}");
    }
}
