//! The door to the emulated device: the structs of `kernels/emulator/emulator.h`, and one call.

use std::ffi::{c_char, c_int, c_void};

use prime_runtime::cuda::{Chip, Geometry};
use prime_runtime::{Error, Result, emulated};

use super::Source;
use super::launch::Extent;

/// `prime_buffer`.
#[repr(C)]
struct Buffer {
    start: u64,
    rows: u64,
    row_bytes: u64,
    row_stride: u64,
    written: *mut u8,
    writable: u32,
    reserved: u32,
}

/// `prime_launch`.
#[repr(C)]
struct Request {
    instance: *const c_char,
    instance_length: usize,
    arguments: *const c_void,
    argument_bytes: usize,
    buffers: *const Buffer,
    buffer_count: usize,
    grid: [u32; 3],
    block: u32,
    cluster: u32,
    shared_bytes: u32,
    shared_limit: u32,
    max_threads: u32,
    seed: u64,
    workers: u32,
    flags: u32,
}

const CHECK_RACES: u32 = 1;
const CHECK_UNINITIALISED: u32 = 2;
const EARLY: u32 = 8;

unsafe extern "C" {
    fn prime_emulator_launch(request: *const Request, message: *mut c_char, size: usize) -> c_int;
    #[cfg(test)]
    fn prime_emulator_instance(index: usize) -> *const c_char;
}

/// How launches are checked and in which order their threads run. The variable `PRIME_EMULATOR` overrides: `seed=7,races=off,workers=1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Decides every order that the rules leave open.
    pub(crate) seed: u64,
    /// Threads of the host that run blocks; 0 for one a core.
    pub(crate) workers: u32,
    /// Whether accesses that nothing orders are found.
    pub(crate) races: bool,
    /// Whether reads of memory that nobody wrote are found.
    pub(crate) uninitialised: bool,
    /// The chip for which launchers choose kernels.
    pub(crate) chip: Chip,
}

impl Options {
    /// What holds when nothing else is asked for.
    pub(super) const DEFAULT: Options =
        Options { seed: 1, workers: 0, races: true, uninitialised: true, chip: Chip::OLDEST };

    /// Reads what `PRIME_EMULATOR` holds.
    fn parse(text: &str) -> Result<Options> {
        let mut options = Options::DEFAULT;
        let wrong = |part: &str, right: &str| {
            Err(Error::Device(format!(
                "PRIME_EMULATOR={text}: `{part}` is not understood; {right}, as in `seed=7,races=off,workers=1`"
            )))
        };
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let Some((key, value)) = part.split_once('=') else {
                return wrong(part, "each part is a name, `=` and a value");
            };
            let (key, value) = (key.trim(), value.trim());
            if key == "chip" {
                let numbers = value.split_once('.').and_then(|(major, minor)| {
                    Some(Chip { major: major.parse().ok()?, minor: minor.parse().ok()? })
                });
                match numbers {
                    Some(chip) if chip >= Chip::OLDEST => options.chip = chip,
                    _ => {
                        return wrong(part, "a chip is a compute capability from 8.0 on, as 9.0");
                    }
                }
                continue;
            }
            let switch = match value {
                "on" => Some(true),
                "off" => Some(false),
                _ => None,
            };
            match (key, value.parse::<u64>(), switch) {
                ("seed", Ok(seed), _) => options.seed = seed,
                ("workers", Ok(workers @ 0..=1024), _) => options.workers = workers as u32,
                ("races", _, Some(on)) => options.races = on,
                ("uninitialised", _, Some(on)) => options.uninitialised = on,
                ("seed", ..) => return wrong(part, "a seed is a whole number"),
                ("workers", ..) => return wrong(part, "workers are a number up to 1024"),
                ("races" | "uninitialised", ..) => return wrong(part, "it is `on` or `off`"),
                _ => return wrong(part, "the names are seed, workers, races, uninitialised, chip"),
            }
        }
        Ok(options)
    }

    /// What the variable `PRIME_EMULATOR` asks for.
    fn of_environment() -> Result<Options> {
        match std::env::var("PRIME_EMULATOR") {
            Ok(text) => Options::parse(&text),
            Err(std::env::VarError::NotPresent) => Ok(Options::DEFAULT),
            Err(std::env::VarError::NotUnicode(_)) => {
                Err(Error::Device("PRIME_EMULATOR does not hold text".to_owned()))
            }
        }
    }
}

/// The chip that `PRIME_EMULATOR` asks for.
///
/// # Errors
/// When the variable is not understood.
pub(super) fn chip() -> Result<Chip> {
    Ok(Options::of_environment()?.chip)
}

/// Runs a kernel to its end with the options of the environment.
///
/// # Errors
/// A sentence that says which rule the kernel broke, and where.
pub(super) fn launch(
    source: &Source,
    instance: &str,
    arguments: &[u8],
    geometry: Geometry,
    extents: &[Extent],
) -> Result<()> {
    let options = Options::of_environment()?;
    let most = most_threads(source.text, instance);
    launch_with(options, instance, most, arguments, geometry, extents)
}

/// The most threads that `KERNEL(...)` promises for an instance, where the text says a number; 0 elsewhere.
fn most_threads(text: &str, instance: &str) -> u32 {
    let name = instance.split('<').next().unwrap_or(instance).trim();
    let promise = text.lines().find_map(|line| {
        let rest = &line[line.find("KERNEL(")? + "KERNEL(".len()..];
        let (promise, rest) = rest.split_once(") void ")?;
        rest.trim_start().strip_prefix(name)?.starts_with('(').then_some(promise)
    });
    let number = promise.and_then(|promise| promise.split(',').next());
    number.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// [`launch`] with options of its own, and the most threads that the kernel is written for (0: unknown).
pub(super) fn launch_with(
    options: Options,
    instance: &str,
    max_threads: u32,
    arguments: &[u8],
    geometry: Geometry,
    extents: &[Extent],
) -> Result<()> {
    let buffers: Vec<Buffer> = extents.iter().map(buffer).collect::<Result<_>>()?;
    let request = Request {
        instance: instance.as_ptr().cast(),
        instance_length: instance.len(),
        arguments: arguments.as_ptr().cast(),
        argument_bytes: arguments.len(),
        buffers: buffers.as_ptr(),
        buffer_count: buffers.len(),
        grid: geometry.grid,
        block: geometry.block,
        cluster: geometry.cluster,
        shared_bytes: geometry.shared_bytes,
        shared_limit: 0,
        max_threads,
        seed: options.seed,
        workers: options.workers,
        flags: if options.races { CHECK_RACES } else { 0 }
            | if options.uninitialised { CHECK_UNINITIALISED } else { 0 }
            | if geometry.early { EARLY } else { 0 },
    };
    let mut message = [0u8; 4096];
    // SAFETY: the request mirrors the C struct and points to memory that outlives the call. The kernel reaches memory only through the
    // buffers, which are views lent to this launch, and their shadows, which live as long as the views' tensors.
    let status =
        unsafe { prime_emulator_launch(&request, message.as_mut_ptr().cast(), message.len()) };
    if status == 0 {
        return Ok(());
    }
    let end = message.iter().position(|&byte| byte == 0).unwrap_or(message.len());
    Err(Error::Device(String::from_utf8_lossy(&message[..end]).into_owned()))
}

fn buffer(extent: &Extent) -> Result<Buffer> {
    let &Extent { start, rows, row_bytes, row_stride, writable } = extent;
    let written = if rows == 0 || row_bytes == 0 {
        std::ptr::null_mut()
    } else {
        let shadow = emulated::shadow(start).ok_or_else(|| {
            Error::Device(format!(
                "a launch on the emulated device was given the address {start:#x}, which is not in its memory"
            ))
        })?;
        // SAFETY: `start` lies in the allocation, whose shadow has a byte for each of its bytes.
        unsafe { shadow.start.add((start - shadow.base) as usize) }
    };
    Ok(Buffer {
        start,
        rows,
        row_bytes,
        row_stride,
        written,
        writable: writable.into(),
        reserved: 0,
    })
}

/// The instances that the `.cu` files list, as the emulated device knows them.
#[cfg(test)]
pub(super) fn instances() -> Vec<String> {
    (0..)
        .map_while(|index| {
            // SAFETY: the function takes any index and returns NULL or a string that lives as long as the program.
            let text = unsafe { prime_emulator_instance(index) };
            // SAFETY: as above.
            (!text.is_null()).then(|| unsafe { std::ffi::CStr::from_ptr(text) })
        })
        .map(|text| text.to_string_lossy().into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_sets_what_it_names_and_refuses_what_it_does_not_know() {
        let options = Options::parse("seed=7, races=off,workers=1,chip=9.0").unwrap();
        let chip = Chip { major: 9, minor: 0 };
        assert_eq!(
            options,
            Options { seed: 7, workers: 1, races: false, uninitialised: true, chip }
        );
        assert_eq!(Options::parse("").unwrap(), Options::DEFAULT);
        for wrong in
            ["seed", "seed=x", "races=no", "colour=red", "workers=1025", "chip=7.5", "chip=9"]
        {
            let message = Options::parse(wrong).unwrap_err().to_string();
            assert!(message.contains(wrong), "{message}");
        }
    }

    #[test]
    fn every_instance_that_the_texts_list_is_known() {
        let known = instances();
        for source in super::super::CODE.iter().flat_map(|code| code.sources) {
            for line in source.text.lines() {
                let listed =
                    line.trim().strip_prefix("INSTANCE(").and_then(|rest| rest.strip_suffix(')'));
                if let Some(text) = listed {
                    assert!(known.iter().any(|known| known == text), "{}: {text}", source.name);
                }
            }
        }
    }

    #[test]
    fn an_unknown_instance_is_refused_by_name() {
        let geometry =
            Geometry { grid: [1; 3], block: 32, cluster: 1, shared_bytes: 0, early: false };
        let name = "no_such_kernel<float>";
        let message = launch_with(Options::DEFAULT, name, 0, &[], geometry, &[]).unwrap_err();
        assert!(message.to_string().contains(name), "{message}");
    }

    #[test]
    fn the_promise_of_a_kernel_is_read_where_it_is_a_number() {
        let text = "KERNEL(256) void a(const A args) {}\ntemplate <class T> KERNEL(64, 2) void ab(const B<T> args) {\nKERNEL(MOST) void c(C args)";
        let found = ["a", "ab<float, 2>", "c", "d"].map(|instance| most_threads(text, instance));
        assert_eq!(found, [256, 64, 0, 0]);
    }
}
