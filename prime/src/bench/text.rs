//! Numbers as people read them.

/// Three significant digits with a prefix of the decimal system: `12.3 k`.
pub(super) fn scaled(value: f64) -> (String, &'static str) {
    const PREFIXES: [(f64, &str); 8] = [
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
        (1.0, ""),
        (1e-3, "m"),
        (1e-6, "\u{b5}"),
        (1e-9, "n"),
    ];
    // What rounds up to 1000 belongs to the next prefix.
    let found = PREFIXES.into_iter().find(|(size, _)| value.abs() >= 0.9995 * size);
    let (size, prefix) = found.unwrap_or(if value == 0.0 { (1.0, "") } else { (1e-9, "n") });
    (three(value / size), prefix)
}

/// Three significant digits of a number below 1000.
pub(super) fn three(value: f64) -> String {
    let digits = match value.abs() {
        x if x >= 99.95 => 0,
        x if x >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

/// A time.
pub(super) fn seconds(value: f64) -> String {
    let (number, prefix) = if value >= 1.0 { (three(value), "") } else { scaled(value) };
    format!("{number} {prefix}s")
}

/// A rate: `12.3 GFLOP/s`, `40.1 GB/s`, `1.20 k tokens/s`.
pub(super) fn rate(value: f64, unit: &str) -> String {
    let (number, prefix) = scaled(value);
    match unit {
        "FLOP" => format!("{number} {prefix}FLOP/s"),
        "byte" => format!("{number} {prefix}B/s"),
        "token" if prefix.is_empty() => format!("{number} tokens/s"),
        "token" => format!("{number} {prefix} tokens/s"),
        other => format!("{number} {prefix} {other}/s"),
    }
}

/// A part of a whole.
pub(super) fn percent(value: f64) -> String {
    format!("{} %", three(100.0 * value))
}

/// So many of something.
pub(super) fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_prefix() {
        assert_eq!(seconds(0.0123), "12.3 ms");
        assert_eq!(seconds(0.9999), "1.00 s");
        assert_eq!(seconds(4.2e-7), "420 ns");
        assert_eq!(seconds(75.0), "75.0 s");
        assert_eq!(rate(1.5e12, "FLOP"), "1.50 TFLOP/s");
        assert_eq!(rate(41.23e9, "byte"), "41.2 GB/s");
        assert_eq!(rate(21019.0, "token"), "21.0 k tokens/s");
        assert_eq!(rate(155.8, "token"), "156 tokens/s");
        assert_eq!(percent(0.8567), "85.7 %");
    }
}
