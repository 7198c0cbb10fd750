//! How texts and numbers stand in a page: escaped, rounded, packed.

use std::fmt::Write;

use serde::Serialize;
use serde_json::{Number, Value};

/// A text as it stands between tags or in a quoted attribute.
pub fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // A parser drops or replaces these; they are shown by their code.
            '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{7f}' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out
}

/// A text as it stands in a line or a cell of Markdown: on one line, and no markup.
pub fn markdown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '|' | '<' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A value as JSON inside a `script` element: no text of it can end the element or begin a comment.
///
/// # Errors
/// When the value cannot be written as JSON.
pub fn script(value: &impl Serialize) -> serde_json::Result<String> {
    let json = serde_json::to_string(value)?;
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            // Within JSON these occur in texts alone.
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\u{7f}' | '\u{feff}' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Whole numbers below 2^24, four characters each.
pub fn integers(values: impl IntoIterator<Item = u32>) -> String {
    let mut out = String::new();
    for value in values {
        for shift in [18, 12, 6, 0] {
            out.push(char::from(DIGITS[(value >> shift & 63) as usize]));
        }
    }
    out
}

/// Floats rounded to their upper 24 bits (a relative error of at most 2^-16), four characters each.
pub fn floats(values: &[f32]) -> String {
    integers(values.iter().map(|&value| {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x80) >> 8;
        match value {
            _ if value.is_nan() => 0x7f_c000,
            // Rounding must not make infinity of what is not.
            _ if value.is_finite() && !f32::from_bits(rounded << 8).is_finite() => bits >> 8,
            _ => rounded,
        }
    }))
}

/// A number with five significant digits, or null.
pub fn rounded(value: f64) -> Value {
    if !value.is_finite() {
        return Value::Null;
    }
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return Value::from(value as i64);
    }
    let short: f64 = format!("{value:.4e}").parse().unwrap_or(value);
    if short.fract() == 0.0 && short.abs() < 1e15 {
        return Value::from(short as i64);
    }
    Number::from_f64(short).map_or(Value::Null, Value::Number)
}

/// A number for people: up to five significant digits and a true minus sign.
pub fn shown(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    let size = value.abs();
    let text = if size != 0.0 && !(1e-4..1e6).contains(&size) {
        format!("{value:.3e}")
    } else {
        rounded(value).to_string().trim_end_matches(".0").to_owned()
    };
    text.replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_ends_the_script_that_it_stands_in() {
        let hostile = "</script><!--<script>alert(1)</SCRIPT \u{2028}&amp;\u{0}";
        let json = script(&hostile).unwrap();
        assert!(!json.contains('<') && !json.contains('>') && !json.contains('\u{2028}'), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), hostile);
        let text = html("<b title=\"x\" id='y'>&\u{0}");
        assert_eq!(text, "&lt;b title=&quot;x&quot; id=&#39;y&#39;&gt;&amp;\\u0000");
    }

    #[test]
    fn packed_floats_are_off_by_half_of_their_last_kept_bit_and_stay_what_they_are() {
        let unpack = |text: &str| -> Vec<f32> {
            let place = |c: u8| DIGITS.iter().position(|&d| d == c).unwrap() as u32;
            text.as_bytes()
                .chunks_exact(4)
                .map(|four| f32::from_bits(four.iter().fold(0, |sum, &c| sum << 6 | place(c)) << 8))
                .collect()
        };
        let values = [0.0, -0.0, 1.0, -0.1, 1e-30, 123_456.79, f32::MAX, f32::MIN, -2.5e-8];
        let back = unpack(&floats(&values));
        for (value, back) in values.iter().zip(&back) {
            assert!((value - back).abs() <= value.abs() * 2f32.powi(-15), "{value} {back}");
        }
        let odd = unpack(&floats(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]));
        assert!(odd[0].is_nan() && odd[1] == f32::INFINITY && odd[2] == f32::NEG_INFINITY);
        assert_eq!(integers([0, (1 << 24) - 1]), "AAAA////");
    }

    #[test]
    fn numbers_are_rounded_to_five_digits() {
        for (value, json) in
            [(0.123_456_78, "0.12346"), (7.0, "7"), (123_456.7, "123460"), (-1e-9, "-1e-9")]
        {
            assert_eq!(rounded(value).to_string(), json);
        }
        assert_eq!(rounded(f64::NAN), Value::Null);
        assert_eq!(
            (shown(-0.5), shown(2e7), shown(f64::INFINITY)),
            ("−0.5".into(), "2.000e7".into(), "–".into())
        );
    }
}
