//! Fetches the compilers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The packages, pinned: the newest of 13.0, which the driver of branch 580 runs; disassemblers of 13.2, the first on PyPI, read their files.
const PACKAGES: &[&str] = &[
    "nvidia-cuda-nvrtc==13.0.88",
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cuobjdump==13.2.86",
    "nvidia-cuda-nvdisasm==13.2.86",
];

/// Names the packages that a folder holds; written last, so that what a broken installation left is not taken for one.
const STAMP: &str = "packages.txt";

/// Where the packages put everything.
pub fn home(toolkit: &Path) -> PathBuf {
    toolkit.join("nvidia/cu13")
}

/// Whether the folder holds all packages, in these versions.
pub fn installed(toolkit: &Path) -> bool {
    fs::read_to_string(toolkit.join(STAMP)).is_ok_and(|stamp| stamp == PACKAGES.join("\n"))
}

/// Puts the packages into the folder, unless they are there.
pub fn install(toolkit: &Path) -> Result<()> {
    if installed(toolkit) {
        println!("the compilers are in {}", toolkit.display());
        return Ok(());
    }
    let wheels = toolkit.join("wheels");
    if toolkit.exists() {
        fs::remove_dir_all(toolkit).with_context(|| {
            format!("an incomplete installation in {} cannot be removed", toolkit.display())
        })?;
    }
    fs::create_dir_all(&wheels).with_context(|| format!("{} cannot be made", wheels.display()))?;
    println!("fetching {}", PACKAGES.join(", "));
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--retries=2",
        "--timeout=20",
        "--only-binary=:all:",
        "--dest",
    ]);
    run(pip.arg(&wheels).args(PACKAGES), "pip could not fetch the compilers from PyPI")?;
    let mut count = 0;
    for entry in fs::read_dir(&wheels)? {
        let mut unzip = Command::new("python3");
        run(
            unzip.args(["-m", "zipfile", "-e"]).arg(entry?.path()).arg(toolkit),
            "a wheel could not be unpacked",
        )?;
        count += 1;
    }
    if count != PACKAGES.len() {
        bail!("pip fetched {count} wheels where {} were asked for", PACKAGES.len());
    }
    fs::remove_dir_all(&wheels)?;
    make_executable(toolkit)?;
    fs::write(toolkit.join(STAMP), PACKAGES.join("\n"))?;
    println!("the compilers are in {}", toolkit.display());
    Ok(())
}

fn run(command: &mut Command, failure: &str) -> Result<()> {
    let output = command.output().with_context(|| format!("{failure}: python3 does not start"))?;
    if !output.status.success() {
        bail!("{failure}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Archives of wheels do not say which files are programs.
fn make_executable(toolkit: &Path) -> Result<()> {
    for folder in ["bin", "nvvm/bin"] {
        let folder = home(toolkit).join(folder);
        for entry in fs::read_dir(&folder)
            .with_context(|| format!("the packages brought no {}", folder.display()))?
        {
            let path = entry?.path();
            #[cfg(unix)]
            if path.is_file() {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            }
        }
    }
    Ok(())
}
