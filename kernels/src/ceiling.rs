//! What the host's vector units can do at most: multiply-adds on registers alone, which no product of matrices exceeds.

use std::time::{Duration, Instant};

use prime_runtime::DType;

/// Chains that each thread adds to: enough to hide the latency of a multiply-add, and few enough for the registers.
const CHAINS: usize = 12;

/// Times around the chains between looks at the clock.
const ROUNDS: usize = 20_000;

/// Floating-point operations a second of all threads of the pool together, measured for about so long. In bfloat16 without an instruction for
/// it, that is float32's rate.
pub fn multiply_adds(dtype: DType, time: Duration) -> f64 {
    let rates = rayon::broadcast(|_| {
        let (started, mut operations) = (Instant::now(), 0);
        while operations == 0 || started.elapsed() < time {
            operations += chunk(dtype);
        }
        operations as f64 / started.elapsed().as_secs_f64()
    });
    rates.iter().sum()
}

/// Does so many operations, and says how many.
fn chunk(dtype: DType) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        use crate::matmul::amx;
        use crate::simd::{Level, level};
        if (level(), dtype) == (Level::Amx, DType::BF16) {
            // SAFETY: the level says that this machine has these instructions.
            std::hint::black_box(unsafe { amx::products_of_ones(ROUNDS) });
            return ROUNDS * amx::OPERATIONS;
        }
        // A multiply-add is two operations, of a pair of bfloat16 four.
        let (sum, lanes) = match (level(), dtype) {
            // SAFETY: the level says that this machine has these instructions.
            (Level::Avx512Bf16, DType::BF16) => (unsafe { pairs(ROUNDS) }, 32),
            // SAFETY: as above.
            (Level::Avx512 | Level::Avx512Bf16 | Level::Amx, _) => (unsafe { wide(ROUNDS) }, 16),
            // SAFETY: as above.
            (Level::Avx2, _) => (unsafe { narrow(ROUNDS) }, 8),
            (Level::Plain, _) => (plain(ROUNDS), LANES),
        };
        std::hint::black_box(sum);
        ROUNDS * CHAINS * lanes * 2
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = dtype;
        std::hint::black_box(plain(ROUNDS));
        ROUNDS * CHAINS * LANES * 2
    }
}

/// Lanes of a chain where the compiler chooses the instructions. It multiplies and adds apart: without an instruction for both, the fused operation is a
/// call of a function.
const LANES: usize = 4;

fn plain(rounds: usize) -> f32 {
    let mut sums = [[0.0f32; LANES]; CHAINS];
    let (factor, term) = (std::hint::black_box(0.5f32), std::hint::black_box(0.5f32));
    for _ in 0..rounds {
        for sum in &mut sums {
            for x in sum {
                *x = *x * factor + term;
            }
        }
    }
    sums.iter().flatten().sum()
}

/// The chains in vectors of 16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn wide(rounds: usize) -> f32 {
    use std::arch::x86_64::*;
    let half = _mm512_set1_ps(std::hint::black_box(0.5));
    let mut sums = [_mm512_setzero_ps(); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, half, half);
        }
    }
    sums.iter().map(|&sum| _mm512_reduce_add_ps(sum)).sum()
}

/// The chains in vectors of 8.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn narrow(rounds: usize) -> f32 {
    use std::arch::x86_64::*;
    let half = _mm256_set1_ps(std::hint::black_box(0.5));
    let mut sums = [_mm256_setzero_ps(); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, half, half);
        }
    }
    let mut total = 0.0;
    for sum in sums {
        let mut values = [0.0f32; 8];
        // SAFETY: the array has room for a vector.
        unsafe { _mm256_storeu_ps(values.as_mut_ptr(), sum) };
        total += values.iter().sum::<f32>();
    }
    total
}

/// The chains of pairs of bfloat16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pairs(rounds: usize) -> f32 {
    use std::arch::x86_64::*;
    let ones = _mm512_set1_ps(std::hint::black_box(1.0));
    let factor = _mm512_cvtne2ps_pbh(ones, ones);
    let mut sums = [_mm512_setzero_ps(); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, factor, factor);
        }
    }
    sums.iter().map(|&sum| _mm512_reduce_add_ps(sum)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_is_a_rate_that_a_processor_can_have() {
        for dtype in [DType::F32, DType::BF16] {
            let rate = multiply_adds(dtype, Duration::from_millis(5));
            assert!((1e8..1e15).contains(&rate), "{dtype}: {rate:e}");
        }
    }

    #[test]
    fn chains_are_computed_as_counted() {
        // Each step halves the distance to 1, exactly.
        let expected = |lanes: usize| (CHAINS * lanes) as f32 * (1.0 - 1.0 / 1024.0);
        assert_eq!(plain(10), expected(LANES));
        #[cfg(target_arch = "x86_64")]
        {
            use crate::simd::{Level, level};
            if level() >= Level::Avx2 {
                // SAFETY: the level says that this machine has these instructions.
                assert_eq!(unsafe { narrow(10) }, expected(8));
            }
            if level() >= Level::Avx512 {
                // SAFETY: as above.
                assert_eq!(unsafe { wide(10) }, expected(16));
            }
            if level() >= Level::Avx512Bf16 {
                // SAFETY: as above.
                assert_eq!(unsafe { pairs(3) }, (3 * 2 * 16 * CHAINS) as f32);
                // SAFETY: as above; where there are no tile registers, a model of them is used.
                let tiles = unsafe { crate::matmul::amx::products_of_ones(3) };
                assert_eq!(tiles, (3 * crate::matmul::amx::OPERATIONS / 2) as f32);
            }
        }
    }
}
