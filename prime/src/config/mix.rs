//! `[[task.jsonl.mix]]`: sources that take from `[task.jsonl]` what they do not say.

use anyhow::{Context, Result, bail};
use toml::{Table, Value};

use super::merge::{kind, merge};

/// Gives each source of a mix what `[task.jsonl]` says and it does not; its files and its name are its own.
pub(super) fn complete(table: &mut Table) -> Result<()> {
    let section = table.get_mut("task").and_then(|task| task.get_mut("jsonl"));
    let Some(Value::Table(section)) = section else { return Ok(()) };
    let mut base = section.clone();
    for key in ["deduplicate", "overlap_words", "graders", "mix"] {
        base.remove(key);
    }
    for key in ["name", "train", "test"] {
        base.insert(key.to_owned(), Value::String(String::new()));
    }
    let Some(Value::Array(mix)) = section.get_mut("mix") else { return Ok(()) };
    for (i, source) in mix.iter_mut().enumerate() {
        let place = format!("task.jsonl.mix, source {}", i + 1);
        let Value::Table(over) = source else {
            bail!("{place} is {} `{source}`, expected a section", kind(source));
        };
        let mut whole = base.clone();
        merge(&mut whole, std::mem::take(over), "").context(place)?;
        *over = whole;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{load, message};

    #[test]
    fn a_source_of_a_mix_takes_what_it_does_not_say_from_the_section_but_for_its_files() {
        let text = r#"
[task.jsonl]
train = "own.jsonl"
template = "Q {prompt}"
grader = "math"
[[task.jsonl.mix]]
train = "a.parquet"
weight = 2
[[task.jsonl.mix]]
name = "b"
test = "b.jsonl"
grader = "exact"
"#;
        let config = load(text, &[]).unwrap();
        let mix = &config.task.jsonl.mix;
        assert_eq!((mix.len(), mix[0].weight, mix[0].template.as_str()), (2, 2.0, "Q {prompt}"));
        assert_eq!((mix[0].test.as_str(), mix[0].grader.as_str()), ("", "math"));
        assert_eq!((mix[1].train.as_str(), mix[1].grader.as_str()), ("", "exact"));
        assert_eq!(load(&config.to_toml().unwrap(), &[]).unwrap(), config);

        let slip = message("[[task.jsonl.mix]]\ntrian = 1", &[]);
        assert!(
            slip.contains("source 1: there is no setting `trian`; did you mean `train`?"),
            "{slip}"
        );
        assert!(message("", &["task.jsonl.mix=[1]"]).contains("source 1 is an integer `1`"));
        assert!(message("", &["filter.skip_solved=true"]).contains("needs a data set"));
        assert!(message("", &["rollout.stop=['']"]).contains("an empty text"));
        assert!(message("", &["filter.oversample=0.5"]).contains("filter.oversample is 0.5"));
    }
}
