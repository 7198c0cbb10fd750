//! The prompts that PRIME was published with, by name. They are data of the method: a model that was trained with one answers to that one.

use anyhow::{Result, bail};

use crate::graders::nearest;

/// What a template holds in place of the prompt.
pub const PLACEHOLDER: &str = "{prompt}";

/// System messages. `prime` is that of every row of PRIME-RL/Eurus-2-RL-Data and of the published evaluations (PRIME-RL/PRIME,
/// eval/system_prompt.md), with the line breaks that the data have; it names the seven actions of a response.
pub const SYSTEM_PROMPTS: &[(&str, &str)] = &[(
    "prime",
    "\nWhen tackling complex reasoning tasks, you have access to the following actions. Use them as needed to progress through your thought \
     process.\n\n[ASSESS]\n\n[ADVANCE]\n\n[VERIFY]\n\n[SIMPLIFY]\n\n[SYNTHESIZE]\n\n[PIVOT]\n\n[OUTPUT]\n\nYou should strictly follow the \
     format below:\n\n[ACTION NAME]\n\n# Your action step 1\n\n# Your action step 2\n\n# Your action step 3\n\n...\n\nNext action: [NEXT \
     ACTION NAME]\n\n",
)];

/// What follows a question: `math` and `code` of PRIME-RL/Eurus-2-RL-Data.
pub const SUFFIXES: &[(&str, &str)] = &[
    ("math", "\n\nPresent the answer in LaTex format: \\boxed{Your answer}"),
    (
        "code",
        "\n\nWrite Python code to solve the problem. Present the code in \n```python\nYour code\n```\nat the end.",
    ),
];

/// Whole prompts for base models: `prime-zero` is that of PRIME-RL/Eurus-2-7B-PRIME-Zero, which takes the suffix `math` besides.
pub const TEMPLATES: &[(&str, &str)] = &[(
    "prime-zero",
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant first thinks about \
     the reasoning process in the mind and then provides the user with the answer. The reasoning process and answer are enclosed within \
     <think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> <answer> answer here \
     </answer>. User: {prompt}. Assistant:",
)];

/// The text of a setting: a published one by its name, or what the setting says itself.
///
/// # Errors
/// When it is a single word that names none: a slip, rather than a text.
pub fn text(key: &str, value: &str, published: &[(&str, &str)]) -> Result<String> {
    if let Some((_, text)) = published.iter().find(|(name, _)| *name == value) {
        return Ok((*text).to_owned());
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if value.is_empty() || !value.chars().all(is_name) {
        return Ok(value.to_owned());
    }
    let names: Vec<&str> = published.iter().map(|(name, _)| *name).collect();
    let hint = nearest(value, names.iter().copied())
        .map(|near| format!("; did you mean {near:?}?"))
        .unwrap_or_default();
    bail!(
        "{key} is {value:?}, which names none of what was published ({}){hint} A text of your own has more than one word",
        names.join(", ")
    );
}

/// A question without the published suffix that may follow it, so that it is known again in data that lack it.
pub fn without_suffix(question: &str) -> &str {
    let question = question.trim_end();
    SUFFIXES
        .iter()
        .find_map(|(_, suffix)| question.strip_suffix(suffix.trim_end()))
        .unwrap_or(question)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_text_is_found_by_its_name_and_a_slip_is_told() {
        let prime = text("task.jsonl.system_prompt", "prime", SYSTEM_PROMPTS).unwrap();
        assert!(prime.starts_with("\nWhen tackling") && prime.ends_with("NAME]\n\n"));
        assert_eq!(prime.matches('[').count(), 9, "seven actions, and two places for their names");
        assert!(!prime.contains("  "), "no white space of the source code is in it");
        let zero = text("template", "prime-zero", TEMPLATES).unwrap();
        assert!(zero.ends_with("</answer>. User: {prompt}. Assistant:") && !zero.contains("  "));
        assert_eq!(text("suffix", "\nThink.", SUFFIXES).unwrap(), "\nThink.");
        assert_eq!(text("suffix", "", SUFFIXES).unwrap(), "");
        let message = text("task.jsonl.suffix", "maths", SUFFIXES).unwrap_err().to_string();
        assert!(message.contains("did you mean \"math\"?"), "{message}");
    }

    #[test]
    fn a_question_is_the_same_with_and_without_a_published_suffix() {
        for (_, suffix) in SUFFIXES {
            assert_eq!(without_suffix(&format!("What is 1+1?{suffix}\n")), "What is 1+1?");
        }
        assert_eq!(without_suffix("What is 1+1? "), "What is 1+1?");
    }
}
