//! The tables of the study, over its seeds.

use serde_json::Value;

use super::{CONDITIONS, TEACHINGS};
use crate::study::statistics::{OverRuns, correlation};
use crate::study::table::{Table, at, over_seeds, share, shown};
use crate::tasks::worked::Mistake;

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
        granularity(&seeds),
        online(&seeds),
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

fn granularity(seeds: &[Value]) -> Table {
    let mut table = Table::new(
        "Token against step: where the mistake of a wrong solution is looked for by single tokens' rewards, and by their sums over lines. \"Over\" is the \
         chance that another token (line) gets more than the token in which the mistake begins (its line); \"lowest\" the share of solutions \
         whose lowest token (line) is that one, beside what it would be by chance; \"in its line\" the share whose lowest token lies in the \
         mistake's line.",
        &[
            "PRM",
            "batches",
            "token: over",
            "token: lowest",
            "by chance",
            "line: over",
            "line: lowest",
            "lowest token in its line",
            "by chance, line",
        ],
    );
    for condition in CONDITIONS {
        let part = format!("prm-{}", condition.name);
        for place in 0..checkpoints(seeds, &part) {
            let cell =
                |path: &str| over_seeds(seeds, &format!("/{part}/checkpoints/{place}/{path}"));
            let percent = |name: &str| share(cell(&format!("all/{name}")), 100.0, 0) + " %";
            table.rows.push(vec![
                condition.label.into(),
                cell("batches").map_or_else(String::new, |count| format!("{:.0}", count.mean)),
                share(cell("all/tokens_over_planted"), 1.0, 3),
                percent("lowest_token_is_planted"),
                percent("lowest_token_by_chance"),
                share(cell("all/lines_over_planted"), 1.0, 3),
                percent("lowest_is_planted"),
                percent("lowest_token_in_line"),
                percent("lowest_by_chance"),
            ]);
        }
    }
    table
}

/// The difference of two numbers of each seed, over the seeds that have both.
fn difference(seeds: &[Value], of: &str, from: &str) -> Option<OverRuns> {
    let number = |seed: &Value, pointer: &str| at(seed, pointer)?.as_f64();
    let values: Vec<f64> =
        seeds.iter().filter_map(|seed| Some(number(seed, of)? - number(seed, from)?)).collect();
    OverRuns::of(&values)
}

fn online(seeds: &[Value]) -> Table {
    let [last, online_last] =
        ["prm-ce", "prm-online"].map(|part| checkpoints(seeds, part).saturating_sub(1));
    let mut table = Table::new(
        "Offline against online: the PRM of the fixed SFT policy's rollouts and that of a PRIME run, each at its last checkpoint, and their difference, \
         paired by seed. Sums in nats.",
        &["", "offline", "online", "online - offline"],
    );
    let row = |name: &str, path: &str, scale: f64, digits: usize| {
        let of = format!("/prm-ce/checkpoints/{last}/{path}");
        let online = format!("/prm-online/checkpoints/{online_last}/{path}");
        vec![
            name.to_string(),
            shown(over_seeds(seeds, &of), scale, digits),
            shown(over_seeds(seeds, &online), scale, digits),
            shown(difference(seeds, &online, &of), scale, digits),
        ]
    };
    table.rows = vec![
        row("batches that trained the PRM", "batches", 1.0, 0),
        row("wrong - right characters", &format!("all/{}", self::row(2)), 1.0, 2),
        row("lines behind: wrong - clean", &format!("all/{}", self::row(4)), 1.0, 2),
        row("`!`", &format!("all/{}", self::row(6)), 1.0, 2),
        row("line done again", &format!("all/{}", self::row(7)), 1.0, 2),
        row("whole repair", &format!("all/{}", self::row(9)), 1.0, 2),
        row("right over wrong characters", "all/right_over_wrong", 1.0, 3),
        row("other tokens over the mistake's", "all/tokens_over_planted", 1.0, 3),
        row("other lines over the mistake's", "all/lines_over_planted", 1.0, 3),
        row("lowest line is the mistake's, %", "all/lowest_is_planted", 100.0, 0),
        row("repaired over wrong, %", "all/repaired_over_wrong", 100.0, 0),
        row("correlation with the true change", "agreement/correlation", 1.0, 2),
    ];
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
    let kinds: Vec<Mistake> = seeds
        .first()
        .and_then(|seed| at(seed, &format!("/prm-ce/checkpoints/{last}/by_mistake"))?.as_array())
        .into_iter()
        .flatten()
        .filter_map(|found| serde_json::from_value(found.get("mistake")?.clone()).ok())
        .collect();
    for (place, kind) in kinds.iter().enumerate() {
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
    table.caption += &goes_with(seeds);
    for teaching in TEACHINGS {
        let part = format!("taught-{}", teaching.name);
        if checkpoints(seeds, &part) == 0 {
            continue;
        }
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

/// A PRM that was trained on the rollouts of a model that was taught so.
pub struct Taught {
    /// Its place among [`TEACHINGS`].
    pub teaching: usize,
    /// Share of the model's responses with a repair that end right.
    pub success: f64,
    /// By how much responses with a repair end right more often than those without.
    pub lead: f64,
    /// True change of the chance of success over the `!` behind a planted mistake.
    pub change: f64,
    /// What the PRM gives to that `!`, in nats.
    pub reward: f64,
}

/// All of a study: a teaching of a seed each.
pub fn taught(seeds: &[Value]) -> Vec<Taught> {
    let mut found = Vec::new();
    for (place, teaching) in TEACHINGS.iter().enumerate() {
        let part = format!("taught-{}", teaching.name);
        let last = checkpoints(seeds, &part).saturating_sub(1);
        found.extend(seeds.iter().filter_map(|seed| {
            let number =
                |path: &str| at(seed, &format!("/{part}/checkpoints/{last}/{path}"))?.as_f64();
            let success = number("own/right_with_repair")?;
            Some(Taught {
                teaching: place,
                success,
                lead: success - number("own/right_without_repair")?,
                change: number("agreement/changes/mark")?,
                reward: number(&format!("all/{}", row(6)))?,
            })
        }));
    }
    found
}

/// What the reward of a repair goes with, over the models that were taught.
fn goes_with(seeds: &[Value]) -> String {
    let all = taught(seeds);
    let rewards: Vec<f64> = all.iter().map(|it| it.reward).collect();
    let with = |value: fn(&Taught) -> f64| {
        correlation(&all.iter().map(value).collect::<Vec<_>>(), &rewards)
    };
    match (with(|it| it.lead), with(|it| it.success), with(|it| it.change)) {
        (Some(lead), Some(success), Some(change)) if all.len() > 2 => format!(
            " Over these {} models the reward of `!` correlates {lead:+.2} with how much more often responses with a repair end right than those \
             without, {success:+.2} with how often they end right, and {change:+.2} with the true change.",
            all.len()
        ),
        _ => String::new(),
    }
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
        if checkpoints(seeds, &part) == 0 {
            continue;
        }
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
        "Mistakes and repairs over training, on held-out problems: wrong lines that stand and lines taken back, a response; \
         of the lines taken back, those that were wrong and are followed by a right one, and those that were right. The last rows are differences, \
         paired by seed.",
        &[
            "RL",
            "step",
            "right",
            "mistakes",
            "repairs",
            "repaired well",
            "taken back for nothing",
            "steps a line",
        ],
    );
    let courses = [("prm-online/habits", "PRIME"), ("rl-outcome-only", "outcome-only")];
    for (part, label) in courses {
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
    let [(prime, _), (other, _)] = courses;
    let count = seeds.first().and_then(|seed| at(seed, &format!("/{prime}"))?.as_array());
    for place in 0..count.map_or(0, Vec::len) {
        let cell = |name: &str| {
            difference(
                seeds,
                &format!("/{prime}/{place}/{name}"),
                &format!("/{other}/{place}/{name}"),
            )
        };
        let step = over_seeds(seeds, &format!("/{prime}/{place}/step"));
        table.rows.push(vec![
            "PRIME - outcome-only".into(),
            step.map_or_else(String::new, |step| format!("{:.0}", step.mean)),
            shown(cell("right"), 100.0, 1) + " points",
            shown(cell("mistakes"), 1.0, 3),
            shown(cell("repairs"), 1.0, 3),
            shown(cell("repaired_well"), 100.0, 0) + " points",
            shown(cell("repaired_for_nothing"), 100.0, 0) + " points",
            shown(cell("operations_a_line"), 1.0, 2),
        ]);
    }
    table
}
