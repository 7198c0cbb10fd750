//! The texts to compile: which there are, for which chips, and the instances that they list.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::chip::{CHIPS, Chip};

/// One `.cu` file.
pub struct Source {
    /// Its path below `kernels`, as the table names it.
    pub name: String,
    /// Its text.
    pub text: String,
    /// The instances that it lists, in order.
    pub instances: Vec<String>,
}

impl Source {
    fn read(root: &Path, path: &Path) -> Result<Source> {
        let name = path.strip_prefix(root.join("kernels"))?.to_string_lossy().into_owned();
        let text = fs::read_to_string(path)
            .with_context(|| format!("{} cannot be read", path.display()))?;
        let instances = instances(&text).with_context(|| name.clone())?;
        if instances.is_empty() {
            bail!(
                "{name} lists no instance: every kernel that a launcher asks for has a line INSTANCE(...)"
            );
        }
        Ok(Source { name, text, instances })
    }

    /// The chips it is for: files named for Hopper hold instructions that no other chip has, and so may the emulator's tests.
    pub fn chips(&self) -> Vec<&'static Chip> {
        let hopper = self.name.ends_with("_sm90.cu") || self.name.starts_with("emulator/");
        CHIPS.iter().filter(|chip| !hopper || chip.name == "sm_90a").collect()
    }

    /// Those of the headers that it includes, itself or through others.
    pub fn headers(&self, all: &[(String, String)]) -> Vec<(String, String)> {
        let mut found: Vec<(String, String)> = Vec::new();
        let mut texts = vec![self.text.as_str()];
        while let Some(text) = texts.pop() {
            for name in includes(text) {
                if let Some(header) = all.iter().find(|(other, _)| other == name)
                    && !found.contains(header)
                {
                    found.push(header.clone());
                    texts.push(&header.1);
                }
            }
        }
        found.sort();
        found
    }
}

/// The names that a text includes.
fn includes(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        line.trim_start()
            .strip_prefix("#include")?
            .trim_start()
            .strip_prefix('"')?
            .split('"')
            .next()
    })
}

/// The expressions of the lines `INSTANCE(expression)`.
fn instances(text: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let Some(rest) = line.trim_start().strip_prefix("INSTANCE(") else { continue };
        let code = rest.split("//").next().unwrap_or_default().trim_end();
        let Some(expression) = code.strip_suffix(')') else {
            bail!("line {}: INSTANCE(...) stands in a line of its own", number + 1);
        };
        if found.iter().any(|other| other == expression) {
            bail!("line {}: {expression} is listed twice", number + 1);
        }
        found.push(expression.to_owned());
    }
    Ok(found)
}

fn files_of(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in
        fs::read_dir(folder).with_context(|| format!("{} cannot be listed", folder.display()))?
    {
        let path = entry?.path();
        if path.is_dir() {
            files_of(&path, extension, found)?;
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(())
}

/// All texts with instances: the rooms', the prelude's own check, and what tests the emulated device, but not what breaks rules to test that it
/// is seen.
pub fn all(root: &Path) -> Result<Vec<Source>> {
    let mut files = Vec::new();
    files_of(&root.join("kernels/prelude"), "cu", &mut files)?;
    files_of(&root.join("kernels/emulator"), "cu", &mut files)?;
    files_of(&root.join("kernels/src"), "cu", &mut files)?;
    files.retain(|path| {
        !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("faults"))
    });
    files.iter().map(|path| Source::read(root, path)).collect()
}

/// The headers by the names that they are included by: the prelude's, and headers in the rooms.
pub fn headers(root: &Path) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    files_of(&root.join("kernels/prelude"), "cuh", &mut files)?;
    files
        .iter()
        .map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok((
                name,
                fs::read_to_string(path)
                    .with_context(|| format!("{} cannot be read", path.display()))?,
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_read_with_commas_and_comments() {
        let text = "INSTANCE(a<float, 4>)\n  INSTANCE(b) // why\n// INSTANCE(c)\n";
        assert_eq!(instances(text).unwrap(), ["a<float, 4>", "b"]);
    }

    #[test]
    fn headers_are_found_through_headers_and_no_others() {
        let header = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        let all = [header("a.h", ""), header("b.h", "#include \"a.h\""), header("c.h", "")];
        let text = "#include \"b.h\"\n".to_owned();
        let source = Source { name: String::new(), text, instances: Vec::new() };
        assert_eq!(source.headers(&all), all[..2]);
    }

    #[test]
    fn instances_over_two_lines_or_twice_are_refused() {
        assert!(instances("INSTANCE(a<float,\n4>)").is_err());
        assert!(instances("INSTANCE(a)\nINSTANCE(a)").is_err());
    }
}
