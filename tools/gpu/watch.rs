//! Ends the program when one case takes too long: a kernel that hangs would take all the time that a machine is lent for.

use std::path::PathBuf;
use std::process;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use prime_runtime::checkpoint;
use serde_json::{Value, json};

/// What runs, and since when.
static RUNNING: Mutex<Option<(String, Instant)>> = Mutex::new(None);

fn running() -> MutexGuard<'static, Option<(String, Instant)>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does a case's work, watched under its name.
pub fn watched<T>(name: impl FnOnce() -> String, work: impl FnOnce() -> T) -> T {
    *running() = Some((name(), Instant::now()));
    let result = work();
    *running() = None;
    result
}

/// The case that has run longer than `most`, in a sentence.
fn overdue(most: Duration) -> Option<String> {
    let running = running();
    let (name, since) = running.as_ref()?;
    (since.elapsed() > most).then(|| {
        format!(
            "{name} has run for {most:?} and was given up: the device hangs, or is far too slow"
        )
    })
}

/// Watches from now on. What was found before stays in the file, and the case that hangs is added to it.
pub fn start(output: PathBuf, most: Duration) {
    thread::spawn(move || {
        loop {
            thread::sleep(Duration::from_millis(500));
            let Some(sentence) = overdue(most) else { continue };
            let before = std::fs::read_to_string(&output).ok();
            let before = before.and_then(|text| serde_json::from_str::<Value>(&text).ok());
            let mut result = before.unwrap_or_else(|| json!({}));
            result["given_up"] = json!(sentence);
            let written = checkpoint::atomic_write(&output, format!("{result:#}").as_bytes());
            eprintln!("error: {sentence}");
            if let Err(error) = written {
                eprintln!("error: the result cannot be written to {}: {error}", output.display());
            }
            process::exit(1);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_overdue_while_it_runs_and_not_after() {
        let found = watched(
            || "rope, seed 3".to_owned(),
            || {
                thread::sleep(Duration::from_millis(5));
                (overdue(Duration::from_millis(1)), overdue(Duration::from_secs(60)))
            },
        );
        assert!(found.0.is_some_and(|sentence| sentence.starts_with("rope, seed 3 has run")));
        assert_eq!(found.1, None);
        assert_eq!(overdue(Duration::ZERO), None);
    }
}
