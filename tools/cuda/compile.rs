//! Compiles all instances for all chips, in parallel, and judges what the compiler says.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::allowed::{self, Allowed};
use crate::builder::{Builder, Outcome};
use crate::chip::{CHIPS, Chip};
use crate::nvrtc::Nvrtc;
use crate::source::Source;
use crate::{install, report, source};

/// Which kernels, and what of them.
#[derive(Args)]
pub struct Options {
    /// Compile for this chip only (may be given again): sm_80, sm_86, sm_89, sm_90a, sm_100a, sm_120a.
    #[arg(long, value_name = "CHIP")]
    chip: Vec<String>,
    /// Compile only files whose path below `kernels` holds this text.
    #[arg(long, value_name = "TEXT")]
    file: Option<String>,
    /// Write the machine code as text to target/cuda/sass and name the files.
    #[arg(long)]
    sass: bool,
    /// Compile even what was compiled before and has not changed.
    #[arg(long)]
    again: bool,
}

/// One file for the chips of one family.
struct Job<'a> {
    source: &'a Source,
    chips: Vec<&'static Chip>,
}

/// Compiles and prints; whether all is well.
pub fn compile(root: &Path, toolkit: &Path, options: &Options) -> Result<bool> {
    if !install::installed(toolkit) {
        bail!(
            "the compilers are not in {}; fetch them with `cargo run -p prime-tools --bin cuda -- install`",
            toolkit.display()
        );
    }
    for chip in &options.chip {
        if Chip::find(chip).is_none() {
            let known: Vec<&str> = CHIPS.iter().map(|chip| chip.name).collect();
            bail!("`{chip}` is not one of the chips {}", known.join(", "));
        }
    }
    let start = Instant::now();
    let allowed = allowed::read(&root.join("tools/cuda/spills.txt"))?;
    let mut sources = source::all(root)?;
    sources.retain(|source| options.file.as_ref().is_none_or(|part| source.name.contains(part)));
    if sources.is_empty() {
        bail!(
            "no `.cu` file below kernels has `{}` in its path",
            options.file.as_deref().unwrap_or_default()
        );
    }
    let mut jobs = Vec::new();
    for source in &sources {
        let mut chips = source.chips();
        chips.retain(|chip| {
            options.chip.is_empty() || options.chip.iter().any(|name| name == chip.name)
        });
        let families = chips.chunk_by(|a, b| a.family == b.family);
        jobs.extend(families.map(|chips| Job { source, chips: chips.to_vec() }));
    }
    // The longest first, so that no long one is left for the end.
    jobs.sort_by_key(|job| std::cmp::Reverse(job.source.instances.len() * (job.chips.len() + 1)));
    let home = install::home(toolkit);
    let builder = Builder {
        nvrtc: Nvrtc::load(&home.join("lib"))?,
        ptxas: home.join("bin/ptxas"),
        folder: root.join("target/cuda"),
        headers: source::headers(root)?,
        again: options.again,
    };
    fs::create_dir_all(&builder.folder)
        .with_context(|| format!("{} cannot be made", builder.folder.display()))?;
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..thread::available_parallelism().map_or(1, usize::from))
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let built = builder.build(job.source, &job.chips)?;
                        outcomes.lock().unwrap().extend(built);
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })?;
    let mut outcomes = outcomes.into_inner().unwrap();
    let chip_place = |chip: &Chip| CHIPS.iter().position(|other| other.name == chip.name);
    outcomes.sort_by_key(|outcome| (outcome.source.name.clone(), chip_place(outcome.chip)));
    report::table(&outcomes);
    if options.sass {
        disassemble(root, toolkit, &outcomes)?;
    }
    let faults = judge(&outcomes, &allowed);
    let warnings = outcomes.iter().flat_map(|outcome| {
        outcome.warnings.iter().map(|warning| (warning.clone(), outcome.chip.name))
    });
    for (message, chips) in by_message(warnings) {
        println!("warning for {chips}: {message}");
    }
    for fault in &faults {
        println!("{fault}");
    }
    let instances: usize =
        outcomes.iter().filter_map(|outcome| outcome.result.as_ref().ok()).map(Vec::len).sum();
    println!(
        "{instances} instances of {} files compiled with NVRTC {} in {:.1} s: {}",
        sources.len(),
        builder.nvrtc.version(),
        start.elapsed().as_secs_f64(),
        if faults.is_empty() { "all well".to_owned() } else { format!("{} faults", faults.len()) }
    );
    Ok(faults.is_empty())
}

/// Messages that are the same on several chips, once, with the chips' names.
fn by_message(messages: impl Iterator<Item = (String, &'static str)>) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for (message, chip) in messages {
        match found.iter_mut().find(|(other, _)| *other == message) {
            Some((_, chips)) => chips.extend([", ", chip]),
            None => found.push((message, chip.to_owned())),
        }
    }
    found
}

/// What must not be: errors, local memory that is not listed, a list that is out of date, serialised wgmma, setmaxnreg that would never return,
/// accesses before the wait for the kernel ahead.
fn judge(outcomes: &[Outcome], allowed: &[Allowed]) -> Vec<String> {
    const LIST: &str = "tools/cuda/spills.txt";
    let mut faults = Vec::new();
    for Outcome { source, chip, result, serialised, .. } in outcomes {
        let mut fault = |message: String| faults.push((message, chip.name));
        let lines = || allowed.iter().filter(|line| line.file == source.name);
        for line in lines().filter(|line| !source.instances.contains(&line.instance)) {
            fault(format!(
                "{}: {LIST} has a line of {}, which the file does not list",
                line.file, line.instance
            ));
        }
        for message in serialised {
            fault(format!("{}: {message}", source.name));
        }
        let figures = match result {
            Ok(figures) => figures,
            Err(log) => {
                fault(format!("{} does not compile:\n{log}", source.name));
                continue;
            }
        };
        for (instance, figures) in source.instances.iter().zip(figures) {
            let place = format!("{}: {instance}", source.name);
            let line = lines().find(|line| line.instance == *instance && line.chip == chip.name);
            let accepted = line.map_or(0, |line| line.bytes);
            if figures.takes_too_many() {
                fault(format!(
                    "{place}: warpgroups take more registers than its {} threads of {} have, and would wait for ever",
                    figures.threads, figures.registers
                ));
            }
            if let Some(access) = &figures.early {
                fault(format!("{place} touches memory before begin_grid: `{access}`"));
            }
            let used = figures.local();
            if used > accepted {
                let (stores, loads) = (figures.spill_stores, figures.spill_loads);
                fault(format!(
                    "{place} uses {used} bytes of local memory a thread (spills: {stores} bytes stored, {loads} loaded) where \
                     {LIST} accepts {accepted}"
                ));
            } else if used == 0 && line.is_some() {
                fault(format!(
                    "{place} uses no local memory any more: take its line out of {LIST}"
                ));
            }
        }
    }
    by_message(faults.into_iter())
        .into_iter()
        .map(|(message, chips)| format!("fault for {chips}: {message}"))
        .collect()
}

fn disassemble(root: &Path, toolkit: &Path, outcomes: &[Outcome]) -> Result<()> {
    let folder = root.join("target/cuda/sass");
    fs::create_dir_all(&folder)?;
    for outcome in outcomes {
        let Some(cubin) = &outcome.cubin else { continue };
        let mut command = Command::new(install::home(toolkit).join("bin/cuobjdump"));
        let output =
            command.arg("-sass").arg(cubin).output().context("cuobjdump does not start")?;
        if !output.status.success() {
            bail!("cuobjdump: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let name = format!("{}.{}.sass", outcome.source.name.replace('/', "."), outcome.chip.name);
        fs::write(folder.join(&name), output.stdout)?;
        println!("{}", folder.join(&name).display());
    }
    Ok(())
}
