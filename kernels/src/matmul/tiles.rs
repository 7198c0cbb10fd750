//! The portable tiles: their sizes, and the instances of `matmul.cu` that compute them.

use prime_runtime::DType;

use super::Settings;

/// A tile size, compiled for the three layouts.
#[derive(Debug)]
pub(super) struct Tile {
    /// Rows and columns of C that a block computes.
    pub(super) m: usize,
    pub(super) n: usize,
    /// Terms that a slot of shared memory holds, and the number of slots.
    pub(super) k: usize,
    pub(super) stages: usize,
    pub(super) warps: u32,
    /// The instances for `NN`, `NT` and `TN`.
    pub(super) kernels: [&'static str; 3],
}

impl Tile {
    /// Blocks for the whole of C.
    pub(super) fn tiles(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.m) * n.div_ceil(self.n)
    }
}

/// `tile!("gemm<bf16, float, ", 128 x 64 x 32, 2 x 2, "", 4, true)`: what the instance's text begins with, the tile, the warps that share it,
/// what follows them in the text, stages, and whether operands must be aligned to vectors.
macro_rules! tile {
    ($head:literal, $m:literal x $n:literal x $k:literal, $down:literal x $across:literal, $own:literal, $stages:literal, $even:literal) => {
        Tile {
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
#[derive(Debug)]
pub(super) struct Family {
    /// For products with tiles enough for a whole chip; for smaller ones; for a few rows, as generation has them; and for operands that are
    /// not aligned to vectors.
    pub(super) tiles: [Tile; 4],
    /// The instance that adds the parts of k.
    pub(super) parts: &'static str,
    /// Instances that end in SwiGLU, of layout `NT`, in the same tiles.
    pub(super) swiglu: [Option<&'static str>; 4],
    /// Bytes of an element of A and B.
    pub(super) size: usize,
}

pub(super) const LARGE: usize = 0;
pub(super) const SMALL: usize = 1;
pub(super) const FEW_ROWS: usize = 2;
pub(super) const UNEVEN: usize = 3;

static BF16_TO_BF16: Family = Family {
    tiles: [
        tile!("gemm<bf16, bf16, ", 128 x 128 x 32, 2 x 2, "", 4, true),
        tile!("gemm<bf16, bf16, ", 64 x 64 x 64, 2 x 2, "", 3, true),
        tile!("gemm<bf16, bf16, ", 16 x 64 x 64, 1 x 4, "", 6, true),
        tile!("gemm<bf16, bf16, ", 64 x 64 x 64, 2 x 2, "", 3, false),
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
    tiles: [
        tile!("gemm<bf16, float, ", 128 x 128 x 32, 2 x 2, "", 4, true),
        tile!("gemm<bf16, float, ", 64 x 64 x 64, 2 x 2, "", 3, true),
        tile!("gemm<bf16, float, ", 16 x 64 x 64, 1 x 4, "", 6, true),
        tile!("gemm<bf16, float, ", 64 x 64 x 64, 2 x 2, "", 3, false),
    ],
    parts: "gemm_parts<bf16, float>",
    swiglu: [None; 4],
    size: 2,
};

static TF32: Family = Family {
    tiles: [
        tile!("gemm<float, float, ", 128 x 128 x 16, 2 x 2, "", 4, true),
        tile!("gemm<float, float, ", 64 x 64 x 32, 2 x 2, "", 3, true),
        tile!("gemm<float, float, ", 16 x 64 x 32, 1 x 4, "", 6, true),
        tile!("gemm<float, float, ", 64 x 64 x 32, 2 x 2, "", 3, false),
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
    tiles: [
        tile!("gemm_exact<", 128 x 128 x 16, 4 x 2, "8, 8, ", 4, true),
        tile!("gemm_exact<", 64 x 64 x 16, 4 x 2, "4, 4, ", 4, true),
        tile!("gemm_exact<", 16 x 64 x 32, 1 x 2, "4, 4, ", 5, true),
        tile!("gemm_exact<", 64 x 64 x 16, 4 x 2, "4, 4, ", 4, false),
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

/// The tiles for types and numerics.
pub(super) fn family(dtype: DType, out: DType, settings: Settings) -> &'static Family {
    match (dtype, out) {
        (DType::BF16, DType::BF16) => &BF16_TO_BF16,
        (DType::BF16, _) => &BF16_TO_F32,
        _ if settings.tf32 => &TF32,
        _ => &EXACT,
    }
}
