//! `prime bench`: pages of results that benchmarks have written, and the fastest kernels of a device.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use prime_model::Config;
use prime_runtime::{DType, Device};

use super::files::{self, Output};
use super::{Failure, misuse, models, say};
use crate::bench::report::{Report, name_of};
use crate::bench::results::{Found, load};
use crate::bench::tune::{self, Problem};

/// Pages of benchmark results, and the fastest kernels for a GPU
///
/// The benchmarks themselves run with `cargo bench` where the sources are, and with bench.sh of a folder that tools/gpu/pack.sh makes on a machine
/// with a GPU and nothing else.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  cargo bench                                   every kernel and step, on the CPU and a GPU
  prime bench report target/bench/results.json --output bench.html
  prime bench report new.json --against old.json --output change.html
  prime bench tune --model models/Qwen2.5-0.5B  its fastest kernels on this GPU, for all later runs")]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand)]
enum BenchCommand {
    Report(ReportArgs),
    Tune(TuneArgs),
}

/// Make one page of results: tables, roofline plots, ratios, and what became slower
///
/// The page is one HTML file that opens from disk; the same tables go to standard output as Markdown. Files may be of `cargo bench`, of
/// tools/peers, and older records, which are shown as they are.
///
/// With --against, every figure of ours is compared with the earlier one of the same case, in parts of the time of whoever ran beside both. It is
/// called a regression when the quantiles 20 % to 80 % of both lie apart and the medians by more than 5 %, on machines of one kind; where nobody ran
/// beside both, by more than the times of others changed between the two results, nine of ten of them.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  prime bench report bench/results/*.json --output bench.html
  prime bench report target/bench/results.json --against OLD.json --output change.html")]
struct ReportArgs {
    /// Files of results
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Earlier results to compare with
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Where the page goes; a file appears whole, or not at all
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Find the fastest kernel for products of matrices and for attention on a GPU, and have all later runs use it
///
/// Every tile and every cut of a product that the launcher could take is checked against what it takes by itself; every kernel of attention's forward
/// pass, and every kernel and split of the keys of a decode step, against float64. They are timed on the device, and the fastest is kept in a file beside
/// the compiled kernels, for this chip and compiler. Products of about as many rows (up to the next power of two) use it too, as do attention over about as
/// many tokens in sequences of about their length, and decode steps of about as many sequences over about as many keys. A forward pass has a choice on
/// Hopper alone. Runs then sum in another order than before: one that was stopped should be resumed before a device is tuned. Runs with
/// numerics="invariant" are not changed.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  prime bench tune --model models/Qwen2.5-0.5B
  prime bench tune --model models/Qwen2.5-0.5B --tokens 8192 --decode 1,32,128
  prime bench tune --matmul NT:64x37888x3584 --matmul TN:3584x18944x4096
  prime bench tune --attention causal:8x512:14/2x64 --attention full:1x8192:32/8x128
  prime bench tune --attention-decode 64x4096:14/2x64 --attention-decode 1x32768:32/8x128")]
struct TuneArgs {
    /// A model's folder: its linear layers, forward and backward, and its attention, forward over sequences and decoding over caches of all lengths by
    /// powers of two
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// A product: its layout, rows and columns of the result, and terms of each sum; may be given more than once
    #[arg(long, value_name = "LAYOUT:MxNxK")]
    matmul: Vec<String>,
    /// Attention: its mask (causal or full), sequences and tokens of each, and heads of queries, of keys, and elements of one; may be given more than once
    #[arg(long, value_name = "MASK:SEQUENCESxTOKENS:HEADS/KV_HEADSxSIZE")]
    attention: Vec<String>,
    /// Attention of a decode step: sequences and the keys that the cache reserves for each, and heads as above; may be given more than once
    #[arg(long, value_name = "SEQUENCESxKEYS:HEADS/KV_HEADSxSIZE")]
    attention_decode: Vec<String>,
    /// Tokens of a training batch, and the most keys of a decode step, for --model
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Sequences that decode side by side, for --model
    #[arg(long, value_delimiter = ',', default_value = "1,64", value_parser = clap::value_parser!(u32).range(1..))]
    decode: Vec<u32>,
    /// cuda, cuda:N, or emulated in a build that has it
    #[arg(long, default_value = "cuda")]
    device: String,
    /// The type of weights and activations
    #[arg(long, default_value = "bfloat16", value_parser = ["bfloat16", "float32"])]
    dtype: String,
}

pub(super) fn run(args: &BenchArgs) -> Result<(), Failure> {
    match &args.command {
        BenchCommand::Report(args) => report(args),
        BenchCommand::Tune(args) => tune(args),
    }
}

fn tune(args: &TuneArgs) -> Result<(), Failure> {
    let device = Device::parse(&args.device).map_err(misuse)?;
    let dtype = if args.dtype == "float32" { DType::F32 } else { DType::BF16 };
    if device == Device::Cpu {
        return Err(misuse(anyhow!(
            "the host has one way to compute each of them; tune cuda, cuda:N or emulated"
        )));
    }
    let mut problems = Vec::new();
    for text in &args.matmul {
        let problem = tune::products::named(text, dtype).map_err(misuse)?;
        problems.push(Problem::Product(problem));
    }
    for text in &args.attention {
        let problem = tune::attention::named(text, dtype).map_err(misuse)?;
        problems.push(Problem::Attention(problem));
    }
    for text in &args.attention_decode {
        let problem = tune::decode::named(text, dtype).map_err(misuse)?;
        problems.push(Problem::Decode(problem));
    }
    if let Some(folder) = &args.model {
        models::check(folder)?;
        let decode: Vec<usize> = args.decode.iter().map(|&count| count as usize).collect();
        let config = Config::load(folder)?;
        problems.extend(tune::of_model(&config, dtype, args.tokens as usize, &decode));
    }
    if problems.is_empty() {
        return Err(misuse(anyhow!(
            "there is nothing to tune: name a model's folder with --model, products with --matmul, or attention with --attention and --attention-decode"
        )));
    }
    let path = tune::tune(device, &problems, |entry| {
        say(&format!(
            "{} {}: {:.4} ms by `{}`, the fastest of {}; {:.4} ms by what the launcher takes by itself",
            entry.kernel,
            entry.problem,
            1e3 * entry.seconds,
            entry.variant,
            entry.ran,
            1e3 * entry.seconds_by_itself
        ));
    })?;
    say(&format!("kept in {}", path.display()));
    Ok(())
}

fn report(args: &ReportArgs) -> Result<(), Failure> {
    let read = |path: &PathBuf| Ok((name_of(path), load(path)?));
    let files = args.files.iter().map(read).collect::<Result<Vec<_>>>()?;
    let whole = |path: &PathBuf| path.canonicalize().ok();
    let output = args.output.as_ref().and_then(whole);
    let mut read_from = args.files.iter().chain(&args.against);
    if let Some(path) = read_from.find(|path| output.is_some() && whole(path) == output) {
        return Err(misuse(anyhow!(
            "{} is read and would be replaced by the page; name another file with --output",
            path.display()
        )));
    }
    let mut report = Report::new(files);
    if let Some(path) = &args.against {
        report = report.against(name_of(path), earlier(path)?);
    }
    let html = report.to_html()?;
    // Standard output is the page's where it is asked to be.
    let to_standard = args.output.as_deref() == Some(Path::new("-"));
    if let Some(path) = &args.output {
        let mut output = Output::create(path)?;
        output.write_all(html.as_bytes()).context("the output cannot be written")?;
        output.finish()?;
        if !to_standard {
            say(&format!("{}, {:.1} MB", path.display(), html.len() as f64 / 1e6));
        }
    }
    if !to_standard {
        files::print(report.to_markdown())?;
    }
    Ok(())
}

fn earlier(path: &Path) -> Result<crate::bench::Results> {
    match load(path)? {
        Found::Results(results) => Ok(*results),
        Found::Other(_) => {
            bail!(
                "{} holds no figures that could be compared, expected a file of cargo bench or of tools/peers",
                path.display()
            )
        }
    }
}
