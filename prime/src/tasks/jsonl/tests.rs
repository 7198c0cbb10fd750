//! Sources and mixes: what becomes a problem, what is removed, and what is refused.

use std::path::Path;

use ::parquet::basic::Compression;
use prime_model::Message;

use super::*;
use crate::data::tests::{EURUS, Leaf, eurus_rows, write_parquet};

fn write(folder: &tempfile::TempDir, name: &str, text: impl AsRef<[u8]>) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn of(source: SourceSettings) -> JsonlSettings {
    JsonlSettings { source, ..Default::default() }
}

fn mix(mix: Vec<SourceSettings>) -> JsonlSettings {
    JsonlSettings { mix, ..Default::default() }
}

fn load(source: SourceSettings) -> Jsonl {
    Jsonl::load(&of(source)).unwrap()
}

fn record(question: &str, answer: u32) -> String {
    format!("{{\"question\":\"{question}\",\"answer\":\"Count.\\n#### {answer}\"}}\n")
}

fn failure(settings: &JsonlSettings) -> String {
    format!("{:#}", Jsonl::load(settings).err().unwrap())
}

fn prompts(problems: &[Problem]) -> Vec<&str> {
    problems.iter().map(|problem| problem.prompt.as_str()).collect()
}

#[test]
fn a_gsm8k_line_becomes_a_problem() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("\u{feff}{}\n\n{}", record("One?", 1), record("Two?", 2));
    let task = load(SourceSettings {
        train: write(&folder, "train.jsonl", text),
        test: write(&folder, "test.jsonl", record("Two?", 2) + &record("Three?", 1234)),
        template: "Q: {prompt}\nA: ".into(),
        ..Default::default()
    });
    let problem = task.problem(Split::Train, 0).unwrap();
    assert_eq!(problem.prompt, "Q: One?\nA: ");
    assert_eq!(
        (problem.answer.as_str(), problem.solution.as_deref()),
        ("1", Some("Count.\n#### 1"))
    );
    assert_eq!((task.len(Split::Train), task.len(Split::HeldOut)), (Some(1), Some(2)));
    assert_eq!((task.parts()[0].overlaps, task.notes().len()), (1, 1));
    assert_eq!(task.problem(Split::Train, 1), None);
    assert_eq!(task.problem(Split::HeldOut, u64::MAX), None);
    let last = task.problem(Split::HeldOut, 1).unwrap();
    assert_eq!((last.id, task.grade(&last, "so #### 1,234", false).score), (1, 1.0));
    assert_eq!(task.name(), "train");
    assert_eq!(task.group(&last), ("train", Some("gsm8k")));
}

#[test]
fn one_file_is_split_by_its_questions_whatever_their_order_and_template() {
    let folder = tempfile::tempdir().unwrap();
    let records: Vec<String> = (0..400).map(|i| record(&format!("What is {i}?"), i)).collect();
    let reversed: String = records.iter().rev().cloned().collect();
    let load = |name, text: String, template: &str| {
        load(SourceSettings {
            train: write(&folder, name, text),
            held_out_one_in: 4,
            template: template.into(),
            ..Default::default()
        })
    };
    let a = load("a.jsonl", records.concat(), "{prompt}");
    let b = load("b.jsonl", reversed + &records[7], "{prompt}");
    let set = |task: &Jsonl| -> HashSet<String> {
        task.held_out.iter().map(|problem| problem.prompt.clone()).collect()
    };
    assert_eq!(set(&a), set(&b));
    assert!((50..150).contains(&a.held_out.len()), "{}", a.held_out.len());
    assert_eq!(a.parts()[0].overlaps, 0);
    assert!(a.train.iter().all(|problem| !set(&a).contains(&problem.prompt)));
    let c = load("c.jsonl", records.concat(), "{prompt}\nA:");
    assert_eq!(set(&c), set(&a).iter().map(|prompt| format!("{prompt}\nA:")).collect());
}

#[test]
fn faulty_files_are_refused_with_file_line_and_field_or_left_out_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let good = record("One?", 1);
    for (line, fault) in [
        (
            "{\"qestion\":\"x\",\"answer\":\"#### 1\"}",
            "line 2: the line has no field \"question\"; the nearest present one is \"qestion\"",
        ),
        ("{\"question\":\"x\"}", "line 2: the line has no field \"answer\"; it has \"question\""),
        (
            "{\"question\":\"x\",\"answer\":\"1\"}",
            "line 2: the field \"answer\" does not hold the mark \"####\"",
        ),
        (
            "{\"question\":null,\"answer\":\"#### 1\"}",
            "line 2: the field \"question\" must be text, and is null",
        ),
        (
            "{\"question\":[],\"answer\":\"#### 1\"}",
            "line 2: the field \"question\": the conversation has no turns",
        ),
        (
            "{\"question\":[{\"role\":\"user\"}],\"answer\":\"#### 1\"}",
            "line 2: the field \"question\": turn 1 of the conversation: it does not say anything",
        ),
        (
            "{\"question\":[{\"role\":\"user\",\"content\":\"x\"}],\"answer\":\"#### 1\"}",
            "line 2: the field \"question\" is a conversation, which needs task.jsonl.chat=true",
        ),
        ("{\"question\":\"x\",\"answer\":\"#### one\"}", "line 2: "),
    ] {
        let train = write(&folder, "faulty.jsonl", format!("{good}{line}\n"));
        let grader = "numeric".into();
        let source = SourceSettings { train, held_out_one_in: 0, grader, ..Default::default() };
        let message = failure(&of(source.clone()));
        assert!(message.contains("faulty.jsonl") && message.contains(fault), "{message}");
        let task = load(SourceSettings { skip_faulty: true, ..source });
        let part = &task.parts()[0];
        assert_eq!((part.rows, part.faulty, task.len(Split::Train)), (2, 1, Some(1)));
        let note = task.notes().concat();
        assert!(note.contains("1 of 2 rows were left out") && note.contains(fault), "{note}");
    }
    // What is not even a row is refused either way.
    let train = write(&folder, "faulty.jsonl", format!("{good}{{"));
    let message = failure(&of(SourceSettings { train, skip_faulty: true, ..Default::default() }));
    assert!(message.contains("faulty.jsonl, line 2: the line is not JSON"), "{message}");

    let refused = |train: String| failure(&of(SourceSettings { train, ..Default::default() }));
    assert!(refused(write(&folder, "empty.jsonl", "\n \n")).contains("empty.jsonl is empty"));
    let none = folder.path().join("none.jsonl").to_str().unwrap().to_owned();
    assert!(refused(none).contains("none.jsonl cannot be opened"));
    let empty = tempfile::tempdir().unwrap();
    assert!(refused(empty.path().to_str().unwrap().into()).contains("holds no file that ends in"));
    let train = write(&folder, "same.jsonl", &good);
    let source = SourceSettings { test: train.clone(), train, ..Default::default() };
    assert!(failure(&of(source)).contains("nothing is left to train on"));
}

#[test]
fn settings_without_sense_are_refused_by_name() {
    let with = |change: &dyn Fn(&mut SourceSettings)| {
        let mut source = SourceSettings { train: "none".into(), ..Default::default() };
        change(&mut source);
        failure(&of(source))
    };
    assert!(failure(&JsonlSettings::default()).contains("set train, test or both"));
    for (message, expected) in [
        (with(&|source| source.template = "Q:".into()), "{prompt}"),
        (with(&|source| source.template = "prime-zeor".into()), "did you mean \"prime-zero\"?"),
        (with(&|source| source.suffix = "Math".into()), "did you mean \"math\"?"),
        (with(&|source| source.system_prompt = "prime".into()), "needs task.jsonl.chat=true"),
        (with(&|source| source.grader = "gms8k".into()), "did you mean \"gsm8k\"?"),
        (with(&|source| source.held_out_one_in = 1), "held_out_one_in"),
        (with(&|source| source.weight = -1.0), "weight is -1"),
        (
            failure(&mix(vec![SourceSettings::default()])),
            "source 1 of task.jsonl.mix names no file",
        ),
    ] {
        assert!(message.contains(expected), "{message}");
    }
    let source = |weight| SourceSettings { train: "x".into(), weight, ..Default::default() };
    assert!(failure(&mix(vec![source(0.0), source(1.0)])).contains("set it for all or for none"));
}

#[test]
fn rows_of_the_published_rl_data_are_conversations_graded_by_their_source() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.parquet");
    let rows =
        eurus_rows(["numina_olympiads", "openai/gsm8k"], ["One?", "Two?"], ["\\frac12", "2"]);
    write_parquet(&path, EURUS, Compression::SNAPPY, &[rows]);
    let source = SourceSettings {
        train: path.to_str().unwrap().into(),
        prompt_field: "prompt".into(),
        answer_field: "reward_model.ground_truth".into(),
        answer_after: String::new(),
        solution_field: String::new(),
        chat: true,
        grader: BY_SOURCE.into(),
        held_out_one_in: 0,
        ..Default::default()
    };
    let task = load(source.clone());
    let (one, two) =
        (task.problem(Split::Train, 0).unwrap(), task.problem(Split::Train, 1).unwrap());
    assert_eq!(one.messages, [Message::new("system", "S"), Message::new("user", "One?")]);
    assert_eq!((one.prompt.as_str(), one.answer.as_str()), ("One?", "\\frac12"));
    assert_eq!(task.group(&one), ("train: numina_olympiads", Some("math")));
    assert_eq!(task.group(&two), ("train: openai/gsm8k", Some("gsm8k")));
    assert_eq!(task.grade(&one, "so \\boxed{0.5}", true).score, 1.0);
    assert_eq!(task.grade(&two, "so \\boxed{2}", true).score, 0.0, "gsm8k wants its own form");
    assert_eq!(task.grade(&two, "#### 2", true).score, 1.0);
    assert!(task.shares(Purpose::Sft).is_empty(), "there are no solutions");

    let system = |system_prompt: &str| {
        let task = load(SourceSettings { system_prompt: system_prompt.into(), ..source.clone() });
        task.problem(Split::Train, 0).unwrap().messages
    };
    assert_eq!(system("none"), [Message::new("user", "One?")]);
    let prime = system("prime");
    assert!(prime[0].content.contains("[SYNTHESIZE]") && prime.len() == 2);
    assert_eq!(system("Be brief, please.")[0].content, "Be brief, please.");

    // A table of one's own, and a data source that it does not know.
    let mut settings = of(source);
    settings.graders = vec![("numina_*".into(), "exact".into())];
    let message = failure(&settings);
    assert!(
        message.contains("train.parquet, row 2") && message.contains("\"openai/gsm8k\""),
        "{message}"
    );
}

#[test]
fn a_question_gets_its_suffix_template_and_system_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let train = write(&folder, "x.jsonl", record("One?", 1));
    let source = SourceSettings { train, held_out_one_in: 0, ..Default::default() };
    let zero = load(SourceSettings {
        template: "prime-zero".into(),
        suffix: "math".into(),
        ..source.clone()
    });
    let prompt = zero.problem(Split::Train, 0).unwrap().prompt;
    assert!(prompt.starts_with("A conversation between User and Assistant."), "{prompt}");
    assert!(
        prompt.ends_with(
            "</answer>. User: One?\n\nPresent the answer in LaTex format: \\boxed{Your answer}. Assistant:"
        ),
        "{prompt}"
    );
    let twice = record("One?\\n\\nPresent the answer in LaTex format: \\\\boxed{Your answer}", 1);
    let train = write(&folder, "suffixed.jsonl", twice);
    let same = load(SourceSettings { train, suffix: "code".into(), ..source.clone() });
    let prompt = same.problem(Split::Train, 0).unwrap().prompt;
    assert!(prompt.ends_with("{Your answer}"), "it has its own: {prompt}");
    let chat = load(SourceSettings {
        chat: true,
        suffix: "\nThink.".into(),
        system_prompt: "prime".into(),
        ..source
    });
    let messages = chat.problem(Split::Train, 0).unwrap().messages;
    assert_eq!((messages.len(), messages[1].content.as_str()), (2, "One?\nThink."));
}

#[test]
fn a_chat_is_a_demonstration_of_each_of_the_assistants_turns() {
    let folder = tempfile::tempdir().unwrap();
    let sharegpt = r#"{"conversations":[{"from":"system","value":"S"},{"from":"human","value":"A"},
        {"from":"gpt","value":"B"},{"from":"human","value":"C"},{"from":"gpt","value":"D"}]}"#;
    let openai =
        r#"{"conversations":[{"role":"user","content":"E"},{"role":"assistant","content":"F"}]}"#;
    let text = format!("{}\n{openai}\n{openai}\n", sharegpt.replace('\n', " "));
    let source = SourceSettings {
        train: write(&folder, "chats.jsonl", text),
        stage: Stage::Sft,
        prompt_field: "conversations".into(),
        chat: true,
        ..Default::default()
    };
    let problems = mix(vec![
        source.clone(),
        SourceSettings {
            train: write(&folder, "rl.jsonl", record("One?", 1)),
            test: write(&folder, "test.jsonl", record("Two?", 2)),
            ..Default::default()
        },
    ]);
    let task = Jsonl::load(&problems).unwrap();
    assert_eq!(task.len(Split::Train), Some(1), "what has no answer is not for RL");
    assert_eq!(task.problem(Split::Train, 0).unwrap().prompt, "One?");
    let shares = |purpose| {
        let shares = task.shares(purpose);
        shares.into_iter().map(|share| (share.problems, share.draws)).collect::<Vec<_>>()
    };
    assert_eq!(shares(Purpose::Rl), [(0..1, 1)]);
    assert_eq!(shares(Purpose::Sft), [(1..4, 3), (0..1, 1)]);
    let turns = |index| {
        let problem = task.problem(Split::Train, index).unwrap();
        let shown: String = problem
            .messages
            .iter()
            .map(|turn| format!("{}:{} ", turn.role, turn.content))
            .collect();
        (shown.trim_end().to_owned(), problem.solution.unwrap())
    };
    assert_eq!(turns(1), ("system:S user:A".into(), "B".into()));
    assert_eq!(turns(2), ("system:S user:A assistant:B user:C".into(), "D".into()));
    assert_eq!(turns(3), ("user:E".into(), "F".into()));
    assert_eq!(task.parts()[0].duplicates, 1);
    assert_eq!(task.grade(&task.problem(Split::Train, 1).unwrap(), "B", true).score, 0.0);

    let message = failure(&of(SourceSettings { stage: Stage::Both, ..source }));
    assert!(message.contains("line 1") && message.contains("needs stage = \"sft\""), "{message}");
}

#[test]
fn what_is_held_out_or_there_already_is_removed_across_all_sources() {
    let folder = tempfile::tempdir().unwrap();
    let asks = "a train leaves the station at noon and goes north at forty miles an hour";
    let first = [
        record("Same  question?", 1),
        record("Held out?", 2),
        record(&format!("Once {asks}. Where is it?"), 3),
        record("Alone?", 4),
    ];
    let second = [
        record("Same question? ", 1),
        record("Mine?\\n\\nPresent the answer in LaTex format: \\\\boxed{Your answer}", 5),
    ];
    let test = [
        record("Held\\tout?", 2),
        record("Mine?", 5),
        record(&format!("Today {}: when does it stop?", asks.to_uppercase()), 9),
    ];
    let mut settings = mix(vec![
        SourceSettings {
            name: "first".into(),
            train: write(&folder, "a.jsonl", first.concat()),
            held_out_one_in: 0,
            ..Default::default()
        },
        SourceSettings {
            name: "second".into(),
            train: write(&folder, "b.jsonl", second.concat()),
            test: write(&folder, "c.jsonl", test.concat()),
            ..Default::default()
        },
    ]);
    let removed = |task: &Jsonl| {
        let counts = |part: &Part| (part.overlaps, part.similar, part.duplicates);
        task.parts().iter().map(counts).collect::<Vec<_>>()
    };
    let task = Jsonl::load(&settings).unwrap();
    assert_eq!(removed(&task), [(1, 0, 0), (1, 0, 1)]);
    assert_eq!(task.len(Split::Train), Some(3));
    assert_eq!(task.notes().len(), 3, "{:?}", task.notes());
    settings.overlap_words = 8;
    let task = Jsonl::load(&settings).unwrap();
    assert_eq!(removed(&task), [(1, 1, 0), (1, 0, 1)]);
    assert_eq!(prompts(&task.train), ["Same  question?", "Alone?"]);
    settings.deduplicate = false;
    assert_eq!(removed(&Jsonl::load(&settings).unwrap()), [(1, 1, 0), (1, 0, 0)]);
}

#[test]
fn weights_decide_how_often_a_source_is_drawn_from() {
    let folder = tempfile::tempdir().unwrap();
    let records = |from: u32, count: u32| -> String {
        (from..from + count).map(|i| record(&format!("What is {i}?"), i)).collect()
    };
    let source = |name: &str, text: String, weight| SourceSettings {
        train: write(&folder, name, text),
        held_out_one_in: 0,
        weight,
        ..Default::default()
    };
    let load = |weights: [f64; 2]| {
        let few = source("few.jsonl", records(0, 10), weights[0]);
        let many = source("many.jsonl", records(100, 90), weights[1]);
        Jsonl::load(&mix(vec![few, many])).unwrap()
    };
    let shares = |task: &Jsonl| {
        let shares = task.shares(Purpose::Rl);
        shares.into_iter().map(|share| (share.problems, share.draws)).collect::<Vec<_>>()
    };
    assert_eq!(shares(&load([0.0, 0.0])), [(0..10, 10), (10..100, 90)]);
    assert_eq!(shares(&load([3.0, 1.0])), [(0..10, 75), (10..100, 25)]);
    assert_eq!(load([1.0, 1.0]).name(), "few+many");
}

#[test]
fn answers_are_read_out_of_worked_solutions_and_shards_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let math = |i: u32| {
        format!(
            "{{\"problem\":\"P{i}\",\"solution\":\"So \\\\boxed{{{i}}} or \\\\boxed{{\\\\frac{{1}}{{{i}}}}}.\"}}\n"
        )
    };
    write(&folder, "part-1.jsonl", math(2));
    write(&folder, "part-0.jsonl", math(7) + &math(5));
    write(&folder, "README.md", "not data");
    let task = load(SourceSettings {
        train: folder.path().to_str().unwrap().into(),
        prompt_field: "problem".into(),
        answer_field: "solution".into(),
        answer_after: "\\boxed".into(),
        solution_field: "solution".into(),
        grader: "math".into(),
        held_out_one_in: 0,
        ..Default::default()
    });
    assert_eq!(prompts(&task.train), ["P7", "P5", "P2"]);
    assert_eq!(task.train[0].answer, "\\frac{1}{7}");
}

/// The whole data set, through both formats: the same problems in the same order, and solutions that are graded right.
#[test]
fn gsm8k_itself_is_the_same_from_json_lines_and_from_parquet_where_it_is_at_hand() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/gsm8k");
    if !folder.exists() {
        println!("skipped: there is no {}", folder.display());
        return;
    }
    let [train, test] = ["train.jsonl", "test.jsonl"].map(|name| folder.join(name));
    let settings = |train: &Path| SourceSettings {
        train: train.to_str().unwrap().into(),
        test: test.to_str().unwrap().into(),
        ..Default::default()
    };
    let task = load(settings(&train));
    let part = &task.parts()[0];
    assert_eq!(task.len(Split::Train).unwrap() + part.overlaps + part.duplicates, 7473);
    assert_eq!(task.len(Split::HeldOut), Some(1319));
    for split in [Split::Train, Split::HeldOut] {
        for index in 0..task.len(split).unwrap() {
            let problem = task.problem(split, index).unwrap();
            let solution = problem.solution.as_ref().unwrap();
            assert_eq!(task.grade(&problem, solution, true).score, 1.0, "{problem:?}");
            assert!(graders::Numeric::default().grade(solution, &problem.answer).score == 1.0);
        }
    }

    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("train.parquet");
    let text = std::fs::read_to_string(&train).unwrap();
    let rows: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let column = |name: &str| {
        Leaf::Text(rows.iter().map(|row| row[name].as_str().unwrap()).collect(), None, None)
    };
    let schema =
        "message schema { required binary question (UTF8); required binary answer (UTF8); }";
    let columns = vec![column("question"), column("answer")];
    write_parquet(&path, schema, Compression::SNAPPY, &[columns]);
    assert_eq!(load(settings(&path)).train, task.train);
}

#[test]
fn math500_itself_is_a_held_out_set_where_it_is_at_hand() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/math500/math500.json");
    if !path.exists() {
        println!("skipped: there is no {}", path.display());
        return;
    }
    let task = load(SourceSettings {
        test: path.to_str().unwrap().into(),
        prompt_field: "problem".into(),
        answer_field: "expected_answer".into(),
        answer_after: String::new(),
        solution_field: String::new(),
        suffix: "math".into(),
        grader: "math".into(),
        ..Default::default()
    });
    assert_eq!((task.len(Split::Train), task.len(Split::HeldOut)), (Some(0), Some(500)));
    let problem = task.problem(Split::HeldOut, 0).unwrap();
    assert_eq!(task.grade(&problem, &format!("\\boxed{{{}}}", problem.answer), true).score, 1.0);
}
