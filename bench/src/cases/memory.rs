//! Operations of models that are bound by memory: what a call must read and write is counted once, in bytes.

use anyhow::Result;
use prime_kernels::testing::roundoff;
use prime_kernels::{adamw, embedding, gather, rms_norm, rope, scatter, swiglu};
use prime_runtime::{DType, Tensor};

use super::{Case, OURS, dtypes};
use crate::shapes::{Model, Scale};
use crate::work::{Comparison, Setup, UNIT, Work, all, dot, magnitude, row, samples};

const EPSILON: f64 = 1e-6;

/// Shapes that fill no vector and no block.
fn awkward(scale: Scale) -> [usize; 2] {
    if scale == Scale::Real { [1023, 1001] } else { [5, 33] }
}

/// A name, rows and columns for each model, and an awkward one; those of this project's own models in both dtypes.
fn matrices(setup: &Setup, columns: fn(&Model) -> usize) -> Vec<(String, [usize; 2], DType)> {
    let rows = setup.scale.training();
    let mut all = Vec::new();
    for model in setup.scale.models() {
        for &dtype in dtypes(model.is_own()) {
            all.push((model.name.to_owned(), [rows, columns(&model)], dtype));
        }
    }
    for &dtype in dtypes(true) {
        all.push(("awkward".to_owned(), awkward(setup.scale), dtype));
    }
    all.into_iter()
        .map(|(name, dims @ [rows, columns], dtype)| {
            (format!("{name}, {rows}x{columns}"), dims, dtype)
        })
        .collect()
}

/// RMSNorm, alone and with the sum before it, and backward.
pub fn norms(setup: &Setup) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, [rows, width], dtype) in matrices(setup, |model| model.hidden) {
        let size = (rows * width * dtype.size()) as f64;
        let of = |operation,
                  flops: f64,
                  bytes: f64,
                  make: fn(&Setup, [usize; 2], DType, f64) -> Result<Work>| {
            let amounts = [flops * (rows * width) as f64, bytes];
            Case::new(operation, name.clone(), dtype, amounts, move |setup| {
                make(setup, [rows, width], dtype, bytes)
            })
        };
        cases.push(of("rms_norm forward", 4.0, 2.0 * size, norm_forward));
        cases.push(of("rms_norm forward with residual", 5.0, 4.0 * size, norm_residual));
        cases.push(of("rms_norm backward", 8.0, 4.0 * size, norm_backward));
    }
    cases
}

/// A sum of squares at worst a chain, half of whose error the root keeps, and a few operations.
fn rstd_error(width: usize) -> f64 {
    (width as f64 / 2.0 + 20.0) * UNIT
}

fn compare_norm(comparison: &mut Comparison, out: &[f64], x: &[f64], weight: &[f64], dtype: DType) {
    let (exact, _) = rms_norm::reference::forward(x, weight, EPSILON);
    // Rounded before the weight and after it.
    let relative = 1.02 * (2.0 * roundoff(dtype) + rstd_error(x.len()));
    comparison.all(out, &exact, |i| relative * exact[i].abs());
}

fn norm_forward(setup: &Setup, dims: [usize; 2], dtype: DType, bytes: f64) -> Result<Work> {
    let [rows, width] = dims;
    let set = vec![
        setup.zeros(dtype, &dims)?,
        setup.zeros(DType::F32, &[rows])?,
        setup.uniform(dtype, &dims, 1, 1.0)?,
        setup.uniform(dtype, &[width], 2, 1.0)?,
    ];
    let check = move |set: &[Tensor]| {
        let (mut comparison, weight) = (Comparison::default(), all(&set[3]));
        for at in samples(rows, 4) {
            compare_norm(&mut comparison, &row(&set[0], at), &row(&set[2], at), &weight, dtype);
        }
        Ok(comparison)
    };
    Ok(Work::new(setup.copies(set, bytes)?, check).blank(0, f32::NAN).ours(OURS, |set, _| {
        let [out, rstd, x, weight] = set else { unreachable!("as made above") };
        let (out, rstd) = (out.view_mut(), rstd.view_mut());
        Ok(rms_norm::forward(out, rstd, x.view(), weight.view(), EPSILON as f32)?)
    }))
}

fn norm_residual(setup: &Setup, dims: [usize; 2], dtype: DType, bytes: f64) -> Result<Work> {
    let [rows, width] = dims;
    let set = vec![
        setup.zeros(dtype, &dims)?,
        setup.zeros(dtype, &dims)?,
        setup.zeros(DType::F32, &[rows])?,
        setup.uniform(dtype, &dims, 1, 1.0)?,
        setup.uniform(dtype, &dims, 3, 1.0)?,
        setup.uniform(dtype, &[width], 2, 1.0)?,
    ];
    let check = move |set: &[Tensor]| {
        let (mut comparison, weight) = (Comparison::default(), all(&set[5]));
        for at in samples(rows, 4) {
            let (x, delta, sum) = (row(&set[3], at), row(&set[4], at), row(&set[1], at));
            let exact: Vec<f64> = x.iter().zip(&delta).map(|(x, delta)| x + delta).collect();
            let stored = 1.01 * (roundoff(dtype) + UNIT);
            comparison.all(&sum, &exact, |i| stored * exact[i].abs());
            // The norm is of the sum as it is stored.
            compare_norm(&mut comparison, &row(&set[0], at), &sum, &weight, dtype);
        }
        Ok(comparison)
    };
    let work = Work::new(setup.copies(set, bytes)?, check).blank(0, f32::NAN).blank(1, f32::NAN);
    Ok(work.ours(OURS, |set, _| {
        let [out, sum, rstd, x, delta, weight] = set else { unreachable!("as made above") };
        let (out, sum, rstd) = (out.view_mut(), sum.view_mut(), rstd.view_mut());
        let (x, delta, weight) = (x.view(), delta.view(), weight.view());
        Ok(rms_norm::forward_residual(out, sum, rstd, x, delta, weight, EPSILON as f32)?)
    }))
}

fn norm_backward(setup: &Setup, dims: [usize; 2], dtype: DType, bytes: f64) -> Result<Work> {
    let [rows, width] = dims;
    let mut set = vec![
        setup.zeros(dtype, &dims)?,
        setup.zeros(DType::F32, &[width])?,
        setup.uniform(dtype, &dims, 3, 1.0)?,
        setup.uniform(dtype, &dims, 1, 1.0)?,
        setup.uniform(dtype, &[width], 2, 1.0)?,
        setup.zeros(DType::F32, &[rows])?,
        setup.uniform(dtype, &dims, 4, 1.0)?,
    ];
    let [out, _, _, x, weight, rstd, _] = &mut set[..] else { unreachable!("as made above") };
    let (x, weight) = (x.view(), weight.view());
    rms_norm::forward(out.view_mut(), rstd.view_mut(), x, weight, EPSILON as f32)?;
    let check = move |set: &[Tensor]| {
        let (mut comparison, weights) = (Comparison::default(), all(&set[4]));
        for at in samples(rows, 4) {
            let (d, x, residual, found) =
                (row(&set[2], at), row(&set[3], at), row(&set[6], at), row(&set[0], at));
            let rstd = 1.0 / (dot(&x, &x) / width as f64 + EPSILON).sqrt();
            let through: Vec<f64> = d.iter().zip(&weights).map(|(d, w)| d * w).collect();
            let normal: Vec<f64> = x.iter().map(|x| x * rstd).collect();
            let mean = dot(&through, &normal) / width as f64;
            let mean_size = magnitude(&through, &normal) / width as f64;
            for column in 0..width {
                let slope = rstd * (through[column] - normal[column] * mean);
                let exact = slope + residual[column];
                let size = rstd * (through[column].abs() + normal[column].abs() * mean_size)
                    + residual[column].abs();
                let error = 4.0 * rstd_error(width) * size;
                comparison.add(
                    found[column],
                    exact,
                    error + 1.01 * roundoff(dtype) * (exact.abs() + error),
                );
            }
        }
        Ok(comparison)
    };
    Ok(Work::new(setup.copies(set, bytes)?, check).blank(0, f32::NAN).ours(OURS, |set, _| {
        let [d_x, d_weight, d_out, x, weight, rstd, residual] = set else {
            unreachable!("as made above")
        };
        let (d_x, d_weight) = (d_x.view_mut(), d_weight.view_mut());
        let (d_out, residual, rstd) = (d_out.view(), Some(residual.view()), rstd.view());
        Ok(rms_norm::backward(d_x, d_weight, d_out, x.view(), weight.view(), rstd, residual)?)
    }))
}

/// SwiGLU, forward and backward.
pub fn activations(setup: &Setup) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, dims @ [rows, width], dtype) in matrices(setup, |model| model.intermediate) {
        let count = (rows * width) as f64;
        let size = count * dtype.size() as f64;
        cases.push(Case::new(
            "swiglu forward",
            name.clone(),
            dtype,
            [5.0 * count, 3.0 * size],
            move |setup| {
                let set = vec![
                    setup.zeros(dtype, &dims)?,
                    setup.uniform(dtype, &[rows, 2 * width], 1, 1.0)?,
                ];
                let check = move |set: &[Tensor]| {
                    let mut comparison = Comparison::default();
                    for at in samples(rows, 4) {
                        let both = row(&set[1], at);
                        let exact = swiglu::reference::forward(&both[..width], &both[width..]);
                        let relative = 1.01 * (roundoff(dtype) + 16.0 * UNIT);
                        comparison
                            .all(&row(&set[0], at), &exact, |i| relative * exact[i].abs() + 1e-37);
                    }
                    Ok(comparison)
                };
                let sets = setup.copies(set, 3.0 * size)?;
                Ok(Work::new(sets, check).blank(0, f32::NAN).ours(OURS, |set, _| {
                    let [out, both] = set else { unreachable!("as made above") };
                    Ok(swiglu::forward(out.view_mut(), both.view())?)
                }))
            },
        ));
        cases.push(Case::new(
            "swiglu backward",
            name,
            dtype,
            [12.0 * count, 5.0 * size],
            move |setup| {
                let set = vec![
                    setup.zeros(dtype, &[rows, 2 * width])?,
                    setup.uniform(dtype, &dims, 2, 1.0)?,
                    setup.uniform(dtype, &[rows, 2 * width], 1, 1.0)?,
                ];
                let check = move |set: &[Tensor]| {
                    let mut comparison = Comparison::default();
                    for at in samples(rows, 4) {
                        let (both, d, found) =
                            (row(&set[2], at), row(&set[1], at), row(&set[0], at));
                        let (gates, ups) =
                            swiglu::reference::backward(&d, &both[..width], &both[width..]);
                        for column in 0..width {
                            for (at, exact) in
                                [(column, gates[column]), (width + column, ups[column])]
                            {
                                // Terms of the gate's gradient may cancel: 16 operations on numbers below |d up| 2.
                                let size =
                                    (d[column] * both[width + column]).abs().max(exact.abs());
                                let error = 32.0 * UNIT * size
                                    + 1.01 * roundoff(dtype) * exact.abs()
                                    + 1e-37;
                                comparison.add(found[at], exact, error);
                            }
                        }
                    }
                    Ok(comparison)
                };
                let sets = setup.copies(set, 5.0 * size)?;
                Ok(Work::new(sets, check).blank(0, f32::NAN).ours(OURS, |set, _| {
                    let [d_both, d_out, both] = set else { unreachable!("as made above") };
                    Ok(swiglu::backward(d_both.view_mut(), d_out.view(), both.view())?)
                }))
            },
        ));
    }
    cases
}

/// Rotations of queries.
pub fn rotations(setup: &Setup) -> Vec<Case> {
    let tokens = setup.scale.training();
    let mut cases = Vec::new();
    for model in setup.scale.models() {
        for &dtype in dtypes(model.is_own()) {
            let Model { name, heads, head_dim, .. } = model;
            let (width, half) = (heads * head_dim, head_dim / 2);
            let bytes = (2 * tokens * width * dtype.size() + 2 * tokens * half * 4) as f64;
            let flops = 3.0 * (tokens * width) as f64;
            let name = format!("{name}, {tokens} tokens, {heads} heads of {head_dim}");
            cases.push(Case::new("rope forward", name, dtype, [flops, bytes], move |setup| {
                let angle =
                    |i: usize| (i / half) as f64 * 1e6f64.powf(-((i % half) as f64) / half as f64);
                let of = |function: fn(f64) -> f64| -> Vec<f32> {
                    (0..tokens * half).map(|i| function(angle(i)) as f32).collect()
                };
                let positions: Vec<u32> = (0..tokens as u32).collect();
                let set = vec![
                    setup.uniform(dtype, &[tokens, width], 1, 1.0)?,
                    setup.indices(&positions, &[tokens])?,
                    setup.floats(&of(f64::cos), &[tokens, half])?,
                    setup.floats(&of(f64::sin), &[tokens, half])?,
                ];
                // Turned in place: what the first call made of the numbers is compared, and a rotation keeps their size.
                let original = setup.uniform(dtype, &[tokens, width], 1, 1.0)?;
                let check = move |set: &[Tensor]| {
                    let mut comparison = Comparison::default();
                    for at in samples(tokens, 4) {
                        let (x, found) = (row(&original, at), row(&set[0], at));
                        let (cos, sin) = (row(&set[2], at), row(&set[3], at));
                        let exact =
                            rope::reference::turn(&x, heads, head_dim, &[0], &cos, &sin, 1.0);
                        comparison.all(&found, &exact, |i| {
                            let partner = if i % head_dim < half { i + half } else { i - half };
                            // A product and a fused multiply-add, each rounded once, of terms no larger than the pair's norm; then storage.
                            2.0 * UNIT * x[i].hypot(x[partner])
                                + 1.01 * roundoff(dtype) * exact[i].abs()
                        });
                    }
                    Ok(comparison)
                };
                Ok(Work::new(setup.copies(set, bytes)?, check).ours(OURS, move |set, _| {
                    let [x, positions, cos, sin] = set else { unreachable!("as made above") };
                    let x = x.view_mut().into_shape(&[tokens, heads, head_dim]);
                    Ok(rope::forward(x, positions.view(), cos.view(), sin.view())?)
                }))
            }));
        }
    }
    cases
}

/// Lookups in tables and moves of rows: embedding, gather, scatter.
pub fn rows(setup: &Setup) -> Vec<Case> {
    let tokens = setup.scale.training();
    let mut cases = Vec::new();
    for model in setup.scale.models() {
        for &dtype in dtypes(model.is_own()) {
            let Model { hidden, vocabulary, .. } = model;
            let size = (tokens * hidden * dtype.size()) as f64;
            let name = format!("{}, {tokens} of {vocabulary} rows of {hidden}", model.name);
            let ids: Vec<u32> = (0..tokens).map(|i| (i * 7919 % vocabulary) as u32).collect();
            let table = (vocabulary * hidden * dtype.size()) as f64;
            let wanted = ids.clone();
            let mut case = Case::new(
                "embedding forward",
                name.clone(),
                dtype,
                [0.0, 2.0 * size],
                move |setup| {
                    let set = vec![
                        setup.zeros(dtype, &[tokens, hidden])?,
                        setup.indices(&wanted, &[tokens])?,
                        setup.uniform(dtype, &[vocabulary, hidden], 1, 1.0)?,
                    ];
                    let sets = setup.copies(set, table)?;
                    let check = move |set: &[Tensor]| {
                        let mut comparison = Comparison::default();
                        for at in samples(tokens, 4) {
                            comparison.all(
                                &row(&set[0], at),
                                &row(&set[2], wanted[at] as usize),
                                |_| 0.0,
                            );
                        }
                        Ok(comparison)
                    };
                    Ok(Work::new(sets, check).blank(0, f32::NAN).ours(OURS, |set, _| {
                        let [out, ids, table] = set else { unreachable!("as made above") };
                        Ok(embedding::forward(out.view_mut(), ids.view(), table.view())?)
                    }))
                },
            );
            case.footprint = table + size;
            cases.push(case);
            // A row of the table's gradient is read and written.
            let bytes = size + (2 * tokens * hidden * 4) as f64;
            let of_table = (vocabulary * hidden * 4) as f64;
            let flops = (tokens * hidden) as f64;
            let mut case =
                Case::new("embedding backward", name, dtype, [flops, bytes], move |setup| {
                    let set = vec![
                        setup.zeros(DType::F32, &[vocabulary, hidden])?,
                        setup.uniform(dtype, &[tokens, hidden], 1, 1.0)?,
                        setup.indices(&ids, &[tokens])?,
                    ];
                    let sets = setup.copies(set, of_table)?;
                    let check = move |set: &[Tensor]| Ok(compare_added_rows(set, &ids));
                    Ok(Work::new(sets, check).blank(0, 0.0).ours(OURS, |set, _| {
                        let [d_table, d_out, ids] = set else { unreachable!("as made above") };
                        Ok(embedding::backward(d_table.view_mut(), d_out.view(), ids.view())?)
                    }))
                });
            case.footprint = of_table + size;
            cases.push(case);
            cases.extend(moves(&model, tokens, dtype));
        }
    }
    cases
}

fn compare_added_rows(set: &[Tensor], ids: &[u32]) -> Comparison {
    let mut comparison = Comparison::default();
    for at in samples(ids.len(), 3) {
        let id = ids[at];
        let of: Vec<Vec<f64>> =
            (0..ids.len()).filter(|&i| ids[i] == id).map(|i| row(&set[1], i)).collect();
        for (column, found) in row(&set[0], id as usize).into_iter().enumerate() {
            let exact: f64 = of.iter().map(|row| row[column]).sum();
            let size: f64 = of.iter().map(|row| row[column].abs()).sum();
            comparison.add(found, exact, of.len() as f64 * UNIT * size);
        }
    }
    comparison
}

/// Every second row taken out, put back among zeros, and put into places.
fn moves(model: &Model, tokens: usize, dtype: DType) -> Vec<Case> {
    let (hidden, half) = (model.hidden, tokens / 2);
    let size = (half * hidden * dtype.size()) as f64;
    let picked: Vec<u32> = (0..half as u32).map(|i| 2 * i).collect();
    let name = format!("{}, {half} of {tokens} rows of {hidden}", model.name);
    let set = move |setup: &Setup,
                    rows: [usize; 2],
                    picked: &[u32],
                    bytes: f64|
          -> Result<Vec<Vec<Tensor>>> {
        let [to, from] = rows;
        let set = vec![
            setup.zeros(dtype, &[to, hidden])?,
            setup.uniform(dtype, &[from, hidden], 1, 1.0)?,
            setup.indices(picked, &[picked.len()])?,
        ];
        setup.copies(set, bytes)
    };
    // Of some picked rows: where each lies in the output and in the input.
    let compare = move |places: fn(usize) -> [usize; 2]| {
        move |set: &[Tensor]| {
            let mut comparison = Comparison::default();
            for at in samples(half, 4) {
                let [to, from] = places(at);
                comparison.all(&row(&set[0], to), &row(&set[1], from), |_| 0.0);
            }
            Ok(comparison)
        }
    };
    let (first, second, third) = (picked.clone(), picked.clone(), picked);
    vec![
        Case::new("gather forward", name.clone(), dtype, [0.0, 2.0 * size], move |setup| {
            let sets = set(setup, [half, tokens], &first, 3.0 * size)?;
            let work = Work::new(sets, compare(|at| [at, 2 * at])).blank(0, f32::NAN);
            Ok(work.ours(OURS, |set, _| {
                let [out, x, picked] = set else { unreachable!("as made above") };
                Ok(gather::forward(out.view_mut(), x.view(), picked.view())?)
            }))
        }),
        Case::new("gather backward", name.clone(), dtype, [0.0, 3.0 * size], move |setup| {
            let sets = set(setup, [tokens, half], &second, 3.0 * size)?;
            let work = Work::new(sets, compare(|at| [2 * at, at])).blank(0, f32::NAN);
            Ok(work.ours(OURS, |set, _| {
                let [d_x, d_out, picked] = set else { unreachable!("as made above") };
                Ok(gather::backward(d_x.view_mut(), d_out.view(), picked.view())?)
            }))
        }),
        Case::new("scatter forward", name, dtype, [0.0, 2.0 * size], move |setup| {
            let sets = set(setup, [tokens, half], &third, 3.0 * size)?;
            let work = Work::new(sets, compare(|at| [2 * at, at])).blank(0, f32::NAN);
            Ok(work.ours(OURS, |set, _| {
                let [out, x, places] = set else { unreachable!("as made above") };
                Ok(scatter::forward(out.view_mut(), x.view(), places.view())?)
            }))
        }),
    ]
}

/// Updates of weights, and the norm of a gradient.
pub fn updates(setup: &Setup) -> Vec<Case> {
    // Far beyond any cache; on a GPU larger, so that launches do not show.
    let count = match (setup.scale, setup.device) {
        (Scale::Tiny, _) => 1000,
        (_, prime_runtime::Device::Cuda(_)) => 1 << 27,
        _ => 25_000_000,
    };
    let parameters = count as f64;
    let name = format!("{count} parameters");
    let of = |dtype: DType, bytes: f64| {
        Case::new(
            "adamw update",
            name.clone(),
            dtype,
            [12.0 * parameters, bytes * parameters],
            move |setup| update(setup, count, dtype),
        )
    };
    vec![
        // Weights and both moments are read and written, the gradient is read; bfloat16 weights are written beside their masters.
        of(DType::F32, 28.0),
        of(DType::BF16, 30.0),
        Case::new(
            "adamw norm",
            name.clone(),
            DType::F32,
            [2.0 * parameters, 4.0 * parameters],
            move |setup| {
                let set = vec![setup.uniform(DType::F32, &[count], 1, 1.0)?];
                let found = std::rc::Rc::new(std::cell::Cell::new(f64::NAN));
                let compared = std::rc::Rc::clone(&found);
                let check = move |set: &[Tensor]| {
                    let (mut comparison, exact) =
                        (Comparison::default(), adamw::reference::norm(&all(&set[0])));
                    comparison.add(compared.get(), exact, count as f64 * f64::EPSILON * exact);
                    Ok(comparison)
                };
                Ok(Work::new(setup.copies(set, 4.0 * parameters)?, check).ours(
                    OURS,
                    move |set, _| {
                        found.set(adamw::norm(set[0].view())?);
                        Ok(())
                    },
                ))
            },
        )
        .waits(),
    ]
}

fn update(setup: &Setup, count: usize, dtype: DType) -> Result<Work> {
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
    let mut set = vec![
        setup.uniform(DType::F32, &[count], 1, 1.0)?,
        setup.uniform(DType::F32, &[count], 2, 1.0)?,
        setup.zeros(DType::F32, &[count])?,
        setup.zeros(DType::F32, &[count])?,
    ];
    if dtype == DType::BF16 {
        set.push(setup.zeros(dtype, &[count])?);
    }
    let check = move |set: &[Tensor]| {
        let (mut comparison, found) = (Comparison::default(), all(&set[0]));
        let of = |seed, i| f64::from(crate::work::value(seed, i));
        for i in samples(count, 1000) {
            let (mut w, mut m, mut v) = (of(1, i), 0.0, 0.0);
            let before = w;
            adamw::reference::update(&mut w, &mut m, &mut v, of(2, i), settings);
            comparison.add(found[i], w, 4.0 * UNIT * before.abs() + 32.0 * UNIT * 1e-3);
        }
        Ok(comparison)
    };
    let sets = setup.copies(set, 28.0 * count as f64)?;
    Ok(Work::new(sets, check).ours(OURS, move |set, _| {
        let [master, gradient, m, v, rest @ ..] = set else { unreachable!("as made above") };
        let compute = rest.first_mut().map(Tensor::view_mut);
        let weights = adamw::Parameters::Masters(master.view_mut(), compute);
        let moments = adamw::Moments::Float32 { m: m.view_mut(), v: v.view_mut() };
        Ok(adamw::update(weights, moments, gradient.view(), settings)?)
    }))
}
