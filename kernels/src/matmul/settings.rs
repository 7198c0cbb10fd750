//! Choices between speed, accuracy and independence for products on devices other than the host.

use std::sync::OnceLock;

use prime_runtime::{Error, Result};

/// How products run on devices other than the host. The variable `PRIME_MATMUL` names what is wanted: `PRIME_MATMUL=tf32,invariant`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Multiply float32 by tensor cores, both factors rounded to TF32 (10 bits of fraction). Otherwise each product is exact.
    pub tf32: bool,
    /// Never cut k into parts: a row of C is the same bits whatever m is, as on the host. A product of few rows then leaves multiprocessors
    /// idle.
    pub invariant: bool,
}

impl Settings {
    fn parse(text: &str) -> std::result::Result<Settings, String> {
        let mut settings = Settings::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word {
                "tf32" => settings.tf32 = true,
                "invariant" => settings.invariant = true,
                _ => {
                    return Err(format!(
                        "PRIME_MATMUL={text}: `{word}` is not understood; it may name tf32, invariant, or both with a comma between them"
                    ));
                }
            }
        }
        Ok(settings)
    }
}

/// What `PRIME_MATMUL` asked for when it was first needed.
///
/// # Errors
/// When it holds a word that is not understood.
pub fn settings() -> Result<Settings> {
    static SETTINGS: OnceLock<std::result::Result<Settings, String>> = OnceLock::new();
    let settings = SETTINGS.get_or_init(|| match std::env::var("PRIME_MATMUL") {
        Ok(text) => Settings::parse(&text),
        Err(std::env::VarError::NotPresent) => Ok(Settings::default()),
        Err(std::env::VarError::NotUnicode(_)) => Err("PRIME_MATMUL does not hold text".to_owned()),
    });
    settings.clone().map_err(Error::Device)
}

#[cfg(test)]
mod tests {
    use super::Settings;

    #[test]
    fn words_switch_on_what_they_name_and_unknown_ones_are_refused() {
        assert_eq!(Settings::parse(""), Ok(Settings::default()));
        assert_eq!(Settings::parse("tf32"), Ok(Settings { tf32: true, invariant: false }));
        assert_eq!(
            Settings::parse(" invariant, tf32"),
            Ok(Settings { tf32: true, invariant: true })
        );
        assert_eq!(
            Settings::parse("tf32,fast").unwrap_err(),
            "PRIME_MATMUL=tf32,fast: `fast` is not understood; it may name tf32, invariant, or both with a comma between them"
        );
    }
}
