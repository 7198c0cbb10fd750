//! Compiles the emulated device, and every `.cu` file as C++ for it, when the feature `emulated` is on.
//!
//! An object is kept under a name made of all that went into it (its text, the headers, the compiler and its flags), so that a change to one
//! `.cu` file compiles that file and nothing else.

#[cfg(not(feature = "emulated"))]
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}

#[cfg(feature = "emulated")]
fn main() {
    if let Err(message) = emulated::build() {
        eprintln!("{message}");
        std::process::exit(1);
    }
}

#[cfg(feature = "emulated")]
mod emulated {
    use std::collections::hash_map::DefaultHasher;
    use std::fs;
    use std::hash::{Hash, Hasher};
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::Mutex;

    /// One file to compile.
    struct Unit {
        path: PathBuf,
        /// The symbol that keeps a `.cu` file's instances in the program.
        symbol: Option<String>,
    }

    pub fn build() -> Result<(), String> {
        let out = PathBuf::from(std::env::var("OUT_DIR").map_err(|_| "cargo sets OUT_DIR")?);
        let compiler = compiler()?;

        let mut units = Vec::new();
        for path in files("emulator", "cpp")? {
            units.push(Unit { path, symbol: None });
        }
        let mut texts = files("src", "cu")?;
        if cfg!(feature = "emulator-tests") {
            texts.extend(files("emulator/tests", "cu")?);
        }
        for path in texts {
            let symbol = format!("prime_unit_{}", symbol_of(&path));
            units.push(Unit { path, symbol: Some(symbol) });
        }
        let table = out.join("units.cpp");
        let symbols: Vec<&str> = units.iter().filter_map(|unit| unit.symbol.as_deref()).collect();
        write_if_new(&table, &table_of(&symbols))?;
        units.push(Unit { path: table, symbol: None });

        let headers =
            [files("emulator", "hpp")?, files("emulator", "h")?, files("prelude", "cuh")?];
        let mut common = DefaultHasher::new();
        format!("{:?} {:?}", compiler.path(), compiler.args()).hash(&mut common);
        for header in headers.iter().flatten() {
            read(header)?.hash(&mut common);
        }
        let objects = compile(&compiler, &units, common.finish(), &out)?;

        let mut archive = cc::Build::new();
        archive.cpp(true).cargo_warnings(false).objects(objects);
        archive.try_compile("prime_emulator").map_err(|error| {
            format!("the emulated device was compiled but cannot be archived: {error}")
        })
    }

    fn compiler() -> Result<cc::Tool, String> {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").opt_level(2).debug(false).cargo_warnings(false).pic(true);
        build.include("emulator").include("prelude").define("PRIME_EMULATED", "1");
        build
            .warnings(false)
            .flag("-fno-strict-aliasing")
            .flag_if_supported("-Wno-unknown-pragmas");
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx2")
            && std::is_x86_feature_detected!("fma")
            && std::is_x86_feature_detected!("bmi2")
            && std::is_x86_feature_detected!("lzcnt")
            && std::is_x86_feature_detected!("f16c")
        {
            build.flag_if_supported("-march=x86-64-v3");
        }
        let compiler = build.try_get_compiler().map_err(|error| no_compiler(&error.to_string()))?;
        match compiler.to_command().arg("--version").output() {
            Ok(output) if output.status.success() => Ok(compiler),
            Ok(output) => Err(no_compiler(&String::from_utf8_lossy(&output.stderr))),
            Err(error) => Err(no_compiler(&format!("{}: {error}", compiler.path().display()))),
        }
    }

    fn no_compiler(reason: &str) -> String {
        format!(
            "the feature `emulated` of prime-kernels compiles C++17, and no C++ compiler was found ({}); install one (g++ 12 or newer, clang 14 or \
             newer), or name one in the variable CXX, or build without the feature",
            reason.trim()
        )
    }

    /// The files of a folder and the folders below it that have an extension, in order; each is watched for changes. Folders of tests are
    /// taken only when asked for themselves.
    fn files(folder: &str, extension: &str) -> Result<Vec<PathBuf>, String> {
        println!("cargo:rerun-if-changed={folder}");
        let mut found = Vec::new();
        let mut folders = vec![PathBuf::from(folder)];
        while let Some(folder) = folders.pop() {
            let entries =
                fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
            for entry in entries {
                let path = entry.map_err(|error| format!("{}: {error}", folder.display()))?.path();
                if path.is_dir() && !path.ends_with("tests") {
                    folders.push(path);
                } else if path.extension().is_some_and(|found| found == extension) {
                    println!("cargo:rerun-if-changed={}", path.display());
                    found.push(path);
                }
            }
        }
        found.sort();
        Ok(found)
    }

    fn symbol_of(path: &Path) -> String {
        let text = path.with_extension("").display().to_string();
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
    }

    fn table_of(symbols: &[&str]) -> String {
        let mut text = String::from("extern \"C\" {\n");
        for symbol in symbols {
            text += &format!("extern const char {symbol};\n");
        }
        text += "extern const void *const prime_emulator_units[];\nconst void *const prime_emulator_units[] = {\n";
        for symbol in symbols {
            text += &format!("&{symbol},\n");
        }
        text + "nullptr};\n}\n"
    }

    /// Compiles what has no object yet, on all cores; returns the objects of all units.
    fn compile(
        compiler: &cc::Tool,
        units: &[Unit],
        common: u64,
        out: &Path,
    ) -> Result<Vec<PathBuf>, String> {
        let folder = out.join("objects");
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let mut objects = Vec::new();
        let mut waiting = Vec::new();
        for unit in units {
            let mut hasher = DefaultHasher::new();
            (common, read(&unit.path)?, &unit.symbol).hash(&mut hasher);
            let name = format!(
                "{}-{:016x}.o",
                symbol_of(Path::new(unit.path.file_name().unwrap_or_default())),
                hasher.finish()
            );
            let object = folder.join(name);
            if !object.exists() {
                waiting.push((unit, object.clone()));
            }
            objects.push(object);
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if !objects.contains(&entry.path()) {
                // An object that stays behind costs nothing but room.
                let _ = fs::remove_file(entry.path());
            }
        }
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let waiting = Mutex::new(waiting);
        let failures = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    loop {
                        let next = waiting.lock().ok().and_then(|mut waiting| waiting.pop());
                        let Some((unit, object)) = next else { break };
                        if let Err(message) = compile_one(compiler.to_command(), unit, &object)
                            && let Ok(mut failures) = failures.lock()
                        {
                            failures.push(message);
                        }
                    }
                });
            }
        });
        let failures = failures.into_inner().unwrap_or_default();
        if failures.is_empty() { Ok(objects) } else { Err(failures.join("\n")) }
    }

    fn compile_one(mut command: Command, unit: &Unit, object: &Path) -> Result<(), String> {
        // Written under another name first: a build that is stopped leaves no half of an object.
        let unfinished = object.with_extension("unfinished");
        match &unit.symbol {
            Some(symbol) => command.arg(format!("-DEMULATOR_UNIT={symbol}")),
            // The emulator's own loops want to be unrolled.
            None => command.arg("-O3"),
        };
        command.args(["-x", "c++", "-c"]).arg(&unit.path).arg("-o").arg(&unfinished);
        let output =
            command.output().map_err(|error| format!("{}: {error}", unit.path.display()))?;
        if !output.status.success() {
            return Err(format!(
                "{} does not compile for the emulated device:\n{}",
                unit.path.display(),
                String::from_utf8_lossy(&output.stderr)
            ));
        }
        fs::rename(&unfinished, object).map_err(|error| format!("{}: {error}", object.display()))
    }

    fn read(path: &Path) -> Result<Vec<u8>, String> {
        fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn write_if_new(path: &Path, text: &str) -> Result<(), String> {
        if fs::read_to_string(path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
    }
}
