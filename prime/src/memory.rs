//! What a run reserves, by use: counted from its configuration and the shapes of its models, before any of it is reserved.

use prime_model::{
    Activations, AdapterLayout, Config as ModelConfig, Generator, Layout, Limits, LoraSettings,
    Mode, Offloaded, Result,
};
use prime_runtime::{DType, Device};

use crate::config::{Config, OptimizerConfig, Reference};

/// The shapes of a run's models.
#[derive(Clone, Debug, PartialEq)]
pub struct Shapes {
    /// The policy's.
    pub policy: ModelConfig,
    /// The PRM's, where there is one.
    pub prm: Option<ModelConfig>,
    /// That of the frozen reference, where there is one.
    pub reference: Option<ModelConfig>,
    /// That of a critic of its own, where there is one.
    pub critic: Option<ModelConfig>,
    /// That of the frozen model that KL penalties compare with, where there is one.
    pub kl_reference: Option<ModelConfig>,
}

/// Memory for one use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What for.
    pub name: &'static str,
    /// Bytes during SFT, and during RL.
    pub stages: [usize; 2],
    /// Whether it lies in the host's memory where the run's device is another.
    pub on_host: bool,
}

/// What one learner holds.
struct Learner {
    adapters: usize,
    masters_and_moments: usize,
    staging: usize,
    gradients: usize,
}

/// Elements that learn of a model.
fn trainable(model: &ModelConfig, lora: Option<&LoraSettings>) -> Result<usize> {
    Ok(match lora {
        Some(lora) => AdapterLayout::new(model, lora)?.elements,
        None => Layout::new(model).elements,
    })
}

fn learner(
    model: &ModelConfig,
    lora: Option<&LoraSettings>,
    optimizer: &OptimizerConfig,
    dtype: DType,
) -> Result<Learner> {
    let elements = trainable(model, lora)?;
    let (state, staging) = optimizer.settings(0).state.bytes(elements, dtype);
    let layout = Layout::new(model);
    let vectors = layout.tensors.iter().filter(|tensor| tensor.dims.len() == 1);
    let sink = vectors.map(|tensor| tensor.dims[0]).max().unwrap_or(0);
    Ok(Learner {
        adapters: if lora.is_some() { elements * dtype.size() } else { 0 },
        masters_and_moments: state,
        staging,
        gradients: 4 * (elements + if lora.is_some() { sink } else { 0 }),
    })
}

/// The buffers of a run's two stages, as they are laid out.
///
/// # Errors
/// When the adapters of the configuration are not right.
pub fn rows(config: &Config, shapes: &Shapes) -> Result<Vec<Row>> {
    let (device, dtype) = (config.device(), config.dtype());
    let size = dtype.size();
    let weights = |model: &ModelConfig| Layout::new(model).elements * size;
    let policy = &shapes.policy;
    let (lora, prm_lora) = (config.lora.policy(), config.lora.prm());
    let (lora, prm_lora) = (lora.as_ref(), prm_lora.as_ref());
    let sft_lora = lora.filter(|_| config.lora.sft);
    let sft = learner(policy, sft_lora, &config.sft.optimizer, dtype)?;
    let rl = learner(policy, lora, &config.policy.optimizer, dtype)?;
    let prm = match &shapes.prm {
        Some(model) => Some((model, learner(model, prm_lora, &config.prm.optimizer, dtype)?)),
        None => None,
    };
    let critic = match &shapes.critic {
        Some(model) => Some((model, learner(model, None, &config.critic.optimizer, dtype)?)),
        None => None,
    };
    // With adapters, models of one origin share their weights; what SFT left in adapters is copied with them.
    let sft_adapters = if config.sft.steps > 0 && sft_lora.is_some() { rl.adapters } else { 0 };
    let prm_weights = |model: &ModelConfig| match (lora, config.prm.path.is_empty()) {
        (Some(_), true) => 0,
        _ => weights(model),
    };
    let reference = match &shapes.reference {
        Some(model) => match (lora, config.prm.reference_path.is_empty()) {
            (Some(_), true) => {
                if config.prm.path.is_empty() {
                    sft_adapters
                } else {
                    0
                }
            }
            _ => weights(model),
        },
        None => 0,
    };
    let offloads = config.prm.reference_offload && device != Device::Cpu && reference > 0;
    let reference_staging = match &shapes.reference {
        Some(model) if offloads => Offloaded::staging_bytes(model, dtype),
        _ => 0,
    };
    let compared = match (config.train.compare && prm.is_some(), lora) {
        (false, _) => 0,
        (true, Some(_)) => rl.adapters,
        (true, None) => weights(policy),
    };
    let mode =
        if config.train.checkpoint_activations { Mode::TrainCheckpointed } else { Mode::Train };
    let tokens = config.micro_batch_tokens();
    let activations =
        |model: &ModelConfig, mode: Mode, lora: Option<&LoraSettings>| -> Result<usize> {
            let plan = Activations::plan(model, dtype, Limits { tokens, picked: tokens }, mode);
            let columns = match lora {
                Some(lora) => AdapterLayout::new(model, lora)?.width(),
                None => 0,
            };
            let products = if mode == Mode::Score { 1 } else { 2 };
            Ok(plan.bytes() + products * tokens * columns * size)
        };
    // Models of one shape share the buffers.
    let widest = [lora, prm_lora].into_iter().flatten().max_by_key(|lora| lora.rank);
    let shared = activations(policy, mode, widest)?;
    let other = |model: &Option<ModelConfig>, mode, lora| match model {
        Some(model) if model != policy => activations(model, mode, lora),
        _ => Ok(0),
    };
    let separate = other(&shapes.prm, mode, prm_lora)?
        + other(&shapes.reference, Mode::Score, None)?
        + other(&shapes.critic, mode, None)?
        + other(&shapes.kl_reference, Mode::Score, None)?;
    let limits = config.generation_limits();
    let kv = policy.num_kv_heads * policy.head_dim;
    let cache = 2 * policy.num_layers * limits.slots * limits.positions * kv * size;
    let adapter = lora.map(|lora| AdapterLayout::new(policy, lora)).transpose()?;
    let generation = Generator::bytes(policy, device, dtype, limits, adapter.as_ref());
    // On the host it is small, and depends on the number of threads.
    let (of_training, of_generation) = match device {
        Device::Cpu => (0, 0),
        _ => {
            let sizes = policy.working_memory(dtype);
            (sizes.training(tokens), sizes.decoding(limits.slots, limits.positions))
        }
    };
    let row = |name, sft, rl| Row { name, stages: [sft, rl], on_host: false };
    let state = |name, sft, rl, offload: bool| Row {
        name,
        stages: [sft, rl],
        on_host: offload && device != Device::Cpu,
    };
    let of_prm = |bytes: fn(&Learner) -> usize| prm.as_ref().map_or(0, |(_, prm)| bytes(prm));
    let mut rows = vec![
        row("policy: weights", weights(policy), weights(policy)),
        row("policy: adapters", sft.adapters, rl.adapters),
    ];
    // The two stages may keep their state in different places.
    let (early, late) =
        (config.sft.optimizer.optimizer_offload, config.policy.optimizer.optimizer_offload);
    if early == late {
        rows.push(state(
            "policy: moments, master weights",
            sft.masters_and_moments,
            rl.masters_and_moments,
            late,
        ));
    } else {
        rows.push(state("policy: moments, master weights", sft.masters_and_moments, 0, early));
        rows.push(state("policy: moments, master weights", 0, rl.masters_and_moments, late));
    }
    rows.extend([
        row("policy: gradients", sft.gradients, rl.gradients),
        row("PRM: weights", 0, prm.as_ref().map_or(0, |(model, _)| prm_weights(model))),
        row("PRM: adapters", 0, of_prm(|prm| prm.adapters)),
        state(
            "PRM: moments, master weights",
            0,
            of_prm(|prm| prm.masters_and_moments),
            config.prm.optimizer.optimizer_offload,
        ),
        row("PRM: gradients", 0, of_prm(|prm| prm.gradients)),
        row(
            "buffers for what is on the host",
            sft.staging,
            rl.staging
                + reference_staging
                + of_prm(|prm| prm.staging)
                + critic.as_ref().map_or(0, |(_, critic)| critic.staging),
        ),
        state("reference", 0, reference, offloads),
        row("reference of KL", 0, shapes.kl_reference.as_ref().map_or(0, weights)),
        row("critic: weights", 0, critic.as_ref().map_or(0, |(model, _)| weights(model))),
        state(
            "critic: moments, master weights",
            0,
            critic.as_ref().map_or(0, |(_, critic)| critic.masters_and_moments),
            config.critic.optimizer.optimizer_offload,
        ),
        row("critic: gradients", 0, critic.as_ref().map_or(0, |(_, critic)| critic.gradients)),
        row("start of the run to compare with", 0, compared),
        row("activations", activations(policy, mode, sft_lora)?, shared + separate),
        row("generation: KV cache", 0, cache),
        row("generation: weights of its own, buffers", 0, generation - cache),
        row("working memory of kernels, at most", of_training, of_training + of_generation),
    ]);
    Ok(rows)
}

/// The larger of the two stages, in the memory of the run's device.
pub fn peak(config: &Config, rows: &[Row]) -> usize {
    let stage = |index: usize| -> usize {
        rows.iter().filter(|row| !row.on_host).map(|row| row.stages[index]).sum()
    };
    if config.sft.steps > 0 { stage(0).max(stage(1)) } else { stage(1) }
}

/// A setting that makes a run smaller, and what it costs.
pub struct Saving {
    /// As for `--set`.
    pub settings: Vec<String>,
    /// What it costs.
    pub cost: &'static str,
}

/// What may make a run smaller, from the least to the most costly; each is to be laid over those before it.
pub fn savings(config: &Config, shapes: &Shapes) -> Vec<Saving> {
    let saving = |settings: &[&str], cost| Saving {
        settings: settings.iter().map(|text| text.to_string()).collect(),
        cost,
    };
    let mut found = Vec::new();
    let sections: &[&str] =
        if shapes.prm.is_some() { &["sft", "policy", "prm"] } else { &["sft", "policy"] };
    let each = |key: &str| -> Vec<String> {
        sections.iter().map(|section| format!("{section}.{key}")).collect()
    };
    let all = |key: &str, cost| Saving { settings: each(key), cost };
    if config.train.compare && shapes.prm.is_some() {
        found.push(saving(&["train.compare=false"], "no run on outcomes alone to compare with"));
    }
    let longest = config.rollout.max_prompt_tokens + config.rollout.max_new_tokens;
    let mut tokens = config.micro_batch_tokens();
    while tokens / 2 >= longest.max(256) {
        tokens /= 2;
        let setting = format!("train.micro_batch_tokens={tokens}");
        found.push(saving(&[&setting], "smaller products, the same results"));
    }
    if config.policy.optimizer.optimizer_state == crate::config::StateName::Float32 {
        found.push(all("optimizer_state=int8", "moments rounded at random to 3 bits of fraction"));
    }
    if !config.train.checkpoint_activations {
        found.push(saving(
            &["train.checkpoint_activations=true"],
            "a second forward pass in each update, the same results",
        ));
    }
    let mut slots = config.rollout.slots;
    while slots / 2 >= 8 {
        slots /= 2;
        let setting = format!("rollout.slots={slots}");
        found.push(saving(&[&setting], "fewer sequences drawn at once, the same results"));
    }
    if config.device() != Device::Cpu && !config.policy.optimizer.optimizer_offload {
        found.push(all(
            "optimizer_offload=true",
            "the state crosses to the device and back each update",
        ));
    }
    let (prm, alone) = (&config.prm, config.lora.rank == 0);
    let frozen = shapes.reference.is_some();
    if config.device() != Device::Cpu && frozen && alone && !prm.reference_offload {
        found.push(saving(
            &["prm.reference_offload=true"],
            "the reference crosses to the device for each micro-batch that it scores",
        ));
    }
    if config.dtype() == DType::F32 {
        found.push(saving(
            &["model.dtype=bfloat16"],
            "8 bits of fraction in weights and activations",
        ));
    }
    found.push(all("master_weights=none", "weights of 8 bits, rounded at random"));
    if config.lora.rank == 0 {
        for rank in [64, 16, 4] {
            // Adapters want no small state: there is little of it.
            let mut settings =
                vec![format!("lora.rank={rank}"), format!("lora.alpha={}", 2 * rank)];
            settings.push("train.compare=false".to_string());
            if prm.reference_offload && prm.reference_path.is_empty() {
                settings.push("prm.reference_offload=false".to_string());
            }
            if config.sft.steps > 0 && config.model.path.is_empty() {
                settings.push("lora.sft=false".to_string());
            }
            found.push(Saving { settings, cost: "adapters learn, and not all weights" });
        }
    }
    if config.prm.reference == Reference::Frozen && config.lora.rank == 0 {
        let mut settings = vec!["prm.reference=policy"];
        if prm.reference_offload {
            settings.push("prm.reference_offload=false");
        }
        found.push(saving(&settings, "another algorithm: the running policy is the reference"));
    }
    found
}

/// The fewest of the savings, tried in their order, with which a run fits: those that are needed, as settings; none when it does not fit with all
/// of them.
///
/// # Errors
/// What `peak_with` says of settings.
pub fn fit<E>(
    savings: &[Saving],
    most: usize,
    mut peak_with: impl FnMut(&[String]) -> std::result::Result<usize, E>,
) -> std::result::Result<Option<Vec<String>>, E> {
    let settings = |taken: &[bool]| -> Vec<String> {
        // A later value of a setting stands in place of an earlier one.
        let mut kept: Vec<String> = Vec::new();
        let chosen = savings.iter().zip(taken).filter(|(_, taken)| **taken);
        for setting in chosen.flat_map(|(saving, _)| &saving.settings) {
            let key = setting.split('=').next().unwrap_or(setting);
            kept.retain(|other| other.split('=').next() != Some(key));
            kept.push(setting.clone());
        }
        kept
    };
    let mut taken = vec![false; savings.len()];
    if peak_with(&[])? <= most {
        return Ok(Some(Vec::new()));
    }
    let mut fits = false;
    for index in 0..savings.len() {
        taken[index] = true;
        if peak_with(&settings(&taken))? <= most {
            fits = true;
            break;
        }
    }
    if !fits {
        return Ok(None);
    }
    // What was taken on the way and is not needed beside the last is given back, the most costly first.
    for index in (0..savings.len()).rev() {
        if taken[index] {
            taken[index] = false;
            if peak_with(&settings(&taken))? > most {
                taken[index] = true;
            }
        }
    }
    Ok(Some(settings(&taken)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saving(settings: &[&str]) -> Saving {
        Saving { settings: settings.iter().map(|text| text.to_string()).collect(), cost: "" }
    }

    #[test]
    fn a_fit_takes_the_cheapest_savings_and_gives_back_what_is_not_needed() {
        let savings = [saving(&["a=1"]), saving(&["a=2"]), saving(&["b=1"]), saving(&["c=1"])];
        let peak = |settings: &[String]| -> Result<usize> {
            let worth = |setting: &String| match setting.as_str() {
                "a=1" => 10,
                "a=2" => 20,
                "b=1" => 5,
                "c=1" => 60,
                other => panic!("{other}"),
            };
            Ok(100 - settings.iter().map(worth).sum::<usize>())
        };
        let fit = |most| fit(&savings, most, peak).unwrap();
        assert_eq!(fit(100).unwrap(), Vec::<String>::new());
        assert_eq!(fit(90).unwrap(), ["a=1"]);
        assert_eq!(fit(75).unwrap(), ["a=2", "b=1"]);
        // With c, a and b are not needed.
        assert_eq!(fit(40).unwrap(), ["c=1"]);
        assert_eq!(fit(15).unwrap(), ["a=2", "b=1", "c=1"]);
        assert_eq!(fit(10), None);
    }
}
