//! Tells the program which commit it is built from, where that is known: runs record it.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let git = |args: &[&str]| -> Option<String> {
        let output = Command::new("git")
            .args(args)
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned())
    };
    // The sources may lie in the repository of something else, or in none.
    let is_ours = git(&["rev-parse", "--show-prefix"]).is_some_and(|prefix| prefix == "prime/");
    if let Some(commit) = git(&["rev-parse", "HEAD"]).filter(|_| is_ours) {
        println!("cargo::rustc-env=PRIME_COMMIT={commit}");
        // Every commit, checkout and reset adds a line to it.
        if let Some(log) =
            git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).exists())
        {
            println!("cargo::rerun-if-changed={log}");
        }
    }
}
