//! What changed between two results.

use super::results::{Case, Contestant, Results};
use super::statistics::{Spread, ratios, spread};

/// The least change of medians that is called one.
const LEAST: f64 = 0.05;

/// One of our figures, earlier and now.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The device.
    pub device: String,
    /// The operation.
    pub operation: String,
    /// The case.
    pub title: String,
    /// Who did it.
    pub contestant: String,
    /// Its time now, in parts of its time before: above 1 is slower. Where the same other ran beside both, both times are in parts of
    /// the other's, which a machine that has become slower does not change.
    pub ratio: f64,
    /// The other's name, where there was one.
    pub beside: Option<String>,
    /// Whether the rounds of both lie apart, and their medians by more than 5 %.
    pub beyond_noise: bool,
}

impl Change {
    /// Whether it is slower than before, and by more than noise.
    pub fn is_regression(&self) -> bool {
        self.beyond_noise && self.ratio > 1.0
    }
}

/// Whether two results were measured on machines of one name, for every device that both have.
pub fn same_machines(now: &Results, earlier: &Results) -> bool {
    now.machines.iter().all(|machine| {
        let before = earlier.machines.iter().find(|before| before.device == machine.device);
        before.is_none_or(|before| before.name == machine.name)
    })
}

/// Every figure of ours that both results have.
pub fn changes(now: &Results, earlier: &Results) -> Vec<Change> {
    let mut changes = Vec::new();
    for case in &now.cases {
        let same = |before: &&Case| {
            before.device == case.device
                && before.operation == case.operation
                && before.name == case.name
                && before.dtype == case.dtype
        };
        let Some(before) = earlier.cases.iter().find(same) else { continue };
        for contestant in case.contestants.iter().filter(|contestant| contestant.ours) {
            let of = |case: &'_ Case, name: &str| -> Option<Contestant> {
                let mut timed = case.contestants.iter().filter(|c| !c.seconds.is_empty());
                timed.find(|c| c.name == name).cloned()
            };
            let Some(old) = of(before, &contestant.name) else { continue };
            let beside = case.baseline().map(|other| other.name.clone());
            let others =
                beside.as_ref().and_then(|name| Some((of(case, name)?, of(before, name)?)));
            let (new_times, old_times) = match &others {
                Some((new_other, old_other)) => (
                    ratios(&new_other.seconds, &contestant.seconds),
                    ratios(&old_other.seconds, &old.seconds),
                ),
                None => (contestant.seconds.clone(), old.seconds.clone()),
            };
            let (Some(new), Some(old)) = (spread(&new_times), spread(&old_times)) else { continue };
            changes.push(Change {
                device: case.device.clone(),
                operation: case.operation.clone(),
                title: case.title(),
                contestant: contestant.name.clone(),
                ratio: new.median / old.median,
                beside: others.and(beside),
                beyond_noise: apart(new, old),
            });
        }
    }
    changes
}

fn apart(new: Spread, old: Spread) -> bool {
    let ratio = new.median / old.median;
    let disjoint = new.low > old.high || new.high < old.low;
    disjoint && ratio.max(1.0 / ratio) > 1.0 + LEAST
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::results::{FORMAT, Machine};
    use super::*;
    use serde_json::Map;

    /// Results of one case: our rounds, and a library's.
    pub(in crate::bench) fn results(machine: &str, ours: &[f64], library: &[f64]) -> Results {
        let contestant = |name: &str, ours, seconds: &[f64]| Contestant {
            name: name.to_owned(),
            ours,
            seconds: seconds.to_vec(),
            check: None,
        };
        let mut contestants = vec![contestant("prime", true, ours)];
        if !library.is_empty() {
            contestants.push(contestant("library", false, library));
        }
        Results {
            format: FORMAT,
            started: "2026-01-01T00:00:00Z".to_owned(),
            finished: "2026-01-01T00:01:00Z".to_owned(),
            command: "cargo bench".to_owned(),
            commit: "abc".to_owned(),
            method: String::new(),
            machines: vec![Machine {
                device: "cpu".to_owned(),
                name: machine.to_owned(),
                ..Machine::default()
            }],
            cases: vec![Case {
                device: "cpu".to_owned(),
                operation: "matmul".to_owned(),
                name: "NT 64x64x64".to_owned(),
                dtype: "f32".to_owned(),
                unit: "FLOP".to_owned(),
                amount: 524288.0,
                flops: 524288.0,
                bytes: 49152.0,
                sets: 2,
                contestants,
                absent: Vec::new(),
                about: Map::new(),
            }],
            skipped: Vec::new(),
        }
    }

    #[test]
    fn a_slower_kernel_is_named_and_noise_is_not() {
        let steady = results("m", &[1.0, 1.01, 0.99, 1.0], &[]);
        let slower = results("m", &[1.2, 1.21, 1.19, 1.2], &[]);
        let noisy = results("m", &[0.9, 1.3, 0.95, 1.4], &[]);
        let slightly = results("m", &[1.03, 1.03, 1.03, 1.03], &[]);
        let change = |now: &Results| changes(now, &steady).remove(0);
        assert!(change(&slower).is_regression());
        assert!((change(&slower).ratio - 1.2).abs() < 1e-9);
        assert!(!change(&noisy).is_regression(), "its rounds overlap with the earlier ones");
        assert!(!change(&slightly).is_regression(), "3 % is below what is called a change");
        let faster = changes(&steady, &slower).remove(0);
        assert!(faster.beyond_noise && !faster.is_regression());
    }

    #[test]
    fn a_slower_machine_is_no_regression_where_a_library_ran_beside() {
        let before = results("m", &[1.0, 1.0, 1.0], &[2.0, 2.0, 2.0]);
        let throttled = results("m", &[1.5, 1.5, 1.5], &[3.0, 3.0, 3.0]);
        let change = changes(&throttled, &before).remove(0);
        assert_eq!((change.ratio, change.beside.as_deref()), (1.0, Some("library")));
        assert!(!change.beyond_noise);
        let worse = results("m", &[1.5, 1.5, 1.5], &[2.0, 2.0, 2.0]);
        assert!(changes(&worse, &before)[0].is_regression());
    }

    #[test]
    fn machines_are_told_apart_by_their_names() {
        let (a, b) = (results("a", &[1.0], &[]), results("b", &[1.0], &[]));
        assert!(same_machines(&a, &a.clone()) && !same_machines(&a, &b));
    }
}
