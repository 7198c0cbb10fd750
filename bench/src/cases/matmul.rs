//! Products of matrices in all layouts, beside libraries.

use std::rc::Rc;

use anyhow::Result;
use prime_kernels::matmul::{self, Epilogue, Layout, Packed};
use prime_kernels::testing::roundoff;
use prime_runtime::{DType, Device, Tensor};
use serde_json::json;

use super::{Case, OURS, dtypes};
use crate::baselines::cublas::Problem;
use crate::shapes::{self, Product};
use crate::work::{
    Comparison, Setup, UNIT, Work, column, compare_sum, dot, magnitude, row, samples, sum_error,
};

const PACKED: &str = "prime, packed";
const GEMM: &str = "gemm";
const LIGHT: &str = "cuBLASLt";
const FULL: &str = "cuBLAS GemmEx";
#[cfg(feature = "cublas-sys")]
const LINKED: &str = "cuBLAS SGEMM, linked";

/// Who multiplies, besides our own kernel.
#[derive(Clone, Copy, Debug, Default)]
struct Who {
    /// Ours of a packed B. Generation packs its weights once; products of many rows pack them on their way.
    packed: bool,
    gemm: bool,
    light: bool,
    full: bool,
    #[cfg(feature = "cublas-sys")]
    linked: bool,
}

impl Who {
    fn of(setup: &Setup, layout: Layout, dtype: DType) -> Who {
        let is_host = setup.device == Device::Cpu;
        let library = setup.baselines.cublas.as_ref().ok();
        Who {
            packed: is_host && layout != Layout::TN,
            gemm: is_host && dtype == DType::F32,
            light: library.is_some(),
            full: library.is_some_and(|library| library.without_full().is_none()),
            #[cfg(feature = "cublas-sys")]
            linked: dtype == DType::F32 && setup.baselines.linked.is_ok(),
        }
    }

    fn names(self) -> Vec<String> {
        let mut names = vec![(true, OURS), (self.packed, PACKED), (self.gemm, GEMM)];
        names.extend([(self.light, LIGHT), (self.full, FULL)]);
        #[cfg(feature = "cublas-sys")]
        names.push((self.linked, LINKED));
        let taking_part = names.into_iter().filter(|(takes_part, _)| *takes_part);
        taking_part.map(|(_, name)| name.to_owned()).collect()
    }
}

/// All products, and linear layers that end in SwiGLU.
pub fn cases(setup: &Setup) -> Vec<Case> {
    let mut cases = Vec::new();
    for product in shapes::products(setup.scale) {
        for &dtype in dtypes(product.floats) {
            cases.push(case(setup, &product, dtype));
        }
    }
    for model in setup.scale.models() {
        let dims = [setup.scale.training(), model.intermediate, model.hidden];
        cases.push(swiglu(model.name, dims));
    }
    cases
}

/// C's dtype: gradients of weights are added up in float32.
fn out_dtype(layout: Layout, dtype: DType) -> DType {
    if layout == Layout::TN { DType::F32 } else { dtype }
}

fn case(setup: &Setup, product: &Product, dtype: DType) -> Case {
    let Product { layout, dims: [m, n, k], .. } = *product;
    let out = out_dtype(layout, dtype);
    let added_to = if layout == Layout::TN { 2 } else { 1 };
    let bytes = ((m * k + k * n) * dtype.size() + added_to * m * n * out.size()) as f64;
    let flops = 2.0 * m as f64 * n as f64 * k as f64;
    let name = format!("{}, {layout:?} {m}x{n}x{k}", product.name);
    let who = Who::of(setup, layout, dtype);
    let mut case = Case::new("matmul", name, dtype, [flops, bytes], move |setup| {
        make(setup, layout, [m, n, k], dtype, who)
    });
    case.contestants = who.names();
    if who.packed {
        case.footprint += (k * n * dtype.size()) as f64;
    }
    case
}

fn make(
    setup: &Setup,
    layout: Layout,
    [m, n, k]: [usize; 3],
    dtype: DType,
    who: Who,
) -> Result<Work> {
    let a_dims = if layout == Layout::TN { [k, m] } else { [m, k] };
    let b_dims = if layout == Layout::NT { [n, k] } else { [k, n] };
    let out = out_dtype(layout, dtype);
    let bytes = ((m * k + k * n) * dtype.size() + m * n * out.size()) as f64;
    let set = vec![
        setup.zeros(out, &[m, n])?,
        setup.uniform(dtype, &a_dims, 1, 1.0)?,
        setup.uniform(dtype, &b_dims, 2, 1.0)?,
    ];
    let mut sets = setup.copies(set, bytes)?;
    let pack = |set: &Vec<Tensor>| Packed::new(set[2].view(), layout);
    let packed: Vec<Packed> = match who.packed {
        true => sets.iter().map(pack).collect::<prime_runtime::Result<_>>()?,
        false => Vec::new(),
    };
    let accumulate = layout == Layout::TN;
    let problem = Problem { layout, dims: [m, n, k], dtype, out, accumulate };
    let library = setup.baselines.cublas.clone();
    let prepared = match &library {
        Ok(library) if who.light => Some(library.prepare(problem, &mut sets[0])?),
        _ => None,
    };
    let mut work = Work::new(sets, move |set| Ok(compare(&set[0], &set[1], &set[2], layout, k)))
        .blank(0, if accumulate { 0.0 } else { f32::NAN })
        .ours(OURS, move |set, _| {
            let [out, a, b] = set else { unreachable!("as made above") };
            let (out, a, b) = (out.view_mut(), a.view(), b.view());
            Ok(match accumulate {
                true => matmul::accumulate(out, a, b, layout),
                false => matmul::forward(out, a, b, layout, Epilogue::default()),
            }?)
        });
    if who.packed {
        work = work.ours(PACKED, move |set, number| {
            let [out, a, _] = set else { unreachable!("as made above") };
            let (out, b) = (out.view_mut(), &packed[number]);
            Ok(matmul::forward_packed(out, a.view(), b, Epilogue::default())?)
        });
    }
    if who.gemm {
        work = work.other(GEMM, move |set, _| {
            let [out, a, b] = set else { unreachable!("as made above") };
            crate::baselines::gemm::product(out, a.view(), b.view(), layout, accumulate);
            Ok(())
        });
    }
    let layout_name = format!("{layout:?}");
    work.about.insert("shape".to_owned(), json!({ "layout": layout_name, "m": m, "n": n, "k": k }));
    if let Some(prepared) = prepared {
        let choice = json!({
            "algorithms offered": prepared.offered,
            "algorithms that ran": prepared.ran,
            "bytes of workspace of the fastest": prepared.workspace(),
        });
        work.about.insert(LIGHT.to_owned(), choice);
        work = work.other(LIGHT, move |set, _| prepared.run(set));
    }
    if let (Ok(library), true) = (&library, who.full) {
        let library = Rc::clone(library);
        work = work.other(FULL, move |set, _| library.gemm(problem, set));
    }
    #[cfg(feature = "cublas-sys")]
    if let (Ok(linked), true) = (&setup.baselines.linked, who.linked) {
        let linked = Rc::clone(linked);
        work = work.other(LINKED, move |set, _| linked.sgemm(problem, set));
    }
    if matches!(setup.device, Device::Cuda(_)) {
        if let Err(why) = &library {
            work.absent(LIGHT, why.clone());
        } else if let Some(why) = library.as_ref().ok().and_then(|library| library.without_full()) {
            work.absent(FULL, why.to_owned());
        }
    }
    Ok(work)
}

/// Sampled elements of a product.
fn compare(out: &Tensor, a: &Tensor, b: &Tensor, layout: Layout, k: usize) -> Comparison {
    let (m, n) = (out.dims()[0], out.dims()[1]);
    let mut comparison = Comparison::default();
    let rows: Vec<usize> = samples(m, 6).collect();
    let found: Vec<Vec<f64>> = rows.iter().map(|&i| row(out, i)).collect();
    let left: Vec<Vec<f64>> =
        rows.iter().map(|&i| if layout == Layout::TN { column(a, i) } else { row(a, i) }).collect();
    debug_assert!(left.iter().all(|terms| terms.len() == k));
    for j in samples(n, 6) {
        let right = if layout == Layout::NT { row(b, j) } else { column(b, j) };
        for (found, left) in found.iter().zip(&left) {
            compare_sum(&mut comparison, found[j], out.dtype(), left, &right);
        }
    }
    comparison
}

/// A linear layer that ends in SwiGLU, its factors not kept.
fn swiglu(model: &str, [m, n, k]: [usize; 3]) -> Case {
    let dtype = DType::BF16;
    let flops = 4.0 * m as f64 * n as f64 * k as f64;
    let bytes = ((m * k + 2 * n * k + m * n) * dtype.size()) as f64;
    let name = format!("{model} training, NT {m}x2*{n}x{k}");
    let mut case = Case::new("matmul with SwiGLU", name, dtype, [flops, bytes], move |setup| {
        let set = vec![
            setup.zeros(dtype, &[m, n])?,
            setup.zeros(dtype, &[m, 2 * n])?,
            setup.uniform(dtype, &[m, k], 1, 1.0)?,
            setup.uniform(dtype, &[2 * n, k], 2, 1.0)?,
        ];
        let sets = setup.copies(set, bytes)?;
        Ok(Work::new(sets, move |set| Ok(compare_swiglu(&set[0], &set[2], &set[3])))
            .blank(0, f32::NAN)
            .ours(OURS, |set, _| {
                let [out, room, a, b] = set else { unreachable!("as made above") };
                Ok(matmul::forward_swiglu(
                    out.view_mut(),
                    room.view_mut(),
                    false,
                    a.view(),
                    b.view(),
                )?)
            }))
    });
    case.footprint += (2 * m * n * dtype.size()) as f64;
    case
}

fn compare_swiglu(out: &Tensor, a: &Tensor, b: &Tensor) -> Comparison {
    let (m, n, k) = (out.dims()[0], out.dims()[1], a.dims()[1]);
    let stored = roundoff(out.dtype());
    let mut comparison = Comparison::default();
    for i in samples(m, 6) {
        let (found, left) = (row(out, i), row(a, i));
        for j in samples(n, 6) {
            let sum = |at: usize| {
                let right = row(b, at);
                let error = sum_error(k) * magnitude(&left, &right);
                let exact = dot(&left, &right);
                (exact, error + stored * (exact.abs() + error))
            };
            let ((gate, gate_error), (up, up_error)) = (sum(j), sum(n + j));
            // Both factors may be stored; the slope of x sigmoid(x) is below 1.1.
            let silu = gate / (1.0 + (-gate).exp());
            let exact = silu * up;
            let error = 1.1 * gate_error * (up.abs() + up_error)
                + silu.abs() * (up_error + 8.0 * UNIT * up.abs());
            comparison.add(found[j], exact, 1.01 * (error + stored * (exact.abs() + error)));
        }
    }
    comparison
}
