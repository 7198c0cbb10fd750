//! Matrix products: C = op(A) op(B), with bias, activation and residual, or added to C.
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

use prime_runtime::{Result, View, ViewMut};

pub mod check;

/// Which operands are transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// The right operand in the order in which the kernel reads it, to be used many times: a linear layer's weight during generation.
pub struct Packed {}

impl Packed {
    /// Packs B (k x n for `NN`, n x k for `NT`).
    ///
    /// # Errors
    /// When B has not two dimensions, or the layout is `TN`.
    pub fn new(_b: View<'_>, _layout: Layout) -> Result<Packed> {
        todo!()
    }

    /// Packs another B of the same shape and dtype into the same memory.
    ///
    /// # Errors
    /// When shape or dtype differ.
    pub fn repack(&mut self, _b: View<'_>) -> Result<()> {
        todo!()
    }
}

/// C = op(A) op(B), then the epilogue. C is float32 or has A's dtype.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn forward(_out: ViewMut<'_>, _a: View<'_>, _b: View<'_>, _layout: Layout, _epilogue: Epilogue<'_>) -> Result<()> {
    todo!()
}

/// [`forward`] with a packed B: the same bits.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn forward_packed(_out: ViewMut<'_>, _a: View<'_>, _b: &Packed, _epilogue: Epilogue<'_>) -> Result<()> {
    todo!()
}

/// C += op(A) op(B), C in float32.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn accumulate(_out: ViewMut<'_>, _a: View<'_>, _b: View<'_>, _layout: Layout) -> Result<()> {
    todo!()
}

/// Gradients of [`forward`] (identity activation) for layouts `NN` and `NT`: `d_a` (dtype of A) is overwritten,
/// `d_b` and `d_bias` (float32) are added to. The residual's gradient is `d_out` itself.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn backward(
    _d_a: Option<ViewMut<'_>>,
    _d_b: Option<ViewMut<'_>>,
    _d_bias: Option<ViewMut<'_>>,
    _d_out: View<'_>,
    _a: View<'_>,
    _b: View<'_>,
    _layout: Layout,
) -> Result<()> {
    todo!()
}
