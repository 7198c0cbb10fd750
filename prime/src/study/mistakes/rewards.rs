//! What a PRM gives to the pieces of the triples, and what is told from it.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Result, ensure};
use prime_model::Tokenizer;
use serde::{Deserialize, Serialize};

use super::triples::{Role, Triple, Version};
use crate::evaluate::Estimate;
use crate::score::{Scorer, Sequence};
use crate::study::statistics::{area_under_curve, mean};
use crate::tasks::worked::Mistake;

/// A text's tokens, and where each begins in bytes.
pub(super) struct Tokens {
    pub ids: Vec<u32>,
    pub starts: Vec<usize>,
}

/// Tokens of a text by a tokenizer whose tokens are pieces of it.
pub(super) fn tokens(tokenizer: &Tokenizer, text: &str) -> Result<Tokens> {
    let ids = tokenizer.encode(text, false)?;
    let (mut starts, mut at) = (Vec::with_capacity(ids.len()), 0);
    for &id in &ids {
        let piece = tokenizer.decode(&[id], false)?;
        ensure!(
            text[at..].starts_with(&piece),
            "the tokenizer's token {id} is no piece of the text `{text}`: the study needs to know which characters a token covers"
        );
        starts.push(at);
        at += piece.len();
    }
    ensure!(at == text.len(), "the tokenizer leaves out a part of the text `{text}`");
    Ok(Tokens { ids, starts })
}

/// Log-ratios of a version's tokens, summed over what the tables speak of. In nats: beta times this is the reward.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// By role; a piece that a version lacks is absent.
    pub roles: BTreeMap<String, f64>,
    /// By line, in order; `!` ends a line too. What follows the last one is not in it.
    pub lines: Vec<f64>,
    /// By token, the end of the text included.
    pub tokens: Vec<f64>,
    /// Over the whole response, its end included.
    pub whole: f64,
}

/// The sums of the three versions of a triple.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TripleSums {
    /// Of the version without the mistake.
    pub clean: Sums,
    /// With it, carried on.
    pub wrong: Sums,
    /// With it, repaired.
    pub repaired: Sums,
    /// The first token in which the wrong version differs from the clean one.
    pub departs: usize,
    /// The tokens of the line with the mistake in the wrong version.
    pub planted: Range<usize>,
}

/// What `role` is called in tables and files.
fn name(role: Role) -> String {
    serde_json::to_value(role)
        .ok()
        .and_then(|name| name.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// Tokens whose first byte lies in a piece belong to it; the end of the text belongs to the answer.
fn sums(version: &Version, starts: &[usize], ratios: &[f64]) -> Sums {
    let lines = vec![0.0; version.line_ends.len()];
    let mut sums = Sums { lines, tokens: ratios.to_vec(), ..Sums::default() };
    let mut part = 0;
    for (token, &ratio) in ratios.iter().enumerate() {
        let start = starts.get(token).copied().unwrap_or(version.text.len());
        while part + 1 < version.parts.len() && version.parts[part].span.end <= start {
            part += 1;
        }
        *sums.roles.entry(name(version.parts[part].role)).or_default() += ratio;
        let line = version.line_ends.partition_point(|&end| end <= start);
        if let Some(line) = sums.lines.get_mut(line) {
            *line += ratio;
        }
        sums.whole += ratio;
    }
    sums
}

/// Log-probabilities of the responses of all triples (clean, wrong, repaired of each in turn), the end of the text included.
pub(super) fn log_probs(
    scorer: &mut Scorer,
    tokenizer: &Tokenizer,
    triples: &[Triple],
) -> Result<Vec<Vec<f32>>> {
    let mut sequences = Vec::with_capacity(3 * triples.len());
    for triple in triples {
        let prompt = tokenizer.encode(&triple.prompt, true)?;
        for version in [&triple.clean, &triple.wrong, &triple.repaired] {
            let mut ids = tokens(tokenizer, &version.text)?.ids;
            ids.extend(tokenizer.eos_id());
            sequences.push(Sequence::response(prompt.clone(), &ids));
        }
    }
    let scores = scorer.score(&sequences, 1.0)?;
    Ok(scores.into_iter().map(|scores| scores.log_probs).collect())
}

/// The sums of all triples, from log-probabilities under the PRM and its reference.
pub(super) fn triple_sums(
    tokenizer: &Tokenizer,
    triples: &[Triple],
    prm: &[Vec<f32>],
    reference: &[Vec<f32>],
) -> Result<Vec<TripleSums>> {
    let of = |version: &Version, at: usize| -> Result<Sums> {
        let starts = tokens(tokenizer, &version.text)?.starts;
        let ratios: Vec<f64> = prm[at]
            .iter()
            .zip(&reference[at])
            .map(|(&prm, &reference)| f64::from(prm) - f64::from(reference))
            .collect();
        Ok(sums(version, &starts, &ratios))
    };
    triples
        .iter()
        .enumerate()
        .map(|(i, triple)| {
            let starts = tokens(tokenizer, &triple.wrong.text)?.starts;
            let differ = triple.wrong.text.bytes().zip(triple.clean.text.bytes());
            let alike = differ.take_while(|(wrong, clean)| wrong == clean).count();
            let token = |byte: usize| starts.partition_point(|&start| start < byte);
            let line_start = triple.line.checked_sub(1).map_or(0, |at| triple.wrong.line_ends[at]);
            Ok(TripleSums {
                departs: token(alike + 1).saturating_sub(1),
                planted: token(line_start)..token(triple.wrong.line_ends[triple.line]),
                clean: of(&triple.clean, 3 * i)?,
                wrong: of(&triple.wrong, 3 * i + 1)?,
                repaired: of(&triple.repaired, 3 * i + 2)?,
            })
        })
        .collect()
}

/// What the rows of [`Findings`] sum, in order.
pub const ROWS: [&str; 13] = [
    "right characters (clean)",
    "wrong characters",
    "wrong - right, same place",
    "the whole line: wrong - clean",
    "lines behind: wrong - clean",
    "answer: wrong - clean",
    "`!`",
    "line done again",
    "its corrected characters",
    "whole repair: `!` and line done again",
    "whole response, clean",
    "whole response, wrong",
    "whole response, repaired",
];

/// One row of the table: a sum of log-ratios, its mean over problems with a bootstrap interval.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What is summed.
    pub name: &'static str,
    /// In nats; none where no problem has it.
    pub nats: Option<Estimate>,
}

/// What a PRM says of a set of triples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Findings {
    /// How many triples.
    pub triples: usize,
    /// Whether every log-ratio is 0: the PRM is its reference, and there is no signal of any kind.
    pub no_signal: bool,
    /// Means of sums.
    pub rows: Vec<Row>,
    /// The chance that the right characters get more than the wrong ones in their place.
    pub right_over_wrong: Option<f64>,
    /// The chance that a line that is right gets more than the planted one, over the lines of the wrong versions.
    pub lines_over_planted: Option<f64>,
    /// Share of wrong versions whose lowest line is the planted one.
    pub lowest_is_planted: Option<f64>,
    /// What that share would be by chance.
    pub lowest_by_chance: Option<f64>,
    /// The chance that another token of a wrong version gets more than the one in which the mistake begins.
    pub tokens_over_planted: Option<f64>,
    /// Share of wrong versions whose lowest token is that one.
    pub lowest_token_is_planted: Option<f64>,
    /// What that share would be by chance.
    pub lowest_token_by_chance: Option<f64>,
    /// Share of wrong versions whose lowest token lies in the planted line.
    pub lowest_token_in_line: Option<f64>,
    /// What that share would be by chance.
    pub in_line_by_chance: Option<f64>,
    /// Share of triples whose repaired version gets more than the wrong one.
    pub repaired_over_wrong: Option<f64>,
    /// Share of triples whose clean version gets more than the wrong one.
    pub clean_over_wrong: Option<f64>,
}

/// Sums up triples, of one kind of mistake or of all.
pub fn findings(
    triples: &[Triple],
    sums: &[TripleSums],
    kind: Option<Mistake>,
    seed: u64,
) -> Findings {
    let chosen: Vec<(&Triple, &TripleSums)> = triples
        .iter()
        .zip(sums)
        .filter(|(triple, _)| kind.is_none_or(|kind| triple.mistake == kind))
        .collect();
    let role = |sums: &Sums, role: Role| sums.roles.get(&name(role)).copied();
    let estimate = |value: &dyn Fn(&Triple, &TripleSums) -> Option<f64>| {
        let values: Vec<f64> = chosen.iter().filter_map(|(t, s)| value(t, s)).collect();
        (!values.is_empty()).then(|| Estimate::of(&values, seed))
    };
    let row = |place: usize, value: &dyn Fn(&Triple, &TripleSums) -> Option<f64>| Row {
        name: ROWS[place],
        nats: estimate(value),
    };
    let redone = |s: &TripleSums| {
        let part = |r| role(&s.repaired, r).unwrap_or(0.0);
        part(Role::RedoneLeft) + part(Role::Corrected) + part(Role::RedoneRest)
    };
    let rows = vec![
        row(0, &|_, s| role(&s.clean, Role::Right)),
        row(1, &|_, s| role(&s.wrong, Role::Mistake)),
        row(2, &|_, s| Some(role(&s.wrong, Role::Mistake)? - role(&s.clean, Role::Right)?)),
        row(3, &|t, s| Some(s.wrong.lines.get(t.line)? - s.clean.lines.get(t.line)?)),
        row(4, &|_, s| Some(role(&s.wrong, Role::Rest)? - role(&s.clean, Role::Rest)?)),
        row(5, &|_, s| Some(role(&s.wrong, Role::Answer)? - role(&s.clean, Role::Answer)?)),
        row(6, &|_, s| role(&s.repaired, Role::Mark)),
        row(7, &|_, s| Some(redone(s))),
        row(8, &|_, s| role(&s.repaired, Role::Corrected)),
        row(9, &|_, s| Some(role(&s.repaired, Role::Mark)? + redone(s))),
        row(10, &|_, s| Some(s.clean.whole)),
        row(11, &|_, s| Some(s.wrong.whole)),
        row(12, &|_, s| Some(s.repaired.whole)),
    ];
    let column = |value: &dyn Fn(&Triple, &TripleSums) -> Option<f64>| -> Vec<f64> {
        chosen.iter().filter_map(|(t, s)| value(t, s)).collect()
    };
    let right = column(&|_, s| role(&s.clean, Role::Right));
    let wrong = column(&|_, s| role(&s.wrong, Role::Mistake));
    let planted = column(&|t, s| s.wrong.lines.get(t.line).copied());
    let other_lines: Vec<f64> = chosen
        .iter()
        .flat_map(|(t, s)| {
            let lines = s.wrong.lines.iter().enumerate();
            lines.filter(|(line, _)| *line != t.line).map(|(_, sum)| *sum).collect::<Vec<_>>()
        })
        .collect();
    let planted_tokens = column(&|_, s| s.wrong.tokens.get(s.departs).copied());
    let other_tokens: Vec<f64> = chosen
        .iter()
        .flat_map(|(_, s)| {
            let tokens = s.wrong.tokens.iter().enumerate();
            tokens.filter(|(token, _)| *token != s.departs).map(|(_, sum)| *sum)
        })
        .collect();
    let tokens = |s: &TripleSums| s.wrong.tokens.len().max(1) as f64;
    let share = |value: &dyn Fn(&Triple, &TripleSums) -> f64| {
        mean(&chosen.iter().map(|(t, s)| value(t, s)).collect::<Vec<_>>())
    };
    // Equals count half, as everywhere here: a PRM that says nothing prefers nothing.
    let above = |a: f64, b: f64| if a > b { 1.0 } else { f64::from(u8::from(a == b)) / 2.0 };
    Findings {
        triples: chosen.len(),
        no_signal: chosen.iter().all(|(_, s)| {
            [&s.clean, &s.wrong, &s.repaired]
                .iter()
                .all(|sums| sums.roles.values().all(|&sum| sum == 0.0))
        }),
        rows,
        right_over_wrong: area_under_curve(&right, &wrong),
        lines_over_planted: area_under_curve(&other_lines, &planted),
        lowest_is_planted: share(&|t, s| lowest_is(&s.wrong.lines, t.line..t.line + 1)),
        lowest_by_chance: share(&|_, s| 1.0 / s.wrong.lines.len().max(1) as f64),
        tokens_over_planted: area_under_curve(&other_tokens, &planted_tokens),
        lowest_token_is_planted: share(&|_, s| {
            lowest_is(&s.wrong.tokens, s.departs..s.departs + 1)
        }),
        lowest_token_by_chance: share(&|_, s| 1.0 / tokens(s)),
        lowest_token_in_line: share(&|_, s| lowest_is(&s.wrong.tokens, s.planted.clone())),
        in_line_by_chance: share(&|_, s| s.planted.len() as f64 / tokens(s)),
        repaired_over_wrong: share(&|_, s| above(s.repaired.whole, s.wrong.whole)),
        clean_over_wrong: share(&|_, s| above(s.clean.whole, s.wrong.whole)),
    }
}

/// Whether the lowest of some sums is in a range: 1, or the range's share of those that are as low.
fn lowest_is(sums: &[f64], range: Range<usize>) -> f64 {
    let lowest = sums.iter().copied().fold(f64::INFINITY, f64::min);
    let as_low = |sums: &[f64]| sums.iter().filter(|&&sum| sum == lowest).count() as f64;
    sums.get(range).map_or(0.0, |within| as_low(within) / as_low(sums).max(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::mistakes::triples::triples;
    use crate::tasks::arithmetic::{Arithmetic, ArithmeticSettings};
    use crate::tasks::columns::{Columns, ColumnsSettings};
    use crate::tasks::worked::Worked;

    fn of(task: &dyn Worked) -> (Tokenizer, Vec<Triple>) {
        let tokenizer = Tokenizer::characters(task.alphabet().unwrap(), "<pad>", "<eos>").unwrap();
        let mut triples = triples(task, 80, 1);
        // A carry lost from 11 leaves 1, which goes wrong with what follows it: not here, where a mark is to lie within the mistake.
        triples.retain(|triple| {
            let pairs = triple.wrong.text.bytes().zip(triple.clean.text.bytes());
            let alike = pairs.take_while(|(wrong, clean)| wrong == clean).count();
            triple.wrong.spans(Role::Mistake).any(|span| span.contains(&alike))
        });
        assert!(triples.len() > 70);
        (tokenizer, triples)
    }

    fn some() -> (Tokenizer, Vec<Triple>) {
        let settings = ArithmeticSettings { min_operations: 3, ..ArithmeticSettings::default() };
        of(&Arithmetic::new(settings, 1).unwrap())
    }

    fn all() -> [(Tokenizer, Vec<Triple>); 2] {
        [some(), of(&Columns::new(ColumnsSettings::default(), 1).unwrap())]
    }

    /// Log-probabilities of a PRM that gives `nats` to the first token of each wrong piece that differs from the right one and 0 elsewhere,
    /// beside a reference of zeros.
    fn marked(tokenizer: &Tokenizer, triples: &[Triple], nats: f32) -> [Vec<Vec<f32>>; 2] {
        let mut prm = Vec::new();
        for triple in triples {
            for version in [&triple.clean, &triple.wrong, &triple.repaired] {
                let starts = tokens(tokenizer, &version.text).unwrap().starts;
                let mistake = version.spans(Role::Mistake).next();
                let mut row = vec![0.0; starts.len() + 1];
                if let Some(span) = mistake {
                    let right = triple.clean.text.as_bytes();
                    let mut wrong = version.text.bytes().enumerate().skip(span.start);
                    let differs = |&(at, byte): &(usize, u8)| right.get(at) != Some(&byte);
                    row[wrong.find(differs).unwrap().0] = nats;
                }
                prm.push(row);
            }
        }
        let reference = prm.iter().map(|row| vec![0.0; row.len()]).collect();
        [prm, reference]
    }

    #[test]
    fn a_prm_made_to_mark_the_planted_token_is_seen_to_mark_it() {
        for ((tokenizer, triples), kind) in
            all().iter().flat_map(|made| [(made, None), (made, Some(Mistake::WrongCopy))])
        {
            let [prm, reference] = marked(tokenizer, triples, -1.5);
            let sums = triple_sums(tokenizer, triples, &prm, &reference).unwrap();
            let found = findings(triples, &sums, kind, 1);
            assert!(!found.no_signal);
            assert!(found.right_over_wrong.unwrap() > 0.99, "{found:?}");
            assert!(found.lines_over_planted.unwrap() > 0.99);
            assert_eq!(found.lowest_is_planted, Some(1.0));
            assert!(found.tokens_over_planted.unwrap() > 0.99);
            assert_eq!(
                (found.lowest_token_is_planted, found.lowest_token_in_line),
                (Some(1.0), Some(1.0))
            );
            let row = |name: &str| {
                found.rows.iter().find(|row| row.name.starts_with(name)).unwrap().nats.unwrap().mean
            };
            assert!((row("wrong - right") + 1.5).abs() < 1e-6);
            assert_eq!((row("`!`"), row("whole response, clean")), (0.0, 0.0));
            // The repaired version holds the mistake as the wrong one does.
            assert_eq!(found.repaired_over_wrong, Some(0.5));
            assert_eq!(found.clean_over_wrong, Some(1.0));
        }
    }

    #[test]
    fn a_prm_that_is_its_reference_gives_exactly_nothing_and_is_said_to_say_nothing() {
        let (tokenizer, triples) = some();
        let [prm, _] = marked(&tokenizer, &triples, -0.7);
        let sums = triple_sums(&tokenizer, &triples, &prm, &prm).unwrap();
        let found = findings(&triples, &sums, None, 1);
        assert!(found.no_signal);
        assert_eq!((found.right_over_wrong, found.lines_over_planted), (Some(0.5), Some(0.5)));
        assert!(found.rows.iter().all(|row| row.nats.is_none_or(|nats| nats.mean == 0.0)));
        let (hit, chance) = (found.lowest_is_planted.unwrap(), found.lowest_by_chance.unwrap());
        assert!((hit - chance).abs() < 1e-12, "{hit} {chance}");
        assert_eq!(found.tokens_over_planted, Some(0.5));
        let (hit, chance) = (found.lowest_token_in_line, found.in_line_by_chance);
        assert!((hit.unwrap() - chance.unwrap()).abs() < 1e-12, "{hit:?} {chance:?}");
        assert_eq!(found.lowest_token_is_planted, found.lowest_token_by_chance);
    }

    #[test]
    fn sums_of_pieces_and_of_lines_are_those_of_their_tokens() {
        let (tokenizer, triples) = some();
        for version in [&triples[0].wrong, &triples[1].repaired] {
            let starts = tokens(&tokenizer, &version.text).unwrap().starts;
            let ratios: Vec<f64> = (0..=starts.len()).map(|i| f64::from(1 << (i % 20))).collect();
            let sums = sums(version, &starts, &ratios);
            assert_eq!(sums.whole, ratios.iter().sum::<f64>());
            assert_eq!(sums.tokens, ratios);
            assert_eq!(sums.roles.values().sum::<f64>(), sums.whole);
            let last = *version.line_ends.last().unwrap();
            let behind: f64 = ratios[last..].iter().sum();
            assert_eq!(sums.lines.iter().sum::<f64>() + behind, sums.whole);
        }
    }
}
