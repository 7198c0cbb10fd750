//! Losses of policy, PRM and critic, and the penalty that holds to a reference: columns of a batch of responses.

use std::cell::Cell;
use std::rc::Rc;

use anyhow::Result;
use prime_kernels::kl_penalty::{self, Kind};
use prime_kernels::policy_loss::{self, Clip, Objective};
use prime_kernels::prm_loss::{self, Cost, Inputs, Over, Targets};
use prime_kernels::value_loss;
use prime_runtime::{DType, Tensor};

use super::{Case, OURS};
use crate::shapes::Scale;
use crate::work::{Comparison, Setup, UNIT, Work, all, value};

const CLIP: Clip = Clip { low: 0.2, high: 0.28, dual: Some(3.0) };
const BETA: f32 = 0.05;
const VALUE_CLIP: f32 = 0.2;

/// Every loss, forward and backward, for a batch of a small run and for one of a published one (64 and 1024 responses).
pub fn cases(setup: &Setup) -> Vec<Case> {
    let batches: &[[usize; 2]] = match setup.scale {
        Scale::Real => &[[64, 32], [1024, 1024]],
        Scale::Tiny => &[[3, 7]],
    };
    let mut cases = Vec::new();
    for &[responses, length] in batches {
        for backward in [false, true] {
            cases.push(policy(responses, length, backward));
            cases.push(prm(responses, length, backward));
            cases.push(critic(responses, length, backward));
            cases.push(penalty(responses, length, backward));
        }
    }
    cases
}

fn case(
    operation: [&'static str; 2],
    [responses, length]: [usize; 2],
    backward: bool,
    columns: usize,
    make: impl FnOnce(&Setup, usize) -> Result<Work> + 'static,
) -> Case {
    let tokens = responses * length;
    let columns = columns + usize::from(backward);
    let amounts = [10.0 * tokens as f64, (4 * columns * tokens) as f64];
    let name = format!("{responses} responses of {length} tokens");
    let operation = operation[usize::from(backward)];
    let case = Case::new(operation, name, DType::F32, amounts, move |setup| make(setup, tokens));
    // A loss is returned to the host.
    if backward { case } else { case.waits() }
}

/// Draws log-ratios that are far from every bound of a clip, where float32 could see them on the other side.
fn log_ratio(i: usize) -> f32 {
    let drawn = value(7, i);
    match i % 4 {
        0 => 0.5 + 0.1 * drawn,
        1 => -0.5 + 0.1 * drawn,
        _ => 0.1 * drawn,
    }
}

fn policy(responses: usize, length: usize, backward: bool) -> Case {
    let names = ["policy_loss forward", "policy_loss backward"];
    case(names, [responses, length], backward, 4, move |setup, tokens| {
        let old: Vec<f32> = (0..tokens).map(|i| -4.0 - 3.0 * value(1, i)).collect();
        let new: Vec<f32> = old.iter().enumerate().map(|(i, old)| old + log_ratio(i)).collect();
        let weights = vec![1.0 / tokens as f32; tokens];
        let set = vec![
            setup.zeros(DType::F32, &[tokens])?,
            setup.floats(&new, &[tokens])?,
            setup.floats(&old, &[tokens])?,
            setup.uniform(DType::F32, &[tokens], 2, 2.0)?,
            setup.floats(&weights, &[tokens])?,
        ];
        let loss = Rc::new(Cell::new(f64::NAN));
        let found = Rc::clone(&loss);
        let check = move |set: &[Tensor]| {
            let [d, new, old, advantages, weights] = set else { unreachable!("as made above") };
            let [new, old, advantages, weights] = [new, old, advantages, weights].map(all);
            let columns = policy_loss::reference::Columns {
                new: &new,
                constant: &new,
                old: &old,
                advantages: &advantages,
                weights: &weights,
            };
            // The difference is rounded once, which the exponential passes on; it errs by 4 roundoffs itself, and products by one each.
            let slope =
                |t: usize| (weights[t] * advantages[t]).abs() * (new[t] - old[t]).exp().max(0.8);
            let error = |t: usize| 1.01 * UNIT * ((new[t] - old[t]).abs() + 7.0) * slope(t);
            let mut comparison = Comparison::default();
            if backward {
                let exact = policy_loss::reference::backward(columns, Objective::Clip(CLIP));
                comparison.all(&all(d), &exact, |t| error(t) + f64::from(f32::MIN_POSITIVE));
            } else {
                let exact = policy_loss::reference::forward(columns, Objective::Clip(CLIP)).loss;
                comparison.add(found.get(), exact, (0..new.len()).map(error).sum());
            }
            Ok(comparison)
        };
        let sets = setup.copies(set, 20.0 * tokens as f64)?;
        Ok(Work::new(sets, check).blank(0, f32::NAN).ours(OURS, move |set, _| {
            let [d, new, old, advantages, weights] = set else { unreachable!("as made above") };
            let (new, old, advantages, weights) =
                (new.view(), old.view(), advantages.view(), weights.view());
            let objective = Objective::Clip(CLIP);
            if backward {
                policy_loss::backward(d.view_mut(), new, old, advantages, weights, objective)?;
            } else {
                loss.set(policy_loss::forward(new, old, advantages, weights, objective)?.loss);
            }
            Ok(())
        }))
    })
}

fn prm(responses: usize, length: usize, backward: bool) -> Case {
    let names = ["prm_loss forward", "prm_loss backward"];
    case(names, [responses, length], backward, 2, move |setup, tokens| {
        let column = |seed, scale: f32, shift: f32| -> Vec<f32> {
            (0..tokens).map(|i| shift + scale * value(seed, i)).collect()
        };
        let ends: Vec<u32> = (0..=responses).map(|i| (i * length) as u32).collect();
        let each: Vec<u32> = (0..=responses as u32).collect();
        let labels: Vec<f32> = (0..responses).map(|i| (i % 2) as f32).collect();
        let set = vec![
            setup.zeros(DType::F32, &[tokens])?,
            setup.floats(&column(1, 2.0, -2.0), &[tokens])?,
            setup.floats(&column(2, 2.0, -2.0), &[tokens])?,
            setup.indices(&ends, &[ends.len()])?,
            setup.floats(&labels, &[responses])?,
            setup.floats(&vec![0.0; responses], &[responses])?,
            setup.floats(&vec![1.0; responses], &[responses])?,
            setup.indices(&each, &[each.len()])?,
        ];
        let settings = prm_loss::Settings {
            beta: BETA,
            cost: Cost::CrossEntropy,
            over: Over::Responses,
            divisor: responses as f64,
        };
        let loss = Rc::new(Cell::new(f64::NAN));
        let found = Rc::clone(&loss);
        let check = move |set: &[Tensor]| {
            let (own, other) = (all(&set[1]), all(&set[2]));
            let batch = prm_loss::reference::Batch {
                reference: other,
                cu_seqlens: ends.clone(),
                targets: labels.iter().map(|&label| vec![[f64::from(label), 0.0, 1.0]]).collect(),
                beta: f64::from(BETA),
                cost: settings.cost,
                over: settings.over,
                divisor: settings.divisor,
            };
            // Sums are float64: a logit is one of `length` terms below 4 beta, a cost changes by no more than its logit does.
            let greatest = 3.0 + 4.0 * length as f64 * batch.beta;
            let of_logit = (length as f64 + 50.0) * f64::EPSILON * greatest;
            let mut comparison = Comparison::default();
            if backward {
                let (exact, magnitude) = batch.gradient(&own);
                comparison.all(&all(&set[0]), &exact, |t| {
                    f64::from(f32::EPSILON) * magnitude[t] + of_logit * batch.beta + 1e-45
                });
            } else {
                comparison.add(
                    found.get(),
                    batch.loss(&own),
                    of_logit * (1.0 + responses as f64 * f64::EPSILON),
                );
            }
            Ok(comparison)
        };
        let sets = setup.copies(set, 12.0 * tokens as f64)?;
        Ok(Work::new(sets, check).blank(0, f32::NAN).ours(OURS, move |set, _| {
            let [d, own, other, ends, labels, offsets, weights, each] = set else {
                unreachable!("as made above")
            };
            let inputs = Inputs {
                prm_log_probs: own.view(),
                ref_log_probs: other.view(),
                cu_seqlens: ends.view(),
                targets: Targets {
                    labels: labels.view(),
                    offsets: offsets.view(),
                    weights: weights.view(),
                    cu_targets: each.view(),
                },
            };
            if backward {
                prm_loss::backward(d.view_mut(), inputs, settings)?;
            } else {
                loss.set(prm_loss::forward(inputs, settings)?);
            }
            Ok(())
        }))
    })
}

fn critic(responses: usize, length: usize, backward: bool) -> Case {
    let names = ["value_loss forward", "value_loss backward"];
    case(names, [responses, length], backward, 4, move |setup, tokens| {
        let old: Vec<f32> = (0..tokens).map(|i| value(1, i)).collect();
        let values: Vec<f32> = old.iter().enumerate().map(|(i, old)| old + log_ratio(i)).collect();
        // So far away that the branches of the maximum are never nearly equal.
        let returns: Vec<f32> = (0..tokens).map(|i| 4.0 + value(2, i)).collect();
        let set = vec![
            setup.zeros(DType::F32, &[tokens])?,
            setup.floats(&values, &[tokens])?,
            setup.floats(&old, &[tokens])?,
            setup.floats(&returns, &[tokens])?,
            setup.floats(&vec![1.0 / tokens as f32; tokens], &[tokens])?,
        ];
        let loss = Rc::new(Cell::new(f64::NAN));
        let found = Rc::clone(&loss);
        let check = move |set: &[Tensor]| {
            let [d, values, old, returns, weights] = set else { unreachable!("as made above") };
            let [values, old, returns, weights] = [values, old, returns, weights].map(all);
            let clip = Some(f64::from(VALUE_CLIP));
            let unit = 1.01 * UNIT;
            let error = |t: usize| (values[t] - returns[t]).abs();
            let held = |t: usize| old[t].abs() + f64::from(VALUE_CLIP) + returns[t].abs();
            let mut comparison = Comparison::default();
            if backward {
                let exact =
                    value_loss::reference::backward(&values, &old, &returns, &weights, clip);
                let tiny = f64::from(f32::MIN_POSITIVE);
                comparison.all(&all(d), &exact, |t| 2.0 * unit * error(t) * weights[t] + tiny);
            } else {
                let exact = value_loss::reference::forward(&values, &old, &returns, &weights, clip);
                // Half the square of a difference that is rounded, and of one from a bound that is rounded before.
                let of = |t: usize| {
                    let greatest = error(t).max(held(t));
                    unit * (1.5 * greatest * greatest + greatest * held(t)) * weights[t]
                };
                comparison.add(found.get(), exact.loss, (0..values.len()).map(of).sum());
            }
            Ok(comparison)
        };
        let sets = setup.copies(set, 20.0 * tokens as f64)?;
        Ok(Work::new(sets, check).blank(0, f32::NAN).ours(OURS, move |set, _| {
            let [d, values, old, returns, weights] = set else { unreachable!("as made above") };
            let (values, old, returns, weights) =
                (values.view(), old.view(), returns.view(), weights.view());
            let clip = Some(VALUE_CLIP);
            if backward {
                value_loss::backward(d.view_mut(), values, old, returns, weights, clip)?;
            } else {
                loss.set(value_loss::forward(values, old, returns, weights, clip)?.loss);
            }
            Ok(())
        }))
    })
}

fn penalty(responses: usize, length: usize, backward: bool) -> Case {
    let names = ["kl_penalty forward", "kl_penalty backward"];
    case(names, [responses, length], backward, 4, move |setup, tokens| {
        let old: Vec<f32> = (0..tokens).map(|i| -4.0 - 3.0 * value(1, i)).collect();
        let new: Vec<f32> = old.iter().enumerate().map(|(i, old)| old + log_ratio(i)).collect();
        let set = vec![
            setup.zeros(DType::F32, &[tokens])?,
            setup.floats(&new, &[tokens])?,
            setup.floats(&old, &[tokens])?,
            setup.floats(&vec![1.0 / tokens as f32; tokens], &[tokens])?,
        ];
        let kind = Kind::LowVarKl;
        let check = move |set: &[Tensor]| {
            let [out, new, old, weights] = set else { unreachable!("as made above") };
            let [new, old, weights] = [new, old, weights].map(all);
            // In roundoffs: the difference is rounded once, the exponential passes that on times its own value and errs by 4, each further sum and
            // product is rounded once.
            let d = |t: usize| (new[t] - old[t]).abs();
            let ratio = |t: usize| (old[t] - new[t]).exp();
            let tiny = f64::from(f32::MIN_POSITIVE);
            let unit = 1.01 * UNIT;
            let mut comparison = Comparison::default();
            if backward {
                let exact = kl_penalty::reference::backward(&new, &old, &weights, kind);
                comparison.all(&all(out), &exact, |t| {
                    let slope = ratio(t) * (d(t) + 5.0) + 1.0;
                    tiny + unit * (weights[t] * slope + 2.0 * exact[t].abs())
                });
            } else {
                let exact: Vec<f64> = (0..new.len())
                    .map(|t| kl_penalty::reference::penalty(new[t], old[t], kind))
                    .collect();
                comparison.all(&all(out), &exact, |t| {
                    tiny + unit * (ratio(t) * (d(t) + 6.0) + 3.0 * d(t) + 1.0)
                });
            }
            Ok(comparison)
        };
        let sets = setup.copies(set, 16.0 * tokens as f64)?;
        let blank = if backward { 0.0 } else { f32::NAN };
        Ok(Work::new(sets, check).blank(0, blank).ours(OURS, move |set, _| {
            let [out, new, old, weights] = set else { unreachable!("as made above") };
            let (new, old, weights) = (new.view(), old.view(), weights.view());
            if backward {
                kl_penalty::backward(out.view_mut(), new, old, weights, kind)?;
            } else {
                kl_penalty::forward(out.view_mut(), new, old, weights, kind)?;
            }
            Ok(())
        }))
    })
}
