//! The check list where there is nothing to check.

use std::process::{Command, Output};

fn gpu_check(arguments: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_gpu-check")).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, errors)
}

#[test]
fn a_gpu_that_is_not_there_is_a_sentence_and_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("check.json");
    // No machine has so many.
    let (output, errors) =
        gpu_check(&["--device", "cuda:4000", "--output", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.starts_with("error: ") && errors.lines().count() == 1, "{errors}");
    assert!(!path.exists());
}

#[test]
fn what_cannot_be_checked_is_a_mistake_of_usage() {
    for arguments in [
        ["--device", "cpu"],
        ["--device", "gpu"],
        ["--prepare", "sm_9"],
        ["--limit", "0"],
        ["--parts", "speed"],
    ] {
        let (output, errors) = gpu_check(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains(arguments[0]), "{arguments:?}: {errors}");
    }
}
