//! The projection onto a vocabulary, and what streams: norms, SwiGLU, the optimiser.

use anyhow::Result;
use prime_kernels::{adamw, log_prob, rms_norm, swiglu};
use prime_runtime::{DType, Tensor, bf16};

use super::{
    Bench, Case, Comparison, Data, FACTOR, Model, STORED, Sizes, UNIT, Work, dot, magnitude,
    row_of, samples, sum_error,
};

pub(super) fn run(bench: &Bench, sizes: &Sizes, cases: &mut Vec<Case>) -> Result<()> {
    for model in sizes.models {
        projection(bench, sizes, model, cases)?;
        norm(bench, sizes, model, cases)?;
        gates(bench, sizes, model, cases)?;
    }
    cases.push(update(bench, sizes.parameters)?);
    Ok(())
}

fn projection(bench: &Bench, sizes: &Sizes, model: &Model, cases: &mut Vec<Case>) -> Result<()> {
    let &Model { hidden: width, vocabulary, .. } = model;
    let tokens = sizes.tokens;
    let (hidden, weight) =
        (bench.uniform(&[tokens, width], 1)?, bench.uniform(&[vocabulary, width], 2)?);
    let chosen: Vec<u32> = (0..tokens).map(|i| (i * 7919 % vocabulary) as u32).collect();
    let targets = bench.indices(&chosen, &[tokens])?;
    let [mut log_probs, mut entropy, mut lse] = [
        bench.zeros(DType::F32, &[tokens])?,
        bench.zeros(DType::F32, &[tokens])?,
        bench.zeros(DType::F32, &[tokens])?,
    ];
    // Uniform factors make logits of a deviation of a third of the width's root: a temperature brings that to one.
    let temperature = (width as f32).sqrt() / 3.0;
    let (x, w, t) = (hidden.device.view(), weight.device.view(), targets.view());
    let seconds = bench.time(|| {
        let (lp, entropy, lse) = (log_probs.view_mut(), entropy.view_mut(), lse.view_mut());
        Ok(log_prob::forward(lp, entropy, lse, x, w, t, temperature)?)
    })?;
    let rows: Vec<usize> = samples(tokens, 2).collect();
    let inverse = 1.0 / f64::from(temperature);
    let exact: Vec<Row> =
        rows.iter().map(|&row| Row::of(&hidden.row(row), &weight, inverse)).collect();
    let mut comparison = Comparison::default();
    for (&row, exact) in rows.iter().zip(&exact) {
        let log_prob = exact.logits[chosen[row] as usize] - exact.lse;
        // A logit's error twice, of the target and of the sum; and of sums of the vocabulary in float32, in lanes and trees.
        let error = 2.0 * exact.logit_error + 64.0 * UNIT * (1.0 + exact.lse.abs());
        comparison.add(row_of(&log_probs, row)[0], log_prob, error);
        comparison.add(row_of(&lse, row)[0], exact.lse, error);
        // The entropy is the sum's logarithm less the mean logit, which a change of all logits by e changes by e (1 + deviation) at most.
        comparison.add(
            row_of(&entropy, row)[0],
            exact.entropy,
            4.0 * error * (1.0 + exact.lse.abs()),
        );
    }
    let products = 2.0 * (tokens * width) as f64 * vocabulary as f64;
    let shape = format!("{tokens} tokens, hidden {width}, vocabulary {vocabulary}, bfloat16");
    cases.push(Case {
        operation: "log_prob forward".to_owned(),
        model: model.name,
        shape: shape.clone(),
        comparison,
        seconds,
        work: Work::Operations(products),
        library: None,
    });

    let d_log_probs = Tensor::from_slice(&vec![1.0f32; tokens], &[tokens])?.to(bench.device)?;
    let mut d_hidden = bench.zeros(DType::BF16, &[tokens, width])?;
    let mut d_weight = bench.zeros(DType::F32, &[vocabulary, width])?;
    let seconds = bench.time(|| {
        Ok(log_prob::backward(
            d_hidden.view_mut(),
            Some(d_weight.view_mut()),
            d_log_probs.view(),
            None,
            x,
            w,
            t,
            lse.view(),
            entropy.view(),
            temperature,
        )?)
    })?;
    let mut comparison = Comparison::default();
    for (&row, exact) in rows.iter().zip(&exact) {
        let (mut sums, mut sizes) = (vec![0.0; width], vec![0.0; width]);
        for (id, logit) in exact.logits.iter().enumerate() {
            let target = f64::from(u8::from(id == chosen[row] as usize));
            let d_logit = inverse * (target - (logit - exact.lse).exp());
            for (column, w) in weight.row(id).into_iter().enumerate() {
                sums[column] += d_logit * w;
                sizes[column] += (d_logit * w).abs();
            }
        }
        let found = row_of(&d_hidden, row);
        // The sum's own error is larger than the quarter in FACTOR allows for: there are as many terms as the vocabulary has entries.
        let terms = sum_error(vocabulary) + 2.0 * exact.logit_error;
        for column in 0..width {
            let (exact, size) = (sums[column], sizes[column]);
            comparison.add(found[column], exact, (FACTOR + terms) * size + STORED * exact.abs());
        }
    }
    cases.push(Case {
        operation: "log_prob backward".to_owned(),
        model: model.name,
        shape,
        comparison,
        seconds,
        work: Work::Operations(3.0 * products),
        library: None,
    });
    Ok(())
}

/// A row of logits in float64.
struct Row {
    logits: Vec<f64>,
    lse: f64,
    entropy: f64,
    logit_error: f64,
}

impl Row {
    fn of(hidden: &[f64], weight: &Data, inverse: f64) -> Row {
        let mut size = 0.0f64;
        let logits: Vec<f64> = (0..weight.host.dims()[0])
            .map(|id| {
                let row = weight.row(id);
                size = size.max(magnitude(hidden, &row));
                inverse * dot(hidden, &row)
            })
            .collect();
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = most + logits.iter().map(|logit| (logit - most).exp()).sum::<f64>().ln();
        let mean: f64 = logits.iter().map(|logit| (logit - lse).exp() * logit).sum();
        let logit_error = inverse * (sum_error(hidden.len()) + 2.0 * UNIT) * size;
        Row { logits, lse, entropy: lse - mean, logit_error }
    }
}

fn norm(bench: &Bench, sizes: &Sizes, model: &Model, cases: &mut Vec<Case>) -> Result<()> {
    let (rows, width) = (sizes.rows, model.hidden);
    let (x, weight) = (bench.uniform(&[rows, width], 1)?, bench.uniform(&[width], 2)?);
    let d_out = bench.uniform(&[rows, width], 3)?;
    let mut out = bench.zeros(DType::BF16, &[rows, width])?;
    let mut rstd = bench.zeros(DType::F32, &[rows])?;
    let (input, factors) = (x.device.view(), weight.device.view());
    let seconds = bench
        .time(|| Ok(rms_norm::forward(out.view_mut(), rstd.view_mut(), input, factors, 1e-6)?))?;
    let weights: Vec<f64> =
        weight.host.as_slice::<bf16>().iter().map(|w| f64::from(w.to_f32())).collect();
    // A sum of squares in lanes and a tree, half of whose error the root keeps, and a few operations.
    let rstd_error = (width as f64 / 64.0 + 20.0) * UNIT;
    let mut comparison = Comparison::default();
    for row in samples(rows, 4) {
        let (exact, _) = rms_norm::reference::forward(&x.row(row), &weights, 1e-6);
        for (found, exact) in row_of(&out, row).into_iter().zip(exact) {
            // Rounded before the weight and after it.
            comparison.add(found, exact, 1.01 * (2.0 * STORED + rstd_error) * exact.abs());
        }
    }
    let shape = format!("{rows} rows of {width}, bfloat16");
    let elements = (rows * width * 2) as f64;
    cases.push(Case {
        operation: "rms_norm forward".to_owned(),
        model: model.name,
        shape: shape.clone(),
        comparison,
        seconds,
        work: Work::Bytes(2.0 * elements),
        library: None,
    });
    let mut d_x = bench.zeros(DType::BF16, &[rows, width])?;
    let mut d_weight = bench.zeros(DType::F32, &[width])?;
    let d = d_out.device.view();
    let seconds = bench.time(|| {
        let (d_x, d_weight) = (d_x.view_mut(), d_weight.view_mut());
        Ok(rms_norm::backward(d_x, d_weight, d, input, factors, rstd.view(), None)?)
    })?;
    let mut comparison = Comparison::default();
    for row in samples(rows, 4) {
        let (x, d) = (x.row(row), d_out.row(row));
        let rstd = 1.0 / (dot(&x, &x) / width as f64 + 1e-6).sqrt();
        let through: Vec<f64> = d.iter().zip(&weights).map(|(d, w)| d * w).collect();
        let normal: Vec<f64> = x.iter().map(|x| x * rstd).collect();
        let mean = dot(&through, &normal) / width as f64;
        let mean_size = magnitude(&through, &normal) / width as f64;
        for (column, found) in row_of(&d_x, row).into_iter().enumerate() {
            let exact = rstd * (through[column] - normal[column] * mean);
            let size = rstd * (through[column].abs() + normal[column].abs() * mean_size);
            comparison.add(found, exact, 4.0 * rstd_error * size + STORED * exact.abs());
        }
    }
    cases.push(Case {
        operation: "rms_norm backward".to_owned(),
        model: model.name,
        shape,
        comparison,
        seconds,
        work: Work::Bytes(3.0 * elements),
        library: None,
    });
    Ok(())
}

fn gates(bench: &Bench, sizes: &Sizes, model: &Model, cases: &mut Vec<Case>) -> Result<()> {
    // As many elements as the norms have.
    let width = model.intermediate;
    let rows = (sizes.rows * model.hidden / width).max(1);
    let (gate_up, d_out) =
        (bench.uniform(&[rows, 2 * width], 1)?, bench.uniform(&[rows, width], 2)?);
    let mut out = bench.zeros(DType::BF16, &[rows, width])?;
    let input = gate_up.device.view();
    let seconds = bench.time(|| Ok(swiglu::forward(out.view_mut(), input)?))?;
    let mut comparison = Comparison::default();
    for row in samples(rows, 4) {
        let exact =
            swiglu::reference::forward(&gate_up.row(row)[..width], &gate_up.row(row)[width..]);
        for (found, exact) in row_of(&out, row).into_iter().zip(exact) {
            comparison.add(found, exact, 1.01 * (STORED + 8.0 * UNIT) * exact.abs() + 1e-37);
        }
    }
    let shape = format!("{rows} rows of 2 x {width}, bfloat16");
    let elements = (rows * width * 2) as f64;
    cases.push(Case {
        operation: "swiglu forward".to_owned(),
        model: model.name,
        shape: shape.clone(),
        comparison,
        seconds,
        work: Work::Bytes(3.0 * elements),
        library: None,
    });
    let mut d_gate_up = bench.zeros(DType::BF16, &[rows, 2 * width])?;
    let d = d_out.device.view();
    let seconds = bench.time(|| Ok(swiglu::backward(d_gate_up.view_mut(), d, input)?))?;
    let mut comparison = Comparison::default();
    for row in samples(rows, 4) {
        let (both, d, found) = (gate_up.row(row), d_out.row(row), row_of(&d_gate_up, row));
        for column in 0..width {
            let (gate, up, d) = (both[column], both[width + column], d[column]);
            let sigmoid = 1.0 / (1.0 + (-gate).exp());
            let of_gate = d * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
            let of_up = d * gate * sigmoid;
            for (at, exact) in [(column, of_gate), (width + column, of_up)] {
                // Terms of the gate's gradient may cancel: 16 operations on numbers below |d up| 2.
                let error = 16.0 * UNIT * 2.0 * (d * up).abs().max(exact.abs());
                comparison.add(found[at], exact, 1.01 * STORED * exact.abs() + error + 1e-37);
            }
        }
    }
    cases.push(Case {
        operation: "swiglu backward".to_owned(),
        model: model.name,
        shape,
        comparison,
        seconds,
        work: Work::Bytes(5.0 * elements),
        library: None,
    });
    Ok(())
}

fn update(bench: &Bench, parameters: usize) -> Result<Case> {
    let device = bench.device;
    let of = |seed: u64, scale: f32| -> Result<Tensor> {
        let values: Vec<f32> = (0..parameters).map(|i| super::value(seed, i) * scale).collect();
        Ok(Tensor::from_slice(&values, &[parameters])?.to(device)?)
    };
    let (mut master, gradient) = (of(1, 1.0)?, of(2, 1.0)?);
    let mut compute = bench.zeros(DType::BF16, &[parameters])?;
    let mut m = bench.zeros(DType::F32, &[parameters])?;
    let mut v = bench.zeros(DType::F32, &[parameters])?;
    let settings = adamw::Settings {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step: 1,
        gradient_scale: 0.5,
        seed: 0,
        first: 0,
    };
    let mut once = || -> Result<()> {
        let weights = adamw::Parameters::Masters(master.view_mut(), Some(compute.view_mut()));
        let moments = adamw::Moments::Float32 { m: m.view_mut(), v: v.view_mut() };
        Ok(adamw::update(weights, moments, gradient.view(), settings)?)
    };
    // The first update is compared; those that are timed go on from it.
    once()?;
    let mut comparison = Comparison::default();
    let found = master.view().to_f32_vec();
    for i in samples(parameters, 1000) {
        let (w, g) = (f64::from(super::value(1, i)), 0.5 * f64::from(super::value(2, i)));
        // The moments' corrections cancel in the first step.
        let exact = w * (1.0 - 1e-3 * 0.1) - 1e-3 * g / (g.abs() + 1e-8);
        comparison.add(found[i], exact, 4.0 * UNIT * w.abs() + 16.0 * UNIT * 1e-3);
    }
    let seconds = bench.time(|| {
        let weights = adamw::Parameters::Masters(master.view_mut(), Some(compute.view_mut()));
        let moments = adamw::Moments::Float32 { m: m.view_mut(), v: v.view_mut() };
        Ok(adamw::update(weights, moments, gradient.view(), settings)?)
    })?;
    Ok(Case {
        operation: "adamw".to_owned(),
        model: "",
        shape: format!("{parameters} parameters, bfloat16 weights beside float32 masters"),
        comparison,
        seconds,
        // Master and both moments are read and written, the gradient read, the weights written.
        work: Work::Bytes(30.0 * parameters as f64),
        library: None,
    })
}
