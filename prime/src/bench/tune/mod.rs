//! `prime bench tune`: every way that there is to compute a product, attention's forward pass or a decode step of it, timed on this device, and the fastest kept for the
//! launcher.
//!
//! What was found is a file a chip and compiler beside the compiled kernels. A program that computes on the device reads it first
//! ([`use_device`]) and has the launcher prefer what it names, for the problem that was measured and for all of its class: as many rows (or, of gradients of
//! weights, as many terms; of attention, as many tokens and as many of them a sequence; of decoding, as many sequences and keys) rounded up to a power of two. A way that is not there any more, a
//! kernel that this program does not tune, and a file that is damaged, are passed over. What is preferred
//! may sum in another order than what the launcher takes by itself: a run that is stopped, and resumed after its device was tuned, need not end
//! with the bits of one that was not.

use std::fmt::Display;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use prime_kernels::{attention as attention_kernels, matmul};
use prime_model::Config as ModelConfig;
use prime_runtime::cuda::{self, Event};
use prime_runtime::random::{Generator, Stream};
use prime_runtime::{DType, Device, Tensor, bf16, checkpoint};
use serde::{Deserialize, Serialize};

use super::choose::fastest;

/// Makes a room's problems [`Tuned`], by what a file of this folder has of them: `text`, `parse` and `Buffers`, beside the room's `tuning`.
macro_rules! tuned {
    ($kernel:literal) => {
        impl Tuned for Problem {
            const KERNEL: &'static str = $kernel;
            type Variant = Variant;

            fn text(&self) -> String {
                text(self)
            }

            fn parse(text: &str) -> Result<Self> {
                parse(text)
            }

            fn class(&self) -> Self {
                Problem::class(*self)
            }

            fn variants(&self, device: Device) -> Result<Vec<Variant>> {
                Ok(tuning::variants(device, *self)?)
            }

            fn prefer(&self, variant: Option<Variant>) {
                tuning::prefer(*self, variant);
            }

            fn preferred(&self) -> Option<Variant> {
                tuning::preferred(self)
            }

            fn work(&self, device: Device) -> Result<Box<dyn Work>> {
                Ok(Box::new(Buffers::new(device, *self)?))
            }
        }
    };
}

pub mod attention;
pub mod decode;
pub mod products;

/// The number that files of this form begin with.
const FORMAT: u32 = 1;

/// All that was found for a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Table {
    format: u32,
    /// The chip's name, its architecture, and the compiler of the kernels.
    device: String,
    chip: String,
    compiler: String,
    entries: Vec<Entry>,
}

/// What was found for a problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// `matmul`, `attention` or `attention decode`.
    pub kernel: String,
    /// The problem's text.
    pub problem: String,
    /// The fastest way, by its text.
    pub variant: String,
    /// Its time.
    pub seconds: f64,
    /// The time of the way that the launcher takes by itself.
    pub seconds_by_itself: f64,
    /// Ways that ran.
    pub ran: usize,
}

/// Something to compute for which there are several ways.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Problem {
    /// A product.
    Product(matmul::tuning::Problem),
    /// A forward pass of attention.
    Attention(attention_kernels::tuning::Problem),
    /// Attention of a decode step.
    Decode(attention_kernels::tuning::decode::Problem),
}

impl Problem {
    fn text(&self) -> String {
        match self {
            Problem::Product(problem) => problem.text(),
            Problem::Attention(problem) => problem.text(),
            Problem::Decode(problem) => problem.text(),
        }
    }

    fn check(&self, device: Device) -> Result<()> {
        match self {
            Problem::Product(problem) => problem.variants(device).map(|_| ()),
            Problem::Attention(problem) => problem.variants(device).map(|_| ()),
            Problem::Decode(problem) => problem.variants(device).map(|_| ()),
        }
    }

    fn measure(&self, device: Device) -> Result<Entry> {
        match self {
            Problem::Product(problem) => measure(device, problem),
            Problem::Attention(problem) => measure(device, problem),
            Problem::Decode(problem) => measure(device, problem),
        }
    }
}

/// All problems of a kernel, as the file and the launcher have them.
trait Tuned: Sized {
    /// By which entries tell kernels apart.
    const KERNEL: &'static str;
    type Variant: Clone + Display;

    fn text(&self) -> String;
    fn parse(text: &str) -> Result<Self>;
    fn class(&self) -> Self;
    /// Every way on a device, the launcher's own choice first.
    fn variants(&self, device: Device) -> Result<Vec<Self::Variant>>;
    fn prefer(&self, variant: Option<Self::Variant>);
    fn preferred(&self) -> Option<Self::Variant>;
    /// Buffers to compute it in, while the launcher takes its own choice.
    fn work(&self, device: Device) -> Result<Box<dyn Work>>;
}

/// A problem's buffers.
trait Work {
    /// Computes it in the way that is preferred, in the next of the buffers.
    fn run(&mut self) -> Result<()>;
    /// Whether that way computes it rightly from nothing, else what is wrong.
    fn check(&mut self) -> Result<Result<(), String>>;
}

/// The problems of a model: its products and its attention over so many tokens, and both of each number of sequences that decode.
pub fn of_model(
    config: &ModelConfig,
    dtype: DType,
    tokens: usize,
    decode_sizes: &[usize],
) -> Vec<Problem> {
    let products = products::of_model(config, dtype, tokens, decode_sizes).into_iter();
    let passes = attention::of_model(config, dtype, tokens).into_iter();
    let steps = decode::of_model(config, dtype, tokens, decode_sizes).into_iter();
    let attention = passes.map(Problem::Attention).chain(steps.map(Problem::Decode));
    products.map(Problem::Product).chain(attention).collect()
}

fn dtype_of(name: &str) -> Result<DType> {
    match name {
        "float32" => Ok(DType::F32),
        "bfloat16" => Ok(DType::BF16),
        _ => bail!("`{name}` is no dtype that can be tuned, expected float32 or bfloat16"),
    }
}

/// The most elements of a tensor that is tuned.
const MOST_ELEMENTS: usize = u32::MAX as usize;

/// How many elements a tensor has, where that is possible.
fn elements(dims: &[usize]) -> Result<usize> {
    let count = dims.iter().try_fold(1, |count: usize, &dim| count.checked_mul(dim));
    count.filter(|&count| count <= MOST_ELEMENTS).with_context(|| {
        let dims = dims.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        format!("{dims} elements are too many to tune, expected at most {MOST_ELEMENTS}")
    })
}

/// Makes sure that a device computes here, and has its launcher prefer what was found for it.
///
/// # Errors
/// When the device cannot be used.
pub fn use_device(device: Device) -> Result<()> {
    prime_kernels::device::check(device)?;
    if device == Device::Cpu {
        return Ok(());
    }
    // Without a folder there is nothing that was kept.
    if let Ok(path) = path(device) {
        use_table(device, &path);
    }
    Ok(())
}

/// Has a device's launcher prefer what a file names. One that is not there names nothing; of one that is damaged a warning is printed.
pub fn use_table(device: Device, path: &Path) {
    if !path.exists() {
        return;
    }
    match read(path) {
        Ok(table) => prefer(device, &table.entries),
        Err(error) => {
            eprintln!("warning: what `prime bench tune` found is passed over: {error:#}");
        }
    }
}

/// Has the launcher prefer entries, as far as their ways are still there. What was measured itself counts more than another problem of its class.
fn prefer(device: Device, entries: &[Entry]) {
    for for_class in [true, false] {
        for entry in entries {
            match entry.kernel.as_str() {
                <matmul::tuning::Problem as Tuned>::KERNEL => {
                    prefer_entry::<matmul::tuning::Problem>(device, entry, for_class);
                }
                <attention_kernels::tuning::Problem as Tuned>::KERNEL => {
                    prefer_entry::<attention_kernels::tuning::Problem>(device, entry, for_class);
                }
                <attention_kernels::tuning::decode::Problem as Tuned>::KERNEL => {
                    prefer_entry::<attention_kernels::tuning::decode::Problem>(
                        device, entry, for_class,
                    );
                }
                _ => (),
            }
        }
    }
}

fn prefer_entry<P: Tuned>(device: Device, entry: &Entry, for_class: bool) {
    let Ok(problem) = P::parse(&entry.problem) else { return };
    // A device may have no kernel at all for a problem of another version's.
    let variants = problem.variants(device).unwrap_or_default();
    let Some(variant) = variants.into_iter().find(|v| v.to_string() == entry.variant) else {
        return;
    };
    if for_class { problem.class() } else { problem }.prefer(Some(variant));
}

/// The file for a device.
///
/// # Errors
/// When there is no folder for it, or the device cannot be asked.
fn path(device: Device) -> Result<PathBuf> {
    let (chip, compiler) = identity(device)?;
    let stem: String = format!("tuned-{chip}-{compiler}");
    Ok(cuda::kernel_cache()?.join(format!("{stem}.json")))
}

/// The chip and the compiler, by which what was found is told apart.
fn identity(device: Device) -> Result<(String, String)> {
    Ok(match device {
        Device::Cuda(number) => {
            let (major, minor) = cuda::compiler_library()?.version;
            let properties = cuda::properties(number)?;
            // Of one architecture, chips differ in multiprocessors.
            let chip = format!("{}x{}", properties.chip.architecture(), properties.multiprocessors);
            (chip, format!("nvrtc-{major}.{minor}"))
        }
        device => (
            format!("{device}-{}", prime_kernels::device::chip(device)?.architecture()),
            env!("CARGO_PKG_VERSION").to_owned(),
        ),
    })
}

fn read(path: &Path) -> Result<Table> {
    let shown = path.display();
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    let table: Table = serde_json::from_slice(&bytes)
        .with_context(|| format!("{shown} is damaged; `prime bench tune` writes it anew"))?;
    ensure!(
        table.format == FORMAT,
        "{shown} is of format {}, and this program reads {FORMAT}",
        table.format
    );
    Ok(table)
}

/// Times every way to compute some problems on a device, keeps the fastest of each for later runs, and says where. `found` is told of each.
///
/// # Errors
/// When the device fails or has no way to compute one, or the file cannot be written.
pub fn tune(device: Device, problems: &[Problem], found: impl FnMut(&Entry)) -> Result<PathBuf> {
    prime_kernels::device::check(device)?;
    let path = path(device)?;
    tune_into(&path, device, problems, found)?;
    Ok(path)
}

/// [`tune`], with a file of one's own.
///
/// # Errors
/// As for [`tune`].
pub fn tune_into(
    path: &Path,
    device: Device,
    problems: &[Problem],
    mut found: impl FnMut(&Entry),
) -> Result<()> {
    for problem in problems {
        problem.check(device).with_context(|| problem.text())?;
    }
    if path.exists()
        && let Err(error) = read(path)
    {
        eprintln!("warning: what was found before is replaced: {error:#}");
    }
    let mut entries = Vec::new();
    for problem in problems {
        let entry = problem.measure(device).with_context(|| problem.text())?;
        found(&entry);
        // At once, so that what ends this program costs nothing but the problem that it ended.
        keep(device, path, std::slice::from_ref(&entry))?;
        entries.push(entry);
    }
    prefer(device, &entries);
    Ok(())
}

/// Puts entries into the file, in place of older ones of the same problems.
fn keep(device: Device, path: &Path, entries: &[Entry]) -> Result<()> {
    // Others that tune wait until this has read and written. The system takes the lock back from a program that ends; where it has none, all go on.
    let folder = path.parent().and_then(|folder| File::open(folder).ok());
    let _lock = folder.filter(|folder| folder.lock().is_ok());
    let (chip, compiler) = identity(device)?;
    let name = match device {
        Device::Cuda(number) => cuda::properties(number)?.name,
        device => device.to_string(),
    };
    let old = if path.exists() {
        read(path).map_or(Vec::new(), |table| table.entries)
    } else {
        Vec::new()
    };
    let new = |entry: &Entry| {
        entries.iter().any(|new| new.kernel == entry.kernel && new.problem == entry.problem)
    };
    let mut all: Vec<Entry> = old.into_iter().filter(|entry| !new(entry)).collect();
    all.extend_from_slice(entries);
    let table = Table { format: FORMAT, device: name, chip, compiler, entries: all };
    let text = serde_json::to_string_pretty(&table)? + "\n";
    checkpoint::atomic_write(path, text.as_bytes())
        .with_context(|| format!("what was found cannot be written to {}", path.display()))
}

/// Copies of so many bytes that exceed the last cache three times.
fn copies(device: Device, bytes: usize) -> Result<usize> {
    let cache = match device {
        Device::Cuda(number) => cuda::properties(number)?.cache,
        _ => 0,
    };
    Ok((3 * cache).div_ceil(bytes).clamp(2, 64))
}

fn fill(tensor: &mut Tensor, value: f32) -> Result<()> {
    Ok(prime_kernels::fill::forward(tensor.view_mut(), value)?)
}

fn uniform(device: Device, dtype: DType, dims: &[usize], stream: u64) -> Result<Tensor> {
    let mut random = Generator::new(1, Stream::Test, stream);
    let values = (0..dims.iter().product::<usize>()).map(|_| 2.0 * random.uniform() - 1.0);
    let host = match dtype {
        DType::BF16 => Tensor::from_slice(&values.map(bf16::from_f32).collect::<Vec<_>>(), dims)?,
        _ => Tensor::from_slice(&values.collect::<Vec<_>>(), dims)?,
    };
    Ok(host.to(device)?)
}

/// The fastest way to compute a problem.
fn measure<P: Tuned>(device: Device, problem: &P) -> Result<Entry> {
    let variants = problem.variants(device)?;
    let before = problem.preferred();
    problem.prefer(variants.first().cloned());
    let mut work = problem.work(device)?;
    let mut clock = Clock::new(device)?;
    let mut right = Vec::new();
    let by_itself = variants.first().map(ToString::to_string);
    for variant in variants {
        problem.prefer(Some(variant.clone()));
        match work.check()? {
            Ok(()) => right.push(variant),
            Err(message) => eprintln!(
                "warning: {variant} computes {} wrongly and is passed over: {message}",
                problem.text()
            ),
        }
    }
    let found = fastest(&right, |variant, calls| {
        problem.prefer(Some(variant.clone()));
        clock.seconds(calls, || work.run()).ok()
    });
    problem.prefer(before);
    let found = found.context("no way to compute it could be timed")?;
    // The launcher's own choice may be among those that are wrong, or cannot run.
    let first = found.first.filter(|_| right.first().map(ToString::to_string) == by_itself);
    Ok(Entry {
        kernel: P::KERNEL.to_owned(),
        problem: problem.text(),
        variant: right[found.index].to_string(),
        seconds: found.seconds,
        seconds_by_itself: first.unwrap_or(found.seconds),
        ran: found.ran,
    })
}

/// A device's own clock; the host's where there is none.
struct Clock {
    events: Option<[Event; 2]>,
}

impl Clock {
    fn new(device: Device) -> Result<Clock> {
        let Device::Cuda(number) = device else { return Ok(Clock { events: None }) };
        Ok(Clock { events: Some([Event::new(number)?, Event::new(number)?]) })
    }

    fn seconds(&mut self, calls: usize, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
        let started = Instant::now();
        if let Some([start, _]) = &mut self.events {
            start.record()?;
        }
        (0..calls).try_for_each(|_| call())?;
        let seconds = match &mut self.events {
            Some([start, end]) => {
                end.record()?;
                f64::from(end.milliseconds_since(start)?) / 1e3
            }
            None => started.elapsed().as_secs_f64(),
        };
        Ok(seconds / calls as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(problem: &str, variant: &str) -> Entry {
        Entry {
            kernel: "matmul".into(),
            problem: problem.into(),
            variant: variant.into(),
            seconds: 1e-3,
            seconds_by_itself: 2e-3,
            ran: 3,
        }
    }

    #[test]
    fn newer_entries_take_the_place_of_older_ones_and_damage_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuned.json");
        keep(Device::Emulated, &path, &[entry("a", "1"), entry("b", "1")]).unwrap();
        keep(Device::Emulated, &path, &[entry("b", "2")]).unwrap();
        let table = read(&path).unwrap();
        assert_eq!(table.entries, [entry("a", "1"), entry("b", "2")]);
        std::fs::write(&path, "{\"format\": 1").unwrap();
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("is damaged"));
        // A damaged file is written anew.
        keep(Device::Emulated, &path, &[entry("c", "1")]).unwrap();
        assert_eq!(read(&path).unwrap().entries.len(), 1);
    }

    #[test]
    fn what_several_find_at_once_is_kept_of_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuned.json");
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    for i in 0..10 {
                        keep(Device::Emulated, path, &[entry(&format!("{thread} {i}"), "1")])
                            .unwrap();
                    }
                });
            }
        });
        assert_eq!(read(&path).unwrap().entries.len(), 40);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no lock is left");
    }
}
