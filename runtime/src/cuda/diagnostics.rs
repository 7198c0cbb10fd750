//! Messages of the compiler, with the lines that they are about.

use std::fmt::Write;

use super::program::Text;

/// Lines shown before and behind the one that a message is about.
const AROUND: usize = 2;

/// Errors shown with their lines; the first is the cause of most others.
const MOST: usize = 12;

/// The compiler's log, with numbered lines of the source under each error.
pub(super) fn with_source(log: &str, text: &Text) -> String {
    let mut shown = String::new();
    let mut errors = 0;
    for line in log.lines() {
        shown.push_str(line);
        shown.push('\n');
        let Some((file, number)) = place(line) else { continue };
        if let Some(source) = text.file(file)
            && errors < MOST
        {
            errors += 1;
            excerpt(&mut shown, source, number);
        }
    }
    shown.trim_end().to_owned()
}

/// File and line of an error: `file(12): error: ...`, where the file may hold brackets of its own.
fn place(line: &str) -> Option<(&str, usize)> {
    let (place, _) =
        line.split_once("): error").or_else(|| line.split_once("): catastrophic error"))?;
    let (file, number) = place.rsplit_once('(')?;
    Some((file.trim(), number.parse().ok()?))
}

fn excerpt(shown: &mut String, source: &str, number: usize) {
    let first = number.saturating_sub(AROUND).max(1);
    let lines = source.lines().enumerate().skip(first - 1).take(number + AROUND + 1 - first);
    for (index, line) in lines {
        let mark = if index + 1 == number { '>' } else { ' ' };
        let _ = writeln!(shown, "{mark}{:5} | {line}", index + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;

    fn text() -> Text {
        Text {
            name: "swiglu/swiglu.cu".to_owned(),
            source: Cow::Borrowed("one\ntwo\nthree\nfour\nfive\nsix"),
            headers: vec![("types.cuh", Cow::Borrowed("a\nb"))],
        }
    }

    #[test]
    fn an_error_is_followed_by_its_line_and_the_lines_around_it() {
        let shown =
            with_source("swiglu/swiglu.cu(3): error: no such thing\n  thre e\n  ^", &text());
        assert_eq!(
            shown,
            "swiglu/swiglu.cu(3): error: no such thing\n\
             \u{20}    1 | one\n     2 | two\n>    3 | three\n     4 | four\n     5 | five\n  thre e\n  ^"
        );
    }

    #[test]
    fn errors_of_headers_show_the_header_and_lines_beyond_its_end_nothing() {
        let shown = with_source("types.cuh(1): error: x\ntypes.cuh(9): error: y", &text());
        assert_eq!(shown, "types.cuh(1): error: x\n>    1 | a\n     2 | b\ntypes.cuh(9): error: y");
    }

    #[test]
    fn other_lines_of_the_log_are_left_as_they_are() {
        let log =
            "swiglu/swiglu.cu(3): warning #1: y\nelse.cu(2): error: z\n(: error\n1 error detected";
        assert_eq!(with_source(log, &text()), log);
    }
}
