//! The tables of the study, over its seeds.

use serde_json::Value;

use super::{CONDITIONS, Mistake, TEACHINGS};
use crate::study::table::{Table, at, over_seeds, share, shown};

/// Rows of [`super::rewards::Findings`] by their place.
fn row(place: usize) -> String {
    format!("rows/{place}/nats/mean")
}

/// Checkpoints that the first seed's part has.
fn checkpoints(seeds: &[Value], part: &str) -> usize {
    let list = seeds.first().and_then(|seed| at(seed, &format!("/{part}/checkpoints"))?.as_array());
    list.map_or(0, Vec::len)
}

/// All tables.
pub fn tables(found: &Value) -> Vec<Table> {
    let seeds = found.get("seeds").and_then(Value::as_array).cloned().unwrap_or_default();
    vec![
        pieces(&seeds),
        truth(&seeds),
        kinds(&seeds),
        teachings(&seeds),
        own(&seeds),
        habits(&seeds),
    ]
}

fn pieces(seeds: &[Value]) -> Table {
    let mut table = Table::new(
        format!(
            "What a PRM gives to the pieces of matched solutions: sums of log(PRM / SFT model) in nats (beta times this is the reward), mean and \
             95 % interval over {} seeds. Batches are those that trained the PRM; \"found\" is the chance that the right characters get more than \
             the wrong ones in their place; \"lowest\" is the share of wrong solutions whose lowest line is the planted one (by chance: about a \
             quarter); \"repaired > wrong\" is the share of triples whose repaired solution gets more than the wrong one.",
            seeds.len()
        ),
        &[
            "PRM",
            "batches",
            "right characters",
            "wrong - right",
            "lines behind",
            "`!`",
            "line done again",
            "whole repair",
            "found",
            "lowest",
            "repaired > wrong",
        ],
    );
    for condition in CONDITIONS {
        let part = format!("prm-{}", condition.name);
        for place in 0..checkpoints(seeds, &part) {
            let cell =
                |path: &str| over_seeds(seeds, &format!("/{part}/checkpoints/{place}/{path}"));
            let nats = |index: usize| shown(cell(&format!("all/{}", row(index))), 1.0, 2);
            table.rows.push(vec![
                condition.label.into(),
                cell("batches").map_or_else(String::new, |count| format!("{:.0}", count.mean)),
                nats(0),
                nats(2),
                nats(4),
                nats(6),
                nats(7),
                nats(9),
                share(cell("all/right_over_wrong"), 1.0, 3),
                share(cell("all/lowest_is_planted"), 100.0, 0) + " %",
                share(cell("all/repaired_over_wrong"), 100.0, 0) + " %",
            ]);
        }
    }
    table
}

fn truth(seeds: &[Value]) -> Table {
    let mut table = Table::new(
        "Against the truth: change of the chance of success, by continuations of the SFT policy, over the same spans as the rewards (the line \
         without and with the mistake, the `!`, the line done again). Correlations are of reward and change over all spans; \"same sign\" is among \
         spans that change the chance by at least 0.1.",
        &["PRM", "batches", "correlation", "rank correlation", "same sign"],
    );
    let part = "prm-ce";
    let change = |name: &str| {
        let pointer = format!("/{part}/checkpoints/0/agreement/changes/{name}");
        shown(over_seeds(seeds, &pointer), 1.0, 3)
    };
    table.caption += &format!(
        " True changes: clean line {}, line with the mistake {}, `!` {}, line done again {}.",
        change("clean_line"),
        change("wrong_line"),
        change("mark"),
        change("redone")
    );
    for condition in CONDITIONS {
        let part = format!("prm-{}", condition.name);
        for place in 0..checkpoints(seeds, &part) {
            let cell =
                |path: &str| over_seeds(seeds, &format!("/{part}/checkpoints/{place}/{path}"));
            table.rows.push(vec![
                condition.label.into(),
                cell("batches").map_or_else(String::new, |count| format!("{:.0}", count.mean)),
                shown(cell("agreement/correlation"), 1.0, 2),
                shown(cell("agreement/rank_correlation"), 1.0, 2),
                share(cell("agreement/same_sign"), 100.0, 0) + " %",
            ]);
        }
    }
    table
}

fn kinds(seeds: &[Value]) -> Table {
    let mut table = Table::new(
        "By kind of mistake, cross-entropy, offline, at its last checkpoint; nats.",
        &[
            "mistake",
            "wrong - right",
            "whole line",
            "lines behind",
            "`!`",
            "line done again",
            "found",
        ],
    );
    let last = checkpoints(seeds, "prm-ce").saturating_sub(1);
    for (place, kind) in Mistake::ALL.iter().enumerate() {
        let cell = |path: &str| {
            over_seeds(
                seeds,
                &format!("/prm-ce/checkpoints/{last}/by_mistake/{place}/findings/{path}"),
            )
        };
        let nats = |index: usize| shown(cell(&row(index)), 1.0, 2);
        table.rows.push(vec![
            kind.to_string(),
            nats(2),
            nats(3),
            nats(4),
            nats(6),
            nats(7),
            share(cell("right_over_wrong"), 1.0, 3),
        ]);
    }
    table
}

fn teachings(seeds: &[Value]) -> Table {
    let mut table = Table::new(
        "When is a repair worth making? SFT models that repair rarely or often, well or badly, each with a PRM (cross-entropy, offline, last \
         checkpoint) trained on its own rollouts. Share of the policy's own responses that end right, with and without a repair in them; true change \
         of the chance of success over the `!` and the line done again; what the PRM gives to them, in nats.",
        &[
            "taught",
            "right with repair",
            "right without",
            "true change, `!`",
            "true change, done again",
            "reward of `!`",
            "of the line done again",
            "of the whole repair",
            "repaired > wrong",
        ],
    );
    for teaching in TEACHINGS {
        let part = format!("taught-{}", teaching.name);
        let last = checkpoints(seeds, &part).saturating_sub(1);
        let cell = |path: &str| over_seeds(seeds, &format!("/{part}/checkpoints/{last}/{path}"));
        let nats = |index: usize| shown(cell(&format!("all/{}", row(index))), 1.0, 2);
        table.rows.push(vec![
            teaching.label.into(),
            share(cell("own/right_with_repair"), 100.0, 0) + " %",
            share(cell("own/right_without_repair"), 100.0, 0) + " %",
            shown(cell("agreement/changes/mark"), 1.0, 3),
            shown(cell("agreement/changes/redone"), 1.0, 3),
            nats(6),
            nats(7),
            nats(9),
            share(cell("all/repaired_over_wrong"), 100.0, 0) + " %",
        ]);
    }
    table
}

fn own(seeds: &[Value]) -> Table {
    let mut table = Table::new(
        "The policy's own mistakes and repairs, found by the task's checker of steps: log-ratios of a line in nats, at each condition's last \
         checkpoint.",
        &[
            "PRM",
            "right lines",
            "first mistakes",
            "lines taken back",
            "`!` alone",
            "lines done again",
            "right over mistake",
        ],
    );
    for condition in CONDITIONS {
        let part = format!("prm-{}", condition.name);
        let last = checkpoints(seeds, &part).saturating_sub(1);
        let cell =
            |path: &str| over_seeds(seeds, &format!("/{part}/checkpoints/{last}/own/{path}"));
        let nats = |name: &str| shown(cell(&format!("{name}/mean")), 1.0, 2);
        table.rows.push(vec![
            condition.label.into(),
            nats("right_lines"),
            nats("first_mistakes"),
            nats("taken_back"),
            nats("marks"),
            nats("done_again"),
            share(cell("right_over_mistakes"), 1.0, 3),
        ]);
    }
    table
}

fn habits(seeds: &[Value]) -> Table {
    let mut table = Table::new(
        "Mistakes and repairs over training, on held-out problems: wrong lines that stand and lines taken back, a response.",
        &[
            "RL",
            "step",
            "right",
            "mistakes",
            "repairs",
            "repaired well",
            "taken back for nothing",
            "operations a line",
        ],
    );
    for (part, label) in [("rl-prime", "PRIME"), ("rl-outcome-only", "outcome-only")] {
        let count = seeds.first().and_then(|seed| at(seed, &format!("/{part}"))?.as_array());
        for place in 0..count.map_or(0, Vec::len) {
            let cell = |path: &str| over_seeds(seeds, &format!("/{part}/{place}/{path}"));
            table.rows.push(vec![
                label.into(),
                cell("step").map_or_else(String::new, |step| format!("{:.0}", step.mean)),
                share(cell("right"), 100.0, 1) + " %",
                share(cell("mistakes"), 1.0, 3),
                share(cell("repairs"), 1.0, 3),
                share(cell("repaired_well"), 100.0, 0) + " %",
                share(cell("repaired_for_nothing"), 100.0, 0) + " %",
                share(cell("operations_a_line"), 1.0, 2),
            ]);
        }
    }
    table
}
