//! Values over steps: joined over seeds, thinned to what a screen can show.

use std::collections::BTreeMap;

/// A curve. Where it stands for several values a place, a band runs from the least to the greatest of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Points {
    /// Steps, rising.
    pub x: Vec<f64>,
    /// Means.
    pub mean: Vec<f64>,
    /// Least and greatest, where these are not the means.
    pub band: Option<(Vec<f64>, Vec<f64>)>,
}

/// Joins the curves of several seeds, each (step, value), into the mean of those that have a step, and thins them to at most `most`
/// places: steps are cut into equal runs, each of which keeps its mean, its least and its greatest value. Values that are not finite are left out.
pub fn join<'a>(seeds: impl IntoIterator<Item = &'a [(u64, f64)]>, most: usize) -> Points {
    let mut steps: BTreeMap<u64, (f64, f64, f64, f64)> = BTreeMap::new();
    for &(step, value) in seeds.into_iter().flatten() {
        if !value.is_finite() {
            continue;
        }
        let (sum, count, low, high) =
            steps.entry(step).or_insert((0.0, 0.0, f64::INFINITY, f64::NEG_INFINITY));
        *sum += value;
        *count += 1.0;
        *low = low.min(value);
        *high = high.max(value);
    }
    let all: Vec<(u64, (f64, f64, f64, f64))> = steps.into_iter().collect();
    let mut points = Points::default();
    let (mut lows, mut highs, mut banded) = (Vec::new(), Vec::new(), false);
    let buckets = all.len().min(most.max(1));
    for bucket in 0..buckets {
        let part = &all[bucket * all.len() / buckets..(bucket + 1) * all.len() / buckets];
        let mean =
            part.iter().map(|(_, (sum, count, ..))| sum / count).sum::<f64>() / part.len() as f64;
        let low = part.iter().map(|(_, seen)| seen.2).fold(f64::INFINITY, f64::min);
        let high = part.iter().map(|(_, seen)| seen.3).fold(f64::NEG_INFINITY, f64::max);
        points.x.push(part[part.len() / 2].0 as f64);
        points.mean.push(mean);
        lows.push(low);
        highs.push(high);
        banded |= low < high;
    }
    points.band = banded.then_some((lows, highs));
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_make_a_mean_and_a_band_also_where_one_of_them_ends_early() {
        let (a, b) = ([(1, 1.0), (2, 2.0), (3, 5.0)], [(1, 3.0), (2, f64::NAN)]);
        let points = join([&a[..], &b[..]], 100);
        assert_eq!((points.x, points.mean), (vec![1.0, 2.0, 3.0], vec![2.0, 2.0, 5.0]));
        assert_eq!(points.band, Some((vec![1.0, 2.0, 5.0], vec![3.0, 2.0, 5.0])));
        assert_eq!(join([&a[..]], 100).band, None);
    }

    #[test]
    fn a_long_run_is_thinned_without_losing_its_extremes() {
        let long: Vec<(u64, f64)> = (1..=100_000)
            .map(|step| (step, if step == 77_777 { 9.0 } else { (step % 2) as f64 }))
            .collect();
        let points = join([&long[..]], 500);
        assert_eq!(points.x.len(), 500);
        assert!(points.x.is_sorted());
        let (low, high) = points.band.unwrap();
        assert_eq!(high.iter().copied().fold(0.0, f64::max), 9.0);
        assert!(low.iter().all(|&x| x == 0.0));
        // 200 steps a place, half of them 1; the spike is one of 200.
        for (place, &mean) in points.mean.iter().enumerate() {
            let spike = if place == (77_777 - 1) / 200 { 8.0 / 200.0 } else { 0.0 };
            assert!((mean - 0.5 - spike).abs() < 1e-12, "{place} {mean}");
        }
        assert_eq!(join([&[][..]], 10), Points::default());
    }
}
