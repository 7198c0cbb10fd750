//! `prime watch`: a run under way, in the terminal.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use prime_runtime::terminal::{self, Keys};

use super::{Failure, files};
use crate::report::data::{self, Metrics, Run};
use crate::report::runs::duration;
use crate::report::stage_name;
use crate::run::session::{self, Standing};

/// Watch a run that is under way
///
/// A panel that refreshes: stage, step, time left, curves of accuracy, length, entropy and the PRM's accuracy, where the time goes, and the
/// last steps. It ends with the run, or with q or Ctrl-C; the run itself is not touched. Where the output is no terminal, lines come
/// instead.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  prime watch runs/first
  prime watch runs/first --every 10 > progress.txt")]
pub(super) struct WatchArgs {
    /// The run's folder
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Seconds between looks
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
}

/// Set by Ctrl-C.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The RL stages' metrics that have a curve, and how people call them.
const CURVES: [(&str, &str); 6] = [
    ("reward/accuracy", "accuracy"),
    ("response/length", "length"),
    ("policy/entropy", "entropy"),
    ("prm/pairwise_accuracy", "PRM accuracy"),
    ("sft/loss", "loss"),
    ("prm/loss", "PRM loss"),
];

pub(super) fn run(args: &WatchArgs) -> Result<(), Failure> {
    let mut watched = Watched::open(&args.run)?;
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::SeqCst))
        .context("cannot catch Ctrl-C")?;
    let every = Duration::from_secs(args.every);
    if std::io::stdout().is_terminal() {
        watch_panel(&mut watched, every)?;
    } else {
        watch_lines(&mut watched, every)?;
    }
    Ok(())
}

fn watch_panel(watched: &mut Watched, every: Duration) -> Result<()> {
    let screen = Screen::enter()?;
    let last = loop {
        let standing = watched.look()?;
        let (columns, rows) = terminal::size().unwrap_or((80, 24));
        let lines = watched.panel(&standing, columns, rows);
        screen.show(&lines)?;
        if standing != Standing::UnderWay || screen.wait(every) {
            break lines;
        }
    };
    drop(screen);
    // What was seen last stays, without the hint.
    files::print(last[..last.len() - 1].join("\n") + "\n")
}

fn watch_lines(watched: &mut Watched, every: Duration) -> Result<()> {
    let mut said = String::new();
    loop {
        let standing = watched.look()?;
        let line = watched.line(&standing);
        if line != said {
            files::print(format!("{line}\n"))?;
            said = line;
        }
        if standing != Standing::UnderWay {
            return Ok(());
        }
        let begun = Instant::now();
        while begun.elapsed() < every {
            if INTERRUPTED.load(Ordering::SeqCst) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100).min(every));
        }
    }
}

/// The terminal's other screen, and its keys. As they were, once this is dropped.
struct Screen {
    keys: Option<Keys>,
}

impl Screen {
    fn enter() -> Result<Screen> {
        files::print("\x1b[?1049h\x1b[?25l")?;
        Ok(Screen { keys: Keys::take() })
    }

    fn show(&self, lines: &[String]) -> Result<()> {
        let mut text = "\x1b[H".to_owned();
        for (i, line) in lines.iter().enumerate() {
            text += if i == 0 { "" } else { "\r\n" };
            text += line;
            text += "\x1b[K";
        }
        files::print(text + "\x1b[J")
    }

    /// Waits; whether the person has seen enough.
    fn wait(&self, time: Duration) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < time {
            let key = match &self.keys {
                Some(keys) => keys.pressed(Duration::from_millis(100)),
                None => {
                    std::thread::sleep(Duration::from_millis(100));
                    None
                }
            };
            if matches!(key, Some(b'q' | b'Q')) || INTERRUPTED.load(Ordering::SeqCst) {
                return true;
            }
        }
        false
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut output = std::io::stdout();
        let _ = output.write_all(b"\x1b[?25h\x1b[?1049l");
        let _ = output.flush();
    }
}

/// A stage of the run: its name, and its steps where their number is known.
struct Stage {
    name: &'static str,
    steps: u64,
}

/// A run and what has been read of it.
struct Watched {
    folder: PathBuf,
    settings: BTreeMap<String, String>,
    stages: Vec<Stage>,
    metrics: Metrics,
    /// The stage of the newest line.
    current: String,
    /// Bytes of `metrics.jsonl` that have been read, up to the end of a line.
    read: u64,
}

impl Watched {
    fn open(folder: &Path) -> Result<Watched> {
        let settings = Run::settings(folder)?;
        let number =
            |key: &str| settings.get(key).and_then(|value| value.parse().ok()).unwrap_or(0);
        let is = |key: &str| settings.get(key).is_some_and(|value| value == "true");
        let (steps, critic) = (number("train.steps"), number("critic.warmup_batches"));
        let warm_up = number("prm.warmup_batches").max(critic);
        let mut stages = vec![Stage { name: "sft", steps: number("sft.steps") }];
        if is("train.outcome_only") {
            stages.push(Stage { name: "critic_warmup", steps: critic });
            stages.push(Stage { name: "outcome_only", steps });
        } else {
            stages.push(Stage { name: "prm_warmup", steps: warm_up });
            stages.push(Stage { name: "prime", steps });
            if is("train.compare") {
                stages.push(Stage { name: "outcome_only", steps: steps + warm_up });
            }
        }
        stages.retain(|stage| stage.steps > 0);
        let metrics = Metrics::new();
        Ok(Watched {
            folder: folder.to_path_buf(),
            settings,
            stages,
            metrics,
            current: String::new(),
            read: 0,
        })
    }

    /// Reads what is new. A run that was resumed has cut its metrics back: they are read anew.
    fn look(&mut self) -> Result<Standing> {
        // First, so that what was written before the end is read.
        let standing = session::standing(&self.folder)?;
        let path = self.folder.join("metrics.jsonl");
        let shown = || format!("cannot read {}", path.display());
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(standing),
            file => file.with_context(shown)?,
        };
        if file.metadata().with_context(shown)?.len() < self.read {
            (self.read, self.metrics) = (0, Metrics::new());
        }
        file.seek(SeekFrom::Start(self.read)).with_context(shown)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(shown)?;
        // The last line may be being written.
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        for line in bytes[..whole].split(|&byte| byte == b'\n') {
            if let Some(stage) =
                data::add_line(&mut self.metrics, line).filter(|stage| stage != "eval")
            {
                self.current = stage;
            }
        }
        self.read += whole as u64;
        Ok(standing)
    }

    fn series(&self, stage: &str, metric: &str) -> &[(u64, f64)] {
        self.metrics.get(stage).and_then(|metrics| metrics.get(metric)).map_or(&[], Vec::as_slice)
    }

    fn last(&self, metric: &str) -> Option<f64> {
        self.series(&self.current, metric).last().map(|&(_, value)| value)
    }

    /// Steps made of a stage.
    fn made(&self, stage: &str) -> u64 {
        self.series(stage, "seconds/step").last().map_or(0, |&(step, _)| step)
    }

    fn total(&self) -> u64 {
        self.stages.iter().find(|stage| stage.name == self.current).map_or(0, |stage| stage.steps)
    }

    /// Seconds until the stage's last step, by the median of its last steps.
    fn left(&self) -> Option<u64> {
        let steps = self.series(&self.current, "seconds/step");
        let mut last: Vec<f64> = steps
            .iter()
            .rev()
            .take(21)
            .map(|&(_, seconds)| seconds)
            .filter(|seconds| seconds.is_finite())
            .collect();
        last.sort_by(f64::total_cmp);
        let median = last.get(last.len() / 2)?;
        Some((median * self.total().checked_sub(self.made(&self.current))? as f64).round() as u64)
    }

    /// One line of progress.
    fn line(&self, standing: &Standing) -> String {
        let how = how(standing);
        if self.current.is_empty() {
            return format!("{how}: no step yet");
        }
        let mut text = format!("{} {}", stage_name(&self.current), self.made(&self.current));
        if self.total() > 0 {
            text += &format!("/{}", self.total());
        }
        for (metric, name) in CURVES {
            if let Some(value) = self.last(metric) {
                text += &format!(" {name} {}", short(value));
            }
        }
        if let Some(seconds) = self.last("seconds/step") {
            text += &format!(" {} s", short(seconds));
        }
        match standing {
            Standing::UnderWay => match self.left() {
                Some(left) => text + &format!(", {} left", duration(left)),
                None => text,
            },
            _ => format!("{how}: {text}"),
        }
    }

    /// The panel, of at most so many columns and rows; its last line is the hint.
    fn panel(&self, standing: &Standing, columns: usize, rows: usize) -> Vec<String> {
        let get = |key: &str| self.settings.get(key).map_or("?", String::as_str);
        let mut lines = vec![
            format!("{}  {}", self.folder.display(), how(standing)),
            format!("task {}, seed {}, {}", get("task.name"), get("seed"), get("device")),
            String::new(),
        ];
        let width = columns.saturating_sub(44).clamp(8, 40);
        let begun = self.stages.iter().rposition(|stage| self.made(stage.name) > 0).unwrap_or(0);
        for (place, stage) in self.stages.iter().enumerate() {
            let made = self.made(stage.name).min(stage.steps);
            if made == 0 && place < begun {
                // What a setting could have asked for, and this run had no use for.
                continue;
            }
            let full = (made * width as u64 / stage.steps.max(1)) as usize;
            let bar = "█".repeat(full) + &"·".repeat(width - full);
            let is_current =
                stage.name == self.current && made < stage.steps && *standing == Standing::UnderWay;
            let left = if is_current {
                self.left().map(|left| format!("  {} left", duration(left)))
            } else {
                None
            };
            lines.push(format!(
                "{:<12} {bar} {made}/{}{}",
                stage_name(stage.name),
                stage.steps,
                left.unwrap_or_default()
            ));
        }
        if !self.current.is_empty() && self.total() == 0 {
            lines.push(format!("{:<12} {}", stage_name(&self.current), self.made(&self.current)));
        }
        let scores = self.scores();
        if !scores.is_empty() {
            lines.extend([String::new(), format!("held-out     {scores}")]);
        }
        lines.push(String::new());
        for (metric, name) in CURVES {
            let series = self.series(&self.current, metric);
            if let Some(&(_, last)) = series.last() {
                lines.push(format!("{name:<12} {} {}", sparkline(series, width), short(last)));
            }
        }
        if let Some(times) = self.times() {
            lines.extend([String::new(), times]);
        }
        let room = rows.saturating_sub(lines.len() + 3).min(8);
        if room > 0 && self.made(&self.current) > 0 {
            lines.push(String::new());
            lines.extend(self.last_steps(room));
        }
        lines.truncate(rows.saturating_sub(2));
        lines.extend([String::new(), "q ends the watch; the run goes on".to_owned()]);
        lines
            .iter()
            .map(|line| {
                line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(columns).collect()
            })
            .collect()
    }

    /// Mean scores of the evaluations made so far, the newest last.
    fn scores(&self) -> String {
        let mut found = Vec::new();
        for stage in ["start", "prime", "outcome_only"] {
            let series = self.series("eval", &format!("{stage}/mean_score"));
            found.extend(series.last().map(|&(step, score)| match step {
                0 => format!("{} {:.1} %", stage_name(stage), 100.0 * score),
                step => format!("{} {step}: {:.1} %", stage_name(stage), 100.0 * score),
            }));
        }
        found.join("   ")
    }

    /// The phases of the last steps, as shares.
    fn times(&self) -> Option<String> {
        let mean = |metric: &str| -> f64 {
            let last: Vec<f64> = self
                .series(&self.current, metric)
                .iter()
                .rev()
                .take(20)
                .map(|&(_, value)| value)
                .collect();
            last.iter().sum::<f64>() / last.len().max(1) as f64
        };
        let whole = mean("seconds/step");
        let phases = self
            .metrics
            .get(&self.current)?
            .keys()
            .filter(|name| name.starts_with("seconds/") && *name != "seconds/step");
        let mut phases: Vec<(f64, &str)> =
            phases.map(|name| (mean(name), &name["seconds/".len()..])).collect();
        phases.sort_by(|a, b| b.0.total_cmp(&a.0));
        let shares: Vec<String> = phases
            .iter()
            .map(|(seconds, name)| format!("{name} {:.0} %", 100.0 * seconds / whole.max(1e-12)))
            .collect();
        Some(format!("a step       {} s   {}", short(whole), shares.join("  ")))
    }

    fn last_steps(&self, count: usize) -> Vec<String> {
        let steps = self.series(&self.current, "seconds/step");
        let shown = &steps[steps.len().saturating_sub(count)..];
        let at = |metric: &str, step: u64| {
            let series = self.series(&self.current, metric);
            series.iter().rev().take(count + 1).find(|(at, _)| *at == step).map(|&(_, value)| value)
        };
        shown
            .iter()
            .map(|&(step, seconds)| {
                let mut text = format!("{step:>6}");
                for (metric, name) in
                    [CURVES[0], ("filter/kept", "kept"), CURVES[1], CURVES[3], CURVES[4]]
                {
                    if let Some(value) = at(metric, step) {
                        text += &format!("  {name} {}", short(value));
                    }
                }
                text + &format!("  {} s", short(seconds))
            })
            .collect()
    }
}

fn how(standing: &Standing) -> String {
    match standing {
        Standing::UnderWay => "under way".to_owned(),
        Standing::Ended(how) => how.clone(),
        Standing::Gone => "its process is gone; go on with prime train --resume".to_owned(),
    }
}

/// Three digits or so.
fn short(value: f64) -> String {
    match value.abs() {
        size if !size.is_finite() => "–".to_owned(),
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        size if size >= 1e-3 => format!("{value:.3}"),
        _ => format!("{value:.1e}"),
    }
}

/// A curve of `width` characters, each the mean of its share of the steps.
fn sparkline(series: &[(u64, f64)], width: usize) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let values: Vec<f64> =
        series.iter().map(|&(_, value)| value).filter(|value| value.is_finite()).collect();
    let places = values.len().min(width);
    let means: Vec<f64> = (0..places)
        .map(|place| {
            let part = &values[place * values.len() / places..(place + 1) * values.len() / places];
            part.iter().sum::<f64>() / part.len() as f64
        })
        .collect();
    let low = means.iter().copied().fold(f64::INFINITY, f64::min);
    let high = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let level = |mean: f64| {
        if high > low { ((mean - low) / (high - low) * 7.0).round() as usize } else { 3 }
    };
    let drawn: String = means.iter().map(|&mean| LEVELS[level(mean).min(7)]).collect();
    format!("{drawn:<width$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(folder: &Path, lines: &str) -> Watched {
        let config = "seed = 1\n[train]\nsteps = 100\ncompare = true\n[prm]\nwarmup_batches = 2\n[sft]\nsteps = 3\n";
        std::fs::write(folder.join("config.toml"), config).unwrap();
        std::fs::write(folder.join("metrics.jsonl"), lines).unwrap();
        Watched::open(folder).unwrap()
    }

    fn line(stage: &str, step: u64) -> String {
        format!(
            "{{\"stage\":\"{stage}\",\"step\":{step},\"reward/accuracy\":0.{step:03},\"filter/kept\":12,\"seconds/rollout\":1.5,\"seconds/step\":2.0}}\n"
        )
    }

    #[test]
    fn a_panel_fits_the_terminal_and_says_where_the_run_stands() {
        let folder = tempfile::tempdir().unwrap();
        let lines: String = (1..=50).map(|step| line("prime", step)).collect();
        let mut watched = watched(folder.path(), &lines);
        assert_eq!(watched.look().unwrap(), Standing::UnderWay);
        for (columns, rows) in [(80, 24), (40, 10), (200, 60), (20, 3)] {
            let panel = watched.panel(&Standing::UnderWay, columns, rows);
            assert!(panel.len() <= rows.max(2), "{columns} x {rows}: {}", panel.len());
            assert!(panel.iter().all(|line| line.chars().count() <= columns));
        }
        let panel = watched.panel(&Standing::UnderWay, 80, 24).join("\n");
        for part in [
            "50/100  1 min 40 s left",
            "accuracy",
            "0.050",
            "rollout 75 %",
            "kept 12",
            "outcome-only",
            "0/102",
            "q ends",
        ] {
            assert!(panel.contains(part), "{part} in\n{panel}");
        }
        assert_eq!(
            watched.line(&Standing::UnderWay),
            "PRIME 50/100 accuracy 0.050 2 s, 1 min 40 s left"
        );
        assert!(
            watched.line(&Standing::Ended("complete".into())).starts_with("complete: PRIME 50/100")
        );
    }

    #[test]
    fn only_whole_lines_are_read_and_metrics_that_were_cut_back_are_read_anew() {
        let folder = tempfile::tempdir().unwrap();
        let first = line("sft", 1);
        let mut watched = watched(folder.path(), &(first.clone() + "{\"stage\":\"sft\",\"st"));
        watched.look().unwrap();
        assert_eq!(watched.made("sft"), 1);
        std::fs::write(
            folder.path().join("metrics.jsonl"),
            first.clone() + &line("sft", 2) + &line("sft", 3),
        )
        .unwrap();
        watched.look().unwrap();
        assert_eq!((watched.made("sft"), watched.series("sft", "filter/kept").len()), (3, 3));
        std::fs::write(folder.path().join("metrics.jsonl"), first).unwrap();
        watched.look().unwrap();
        assert_eq!((watched.made("sft"), watched.series("sft", "filter/kept").len()), (1, 1));
    }

    #[test]
    fn a_sparkline_has_the_width_it_was_given_and_shows_the_course() {
        let rising: Vec<(u64, f64)> = (0..8).map(|i| (i, i as f64)).collect();
        assert_eq!(sparkline(&rising, 8), "▁▂▃▄▅▆▇█");
        assert_eq!(sparkline(&rising[..2], 4), "▁█  ");
        assert_eq!(sparkline(&[(1, 5.0), (2, f64::NAN)], 3), "▄  ");
        let long: Vec<(u64, f64)> = (0..1000).map(|i| (i, i as f64)).collect();
        assert_eq!(sparkline(&long, 8), "▁▂▃▄▅▆▇█");
    }
}
