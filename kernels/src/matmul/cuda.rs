//! Launchers: which tile for which shape, and into how many parts k is cut so that a product of few tiles keeps a whole chip busy.
//!
//! Rows may start anywhere. Where address, row distance and row length of both operands are multiples of 16 bytes, tiles are copied
//! asynchronously in vectors; elsewhere element by element. C, bias and residual are read and written four elements at a time where
//! they are aligned to that, and n is a multiple of 4.

use prime_runtime::{DType, Result, View, ViewMut};

use super::Settings;
use super::cpu::Product;
use super::{Activation, Layout};
use crate::device::{Code, DeviceStruct, Launch, Pointer, device_struct, source, vectorised};
use crate::scratch;

pub(crate) const CODE: Code = Code {
    sources: &[source!("matmul", "matmul.cu")],
    structs: &[Gemm::LAYOUT, GemmSwiglu::LAYOUT],
};

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

    struct GemmSwiglu {
        out: Pointer,
        gate_up: Pointer,
        a: Pointer,
        b: Pointer,
        out_stride: u64,
        gate_up_stride: u64,
        a_stride: u64,
        b_stride: u64,
        m: u32,
        n: u32,
        k: u32,
        k_of_part: u32,
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
    /// Instances that end in SwiGLU, of layout `NT`, in the same tiles.
    swiglu: [Option<&'static str>; 4],
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
    swiglu: [
        Some("gemm_swiglu<bf16, 128, 128, 32, 2, 2, 4, true>"),
        Some("gemm_swiglu<bf16, 64, 64, 64, 2, 2, 3, true>"),
        Some("gemm_swiglu<bf16, 16, 64, 64, 1, 4, 6, true>"),
        Some("gemm_swiglu<bf16, 64, 64, 64, 2, 2, 3, false>"),
    ],
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
    swiglu: [None; 4],
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
    swiglu: [
        Some("gemm_swiglu<float, 128, 128, 16, 2, 2, 4, true>"),
        Some("gemm_swiglu<float, 64, 64, 32, 2, 2, 3, true>"),
        Some("gemm_swiglu<float, 16, 64, 32, 1, 4, 6, true>"),
        Some("gemm_swiglu<float, 64, 64, 32, 2, 2, 3, false>"),
    ],
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
    swiglu: [
        Some("gemm_swiglu_exact<128, 128, 16, 4, 2, 8, 8, 4, true>"),
        Some("gemm_swiglu_exact<64, 64, 16, 4, 2, 4, 4, 4, true>"),
        None,
        Some("gemm_swiglu_exact<64, 64, 16, 4, 2, 4, 4, 4, false>"),
    ],
    size: 4,
};

/// How one product is started.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    family: &'static Family,
    /// Index of a tile size of the family.
    tile: usize,
    /// Parts of k, each summed by blocks of its own.
    parts: usize,
}

/// Multiprocessors of a large chip: those of an H200. More blocks than can run at once do no harm, and fewer leave some idle.
const MULTIPROCESSORS: usize = 132;

/// Fewest terms of a part of k, and most parts: a part's sums are written and read once more.
const LEAST_TERMS: usize = 256;
pub(super) const MOST_PARTS: usize = 16;

impl Plan {
    /// The plan for a product of m x n sums of k terms. No measurement stands behind the numbers yet.
    pub(super) fn new(
        [m, n, k]: [usize; 3],
        operands: [View<'_>; 2],
        out: DType,
        settings: Settings,
    ) -> Plan {
        let family = family(operands[0].dtype(), out, settings);
        let tiles = |index: usize| family.variants[index].tiles(m, n);
        let tile = if !even(operands) {
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
            (2 * MULTIPROCESSORS / tiles(tile).max(1)).min(k / LEAST_TERMS).clamp(1, MOST_PARTS)
        };
        Plan { family, tile, parts }
    }

    /// The plan of a tile size (0 to 3) and a number of parts, where the operands allow it.
    pub(super) fn of(
        tile: usize,
        parts: usize,
        operands: [View<'_>; 2],
        out: DType,
        settings: Settings,
    ) -> Plan {
        let tile = if even(operands) { tile } else { UNEVEN };
        Plan { family: family(operands[0].dtype(), out, settings), tile, parts }
    }

    /// Whether the product can end in SwiGLU as planned.
    pub(super) fn ends_in_swiglu(&self) -> bool {
        self.parts == 1 && self.family.swiglu[self.tile].is_some()
    }

    fn variant(&self) -> &'static Variant {
        &self.family.variants[self.tile]
    }

    /// The launch of an instance in the plan's tiles.
    fn geometry<'a>(&self, launch: Launch<'a>, m: usize, n: usize, parts: usize) -> Launch<'a> {
        let variant = self.variant();
        let slot = (variant.m + variant.n) * variant.k * self.family.size;
        launch
            .grid([variant.tiles(m, n), parts, 1])
            .block(32 * variant.warps)
            .shared(slot * variant.stages)
    }
}

/// The most bytes of parts of sums: so many are made as blocks of all parts keep a chip busy, at the largest tile.
pub(crate) fn most_scratch() -> usize {
    scratch::device_bytes(DType::F32, 2 * MULTIPROCESSORS * 128 * 128)
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [nn, ..] = self.variant().kernels;
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
fn even(operands: [View<'_>; 2]) -> bool {
    operands.into_iter().all(|operand| vectorised(operand.dim(1), &[operand]) > 1)
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
    let Plan { family, parts, .. } = plan;
    let variant = plan.variant();
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
        return plan.geometry(launch, m, n, 1).run(&arguments);
    }
    let mut sums = scratch::device(device, DType::F32, parts * m, n.next_multiple_of(4))?;
    let mut sums_view = sums.view_mut();
    let arguments = Gemm { a, b, partial: launch.write(&mut sums_view), ..shape };
    plan.geometry(launch, m, n, parts).run(&arguments)?;

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

/// Computes a checked linear layer that ends in SwiGLU, as planned for its 2n columns; where no instance in the planned tiles does, in small ones.
pub(super) fn swiglu(
    mut out: ViewMut<'_>,
    mut gate_up: Option<ViewMut<'_>>,
    a: View<'_>,
    b: View<'_>,
    mut plan: Plan,
) -> Result<()> {
    let (m, n, k) = (out.dim(0), out.dim(1), a.dim(1));
    let kernel = plan.family.swiglu[plan.tile].unwrap_or_else(|| {
        plan.tile = SMALL;
        plan.family.swiglu[SMALL].expect("the dtype of C is that of A")
    });
    let vectors = n.is_multiple_of(4)
        && fours(out.as_view())
        && gate_up.as_ref().is_none_or(|view| fours(view.as_view()));
    let (out_stride, gate_up_stride) =
        (out.row_stride() as u64, gate_up.as_ref().map_or(0, |view| view.row_stride() as u64));
    let mut launch = Launch::new(&CODE.sources[0], kernel, out.device());
    let arguments = GemmSwiglu {
        out: launch.write(&mut out),
        gate_up: launch.write_if(gate_up.as_mut()),
        a: launch.read(a),
        b: launch.read(b),
        out_stride,
        gate_up_stride,
        a_stride: a.row_stride() as u64,
        b_stride: b.row_stride() as u64,
        m: m as u32,
        n: n as u32,
        k: k as u32,
        k_of_part: k as u32,
        vectors: vectors.into(),
    };
    // Each block computes half as many columns of `out` as its tile has: as many blocks as for 2n columns.
    plan.geometry(launch, m, 2 * n, 1).run(&arguments)
}
