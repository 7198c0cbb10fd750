use prime_runtime::{View, ViewMut};

use super::reference::Batch;
use super::{Cost, Inputs, Over, Settings, Targets};
use crate::testing::{check_gradient, generator};

/// Targets of responses: label, offset and weight.
type Wanted = Vec<Vec<[f32; 3]>>;

/// The loss and its gradient on the host.
fn try_run(
    prm: &[f32],
    frozen: &[f32],
    cu: &[u32],
    wanted: &Wanted,
    settings: Settings,
) -> prime_runtime::Result<(f64, Vec<f32>)> {
    let tokens = [prm.len()];
    let column = |k: usize| -> Vec<f32> { wanted.iter().flatten().map(|t| t[k]).collect() };
    let [labels, offsets, weights] = [0, 1, 2].map(column);
    let count = [labels.len()];
    let mut cu_targets = vec![0u32];
    for targets in wanted {
        cu_targets.push(cu_targets[cu_targets.len() - 1] + targets.len() as u32);
    }
    let inputs = Inputs {
        prm_log_probs: View::from_slice(prm, &tokens),
        ref_log_probs: View::from_slice(frozen, &tokens),
        cu_seqlens: View::from_slice(cu, &[cu.len()]),
        targets: Targets {
            labels: View::from_slice(&labels, &count),
            offsets: View::from_slice(&offsets, &count),
            weights: View::from_slice(&weights, &count),
            cu_targets: View::from_slice(&cu_targets, &[cu_targets.len()]),
        },
    };
    let loss = super::forward(inputs, settings)?;
    let mut gradient = vec![f32::NAN; prm.len()];
    super::backward(ViewMut::from_slice(&mut gradient, &tokens), inputs, settings)?;
    Ok((loss, gradient))
}

fn run(
    prm: &[f32],
    frozen: &[f32],
    cu: &[u32],
    wanted: &Wanted,
    settings: Settings,
) -> (f64, Vec<f32>) {
    try_run(prm, frozen, cu, wanted, settings).unwrap()
}

/// The cross-entropy on outcomes.
fn outcomes(outcomes: &[f32]) -> Wanted {
    outcomes.iter().map(|&outcome| vec![[outcome, 0.0, 1.0]]).collect()
}

fn cross_entropy(beta: f32, divisor: f64) -> Settings {
    Settings { beta, cost: Cost::CrossEntropy, over: Over::Responses, divisor }
}

#[test]
fn gradient_of_the_oracle_is_the_slope_of_its_loss_for_every_cost_over_responses_and_prefixes() {
    let mut random = generator(3);
    let prm: Vec<f64> = (0..9).map(|_| f64::from(random.normal())).collect();
    let reference: Vec<f64> = (0..9).map(|_| f64::from(random.normal())).collect();
    for cost in [Cost::CrossEntropy, Cost::Error] {
        for over in [Over::Responses, Over::Prefixes] {
            let batch = Batch {
                reference: reference.clone(),
                cu_seqlens: vec![0, 4, 4, 5, 9],
                targets: vec![
                    vec![[1.0, 0.3, 1.0], [0.0, -0.2, 0.5]],
                    vec![[0.0, 0.1, 2.0]],
                    vec![[0.3, 0.0, 1.0]],
                    vec![],
                ],
                beta: 0.7,
                cost,
                over,
                divisor: 6.0,
            };
            let (gradient, _) = batch.gradient(&prm);
            check_gradient("d_prm_log_probs", &prm, &gradient, |prm| batch.loss(prm)).unwrap();
        }
    }
}

#[test]
fn empty_response_is_even_and_costs_the_logarithm_of_two_and_has_no_prefixes() {
    let settings = cross_entropy(0.05, 2.0);
    let (loss, _) = run(&[], &[], &[0, 0, 0], &outcomes(&[1.0, 0.0]), settings);
    assert!((loss - std::f64::consts::LN_2).abs() < 1e-15);
    let settings = Settings { over: Over::Prefixes, ..settings };
    assert_eq!(run(&[], &[], &[0, 0, 0], &outcomes(&[1.0, 0.0]), settings).0, 0.0);
}

#[test]
fn no_responses_and_responses_without_targets_cost_nothing() {
    assert_eq!(run(&[], &[], &[0], &vec![], cross_entropy(0.05, 1.0)).0, 0.0);
    let without = run(&[1.0], &[0.0], &[0, 1], &vec![vec![]], cross_entropy(1.0, 1.0));
    assert_eq!(without, (0.0, vec![0.0]));
}

#[cfg(feature = "emulated")]
#[test]
fn on_a_device_too_no_responses_cost_nothing_and_empty_ones_the_logarithm_of_two() {
    use prime_runtime::{DType, Device, Tensor};

    let loss_of = |responses: usize| {
        let zeros = |dtype, count| Tensor::zeros(Device::Emulated, dtype, &[count]).unwrap();
        let (log_probs, column) = (zeros(DType::F32, 0), zeros(DType::F32, responses));
        let ones = Tensor::from_slice(&vec![1.0f32; responses], &[responses]).unwrap();
        let ones = ones.to(Device::Emulated).unwrap();
        let cu = zeros(DType::U32, responses + 1);
        let each: Vec<u32> = (0..=responses as u32).collect();
        let each = Tensor::from_slice(&each, &[responses + 1]).unwrap();
        let each = each.to(Device::Emulated).unwrap();
        let inputs = Inputs {
            prm_log_probs: log_probs.view(),
            ref_log_probs: log_probs.view(),
            cu_seqlens: cu.view(),
            targets: Targets {
                labels: column.view(),
                offsets: column.view(),
                weights: ones.view(),
                cu_targets: each.view(),
            },
        };
        super::forward(inputs, cross_entropy(0.05, responses.max(1) as f64)).unwrap()
    };
    assert_eq!(loss_of(0), 0.0);
    assert!((loss_of(3) - std::f64::consts::LN_2).abs() < 1e-15);
}

#[test]
fn certain_and_wrong_responses_have_finite_losses() {
    let (prm, frozen) = ([0.0, -3e4], [-3e4, 0.0]);
    let (loss, gradient) =
        run(&prm, &frozen, &[0, 1, 2], &outcomes(&[0.0, 1.0]), cross_entropy(1.0, 2.0));
    assert_eq!(gradient, [0.5, -0.5]);
    assert!((loss - 3e4).abs() < 1e-6);
    let error = Settings { cost: Cost::Error, ..cross_entropy(1.0, 2.0) };
    let (loss, gradient) = run(&prm, &frozen, &[0, 1, 2], &outcomes(&[0.0, 1.0]), error);
    assert_eq!((loss, gradient), (1.0, vec![0.0, 0.0]));
}

#[test]
fn micro_batches_add_up_to_the_batch() {
    let mut random = generator(4);
    let mut values = |count| (0..count).map(|_| random.uniform()).collect::<Vec<f32>>();
    let (prm, frozen, labels) = (values(30), values(30), values(3));
    let wanted: Wanted = labels.iter().map(|&y| vec![[y, 0.25 * y, 1.0 + y]; 2]).collect();
    for over in [Over::Responses, Over::Prefixes] {
        let settings = Settings { over, ..cross_entropy(0.5, 3.0) };
        let whole = run(&prm, &frozen, &[0, 10, 12, 30], &wanted, settings);
        let head = run(&prm[..12], &frozen[..12], &[0, 10, 12], &wanted[..2].to_vec(), settings);
        let tail = run(&prm[12..], &frozen[12..], &[0, 18], &wanted[2..].to_vec(), settings);
        assert_eq!([head.1, tail.1].concat(), whole.1);
        // 60 terms below 4, added in another order.
        assert!((head.0 + tail.0 - whole.0).abs() < 240.0 * f64::EPSILON);
    }
}

#[test]
fn the_ends_of_a_pair_have_the_gradient_of_the_pair() {
    // -log sigmoid(z_w - z_l), whose halves are the two ends' losses.
    let (prm, frozen) = ([-0.5, -1.0, -2.0f32], [-1.5, -1.25, -1.0f32]);
    let (beta, z): (f64, [f64; 2]) = (0.5, [0.5 * 1.25, -0.5]);
    let wanted: Wanted = vec![vec![[1.0, z[1] as f32, 1.0]], vec![[0.0, z[0] as f32, 1.0]]];
    let (loss, gradient) = run(&prm, &frozen, &[0, 2, 3], &wanted, cross_entropy(0.5, 1.0));
    let wrong = 1.0 / (1.0 + (z[0] - z[1]).exp());
    assert!((loss / 2.0 + (1.0 - wrong).ln()).abs() < 1e-15);
    let slope = (beta * wrong) as f32;
    assert_eq!(gradient, [-slope, -slope, slope]);
}

#[test]
fn bad_arguments_get_a_sentence() {
    let message = |cu: &[u32], target: [f32; 3], beta: f32, divisor: f64| {
        let wanted = vec![vec![[0.0, 0.0, 1.0]], vec![target]];
        let settings = cross_entropy(beta, divisor);
        try_run(&[0.0; 3], &[0.0; 3], cu, &wanted, settings).unwrap_err().to_string()
    };
    let right = [1.0, 0.0, 1.0];
    assert_eq!(
        message(&[0, 3], right, 0.1, 2.0),
        "prm_loss.forward: `cu_targets` has 3 entries, expected 2, as `cu_seqlens`"
    );
    for cu in [[0, 4, 3], [1, 2, 3], [0, 1, 2], [0, u32::MAX, 3]] {
        assert_eq!(
            message(&cu, right, 0.1, 2.0),
            "prm_loss.forward: `cu_seqlens` must start at 0, never fall, and end at the number of tokens, 3"
        );
    }
    let cu = [0, 1, 3];
    for (target, expected) in [
        ([1.5, 0.0, 1.0], "labels[1] is 1.5, expected 0 to 1"),
        ([f32::NAN, 0.0, 1.0], "labels[1] is NaN, expected 0 to 1"),
        ([1.0, f32::INFINITY, 1.0], "offsets[1] is inf, expected a number"),
        ([1.0, 0.0, -1.0], "weights[1] is -1, expected 0 or more"),
    ] {
        assert_eq!(message(&cu, target, 0.1, 2.0), format!("prm_loss.forward: {expected}"));
    }
    let beta = message(&cu, right, f32::INFINITY, 2.0);
    assert_eq!(beta, "prm_loss.forward: beta is inf, expected a number");
    let divisor = message(&cu, right, 1.0, 0.0);
    assert_eq!(divisor, "prm_loss.forward: the divisor is 0, expected a positive number");
}

#[test]
fn loss_and_gradient_are_those_of_the_published_programs() {
    let Some(cases) = crate::testing::algorithm_vectors() else { return };
    for case in &cases {
        let mut cu = vec![0u32];
        let mut flat = |value: &serde_json::Value| -> Vec<f32> {
            cu.truncate(1);
            let mut values = Vec::new();
            for row in value.as_array().unwrap() {
                values.extend(row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32));
                cu.push(values.len() as u32);
            }
            values
        };
        let prm = flat(&case["input"]["prm_log_prob"]);
        let frozen = flat(&case["input"]["ref_log_prob"]);
        let judge = &case["expect"]["prm_ce"];
        let expected = flat(&judge["grad_q"]);
        let graded: Vec<f32> = serde_json::from_value(case["input"]["outcome"].clone()).unwrap();
        let settings = cross_entropy(case["beta"].as_f64().unwrap() as f32, graded.len() as f64);
        let (loss, gradient) = run(&prm, &frozen, &cu, &outcomes(&graded), settings);
        // The programs ran in float32: their own rounding is what is allowed for.
        let published = judge["loss"].as_f64().unwrap();
        assert!((loss - published).abs() <= 1e-4 * published, "{loss}, expected {published}");
        for (ours, theirs) in gradient.iter().zip(&expected) {
            assert!((ours - theirs).abs() <= (1e-4 * theirs.abs()).max(1e-5), "{ours} {theirs}");
        }
    }
}
