//! The nearest known name to one that is unknown.

/// The name nearest to `wanted` by edits (insertions, deletions, replacements of one character), when it is near enough
/// to be a slip: at most two edits, or a third of the characters.
pub fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted: Vec<char> = wanted.chars().take(64).collect();
    let (distance, name) =
        names.into_iter().map(|name| (edits(&wanted, name), name)).min_by_key(|&(d, _)| d)?;
    (distance <= 2.max(wanted.len() / 3)).then_some(name)
}

/// The Levenshtein distance, of at most 64 characters.
fn edits(a: &[char], b: &str) -> usize {
    let mut row: Vec<usize> = (0..=a.len()).collect();
    for (i, y) in b.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &x) in a.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[a.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        let names = ["question", "answer", "id"];
        assert_eq!(nearest("anwser", names), Some("answer"));
        assert_eq!(nearest("Question", names), Some("question"));
        assert_eq!(nearest("solution_text", names), None);
        assert_eq!(nearest("x", []), None);
    }
}
