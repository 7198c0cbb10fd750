//! What changed between two results.

use super::results::{Case, Contestant, Machine, Results};
use super::statistics::{Spread, quantile, ratios, spread};

/// The least change of medians that is called one.
pub const LEAST: f64 = 0.05;

/// So many figures of others tell how much two runs differ by themselves.
pub const LEAST_OTHERS: usize = 10;

/// The part of the others that the noise of two runs contains.
const CONTAINED: f64 = 0.9;

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
    /// Whether the rounds of both lie apart, and their medians by more than [`LEAST`], or [`noise`] where nobody else ran beside both.
    pub beyond_noise: bool,
}

impl Change {
    /// Whether it is slower than before, and by more than noise.
    pub fn is_regression(&self) -> bool {
        self.beyond_noise && self.ratio > 1.0
    }
}

/// Whether two results were measured on machines of one name, for every device that both have.
pub fn same_names(now: &Results, earlier: &Results) -> bool {
    all_alike(now, earlier, |machine, before| machine.name == before.name)
}

/// Whether two results were measured on machines of one kind: of one name, and alike in what both tell of cores and instructions.
pub fn same_machines(now: &Results, earlier: &Results) -> bool {
    same_names(now, earlier) && all_alike(now, earlier, |machine, before| !differ(machine, before))
}

fn all_alike(now: &Results, earlier: &Results, alike: impl Fn(&Machine, &Machine) -> bool) -> bool {
    now.machines.iter().all(|machine| {
        let before = earlier.machines.iter().find(|before| before.device == machine.device);
        before.is_none_or(|before| alike(machine, before))
    })
}

fn differ(machine: &Machine, before: &Machine) -> bool {
    // Threads and instructions are the host's, whose part in a GPU's own time is small.
    let of_host = ["family and model", "threads", "instructions"];
    let facts = if machine.device == "cpu" { &of_host[..] } else { &["multiprocessors"] };
    facts.iter().any(|fact| {
        let both = machine.about.get(*fact).zip(before.about.get(*fact));
        both.is_some_and(|(now, before)| now != before)
    })
}

/// How much two runs on a device differ by themselves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// The least change of a time that is more than noise.
    pub least: f64,
    /// Figures of others that tell.
    pub others: usize,
}

/// The noise of two runs. The rounds of a figure follow each other within moments, and say nothing of what is different at another hour: where pages
/// lie, what the machine's other guests do. Others' code is the same in both runs, so what became of their times is noise.
pub fn noise(device: &str, now: &Results, earlier: &Results) -> Noise {
    let mut changes = Vec::new();
    for case in now.cases.iter().filter(|case| case.device == device) {
        let Some(before) = counterpart(case, earlier) else { continue };
        for other in case.contestants.iter().filter(|contestant| !contestant.ours) {
            let times = spread(&other.seconds).zip(timed(before, &other.name));
            let times = times.and_then(|(now, old)| Some((now, spread(&old.seconds)?)));
            changes.extend(times.map(|(now, old)| (now.median / old.median).ln().abs()));
        }
    }
    let others = changes.len();
    let contained = quantile(&changes, CONTAINED).filter(|_| others >= LEAST_OTHERS);
    Noise { least: contained.map_or(LEAST, |change| change.exp_m1().max(LEAST)), others }
}

/// The same case of other results.
fn counterpart<'a>(case: &Case, results: &'a Results) -> Option<&'a Case> {
    results.cases.iter().find(|other| {
        other.device == case.device
            && other.operation == case.operation
            && other.name == case.name
            && other.dtype == case.dtype
    })
}

/// Whoever of a name was timed.
fn timed<'a>(case: &'a Case, name: &str) -> Option<&'a Contestant> {
    case.contestants.iter().find(|who| who.name == name && !who.seconds.is_empty())
}

/// Every figure of ours that both results have.
pub fn changes(now: &Results, earlier: &Results) -> Vec<Change> {
    let mut changes = Vec::new();
    let noises: Vec<(&str, Noise)> = now
        .machines
        .iter()
        .map(|machine| (machine.device.as_str(), noise(&machine.device, now, earlier)))
        .collect();
    for case in &now.cases {
        let Some(before) = counterpart(case, earlier) else { continue };
        let noise = noises.iter().find(|(device, _)| *device == case.device);
        let noise = noise.map_or(LEAST, |(_, noise)| noise.least);
        for contestant in case.contestants.iter().filter(|contestant| contestant.ours) {
            let Some(old) = timed(before, &contestant.name) else { continue };
            // The fastest that ran beside both.
            let others = case.contestants.iter().filter(|other| !other.ours);
            let others = others.filter(|other| !other.seconds.is_empty());
            let others = others.filter_map(|other| Some((other, timed(before, &other.name)?)));
            let others = others.min_by(|a, b| a.0.median().total_cmp(&b.0.median()));
            let (new_times, old_times) = match &others {
                Some((new_other, old_other)) => (
                    ratios(&new_other.seconds, &contestant.seconds),
                    ratios(&old_other.seconds, &old.seconds),
                ),
                None => (contestant.seconds.clone(), old.seconds.clone()),
            };
            let (Some(new), Some(old)) = (spread(&new_times), spread(&old_times)) else { continue };
            let least = if others.is_some() { LEAST } else { noise };
            changes.push(Change {
                device: case.device.clone(),
                operation: case.operation.clone(),
                title: case.title(),
                contestant: contestant.name.clone(),
                ratio: new.median / old.median,
                beside: others.map(|(other, _)| other.name.clone()),
                beyond_noise: apart(new, old, least),
            });
        }
    }
    changes
}

fn apart(new: Spread, old: Spread, least: f64) -> bool {
    let ratio = new.median / old.median;
    let disjoint = new.low > old.high || new.high < old.low;
    disjoint && ratio.max(1.0 / ratio) > 1.0 + least
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::results::FORMAT;
    use super::*;
    use serde_json::{Map, json};

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
    fn times_are_in_parts_of_the_fastest_other_that_ran_beside_both() {
        let before = results("m", &[1.0; 3], &[2.0; 3]);
        let mut throttled = results("m", &[1.5; 3], &[3.0; 3]);
        let others = &mut throttled.cases[0].contestants;
        let faster =
            Contestant { name: "a new one".into(), seconds: vec![0.1; 3], ..others[1].clone() };
        others.push(faster);
        let change = changes(&throttled, &before).remove(0);
        assert_eq!((change.ratio, change.beside.as_deref()), (1.0, Some("library")));
    }

    #[test]
    fn where_nobody_ran_beside_a_change_must_exceed_what_unchanged_code_changed_by() {
        // Two runs in which a library's times differ by up to a fifth either way, and one case that it does not run.
        let run = |factor: &dyn Fn(usize) -> f64, alone: f64| {
            let mut all = results("m", &[alone; 4], &[]);
            for i in 0..20 {
                let mut case = results("m", &[factor(i); 4], &[factor(i); 4]).cases.remove(0);
                case.name = format!("case {i}");
                all.cases.push(case);
            }
            all
        };
        let before = run(&|_| 1.0, 1.0);
        let drift = |i: usize| if i.is_multiple_of(2) { 1.2 } else { 1.0 / 1.2 };
        let found = noise("cpu", &run(&drift, 1.0), &before);
        assert!((found.least - 0.2).abs() < 1e-9 && found.others == 20, "{found:?}");
        let alone = |now: &Results| changes(now, &before).remove(0);
        assert!(!alone(&run(&drift, 1.15)).beyond_noise, "unchanged code changed by as much");
        assert!(alone(&run(&drift, 1.25)).is_regression());
        assert!(alone(&run(&|_| 1.0, 1.15)).is_regression(), "these runs are quiet");
        // A few others prove nothing.
        let few = results("m", &[1.0], &[9.0]);
        assert_eq!(noise("cpu", &few, &results("m", &[1.0], &[1.0])).least, LEAST);
    }

    #[test]
    fn machines_are_told_apart_by_their_names_and_what_they_have() {
        let (a, b) = (results("a", &[1.0], &[]), results("b", &[1.0], &[]));
        assert!(same_machines(&a, &a.clone()) && !same_machines(&a, &b));
        for (fact, one, other) in [
            ("threads", json!(2), json!(64)),
            ("instructions", json!("avx2"), json!("avx512")),
            ("family and model", json!("25, 17"), json!("26, 2")),
        ] {
            let of = |value: serde_json::Value| {
                let mut results = a.clone();
                results.machines[0].about.insert(fact.to_owned(), value);
                results
            };
            assert!(!same_machines(&of(one.clone()), &of(other)), "{fact}");
            assert!(same_machines(&of(one.clone()), &of(one.clone())), "{fact}");
            assert!(same_machines(&of(one), &a), "{fact}: a record that does not tell");
        }
    }
}
