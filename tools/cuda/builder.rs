//! Builds one file for chips, or finds what was built before.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::chip::Chip;
use crate::figures::{Figures, figures, warnings};
use crate::nvrtc::{Compiled, Nvrtc};
use crate::source::Source;

/// How NVRTC is asked, beside the chip.
const OPTIONS: &[&str] = &["--std=c++17", "--ptxas-options=-v"];

/// What became of one file for one chip.
pub struct Outcome<'a> {
    /// The file.
    pub source: &'a Source,
    /// The chip.
    pub chip: &'static Chip,
    /// Figures of each of the file's instances, or the compiler's errors.
    pub result: Result<Vec<Figures>, String>,
    /// Messages on serialised wgmma.
    pub serialised: Vec<String>,
    /// Other warnings.
    pub warnings: Vec<String>,
    /// Where the machine code lies, if there is any.
    pub cubin: Option<PathBuf>,
}

/// The compilers, and the folder in which their results are kept under names made of all that they depend on.
pub struct Builder {
    /// Compiles texts.
    pub nvrtc: Nvrtc,
    /// Assembles PTX.
    pub ptxas: PathBuf,
    /// Where results are kept.
    pub folder: PathBuf,
    /// All headers by name.
    pub headers: Vec<(String, String)>,
    /// Whether to build even what is kept.
    pub again: bool,
}

impl Builder {
    /// Builds a file for chips of one family. NVRTC compiles for the first; for the others, whose PTX would be the same but for the chip's name,
    /// that PTX is assembled, which saves half of the work.
    pub fn build<'a>(
        &self,
        source: &'a Source,
        chips: &[&'static Chip],
    ) -> Result<Vec<Outcome<'a>>> {
        let headers = source.headers(&self.headers);
        let (lead, others) = chips.split_first().context("a file is built for some chip")?;
        let key = self.key(source, &headers, &[lead]);
        let first = self.kept(&key, || {
            let mut options: Vec<String> =
                OPTIONS.iter().map(|&option| option.to_owned()).collect();
            options.push(format!("--gpu-architecture={}", lead.name));
            self.nvrtc.compile(&source.name, &source.text, &headers, &options, &source.instances)
        })?;
        let mut outcomes = vec![self.judge(source, lead, &first, &key)?];
        for &chip in others {
            let key = self.key(source, &headers, &[lead, chip]);
            let compiled = self.kept(&key, || match &first {
                Ok(first) => self.assemble(first, lead, chip, &key),
                Err(log) => Ok(Err(log.clone())),
            })?;
            outcomes.push(self.judge(source, chip, &compiled, &key)?);
        }
        Ok(outcomes)
    }

    fn path(&self, key: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{key}.{extension}"))
    }

    fn key(&self, source: &Source, headers: &[(String, String)], chips: &[&Chip]) -> String {
        let mut hash = blake3::Hasher::new();
        let mut add = |part: &str| {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        };
        add(self.nvrtc.version());
        OPTIONS.iter().for_each(|option| add(option));
        chips.iter().for_each(|chip| add(chip.name));
        add(&source.name);
        add(&source.text);
        for (name, text) in headers {
            add(name);
            add(text);
        }
        hash.finalize().to_hex()[..32].to_owned()
    }

    /// What is kept under a key, or what `make` makes; errors are not kept.
    fn kept(
        &self,
        key: &str,
        make: impl FnOnce() -> Result<Result<Compiled, String>>,
    ) -> Result<Result<Compiled, String>> {
        if !self.again
            && let Some(compiled) = self.read(key)
        {
            return Ok(Ok(compiled));
        }
        let made = make()?;
        if let Ok(compiled) = &made {
            // The list of symbols is written last: without it nothing is read.
            let _ = fs::remove_file(self.path(key, "symbols"));
            fs::write(self.path(key, "log"), &compiled.log)?;
            fs::write(self.path(key, "ptx"), &compiled.ptx)?;
            fs::write(self.path(key, "cubin"), &compiled.cubin)?;
            fs::write(self.path(key, "symbols"), compiled.symbols.join("\n"))?;
        }
        Ok(made)
    }

    fn read(&self, key: &str) -> Option<Compiled> {
        let text = |extension| fs::read_to_string(self.path(key, extension)).ok();
        let symbols = text("symbols")?.lines().map(str::to_owned).collect();
        let cubin = fs::read(self.path(key, "cubin")).ok()?;
        Some(Compiled { log: text("log")?, ptx: text("ptx")?, cubin, symbols })
    }

    fn assemble(
        &self,
        first: &Compiled,
        lead: &Chip,
        chip: &Chip,
        key: &str,
    ) -> Result<Result<Compiled, String>> {
        let target = |chip: &Chip| format!(".target {}", chip.name);
        let ptx = first.ptx.replacen(&target(lead), &target(chip), 1);
        let (input, output) = (self.path(key, "input.ptx"), self.path(key, "output.cubin"));
        fs::write(&input, &ptx)?;
        let mut ptxas = Command::new(&self.ptxas);
        ptxas.args(["-v", "--gpu-name", chip.name, "--output-file"]).arg(&output).arg(&input);
        let result = ptxas.output().context("ptxas does not start")?;
        let log = String::from_utf8_lossy(&result.stderr).into_owned();
        fs::remove_file(&input)?;
        if !result.status.success() {
            return Ok(Err(log));
        }
        let cubin = fs::read(&output)?;
        fs::remove_file(&output)?;
        Ok(Ok(Compiled { log, ptx, cubin, symbols: first.symbols.clone() }))
    }

    fn judge<'a>(
        &self,
        source: &'a Source,
        chip: &'static Chip,
        compiled: &Result<Compiled, String>,
        key: &str,
    ) -> Result<Outcome<'a>> {
        let compiled = match compiled {
            Ok(compiled) => compiled,
            Err(log) => {
                let (result, nothing) = (Err(log.clone()), Vec::new());
                return Ok(Outcome {
                    source,
                    chip,
                    result,
                    serialised: Vec::new(),
                    warnings: nothing,
                    cubin: None,
                });
            }
        };
        let found = figures(&compiled.log, &compiled.ptx, &compiled.symbols);
        let figures = found.into_iter().zip(&source.instances).map(|(figures, instance)| {
            figures.with_context(|| {
                format!("{}: the compiler's messages have no figures of {instance}", source.name)
            })
        });
        let result = Ok(figures.collect::<Result<_>>()?);
        let (serialised, warnings) = warnings(&compiled.log);
        Ok(Outcome {
            source,
            chip,
            result,
            serialised,
            warnings,
            cubin: Some(self.path(key, "cubin")),
        })
    }
}
