//! Which cases were asked for. Criterion chooses by the same arguments, and does not say by itself that nothing was chosen; nor does a case that
//! is left out for want of time come before it.

use anyhow::{Context, Result};
use regex::Regex;

/// Criterion's options that are followed by a value.
const VALUED: [&str; 20] = [
    "-c",
    "--color",
    "--colour",
    "-s",
    "--save-baseline",
    "-b",
    "--baseline",
    "--baseline-lenient",
    "--format",
    "--profile-time",
    "--load-baseline",
    "--sample-size",
    "--warm-up-time",
    "--measurement-time",
    "--nresamples",
    "--noise-threshold",
    "--confidence-level",
    "--significance-level",
    "--plotting-backend",
    "--output-format",
];

/// What arguments ask for.
pub struct Selection {
    /// As it was typed.
    filter: Option<String>,
    /// Nothing where the filter is a whole name.
    pattern: Option<Regex>,
    /// Whether names are to be listed, and nothing measured.
    pub lists: bool,
}

impl Selection {
    /// Of a program's arguments.
    ///
    /// # Errors
    /// When the filter is no regular expression.
    pub fn of(arguments: impl IntoIterator<Item = String>) -> Result<Selection> {
        let (mut filter, mut exact, mut lists) = (None, false, false);
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--exact" => exact = true,
                "--list" => lists = true,
                option if VALUED.contains(&option) => {
                    arguments.next();
                }
                option if option.starts_with('-') => (),
                _ => filter = filter.or(Some(argument)),
            }
        }
        let pattern = match &filter {
            Some(text) if !exact => Some(Regex::new(text).with_context(|| {
                format!("the filter `{text}` is no regular expression, expected one such as 'cpu/attention.*7B'")
            })?),
            _ => None,
        };
        Ok(Selection { filter, pattern, lists })
    }

    /// Whether criterion takes what has this name.
    pub fn takes(&self, name: &str) -> bool {
        match (&self.filter, &self.pattern) {
            (None, _) => true,
            (Some(_), Some(pattern)) => pattern.is_match(name),
            (Some(whole), None) => whole == name,
        }
    }

    /// What there is to say when nothing was taken.
    pub fn nothing(&self) -> String {
        match &self.filter {
            Some(filter) => format!(
                "no case's name matches `{filter}`; `cargo bench -- --list` shows all of them, such as `cpu/matmul/square, NT 512x512x512, float32/prime`"
            ),
            None => "there is no case for these devices".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Selection {
        Selection::of(text.split_whitespace().map(str::to_owned)).unwrap()
    }

    #[test]
    fn the_filter_is_what_criterion_takes_for_it() {
        let name = "cpu/matmul/square, NT 512x512x512, float32/prime";
        assert!(of("--bench").takes(name) && !of("--bench").lists);
        assert!(of("--bench matmul.*512x512").takes(name));
        assert!(!of("--bench attention").takes(name));
        assert!(of("--sample-size 20 --bench -c never matmul --list").takes(name));
        assert!(!of("--sample-size=20 attention").takes(name));
        assert!(of("--list").lists);
        let whole = |text: &str| Selection::of(["--exact", text].map(str::to_owned)).unwrap();
        assert!(whole(name).takes(name) && !whole("matmul").takes(name));
    }

    #[test]
    fn what_is_no_expression_and_what_matches_nothing_are_sentences() {
        let error = Selection::of(["[".to_owned()]).err().unwrap();
        assert!(format!("{error:#}").starts_with("the filter `[` is no regular expression"));
        assert!(of("matmull").nothing().contains("no case's name matches `matmull`"));
    }
}
