use prime_runtime::{DType, Tensor, bf16};

use super::{BLOCK, Moments, Parameters, Settings};
use crate::testing::{assert_independent_of_threads, generator, normal, zeros};

const SETTINGS: Settings = Settings {
    learning_rate: 1e-2,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.1,
    step: 1,
    gradient_scale: 1.0,
    seed: 9,
    first: 0,
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
            Parameters::Masters(self.master.view_mut(), Some(self.compute.view_mut())),
            Moments::Float32 { m: self.m.view_mut(), v: self.v.view_mut() },
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
        let (weights, moments) = (Parameters::Masters(master, None), Moments::Float32 { m, v });
        super::update(weights, moments, gradient.view(), settings).unwrap_err().to_string()
    };
    assert_eq!(
        refusal(&[5], DType::F32, SETTINGS),
        "adamw.update: `gradient` is [4], but its dimension `parameters` is 5 in `master`"
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

/// bfloat16 weights without masters, and moments of eight bits.
struct Small {
    weights: Tensor,
    m: Tensor,
    m_scales: Tensor,
    v: Tensor,
    v_scales: Tensor,
}

impl Small {
    fn new(weights: &Tensor) -> Self {
        let count = weights.dims()[0];
        let [m, v] = [(); 2].map(|()| zeros(DType::U32, &[count.div_ceil(4)]));
        let [m_scales, v_scales] = [(); 2].map(|()| zeros(DType::F32, &[count.div_ceil(BLOCK)]));
        let weights = Tensor::from_slice(weights.as_slice::<bf16>(), &[count]).unwrap();
        Small { weights, m, m_scales, v, v_scales }
    }

    fn update(&mut self, gradient: prime_runtime::View<'_>, settings: Settings) {
        let moments = Moments::Int8 {
            m: self.m.view_mut(),
            m_scales: self.m_scales.view_mut(),
            v: self.v.view_mut(),
            v_scales: self.v_scales.view_mut(),
        };
        super::update(Parameters::Rounded(self.weights.view_mut()), moments, gradient, settings)
            .unwrap();
    }

    fn bits(&self) -> (Vec<f32>, Vec<u32>, Vec<u32>, Vec<f32>) {
        let words = |tensor: &Tensor| tensor.view().to_vec::<u32>().unwrap();
        let scales = self.v_scales.view().to_f32_vec();
        (self.weights.view().to_f32_vec(), words(&self.m), words(&self.v), scales)
    }
}

#[test]
fn small_state_does_not_depend_on_the_number_of_threads_but_on_seed_step_and_place() {
    let mut random = generator(5);
    let weights = normal(&mut random, DType::BF16, &[70_001], 1.0);
    let gradient = normal(&mut random, DType::F32, &[70_001], 1.0);
    assert_independent_of_threads(|| {
        let mut state = Small::new(&weights);
        state.update(gradient.view(), SETTINGS);
        state.update(gradient.view(), Settings { step: 2, ..SETTINGS });
        state.bits()
    });
    let after = |settings: Settings| {
        let mut state = Small::new(&weights);
        state.update(gradient.view(), settings);
        state.bits()
    };
    assert_eq!(after(SETTINGS), after(SETTINGS));
    assert_ne!(after(SETTINGS).0, after(Settings { seed: 10, ..SETTINGS }).0);
    assert_ne!(after(SETTINGS).1, after(Settings { first: 4, ..SETTINGS }).1);
}

#[test]
fn a_range_in_pieces_of_whole_blocks_is_the_range_at_once() {
    let mut random = generator(6);
    let weights = normal(&mut random, DType::BF16, &[1300], 1.0);
    let gradient = normal(&mut random, DType::F32, &[1300], 1.0);
    let mut whole = Small::new(&weights);
    whole.update(gradient.view(), SETTINGS);
    let (mut w, mut m) = (Vec::new(), Vec::new());
    for piece in [0..512, 512..1024, 1024..1300] {
        let part = Tensor::from_slice(&weights.as_slice::<bf16>()[piece.clone()], &[piece.len()]);
        let mut state = Small::new(&part.unwrap());
        let settings = Settings { first: piece.start as u64, ..SETTINGS };
        state.update(gradient.view().rows(piece), settings);
        let (weights, codes, ..) = state.bits();
        w.extend(weights);
        m.extend(codes);
    }
    assert_eq!((w, m), (whole.bits().0, whole.bits().1));
}

/// Weight decay alone: products that every device rounds alike, so that what is left to differ are the random bits.
#[cfg(feature = "emulated")]
#[test]
fn weights_are_rounded_by_the_same_random_bits_on_every_device() {
    use prime_runtime::Device;
    let weights = normal(&mut generator(8), DType::BF16, &[1003], 1.0);
    let on = |device: Device| {
        let place = |tensor: Tensor| match device {
            Device::Cpu => tensor,
            _ => tensor.to(device).unwrap(),
        };
        let Small { weights, m, m_scales, v, v_scales } = Small::new(&weights);
        let [weights, m, m_scales, v, v_scales] = [weights, m, m_scales, v, v_scales].map(place);
        let mut state = Small { weights, m, m_scales, v, v_scales };
        let gradient = place(zeros(DType::F32, &[1003]));
        let settings = Settings { step: 7, first: 400, ..SETTINGS };
        state.update(gradient.view(), settings);
        state.bits()
    };
    assert_ne!(on(Device::Cpu).0, weights.view().to_f32_vec());
    assert_eq!(on(Device::Cpu), on(Device::Emulated));
}

/// A decay of 2^-12 an update is a sixteenth of a bfloat16's step at most: rounded to nearest no weight would ever move.
#[test]
fn weights_without_masters_follow_small_updates_in_the_mean() {
    const COUNT: usize = 4096;
    let ones = vec![bf16::from_f32(1.5); COUNT];
    let mut state = Small::new(&Tensor::from_slice(&ones, &[COUNT]).unwrap());
    let gradient = zeros(DType::F32, &[COUNT]);
    let decay = 2f64.powi(-12);
    let steps = 64;
    for step in 1..=steps {
        let settings = Settings { learning_rate: decay, weight_decay: 1.0, step, ..SETTINGS };
        state.update(gradient.view(), settings);
    }
    let mean =
        state.weights.view().to_f32_vec().iter().map(|&w| f64::from(w)).sum::<f64>() / COUNT as f64;
    let expected = 1.5 * (1.0 - decay).powi(steps as i32);
    // An update moves a weight by a step of 2^-7 with probability p <= 2^-12 * 1.5 / 2^-7: a variance of at most p * 2^-14 each, and the mean of
    // 4096 independent walks of 64 updates. Five standard deviations.
    let deviation = (steps as f64 * 1.5 * 2f64.powi(-5) * 2f64.powi(-14) / COUNT as f64).sqrt();
    assert!((mean - expected).abs() < 5.0 * deviation, "{mean} beside {expected}");
}

/// The second moment of steady gradients, after the first was far off: rounded to nearest, it would stay where it was.
#[test]
fn eight_bit_moments_follow_a_change_in_the_mean() {
    const COUNT: usize = 8192;
    let weights = Tensor::from_slice(&vec![bf16::from_f32(1.0); COUNT], &[COUNT]).unwrap();
    let mut state = Small::new(&weights);
    // One parameter of each block keeps its scale.
    let gradients = |size: f32| -> Tensor {
        let values: Vec<f32> =
            (0..COUNT).map(|i| if i % BLOCK == 0 { 4.0 } else { size }).collect();
        Tensor::from_slice(&values, &[COUNT]).unwrap()
    };
    let (large, small) = (gradients(1.0), gradients(0.5));
    let mut exact = 0.0;
    for step in 1..=400 {
        let gradient = if step <= 200 { &large } else { &small };
        let settings = Settings { learning_rate: 1e-4, beta2: 0.99, step, ..SETTINGS };
        state.update(gradient.view(), settings);
        let g: f64 = if step <= 200 { 1.0 } else { 0.5 };
        exact = 0.99 * exact + 0.01 * g * g;
    }
    let words = state.v.view().to_vec::<u32>().unwrap();
    let scales = state.v_scales.view().to_f32_vec();
    let decoded: Vec<f64> = (0..COUNT)
        .filter(|i| i % BLOCK != 0)
        .map(|i| {
            f64::from(super::code::decode_second(
                words[i / 4] >> (8 * (i % 4)) & 255,
                scales[i / BLOCK],
            ))
        })
        .collect();
    let count = decoded.len() as f64;
    let mean = decoded.iter().sum::<f64>() / count;
    let variance = decoded.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (count - 1.0);
    // Five standard errors of the mean, measured from the spread itself.
    let error = 5.0 * (variance / count).sqrt();
    assert!(error < 0.02 * exact, "{error}");
    assert!((mean - exact).abs() < error + 1e-4 * exact, "{mean} beside {exact} within {error}");
}
