//! What the studies say of their numbers: intervals, rank statistics, correlations. All in float64.

use serde::Serialize;

/// A mean over runs, with its 95 % interval by Student's t. The runs are what is drawn: seeds of one setting.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OverRuns {
    /// The mean.
    pub mean: f64,
    /// The interval's lower end; none with a single run.
    pub low: Option<f64>,
    /// The interval's upper end.
    pub high: Option<f64>,
    /// How many runs.
    pub runs: usize,
}

impl OverRuns {
    /// The mean of one value a run; none without runs.
    pub fn of(values: &[f64]) -> Option<OverRuns> {
        let runs = values.len();
        let mean = mean(values)?;
        if runs < 2 {
            return Some(OverRuns { mean, low: None, high: None, runs });
        }
        let variance =
            values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (runs - 1) as f64;
        let half = student_95(runs - 1) * (variance / runs as f64).sqrt();
        Some(OverRuns { mean, low: Some(mean - half), high: Some(mean + half), runs })
    }
}

/// The two-sided 95 % point of Student's t: tabulated to 30 degrees of freedom, then by the expansion of Cornish and Fisher, which is
/// right to four digits there (Abramowitz and Stegun, 26.7.5).
fn student_95(freedom: usize) -> f64 {
    const TABLE: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
        2.052, 2.048, 2.045, 2.042,
    ];
    let z: f64 = 1.959_964;
    match freedom {
        0 => f64::INFINITY,
        1..=30 => TABLE[freedom - 1],
        _ => {
            let n = freedom as f64;
            let first = (z.powi(3) + z) / 4.0;
            let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
            z + first / n + second / (n * n)
        }
    }
}

/// The mean; none of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The chance that a value of `high` is above one of `low`, equals counted half: the area under the curve of telling the two apart by
/// their value. None where one of the two is empty.
pub fn area_under_curve(high: &[f64], low: &[f64]) -> Option<f64> {
    if high.is_empty() || low.is_empty() {
        return None;
    }
    let mut all: Vec<(f64, bool)> = high.iter().map(|&value| (value, true)).collect();
    all.extend(low.iter().map(|&value| (value, false)));
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Ranks from 1, equals sharing their mean rank; the sum over `high` is Wilcoxon's.
    let mut sum = 0.0;
    let mut start = 0;
    while start < all.len() {
        let mut end = start;
        while end < all.len() && all[end].0 == all[start].0 {
            end += 1;
        }
        let rank = (start + 1 + end) as f64 / 2.0;
        sum += rank * all[start..end].iter().filter(|(_, is_high)| *is_high).count() as f64;
        start = end;
    }
    let (m, n) = (high.len() as f64, low.len() as f64);
    Some((sum - m * (m + 1.0) / 2.0) / (m * n))
}

/// Pearson's correlation; none where either side does not vary.
pub fn correlation(x: &[f64], y: &[f64]) -> Option<f64> {
    let (mean_x, mean_y) = (mean(x)?, mean(y)?);
    let product = |a: &[f64], mean_a: f64, b: &[f64], mean_b: f64| -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - mean_a) * (b - mean_b)).sum()
    };
    let (xx, yy) = (product(x, mean_x, x, mean_x), product(y, mean_y, y, mean_y));
    (xx > 0.0 && yy > 0.0).then(|| product(x, mean_x, y, mean_y) / (xx * yy).sqrt())
}

/// Spearman's correlation: Pearson's of the ranks, equals sharing their mean rank.
pub fn rank_correlation(x: &[f64], y: &[f64]) -> Option<f64> {
    correlation(&ranks(x), &ranks(y))
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let mut end = start;
        while end < order.len() && values[order[end]] == values[order[start]] {
            end += 1;
        }
        for &index in &order[start..end] {
            ranks[index] = (start + 1 + end) as f64 / 2.0;
        }
        start = end;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_over_runs_is_student_s() {
        // Mean 2, standard error 1 / sqrt(3), t of two degrees of freedom 4.303.
        let interval = OverRuns::of(&[1.0, 2.0, 3.0]).unwrap();
        let half = 4.303 / 3.0_f64.sqrt();
        assert!((interval.low.unwrap() - (2.0 - half)).abs() < 1e-12, "{interval:?}");
        assert!((interval.high.unwrap() - (2.0 + half)).abs() < 1e-12, "{interval:?}");
        assert_eq!(OverRuns::of(&[5.0]).unwrap().low, None);
        assert_eq!(OverRuns::of(&[]), None);
        // Beyond the table: 40 degrees of freedom have 2.0211, 120 have 1.9799.
        assert!((student_95(40) - 2.0211).abs() < 1e-4, "{}", student_95(40));
        assert!((student_95(120) - 1.9799).abs() < 1e-4, "{}", student_95(120));
    }

    #[test]
    fn the_area_is_the_share_of_pairs_in_order_and_equals_count_half() {
        let brute = |high: &[f64], low: &[f64]| {
            let pairs = high.iter().flat_map(|h| low.iter().map(move |l| (h, l)));
            let won: f64 = pairs
                .map(|(h, l)| if h > l { 1.0 } else { f64::from(u8::from(h == l)) / 2.0 })
                .sum();
            won / (high.len() * low.len()) as f64
        };
        let mut random =
            prime_runtime::random::Generator::new(1, prime_runtime::random::Stream::Test, 0);
        for case in 1..30 {
            let mut draw = |count: usize| -> Vec<f64> {
                (0..count).map(|_| f64::from(random.below(9))).collect()
            };
            let (high, low) = (draw(case), draw(31 - case));
            let found = area_under_curve(&high, &low).unwrap();
            assert!((found - brute(&high, &low)).abs() < 1e-12);
        }
        assert_eq!(area_under_curve(&[], &[1.0]), None);
    }

    #[test]
    fn correlations_of_lines_are_one_and_of_constants_are_none() {
        let x = [1.0, 2.0, 3.0, 4.0];
        assert!((correlation(&x, &[2.0, 4.0, 6.0, 8.0]).unwrap() - 1.0).abs() < 1e-12);
        assert!((rank_correlation(&x, &[-1.0, -10.0, -11.0, -400.0]).unwrap() + 1.0).abs() < 1e-12);
        assert_eq!(correlation(&x, &[3.0; 4]), None);
        assert_eq!(correlation(&[], &[]), None);
        assert_eq!(ranks(&[5.0, 1.0, 5.0]), [2.5, 1.0, 2.5]);
    }
}
