use prime_runtime::{DType, View, ViewMut};

use super::{Clip, Statistics, reference};
use crate::testing::{check_gradient, from_f32, generator};

const PPO: Clip = Clip { low: 0.2, high: 0.2, dual: None };
const DUAL: Clip = Clip { low: 0.2, high: 0.2, dual: Some(3.0) };

fn run(new: &[f32], old: &[f32], advantages: &[f32], clip: Clip) -> (Statistics, Vec<f32>) {
    let dims = [new.len()];
    let weights = vec![1.0f32; new.len()];
    let [new, old, advantages, weights] =
        [new, old, advantages, &weights].map(|values| View::from_slice(values, &dims));
    let mut gradient = vec![f32::NAN; dims[0]];
    let statistics = super::forward(new, old, advantages, weights, clip).unwrap();
    let out = ViewMut::from_slice(&mut gradient, &dims);
    super::backward(out, new, old, advantages, weights, clip).unwrap();
    (statistics, gradient)
}

#[cfg(feature = "emulated")]
#[test]
fn a_device_loses_no_token_of_more_than_all_blocks_take_at_once_and_hides_no_nan() {
    use prime_runtime::{Device, Tensor};

    let run = |new: &[f32], old: &[f32]| {
        let on_device = |values: &[f32]| {
            Tensor::from_slice(values, &[values.len()]).unwrap().to(Device::Emulated).unwrap()
        };
        let ones = on_device(&vec![1.0; new.len()]);
        let (new, old, ones) = (on_device(new), on_device(old), ones.view());
        super::forward(new.view(), old.view(), ones, ones, PPO).unwrap()
    };
    // Every third ratio is above its bound.
    let count = 70_001;
    let new: Vec<f32> = (0..count).map(|t| 0.5 * (t % 3) as f32 - 0.5).collect();
    let statistics = run(&new, &vec![0.0; count]);
    assert_eq!(statistics.clipped, (count / 3) as f64);
    assert_eq!(statistics.kl, -new.iter().map(|&x| f64::from(x)).sum::<f64>());
    assert_eq!(statistics.tokens, count as f64);
    assert!(run(&[-1.0, f32::NAN], &[-1.0; 2]).loss.is_nan());
}

#[test]
fn gradient_of_the_oracle_is_the_slope_of_its_loss() {
    let mut random = generator(1);
    for clip in [PPO, DUAL, Clip { low: 0.1, high: 0.5, dual: Some(1.5) }] {
        // Ratios away from the bounds, where the loss has no slope.
        let ratios = [0.3f64, 0.85, 0.95, 1.05, 1.15, 1.3, 2.0, 4.0, 9.0, 1.0];
        let old: Vec<f64> = ratios.iter().map(|_| -f64::from(random.uniform())).collect();
        let new: Vec<f64> = old.iter().zip(ratios).map(|(old, ratio)| old + ratio.ln()).collect();
        for sign in [1.0, -1.0] {
            let advantages: Vec<f64> =
                ratios.iter().map(|_| sign * (0.5 + f64::from(random.uniform()))).collect();
            let weights: Vec<f64> = ratios.iter().map(|_| f64::from(random.uniform())).collect();
            let gradient = reference::backward(&new, &old, &advantages, &weights, clip);
            check_gradient("d_log_probs", &new, &gradient, |new| {
                reference::forward(new, &old, &advantages, &weights, clip).loss
            })
            .unwrap();
        }
    }
}

#[test]
fn unchanged_policy_has_the_plain_policy_gradient_even_with_bounds_at_one() {
    let log_probs = [-0.5, -3.0, -0.125];
    let advantages = [1.5, -2.0, 0.0];
    for low in [0.0, 0.2] {
        let (statistics, gradient) =
            run(&log_probs, &log_probs, &advantages, Clip { low, high: low, dual: Some(3.0) });
        assert_eq!(gradient, [-1.5, 2.0, 0.0]);
        let expected = Statistics { loss: 0.5, tokens: 3.0, ..Statistics::default() };
        assert_eq!(statistics, expected);
    }
}

#[test]
fn each_clip_stops_the_gradient_on_its_side_only() {
    let ln = f32::ln;
    let new = [ln(2.0), ln(2.0), ln(0.5), ln(0.5), ln(4.0)];
    let advantages = [1.0, -1.0, 1.0, -1.0, -1.0];
    let (statistics, gradient) = run(&new, &[0.0; 5], &advantages, DUAL);
    for (t, expected) in [0.0, 2.0, -0.5, 0.0, 0.0].into_iter().enumerate() {
        // One rounding of the logarithm, and the exponential's.
        assert!((gradient[t] - expected).abs() <= 1e-6, "{t}: {}", gradient[t]);
    }
    assert_eq!((statistics.clipped, statistics.clipped_dual), (2.0, 1.0));
    assert!((statistics.loss - (-1.2 + 2.0 - 0.5 + 0.8 + 3.0)).abs() < 5e-6);
}

#[test]
fn extreme_ratios_stay_finite_and_pass_no_gradient() {
    let (statistics, gradient) =
        run(&[0.0, 0.0, -500.0, 0.0], &[-500.0, -500.0, 0.0, -500.0], &[0.0, -1.0, 1.0, 1.0], PPO);
    assert!(statistics.loss.is_finite());
    assert_eq!(gradient, [0.0; 4]);
}

#[test]
fn micro_batches_add_up_to_the_batch() {
    let mut random = generator(5);
    let mut values = || (0..600).map(|_| random.normal()).collect::<Vec<f32>>();
    let (new, old, advantages) = (values(), values(), values());
    let (whole, gradient) = run(&new, &old, &advantages, DUAL);
    let (head, first) = run(&new[..77], &old[..77], &advantages[..77], DUAL);
    let (tail, second) = run(&new[77..], &old[77..], &advantages[77..], DUAL);
    assert_eq!([first, second].concat(), gradient);
    assert_eq!(head.clipped + tail.clipped, whole.clipped);
    // 600 float64 additions of losses below 100.
    assert!((head.loss + tail.loss - whole.loss).abs() < 600.0 * 6e4 * f64::EPSILON);
}

#[test]
fn bad_arguments_get_a_sentence() {
    let values = from_f32(&[0.0; 4], DType::F32, &[4]);
    let halves = from_f32(&[0.0; 4], DType::BF16, &[4]);
    let (good, short, half) = (values.view(), values.head(3), halves.view());
    let message = |new, weights, clip| {
        super::forward(new, good, good, weights, clip).unwrap_err().to_string()
    };
    assert_eq!(
        message(good, short, PPO),
        "policy_loss.forward: `weights` is [3], but its dimension `tokens` is 4 in `new_log_probs`"
    );
    assert_eq!(
        message(half, good, PPO),
        "policy_loss.forward: `new_log_probs` is bfloat16, expected float32"
    );
    for (clip, expected) in [
        (Clip { low: 1.5, ..PPO }, "policy_loss.forward: clip.low is 1.5, expected 0 to 1"),
        (
            Clip { high: f32::NAN, ..PPO },
            "policy_loss.forward: clip.high is NaN, expected 0 or more",
        ),
        (Clip { dual: Some(1.0), ..PPO }, "policy_loss.forward: clip.dual is 1, expected above 1"),
    ] {
        assert_eq!(message(good, good, clip), expected);
    }
}

/// The values of a ragged list of lists, end to end.
fn flat(value: &serde_json::Value) -> Vec<f32> {
    let rows = value.as_array().unwrap().iter();
    rows.flat_map(|row| row.as_array().unwrap()).map(|x| x.as_f64().unwrap() as f32).collect()
}

#[test]
fn loss_and_gradient_are_those_of_the_published_programs() {
    let Some(cases) = crate::testing::algorithm_vectors() else { return };
    for case in &cases {
        let (input, expect) = (&case["input"], &case["expect"]);
        let (new, old) = (flat(&input["new_log_prob"]), flat(&input["old_log_prob"]));
        let clip = case["clip"].as_f64().unwrap() as f32;
        let weights = vec![1.0 / new.len() as f32; new.len()];
        let dims = [new.len()];
        for (judge, advantages, dual) in [
            (
                &expect["policy_loss"]["vanilla"],
                &expect["prime_rloo_verl"]["advantages_whitened"],
                Some(3.0),
            ),
            (
                &expect["prime_rloo_prime_repo"],
                &expect["prime_rloo_prime_repo"]["advantages_whitened"],
                None,
            ),
        ] {
            let clip = Clip { low: clip, high: clip, dual };
            let advantages = flat(advantages);
            let [new, old, advantages, weights] =
                [&new, &old, &advantages, &weights].map(|values| View::from_slice(values, &dims));
            let ours = super::forward(new, old, advantages, weights, clip).unwrap();
            let mut gradient = vec![0.0f32; dims[0]];
            let out = ViewMut::from_slice(&mut gradient, &dims);
            super::backward(out, new, old, advantages, weights, clip).unwrap();

            let loss = if judge["loss"].is_null() { &judge["policy_loss"] } else { &judge["loss"] };
            // The programs ran in float32: their own rounding is what is allowed for.
            let agree = |what: &str, ours: f64, theirs: f64| {
                let allowed = (1e-4 * theirs.abs()).max(1e-5);
                assert!((ours - theirs).abs() <= allowed, "{what}: {ours}, expected {theirs}");
            };
            agree("loss", ours.loss, loss.as_f64().unwrap());
            agree("clip", ours.clipped / ours.tokens, judge["clip_fraction"].as_f64().unwrap());
            agree("kl", ours.kl / ours.tokens, judge["approx_kl"].as_f64().unwrap());
            for (ours, theirs) in gradient.iter().zip(flat(&judge["grad_log_prob"])) {
                agree("gradient", f64::from(*ours), f64::from(theirs));
            }
        }
    }
}
