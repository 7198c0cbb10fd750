use prime_runtime::{DType, Tensor, View, ViewMut};
use proptest::prelude::*;

use super::reference::Projection;
use crate::testing::{check_gradient, from_f32, generator, normal, zeros};

/// Log-probs, entropies and lse of some rows of a case.
fn forward(
    hidden: View<'_>,
    weight: View<'_>,
    targets: View<'_>,
    temperature: f32,
) -> [Vec<f32>; 3] {
    let tokens = [hidden.dim(0)];
    let mut outputs = [(); 3].map(|()| vec![f32::NAN; tokens[0]]);
    let [log_probs, entropy, lse] =
        outputs.each_mut().map(|values| ViewMut::from_slice(values, &tokens));
    super::forward(log_probs, entropy, lse, hidden, weight, targets, temperature).unwrap();
    outputs
}

struct Case {
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
}

fn case(seed: u64, dtype: DType, [tokens, vocabulary, width]: [usize; 3]) -> Case {
    let mut random = generator(seed);
    let targets: Vec<u32> = (0..tokens).map(|_| random.below(vocabulary as u32)).collect();
    Case {
        hidden: normal(&mut random, dtype, &[tokens, width], 1.0),
        weight: normal(&mut random, dtype, &[vocabulary, width], 1.0),
        targets: Tensor::from_slice(&targets, &[tokens]).unwrap(),
    }
}

/// The gradients by `hidden` (as float32) and `weight` of the sum of log-probs and 0.1 times entropies, `d_weight` added to
/// what is there.
fn backward(case: &Case, range: std::ops::Range<usize>, d_weight: &mut Tensor) -> Vec<f32> {
    let tokens = range.len();
    let (hidden, targets) =
        (case.hidden.view().rows(range.clone()), case.targets.view().rows(range));
    let [_, entropy, lse] = forward(hidden, case.weight.view(), targets, 0.8);
    let mut d_hidden = zeros(hidden.dtype(), hidden.dims());
    let [ones, tenths] = [vec![1.0f32; tokens], vec![0.1f32; tokens]];
    super::backward(
        d_hidden.view_mut(),
        Some(d_weight.view_mut()),
        View::from_slice(&ones, &[tokens]),
        Some(View::from_slice(&tenths, &[tokens])),
        hidden,
        case.weight.view(),
        targets,
        View::from_slice(&lse, &[tokens]),
        View::from_slice(&entropy, &[tokens]),
        0.8,
    )
    .unwrap();
    d_hidden.view().to_f32_vec()
}

#[test]
fn gradients_of_the_oracle_are_the_slopes_of_its_loss() {
    let mut random = generator(2);
    let mut values =
        |count: usize| -> Vec<f64> { (0..count).map(|_| f64::from(random.normal())).collect() };
    let (hidden, weight) = (values(3 * 4), values(7 * 4));
    let (g, h, targets) = (values(3), values(3), [6, 0, 3]);
    let width = 4;
    let oracle = |hidden: &[f64], weight: &[f64]| {
        Projection { hidden, weight, width, temperature: 0.7 }.loss(&targets, &g, &h)
    };
    let (d_hidden, d_weight) =
        Projection { hidden: &hidden, weight: &weight, width, temperature: 0.7 }
            .backward(&targets, &g, &h);
    check_gradient("d_hidden", &hidden, &d_hidden, |hidden| oracle(hidden, &weight)).unwrap();
    check_gradient("d_weight", &weight, &d_weight, |weight| oracle(&hidden, weight)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_tokens_numbers_do_not_depend_on_the_batch(
        seed in 0u64..1000,
        bf16 in any::<bool>(),
        tokens in 1usize..20,
        vocabulary in prop_oneof![1usize..70, 1000usize..2100],
        width in 1usize..40,
        temperature in 0.3f32..2.0,
    ) {
        let dtype = if bf16 { DType::BF16 } else { DType::F32 };
        let case = case(seed, dtype, [tokens, vocabulary, width]);
        let whole = forward(
            case.hidden.view(), case.weight.view(), case.targets.view(), temperature,
        );
        for t in 0..tokens {
            let alone = forward(
                case.hidden.view().rows(t..t + 1),
                case.weight.view(),
                case.targets.view().rows(t..t + 1),
                temperature,
            );
            for (whole, alone) in whole.iter().zip(alone) {
                prop_assert_eq!(whole[t].to_bits(), alone[0].to_bits());
            }
        }
    }
}

#[test]
fn micro_batches_add_up_to_the_same_bits() {
    for (dtype, dims) in [
        (DType::F32, [50, 1500, 5]),
        (DType::BF16, [50, 1500, 6]),
        (DType::F32, [50, 40, 19]),
        (DType::BF16, [50, 40, 19]),
    ] {
        let case = case(1, dtype, dims);
        let mut whole = zeros(DType::F32, &dims[1..]);
        let d_hidden = backward(&case, 0..50, &mut whole);
        let mut parts = zeros(DType::F32, &dims[1..]);
        // Cut where bfloat16 products may: tile registers take 32 tokens a step.
        let first = backward(&case, 0..32, &mut parts);
        let second = backward(&case, 32..50, &mut parts);
        assert_eq!([first, second].concat(), d_hidden);
        assert_eq!(whole.as_slice::<f32>(), parts.as_slice::<f32>());
    }
}

#[test]
fn tokens_beyond_one_wave_have_the_numbers_of_the_first() {
    // More tokens than a wave of blocks of this width holds, twice over, the last wave short.
    let dims = [2100, 1030, 2];
    let case = case(9, DType::F32, dims);
    let [log_probs, entropy, lse] =
        forward(case.hidden.view(), case.weight.view(), case.targets.view(), 1.0);
    let tail = 2040..2100;
    let [of_tail, entropy_of_tail, lse_of_tail] = forward(
        case.hidden.view().rows(tail.clone()),
        case.weight.view(),
        case.targets.view().rows(tail.clone()),
        1.0,
    );
    assert_eq!(log_probs[tail.clone()], of_tail);
    assert_eq!(entropy[tail.clone()], entropy_of_tail);
    assert_eq!(lse[tail.clone()], lse_of_tail);

    let mut whole = zeros(DType::F32, &dims[1..]);
    let mut parts = zeros(DType::F32, &dims[1..]);
    let d_hidden = backward(&case, 0..2100, &mut whole);
    let first = backward(&case, 0..500, &mut parts);
    let second = backward(&case, 500..2100, &mut parts);
    assert_eq!([first, second].concat(), d_hidden);
    assert_eq!(whole.as_slice::<f32>(), parts.as_slice::<f32>());
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for dtype in [DType::F32, DType::BF16] {
        let case = case(4, dtype, [70, 2050, 8]);
        let results = [1, 2, 5].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let numbers =
                    forward(case.hidden.view(), case.weight.view(), case.targets.view(), 1.3);
                let mut d_weight = zeros(DType::F32, &[2050, 8]);
                let d_hidden = backward(&case, 0..70, &mut d_weight);
                (numbers, d_hidden, d_weight.view().to_f32_vec())
            })
        });
        assert!(results[0] == results[1] && results[0] == results[2]);
    }
}

#[test]
fn certain_and_hopeless_targets_have_finite_numbers() {
    let hidden = from_f32(&[1.0], DType::F32, &[1, 1]);
    let weight = from_f32(&[3e4, -3e4, 2.9e4], DType::F32, &[3, 1]);
    for (target, expected) in [(0u32, 0.0f32), (1, -6e4), (2, -1e3)] {
        let targets = [target];
        let [log_probs, entropy, lse] =
            forward(hidden.view(), weight.view(), View::from_slice(&targets, &[1]), 1.0);
        assert_eq!((log_probs[0], entropy[0], lse[0]), (expected, 0.0, 3e4));
    }
}

#[test]
fn equal_logits_are_exactly_uniform_at_any_temperature() {
    for vocabulary in [1, 2, 64, 1024, 4096] {
        let hidden = from_f32(&[2.0, 1.0], DType::BF16, &[1, 2]);
        let weight = from_f32(&vec![0.5; 2 * vocabulary], DType::BF16, &[vocabulary, 2]);
        let targets = [vocabulary as u32 - 1];
        for temperature in [0.01, 1.0, 3.0] {
            let targets = View::from_slice(&targets, &[1]);
            let [log_probs, entropy, _] =
                forward(hidden.view(), weight.view(), targets, temperature);
            let expected = (vocabulary as f64).ln() as f32;
            assert_eq!((log_probs[0], entropy[0]), (-expected, expected));
        }
    }
}

#[test]
fn a_row_that_is_not_finite_leaves_the_others_alone() {
    let mut case = case(3, DType::F32, [3, 1100, 4]);
    let before = forward(case.hidden.view(), case.weight.view(), case.targets.view(), 1.0);
    case.hidden.as_mut_slice::<f32>()[5] = f32::NAN;
    let after = forward(case.hidden.view(), case.weight.view(), case.targets.view(), 1.0);
    for (before, after) in before.iter().zip(&after) {
        assert!(after[1].is_nan());
        assert_eq!((before[0], before[2]), (after[0], after[2]));
    }
}

#[test]
fn one_logit_that_is_not_finite_is_not_forgotten_over_later_blocks() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut case = case(5, DType::F32, [2, 3000, 1]);
        case.weight.as_mut_slice::<f32>()[7] = bad;
        let numbers = forward(case.hidden.view(), case.weight.view(), case.targets.view(), 1.0);
        assert!(numbers[1].iter().all(|entropy| !entropy.is_finite()), "{bad}: {numbers:?}");
    }
}

#[test]
fn bad_arguments_get_a_sentence() {
    let case = case(1, DType::F32, [2, 5, 3]);
    let other = zeros(DType::BF16, &[5, 3]);
    let message = |weight: View<'_>, target: u32, temperature: f32| {
        let mut outputs = [[0.0f32; 2]; 3];
        let [a, b, c] = outputs.each_mut().map(|values| ViewMut::from_slice(values, &[2]));
        let targets = [0, target];
        let targets = View::from_slice(&targets, &[2]);
        super::forward(a, b, c, case.hidden.view(), weight, targets, temperature)
            .unwrap_err()
            .to_string()
    };
    let weight = case.weight.view();
    assert_eq!(
        message(weight, 5, 1.0),
        "log_prob.forward: targets[1] is 5, expected an id below 5"
    );
    assert_eq!(
        message(weight.columns(0..2), 1, 1.0),
        "log_prob.forward: `weight` is [5, 2], but its dimension `hidden` is 3 in `hidden`"
    );
    assert_eq!(
        message(other.view(), 1, 1.0),
        "log_prob.forward: `weight` is bfloat16, expected float32"
    );
    for temperature in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-40] {
        let expected = format!(
            "log_prob.forward: the temperature is {temperature}, expected a finite number above 1e-38"
        );
        assert_eq!(message(weight, 1, temperature), expected);
    }
}

/// Numbers of a device that stands for a chip, whole and of parts of a batch.
#[cfg(feature = "emulated")]
fn check_that_batches_do_not_matter(dtypes: &[DType], unaligned_too: bool) {
    use prime_runtime::Device;
    let numbers = |hidden: View<'_>, weight: View<'_>, targets: View<'_>| {
        let on_device = |values: &[f32]| {
            from_f32(values, DType::F32, &[values.len()]).to(Device::Emulated).unwrap()
        };
        let mut outputs = [(); 3].map(|()| on_device(&vec![0.0; hidden.dim(0)]));
        let [a, b, c] = outputs.each_mut().map(|output| output.view_mut());
        super::forward(a, b, c, hidden, weight, targets, 0.7).unwrap();
        outputs.map(|output| {
            let values = output.view().to_f32_vec();
            values.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        })
    };
    for &dtype in dtypes {
        let case = case(11, dtype, [150, 1100, 40]);
        let [hidden, weight, targets] = [&case.hidden, &case.weight, &case.targets]
            .map(|tensor| tensor.to(Device::Emulated).unwrap());
        // 150 tokens have tiles of 128 rows, 60 of 64 and 1 of 16.
        let whole = numbers(hidden.view(), weight.view(), targets.view());
        let compare = |range: std::ops::Range<usize>, part: [Vec<u32>; 3]| {
            for (whole, part) in whole.iter().zip(part) {
                assert_eq!(whole[range.clone()], part, "{dtype} {range:?}");
            }
        };
        for range in [0..60, 77..78] {
            let hidden = hidden.view().rows(range.clone());
            let part = numbers(hidden, weight.view(), targets.view().rows(range.clone()));
            compare(range, part);
        }
        // Rows that are not aligned to vectors of 16 bytes have tiles of their own.
        if !unaligned_too {
            continue;
        }
        let mut spread = Tensor::zeros(Device::Emulated, dtype, &[150, 41]).unwrap();
        spread.view_mut().into_columns(1..41).copy_from(hidden.view()).unwrap();
        let part = numbers(spread.view().columns(1..41), weight.view(), targets.view());
        compare(0..150, part);
    }
}

#[cfg(feature = "emulated")]
#[test]
fn a_tokens_bits_on_a_device_are_the_same_in_every_batch_and_tile_shape() {
    check_that_batches_do_not_matter(&[DType::F32, DType::BF16], true);
}

#[cfg(feature = "emulated")]
#[test]
fn a_tokens_bits_on_hopper_are_the_same_in_every_batch() {
    use crate::device::{HOPPER, on_chip};
    on_chip(HOPPER, || check_that_batches_do_not_matter(&[DType::BF16], false));
}

#[cfg(feature = "emulated")]
#[test]
fn random_cases_on_hopper_agree_with_the_oracle() {
    use crate::device::{HOPPER, on_chip};
    use crate::testing::assert_cases;
    use prime_runtime::Device;
    on_chip(HOPPER, || assert_cases(Device::Emulated, super::check::check_hopper));
}
