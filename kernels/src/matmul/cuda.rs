//! Launchers: which tile for which shape, and into how many parts k is cut so that a product of few tiles keeps a whole chip busy.
//!
//! Rows may start anywhere. Where address, row distance and row length of both operands are multiples of 16 bytes, tiles are copied
//! asynchronously in vectors; elsewhere element by element. C, bias and residual are read and written four elements at a time where
//! they are aligned to that, and n is a multiple of 4.

use prime_runtime::{DType, Result, View, ViewMut};

use super::cpu::Product;
use super::{Activation, Layout, Settings};
use crate::device::{Code, DeviceStruct, Launch, Pointer, device_struct, source, vectorised};
use crate::scratch;

pub(crate) const CODE: Code =
    Code { sources: &[source!("matmul", "matmul.cu")], structs: &[Gemm::LAYOUT] };

device_struct! {
    struct Gemm {
        out: Pointer,
        a: Pointer,
        b: Pointer,
        bias: Pointer,
        residual: Pointer,
        partial: Pointer,
        out_stride: u64,
        a_stride: u64,
        b_stride: u64,
        residual_stride: u64,
        m: u32,
        n: u32,
        k: u32,
        k_of_part: u32,
        parts: u32,
        activation: u32,
        accumulate: u32,
        vectors: u32,
    }
}

/// A tile size, compiled for the three layouts.
#[derive(Debug)]
pub(super) struct Variant {
    /// Rows and columns of C that a block computes.
    m: usize,
    n: usize,
    /// Terms that a slot of shared memory holds, and the number of slots.
    k: usize,
    stages: usize,
    warps: u32,
    /// The instances for `NN`, `NT` and `TN`.
    kernels: [&'static str; 3],
}

impl Variant {
    /// Blocks for the whole of C.
    fn tiles(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.m) * n.div_ceil(self.n)
    }
}

/// `variant!("gemm<bf16, float, ", 128 x 64 x 32, 2 x 2, "", 4, true)`: what the instance's text begins with, the tile, the warps that share it,
/// what follows them in the text, stages, and whether operands must be aligned to vectors.
macro_rules! variant {
    ($head:literal, $m:literal x $n:literal x $k:literal, $down:literal x $across:literal, $own:literal, $stages:literal, $even:literal) => {
        Variant {
            m: $m,
            n: $n,
            k: $k,
            stages: $stages,
            warps: $down * $across,
            kernels: [
                instance!($head "NN" $m $n $k $down $across $own $stages $even),
                instance!($head "NT" $m $n $k $down $across $own $stages $even),
                instance!($head "TN" $m $n $k $down $across $own $stages $even),
            ],
        }
    };
}

macro_rules! instance {
    ($head:literal $layout:literal $m:literal $n:literal $k:literal $down:literal $across:literal $own:literal $stages:literal $even:literal) => {
        concat!(
            $head, $layout, ", ", $m, ", ", $n, ", ", $k, ", ", $down, ", ", $across, ", ", $own,
            $stages, ", ", $even, ">"
        )
    };
}

/// The tile sizes for one way to compute.
pub(super) struct Family {
    /// For products with tiles enough for a whole chip; for smaller ones; for a few rows, as generation has them; and for operands that are
    /// not aligned to vectors.
    variants: [Variant; 4],
    /// The instance that adds the parts of k.
    parts: &'static str,
    /// Bytes of an element of A and B.
    size: usize,
}

const LARGE: usize = 0;
const SMALL: usize = 1;
const FEW_ROWS: usize = 2;
const UNEVEN: usize = 3;

static BF16_TO_BF16: Family = Family {
    variants: [
        variant!("gemm<bf16, bf16, ", 128 x 128 x 32, 2 x 2, "", 4, true),
        variant!("gemm<bf16, bf16, ", 64 x 64 x 64, 2 x 2, "", 3, true),
        variant!("gemm<bf16, bf16, ", 16 x 64 x 64, 1 x 4, "", 6, true),
        variant!("gemm<bf16, bf16, ", 64 x 64 x 64, 2 x 2, "", 3, false),
    ],
    parts: "gemm_parts<bf16, bf16>",
    size: 2,
};

static BF16_TO_F32: Family = Family {
    variants: [
        variant!("gemm<bf16, float, ", 128 x 128 x 32, 2 x 2, "", 4, true),
        variant!("gemm<bf16, float, ", 64 x 64 x 64, 2 x 2, "", 3, true),
        variant!("gemm<bf16, float, ", 16 x 64 x 64, 1 x 4, "", 6, true),
        variant!("gemm<bf16, float, ", 64 x 64 x 64, 2 x 2, "", 3, false),
    ],
    parts: "gemm_parts<bf16, float>",
    size: 2,
};

static TF32: Family = Family {
    variants: [
        variant!("gemm<float, float, ", 128 x 128 x 16, 2 x 2, "", 4, true),
        variant!("gemm<float, float, ", 64 x 64 x 32, 2 x 2, "", 3, true),
        variant!("gemm<float, float, ", 16 x 64 x 32, 1 x 4, "", 6, true),
        variant!("gemm<float, float, ", 64 x 64 x 32, 2 x 2, "", 3, false),
    ],
    parts: "gemm_parts<float, float>",
    size: 4,
};

static EXACT: Family = Family {
    variants: [
        variant!("gemm_exact<", 128 x 128 x 16, 4 x 2, "8, 8, ", 4, true),
        variant!("gemm_exact<", 64 x 64 x 16, 4 x 2, "4, 4, ", 4, true),
        variant!("gemm_exact<", 16 x 64 x 32, 1 x 2, "4, 4, ", 5, true),
        variant!("gemm_exact<", 64 x 64 x 16, 4 x 2, "4, 4, ", 4, false),
    ],
    parts: "gemm_parts<float, float>",
    size: 4,
};

/// How one product is started.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    family: &'static Family,
    variant: &'static Variant,
    /// Parts of k, each summed by blocks of its own.
    parts: usize,
}

/// Multiprocessors of a large chip: those of an H200. More blocks than can run at once do no harm, and fewer leave some idle.
const MULTIPROCESSORS: usize = 132;

/// Fewest terms of a part of k, and most parts: a part's sums are written and read once more.
const LEAST_TERMS: usize = 256;
pub(super) const MOST_PARTS: usize = 16;

impl Plan {
    /// The plan for a product's shape. No measurement stands behind the numbers yet.
    pub(super) fn new(
        out: &ViewMut<'_>,
        product: &Product<'_>,
        b: View<'_>,
        settings: Settings,
    ) -> Plan {
        let (m, n, k) = (out.dim(0), out.dim(1), product.k);
        let family = family(product.a.dtype(), out.dtype(), settings);
        let tiles = |index: usize| family.variants[index].tiles(m, n);
        let index = if !even(product.a, b) {
            UNEVEN
        } else if m <= family.variants[FEW_ROWS].m {
            FEW_ROWS
        } else if 4 * tiles(LARGE) >= 3 * MULTIPROCESSORS {
            LARGE
        } else {
            SMALL
        };
        let parts = if settings.invariant {
            1
        } else {
            (2 * MULTIPROCESSORS / tiles(index).max(1)).min(k / LEAST_TERMS).clamp(1, MOST_PARTS)
        };
        Plan { family, variant: &family.variants[index], parts }
    }

    /// The plan of a tile size (0 to 3) and a number of parts, where the operands allow it.
    pub(super) fn of(
        index: usize,
        parts: usize,
        out: &ViewMut<'_>,
        product: &Product<'_>,
        b: View<'_>,
        settings: Settings,
    ) -> Plan {
        let family = family(product.a.dtype(), out.dtype(), settings);
        let index = if even(product.a, b) { index } else { UNEVEN };
        Plan { family, variant: &family.variants[index], parts }
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [nn, ..] = self.variant.kernels;
        write!(f, "{} parts, in the tiles of {nn}", self.parts)
    }
}

fn family(dtype: DType, out: DType, settings: Settings) -> &'static Family {
    match (dtype, out) {
        (DType::BF16, DType::BF16) => &BF16_TO_BF16,
        (DType::BF16, _) => &BF16_TO_F32,
        _ if settings.tf32 => &TF32,
        _ => &EXACT,
    }
}

/// Whether tiles of both operands can be copied in vectors of 16 bytes.
fn even(a: View<'_>, b: View<'_>) -> bool {
    [a, b].into_iter().all(|operand| vectorised(operand.dim(1), &[operand]) > 1)
}

/// Whether four elements of a row of n (a multiple of 4) may be taken at once.
fn fours(view: View<'_>) -> bool {
    let aligned = |elements: usize| elements.is_multiple_of(4);
    let rows = view.dims().len() == 1 || view.dim(0) <= 1 || aligned(view.row_stride());
    rows && view.address().is_multiple_of(4 * view.dtype().size() as u64)
}

/// Computes a checked product as planned.
pub(super) fn run(
    mut out: ViewMut<'_>,
    product: &Product<'_>,
    b: View<'_>,
    layout: Layout,
    plan: Plan,
) -> Result<()> {
    let (m, n, k) = (out.dim(0), out.dim(1), product.k);
    let Plan { family, variant, parts } = plan;
    let epilogue = product.epilogue;
    let k_of_part = k.div_ceil(parts).next_multiple_of(variant.k);
    let parts = k.div_ceil(k_of_part.max(1)).max(1);
    let optional = |view: Option<View<'_>>| view.is_none_or(fours);
    let vectors = n.is_multiple_of(4)
        && fours(out.as_view())
        && optional(epilogue.bias)
        && optional(epilogue.residual);
    let shape = Gemm {
        out: Pointer::NULL,
        a: Pointer::NULL,
        b: Pointer::NULL,
        bias: Pointer::NULL,
        residual: Pointer::NULL,
        partial: Pointer::NULL,
        out_stride: out.row_stride() as u64,
        a_stride: product.a.row_stride() as u64,
        b_stride: b.row_stride() as u64,
        residual_stride: epilogue.residual.map_or(0, |residual| residual.row_stride() as u64),
        m: m as u32,
        n: n as u32,
        k: k as u32,
        k_of_part: k_of_part as u32,
        parts: parts as u32,
        activation: (epilogue.activation == Activation::Silu).into(),
        accumulate: product.accumulate.into(),
        vectors: vectors.into(),
    };
    let (device, source) = (out.device(), &CODE.sources[0]);
    let kernel = variant.kernels[layout as usize];
    let multiply = |launch: Launch<'_>, arguments: &Gemm| {
        let shared = (variant.m + variant.n) * variant.k * family.size * variant.stages;
        let launch = launch.grid([variant.tiles(m, n), parts, 1]).block(32 * variant.warps);
        launch.shared(shared).run(arguments)
    };
    let mut launch = Launch::new(source, kernel, device);
    let (a, b) = (launch.read(product.a), launch.read(b));
    if parts == 1 {
        let arguments = Gemm {
            out: launch.write(&mut out),
            a,
            b,
            bias: launch.read_if(epilogue.bias),
            residual: launch.read_if(epilogue.residual),
            ..shape
        };
        return multiply(launch, &arguments);
    }
    let mut sums = scratch::device(device, DType::F32, parts * m, n.next_multiple_of(4))?;
    let mut sums_view = sums.view_mut();
    let arguments = Gemm { a, b, partial: launch.write(&mut sums_view), ..shape };
    multiply(launch, &arguments)?;

    let mut launch = Launch::new(source, family.parts, device);
    let arguments = Gemm {
        out: launch.write(&mut out),
        bias: launch.read_if(epilogue.bias),
        residual: launch.read_if(epilogue.residual),
        partial: launch.read(sums.view()),
        ..shape
    };
    let blocks = (m * n.div_ceil(4)).div_ceil(256);
    launch.grid([blocks, 1, 1]).block(256).run(&arguments)
}
