//! Launchers: which kernel and tile for which shape, and into how many parts k is cut so that a product of few tiles keeps a whole chip busy.
//!
//! On Hopper bfloat16 goes to [`hopper`] where the tensor memory accelerator can reach all operands, and a few rows go to a kernel of their own on any chip.
//! Neither has the sums of the tiles here to the bit, so that both are left out where numerics are to be invariant.
//!
//! Rows may start anywhere. Where address, row distance and row length of both operands are multiples of 16 bytes, tiles are copied
//! asynchronously in vectors; elsewhere element by element. C, bias and residual are read and written four elements at a time where
//! they are aligned to that, and n is a multiple of 4.

use prime_runtime::{DType, Device, Result, View, ViewMut};

use super::cpu::Product;
use super::tiles::{FEW_ROWS, Family, LARGE, SMALL, Tile, UNEVEN, family};
use super::tuning::{self, Problem, Variant};
use super::{Activation, Layout, Settings, hopper};
use crate::device::{
    self, Code, DeviceStruct, Launch, Pointer, Tier, device_struct, source, vectorised,
};
use crate::scratch;

pub(crate) const CODE: Code = Code {
    sources: &[source!("matmul", "matmul.cu"), source!("matmul", "matmul_sm90.cu")],
    structs: &[Gemm::LAYOUT, GemmSwiglu::LAYOUT, hopper::LAYOUTS[0], hopper::LAYOUTS[1]],
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

/// Which kernel computes a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Tiles of one of four sizes, on any chip.
    Tiles(usize),
    /// At most [`FEW`] rows at the speed of memory, on any chip.
    Few,
    /// One of [`hopper::VARIANTS`].
    Hopper(usize),
}

/// How one product is started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    family: &'static Family,
    way: Way,
    /// Parts of k, each summed by blocks of its own.
    parts: usize,
    /// Of the chip that the product runs on, where it is Hopper's.
    multiprocessors: usize,
}

/// Multiprocessors of a large chip: those of an H200. More blocks than can run at once do no harm, and fewer leave some idle.
const MULTIPROCESSORS: usize = 132;

/// Fewest terms of a part of k, and most parts: a part's sums are written and read once more.
pub(super) const LEAST_TERMS: usize = 256;
pub(super) const MOST_PARTS: usize = 16;

/// The most sums that parts make together: as many as a chip's blocks hold at once, at the largest tile.
pub(super) const MOST_SUMS: usize = 2 * MULTIPROCESSORS * 128 * 128;

/// The most rows of `gemm_few`, and the columns of C of one of its blocks.
pub(super) const FEW: usize = 8;
const FEW_COLUMNS: usize = 4;

impl Plan {
    /// The plan for a product: the variant that was preferred for it, or else what arithmetic says. `even` is [`even`] of its operands, `tier` that of
    /// the chip where Hopper's kernels may be used.
    pub(super) fn new(
        problem: Problem,
        even: bool,
        settings: Settings,
        tier: Option<Tier>,
    ) -> Plan {
        tuning::preferred(&problem)
            .and_then(|variant| Plan::of(variant, problem, even, settings, tier))
            .unwrap_or_else(|| Plan::planned(problem, even, settings, tier))
    }

    /// The plan that arithmetic makes. No measurement stands behind the numbers.
    pub(super) fn planned(
        problem: Problem,
        even: bool,
        settings: Settings,
        tier: Option<Tier>,
    ) -> Plan {
        let family = family(problem.dtype, problem.out, settings);
        let Problem { m, n, k, .. } = problem;
        let tiles = |index: usize| family.tiles[index].tiles(m, n);
        let tile = if !even {
            UNEVEN
        } else if m <= family.tiles[FEW_ROWS].m {
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
        let plan = Plan { family, way: Way::Tiles(tile), parts, multiprocessors: 0 };
        if few(problem, even, settings) {
            return Plan { way: Way::Few, parts: 1, ..plan };
        }
        match tier.map(|tier| (tier, hopper::choose(problem, tier.multiprocessors))) {
            Some((tier, Some((index, parts)))) => Plan {
                way: Way::Hopper(index),
                parts,
                multiprocessors: tier.multiprocessors,
                ..plan
            },
            _ => plan,
        }
    }

    /// The plan of a variant, where the product allows it.
    pub(super) fn of(
        variant: Variant,
        problem: Problem,
        even: bool,
        settings: Settings,
        tier: Option<Tier>,
    ) -> Option<Plan> {
        let possible = Plan::possible(problem, even, settings, tier);
        let plan = possible.into_iter().find(|plan| plan.way == variant.way)?;
        (variant.parts == 1 || !settings.invariant)
            .then_some(Plan { parts: plan.most_parts().min(variant.parts), ..plan })
    }

    /// All ways to compute a product, k in one part.
    pub(super) fn possible(
        problem: Problem,
        even: bool,
        settings: Settings,
        tier: Option<Tier>,
    ) -> Vec<Plan> {
        let family = family(problem.dtype, problem.out, settings);
        let tiles = if even { 0..UNEVEN + 1 } else { UNEVEN..UNEVEN + 1 };
        let multiprocessors = tier.map_or(0, |tier| tier.multiprocessors);
        let mut ways: Vec<Way> = tiles.map(Way::Tiles).collect();
        ways.extend(few(problem, even, settings).then_some(Way::Few));
        if tier.is_some() {
            let variants = (0..hopper::VARIANTS.len()).filter(|&i| hopper::possible(i, problem));
            ways.extend(variants.map(Way::Hopper));
        }
        ways.into_iter().map(|way| Plan { family, way, parts: 1, multiprocessors }).collect()
    }

    /// The variant that this is.
    pub(super) fn variant(&self) -> Variant {
        Variant { way: self.way, parts: self.parts }
    }

    /// Whether it runs on Hopper alone.
    #[cfg(test)]
    pub(super) fn hopper(&self) -> bool {
        matches!(self.way, Way::Hopper(_))
    }

    /// The same in the portable tiles of a size, 0 to 3.
    #[cfg(test)]
    pub(super) fn in_tiles(self, tile: usize) -> Plan {
        Plan { way: Way::Tiles(tile), ..self }
    }

    /// The same in so many parts, or as many as it allows.
    pub(super) fn in_parts(self, parts: usize) -> Plan {
        Plan { parts: parts.min(self.most_parts()), ..self }
    }

    /// How many parts k may be cut into.
    pub(super) fn most_parts(&self) -> usize {
        if self.way == Way::Few { 1 } else { MOST_PARTS }
    }

    /// Whether the product can end in SwiGLU as planned.
    pub(super) fn ends_in_swiglu(&self) -> bool {
        self.parts == 1
            && match self.way {
                Way::Tiles(tile) => self.family.swiglu[tile].is_some(),
                Way::Few => true,
                Way::Hopper(index) => hopper::VARIANTS[index].swiglu.is_some(),
            }
    }

    /// The launch of an instance in the tiles of a size.
    fn geometry<'a>(&self, launch: Launch<'a>, tile: &Tile, m: usize, n: usize) -> Launch<'a> {
        let slot = (tile.m + tile.n) * tile.k * self.family.size;
        launch.block(32 * tile.warps).shared(slot * tile.stages).grid([tile.tiles(m, n), 1, 1])
    }
}

/// A product as plans are made of it: what it is, whether its operands are even, and the chip where that is Hopper and may be used as one.
type Question = (Problem, bool, Option<Tier>);

fn question(
    out: View<'_>,
    product: &Product<'_>,
    b: View<'_>,
    layout: Layout,
    settings: Settings,
) -> Result<Question> {
    let problem = Problem {
        m: out.dim(0),
        n: out.dim(1),
        k: product.k,
        layout,
        dtype: b.dtype(),
        out: out.dtype(),
        swiglu: false,
    };
    let views = [Some(product.a), Some(b), Some(out), product.epilogue.residual];
    let tier = hopper::tier(out.device(), problem, settings, &views)?;
    Ok((problem, even([product.a, b]), tier))
}

/// The plan for a product on a device.
///
/// # Errors
/// When the device cannot be used.
pub(super) fn plan(
    out: View<'_>,
    product: &Product<'_>,
    b: View<'_>,
    layout: Layout,
    settings: Settings,
) -> Result<Plan> {
    let (problem, even, tier) = question(out, product, b, layout, settings)?;
    Ok(Plan::new(problem, even, settings, tier))
}

/// All plans for a product on a device, k in one part.
///
/// # Errors
/// When the device cannot be used.
pub(super) fn plans(
    out: View<'_>,
    product: &Product<'_>,
    b: View<'_>,
    layout: Layout,
    settings: Settings,
) -> Result<Vec<Plan>> {
    let (problem, even, tier) = question(out, product, b, layout, settings)?;
    Ok(Plan::possible(problem, even, settings, tier))
}

fn question_of_swiglu(
    [out, gate_up]: [View<'_>; 2],
    keep: bool,
    [a, b]: [View<'_>; 2],
    settings: Settings,
) -> Result<Question> {
    let problem = Problem {
        m: out.dim(0),
        n: 2 * out.dim(1),
        k: a.dim(1),
        layout: Layout::NT,
        dtype: a.dtype(),
        out: a.dtype(),
        swiglu: true,
    };
    let views = [Some(a), Some(b), Some(out), keep.then_some(gate_up)];
    // Both factors are stored as one tensor of three axes, each of whose rows begins at a multiple of 16 bytes.
    let tier = match out.dim(1).is_multiple_of(8) {
        true => hopper::tier(out.device(), problem, settings, &views)?,
        false => None,
    };
    Ok((problem, even([a, b]), tier))
}

/// [`plan`] of a linear layer that ends in SwiGLU, where `keep` says whether its factors are written.
///
/// # Errors
/// When the device cannot be used.
pub(super) fn plan_swiglu(
    results: [View<'_>; 2],
    keep: bool,
    operands: [View<'_>; 2],
    settings: Settings,
) -> Result<Plan> {
    let (problem, even, tier) = question_of_swiglu(results, keep, operands, settings)?;
    Ok(Plan::new(problem, even, settings, tier))
}

/// [`plans`] of a linear layer that ends in SwiGLU.
///
/// # Errors
/// When the device cannot be used.
pub(super) fn plans_of_swiglu(
    results: [View<'_>; 2],
    keep: bool,
    operands: [View<'_>; 2],
    settings: Settings,
) -> Result<Vec<Plan>> {
    let (problem, even, tier) = question_of_swiglu(results, keep, operands, settings)?;
    let plans = Plan::possible(problem, even, settings, tier).into_iter();
    Ok(plans.filter(Plan::ends_in_swiglu).collect())
}

/// Whether a device's products may be Hopper's.
pub(super) fn on_hopper(device: Device) -> bool {
    device != Device::Cpu && device::tier(device).is_ok_and(Tier::hopper)
}

/// Whether a product is one of a few rows of bfloat16 with a weight.
fn few(problem: Problem, even: bool, settings: Settings) -> bool {
    problem.dtype == DType::BF16
        && problem.layout == Layout::NT
        && (1..=FEW).contains(&problem.m)
        && even
        && !settings.invariant
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.variant().fmt(f)
    }
}

/// The most bytes of parts of sums.
pub(crate) fn most_scratch() -> usize {
    scratch::device_bytes(DType::F32, MOST_SUMS)
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Way::Tiles(tile) => f.write_str(["large", "small", "few-rows", "uneven"][*tile]),
            Way::Few => f.write_str("vector"),
            Way::Hopper(index) => f.write_str(hopper::VARIANTS[*index].name),
        }
    }
}

/// Whether tiles of both operands can be copied in vectors of 16 bytes.
pub(super) fn even(operands: [View<'_>; 2]) -> bool {
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
    let Plan { family, way, .. } = plan;
    // Terms that a slot of shared memory holds: parts of k begin at a multiple of them.
    let slot = match way {
        Way::Tiles(tile) => family.tiles[tile].k,
        Way::Few | Way::Hopper(_) => hopper::TERMS,
    };
    let epilogue = product.epilogue;
    let k_of_part = k.div_ceil(plan.parts).next_multiple_of(slot);
    let parts = k.div_ceil(k_of_part.max(1)).max(1);
    if let (Way::Hopper(index), 1) = (way, parts) {
        let launch = hopper::Product { variant: index, multiprocessors: plan.multiprocessors };
        return launch.run(out, product, b, layout);
    }
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
    if parts == 1 {
        let kernel = match way {
            Way::Tiles(tile) => family.tiles[tile].kernels[layout as usize],
            _ => few_kernel(m, out.dtype()),
        };
        let mut launch = Launch::new(source, kernel, device);
        let arguments = Gemm {
            a: launch.read(product.a),
            b: launch.read(b),
            out: launch.write(&mut out),
            bias: launch.read_if(epilogue.bias),
            residual: launch.read_if(epilogue.residual),
            ..shape
        };
        let launch = match way {
            Way::Tiles(tile) => plan.geometry(launch, &family.tiles[tile], m, n),
            _ => few_geometry(launch, m, n),
        };
        return launch.early().run(&arguments);
    }
    let mut sums = scratch::device(device, DType::F32, parts * m, n.next_multiple_of(4))?;
    let mut sums_view = sums.view_mut();
    match way {
        Way::Hopper(index) => {
            let launch = hopper::Product { variant: index, multiprocessors: plan.multiprocessors };
            launch.parts(sums_view, parts, k_of_part, [product.a, b], [m, n, k], layout)?;
        }
        Way::Tiles(tile) => {
            let tile = &family.tiles[tile];
            let mut launch = Launch::new(source, tile.kernels[layout as usize], device);
            let arguments = Gemm {
                a: launch.read(product.a),
                b: launch.read(b),
                partial: launch.write(&mut sums_view),
                ..shape
            };
            let launch = plan.geometry(launch, tile, m, n);
            launch.grid([tile.tiles(m, n), parts, 1]).early().run(&arguments)?;
        }
        Way::Few => unreachable!("a few rows are computed in one part"),
    }

    let mut launch = Launch::new(source, family.parts, device);
    let arguments = Gemm {
        out: launch.write(&mut out),
        bias: launch.read_if(epilogue.bias),
        residual: launch.read_if(epilogue.residual),
        partial: launch.read(sums.view()),
        ..shape
    };
    let blocks = (m * n.div_ceil(4)).div_ceil(256);
    launch.grid([blocks, 1, 1]).block(256).early().run(&arguments)
}

/// The launch of a product of a few rows: eight warps a block, which tell each other their sums.
fn few_geometry(launch: Launch<'_>, m: usize, n: usize) -> Launch<'_> {
    let rows = m.next_power_of_two();
    let launch = launch.block(256).shared(8 * rows * FEW_COLUMNS * size_of::<f32>());
    launch.grid([n.div_ceil(FEW_COLUMNS), 1, 1])
}

/// The instance for so many rows.
fn few_kernel(m: usize, out: DType) -> &'static str {
    match (out, m) {
        (DType::BF16, 0..=1) => "gemm_few<bf16, 1>",
        (DType::BF16, 2) => "gemm_few<bf16, 2>",
        (DType::BF16, 3..=4) => "gemm_few<bf16, 4>",
        (DType::BF16, _) => "gemm_few<bf16, 8>",
        (_, 0..=1) => "gemm_few<float, 1>",
        (_, 2) => "gemm_few<float, 2>",
        (_, 3..=4) => "gemm_few<float, 4>",
        _ => "gemm_few<float, 8>",
    }
}

/// Computes a checked linear layer that ends in SwiGLU, as planned for its 2n columns; where no instance in the planned tiles does, in small ones.
pub(super) fn swiglu(
    mut out: ViewMut<'_>,
    mut gate_up: Option<ViewMut<'_>>,
    a: View<'_>,
    b: View<'_>,
    plan: Plan,
) -> Result<()> {
    let (m, n, k) = (out.dim(0), out.dim(1), a.dim(1));
    let tile = match plan.way {
        Way::Few => 0,
        Way::Hopper(index) if hopper::VARIANTS[index].swiglu.is_some() => {
            let launch = hopper::Product { variant: index, multiprocessors: plan.multiprocessors };
            return launch.swiglu(out, gate_up, a, b);
        }
        Way::Tiles(tile) if plan.family.swiglu[tile].is_some() => tile,
        _ => SMALL,
    };
    let kernel = match (plan.way, m) {
        (Way::Few, 0..=1) => "gemm_few_swiglu<1>",
        (Way::Few, 2) => "gemm_few_swiglu<2>",
        (Way::Few, 3..=4) => "gemm_few_swiglu<4>",
        (Way::Few, _) => "gemm_few_swiglu<8>",
        _ => plan.family.swiglu[tile].expect("the dtype of C is that of A"),
    };
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
    if plan.way == Way::Few {
        return few_geometry(launch, m, 2 * n).early().run(&arguments);
    }
    plan.geometry(launch, &plan.family.tiles[tile], m, 2 * n).early().run(&arguments)
}
