//! What every part of a program needs: casts, fills, scalings, sums, and scans over sequences.

use prime_kernels::{cast, fill, reduce, scale, scan};
use prime_runtime::{DType, Tensor};

use super::{Case, OURS};
use crate::shapes::Model;
use crate::work::{Comparison, Setup, UNIT, Work, all, column, factor, row, samples};

/// Casts, fills, scalings, sums, and scans over sequences.
pub fn cases(setup: &Setup) -> Vec<Case> {
    let mut cases = Vec::new();
    let models: Vec<Model> = setup.scale.models();
    let shapes = [models[0], models[models.len() / 2], models[models.len() - 1]];
    let mut seen = Vec::new();
    for model in shapes {
        let (rows, columns) = (setup.scale.training(), model.hidden);
        if seen.contains(&columns) {
            continue;
        }
        seen.push(columns);
        for dtype in [DType::F32, DType::BF16] {
            cases.extend(elementwise(model.name, rows, columns, dtype));
        }
        cases.push(scans(model.name, rows * columns, columns));
    }
    cases
}

fn elementwise(model: &str, rows: usize, columns: usize, dtype: DType) -> Vec<Case> {
    let name = format!("{model}, {rows}x{columns}");
    let dims = [rows, columns];
    let count = (rows * columns) as f64;
    let size = count * dtype.size() as f64;
    let other = if dtype == DType::F32 { DType::BF16 } else { DType::F32 };
    let both = size + count * other.size() as f64;
    let factor_of_scale = 0.5f32;
    vec![
        Case::new("cast forward", format!("{name} to {other}"), dtype, [0.0, both], move |setup| {
            let set = vec![setup.zeros(other, &dims)?, setup.uniform(dtype, &dims, 1, 1.0)?];
            let check = move |set: &[Tensor]| {
                let mut comparison = Comparison::default();
                for at in samples(rows, 4) {
                    let exact = row(&set[1], at);
                    comparison.all(&row(&set[0], at), &exact, |i| factor(other) * exact[i].abs());
                }
                Ok(comparison)
            };
            Ok(Work::new(setup.copies(set, both)?, check).blank(0, f32::NAN).ours(
                OURS,
                |set, _| {
                    let [out, x] = set else { unreachable!("as made above") };
                    Ok(cast::forward(out.view_mut(), x.view())?)
                },
            ))
        }),
        Case::new("fill forward", name.clone(), dtype, [0.0, size], move |setup| {
            let set = vec![setup.zeros(dtype, &dims)?];
            let check = move |set: &[Tensor]| {
                let mut comparison = Comparison::default();
                for at in samples(rows, 4) {
                    comparison.all(&row(&set[0], at), &vec![0.5; columns], |_| 0.0);
                }
                Ok(comparison)
            };
            Ok(Work::new(setup.copies(set, size)?, check)
                .blank(0, f32::NAN)
                .ours(OURS, |set, _| Ok(fill::forward(set[0].view_mut(), 0.5)?)))
        }),
        Case::new("scale forward", name.clone(), dtype, [count, 2.0 * size], move |setup| {
            let set = vec![setup.uniform(dtype, &dims, 1, 1.0)?];
            let original = setup.uniform(dtype, &dims, 1, 1.0)?;
            let check = move |set: &[Tensor]| {
                let mut comparison = Comparison::default();
                for at in samples(rows, 4) {
                    let exact: Vec<f64> =
                        row(&original, at).iter().map(|x| x * f64::from(factor_of_scale)).collect();
                    // Halving is exact.
                    comparison.all(&row(&set[0], at), &exact, |_| 0.0);
                }
                Ok(comparison)
            };
            // Halving again and again would end in numbers below the normal range, which some processors are slow at; after the
            // check, numbers are only turned around.
            let mut first = true;
            Ok(Work::new(setup.copies(set, 2.0 * size)?, check).ours(OURS, move |set, _| {
                let factor = if std::mem::take(&mut first) { factor_of_scale } else { -1.0 };
                Ok(scale::forward(set[0].view_mut(), factor)?)
            }))
        }),
        Case::new("reduce columns", name.clone(), dtype, [count, size], move |setup| {
            let set =
                vec![setup.zeros(DType::F32, &[columns])?, setup.uniform(dtype, &dims, 1, 1.0)?];
            let check = move |set: &[Tensor]| {
                let (mut comparison, found) = (Comparison::default(), all(&set[0]));
                for at in samples(columns, 4) {
                    let terms = column(&set[1], at);
                    let size: f64 = terms.iter().map(|x| x.abs()).sum();
                    comparison.add(found[at], terms.iter().sum(), rows as f64 * UNIT * size);
                }
                Ok(comparison)
            };
            Ok(Work::new(setup.copies(set, size)?, check).blank(0, 0.0).ours(OURS, |set, _| {
                let [out, x] = set else { unreachable!("as made above") };
                Ok(reduce::columns(out.view_mut(), x.view())?)
            }))
        }),
        Case::new("reduce sum", name, dtype, [count, size], move |setup| {
            let set = vec![setup.uniform(dtype, &dims, 1, 1.0)?];
            let found = std::rc::Rc::new(std::cell::Cell::new(f64::NAN));
            let compared = std::rc::Rc::clone(&found);
            let check = move |set: &[Tensor]| {
                let (mut comparison, values) = (Comparison::default(), all(&set[0]));
                let size: f64 = values.iter().map(|x| x.abs()).sum();
                comparison.add(
                    compared.get(),
                    values.iter().sum(),
                    values.len() as f64 * f64::EPSILON * size,
                );
                Ok(comparison)
            };
            Ok(Work::new(setup.copies(set, size)?, check).ours(OURS, move |set, _| {
                found.set(reduce::sum(set[0].view())?);
                Ok(())
            }))
        })
        .waits(),
    ]
}

fn scans(model: &str, count: usize, length: usize) -> Case {
    let discount = 0.99f32;
    let bytes = 8.0 * count as f64;
    let name = format!("{model}, {} sequences of {length}", count / length);
    Case::new("scan forward", name, DType::F32, [2.0 * count as f64, bytes], move |setup| {
        let offsets: Vec<u32> = (0..=count / length).map(|i| (i * length) as u32).collect();
        let set = vec![
            setup.zeros(DType::F32, &[count])?,
            setup.uniform(DType::F32, &[count], 1, 1.0)?,
            setup.indices(&offsets, &[offsets.len()])?,
        ];
        let check = move |set: &[Tensor]| {
            let (mut comparison, found) = (Comparison::default(), all(&set[0]));
            let values = all(&set[1]);
            for sequence in samples(count / length, 3) {
                let own = sequence * length..(sequence + 1) * length;
                let of = |x: &[f64]| {
                    scan::reference::forward(x, &[0, length as u32], f64::from(discount))
                };
                let exact = of(&values[own.clone()]);
                let sizes: Vec<f64> = values[own.clone()].iter().map(|x| x.abs()).collect();
                let sizes = of(&sizes);
                // A step of the host rounds once and carries the error of the step before; on a device terms pass through powers of the discount,
                // and through 14 sums a chunk of 128.
                let roundings = (length + 14 * (length.div_ceil(128) + 1)) as f64;
                comparison.all(&found[own], &exact, |i| 1.01 * roundings * UNIT * sizes[i]);
            }
            Ok(comparison)
        };
        Ok(Work::new(setup.copies(set, bytes)?, check).blank(0, f32::NAN).ours(
            OURS,
            move |set, _| {
                let [out, x, offsets] = set else { unreachable!("as made above") };
                Ok(scan::forward(out.view_mut(), x.view(), offsets.view(), discount)?)
            },
        ))
    })
}
