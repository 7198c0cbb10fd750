//! Which way to compute a product: what there is to choose from, for whoever measures, and what was chosen.
//!
//! A measurement asks for the [`variants`] of a [`Problem`], has the launcher take one after the other ([`prefer`]), times the product each time, and
//! leaves the fastest preferred. A variant is kept by its text, which is that of one of the variants of the same problem as long as the
//! kernels are the same; so a table made by a measurement is read again by comparing texts.
//!
//! Preferences are of this process. Where numerics are to be invariant those that would change bits are passed over, as are those that operands of a
//! call do not allow (rows that do not begin at multiples of 16 bytes).

use std::sync::LazyLock;

use prime_runtime::{DType, Device, Result};

use super::cuda::{LEAST_TERMS, MOST_PARTS, MOST_SUMS, Plan, Way};
use super::{Layout, settings};
use crate::device::{self, Preferences};

/// All of a product that its speed depends on, but for the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Rows of C.
    pub m: usize,
    /// Columns of C, or where it ends in SwiGLU, of what goes into that: twice as many.
    pub n: usize,
    /// Terms of a sum.
    pub k: usize,
    /// Which operands are transposed.
    pub layout: Layout,
    /// The type of A and B.
    pub dtype: DType,
    /// The type of C.
    pub out: DType,
    /// Whether it ends in SwiGLU.
    pub swiglu: bool,
}

impl Problem {
    /// The product that stands for all of about its size: as many rows, rounded up to a power of two, or as many terms where those are the tokens, as of a
    /// gradient of weights. What is preferred for it is taken where nothing is preferred for the product itself.
    #[must_use]
    pub fn class(self) -> Problem {
        match self.layout {
            Layout::TN => Problem { k: self.k.next_power_of_two(), ..self },
            _ => Problem { m: self.m.next_power_of_two(), ..self },
        }
    }
}

/// One way to compute a product: a kernel, and the number of parts into which k is cut. Its text names both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    pub(super) way: Way,
    pub(super) parts: usize,
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {}", self.way, self.parts)
    }
}

/// Every way to compute a product whose operands begin at multiples of 16 bytes, row by row, on a device beside the host; the one that the launcher takes
/// by itself comes first.
///
/// # Errors
/// When the device cannot be used.
pub fn variants(device: Device, problem: Problem) -> Result<Vec<Variant>> {
    let settings = settings();
    let tier = device::tier(device)?;
    let tier = (tier.hopper() && super::hopper::takes(problem, settings)).then_some(tier);
    let even = even(problem);
    let first = Plan::planned(problem, even, settings, tier).variant();
    let mut found = vec![first];
    let plans = Plan::possible(problem, even, settings, tier).into_iter();
    // A kernel for what is not aligned is no choice for what is.
    for plan in plans.filter(|plan| !even || plan.variant().way != Way::Tiles(3)) {
        if problem.swiglu && !plan.ends_in_swiglu() {
            continue;
        }
        let sums = problem.m * problem.n.next_multiple_of(4);
        let most = (problem.k / LEAST_TERMS).min(MOST_SUMS / sums.max(1)).clamp(1, MOST_PARTS);
        let most = if settings.invariant || problem.swiglu { 1 } else { most };
        for parts in [1, 2, 3, 4, 6, 8, 12, 16].into_iter().filter(|&parts| parts <= most) {
            let variant = plan.in_parts(parts).variant();
            if !found.contains(&variant) {
                found.push(variant);
            }
        }
    }
    Ok(found)
}

/// Whether rows of the operands are whole vectors of 16 bytes.
fn even(problem: Problem) -> bool {
    let lanes = 16 / problem.dtype.size();
    let Problem { m, n, k, layout, .. } = problem;
    let (a, b) = match layout {
        Layout::NN => (k, n),
        Layout::NT => (k, k),
        Layout::TN => (m, n),
    };
    a.is_multiple_of(lanes) && b.is_multiple_of(lanes)
}

static PREFERENCES: LazyLock<Preferences<Problem, Variant>> = LazyLock::new(Preferences::default);

/// Has the launcher take a variant for a product from now on; `None` leaves it to itself again.
pub fn prefer(problem: Problem, variant: Option<Variant>) {
    PREFERENCES.set(problem, variant);
}

/// The variant that was preferred last for a product, or else for its [class](Problem::class).
pub fn preferred(problem: &Problem) -> Option<Variant> {
    PREFERENCES.get(problem).or_else(|| PREFERENCES.get(&problem.class()))
}
