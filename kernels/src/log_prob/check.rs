//! One random case against the oracle.

use prime_runtime::{DType, Device, Tensor};

use super::cuda;
use super::online::{BLOCK, LANES};
use super::reference::{Distribution, Projection};
use crate::device;
use crate::matmul;
use crate::matmul::check::sum_bound;
use crate::testing::{self, Case, Rows, any_dtype, compare, roundoff, to_f64};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(device: Device, seed: u64) -> Result<(), String> {
    let mut random = testing::case(device, seed);
    let place = Place::any(&mut random);
    check_place(random, place)
}

/// A case for Hopper's kernels: bfloat16, rows of whole vectors.
///
/// # Errors
/// As for [`check`].
#[cfg(test)]
pub(super) fn check_hopper(device: Device, seed: u64) -> Result<(), String> {
    let mut random = testing::case(device, seed);
    let vocabulary = [1, 17, 64, 130, 384, 1000, 1025, 2500][random.below(8) as usize];
    let width = [8, 16, 40, 64, 136][random.below(5) as usize];
    let most = (150_000 / (vocabulary * width)).clamp(1, 150) as u32;
    let tokens = 1 + random.below(most) as usize;
    let place = Place::of(&mut random, [tokens, vocabulary, width], DType::BF16, true);
    let tier = super::hopper::tier(place.hidden.view(), place.weight.view());
    if !tier.is_ok_and(|tier| tier.is_some()) {
        return Err("the case is not computed by Hopper's kernels".into());
    }
    check_place(random, place)
}

fn check_place(mut random: Case, place: Place) -> Result<(), String> {
    let oracle = place.oracle();
    let errors: Vec<Errors> =
        (0..place.tokens).map(|t| Errors::of(&oracle, t, place.arithmetic)).collect();
    let [_, entropy, lse] = check_forward(&random, &place, &errors)?;
    check_backward(&mut random, &place, &errors, [&entropy, &lse])
}

/// Gives log-probs, entropies and lse.
fn check_forward(random: &Case, place: &Place, errors: &[Errors]) -> Result<[Tensor; 3], String> {
    let tokens = place.tokens;
    // At least one value of memory: an empty batch is a view of none of it.
    let mut outputs = [(); 3].map(|()| random.blank(DType::F32, &[tokens.max(1)]));
    let [log_probs, entropy, lse] = &mut outputs;
    super::forward(
        log_probs.head_mut(tokens),
        entropy.head_mut(tokens),
        lse.head_mut(tokens),
        place.hidden.view(),
        place.weight.view(),
        place.targets.head(tokens),
        place.temperature,
    )
    .map_err(|error| error.to_string())?;
    let targets = &place.target_ids;
    let expected = |of: fn(&Distribution, usize) -> f64| -> Vec<f64> {
        errors.iter().zip(targets).map(|(e, &target)| of(&e.of, target as usize)).collect()
    };
    let exact = expected(|of, target| of.log_probs[target]);
    let actual = |tensor: &Tensor| -> Vec<f64> {
        tensor.head(tokens).to_f32_vec().into_iter().map(f64::from).collect()
    };
    compare("log_probs", &actual(log_probs), &exact, |t| errors[t].log_prob(targets[t] as usize))?;
    let exact = expected(|of, _| of.entropy);
    compare("entropy", &actual(entropy), &exact, |t| errors[t].entropy)?;
    compare("lse", &actual(lse), &expected(|of, _| of.lse), |t| errors[t].lse)?;

    Ok(outputs)
}

fn check_backward(
    random: &mut Case,
    place: &Place,
    errors: &[Errors],
    [entropy, lse]: [&Tensor; 2],
) -> Result<(), String> {
    let Place { tokens, vocabulary, width, arithmetic, ref target_ids, .. } = *place;
    let [d_log_probs, d_entropy] =
        [(); 2].map(|()| random.tensor(DType::F32, &[tokens.max(1)], 1.0));
    let with_entropy = random.below(2) == 0;
    let mut d_hidden = random.rows(arithmetic.dtype, tokens, width, 1.0);
    let mut d_weight = random.rows(DType::F32, vocabulary, width, 1.0);
    let before = d_weight.to_f64();
    super::backward(
        d_hidden.view_mut(),
        Some(d_weight.view_mut()),
        d_log_probs.head(tokens),
        with_entropy.then(|| d_entropy.head(tokens)),
        place.hidden.view(),
        place.weight.view(),
        place.targets.head(tokens),
        lse.head(tokens),
        entropy.head(tokens),
        place.temperature,
    )
    .map_err(|error| error.to_string())?;

    // The products take gradients that err as `of_logit` says and are rounded to storage, and err as sums of products do.
    let storage = roundoff(arithmetic.dtype);
    let mut exact = [vec![0.0; tokens * width], before.clone()];
    let mut bounds = [vec![1e-35; tokens * width], vec![1e-35; vocabulary * width]];
    let sum_of_tokens = 1.1 * UNIT * arithmetic.sum_of_matmul(tokens);
    for (bound, value) in bounds[1].iter_mut().zip(&before) {
        *bound += sum_of_tokens * value.abs();
    }
    let sum_of_entries = 1.1 * UNIT * arithmetic.sum_of_matmul(vocabulary);
    let d_entropy = if with_entropy { to_f64(&d_entropy) } else { vec![0.0; tokens.max(1)] };
    let d_log_probs = to_f64(&d_log_probs);
    let oracle = place.oracle();
    for t in 0..tokens {
        let (g, h) = (d_log_probs[t], d_entropy[t]);
        let d_logits = oracle.d_logits(t, target_ids[t], g, h);
        for (j, d_logit) in d_logits.iter().enumerate() {
            let error = errors[t].of_logit(j, *d_logit, g, h, oracle.temperature);
            let error = error + storage * (d_logit.abs() + error);
            for i in 0..width {
                let (at_token, at_entry) = (t * width + i, j * width + i);
                let (w, x) = (oracle.weight[at_entry], oracle.hidden[at_token]);
                exact[0][at_token] += d_logit * w;
                exact[1][at_entry] += d_logit * x;
                bounds[0][at_token] += (error + sum_of_entries * d_logit.abs()) * w.abs();
                bounds[1][at_entry] += (error + sum_of_tokens * d_logit.abs()) * x.abs();
            }
        }
    }
    compare("d_hidden", &d_hidden.to_f64(), &exact[0], |i| {
        bounds[0][i] + storage * (exact[0][i].abs() + bounds[0][i])
    })?;
    compare("d_weight", &d_weight.to_f64(), &exact[1], |i| bounds[1][i])?;
    d_hidden.untouched_beside("d_hidden")?;
    d_weight.untouched_beside("d_weight")
}

const UNIT: f64 = f32::EPSILON as f64 / 2.0;

/// The inputs of a case.
struct Place {
    tokens: usize,
    vocabulary: usize,
    width: usize,
    arithmetic: Arithmetic,
    hidden: Rows,
    weight: Rows,
    /// Of `hidden` and `weight`.
    exact: [Vec<f64>; 2],
    targets: Tensor,
    target_ids: Vec<u32>,
    temperature: f32,
}

impl Place {
    fn any(random: &mut Case) -> Place {
        let vocabulary = [1, 2, 17, 64, 1000, 1024, 1025, 2500, 6400][random.below(9) as usize];
        let width = [1, 7, 16, 33, 64, 136][random.below(6) as usize];
        let most = (400_000 / (vocabulary * width)).clamp(1, 200);
        let tokens = match random.below(8) {
            0 => 0,
            1 => 1,
            _ => 1 + random.below(most as u32) as usize,
        };
        let dtype = any_dtype(random);
        // On Hopper mostly rows that its kernels take.
        let hopper = random.device() != Device::Cpu
            && device::tier(random.device()).is_ok_and(device::Tier::hopper);
        let aligned = hopper && random.below(4) != 0;
        Place::of(random, [tokens, vocabulary, width], dtype, aligned)
    }

    fn of(
        random: &mut Case,
        [tokens, vocabulary, width]: [usize; 3],
        dtype: DType,
        aligned: bool,
    ) -> Place {
        // From all but flat to all but certain.
        let spread = [0.1, 1.0, 6.0][random.below(3) as usize];
        let temperature = [1.0, 0.6, 1.7][random.below(3) as usize];
        let mut rows = |rows, scale| match aligned {
            true => random.aligned_rows(dtype, rows, width, scale),
            false => random.rows(dtype, rows, width, scale),
        };
        let hidden = rows(tokens, 1.0);
        let weight = rows(vocabulary, spread / (width as f32).sqrt());
        let target_ids: Vec<u32> =
            (0..tokens.max(1)).map(|_| random.below(vocabulary as u32)).collect();
        Place {
            tokens,
            vocabulary,
            width,
            arithmetic: Arithmetic { device: hidden.view().device(), dtype },
            exact: [hidden.to_f64(), weight.to_f64()],
            hidden,
            weight,
            targets: random.indices(&target_ids),
            target_ids,
            temperature,
        }
    }

    fn oracle(&self) -> Projection<'_> {
        let [hidden, weight] = &self.exact;
        Projection { hidden, weight, width: self.width, temperature: self.temperature.into() }
    }
}

/// Whose roundings are counted.
#[derive(Clone, Copy)]
pub(crate) struct Arithmetic {
    pub(crate) device: Device,
    pub(crate) dtype: DType,
}

impl Arithmetic {
    /// The error of a logit's sum of `n` products, in units of the last place of the sum of their magnitudes.
    pub(crate) fn products(self, n: usize) -> f64 {
        match (self.device, self.dtype) {
            // Each term adds up to two roundings (of a pair of bfloat16 products).
            (Device::Cpu, _) => 2.0 * n as f64,
            (_, DType::F32) => n as f64,
            // An instruction of a tensor core takes at least 8 exact products and the sum so far, lines them up with the greatest, and cuts off
            // what does not fit beside it, at the end once more: two units each.
            _ => 20.0 * n.div_ceil(8) as f64,
        }
    }

    /// The same of a sum that [`matmul`] takes, and of its addition to a matrix.
    fn sum_of_matmul(self, n: usize) -> f64 {
        match self.device {
            Device::Cpu => 2.0 * n as f64 + 4.0,
            device => {
                sum_bound(device, self.dtype, matmul::Settings::default(), n, 1.0) / UNIT + 1.0
            }
        }
    }

    /// Roundings of a term of the sum of exponentials, and of one weighted by its distance from the maximum: the exponential's 4, then
    /// additions, and 5 (an exponential and a product) or 6 (and a fused sum) with every change of the maximum.
    pub(crate) fn softmax(self, vocabulary: usize) -> [f64; 2] {
        let (added, changes) = match self.device {
            // Lanes and their tree.
            Device::Cpu => (BLOCK / LANES + 4, vocabulary.div_ceil(BLOCK)),
            // In a tile, 8 logits of a lane and a tree over the quad; a change for each of 8 tiles, and each of the states that are joined.
            _ => (8 + 2, 8 + cuda::slots(vocabulary).div_ceil(32) + 5),
        };
        let of_sum = (4 + added + 6 * changes) as f64;
        [of_sum, of_sum + 2.0 + changes as f64]
    }
}

/// The greatest errors that float32 arithmetic allows for one token's numbers.
struct Errors {
    of: Distribution,
    /// Of a logit: those of its product, and three of the temperature.
    logit: f64,
    /// Of the sum of exponentials, relative. Beside the roundings that every term has, it errs by the rounding of its distance from the
    /// maximum, once for that of its block and once for all later changes of the maximum, which sum to no more.
    sum: f64,
    entropy: f64,
    lse: f64,
    max: f64,
}

impl Errors {
    fn of(oracle: &Projection<'_>, t: usize, arithmetic: Arithmetic) -> Errors {
        let hidden = &oracle.hidden[t * oracle.width..][..oracle.width];
        let magnitude = |row: &[f64]| row.iter().zip(hidden).map(|(w, x)| (w * x).abs()).sum();
        let magnitudes = oracle.weight.chunks_exact(oracle.width).map(magnitude);
        let greatest = magnitudes.fold(0.0, f64::max) / oracle.temperature;
        let logit = 1.1 * UNIT * (arithmetic.products(oracle.width) + 3.0) * greatest + 1e-36;

        let of = oracle.distribution(t);
        let lse = of.lse;
        let max = of.log_probs.iter().fold(f64::NEG_INFINITY, |most, &x| most.max(x)) + lse;
        let moment = |power| -> f64 {
            of.log_probs.iter().map(|l| l.exp() * (l + lse - max).abs().powi(power)).sum()
        };
        let (first, second) = (moment(1), moment(2));
        let [of_sum, of_weighted] = arithmetic.softmax(of.log_probs.len());
        let sum = 1.1 * UNIT * (of_sum + 2.0 * first) + 1e-30;
        // The sum of e^d d beside it, relative to the sum of e^d.
        let weighted = 1.1 * UNIT * (of_weighted * (first + 1.0) + 2.0 * second);
        // A change of all logits by up to `logit` changes the entropy by 2 H of it at most, to first order; the second
        // derivative is at most 6 H + 2.
        let entropy = 2.0 * logit * of.entropy
            + logit * logit * (3.0 * of.entropy + 1.1)
            + sum * (1.0 + first)
            + weighted
            + UNIT * of.entropy;
        Errors { logit, sum, entropy, lse: logit + sum + UNIT * lse.abs(), max, of }
    }

    fn log_prob(&self, target: usize) -> f64 {
        let exact = self.of.log_probs[target];
        let below_max = (exact + self.of.lse - self.max).abs();
        2.0 * self.logit + self.sum + UNIT * (below_max + exact.abs()) * 1.1
    }

    /// Of the gradient by raw logit `j`, whose exact value is `d_logit`.
    fn of_logit(&self, j: usize, d_logit: f64, g: f64, h: f64, temperature: f64) -> f64 {
        let log_p = self.of.log_probs[j];
        let of_log_p = self.logit + self.lse + UNIT * log_p.abs();
        let slope = g + h * (log_p + self.of.entropy);
        let of_slope = h.abs()
            * (of_log_p + self.entropy + 2.0 * UNIT * (log_p.abs() + self.of.entropy))
            + UNIT * slope.abs();
        let of_product = log_p.exp() * ((of_log_p + 4.0 * UNIT) * slope.abs() + of_slope);
        1.1 * of_product / temperature + 4.0 * UNIT * d_logit.abs() + 1e-36
    }
}
