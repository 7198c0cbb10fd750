//! Medians and quantiles of a few rounds.

/// A quantile of values by linear interpolation; nothing of no values.
pub fn quantile(values: &[f64], at: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = at * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(low + (high - low) * place.fract())
}

/// A median, and the quantiles 20 % and 80 % around it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// A fifth of the rounds is below.
    pub low: f64,
    /// A fifth of the rounds is above.
    pub high: f64,
}

/// The spread of values; nothing of no values.
pub fn spread(values: &[f64]) -> Option<Spread> {
    Some(Spread {
        median: quantile(values, 0.5)?,
        low: quantile(values, 0.2)?,
        high: quantile(values, 0.8)?,
    })
}

/// Round by round, how often `own` goes into `other`: above 1 where `own` takes less time.
pub fn ratios(own: &[f64], other: &[f64]) -> Vec<f64> {
    own.iter().zip(other).map(|(own, other)| other / own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate_between_neighbours() {
        let values = [5.0, 1.0, 3.0, 2.0, 4.0, 6.0];
        assert_eq!(quantile(&values, 0.5), Some(3.5));
        assert_eq!((quantile(&values, 0.0), quantile(&values, 1.0)), (Some(1.0), Some(6.0)));
        assert_eq!(spread(&values), Some(Spread { median: 3.5, low: 2.0, high: 5.0 }));
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(spread(&[7.0]), Some(Spread { median: 7.0, low: 7.0, high: 7.0 }));
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        assert_eq!(ratios(&[1.0, 2.0], &[3.0, 3.0, 9.0]), [3.0, 1.5]);
    }
}
