//! Model folders: what is read is what is in the files, what does not fit is refused by name, what is saved reads back.

mod support;

use std::path::Path;

use prime_model::folder::{self, Companions};
use prime_model::{ChatTemplate, Config, Tokenizer, Weights};
use prime_runtime::safetensors::{self, Dtype, Source};
use prime_runtime::{DType, Device, Element, Tensor, bf16};
use support::{Folder, fixtures, vectors};

fn fixture(start: &str) -> Folder {
    fixtures().into_iter().find(|folder| folder.name.starts_with(start)).unwrap()
}

#[test]
fn every_parameter_is_read_to_its_place_in_both_dtypes() {
    for Folder { name, path } in fixtures().into_iter().chain(vectors()) {
        println!("{name}");
        let config = Config::load(&path).unwrap();
        let files = safetensors::Folder::open(&path).unwrap();
        let wide = Weights::load(&path, &config, Device::Cpu, DType::F32).unwrap();
        let narrow = Weights::load(&path, &config, Device::Cpu, DType::BF16).unwrap();
        for tensor in &wide.layout().tensors {
            let expected = files.read_f32(&tensor.name).unwrap();
            assert_eq!(wide.view(&tensor.range, &tensor.dims).as_slice::<f32>(), expected);
            let rounded: Vec<bf16> = expected.iter().map(|&x| Element::from_f32(x)).collect();
            assert_eq!(narrow.view(&tensor.range, &tensor.dims).as_slice::<bf16>(), rounded);
        }
    }
}

#[test]
fn the_families_are_told_apart_by_their_folders() {
    let [llama, qwen2, qwen3] =
        ["llama3", "qwen2", "qwen3"].map(|name| Config::load(&fixture(name).path).unwrap());
    assert!(llama.output_bias && llama.qkv_bias && !llama.tie_word_embeddings);
    assert!(qwen2.qkv_bias && !qwen2.output_bias && qwen2.tie_word_embeddings);
    assert!(qwen3.qk_norm && !qwen3.qkv_bias && qwen3.head_dim == 12);
    assert_eq!((llama.dtype, qwen2.dtype, qwen3.dtype), (DType::F32, DType::F32, DType::BF16));
    assert_eq!(llama.eos_token_ids, [2, 0]);
}

#[test]
fn a_saved_folder_reads_back_bit_for_bit_with_its_tokenizer_and_template() {
    for Folder { name, path } in fixtures() {
        println!("{name}");
        let parent = tempfile::tempdir().unwrap();
        let saved = parent.path().join("saved");
        let config = Config::load(&path).unwrap();
        let weights = Weights::load(&path, &config, Device::Cpu, config.dtype).unwrap();
        // Twice: an older folder of ours is replaced.
        for _ in 0..2 {
            folder::save(&saved, &config, &weights, Companions::Of(&path)).unwrap();
        }
        assert_eq!(Config::load(&saved).unwrap(), config);
        let read = Weights::load(&saved, &config, Device::Cpu, config.dtype).unwrap();
        let bits = |weights: &Weights| -> Vec<f32> { weights.data().view().to_f32_vec() };
        assert_eq!(bits(&read), bits(&weights));
        Tokenizer::load(&path).unwrap().check_same(&Tokenizer::load(&saved).unwrap()).unwrap();
        ChatTemplate::load(&saved).unwrap();
    }
}

#[test]
fn a_model_made_from_nothing_is_saved_with_the_tokenizer_made_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("new");
    let tokenizer = Tokenizer::characters("0123456789+= ", "<pad>", "<eos>").unwrap();
    let config = Config {
        vocab_size: tokenizer.vocab_size(),
        eos_token_ids: vec![1],
        pad_token_id: Some(0),
        ..Config::load(&fixture("qwen3").path).unwrap()
    };
    let weights = Weights::random(&config, DType::F32, 1).unwrap();
    folder::save(&saved, &config, &weights, Companions::Tokenizer(&tokenizer)).unwrap();
    let read = Config::load(&saved).unwrap();
    assert_eq!(read, Config { dtype: DType::F32, ..config });
    assert_eq!(Tokenizer::load(&saved).unwrap().eos_id(), Some(1));
}

#[test]
fn a_folder_with_other_files_in_it_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.tex"), "years of work").unwrap();
    let config = Config::load(&fixture("qwen2").path).unwrap();
    let weights = Weights::random(&config, DType::F32, 1).unwrap();
    let message =
        folder::save(dir.path(), &config, &weights, Companions::None).unwrap_err().to_string();
    assert!(message.contains("holds files that were not saved by this program"), "{message}");
    assert!(dir.path().join("thesis.tex").exists());
}

/// Writes the weights of a fixture under changed names or shapes, and the sentence that answers them.
fn refusal(start: &str, change: impl Fn(&str) -> Option<Tensor>, extra: &[&str]) -> String {
    let path = fixture(start).path;
    let config = Config::load(&path).unwrap();
    let weights = Weights::load(&path, &config, Device::Cpu, DType::F32).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let small = Tensor::from_slice(&[1f32, 2.0], &[2]).unwrap();
    let changed: Vec<(String, Option<Tensor>)> =
        weights.layout().tensors.iter().map(|t| (t.name.clone(), change(&t.name))).collect();
    let kept =
        weights.layout().tensors.iter().zip(&changed).filter_map(
            |(tensor, (name, new))| match new {
                Some(new) if new.dims().is_empty() => None,
                Some(new) => Some(Source::view(name.clone(), new.view())),
                None => Some(Source::view(name.clone(), weights.view(&tensor.range, &tensor.dims))),
            },
        );
    let extra = extra.iter().map(|name| Source::view(*name, small.view()));
    write(dir.path(), kept.chain(extra));
    match Weights::load(dir.path(), &config, Device::Cpu, DType::F32) {
        Ok(_) => "read".to_string(),
        Err(error) => error.to_string().split_once(": ").unwrap().1.to_string(),
    }
}

fn write<'a>(dir: &Path, sources: impl Iterator<Item = Source<'a>>) {
    safetensors::write(dir.join("model.safetensors"), sources, &[]).unwrap();
}

/// Stands for a tensor that is left out.
fn gone() -> Option<Tensor> {
    Some(Tensor::from_slice(&[0f32], &[]).unwrap())
}

#[test]
fn tensors_that_are_missing_strange_or_of_another_shape_are_refused_by_name() {
    assert_eq!(refusal("qwen2", |_| None, &[]), "read");
    assert_eq!(
        refusal("qwen2", |name| if name == "model.norm.weight" { gone() } else { None }, &[]),
        "the model needs tensors that the files do not hold: `model.norm.weight`"
    );
    assert_eq!(
        refusal("qwen2", |name| if name.contains("layers.0.mlp") { gone() } else { None }, &[]),
        "the model needs tensors that the files do not hold: `model.layers.0.mlp.gate_proj.weight`, \
         `model.layers.0.mlp.up_proj.weight`, `model.layers.0.mlp.down_proj.weight`"
    );
    assert_eq!(
        refusal("qwen3", |name| if name == "lm_head.weight" { gone() } else { None }, &[]),
        "there is no tensor `lm_head.weight`, but `tie_word_embeddings` is false: the final projection has no weights"
    );
    assert_eq!(
        refusal("qwen2", |_| None, &["score.weight"]),
        "the files hold tensors that this model has no place for: `score.weight`; is config.json of another model?"
    );
    assert_eq!(
        refusal("qwen2", |_| None, &["model.layers.0.self_attn.rotary_emb.inv_freq"]),
        "read"
    );
    let wrong = |name: &str| {
        (name == "model.norm.weight").then(|| Tensor::from_slice(&[1f32; 8], &[8]).unwrap())
    };
    assert_eq!(
        refusal("qwen2", wrong, &[]),
        "tensor `model.norm.weight` has shape [8], but config.json makes it [16]"
    );
    let wrong = |name: &str| {
        (name == "model.norm.weight").then(|| Tensor::from_slice(&[1u32; 16], &[16]).unwrap())
    };
    assert_eq!(
        refusal("qwen2", wrong, &[]),
        "tensor `model.norm.weight` is U32, expected F32, BF16 or F16"
    );
}

#[test]
fn a_tied_projection_may_be_in_the_files_if_it_is_the_embedding() {
    let path = fixture("qwen2").path;
    let config = Config::load(&path).unwrap();
    let weights = Weights::load(&path, &config, Device::Cpu, DType::F32).unwrap();
    let layout = weights.layout().clone();
    let embedding = weights.view(&layout.embedding, &[config.vocab_size, config.hidden_size]);
    let mut other = embedding.as_slice::<f32>().to_vec();
    for equal in [true, false] {
        other[7] += if equal { 0.0 } else { 1.0 };
        let dir = tempfile::tempdir().unwrap();
        let sources = layout
            .tensors
            .iter()
            .map(|t| Source::view(t.name.clone(), weights.view(&t.range, &t.dims)));
        let bytes: Vec<u8> = other.iter().flat_map(|x| x.to_le_bytes()).collect();
        let head = Source::bytes("lm_head.weight", Dtype::F32, embedding.dims(), &bytes);
        write(dir.path(), sources.chain([head]));
        let result = Weights::load(dir.path(), &config, Device::Cpu, DType::F32);
        assert_eq!(result.is_ok(), equal);
        if let Err(error) = result {
            let message = error.to_string();
            assert!(
                message.contains("`lm_head.weight` and `model.embed_tokens.weight` differ"),
                "{message}"
            );
        }
    }
}

#[test]
fn a_configuration_that_asks_for_more_than_the_files_hold_reserves_no_memory() {
    let path = fixture("llama3").path;
    let config =
        Config { vocab_size: 1 << 24, hidden_size: 1 << 18, ..Config::load(&path).unwrap() };
    let message = Weights::load(&path, &config, Device::Cpu, DType::F32).unwrap_err().to_string();
    assert!(
        message.contains("has shape [288, 16], but config.json makes it [16777216, 262144]"),
        "{message}"
    );
}
