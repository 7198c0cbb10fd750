//! Whole steps: training, prefill, decoding, and a step of PRIME.
//!
//! That kernels are right is checked where they are measured alone, and by the tests of models and trainers. Here a loss must be that of a model
//! that knows nothing, a generation must have all its tokens, and an update must have a gradient.

use std::cell::Cell;
use std::rc::Rc;

use prime_runtime::{DType, Device, Tensor};
use serde_json::json;

use super::{Case, OURS};
use crate::shapes::Scale;
use crate::steps::{Generation, PrimeStep, Shape, TrainStep};
use crate::work::{Comparison, Setup, Work};

/// Steps of models that fit the device.
pub fn cases(setup: &Setup) -> Vec<Case> {
    let shapes = match (setup.scale, setup.device) {
        (Scale::Tiny, _) => vec![Shape::tiny()],
        (_, Device::Cuda(_)) => vec![Shape::medium(), Shape::billions()],
        _ => vec![Shape::small(), Shape::medium()],
    };
    let (prompt, new) = if setup.scale == Scale::Tiny { (4, 3) } else { (16, 128) };
    let batches: &[usize] = if setup.scale == Scale::Tiny { &[2] } else { &[1, 32] };
    let mut cases = Vec::new();
    for shape in shapes {
        for dtype in [DType::BF16, DType::F32] {
            // Of a model for GPUs, float32 says nothing that is asked for.
            if shape.name == "1.5B" && dtype == DType::F32 {
                continue;
            }
            cases.push(train(&shape, dtype));
            cases.push(generate(&shape, dtype, "prefill", [shape.sequences, shape.length, 1]));
            for &batch in batches {
                cases.push(generate(&shape, dtype, "decode", [batch, prompt, new]));
            }
        }
    }
    cases.push(prime(setup.scale == Scale::Tiny));
    cases
}

/// Parameters that every token is multiplied with.
fn parameters(shape: &Shape) -> f64 {
    let config = &shape.config;
    let attention = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim;
    let layer = (attention + 3 * config.intermediate_size) * config.hidden_size;
    (config.num_layers * layer + config.vocab_size * config.hidden_size) as f64
}

/// Operations of attention forward over tokens that see so many others on average.
fn attention(shape: &Shape, tokens: f64, seen: f64) -> f64 {
    let config = &shape.config;
    4.0 * tokens * seen * (config.num_layers * config.num_heads * config.head_dim) as f64
}

fn step(
    operation: &'static str,
    name: String,
    dtype: DType,
    [flops, bytes, footprint]: [f64; 3],
    counts: (&'static str, f64),
    make: impl FnOnce(&Setup) -> anyhow::Result<Work> + 'static,
) -> Case {
    let mut case = Case::new(operation, name, dtype, [flops, bytes], make).waits();
    case.counts = Some(counts);
    case.footprint = footprint;
    case.copies = false;
    case
}

fn train(shape: &Shape, dtype: DType) -> Case {
    let tokens = (shape.sequences * shape.length) as f64;
    let forward =
        2.0 * parameters(shape) * tokens + attention(shape, tokens, shape.length as f64 / 2.0);
    let name = format!("{}, {}x{}", shape.name, shape.sequences, shape.length);
    let shape = shape.clone();
    let flops = 3.0 * forward;
    let cost = [flops, 0.0, parameters(&shape) * dtype.size() as f64];
    step("train step", name, dtype, cost, ("token", tokens), move |setup| {
        let mut work = TrainStep::new(&shape, dtype, setup.device)?;
        let config = &shape.config;
        let dims = json!({
            "hidden": config.hidden_size,
            "layers": config.num_layers,
            "heads": config.num_heads,
            "kv_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "intermediate": config.intermediate_size,
            "vocabulary": config.vocab_size,
            "sequences": shape.sequences,
            "length": shape.length,
        });
        let loss = Rc::new(Cell::new(f64::NAN));
        let (found, vocabulary) = (Rc::clone(&loss), shape.config.vocab_size as f64);
        // Weights of a deviation of 0.02 give logits near 0: each token's chance is about that of a draw.
        let check = move |_: &[Tensor]| Ok(one(found.get(), vocabulary.ln(), 0.5));
        let mut made = Work::new(Vec::new(), check).ours(OURS, move |_, _| {
            loss.set(work.run()?);
            Ok(())
        });
        made.about.insert("shape".to_owned(), dims);
        Ok(made)
    })
}

fn generate(
    shape: &Shape,
    dtype: DType,
    operation: &'static str,
    sizes @ [batch, prompt, new]: [usize; 3],
) -> Case {
    let is_prefill = operation == "prefill";
    let tokens = (batch * if is_prefill { prompt } else { new }) as f64;
    let fed = (batch * (prompt + new - 1)) as f64;
    let flops = 2.0 * parameters(shape) * fed + attention(shape, fed, (prompt + new) as f64 / 2.0);
    // Every pass reads the weights once.
    let weights = parameters(shape) * dtype.size() as f64;
    let bytes = weights * new as f64;
    let name = format!("{}, {batch}x{prompt}+{new}", shape.name);
    let shape = shape.clone();
    step(operation, name, dtype, [flops, bytes, weights], ("token", tokens), move |setup| {
        let mut work = Generation::new(&shape, dtype, setup.device, sizes)?;
        let done = Rc::new(Cell::new(f64::NAN));
        let found = Rc::clone(&done);
        // It fails where a sequence has not all its tokens.
        let check = move |_: &[Tensor]| Ok(one(found.get(), 1.0, 0.5));
        Ok(Work::new(Vec::new(), check).ours(OURS, move |_, _| {
            work.run()?;
            done.set(1.0);
            Ok(())
        }))
    })
}

fn prime(tiny: bool) -> Case {
    let name = if tiny { "tiny, 2x2 responses" } else { "default model, 16x4 responses" };
    step("PRIME step", name.to_owned(), DType::F32, [0.0; 3], ("step", 1.0), move |setup| {
        let mut work = PrimeStep::new(setup.device, tiny)?;
        let norm = Rc::new(Cell::new(f64::NAN));
        let found = Rc::clone(&norm);
        let check = move |_: &[Tensor]| {
            let learns = found.get().is_finite() && found.get() > 0.0;
            Ok(one(f64::from(u8::from(learns)), 1.0, 0.5))
        };
        Ok(Work::new(Vec::new(), check).ours(OURS, move |_, _| {
            norm.set(work.run()?);
            Ok(())
        }))
    })
}

fn one(actual: f64, exact: f64, allowed: f64) -> Comparison {
    let mut comparison = Comparison::default();
    comparison.add(actual, exact, allowed);
    comparison
}
