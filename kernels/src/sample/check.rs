//! One random case: draws against the oracle's, and their numbers against [`crate::log_prob`], bit for bit.

use prime_runtime::random::Generator;
use prime_runtime::{DType, Device, Tensor, View, ViewMut};

use super::Row;
use super::reference::{self, Slack};
use crate::log_prob;
use crate::matmul::{self, Epilogue, Layout, Packed};
use crate::testing::{any_dtype, generator, normal, zeros};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the first row that disagreed.
pub fn check(_device: Device, seed: u64) -> Result<(), String> {
    let mut random = generator(seed);
    let vocabulary = [1, 2, 17, 64, 1000, 1025, 6400][random.below(7) as usize];
    let width = 1 + random.below(24) as usize;
    let count = random.below(12) as usize;
    let dtype = any_dtype(&mut random);
    let spread = [0.1, 1.0, 5.0][random.below(3) as usize];
    // At least one row of memory: an empty batch is a view of none of it.
    let hidden = normal(&mut random, dtype, &[count.max(1), width], 1.0);
    let weight = normal(&mut random, dtype, &[vocabulary, width], spread / (width as f32).sqrt());
    let packed = Packed::new(weight.view(), Layout::NT).map_err(|error| error.to_string())?;
    let rows: Vec<Row> = (0..count).map(|_| any_row(&mut random, vocabulary)).collect();

    let mut tokens = vec![u32::MAX; count];
    let [mut log_probs, mut entropy] = [(); 2].map(|()| vec![f32::NAN; count]);
    super::forward(
        ViewMut::from_slice(&mut tokens, &[count]),
        ViewMut::from_slice(&mut log_probs, &[count]),
        ViewMut::from_slice(&mut entropy, &[count]),
        hidden.head(count),
        &packed,
        &rows,
    )
    .map_err(|error| error.to_string())?;

    let mut logits = zeros(DType::F32, &[count.max(1), vocabulary]);
    let out = logits.head_mut(count);
    matmul::forward_packed(out, hidden.head(count), &packed, Epilogue::default())
        .map_err(|error| error.to_string())?;
    for (i, row) in rows.iter().enumerate() {
        let of_row = Place { hidden: hidden.view().rows(i..i + 1), weight: &weight, row, i };
        of_row.compare_token(tokens[i], logits.view().row::<f32>(i))?;
        of_row.compare_numbers(tokens[i], [log_probs[i], entropy[i]])?;
    }
    Ok(())
}

/// One row of a case.
struct Place<'a> {
    hidden: View<'a>,
    weight: &'a Tensor,
    row: &'a Row,
    i: usize,
}

impl Place<'_> {
    /// The oracle decides from the very logits; it declines where the rounding of sums of exponentials may decide.
    fn compare_token(&self, token: u32, raw: &[f32]) -> Result<(), String> {
        let Place { row, i, .. } = *self;
        let greedy = row.temperature == 0.0;
        let inverse = if greedy { 1.0 } else { 1.0 / row.temperature };
        let logits: Vec<f64> = raw.iter().map(|z| f64::from(z * inverse)).collect();
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let expected = if greedy {
            logits.iter().position(|&z| z == max)
        } else {
            // A term errs by the exponential's 4 units and its argument's rounding (|z| e^-|z| is below 1); a block's sum
            // by 68 additions. Relative errors of a sum's terms are at most that of the sum. Twice, for both sums.
            let unit = f64::from(f32::EPSILON) / 2.0;
            let least = f64::from(row.min_p.max(f32::MIN_POSITIVE)).ln();
            let slack =
                Slack { probability: 2.0 * unit * 75.0, logit: unit * (max + least).abs() + 1e-12 };
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

    fn compare_numbers(&self, token: u32, actual: [f32; 2]) -> Result<(), String> {
        let Place { row, i, .. } = *self;
        let [mut log_prob, mut entropy, mut lse] = [[0.0f32]; 3];
        let target = [token];
        log_prob::forward(
            ViewMut::from_slice(&mut log_prob, &[1]),
            ViewMut::from_slice(&mut entropy, &[1]),
            ViewMut::from_slice(&mut lse, &[1]),
            self.hidden,
            self.weight.view(),
            View::from_slice(&target, &[1]),
            if row.temperature == 0.0 { 1.0 } else { row.temperature },
        )
        .map_err(|error| error.to_string())?;
        let expected = [log_prob[0], entropy[0]];
        if actual.map(f32::to_bits) == expected.map(f32::to_bits) {
            return Ok(());
        }
        Err(format!(
            "log_probs[{i}] and entropy[{i}] are {actual:?}, but log_prob gives {expected:?} for token {token}"
        ))
    }
}

fn any_row(random: &mut Generator, vocabulary: usize) -> Row {
    let mut one_of = |values: &[f32]| values[random.below(values.len() as u32) as usize];
    let (temperature, top_p) = (one_of(&[0.0, 1.0, 0.6, 1.5]), one_of(&[1.0, 0.95, 0.5, 1e-6]));
    let min_p = one_of(&[0.0, 0.05, 0.5, 1.0, 0.0]);
    let top_k = match random.below(3) {
        0 => 0,
        1 => 1 + random.below(vocabulary as u32 + 3),
        _ => 1 + random.below(20),
    };
    let sequence = u64::from(random.next_u32()) << 8;
    Row { temperature, top_k, top_p, min_p, seed: 7, sequence, position: random.below(4000) }
}
