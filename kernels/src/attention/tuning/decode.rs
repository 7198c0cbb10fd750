//! As [`super`] of forward, of decoding: which kernel walks the keys of a cache, and into how many parts they are split.
//!
//! A choice is of steps in which every sequence has one new token. What is preferred for a step's [class](Problem::class) may name more parts than another
//! step of the class has memory for, and then as many as there is are taken.

use std::sync::LazyLock;

use prime_runtime::{DType, Device, Result};

use super::super::cuda::{self, DecodeKernel};
use crate::device::{self, Preferences};

/// All of a decode step that its speed depends on, but for the lengths of its sequences one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Sequences, with one new token each.
    pub sequences: usize,
    /// Keys that the cache reserves for each.
    pub keys: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Storage.
    pub dtype: DType,
}

impl Problem {
    /// The step that stands for all of about its size: sequences and keys, each rounded up to a power of two. What is preferred for it is taken where nothing
    /// is preferred for the step itself.
    #[must_use]
    pub fn class(self) -> Problem {
        let [sequences, keys] = [self.sequences, self.keys].map(usize::next_power_of_two);
        Problem { sequences, keys, ..self }
    }
}

/// One way to decode: a kernel, and the parts that the keys of each sequence are split into. Its text is both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    pub(in super::super) kernel: DecodeKernel,
    pub(in super::super) splits: usize,
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {}", self.kernel.name(), self.splits)
    }
}

/// Every way to decode over a cache whose rows and heads begin at multiples of 16 bytes, on a device beside the host; the one that the launcher takes by
/// itself comes first.
///
/// # Errors
/// When the device cannot be used, or has no kernel for a head of so many elements.
pub fn variants(device: Device, problem: Problem) -> Result<Vec<Variant>> {
    cuda::decode_ways(problem, device::tier(device)?.hopper())
}

static PREFERENCES: LazyLock<Preferences<Problem, Variant>> = LazyLock::new(Preferences::default);

/// Has the launcher take a variant for a step from now on; `None` leaves it to itself again.
pub fn prefer(problem: Problem, variant: Option<Variant>) {
    PREFERENCES.set(problem, variant);
}

/// The variant that was preferred last for a step, or else for its [class](Problem::class).
pub fn preferred(problem: &Problem) -> Option<Variant> {
    PREFERENCES.get(problem).or_else(|| PREFERENCES.get(&problem.class()))
}

#[cfg(test)]
mod tests {
    use super::super::super::cuda::decode_scratch;
    use super::*;

    #[test]
    fn ways_begin_with_the_launchers_own_and_fit_the_memory_that_is_planned() {
        for (sequences, keys, [heads, kv_heads, head_dim]) in [
            (1, 4096, [32, 8, 128]),
            (1, 100, [14, 2, 64]),
            (8, 32768, [14, 2, 64]),
            (64, 4096, [28, 4, 128]),
            (300, 1000, [3, 3, 80]),
        ] {
            for (dtype, hopper) in [(DType::BF16, true), (DType::BF16, false), (DType::F32, true)] {
                let problem = Problem { sequences, keys, heads, kv_heads, head_dim, dtype };
                let ways = cuda::decode_ways(problem, hopper).unwrap();
                let kernels: std::collections::HashSet<_> =
                    ways.iter().map(|way| way.kernel.name()).collect();
                assert_eq!(kernels.len(), 1 + usize::from(hopper && dtype == DType::BF16));
                let texts: std::collections::HashSet<_> =
                    ways.iter().map(ToString::to_string).collect();
                assert_eq!(texts.len(), ways.len(), "each is named once");
                // Fewer parts than by itself and more are tried, where there are keys for them.
                let own = ways[0].splits;
                let any =
                    |holds: fn(usize, usize) -> bool| ways.iter().any(|way| holds(way.splits, own));
                assert!(own == 1 || any(|splits, own| splits < own), "{problem:?}");
                assert!(
                    keys < 256 * own || own == 32 || any(|splits, own| splits > own),
                    "{problem:?}"
                );
                let planned = decode_scratch(sequences, keys, [heads, kv_heads, head_dim]);
                for way in &ways {
                    let rows = if way.splits > 1 { way.splits * sequences * heads } else { 0 };
                    assert!(rows * (head_dim + 1) * 4 <= planned, "{problem:?} {way}");
                }
            }
        }
    }

    #[test]
    fn classes_are_of_sequences_and_of_keys() {
        let (heads, kv_heads, head_dim, dtype) = (14, 2, 64, DType::BF16);
        let problem = Problem { sequences: 33, keys: 1025, heads, kv_heads, head_dim, dtype };
        let class = problem.class();
        assert_eq!((class.sequences, class.keys), (64, 2048));
        assert_eq!(class.class(), class);
        assert_eq!(Problem { sequences: 33, keys: 1025, ..class }, problem);
    }
}
