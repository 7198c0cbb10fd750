//! Products: linear layers forward and backward, one token a sequence, and squares.

use anyhow::Result;
use prime_kernels::matmul::{self, Epilogue, Layout};
use prime_runtime::DType;

use super::{Bench, Case, Comparison, Data, STORED, Sizes, Work, row_of, samples, sum_error};

/// In place of a model's name.
pub(super) const SQUARE: &str = "square";

/// What is multiplied.
struct Product {
    operation: &'static str,
    model: &'static str,
    layout: Layout,
    m: usize,
    n: usize,
    k: usize,
}

pub(super) fn run(bench: &Bench, sizes: &Sizes, cases: &mut Vec<Case>) -> Result<()> {
    let mut products = Vec::new();
    for model in sizes.models {
        let (hidden, both, name) = (model.hidden, 2 * model.intermediate, model.name);
        let qkv = (model.heads + 2 * model.kv_heads) * model.head_dim;
        let tokens = sizes.tokens;
        let mut add = |operation, layout, m, n, k| {
            products.push(Product { operation, model: name, layout, m, n, k });
        };
        add("matmul: q, k, v", Layout::NT, tokens, qkv, hidden);
        add("matmul: gate, up", Layout::NT, tokens, both, hidden);
        add("matmul: down", Layout::NT, tokens, hidden, model.intermediate);
        add("matmul: gradient of gate, up's input", Layout::NN, tokens, hidden, both);
        add("matmul: gradient of gate, up", Layout::TN, both, hidden, tokens);
        add("matmul: gate, up of decoding", Layout::NT, sizes.sequences, both, hidden);
        add("matmul: gate, up of one sequence", Layout::NT, 1, both, hidden);
        add("matmul: gate, up of eight sequences", Layout::NT, 8, both, hidden);
    }
    for &side in sizes.squares {
        for layout in [Layout::NN, Layout::NT, Layout::TN] {
            let operation = "matmul: square";
            products.push(Product { operation, model: SQUARE, layout, m: side, n: side, k: side });
        }
    }
    for product in products {
        cases.push(measure(bench, &product)?);
    }
    for model in sizes.models {
        cases.push(swiglu(bench, model.name, [sizes.tokens, model.intermediate, model.hidden])?);
    }
    Ok(())
}

fn measure(bench: &Bench, product: &Product) -> Result<Case> {
    let &Product { operation, model, layout, m, n, k } = product;
    let a_dims = if layout == Layout::TN { [k, m] } else { [m, k] };
    let b_dims = if layout == Layout::NT { [n, k] } else { [k, n] };
    let (a, b) = (bench.uniform(&a_dims, 1)?, bench.uniform(&b_dims, 2)?);
    let mut out = bench.zeros(DType::BF16, &[m, n])?;
    let seconds = bench.time(|| {
        let (a, b) = (a.device.view(), b.device.view());
        Ok(matmul::forward(out.view_mut(), a, b, layout, Epilogue::default())?)
    })?;
    let mut comparison = Comparison::default();
    let terms = |of: &Data, transposed: bool, index: usize| -> Vec<f64> {
        if transposed { (0..k).map(|p| of.at(p, index)).collect() } else { of.row(index) }
    };
    for i in samples(m, 6) {
        let (row, left) = (row_of(&out, i), terms(&a, layout == Layout::TN, i));
        for j in samples(n, 6) {
            let right = terms(&b, layout != Layout::NT, j);
            compare_sum(&mut comparison, row[j], &left, &right);
        }
    }
    let library = seconds.is_some().then(|| match &bench.cublas {
        Err(reason) => Err(reason.clone()),
        Ok(library) => library
            .measure(bench, layout, [m, n, k], a.device.view(), b.device.view(), out.view_mut())
            .map_err(|error| format!("{error:#}")),
    });
    Ok(Case {
        operation: operation.to_owned(),
        model,
        shape: format!("{layout:?} m {m}, n {n}, k {k}, bfloat16"),
        comparison,
        seconds,
        work: Work::Operations(2.0 * m as f64 * n as f64 * k as f64),
        library,
    })
}

fn compare_sum(comparison: &mut Comparison, actual: f32, left: &[f64], right: &[f64]) {
    let exact = super::dot(left, right);
    let error = sum_error(left.len()) * super::magnitude(left, right);
    comparison.add(actual, exact, error + STORED * (exact.abs() + error));
}

/// A linear layer that ends in SwiGLU, its factors not kept.
fn swiglu(bench: &Bench, model: &'static str, [m, n, k]: [usize; 3]) -> Result<Case> {
    let (a, b) = (bench.uniform(&[m, k], 1)?, bench.uniform(&[2 * n, k], 2)?);
    let (mut out, mut room) =
        (bench.zeros(DType::BF16, &[m, n])?, bench.zeros(DType::BF16, &[m, 2 * n])?);
    let seconds = bench.time(|| {
        let (a, b) = (a.device.view(), b.device.view());
        Ok(matmul::forward_swiglu(out.view_mut(), room.view_mut(), false, a, b)?)
    })?;
    let mut comparison = Comparison::default();
    for i in samples(m, 6) {
        let (row, left) = (row_of(&out, i), a.row(i));
        for j in samples(n, 6) {
            let factor = |at: usize| {
                let right = b.row(at);
                let error = sum_error(k) * super::magnitude(&left, &right);
                let exact = super::dot(&left, &right);
                (exact, error + STORED * (exact.abs() + error))
            };
            let ((gate, gate_error), (up, up_error)) = (factor(j), factor(n + j));
            // Both factors are stored; the slope of x sigmoid(x) is below 1.1.
            let silu = gate / (1.0 + (-gate).exp());
            let exact = silu * up;
            let error = 1.1 * gate_error * (up.abs() + up_error) + silu.abs() * up_error;
            comparison.add(row[j], exact, 1.01 * (error + STORED * (exact.abs() + error)));
        }
    }
    Ok(Case {
        operation: "matmul with SwiGLU".to_owned(),
        model,
        shape: format!("NT m {m}, n 2 x {n}, k {k}, bfloat16"),
        comparison,
        seconds,
        work: Work::Operations(4.0 * m as f64 * n as f64 * k as f64),
        library: None,
    })
}
