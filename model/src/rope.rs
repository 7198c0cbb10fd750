//! The tables of rotary position embedding: cosine and sine of every position and frequency.
//!
//! Source: Su et al., arXiv 2104.09864; the scaling of Llama 3.1 as its authors published it (wavelengths beyond the first context are
//! stretched, short ones kept, those between blended).

use std::f64::consts::TAU;

use prime_runtime::{Device, Tensor};

use crate::{Config, Error, Result, RopeScaling};

/// The angle, in radians, that one position adds to each pair of a head.
fn frequencies(config: &Config) -> Vec<f64> {
    let dim = config.head_dim as f64;
    let base = (0..config.head_dim / 2).map(|i| config.rope_theta.powf(-2.0 * i as f64 / dim));
    match config.rope_scaling {
        RopeScaling::None => base.collect(),
        RopeScaling::Linear { factor } => base.map(|frequency| frequency / factor).collect(),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let scale = |frequency: f64| {
                // How often the pair turns within the first context.
                let turns = original_max_position_embeddings as f64 * frequency / TAU;
                let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let kept = kept.clamp(0.0, 1.0);
                frequency * (kept + (1.0 - kept) / factor)
            };
            base.map(scale).collect()
        }
    }
}

/// Cosines and sines for the positions below `positions`: two float32 tables `[positions, head_dim / 2]` on a device, computed in float64.
///
/// # Errors
/// When host or device have not the memory.
pub fn rope_tables(config: &Config, device: Device, positions: usize) -> Result<(Tensor, Tensor)> {
    if u32::try_from(positions).is_err() {
        return Err(Error::Value(format!(
            "{positions} positions were asked for, but positions are 32-bit numbers"
        )));
    }
    let frequencies = frequencies(config);
    let table = |function: fn(f64) -> f64| -> Result<Tensor> {
        let values: Vec<f32> = (0..positions)
            .flat_map(|position| {
                frequencies.iter().map(move |f| function(position as f64 * f) as f32)
            })
            .collect();
        let table = Tensor::from_slice(&values, &[positions, frequencies.len()])?;
        Ok(if device == Device::Cpu { table } else { table.to(device)? })
    };
    Ok((table(f64::cos)?, table(f64::sin)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::llama;

    #[test]
    fn tables_hold_the_cosine_and_sine_of_position_times_frequency() {
        let config = Config { rope_scaling: RopeScaling::None, rope_theta: 10_000.0, ..llama() };
        let (cos, sin) = rope_tables(&config, Device::Cpu, 6).unwrap();
        let half = config.head_dim / 2;
        assert_eq!((cos.dims(), sin.dims()), (&[6, half][..], &[6, half][..]));
        for position in 0..6 {
            for i in 0..half {
                let exponent = 2.0 * i as f64 / config.head_dim as f64;
                let angle = position as f64 / 10_000f64.powf(exponent);
                // Both are one rounding of nearly the same double.
                let close = |a: f32, b: f64| (f64::from(a) - b).abs() <= f64::from(f32::EPSILON);
                assert!(close(cos.as_slice::<f32>()[position * half + i], angle.cos()));
                assert!(close(sin.as_slice::<f32>()[position * half + i], angle.sin()));
            }
        }
    }

    #[test]
    fn linear_scaling_puts_position_n_times_factor_where_n_was() {
        let plain = Config { rope_scaling: RopeScaling::None, ..llama() };
        let scaled = Config { rope_scaling: RopeScaling::Linear { factor: 4.0 }, ..llama() };
        let (plain, _) = rope_tables(&plain, Device::Cpu, 5).unwrap();
        let (scaled, _) = rope_tables(&scaled, Device::Cpu, 17).unwrap();
        for position in 0..5 {
            // A factor of 4 is exact in binary.
            assert_eq!(plain.view().row::<f32>(position), scaled.view().row::<f32>(4 * position));
        }
    }

    #[test]
    fn llama3_scaling_keeps_short_waves_stretches_long_ones_and_blends_between() {
        let (factor, low, high, context) = (8.0, 1.0, 4.0, 64);
        let config = Config {
            rope_theta: 500_000.0,
            head_dim: 64,
            rope_scaling: RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: context,
            },
            ..llama()
        };
        let mut seen = [0; 3];
        for (i, frequency) in frequencies(&config).into_iter().enumerate() {
            let plain = 1.0 / 500_000f64.powf(i as f64 / 32.0);
            let wavelength = TAU / plain;
            let expected = if wavelength < context as f64 / high {
                seen[0] += 1;
                plain
            } else if wavelength > context as f64 / low {
                seen[1] += 1;
                plain / factor
            } else {
                seen[2] += 1;
                let smooth = (context as f64 / wavelength - low) / (high - low);
                (1.0 - smooth) * plain / factor + smooth * plain
            };
            // A dozen operations in double precision.
            assert!((frequency / expected - 1.0).abs() < 16.0 * f64::EPSILON, "pair {i}");
        }
        assert!(seen.iter().all(|&count| count > 0), "{seen:?}");
    }
}
