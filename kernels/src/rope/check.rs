//! One random case against the oracle.

use prime_runtime::{DType, Device, Error, View, ViewMut};

use super::reference;
use crate::testing::{any_dtype, case, compare, normal, roundoff, to_f64};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(device: Device, seed: u64) -> Result<(), String> {
    let mut random = case(device, seed);
    let dtype = any_dtype(&mut random);
    // Now and then a token has more heads than a device's block turns at once.
    let (tokens, heads) = match random.below(24) {
        0 => (random.below(3) as usize, 30 + random.below(20) as usize),
        _ => (random.below(9) as usize, 1 + random.below(5) as usize),
    };
    let half = random.columns(128);
    let (head_dim, table) = (2 * half, 1 + random.below(20));
    // `x` is the middle of a fused buffer, between other columns that must keep their values.
    let (before, columns, after) =
        (random.below(3) as usize * 4, heads * head_dim, random.below(5) as usize * 2);
    let width = before + columns + after;
    let fused = normal(&mut random, dtype, &[tokens, width], 1.0);
    let positions: Vec<u32> = (0..tokens).map(|_| random.below(table)).collect();
    let angles: Vec<f32> = (0..table as usize * half).map(|_| random.normal() * 3.0).collect();
    let cos: Vec<f32> = angles.iter().map(|angle| angle.cos()).collect();
    let sin: Vec<f32> = angles.iter().map(|angle| angle.sin()).collect();
    let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let block = |values: &[f64]| -> Vec<f64> {
        values.chunks(width).flat_map(|row| &row[before..before + columns]).copied().collect()
    };
    let error = |error: Error| error.to_string();

    let table_dims = [table as usize, half];
    let position_tensor = random.indices(&positions);
    let [cos_tensor, sin_tensor] =
        [&cos, &sin].map(|table| random.of(table, DType::F32, &table_dims));
    type Operation = fn(ViewMut<'_>, View<'_>, View<'_>, View<'_>) -> Result<(), Error>;
    let forward: (&str, Operation, f64) = ("forward", super::forward, 1.0);
    for (what, operation, sign) in [forward, ("backward", super::backward, -1.0)] {
        let mut turned = random.of(&fused.view().to_f32_vec(), dtype, &[tokens, width]);
        let x = turned.view_mut().into_columns(before..before + columns);
        operation(
            x.into_shape(&[tokens, heads, head_dim]),
            position_tensor.view(),
            cos_tensor.view(),
            sin_tensor.view(),
        )
        .map_err(error)?;
        let (old, new) = (to_f64(&fused), to_f64(&turned));
        let x = block(&old);
        let expected =
            reference::turn(&x, heads, head_dim, &positions, &wide(&cos), &wide(&sin), sign);
        // A product and a fused multiply-add, each rounded once, of terms no larger than the pair's norm; then storage.
        let unit = f64::from(f32::EPSILON) / 2.0;
        compare(what, &block(&new), &expected, |i| {
            let partner = if i % head_dim < half { i + half } else { i - half };
            2.0 * unit * x[i].hypot(x[partner]) + roundoff(dtype) * expected[i].abs() * 1.01
        })?;
        let outside = |values: &[f64]| -> Vec<f64> {
            values
                .chunks(width)
                .flat_map(|row| row[..before].iter().chain(&row[before + columns..]).copied())
                .collect()
        };
        compare("the columns around x", &outside(&new), &outside(&old), |_| 0.0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prime_runtime::{DType, Tensor};

    use crate::testing::zeros;

    #[test]
    fn a_position_outside_the_table_is_refused_and_nothing_is_turned() {
        let mut x = zeros(DType::F32, &[2, 1, 4]);
        x.as_mut_slice::<f32>().fill(1.0);
        let positions = Tensor::from_slice(&[1u32, 3], &[2]).unwrap();
        let table = zeros(DType::F32, &[3, 2]);
        let error =
            crate::rope::forward(x.view_mut(), positions.view(), table.view(), table.view());
        assert_eq!(
            error.unwrap_err().to_string(),
            "rope.forward: token 1 is at position 3, but the tables end before position 3"
        );
        assert_eq!(x.as_slice::<f32>(), [1.0; 8]);
    }

    #[test]
    fn odd_head_dimensions_and_narrow_tables_are_refused_with_a_sentence() {
        let positions = zeros(DType::U32, &[2]);
        let refusal = |head_dim, columns| {
            let mut x = zeros(DType::BF16, &[2, 1, head_dim]);
            let table = zeros(DType::F32, &[3, columns]);
            crate::rope::backward(x.view_mut(), positions.view(), table.view(), table.view())
                .unwrap_err()
                .to_string()
        };
        assert_eq!(refusal(5, 2), "rope.backward: `head_dim` is 5, but pairs need an even number");
        assert_eq!(
            refusal(8, 3),
            "rope.backward: `cos` and `sin` have 3 columns, but half of `head_dim` is 4"
        );
    }
}
