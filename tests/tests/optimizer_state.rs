//! Optimiser state in fewer bits and in other places: what does not change a bit, and that a saved state goes on as it was.

use prime::run::{End, interrupt};
use prime_model::{
    AdamW, AdamWSettings, Architecture, Config, Gradients, RopeScaling, StateSettings, Weights,
};
use prime_runtime::safetensors::{Source, write};
use prime_runtime::{DType, Device, Tensor};
use prime_tests::runs;

/// Some 600,000 parameters: state that passes through a device takes three pieces.
fn config() -> Config {
    Config {
        architecture: Architecture::Llama,
        vocab_size: 700,
        hidden_size: 128,
        intermediate_size: 352,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 4,
        head_dim: 32,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: false,
        qkv_bias: false,
        output_bias: false,
        qk_norm: false,
        max_position_embeddings: 64,
        dtype: DType::F32,
        bos_token_id: None,
        eos_token_ids: vec![1],
        pad_token_id: None,
        initializer_range: 0.02,
    }
}

fn settings(state: StateSettings) -> AdamWSettings {
    AdamWSettings {
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-8,
        weight_decay: 0.1,
        max_gradient_norm: 0.0,
        state,
    }
}

/// Weights after two updates by their own values, with the state saved and restored between them.
fn updated(device: Device, dtype: DType, state: StateSettings) -> Vec<u32> {
    let mut weights = Weights::random(&config(), dtype, 3).unwrap().to(device).unwrap();
    let mut gradients = Gradients::of(&weights).unwrap();
    let values = weights.data().view().to_f32_vec();
    let values = Tensor::from_slice(&values, &[values.len()]).unwrap().to(device).unwrap();
    gradients.data_mut().copy_from(values.view()).unwrap();
    let mut optimizer = AdamW::new(&weights, settings(state)).unwrap();
    optimizer.update(&mut weights, &gradients, 1e-2).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    write(&path, optimizer.tensors().map(|(name, view)| Source::view(name, view)), &[]).unwrap();
    let mut optimizer = AdamW::new(&weights, settings(state)).unwrap();
    optimizer.restore(&path, 1).unwrap();
    optimizer.update(&mut weights, &gradients, 1e-2).unwrap();
    weights.data().view().to_f32_vec().into_iter().map(f32::to_bits).collect()
}

#[test]
fn state_in_the_hosts_memory_gives_the_bits_of_state_on_the_device() {
    for (dtype, int8, masters) in
        [(DType::F32, false, true), (DType::BF16, false, true), (DType::BF16, true, false)]
    {
        let state = StateSettings { int8, masters, offload: false, seed: 7 };
        let on_device = updated(Device::Emulated, dtype, state);
        let offload = StateSettings { offload: true, ..state };
        assert!(updated(Device::Emulated, dtype, offload) == on_device, "{dtype} int8 {int8}");
    }
}

#[test]
fn a_run_with_small_state_that_is_stopped_after_each_step_ends_with_the_bits_of_an_unbroken_one() {
    let settings = [
        "model.dtype=bfloat16",
        "sft.optimizer_state=int8",
        "policy.optimizer_state=int8",
        "policy.master_weights=none",
        "prm.master_weights=none",
    ];
    interrupt::withdraw();
    let config = runs::config(&settings).unwrap();
    let unbroken = tempfile::tempdir().unwrap();
    let end = runs::begin_or_resume(unbroken.path(), &config).unwrap();
    assert!(matches!(end, End::Complete(_)));
    let stopped = tempfile::tempdir().unwrap();
    loop {
        interrupt::request_after(1);
        if let End::Complete(_) = runs::begin_or_resume(stopped.path(), &config).unwrap() {
            break;
        }
    }
    interrupt::withdraw();
    let expected = runs::results(unbroken.path());
    runs::assert_same_results("stopped", &runs::results(stopped.path()), &expected);

    let message = runs::config(&["policy.master_weights=none"]).unwrap_err().to_string();
    assert!(message.contains("float32 weights are their own masters"), "{message}");
    let message = runs::config(&["prm.optimizer_offload=true"]).unwrap_err().to_string();
    assert!(message.contains("where it is already on the cpu"), "{message}");
}
