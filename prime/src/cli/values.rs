//! Values on the command line that clap does not check by itself.

use clap::{Args, ValueEnum};
use prime_model::Sampling;
use prime_runtime::{DType, Device};

/// What a model computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Precision {
    /// Exact for checkpoints of either kind.
    #[value(alias = "f32")]
    Float32,
    /// Half the memory, faster where the processor has bfloat16 products.
    #[value(alias = "bf16")]
    Bfloat16,
}

impl Precision {
    /// The dtype.
    pub(super) fn dtype(self) -> DType {
        match self {
            Precision::Float32 => DType::F32,
            Precision::Bfloat16 => DType::BF16,
        }
    }
}

/// The name of a device. Whether this machine has it is found out by whoever uses it.
pub(super) fn device(text: &str) -> Result<Device, String> {
    Device::parse(text).map_err(|error| error.to_string())
}

/// How samples are drawn, apart from the temperature.
#[derive(Args, Clone, Copy)]
pub(super) struct Truncation {
    /// Draw from the fewest most likely tokens whose probabilities sum to at least P; 1 keeps all
    #[arg(long, value_name = "P", default_value = "1", allow_negative_numbers = true, value_parser = top_p)]
    top_p: f32,
    /// Draw from the K most likely tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value = "0")]
    top_k: u32,
    /// Draw from tokens at least P times as likely as the most likely one; 0 keeps all
    #[arg(long, value_name = "P", default_value = "0", allow_negative_numbers = true, value_parser = min_p)]
    min_p: f32,
}

impl Truncation {
    /// With a temperature and a seed.
    pub(super) fn sampling(self, temperature: f32, seed: u64) -> Sampling {
        Sampling { temperature, top_k: self.top_k, top_p: self.top_p, min_p: self.min_p, seed }
    }
}

fn number(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| "it is not a number".to_string())?;
    if value.is_finite() { Ok(value) } else { Err("it is not a finite number".to_string()) }
}

fn within(text: &str, low: f32, high: f32) -> Result<f32, String> {
    let value = number(text)?;
    if (low..=high).contains(&value) { Ok(value) } else { Err(format!("expected {low} to {high}")) }
}

/// A temperature to sample at; 0 is greedy.
pub(super) fn temperature(text: &str) -> Result<f32, String> {
    let value = within(text, 0.0, 100.0)?;
    if value > 0.0 && value < 1e-3 {
        return Err("expected 0 (the most likely token each time), or 0.001 to 100".to_string());
    }
    Ok(value)
}

/// A temperature to score at.
pub(super) fn positive_temperature(text: &str) -> Result<f32, String> {
    within(text, 1e-3, 100.0)
}

/// A text that ends steps, in which \n is a new line and \t a tab.
pub(super) fn separator(text: &str) -> Result<String, std::convert::Infallible> {
    Ok(text.replace("\\n", "\n").replace("\\t", "\t"))
}

/// The scale of a log-ratio.
pub(super) fn beta(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "it is not a number".to_string())?;
    if (1e-9..=1e9).contains(&value) {
        Ok(value)
    } else {
        Err("expected a positive number".to_string())
    }
}

/// A size of memory: a number of bytes, or with KiB, MiB, GiB, kB, MB or GB.
pub(super) fn bytes(text: &str) -> Result<usize, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        _ => return Err("expected a size such as 24GiB, 800MiB or 16GB".to_string()),
    };
    let size =
        number.parse::<f64>().map_err(|_| "it is not a size such as 24GiB".to_string())? * unit;
    if (1.0..1e18).contains(&size) {
        Ok(size as usize)
    } else {
        Err("expected at least a byte, and less than an exabyte".to_string())
    }
}

fn top_p(text: &str) -> Result<f32, String> {
    within(text, 1e-6, 1.0)
}

fn min_p(text: &str) -> Result<f32, String> {
    within(text, 0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_outside_their_range_are_refused_with_the_range() {
        assert_eq!(temperature("0"), Ok(0.0));
        assert_eq!(temperature("0.7"), Ok(0.7));
        for text in ["-1", "nan", "inf", "1e-5", "1e9", "warm", ""] {
            assert!(temperature(text).is_err(), "{text}");
        }
        assert!(positive_temperature("0").unwrap_err().contains("0.001 to 100"));
        assert!(top_p("0").is_err() && top_p("1") == Ok(1.0));
        assert_eq!(device("cuda:1"), Ok(Device::Cuda(1)));
        assert!(device("gpu").unwrap_err().contains("`cuda:N`"));
        assert_eq!(
            (bytes("1.5GiB"), bytes("800 MiB"), bytes("7")),
            (Ok(3 << 29), Ok(800 << 20), Ok(7))
        );
        assert!(["", "GiB", "5x", "0", "-1GiB", "1e3"].iter().all(|text| bytes(text).is_err()));
        assert!(min_p("1.1").is_err() && beta("0").is_err() && beta("nan").is_err());
    }
}
