//! Ctrl-C and termination: the first asks the run to save and stop, the second ends the program at once.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Catches Ctrl-C, and the signal by which schedulers end a job.
///
/// # Errors
/// When the system does not let signals be caught.
pub fn catch() -> Result<()> {
    ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            std::process::exit(1);
        }
        eprintln!("stopping after this step, then saving; once more ends at once without saving");
    })
    .context("cannot catch Ctrl-C")
}

/// Whether the run was asked to stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}
