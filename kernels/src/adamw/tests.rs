use prime_runtime::{DType, Tensor, bf16};

use super::Settings;
use crate::testing::{assert_independent_of_threads, generator, normal, zeros};

const SETTINGS: Settings = Settings {
    learning_rate: 1e-2,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.1,
    step: 1,
    gradient_scale: 1.0,
};

struct State {
    master: Tensor,
    compute: Tensor,
    m: Tensor,
    v: Tensor,
}

impl State {
    fn new(weights: &Tensor) -> Self {
        let count = weights.dims()[0];
        let [m, v] = [(); 2].map(|()| zeros(DType::F32, &[count]));
        let master = Tensor::from_slice(weights.as_slice::<f32>(), &[count]).unwrap();
        State { master, compute: zeros(DType::BF16, &[count]), m, v }
    }

    fn update(&mut self, gradient: &Tensor, settings: Settings) {
        super::update(
            self.master.view_mut(),
            Some(self.compute.view_mut()),
            self.m.view_mut(),
            self.v.view_mut(),
            gradient.view(),
            settings,
        )
        .unwrap();
    }
}

#[test]
fn updates_and_norms_do_not_depend_on_the_number_of_threads() {
    let mut random = generator(1);
    let [weights, gradient] = [(); 2].map(|()| normal(&mut random, DType::F32, &[150_001], 1.0));
    assert_independent_of_threads(|| {
        let mut state = State::new(&weights);
        state.update(&gradient, SETTINGS);
        let norm = super::norm(gradient.view()).unwrap().to_bits();
        let State { master, compute, m, v } = state;
        (norm, [master, compute, m, v].map(|tensor| tensor.view().to_f32_vec()))
    });
}

#[test]
fn the_first_update_moves_every_weight_by_the_learning_rate() {
    // At step 1 the corrected moments are g and g^2: whatever the gradient's size, the step is lr times its sign.
    let weights = Tensor::from_slice(&[1.0f32, 1.0, 0.5], &[3]).unwrap();
    let gradient = Tensor::from_slice(&[1e-3f32, -50.0, 0.0], &[3]).unwrap();
    let mut state = State::new(&weights);
    state.update(&gradient, Settings { weight_decay: 0.0, ..SETTINGS });
    let moved: Vec<f32> = state.master.as_slice::<f32>().to_vec();
    // Epsilon is 1e-5 of the smallest root of v; the rest is roundoff.
    for (moved, expected) in moved.iter().zip([0.99, 1.01, 0.5]) {
        assert!((moved - expected).abs() < 1e-2 * 1e-5 + 4.0 * f32::EPSILON, "{moved}");
    }
    assert_eq!(state.compute.as_slice::<bf16>()[2], bf16::from_f32(0.5));
}

#[test]
fn a_weight_without_gradient_only_decays() {
    let weights = Tensor::from_slice(&[2.0f32], &[1]).unwrap();
    let mut state = State::new(&weights);
    state.update(&zeros(DType::F32, &[1]), SETTINGS);
    assert_eq!(state.master.as_slice::<f32>(), [2.0 * (1.0 - 1e-3f64) as f32]);
}

#[test]
fn a_norm_is_not_finite_when_one_element_is_not_and_does_not_overflow_otherwise() {
    let mut gradient = normal(&mut generator(2), DType::F32, &[40_000], 1.0);
    for (bad, at) in [(f32::NAN, 0), (f32::INFINITY, 39_999), (f32::NEG_INFINITY, 20_000)] {
        let good = std::mem::replace(&mut gradient.as_mut_slice()[at], bad);
        assert!(!super::norm(gradient.view()).unwrap().is_finite());
        gradient.as_mut_slice()[at] = good;
    }
    gradient.as_mut_slice::<f32>().fill(1e38);
    let relative = super::norm(gradient.view()).unwrap() / (f64::from(1e38f32) * 200.0) - 1.0;
    assert!(relative.abs() < 40_000.0 * f64::EPSILON);
}

#[test]
fn arguments_that_disagree_are_refused_by_name() {
    let refusal = |master: &[usize], m_dtype, settings| {
        let (mut master, mut m) = (zeros(DType::F32, master), zeros(m_dtype, &[4]));
        let (mut v, gradient) = (zeros(DType::F32, &[4]), zeros(DType::F32, &[4]));
        let [master, m, v] = [&mut master, &mut m, &mut v].map(Tensor::view_mut);
        super::update(master, None, m, v, gradient.view(), settings).unwrap_err().to_string()
    };
    assert_eq!(
        refusal(&[5], DType::F32, SETTINGS),
        "adamw.update: `m` is [4], but its dimension `parameters` is 5 in `master`"
    );
    assert_eq!(
        refusal(&[4], DType::BF16, SETTINGS),
        "adamw.update: `m` is bfloat16, expected float32"
    );
    assert_eq!(
        refusal(&[4], DType::F32, Settings { step: 0, ..SETTINGS }),
        "adamw.update: the first update is step 1, got step 0"
    );
    assert_eq!(
        super::norm(zeros(DType::BF16, &[2]).view()).unwrap_err().to_string(),
        "adamw.norm: `gradient` is bfloat16, expected float32"
    );
}
