use prime_runtime::{View, ViewMut};

use super::{Kind, reference};
use crate::testing::check_gradient;

const KINDS: [Kind; 4] = [Kind::Kl, Kind::Abs, Kind::Mse, Kind::LowVarKl];

fn run(new: &[f32], old: &[f32], kind: Kind) -> (Vec<f32>, Vec<f32>) {
    let dims = [new.len()];
    let weights = vec![1.0; new.len()];
    let (mut penalties, mut gradient) = (vec![f32::NAN; new.len()], vec![0.0; new.len()]);
    let [new, old, weights] = [new, old, &weights].map(|values| View::from_slice(values, &dims));
    super::forward(ViewMut::from_slice(&mut penalties, &dims), new, old, weights, kind).unwrap();
    super::backward(ViewMut::from_slice(&mut gradient, &dims), new, old, weights, kind).unwrap();
    (penalties, gradient)
}

#[test]
fn gradient_of_the_oracle_is_the_slope_of_its_penalty() {
    // The last two are held where the kind holds.
    let new: [f64; 7] = [-1.0, -2.0, -0.5, -3.0, -0.1, -9.0, -0.1];
    let old = [-1.5, -1.0, -0.25, -3.5, -2.0, -1.0, -14.0];
    let weights = [0.5, 1.0, 2.0, -1.0, 0.25, 1.0, 1.0];
    for kind in KINDS {
        let gradient = reference::backward(&new, &old, &weights, kind);
        check_gradient("d_log_probs", &new, &gradient, |new| {
            reference::forward(new, &old, &weights, kind).loss
        })
        .unwrap();
    }
}

#[test]
fn a_policy_that_is_its_reference_pays_nothing_and_only_the_plain_estimate_pulls() {
    for kind in KINDS {
        let (penalties, gradient) = run(&[-1.0, -0.5], &[-1.0, -0.5], kind);
        assert_eq!(penalties, [0.0; 2], "{kind:?}");
        assert_eq!(gradient, [if kind == Kind::Kl { 1.0 } else { 0.0 }; 2], "{kind:?}");
    }
}

#[test]
fn the_low_variance_estimate_is_held_at_10_and_passes_no_gradient_there() {
    let (penalties, gradient) = run(&[-500.0, 0.0, 0.0], &[0.0, -500.0, -1.0], Kind::LowVarKl);
    assert_eq!((&penalties[..2], &gradient[..2]), (&[10.0; 2][..], &[0.0; 2][..]));
    assert!((f64::from(penalties[2]) - (-1f64).exp()).abs() < 1e-6);
}

/// The values of a ragged list of lists, end to end.
fn flat(value: &serde_json::Value) -> Vec<f32> {
    let rows = value.as_array().unwrap().iter();
    rows.flat_map(|row| row.as_array().unwrap()).map(|x| x.as_f64().unwrap() as f32).collect()
}

#[test]
fn penalties_are_those_of_the_published_program() {
    let Some(cases) = crate::testing::algorithm_vectors() else { return };
    for case in &cases {
        let (input, expect) = (&case["input"], &case["expect"]["kl_new_vs_ref"]);
        let (new, reference) = (flat(&input["new_log_prob"]), flat(&input["ref_log_prob"]));
        for (kind, name) in KINDS.into_iter().zip(["kl", "abs", "mse", "low_var_kl"]) {
            let (penalties, _) = run(&new, &reference, kind);
            for (t, (&ours, theirs)) in penalties.iter().zip(flat(&expect[name])).enumerate() {
                // The program ran in float32: its own rounding is what is allowed for.
                let allowed = (1e-4 * theirs.abs()).max(1e-5);
                assert!((ours - theirs).abs() <= allowed, "{name}[{t}]: {ours}, not {theirs}");
            }
        }
    }
}

#[test]
fn bad_arguments_get_a_sentence() {
    let (four, three) = ([0.0f32; 4], [0.0f32; 3]);
    let (four, three) = (View::from_slice(&four, &[4]), View::from_slice(&three, &[3]));
    let mut out = [0.0f32; 4];
    let refused = |reference, weights, out: &mut [f32]| {
        let out = ViewMut::from_slice(out, &[4]);
        super::forward(out, four, reference, weights, Kind::Kl).unwrap_err().to_string()
    };
    let message = refused(three, four, &mut out);
    assert!(message.contains("`reference_log_probs` is [3]"), "{message}");
    let message = refused(four, three, &mut out);
    assert!(message.contains("`weights` is [3]"), "{message}");
}
