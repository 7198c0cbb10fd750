//! Data of several formats through whole runs, and runs from base models without SFT.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use prime::run::End;
use prime::setup;
use prime::tasks::Purpose;
use prime_model::folder::{self, Companions};
use prime_model::{Config as ModelConfig, Tokenizer, Weights};
use prime_runtime::DType;
use prime_tests::runs;
use serde_json::{Value, json};

/// Copies a JSON Lines file of questions and answers into a Parquet file.
fn to_parquet(lines: &Path) -> PathBuf {
    let text = std::fs::read_to_string(lines).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let schema =
        "message schema { required binary question (UTF8); required binary answer (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let path = lines.with_extension("parquet");
    let properties =
        WriterProperties::builder().set_compression(parquet::basic::Compression::SNAPPY).build();
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    for rows in rows.chunks(rows.len().div_ceil(2)) {
        let mut group = writer.next_row_group().unwrap();
        for name in ["question", "answer"] {
            let values: Vec<ByteArray> =
                rows.iter().map(|row| row[name].as_str().unwrap().into()).collect();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
    path
}

/// What a run computed, but for the configuration, which names its files.
fn results<S: AsRef<str>>(settings: &[S]) -> BTreeMap<String, Vec<u8>> {
    let run = tempfile::tempdir().unwrap();
    let config = runs::config(settings).unwrap();
    let end = runs::begin_or_resume(run.path(), &config).unwrap();
    assert!(matches!(end, End::Complete(_)));
    let mut results = runs::results(run.path());
    results.remove("config.toml").unwrap();
    results
}

#[test]
fn a_run_on_parquet_files_is_the_run_on_json_lines() {
    let data = tempfile::tempdir().unwrap();
    let lines = runs::parities(data.path());
    let mut columns = lines.clone();
    for name in ["train", "test"] {
        let path = to_parquet(&data.path().join(format!("{name}.jsonl")));
        columns.push(format!("task.jsonl.{name}={}", path.display()));
    }
    // Reports call a data set by its file.
    let name = |settings: Vec<String>| [settings, vec!["task.jsonl.name=x".into()]].concat();
    runs::assert_same_results("parquet", &results(&name(columns)), &results(&name(lines)));
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models/qwen2-tied")
}

/// The whole data set in both formats: the same demonstrations and prompts in the same order, and the same bits of a run.
#[test]
fn gsm8k_gives_the_same_batches_from_both_formats_where_it_is_at_hand() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/gsm8k");
    if !source.exists() {
        println!("skipped: there is no {}", source.display());
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let settings = |kind: &str| {
        let mut settings = vec![
            "task.name=jsonl".to_string(),
            "task.jsonl.name=gsm8k".into(),
            format!("model.tokenizer={}", fixture().display()),
            "rollout.max_prompt_tokens=400".into(),
            "train.micro_batch_tokens=1200".into(),
            "sft.steps=2".into(),
            "train.steps=1".into(),
            "prm.warmup_batches=1".into(),
            "train.compare=false".into(),
            "eval.problems=2".into(),
        ];
        for name in ["train", "test"] {
            let lines = data.path().join(format!("{name}.jsonl"));
            std::fs::copy(source.join(format!("{name}.jsonl")), &lines).unwrap();
            let path = if kind == "parquet" { to_parquet(&lines) } else { lines };
            settings.push(format!("task.jsonl.{name}={}", path.display()));
        }
        settings
    };
    let drawn = |settings: &[String]| {
        let prompts = setup::prompts(&runs::config(settings).unwrap(), None).unwrap();
        let draw = |place| {
            let index = prompts.training_index(place, 3, Purpose::Rl);
            let problem = prompts.task().problem(prime::tasks::Split::Train, index).unwrap();
            let shown = prompts.demonstration(place, 3, 1 << 20, 1 << 20).unwrap();
            let shown = shown.map(|shown| (shown.prompt, shown.response));
            (index, prompts.encode_prompt(&problem).unwrap(), shown)
        };
        (0..500).map(draw).collect::<Vec<_>>()
    };
    let (lines, columns) = (settings("jsonl"), settings("parquet"));
    assert_eq!(drawn(&lines), drawn(&columns));
    runs::assert_same_results("parquet", &results(&columns), &results(&lines));
}

/// Conversations have no answers and so nothing to evaluate, and teach all the same: the loss is on what the assistant says.
#[test]
fn chats_alone_are_learned_from_without_anything_held_out() {
    let data = tempfile::tempdir().unwrap();
    let chat = json!({"conversations": [
        {"from": "human", "value": "one?"}, {"from": "gpt", "value": "two"},
        {"from": "human", "value": "three?"}, {"from": "gpt", "value": "four"},
    ]});
    let train = data.path().join("chats.jsonl");
    std::fs::write(&train, format!("{chat}\n")).unwrap();
    let settings = [
        "task.name=jsonl".to_string(),
        format!("task.jsonl.train={}", train.display()),
        "task.jsonl.stage=sft".into(),
        "task.jsonl.prompt_field=conversations".into(),
        "task.jsonl.chat=true".into(),
        format!("model.tokenizer={}", fixture().display()),
        "rollout.max_prompt_tokens=200".into(),
        "sft.steps=40".into(),
        "sft.warmup=4".into(),
        "sft.batch_size=2".into(),
    ];
    let config = runs::config(&settings).unwrap();
    let prompts = setup::prompts(&config, None).unwrap();
    let read = |place| {
        let shown = prompts.demonstration(place, 1, 1 << 20, 1 << 20).unwrap().unwrap();
        let text = |ids: &[u32]| prompts.tokenizer().decode(ids, false).unwrap();
        (text(&shown.prompt), text(&shown.response))
    };
    let system = "<|start|>system\nYou are helpful.<|end|>\n";
    let first = format!("{system}<|start|>user\none?<|end|>\n<|start|>assistant\n");
    let second = format!("{first}two<|end|>\n<|start|>user\nthree?<|end|>\n<|start|>assistant\n");
    let mut shown = [read(0), read(1)];
    shown.sort_by_key(|(prompt, _)| prompt.len());
    assert_eq!(shown, [(first, "two<|end|>".to_string()), (second, "four<|end|>".to_string())]);

    let run = tempfile::tempdir().unwrap();
    let mut folder = prime::run::folder::RunFolder::create(run.path(), &config).unwrap();
    assert!(matches!(prime::run::sft(&config, &mut folder).unwrap(), End::Complete(_)));
    let metrics = std::fs::read_to_string(run.path().join("metrics.jsonl")).unwrap();
    let losses: Vec<f64> = metrics
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["sft/loss"].as_f64())
        .collect();
    assert!(losses.len() == 40 && losses[39] < losses[0] / 2.0, "{losses:?}");
}

/// From a base model with the published template: no SFT, responses end at the template's end.
#[test]
fn a_base_model_is_trained_without_sft_and_stops_at_the_texts_of_its_template() {
    let data = tempfile::tempdir().unwrap();
    let rows: String = (0..6)
        .map(|i| {
            let user = format!(
                "What is {i}+1?\n\nPresent the answer in LaTex format: \\boxed{{Your answer}}"
            );
            let row = json!({
                "data_source": "numina_synthetic",
                "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": user}],
                "reward_model": {"style": "rule", "ground_truth": (i + 1).to_string()},
            });
            format!("{row}\n")
        })
        .collect();
    let train = data.path().join("train.jsonl");
    std::fs::write(&train, rows).unwrap();
    let model =
        ModelConfig { max_position_embeddings: 1024, ..ModelConfig::load(&fixture()).unwrap() };
    let weights = Weights::random(&model, DType::F32, 5).unwrap();
    let base = data.path().join("base");
    folder::save(&base, &model, &weights, Companions::Of(&fixture())).unwrap();

    let zero = Path::new(env!("CARGO_MANIFEST_DIR")).join("../prime/configs/zero.toml");
    // A random model never writes "</answer>"; these letters it does.
    let stops = ["e", "th", "7"];
    let settings = [
        format!("model.path={}", base.display()),
        format!("task.jsonl.train={}", train.display()),
        "task.jsonl.prompt_field=prompt.1.content".into(),
        "task.jsonl.answer_field=reward_model.ground_truth".into(),
        "task.jsonl.answer_after=".into(),
        "task.jsonl.solution_field=".into(),
        "task.jsonl.grader=by-source".into(),
        "task.jsonl.held_out_one_in=3".into(),
        "sft.steps=0".into(),
        format!("rollout.stop={stops:?}"),
        "rollout.max_prompt_tokens=700".into(),
        "rollout.max_new_tokens=60".into(),
        "rollout.pass_tokens=512".into(),
        "train.steps=2".into(),
        "train.compare=false".into(),
        "eval.problems=2".into(),
    ];
    let config = runs::config_with(&zero, &settings).unwrap();
    assert_eq!(config.task.jsonl.source.template, "prime-zero");
    let prompts = setup::prompts(&config, Some(&base)).unwrap();
    let prompt = prompts.task().problem(prime::tasks::Split::Train, 0).unwrap().prompt;
    assert!(prompt.starts_with("A conversation between User and Assistant."), "{prompt}");
    assert!(prompt.ends_with("\\boxed{Your answer}. Assistant:"), "{prompt}");

    let run = tempfile::tempdir().unwrap();
    assert!(matches!(runs::begin_or_resume(run.path(), &config).unwrap(), End::Complete(_)));
    assert!(!run.path().join("sft").exists(), "there is no SFT");
    assert!(run.path().join("checkpoints/step-2/prm/config.json").exists());
    let tokenizer = Tokenizer::load(&base).unwrap();
    let rollouts = std::fs::read_to_string(run.path().join("rollouts/prime-000001.jsonl")).unwrap();
    let (mut stopped, mut lines) = (0, 0);
    for line in rollouts.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let ids =
            line["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32);
        let ids: Vec<u32> = ids.collect();
        let holds = |ids: &[u32]| {
            let text = tokenizer.decode(ids, false).unwrap();
            stops.iter().any(|stop| text.contains(stop))
        };
        assert!(!holds(&ids[..ids.len() - 1]), "{line}");
        assert_eq!(
            line["finished"] == true,
            holds(&ids) || ids.last() == tokenizer.eos_id().as_ref()
        );
        stopped += usize::from(holds(&ids));
        lines += 1;
    }
    assert!(stopped > 0 && lines >= 9, "{stopped} of {lines}");
}
