//! What a file of results holds.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use prime_runtime::checkpoint;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::statistics::{Spread, ratios, spread};

/// The number that files of this form begin with.
pub const FORMAT: u32 = 1;

/// What one run of the benchmarks measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// [`FORMAT`].
    pub format: u32,
    /// When it began, UTC.
    pub started: String,
    /// When its last figure was taken.
    pub finished: String,
    /// How it was started.
    pub command: String,
    /// The version of the sources, and whether they had been changed.
    pub commit: String,
    /// How times were taken, in sentences.
    pub method: String,
    /// The devices that ran.
    pub machines: Vec<Machine>,
    /// What was measured.
    pub cases: Vec<Case>,
    /// What was not, and why.
    #[serde(default)]
    pub skipped: Vec<Skipped>,
}

/// A device.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// As `--device` names it.
    pub device: String,
    /// Its maker's name for it.
    pub name: String,
    /// Cores and instructions, compute capability, driver, compiler, clocks, load: names and values.
    pub about: Map<String, Value>,
    /// What it can do at most.
    pub ceilings: Vec<Ceiling>,
}

/// A bound of a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    /// `bytes`, or the dtype of multiplications.
    pub what: String,
    /// Bytes or floating-point operations a second.
    pub rate: f64,
    /// How this is known.
    pub how: String,
}

/// One piece of work, and everything that did it in the same rounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    /// The device that it ran on.
    pub device: String,
    /// The operation, or the step.
    pub operation: String,
    /// The model, the layer and the shape.
    pub name: String,
    /// What its numbers are stored in.
    pub dtype: String,
    /// What rates count: `FLOP`, `byte`, `token`.
    pub unit: String,
    /// So many in one call.
    pub amount: f64,
    /// Floating-point operations of a call, where they are known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub flops: f64,
    /// Bytes that a call must read and write.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes: f64,
    /// Copies of the buffers that calls went through in turn.
    #[serde(default)]
    pub sets: usize,
    /// Whoever did it, ours first.
    pub contestants: Vec<Contestant>,
    /// What could not run beside it, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub absent: Vec<(String, String)>,
    /// Names and values besides: clocks during the rounds, how a library's algorithm was chosen.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub about: Map<String, Value>,
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// One way to do a case's work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Contestant {
    /// Its name.
    pub name: String,
    /// Whether it is this project's.
    pub ours: bool,
    /// Seconds of a call, round by round; none where it was not timed.
    pub seconds: Vec<f64>,
    /// Its result beside the float64 oracle.
    #[serde(default)]
    pub check: Option<Checked>,
}

/// How a result compared with float64.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// Elements that were compared.
    pub compared: usize,
    /// The greatest error, in parts of what the arithmetic allows.
    pub worst: f64,
}

impl Checked {
    /// Whether every error is within what is allowed, and something was compared.
    pub fn passed(&self) -> bool {
        self.compared > 0 && self.worst <= 1.0
    }
}

/// What was left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Skipped {
    /// The device.
    pub device: String,
    /// The operation.
    pub operation: String,
    /// The case, with its dtype; empty where it is all of them.
    pub name: String,
    /// Why.
    pub why: String,
}

/// A figure in parts of what the device could do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attained {
    /// The least time by the ceilings, in parts of the time it took.
    pub fraction: f64,
    /// Whether memory is what bounds it, and not arithmetic.
    pub by_memory: bool,
}

impl Case {
    /// The fastest of those that are not ours, by medians.
    pub fn baseline(&self) -> Option<&Contestant> {
        let timed = self.contestants.iter().filter(|c| !c.ours && !c.seconds.is_empty());
        timed.min_by(|a, b| a.median().total_cmp(&b.median()))
    }

    /// Of one of ours, how many times faster than the fastest other it was, from the rounds that both ran in.
    pub fn lead(&self, ours: &Contestant) -> Option<Spread> {
        spread(&ratios(&ours.seconds, &self.baseline()?.seconds))
    }

    /// A contestant's time beside the ceilings of its device.
    pub fn attained(&self, machines: &[Machine], contestant: &Contestant) -> Option<Attained> {
        let machine = machines.iter().find(|machine| machine.device == self.device)?;
        let rate = |what: &str| {
            machine.ceilings.iter().find(|ceiling| ceiling.what == what).map(|found| found.rate)
        };
        let seconds = spread(&contestant.seconds)?.median;
        let arithmetic = rate(&self.dtype).map_or(0.0, |rate| self.flops / rate);
        let memory = rate("bytes").map_or(0.0, |rate| self.bytes / rate);
        let least = arithmetic.max(memory);
        (least > 0.0)
            .then(|| Attained { fraction: least / seconds, by_memory: memory >= arithmetic })
    }

    /// What the case is called where its operation is said.
    pub fn title(&self) -> String {
        if self.dtype.is_empty() {
            self.name.clone()
        } else {
            format!("{}, {}", self.name, self.dtype)
        }
    }
}

impl Contestant {
    /// Its time in the median of its rounds; infinite where it was not timed.
    pub(super) fn median(&self) -> f64 {
        spread(&self.seconds).map_or(f64::INFINITY, |spread| spread.median)
    }
}

/// A file that was read: results, or something else that is shown as it is.
pub enum Found {
    /// Results in this form, or in that of `tools/peers`.
    Results(Box<Results>),
    /// Another record.
    Other(Map<String, Value>),
}

/// Reads a file of results.
///
/// # Errors
/// When it cannot be read, holds no JSON object, or says that it is of this form and is not.
pub fn load(path: &Path) -> Result<Found> {
    let shown = path.display();
    ensure!(
        !path.is_dir(),
        "{shown} is a folder, expected files of results such as {}",
        path.join("*.json").display()
    );
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    let value: Value =
        serde_json::from_slice(&bytes).with_context(|| format!("{shown} is not JSON"))?;
    let Value::Object(fields) = value else {
        bail!("{shown} holds no JSON object, expected a file of benchmark results");
    };
    ensure!(!fields.is_empty(), "{shown} holds an empty object, expected benchmark results");
    if let Some(format) = fields.get("format") {
        ensure!(
            format == &Value::from(FORMAT),
            "{shown} is of format {format}, and this program reads format {FORMAT}"
        );
        let results: Results = serde_json::from_value(Value::Object(fields))
            .with_context(|| format!("{shown} is not a whole file of benchmark results"))?;
        check(&results).with_context(|| format!("{shown} holds no benchmark results"))?;
        return Ok(Found::Results(Box::new(results)));
    }
    Ok(match of_peers(&fields) {
        Some(results) => Found::Results(Box::new(results)),
        None => Found::Other(fields),
    })
}

/// Whether every time and every bound is one: more than nothing, and finite.
fn check(results: &Results) -> Result<()> {
    let positive = |value: f64| value > 0.0 && value.is_finite();
    for case in &results.cases {
        for Contestant { name, seconds, .. } in &case.contestants {
            if let Some(wrong) = seconds.iter().find(|&&time| !positive(time)) {
                let (operation, title) = (&case.operation, case.title());
                bail!("{operation}, {title}: {name} took {wrong} s, expected times above 0");
            }
        }
        let counts = [case.amount, case.flops, case.bytes];
        ensure!(
            counts.iter().all(|count| *count >= 0.0),
            "{}, {}: a call does less than nothing: {counts:?}",
            case.operation,
            case.title()
        );
    }
    for Machine { device, ceilings, .. } in &results.machines {
        if let Some(wrong) = ceilings.iter().find(|ceiling| !positive(ceiling.rate)) {
            bail!("the most {} of {device} is {}, expected a rate above 0", wrong.what, wrong.rate);
        }
    }
    Ok(())
}

/// Writes results as a file that appears whole or not at all.
///
/// # Errors
/// When it cannot be written.
pub fn save(path: &Path, results: &Results) -> Result<()> {
    checkpoint::atomic_write(path, text(results)?.as_bytes())
        .with_context(|| format!("the results cannot be written to {}", path.display()))
}

/// The file's text: a line an entry of each list, so that two files can be compared line by line.
fn text(results: &Results) -> Result<String> {
    let Value::Object(fields) = serde_json::to_value(results)? else {
        bail!("results are an object")
    };
    let mut lines = Vec::new();
    for (name, value) in &fields {
        let value = match value.as_array() {
            Some(entries) if !entries.is_empty() => {
                let entries: Vec<String> = entries.iter().map(Value::to_string).collect();
                format!("[\n  {}\n ]", entries.join(",\n  "))
            }
            _ => value.to_string(),
        };
        lines.push(format!(" {}: {value}", Value::from(name.as_str())));
    }
    Ok(format!("{{\n{}\n}}\n", lines.join(",\n")))
}

/// The form of `tools/peers/compare.py`: rates of ours and of the peer's by comparison.
fn of_peers(fields: &Map<String, Value>) -> Option<Results> {
    let text = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
    let device = text("device").unwrap_or_else(|| "cpu".to_owned());
    let mut cases = Vec::new();
    for (name, comparison) in fields.get("comparisons")?.as_object()? {
        let unit = comparison.get("unit")?.as_str()?;
        let (unit, amount) = match unit.strip_suffix("/s")? {
            "tokens" => ("token", 1.0),
            "GFLOP" => ("FLOP", 1e9),
            other => (other, 1.0),
        };
        let side = |side: &str| comparison.get(side).and_then(Value::as_object);
        let seconds = |entry: &Value| -> Option<Vec<f64>> {
            let rounds = entry.get("rounds")?.as_array()?;
            let rates = rounds.iter().map(|rate| rate.as_f64().filter(|rate| *rate > 0.0));
            rates.map(|rate| Some(1.0 / rate?)).collect()
        };
        // A case for each dtype: `f32 packed` stands beside `f32`.
        for (dtype, peer) in side("peer")? {
            let of_dtype = |label: &str| label.split(' ').next() == Some(dtype);
            let mut contestants: Vec<Contestant> = Vec::new();
            for (label, entry) in side("ours")?.iter().filter(|(label, _)| of_dtype(label)) {
                let name = format!("prime{}", label.strip_prefix(dtype.as_str()).unwrap_or(""));
                contestants.push(Contestant {
                    name,
                    ours: true,
                    seconds: seconds(entry)?,
                    check: None,
                });
            }
            contestants.push(Contestant {
                name: "PyTorch".to_owned(),
                ours: false,
                seconds: seconds(peer)?,
                check: None,
            });
            let (operation, name) = name.split_once('-').unwrap_or((name, ""));
            cases.push(Case {
                device: device.clone(),
                operation: format!("{operation}, beside PyTorch"),
                name: name.to_owned(),
                dtype: dtype.clone(),
                unit: unit.to_owned(),
                amount,
                flops: 0.0,
                bytes: 0.0,
                sets: 1,
                contestants,
                absent: Vec::new(),
                about: Map::new(),
            });
        }
    }
    let about = ["rustc", "python", "load_before", "load_after", "uncommitted_changes"];
    let about =
        about.iter().filter_map(|name| Some(((*name).to_owned(), fields.get(*name)?.clone())));
    let date = text("date").unwrap_or_default();
    Some(Results {
        format: FORMAT,
        started: date.clone(),
        finished: date,
        command: text("command").unwrap_or_default(),
        commit: text("commit").unwrap_or_default(),
        method: "Prepared processes, told in turn to run, the order turned around from round to round; times are of one unit of work, the reciprocal of rates.".to_owned(),
        machines: vec![Machine {
            device,
            name: text("processor").unwrap_or_default(),
            about: about.collect(),
            ceilings: Vec::new(),
        }],
        cases,
        skipped: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::statistics::quantile;
    use super::*;

    fn committed(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench/results").join(name)
    }

    #[test]
    fn every_committed_record_is_read() {
        let folder = committed("");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|end| end == "json") {
                count += 1;
                load(&path).unwrap_or_else(|error| panic!("{error:#}"));
            }
        }
        assert!(count >= 3);
    }

    #[test]
    fn rates_beside_pytorch_become_times_with_their_ratio() {
        let Found::Results(results) =
            load(&committed("2026-11-23-cpu-against-pytorch.json")).unwrap()
        else {
            panic!("it is of tools/peers")
        };
        let case =
            results.cases.iter().find(|case| case.name == "small" && case.dtype == "bf16").unwrap();
        assert_eq!(
            (case.operation.as_str(), case.unit.as_str()),
            ("train, beside PyTorch", "token")
        );
        assert_eq!(quantile(&case.contestants[0].seconds, 0.5), Some(1.0 / 21019.215));
        // As the script reckoned it.
        let lead = case.lead(&case.contestants[0]).unwrap();
        assert!((lead.median - 1.92).abs() < 0.001, "{lead:?}");
        let product = results
            .cases
            .iter()
            .find(|case| case.name == "512x512x512" && case.dtype == "f32")
            .unwrap();
        assert_eq!(product.contestants.len(), 3);
        assert_eq!(product.contestants[1].name, "prime packed");
        let rate = product.amount / quantile(&product.contestants[0].seconds, 0.5).unwrap();
        assert!((rate / 1e9 - 155.847).abs() < 1e-6, "{rate}");
    }

    #[test]
    fn files_that_are_something_else_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        let error = |text: &str| {
            std::fs::write(&path, text).unwrap();
            load(&path).err().map(|error| format!("{error:#}"))
        };
        assert!(error("[1]").unwrap().contains("no JSON object"));
        assert!(error("{}").unwrap().contains("an empty object"));
        assert!(error("{").unwrap().contains("not JSON"));
        assert!(error(r#"{"format": 9}"#).unwrap().contains("reads format 1"));
        assert!(error(r#"{"format": 1}"#).unwrap().contains("not a whole file"));
        assert_eq!(error(r#"{"what": "something"}"#), None);
        assert!(load(folder.path()).err().unwrap().to_string().contains("is a folder, expected"));
        let changed = |change: fn(&mut Results)| {
            let mut results = super::super::change::tests::results("m", &[1.0], &[2.0]);
            let rate = Ceiling { what: "f32".into(), rate: 1.0, how: String::new() };
            results.machines[0].ceilings.push(rate);
            change(&mut results);
            error(&text(&results).unwrap())
        };
        assert_eq!(changed(|_| ()), None);
        let wrong = changed(|results| results.cases[0].contestants[1].seconds[0] = -2.0).unwrap();
        assert!(wrong.contains("matmul, NT 64x64x64, f32: library took -2 s"), "{wrong}");
        let wrong = changed(|results| results.machines[0].ceilings[0].rate = 0.0).unwrap();
        assert!(wrong.contains("the most f32 of cpu is 0, expected a rate above 0"), "{wrong}");
        assert!(changed(|results| results.cases[0].flops = -1.0).unwrap().contains("less than"));
    }

    #[test]
    fn a_file_holds_what_was_saved_a_line_a_case() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        let results = super::super::change::tests::results("m", &[1.5, 2.5], &[3.0, 4.0]);
        save(&path, &results).unwrap();
        let Found::Results(found) = load(&path).unwrap() else { panic!("it is of this form") };
        assert_eq!(serde_json::to_value(&*found).unwrap(), serde_json::to_value(&results).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().filter(|line| line.contains("NT 64x64x64")).count(), 1);
    }

    #[test]
    fn what_is_attained_is_of_the_nearer_ceiling() {
        let ceiling = |what: &str, rate| Ceiling { what: what.into(), rate, how: String::new() };
        let machine = Machine {
            device: "cpu".into(),
            ceilings: vec![ceiling("bytes", 10.0), ceiling("f32", 100.0)],
            ..Machine::default()
        };
        let contestant =
            Contestant { name: "prime".into(), ours: true, seconds: vec![4.0], check: None };
        let mut case = Case {
            device: "cpu".into(),
            operation: "matmul".into(),
            name: "x".into(),
            dtype: "f32".into(),
            unit: "FLOP".into(),
            amount: 1.0,
            flops: 200.0,
            bytes: 10.0,
            sets: 1,
            contestants: Vec::new(),
            absent: Vec::new(),
            about: Map::new(),
        };
        let machines = [machine];
        let attained = |case: &Case| case.attained(&machines, &contestant);
        assert_eq!(attained(&case), Some(Attained { fraction: 0.5, by_memory: false }));
        case.bytes = 30.0;
        assert_eq!(attained(&case), Some(Attained { fraction: 0.75, by_memory: true }));
        case.device = "cuda".into();
        assert_eq!(attained(&case), None);
    }
}
