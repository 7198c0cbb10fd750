//! How operations on devices other than the host trade speed for independence of the batch. The host has one way, which is as fast as any.

use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

/// One switch for all operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numerics {
    /// Sums are cut into parts where that keeps a chip busy: products of few tiles along the inner dimension, decoding along the keys. Same call,
    /// same bits; but a row's bits depend on how many rows there are.
    #[default]
    Fast,
    /// [`Numerics::Fast`], and float32 is multiplied by tensor cores, both factors rounded to TF32 (10 bits of fraction).
    Tf32,
    /// No sum is cut: a row's bits are the same in any batch, as on the host, and decoding over a cache gives those of the training forward. Products
    /// of few rows, and long contexts of few sequences, then leave multiprocessors idle.
    Invariant,
    /// [`Numerics::Fast`], and blocks add to one sum in the order in which they come, where that spares waiting for each other: parts of the gradient of
    /// attention's queries on Hopper. The same call may give other bits.
    Unordered,
}

const ALL: [(&str, Numerics); 4] = [
    ("fast", Numerics::Fast),
    ("tf32", Numerics::Tf32),
    ("invariant", Numerics::Invariant),
    ("unordered", Numerics::Unordered),
];

impl FromStr for Numerics {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        ALL.iter().find(|(name, _)| *name == text).map(|&(_, numerics)| numerics).ok_or_else(|| {
            format!("`{text}` is no way to compute; expected \"fast\", \"tf32\", \"invariant\" or \"unordered\"")
        })
    }
}

impl std::fmt::Display for Numerics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = ALL.iter().find(|(_, numerics)| numerics == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

static CHOSEN: AtomicU8 = AtomicU8::new(0);

/// Chooses for this process. Work that has been started or recorded goes on as it was.
pub fn choose(numerics: Numerics) {
    CHOSEN.store(numerics as u8, Ordering::Relaxed);
}

/// What was chosen last; [`Numerics::Fast`] before.
pub fn chosen() -> Numerics {
    ALL[usize::from(CHOSEN.load(Ordering::Relaxed))].1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_and_others_refused() {
        for (index, (name, numerics)) in ALL.into_iter().enumerate() {
            assert_eq!((name.parse(), numerics.to_string()), (Ok(numerics), name.to_owned()));
            assert_eq!(numerics as usize, index);
        }
        assert_eq!(
            "exact".parse::<Numerics>().unwrap_err(),
            "`exact` is no way to compute; expected \"fast\", \"tf32\", \"invariant\" or \"unordered\""
        );
    }
}
