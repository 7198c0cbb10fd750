//! What a `config.json` may say, and what it may not.

use proptest::prelude::*;

use super::*;

const QWEN2: &str = r#"{
    "architectures": ["Qwen2ForCausalLM"], "vocab_size": 50, "hidden_size": 32, "intermediate_size": 40,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0, "tie_word_embeddings": true, "max_position_embeddings": 64, "torch_dtype": "bfloat16",
    "use_sliding_window": false, "sliding_window": 32, "eos_token_id": 2, "bos_token_id": null
}"#;

const QWEN3: &str = r#"{
    "architectures": ["Qwen3ForCausalLM"], "vocab_size": 50, "hidden_size": 32, "intermediate_size": 40, "head_dim": 12,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": false,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "dtype": "float32",
    "layer_types": ["full_attention", "full_attention"], "attention_bias": false
}"#;

const LLAMA: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "vocab_size": 50, "hidden_size": 24, "intermediate_size": 40,
    "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "attention_bias": true,
    "tie_word_embeddings": true, "rope_theta": 500000.0, "eos_token_id": [3, 4], "pad_token_id": -1,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 64}
}"#;

fn parse(text: &str) -> Result<Config> {
    Config::from_json("config.json", text)
}

pub(crate) fn qwen2() -> Config {
    parse(QWEN2).unwrap()
}

pub(crate) fn qwen3() -> Config {
    parse(QWEN3).unwrap()
}

pub(crate) fn llama() -> Config {
    parse(LLAMA).unwrap()
}

/// The sentence that answers `QWEN2` with one key changed.
fn refusal(base: &str, key: &str, value: Value) -> String {
    let mut config: Value = serde_json::from_str(base).unwrap();
    config[key] = value;
    let message = parse(&config.to_string()).unwrap_err().to_string();
    message.strip_prefix("config.json: ").expect("the file is named").to_string()
}

#[test]
fn both_dialects_of_rope_and_dtype_are_read() {
    let (old, new) = (qwen2(), qwen3());
    assert_eq!((old.rope_theta, old.dtype), (1e6, DType::BF16));
    assert_eq!((new.rope_theta, new.dtype), (1e6, DType::F32));
    let mut moved: Value = serde_json::from_str(LLAMA).unwrap();
    let mut rope = moved["rope_scaling"].clone();
    rope["rope_theta"] = moved["rope_theta"].clone();
    moved["rope_parameters"] = rope;
    moved.as_object_mut().unwrap().retain(|key, _| key != "rope_scaling" && key != "rope_theta");
    assert_eq!(parse(&moved.to_string()).unwrap(), llama());
    let mut older: Value = serde_json::from_str(LLAMA).unwrap();
    older["rope_scaling"] = json!({"type": "linear", "factor": 2.0});
    assert_eq!(
        parse(&older.to_string()).unwrap().rope_scaling,
        RopeScaling::Linear { factor: 2.0 }
    );
}

#[test]
fn families_differ_in_biases_norms_and_head_dim() {
    let (qwen2, qwen3, llama) = (qwen2(), qwen3(), llama());
    assert_eq!((qwen2.qkv_bias, qwen2.output_bias, qwen2.qk_norm), (true, false, false));
    assert_eq!((qwen3.qkv_bias, qwen3.output_bias, qwen3.qk_norm), (false, false, true));
    assert_eq!((llama.qkv_bias, llama.output_bias, llama.qk_norm), (true, true, false));
    assert_eq!((qwen2.head_dim, qwen3.head_dim, llama.head_dim), (8, 12, 4));
    assert_eq!(llama.eos_token_ids, [3, 4]);
    assert_eq!((qwen2.eos_token_ids.as_slice(), llama.pad_token_id), (&[2][..], None));
}

#[test]
fn what_is_written_reads_back_as_it_was() {
    for config in [qwen2(), qwen3(), llama()] {
        let value = config.to_json();
        assert_eq!(parse(&value.to_string()).unwrap(), config);
        // Each dialect alone says the same.
        for gone in [["rope_parameters", "dtype"], ["rope_scaling", "torch_dtype"]] {
            let mut value = value.clone();
            value.as_object_mut().unwrap().retain(|key, _| !gone.contains(&key.as_str()));
            assert_eq!(parse(&value.to_string()).unwrap(), config, "without {gone:?}");
        }
    }
    assert_eq!(qwen2().to_json()["rms_norm_eps"].to_string(), "1e-6");
}

#[test]
fn an_unknown_architecture_is_refused_by_name_beside_the_known_ones() {
    assert_eq!(
        refusal(QWEN2, "architectures", json!(["GPT2LMHeadModel"])),
        "the architecture `GPT2LMHeadModel` is not implemented; known are `LlamaForCausalLM`, `Qwen2ForCausalLM`, \
         `Qwen3ForCausalLM`"
    );
    assert!(refusal(QWEN2, "architectures", Value::Null).contains("known are `LlamaForCausalLM`"));
}

#[test]
fn what_is_not_computed_is_refused_with_its_key() {
    for (base, key, value, expected) in [
        (
            QWEN2,
            "hidden_act",
            json!("gelu"),
            "`hidden_act` is `gelu`, but only `silu` is implemented",
        ),
        (
            LLAMA,
            "mlp_bias",
            json!(true),
            "`mlp_bias` is true, but feed-forward biases are not implemented",
        ),
        (
            LLAMA,
            "rope_scaling",
            json!({"rope_type": "yarn", "factor": 4.0}),
            "`rope_type` is `yarn`, which is not implemented; known are `default`, `linear`, `llama3`",
        ),
        (
            LLAMA,
            "rope_scaling",
            json!({"type": "linear"}),
            "`factor` is missing, expected a number",
        ),
        (
            QWEN3,
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
            "`layer_types` holds \"sliding_attention\", but only `full_attention` is implemented",
        ),
        (
            LLAMA,
            "partial_rotary_factor",
            json!(0.5),
            "`partial_rotary_factor` is 0.5, but only whole heads are rotated here: expected 1",
        ),
        (
            QWEN2,
            "torch_dtype",
            json!("float8_e4m3fn"),
            "`torch_dtype` is `float8_e4m3fn`, expected `float32`, `bfloat16` or `float16`",
        ),
        (
            QWEN2,
            "num_key_value_heads",
            json!(3),
            "`num_attention_heads` is 4, which `num_key_value_heads` (3) does not divide",
        ),
        (
            QWEN2,
            "hidden_size",
            json!(30),
            "`hidden_size` is 30, which `num_attention_heads` (4) does not divide, and there is no `head_dim`",
        ),
        (
            QWEN3,
            "head_dim",
            json!(11),
            "`head_dim` is 11, but rotary embedding needs an even number",
        ),
        (
            QWEN2,
            "vocab_size",
            json!(-1),
            "`vocab_size` is -1, expected a whole number from 1 to 16777216",
        ),
        (
            QWEN2,
            "vocab_size",
            json!(1e30),
            "`vocab_size` is 1e+30, expected a whole number from 1 to 16777216",
        ),
        (
            QWEN2,
            "hidden_size",
            json!("64"),
            "`hidden_size` is \"64\", expected a whole number from 1 to 262144",
        ),
        (
            QWEN2,
            "eos_token_id",
            json!(50),
            "`eos_token_id` is 50, but `vocab_size` is 50: ids end at 49",
        ),
        (QWEN2, "rms_norm_eps", json!(-1.0), "`rms_norm_eps` is -1, expected 0 to 1"),
    ] {
        assert_eq!(refusal(base, key, value), expected);
    }
    let quantised = refusal(QWEN2, "quantization_config", json!({"quant_method": "gptq"}));
    assert!(quantised.starts_with("`quantization_config` is set"), "{quantised}");
}

#[test]
fn a_sliding_window_is_refused_only_where_it_is_in_use() {
    let mut config: Value = serde_json::from_str(QWEN2).unwrap();
    config["use_sliding_window"] = json!(true);
    config["max_window_layers"] = json!(3);
    parse(&config.to_string()).unwrap();
    config["max_window_layers"] = json!(2);
    let message = parse(&config.to_string()).unwrap_err().to_string();
    assert!(message.contains("`use_sliding_window` is true with a window of 32"), "{message}");
}

#[test]
fn two_thetas_that_differ_are_refused() {
    let message = refusal(QWEN3, "rope_theta", json!(10_000.0));
    assert_eq!(
        message,
        "`rope_theta` is 10000 at the top and 1000000 inside `rope_parameters`: which one?"
    );
}

#[test]
fn a_file_that_is_not_an_object_is_refused() {
    for (text, expected) in [
        ("", "config.json: it is not JSON: EOF while parsing a value at line 1 column 0"),
        ("[1]", "config.json: it holds a list, expected an object"),
    ] {
        assert_eq!(parse(text).unwrap_err().to_string(), expected);
    }
    assert!(parse(&"[".repeat(100_000)).is_err());
}

#[test]
fn tokens_that_end_a_text_are_read_from_generation_config_json_too() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), QWEN2).unwrap();
    assert_eq!(Config::load(dir.path()).unwrap().eos_token_ids, [2]);
    let generation = r#"{"eos_token_id": [5, 2], "pad_token_id": 7}"#;
    std::fs::write(dir.path().join("generation_config.json"), generation).unwrap();
    let config = Config::load(dir.path()).unwrap();
    assert_eq!((config.eos_token_ids.as_slice(), config.pad_token_id), (&[5, 2][..], Some(7)));
    std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [5, 99]}"#)
        .unwrap();
    let message = Config::load(dir.path()).unwrap_err().to_string();
    assert!(message.ends_with(
        "generation_config.json: `eos_token_id` is 99, but `vocab_size` is 50: ids end at 49"
    ));
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z0-9_]{0,12}".prop_map(Value::from),
        Just(json!("llama3")),
        Just(json!("linear")),
    ];
    leaf.prop_recursive(2, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("(rope_type|factor|rope_theta|type)", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_value_under_any_key_is_read_or_refused_and_its_layout_does_not_overflow(
        base in prop::sample::select(vec![QWEN2, QWEN3, LLAMA]),
        changes in prop::collection::vec((0usize..40, any_value()), 1..4),
    ) {
        let mut config: Value = serde_json::from_str(base).unwrap();
        let extra = ["rope_parameters", "rope_scaling", "quantization_config", "mlp_bias", "head_dim", "layer_types"];
        let keys: Vec<String> =
            config.as_object().unwrap().keys().cloned().chain(extra.map(String::from)).collect();
        for (index, value) in changes {
            config[&keys[index % keys.len()]] = value;
        }
        if let Ok(config) = parse(&config.to_string()) {
            prop_assert!(config.parameters() < usize::MAX / 8);
            let written = config.to_json().to_string();
            prop_assert_eq!(parse(&written).unwrap(), config);
        }
    }
}
