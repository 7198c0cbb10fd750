//! Attention of a decode step: its texts, those of a model, and how each way is checked and timed.

use anyhow::{Context, Result, bail};
use prime_kernels::attention;
use prime_kernels::attention::check::check_row;
use prime_kernels::attention::reference::Heads;
use prime_kernels::attention::tuning::decode::{self as tuning, Problem, Variant};
use prime_model::Config as ModelConfig;
use prime_runtime::{DType, Device, Tensor};

use super::attention::{heads_of, pair, shape_of, wide};
use super::{Tuned, Work, copies, dtype_of, elements, fill, uniform};

/// Over fewer keys there is nothing to gain.
const LEAST_KEYS: usize = 256;

/// A step's text: `64 sequences over 4096 keys, 14/2 heads of 64, bfloat16`.
fn text(problem: &Problem) -> String {
    let &Problem { sequences, keys, heads, kv_heads, head_dim, dtype } = problem;
    format!(
        "{sequences} sequences over {keys} keys, {heads}/{kv_heads} heads of {head_dim}, {dtype}"
    )
}

/// The step of a text.
fn parse(text: &str) -> Result<Problem> {
    let words: Vec<&str> = text.split(' ').collect();
    let [sequences, "sequences", "over", keys, "keys,", heads, "heads", "of", dim, dtype] =
        words[..]
    else {
        bail!(
            "`{text}` is no decode step, expected one like `64 sequences over 4096 keys, 14/2 heads of 64, bfloat16`"
        );
    };
    let number = |text: &str| match text.parse::<usize>() {
        Ok(number) if number > 0 => Ok(number),
        _ => bail!("`{text}` is no number of what a decode step has, expected 1 or more"),
    };
    let (sequences, keys) = (number(sequences)?, number(keys)?);
    let [heads, kv_heads] = heads_of(heads)?;
    let head_dim = number(dim.strip_suffix(',').unwrap_or(dim))?;
    fitting(Problem { sequences, keys, heads, kv_heads, head_dim, dtype: dtype_of(dtype)? })
}

/// The step that a person names: `64x4096:14/2x64`, so many sequences that each see so many keys, and query heads, key/value heads and their elements.
///
/// # Errors
/// With what is not as it should be.
pub fn named(text: &str, dtype: DType) -> Result<Problem> {
    let (lengths, heads) = text.split_once(':').with_context(|| {
        format!(
            "`{text}` is no decode step, expected sequences, keys and heads such as 64x4096:14/2x64"
        )
    })?;
    let [sequences, keys] = pair(lengths, 'x').with_context(|| {
        format!("`{lengths}` are no sequences, expected their number and the keys of each such as 64x4096")
    })?;
    let [heads, kv_heads, head_dim] = shape_of(heads)?;
    fitting(Problem { sequences, keys, heads, kv_heads, head_dim, dtype })
}

/// A step whose buffers can be had.
fn fitting(problem: Problem) -> Result<Problem> {
    let Problem { sequences, keys, heads, kv_heads, head_dim, .. } = problem;
    elements(&[sequences, keys, kv_heads, head_dim])?;
    elements(&[sequences, heads, head_dim])?;
    Ok(problem)
}

/// The steps of a model, for each number of sequences that decode, over caches of every size up to so many keys by powers of two.
pub(super) fn of_model(
    config: &ModelConfig,
    dtype: DType,
    tokens: usize,
    decode: &[usize],
) -> Vec<Problem> {
    let &ModelConfig { num_heads: heads, num_kv_heads: kv_heads, head_dim, .. } = config;
    let most = tokens.next_power_of_two().max(LEAST_KEYS);
    let lengths = std::iter::successors(Some(LEAST_KEYS), |keys| Some(2 * keys));
    let of_length = |keys: usize| {
        let step =
            move |&sequences: &usize| Problem { sequences, keys, heads, kv_heads, head_dim, dtype };
        decode.iter().map(step)
    };
    lengths.take_while(|&keys| keys <= most).flat_map(of_length).collect()
}

tuned!("attention decode");

/// The buffers of a step, in copies that exceed the last cache three times. Every sequence has filled what is reserved for it.
struct Buffers {
    device: Device,
    problem: Problem,
    q: Tensor,
    spans: Tensor,
    sets: Vec<Set>,
    next: usize,
}

struct Set {
    out: Tensor,
    keys: Tensor,
    values: Tensor,
}

impl Buffers {
    fn new(device: Device, problem: Problem) -> Result<Buffers> {
        let Problem { sequences, keys: reserved, heads, kv_heads, head_dim, dtype } = problem;
        let rows = sequences * reserved;
        let cache = |stream| uniform(device, dtype, &[rows, kv_heads, head_dim], stream);
        let (keys, values) = (cache(2)?, cache(3)?);
        let copy = |of: &Tensor| -> Result<Tensor> {
            let mut to = Tensor::zeros(device, dtype, of.dims())?;
            to.view_mut().copy_from(of.view())?;
            Ok(to)
        };
        let set = |_| -> Result<Set> {
            let out = Tensor::zeros(device, dtype, &[sequences, heads, head_dim])?;
            Ok(Set { out, keys: copy(&keys)?, values: copy(&values)? })
        };
        let bytes = 2 * rows * kv_heads * head_dim * dtype.size();
        let sets = (0..copies(device, bytes)?).map(set).collect::<Result<Vec<_>>>()?;
        let span = |i: usize| [i, 1, i * reserved, reserved].map(|number| number as u32);
        let spans: Vec<u32> = (0..sequences).flat_map(span).collect();
        let spans = Tensor::from_slice(&spans, &[sequences, 4])?.to(device)?;
        let q = uniform(device, dtype, &[sequences, heads, head_dim], 1)?;
        Ok(Buffers { device, problem, q, spans, sets, next: 0 })
    }

    fn scale(&self) -> f32 {
        1.0 / (self.problem.head_dim as f32).sqrt()
    }

    /// Compares what is in the first buffers with float64: the first sequence, the last, and one between.
    fn compare(&self) -> Result<(), String> {
        let Problem { sequences, keys: reserved, heads, kv_heads, head_dim, dtype } = self.problem;
        let heads = Heads { heads, kv_heads, head_dim };
        let Set { out, keys, values } = &self.sets[0];
        for sequence in [0, sequences / 2, sequences - 1] {
            let own = sequence * reserved..(sequence + 1) * reserved;
            let [k, v] = [keys, values].map(|cache| wide(cache.view().rows(own.clone())));
            let [q, out] =
                [&self.q, out].map(|tensor| wide(tensor.view().rows(sequence..sequence + 1)));
            let scale = f64::from(self.scale());
            check_row(self.device, dtype, [&q, &k, &v], heads, scale, (&out, None))
                .map_err(|message| format!("sequence {sequence}: {message}"))?;
        }
        Ok(())
    }
}

impl Work for Buffers {
    fn run(&mut self) -> Result<()> {
        let (scale, count) = (self.scale(), self.sets.len());
        let Set { out, keys, values } = &mut self.sets[self.next % count];
        self.next += 1;
        let (keys, values) = (keys.view(), values.view());
        attention::decode(out.view_mut(), self.q.view(), keys, values, self.spans.view(), scale)?;
        Ok(())
    }

    fn check(&mut self) -> Result<Result<(), String>> {
        self.next = 0;
        fill(&mut self.sets[0].out, f32::NAN)?;
        self.run()?;
        Ok(self.compare())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBLEM: Problem = Problem {
        sequences: 64,
        keys: 4096,
        heads: 14,
        kv_heads: 2,
        head_dim: 64,
        dtype: DType::BF16,
    };

    #[test]
    fn a_step_is_read_as_it_is_written_and_named_in_short() {
        let written = "64 sequences over 4096 keys, 14/2 heads of 64, bfloat16";
        assert_eq!(text(&PROBLEM), written);
        assert_eq!(parse(written).unwrap(), PROBLEM);
        assert_eq!(named("64x4096:14/2x64", DType::BF16).unwrap(), PROBLEM);
        let wide = Problem { dtype: DType::F32, kv_heads: 14, ..PROBLEM };
        assert_eq!(parse(&text(&wide)).unwrap(), wide);
    }

    #[test]
    fn what_names_no_step_is_refused_with_what_would_be_right() {
        for (wrong, sentence) in [
            ("64x4096", "such as 64x4096:14/2x64"),
            ("64:14/2x64", "`64` are no sequences, expected their number and the keys"),
            ("0x8:14/2x64", "`0x8` are no sequences"),
            ("8x512:14x64", "`14` are no heads"),
            ("8x512:14/4x64", "14 query heads cannot share 4 key/value heads"),
            ("99999999x99999999:1/1x64", "elements"),
        ] {
            let message = named(wrong, DType::BF16).unwrap_err().to_string();
            assert!(message.contains(sentence), "{wrong}: {message}");
        }
        for wrong in [
            "64 sequences over 4096 keys, 14/2 heads of 64",
            "64 sequences over 0 keys, 14/2 heads of 64, bfloat16",
            "64 sequences under 4096 keys, 14/2 heads of 64, bfloat16",
            "64 sequences over 4096 keys, 14/2 heads of 64, u32",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_computed_wrongly_is_found() {
        for (text, dtype) in [("3x70:4/2x20", DType::BF16), ("2x33:3/3x64", DType::F32)] {
            let mut buffers = Buffers::new(Device::Cpu, named(text, dtype).unwrap()).unwrap();
            assert_eq!(buffers.check().unwrap(), Ok(()), "{text}");
            // As if a way had left out the last keys.
            let (sequences, keys) = (buffers.problem.sequences, buffers.problem.keys);
            let span = |i: usize| [i, 1, i * keys, keys - 5].map(|number| number as u32);
            let spans: Vec<u32> = (0..sequences).flat_map(span).collect();
            buffers.spans = Tensor::from_slice(&spans, &[sequences, 4]).unwrap();
            assert!(buffers.check().unwrap().unwrap_err().contains(": out["), "{text}");
        }
    }
}
