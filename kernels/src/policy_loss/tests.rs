use prime_runtime::{DType, View, ViewMut};

use super::{Clip, Objective, Statistics, reference};
use crate::testing::{check_gradient, from_f32, generator};

const PPO: Clip = Clip { low: 0.2, high: 0.2, dual: None };
const DUAL: Clip = Clip { low: 0.2, high: 0.2, dual: Some(3.0) };

fn run(new: &[f32], old: &[f32], advantages: &[f32], clip: Clip) -> (Statistics, Vec<f32>) {
    run_objective(new, old, advantages, Objective::Clip(clip))
}

fn run_objective(
    new: &[f32],
    old: &[f32],
    advantages: &[f32],
    objective: Objective<'_>,
) -> (Statistics, Vec<f32>) {
    let dims = [new.len()];
    let weights = vec![1.0f32; new.len()];
    let [new, old, advantages, weights] =
        [new, old, advantages, &weights].map(|values| View::from_slice(values, &dims));
    let mut gradient = vec![f32::NAN; dims[0]];
    let statistics = super::forward(new, old, advantages, weights, objective).unwrap();
    let out = ViewMut::from_slice(&mut gradient, &dims);
    super::backward(out, new, old, advantages, weights, objective).unwrap();
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
        super::forward(new.view(), old.view(), ones, ones, Objective::Clip(PPO)).unwrap()
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
    let cu_seqlens = [0u32, 1, 1, 4, 10];
    let cu_seqlens = View::from_slice(&cu_seqlens, &[5]);
    let objectives = [
        Objective::Clip(PPO),
        Objective::Clip(DUAL),
        Objective::Clip(Clip { low: 0.1, high: 0.5, dual: Some(1.5) }),
        Objective::Clip(Clip::NONE),
        // The sequences' ratios are 0.3, 0.96 and 2.2: clipped below, inside and clipped above.
        Objective::SequenceClip { low: 0.2, high: 0.2, cu_seqlens },
        Objective::ClippedWeight { low: 0.2, high: 0.2 },
        Objective::ClippedWeight { low: 1.0, high: 3.0 },
    ];
    for objective in objectives {
        // Ratios away from the bounds, where the loss has no slope.
        let ratios = [0.3f64, 0.85, 0.95, 1.1, 1.15, 1.3, 2.0, 4.0, 9.0, 1.0];
        let old: Vec<f64> = ratios.iter().map(|_| -f64::from(random.uniform())).collect();
        let new: Vec<f64> = old.iter().zip(ratios).map(|(old, ratio)| old + ratio.ln()).collect();
        for sign in [1.0, -1.0] {
            let advantages: Vec<f64> =
                ratios.iter().map(|_| sign * (0.5 + f64::from(random.uniform()))).collect();
            let weights: Vec<f64> = ratios.iter().map(|_| f64::from(random.uniform())).collect();
            let here = reference::Columns {
                new: &new,
                constant: &new,
                old: &old,
                advantages: &advantages,
                weights: &weights,
            };
            let gradient = reference::backward(here, objective);
            assert!(gradient.iter().any(|&slope| slope != 0.0), "{objective:?}");
            check_gradient("d_log_probs", &new, &gradient, |new| {
                reference::forward(reference::Columns { new, ..here }, objective).loss
            })
            .unwrap();
        }
    }
}

#[test]
fn the_tokens_of_a_sequence_share_its_mean_ratio_and_its_clip() {
    let ln = f32::ln;
    // Geometric means 2, nothing, 1 and 1/2.
    let new = [ln(4.0), 0.0, ln(2.0), ln(0.5), ln(0.5)];
    let cu_seqlens = [0u32, 2, 2, 4, 5];
    let cu_seqlens = View::from_slice(&cu_seqlens, &[5]);
    let objective = Objective::SequenceClip { low: 0.25, high: 0.5, cu_seqlens };
    let (statistics, gradient) =
        run_objective(&new, &[0.0; 5], &[1.0, -1.0, 1.0, 3.0, 1.0], objective);
    for (t, expected) in [0.0, 2.0, -1.0, -3.0, -0.5].into_iter().enumerate() {
        // A rounding each of logarithms and mean, and the exponential's.
        assert!((gradient[t] - expected).abs() <= 4e-6, "{t}: {}", gradient[t]);
    }
    // Only the positive advantage of the first sequence is beyond its bound: for the negative one the greater branch is the unclipped.
    assert_eq!(statistics.clipped, 1.0);
    assert!((statistics.loss - (-1.5 + 2.0 - 1.0 - 3.0 - 0.5)).abs() < 2e-5);
    // A sequence's ratio is held at e^10, where it passes no gradient.
    let (held, gradient) = run_objective(&[0.0; 2], &[-50.0; 2], &[-1.0, 0.0], {
        let cu_seqlens = View::from_slice(&[0u32, 2], &[2]);
        Objective::SequenceClip { low: 0.2, high: 0.2, cu_seqlens }
    });
    assert!((held.loss - 10f64.exp()).abs() < 0.01, "{}", held.loss);
    assert_eq!(gradient, [0.0; 2]);
}

#[test]
fn clipped_weights_bound_every_token_s_gradient_and_drop_none() {
    let ln = f32::ln;
    let (new, old) = ([ln(0.5), -1.0, ln(0.25)], [ln(0.25), -1.0, ln(0.5)]);
    let objective = Objective::ClippedWeight { low: 0.25, high: 0.5 };
    let (statistics, gradient) = run_objective(&new, &old, &[1.0, 2.0, -1.0], objective);
    assert_eq!(gradient, [-1.5, -2.0, 0.75]);
    assert_eq!((statistics.clipped, statistics.clipped_dual), (2.0, 0.0));
    let expected = -1.5 * 0.5f64.ln() + 2.0 + 0.75 * 0.25f64.ln();
    assert!((statistics.loss - expected).abs() < 1e-6);
}

#[test]
fn no_ratio_reaches_the_bounds_of_none() {
    let (statistics, gradient) = run(&[0.0, -25.0], &[-20.0, 0.0], &[1.0, 1.0], Clip::NONE);
    assert_eq!(statistics.clipped, 0.0);
    assert!((f64::from(gradient[0]) + 20f64.exp()).abs() < 1e-5 * 20f64.exp());
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
        let objective = Objective::Clip(clip);
        super::forward(new, good, good, weights, objective).unwrap_err().to_string()
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
    for offsets in [&[0u32, 3][..], &[1, 4], &[0, 3, 2, 4], &[]] {
        let cu_seqlens = View::from_slice(offsets, &[offsets.len()]);
        let objective = Objective::SequenceClip { low: 0.2, high: 0.2, cu_seqlens };
        let refused = super::forward(good, good, good, good, objective).unwrap_err().to_string();
        assert!(refused.starts_with("policy_loss.forward: `cu_seqlens`"), "{refused}");
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
        let bound = case["clip"].as_f64().unwrap() as f32;
        let dims = [new.len()];
        let lengths: Vec<usize> = input["new_log_prob"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row.as_array().unwrap().len())
            .collect();
        let mut cu_seqlens = vec![0u32];
        cu_seqlens.extend(lengths.iter().scan(0, |end, &length| {
            *end += length as u32;
            Some(*end)
        }));
        let cu_seqlens = View::from_slice(&cu_seqlens, &[cu_seqlens.len()]);
        let token_mean = vec![1.0 / new.len() as f32; new.len()];
        let of_row = |&length: &usize| vec![1.0 / (lengths.len() * length) as f32; length];
        let seq_mean: Vec<f32> = lengths.iter().flat_map(of_row).collect();
        let clip = |dual| Objective::Clip(Clip { low: bound, high: bound, dual });
        let verl = &expect["prime_rloo_verl"]["advantages_whitened"];
        let repo = &expect["prime_rloo_prime_repo"];
        let judged = &expect["policy_loss"];
        let sequences = Objective::SequenceClip { low: bound, high: bound, cu_seqlens };
        let weights = Objective::ClippedWeight { low: bound, high: bound };
        for (judge, advantages, objective, weights) in [
            (&judged["vanilla"], verl, clip(Some(3.0)), &token_mean),
            (&judged["gspo"], verl, sequences, &seq_mean),
            (&judged["cispo"], verl, weights, &token_mean),
            (repo, &repo["advantages_whitened"], clip(None), &token_mean),
        ] {
            let advantages = flat(advantages);
            let [new, old, advantages, weights] =
                [&new, &old, &advantages, weights].map(|values| View::from_slice(values, &dims));
            let ours = super::forward(new, old, advantages, weights, objective).unwrap();
            let mut gradient = vec![0.0f32; dims[0]];
            let out = ViewMut::from_slice(&mut gradient, &dims);
            super::backward(out, new, old, advantages, weights, objective).unwrap();

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
