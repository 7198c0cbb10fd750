//! Products of matrices: their texts, those of a model, and how each way to compute one is checked and timed.

use anyhow::{Context, Result, bail};
use prime_kernels::matmul::tuning::{self, Problem, Variant};
use prime_kernels::matmul::{self, Epilogue, Layout};
use prime_kernels::testing::roundoff;
use prime_model::Config as ModelConfig;
use prime_runtime::{DType, Device, Tensor};

use super::{Tuned, Work, copies, dtype_of, elements, fill, uniform};

/// A product's text: `NT 64x37888x3584 bfloat16 to bfloat16`, with `, swiglu` where it ends in that. Sizes are rows and columns of C, and terms.
fn text(problem: &Problem) -> String {
    let Problem { m, n, k, layout, dtype, out, swiglu } = problem;
    let end = if *swiglu { ", swiglu" } else { "" };
    format!("{layout:?} {m}x{n}x{k} {dtype} to {out}{end}")
}

/// The product of a text.
fn parse(text: &str) -> Result<Problem> {
    let (body, swiglu) = match text.strip_suffix(", swiglu") {
        Some(body) => (body, true),
        None => (text, false),
    };
    let words: Vec<&str> = body.split(' ').collect();
    let [layout, sizes, dtype, "to", out] = words[..] else {
        bail!("`{text}` is no product, expected one like `NT 64x37888x3584 bfloat16 to bfloat16`");
    };
    let [m, n, k] = sizes_of(sizes)?;
    Ok(Problem {
        m,
        n,
        k,
        layout: layout_of(layout)?,
        dtype: dtype_of(dtype)?,
        out: dtype_of(out)?,
        swiglu,
    })
}

/// The product that a person names: `NT:64x37888x3584`.
///
/// # Errors
/// With what is not as it should be.
pub fn named(text: &str, dtype: DType) -> Result<Problem> {
    let (layout, sizes) = text.split_once(':').with_context(|| {
        format!("`{text}` is no product, expected a layout and sizes such as NT:64x37888x3584")
    })?;
    let (layout, [m, n, k]) = (layout_of(layout)?, sizes_of(sizes)?);
    Ok(Problem { m, n, k, layout, dtype, out: out_of(layout, dtype), swiglu: false })
}

fn layout_of(text: &str) -> Result<Layout> {
    match text {
        "NN" => Ok(Layout::NN),
        "NT" => Ok(Layout::NT),
        "TN" => Ok(Layout::TN),
        _ => bail!("`{text}` is no layout, expected NN, NT or TN"),
    }
}

fn sizes_of(text: &str) -> Result<[usize; 3]> {
    let sizes: Option<Vec<usize>> = text.split('x').map(|size| size.parse().ok()).collect();
    match sizes.as_deref() {
        Some(&[m, n, k]) if m > 0 && n > 0 && k > 0 => {
            [[m, n], [m, k], [n, k]].iter().try_for_each(|dims| elements(dims).map(|_| ()))?;
            Ok([m, n, k])
        }
        _ => bail!(
            "`{text}` is no size of a product, expected rows, columns and terms such as 64x37888x3584"
        ),
    }
}

/// Gradients of weights are added up in float32.
fn out_of(layout: Layout, dtype: DType) -> DType {
    if layout == Layout::TN { DType::F32 } else { dtype }
}

/// The products of a model's linear layers: forward and both gradients of so many tokens, and forward of each number of sequences that decode.
pub(super) fn of_model(
    config: &ModelConfig,
    dtype: DType,
    tokens: usize,
    decode: &[usize],
) -> Vec<Problem> {
    let hidden = config.hidden_size;
    let qkv = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim;
    let (attended, inner) = (config.num_heads * config.head_dim, config.intermediate_size);
    // Rows of each weight, and its columns.
    let layers = [(qkv, hidden), (hidden, attended), (2 * inner, hidden), (hidden, inner)];
    let mut problems = Vec::new();
    let mut add = |layout, [m, n, k]: [usize; 3], swiglu| {
        let problem = Problem { m, n, k, layout, dtype, out: out_of(layout, dtype), swiglu };
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    };
    for rows in [tokens].iter().chain(decode) {
        for (n, k) in layers {
            add(Layout::NT, [*rows, n, k], false);
        }
        add(Layout::NT, [*rows, 2 * inner, hidden], true);
    }
    for (n, k) in layers {
        add(Layout::NN, [tokens, k, n], false);
        add(Layout::TN, [n, k, tokens], false);
    }
    problems
}

tuned!("matmul");

/// The buffers of a product, in copies that exceed the last cache three times.
struct Buffers {
    problem: Problem,
    sets: Vec<[Tensor; 4]>,
    next: usize,
    /// What the launcher's own choice computes.
    expected: Vec<f32>,
}

impl Buffers {
    fn new(device: Device, problem: Problem) -> Result<Buffers> {
        let Problem { m, n, k, layout, dtype, out, swiglu } = problem;
        let a = if layout == Layout::TN { [k, m] } else { [m, k] };
        let b = if layout == Layout::NT { [n, k] } else { [k, n] };
        let columns = if swiglu { n / 2 } else { n };
        let bytes = (m * k + n * k) * dtype.size() + m * columns * out.size();
        let count = copies(device, bytes)?;
        let (a, b) = (uniform(device, dtype, &a, 1)?, uniform(device, dtype, &b, 2)?);
        let copy = |of: &Tensor| -> Result<Tensor> {
            let mut to = Tensor::zeros(device, dtype, of.dims())?;
            to.view_mut().copy_from(of.view())?;
            Ok(to)
        };
        let set = |_| -> Result<[Tensor; 4]> {
            let room = if swiglu { [m, n] } else { [1, 1] };
            let zeros = |dtype, dims: &[usize]| Tensor::zeros(device, dtype, dims);
            Ok([zeros(out, &[m, columns])?, copy(&a)?, copy(&b)?, zeros(dtype, &room)?])
        };
        let sets = (0..count).map(set).collect::<Result<Vec<_>>>()?;
        let mut buffers = Buffers { problem, sets, next: 0, expected: Vec::new() };
        buffers.expected = buffers.result()?;
        Ok(buffers)
    }

    /// What a way computes from nothing, at sampled rows.
    fn result(&mut self) -> Result<Vec<f32>> {
        self.next = 0;
        let m = self.problem.m;
        let out = &mut self.sets[0][0];
        fill(out, if self.problem.layout == Layout::TN { 0.0 } else { f32::NAN })?;
        self.run()?;
        let out = &self.sets[0][0];
        let rows = [0, m / 2, m - 1];
        Ok(rows.iter().flat_map(|&row| out.view().rows(row..row + 1).to_f32_vec()).collect())
    }
}

impl Work for Buffers {
    fn run(&mut self) -> Result<()> {
        let Problem { layout, swiglu, .. } = self.problem;
        let count = self.sets.len();
        let [out, a, b, room] = &mut self.sets[self.next % count];
        self.next += 1;
        let (out, a, b) = (out.view_mut(), a.view(), b.view());
        match (layout, swiglu) {
            (_, true) => matmul::forward_swiglu(out, room.view_mut(), false, a, b)?,
            (Layout::TN, _) => matmul::accumulate(out, a, b, layout)?,
            _ => matmul::forward(out, a, b, layout, Epilogue::default())?,
        }
        Ok(())
    }

    fn check(&mut self) -> Result<Result<(), String>> {
        let Problem { k, out, swiglu, .. } = self.problem;
        // Two ways to sum k products of numbers up to 1, on tensor cores at most 36 roundoffs for 16 of them each, and the rounding of both.
        let terms = k as f64;
        let sum = 2.0 * (36.0 * (terms / 16.0).ceil() + 2.0) * roundoff(DType::F32) * terms;
        let stored = 2.0 * roundoff(out);
        let allowed = |x: f32| match swiglu {
            // The slope of either factor, which are below k.
            true => {
                2.2 * terms * sum
                    + stored * (f64::from(x.abs()) + 2.2 * terms * sum)
                    + 2.2 * terms * terms * stored
            }
            false => sum + stored * (f64::from(x.abs()) + sum),
        };
        let found = self.result()?;
        let agrees = |(x, y): (&f32, &f32)| f64::from((x - y).abs()) <= allowed(*y);
        Ok(match found.iter().zip(&self.expected).find(|pair| !agrees(*pair)) {
            Some((x, y)) => Err(format!("{x} where the launcher's own choice gives {y}")),
            None => Ok(()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBLEM: Problem = Problem {
        m: 64,
        n: 37888,
        k: 3584,
        layout: Layout::NT,
        dtype: DType::BF16,
        out: DType::BF16,
        swiglu: true,
    };

    #[test]
    fn products_are_read_as_they_are_written() {
        assert_eq!(text(&PROBLEM), "NT 64x37888x3584 bfloat16 to bfloat16, swiglu");
        assert_eq!(parse(&text(&PROBLEM)).unwrap(), PROBLEM);
        let gradient = named("TN:10x20x30", DType::BF16).unwrap();
        assert_eq!(text(&gradient), "TN 10x20x30 bfloat16 to float32");
        assert_eq!(parse(&text(&gradient)).unwrap(), gradient);
        for wrong in [
            "NT 1x2 bfloat16 to bfloat16",
            "XX 1x2x3 float32 to float32",
            "NT 1x2x3",
            "NT 1x2x0 float32 to float32",
            "NT 1x2x3 u32 to float32",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(named("64x64x64", DType::F32).unwrap_err().to_string().contains("such as NT:64"));
    }

    #[test]
    fn classes_are_of_powers_of_two() {
        assert_eq!(Problem { m: 65, ..PROBLEM }.class().m, 128);
        assert_eq!(PROBLEM.class(), PROBLEM);
        let gradient = Problem { layout: Layout::TN, k: 4000, m: 37, ..PROBLEM };
        assert_eq!((gradient.class().k, gradient.class().m), (4096, 37));
    }
}
