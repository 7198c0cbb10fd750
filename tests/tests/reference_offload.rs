//! A frozen reference whose weights lie in the host's memory and pass through the device: the bits of one that lies there.

use std::path::Path;

use prime::run::End;
use prime::setup;
use prime::trainer::{Model, Trainer};
use prime_model::{
    Activations, Architecture, Config, Decoder, Limits, Mode, Offloaded, Pack, RopeScaling, Weights,
};
use prime_runtime::{DType, Device};
use prime_tests::runs;

/// Three layers: the two streams of a scoring pass end on either side.
fn config(architecture: Architecture, tied: bool) -> Config {
    Config {
        architecture,
        vocab_size: 43,
        hidden_size: 40,
        intermediate_size: 56,
        num_layers: 3,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 8,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: tied,
        qkv_bias: architecture != Architecture::Qwen3,
        output_bias: architecture == Architecture::Llama,
        qk_norm: architecture == Architecture::Qwen3,
        max_position_embeddings: 64,
        dtype: DType::F32,
        bos_token_id: None,
        eos_token_ids: vec![1],
        pad_token_id: None,
        initializer_range: 0.3,
    }
}

#[test]
fn offloaded_weights_give_the_bits_of_weights_on_the_device() {
    let mut pack = Pack::with_capacity(16, 4);
    pack.push_response(&[3, 7, 5], &[2, 40, 8]);
    pack.push_response(&[9], &[4, 0, 0, 17, 1]);
    let mut other = Pack::with_capacity(16, 4);
    other.push_response(&[1, 2], &[3]);
    let limits = Limits { tokens: 16, picked: 16 };
    for (architecture, tied, dtype) in [
        (Architecture::Llama, false, DType::F32),
        (Architecture::Qwen2, true, DType::BF16),
        (Architecture::Qwen3, true, DType::F32),
        (Architecture::Qwen3, false, DType::BF16),
    ] {
        let config = config(architecture, tied);
        let mut weights = Weights::random(&config, dtype, 3).unwrap();
        // Biases that begin at 0 would not be missed.
        if let Some(bias) = weights.layout().layers[1].qkv_bias.clone() {
            let part = weights.data_mut().view_mut().into_rows(bias);
            prime_kernels::fill::forward(part, 0.5).unwrap();
        }
        for device in [Device::Cpu, Device::Emulated] {
            let decoder = Decoder::new(&config, device, 64).unwrap();
            let score = |weights: prime_model::Parts<'_>, pack: &Pack, mode: Mode| {
                let mut activations =
                    Activations::new(&config, device, dtype, limits, mode).unwrap();
                decoder.forward(weights, pack, 0.9, &mut activations).unwrap();
                let bits = |view: prime_runtime::View<'_>| -> Vec<u32> {
                    view.to_f32_vec().into_iter().map(f32::to_bits).collect()
                };
                let picked = pack.picked.len();
                (bits(activations.log_probs(picked)), bits(activations.entropy(picked)))
            };
            let there = weights.copy_to(device).unwrap();
            let mut passing =
                Offloaded::new(weights.duplicate().unwrap(), &config, device).unwrap();
            assert_eq!(passing.host().data().device(), Device::Cpu);
            for pack in [&pack, &other, &pack] {
                for mode in [Mode::Score, Mode::TrainCheckpointed] {
                    let expected = score((&there).into(), pack, mode);
                    let found = score((&mut passing).into(), pack, mode);
                    assert_eq!(found, expected, "{architecture:?} {dtype} on {device}");
                }
            }
            let all = weights.layout().elements * dtype.size();
            assert!(Offloaded::staging_bytes(&config, dtype) < all / 3 + all / 10);
        }
    }
}

/// What a step made of its batch and of its models.
fn step(data: &Path, more: &[&str], offload: bool, other: bool) -> [Vec<u32>; 3] {
    let mut settings = runs::parities(data);
    settings.extend(more.iter().map(|text| text.to_string()));
    settings.push(format!("prm.reference_offload={offload}"));
    let config = runs::config(&settings).unwrap();
    let prompts = setup::prompts(&config, None).unwrap();
    let policy = setup::base_model(&config, &prompts).unwrap();
    let prm: Model = policy.duplicate().unwrap();
    let reference = match other {
        true => {
            let folder = runs::other_model(data, &data.join("tokenizer"));
            setup::load_reference(&config, &folder, prompts.tokenizer()).unwrap()
        }
        false => prime::adapters::reference(&config, &policy).unwrap(),
    };
    let expected = if offload { Device::Cpu } else { config.device() };
    assert_eq!(reference.weights.data().device(), expected);
    let mut trainer = Trainer::new(&config, prompts, policy, Some((prm, Some(reference)))).unwrap();
    let (_, batch) = trainer.step(&mut |_| ()).unwrap();
    let bits =
        |values: &[f32]| -> Vec<u32> { values.iter().map(|value| value.to_bits()).collect() };
    [
        bits(&batch.ref_log_probs),
        bits(&trainer.prm().unwrap().data().view().to_f32_vec()),
        bits(&trainer.policy().data().view().to_f32_vec()),
    ]
}

#[test]
fn a_step_with_an_offloaded_reference_has_the_bits_of_one_without() {
    let data = tempfile::tempdir().unwrap();
    let settings = [
        "device=emulated",
        "prm.reference=frozen",
        "prm.warmup_batches=0",
        "rollout.samples=4",
        "filter.groups=4",
        // Several micro-batches: the layers pass by several times.
        "train.micro_batch_tokens=64",
    ];
    let kto = ["prm.loss=kto", "model.dtype=bfloat16"];
    for (more, other) in [(&[][..], false), (&kto[..], false), (&[][..], true)] {
        let settings = [&settings, more].concat();
        let resident = step(data.path(), &settings, false, other);
        assert!(!resident[0].is_empty());
        assert!(step(data.path(), &settings, true, other) == resident, "{more:?} {other}");
    }
}

#[test]
fn an_offload_of_nothing_is_refused() {
    let refusal = |settings: &[&str]| -> String {
        let folder = tempfile::tempdir().unwrap();
        let run =
            runs::config(settings).and_then(|config| runs::begin_or_resume(folder.path(), &config));
        match run {
            Err(error) => format!("{error:#}"),
            Ok(End::Complete(_) | End::Interrupted(_)) => panic!("{settings:?} ran"),
        }
    };
    let offload = "prm.reference_offload=true";
    let message = refusal(&[offload, "prm.reference=frozen"]);
    assert!(message.contains("where it is already on the cpu"), "{message}");
    let message = refusal(&[offload, "device=emulated", "sft.steps=0"]);
    assert!(message.contains("prm.reference is \"policy\""), "{message}");
    let lora = ["prm.reference=frozen", "lora.rank=2", "eval.problems=1", "sft.steps=0"];
    let message = refusal(&[&[offload, "device=emulated"], &lora[..]].concat());
    assert!(message.contains("shares its weights"), "{message}");
}
