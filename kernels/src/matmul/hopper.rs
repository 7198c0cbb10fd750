//! The launcher of products on Hopper: bfloat16 by wgmma, all operands through the tensor memory accelerator, by blocks that stay and take one tile
//! after another. It takes any m, n and k (none of them 0) of operands, C and residual whose rows begin at multiples of 16 bytes; others have the
//! portable tiles. What decides between the variants is arithmetic with the chip's rates, until a measurement prefers one ([`super::tuning`]).

use prime_runtime::{DType, Device, Result, View, ViewMut};

use super::cpu;
use super::cuda::{CODE, LEAST_TERMS, MOST_PARTS, MOST_SUMS};
use super::tuning::Problem;
use super::{Activation, Layout, Settings};
use crate::device::{
    self, DeviceStruct, Launch, Pointer, StructLayout, Swizzle, TensorMap, Tier, Tiling,
    device_struct,
};

device_struct! {
    struct GemmHopper {
        a: TensorMap,
        b: TensorMap,
        out: TensorMap,
        bias: Pointer,
        residual: Pointer,
        residual_stride: u64,
        m: u32,
        n: u32,
        k: u32,
        k_of_part: u32,
        parts: u32,
        activation: u32,
        accumulate: u32,
        stream: u32,
    }

    struct GemmSwigluHopper {
        a: TensorMap,
        b: TensorMap,
        out: TensorMap,
        gate_up: TensorMap,
        m: u32,
        n: u32,
        k: u32,
        keep: u32,
    }
}

pub(super) const LAYOUTS: [StructLayout; 2] = [GemmHopper::LAYOUT, GemmSwigluHopper::LAYOUT];

/// Terms of a stage, and rows of a piece of an operand: see `hopper_gemm.cuh`.
pub(super) const TERMS: usize = 64;
const PIECE: u32 = 64;

/// Bytes of a stage's piece, and of the slots that results leave through.
const PIECE_BYTES: usize = 8192;
const SLOT_BYTES: usize = 4 * 8192;

/// Threads of a block.
pub(crate) const THREADS: u32 = 384;

/// Bytes of shared memory of a block with tiles of m x n: stages, slots, and two barriers a stage.
pub(crate) fn shared_bytes(m: usize, n: usize, stages: usize) -> usize {
    stages * ((m + n) / 64 * PIECE_BYTES + 16) + SLOT_BYTES
}

/// The operand that the two blocks of a cluster share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    None,
    A,
    B,
}

/// A tile, how two warpgroups share it, and the instances that compute it.
#[derive(Debug)]
pub(super) struct Variant {
    pub(super) name: &'static str,
    m: usize,
    n: usize,
    stages: usize,
    /// Whether the warpgroups take tiles by turns.
    turns: bool,
    sharing: Sharing,
    /// For C of bfloat16 and of float32, in the layouts `NN`, `NT` and `TN`.
    kernels: [[&'static str; 3]; 2],
    pub(super) swiglu: Option<&'static str>,
}

macro_rules! variant {
    ($name:literal, $m:literal x $n:literal, $stages:literal, $turns:literal, $sharing:ident, $text:literal, $swiglu:expr) => {
        Variant {
            name: $name,
            m: $m,
            n: $n,
            stages: $stages,
            turns: $turns,
            sharing: Sharing::$sharing,
            kernels: [
                [
                    concat!("gemm_hopper<bf16, NN, ", $text, ">"),
                    concat!("gemm_hopper<bf16, NT, ", $text, ">"),
                    concat!("gemm_hopper<bf16, TN, ", $text, ">"),
                ],
                [
                    concat!("gemm_hopper<float, NN, ", $text, ">"),
                    concat!("gemm_hopper<float, NT, ", $text, ">"),
                    concat!("gemm_hopper<float, TN, ", $text, ">"),
                ],
            ],
            swiglu: if $swiglu { Some(concat!("gemm_swiglu_hopper<", $text, ">")) } else { None },
        }
    };
}

/// `hopper-` m x n, `pair-` where a cluster shares an operand, `turns` where warpgroups take turns.
pub(super) static VARIANTS: [Variant; 5] = [
    variant!("hopper-pair-128x256", 128 x 256, 4, false, B, "128, 256, 4, false, SHARE_B", true),
    variant!("hopper-pair-256x128", 256 x 128, 4, false, A, "256, 128, 4, false, SHARE_A", false),
    variant!("hopper-pair-turns-128x128", 128 x 128, 6, true, B, "128, 128, 6, true, SHARE_B", true),
    variant!("hopper-turns-128x128", 128 x 128, 6, true, None, "128, 128, 6, true, SHARE_NONE", true),
    variant!("hopper-turns-64x256", 64 x 256, 4, true, None, "64, 256, 4, true, SHARE_NONE", true),
];

impl Variant {
    /// Rows and columns of tiles of a cluster.
    fn cluster(&self) -> [usize; 2] {
        match self.sharing {
            Sharing::None => [1, 1],
            Sharing::A => [1, 2],
            Sharing::B => [2, 1],
        }
    }

    /// Blocks for m x n sums, whole clusters.
    fn blocks(&self, m: usize, n: usize) -> usize {
        let [down, across] = self.cluster();
        m.div_ceil(self.m * down) * n.div_ceil(self.n * across) * down * across
    }

    /// About how many clocks a product takes on so many multiprocessors.
    fn clocks(&self, problem: Problem, multiprocessors: usize, parts: usize) -> f64 {
        let Problem { m, n, k, .. } = problem;
        let [down, across] = self.cluster();
        let cluster = down * across;
        let workers = (multiprocessors / cluster * cluster).max(cluster);
        let waves = (self.blocks(m, n) * parts).div_ceil(workers) as f64;
        let steps = k.div_ceil(TERMS).div_ceil(parts) as f64;
        // Tensor cores do 2048 products a clock, of rows behind C's end too; the second cache gives a block about 46 bytes a clock of what exists.
        let products = (self.m * self.n * TERMS) as f64 / 2048.0;
        let rows = self.m.min(m) as f64 / across as f64 + self.n.min(n) as f64 / down as f64;
        let bytes = 2.0 * TERMS as f64 * rows;
        let step = products.max(bytes / 46.0);
        let (size, moved) = if parts == 1 { (problem.out.size(), 1) } else { (4, 2 * parts) };
        // Sums leave at the share of memory's rate that a multiprocessor has, and hide behind the other warpgroup's products where they take turns.
        let leaving = (self.m * self.n * size) as f64 / 16.0;
        let hidden = if self.turns { waves } else { 1.0 };
        let busy = waves * (steps * step + leaving) - (hidden - 1.0) * leaving.min(steps * step);
        // Memory gives about 2400 bytes a clock to the whole chip, the second cache half as many again; a further kernel costs about 4000 clocks.
        let memory = (2 * k * (m + n) + m * n * problem.out.size()) as f64 / 2400.0;
        let joining = if parts == 1 { 0.0 } else { 4000.0 + (4 * m * n * moved) as f64 / 3600.0 };
        busy.max(memory) + joining + 2000.0
    }
}

/// Whether a variant computes a product.
pub(super) fn possible(variant: usize, problem: Problem) -> bool {
    !problem.swiglu || VARIANTS[variant].swiglu.is_some()
}

/// The variant that should be fastest, and the number of parts.
pub(super) fn choose(problem: Problem, multiprocessors: usize) -> Option<(usize, usize)> {
    let sums = problem.m * problem.n.next_multiple_of(4);
    let most = (problem.k / LEAST_TERMS).min(MOST_SUMS / sums.max(1)).clamp(1, MOST_PARTS);
    let most = if problem.swiglu { 1 } else { most };
    let variants = (0..VARIANTS.len()).filter(|&index| possible(index, problem));
    let candidates = variants.flat_map(|index| (1..=most).map(move |parts| (index, parts)));
    let clocks =
        |&(index, parts): &(usize, usize)| VARIANTS[index].clocks(problem, multiprocessors, parts);
    candidates.min_by(|a, b| clocks(a).total_cmp(&clocks(b)))
}

/// Whether products of this kind are computed here, alignment aside.
pub(super) fn takes(problem: Problem, settings: Settings) -> bool {
    let Problem { m, n, k, dtype, .. } = problem;
    dtype == DType::BF16 && !settings.invariant && m > 0 && n > 0 && k > 0
}

/// What the chip is, where a product may be computed here. `aligned` are operands, C and residual.
///
/// # Errors
/// When the device cannot be used.
pub(super) fn tier(
    device: Device,
    problem: Problem,
    settings: Settings,
    aligned: &[Option<View<'_>>],
) -> Result<Option<Tier>> {
    if !takes(problem, settings) || !aligned.iter().flatten().all(|&view| device::aligned(&[view]))
    {
        return Ok(None);
    }
    let tier = device::tier(device)?;
    Ok(tier.hopper().then_some(tier))
}

/// Bytes from a row to the next; of a single row any that the accelerator takes.
fn row_bytes(view: View<'_>) -> u64 {
    let size = view.dtype().size();
    let columns = if view.dim(0) > 1 { view.row_stride() } else { view.dim(1) };
    (columns * size).next_multiple_of(16) as u64
}

/// An operand in pieces.
pub(crate) fn operand(device: Device, start: Pointer, view: View<'_>) -> Result<TensorMap> {
    let tiling = Tiling {
        dtype: DType::BF16,
        start,
        dims: &[view.dim(1) as u64, view.dim(0) as u64],
        strides: &[row_bytes(view)],
        tile: &[TERMS as u32, PIECE],
        swizzle: Swizzle::Bytes128,
    };
    TensorMap::new(device, &tiling)
}

/// Where a result's rows lie.
pub(crate) struct Rows {
    dtype: DType,
    rows: usize,
    columns: usize,
    bytes: u64,
}

impl Rows {
    pub(crate) fn of(view: View<'_>) -> Rows {
        let [rows, columns] = [view.dim(0), view.dim(1)];
        Rows { dtype: view.dtype(), rows, columns, bytes: row_bytes(view) }
    }

    /// Slots of 64 rows of 128 bytes: `parts` matrices of as many rows, one below the other.
    pub(crate) fn map(&self, device: Device, start: Pointer, parts: usize) -> Result<TensorMap> {
        let rows = self.rows / parts;
        let tiling = Tiling {
            dtype: self.dtype,
            start,
            dims: &[self.columns as u64, rows as u64, parts as u64],
            strides: &[self.bytes, self.bytes * rows as u64],
            tile: &[128 / self.dtype.size() as u32, 64, 1],
            swizzle: Swizzle::Bytes128,
        };
        TensorMap::new(device, &tiling)
    }

    /// The same of both factors of SwiGLU, half of the columns each, as an axis of their own.
    fn halves(&self, device: Device, start: Pointer) -> Result<TensorMap> {
        let half = self.columns as u64 / 2;
        let tiling = Tiling {
            dtype: self.dtype,
            start,
            dims: &[half, 2, self.rows as u64],
            strides: &[half * self.dtype.size() as u64, self.bytes],
            tile: &[128 / self.dtype.size() as u32, 1, 64],
            swizzle: Swizzle::Bytes128,
        };
        TensorMap::new(device, &tiling)
    }
}

/// A product by one of the variants.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub(super) variant: usize,
    pub(super) multiprocessors: usize,
}

impl Product {
    fn variant(&self) -> &'static Variant {
        &VARIANTS[self.variant]
    }

    /// Starts a kernel by as many blocks as run at once, or as there are tiles.
    fn start<S: DeviceStruct>(
        &self,
        launch: Launch<'_>,
        blocks: usize,
        arguments: &S,
    ) -> Result<()> {
        let variant = self.variant();
        let cluster: usize = variant.cluster().iter().product();
        let launch = launch.cluster(cluster as u32).block(THREADS).shared(shared_bytes(
            variant.m,
            variant.n,
            variant.stages,
        ));
        let resident = launch.resident_blocks(self.multiprocessors)?;
        launch.grid([blocks.min(resident), 1, 1]).early().run(arguments)
    }

    /// Whether B, read by a single row of tiles, need not stay in the cache.
    fn streams(&self, m: usize) -> bool {
        m <= self.variant().m * self.variant().cluster()[0]
    }

    /// The whole of C.
    pub(super) fn run(
        &self,
        mut out: ViewMut<'_>,
        product: &cpu::Product<'_>,
        b: View<'_>,
        layout: Layout,
    ) -> Result<()> {
        let (device, epilogue) = (out.device(), product.epilogue);
        let (m, n, k) = (out.dim(0), out.dim(1), product.k);
        let low = out.dtype() == DType::BF16;
        let variant = self.variant();
        let kernel = variant.kernels[usize::from(!low)][layout as usize];
        let mut launch = Launch::new(&CODE.sources[1], kernel, device);
        let stride = match epilogue.residual {
            Some(residual) => residual.row_stride(),
            None => out.row_stride(),
        };
        let rows = Rows::of(out.as_view());
        let to = launch.write(&mut out);
        let arguments = GemmHopper {
            a: operand(device, launch.read(product.a), product.a)?,
            b: operand(device, launch.read(b), b)?,
            out: rows.map(device, to, 1)?,
            bias: launch.read_if(epilogue.bias),
            // A sum that C joins is rounded once: in bfloat16 C is read like a residual, float32 is added to in memory.
            residual: if product.accumulate && low {
                to
            } else {
                launch.read_if(epilogue.residual)
            },
            residual_stride: stride as u64,
            m: m as u32,
            n: n as u32,
            k: k as u32,
            k_of_part: k as u32,
            parts: 1,
            activation: (epilogue.activation == Activation::Silu).into(),
            accumulate: (product.accumulate && !low).into(),
            stream: self.streams(m).into(),
        };
        self.start(launch, variant.blocks(m, n), &arguments)
    }

    /// Sums of parts of k, each `k_of_part` terms: `parts` matrices one below the other.
    pub(super) fn parts(
        &self,
        mut sums: ViewMut<'_>,
        parts: usize,
        k_of_part: usize,
        [a, b]: [View<'_>; 2],
        [m, n, k]: [usize; 3],
        layout: Layout,
    ) -> Result<()> {
        let (device, variant) = (sums.device(), self.variant());
        let mut launch = Launch::new(&CODE.sources[1], variant.kernels[1][layout as usize], device);
        let rows = Rows::of(sums.as_view());
        let to = launch.write(&mut sums);
        let arguments = GemmHopper {
            a: operand(device, launch.read(a), a)?,
            b: operand(device, launch.read(b), b)?,
            out: rows.map(device, to, parts)?,
            bias: Pointer::NULL,
            residual: Pointer::NULL,
            residual_stride: 0,
            m: m as u32,
            n: n as u32,
            k: k as u32,
            k_of_part: k_of_part as u32,
            parts: parts as u32,
            activation: 0,
            accumulate: 0,
            stream: self.streams(m).into(),
        };
        self.start(launch, variant.blocks(m, n) * parts, &arguments)
    }

    /// A linear layer that ends in SwiGLU.
    pub(super) fn swiglu(
        &self,
        mut out: ViewMut<'_>,
        mut gate_up: Option<ViewMut<'_>>,
        a: View<'_>,
        b: View<'_>,
    ) -> Result<()> {
        let (m, n, k) = (out.dim(0), out.dim(1), a.dim(1));
        let (device, variant) = (out.device(), self.variant());
        let kernel = variant.swiglu.expect("planned with a variant that ends in SwiGLU");
        let keep = gate_up.is_some();
        let mut launch = Launch::new(&CODE.sources[1], kernel, device);
        let rows = Rows::of(out.as_view());
        let out_map = rows.map(device, launch.write(&mut out), 1)?;
        let gate_up_map = match gate_up.as_mut() {
            Some(gate_up) => {
                let rows = Rows::of(gate_up.as_view());
                rows.halves(device, launch.write(gate_up))?
            }
            None => out_map,
        };
        let arguments = GemmSwigluHopper {
            a: operand(device, launch.read(a), a)?,
            b: operand(device, launch.read(b), b)?,
            out: out_map,
            gate_up: gate_up_map,
            m: m as u32,
            n: n as u32,
            k: k as u32,
            keep: keep.into(),
        };
        // A tile has half as many columns of `out` as of B's rows.
        self.start(launch, variant.blocks(m, 2 * n), &arguments)
    }
}
