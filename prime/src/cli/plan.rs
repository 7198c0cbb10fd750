//! `prime plan`: what a configuration takes, before it is run.

mod work;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use prime_model::Config as ModelConfig;
use prime_runtime::{DType, Device, cuda, process};

use super::measure::matmul_rate_on;
use super::train::SettingsArgs;
use super::{Failure, files, in_pool, models, values};
use crate::config::{Config, Reference};
use crate::memory::{self, Shapes};
use crate::prompts::Prompts;
use crate::step::Estimator;
use crate::{adapters, setup};
use work::{Lengths, Work};

/// Show what a run takes before running it: parameters, memory, work, time
///
/// Memory is listed by use, as a run lays it out; nothing of it is reserved. Below stand settings that make it smaller, what each saves, and, where
/// the run does not fit in --memory, those with which it does, the least costly first. Work is counted from the products of matrices and the
/// attention of each stage; the time is that work at the rate at which the device multiplies matrices of the model's size, measured now.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  prime plan
  prime plan --config mine.toml --set model.hidden_size=512
  prime plan --model DIR --set model.dtype=bfloat16 --set rollout.max_new_tokens=1024
  prime plan --config prime/configs/published.toml --model DIR --device cuda --memory 24GiB")]
pub(super) struct PlanArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// A model folder to start from, of which config.json is read [default: the configuration's model.path]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Where to compute: cpu, cuda (the first GPU), cuda:N, or emulated (the GPU's kernels run and checked on the host, slowly) [default: the configuration's, cpu]
    #[arg(long, value_name = "DEVICE", value_parser = values::device)]
    device: Option<Device>,
    /// Memory that the run has to fit in, such as 24GiB or 800MiB [default: what is free on the device]
    #[arg(long, value_name = "SIZE", value_parser = values::bytes)]
    memory: Option<usize>,
}

pub(super) fn run(args: PlanArgs, threads: Option<usize>) -> Result<(), Failure> {
    let device: Vec<String> = args.device.iter().map(|device| format!("device={device}")).collect();
    let config = args.settings.load(&device)?;
    in_pool(Some(threads.unwrap_or(config.threads)), || {
        let outline = match &args.model {
            Some(folder) => Outline::of_folder(&config, folder)?,
            None => Outline::of_run(&config)?,
        };
        let mut plan = Plan::of(&config, &outline)?;
        plan.room = match args.memory {
            Some(bytes) => Some((bytes, "what it has to fit in".to_string())),
            None => free(config.device()),
        };
        let most = plan.room.as_ref().map(|&(bytes, _)| bytes);
        (plan.offers, plan.fit) =
            offers(&args.settings, &device, &config, &outline.shapes(), most)?;
        files::print(plan)?;
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

/// Free memory of a device, and whose it is.
fn free(device: Device) -> Option<(usize, String)> {
    let bytes = match device {
        Device::Cuda(number) => cuda::memory(number).ok().map(|(free, _)| free as u64),
        _ => process::memory().map(|memory| memory.available),
    }?;
    let whose = match device {
        Device::Cpu => "free on this machine".to_string(),
        device => format!("free on {device}"),
    };
    Some((bytes as usize, whose))
}

impl Outline {
    fn shapes(&self) -> Shapes {
        Shapes {
            policy: self.policy.clone(),
            prm: self.prm.clone(),
            reference: self.reference.clone(),
            critic: self.critic.clone(),
            kl_reference: self.kl_reference.clone(),
        }
    }

    /// Of a run as its configuration describes it: tokenizer and data are read, weights are not.
    pub(super) fn of_run(config: &Config) -> Result<Outline> {
        let folder = (!config.model.path.is_empty()).then(|| Path::new(&config.model.path));
        folder.map_or(Ok(()), models::check).context("model.path")?;
        let prompts = setup::prompts(config, folder)?;
        let policy = match folder {
            Some(folder) => {
                let model = ModelConfig::load(&adapters::model_folder(folder)?)?;
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
        Outline::new(config, ModelConfig::load(&adapters::model_folder(folder)?)?, None)
    }

    fn new(config: &Config, policy: ModelConfig, prompts: Option<&Prompts>) -> Result<Outline> {
        let shape = |path: &str, key: &'static str| -> Result<ModelConfig> {
            if path.is_empty() {
                return Ok(policy.clone());
            }
            models::check(Path::new(path)).context(key)?;
            ModelConfig::load(&adapters::model_folder(Path::new(path))?).context(key)
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
    memory: Vec<memory::Row>,
    /// The memory that is to do, and what it is.
    room: Option<(usize, String)>,
    offers: Vec<Offer>,
    fit: Option<Fit>,
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
            memory: memory::rows(config, &outline.shapes())?,
            room: free(device),
            offers: Vec::new(),
            fit: None,
            work: Work::of(config, outline),
            rate: rate.map_err(|error| format!("{error:#}")),
        })
    }
}

/// A setting that makes the run smaller, by how much and at what cost.
struct Offer {
    settings: String,
    bytes: usize,
    cost: &'static str,
}

/// The settings with which a run fits, and what it takes then; none where nothing makes it fit.
type Fit = Option<(Vec<String>, usize)>;

/// What each saving saves alone, and those with which the run fits in `most` bytes, where it does not.
fn offers(
    settings: &SettingsArgs,
    device: &[String],
    config: &Config,
    shapes: &Shapes,
    most: Option<usize>,
) -> Result<(Vec<Offer>, Option<Fit>)> {
    let savings = memory::savings(config, shapes);
    // A combination that is no configuration saves nothing.
    let peak = |more: &[String]| -> Result<usize> {
        let Ok(config) = settings.load(&[device, more].concat()) else { return Ok(usize::MAX) };
        Ok(memory::peak(&config, &memory::rows(&config, shapes)?))
    };
    let now = memory::peak(config, &memory::rows(config, shapes)?);
    let mut offers = Vec::new();
    for saving in &savings {
        let bytes = now.saturating_sub(peak(&saving.settings)?);
        if bytes > 0 {
            offers.push(Offer { settings: saving.settings.join(" "), bytes, cost: saving.cost });
        }
    }
    let fit = match most.filter(|&most| now > most) {
        None => None,
        Some(most) => Some(match memory::fit(&savings, most, peak)? {
            None => None,
            Some(found) => {
                let bytes = peak(&found)?;
                Some((found, bytes))
            }
        }),
    };
    Ok((offers, fit))
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
        for on_host in [false, true] {
            let rows = || self.memory.iter().filter(|row| row.on_host == on_host);
            let total = |stage: usize| rows().map(|row| row.stages[stage]).sum::<usize>();
            if on_host {
                if total(0) + total(1) == 0 {
                    continue;
                }
                row("in the host's memory", "", "")?;
            }
            for line in rows().filter(|line| line.stages != [0, 0]) {
                row(line.name, &mib(line.stages[0]), &mib(line.stages[1]))?;
            }
            row("together", &mib(total(0)), &mib(total(1)))?;
        }
        self.write_offers(f)
    }

    fn write_offers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
        if !self.offers.is_empty() {
            writeln!(f, "\n{:>10}  what would save it, alone, and its cost", "MiB less")?;
        }
        for offer in &self.offers {
            writeln!(f, "{:>10}  {}: {}", mib(offer.bytes), offer.settings, offer.cost)?;
        }
        let Some((room, whose)) = &self.room else { return Ok(()) };
        match &self.fit {
            None => Ok(()),
            Some(None) => writeln!(
                f,
                "\nit does not fit in {} MiB, {whose}, with all of these together: take a smaller model, shorter texts or fewer tokens a pass",
                mib(*room)
            ),
            Some(Some((settings, bytes))) => {
                let flags: Vec<String> =
                    settings.iter().map(|setting| format!("--set {setting}")).collect();
                writeln!(
                    f,
                    "\nit does not fit in {} MiB, {whose}; it does, with {} MiB, with\n  {}",
                    mib(*room),
                    mib(*bytes),
                    flags.join(" ")
                )
            }
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
    use prime_model::{AdapterLayout, Layout};

    use super::*;

    fn plan(overrides: &[&str]) -> (Config, Outline) {
        let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
        let config = Config::load(&[], &overrides).unwrap();
        let outline = Outline::of_run(&config).unwrap();
        (config, outline)
    }

    fn of_rl(config: &Config, outline: &Outline, name: &str) -> usize {
        let rows = memory::rows(config, &outline.shapes()).unwrap();
        rows.iter().find(|row| row.name == name).unwrap().stages[1]
    }

    fn total(config: &Config, outline: &Outline) -> usize {
        let rows = memory::rows(config, &outline.shapes()).unwrap();
        rows.iter().map(|row| row.stages[1]).sum()
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
        let elements = Layout::new(&outline.policy).elements;
        assert_eq!(of_rl(&config, &outline, "policy: weights"), 4 * elements);
        assert_eq!(of_rl(&config, &outline, "PRM: moments, master weights"), 8 * elements);
        assert_eq!(of_rl(&config, &outline, "reference"), 0);
        let full = total(&config, &outline);

        let (frozen, outline) = plan(&["prm.reference=frozen", "model.dtype=bfloat16"]);
        assert_eq!(of_rl(&frozen, &outline, "policy: moments, master weights"), 12 * elements);
        assert_eq!(of_rl(&frozen, &outline, "reference"), 2 * elements);

        let (held, outline) = plan(&["policy.kl_coef=0.1"]);
        assert_eq!(of_rl(&held, &outline, "reference of KL"), 4 * elements);

        let (alone, outline) = plan(&["train.outcome_only=true"]);
        // Weights, moments, gradients, and the start to compare with.
        assert_eq!(full - total(&alone, &outline), (4 + 8 + 4 + 4) * elements);
        let (checkpointed, outline) = plan(&["train.checkpoint_activations=true"]);
        assert!(total(&checkpointed, &outline) < full);

        // Moments of a byte, and a scale of 256 of them.
        let (int8, outline) = plan(&["policy.optimizer_state=int8"]);
        let moments = of_rl(&int8, &outline, "policy: moments, master weights");
        assert!((2 * elements..2 * elements + elements / 16).contains(&moments), "{moments}");
        let (low, outline) =
            plan(&["lora.rank=4", "lora.sft=false", "prm.reference=frozen", "train.compare=false"]);
        // Of two models and their optimisers one copy of the weights is left, and the generator reads it; each adapter has weights, moments
        // and gradients of its own, and one vector takes the gradients of norms, which nothing learns from.
        let adapter = AdapterLayout::new(&outline.policy, &low.lora.policy().unwrap()).unwrap();
        let (adapted, norm) = (adapter.elements, outline.policy.hidden_size);
        for (name, bytes) in [
            ("policy: weights", 4 * elements),
            ("PRM: weights", 0),
            ("reference", 0),
            ("start of the run to compare with", 0),
            ("policy: adapters", 4 * adapted),
            ("PRM: adapters", 4 * adapted),
            ("policy: moments, master weights", 8 * adapted),
            ("PRM: moments, master weights", 8 * adapted),
            ("policy: gradients", 4 * (adapted + norm)),
            ("PRM: gradients", 4 * (adapted + norm)),
        ] {
            assert_eq!(of_rl(&low, &outline, name), bytes, "{name}");
        }
        // x A^T: in training with its gradient, in generation without, where the adapter is held once more.
        let products = (2 * low.micro_batch_tokens() + low.rollout.pass_tokens) * adapter.width();
        let before = (2 * (4 + 8 + 4) + 4 + 4) * elements;
        let after = 4 * elements + 2 * (4 + 8 + 4) * adapted + 2 * 4 * norm + 4 * adapted;
        assert_eq!(full - total(&low, &outline), before - (after + 4 * products));

        // On a device: the reference lies in the host's memory, and only its largest part on the device. Of this model that is a
        // layer: four square matrices, three of the feed-forward network, two norms.
        let device = ["device=emulated", "prm.reference=frozen"];
        let (resident, outline) = plan(&device);
        let peak = |config: &Config| {
            memory::peak(config, &memory::rows(config, &outline.shapes()).unwrap())
        };
        let (offloaded, _) = plan(&[&device[..], &["prm.reference_offload=true"]].concat());
        assert_eq!(of_rl(&offloaded, &outline, "reference"), 4 * elements);
        let model = &outline.policy;
        let (hidden, intermediate) = (model.hidden_size, model.intermediate_size);
        let layer = (4 * hidden + 3 * intermediate) * hidden + 2 * hidden;
        assert_eq!(of_rl(&offloaded, &outline, "buffers for what is on the host"), 4 * layer);
        assert_eq!(peak(&resident) - peak(&offloaded), 4 * (elements - layer));
    }

    #[test]
    fn settings_that_make_a_run_fit_are_proposed_and_do() {
        let (config, outline) = plan(&[]);
        let args = SettingsArgs { config: Vec::new(), set: Vec::new() };
        let peak = memory::peak(&config, &memory::rows(&config, &outline.shapes()).unwrap());
        let mut before = Vec::new();
        for percent in [99, 80, 50, 25] {
            let most = peak / 100 * percent;
            let (offers, fit) = offers(&args, &[], &config, &outline.shapes(), Some(most)).unwrap();
            assert!(offers.iter().any(|offer| offer.settings.contains("optimizer_state=int8")));
            let (settings, bytes) = fit.unwrap().unwrap();
            assert!(bytes <= most && !settings.is_empty() && settings != before);
            let config = Config::load(&[], &settings).unwrap();
            let rows = memory::rows(&config, &outline.shapes()).unwrap();
            assert_eq!(memory::peak(&config, &rows), bytes);
            before = settings;
        }
        let (_, fit) = offers(&args, &[], &config, &outline.shapes(), Some(1000)).unwrap();
        assert!(fit.unwrap().is_none());
        let (_, fit) = offers(&args, &[], &config, &outline.shapes(), Some(peak)).unwrap();
        assert!(fit.is_none());
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
