//! The fastest of several ways, found without timing all of them thoroughly.

use super::statistics::quantile;

/// How many of the fastest at first sight are looked at again, how often, and by how many calls.
const FINALISTS: usize = 8;
const ROUNDS: usize = 5;
const CALLS: usize = 4;

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Fastest {
    /// Its index among the candidates.
    pub index: usize,
    /// Its time, the median of rounds.
    pub seconds: f64,
    /// How many candidates could be timed at all.
    pub ran: usize,
    /// The median of the first candidate, where it could be timed.
    pub first: Option<f64>,
}

/// Times every candidate by one call, and the fastest eight of them, and the first, again in turn, the order turned around from round to round. `time` is given a candidate and a
/// number of calls, and returns the seconds of one; nothing where it cannot run.
pub fn fastest<T>(
    candidates: &[T],
    mut time: impl FnMut(&T, usize) -> Option<f64>,
) -> Option<Fastest> {
    let mut ranked: Vec<(f64, usize)> = Vec::new();
    for (index, candidate) in candidates.iter().enumerate() {
        ranked.extend(time(candidate, 1).map(|seconds| (seconds, index)));
    }
    let ran = ranked.len();
    let has_first = ranked.first().is_some_and(|&(_, index)| index == 0);
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut finalists: Vec<usize> =
        ranked.iter().take(FINALISTS).map(|&(_, index)| index).collect();
    if has_first && !finalists.contains(&0) {
        finalists.push(0);
    }
    let mut rounds: Vec<Vec<f64>> = vec![Vec::new(); finalists.len()];
    for round in 0..ROUNDS {
        for place in 0..finalists.len() {
            // The order turns around, so that what the device does meanwhile weighs on all alike.
            let place = if round % 2 == 0 { place } else { finalists.len() - 1 - place };
            rounds[place].extend(time(&candidates[finalists[place]], CALLS));
        }
    }
    let medians = rounds.iter().map(|times| quantile(times, 0.5));
    let medians: Vec<(usize, Option<f64>)> = finalists.into_iter().zip(medians).collect();
    let timed = medians.iter().filter_map(|&(index, median)| Some((index, median?)));
    let (index, seconds) = timed.min_by(|a, b| a.1.total_cmp(&b.1))?;
    let first = medians.iter().find(|(index, _)| *index == 0).and_then(|(_, median)| *median);
    Some(Fastest { index, seconds, ran, first })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finalists_take_turns_in_an_order_that_turns_around() {
        let mut calls = String::new();
        fastest(&["a", "b", "c"], |name, _| {
            calls.push_str(name);
            Some(f64::from(name.as_bytes()[0]))
        });
        assert_eq!(calls, "abc abc cba abc cba abc".replace(' ', ""));
    }

    #[test]
    fn the_fastest_candidate_is_found_though_one_call_misleads() {
        let truth: Vec<f64> = (0..40).map(|i| 5.0 + ((i * 17 + 20) % 40) as f64 / 10.0).collect();
        let fastest_of_all = truth.iter().position(|&t| t == 5.0).unwrap();
        let mut looks = 0;
        let found = fastest(&truth, |seconds, calls| {
            // A first look is off either way; one candidate cannot run at all.
            if calls == 1 {
                looks += 1;
                let noise = if looks % 2 == 0 { 0.3 } else { -0.2 };
                return (*seconds < 8.9).then_some(seconds + noise);
            }
            Some(*seconds)
        })
        .unwrap();
        assert_eq!((found.index, found.seconds, found.ran), (fastest_of_all, 5.0, 39));
        assert_eq!(found.first, Some(truth[0]), "the first is timed beside the fastest");
        assert_eq!(fastest(&truth, |_, _| None), None);
        assert_eq!(fastest::<f64>(&[], |_, _| Some(1.0)), None);
    }
}
