//! Ctrl-C and termination: the first asks the run to save and stop, the second ends the program at once.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};

const NEVER: u64 = u64::MAX;

/// Steps that may still begin before the run stops.
static LEFT: AtomicU64 = AtomicU64::new(NEVER);

/// Catches Ctrl-C, and the signal by which schedulers end a job.
///
/// # Errors
/// When the system does not let signals be caught.
pub fn catch() -> Result<()> {
    ctrlc::set_handler(|| {
        if LEFT.swap(0, Ordering::SeqCst) == 0 {
            std::process::exit(1);
        }
        eprintln!("stopping after this step, then saving; once more ends at once without saving");
    })
    .context("cannot catch Ctrl-C")
}

/// Asks the runs of this process to stop once they have made `steps` more steps, of whatever stage.
pub fn request_after(steps: u64) {
    LEFT.store(steps.min(NEVER - 1), Ordering::SeqCst);
}

/// Takes a request back, so that another run can begin.
pub fn withdraw() {
    LEFT.store(NEVER, Ordering::SeqCst);
}

/// Whether a stop is asked for already.
pub fn is_requested() -> bool {
    LEFT.load(Ordering::SeqCst) == 0
}

/// Whether the run is to stop rather than begin another step. Asked once before each.
pub(super) fn stops_here() -> bool {
    let count = |left: u64| if left == NEVER { None } else { left.checked_sub(1) };
    LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, count) == Err(0)
}
