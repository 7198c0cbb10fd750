//! Programs: the text of device code, edited or as it was built in, and the kernels made of it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use super::cache;
use super::context::{Chip, context};
use super::kernel::Function;
use super::nvrtc::{Compiled, nvrtc};
use crate::{Error, Result};

/// A folder of edited device code, taken instead of what was built in: `NAME`, `src/NAME` or the file's name alone for a
/// program, `HEADER` or `prelude/HEADER` for a header. The folder `kernels` of the repository is one.
pub const KERNELS_VARIABLE: &str = "PRIME_KERNELS";

/// Device code as it was built in. Names tell programs apart.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Its name, such as `swiglu/swiglu.cu`.
    pub name: &'static str,
    /// Its text.
    pub source: &'static str,
    /// Names and texts of the headers that it may include.
    pub headers: &'static [(&'static str, &'static str)],
}

/// The text that is compiled.
pub(super) struct Text {
    pub(super) name: String,
    pub(super) source: Cow<'static, str>,
    pub(super) headers: Vec<(&'static str, Cow<'static, str>)>,
}

impl Text {
    /// The text of a program, with what a folder has instead of it.
    fn of(program: &Program, folder: Option<&Path>) -> Result<Self> {
        let whole = |text: &'static str| Cow::Borrowed(text);
        let Some(folder) = folder else {
            let headers = program.headers.iter().map(|&(name, text)| (name, whole(text)));
            return Ok(Text {
                name: program.name.to_owned(),
                source: whole(program.source),
                headers: headers.collect(),
            });
        };
        if !folder.is_dir() {
            return Err(Error::Device(format!(
                "{KERNELS_VARIABLE} names {}, which is not a folder; expected one with edited device code",
                folder.display()
            )));
        }
        let alone = Path::new(program.name).file_name().unwrap_or_default();
        let places =
            [folder.join(program.name), folder.join("src").join(program.name), folder.join(alone)];
        let (name, source) = match first(&places)? {
            Some((path, text)) => (path.display().to_string(), Cow::Owned(text)),
            None => (program.name.to_owned(), whole(program.source)),
        };
        let headers = program
            .headers
            .iter()
            .map(|&(name, text)| {
                let edited = first(&[folder.join(name), folder.join("prelude").join(name)])?;
                Ok((name, edited.map_or(whole(text), |(_, edited)| Cow::Owned(edited))))
            })
            .collect::<Result<_>>()?;
        Ok(Text { name, source, headers })
    }

    /// The text of a file by the name that the compiler knows it by.
    pub(super) fn file(&self, name: &str) -> Option<&str> {
        if name == self.name {
            return Some(&self.source);
        }
        self.headers.iter().find(|(header, _)| *header == name).map(|(_, text)| text.as_ref())
    }
}

fn first(places: &[PathBuf]) -> Result<Option<(PathBuf, String)>> {
    let Some(path) = places.iter().find(|path| path.is_file()) else { return Ok(None) };
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    Ok(Some((path.clone(), text)))
}

type Instances = HashMap<String, Function>;

/// All kernels of the process by device and program, then by instance.
static FUNCTIONS: RwLock<Option<HashMap<(u32, &'static str), Instances>>> = RwLock::new(None);

/// The kernel of a program's instance, ready to be started on a device. The first call compiles it, or takes it from the
/// cache on disk; later ones look it up and allocate nothing.
///
/// # Errors
/// When the device or the compiler cannot be used, or the text does not compile.
pub fn function(device: u32, program: &Program, expression: &str) -> Result<Function> {
    if let Some(function) = known(device, program, expression) {
        return Ok(function);
    }
    let chip = context(device)?.properties.chip;
    let function = Function::load(device, expression, &compile(program, expression, chip)?)?;
    let mut functions = FUNCTIONS.write().unwrap_or_else(PoisonError::into_inner);
    let instances = functions.get_or_insert_default().entry((device, program.name)).or_default();
    Ok(*instances.entry(expression.to_owned()).or_insert(function))
}

fn known(device: u32, program: &Program, expression: &str) -> Option<Function> {
    let functions = FUNCTIONS.read().unwrap_or_else(PoisonError::into_inner);
    functions.as_ref()?.get(&(device, program.name))?.get(expression).copied()
}

/// Makes many kernels ready, on all cores.
///
/// # Errors
/// The first error in the order of the list; the other kernels are made ready nevertheless.
pub fn warm(device: u32, kernels: &[(Program, &str)]) -> Result<()> {
    let results = on_all_cores(kernels, |(program, expression)| {
        function(device, program, expression).map(|_| ())
    });
    results.into_iter().collect()
}

/// Compiles an instance for a chip, which need not be in this machine; the cache on disk remembers it.
///
/// # Errors
/// When there is no compiler, it does not know the chip, or the text does not compile.
pub fn compile(program: &Program, expression: &str, chip: Chip) -> Result<Compiled> {
    let kernels = std::env::var_os(KERNELS_VARIABLE).filter(|folder| !folder.is_empty());
    let text = Text::of(program, kernels.as_ref().map(Path::new))?;
    compile_text(&text, expression, chip, cache::folder().as_deref())
}

/// Compiles many instances for a chip on all cores; results are in the order of the list.
pub fn compile_all(chip: Chip, kernels: &[(Program, &str)]) -> Vec<Result<Compiled>> {
    on_all_cores(kernels, |(program, expression)| compile(program, expression, chip))
}

fn compile_text(
    text: &Text,
    expression: &str,
    chip: Chip,
    folder: Option<&Path>,
) -> Result<Compiled> {
    let nvrtc = nvrtc()?;
    let entry =
        folder.map(|folder| cache::entry(folder, text, expression, chip, &nvrtc.identity()));
    if let Some(compiled) = entry.as_deref().and_then(cache::read) {
        return Ok(compiled);
    }
    let compiled = deep(|| nvrtc.compile(text, expression, chip))?;
    if let Some(entry) = &entry
        && let Err(error) = cache::write(entry, &compiled)
    {
        cache::warn(&error);
    }
    Ok(compiled)
}

// The compiler recurses over templates, deeper than the stack of a thread of a pool or of a test may be.
fn deep<R: Send>(work: impl Fn() -> R + Sync) -> R {
    const STACK: usize = 64 << 20;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, &work);
        match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(_) => work(),
        }
    })
}

fn on_all_cores<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..cores.min(items.len()) {
            scope.spawn(|| {
                while let Some((index, item)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    items.get(index).map(|item| (index, item))
                } {
                    let result = work(item);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|&(index, _)| index);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests;
