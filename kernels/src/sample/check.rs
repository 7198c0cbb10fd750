//! One random case: draws against the oracle's, and their numbers against [`crate::log_prob`], bit for bit.

use prime_runtime::random::Generator;
use prime_runtime::{DType, Device, View};

use super::reference::{self, Slack};
use super::{Row, Weight, cuda};
use crate::log_prob;
use crate::log_prob::check::Arithmetic;
use crate::matmul::{self, Epilogue, Layout, Packed};
use crate::testing::{self, Case, Rows, any_dtype, compare, zeros};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the first row that disagreed.
pub fn check(device: Device, seed: u64) -> Result<(), String> {
    let mut random = testing::case(device, seed);
    let vocabulary = [1, 2, 17, 64, 1000, 1025, 6400][random.below(7) as usize];
    let width = 1 + random.below(24) as usize;
    // Now and then more rows than the smallest tile of any device has.
    let most = if random.below(8) == 0 && vocabulary < 2000 { 80 } else { 12 };
    let count = random.below(most) as usize;
    let dtype = any_dtype(&mut random);
    let spread = [0.1, 1.0, 5.0][random.below(3) as usize];
    let hidden = random.rows(dtype, count, width, 1.0);
    let weight = random.rows(dtype, vocabulary, width, spread / (width as f32).sqrt());
    let rows: Vec<Row> = (0..count).map(|_| any_row(&mut random, vocabulary)).collect();

    let packed = match device {
        Device::Cpu => Some(Packed::new(weight.view(), Layout::NT).map_err(|e| e.to_string())?),
        _ => None,
    };
    // At least one value of memory: an empty batch is a view of none of it.
    let mut tokens = random.indices(&vec![u32::MAX; count.max(1)]);
    let [mut log_probs, mut entropy] = [(); 2].map(|()| random.blank(DType::F32, &[count.max(1)]));
    super::forward(
        tokens.head_mut(count),
        log_probs.head_mut(count),
        entropy.head_mut(count),
        hidden.view(),
        packed.as_ref().map_or(Weight::Plain(weight.view()), Weight::Packed),
        &rows,
    )
    .map_err(|error| error.to_string())?;
    if count == 0 {
        return Ok(());
    }

    let tokens = tokens.head(count).to_vec::<u32>().map_err(|error| error.to_string())?;
    super::check_drawn(&tokens, &rows).map_err(|error| error.to_string())?;
    let [log_probs, entropy] = [log_probs, entropy].map(|tensor| tensor.head(count).to_f32_vec());
    let logits = raw_logits(device, &hidden, &weight, packed.as_ref())?;
    for (i, row) in rows.iter().enumerate() {
        compare_token(device, i, row, tokens[i], &logits[i * vocabulary..][..vocabulary])?;
    }
    let drawn = Drawn { tokens, log_probs, entropy };
    for temperature in TEMPERATURES {
        drawn.compare_numbers(&random, temperature, &rows, hidden.view(), weight.view())?;
    }
    // A row's numbers are those of the row alone, too.
    let alone = Drawn {
        tokens: drawn.tokens[..1].to_vec(),
        log_probs: drawn.log_probs[..1].to_vec(),
        entropy: drawn.entropy[..1].to_vec(),
    };
    let (hidden, temperature) = (hidden.view().rows(0..1), rows[0].temperature);
    alone.compare_numbers(&random, temperature, &rows[..1], hidden, weight.view())
}

/// Temperatures of rows.
const TEMPERATURES: [f32; 4] = [0.0, 1.0, 0.6, 1.5];

/// The logits of all rows before the temperature, as the device computes them.
fn raw_logits(
    device: Device,
    hidden: &Rows,
    weight: &Rows,
    packed: Option<&Packed>,
) -> Result<Vec<f32>, String> {
    let (count, vocabulary) = (hidden.view().dim(0), weight.view().dim(0));
    let Some(packed) = packed else { return device_logits(device, hidden, weight) };
    let mut logits = zeros(DType::F32, &[count, vocabulary]);
    matmul::forward_packed(logits.view_mut(), hidden.view(), packed, Epilogue::default())
        .map_err(|error| error.to_string())?;
    Ok(logits.view().to_f32_vec())
}

/// Those of a device beside the host, checked against exact products.
fn device_logits(device: Device, hidden: &Rows, weight: &Rows) -> Result<Vec<f32>, String> {
    let (x, w) = (hidden.to_f64(), weight.to_f64());
    let width = hidden.view().dim(1);
    let logits = cuda::raw_logits(hidden.view(), weight.view()).map_err(|e| e.to_string())?;
    let arithmetic = Arithmetic { device, dtype: hidden.view().dtype() };
    let units = 1.1 * UNIT * (arithmetic.products(width) + 1.0);
    let (mut exact, mut magnitudes) = (Vec::new(), Vec::new());
    for x in x.chunks_exact(width) {
        for w in w.chunks_exact(width) {
            let products = || x.iter().zip(w).map(|(x, w)| x * w);
            exact.push(products().sum::<f64>());
            magnitudes.push(products().map(f64::abs).sum::<f64>());
        }
    }
    let actual: Vec<f64> = logits.iter().copied().map(f64::from).collect();
    compare("logits", &actual, &exact, |i| units * magnitudes[i] + 1e-36)?;
    Ok(logits)
}

const UNIT: f64 = f32::EPSILON as f64 / 2.0;

/// The oracle decides from the very logits; it declines where the rounding of sums of exponentials may decide.
fn compare_token(
    device: Device,
    i: usize,
    row: &Row,
    token: u32,
    raw: &[f32],
) -> Result<(), String> {
    let greedy = row.temperature == 0.0;
    let inverse = if greedy { 1.0 } else { 1.0 / row.temperature };
    let logits: Vec<f64> = raw.iter().map(|z| f64::from(z * inverse)).collect();
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let expected = if greedy {
        logits.iter().position(|&z| z == max)
    } else {
        let least = f64::from(row.min_p.max(f32::MIN_POSITIVE)).ln();
        let slack = Slack {
            probability: UNIT * roundings(device, logits.len()),
            logit: UNIT * (max + least).abs() + 1e-12,
        };
        reference::kept(&logits, row, slack).and_then(|kept| {
            let probabilities = reference::probabilities(&logits, &kept);
            reference::draw(&probabilities, row.uniform(), slack)
        })
    };
    match expected {
        Some(expected) if expected != token as usize => {
            Err(format!("tokens[{i}] is {token}, expected {expected} with {row:?}"))
        }
        None if token as usize >= logits.len() => {
            Err(format!("tokens[{i}] is {token}, outside the vocabulary"))
        }
        _ => Ok(()),
    }
}

/// What was drawn of some rows.
struct Drawn {
    tokens: Vec<u32>,
    log_probs: Vec<f32>,
    entropy: Vec<f32>,
}

impl Drawn {
    /// Compares the numbers of the rows at a temperature with those that [`log_prob`] gives for all rows at it.
    fn compare_numbers(
        &self,
        random: &Case,
        temperature: f32,
        rows: &[Row],
        hidden: View<'_>,
        weight: View<'_>,
    ) -> Result<(), String> {
        let mut outputs = [(); 3].map(|()| random.blank(DType::F32, &[rows.len()]));
        let [log_probs, entropy, lse] = outputs.each_mut().map(|output| output.view_mut());
        let targets = random.indices(&self.tokens);
        let of_numbers = if temperature == 0.0 { 1.0 } else { temperature };
        log_prob::forward(log_probs, entropy, lse, hidden, weight, targets.view(), of_numbers)
            .map_err(|error| error.to_string())?;
        let [log_probs, entropy, _] = outputs.map(|output| output.view().to_f32_vec());
        for i in (0..rows.len()).filter(|&i| rows[i].temperature == temperature) {
            let (token, actual) = (self.tokens[i], [self.log_probs[i], self.entropy[i]]);
            let expected = [log_probs[i], entropy[i]];
            if actual.map(f32::to_bits) != expected.map(f32::to_bits) {
                return Err(format!(
                    "log_probs[{i}] and entropy[{i}] are {actual:?}, but log_prob gives {expected:?} for token {token}"
                ));
            }
        }
        Ok(())
    }
}

/// Roundings that may stand between a cumulative probability and the one that a draw or a nucleus is decided by: of both the part and the
/// whole. A term errs by the exponential's 4 units and its argument's rounding (|z| e^-|z| is below 1).
fn roundings(device: Device, vocabulary: usize) -> f64 {
    match device {
        // A block's sum adds up to 68 more. Relative errors of a sum's terms are at most that of the sum.
        Device::Cpu => 2.0 * 75.0,
        // Sums are in float64, but the whole of a nucleus is log_prob's sum: it errs as said there, the distances from the maximum being the
        // logarithm of the vocabulary on average, at most.
        _ => {
            let [of_sum, _] = Arithmetic { device, dtype: DType::F32 }.softmax(vocabulary);
            1.1 * (2.0 * 5.0 + of_sum + 2.0 * (vocabulary as f64).ln())
        }
    }
}

fn any_row(random: &mut Generator, vocabulary: usize) -> Row {
    let mut one_of = |values: &[f32]| values[random.below(values.len() as u32) as usize];
    let (temperature, top_p) = (one_of(&TEMPERATURES), one_of(&[1.0, 0.95, 0.5, 1e-6]));
    let min_p = one_of(&[0.0, 0.05, 0.5, 1.0, 0.0]);
    let top_k = match random.below(3) {
        0 => 0,
        1 => 1 + random.below(vocabulary as u32 + 3),
        _ => 1 + random.below(20),
    };
    let sequence = u64::from(random.next_u32()) << 8;
    Row { temperature, top_k, top_p, min_p, seed: 7, sequence, position: random.below(4000) }
}
