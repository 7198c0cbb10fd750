//! The oracle, in float64.

/// `x` of shape `[tokens, heads, head_dim]`, each pair turned by the angle whose cosine and sine are in row
/// `positions[token]` of the tables; `sign` is 1 forward and -1 backward.
pub fn turn(
    x: &[f64],
    heads: usize,
    head_dim: usize,
    positions: &[u32],
    cos: &[f64],
    sin: &[f64],
    sign: f64,
) -> Vec<f64> {
    let half = head_dim / 2;
    let mut turned = x.to_vec();
    for (token, &position) in positions.iter().enumerate() {
        for head in 0..heads {
            let start = (token * heads + head) * head_dim;
            for i in 0..half {
                let (c, s) =
                    (cos[position as usize * half + i], sign * sin[position as usize * half + i]);
                let (x1, x2) = (x[start + i], x[start + half + i]);
                turned[start + i] = x1 * c - x2 * s;
                turned[start + half + i] = x2 * c + x1 * s;
            }
        }
    }
    turned
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_gradient, generator};

    #[test]
    fn backward_is_the_gradient_of_forward() {
        let mut random = generator(1);
        let (heads, head_dim, positions) = (2, 6, [4, 0, 2]);
        let mut normals =
            |count| (0..count).map(|_| f64::from(random.normal())).collect::<Vec<_>>();
        let (x, d_out) = (normals(3 * heads * head_dim), normals(3 * heads * head_dim));
        let angles = normals(5 * head_dim / 2);
        let cos: Vec<f64> = angles.iter().map(|angle| angle.cos()).collect();
        let sin: Vec<f64> = angles.iter().map(|angle| angle.sin()).collect();
        let d_x = super::turn(&d_out, heads, head_dim, &positions, &cos, &sin, -1.0);
        check_gradient("d_x", &x, &d_x, |x| {
            let out = super::turn(x, heads, head_dim, &positions, &cos, &sin, 1.0);
            out.iter().zip(&d_out).map(|(o, d)| o * d).sum()
        })
        .unwrap();
    }
}
