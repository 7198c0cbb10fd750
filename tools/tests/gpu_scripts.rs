//! The scripts of `tools/gpu`, as a person meets them who holds them wrongly.

#![cfg(unix)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Runs a script that lies alone in a folder, in that folder.
fn run(folder: &Path, script: &str, arguments: &[&str]) -> (Output, String) {
    let path = folder.join(script);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("gpu").join(script);
    std::fs::copy(source, &path).unwrap();
    let mut command = Command::new("bash");
    let output = command.arg(path).args(arguments).current_dir(folder).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, errors)
}

/// Puts a program beside the scripts.
fn program(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn each_script_explains_itself_and_does_nothing_else() {
    for script in ["pack.sh", "run.sh", "bench.sh"] {
        for help in ["--help", "-h"] {
            let folder = tempfile::tempdir().unwrap();
            let (output, errors) = run(folder.path(), script, &[help]);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(output.status.code(), Some(0), "{script}: {errors}");
            assert!(text.contains(script) && !text.contains("set -"), "{script}: {text}");
            assert_eq!(files(folder.path()), 1, "{script} {help} leaves nothing behind");
        }
    }
}

#[test]
fn wrong_arguments_and_missing_programs_are_a_sentence_and_no_file() {
    for (script, arguments, code, sentence) in [
        ("pack.sh", &["--kernel"][..], 2, "there is no option --kernel"),
        ("pack.sh", &["--kernels"], 2, "expected a chip such as sm_90a"),
        ("pack.sh", &["--kernels", "folder"], 2, "expected a chip such as sm_90a"),
        ("pack.sh", &["--kernels", "sm_90a", "--without-nvrtc"], 2, "or --without-nvrtc"),
        ("pack.sh", &["a", "--without-nvrtc"], 2, "one argument too many"),
        ("run.sh", &["--parts", "steps"], 2, "the folder of results is expected"),
        ("run.sh", &[], 1, "gpu/pack.sh makes a folder"),
        ("bench.sh", &["--list"], 2, "the folder of results is expected"),
        ("bench.sh", &["results", "matmul", "small"], 2, "one argument too many"),
        ("bench.sh", &[], 1, "gpu/pack.sh makes a folder"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (output, errors) = run(folder.path(), script, arguments);
        assert_eq!(output.status.code(), Some(code), "{script} {arguments:?}: {errors}");
        assert!(errors.contains(sentence) && errors.lines().count() == 1, "{script}: {errors}");
        assert_eq!(files(folder.path()), 1, "{script} {arguments:?} leaves nothing behind");
    }
}

#[test]
fn a_suite_that_cannot_start_is_said_once_and_one_that_lost_its_device_goes_on() {
    let ran = |suite: &str| {
        let folder = tempfile::tempdir().unwrap();
        program(folder.path(), "suite", suite);
        program(folder.path(), "prime", "echo a page");
        let started = Instant::now();
        let (output, errors) = run(folder.path(), "bench.sh", &["results"]);
        assert!(started.elapsed() < Duration::from_secs(60), "{errors}");
        (output.status.code(), errors.matches("a process of the suite").count())
    };
    // As a loader ends that does not find a library.
    assert_eq!(ran("exit 127"), (Some(1), 0));
    assert_eq!(ran("exit 1"), (Some(1), 0));
    // Each process of the suite loses the device once, and the second is done.
    assert_eq!(ran("[ \"${PRIME_BENCH_RESUME:-}\" = yes ] || exit 75"), (Some(1), 1));
    assert_eq!(ran("[ \"${PRIME_BENCH_RESUME:-}\" = yes ] || kill -ABRT $$"), (Some(1), 1));
}
