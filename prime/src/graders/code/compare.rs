//! Whether a program's output is the expected one.

use serde_json::Value;

/// Texts are equal when their words are, whatever blanks and line ends part them. Numbers written as decimals may differ by the
/// tolerance, relative to the larger one or to 1.
pub(super) fn texts(found: &str, expected: &str, tolerance: f64) -> bool {
    let (mut found, mut expected) = (found.split_whitespace(), expected.split_whitespace());
    loop {
        match (found.next(), expected.next()) {
            (None, None) => return true,
            (Some(a), Some(b)) if a == b || decimals(a, b, tolerance) => {}
            _ => return false,
        }
    }
}

/// Two numbers, one of them at least with a point or an exponent, that are near.
fn decimals(a: &str, b: &str, tolerance: f64) -> bool {
    let written = |text: &str| {
        let first = text.trim_start_matches(['-', '+']).as_bytes().first().copied();
        first
            .is_some_and(|byte| byte.is_ascii_digit() || byte == b'.')
            .then(|| text.parse::<f64>().ok())
            .flatten()
    };
    let is_decimal = |text: &str| text.contains(['.', 'e', 'E']);
    match (written(a), written(b)) {
        (Some(x), Some(y)) if is_decimal(a) || is_decimal(b) => near(x, y, tolerance),
        _ => false,
    }
}

fn near(a: f64, b: f64, tolerance: f64) -> bool {
    a == b || (a - b).abs() <= tolerance * a.abs().max(b.abs()).max(1.0)
}

/// Values are equal when they are the same JSON, with numbers compared by value. Data sets wrap a result in a list of one, or write it
/// as JSON within a text: both are unwrapped where the value itself does not agree.
pub(super) fn values(found: &Value, expected: &Value, tolerance: f64) -> bool {
    if same(found, expected, tolerance) {
        return true;
    }
    match expected {
        Value::Array(list) if list.len() == 1 && same(found, &list[0], tolerance) => true,
        Value::String(text) => {
            serde_json::from_str(text).is_ok_and(|inner: Value| same(found, &inner, tolerance))
        }
        _ => false,
    }
}

/// The depth of both is bounded by the parser of JSON.
fn same(a: &Value, b: &Value, tolerance: f64) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => {
            if x == y {
                return true;
            }
            let whole = |number: &serde_json::Number| number.is_i64() || number.is_u64();
            !(whole(x) && whole(y))
                && x.as_f64().zip(y.as_f64()).is_some_and(|(x, y)| near(x, y, tolerance))
        }
        (Value::Array(x), Value::Array(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y, tolerance))
        }
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len()
                && x.iter().all(|(key, x)| y.get(key).is_some_and(|y| same(x, y, tolerance)))
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn blanks_do_not_matter_and_decimals_may_be_near() {
        assert!(texts("1  2\n3\n", "1 2 3", 1e-6));
        assert!(texts("0.5", "0.5000000", 1e-6) && texts("1e-3", "0.001", 0.0));
        assert!(!texts("1 2", "1 2 3", 1e-6) && !texts("1 2 3", "1 2", 1e-6));
        assert!(!texts("1000000", "1000001", 1e-6), "whole numbers are exact");
        assert!(
            !texts("0.501", "0.5", 1e-6)
                && !texts("nan", "0.5", 1e-6)
                && !texts("inf", "0.5", 1e-6)
        );
        assert!(texts("YES", "YES", 0.0) && !texts("YES", "yes", 0.0));
    }

    #[test]
    fn results_are_compared_as_values() {
        assert!(values(&json!([1, 2]), &json!([[1, 2]]), 0.0));
        assert!(values(&json!(3), &json!("3"), 0.0) && values(&json!("3"), &json!("3"), 0.0));
        assert!(values(&json!(0.3000000001), &json!([0.3]), 1e-6));
        assert!(values(&json!(2.0), &json!(2), 0.0));
        assert!(!values(&json!(true), &json!(1), 0.0) && !values(&json!([1]), &json!([2]), 0.0));
        assert!(!values(&json!(10_000_000), &json!(10_000_001), 1e-6));
    }
}
