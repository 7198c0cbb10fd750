//! What a person sees of a run: a bar where one watches, lines where a file listens.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Progress through one stage of a run.
pub struct Progress {
    bar: Option<ProgressBar>,
    label: &'static str,
    total: u64,
    last_line: Option<Instant>,
}

impl Progress {
    /// A stage of `total` steps, of which `done` were made before.
    pub fn new(label: &'static str, total: u64, done: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_position(done);
            let style = ProgressStyle::with_template(
                "{prefix:>14} {bar:30} {pos}/{len} {msg} ({eta} left)",
            );
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(label);
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Progress { bar, label, total, last_line: None }
    }

    /// A step was made. Lines come at most every few seconds, and for the last step.
    pub fn step(&mut self, step: u64, message: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(step);
                bar.set_message(message.to_string());
            }
            None => {
                let due = self.last_line.is_none_or(|last| last.elapsed() > Duration::from_secs(5));
                if due || step == self.total {
                    eprintln!("{} {step}/{} {message}", self.label, self.total);
                    self.last_line = Some(Instant::now());
                }
            }
        }
    }

    /// A line of its own above the bar.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// The stage is over.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
