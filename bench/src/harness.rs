//! Rounds: every contestant of a case in turn, the order turned around from round to round, on buffers that take turns.
//!
//! Criterion is the front: it chooses cases by its filter, asks for samples, prints and keeps them. Each sample that it gets of a contestant is
//! one round, which ran for all contestants at once; so the samples of two contestants are of the same moments, and their ratio means
//! something on a machine that others use. A contestant's time is the host's clock on the host, and the device's own on a GPU.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use prime_runtime::Device;
use prime_runtime::cuda::{self, Event, Graph};

use crate::clocks::{Clocks, Sample};
use crate::work::{Comparison, Contestant, Work};

/// Rounds of a case that count. Criterion takes no fewer.
pub const ROUNDS: usize = 10;

/// How long a contestant runs in a round, where a call is shorter.
pub const ROUND_SECONDS: f64 = 0.008;

/// Calls of a GPU that are shorter than this are recorded as a graph, so that what starts them is not what is measured.
const GRAPH_SECONDS: f64 = 20e-6;

/// The most calls of a round, and of a graph.
const MOST_CALLS: usize = 5000;
const MOST_GRAPH_CALLS: usize = 200;

/// A case while it is measured.
pub struct Measured {
    /// What runs.
    pub work: Work,
    /// What every contestant's check found.
    pub checks: Vec<Comparison>,
    /// What the device's clocks were after every round.
    pub samples: Vec<Sample>,
    device: Device,
    counts: Vec<usize>,
    graphs: Vec<Option<Graph>>,
    /// Others that failed: they are out, and the rest is measured.
    out: Vec<bool>,
    /// Seconds of a call, by round and contestant.
    rounds: Vec<Vec<f64>>,
    /// The round that each contestant is asked for next.
    cursors: Vec<usize>,
    /// The set that each contestant takes next.
    sets: Vec<usize>,
}

impl Measured {
    /// Checks every contestant and finds out how many calls make a round. `recordable` work may be recorded as a graph.
    ///
    /// # Errors
    /// When one of ours fails.
    pub fn new(work: Work, device: Device, recordable: bool) -> Result<Measured> {
        let count = work.contestants.len();
        let mut measured = Measured {
            work,
            checks: Vec::with_capacity(count),
            samples: Vec::new(),
            device,
            counts: vec![1; count],
            graphs: (0..count).map(|_| None).collect(),
            out: vec![false; count],
            rounds: Vec::new(),
            cursors: vec![0; count],
            sets: vec![1; count],
        };
        for contestant in 0..count {
            let check = measured.work.check(contestant);
            let nothing = Comparison { compared: 0, worst: f64::INFINITY };
            let check = measured.or_out(contestant, check)?.unwrap_or(nothing);
            measured.checks.push(check);
        }
        // A device that simulates has no time that would mean anything.
        if !measured.is_timed() {
            return Ok(measured);
        }
        for contestant in 0..count {
            if !measured.out[contestant] {
                let calibrated = measured.calibrate(contestant, recordable);
                measured.or_out(contestant, calibrated)?;
            }
        }
        Ok(measured)
    }

    /// Leaves out one of the others where it failed; passes on what one of ours failed of.
    fn or_out<T>(&mut self, contestant: usize, outcome: Result<T>) -> Result<Option<T>> {
        let who = &self.work.contestants[contestant];
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(error) if who.ours => Err(error.context(who.name.clone())),
            Err(error) => {
                self.work.absent.push((who.name.clone(), format!("it failed: {error:#}")));
                self.out[contestant] = true;
                Ok(None)
            }
        }
    }

    fn calibrate(&mut self, contestant: usize, recordable: bool) -> Result<()> {
        // The first call finds buffers and code for the first time.
        self.seconds(contestant, 1)?;
        let mut count = 1;
        let mut seconds = self.seconds(contestant, count)?;
        while seconds < 0.2 * ROUND_SECONDS && count < MOST_CALLS {
            count = (count * 4).min(MOST_CALLS);
            seconds = self.seconds(contestant, count)?;
        }
        let each = seconds / count as f64;
        self.counts[contestant] = ((ROUND_SECONDS / each) as usize).clamp(1, MOST_CALLS);
        let Device::Cuda(number) = self.device else { return Ok(()) };
        if recordable && each < GRAPH_SECONDS {
            self.counts[contestant] = self.counts[contestant].min(MOST_GRAPH_CALLS);
            let mut outcome = Ok(());
            let graph = Graph::capture(number, || {
                outcome = (0..self.counts[contestant])
                    .try_for_each(|call| self.work.run(contestant, call));
                Ok(())
            });
            match outcome.and(graph.map_err(Into::into)) {
                Ok(graph) => self.graphs[contestant] = Some(graph),
                Err(error) => {
                    let what =
                        format!("{} started call by call", self.work.contestants[contestant].name);
                    self.work.about.insert(what, format!("{error:#}").into());
                }
            }
        }
        Ok(())
    }

    /// Seconds of so many calls.
    fn seconds(&mut self, contestant: usize, count: usize) -> Result<f64> {
        if let Device::Cuda(number) = self.device {
            let (mut start, mut end) = (Event::new(number)?, Event::new(number)?);
            start.record()?;
            match &self.graphs[contestant] {
                Some(graph) => graph.launch()?,
                None => self.calls(contestant, count)?,
            }
            end.record()?;
            let milliseconds = end.milliseconds_since(&start)?;
            return Ok(f64::from(milliseconds) / 1e3);
        }
        let start = Instant::now();
        self.calls(contestant, count)?;
        Ok(start.elapsed().as_secs_f64().max(1e-9))
    }

    fn calls(&mut self, contestant: usize, count: usize) -> Result<()> {
        for _ in 0..count {
            let set = self.sets[contestant];
            self.sets[contestant] = set.wrapping_add(1);
            self.work.run(contestant, set)?;
        }
        Ok(())
    }

    /// All contestants, one after another, forwards and backwards in turn.
    fn round(&mut self) -> Result<()> {
        let count = self.counts.len();
        let backwards = self.rounds.len() % 2 == 1;
        let mut seconds = vec![0.0; count];
        for place in 0..count {
            let contestant = if backwards { count - 1 - place } else { place };
            if self.out[contestant] {
                continue;
            }
            let calls = self.counts[contestant];
            seconds[contestant] = self.seconds(contestant, calls)? / calls as f64;
        }
        self.rounds.push(seconds);
        Ok(())
    }

    /// A contestant's next round, for so many calls. The first, which criterion warms up with, counts for nobody.
    ///
    /// # Errors
    /// When a contestant fails.
    pub fn next(
        &mut self,
        contestant: usize,
        calls: u64,
        clocks: Option<&Clocks>,
    ) -> Result<Duration> {
        if !self.is_timed() || self.out[contestant] {
            return Ok(Duration::from_nanos(calls));
        }
        let round = self.cursors[contestant];
        self.cursors[contestant] += 1;
        while self.rounds.len() <= round {
            self.round()?;
            self.samples.extend(clocks.map(Clocks::sample));
        }
        Ok(Duration::from_secs_f64(self.rounds[round][contestant] * calls as f64))
    }

    /// Whether there is anything to time.
    pub fn is_timed(&self) -> bool {
        let mut checks = self.checks.iter().zip(&self.out);
        self.device != Device::Emulated && checks.all(|(check, out)| *out || check.worst <= 1.0)
    }

    /// Those who took part: all but the others that failed.
    pub fn contestants(&self) -> impl Iterator<Item = (usize, &Contestant)> {
        self.work.contestants.iter().enumerate().filter(|(index, _)| !self.out[*index])
    }

    /// A contestant's seconds of a call, round by round, without the first round.
    pub fn seconds_of(&self, contestant: usize) -> Vec<f64> {
        self.rounds.iter().skip(1).map(|round| five_digits(round[contestant])).collect()
    }
}

/// As many digits as a clock can be trusted for.
fn five_digits(value: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap_or(value)
}

/// Waits until a device has done all that was asked of it.
///
/// # Errors
/// When it has failed.
pub fn wait(device: Device) -> Result<()> {
    match device {
        Device::Cuda(number) => Ok(cuda::synchronize(number)?),
        _ => Ok(()),
    }
}

/// Keeps a device busy until its clocks have settled, three seconds.
///
/// # Errors
/// When the work fails.
pub fn warm(device: Device, mut work: impl FnMut() -> Result<()>) -> Result<()> {
    ensure!(device != Device::Emulated, "a simulated device has no clocks");
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        work()?;
        wait(device)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// Two contestants that write down when they run.
    fn recorded(log: &Rc<RefCell<String>>) -> Work {
        let right = |_: &[prime_runtime::Tensor]| Ok(Comparison { compared: 1, worst: 0.0 });
        let writes = |letter: char| {
            let log = Rc::clone(log);
            move |_: &mut [prime_runtime::Tensor], _| {
                log.borrow_mut().push(letter);
                std::thread::sleep(Duration::from_millis(10));
                Ok(())
            }
        };
        Work::new(Vec::new(), right).ours("a", writes('a')).other("b", writes('b'))
    }

    #[test]
    fn contestants_alternate_and_share_their_rounds() {
        let log = Rc::new(RefCell::new(String::new()));
        let mut measured = Measured::new(recorded(&log), Device::Cpu, false).unwrap();
        log.borrow_mut().clear();
        for _ in 0..4 {
            measured.next(0, 1, None).unwrap();
        }
        assert_eq!(*log.borrow(), "abbaabba");
        // The other takes what was measured beside the first.
        for round in 0..4 {
            let duration = measured.next(1, 3, None).unwrap();
            let seconds = measured.rounds[round][1];
            assert!((duration.as_secs_f64() - 3.0 * seconds).abs() < 1e-8);
        }
        assert_eq!(log.borrow().len(), 8);
        assert_eq!(measured.seconds_of(0).len(), 3, "the first round warms up");
    }

    #[test]
    fn another_that_fails_is_left_out_and_ours_is_measured() {
        let log = Rc::new(RefCell::new(String::new()));
        let fails = |_: &mut [prime_runtime::Tensor], _| anyhow::bail!("no algorithm");
        let work = recorded(&log).other("c", fails);
        let mut measured = Measured::new(work, Device::Cpu, false).unwrap();
        assert_eq!(measured.work.absent, [("c".to_owned(), "it failed: no algorithm".to_owned())]);
        log.borrow_mut().clear();
        for _ in 0..2 {
            measured.next(0, 1, None).unwrap();
        }
        assert_eq!(measured.next(2, 7, None).unwrap(), Duration::from_nanos(7));
        assert_eq!(*log.borrow(), "abba");
        let names: Vec<&str> = measured.contestants().map(|(_, who)| who.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);

        let ours = recorded(&log).ours("d", fails);
        let error = Measured::new(ours, Device::Cpu, false).err().unwrap();
        assert_eq!(format!("{error:#}"), "d: no algorithm");
    }

    #[test]
    fn what_is_wrong_is_not_timed() {
        let log = Rc::new(RefCell::new(String::new()));
        let wrong =
            |_: &[prime_runtime::Tensor]| Ok(Comparison { compared: 1, worst: f64::INFINITY });
        let mut wrong = Work::new(Vec::new(), wrong);
        wrong.contestants = recorded(&log).contestants;
        let mut measured = Measured::new(wrong, Device::Cpu, false).unwrap();
        measured.next(0, 1, None).unwrap();
        assert!(!measured.is_timed() && measured.seconds_of(0).is_empty());
    }
}
