//! Counter-based randomness: Philox4x32-10.
//!
//! A random number here is a function of its place, not of what was drawn before it: seed, stream (what it is
//! for), sequence (which sample) and position (which token). A sample therefore does not depend on batch size, on the
//! order of work, or on the number of threads or devices, and a run resumes without saving a generator's state.
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

/// What a random number is for; numbers of different streams are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// Initial weights. Sequence: the parameter's index.
    Weights = 1,
    /// Sampling of tokens. Sequence: the sample's own id. Position: the token's place in the response.
    Sampling = 2,
    /// Generated problems. Sequence: the problem's index.
    Tasks = 3,
    /// Orders of prompts and minibatches. Sequence: the epoch or step.
    Shuffle = 4,
    /// Resampling for intervals.
    Bootstrap = 5,
    /// Tests and benchmarks.
    Test = 6,
    /// Tokens that a loss treats apart. Sequence: the update.
    Selection = 7,
    /// Rounding at random. Sequence: twice the update's number, and one more for weights. Position: the parameter's place, by fours.
    Rounding = 8,
}

/// Ten rounds of Philox4x32: four random words of a counter and a key.
#[inline]
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const M0: u64 = 0xD251_1F53;
    const M1: u64 = 0xCD9E_8D57;
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let (p0, p1) = (M0 * u64::from(c0), M1 * u64::from(c2));
        (c0, c1, c2, c3) =
            ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// Four random words of one place. Of `sequence`, 64 bits count; of `position`, 32.
#[inline]
pub fn block(seed: u64, stream: Stream, sequence: u64, position: u32) -> [u32; 4] {
    let counter = [position, sequence as u32, (sequence >> 32) as u32, stream as u32];
    philox(counter, [seed as u32, (seed >> 32) as u32])
}

/// A word as a float in the open interval (0, 1), so that a logarithm of it is finite: 23 bits, centred in their
/// steps (with 24 the last centre would round to 1).
#[inline]
pub fn uniform(word: u32) -> f32 {
    ((word >> 9) as f32 + 0.5) * (1.0 / 8_388_608.0)
}

/// A sequence of random numbers of one place, for code that draws as it goes.
#[derive(Clone, Debug)]
pub struct Generator {
    seed: u64,
    stream: Stream,
    sequence: u64,
    position: u32,
    words: [u32; 4],
    used: usize,
}

impl Generator {
    /// The generator of a seed, a stream and a sequence.
    pub fn new(seed: u64, stream: Stream, sequence: u64) -> Self {
        Generator { seed, stream, sequence, position: 0, words: [0; 4], used: 4 }
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.words = block(self.seed, self.stream, self.sequence, self.position);
            self.position = self.position.wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }

    /// A float in (0, 1).
    pub fn uniform(&mut self) -> f32 {
        uniform(self.next_u32())
    }

    /// An integer below `bound`, without bias.
    ///
    /// # Panics
    /// When `bound` is 0.
    pub fn below(&mut self, bound: u32) -> u32 {
        assert!(bound > 0, "there is no integer below 0");
        // Words under this threshold would make the low values more frequent.
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u64::from(self.next_u32()) * u64::from(bound);
            if product as u32 >= threshold {
                return (product >> 32) as u32;
            }
        }
    }

    /// An integer of an inclusive range.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        low + i64::from(self.below((high - low + 1) as u32))
    }

    /// A standard normal number (Box and Muller).
    pub fn normal(&mut self) -> f32 {
        let (radius, angle) = (f64::from(self.uniform()), f64::from(self.uniform()));
        ((-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()) as f32
    }

    /// Puts a slice into random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, values: &mut [T]) {
        for i in (1..values.len()).rev() {
            values.swap(i, self.below(i as u32 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_known_answers() {
        // kat_vectors of Random123, philox4x32 with 10 rounds.
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox(counter, key), expected);
        }
    }

    #[test]
    fn uniform_never_reaches_its_ends() {
        assert!(uniform(0) > 0.0 && uniform(u32::MAX) < 1.0);
    }

    #[test]
    fn below_is_uniform_within_four_standard_deviations() {
        let mut random = Generator::new(7, Stream::Test, 0);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[random.below(7) as usize] += 1;
        }
        // Binomial with n = 70,000 and p = 1/7: standard deviation 92.6.
        assert!(counts.iter().all(|&count| (i64::from(count) - 10_000).abs() < 371), "{counts:?}");
    }
}
