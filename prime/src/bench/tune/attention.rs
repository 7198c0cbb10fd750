//! Attention's forward pass: its texts, those of a model, and how each kernel is checked and timed.

use anyhow::{Context, Result, bail, ensure};
use prime_kernels::attention::check::check_row;
use prime_kernels::attention::reference::Heads;
use prime_kernels::attention::tuning::{self, Problem, Variant};
use prime_kernels::attention::{self, Mask};
use prime_model::Config as ModelConfig;
use prime_runtime::{DType, Device, Tensor, View};

use super::{Tuned, Work, copies, dtype_of, elements, fill, uniform};

/// Sequences of fewer tokens cost too little to be looked at.
const LEAST_LENGTH: usize = 64;

/// A pass's text: `causal 4096 tokens in 8 sequences, 14/2 heads of 64, bfloat16`.
fn text(problem: &Problem) -> String {
    let &Problem { tokens, sequences, heads, kv_heads, head_dim, mask, dtype } = problem;
    let mask = if mask == Mask::Causal { "causal" } else { "full" };
    format!(
        "{mask} {tokens} tokens in {sequences} sequences, {heads}/{kv_heads} heads of {head_dim}, {dtype}"
    )
}

/// The pass of a text.
fn parse(text: &str) -> Result<Problem> {
    let words: Vec<&str> = text.split(' ').collect();
    let [mask, tokens, "tokens", "in", sequences, "sequences,", heads, "heads", "of", dim, dtype] =
        words[..]
    else {
        bail!(
            "`{text}` is no attention, expected one like `causal 4096 tokens in 8 sequences, 14/2 heads of 64, bfloat16`"
        );
    };
    let number = |text: &str| match text.parse::<usize>() {
        Ok(number) if number > 0 => Ok(number),
        _ => bail!("`{text}` is no number of what an attention has, expected 1 or more"),
    };
    let (tokens, sequences) = (number(tokens)?, number(sequences)?);
    ensure!(
        sequences <= tokens,
        "{tokens} tokens are in {sequences} sequences, expected at least one in each"
    );
    let [heads, kv_heads] = heads_of(heads)?;
    let head_dim = number(dim.strip_suffix(',').unwrap_or(dim))?;
    let (mask, dtype) = (mask_of(mask)?, dtype_of(dtype)?);
    fitting(Problem { tokens, sequences, heads, kv_heads, head_dim, mask, dtype })
}

/// The pass that a person names: `causal:8x512:14/2x64`, so many sequences of so many tokens, and query heads, key/value heads and their elements.
///
/// # Errors
/// With what is not as it should be.
pub fn named(text: &str, dtype: DType) -> Result<Problem> {
    let parts: Vec<&str> = text.split(':').collect();
    let [mask, lengths, heads] = parts[..] else {
        bail!(
            "`{text}` is no attention, expected a mask, sequences and heads such as causal:8x512:14/2x64"
        );
    };
    let mask = mask_of(mask)?;
    let [sequences, length] = pair(lengths, 'x').with_context(|| {
        format!("`{lengths}` are no sequences, expected their number and the tokens of each such as 8x512")
    })?;
    let [heads, kv_heads, head_dim] = shape_of(heads)?;
    let tokens = elements(&[sequences, length])?;
    fitting(Problem { tokens, sequences, heads, kv_heads, head_dim, mask, dtype })
}

fn mask_of(text: &str) -> Result<Mask> {
    match text {
        "causal" => Ok(Mask::Causal),
        "full" => Ok(Mask::Full),
        _ => bail!("`{text}` is no mask, expected causal or full"),
    }
}

/// Heads and their elements: `14/2x64`.
pub(super) fn shape_of(heads: &str) -> Result<[usize; 3]> {
    let shape = heads.rsplit_once('x').and_then(|(heads, dim)| {
        let dim = dim.parse().ok().filter(|&dim: &usize| dim > 0)?;
        Some((heads, dim))
    });
    let (heads, head_dim) = shape.with_context(|| {
        format!("`{heads}` are no heads, expected those of queries, those of keys, and the elements of each such as 14/2x64")
    })?;
    let [heads, kv_heads] = heads_of(heads)?;
    Ok([heads, kv_heads, head_dim])
}

pub(super) fn heads_of(text: &str) -> Result<[usize; 2]> {
    let [heads, kv_heads] = pair(text, '/').with_context(|| {
        format!("`{text}` are no heads, expected those of queries and those of keys such as 14/2")
    })?;
    ensure!(
        heads.is_multiple_of(kv_heads),
        "{heads} query heads cannot share {kv_heads} key/value heads: the first must be a multiple of the second"
    );
    Ok([heads, kv_heads])
}

/// Two positive numbers.
pub(super) fn pair(text: &str, between: char) -> Option<[usize; 2]> {
    let (a, b) = text.split_once(between)?;
    let (a, b) = (a.parse().ok()?, b.parse().ok()?);
    (a > 0 && b > 0).then_some([a, b])
}

/// A pass whose buffers can be had.
fn fitting(problem: Problem) -> Result<Problem> {
    elements(&[problem.tokens, problem.heads, 3, problem.head_dim])?;
    Ok(problem)
}

/// The passes of a model over so many tokens, in sequences of every length up to them by powers of two.
pub(super) fn of_model(config: &ModelConfig, dtype: DType, tokens: usize) -> Vec<Problem> {
    let &ModelConfig { num_heads: heads, num_kv_heads: kv_heads, head_dim, .. } = config;
    let longest = tokens.next_power_of_two();
    let lengths = std::iter::successors(Some(LEAST_LENGTH.min(longest)), |length| Some(2 * length));
    let of_length = |length: usize| {
        let sequences = tokens.div_ceil(length);
        Problem { tokens, sequences, heads, kv_heads, head_dim, mask: Mask::Causal, dtype }
    };
    lengths.take_while(|&length| length <= longest).map(of_length).collect()
}

tuned!("attention");

/// The buffers of a pass, in copies that exceed the last cache three times. Queries, keys and values are columns of one, as in a model.
struct Buffers {
    device: Device,
    problem: Problem,
    /// Where sequences begin, and the end.
    starts: Vec<u32>,
    offsets: Tensor,
    sets: Vec<Set>,
    next: usize,
}

struct Set {
    out: Tensor,
    lse: Tensor,
    fused: Tensor,
}

impl Buffers {
    fn new(device: Device, problem: Problem) -> Result<Buffers> {
        let Problem { tokens, sequences, heads, kv_heads, head_dim, dtype, .. } = problem;
        let columns = (heads + 2 * kv_heads) * head_dim;
        let bytes = tokens * ((columns + heads * head_dim) * dtype.size() + heads * 4);
        let inputs = uniform(device, dtype, &[tokens, columns], 1)?;
        let set = |_| -> Result<Set> {
            let mut fused = Tensor::zeros(device, dtype, inputs.dims())?;
            fused.view_mut().copy_from(inputs.view())?;
            let out = Tensor::zeros(device, dtype, &[tokens, heads, head_dim])?;
            Ok(Set { out, lse: Tensor::zeros(device, DType::F32, &[tokens, heads])?, fused })
        };
        let sets = (0..copies(device, bytes)?).map(set).collect::<Result<Vec<_>>>()?;
        // As equal lengths as can be.
        let starts: Vec<u32> = (0..=sequences).map(|i| (i * tokens / sequences) as u32).collect();
        let offsets = Tensor::from_slice(&starts, &[starts.len()])?.to(device)?;
        Ok(Buffers { device, problem, starts, offsets, sets, next: 0 })
    }

    fn scale(&self) -> f32 {
        1.0 / (self.problem.head_dim as f32).sqrt()
    }

    /// The keys that a token sees.
    fn seen(&self, token: usize) -> std::ops::Range<usize> {
        let behind = self.starts.partition_point(|&start| start as usize <= token);
        let (first, end) = (self.starts[behind - 1] as usize, self.starts[behind] as usize);
        first..if self.problem.mask == Mask::Causal { token + 1 } else { end }
    }

    /// The ends of the first and the last sequence, and the middle of one between: they see keys of many tiles.
    fn samples(&self) -> [usize; 4] {
        let middle = self.problem.sequences / 2;
        let [first, last] = [self.starts[middle], self.starts[middle + 1]].map(|at| at as usize);
        [0, self.starts[1] as usize - 1, usize::midpoint(first, last), self.problem.tokens - 1]
    }
}

/// Queries, keys and values of a fused buffer.
fn parts<'a>(problem: &Problem, fused: View<'a>) -> [View<'a>; 3] {
    let &Problem { heads, kv_heads, head_dim, .. } = problem;
    let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
    let part = |from: usize, heads: usize| {
        let view = fused.columns(from..from + heads * head_dim);
        view.reshape(&[fused.dim(0), heads, head_dim])
    };
    [part(0, heads), part(queries, kv_heads), part(queries + keys, kv_heads)]
}

pub(super) fn wide(view: View<'_>) -> Vec<f64> {
    view.to_f32_vec().into_iter().map(f64::from).collect()
}

impl Work for Buffers {
    fn run(&mut self) -> Result<()> {
        let (scale, count) = (self.scale(), self.sets.len());
        let Set { out, lse, fused } = &mut self.sets[self.next % count];
        self.next += 1;
        let [q, k, v] = parts(&self.problem, fused.view());
        let (out, lse, offsets) = (out.view_mut(), lse.view_mut(), self.offsets.view());
        attention::forward(out, lse, q, k, v, offsets, scale, self.problem.mask)?;
        Ok(())
    }

    fn check(&mut self) -> Result<Result<(), String>> {
        self.next = 0;
        fill(&mut self.sets[0].out, f32::NAN)?;
        fill(&mut self.sets[0].lse, f32::NAN)?;
        self.run()?;
        Ok(self.compare())
    }
}

impl Buffers {
    /// Compares what is in the first buffers with float64, at some tokens.
    fn compare(&self) -> Result<(), String> {
        let Problem { heads, kv_heads, head_dim, dtype, .. } = self.problem;
        let heads = Heads { heads, kv_heads, head_dim };
        let Set { out, lse, fused } = &self.sets[0];
        for token in self.samples() {
            let row = |view: View<'_>| wide(view.rows(token..token + 1));
            let [q, k, v] = parts(&self.problem, fused.view());
            let [k, v] = [k, v].map(|view| wide(view.rows(self.seen(token))));
            let (out, lse) = (row(out.view()), row(lse.view()));
            let scale = f64::from(self.scale());
            let found = (&out[..], Some(&lse[..]));
            check_row(self.device, dtype, [&row(q), &k, &v], heads, scale, found)
                .map_err(|message| format!("token {token}: {message}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PROBLEM: Problem = Problem {
        tokens: 4096,
        sequences: 8,
        heads: 14,
        kv_heads: 2,
        head_dim: 64,
        mask: Mask::Causal,
        dtype: DType::BF16,
    };

    #[test]
    fn a_pass_is_written_as_a_person_reads_it_and_named_in_short() {
        let written = "causal 4096 tokens in 8 sequences, 14/2 heads of 64, bfloat16";
        assert_eq!(text(&PROBLEM), written);
        assert_eq!(named("causal:8x512:14/2x64", DType::BF16).unwrap(), PROBLEM);
        let full = Problem { mask: Mask::Full, dtype: DType::F32, kv_heads: 14, ..PROBLEM };
        assert_eq!(named("full:8x512:14/14x64", DType::F32).unwrap(), full);
    }

    #[test]
    fn what_names_no_pass_is_refused_with_what_would_be_right() {
        for (wrong, sentence) in [
            ("causal:8x512", "such as causal:8x512:14/2x64"),
            ("casual:8x512:14/2x64", "`casual` is no mask, expected causal or full"),
            ("causal:8:14/2x64", "`8` are no sequences, expected their number"),
            ("causal:0x8:14/2x64", "`0x8` are no sequences"),
            ("causal:8x512:14x64", "`14` are no heads, expected those of queries"),
            ("causal:8x512:14/2", "`14/2` are no heads"),
            ("causal:8x512:14/2x0", "`14/2x0` are no heads"),
            ("causal:8x512:14/4x64", "14 query heads cannot share 4 key/value heads"),
            ("causal:99999999x99999999:1/1x64", "elements"),
            ("causal:9999999999999999x9999999999999999:1/1x64", "elements"),
        ] {
            let message = named(wrong, DType::BF16).unwrap_err().to_string();
            assert!(message.contains(sentence), "{wrong}: {message}");
        }
        for wrong in [
            "causal 9 tokens in 8 sequences, 14/2 heads of 64",
            "causal 7 tokens in 8 sequences, 14/2 heads of 64, bfloat16",
            "causal 9 tokens in 8 sequences, 14/2 heads of 64, u32",
            "causal 9 tokens in 0 sequences, 14/2 heads of 64, float32",
            "causal 9 tokens in 8 sequences, 14/0 heads of 64, float32",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_models_passes_are_of_every_class_of_lengths() {
        let config = ModelConfig::from_json(
            "config.json",
            r#"{"architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true, "hidden_act": "silu"}"#,
        )
        .unwrap();
        for (tokens, lengths) in [
            (4096, vec![64, 128, 256, 512, 1024, 2048, 4096]),
            (5000, vec![64, 128, 256, 512, 1024, 2048, 4096, 8192]),
            (100, vec![64, 128]),
            (20, vec![32]),
            (1, vec![1]),
        ] {
            let classes = of_model(&config, DType::BF16, tokens).into_iter().map(|problem| {
                assert_eq!((problem.heads, problem.kv_heads, problem.head_dim), (14, 2, 64));
                assert_eq!(problem.tokens, tokens);
                let class = problem.class();
                class.tokens / class.sequences
            });
            assert_eq!(classes.collect::<Vec<_>>(), lengths, "{tokens}");
        }
    }

    #[test]
    fn what_is_computed_wrongly_is_found() {
        for (text, dtype) in [("causal:3x50:4/2x20", DType::BF16), ("full:2x70:3/3x64", DType::F32)]
        {
            let mut buffers = Buffers::new(Device::Cpu, named(text, dtype).unwrap()).unwrap();
            assert_eq!(buffers.check().unwrap(), Ok(()), "{text}");
            fill(&mut buffers.sets[0].lse, 0.0).unwrap();
            assert!(buffers.compare().unwrap_err().contains("lse"), "{text}");
            buffers.check().unwrap().unwrap();
            // As if a kernel had seen keys that it must not, or not all.
            let mask = match buffers.problem.mask {
                Mask::Causal => Mask::Full,
                Mask::Full => Mask::Causal,
            };
            buffers.problem.mask = mask;
            assert!(buffers.compare().unwrap_err().contains(": out["), "{text}");
        }
    }

    prop_compose! {
        fn any_problem()(
            (tokens, sequences) in (1usize..5000).prop_flat_map(|tokens| (Just(tokens), 1..=tokens)),
            kv_heads in 1usize..20,
            shared_by in 1usize..20,
            head_dim in 1usize..300,
            (causal, wide) in any::<(bool, bool)>(),
        ) -> Problem {
            let mask = if causal { Mask::Causal } else { Mask::Full };
            let dtype = if wide { DType::F32 } else { DType::BF16 };
            Problem { tokens, sequences, heads: kv_heads * shared_by, kv_heads, head_dim, mask, dtype }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn a_pass_is_read_as_it_is_written(problem in any_problem()) {
            prop_assert_eq!(parse(&text(&problem)).unwrap(), problem);
            prop_assert_eq!(parse(&text(&problem.class())).unwrap(), problem.class());
        }

        #[test]
        fn a_damaged_text_is_refused_or_is_another_pass(
            problem in any_problem(), at in any::<prop::sample::Index>(), put in "[0-9a-z/, ]{0,3}",
        ) {
            let mut damaged = text(&problem);
            let at = at.index(damaged.len());
            damaged.replace_range(at..=at, &put);
            if let Ok(read) = parse(&damaged) {
                prop_assert_eq!(parse(&text(&read)).unwrap(), read);
            }
        }
    }
}
