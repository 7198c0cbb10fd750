use prime_runtime::{DType, View, ViewMut};

use super::{Statistics, reference};
use crate::testing::{check_gradient, from_f32, generator};

fn run(values: &[f32], old: &[f32], returns: &[f32], clip: Option<f32>) -> (Statistics, Vec<f32>) {
    let dims = [values.len()];
    let weights = vec![1.0f32; values.len()];
    let [values, old, returns, weights] =
        [values, old, returns, &weights].map(|column| View::from_slice(column, &dims));
    let mut gradient = vec![f32::NAN; dims[0]];
    let statistics = super::forward(values, old, returns, weights, clip).unwrap();
    let out = ViewMut::from_slice(&mut gradient, &dims);
    super::backward(out, values, old, returns, weights, clip).unwrap();
    (statistics, gradient)
}

#[test]
fn gradient_of_the_oracle_is_the_slope_of_its_loss() {
    let mut random = generator(1);
    for clip in [None, Some(0.2), Some(1.0)] {
        // Away from the bounds, where the loss has no slope.
        let moves = [-2.0, -1.1, -0.5, -0.1, 0.0, 0.1, 0.5, 1.1, 2.0];
        let old: Vec<f64> = moves.iter().map(|_| f64::from(random.normal())).collect();
        let values: Vec<f64> = old.iter().zip(moves).map(|(old, moved)| old + moved).collect();
        let returns: Vec<f64> = moves.iter().map(|_| f64::from(random.normal())).collect();
        let weights: Vec<f64> = moves.iter().map(|_| f64::from(random.uniform())).collect();
        let gradient = reference::backward(&values, &old, &returns, &weights, clip);
        check_gradient("d_values", &values, &gradient, |values| {
            reference::forward(values, &old, &returns, &weights, clip).loss
        })
        .unwrap();
    }
}

#[test]
fn a_value_that_moved_too_far_towards_its_return_is_held_and_one_that_moved_away_is_not() {
    // Towards 1, beyond the bound; away from it, beyond the bound; within the bounds; on a bound.
    let (values, old) = ([0.75, -0.75, 0.125, 0.25], [0.0, 0.0, 0.0, 0.0]);
    let (statistics, gradient) = run(&values, &old, &[1.0; 4], Some(0.25));
    assert_eq!(gradient, [0.0, -1.75, -0.875, -0.75]);
    assert_eq!(statistics.clipped, 1.0);
    let squares = [0.75f64, 1.75, 0.875, 0.75].map(|x| 0.5 * x * x);
    assert_eq!(statistics.loss, squares.iter().sum::<f64>());
    let (statistics, gradient) = run(&values, &old, &[1.0; 4], None);
    assert_eq!(gradient, [-0.25, -1.75, -0.875, -0.75]);
    assert_eq!(statistics.clipped, 0.0);
}

#[test]
fn a_value_beyond_its_return_by_as_much_as_the_bound_falls_short_passes_half() {
    // v = 0.75 and the bound 0.25 are as far from 0.5.
    let (statistics, gradient) = run(&[0.75], &[0.0], &[0.5], Some(0.25));
    assert_eq!((gradient[0], statistics.clipped), (0.125, 0.0));
}

#[test]
fn micro_batches_add_up_to_the_batch() {
    let mut random = generator(5);
    let mut draw = || (0..600).map(|_| random.normal()).collect::<Vec<f32>>();
    let (values, old, returns) = (draw(), draw(), draw());
    let (whole, gradient) = run(&values, &old, &returns, Some(0.2));
    let (head, first) = run(&values[..77], &old[..77], &returns[..77], Some(0.2));
    let (tail, second) = run(&values[77..], &old[77..], &returns[77..], Some(0.2));
    assert_eq!([first, second].concat(), gradient);
    assert_eq!(head.clipped + tail.clipped, whole.clipped);
    // 600 float64 additions that stay below the whole sum.
    assert!((head.loss + tail.loss - whole.loss).abs() < 600.0 * whole.loss * f64::EPSILON);
}

#[test]
fn a_nan_is_not_hidden_by_the_clip() {
    assert!(run(&[f32::NAN], &[0.0], &[1.0], Some(0.2)).0.loss.is_nan());
    assert!(run(&[f32::NAN], &[0.0], &[1.0], None).0.loss.is_nan());
}

#[cfg(feature = "emulated")]
#[test]
fn a_device_loses_no_token_of_more_than_all_blocks_take_at_once() {
    use prime_runtime::{Device, Tensor};

    let count = 70_001;
    let on_device = |values: &[f32]| {
        Tensor::from_slice(values, &[values.len()]).unwrap().to(Device::Emulated).unwrap()
    };
    // Every third value has moved from 0 beyond the bound towards 1.
    let values: Vec<f32> = (0..count).map(|t| 0.25 * (t % 3) as f32).collect();
    let (values, zeros, ones) =
        (on_device(&values), on_device(&vec![0.0; count]), on_device(&vec![1.0; count]));
    let statistics =
        super::forward(values.view(), zeros.view(), ones.view(), ones.view(), Some(0.375)).unwrap();
    assert_eq!((statistics.clipped, statistics.tokens), ((count / 3) as f64, count as f64));
}

#[test]
fn bad_arguments_get_a_sentence() {
    let values = from_f32(&[0.0; 4], DType::F32, &[4]);
    let halves = from_f32(&[0.0; 4], DType::BF16, &[4]);
    let (good, short, half) = (values.view(), values.head(3), halves.view());
    let message = |values, weights, clip| {
        super::forward(values, good, good, weights, clip).unwrap_err().to_string()
    };
    assert_eq!(
        message(good, short, None),
        "value_loss.forward: `weights` is [3], but its dimension `tokens` is 4 in `values`"
    );
    assert_eq!(
        message(half, good, None),
        "value_loss.forward: `values` is bfloat16, expected float32"
    );
    for clip in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert_eq!(
            message(good, good, Some(clip)),
            format!("value_loss.forward: the clip is {clip}, expected above 0")
        );
    }
}
