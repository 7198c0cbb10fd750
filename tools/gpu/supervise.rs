//! Processes with a limit: a kernel that fails takes the device away from its process, and one that hangs never ends.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Bytes of a process's words that are kept, the last ones.
const KEPT: usize = 1 << 20;

/// Lines of them that stand in a result.
const TAIL: usize = 20;

/// How long is waited for the end of what has been ended.
const GRACE: Duration = Duration::from_secs(5);

/// How long is waited for the end of its words, which a program that it had started may hold open.
const PIPES: Duration = Duration::from_secs(1);

/// What a process did until it ended, or had to be ended.
pub struct Ended {
    how: Result<ExitStatus, String>,
    /// What it wrote to its standard output.
    pub output: String,
    /// What it wrote to its standard error.
    pub errors: String,
}

impl Ended {
    /// Runs a program to its end, or to its limit.
    pub fn of(mut command: Command, limit: Duration) -> Ended {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let program = command.get_program().display();
                let how = Err(format!("{program} cannot be started: {error}"));
                return Ended { how, output: String::new(), errors: String::new() };
            }
        };
        let output = child.stdout.take().map(Words::read);
        let errors = child.stderr.take().map(Words::read);
        let how = match wait(&mut child, limit) {
            Some(status) => Ok(status),
            None => {
                let seconds = (limit.as_secs_f64() * 10.0).round() / 10.0;
                let _ = child.kill();
                let stays =
                    if wait(&mut child, GRACE).is_none() { ", and does not end" } else { "" };
                Err(format!("it was not done within {seconds} s and was ended{stays}"))
            }
        };
        let text = |words: Option<Words>| words.map(Words::text).unwrap_or_default();
        Ended { how, output: text(output), errors: text(errors) }
    }

    /// Why it did not end well, in a sentence; none where it did.
    pub fn failure(&self) -> Option<String> {
        match &self.how {
            Ok(status) if status.success() => None,
            Ok(status) => Some(format!("its process ended with {status}")),
            Err(why) => Some(why.clone()),
        }
    }

    /// What it found, if it ended well: a line of JSON, behind which nothing but the words of a library or a sanitizer comes.
    pub fn found(&self) -> Value {
        let last = self.output.lines().rev().find(|line| line.starts_with('{'));
        match (self.failure(), last.and_then(|line| serde_json::from_str(line).ok())) {
            (None, Some(found)) => found,
            (None, _) => self.failed("its process ended without a word of what it found"),
            (Some(why), _) => self.failed(&why),
        }
    }

    /// A failure with the last words.
    pub fn failed(&self, why: &str) -> Value {
        let said = if self.errors.trim().is_empty() { &self.output } else { &self.errors };
        json!({ "passed": false, "error": why, "last_words": tail(said) })
    }
}

/// The last lines of a text.
pub fn tail(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].to_vec()
}

fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let started = Instant::now();
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if started.elapsed() >= limit {
            return None;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// What comes out of a pipe, read by a thread of its own.
struct Words {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// Closed when the pipe is.
    open: Receiver<()>,
}

impl Words {
    fn read(mut pipe: impl Read + Send + 'static) -> Words {
        let (sender, open) = channel();
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&bytes);
        thread::spawn(move || {
            let _open = sender;
            let mut part = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut part) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&part[..count]);
                if kept.len() > 2 * KEPT {
                    let old = kept.len() - KEPT;
                    kept.drain(..old);
                }
            }
        });
        Words { bytes, open }
    }

    fn text(self) -> String {
        let _ = self.open.recv_timeout(PIPES);
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Ends this process a while after its limit. Whoever started it does so before, if it is still there and nothing, such as a sanitizer, stands between.
pub fn end_after(limit: Duration) {
    thread::spawn(move || {
        thread::sleep(limit + 2 * GRACE);
        eprintln!("not done within {} s, this process ends", limit.as_secs());
        // Without the driver's own end, which would wait for the device.
        std::process::abort();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: f64) -> Ended {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Ended::of(command, Duration::from_secs_f64(limit))
    }

    fn error(found: &Value) -> &str {
        found["error"].as_str().unwrap()
    }

    #[test]
    fn what_a_child_found_is_its_line_of_json() {
        let script =
            "echo a library says hello; echo '{\"passed\":true,\"cases\":3}'; echo ==== no errors";
        let ended = shell(script, 60.0);
        assert_eq!(ended.found(), json!({ "passed": true, "cases": 3 }));
        let silent = shell("echo a library says hello", 60.0).found();
        assert_eq!(error(&silent), "its process ended without a word of what it found");
        assert_eq!(silent["last_words"], json!(["a library says hello"]));
    }

    #[test]
    fn a_child_that_fails_leaves_its_status_and_its_last_words() {
        let script = "i=0; while [ $i -lt 30 ]; do echo line $i >&2; i=$((i+1)); done; echo '{\"passed\":true}'; exit 7";
        let found = shell(script, 60.0).found();
        assert_eq!(found["passed"], json!(false));
        assert_eq!(error(&found), "its process ended with exit status: 7");
        let words = found["last_words"].as_array().unwrap();
        assert_eq!((words.len(), &words[19]), (TAIL, &json!("line 29")));
    }

    #[test]
    fn a_child_that_a_signal_ends_leaves_the_signal() {
        let found = shell("echo seed 3 >&2; kill -SEGV $$", 60.0).found();
        assert!(error(&found).starts_with("its process ended with signal: 11"), "{found}");
        assert_eq!(found["last_words"], json!(["seed 3"]));
    }

    #[test]
    fn a_child_that_hangs_is_ended_at_its_limit_though_another_holds_its_pipe() {
        let started = Instant::now();
        let found = shell("echo seed 9 >&2; sleep 30; echo never", 0.3).found();
        assert!(started.elapsed() < Duration::from_secs(25));
        assert_eq!(error(&found), "it was not done within 0.3 s and was ended");
        assert_eq!(found["last_words"], json!(["seed 9"]));
    }

    #[test]
    fn a_program_that_is_not_there_is_a_failure_in_a_sentence() {
        let found = Ended::of(Command::new("/no/such/program"), Duration::from_secs(1)).found();
        assert!(error(&found).starts_with("/no/such/program cannot be started: "), "{found}");
    }
}
