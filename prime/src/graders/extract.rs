//! Finding the final answer in a response.

/// The content of the last `\boxed{...}` or `\fbox{...}`, braces counted and escaped ones left out of the count;
/// for `\boxed 7`, what follows up to a dollar sign. `None` when there is none, or the last is not closed.
pub fn last_boxed(text: &str) -> Option<&str> {
    let commands = ["\\boxed", "\\fbox"];
    let start =
        commands.iter().filter_map(|name| text.rfind(name).map(|at| at + name.len())).max()?;
    let rest = text[start..].trim_start();
    let Some(inner) = rest.strip_prefix('{') else {
        let content = rest.split(['$', '\n']).next().unwrap_or_default().trim();
        return (!content.is_empty()).then_some(content);
    };
    let mut open = 1usize;
    let mut escaped = false;
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'{' => open += 1,
            b'}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(inner[..at].trim());
        }
    }
    None
}

/// What follows the last "answer is", "answers are" or "answer:" (in any case), up to the end of its sentence or
/// line; a line break right after the phrase does not end it.
pub fn after_phrase(text: &str) -> Option<&str> {
    let lower = text.to_ascii_lowercase();
    let start = ["answer is", "answers are", "answer:"]
        .iter()
        .filter_map(|phrase| lower.rfind(phrase).map(|at| at + phrase.len()))
        .max()?;
    let rest = text[start..].trim_start_matches([':', ' ', '\n', '\r', '\t', '*']);
    let line = rest.lines().next().unwrap_or_default();
    let sentence = line.split_once(". ").map_or(line, |(sentence, _)| sentence).trim();
    let sentence = sentence.strip_suffix('.').unwrap_or(sentence).trim_end();
    (!sentence.is_empty()).then_some(sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_box_is_read_by_its_braces() {
        assert_eq!(last_boxed("\\boxed{1} then \\boxed{\\frac{1}{2}}."), Some("\\frac{1}{2}"));
        assert_eq!(last_boxed("\\fbox{ 3 }"), Some("3"));
        assert_eq!(last_boxed("$\\boxed{\\{1,2\\}}$"), Some("\\{1,2\\}"));
        assert_eq!(last_boxed("$\\boxed{\\left\\{x\\right.}$"), Some("\\left\\{x\\right."));
        assert_eq!(last_boxed("$\\boxed 7$ is it"), Some("7"));
        assert_eq!(last_boxed("\\boxed{1} then \\boxed{2"), None);
        assert_eq!(last_boxed("no box"), None);
    }

    #[test]
    fn the_phrase_ends_with_its_sentence() {
        assert_eq!(after_phrase("So the Answer is 3.5 apples. Thank you."), Some("3.5 apples"));
        assert_eq!(after_phrase("Answer:\n$x = 4$\nmore"), Some("$x = 4$"));
        assert_eq!(after_phrase("The answer is 1. No, the final answer is: 2."), Some("2"));
        assert_eq!(after_phrase("answer is "), None);
        assert_eq!(after_phrase("İ answer is 5"), Some("5"));
    }
}
