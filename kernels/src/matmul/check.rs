//! One random case against the oracle.

use prime_runtime::random::Generator;
use prime_runtime::{DType, Device, Tensor, View, ViewMut};

use super::Settings;
use super::cpu::{Product, Right};
use super::cuda;
use super::reference::{self, Shape};
use super::{
    Activation, Epilogue, Layout, Packed, accumulate, backward, forward, forward_packed,
    forward_swiglu,
};
use crate::testing::{Case, any_dtype, case, compare, from_f32, roundoff, to_f64};

/// A matrix, with its rows spread out or not.
pub(super) struct Matrix {
    tensor: Tensor,
    columns: usize,
}

impl Matrix {
    /// Normal numbers; in half the cases the rows lie in a wider buffer.
    pub(super) fn normal(random: &mut Case, dtype: DType, dims: [usize; 2]) -> Self {
        let gap = match random.below(2) {
            0 => 0,
            _ => 1 + random.below(9) as usize,
        };
        Matrix::with_gap(random, dtype, dims, gap)
    }

    /// [`Matrix::normal`] whose rows all begin at multiples of 16 bytes.
    pub(super) fn aligned(random: &mut Case, dtype: DType, dims: [usize; 2]) -> Self {
        let lanes = 16 / dtype.size();
        let gap = dims[1].next_multiple_of(lanes) - dims[1] + random.below(2) as usize * lanes;
        Matrix::with_gap(random, dtype, dims, gap)
    }

    fn with_gap(random: &mut Case, dtype: DType, dims: [usize; 2], gap: usize) -> Self {
        let tensor = random.tensor(dtype, &[dims[0], dims[1] + gap], 1.0);
        Matrix { tensor, columns: dims[1] }
    }

    /// Zeros, without gaps.
    #[cfg(test)]
    pub(super) fn zeros(dtype: DType, dims: [usize; 2]) -> Self {
        Matrix { tensor: crate::testing::zeros(dtype, &dims), columns: dims[1] }
    }

    pub(super) fn view(&self) -> View<'_> {
        self.tensor.view().columns(0..self.columns)
    }

    pub(super) fn view_mut(&mut self) -> ViewMut<'_> {
        self.tensor.view_mut().into_columns(0..self.columns)
    }

    /// The elements, row after row, without the gaps.
    pub(super) fn values(&self) -> Vec<f64> {
        self.view().to_f32_vec().into_iter().map(f64::from).collect()
    }

    /// The bits of all elements, the gaps' among them, as float32.
    pub(super) fn bits(&self) -> Vec<u32> {
        self.tensor.view().to_f32_vec().into_iter().map(f32::to_bits).collect()
    }

    /// Another matrix with the same gaps and values.
    pub(super) fn copy(&self) -> Self {
        let values = self.tensor.view().to_f32_vec();
        let host = from_f32(&values, self.tensor.dtype(), self.tensor.dims());
        let tensor = host.to(self.tensor.device()).expect("test tensors are small");
        Matrix { tensor, columns: self.columns }
    }
}

/// A matrix of a case: any on most chips; on Hopper mostly one that its kernels take.
fn random_matrix(random: &mut Case, dtype: DType, dims: [usize; 2]) -> Matrix {
    let hopper = cuda::on_hopper(random.device());
    match hopper && random.below(16) != 0 {
        true => Matrix::aligned(random, dtype, dims),
        false => Matrix::normal(random, dtype, dims),
    }
}

/// Dimensions of the stored A and B.
pub(super) fn stored(shape: Shape) -> ([usize; 2], [usize; 2]) {
    let Shape { m, n, k, layout } = shape;
    match layout {
        Layout::NN => ([m, k], [k, n]),
        Layout::NT => ([m, k], [n, k]),
        Layout::TN => ([k, m], [k, n]),
    }
}

/// Bound of the error of a chain of `k` fused multiply-adds whose terms' magnitudes sum to `magnitude`. A step rounds once,
/// or, where it takes a pair padded with zero, may round twice; in tile registers a term is rounded with at most 15 others, and at most twice more for each 32
/// terms, which is no more. Subnormal numbers may be taken for zero.
pub(super) fn chain_bound(k: usize, magnitude: f64) -> f64 {
    let steps = (k + 2) as f64;
    let relative = steps * roundoff(DType::F32);
    relative / (1.0 - relative) * magnitude + steps * f64::from(f32::MIN_POSITIVE)
}

/// Bound of the error of a sum of `k` products on any device.
pub(crate) fn sum_bound(
    device: Device,
    dtype: DType,
    settings: Settings,
    k: usize,
    magnitude: f64,
) -> f64 {
    if device == Device::Cpu {
        return chain_bound(k, magnitude);
    }
    // Beside the terms: the sums of parts of k, and C.
    let terms = k + cuda::MOST_PARTS + 1;
    if dtype == DType::F32 && !settings.tf32 {
        return chain_bound(terms, magnitude);
    }
    // An instruction of a tensor core takes at least 8 terms and the sum so far, lines them up with the largest, and cuts off what does not
    // fit beside it: each loses less than two roundoffs of that.
    let sum = chain_bound(2 * (terms + k.div_ceil(8)), magnitude);
    if dtype == DType::BF16 {
        return sum;
    }
    // Rounding to 10 bits of fraction errs by a part of 2^-11 in each factor.
    let factor = 2f64.powi(-11);
    sum + (2.0 * factor + factor * factor) * (magnitude + sum)
}

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(device: Device, seed: u64) -> Result<(), String> {
    let mut random = case(device, seed);
    let dtype = any_dtype(&mut random);
    let layout = [Layout::NN, Layout::NT, Layout::TN][random.below(3) as usize];
    let mut shape = Shape {
        m: size(&mut random, 70),
        n: size(&mut random, 90),
        k: size(&mut random, 90),
        layout,
    };
    match random.below(8) {
        // Long enough for chains that span several blocks.
        0 if device == Device::Cpu => shape.k = 500 + random.below(1200) as usize,
        // Long enough for all slots of shared memory, and for several parts.
        0 => shape.k = 300 + random.below(400) as usize,
        // Several tiles of every size.
        1 if device != Device::Cpu => {
            shape.m = size(&mut random, 200);
            shape.n = size(&mut random, 200);
            shape.k = size(&mut random, 150);
        }
        _ => {}
    }
    // Rows of whole vectors, as weights have them.
    if random.below(2) == 0 {
        [shape.m, shape.n, shape.k] = [shape.m, shape.n, shape.k].map(|x| x.next_multiple_of(8));
    }
    check_shape(&mut random, device, shape, dtype)
}

/// A case of a chip's own kernels: bfloat16, in shapes that cross the edges of large tiles.
///
/// # Errors
/// As for [`check`].
#[cfg(test)]
pub(super) fn check_tensor_cores(device: Device, seed: u64) -> Result<(), String> {
    let mut random = case(device, seed);
    let layout = [Layout::NN, Layout::NT, Layout::TN][random.below(3) as usize];
    let [m, n, k] = [150, 280, 200].map(|most| match random.below(4) {
        0 => 1 + random.below(16) as usize,
        1 => (1 + random.below(most) as usize).next_multiple_of(64),
        _ => 1 + random.below(most) as usize,
    });
    // Now and then enough terms for parts, or for the ring of stages to come round several times.
    let k = if random.below(6) == 0 { k + 300 + random.below(500) as usize } else { k };
    check_shape(&mut random, device, Shape { m, n, k, layout }, DType::BF16)
}

fn check_shape(
    random: &mut Case,
    device: Device,
    shape: Shape,
    dtype: DType,
) -> Result<(), String> {
    let layout = shape.layout;
    let outcome = check_forward(random, device, shape, dtype)
        .and_then(|()| check_accumulate(random, device, shape, dtype))
        .and_then(|()| match layout {
            Layout::TN => Ok(()),
            _ => check_backward(random, device, shape, dtype),
        })
        .and_then(|()| match layout {
            Layout::NT => check_swiglu(random, device, shape, dtype),
            _ => Ok(()),
        });
    outcome.map_err(|message| format!("{dtype} {shape:?}: {message}"))
}

/// Products that Hopper's kernels computed in this process: that none fell back unnoticed.
#[cfg(test)]
pub(super) static HOPPER_PRODUCTS: std::sync::atomic::AtomicUsize =
    std::sync::atomic::AtomicUsize::new(0);

/// One product. On a device other than the host with a tile size, a number of parts and settings drawn by chance, which are returned.
fn multiply(
    random: &mut Case,
    out: ViewMut<'_>,
    [a, b]: [View<'_>; 2],
    shape: Shape,
    epilogue: Epilogue<'_>,
    add: bool,
) -> Result<Settings, String> {
    let layout = shape.layout;
    let settings = Settings { tf32: random.below(3) == 0, invariant: random.below(4) == 0 };
    let outcome = match out.device() {
        Device::Cpu if add => accumulate(out, a, b, layout),
        Device::Cpu => forward(out, a, b, layout, epilogue),
        _ => {
            let product = Product {
                k: shape.k,
                a,
                transposed_a: layout == Layout::TN,
                right: Right::Plain { b, transposed: layout == Layout::NT },
                epilogue,
                accumulate: add,
            };
            let error = |error: prime_runtime::Error| error.to_string();
            let plan = match random.below(2) {
                0 => cuda::plan(out.as_view(), &product, b, layout, settings).map_err(error)?,
                _ => {
                    let plans = cuda::plans(out.as_view(), &product, b, layout, settings);
                    let plans = plans.map_err(error)?;
                    let plan = plans[random.below(plans.len() as u32) as usize];
                    plan.in_parts(1 + random.below(4) as usize)
                }
            };
            #[cfg(test)]
            if plan.hopper() {
                HOPPER_PRODUCTS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            cuda::run(out, &product, b, layout, plan)
                .map_err(|error| format!("{plan}: {error}"))?;
            return Ok(settings);
        }
    };
    outcome.map_err(|error| error.to_string())?;
    Ok(settings)
}

/// 0, 1, or up to `most`.
fn size(random: &mut Generator, most: u32) -> usize {
    match random.below(16) {
        0 => 0,
        1 => 1,
        _ => 1 + random.below(most) as usize,
    }
}

fn check_forward(
    random: &mut Case,
    device: Device,
    shape: Shape,
    dtype: DType,
) -> Result<(), String> {
    let (a_dims, b_dims) = stored(shape);
    let (a, b) = (random_matrix(random, dtype, a_dims), random_matrix(random, dtype, b_dims));
    let out_dtype = if random.below(2) == 0 { DType::F32 } else { dtype };
    let out_dims = [shape.m, shape.n];
    let mut out = random_matrix(random, out_dtype, out_dims);
    let bias = (random.below(2) == 0).then(|| random.tensor(dtype, &[shape.n], 1.0));
    let residual = (random.below(2) == 0).then(|| random_matrix(random, out_dtype, out_dims));
    let activation = if random.below(2) == 0 { Activation::Silu } else { Activation::Identity };
    let epilogue = Epilogue {
        bias: bias.as_ref().map(Tensor::view),
        activation,
        residual: residual.as_ref().map(Matrix::view),
    };
    let mut packed_out = out.copy();
    let gaps = out.copy();
    let operands = [a.view(), b.view()];
    let settings = multiply(random, out.view_mut(), operands, shape, epilogue, false)?;
    only_the_matrix_changed(&out, &gaps)?;

    let (a_values, b_values) = (a.values(), b.values());
    let (sums, magnitudes) = reference::product(shape, &a_values, &b_values);
    let bias_values = bias.as_ref().map(to_f64);
    let residual_values = residual.as_ref().map(Matrix::values);
    let expected = reference::forward(
        shape,
        &a_values,
        &b_values,
        bias_values.as_deref(),
        activation,
        residual_values.as_deref(),
    );
    let unit = roundoff(DType::F32);
    let bound = |i: usize| {
        let mut error = sum_bound(device, dtype, settings, shape.k, magnitudes[i]);
        let mut x = sums[i];
        if let Some(bias) = &bias_values {
            x += bias[i % shape.n];
            error += unit * (x.abs() + error);
        }
        if activation == Activation::Silu {
            // The slope is at most 1.1; the exponential is within 4 roundoffs, and four more operations follow.
            x = reference::activate(activation, x);
            error = 1.1 * error + 8.0 * unit * (x.abs() + 1.1 * error);
        }
        if let Some(residual) = &residual_values {
            x += residual[i];
            error += unit * (x.abs() + error);
        }
        error + roundoff(out_dtype) * (x.abs() + error)
    };
    compare("out", &out.values(), &expected, bound)?;

    if shape.layout != Layout::TN && device == Device::Cpu {
        let mut packed = Packed::new(b.view(), shape.layout).map_err(|e| e.to_string())?;
        packed.repack(b.view()).map_err(|e| e.to_string())?;
        forward_packed(packed_out.view_mut(), a.view(), &packed, epilogue)
            .map_err(|e| e.to_string())?;
        if packed_out.bits() != out.bits() {
            return Err("a packed B gives other bits than a plain one".into());
        }
    }
    Ok(())
}

fn check_accumulate(
    random: &mut Case,
    device: Device,
    shape: Shape,
    dtype: DType,
) -> Result<(), String> {
    let (a_dims, b_dims) = stored(shape);
    let (a, b) = (random_matrix(random, dtype, a_dims), random_matrix(random, dtype, b_dims));
    let out_dtype = if random.below(3) == 0 { dtype } else { DType::F32 };
    let mut out = random_matrix(random, out_dtype, [shape.m, shape.n]);
    let before = out.copy();
    let operands = [a.view(), b.view()];
    let settings = multiply(random, out.view_mut(), operands, shape, Epilogue::default(), true)?;
    only_the_matrix_changed(&out, &before)?;
    let (sums, magnitudes) = reference::product(shape, &a.values(), &b.values());
    let start = before.values();
    let expected: Vec<f64> = sums.iter().zip(&start).map(|(sum, start)| sum + start).collect();
    compare("out", &out.values(), &expected, |i| {
        let error = sum_bound(device, dtype, settings, shape.k, magnitudes[i] + start[i].abs());
        if out_dtype == DType::F32 {
            return error;
        }
        // C joins the sum, and the whole is rounded.
        let sum = expected[i].abs() + error;
        error + roundoff(DType::F32) * sum + 1.01 * roundoff(out_dtype) * sum
    })
}

fn check_backward(
    random: &mut Case,
    device: Device,
    shape: Shape,
    dtype: DType,
) -> Result<(), String> {
    let settings = super::settings();
    let (a_dims, b_dims) = stored(shape);
    let (a, b) = (random_matrix(random, dtype, a_dims), random_matrix(random, dtype, b_dims));
    let d_out = random_matrix(random, dtype, [shape.m, shape.n]);
    let mut d_a = random_matrix(random, dtype, a_dims);
    let mut d_b = random_matrix(random, DType::F32, b_dims);
    let mut d_bias = random.tensor(DType::F32, &[shape.n], 1.0);
    let (start, start_bias) = (d_b.values(), to_f64(&d_bias));
    backward(
        Some(d_a.view_mut()),
        Some(d_b.view_mut()),
        Some(d_bias.view_mut()),
        d_out.view(),
        a.view(),
        b.view(),
        shape.layout,
    )
    .map_err(|e| e.to_string())?;
    let (d, a, b) = (d_out.values(), a.values(), b.values());
    let (expected_a, expected_b, expected_bias) = reference::backward(shape, &d, &a, &b);
    let magnitude = |x: &[f64]| x.iter().map(|x| x.abs()).collect::<Vec<_>>();
    let (magnitude_a, magnitude_b, magnitude_bias) =
        reference::backward(shape, &magnitude(&d), &magnitude(&a), &magnitude(&b));
    compare("d_a", &d_a.values(), &expected_a, |i| {
        let error = sum_bound(device, dtype, settings, shape.n, magnitude_a[i]);
        error + roundoff(dtype) * (expected_a[i].abs() + error)
    })?;
    let added =
        |d: &[f64], start: &[f64]| d.iter().zip(start).map(|(d, x)| d + x).collect::<Vec<_>>();
    compare("d_b", &d_b.values(), &added(&expected_b, &start), |i| {
        sum_bound(device, dtype, settings, shape.m, magnitude_b[i] + start[i].abs())
    })?;
    compare("d_bias", &to_f64(&d_bias), &added(&expected_bias, &start_bias), |i| {
        chain_bound(shape.m, magnitude_bias[i] + start_bias[i].abs())
    })
}

/// Both factors against the product's oracle, and what they give against SwiGLU's of the factors as they were stored.
fn check_swiglu(
    random: &mut Case,
    device: Device,
    shape: Shape,
    dtype: DType,
) -> Result<(), String> {
    let half = shape.n / 2;
    let shape = Shape { n: 2 * half, ..shape };
    let (a_dims, b_dims) = stored(shape);
    let (a, b) = (random_matrix(random, dtype, a_dims), random_matrix(random, dtype, b_dims));
    let mut out = random_matrix(random, dtype, [shape.m, half]);
    let mut alone = out.copy();
    let mut gate_up = random_matrix(random, dtype, [shape.m, shape.n]);
    let mut room = gate_up.copy();
    let gaps = [out.copy(), gate_up.copy()];
    let settings = Settings { tf32: random.below(3) == 0, invariant: false };
    // Of devices one of the ways, or that of the shape.
    let chosen = device == Device::Cpu || random.below(5) == 0;
    let settings = if chosen { super::settings() } else { settings };
    let way = random.below(u32::MAX) as usize;
    let run = |out: &mut Matrix, gate_up: &mut Matrix, keep: bool| {
        let (out, gate_up) = (out.view_mut(), gate_up.view_mut());
        let outcome = if chosen {
            forward_swiglu(out, gate_up, keep, a.view(), b.view())
        } else {
            let views = [out.as_view(), gate_up.as_view()];
            // Whether factors are kept must not change the way, so that the bits can be compared.
            cuda::plans_of_swiglu(views, true, [a.view(), b.view()], settings).and_then(|plans| {
                let plan = plans[way % plans.len()];
                cuda::swiglu(out, keep.then_some(gate_up), a.view(), b.view(), plan)
            })
        };
        outcome.map_err(|error| error.to_string())
    };
    run(&mut out, &mut gate_up, true)?;
    run(&mut alone, &mut room, false)?;
    if alone.bits() != out.bits() {
        return Err("SwiGLU without its factors written gives other bits than with them".into());
    }
    only_the_matrix_changed(&out, &gaps[0])?;
    only_the_matrix_changed(&gate_up, &gaps[1])?;

    let (sums, magnitudes) = reference::product(shape, &a.values(), &b.values());
    let factors = gate_up.values();
    compare("gate_up", &factors, &sums, |i| {
        let error = sum_bound(device, dtype, settings, shape.k, magnitudes[i]);
        error + roundoff(dtype) * (sums[i].abs() + error)
    })?;
    let expected: Vec<f64> = (0..shape.m * half)
        .map(|i| {
            let gate = i / half * shape.n + i % half;
            crate::swiglu::reference::forward(&[factors[gate]], &[factors[gate + half]])[0]
        })
        .collect();
    // exp is within 4 roundoffs, so sigmoid is within 6; two products and the last rounding follow. A sigmoid below the normal range may be
    // taken for zero, and so may the result.
    let relative = 1.01 * (8.0 * roundoff(DType::F32) + roundoff(dtype));
    compare("out", &out.values(), &expected, |i| {
        let gate = i / half * shape.n + i % half;
        let lost = 1.0 + (factors[gate] * factors[gate + half]).abs();
        relative * expected[i].abs() + lost * f64::from(f32::MIN_POSITIVE)
    })
}

/// Nothing between the rows of an output may be written.
fn only_the_matrix_changed(after: &Matrix, before: &Matrix) -> Result<(), String> {
    let width = after.tensor.dims()[1];
    let (after_bits, before_bits) = (after.bits(), before.bits());
    for (i, (after_bits, before_bits)) in after_bits.iter().zip(&before_bits).enumerate() {
        if i % width >= after.columns && after_bits != before_bits {
            return Err(format!("the gap behind row {} of the output was written", i / width));
        }
    }
    Ok(())
}
