//! Settings of graders: `[grader]` of the configuration.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// What becomes of a response that could not be graded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// It is left out of its group; a group of fewer than two is left out as well.
    #[default]
    DropResponse,
    /// Its whole group is left out.
    DropGroup,
}

/// What happens when the kernel does not offer the sandbox's layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protection {
    /// Programs are refused.
    #[default]
    Required,
    /// Programs run with limits alone. They can then read and delete what the user can.
    Off,
}

/// `[grader]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // `configs/default.toml` documents every key once.
pub struct GraderSettings {
    pub workers: usize,
    pub on_failure: OnFailure,
    pub numeric: NumericSettings,
    pub regex: RegexSettings,
    pub majority: MajoritySettings,
    pub command: CommandSettings,
    pub code: CodeSettings,
}

/// `[grader.numeric]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct NumericSettings {
    pub tolerance: f64,
}

/// `[grader.regex]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct RegexSettings {
    pub pattern: String,
}

/// `[grader.majority]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct MajoritySettings {
    pub by: String,
}

impl Default for MajoritySettings {
    fn default() -> Self {
        MajoritySettings { by: "math".into() }
    }
}

/// `[grader.command]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct CommandSettings {
    pub program: Vec<String>,
    pub deadline: f64,
}

impl Default for CommandSettings {
    fn default() -> Self {
        CommandSettings { program: Vec::new(), deadline: 10.0 }
    }
}

/// `[grader.code]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct CodeSettings {
    pub python: String,
    pub sandbox: Protection,
    pub processor_seconds: f64,
    pub wall_seconds: f64,
    pub total_seconds: f64,
    pub memory_mib: u64,
    pub output_kib: u64,
    pub folder_mib: u64,
    pub open_files: u64,
    pub threads: u64,
    pub max_tests: usize,
    pub tolerance: f64,
}

impl Default for CodeSettings {
    fn default() -> Self {
        CodeSettings {
            python: "python3".into(),
            sandbox: Protection::Required,
            processor_seconds: 5.0,
            wall_seconds: 15.0,
            total_seconds: 60.0,
            memory_mib: 512,
            output_kib: 1024,
            folder_mib: 16,
            open_files: 64,
            threads: 32,
            max_tests: 0,
            tolerance: 1e-6,
        }
    }
}

impl GraderSettings {
    /// Refuses values out of range, by name.
    ///
    /// # Errors
    /// A sentence with the key and what would be right.
    pub fn check(&self) -> Result<()> {
        let code = &self.code;
        let within = |name: &str, value: f64, low: f64, high: f64| {
            ensure!(
                value >= low && value <= high,
                "grader.{name} is {value}, expected {low} to {high}"
            );
            Ok(())
        };
        within("workers", self.workers as f64, 0.0, 1024.0)?;
        within("numeric.tolerance", self.numeric.tolerance, 0.0, 1.0)?;
        within("command.deadline", self.command.deadline, 1e-3, 86_400.0)?;
        within("code.processor_seconds", code.processor_seconds, 0.01, 3600.0)?;
        within("code.wall_seconds", code.wall_seconds, 0.01, 86_400.0)?;
        within("code.total_seconds", code.total_seconds, 0.01, 864_000.0)?;
        within("code.memory_mib", code.memory_mib as f64, 32.0, 1e6)?;
        within("code.output_kib", code.output_kib as f64, 1.0, 1e6)?;
        within("code.folder_mib", code.folder_mib as f64, 1.0, 1e5)?;
        within("code.open_files", code.open_files as f64, 8.0, 1e5)?;
        within("code.threads", code.threads as f64, 1.0, 1e4)?;
        within("code.max_tests", code.max_tests as f64, 0.0, 1e6)?;
        within("code.tolerance", code.tolerance, 0.0, 1.0)?;
        Ok(())
    }
}
