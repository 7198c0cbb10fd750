//! The file of results while it grows. A kernel that fails takes the device away from its process, and one that hangs never ends: so what is measured is in
//! the file at once, what is being measured stands there as failed until it is done, and a process that finds the file goes on behind it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use prime::bench::results::Found;
use prime::bench::{self, Case, Results, Skipped};
use prime::cli::said;

use crate::suite::now;

/// How the reason of a case that failed begins.
pub const FAILED: &str = "it failed: ";

/// What stands in the file of what has begun and not ended.
const BEGUN: &str = "it failed: the process ended or was stopped while this ran";

/// The longest that a case may take: ten times what the longest is guessed to.
const MOST: Duration = Duration::from_secs(60);

/// Results, and the file that they are in.
pub struct Record {
    /// All that is known.
    pub results: Results,
    path: PathBuf,
    /// Device, operation and title of every case, as their tables are ordered.
    table: Vec<[String; 3]>,
    watch: Watch,
}

/// When what runs now must have ended; nothing where nothing runs.
type Watch = Arc<Mutex<Option<Instant>>>;

impl Record {
    /// A record in a file; with `resume`, one that goes on with what the file holds.
    ///
    /// # Errors
    /// When there is such a file and it cannot be read, or its folder cannot be made.
    pub fn open(path: PathBuf, resume: bool, new: Results) -> Result<Record> {
        // The page goes beside the file under the same name.
        ensure!(
            path.extension().is_none_or(|end| end != "html"),
            "results cannot be written to {}, where the page of them goes; expected a file such as {}",
            path.display(),
            path.with_extension("json").display()
        );
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("the folder {} cannot be made", folder.display()))?;
        }
        let mut results = new;
        if resume
            && path.exists()
            && let Found::Results(found) = bench::load(&path)?
        {
            results = *found;
            // What found no time may find it now.
            results.skipped.retain(|skipped| skipped.why.starts_with(FAILED));
        }
        Ok(Record { results, path, table: Vec::new(), watch: Watch::default() })
    }

    /// Where it is.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Ends the process where something takes too long; what it was stands in the file.
    pub fn watch(&self) {
        let watch = Arc::clone(&self.watch);
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let until = *watch.lock().unwrap_or_else(PoisonError::into_inner);
                if until.is_some_and(|until| Instant::now() > until) {
                    eprintln!("HANGS: not done within {} s, this process ends", MOST.as_secs());
                    // Without the driver's own end, which would wait for the device.
                    std::process::abort();
                }
            }
        });
    }

    /// Whether something was measured, or failed, before.
    pub fn knows(&self, device: &str, operation: &str, title: &str) -> bool {
        self.results.cases.iter().any(|case| {
            case.device == device && case.operation == operation && case.title() == title
        }) || self.failed(device, operation, title).is_some()
    }

    fn failed(&self, device: &str, operation: &str, title: &str) -> Option<usize> {
        self.results.skipped.iter().position(|skipped| {
            skipped.device == device
                && skipped.operation == operation
                && skipped.name == title
                && skipped.why.starts_with(FAILED)
        })
    }

    /// Says in which place of the tables a case belongs.
    pub fn place(&mut self, device: &str, operation: &str, title: &str) {
        self.table.push([device, operation, title].map(str::to_owned));
    }

    /// Something begins: until it ends, the file says that it failed.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn begin(&mut self, device: &str, operation: &str, title: &str) -> Result<()> {
        self.skip(device, operation, title, BEGUN.to_owned());
        self.save()?;
        *self.watch.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + MOST);
        Ok(())
    }

    /// What had begun has ended.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn end(
        &mut self,
        device: &str,
        operation: &str,
        title: &str,
        outcome: Result<Option<Case>>,
    ) -> Result<()> {
        *self.watch.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(at) = self.failed(device, operation, title) {
            self.results.skipped.remove(at);
        }
        match outcome {
            Ok(case) => self.results.cases.extend(case),
            Err(error) => {
                let why = said(&error);
                eprintln!("FAILED: {operation}, {title}: {why}");
                self.skip(device, operation, title, format!("{FAILED}{why}"));
            }
        }
        self.save()
    }

    /// Leaves something out.
    pub fn skip(&mut self, device: &str, operation: &str, title: &str, why: String) {
        self.results.skipped.push(Skipped {
            device: device.to_owned(),
            operation: operation.to_owned(),
            name: title.to_owned(),
            why,
        });
    }

    /// Writes the file, its cases in the order of the tables.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&mut self) -> Result<()> {
        let place = |case: &Case| {
            let title = case.title();
            let same = |key: &[String; 3]| {
                key[0] == case.device && key[1] == case.operation && key[2] == title
            };
            self.table.iter().position(same).unwrap_or(usize::MAX)
        };
        self.results.cases.sort_by_cached_key(place);
        self.results.finished = now();
        bench::save(&self.path, &self.results)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Results {
        Results {
            format: bench::results::FORMAT,
            started: now(),
            finished: now(),
            command: "cargo bench".to_owned(),
            commit: "unknown".to_owned(),
            method: String::new(),
            machines: Vec::new(),
            cases: Vec::new(),
            skipped: Vec::new(),
        }
    }

    fn case(name: &str) -> Case {
        Case {
            device: "cuda:0".to_owned(),
            operation: "matmul".to_owned(),
            name: name.to_owned(),
            dtype: "bfloat16".to_owned(),
            unit: "FLOP".to_owned(),
            amount: 1.0,
            flops: 1.0,
            bytes: 0.0,
            sets: 1,
            contestants: Vec::new(),
            absent: Vec::new(),
            about: serde_json::Map::new(),
        }
    }

    #[test]
    fn a_process_that_ends_in_a_case_leaves_it_failed_and_the_next_goes_on_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("below/results.json");
        let titles = ["first, bfloat16", "second, bfloat16", "third, bfloat16"];
        let mut record = Record::open(path.clone(), true, empty()).unwrap();
        for title in titles {
            assert!(!record.knows("cuda:0", "matmul", title));
            record.place("cuda:0", "matmul", title);
        }
        record.begin("cuda:0", "matmul", titles[2]).unwrap();
        record.end("cuda:0", "matmul", titles[2], Ok(Some(case("third")))).unwrap();
        record.skip("cuda:0", "matmul", "fourth, bfloat16", "the time was used up".to_owned());
        record.begin("cuda:0", "matmul", titles[1]).unwrap();
        drop(record);

        let mut record = Record::open(path.clone(), true, empty()).unwrap();
        titles.iter().for_each(|title| record.place("cuda:0", "matmul", title));
        let known = titles.map(|title| record.knows("cuda:0", "matmul", title));
        assert_eq!(known, [false, true, true]);
        assert!(!record.knows("cuda:0", "matmul", "fourth, bfloat16"));
        record.begin("cuda:0", "matmul", titles[0]).unwrap();
        record.end("cuda:0", "matmul", titles[0], Ok(Some(case("first")))).unwrap();
        let Found::Results(found) = bench::load(&path).unwrap() else { panic!("no results") };
        let names: Vec<&str> = found.cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names, ["first", "third"], "in the order of the table");
        let failed: Vec<(&str, &str)> =
            found.skipped.iter().map(|s| (s.name.as_str(), s.why.as_str())).collect();
        assert_eq!(failed, [(titles[1], BEGUN)]);

        let taken = Record::open(path.with_extension("html"), false, empty()).err().unwrap();
        assert!(taken.to_string().ends_with("results.json"), "{taken}");

        // Without `resume` the file is written anew.
        assert!(Record::open(path, false, empty()).unwrap().results.cases.is_empty());
    }
}
