//! Checkpoints: whatever happens, the old one or the new one is there, whole.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use prime_runtime::checkpoint::{
    AtomicFile, FolderLock, atomic_write, latest, prune, remove_stale, save, verify,
};
use prime_runtime::{Error, Result};

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Fills a checkpoint with two files, one of them in a folder, that both say `text`.
fn fill(folder: &Path, text: &str) -> Result<()> {
    fs::write(folder.join("config.json"), text).unwrap();
    fs::create_dir(folder.join("policy")).unwrap();
    fs::write(folder.join("policy/weights"), text.repeat(100)).unwrap();
    Ok(())
}

fn text_of(checkpoint: &Path) -> String {
    verify(checkpoint).unwrap();
    let text = fs::read_to_string(checkpoint.join("config.json")).unwrap();
    assert_eq!(fs::read_to_string(checkpoint.join("policy/weights")).unwrap(), text.repeat(100));
    text
}

#[test]
fn a_saved_checkpoint_is_complete_verified_and_the_latest() {
    let run = tempfile::tempdir().unwrap();
    let parent = run.path().join("checkpoints");
    assert_eq!(latest(&parent).unwrap(), None);
    let path = save(&parent, "step-3", 0, |folder| fill(folder, "three")).unwrap();
    assert_eq!(path, parent.join("step-3"));
    assert_eq!(text_of(&path), "three");
    assert_eq!(latest(&parent).unwrap(), Some(path.clone()));
    let text = fs::read(path.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let expected = serde_json::json!({
        "version": 1,
        "files": [
            { "path": "config.json", "bytes": 5, "blake3": blake3::hash(b"three").to_hex().as_str() },
            { "path": "policy/weights", "bytes": 500, "blake3": blake3::hash("three".repeat(100).as_bytes()).to_hex().as_str() },
        ],
    });
    assert_eq!(manifest, expected);
}

#[test]
fn saving_again_replaces_the_whole_folder() {
    let parent = tempfile::tempdir().unwrap();
    save(parent.path(), "step-1", 0, |folder| {
        fs::write(folder.join("only-in-the-old"), "").map_err(Error::io("write", folder))
    })
    .unwrap();
    let path = save(parent.path(), "step-1", 0, |folder| fill(folder, "new")).unwrap();
    assert_eq!(text_of(&path), "new");
    assert_eq!(names_in(&path), ["config.json", "manifest.json", "policy"]);
    assert_eq!(names_in(parent.path()), ["step-1"]);
}

#[test]
fn an_error_while_writing_leaves_what_was_there() {
    let parent = tempfile::tempdir().unwrap();
    let path = save(parent.path(), "step-1", 0, |folder| fill(folder, "old")).unwrap();
    for name in ["step-1", "step-2"] {
        let error = save(parent.path(), name, 1, |folder| {
            fill(folder, "new")?;
            Err(Error::io("write", folder.join("more"))(io::ErrorKind::StorageFull.into()))
        })
        .unwrap_err();
        assert!(error.to_string().contains("no storage space"), "{error}");
        assert_eq!(names_in(parent.path()), ["step-1"]);
        assert_eq!(text_of(&path), "old");
    }
}

#[test]
fn a_panic_while_writing_leaves_what_was_there() {
    let parent = tempfile::tempdir().unwrap();
    let path = save(parent.path(), "step-1", 0, |folder| fill(folder, "old")).unwrap();
    let result = std::panic::catch_unwind(|| {
        save::<Error>(parent.path(), "step-1", 0, |_| panic!("a bug in the caller"))
    });
    assert!(result.is_err());
    assert_eq!(names_in(parent.path()), ["step-1"]);
    assert_eq!(text_of(&path), "old");
}

#[test]
fn the_error_of_the_caller_comes_back_in_its_own_type() {
    #[derive(Debug, PartialEq)]
    enum Mine {
        Runtime(String),
        Own,
    }
    impl From<Error> for Mine {
        fn from(error: Error) -> Self {
            Mine::Runtime(error.to_string())
        }
    }
    let parent = tempfile::tempdir().unwrap();
    assert_eq!(save(parent.path(), "x", 0, |_| Err(Mine::Own)), Err(Mine::Own));
    let refused = save(parent.path(), "../x", 0, |_| Err(Mine::Own));
    assert!(matches!(refused, Err(Mine::Runtime(_))));
}

#[test]
fn the_newest_are_kept_and_others_names_are_left_alone() {
    let parent = tempfile::tempdir().unwrap();
    save(parent.path(), "best", 1, |folder| fill(folder, "best")).unwrap();
    fs::create_dir(parent.path().join("step-0")).unwrap();
    for step in [8, 9, 10, 11] {
        save(parent.path(), &format!("step-{step}"), 2, |folder| fill(folder, "x")).unwrap();
    }
    // By number, not by letter; what has no manifest is not ours to remove.
    assert_eq!(names_in(parent.path()), ["best", "step-0", "step-10", "step-11"]);
    assert_eq!(latest(parent.path()).unwrap(), Some(parent.path().join("step-11")));
}

#[test]
fn what_a_killed_process_did_not_come_to_remove_is_removed_later() {
    let parent = tempfile::tempdir().unwrap();
    for step in [3, 20, 100] {
        save(parent.path(), &format!("step-{step}"), 0, |folder| fill(folder, "a")).unwrap();
    }
    fs::create_dir(parent.path().join("step-2")).unwrap();
    prune(parent.path(), 0).unwrap();
    assert_eq!(names_in(parent.path()), ["step-100", "step-2", "step-20", "step-3"]);
    prune(parent.path(), 2).unwrap();
    assert_eq!(names_in(parent.path()), ["step-100", "step-2", "step-20"]);
}

#[test]
fn a_checkpoint_saved_below_older_ones_is_not_removed_at_once() {
    let parent = tempfile::tempdir().unwrap();
    for step in [10, 20, 5] {
        save(parent.path(), &format!("step-{step}"), 1, |folder| fill(folder, "x")).unwrap();
    }
    assert_eq!(names_in(parent.path()), ["step-20", "step-5"]);
}

#[test]
fn folders_that_are_not_complete_are_not_the_latest() {
    let parent = tempfile::tempdir().unwrap();
    let path = save(parent.path(), "step-1", 0, |folder| fill(folder, "one")).unwrap();
    for name in ["step-2", ".tmp-step-3-1-0", "step-4x", "other"] {
        fs::create_dir(parent.path().join(name)).unwrap();
    }
    // A temporary that got as far as its manifest, and one that is no step.
    for name in [".tmp-step-3-1-0", "step-4x", "other"] {
        fs::copy(path.join("manifest.json"), parent.path().join(name).join("manifest.json"))
            .unwrap();
    }
    fs::write(parent.path().join("step-5"), "a file").unwrap();
    assert_eq!(latest(parent.path()).unwrap(), Some(path));
    let error = verify(parent.path().join("step-2")).unwrap_err().to_string();
    assert!(error.contains("step-2") && error.contains("manifest.json"), "{error}");
}

#[test]
fn a_replacement_cut_off_between_two_renames_still_has_a_latest() {
    let parent = tempfile::tempdir().unwrap();
    save(parent.path(), "step-1", 0, |folder| fill(folder, "one")).unwrap();
    let path = save(parent.path(), "step-2", 0, |folder| fill(folder, "two")).unwrap();
    fs::rename(&path, parent.path().join(".old-step-2")).unwrap();
    assert_eq!(latest(parent.path()).unwrap(), Some(path.clone()));
    assert_eq!(text_of(&path), "two");
    // The same with a name that `latest` does not look for: saving over it first puts it back.
    let model = save(parent.path(), "model", 0, |folder| fill(folder, "old")).unwrap();
    fs::rename(&model, parent.path().join(".old-model")).unwrap();
    save(parent.path(), "model", 0, |_| Err(Error::Value("no".into()))).unwrap_err();
    assert_eq!(text_of(&model), "old");
}

#[test]
fn leftovers_of_dead_processes_are_removed_and_those_of_living_ones_are_not() {
    let parent = tempfile::tempdir().unwrap();
    fs::create_dir(parent.path().join(".tmp-step-2-1-0")).unwrap();
    fs::write(parent.path().join(".tmp-step-2-1-0/weights"), "half").unwrap();
    fs::write(parent.path().join(".tmp-metrics.json-1-0"), "half").unwrap();
    fs::write(parent.path().join("kept"), "").unwrap();
    let mut open = AtomicFile::create(parent.path().join("open")).unwrap();
    open.write_all(b"open").unwrap();
    save::<Error>(parent.path(), "step-1", 0, |folder| {
        fill(folder, "one")?;
        assert_eq!(remove_stale(parent.path())?, 2);
        Ok(())
    })
    .unwrap();
    open.commit().unwrap();
    assert_eq!(names_in(parent.path()), ["kept", "open", "step-1"]);
}

#[test]
fn damage_is_found_and_the_file_named() {
    type Harm = fn(&Path);
    let harms: [(Harm, &str, &str); 7] = [
        (
            |at| fs::write(at.join("policy/weights"), "x".repeat(300)).unwrap(),
            "policy/weights",
            "checksum",
        ),
        (
            |at| fs::write(at.join("policy/weights"), "x").unwrap(),
            "policy/weights",
            "1 bytes long, but was saved with 300",
        ),
        (|at| fs::remove_file(at.join("config.json")).unwrap(), "config.json", "missing"),
        (|at| fs::remove_dir_all(at.join("policy")).unwrap(), "policy/weights", "missing"),
        (|at| fs::remove_file(at.join("manifest.json")).unwrap(), "step-1", "manifest.json"),
        (|at| fs::write(at.join("manifest.json"), "{").unwrap(), "manifest.json", "cannot be read"),
        (
            |at| fs::write(at.join("manifest.json"), r#"{"version":2,"files":[]}"#).unwrap(),
            "manifest.json",
            "version 2, expected 1",
        ),
    ];
    for (harm, file, sentence) in harms {
        let parent = tempfile::tempdir().unwrap();
        let path = save(parent.path(), "step-1", 0, |folder| fill(folder, "one")).unwrap();
        verify(&path).unwrap();
        harm(&path);
        let error = verify(&path).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains(sentence), "{error}");
    }
}

#[test]
fn a_manifest_cannot_point_out_of_its_checkpoint() {
    let parent = tempfile::tempdir().unwrap();
    let path = save(parent.path(), "step-1", 0, |folder| fill(folder, "one")).unwrap();
    for outside in ["../step-1/config.json", "/etc/hostname", "policy/../../x"] {
        let manifest = serde_json::json!({"version": 1, "files": [{"path": outside, "bytes": 0, "blake3": ""}]});
        fs::write(path.join("manifest.json"), manifest.to_string()).unwrap();
        let error = verify(&path).unwrap_err().to_string();
        assert!(error.contains("is not a path inside the checkpoint"), "{error}");
    }
}

#[test]
fn names_that_leave_the_folder_or_hide_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    for name in ["", ".", "..", "../x", "a/b", "/x", ".tmp-x", "a\0b"] {
        let error =
            save(parent.path(), name, 0, |folder| fill(folder, "x")).unwrap_err().to_string();
        assert!(error.contains("plain folder name"), "{name}: {error}");
    }
    assert!(names_in(parent.path()).is_empty());
}

#[test]
fn what_a_manifest_cannot_hold_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let error = save::<Error>(parent.path(), "x", 0, |folder| {
        fs::write(folder.join("manifest.json"), "mine").map_err(Error::io("write", folder))
    })
    .unwrap_err();
    assert!(error.to_string().contains("written by `save` alone"), "{error}");
    #[cfg(unix)]
    {
        let error = save::<Error>(parent.path(), "x", 0, |folder| {
            std::os::unix::fs::symlink("/etc/hostname", folder.join("link"))
                .map_err(Error::io("create", folder))
        })
        .unwrap_err();
        assert!(error.to_string().contains("link"), "{error}");
    }
    assert!(names_in(parent.path()).is_empty());
}

#[test]
fn a_place_that_cannot_be_written_is_a_sentence_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "kept").unwrap();
    let mut called = false;
    let error = save::<Error>(file.join("checkpoints"), "step-1", 0, |_| {
        called = true;
        Ok(())
    })
    .unwrap_err()
    .to_string();
    assert!(error.contains("cannot create") && error.contains("file/checkpoints"), "{error}");
    assert!(!called);
    let error = atomic_write(file.join("x.json"), b"x").unwrap_err().to_string();
    assert!(error.contains("cannot create") && error.contains("x.json"), "{error}");
    let error = FolderLock::acquire(file.join("run")).unwrap_err().to_string();
    assert!(error.contains("cannot create") && error.contains("file/run"), "{error}");
    let error = latest(&file).unwrap_err().to_string();
    assert!(error.contains("cannot list"), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
}

#[test]
fn a_file_is_replaced_at_once_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    atomic_write(&path, b"old").unwrap();
    let mut file = AtomicFile::create(&path).unwrap();
    // More than the buffer holds, so that some of it is on disk.
    file.write_all(&vec![b'x'; 1 << 20]).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    drop(file);
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    assert_eq!(names_in(folder.path()), ["config.json"]);
    atomic_write(&path, b"new").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    assert_eq!(names_in(folder.path()), ["config.json"]);
}

#[test]
fn a_folder_or_a_device_is_never_replaced_by_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let error = atomic_write(folder.path(), b"x").unwrap_err().to_string();
    assert!(error.contains("this is a folder"), "{error}");
    #[cfg(unix)]
    {
        let link = folder.path().join("full");
        std::os::unix::fs::symlink("/dev/full", &link).unwrap();
        for path in [Path::new("/dev/full"), &link] {
            let error = atomic_write(path, b"x").unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{error}");
        }
        assert_eq!(names_in(folder.path()), ["full"]);
    }
}

#[test]
#[cfg(unix)]
fn through_a_link_the_file_it_points_to_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (path, link) = (folder.path().join("file"), folder.path().join("link"));
    fs::write(&path, "old").unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    atomic_write(&link, b"new").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}

#[test]
fn a_second_run_in_a_folder_is_refused_with_the_first_one_s_number() {
    let run = tempfile::tempdir().unwrap();
    let folder = run.path().join("new");
    let lock = FolderLock::acquire(&folder).unwrap();
    let error = FolderLock::acquire(&folder).unwrap_err().to_string();
    assert!(
        error.contains(&format!("process {} is running in this folder", std::process::id())),
        "{error}"
    );
    drop(lock);
    FolderLock::acquire(&folder).unwrap();
    // What an older, longer number left in the file is not mixed with the new one.
    fs::write(folder.join(".lock"), "99999999999").unwrap();
    let _lock = FolderLock::acquire(&folder).unwrap();
    assert_eq!(fs::read_to_string(folder.join(".lock")).unwrap(), std::process::id().to_string());
}

/// The part of [`a_process_killed_at_any_moment_leaves_the_old_or_the_new`] that is killed: this test, run again with
/// the folder in the environment, saves until then.
const VICTIM: &str = "PRIME_TEST_SAVE_UNTIL_KILLED";

#[test]
fn a_process_killed_at_any_moment_leaves_the_old_or_the_new() {
    if let Some(folder) = std::env::var_os(VICTIM) {
        save_until_killed(&PathBuf::from(folder));
    }
    let run = tempfile::tempdir().unwrap();
    let (mut last, mut model_seen) = (0, false);
    for round in 0..12u64 {
        let mut victim = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "a_process_killed_at_any_moment_leaves_the_old_or_the_new",
                "--nocapture",
            ])
            .env(VICTIM, run.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Not before its first save, then at another moment each round.
        while last == 0 && latest(run.path()).unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::thread::sleep(std::time::Duration::from_micros(20_000 + 7_919 * round));
        victim.kill().unwrap();
        victim.wait().unwrap();

        let _lock = FolderLock::acquire(run.path()).unwrap();
        let path = latest(run.path()).unwrap().unwrap();
        let step: u64 = text_of(&path).parse().unwrap();
        assert_eq!(path, run.path().join(format!("step-{step}")));
        assert!(step >= last, "step {last} was saved, then lost");
        last = step;

        remove_stale(run.path()).unwrap();
        let names = names_in(run.path());
        assert!(
            !names.iter().any(|name| name.starts_with(".tmp-") || name.starts_with(".old-")),
            "{names:?}"
        );
        // Replaced over and over, it must be there from its first save on.
        let model = run.path().join("model");
        if model.exists() {
            text_of(&model);
            model_seen = true;
        }
        assert!(model.exists() || !model_seen, "a checkpoint vanished while it was replaced");
    }
}

fn save_until_killed(run: &Path) -> ! {
    let _lock = FolderLock::acquire(run).unwrap();
    let first = latest(run).unwrap().map_or(1, |path| text_of(&path).parse::<u64>().unwrap() + 1);
    for step in first.. {
        save(run, &format!("step-{step}"), 2, |folder| fill(folder, &step.to_string())).unwrap();
        save(run, "model", 0, |folder| fill(folder, &step.to_string())).unwrap();
    }
    unreachable!("steps do not end")
}
