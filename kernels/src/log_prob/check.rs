//! One random case against the oracle.

use prime_runtime::random::Generator;
use prime_runtime::{DType, Device, Tensor};

use super::online::{BLOCK, LANES};
use super::reference::{Distribution, Projection};
use crate::testing::{any_dtype, compare, from_f32, generator, normal, roundoff, to_f64, zeros};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(_device: Device, seed: u64) -> Result<(), String> {
    let mut random = generator(seed);
    let case = any_case(&mut random);
    let [tokens, vocabulary, width] = case.dims;
    let (hidden, weight) = (to_f64(&case.hidden), to_f64(&case.weight));
    let temperature = f64::from(case.temperature);
    let oracle = Projection { hidden: &hidden, weight: &weight, width, temperature };
    let errors: Vec<Errors> = (0..tokens).map(|t| Errors::of(&oracle, t)).collect();

    let mut outputs = [(); 3].map(|()| filled(f32::NAN, DType::F32, &[tokens]));
    let [log_probs, entropy, lse] = &mut outputs;
    super::forward(
        log_probs.head_mut(tokens),
        entropy.head_mut(tokens),
        lse.head_mut(tokens),
        case.hidden.head(tokens),
        case.weight.view(),
        case.targets.head(tokens),
        case.temperature,
    )
    .map_err(|error| error.to_string())?;
    let targets = case.targets.as_slice::<u32>();
    let expected = |of: fn(&Distribution, usize) -> f64| -> Vec<f64> {
        errors.iter().zip(targets).map(|(e, &target)| of(&e.of, target as usize)).collect()
    };
    let exact = expected(|of, target| of.log_probs[target]);
    let actual = |tensor: &Tensor| to_f64(tensor)[..tokens].to_vec();
    compare("log_probs", &actual(log_probs), &exact, |t| errors[t].log_prob(targets[t] as usize))?;
    let exact = expected(|of, _| of.entropy);
    compare("entropy", &actual(entropy), &exact, |t| errors[t].entropy)?;
    compare("lse", &actual(lse), &expected(|of, _| of.lse), |t| errors[t].lse)?;

    let [d_log_probs, d_entropy] =
        [(); 2].map(|()| normal(&mut random, DType::F32, &[tokens.max(1)], 1.0));
    let with_entropy = random.below(2) == 0;
    let mut d_hidden = filled(f32::NAN, case.hidden.dtype(), &[tokens, width]);
    let mut d_weight = normal(&mut random, DType::F32, &[vocabulary, width], 1.0);
    let before = to_f64(&d_weight);
    super::backward(
        d_hidden.head_mut(tokens),
        d_weight.view_mut(),
        d_log_probs.head(tokens),
        with_entropy.then(|| d_entropy.head(tokens)),
        case.hidden.head(tokens),
        case.weight.view(),
        case.targets.head(tokens),
        lse.head(tokens),
        entropy.head(tokens),
        case.temperature,
    )
    .map_err(|error| error.to_string())?;

    // The products take gradients that err as `of_logits` says, and add a rounding or two for each of their terms.
    let storage = roundoff(case.hidden.dtype());
    let mut exact = [vec![0.0; tokens * width], before.clone()];
    let mut bounds = [vec![1e-35; tokens * width], vec![1e-35; vocabulary * width]];
    let sum_of_tokens = 1.1 * UNIT * (2 * tokens + 4) as f64;
    for (bound, value) in bounds[1].iter_mut().zip(&before) {
        *bound += sum_of_tokens * value.abs();
    }
    let sum_of_entries = 1.1 * UNIT * (2 * vocabulary + 2) as f64;
    let d_entropy = if with_entropy { to_f64(&d_entropy) } else { vec![0.0; tokens.max(1)] };
    let d_log_probs = to_f64(&d_log_probs);
    for t in 0..tokens {
        let (g, h) = (d_log_probs[t], d_entropy[t]);
        let d_logits = oracle.d_logits(t, targets[t], g, h);
        for (j, d_logit) in d_logits.iter().enumerate() {
            let error = errors[t].of_logit(j, *d_logit, g, h, temperature);
            let error = error + storage * (d_logit.abs() + error);
            for i in 0..width {
                let (at_token, at_entry) = (t * width + i, j * width + i);
                let (w, x) = (weight[at_entry], hidden[at_token]);
                exact[0][at_token] += d_logit * w;
                exact[1][at_entry] += d_logit * x;
                bounds[0][at_token] += (error + sum_of_entries * d_logit.abs()) * w.abs();
                bounds[1][at_entry] += (error + sum_of_tokens * d_logit.abs()) * x.abs();
            }
        }
    }
    let actual = &to_f64(&d_hidden)[..tokens * width];
    compare("d_hidden", actual, &exact[0], |i| {
        bounds[0][i] + storage * (exact[0][i].abs() + bounds[0][i])
    })?;
    compare("d_weight", &to_f64(&d_weight), &exact[1], |i| bounds[1][i])
}

const UNIT: f64 = f32::EPSILON as f64 / 2.0;

struct Case {
    dims: [usize; 3],
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: f32,
}

fn any_case(random: &mut Generator) -> Case {
    let vocabulary = [1, 2, 17, 64, 1000, 1024, 1025, 2500, 6400][random.below(9) as usize];
    let width = [1, 7, 16, 33, 64][random.below(5) as usize];
    let most = (400_000 / (vocabulary * width)).clamp(1, 40);
    let tokens = match random.below(8) {
        0 => 0,
        1 => 1,
        _ => 1 + random.below(most as u32) as usize,
    };
    let dtype = any_dtype(random);
    // From all but flat to all but certain.
    let spread = [0.1, 1.0, 6.0][random.below(3) as usize];
    let temperature = [1.0, 0.6, 1.7][random.below(3) as usize];
    let hidden = normal(random, dtype, &[tokens.max(1), width], 1.0);
    let weight = normal(random, dtype, &[vocabulary, width], spread / (width as f32).sqrt());
    let targets: Vec<u32> = (0..tokens.max(1)).map(|_| random.below(vocabulary as u32)).collect();
    let targets = Tensor::from_slice(&targets, &[tokens.max(1)]).expect("test tensors are small");
    Case { dims: [tokens, vocabulary, width], hidden, weight, targets, temperature }
}

fn filled(value: f32, dtype: DType, dims: &[usize]) -> Tensor {
    let elements: usize = dims.iter().product();
    if elements == 0 { zeros(dtype, dims) } else { from_f32(&vec![value; elements], dtype, dims) }
}

/// The greatest errors that float32 arithmetic allows for one token's numbers.
struct Errors {
    of: Distribution,
    /// Of a logit: each of the product's terms adds up to two roundings (of a pair of bfloat16 products), the
    /// temperature three.
    logit: f64,
    /// Of the sum of exponentials, relative. A term errs by the exponential's 4 units and by the rounding of its distance
    /// from the maximum; lanes, tree and the blocks' rescaling by theirs.
    sum: f64,
    entropy: f64,
    lse: f64,
    max: f64,
}

impl Errors {
    fn of(oracle: &Projection<'_>, t: usize) -> Errors {
        let hidden = &oracle.hidden[t * oracle.width..][..oracle.width];
        let magnitude = |row: &[f64]| row.iter().zip(hidden).map(|(w, x)| (w * x).abs()).sum();
        let magnitudes = oracle.weight.chunks_exact(oracle.width).map(magnitude);
        let greatest = magnitudes.fold(0.0, f64::max) / oracle.temperature;
        let logit = 1.1 * UNIT * (2 * oracle.width + 3) as f64 * greatest + 1e-36;

        let of = oracle.distribution(t);
        let lse = of.lse;
        let max = of.log_probs.iter().fold(f64::NEG_INFINITY, |most, &x| most.max(x)) + lse;
        let moment = |power| -> f64 {
            of.log_probs.iter().map(|l| l.exp() * (l + lse - max).abs().powi(power)).sum()
        };
        let (first, second) = (moment(1), moment(2));
        let blocks = of.log_probs.len().div_ceil(BLOCK) as f64;
        let chain = (BLOCK / LANES + 4) as f64 + 7.0 * blocks + 4.0;
        let sum = 1.1 * UNIT * (chain + first) + 1e-30;
        // The sum of e^d d beside it, relative to the sum of e^d.
        let weighted = 1.1 * UNIT * ((chain + 2.0) * (first + 1.0) + second);
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
