//! The oracle, in float64, of one parameter.

use super::Settings;

/// Updates one weight and its moments.
pub fn update(w: &mut f64, m: &mut f64, v: &mut f64, gradient: f64, settings: Settings) {
    let Settings {
        learning_rate, beta1, beta2, epsilon, weight_decay, step, gradient_scale, ..
    } = settings;
    let g = gradient * gradient_scale;
    *m = beta1 * *m + (1.0 - beta1) * g;
    *v = beta2 * *v + (1.0 - beta2) * g * g;
    let corrected_m = *m / (1.0 - beta1.powf(step as f64));
    let corrected_v = *v / (1.0 - beta2.powf(step as f64));
    *w -= learning_rate * (corrected_m / (corrected_v.sqrt() + epsilon) + weight_decay * *w);
}

/// The Euclidean norm.
pub fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use crate::adamw::Settings;

    #[test]
    fn two_updates_by_hand() {
        // b1 = 0.5, b2 = 0.75, lr = 0.1, decay = 0.5, no epsilon; gradients 4 * 0.5 = 2, then -6 * 0.5 = -3.
        let mut settings = Settings {
            learning_rate: 0.1,
            beta1: 0.5,
            beta2: 0.75,
            epsilon: 0.0,
            weight_decay: 0.5,
            step: 1,
            gradient_scale: 0.5,
            seed: 0,
            first: 0,
        };
        let (mut w, mut m, mut v) = (1.0, 0.0, 0.0);
        super::update(&mut w, &mut m, &mut v, 4.0, settings);
        // m = 1, v = 1; corrected 2 and 4; w = 1 - 0.1 (2 / 2 + 0.5) = 0.85.
        assert_eq!((m, v), (1.0, 1.0));
        assert!((w - 0.85).abs() < 1e-15);
        settings.step = 2;
        settings.epsilon = 0.5;
        super::update(&mut w, &mut m, &mut v, -6.0, settings);
        // m = 0.5 - 1.5 = -1, v = 0.75 + 2.25 = 3; corrected -1 / 0.75 = -4/3 and 3 / 0.4375 = 48/7;
        // w = 0.85 - 0.1 (-4/3 / (sqrt(48/7) + 1/2) + 0.425).
        assert_eq!((m, v), (-1.0, 3.0));
        let expected = 0.85 - 0.1 * (-4.0 / 3.0 / ((48.0f64 / 7.0).sqrt() + 0.5) + 0.425);
        assert!((w - expected).abs() < 1e-15);
    }
}
