//! Tuning on the emulated device: every way is checked, one is kept, and a later run takes it. Preferences are of the process, so this file is one of its own.

use prime::bench::tune;
use prime_kernels::matmul::tuning;
use prime_runtime::{DType, Device};

#[test]
fn what_was_found_is_kept_and_preferred_by_later_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tuned.json");
    let device = Device::Emulated;
    let linear = tune::named("NT:16x48x512", DType::BF16).unwrap();
    let problems = [
        linear,
        tune::named("TN:24x16x40", DType::BF16).unwrap(),
        tuning::Problem { n: 96, k: 32, swiglu: true, ..linear },
    ];
    let mut found = Vec::new();
    tune::tune_into(&path, device, &problems, |entry| found.push(entry.clone())).unwrap();
    assert_eq!(found.len(), problems.len());
    for (problem, entry) in problems.iter().zip(&found) {
        let variants = tuning::variants(device, *problem).unwrap();
        // None computed something else than the launcher's own choice.
        assert_eq!(entry.ran, variants.len(), "{}", entry.problem);
        assert!(entry.seconds <= entry.seconds_by_itself, "{entry:?}");
        let kept = tuning::preferred(problem).unwrap();
        assert_eq!(kept.to_string(), entry.variant);
    }

    // A later process begins without preferences and reads the file; products of about as many rows take it too.
    let forget = |problem: &tuning::Problem| {
        tuning::prefer(*problem, None);
        tuning::prefer(problem.class(), None);
    };
    problems.iter().for_each(forget);
    assert_eq!(tuning::preferred(&linear), None);
    tune::use_table(device, &path).unwrap();
    assert_eq!(tuning::preferred(&linear).unwrap().to_string(), found[0].variant);
    let similar = tuning::Problem { m: 9, ..linear };
    assert_eq!(tuning::preferred(&similar).unwrap().to_string(), found[0].variant);
    assert_eq!(tuning::preferred(&tuning::Problem { m: 17, ..linear }), None);

    // Neither a file that is not there nor a damaged one is in the way of a run.
    problems.iter().for_each(forget);
    std::fs::write(&path, "half of a fi").unwrap();
    tune::use_table(device, &path).unwrap();
    tune::use_table(device, &folder.path().join("none")).unwrap();
    assert_eq!(tuning::preferred(&linear), None);
}
