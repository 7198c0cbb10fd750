//! Matrix products: C = op(A) op(B), with bias, activation and residual, or added to C, or ended by SwiGLU.
//!
//! | layout | A | B | C\[i, j\] |
//! |---|---|---|---|
//! | `NN` | m x k | k x n | sum over p of A\[i, p\] B\[p, j\] |
//! | `NT` | m x k | n x k | sum over p of A\[i, p\] B\[j, p\]: a linear layer, its weight as checkpoints store it |
//! | `TN` | k x m | k x n | sum over p of A\[p, i\] B\[p, j\]: a weight's gradient, k counting tokens |
//!
//! A and B share a dtype; rows may be spread out (`row_stride`). Each element of C is one chain of fused
//! multiply-adds over p in order, starting from 0 (or from C where C is added to), whatever m, n, the
//! layout, the packing and the number of threads: a row of C does not depend on the other rows.
//!
//! bfloat16 on a machine with the dot-product instruction (`avx512bf16`): the chain takes two p a step, a last odd p
//! paired with zero; with tile registers (`amx`) 32, a last step filled up with zeros. Those instructions read and write subnormal
//! numbers as zero. Where C is added to, a chain continues as one would that had not ended if its p so far were whole steps. Elsewhere bfloat16
//! is widened and summed as float32 is.
//!
//! On other devices bfloat16 is multiplied by tensor cores (a few rows with a weight by plain arithmetic, at the speed of memory; on Hopper by
//! wgmma), and float32 by one chain of fused multiply-adds in order, the bits of the host's chains. Where C has too few tiles for a whole chip, k is cut into parts, whose sums are added in order; C, where it is added to,
//! joins the finished sum. [`crate::numerics::Numerics`] says how to have float32 multiplied by tensor cores, or rows that do not depend on m.
//! Results on one machine are always the same bits.
//!
//! Work: 2 m n k operations. Bytes: those of A, B and C once each; B once more where it is put in order first.

use prime_runtime::{DType, Device, Error, NamedDims, Result, Tensor, View, ViewMut};

use self::cpu::{Product, Right, Word};
use crate::arguments::{self, same_dtype};
use crate::{reduce, simd, swiglu};

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod check;
mod cpu;
pub(crate) mod cuda;
mod cut;
pub(crate) mod hopper;
mod pack;
mod portable;
pub mod reference;
mod settings;
#[cfg(test)]
mod tests;
mod tiles;
pub mod tuning;

pub(crate) use self::cuda::CODE;
pub(crate) use self::settings::Settings;
use self::settings::settings;

/// Which operands are transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Neither.
    NN,
    /// B is n x k.
    NT,
    /// A is k x m.
    TN,
}

/// What happens to a sum on its way out, in this order: bias, activation, residual, rounding.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// n values, added to every row; dtype of A.
    pub bias: Option<View<'a>>,
    /// Applied to every element.
    pub activation: Activation,
    /// m x n, added; dtype of C.
    pub residual: Option<View<'a>>,
}

/// A function of one element.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// x
    #[default]
    Identity,
    /// x / (1 + e^-x)
    Silu,
}

/// The right operand in the order in which the host's kernel reads it, to be used many times: a linear layer's weight during generation.
/// Only the host packs.
pub struct Packed {
    words: Tensor,
    n: usize,
    k: usize,
    dtype: DType,
    layout: Layout,
    word: Word,
}

impl Packed {
    /// Packs B (k x n for `NN`, n x k for `NT`).
    ///
    /// # Errors
    /// When B has not two dimensions or does not lie on the host, or the layout is `TN`.
    pub fn new(b: View<'_>, layout: Layout) -> Result<Packed> {
        let operation = "matmul.pack";
        let (n, k) = right_dims(operation, b, layout)?;
        arguments::float(operation, "b", b)?;
        if b.device() != Device::Cpu {
            return Err(only_for_the_host(operation, b.device()));
        }
        let word = cpu::word(simd::level(), b.dtype());
        let words = Tensor::zeros(Device::Cpu, DType::U32, &[cpu::panels_length(n, k, word)])?;
        let mut packed = Packed { words, n, k, dtype: b.dtype(), layout, word };
        packed.repack(b)?;
        Ok(packed)
    }

    /// Packs another B of the same shape and dtype into the same memory.
    ///
    /// # Errors
    /// When shape or dtype differ.
    pub fn repack(&mut self, b: View<'_>) -> Result<()> {
        let operation = "matmul.repack";
        let (n, k) = right_dims(operation, b, self.layout)?;
        if (n, k) != (self.n, self.k) {
            return NamedDims::new(operation).fail(format!(
                "`b` is {:?} in layout {:?}, but was packed with n = {} and k = {}",
                b.dims(),
                self.layout,
                self.n,
                self.k
            ));
        }
        same_dtype(operation, "b", b, self.dtype)?;
        let transposed = self.layout == Layout::NT;
        pack::panels(simd::level(), self.words.as_mut_slice(), b, transposed, self.word);
        Ok(())
    }

    /// Columns of C.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Terms of a sum.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The dtype of the operand that was packed.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.words.dims()[0] * 4
    }
}

/// C = op(A) op(B), then the epilogue. C is float32 or has A's dtype.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn forward(
    out: ViewMut<'_>,
    a: View<'_>,
    b: View<'_>,
    layout: Layout,
    epilogue: Epilogue<'_>,
) -> Result<()> {
    let k = check("matmul.forward", &out, a, b, layout, &epilogue)?;
    let transposed_a = layout == Layout::TN;
    let right = Right::Plain { b, transposed: layout == Layout::NT };
    dispatch(out, Product { k, a, transposed_a, right, epilogue, accumulate: false })
}

/// [`forward`] with a packed B: the same bits.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn forward_packed(
    out: ViewMut<'_>,
    a: View<'_>,
    b: &Packed,
    epilogue: Epilogue<'_>,
) -> Result<()> {
    let operation = "matmul.forward_packed";
    let mut dims = NamedDims::new(operation);
    dims.bind("a", a.dims(), ["m", "k"])?;
    dims.bind("b", &[b.n, b.k], ["n", "k"])?;
    same_dtype(operation, "a", a, b.dtype)?;
    check_rest(operation, &mut dims, &out, a, &epilogue)?;
    let right = Right::Packed { words: b.words.as_slice(), word: b.word };
    dispatch(out, Product { k: b.k, a, transposed_a: false, right, epilogue, accumulate: false })
}

/// C += op(A) op(B). A float32 C begins the chains on the host; a C in A's own bfloat16 joins the finished sum, which is rounded once.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn accumulate(out: ViewMut<'_>, a: View<'_>, b: View<'_>, layout: Layout) -> Result<()> {
    let operation = "matmul.accumulate";
    let epilogue = Epilogue::default();
    let k = check(operation, &out, a, b, layout, &epilogue)?;
    let transposed_a = layout == Layout::TN;
    let right = Right::Plain { b, transposed: layout == Layout::NT };
    dispatch(out, Product { k, a, transposed_a, right, epilogue, accumulate: true })
}

/// A linear layer that ends in SwiGLU: out = silu(gate) * up, where \[gate | up\] = A B^T, B 2n x k (the gate's n rows first). The bits of
/// [`forward`] in layout `NT` into `gate_up`, m x 2n, and [`crate::swiglu::forward`] of that.
///
/// Devices fuse the two, which saves reading `gate_up`, and writing it unless it is to be kept, for the backward pass; where k is cut into parts, or no
/// instance in the product's tiles ends in SwiGLU, they take the two steps, as the host does. What `gate_up` holds afterwards is unspecified
/// unless `keep` is given.
///
/// All have one dtype.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn forward_swiglu(
    out: ViewMut<'_>,
    mut gate_up: ViewMut<'_>,
    keep: bool,
    a: View<'_>,
    b: View<'_>,
) -> Result<()> {
    let operation = "matmul.forward_swiglu";
    let mut dims = NamedDims::new(operation);
    dims.bind("out", out.dims(), ["m", "n"])?;
    dims.bind("a", a.dims(), ["m", "k"])?;
    dims.bind("b", b.dims(), ["2 * n", "k"])?;
    let n = out.dim(1);
    if b.dim(0) != 2 * n {
        let (b, out) = (b.dims(), out.dims());
        return dims.fail(format!("`b` is {b:?}, but with `out` {out:?} it has {} rows", 2 * n));
    }
    dims.bind("gate_up", gate_up.dims(), ["m", "2 * n"])?;
    arguments::float(operation, "a", a)?;
    same_dtype(operation, "b", b, a.dtype())?;
    same_dtype(operation, "out", out.as_view(), a.dtype())?;
    same_dtype(operation, "gate_up", gate_up.as_view(), a.dtype())?;
    if out.device() != Device::Cpu {
        let views = [out.as_view(), gate_up.as_view()];
        let plan = cuda::plan_swiglu(views, keep, [a, b], settings())?;
        if plan.ends_in_swiglu() {
            return cuda::swiglu(out, keep.then_some(gate_up), a, b, plan);
        }
    }
    forward(gate_up.reborrow(), a, b, Layout::NT, Epilogue::default())?;
    swiglu::forward(out, gate_up.as_view())
}

/// Gradients of [`forward`] (identity activation) for layouts `NN` and `NT`: `d_a` (dtype of A, or float32) is overwritten,
/// `d_b` and `d_bias` (float32) are added to. The residual's gradient is `d_out` itself.
///
/// d_a = d_out op(B)^T; d_b += op(A)^T d_out, in B's own layout; d_bias += the sum of d_out's rows. `d_out` has A's dtype.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn backward(
    d_a: Option<ViewMut<'_>>,
    d_b: Option<ViewMut<'_>>,
    d_bias: Option<ViewMut<'_>>,
    d_out: View<'_>,
    a: View<'_>,
    b: View<'_>,
    layout: Layout,
) -> Result<()> {
    let operation = "matmul.backward";
    let mut dims = NamedDims::new(operation);
    let right = match layout {
        Layout::NN => ["k", "n"],
        Layout::NT => ["n", "k"],
        Layout::TN => {
            return dims
                .fail("layout TN is a gradient itself and has none here; give NN or NT".into());
        }
    };
    dims.bind("a", a.dims(), ["m", "k"])?;
    dims.bind("b", b.dims(), right)?;
    dims.bind("d_out", d_out.dims(), ["m", "n"])?;
    arguments::float(operation, "a", a)?;
    same_dtype(operation, "b", b, a.dtype())?;
    same_dtype(operation, "d_out", d_out, a.dtype())?;
    if let Some(d_a) = &d_a {
        dims.bind("d_a", d_a.dims(), ["m", "k"])?;
        if d_a.dtype() != DType::F32 {
            same_dtype(operation, "d_a", d_a.as_view(), a.dtype())?;
        }
    }
    if let Some(d_b) = &d_b {
        dims.bind("d_b", d_b.dims(), right)?;
        same_dtype(operation, "d_b", d_b.as_view(), DType::F32)?;
    }
    if let Some(d_bias) = &d_bias {
        dims.bind("d_bias", d_bias.dims(), ["n"])?;
        same_dtype(operation, "d_bias", d_bias.as_view(), DType::F32)?;
    }
    if let Some(d_a) = d_a {
        let transposed = if layout == Layout::NT { Layout::NN } else { Layout::NT };
        forward(d_a, d_out, b, transposed, Epilogue::default())?;
    }
    if let Some(d_b) = d_b {
        let (left, right) = if layout == Layout::NT { (d_out, a) } else { (a, d_out) };
        accumulate(d_b, left, right, Layout::TN)?;
    }
    if let Some(d_bias) = d_bias {
        reduce::columns(d_bias, d_out)?;
    }
    Ok(())
}

/// Hands a checked product to the device that holds C.
fn dispatch(out: ViewMut<'_>, product: Product<'_>) -> Result<()> {
    match (out.device(), &product.right) {
        (Device::Cpu, _) => cpu::run(simd::level(), out, &product),
        (device, Right::Packed { .. }) => Err(only_for_the_host("matmul.forward_packed", device)),
        (_, &Right::Plain { b, transposed }) => {
            let layout = match (product.transposed_a, transposed) {
                (true, _) => Layout::TN,
                (_, true) => Layout::NT,
                _ => Layout::NN,
            };
            let plan = cuda::plan(out.as_view(), &product, b, layout, settings())?;
            cuda::run(out, &product, b, layout, plan)
        }
    }
}

/// The error of packing for a device whose kernels read operands as they lie.
fn only_for_the_host(operation: &'static str, device: Device) -> Error {
    Error::Device(format!(
        "{operation}: operands are packed for the host only; on {device} give `forward` the weight itself, which is as fast there"
    ))
}

/// n and k of a right operand.
fn right_dims(operation: &'static str, b: View<'_>, layout: Layout) -> Result<(usize, usize)> {
    let mut dims = NamedDims::new(operation);
    match layout {
        Layout::NN => dims.bind("b", b.dims(), ["k", "n"])?,
        Layout::NT => dims.bind("b", b.dims(), ["n", "k"])?,
        Layout::TN => return dims.fail("layout TN cannot be packed; give NN or NT".into()),
    }
    Ok((dims.size("n"), dims.size("k")))
}

/// Checks the operands of a product and returns k.
fn check(
    operation: &'static str,
    out: &ViewMut<'_>,
    a: View<'_>,
    b: View<'_>,
    layout: Layout,
    epilogue: &Epilogue<'_>,
) -> Result<usize> {
    let (left, right) = match layout {
        Layout::NN => (["m", "k"], ["k", "n"]),
        Layout::NT => (["m", "k"], ["n", "k"]),
        Layout::TN => (["k", "m"], ["k", "n"]),
    };
    let mut dims = NamedDims::new(operation);
    dims.bind("a", a.dims(), left)?;
    dims.bind("b", b.dims(), right)?;
    same_dtype(operation, "b", b, a.dtype())?;
    check_rest(operation, &mut dims, out, a, epilogue)?;
    Ok(dims.size("k"))
}

/// Checks C, the epilogue and all dtypes, once A and B have named m, n and k.
fn check_rest(
    operation: &'static str,
    dims: &mut NamedDims,
    out: &ViewMut<'_>,
    a: View<'_>,
    epilogue: &Epilogue<'_>,
) -> Result<()> {
    dims.bind("out", out.dims(), ["m", "n"])?;
    arguments::float(operation, "a", a)?;
    if out.dtype() != DType::F32 {
        same_dtype(operation, "out", out.as_view(), a.dtype())?;
    }
    if let Some(bias) = epilogue.bias {
        dims.bind("bias", bias.dims(), ["n"])?;
        same_dtype(operation, "bias", bias, a.dtype())?;
        if !bias.is_contiguous() {
            return dims.fail("the values of `bias` are spread out, expected no gaps".into());
        }
    }
    if let Some(residual) = epilogue.residual {
        dims.bind("residual", residual.dims(), ["m", "n"])?;
        same_dtype(operation, "residual", residual, out.dtype())?;
    }
    Ok(())
}
