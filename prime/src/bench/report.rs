//! One page of results: HTML that stands alone, and the same tables as Markdown.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value};

use super::change::{
    Change, LEAST, LEAST_OTHERS, Noise, changes, noise, same_machines, same_names,
};
use super::results::{Case, Contestant, Found, Machine, Results};
use super::statistics::spread;
use super::text::count;
use super::{roofline, summary, text};
use crate::report::encode::markdown;
use crate::report::page::{Block, Page, Table};

/// What a report is made of.
pub struct Report {
    files: Vec<(String, Found)>,
    earlier: Option<(String, Results)>,
}

impl Report {
    /// Of files under their names, as [`super::load`] reads them.
    ///
    /// Cases that nobody of ours ran, as those of `tools/peers/gpu.py`, go to the same cases of files before, where the device is the same; who ran
    /// them is marked as of another process.
    pub fn new(files: Vec<(String, Found)>) -> Report {
        let mut merged: Vec<(String, Found)> = Vec::new();
        for (name, mut found) in files {
            if let Found::Results(results) = &mut found {
                for (_, host) in &mut merged {
                    if let Found::Results(host) = host
                        && same_names(results, host)
                    {
                        join(host, results);
                    }
                }
            }
            merged.push((name, found));
        }
        Report { files: merged, earlier: None }
    }

    /// Compared with earlier results.
    pub fn against(mut self, name: String, earlier: Results) -> Report {
        self.earlier = Some((name, earlier));
        self
    }

    fn results(&self) -> impl Iterator<Item = (&str, &Results)> {
        self.files.iter().filter_map(|(name, found)| match found {
            Found::Results(results) => Some((name.as_str(), &**results)),
            Found::Other(_) => None,
        })
    }

    /// The page.
    ///
    /// # Errors
    /// When a value cannot be written.
    pub fn to_html(&self) -> Result<String> {
        let lead = "Times of kernels and steps, beside others that did the same work in the same rounds, and beside what the machine can do. \
                    Times are medians of rounds with their quantiles 20 % and 80 %; a ratio above 1 is how many times faster ours is.";
        let mut page = Page::new("Benchmarks", lead);
        page.section("Summary", self.summary());
        page.section(
            "Wrong results",
            self.wrong().map(|table| vec![Block::Table(table)]).unwrap_or_default(),
        );
        page.section("Against earlier results", self.changed());
        for (name, results) in self.results() {
            let pictures = results.machines.iter().filter_map(|machine| {
                let picture = roofline::picture(machine, &results.cases)?;
                let note = format!(
                    "{}, {}. A point is a call that was timed: filled ones are ours, hollow ones others'. Lines are the most that arithmetic \
                     and memory can do; how far a point is below them is what there is to gain.",
                    machine.device, machine.name
                );
                Some([Block::Picture(picture), Block::Note(note)])
            });
            page.section(format!("Roofline, {name}"), pictures.flatten().collect());
        }
        for (name, results) in self.results() {
            page.section(name, facts(results));
        }
        for (name, results) in self.results() {
            for (device, operation) in operations(results) {
                let cases = of_operation(results, &device, &operation);
                page.section(
                    self.heading(name, &device, &operation),
                    vec![Block::Table(table(results, &cases))],
                );
            }
        }
        let skipped = self.results().flat_map(|(_, results)| skipped(results));
        page.section("What was not measured", skipped.collect());
        for (name, found) in &self.files {
            if let Found::Other(fields) = found {
                page.section(name.clone(), other(fields));
            }
        }
        page.to_html()
    }

    /// The tables, for a terminal or a document.
    pub fn to_markdown(&self) -> String {
        let mut out = String::new();
        for (name, results) in self.results() {
            let _ = writeln!(out, "# {}\n", markdown(name));
            write_blocks(&mut out, facts(results));
            write_blocks(&mut out, summary::blocks(results));
            for (device, operation) in operations(results) {
                let heading = self.heading("", &device, &operation);
                let _ = writeln!(out, "## {}\n", markdown(&heading));
                let cases = of_operation(results, &device, &operation);
                let _ = writeln!(out, "{}", table(results, &cases).to_markdown());
            }
            if !results.skipped.is_empty() {
                let _ = writeln!(
                    out,
                    "{} left out; the page says which and why.\n",
                    count(results.skipped.len(), "case")
                );
            }
        }
        for (name, found) in &self.files {
            if let Found::Other(fields) = found {
                let _ = writeln!(out, "# {}\n", markdown(name));
                write_blocks(&mut out, other(fields));
            }
        }
        if let Some(table) = self.wrong() {
            let _ = writeln!(out, "## Wrong results\n\n{}", table.to_markdown());
        }
        if self.earlier.is_some() {
            let _ = writeln!(out, "## Against earlier results\n");
            write_blocks(&mut out, self.changed());
        }
        out
    }

    /// The short of all results, the newest first.
    fn summary(&self) -> Vec<Block> {
        let mut newest: Vec<_> = self.results().collect();
        newest.sort_by(|a, b| b.1.started.cmp(&a.1.started));
        let several = newest.len() > 1;
        let of = |(name, results): (&str, &Results)| {
            let heading = several.then(|| Block::Heading(name.to_owned()));
            heading.into_iter().chain(summary::blocks(results)).collect::<Vec<_>>()
        };
        newest.into_iter().flat_map(of).collect()
    }

    fn heading(&self, name: &str, device: &str, operation: &str) -> String {
        let several = self.results().count() > 1 && !name.is_empty();
        let from = if several { format!(", {name}") } else { String::new() };
        format!("{operation} on {device}{from}")
    }

    /// What did not compute what it should.
    fn wrong(&self) -> Option<Table> {
        let mut table = Table::new(
            ["device", "operation", "case", "who", "worst error in parts of what is allowed"],
            4,
        );
        for (_, results) in self.results() {
            for case in &results.cases {
                for contestant in &case.contestants {
                    if let Some(check) = contestant.check.filter(|check| !check.passed()) {
                        table.marked_row([
                            case.device.clone(),
                            case.operation.clone(),
                            case.title(),
                            contestant.name.clone(),
                            format!("{:.3}", check.worst),
                        ]);
                    }
                }
            }
        }
        (!table.is_empty()).then_some(table)
    }

    fn changed(&self) -> Vec<Block> {
        let Some((name, earlier)) = &self.earlier else { return Vec::new() };
        let mut blocks = Vec::new();
        for (now_name, now) in self.results() {
            let mut found = changes(now, earlier);
            let comparable = same_machines(now, earlier);
            if !comparable {
                blocks.push(Block::Text(format!(
                    "{now_name} and {name} were measured on different machines: what is shown may be theirs, and no regression is named."
                )));
            }
            if found.is_empty() {
                blocks.push(Block::Text(format!("{now_name} and {name} have no case in common.")));
                continue;
            }
            found.sort_by(|a, b| b.ratio.total_cmp(&a.ratio));
            let regressions: Vec<&Change> =
                found.iter().filter(|change| comparable && change.is_regression()).collect();
            let shared =
                format!("Of {} that {now_name} and {name} share", count(found.len(), "figure"));
            if comparable {
                blocks.push(Block::Text(match &regressions[..] {
                    [] => format!("{shared}, none became slower beyond noise."),
                    [one] => format!("{shared}, one became slower beyond noise: {}.", sentence(one)),
                    several => {
                        let most = several.iter().take(MOST_NAMED).map(|change| sentence(change));
                        format!(
                            "{shared}, {} became slower beyond noise, the most: {}. The table marks all of them.",
                            several.len(),
                            most.collect::<Vec<_>>().join("; ")
                        )
                    }
                }));
            }
            blocks.push(Block::Note(noise_in_words(now, earlier)));
            found.retain(|change| change.beyond_noise);
            let mut table = Table::new(
                ["device", "operation", "case", "who", "times as long as before", "beside"],
                4,
            );
            for change in &found {
                let row = [
                    change.device.clone(),
                    change.operation.clone(),
                    change.title.clone(),
                    change.contestant.clone(),
                    text::three(change.ratio),
                    change.beside.clone().unwrap_or_default(),
                ];
                if comparable && change.is_regression() {
                    table.marked_row(row);
                } else {
                    table.row(row);
                }
            }
            if !table.is_empty() {
                blocks.push(Block::Table(table));
            }
        }
        blocks
    }
}

/// Moves those who ran a case of `host`'s in `guest`, where none of ours did, to `host`.
fn join(host: &mut Results, guest: &mut Results) {
    guest.cases.retain(|case| {
        let of_others = case.contestants.iter().all(|contestant| !contestant.ours);
        let same = |own: &&mut Case| {
            own.device == case.device
                && own.operation == case.operation
                && own.name == case.name
                && own.dtype == case.dtype
        };
        match host.cases.iter_mut().find(same) {
            Some(own) if of_others => {
                own.contestants.extend(case.contestants.iter().map(|contestant| Contestant {
                    name: format!("{}, another process", contestant.name),
                    ..contestant.clone()
                }));
                false
            }
            _ => true,
        }
    });
}

/// Texts and tables as Markdown.
fn write_blocks(out: &mut String, blocks: Vec<Block>) {
    for block in blocks {
        match block {
            Block::Text(text) | Block::Note(text) => {
                let _ = writeln!(out, "{}\n", markdown(&text));
            }
            Block::Heading(text) => {
                let _ = writeln!(out, "## {}\n", markdown(&text));
            }
            Block::Facts(facts) => {
                for (what, value) in facts {
                    let _ = writeln!(out, "- {}: {}", markdown(&what), markdown(&value));
                }
                out.push('\n');
            }
            Block::Table(table) => {
                let _ = writeln!(out, "{}", table.to_markdown());
            }
            _ => (),
        }
    }
}

/// So many regressions are named in a sentence; the table has all.
const MOST_NAMED: usize = 5;

/// What counts as a change.
fn noise_in_words(now: &Results, earlier: &Results) -> String {
    let of_device = |machine: &Machine| {
        let Noise { least, others } = noise(&machine.device, now, earlier);
        let counted = count(others, "figure");
        let device = &machine.device;
        if least > LEAST {
            format!(
                " On {device} that is by more than {}: so much did nine of ten of the {counted} of others change, whose code did not.",
                text::percent(least)
            )
        } else if others < LEAST_OTHERS {
            format!(
                " On {device} {counted} of others are too few to tell how much two runs differ by themselves."
            )
        } else {
            format!(" On {device} nine of ten of the {counted} of others changed by less.")
        }
    };
    let devices: String = now.machines.iter().map(of_device).collect();
    format!(
        "Beyond noise: the quantiles 20 % to 80 % of both lie apart, and the medians by more than {} %. Where the same other ran beside both, times are \
         compared in parts of its time; where none did, the medians must differ by more than the times of others did between the two.{devices}",
        100.0 * LEAST
    )
}

fn sentence(change: &Change) -> String {
    let Change { device, operation, title, contestant, ratio, .. } = change;
    format!("{operation} on {device}, {title}, {contestant}: {} times as long", text::three(*ratio))
}

/// A line of plain text of a JSON value.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn facts_of(results: &Results) -> Vec<(String, String)> {
    let mut facts = vec![
        ("measured".to_owned(), format!("{} to {}", results.started, results.finished)),
        ("commit".to_owned(), results.commit.clone()),
        ("command".to_owned(), results.command.clone()),
        ("method".to_owned(), results.method.clone()),
    ];
    for machine in &results.machines {
        let device = &machine.device;
        facts.push((device.clone(), machine.name.clone()));
        for (name, value) in &machine.about {
            facts.push((format!("{device}, {name}"), plain(value)));
        }
        for ceiling in &machine.ceilings {
            let unit = if ceiling.what == "bytes" { "byte" } else { "FLOP" };
            facts.push((
                format!("{device}, most {}", ceiling.what),
                format!("{}: {}", text::rate(ceiling.rate, unit), ceiling.how),
            ));
        }
    }
    facts.retain(|(_, value)| !value.is_empty());
    facts
}

fn facts(results: &Results) -> Vec<Block> {
    vec![Block::Facts(facts_of(results))]
}

/// Devices and operations in the order in which they were measured.
fn operations(results: &Results) -> Vec<(String, String)> {
    let mut seen = BTreeSet::new();
    let both = results.cases.iter().map(|case| (case.device.clone(), case.operation.clone()));
    both.filter(|both| seen.insert(both.clone())).collect()
}

fn of_operation<'a>(results: &'a Results, device: &str, operation: &str) -> Vec<&'a Case> {
    let of = |case: &&Case| case.device == device && case.operation == operation;
    results.cases.iter().filter(of).collect()
}

fn table(results: &Results, cases: &[&Case]) -> Table {
    let head = [
        "case",
        "who",
        "time",
        "20 % to 80 %",
        "rate",
        "of the roof",
        "beside",
        "ratio",
        "20 % to 80 %",
        "error",
    ];
    let mut table = Table::new(head, 2);
    for case in cases {
        for contestant in &case.contestants {
            table.row(row(results, case, contestant));
        }
    }
    table
}

fn row(results: &Results, case: &Case, ours: &Contestant) -> [String; 10] {
    let time = spread(&ours.seconds);
    let times = |of: &dyn Fn(super::statistics::Spread) -> String| time.map_or(String::new(), of);
    let roof = case.attained(&results.machines, ours);
    // Others are rows of their own, with their time alone.
    let other = case.baseline().filter(|_| ours.ours);
    let lead = other.and_then(|_| case.lead(ours));
    let absent = || {
        let named = case.absent.iter().map(|(name, _)| format!("{name}: absent"));
        named.collect::<Vec<_>>().join(", ")
    };
    [
        case.title(),
        ours.name.clone(),
        time.map_or("not timed".to_owned(), |time| text::seconds(time.median)),
        times(&|time| format!("{} to {}", text::seconds(time.low), text::seconds(time.high))),
        times(&|time| text::rate(case.amount / time.median, &case.unit)),
        roof.map_or(String::new(), |roof| {
            let bound = if roof.by_memory { "memory" } else { "arithmetic" };
            format!("{} of {bound}", text::percent(roof.fraction))
        }),
        match (other, ours.ours) {
            (Some(other), _) => other.name.clone(),
            (None, true) => absent(),
            (None, false) => String::new(),
        },
        lead.map_or(String::new(), |lead| text::three(lead.median)),
        lead.map_or(String::new(), |lead| {
            format!("{} to {}", text::three(lead.low), text::three(lead.high))
        }),
        ours.check.map_or(String::new(), |check| {
            let word = if check.passed() { "" } else { " WRONG" };
            format!("{}{word}", text::three(check.worst))
        }),
    ]
}

fn skipped(results: &Results) -> Option<Block> {
    let mut table = Table::new(["device", "operation", "case", "why"], 4);
    for skipped in &results.skipped {
        table.row(
            [&skipped.device, &skipped.operation, &skipped.name, &skipped.why].map(String::clone),
        );
    }
    let summary = format!("{} left out", count(results.skipped.len(), "case"));
    (!table.is_empty()).then(|| Block::Folded(summary, table))
}

/// A record of another form: what it says, and its rows where it has some.
fn other(fields: &Map<String, Value>) -> Vec<Block> {
    let simple = |value: &Value| !value.is_object() && !value.is_array();
    let facts = fields.iter().filter(|(_, value)| simple(value));
    let mut blocks =
        vec![Block::Facts(facts.map(|(name, value)| (name.clone(), plain(value))).collect())];
    for (name, value) in fields {
        let Some(rows) =
            value.as_array().filter(|rows| !rows.is_empty() && rows.iter().all(Value::is_object))
        else {
            continue;
        };
        let mut columns: Vec<&String> = Vec::new();
        for column in rows.iter().filter_map(Value::as_object).flat_map(Map::keys) {
            if !columns.contains(&column) {
                columns.push(column);
            }
        }
        let mut table = Table::new(columns.iter().copied().cloned(), 1);
        for row in rows {
            table.row(
                columns.iter().map(|column| row.get(column.as_str()).map_or(String::new(), plain)),
            );
        }
        blocks.push(Block::Heading(name.clone()));
        blocks.push(Block::Table(table));
    }
    blocks.push(Block::Json("all of it".to_owned(), Value::Object(fields.clone())));
    blocks
}

/// What a file is called in a report: its name without folder and ending.
pub fn name_of(path: &Path) -> String {
    path.file_stem()
        .map_or_else(|| path.display().to_string(), |stem| stem.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::super::change::tests::results;
    use super::super::results::{Ceiling, Checked, Skipped, load};
    use super::*;

    fn of(results: Results) -> Report {
        Report::new(vec![("now".to_owned(), Found::Results(Box::new(results)))])
    }

    #[test]
    fn a_row_says_time_rate_roof_and_ratio() {
        let mut results = results("m", &[1e-3, 1e-3, 2e-3], &[2e-3, 2e-3, 2e-3]);
        results.machines[0].ceilings =
            vec![Ceiling { what: "f32".into(), rate: 524288.0 / 0.5e-3, how: "by a loop".into() }];
        let text = of(results).to_markdown();
        assert!(
            text.contains("| NT 64x64x64, f32 | prime | 1.00 ms | 1.00 ms to 1.60 ms | 524 MFLOP/s | 50.0 % of arithmetic | library | 2.00 | 1.40 to 2.00 |"),
            "{text}"
        );
    }

    #[test]
    fn what_others_did_in_another_process_stands_beside_ours() {
        let own = results("m", &[1e-3; 3], &[]);
        let mut peers = results("m", &[3e-3; 3], &[]);
        peers.cases[0].contestants[0] = Contestant {
            name: "PyTorch".into(),
            ours: false,
            ..peers.cases[0].contestants[0].clone()
        };
        let file = |results: &Results| Found::Results(Box::new(results.clone()));
        let report = |files: Vec<Found>| {
            Report::new(files.into_iter().map(|found| ("x".to_owned(), found)).collect())
                .to_markdown()
        };
        let text = report(vec![file(&own), file(&peers)]);
        assert!(text.contains("| PyTorch, another process | 3.00 |"), "{text}");
        assert_eq!(text.matches("## matmul on cpu").count(), 1);
        let mut elsewhere = peers.clone();
        elsewhere.machines[0].name = "another".into();
        let text = report(vec![file(&own), file(&elsewhere)]);
        assert!(!text.contains("another process") && text.matches("## matmul on cpu").count() == 2);
    }

    #[test]
    fn regressions_are_named_unless_the_machine_is_another() {
        let earlier = results("m", &[1.0, 1.0, 1.0], &[]);
        let slower =
            of(results("m", &[1.5, 1.5, 1.5], &[])).against("before".into(), earlier.clone());
        let sentence = "matmul on cpu, NT 64x64x64, f32, prime: 1.50 times as long";
        assert!(slower.to_markdown().contains(sentence));
        assert!(slower.to_html().unwrap().contains(sentence));
        let elsewhere =
            of(results("n", &[1.5, 1.5, 1.5], &[])).against("before".into(), earlier.clone());
        let text = elsewhere.to_markdown();
        assert!(text.contains("different machines") && !text.contains(sentence), "{text}");
        let same = of(earlier.clone()).against("before".into(), earlier);
        assert!(same.to_markdown().contains("none became slower"));
    }

    #[test]
    fn wrong_results_and_what_was_left_out_are_shown() {
        let mut results = results("m", &[], &[]);
        results.cases[0].contestants[0].check = Some(Checked { compared: 3, worst: 7.5 });
        results.skipped.push(Skipped {
            device: "cpu".into(),
            operation: "matmul".into(),
            name: "a large one".into(),
            why: "it would take minutes".into(),
        });
        let report = of(results);
        let (text, html) = (report.to_markdown(), report.to_html().unwrap());
        assert!(
            text.contains("Wrong results")
                && text.contains("7.50 WRONG")
                && text.contains("not timed")
        );
        assert!(html.contains("Wrong results") && html.contains("it would take minutes"));
    }

    /// What a reader of Markdown takes for a line is one that this program began.
    #[test]
    fn hostile_texts_begin_no_line_and_no_markup() {
        let hostile = "x|y\n# z\r<img src=x onerror=alert(1)>\u{1b}[2J";
        let of = |text: &str| {
            let mut results = results(text, &[1.0], &[2.0]);
            results.commit = text.to_owned();
            results.machines[0].about.insert(text.to_owned(), Value::from(text));
            let case = &mut results.cases[0];
            for field in [&mut case.operation, &mut case.name, &mut case.dtype, &mut case.unit] {
                *field = text.to_owned();
            }
            case.contestants.iter_mut().for_each(|who| who.name = text.to_owned());
            Report::new(vec![(text.to_owned(), Found::Results(Box::new(results)))])
        };
        let (plain, shown) = (of("plain").to_markdown(), of(hostile).to_markdown());
        assert_eq!(plain.lines().count(), shown.lines().count());
        assert!(!shown.replace("\\<", "").contains('<') && !shown.contains('\u{1b}'), "{shown}");
        assert!(!of(hostile).to_html().unwrap().contains("<img"));
    }

    #[test]
    fn every_committed_record_is_on_the_page() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench/results");
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let paths = entries.filter(|path| path.extension().is_some_and(|end| end == "json"));
        let files: Vec<_> = paths.map(|path| (name_of(&path), load(&path).unwrap())).collect();
        let names: Vec<String> = files.iter().map(|(name, _)| name.clone()).collect();
        let report = Report::new(files);
        let (page, text) = (report.to_html().unwrap(), report.to_markdown());
        for name in names {
            assert!(page.contains(&name), "{name}");
            assert!(text.contains(&format!("# {name}\n")), "{name}");
        }
        assert!(page.contains("train, beside PyTorch"));
        assert!(page.len() < crate::report::MOST_BYTES);
    }
}
