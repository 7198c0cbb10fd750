//! Controlled experiments on what process rewards do: [`mistakes`] and [`efficiency`].
//!
//! A study repeats runs over seeds in a folder of its own and ends in `result.json` (everything that was found, with the configuration,
//! the machine and the program's version), `result.md` (tables) and `report.html`. What is finished is kept: a study that was
//! stopped or killed goes on with the rest.
//!
//! ```text
//! config.toml     as resolved
//! seed-N/         runs and finished parts of a seed
//! result.json     everything
//! result.md       the tables
//! report.html     the tables and plots, to open in a browser
//! *.svg           the plots
//! ```

pub mod efficiency;
pub mod mistakes;
mod page;
pub mod statistics;
mod svg;
mod table;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use prime_runtime::checkpoint::{self, FolderLock};
use serde_json::json;

use crate::config::Config;
use crate::run::{self, End, folder::RunFolder};

/// Which study.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Study {
    /// What a PRM gives to mistakes and repairs.
    Mistakes,
    /// PRIME against RL on outcomes alone.
    Efficiency,
}

impl Study {
    /// Its name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Study::Mistakes => "mistakes",
            Study::Efficiency => "efficiency",
        }
    }
}

/// Settings under which a study ends within three minutes on two cores: to see that it works, not what it finds.
pub const QUICK: &str = include_str!("../../configs/study-quick.toml");

/// A study's folder, locked against other programs.
pub struct StudyFolder<'a> {
    path: &'a Path,
    _lock: FolderLock,
}

impl<'a> StudyFolder<'a> {
    /// Begins a study in a new folder, or goes on with one that was begun with the same configuration.
    ///
    /// # Errors
    /// When another program writes to it, it was begun with other settings, or it was begun and `resume` is not asked for.
    pub fn open(path: &'a Path, config: &Config, resume: bool) -> Result<Self> {
        std::fs::create_dir_all(path)
            .with_context(|| format!("cannot create the study's folder {}", path.display()))?;
        let lock = FolderLock::acquire(path)?;
        let file = path.join("config.toml");
        match (file.exists(), resume) {
            (false, false) => {
                checkpoint::atomic_write(&file, config.to_toml()?.as_bytes())?;
            }
            (true, false) => bail!(
                "there is a study in {} already: go on with it with --resume, or choose another folder with --out",
                path.display()
            ),
            (false, true) => bail!(
                "there is no study to go on with in {}: it has no config.toml. Start one without --resume",
                path.display()
            ),
            (true, true) => {
                let begun = Config::load_resolved(&file)?;
                // The number of threads changes no result.
                let same = Config { threads: config.threads, ..begun } == *config;
                ensure!(
                    same,
                    "the study in {} was begun with other settings: go on without changing them, or start one of its own with --out",
                    path.display()
                );
            }
        }
        Ok(StudyFolder { path, _lock: lock })
    }

    /// Runs what is left of a study. Returns its tables; none when it was interrupted.
    ///
    /// # Errors
    /// When a run fails or the disk refuses.
    pub fn run(&self, study: Study, config: &Config) -> Result<Option<String>> {
        let (found, tables, (page, pictures)) = match study {
            Study::Mistakes => {
                let Some(found) = mistakes::run(config, self.path)? else { return Ok(None) };
                let tables = mistakes::tables(&found);
                let page = page::mistakes(config, &tables, &found)?;
                (found, tables, page)
            }
            Study::Efficiency => {
                let Some(seeds) = self.efficiency(config)? else { return Ok(None) };
                let findings = efficiency::findings(&seeds);
                let tables = efficiency::tables(&seeds, &findings);
                let found = json!({ "findings": findings, "seeds": seeds });
                let page = page::efficiency(config, &seeds, &findings, &tables, &found)?;
                (found, tables, page)
            }
        };
        let result = json!({
            "study": study.name(),
            "version": env!("CARGO_PKG_VERSION"),
            "config": config.to_toml()?,
            "found": found,
        });
        let text = serde_json::to_string_pretty(&result)? + "\n";
        checkpoint::atomic_write(self.path.join("result.json"), text.as_bytes())?;
        let markdown = tables.iter().map(table::Table::to_markdown).collect::<Vec<_>>().join("\n");
        checkpoint::atomic_write(self.path.join("result.md"), markdown.as_bytes())?;
        checkpoint::atomic_write(self.path.join("report.html"), page.to_html()?.as_bytes())?;
        for picture in pictures {
            checkpoint::atomic_write(self.path.join(picture.name), picture.text.as_bytes())?;
        }
        Ok(Some(markdown))
    }

    /// A run with its comparison for each seed.
    fn efficiency(&self, config: &Config) -> Result<Option<Vec<efficiency::SeedCourses>>> {
        let mut seeds = Vec::new();
        for seed in (0..config.study.seeds).map(|index| config.seed + index) {
            let path = self.path.join(format!("seed-{seed}"));
            let overrides = [
                format!("seed={seed}"),
                "train.compare=true".into(),
                "train.outcome_only=false".into(),
            ];
            let config = Config::load_over(&config.to_toml()?, &[], &overrides)?;
            if !path.join("result.json").exists() {
                let mut folder = if path.join("config.toml").exists() {
                    RunFolder::resume(&path, Some(&config))?.0
                } else {
                    RunFolder::create(&path, &config)?
                };
                eprintln!("{}", path.display());
                if matches!(run::train(&config, &mut folder)?, End::Interrupted(_)) {
                    return Ok(None);
                }
            }
            seeds.push(efficiency::SeedCourses::read(&path, seed)?);
        }
        Ok(Some(seeds))
    }
}
