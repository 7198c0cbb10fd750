//! The true value of a prefix: the share of the policy's continuations of it that end right.

use std::sync::Arc;

use anyhow::Result;
use prime_model::{Finish, Generator, Request, Sampling};
use serde::{Deserialize, Serialize};

use super::rewards::{TripleSums, tokens};
use super::triples::{Triple, Version};
use crate::prompts::Prompts;
use crate::study::statistics::{correlation, mean, rank_correlation};
use crate::tasks::{Problem, Split};

/// Continuations are numbered from here, apart from the samples of training and evaluation.
const FIRST_SEQUENCE: u64 = 1 << 50;

/// Values of the prefixes of a triple.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Values {
    /// Before the line that matters.
    pub before: f64,
    /// Behind it, without the mistake.
    pub clean: f64,
    /// Behind it, with the mistake.
    pub wrong: f64,
    /// Behind the `!`.
    pub marked: f64,
    /// Behind the line done again.
    pub repaired: f64,
}

/// Where the prefixes end, in the order of [`Values`].
fn cuts(triple: &Triple) -> [(&Version, usize); 5] {
    let line_end = |version: &Version, line: usize| version.line_ends[line];
    let before = triple.line.checked_sub(1).map_or(0, |line| line_end(&triple.clean, line));
    [
        (&triple.clean, before),
        (&triple.clean, line_end(&triple.clean, triple.line)),
        (&triple.wrong, line_end(&triple.wrong, triple.line)),
        (&triple.repaired, line_end(&triple.repaired, triple.line)),
        (&triple.repaired, line_end(&triple.repaired, triple.line + 1)),
    ]
}

/// Estimates the values of all triples' prefixes with so many continuations of each, drawn at temperature 1.
pub(super) fn estimate(
    generator: &mut Generator,
    prompts: &Prompts,
    stop: &[u32],
    triples: &[Triple],
    continuations: usize,
    max_new_tokens: usize,
    seed: u64,
) -> Result<Vec<Values>> {
    let (tokenizer, task) = (prompts.tokenizer(), prompts.task());
    let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed };
    let mut out = Vec::with_capacity(triples.len());
    // Some triples at a time, so that requests and completions stay few.
    for (block, some) in triples.chunks(16).enumerate() {
        let mut requests = Vec::new();
        for (offset, triple) in some.iter().enumerate() {
            let prompt = tokenizer.encode(&triple.prompt, true)?;
            for (cut, (version, end)) in cuts(triple).into_iter().enumerate() {
                let prefix = tokens(tokenizer, &version.text[..end])?.ids;
                let room = max_new_tokens.saturating_sub(prefix.len()).max(1);
                let prompt: Arc<[u32]> = prompt.iter().chain(&prefix).copied().collect();
                let place = ((block * 16 + offset) * 5 + cut) as u64;
                requests.extend((0..continuations as u64).map(|i| Request {
                    prompt: prompt.clone(),
                    sequence: FIRST_SEQUENCE + place * continuations as u64 + i,
                    sampling,
                    max_new_tokens: room,
                }));
            }
        }
        let mut completions = generator.generate(&requests, stop, |_| ())?.into_iter();
        for triple in some {
            let problem: Problem = task
                .problem(Split::HeldOut, triple.problem)
                .unwrap_or_else(|| unreachable!("a triple is of a problem of its task"));
            let mut values = [0.0; 5];
            for (value, (version, end)) in values.iter_mut().zip(cuts(triple)) {
                for completion in completions.by_ref().take(continuations) {
                    let rest = tokenizer.decode(&completion.tokens, true)?;
                    let response = format!("{}{rest}", &version.text[..end]);
                    let finished = completion.finish == Finish::Stop;
                    *value += f64::from(task.grade(&problem, &response, finished).score);
                }
                *value /= continuations as f64;
            }
            let [before, clean, wrong, marked, repaired] = values;
            out.push(Values { before, clean, wrong, marked, repaired });
        }
    }
    Ok(out)
}

/// A bin of rewards with the mean change of value in it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bin {
    /// Mean log-ratio over the span, nats.
    pub nats: f64,
    /// Mean change of the value over the span.
    pub change: f64,
    /// Spans in the bin.
    pub spans: usize,
}

/// Rewards against true changes of value, over the spans between the prefixes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Spans compared.
    pub spans: usize,
    /// Pearson's correlation of log-ratio and change.
    pub correlation: Option<f64>,
    /// Spearman's.
    pub rank_correlation: Option<f64>,
    /// Among spans whose value changes by at least 0.1: the share whose log-ratio has the change's sign.
    pub same_sign: Option<f64>,
    /// Five bins of as many spans each, from the lowest log-ratio to the highest.
    pub calibration: Vec<Bin>,
    /// Mean change of value over the mistake's line, the `!`, and the line done again.
    pub changes: Changes,
}

/// Mean changes of the true value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Changes {
    /// Over the line without the mistake.
    pub clean_line: f64,
    /// Over the line with it.
    pub wrong_line: f64,
    /// Over the `!`, from behind the mistake's line carried on. (A line ends in `!` or in `;`: this is the change of choosing the mark.)
    pub mark: f64,
    /// Over the line done again.
    pub redone: f64,
}

/// Compares log-ratios with changes of value.
pub fn agreement(triples: &[Triple], sums: &[TripleSums], values: &[Values]) -> Agreement {
    let mut pairs: Vec<(f64, f64)> = Vec::new();
    let mut changes = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    for ((triple, sums), values) in triples.iter().zip(sums).zip(values) {
        let line = |lines: &[f64], at: usize| lines.get(at).copied().unwrap_or(0.0);
        let mark = sums.repaired.roles.get("mark").copied().unwrap_or(0.0);
        // Up to the mark the wrong and the repaired version are one text, so the mark alone makes the difference of their lines.
        let steps = [
            (line(&sums.clean.lines, triple.line), values.clean - values.before),
            (line(&sums.wrong.lines, triple.line), values.wrong - values.before),
            (mark, values.marked - values.wrong),
            (line(&sums.repaired.lines, triple.line + 1), values.repaired - values.marked),
        ];
        for (list, (_, change)) in changes.iter_mut().zip(steps) {
            list.push(change);
        }
        pairs.extend(steps);
    }
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (nats, change): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    let large: Vec<f64> = pairs
        .iter()
        .filter(|(_, change)| change.abs() >= 0.1)
        .map(|(nats, change)| match nats.partial_cmp(&0.0) {
            Some(std::cmp::Ordering::Equal) | None => 0.5,
            Some(order) => f64::from(u8::from((order.is_gt()) == (*change > 0.0))),
        })
        .collect();
    const BINS: usize = 5;
    let calibration = (0..BINS)
        .filter_map(|bin| {
            let range = bin * pairs.len() / BINS..(bin + 1) * pairs.len() / BINS;
            Some(Bin {
                nats: mean(&nats[range.clone()])?,
                change: mean(&change[range.clone()])?,
                spans: range.len(),
            })
        })
        .collect();
    let of = |list: &[f64]| mean(list).unwrap_or(0.0);
    Agreement {
        spans: pairs.len(),
        correlation: correlation(&nats, &change),
        rank_correlation: rank_correlation(&nats, &change),
        same_sign: mean(&large),
        calibration,
        changes: Changes {
            clean_line: of(&changes[0]),
            wrong_line: of(&changes[1]),
            mark: of(&changes[2]),
            redone: of(&changes[3]),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::mistakes::rewards::Sums;
    use crate::study::mistakes::triples::Role;
    use crate::study::mistakes::triples::triples;
    use crate::tasks::arithmetic::{Arithmetic, ArithmeticSettings};

    fn some() -> Vec<Triple> {
        let settings = ArithmeticSettings { min_operations: 3, ..ArithmeticSettings::default() };
        triples(&Arithmetic::new(settings, 1).unwrap(), 40, 1)
    }

    #[test]
    fn prefixes_end_where_lines_end() {
        for triple in some() {
            for (version, end) in cuts(&triple) {
                assert!(end == 0 || matches!(version.text.as_bytes()[end - 1], b';' | b'!'));
            }
            let [(_, before), _, (wrong, behind), (repaired, marked), _] = cuts(&triple);
            assert_eq!(wrong.text[..before], triple.clean.text[..before]);
            // The same line, carried on in one version and taken back in the other.
            assert_eq!(wrong.text[..behind - 1], repaired.text[..marked - 1]);
            assert_eq!(triple.repaired.spans(Role::Mark).next(), Some(marked - 1..marked));
        }
    }

    #[test]
    fn rewards_that_are_the_changes_of_value_agree_with_them_and_opposite_ones_do_not() {
        let triples = some();
        let values: Vec<Values> = (0..triples.len())
            .map(|i| {
                let x = i as f64 / triples.len() as f64;
                Values {
                    before: 0.6,
                    clean: 0.7 + 0.1 * x,
                    wrong: 0.1 * x,
                    marked: 0.3,
                    repaired: 0.8,
                }
            })
            .collect();
        let made = |scale: f64| -> Vec<TripleSums> {
            triples
                .iter()
                .zip(&values)
                .map(|(triple, v)| {
                    let lines = |at: usize, change: f64| {
                        let mut lines = vec![0.0; triple.lines + 1];
                        lines[at] = scale * change;
                        Sums { lines, ..Sums::default() }
                    };
                    let mut repaired = lines(triple.line + 1, v.repaired - v.marked);
                    repaired.roles.insert("mark".into(), scale * (v.marked - v.wrong));
                    TripleSums {
                        departs: 0,
                        planted: 0..0,
                        clean: lines(triple.line, v.clean - v.before),
                        wrong: lines(triple.line, v.wrong - v.before),
                        repaired,
                    }
                })
                .collect()
        };
        let agreed = agreement(&triples, &made(2.0), &values);
        assert!((agreed.correlation.unwrap() - 1.0).abs() < 1e-9);
        assert_eq!(agreed.same_sign, Some(1.0));
        assert!(agreed.calibration.windows(2).all(|pair| pair[0].change <= pair[1].change + 1e-12));
        let opposed = agreement(&triples, &made(-1.0), &values);
        assert!((opposed.correlation.unwrap() + 1.0).abs() < 1e-9);
        assert_eq!(opposed.same_sign, Some(0.0));
        let silent = agreement(&triples, &made(0.0), &values);
        assert_eq!((silent.correlation, silent.same_sign), (None, Some(0.5)));
    }
}
