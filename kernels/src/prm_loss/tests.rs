use prime_runtime::{View, ViewMut};

use super::reference;
use crate::testing::{check_gradient, generator};

struct Outcome {
    loss: f64,
    probabilities: Vec<f32>,
    gradient: Vec<f32>,
}

fn run(prm: &[f32], frozen: &[f32], outcomes: &[f32], cu: &[u32], beta: f32, of: usize) -> Outcome {
    let (tokens, sequences) = ([prm.len()], [outcomes.len()]);
    let mut probabilities = vec![f32::NAN; outcomes.len()];
    let mut gradient = vec![f32::NAN; prm.len()];
    let outcomes = View::from_slice(outcomes, &sequences);
    let cu = View::from_slice(cu, &[cu.len()]);
    let loss = super::forward(
        ViewMut::from_slice(&mut probabilities, &sequences),
        View::from_slice(prm, &tokens),
        View::from_slice(frozen, &tokens),
        outcomes,
        cu,
        beta,
        of,
    )
    .unwrap();
    super::backward(
        ViewMut::from_slice(&mut gradient, &tokens),
        View::from_slice(&probabilities, &sequences),
        outcomes,
        cu,
        beta,
        of,
    )
    .unwrap();
    Outcome { loss, probabilities, gradient }
}

#[test]
fn gradient_of_the_oracle_is_the_slope_of_its_loss() {
    let mut random = generator(3);
    let cu = [0, 4, 4, 5, 9];
    let prm: Vec<f64> = (0..9).map(|_| f64::from(random.normal())).collect();
    let frozen: Vec<f64> = (0..9).map(|_| f64::from(random.normal())).collect();
    let outcomes = [1.0, 0.0, 0.3, 0.0];
    let s = reference::probabilities(&prm, &frozen, &cu, 0.7);
    let gradient = reference::backward(&s, &outcomes, &cu, 0.7, 6);
    check_gradient("d_prm_log_probs", &prm, &gradient, |prm| {
        reference::loss(prm, &frozen, &outcomes, &cu, 0.7, 6)
    })
    .unwrap();
}

#[test]
fn empty_response_is_even_and_costs_the_logarithm_of_two() {
    let ours = run(&[], &[], &[1.0, 0.0], &[0, 0, 0], 0.05, 2);
    assert_eq!(ours.probabilities, [0.5, 0.5]);
    assert!((ours.loss - std::f64::consts::LN_2).abs() < 1e-15);
}

#[test]
fn no_responses_cost_nothing() {
    assert_eq!(run(&[], &[], &[], &[0], 0.05, 0).loss, 0.0);
}

#[cfg(feature = "emulated")]
#[test]
fn on_a_device_too_no_responses_cost_nothing_and_empty_ones_the_logarithm_of_two() {
    use prime_runtime::{DType, Device, Tensor};

    let loss_of = |responses: usize| {
        let zeros = |dtype, count| Tensor::zeros(Device::Emulated, dtype, &[count]).unwrap();
        let (log_probs, outcomes) = (zeros(DType::F32, 0), zeros(DType::F32, responses));
        let cu = zeros(DType::U32, responses + 1);
        let mut probabilities = zeros(DType::F32, responses);
        let log_probs = log_probs.view();
        super::forward(
            probabilities.view_mut(),
            log_probs,
            log_probs,
            outcomes.view(),
            cu.view(),
            0.05,
            responses,
        )
        .unwrap()
    };
    assert_eq!(loss_of(0), 0.0);
    assert!((loss_of(3) - std::f64::consts::LN_2).abs() < 1e-15);
}

#[test]
fn certain_and_wrong_responses_have_finite_losses() {
    let ours = run(&[0.0, -3e4], &[-3e4, 0.0], &[0.0, 1.0], &[0, 1, 2], 1.0, 2);
    assert_eq!(ours.probabilities, [1.0, 0.0]);
    assert_eq!(ours.gradient, [0.5, -0.5]);
    assert!((ours.loss - 3e4).abs() < 1e-6);
}

#[test]
fn micro_batches_add_up_to_the_batch() {
    let mut random = generator(4);
    let mut values = |count| (0..count).map(|_| random.uniform()).collect::<Vec<f32>>();
    let (prm, frozen, outcomes) = (values(30), values(30), values(3));
    let whole = run(&prm, &frozen, &outcomes, &[0, 10, 12, 30], 0.5, 3);
    let head = run(&prm[..12], &frozen[..12], &outcomes[..2], &[0, 10, 12], 0.5, 3);
    let tail = run(&prm[12..], &frozen[12..], &outcomes[2..], &[0, 18], 0.5, 3);
    assert_eq!([head.gradient, tail.gradient].concat(), whole.gradient);
    assert!((head.loss + tail.loss - whole.loss).abs() < 4.0 * f64::EPSILON);
}

#[test]
fn bad_arguments_get_a_sentence() {
    let message = |cu: &[u32], outcome: f32, beta: f32, of: usize| {
        let (log_probs, mut probabilities) = ([0.0f32; 3], [0.0f32; 2]);
        super::forward(
            ViewMut::from_slice(&mut probabilities, &[2]),
            View::from_slice(&log_probs, &[3]),
            View::from_slice(&log_probs, &[3]),
            View::from_slice(&[0.0, outcome], &[2]),
            View::from_slice(cu, &[cu.len()]),
            beta,
            of,
        )
        .unwrap_err()
        .to_string()
    };
    assert_eq!(
        message(&[0, 3], 1.0, 0.1, 2),
        "prm_loss.forward: `cu_seqlens` is [2], expected [3]: one entry more than the 2 outcomes"
    );
    for cu in [[0, 4, 3], [1, 2, 3], [0, 1, 2], [0, u32::MAX, 3]] {
        assert_eq!(
            message(&cu, 1.0, 0.1, 2),
            "prm_loss.forward: `cu_seqlens` must start at 0, never fall, and end at the number of tokens, 3"
        );
    }
    let cu = [0, 1, 3];
    assert_eq!(message(&cu, 1.5, 0.1, 2), "prm_loss.forward: outcomes[1] is 1.5, expected 0 to 1");
    let nan = message(&cu, f32::NAN, 0.1, 2);
    assert_eq!(nan, "prm_loss.forward: outcomes[1] is NaN, expected 0 to 1");
    let beta = message(&cu, 1.0, f32::INFINITY, 2);
    assert_eq!(beta, "prm_loss.forward: beta is inf, expected a number");
    let few = message(&cu, 1.0, 0.1, 1);
    assert_eq!(few, "prm_loss.forward: 2 outcomes of a batch of 1 responses");
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
        let outcomes: Vec<f32> = serde_json::from_value(case["input"]["outcome"].clone()).unwrap();
        let beta = case["beta"].as_f64().unwrap() as f32;
        let ours = run(&prm, &frozen, &outcomes, &cu, beta, outcomes.len());
        // The programs ran in float32: their own rounding is what is allowed for.
        let loss = judge["loss"].as_f64().unwrap();
        assert!((ours.loss - loss).abs() <= 1e-4 * loss, "{}, expected {loss}", ours.loss);
        for (ours, theirs) in ours.gradient.iter().zip(&expected) {
            assert!((ours - theirs).abs() <= (1e-4 * theirs.abs()).max(1e-5), "{ours} {theirs}");
        }
    }
}
