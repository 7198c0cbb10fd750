//! Which recorded rollouts a page holds, where it cannot hold all: the same choice for the same files, whatever their size.
//!
//! Of each run and stage the first, the last, and evenly spread steps between are taken; of a step, prompts with right and wrong answers
//! before those whose answers all agree, in the order of the file. A file is read line by line, twice: once to see what is there, once for
//! what was chosen.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::tokens::{Answer, COLUMNS, Group, Tokens};

/// A step is worth showing with at least so many bytes.
const STEP_BYTES: usize = 60_000;
/// Longer prompts are cut.
const PROMPT_CHARS: usize = 8_000;

/// A file of rollouts: those of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// The file.
    pub path: PathBuf,
    /// The stage that recorded it.
    pub stage: String,
    /// Its step.
    pub step: u64,
}

/// The recorded steps of a run folder, in order of stage and step.
///
/// # Errors
/// When the folder is there and cannot be listed.
pub fn recorded(run: &Path) -> Result<Vec<Recorded>> {
    let folder = run.join("rollouts");
    let entries = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot list {}", folder.display()))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(".jsonl"));
        let Some((stage, step)) = name.and_then(|name| name.rsplit_once('-')) else { continue };
        let Ok(step) = step.parse() else { continue };
        found.push(Recorded { stage: stage.to_owned(), step, path });
    }
    found.sort_by(|a, b| {
        (super::order(&a.stage), &a.stage, a.step).cmp(&(super::order(&b.stage), &b.stage, b.step))
    });
    Ok(found)
}

/// A run as rollouts are chosen from it.
pub struct Source {
    /// Before the names of its steps; empty where there is one run.
    pub label: String,
    /// The scale of the PRM's log-ratio.
    pub beta: Option<f64>,
    /// Its recorded steps.
    pub recorded: Vec<Recorded>,
}

/// What was there, to be compared with what was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Steps recorded.
    pub steps: usize,
    /// Prompts of the steps that were looked into.
    pub groups: usize,
    /// Lines that are no rollouts.
    pub unreadable: usize,
}

/// Puts rollouts into a view that may take `budget` bytes.
///
/// # Errors
/// When a file cannot be read.
pub fn select(sources: &[Source], budget: usize, tokens: &mut Tokens) -> Result<Seen> {
    let mut seen = Seen::default();
    let sets: Vec<(&Source, &[Recorded])> = sources
        .iter()
        .flat_map(|source| {
            source.recorded.chunk_by(|a, b| a.stage == b.stage).map(move |set| (source, set))
        })
        .collect();
    seen.steps = sets.iter().map(|(_, set)| set.len()).sum();
    let room = (budget / STEP_BYTES).max(1);
    let chosen: Vec<(&Source, &Recorded)> = sets
        .iter()
        .flat_map(|(source, set)| {
            let share =
                if seen.steps <= room { set.len() } else { (set.len() * room / seen.steps).max(2) };
            spread(set.len(), share).map(|i| (*source, &set[i]))
        })
        .collect();
    let most = tokens.bytes() + budget;
    for (i, (source, recorded)) in chosen.iter().enumerate() {
        let share = most.saturating_sub(tokens.bytes()) / (chosen.len() - i);
        step(source, recorded, share, tokens, &mut seen)?;
        if recorded.stage == "prime" && source.label == sources[0].label {
            tokens.open_here();
        }
    }
    Ok(seen)
}

/// `count` of `all` places, evenly, the first and the last among them.
fn spread(all: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = count.min(all);
    (0..count).map(move |i| if count == 1 { all - 1 } else { i * (all - 1) / (count - 1) })
}

/// What a first look takes from a line.
#[derive(Deserialize)]
struct Glance {
    prompt_id: Value,
    #[serde(default)]
    outcome: Option<f64>,
    #[serde(default)]
    old_log_probs: Count,
}

/// The length of a list.
#[derive(Default)]
struct Count(usize);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counting;
        impl<'de> Visitor<'de> for Counting {
            type Value = Count;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Count, A::Error> {
                let mut count = 0;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Count(count))
            }
        }
        deserializer.deserialize_seq(Counting)
    }
}

/// A prompt of a file, at first look.
struct Sight {
    id: String,
    tokens: usize,
    least: f64,
    most: f64,
}

fn step(
    source: &Source,
    recorded: &Recorded,
    share: usize,
    tokens: &mut Tokens,
    seen: &mut Seen,
) -> Result<()> {
    let mut sights: Vec<Sight> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    lines(&recorded.path, |line| {
        let Ok(glance) = serde_json::from_slice::<Glance>(line) else {
            seen.unreadable += 1;
            return;
        };
        let id = name(&glance.prompt_id);
        let place = *places.entry(id.clone()).or_insert_with(|| {
            sights.push(Sight { id, tokens: 0, least: f64::INFINITY, most: f64::NEG_INFINITY });
            sights.len() - 1
        });
        let sight = &mut sights[place];
        sight.tokens += glance.old_log_probs.0;
        if let Some(outcome) = glance.outcome {
            (sight.least, sight.most) = (sight.least.min(outcome), sight.most.max(outcome));
        }
    })?;
    seen.groups += sights.len();
    // Stable: within both kinds the order of the file.
    let mut ranked: Vec<usize> = (0..sights.len()).collect();
    ranked.sort_by_key(|&place| sights[place].least >= sights[place].most);
    // A token takes some thirty bytes; what is chosen in vain is dropped below.
    let mut estimate = 0;
    ranked.retain(|&place| {
        let take = estimate <= share;
        estimate += 24 * sights[place].tokens + 400;
        take
    });
    let rank: HashMap<&str, usize> =
        ranked.iter().enumerate().map(|(rank, &place)| (sights[place].id.as_str(), rank)).collect();
    let mut groups: Vec<Group> = vec![Group::default(); ranked.len()];
    lines(&recorded.path, |line| {
        let Ok(fields) = serde_json::from_slice::<Map<String, Value>>(line) else { return };
        let id = fields.get("prompt_id").map(name).unwrap_or_default();
        let Some(&rank) = rank.get(id.as_str()) else { return };
        let group = &mut groups[rank];
        if group.answers.is_empty() {
            group.prompt =
                fields.get("prompt").and_then(Value::as_str).map(cut).unwrap_or_default();
            group.id = id;
        }
        group.answers.push(answer(&fields));
    })?;

    let place = if source.label.is_empty() { String::new() } else { format!("{}: ", source.label) };
    let label = format!("{place}{} {}", super::stage_name(&recorded.stage), recorded.step);
    let begun = tokens.bytes();
    let note = if ranked.len() < sights.len() {
        format!("Up to {} of this step's {} prompts are in this file.", ranked.len(), sights.len())
    } else {
        String::new()
    };
    tokens.step(label, note, source.beta);
    for (i, group) in groups.iter().enumerate() {
        if !tokens.group_within(group, begun + share) {
            if i == 0 {
                tokens.group_cut(group, share.saturating_sub(400));
            }
            break;
        }
    }
    Ok(())
}

fn lines(path: &Path, mut each: impl FnMut(&[u8])) -> Result<()> {
    let read = || format!("cannot read {}", path.display());
    let mut input = BufReader::with_capacity(1 << 18, File::open(path).with_context(read)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line).with_context(read)? == 0 {
            return Ok(());
        }
        if !line.trim_ascii().is_empty() {
            each(&line);
        }
    }
}

/// What a prompt is called: a string, or a number.
fn name(id: &Value) -> String {
    id.as_str().map_or_else(|| id.to_string(), str::to_owned)
}

fn cut(prompt: &str) -> String {
    match prompt.char_indices().nth(PROMPT_CHARS) {
        None => prompt.to_owned(),
        Some((end, _)) => format!("{}… (cut)", &prompt[..end]),
    }
}

/// A recorded line as an answer. What is missing is left out, and columns of another length than the tokens are no columns.
pub fn answer(fields: &Map<String, Value>) -> Answer {
    let list = |name: &str| fields.get(name).and_then(Value::as_array);
    let texts: Vec<String> = match (list("token_texts"), list("token_ids"), list("old_log_probs")) {
        (Some(texts), ..) => {
            texts.iter().map(|text| text.as_str().unwrap_or_default().to_owned()).collect()
        }
        (None, Some(ids), _) => ids.iter().map(|id| format!("⟨{id}⟩")).collect(),
        (None, None, Some(values)) => vec!["▪".to_owned(); values.len()],
        (None, None, None) => Vec::new(),
    };
    let column = |name: &str| -> Option<Vec<f32>> {
        let values = list(name).filter(|values| values.len() == texts.len())?;
        Some(
            values
                .iter()
                .map(|value| value.as_f64().map_or(f32::NAN, |value| value as f32))
                .collect(),
        )
    };
    let mut columns: Vec<(String, Vec<f32>)> =
        COLUMNS.iter().filter_map(|&name| Some((name.to_owned(), column(name)?))).collect();
    // One minibatch: the update's own pass saw the policy that sampled.
    let old =
        columns.iter().find(|(name, _)| name == "old_log_probs").map(|(_, values)| values.clone());
    columns.retain(|(name, values)| name != "new_log_probs" || Some(values) != old.as_ref());
    Answer {
        outcome: fields.get("outcome").and_then(Value::as_f64),
        finished: fields.get("finished").and_then(Value::as_bool),
        step_ends: list("step_ends")
            .into_iter()
            .flatten()
            .filter_map(|end| Some(end.as_u64()? as usize))
            .collect(),
        note: String::new(),
        texts,
        columns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(id: usize, outcome: f64, text: &str, tokens: usize) -> String {
        json!({
            "prompt_id": id.to_string(), "prompt": format!("prompt {id}"), "outcome": outcome, "finished": true,
            "token_texts": vec![text; tokens], "old_log_probs": vec![-0.5; tokens], "new_log_probs": vec![-0.5; tokens],
            "process_rewards": vec![0.25; tokens], "step_ends": [0], "unknown": {"a": 1},
        })
        .to_string()
            + "\n"
    }

    fn view(folder: &Path, budget: usize) -> (Value, Tokens, Seen) {
        let source =
            Source { label: String::new(), beta: Some(0.5), recorded: recorded(folder).unwrap() };
        let mut tokens = Tokens::new("Prompt");
        let seen = select(&[source], budget, &mut tokens).unwrap();
        (tokens.data(), tokens, seen)
    }

    fn folder(files: &[(&str, String)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("rollouts")).unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join("rollouts").join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn everything_is_taken_where_there_is_room_and_oddities_do_no_harm() {
        let old = "{\"prompt_id\":3,\"outcome\":1,\"token_ids\":[7],\"old_log_probs\":[null],\"values\":[1,2]}\n";
        let run = folder(&[
            ("prime-000002.jsonl", line(1, 1.0, "a", 2) + &line(1, 0.0, "b", 3)),
            ("prime-000001.jsonl", old.to_owned() + "no rollout\n\n"),
            ("notes.txt", "x".into()),
            ("prm_warmup-000001.jsonl", String::new()),
        ]);
        let (data, tokens, seen) = view(run.path(), 1 << 20);
        assert_eq!(seen, Seen { steps: 3, groups: 2, unreadable: 1 });
        assert_eq!(tokens.counts(), (3, 2, 3));
        let labels: Vec<&str> =
            (0..3).map(|i| data["steps"][i]["label"].as_str().unwrap()).collect();
        assert_eq!(labels, ["PRM warm-up 1", "PRIME 1", "PRIME 2"]);
        assert_eq!(data["first"], 2);
        let answer = &data["steps"][2]["groups"][0]["answers"][0];
        assert_eq!(
            answer["columns"].as_object().unwrap().keys().collect::<Vec<_>>(),
            ["old_log_probs", "process_rewards"]
        );
        assert_eq!(
            data["steps"][1]["groups"][0]["answers"][0]["columns"].as_object().unwrap().len(),
            1
        );
        assert!(view(Path::new("/no/such/run"), 1000).2.steps == 0);
    }

    #[test]
    fn too_much_is_thinned_to_the_budget_ends_and_mixed_prompts_first_and_always_alike() {
        let step = |n: usize| -> String {
            (0..40)
                .map(|id| {
                    line(id, 1.0, "a", 50)
                        + &line(id, if id == 30 { 0.0 } else { 1.0 }, &format!("{n}"), 50)
                })
                .collect()
        };
        let files: Vec<(String, String)> =
            (1..=30).map(|n| (format!("prime-{n:06}.jsonl"), step(n))).collect();
        let files: Vec<(&str, String)> =
            files.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
        let run = folder(&files);
        let (data, tokens, seen) = view(run.path(), 4 * STEP_BYTES);
        let written = super::super::encode::script(&data).unwrap().len();
        assert!(written < 4 * STEP_BYTES + 2000, "{written}");
        assert!(written > 2 * STEP_BYTES, "{written}");
        assert_eq!((tokens.counts().0, seen.steps), (4, 30));
        let steps = data["steps"].as_array().unwrap();
        assert_eq!(
            (&steps[0]["label"], &steps[3]["label"]),
            (&json!("PRIME 1"), &json!("PRIME 30"))
        );
        assert!(steps.iter().all(|step| step["groups"][0]["id"] == "30"), "mixed first");
        assert_eq!(view(run.path(), 4 * STEP_BYTES).0, data);
    }

    #[test]
    fn an_answer_longer_than_its_share_is_cut() {
        let run = folder(&[("prime-000001.jsonl", line(1, 1.0, "a", 20_000))]);
        let (data, ..) = view(run.path(), 50_000);
        assert_eq!(data["steps"][0]["groups"][0]["answers"][0]["length"], 20_000);
        assert!(super::super::encode::script(&data).unwrap().len() < 52_000);
    }
}
