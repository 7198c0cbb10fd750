//! Which kernel computes attention, for whoever measures, as `matmul::tuning` has it of products: [`variants`] of a [`Problem`], [`prefer`] one, time it.
//!
//! Forward has a choice, and [decoding](decode). A variant is kept by its text. Preferences are of this process, and passed over where a call does not allow them: rows that
//! do not begin at multiples of 16 bytes, or numerics that are to be invariant. What is preferred for a pass stands for its [class](Problem::class) too
//! where it is preferred for that; then a sequence's bits may depend on the batch around it, as kernels may add in another order.

pub mod decode;

use std::sync::LazyLock;

use prime_runtime::{DType, Device, Result};

use super::Mask;
use super::cuda::{self, ForwardKernel};
use crate::device::{self, Preferences};

/// All of a forward pass that its speed depends on, but for the lengths of its sequences one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Rows of q, all sequences together.
    pub tokens: usize,
    /// Sequences.
    pub sequences: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// What queries see.
    pub mask: Mask,
    /// Storage.
    pub dtype: DType,
}

impl Problem {
    /// The pass that stands for all of about its size: as many tokens, and as many of them a sequence, each rounded up to a power of two. What is preferred for
    /// it is taken where nothing is preferred for the pass itself.
    #[must_use]
    pub fn class(self) -> Problem {
        let tokens = self.tokens.next_power_of_two();
        let length = self.tokens.div_ceil(self.sequences.max(1)).next_power_of_two();
        Problem { tokens, sequences: tokens / length, ..self }
    }
}

/// One way to compute a forward pass: a kernel. Its text is the kernel's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant(pub(super) ForwardKernel);

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.name())
    }
}

/// Every kernel that computes a pass over packed sequences whose rows and heads begin at multiples of 16 bytes, on a device beside the host; the one that
/// the launcher takes by itself comes first.
///
/// # Errors
/// When the device cannot be used, or has no kernel for a head of so many elements.
pub fn variants(device: Device, problem: Problem) -> Result<Vec<Variant>> {
    let hopper = device::tier(device)?.hopper();
    let kernels = cuda::forward_kernels(problem.dtype, problem.head_dim, hopper)?;
    Ok(kernels.into_iter().map(Variant).collect())
}

static PREFERENCES: LazyLock<Preferences<Problem, Variant>> = LazyLock::new(Preferences::default);

/// Has the launcher take a variant for a pass from now on; `None` leaves it to itself again.
pub fn prefer(problem: Problem, variant: Option<Variant>) {
    PREFERENCES.set(problem, variant);
}

/// The variant that was preferred last for a pass, or else for its [class](Problem::class).
pub fn preferred(problem: &Problem) -> Option<Variant> {
    PREFERENCES.get(problem).or_else(|| PREFERENCES.get(&problem.class()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_of_tokens_and_of_tokens_a_sequence() {
        let of = |tokens, sequences| {
            let (heads, kv_heads, head_dim) = (14, 2, 64);
            let (mask, dtype) = (Mask::Causal, DType::BF16);
            let problem = Problem { tokens, sequences, heads, kv_heads, head_dim, mask, dtype };
            let class = problem.class();
            assert_eq!(class.class(), class);
            assert_eq!(Problem { tokens, sequences, ..class }, problem);
            (class.tokens, class.sequences)
        };
        assert_eq!(of(4096, 16), (4096, 16));
        assert_eq!(of(4096, 17), (4096, 16), "sequences of 241 tokens");
        assert_eq!(of(4096, 15), (4096, 8), "sequences of 274 tokens");
        assert_eq!(of(3000, 1), (4096, 1));
        assert_eq!(of(3, 7), (4, 4), "some sequences are empty");
        assert_eq!((of(0, 0), of(0, 3), of(1, 1)), ((1, 1), (1, 1), (1, 1)));
    }
}
