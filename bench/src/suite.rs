//! All cases of all devices, within a time, as criterion benchmarks, and the file and the page of their results.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use prime::bench::report::{Report, name_of};
use prime::bench::results::{FORMAT, Found};
use prime::bench::{self, Checked, Contestant, Machine, Results, Skipped};
use prime_kernels::matmul::{self, Epilogue, Layout};
use prime_kernels::simd;
use prime_model::clock;
use prime_runtime::{DType, Device, cuda, process};
use serde_json::{Map, json};

use crate::baselines::Baselines;
use crate::cases::{Case, GROUPS};
use crate::ceilings;
use crate::clocks::{self, Clocks};
use crate::harness::{self, Measured, ROUND_SECONDS, ROUNDS};
use crate::record::{FAILED, Record};
use crate::selection::Selection;
use crate::shapes::Scale;
use crate::work::Setup;

/// Names the devices to measure, separated by commas.
pub const DEVICES_VARIABLE: &str = "PRIME_BENCH_DEVICES";
/// Seconds that there are for each device.
pub const SECONDS_VARIABLE: &str = "PRIME_BENCH_SECONDS";
/// The file of results; the page is put beside it.
pub const OUTPUT_VARIABLE: &str = "PRIME_BENCH_OUTPUT";
/// Goes on behind what the file of results holds, where this is `yes`.
pub const RESUME_VARIABLE: &str = "PRIME_BENCH_RESUME";

/// Seconds for a device where the variable names no other number.
const SECONDS: f64 = 400.0;

/// The most seconds and bytes of one case.
const CASE_SECONDS: f64 = 6.0;
const CASE_BYTES: [f64; 2] = [1.5e9, 40e9];

/// What a kernel is taken to reach of the ceilings where its time must be guessed.
const GUESSED: f64 = 0.5;

const METHOD: &str = "All contestants of a case run in one process in turn, the order turned around from round to round; a round lasts 8 ms of each \
or one call, and 10 rounds count after one that warms up. Calls take turns through copies of their buffers that together exceed the last cache \
three times (at least two, at most 256 copies). Inputs are uniform random numbers. Each result is compared with float64 before it is timed, at \
sampled places where it is large. A time on a GPU is its own, from events, short kernels recorded as a graph; on the host it is the host's.";

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All of it was right.
    Well,
    /// Something was wrong, or failed.
    Wrong,
    /// A kernel took the device away from this process; another can go on behind it.
    Lost,
}

/// Runs what the arguments ask for, and says how that ended.
///
/// # Errors
/// When a setting makes no sense, or the results cannot be written.
pub fn run() -> Result<Ending> {
    let seconds = match std::env::var(SECONDS_VARIABLE) {
        Ok(text) => text.parse().ok().filter(|seconds| *seconds > 0.0).with_context(|| {
            format!("{SECONDS_VARIABLE} is `{text}`, expected a number of seconds such as 300")
        })?,
        Err(_) => SECONDS,
    };
    let selection = Selection::of(std::env::args().skip(1))?;
    let mut criterion = Criterion::default()
        .sample_size(ROUNDS)
        .nresamples(2000)
        .without_plots()
        .output_directory(&folder().join("criterion"))
        .configure_from_args();
    let results = Results {
        format: FORMAT,
        started: now(),
        finished: now(),
        command: command(),
        commit: commit(),
        method: METHOD.to_owned(),
        machines: Vec::new(),
        cases: Vec::new(),
        skipped: Vec::new(),
    };
    let path = match std::env::var_os(OUTPUT_VARIABLE) {
        Some(path) => PathBuf::from(path),
        None => folder().join("results.json"),
    };
    let resume = std::env::var_os(RESUME_VARIABLE).is_some_and(|value| value == "yes");
    let mut record = Record::open(path, resume, results)?;
    let mut taken = 0;
    for device in devices(&mut record.results.skipped)? {
        if matches!(device, Device::Cuda(_)) {
            record.watch();
        }
        let mut run = Run::new(device, seconds, &selection, &mut record)?;
        let ending = run.groups(&mut criterion, &mut record)?;
        taken += run.taken;
        if ending == Ending::Lost {
            record.save()?;
            return Ok(Ending::Lost);
        }
    }
    ensure!(taken > 0, "{}", selection.nothing());
    criterion.final_summary();
    // Criterion has other modes: a list of all cases, or one call of each.
    if record.results.cases.is_empty() {
        return Ok(Ending::Well);
    }
    record.save()?;
    finish(record.path(), &record.results)
}

/// The devices that were asked for, or the host and the first GPU where there is one.
fn devices(skipped: &mut Vec<Skipped>) -> Result<Vec<Device>> {
    if let Ok(names) = std::env::var(DEVICES_VARIABLE) {
        let named = names.split(',').map(|name| -> Result<Device> {
            let device = Device::parse(name.trim())?;
            prime_kernels::device::check(device)?;
            Ok(device)
        });
        return named.collect();
    }
    let mut devices = vec![Device::Cpu];
    match cuda::ready(0) {
        Ok(()) => devices.push(Device::Cuda(0)),
        Err(error) => {
            eprintln!("CUDA is left out: {error}");
            skipped.push(Skipped {
                device: "cuda:0".to_owned(),
                operation: "all".to_owned(),
                name: String::new(),
                why: error.to_string(),
            });
        }
    }
    Ok(devices)
}

/// The cases of one device.
struct Run<'a> {
    setup: Setup,
    selection: &'a Selection,
    /// Cases that the selection takes.
    taken: usize,
    machine: Machine,
    /// NVML, where the device is a GPU and it is there.
    clocks: Option<Clocks>,
    started: Instant,
    seconds: f64,
}

impl<'a> Run<'a> {
    fn new(
        device: Device,
        seconds: f64,
        selection: &'a Selection,
        record: &mut Record,
    ) -> Result<Run<'a>> {
        let mut about = about(device)?;
        // A list of names asks nothing of a device.
        let computes = !selection.lists;
        if let (Device::Cuda(number), true) = (device, computes) {
            // All kernels at once on all cores, so that no case waits for one after another.
            let chip = cuda::properties(number)?.chip;
            if let Err(error) = cuda::warm(number, &prime_kernels::device::instances(chip)) {
                // The cases that need it say so again.
                about.insert("not made ready".to_owned(), json!(error.to_string()));
            }
        }
        let scale = if device == Device::Emulated { Scale::Tiny } else { Scale::Real };
        let setup =
            Setup { device, scale, cache: cache(device)?, baselines: Baselines::find(device) };
        let mut clocks = None;
        if let (Device::Cuda(number), true) = (device, computes) {
            match &setup.baselines.cublas {
                Ok(found) => about.insert("cuBLASLt".to_owned(), json!(found.path)),
                Err(why) => about.insert("cuBLASLt".to_owned(), json!(why)),
            };
            match Clocks::open(number) {
                Ok(found) => clocks = Some(found),
                Err(error) => {
                    about.insert("clocks".to_owned(), json!(format!("{error:#}")));
                }
            }
            // A kernel that fails here must not keep everything else from being measured.
            let shown = device.to_string();
            if !record.knows(&shown, WARM_UP, "") {
                record.begin(&shown, WARM_UP, "")?;
                record.end(&shown, WARM_UP, "", warm(&setup).map(|()| None))?;
            }
        }
        let machine = Machine {
            device: device.to_string(),
            name: name(device)?,
            about,
            ceilings: if computes { ceilings::of(device)? } else { Vec::new() },
        };
        // The file is whole at every moment, and a report needs its machines.
        record.results.machines.retain(|known| known.device != machine.device);
        record.results.machines.push(machine.clone());
        Ok(Run { setup, selection, taken: 0, machine, clocks, started: Instant::now(), seconds })
    }

    fn groups(&mut self, criterion: &mut Criterion, record: &mut Record) -> Result<Ending> {
        let whole: f64 = GROUPS.iter().map(|(_, part, _)| part).sum();
        let device = self.setup.device.to_string();
        let mut until = 0.0;
        for (_, part, make) in GROUPS {
            // What a group leaves over is there for the next.
            until += self.seconds * part / whole;
            // The quickest first: what finds no time is what takes the most of it. They are shown in the order of the table.
            let mut cases = make(&self.setup);
            cases.iter().for_each(|case| record.place(&device, case.operation, &title(case)));
            cases.sort_by(|a, b| self.predicted(a).total_cmp(&self.predicted(b)));
            for case in cases {
                if self.is_lost() {
                    return Ok(Ending::Lost);
                }
                self.case(case, until, criterion, record)?;
            }
        }
        self.machine.about.insert("load after".to_owned(), load());
        // A machine that others use may have been slow when it was measured first. A GPU's memory may be taken by now.
        if let (true, Ok(again)) =
            (self.taken > 0 && !self.selection.lists, ceilings::of(self.setup.device))
        {
            ceilings::raise(&mut self.machine.ceilings, again);
        }
        record.results.machines.retain(|known| known.device != self.machine.device);
        record.results.machines.push(self.machine.clone());
        Ok(Ending::Well)
    }

    /// Whether a kernel has taken the device away from this process.
    fn is_lost(&self) -> bool {
        matches!(self.setup.device, Device::Cuda(number) if cuda::synchronize(number).is_err())
    }

    /// Measures a case where criterion wants it, or says why not.
    ///
    /// # Errors
    /// When the file of results cannot be written.
    fn case(
        &mut self,
        case: Case,
        until: f64,
        criterion: &mut Criterion,
        record: &mut Record,
    ) -> Result<()> {
        let device = self.setup.device.to_string();
        let title = title(&case);
        let name = |who: &String| format!("{device}/{}/{title}/{who}", case.operation);
        if !case.contestants.iter().any(|who| self.selection.takes(&name(who))) {
            return Ok(());
        }
        self.taken += 1;
        if record.knows(&device, case.operation, &title) {
            return Ok(());
        }
        if let Some(why) = self.too_much(&case, until) {
            record.skip(&device, case.operation, &title, why);
            return Ok(());
        }
        let (unit, amount) = case.amount();
        let Case { operation, name, dtype, flops, bytes, contestants, recordable, make, .. } = case;
        let mut group = criterion.benchmark_group(format!("{device}/{operation}"));
        group.sampling_mode(SamplingMode::Flat).warm_up_time(Duration::from_nanos(1));
        // How many calls make a round is the harness's to say; so long a time is what criterion never finds too short.
        group.measurement_time(Duration::from_secs(20));
        group.throughput(match unit {
            "byte" => Throughput::BytesDecimal(amount as u64),
            _ => Throughput::Elements(amount as u64),
        });
        let mut make = Some(make);
        let measured: RefCell<Option<Result<Measured>>> = RefCell::new(None);
        let begun = RefCell::new(&mut *record);
        for (index, contestant) in contestants.iter().enumerate() {
            let id = BenchmarkId::new(&title, contestant);
            group.bench_function(id, |bencher| {
                bencher.iter_custom(|calls| {
                    let mut measured = measured.borrow_mut();
                    let made = measured.get_or_insert_with(|| {
                        begun.borrow_mut().begin(&device, operation, &title)?;
                        let make = make.take().context("a case is made once")?;
                        Measured::new(make(&self.setup)?, self.setup.device, recordable)
                    });
                    let next = made
                        .as_mut()
                        .ok()
                        .map(|made| made.next(index, calls, self.clocks.as_ref()));
                    match next {
                        Some(Ok(duration)) => duration,
                        Some(Err(error)) => {
                            *measured = Some(Err(error));
                            Duration::from_nanos(calls)
                        }
                        None => Duration::from_nanos(calls),
                    }
                });
            });
        }
        group.finish();
        let Some(outcome) = measured.into_inner() else { return Ok(()) };
        let outcome = outcome.map(|measured| {
            let mut about = measured.work.about.clone();
            about.extend(clocks::summary(&measured.samples));
            let case = bench::Case {
                device: device.clone(),
                operation: operation.to_owned(),
                name,
                dtype: dtype.to_string(),
                unit: unit.to_owned(),
                amount,
                flops,
                bytes,
                sets: measured.work.sets.len(),
                contestants: outcome_of(&measured),
                absent: measured.work.absent.clone(),
                about,
            };
            for contestant in &case.contestants {
                if contestant.check.is_some_and(|check| !check.passed()) {
                    eprintln!("WRONG: {operation}, {title}, {}", contestant.name);
                }
            }
            Some(case)
        });
        record.end(&device, operation, &title, outcome)
    }

    /// Why a case is left out.
    fn too_much(&self, case: &Case, until: f64) -> Option<String> {
        if self.setup.device == Device::Emulated || self.selection.lists {
            return None;
        }
        if self.started.elapsed().as_secs_f64() > until {
            return Some("the time for its group was used up".to_owned());
        }
        let held = self.held(case);
        let most = CASE_BYTES[usize::from(self.setup.device != Device::Cpu)];
        if held > most {
            return Some(format!("its buffers would take {:.1} GB", held / 1e9));
        }
        let seconds = self.predicted(case);
        (seconds > CASE_SECONDS).then(|| format!("it would take about {seconds:.0} s here"))
    }

    /// The seconds that a case is guessed to take.
    fn predicted(&self, case: &Case) -> f64 {
        let rate = |what: &str| {
            let found = self.machine.ceilings.iter().find(|ceiling| ceiling.what == what);
            found.map_or(f64::INFINITY, |found| found.rate)
        };
        let call = (case.flops / rate(&case.dtype.to_string())).max(case.bytes / rate("bytes"));
        // Rounds, calls that check and find out how long one takes, and buffers, which are filled at a billion bytes a second.
        let calls = (ROUNDS + 5) as f64 * case.contestants.len() as f64;
        calls * (call / GUESSED).max(ROUND_SECONDS) + self.held(case) / 1e9
    }

    /// Bytes that the buffers of a case take, in all copies.
    fn held(&self, case: &Case) -> f64 {
        let sets = if case.copies { self.setup.sets(case.footprint) } else { 1 };
        sets as f64 * case.footprint
    }
}

/// Multiplies until the clocks have settled.
fn warm(setup: &Setup) -> Result<()> {
    let dims = [4096; 2];
    let (a, b) =
        (setup.uniform(DType::BF16, &dims, 1, 1.0)?, setup.uniform(DType::BF16, &dims, 2, 1.0)?);
    let mut out = setup.zeros(DType::BF16, &dims)?;
    harness::warm(setup.device, || {
        for _ in 0..20 {
            let (a, b) = (a.view(), b.view());
            matmul::forward(out.view_mut(), a, b, Layout::NT, Epilogue::default())?;
        }
        Ok(())
    })
}

/// What the clocks are settled by, as the record calls it.
const WARM_UP: &str = "warm-up";

/// A case with its dtype, as tables show it.
fn title(case: &Case) -> String {
    format!("{}, {}", case.name, case.dtype)
}

fn outcome_of(measured: &Measured) -> Vec<Contestant> {
    let of = |(index, contestant): (usize, &crate::work::Contestant)| {
        let check = measured.checks[index];
        Contestant {
            name: contestant.name.clone(),
            ours: contestant.ours,
            seconds: measured.seconds_of(index),
            check: Some(Checked { compared: check.compared, worst: three_digits(check.worst) }),
        }
    };
    measured.contestants().map(of).collect()
}

/// JSON has no infinity, which what was never computed is off by.
fn three_digits(value: f64) -> f64 {
    format!("{:.2e}", value.min(1e300)).parse().unwrap_or(value)
}

/// Writes the page, and says whether all is well.
fn finish(path: &Path, results: &Results) -> Result<Ending> {
    let page = path.with_extension("html");
    let report = Report::new(vec![(name_of(path), Found::Results(Box::new(results.clone())))]);
    prime_runtime::checkpoint::atomic_write(&page, report.to_html()?.as_bytes())?;
    println!("{}", report.to_markdown());
    let left_out = results.skipped.len();
    println!(
        "{} cases measured, {left_out} left out; the page says which and why.",
        results.cases.len()
    );
    println!("Results: {}\nPage:    {}", path.display(), page.display());
    let wrong = |case: &bench::Case| {
        case.contestants.iter().any(|who| who.check.is_some_and(|check| !check.passed()))
    };
    let failed = results.skipped.iter().any(|skipped| skipped.why.starts_with(FAILED));
    Ok(if failed || results.cases.iter().any(wrong) { Ending::Wrong } else { Ending::Well })
}

/// Where results go that were not given a place: the build's own folder.
fn folder() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let built = std::env::var_os("CARGO_TARGET_DIR").map_or(built, PathBuf::from);
    if built.is_dir() {
        built.canonicalize().unwrap_or(built).join("bench")
    } else {
        PathBuf::from("bench")
    }
}

/// Now, in UTC.
pub(crate) fn now() -> String {
    clock::format("%FT%TZ", clock::now()).expect("the format is complete")
}

/// How this was started, as a reader would type it.
fn command() -> String {
    let mut words: Vec<String> = [DEVICES_VARIABLE, SECONDS_VARIABLE]
        .iter()
        .filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)))
        .collect();
    words.push("cargo bench".to_owned());
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if !arguments.is_empty() {
        words.push(format!("-- {}", arguments.join(" ")));
    }
    words.join(" ")
}

/// The version of the sources: of the build where that was told, of the folder otherwise.
fn commit() -> String {
    if let Some(commit) = option_env!("PRIME_COMMIT") {
        return commit.to_owned();
    }
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        output
            .ok()
            .filter(|output| output.status.success())
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    match (git(&["rev-parse", "HEAD"]), git(&["status", "--porcelain", "--untracked-files=no"])) {
        (Some(commit), Some(changes)) if changes.is_empty() => commit,
        (Some(commit), _) => format!("{commit} with changes"),
        (None, _) => "unknown".to_owned(),
    }
}

fn name(device: Device) -> Result<String> {
    Ok(match device {
        Device::Cpu => process::processor_name().unwrap_or_else(|| "unknown processor".to_owned()),
        Device::Cuda(number) => cuda::properties(number)?.name,
        _ => "the host, simulating".to_owned(),
    })
}

fn load() -> serde_json::Value {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    json!(text.split(' ').next().unwrap_or_default())
}

fn about(device: Device) -> Result<Map<String, serde_json::Value>> {
    let mut about = Map::new();
    let mut fact = |name: &str, value: serde_json::Value| about.insert(name.to_owned(), value);
    fact("threads", json!(rayon::current_num_threads()));
    fact("load before", load());
    match device {
        Device::Cuda(number) => {
            let properties = cuda::properties(number)?;
            let of = |library: prime_runtime::Result<cuda::Library>| match library {
                Ok(library) => json!(format!("{}.{}", library.version.0, library.version.1)),
                Err(error) => json!(error.to_string()),
            };
            fact("compute capability", json!(properties.chip.to_string()));
            fact("multiprocessors", json!(properties.multiprocessors));
            fact("memory, bytes", json!(properties.memory));
            fact("driver for CUDA", of(cuda::driver_library()));
            fact("compiler of CUDA", of(cuda::compiler_library()));
        }
        _ => {
            fact("instructions", json!(simd::level().to_string()));
            fact("family and model", json!(process::processor_model()));
        }
    }
    fact("last cache, bytes", json!(cache(device)?));
    Ok(about)
}

/// Bytes of the last cache.
fn cache(device: Device) -> Result<usize> {
    /// Where the system does not say: as large as servers have for a few cores.
    const UNKNOWN: usize = 32 << 20;
    let bytes = match device {
        Device::Cuda(number) => cuda::properties(number)?.cache,
        Device::Cpu => {
            let of = |index: usize| {
                let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
                let text = std::fs::read_to_string(path).ok()?;
                let kibibytes: usize = text.trim().strip_suffix('K')?.parse().ok()?;
                Some(kibibytes << 10)
            };
            (0..5).filter_map(of).max().unwrap_or(UNKNOWN)
        }
        _ => 1 << 12,
    };
    ensure!(bytes > 0, "{device} says that it has no cache");
    Ok(bytes)
}
