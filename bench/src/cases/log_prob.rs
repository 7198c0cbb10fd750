//! The projection onto a vocabulary: log-probabilities forward and backward, and draws of tokens.

use anyhow::Result;
use prime_kernels::log_prob;
use prime_kernels::matmul::{Layout, Packed};
use prime_kernels::sample::{self, Row, Weight};
use prime_kernels::testing::roundoff;
use prime_runtime::{DType, Device, Tensor};

use super::{Case, OURS, dtypes};
use crate::shapes::Model;
use crate::work::{
    Comparison, Setup, UNIT, Work, all, dot, factor, magnitude, row, samples as places, sum_error,
};

/// All models' log-probabilities, of a training batch and of a prompt.
pub fn cases(setup: &Setup) -> Vec<Case> {
    let mut cases = Vec::new();
    for model in setup.scale.models() {
        for &dtype in dtypes(model.is_own()) {
            for tokens in [setup.scale.training(), setup.scale.prefill()] {
                cases.push(case(&model, tokens, dtype, false));
                cases.push(case(&model, tokens, dtype, true));
            }
        }
    }
    cases
}

/// Uniform factors make logits of a deviation of a third of the width's root: a temperature brings that to one.
fn temperature(width: usize) -> f32 {
    (width as f32).sqrt() / 3.0
}

fn case(model: &Model, tokens: usize, dtype: DType, backward: bool) -> Case {
    let (width, vocabulary) = (model.hidden, model.vocabulary);
    let products = 2.0 * (tokens * width) as f64 * vocabulary as f64;
    let inputs = ((tokens + vocabulary) * width * dtype.size()) as f64;
    let name = format!("{}, {tokens} tokens, {width} to {vocabulary}", model.name);
    // The gradient of the weight is read and written in float32.
    let gradients = (tokens * width * dtype.size() + 2 * vocabulary * width * 4) as f64;
    let (operation, amounts) = match backward {
        false => ("log_prob forward", [products, inputs]),
        true => ("log_prob backward", [3.0 * products, inputs + gradients]),
    };
    let mut case = Case::new(operation, name, dtype, amounts, move |setup| {
        make(setup, [tokens, width, vocabulary], dtype, backward, amounts[1])
    });
    case.footprint = inputs + (tokens * width * dtype.size() + vocabulary * width * 4) as f64;
    case
}

fn make(
    setup: &Setup,
    [tokens, width, vocabulary]: [usize; 3],
    dtype: DType,
    backward: bool,
    bytes: f64,
) -> Result<Work> {
    let chosen: Vec<u32> = (0..tokens).map(|i| (i * 7919 % vocabulary) as u32).collect();
    let mut set = vec![
        setup.zeros(DType::F32, &[tokens])?,
        setup.zeros(DType::F32, &[tokens])?,
        setup.zeros(DType::F32, &[tokens])?,
        setup.uniform(dtype, &[tokens, width], 1, 1.0)?,
        setup.uniform(dtype, &[vocabulary, width], 2, 1.0)?,
        setup.indices(&chosen, &[tokens])?,
    ];
    let temperature = temperature(width);
    let forward = move |set: &mut [Tensor]| -> Result<()> {
        let [log_probs, entropy, lse, x, w, t, ..] = set else { unreachable!("as made above") };
        let (log_probs, entropy, lse) = (log_probs.view_mut(), entropy.view_mut(), lse.view_mut());
        Ok(log_prob::forward(log_probs, entropy, lse, x.view(), w.view(), t.view(), temperature)?)
    };
    let inverse = 1.0 / f64::from(temperature);
    if !backward {
        let sets = setup.copies(set, bytes)?;
        let check = move |set: &[Tensor]| Ok(compare_forward(set, &chosen, inverse));
        let work = Work::new(sets, check).blank(0, f32::NAN).blank(1, f32::NAN).blank(2, f32::NAN);
        return Ok(work.ours(OURS, move |set, _| forward(set)));
    }
    set.push(setup.zeros(dtype, &[tokens, width])?);
    set.push(setup.zeros(DType::F32, &[vocabulary, width])?);
    set.push(setup.floats(&vec![1.0; tokens], &[tokens])?);
    forward(&mut set)?;
    let sets = setup.copies(set, bytes)?;
    let check = move |set: &[Tensor]| Ok(compare_backward(set, &chosen, inverse));
    Ok(Work::new(sets, check).blank(6, f32::NAN).blank(7, 0.0).ours(OURS, move |set, _| {
        let [_, entropy, lse, x, w, t, d_x, d_w, d] = set else { unreachable!("as made above") };
        log_prob::backward(
            d_x.view_mut(),
            Some(d_w.view_mut()),
            d.view(),
            None,
            x.view(),
            w.view(),
            t.view(),
            lse.view(),
            entropy.view(),
            temperature,
        )?;
        Ok(())
    }))
}

/// A row of logits in float64.
struct Logits {
    values: Vec<f64>,
    lse: f64,
    entropy: f64,
    /// How far off a logit may be.
    error: f64,
}

impl Logits {
    fn of(hidden: &[f64], weight: &[f64], inverse: f64) -> Logits {
        let mut size = 0.0f64;
        let mut values = Vec::new();
        for row in weight.chunks_exact(hidden.len()) {
            size = size.max(magnitude(hidden, row));
            values.push(inverse * dot(hidden, row));
        }
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = most + values.iter().map(|logit| (logit - most).exp()).sum::<f64>().ln();
        let mean: f64 = values.iter().map(|logit| (logit - lse).exp() * logit).sum();
        let error = inverse * (sum_error(hidden.len()) + 2.0 * UNIT) * size;
        Logits { values, lse, entropy: lse - mean, error }
    }
}

fn compare_forward(set: &[Tensor], chosen: &[u32], inverse: f64) -> Comparison {
    let [log_probs, entropy, lse, x, w, ..] = set else { unreachable!("as made above") };
    let (log_probs, entropy, lse, weight) = (all(log_probs), all(entropy), all(lse), all(w));
    let mut comparison = Comparison::default();
    for at in places(chosen.len(), 2) {
        let exact = Logits::of(&row(x, at), &weight, inverse);
        let log_prob = exact.values[chosen[at] as usize] - exact.lse;
        // A logit's error twice, of the target and of the sum; and of sums of the vocabulary in float32, in lanes and trees.
        let error = 2.0 * exact.error + 64.0 * UNIT * (1.0 + exact.lse.abs());
        comparison.add(log_probs[at], log_prob, error);
        comparison.add(lse[at], exact.lse, error);
        // The entropy is the sum's logarithm less the mean logit, which a change of all logits by e changes by e (1 + deviation) at most.
        comparison.add(entropy[at], exact.entropy, 4.0 * error * (1.0 + exact.lse.abs()));
    }
    comparison
}

fn compare_backward(set: &[Tensor], chosen: &[u32], inverse: f64) -> Comparison {
    let [_, _, lse, x, w, _, d_x, d_w, _] = set else { unreachable!("as made above") };
    let (weight, width) = (all(w), x.dims()[1]);
    let stored = roundoff(x.dtype());
    let mut comparison = Comparison::default();
    for at in places(chosen.len(), 2) {
        let exact = Logits::of(&row(x, at), &weight, inverse);
        let (mut sums, mut sizes) = (vec![0.0; width], vec![0.0; width]);
        for (id, row) in weight.chunks_exact(width).enumerate() {
            let target = f64::from(u8::from(id == chosen[at] as usize));
            let p = (exact.values[id] - exact.lse).exp();
            let d_logit = inverse * (target - p);
            for (column, w) in row.iter().enumerate() {
                sums[column] += d_logit * w;
                // Where the target's probability is near one, its difference from one is as far off as it is.
                sizes[column] += inverse * (target + p) * w.abs();
            }
        }
        let found = row(d_x, at);
        // A gradient may be rounded to the dtype before it is multiplied.
        let vocabulary = exact.values.len();
        let relative = factor(x.dtype())
            + sum_error(vocabulary)
            + 2.0 * exact.error
            + 64.0 * UNIT * (1.0 + exact.lse.abs());
        for column in 0..width {
            let error = 1.01 * relative * sizes[column];
            comparison.add(
                found[column],
                sums[column],
                error + stored * (sums[column].abs() + error),
            );
        }
    }
    // One row of the weight's gradient: a sum over all tokens, given the forward pass's own normalisation of each.
    let (id, lse) = (chosen[0] as usize, all(lse));
    let w = &weight[id * width..][..width];
    let (mut sums, mut sizes) = (vec![0.0; width], vec![0.0; width]);
    for ((hidden, &target), lse) in all(x).chunks_exact(width).zip(chosen).zip(lse) {
        let hit = f64::from(u8::from(target as usize == id));
        let p = (inverse * dot(hidden, w) - lse).exp();
        let error = inverse * (sum_error(width) + 2.0 * UNIT) * magnitude(hidden, w)
            + UNIT * (8.0 * lse.abs() + 64.0);
        for column in 0..width {
            sums[column] += inverse * (hit - p) * hidden[column];
            let rounded = factor(x.dtype()) + sum_error(chosen.len()) + error;
            sizes[column] += rounded * inverse * (hit + p) * hidden[column].abs();
        }
    }
    for (column, &found) in row(d_w, id).iter().enumerate() {
        comparison.add(found, sums[column], 1.02 * sizes[column] + f64::from(f32::MIN_POSITIVE));
    }
    comparison
}

/// Draws: the whole distribution, and what a user of a chat model sets.
const TRUNCATIONS: [(&str, u32, f32); 2] = [("whole", 0, 1.0), ("top-k 50, top-p 0.95", 50, 0.95)];

/// Draws of all models.
pub fn samples(setup: &Setup) -> Vec<Case> {
    let mut cases = Vec::new();
    for model in setup.scale.models() {
        for batch in setup.scale.decode() {
            for (what, top_k, top_p) in TRUNCATIONS {
                cases.push(draw(&model, batch, what, top_k, top_p));
            }
        }
    }
    cases
}

fn draw(model: &Model, batch: usize, what: &str, top_k: u32, top_p: f32) -> Case {
    let (width, vocabulary, dtype) = (model.hidden, model.vocabulary, DType::BF16);
    let flops = 2.0 * (batch * width) as f64 * vocabulary as f64;
    let bytes = ((batch + vocabulary) * width * dtype.size()) as f64;
    let name = format!("{} decode {batch}, {what}, {width} to {vocabulary}", model.name);
    let mut case = Case::new("sample", name, dtype, [flops, bytes], move |setup| {
        let set = vec![
            setup.indices(&vec![u32::MAX; batch], &[batch])?,
            setup.zeros(DType::F32, &[batch])?,
            setup.zeros(DType::F32, &[batch])?,
            setup.uniform(dtype, &[batch, width], 1, 1.0)?,
            setup.uniform(dtype, &[vocabulary, width], 2, 1.0)?,
        ];
        let sets = setup.copies(set, bytes)?;
        let temperature = temperature(width);
        let row_of = move |i| Row {
            temperature,
            top_k,
            top_p,
            min_p: 0.0,
            seed: 1,
            sequence: i as u64,
            position: 0,
        };
        let rows: Vec<Row> = (0..batch).map(row_of).collect();
        let pack = |set: &Vec<Tensor>| Packed::new(set[4].view(), Layout::NT);
        let packed: Vec<Packed> = match setup.device {
            Device::Cpu => sets.iter().map(pack).collect::<prime_runtime::Result<_>>()?,
            _ => Vec::new(),
        };
        let inverse = 1.0 / f64::from(temperature);
        let check = move |set: &[Tensor]| compare_draws(set, inverse, top_k);
        let work = Work::new(sets, check).blank(1, f32::NAN).blank(2, f32::NAN);
        Ok(work.ours(OURS, move |set, number| {
            let [tokens, log_probs, entropy, x, w] = set else { unreachable!("as made above") };
            let weight = packed.get(number).map_or(Weight::Plain(w.view()), Weight::Packed);
            let (tokens, log_probs, entropy) =
                (tokens.view_mut(), log_probs.view_mut(), entropy.view_mut());
            Ok(sample::forward(tokens, log_probs, entropy, x.view(), weight, &rows)?)
        }))
    });
    case.footprint += (vocabulary * width * dtype.size()) as f64;
    // Its settings are sent from the host with every call.
    case.waits()
}

/// The log-probability is that of the drawn token, the entropy that of the whole distribution; a truncated draw is among the likeliest.
fn compare_draws(set: &[Tensor], inverse: f64, top_k: u32) -> Result<Comparison> {
    let [tokens, log_probs, entropy, x, w] = set else { unreachable!("as made above") };
    let tokens = tokens.view().to_vec::<u32>()?;
    let (log_probs, entropy, weight) = (all(log_probs), all(entropy), all(w));
    let mut comparison = Comparison::default();
    for at in places(tokens.len(), 2) {
        let exact = Logits::of(&row(x, at), &weight, inverse);
        let Some(logit) = exact.values.get(tokens[at] as usize) else {
            comparison.add(f64::NAN, 0.0, 1.0);
            continue;
        };
        let error = 2.0 * exact.error + 64.0 * UNIT * (1.0 + exact.lse.abs());
        comparison.add(log_probs[at], logit - exact.lse, error);
        comparison.add(entropy[at], exact.entropy, 4.0 * error * (1.0 + exact.lse.abs()));
        if top_k > 0 {
            let mut sorted = exact.values.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let least = sorted[(top_k as usize).min(sorted.len()) - 1];
            // Below the last of them by no more than two logits' errors.
            comparison.add(logit.min(least), least, 2.0 * exact.error);
        }
    }
    Ok(comparison)
}
