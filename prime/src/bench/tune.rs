//! `prime bench tune`: every way that there is to compute a product, timed on this device, and the fastest kept for the launcher.
//!
//! What was found is a file a chip and compiler beside the compiled kernels. A program that computes on the device reads it first
//! ([`use_device`]) and has the launcher prefer what it names, for the product that was measured and for all of its class: as many rows (or, of gradients of
//! weights, as many terms) rounded up to a power of two. A way that is not there any more, and a file that is damaged, are passed over. What is preferred
//! may sum in another order than what the launcher takes by itself: a run that is stopped, and resumed after its device was tuned, need not end
//! with the bits of one that was not.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use prime_kernels::matmul::tuning::{self, Problem, Variant};
use prime_kernels::matmul::{self, Epilogue, Layout};
use prime_kernels::testing::roundoff;
use prime_model::Config as ModelConfig;
use prime_runtime::cuda::{self, Event};
use prime_runtime::{DType, Device, Tensor, bf16, checkpoint};
use serde::{Deserialize, Serialize};

use super::choose::fastest;

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

/// What was found for a product.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// `matmul`.
    pub kernel: String,
    /// The product: see [`parse`].
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

/// A product's text: `NT 64x37888x3584 bfloat16 to bfloat16`, with `, swiglu` where it ends in that. Sizes are rows and columns of C, and terms.
pub fn text(problem: &Problem) -> String {
    let Problem { m, n, k, layout, dtype, out, swiglu } = problem;
    let end = if *swiglu { ", swiglu" } else { "" };
    format!("{layout:?} {m}x{n}x{k} {dtype} to {out}{end}")
}

/// The product of a text.
///
/// # Errors
/// With what is not as it should be.
pub fn parse(text: &str) -> Result<Problem> {
    let (body, swiglu) = match text.strip_suffix(", swiglu") {
        Some(body) => (body, true),
        None => (text, false),
    };
    let words: Vec<&str> = body.split(' ').collect();
    let [layout, sizes, dtype, "to", out] = words[..] else {
        bail!("`{text}` is no product, expected one like `NT 64x37888x3584 bfloat16 to bfloat16`");
    };
    let [m, n, k] = sizes_of(sizes)?;
    let dtype_of = |name: &str| match name {
        "float32" => Ok(DType::F32),
        "bfloat16" => Ok(DType::BF16),
        _ => bail!("`{name}` is no dtype of products, expected float32 or bfloat16"),
    };
    Ok(Problem {
        m,
        n,
        k,
        layout: layout_of(layout)?,
        dtype: dtype_of(dtype)?,
        out: dtype_of(out)?,
        swiglu,
    })
}

/// The product that a person names: `NT:64x37888x3584`.
///
/// # Errors
/// With what is not as it should be.
pub fn named(text: &str, dtype: DType) -> Result<Problem> {
    let (layout, sizes) = text.split_once(':').with_context(|| {
        format!("`{text}` is no product, expected a layout and sizes such as NT:64x37888x3584")
    })?;
    let (layout, [m, n, k]) = (layout_of(layout)?, sizes_of(sizes)?);
    Ok(Problem { m, n, k, layout, dtype, out: out_of(layout, dtype), swiglu: false })
}

fn layout_of(text: &str) -> Result<Layout> {
    match text {
        "NN" => Ok(Layout::NN),
        "NT" => Ok(Layout::NT),
        "TN" => Ok(Layout::TN),
        _ => bail!("`{text}` is no layout, expected NN, NT or TN"),
    }
}

fn sizes_of(text: &str) -> Result<[usize; 3]> {
    let sizes: Option<Vec<usize>> = text.split('x').map(|size| size.parse().ok()).collect();
    match sizes.as_deref() {
        Some(&[m, n, k]) if m > 0 && n > 0 && k > 0 => Ok([m, n, k]),
        _ => bail!(
            "`{text}` is no size of a product, expected rows, columns and terms such as 64x37888x3584"
        ),
    }
}

/// Gradients of weights are added up in float32.
fn out_of(layout: Layout, dtype: DType) -> DType {
    if layout == Layout::TN { DType::F32 } else { dtype }
}

/// The products of a model's linear layers: forward and both gradients of so many tokens, and forward of each number of sequences that decode.
pub fn of_model(
    config: &ModelConfig,
    dtype: DType,
    tokens: usize,
    decode: &[usize],
) -> Vec<Problem> {
    let hidden = config.hidden_size;
    let qkv = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim;
    let (attended, inner) = (config.num_heads * config.head_dim, config.intermediate_size);
    // Rows of each weight, and its columns.
    let layers = [(qkv, hidden), (hidden, attended), (2 * inner, hidden), (hidden, inner)];
    let mut problems = Vec::new();
    let mut add = |layout, [m, n, k]: [usize; 3], swiglu| {
        let problem = Problem { m, n, k, layout, dtype, out: out_of(layout, dtype), swiglu };
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    };
    for rows in [tokens].iter().chain(decode) {
        for (n, k) in layers {
            add(Layout::NT, [*rows, n, k], false);
        }
        add(Layout::NT, [*rows, 2 * inner, hidden], true);
    }
    for (n, k) in layers {
        add(Layout::NN, [tokens, k, n], false);
        add(Layout::TN, [n, k, tokens], false);
    }
    problems
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
    match path(device) {
        Ok(path) => use_table(device, &path),
        Err(_) => Ok(()),
    }
}

/// Has a device's launcher prefer what a file names. One that is not there names nothing; of one that is damaged a warning is printed.
///
/// # Errors
/// When the device cannot be used.
pub fn use_table(device: Device, path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    match read(path) {
        Ok(table) => prefer(device, &table.entries),
        Err(error) => {
            eprintln!("warning: what `prime bench tune` found is passed over: {error:#}");
            Ok(())
        }
    }
}

/// Has the launcher prefer entries, as far as their ways are still there.
fn prefer(device: Device, entries: &[Entry]) -> Result<()> {
    for entry in entries.iter().filter(|entry| entry.kernel == "matmul") {
        let Ok(problem) = parse(&entry.problem) else { continue };
        let variants = tuning::variants(device, problem)?;
        if let Some(variant) = variants.into_iter().find(|v| v.to_string() == entry.variant) {
            tuning::prefer(problem, Some(variant));
            tuning::prefer(problem.class(), Some(variant));
        }
    }
    Ok(())
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
        device => (device.to_string(), env!("CARGO_PKG_VERSION").to_owned()),
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

/// Times every way to compute some products on a device, keeps the fastest of each for later runs, and says where. `found` is told of each.
///
/// # Errors
/// When the device fails, or the file cannot be written.
pub fn tune(device: Device, problems: &[Problem], found: impl FnMut(&Entry)) -> Result<PathBuf> {
    ensure!(
        device != Device::Cpu,
        "the host has one way to compute a product; tune cuda, cuda:N or emulated"
    );
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
    let mut entries = Vec::new();
    for problem in problems {
        let entry = measure(device, *problem).with_context(|| text(problem))?;
        found(&entry);
        entries.push(entry);
    }
    prefer(device, &entries)?;
    keep(device, path, entries)
}

/// Puts entries into the file, in place of older ones of the same products.
fn keep(device: Device, path: &Path, entries: Vec<Entry>) -> Result<()> {
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
    all.extend(entries);
    let table = Table { format: FORMAT, device: name, chip, compiler, entries: all };
    let text = serde_json::to_string_pretty(&table)? + "\n";
    checkpoint::atomic_write(path, text.as_bytes())
        .with_context(|| format!("what was found cannot be written to {}", path.display()))
}

/// The buffers of a product, in copies that exceed the last cache three times.
struct Buffers {
    problem: Problem,
    sets: Vec<[Tensor; 4]>,
    next: usize,
}

impl Buffers {
    fn new(device: Device, problem: Problem) -> Result<Buffers> {
        let Problem { m, n, k, layout, dtype, out, swiglu } = problem;
        let a = if layout == Layout::TN { [k, m] } else { [m, k] };
        let b = if layout == Layout::NT { [n, k] } else { [k, n] };
        let columns = if swiglu { n / 2 } else { n };
        let bytes = (m * k + n * k) * dtype.size() + m * columns * out.size();
        let cache = match device {
            Device::Cuda(number) => cuda::properties(number)?.cache,
            _ => 0,
        };
        let count = (3 * cache).div_ceil(bytes).clamp(2, 64);
        let (a, b) = (uniform(device, dtype, &a, 1)?, uniform(device, dtype, &b, 2)?);
        let copy = |of: &Tensor| -> Result<Tensor> {
            let mut to = Tensor::zeros(device, dtype, of.dims())?;
            to.view_mut().copy_from(of.view())?;
            Ok(to)
        };
        let set = |_| -> Result<[Tensor; 4]> {
            let room = if swiglu { [m, n] } else { [1, 1] };
            let zeros = |dtype, dims: &[usize]| Tensor::zeros(device, dtype, dims);
            Ok([zeros(out, &[m, columns])?, copy(&a)?, copy(&b)?, zeros(dtype, &room)?])
        };
        let sets = (0..count).map(set).collect::<Result<Vec<_>>>()?;
        Ok(Buffers { problem, sets, next: 0 })
    }

    fn run(&mut self) -> Result<()> {
        let Problem { layout, swiglu, .. } = self.problem;
        let count = self.sets.len();
        let [out, a, b, room] = &mut self.sets[self.next % count];
        self.next += 1;
        let (out, a, b) = (out.view_mut(), a.view(), b.view());
        match (layout, swiglu) {
            (_, true) => matmul::forward_swiglu(out, room.view_mut(), false, a, b)?,
            (Layout::TN, _) => matmul::accumulate(out, a, b, layout)?,
            _ => matmul::forward(out, a, b, layout, Epilogue::default())?,
        }
        Ok(())
    }

    /// What a way computes from nothing, at sampled rows.
    fn result(&mut self) -> Result<Vec<f32>> {
        self.next = 0;
        let m = self.problem.m;
        let out = &mut self.sets[0][0];
        prime_kernels::fill::forward(
            out.view_mut(),
            if self.problem.layout == Layout::TN { 0.0 } else { f32::NAN },
        )?;
        self.run()?;
        let out = &self.sets[0][0];
        let rows = [0, m / 2, m - 1];
        Ok(rows.iter().flat_map(|&row| out.view().rows(row..row + 1).to_f32_vec()).collect())
    }
}

fn uniform(device: Device, dtype: DType, dims: &[usize], stream: u64) -> Result<Tensor> {
    use prime_runtime::random::{Generator, Stream};
    let mut random = Generator::new(1, Stream::Test, stream);
    let values = (0..dims.iter().product::<usize>()).map(|_| 2.0 * random.uniform() - 1.0);
    let host = match dtype {
        DType::BF16 => Tensor::from_slice(&values.map(bf16::from_f32).collect::<Vec<_>>(), dims)?,
        _ => Tensor::from_slice(&values.collect::<Vec<_>>(), dims)?,
    };
    Ok(host.to(device)?)
}

/// The fastest way to compute a product.
fn measure(device: Device, problem: Problem) -> Result<Entry> {
    let variants = tuning::variants(device, problem)?;
    let mut buffers = Buffers::new(device, problem)?;
    let before = tuning::preferred(&problem);
    tuning::prefer(problem, None);
    let expected = buffers.result()?;
    // Two ways to sum k products of numbers up to 1, on tensor cores at most 36 roundoffs for 16 of them each, and the rounding of both.
    let terms = problem.k as f64;
    let sum = 2.0 * (36.0 * (terms / 16.0).ceil() + 2.0) * roundoff(DType::F32) * terms;
    let stored = 2.0 * roundoff(problem.out);
    let allowed = |x: f32| match problem.swiglu {
        // The slope of either factor, which are below k.
        true => {
            2.2 * terms * sum
                + stored * (f64::from(x.abs()) + 2.2 * terms * sum)
                + 2.2 * terms * terms * stored
        }
        false => sum + stored * (f64::from(x.abs()) + sum),
    };
    let mut clock = Clock::new(device)?;
    let mut right: Vec<Variant> = Vec::new();
    for variant in variants {
        tuning::prefer(problem, Some(variant));
        let found = buffers.result()?;
        let agrees = |(x, y): (&f32, &f32)| f64::from((x - y).abs()) <= allowed(*y);
        match found.iter().zip(&expected).all(agrees) {
            true => right.push(variant),
            false => eprintln!(
                "warning: {variant} computes {} wrongly and is passed over",
                text(&problem)
            ),
        }
    }
    let found = fastest(&right, |variant, calls| {
        tuning::prefer(problem, Some(*variant));
        clock.seconds(calls, || buffers.run()).ok()
    });
    tuning::prefer(problem, before);
    let found = found.context("no way to compute it could be timed")?;
    Ok(Entry {
        kernel: "matmul".to_owned(),
        problem: text(&problem),
        variant: right[found.index].to_string(),
        seconds: found.seconds,
        seconds_by_itself: found.first.unwrap_or(found.seconds),
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

    const PROBLEM: Problem = Problem {
        m: 64,
        n: 37888,
        k: 3584,
        layout: Layout::NT,
        dtype: DType::BF16,
        out: DType::BF16,
        swiglu: true,
    };

    #[test]
    fn products_are_read_as_they_are_written() {
        assert_eq!(text(&PROBLEM), "NT 64x37888x3584 bfloat16 to bfloat16, swiglu");
        assert_eq!(parse(&text(&PROBLEM)).unwrap(), PROBLEM);
        let gradient = named("TN:10x20x30", DType::BF16).unwrap();
        assert_eq!(text(&gradient), "TN 10x20x30 bfloat16 to float32");
        assert_eq!(parse(&text(&gradient)).unwrap(), gradient);
        for wrong in [
            "NT 1x2 bfloat16 to bfloat16",
            "XX 1x2x3 float32 to float32",
            "NT 1x2x3",
            "NT 1x2x0 float32 to float32",
            "NT 1x2x3 u32 to float32",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(named("64x64x64", DType::F32).unwrap_err().to_string().contains("such as NT:64"));
    }

    #[test]
    fn classes_are_of_powers_of_two() {
        assert_eq!(Problem { m: 65, ..PROBLEM }.class().m, 128);
        assert_eq!(PROBLEM.class(), PROBLEM);
        let gradient = Problem { layout: Layout::TN, k: 4000, m: 37, ..PROBLEM };
        assert_eq!((gradient.class().k, gradient.class().m), (4096, 37));
    }

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
        keep(Device::Emulated, &path, vec![entry("a", "1"), entry("b", "1")]).unwrap();
        keep(Device::Emulated, &path, vec![entry("b", "2")]).unwrap();
        let table = read(&path).unwrap();
        assert_eq!(table.entries, [entry("a", "1"), entry("b", "2")]);
        std::fs::write(&path, "{\"format\": 1").unwrap();
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("is damaged"));
        // A damaged file is written anew.
        keep(Device::Emulated, &path, vec![entry("c", "1")]).unwrap();
        assert_eq!(read(&path).unwrap().entries.len(), 1);
    }
}
