//! The page of a study: its tables, plots, examples, and all numbers.

use anyhow::Result;
use serde_json::Value;

use super::efficiency::{Finding, SeedCourses};
use super::mistakes;
use super::svg::{self, Line};
use super::table::{Table, at, over_seeds};
use crate::config::Config;
use crate::report::curves::{Points, join};
use crate::report::page::{self, Bar, Bars, Block, Page, Plots};
use crate::report::tokens::{Answer, Group, Tokens};

/// A picture to be kept as a file of its own.
pub struct Picture {
    /// The file's name.
    pub name: &'static str,
    /// SVG.
    pub text: String,
}

/// Places of a curve.
const MOST: usize = 400;

fn table_block(table: &Table) -> [Block; 2] {
    let mut out = page::Table::new(table.header.clone(), 1);
    for row in &table.rows {
        out.row(row.clone());
    }
    [Block::Note(table.caption.clone()), Block::Table(out)]
}

fn closing(page: &mut Page, config: &Config, found: &Value) -> Result<()> {
    page.section(
        "All numbers",
        vec![
            Block::Json("Everything that was found".into(), found.clone()),
            Block::Json("The configuration".into(), Value::String(config.to_toml()?)),
        ],
    );
    Ok(())
}

/// The page of `study efficiency`, and its pictures.
pub(super) fn efficiency(
    config: &Config,
    seeds: &[SeedCourses],
    findings: &[Finding],
    tables: &[Table],
    found: &Value,
) -> Result<(Page, Vec<Picture>)> {
    let mut page = Page::new(
        "PRIME against RL on outcomes alone",
        format!(
            "One SFT start for each of {} seeds; then PRIME, and the same loop without the PRM for as many batches of rollouts.",
            seeds.len()
        ),
    );
    let bars = |unit: &str, title: &str| {
        let rows = findings.iter().filter(|finding| finding.unit == unit);
        let rows = rows.filter_map(|finding| {
            let value = finding.value?;
            Some((finding.name.to_string(), value.mean, value.low.zip(value.high)))
        });
        Bars { title: title.into(), unit: unit.into(), rows: rows.collect() }
    };
    let mut blocks: Vec<Block> = table_block(&tables[0]).into();
    blocks.push(Block::Bars(bars("points", "Leads in held-out accuracy")));
    page.section("What was found", blocks);

    let over = |course: &dyn Fn(&SeedCourses) -> Vec<(u64, f64)>| -> Points {
        let curves: Vec<Vec<(u64, f64)>> = seeds.iter().map(course).collect();
        join(curves.iter().map(Vec::as_slice), MOST)
    };
    let numbered = |values: &[f64]| -> Vec<(u64, f64)> {
        values.iter().enumerate().map(|(i, &value)| (i as u64 + 1, value)).collect()
    };
    let mut plots = Plots::new(0.0);
    let prime = plots.name("PRIME", "mean of the seeds, from the least to the greatest");
    let other = plots.name("outcome-only", "the same");
    let mut pictures = Vec::new();
    type Pick = fn(&super::efficiency::Course) -> Vec<f64>;
    let charts: [(&str, &str, Pick); 2] = [
        ("training reward, mean of the last 10 batches", "reward.svg", |course| course.smoothed()),
        ("tokens of a response", "length.svg", |course| course.length.clone()),
    ];
    for (title, name, pick) in charts {
        let a = over(&|seed| numbered(&pick(&seed.prime)));
        let b = over(&|seed| numbered(&pick(&seed.outcome_only)));
        plots.chart(title, "", &[(prime, &a), (other, &b)]);
        let lines = [Line { name: "PRIME", points: &a }, Line { name: "outcome-only", points: &b }];
        pictures.push(Picture { name, text: svg::lines(title, "policy steps", "", &lines) });
    }
    let held_out = |course: fn(&SeedCourses) -> &super::efficiency::Course| {
        over(&|seed| {
            course(seed).evaluations.iter().map(|e| (e.step, 100.0 * e.accuracy)).collect()
        })
    };
    let (a, b) = (held_out(|seed| &seed.prime), held_out(|seed| &seed.outcome_only));
    let title = "held-out accuracy, %";
    plots.chart(title, "", &[(prime, &a), (other, &b)]);
    let lines = [Line { name: "PRIME", points: &a }, Line { name: "outcome-only", points: &b }];
    pictures.push(Picture {
        name: "held-out.svg",
        text: svg::lines(title, "policy steps", "", &lines),
    });
    let mut blocks = vec![Block::Plots(plots)];
    blocks.extend(table_block(&tables[2]));
    page.section("Over the steps", blocks);
    page.section("Time", table_block(&tables[1]).into());
    closing(&mut page, config, found)?;
    Ok((page, pictures))
}

/// The page of `study mistakes`, and its pictures.
pub(super) fn mistakes(
    config: &Config,
    tables: &[Table],
    found: &Value,
) -> Result<(Page, Vec<Picture>)> {
    let seeds: Vec<Value> =
        found.get("seeds").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut page = Page::new(
        "What an implicit PRM gives to mistakes and repairs",
        "Matched worked solutions: one clean, one with a planted mistake carried on to a wrong answer, one with the mistake taken back and done \
         again. The numbers are log-ratios of the PRM and the SFT model; beta times them is the reward.",
    );
    if silent(&seeds) {
        page.section(
            "No signal",
            vec![Block::Text(
                "Every log-ratio is exactly 0: the PRM is its reference, and there is nothing to see."
                    .into(),
            )],
        );
    }
    let last = seeds
        .first()
        .and_then(|seed| at(seed, "/prm-ce/checkpoints")?.as_array())
        .map_or(0, |list| list.len().saturating_sub(1));
    let bars = mistakes::rewards::ROWS.iter().enumerate().filter_map(|(place, name)| {
        let pointer = format!("/prm-ce/checkpoints/{last}/all/rows/{place}/nats/mean");
        let value = over_seeds(&seeds, &pointer)?;
        Some((name.to_string(), value.mean, value.low.zip(value.high)))
    });
    let bars = Bars {
        title: "Cross-entropy, offline, last checkpoint".into(),
        unit: "nats".into(),
        rows: bars.collect(),
    };
    let mut pictures = vec![Picture {
        name: "pieces.svg",
        text: svg::bars(
            "What the PRM gives to pieces of a solution",
            "log(PRM / SFT model), nats; 95 % intervals over seeds",
            &bars.rows,
        ),
    }];
    let taught: Vec<Bar> = mistakes::TEACHINGS
        .iter()
        .filter_map(|teaching| {
            let path = format!("/taught-{}/checkpoints/{last}", teaching.name);
            let reward = over_seeds(&seeds, &format!("{path}/all/rows/9/nats/mean"))?;
            Some((teaching.label.to_string(), reward.mean, reward.low.zip(reward.high)))
        })
        .collect();
    pictures.push(Picture {
        name: "teachings.svg",
        text: svg::bars(
            "What the PRM gives to a repair, by what SFT taught of repairs",
            "`!` and line done again, nats; 95 % intervals over seeds",
            &taught,
        ),
    });
    let models = mistakes::taught(&seeds);
    let groups: Vec<(&str, Vec<(f64, f64)>)> = mistakes::TEACHINGS
        .iter()
        .enumerate()
        .map(|(place, teaching)| {
            let of = models.iter().filter(|model| model.teaching == place);
            (teaching.name, of.map(|model| (100.0 * model.lead, model.reward)).collect())
        })
        .collect();
    pictures.push(Picture {
        name: "signs.svg",
        text: svg::points(
            "Reward of `!`, nats, by how the policy's own repairs fare",
            "responses with a repair end right more often than those without, points",
            &groups,
        ),
    });
    let mut blocks = vec![Block::Bars(bars)];
    blocks.extend(table_block(&tables[0]));
    page.section("The pieces", blocks);

    let mut plots = Plots::new(0.0);
    let charts: [(usize, &str, &str); 3] = [
        (2, "wrong - right characters, nats", "mistake.svg"),
        (9, "whole repair: `!` and line done again, nats", "repair.svg"),
        (4, "lines behind the mistake: wrong - clean, nats", "behind.svg"),
    ];
    let labels: Vec<usize> = mistakes::CONDITIONS
        .iter()
        .map(|condition| {
            plots.name(condition.label, "mean of the seeds, from the least to the greatest")
        })
        .collect();
    for (place, title, file) in charts {
        let curves: Vec<Points> = mistakes::CONDITIONS
            .iter()
            .map(|condition| course(&seeds, condition.name, place))
            .collect();
        let series: Vec<(usize, &Points)> = labels.iter().copied().zip(&curves).collect();
        plots.chart(title, "", &series);
        let lines: Vec<Line<'_>> = mistakes::CONDITIONS
            .iter()
            .zip(&curves)
            .filter(|(_, points)| !points.x.is_empty())
            .map(|(condition, points)| Line { name: condition.name, points })
            .collect();
        pictures.push(Picture {
            name: file,
            text: svg::lines(title, "batches that trained the PRM", "nats", &lines),
        });
    }
    page.section("As the PRM learns", vec![Block::Plots(plots)]);
    let titles = [
        "Token against step",
        "Offline against online",
        "Against the true value",
        "By kind of mistake",
        "When a repair is worth making",
        "The policy's own mistakes",
        "What RL makes of it",
    ];
    for (title, table) in titles.into_iter().zip(&tables[1..]) {
        page.section(title, table_block(table).into());
    }
    if let Some(tokens) = examples(&seeds) {
        page.section("Examples, token by token", vec![Block::Tokens(tokens)]);
    }
    closing(&mut page, config, found)?;
    Ok((page, pictures))
}

/// Whether no PRM of any condition said anything.
fn silent(seeds: &[Value]) -> bool {
    let mut any = false;
    for seed in seeds {
        for condition in mistakes::CONDITIONS {
            let list = at(seed, &format!("/prm-{}/checkpoints", condition.name));
            for checkpoint in list.and_then(Value::as_array).into_iter().flatten() {
                any = true;
                if at(checkpoint, "/all/no_signal") != Some(&Value::Bool(true)) {
                    return false;
                }
            }
        }
    }
    any
}

/// A row's mean over the batches that trained a condition's PRM.
fn course(seeds: &[Value], condition: &str, place: usize) -> Points {
    let curves: Vec<Vec<(u64, f64)>> = seeds
        .iter()
        .map(|seed| {
            let list = at(seed, &format!("/prm-{condition}/checkpoints"));
            let list = list.and_then(Value::as_array).into_iter().flatten();
            list.filter_map(|checkpoint| {
                let batches = at(checkpoint, "/batches")?.as_u64()?;
                let value = at(checkpoint, &format!("/all/rows/{place}/nats/mean"))?.as_f64()?;
                Some((batches, value))
            })
            .collect()
        })
        .collect();
    join(curves.iter().map(Vec::as_slice), MOST)
}

/// The first seed's examples under two conditions.
fn examples(seeds: &[Value]) -> Option<Tokens> {
    let seed = seeds.first()?;
    let mut tokens = Tokens::new("problem");
    let mut shown = false;
    for condition in mistakes::CONDITIONS.iter().take(2) {
        let part = at(seed, &format!("/prm-{}", condition.name))?;
        let beta = at(part, "/beta").and_then(Value::as_f64);
        tokens.step(
            condition.label,
            "the PRM at its last checkpoint, the SFT model as reference",
            beta,
        );
        for (place, example) in at(part, "/examples")?.as_array()?.iter().enumerate() {
            let answers = at(example, "/versions")?.as_array()?.iter().filter_map(|version| {
                let floats = |name: &str| -> Option<(String, Vec<f32>)> {
                    let list = version.get(name)?.as_array()?;
                    let values = list.iter().filter_map(Value::as_f64).map(|x| x as f32);
                    Some((name.to_string(), values.collect()))
                };
                let texts = version.get("texts")?.as_array()?;
                Some(Answer {
                    texts: texts.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
                    outcome: version.get("outcome").and_then(Value::as_f64),
                    finished: Some(true),
                    columns: ["ref_log_probs", "prm_log_probs"]
                        .into_iter()
                        .filter_map(floats)
                        .collect(),
                    note: version.get("note").and_then(Value::as_str).unwrap_or_default().into(),
                    ..Answer::default()
                })
            });
            let text = |name: &str| {
                at(example, name).and_then(Value::as_str).unwrap_or_default().to_string()
            };
            tokens.group(&Group {
                id: format!("{} {}", place + 1, text("/mistake")),
                prompt: text("/prompt"),
                answers: answers.collect(),
            });
            shown = true;
        }
    }
    shown.then_some(tokens)
}
