//! `prime generate`: text from a model.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::Args;
use prime_kernels::numerics::{self, Numerics};
use prime_model::{
    ChatTemplate, Completion, Finish, GenerationLimits, Generator, Message, Request, Tokenizer,
};
use prime_runtime::Device;
use serde::Serialize;
use serde_json::{Map, Value};

use super::files::{Lines, Output, at_line};
use super::values::{self, Precision, Truncation};
use super::{Failure, models};
use crate::graders::text_field;
use crate::trainer::Model;

/// Sequences under way at once, and tokens of one pass.
const SLOTS: usize = 32;
const PASS_TOKENS: usize = 512;

/// Generate text from a model
///
/// Prints the text of one prompt as it is drawn. With --input, or several --samples, texts are printed when all are done.
///
/// With --json each sample is a line with `prompt`, `text` (without special tokens), `token_ids` (of the response, with the token that
/// ended it), `log_probs` (of each under the whole distribution at the temperature, whatever --top-p and --top-k leave of it; at temperature 0
/// under that of temperature 1) and `finish_reason`: "stop", or "length" when it reached --max-new-tokens or the model's longest sequence.
///
/// A sample depends on --seed and its own place in the list alone, not on the samples drawn beside it.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  prime generate --model DIR --prompt '(9-8)*5+9-3:' --temperature 0
  prime generate --model DIR --chat --prompt 'What is 12 + 7?' --max-new-tokens 64
  prime generate --model DIR --input prompts.jsonl --samples 8 --json --output samples.jsonl")]
#[command(group = clap::ArgGroup::new("what").required(true).args(["prompt", "input"]))]
pub(super) struct GenerateArgs {
    /// Model folder (Hugging Face: config.json, safetensors, tokenizer.json), or a run's, whose newest policy is taken
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// An adapter's folder as PEFT writes it, to stand beside the model (a run with [lora] saves such as its policy, which --model takes too)
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// The text to continue
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// JSON Lines with the field `prompt`, whose other fields are kept with --json; - reads standard input
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Where to write; - writes to standard output. A file appears whole, or not at all
    #[arg(long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// The prompt is a user's message: put it in the model's chat template
    #[arg(long)]
    chat: bool,
    /// What the system message of the chat says
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, requires = "chat")]
    system: Option<String>,
    /// The most tokens to draw
    #[arg(long, value_name = "N", default_value = "256", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    max_new_tokens: u32,
    /// 0 takes the most likely token each time
    #[arg(long, value_name = "T", default_value = "1", allow_negative_numbers = true, value_parser = values::temperature)]
    temperature: f32,
    #[command(flatten)]
    truncation: Truncation,
    /// Fixes every draw
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,
    /// Samples of each prompt
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    samples: u32,
    /// Go on after the tokens that end a text, up to --max-new-tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Where to compute: cpu, cuda (the first GPU), cuda:N, or emulated (the GPU's kernels run and checked on the host, slowly)
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = values::device)]
    device: Device,
    /// How sums run on devices other than the host: fast, tf32, invariant or unordered; see `numerics` in the configuration
    #[arg(long, value_name = "HOW", default_value = "fast")]
    numerics: Numerics,
    /// What the model computes in
    #[arg(long, value_enum, default_value = "float32")]
    dtype: Precision,
    /// Write JSON Lines
    #[arg(long)]
    json: bool,
}

/// A prompt, and the fields of the line it came from.
struct Prompt {
    fields: Map<String, Value>,
    text: String,
    tokens: Arc<[u32]>,
}

/// The fields that a line gets; older values of these names are replaced.
const ADDED: [&str; 5] = ["prompt", "text", "token_ids", "log_probs", "finish_reason"];

#[derive(Serialize)]
struct Generated<'a> {
    #[serde(flatten)]
    fields: &'a Map<String, Value>,
    prompt: &'a str,
    text: String,
    token_ids: &'a [u32],
    log_probs: &'a [f32],
    finish_reason: &'static str,
}

pub(super) fn run(args: &GenerateArgs) -> Result<(), Failure> {
    let folder = models::of_run_or_itself(&args.model)?;
    let tokenizer = models::tokenizer(&folder)?;
    let prompts = prompts(args, &folder, &tokenizer)?;
    let mut output = Output::create(&args.output)?;
    numerics::choose(args.numerics);
    let model = models::load(
        &folder,
        args.adapter.as_deref(),
        &tokenizer,
        args.device,
        args.dtype.dtype(),
    )?;
    let requests = requests(args, &prompts, &model)?;
    let mut stop = model.config.eos_token_ids.clone();
    stop.extend(tokenizer.eos_id());
    if args.ignore_eos {
        stop.clear();
    }
    let mut generator = generator(args, &requests, &model)?;
    drop(model);
    if !args.json && requests.len() == 1 {
        stream(&mut generator, &requests, &stop, &tokenizer, &mut output)?;
    } else {
        let completions = generator.generate(&requests, &stop, |_| ())?;
        let samples = args.samples as usize;
        for (i, completion) in completions.iter().enumerate() {
            let prompt = &prompts[i / samples];
            let text = tokenizer.decode(&completion.tokens, true)?;
            if args.json {
                output.line(&line(prompt, text, completion))?;
            } else {
                writeln!(output, "{text}").context("the output cannot be written")?;
            }
        }
    }
    output.finish()?;
    Ok(())
}

/// The prompts in tokens.
fn prompts(args: &GenerateArgs, folder: &Path, tokenizer: &Tokenizer) -> Result<Vec<Prompt>> {
    let chat = if args.chat { Some(ChatTemplate::load(folder)?) } else { None };
    let encode = |text: &str| -> Result<Arc<[u32]>> {
        let tokens = match &chat {
            None => tokenizer.encode(text, true)?,
            Some(chat) => {
                let system = args.system.iter().map(|text| Message::new("system", text));
                let turns: Vec<Message> = system.chain([Message::new("user", text)]).collect();
                tokenizer.encode(&chat.render(&turns, true)?, false)?
            }
        };
        ensure!(
            !tokens.is_empty(),
            "the prompt is empty, and the tokenizer has no token that begins a text: there is nothing to continue"
        );
        Ok(tokens.into())
    };
    if let Some(text) = &args.prompt {
        return Ok(vec![Prompt {
            fields: Map::new(),
            text: text.clone(),
            tokens: encode(text).context("--prompt")?,
        }]);
    }
    let Some(input) = &args.input else { return Ok(Vec::new()) };
    let mut prompts = Vec::new();
    for line in Lines::open(input)? {
        let line = line?;
        let text = text_field(&line.fields, "prompt").with_context(|| at_line(line.number))?;
        let tokens = encode(&text).with_context(|| at_line(line.number))?;
        let mut fields = line.fields;
        for name in ADDED {
            fields.shift_remove(name);
        }
        prompts.push(Prompt { fields, text, tokens });
    }
    Ok(prompts)
}

/// A request for each sample of each prompt.
fn requests(args: &GenerateArgs, prompts: &[Prompt], model: &Model) -> Result<Vec<Request>> {
    let most = model.config.max_position_embeddings;
    let mut requests = Vec::with_capacity(prompts.len() * args.samples as usize);
    for (i, prompt) in prompts.iter().enumerate() {
        ensure!(
            prompt.tokens.len() < most,
            "prompt {} has {} tokens, which leaves no room for a response: the model was made for sequences of up to {most}",
            i + 1,
            prompt.tokens.len()
        );
        for _ in 0..args.samples {
            requests.push(Request {
                prompt: prompt.tokens.clone(),
                sequence: requests.len() as u64,
                sampling: args.truncation.sampling(args.temperature, args.seed),
                max_new_tokens: args.max_new_tokens as usize,
            });
        }
    }
    Ok(requests)
}

/// A generator planned for the requests.
fn generator(args: &GenerateArgs, requests: &[Request], model: &Model) -> Result<Generator> {
    let longest = requests.iter().map(|request| request.prompt.len()).max().unwrap_or(1);
    let positions = longest + args.max_new_tokens as usize;
    let limits = GenerationLimits {
        slots: requests.len().clamp(1, SLOTS),
        positions: positions.min(model.config.max_position_embeddings),
        step_tokens: PASS_TOKENS,
    };
    Ok(Generator::new(&model.config, &model.weights, limits)?)
}

/// Draws one sample and prints it token by token.
fn stream(
    generator: &mut Generator,
    requests: &[Request],
    stop: &[u32],
    tokenizer: &Tokenizer,
    output: &mut Output,
) -> Result<()> {
    let mut text = tokenizer.stream(true);
    let mut shown = Ok(());
    generator.generate_watched(requests, stop, &mut |_, _| (), &mut |_, token| {
        if shown.is_ok() {
            shown = text.push(token).map_err(anyhow::Error::from).and_then(|piece| {
                output.write_all(piece.as_bytes()).and_then(|()| output.flush())?;
                Ok(())
            });
        }
        shown.is_err().then_some(Finish::Length)
    })?;
    shown.context("the output cannot be written")?;
    writeln!(output, "{}", text.finish()?).context("the output cannot be written")
}

fn line<'a>(prompt: &'a Prompt, text: String, completion: &'a Completion) -> Generated<'a> {
    Generated {
        fields: &prompt.fields,
        prompt: &prompt.text,
        text,
        token_ids: &completion.tokens,
        log_probs: &completion.log_probs,
        finish_reason: match completion.finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
        },
    }
}
