//! What generated tasks share: drawing a problem of a split.

use anyhow::{Result, ensure};
use prime_runtime::random::{Generator, Stream};

use super::Split;

/// How many candidates the probe of a task's settings draws.
const PROBES: u32 = 4096;
/// How many of them must fall in each split. With fewer, drawing one problem would take thousands of candidates.
const FEWEST: u32 = 8;

/// The generator of a problem. Train and held-out problems of one index are independent draws.
pub(super) fn generator(seed: u64, split: Split, index: u64) -> Generator {
    Generator::new(seed, Stream::Tasks, index << 1 | u64::from(split == Split::HeldOut))
}

/// Draws candidates until one falls in the split. A candidate is `None` when it misses the settings, else the text that
/// decides its split and the problem. [`check`] must have passed for the same source: that is why the loop ends.
pub(super) fn draw<T>(
    random: &mut Generator,
    split: Split,
    one_in: u32,
    mut candidate: impl FnMut(&mut Generator) -> Option<(String, T)>,
) -> T {
    loop {
        if let Some((text, problem)) = candidate(random)
            && Split::of(&text, one_in) == split
        {
            return problem;
        }
    }
}

/// Refuses settings that leave a split without problems, or nearly so. `what` names the problems of this source.
pub(super) fn check<T>(
    what: &str,
    one_in: u32,
    mut candidate: impl FnMut(&mut Generator) -> Option<(String, T)>,
) -> Result<()> {
    ensure!(
        one_in >= 2,
        "held_out_one_in must be at least 2, and is {one_in}: one problem in so many is held out"
    );
    let mut random = Generator::new(0, Stream::Tasks, u64::MAX);
    let (mut train, mut held_out) = (0, 0);
    for _ in 0..PROBES {
        if let Some((text, _)) = candidate(&mut random) {
            match Split::of(&text, one_in) {
                Split::Train => train += 1,
                Split::HeldOut => held_out += 1,
            }
        }
    }
    ensure!(
        train >= FEWEST && held_out >= FEWEST,
        "these settings leave too few problems of {what}: of {PROBES} random ones, {train} can be trained on and \
         {held_out} held out (at least {FEWEST} of each are needed); widen the ranges or change held_out_one_in"
    );
    Ok(())
}
