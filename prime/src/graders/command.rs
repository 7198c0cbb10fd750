//! A program of the user's as grader.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command as Process, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::settings::CommandSettings;
use super::{Failure, Grade, Grader};

/// Longer replies are refused.
const LONGEST_REPLY: u64 = 1 << 20;

/// Sends each response to a program and takes its score. The program is started once a worker and kept alive.
///
/// A line is `{"id": 1, "response": "...", "answer": "..."}`; the program answers each with one line, `{"id": 1, "score": 0.5}`, where
/// `"extracted": "..."` may say what it read, or with `{"id": 1, "error": "..."}`. A program that misses its deadline is killed with its
/// process group, as is one that answers something else; the next response finds a new one.
pub struct Command {
    settings: CommandSettings,
    /// Running programs that nobody uses, and how many more may be started.
    idle: Mutex<(Vec<Worker>, usize)>,
    returned: Condvar,
    next: AtomicU64,
}

struct Worker {
    child: Child,
    lines: Sender<Vec<u8>>,
    replies: Receiver<std::result::Result<String, String>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        prime_runtime::process::kill_group(self.child.id());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Command {
    /// The grader of a program, of which at most `workers` run at once.
    ///
    /// # Errors
    /// When no program is named.
    pub fn new(settings: &CommandSettings, workers: usize) -> Result<Self> {
        ensure!(
            settings.program.first().is_some_and(|program| !program.is_empty()),
            "the command grader needs a program: set grader.command.program, such as [\"python3\", \"grader.py\"]"
        );
        Ok(Command {
            settings: settings.clone(),
            idle: Mutex::new((Vec::new(), workers.max(1))),
            returned: Condvar::new(),
            next: AtomicU64::new(1),
        })
    }

    fn start(&self) -> std::result::Result<Worker, String> {
        let program = &self.settings.program;
        let mut process = Process::new(&program[0]);
        process.args(&program[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut process, 0);
        let mut child = process
            .spawn()
            .map_err(|error| format!("the grader {:?} cannot be started: {error}", program[0]))?;
        let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(format!("the grader {:?} has no streams", program[0]));
        };
        let (lines, outgoing) = channel::<Vec<u8>>();
        std::thread::spawn(move || {
            for line in outgoing {
                if stdin.write_all(&line).and_then(|()| stdin.flush()).is_err() {
                    break;
                }
            }
        });
        let (incoming, replies) = channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            loop {
                let mut line = Vec::new();
                let read = reader.by_ref().take(LONGEST_REPLY).read_until(b'\n', &mut line);
                let reply = match read {
                    Ok(0) | Err(_) => break,
                    Ok(_) if line.ends_with(b"\n") => {
                        String::from_utf8(line).map_err(|_| "it is not UTF-8".to_owned())
                    }
                    Ok(_) => Err("its line is too long, or not ended".to_owned()),
                };
                if incoming.send(reply).is_err() {
                    break;
                }
            }
        });
        Ok(Worker { child, lines, replies })
    }

    /// A running program, when fewer than all are at work; otherwise waits for one.
    fn take(&self) -> std::result::Result<Worker, String> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(worker) = idle.0.pop() {
                return Ok(worker);
            }
            if idle.1 > 0 {
                idle.1 -= 1;
                drop(idle);
                return self.start().inspect_err(|_| self.give_back(None));
            }
            idle = self.returned.wait(idle).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Returns a program, or the place of one that is gone.
    fn give_back(&self, worker: Option<Worker>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        match worker {
            Some(worker) => idle.0.push(worker),
            None => idle.1 += 1,
        }
        self.returned.notify_one();
    }

    fn ask(&self, response: &str, answer: &str) -> std::result::Result<Grade, Failure> {
        let mut worker = self.take().map_err(Failure::Error)?;
        let asked = self.ask_worker(&mut worker, response, answer);
        // A program that failed to answer may answer later, to the wrong question.
        let keep = asked.as_ref().is_ok_and(|(_, in_step)| *in_step);
        if keep {
            self.give_back(Some(worker));
        } else {
            drop(worker);
            self.give_back(None);
        }
        asked.map(|(grade, _)| grade)
    }

    fn ask_worker(
        &self,
        worker: &mut Worker,
        response: &str,
        answer: &str,
    ) -> std::result::Result<(Grade, bool), Failure> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let line = format!("{}\n", json!({ "id": id, "response": response, "answer": answer }));
        let deadline = Duration::from_secs_f64(self.settings.deadline);
        let end = Instant::now() + deadline;
        let program = &self.settings.program[0];
        let ended = |worker: &mut Worker| {
            let _ = worker.replies.recv_timeout(Duration::from_millis(50));
            let status = worker.child.try_wait().ok().flatten();
            let how = status
                .map_or("closed its output".to_owned(), |status| format!("ended with {status}"));
            Failure::Error(format!("the grader {program:?} {how} instead of answering"))
        };
        if worker.lines.send(line.into_bytes()).is_err() {
            return Err(ended(worker));
        }
        let reply = match worker.replies.recv_timeout(end.saturating_duration_since(Instant::now()))
        {
            Ok(reply) => reply,
            Err(RecvTimeoutError::Timeout) => {
                let seconds = self.settings.deadline;
                return Err(Failure::Timeout(format!(
                    "the grader {program:?} did not answer within {seconds} s"
                )));
            }
            Err(RecvTimeoutError::Disconnected) => return Err(ended(worker)),
        };
        let wrong = |what: String| {
            Failure::Error(format!("the grader {program:?} answered wrongly: {what}"))
        };
        let reply: Value = serde_json::from_str(&reply.map_err(wrong)?)
            .map_err(|error| wrong(format!("no JSON ({error})")))?;
        if reply["id"].as_u64() != Some(id) {
            return Err(wrong(format!("\"id\" is {}, expected {id}", reply["id"])));
        }
        if let Some(error) = reply["error"].as_str() {
            return Ok((Grade::failed(Failure::Error(error.to_owned())), true));
        }
        match reply["score"].as_f64() {
            Some(score) if (0.0..=1.0).contains(&score) => {
                let extracted = reply["extracted"].as_str().map(str::to_owned);
                Ok((Grade::scored(score as f32, extracted), true))
            }
            _ => Err(wrong(format!("\"score\" is {}, expected 0 to 1", reply["score"]))),
        }
    }
}

impl Grader for Command {
    fn name(&self) -> &'static str {
        "command"
    }

    fn grade(&self, response: &str, answer: &str) -> Grade {
        self.ask(response, answer).unwrap_or_else(Grade::failed)
    }

    fn is_slow(&self) -> bool {
        true
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// A grader in the shell: the score is what stands in the response.
    const SCRIPT: &str = r#"while read -r line; do
        id=$(echo "$line" | sed 's/.*"id":\([0-9]*\).*/\1/')
        case "$line" in
            *hang*) sleep 30;;
            *die*) exit 3;;
            *talk*) echo "hello";;
            *fail*) echo "{\"id\":$id,\"error\":\"cannot say\"}";;
            *half*) echo "{\"id\":$id,\"score\":0.5,\"extracted\":\"h\"}";;
            *) echo "{\"id\":$id,\"score\":2}";;
        esac
    done"#;

    #[test]
    fn a_program_is_asked_and_one_that_fails_is_replaced() {
        let program = ["sh", "-c", SCRIPT].map(str::to_owned).to_vec();
        let grader = Command::new(&CommandSettings { program, deadline: 1.0 }, 2).unwrap();
        let failure = |response: &str| grader.grade(response, "").failure.unwrap();
        for _ in 0..2 {
            assert_eq!(grader.grade("half", "x"), Grade::scored(0.5, Some("h".into())));
            assert!(
                matches!(failure("hang"), Failure::Timeout(reason) if reason.contains("within 1 s"))
            );
            assert!(
                matches!(failure("die"), Failure::Error(reason) if reason.contains("instead of answering"))
            );
            assert!(
                matches!(failure("talk"), Failure::Error(reason) if reason.contains("no JSON"))
            );
            assert!(
                matches!(failure("else"), Failure::Error(reason) if reason.contains("expected 0 to 1"))
            );
            assert_eq!(failure("fail"), Failure::Error("cannot say".into()));
        }
        assert_eq!(grader.grade(&"half ".repeat(100_000), "x").score, 0.5);
    }

    #[test]
    fn a_program_that_is_not_there_is_a_failure_and_none_at_all_is_refused() {
        let program = vec!["/no/such/grader".to_owned()];
        let grader = Command::new(&CommandSettings { program, deadline: 1.0 }, 1).unwrap();
        assert!(
            matches!(grader.grade("", "").failure, Some(Failure::Error(reason)) if reason.contains("cannot be started"))
        );
        assert!(Command::new(&CommandSettings::default(), 1).is_err());
    }
}
