//! Which tier of kernels a device runs: that of its chip.

use std::cell::Cell;
use std::sync::{Mutex, PoisonError};

use prime_runtime::cuda::{self, Chip};
use prime_runtime::{Device, Result};

/// The chip whose instructions `_sm90.cu` texts hold: wgmma runs on this one alone, neither on older nor on newer ones.
pub(crate) const HOPPER: Chip = Chip { major: 9, minor: 0 };

/// What launchers ask of a chip before they choose a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tier {
    /// The generation.
    pub(crate) chip: Chip,
    /// Multiprocessors: blocks of a kernel that stay and take one tile after another.
    pub(crate) multiprocessors: usize,
}

impl Tier {
    /// Whether kernels of `_sm90.cu` texts run.
    pub(crate) fn hopper(self) -> bool {
        self.chip == HOPPER
    }
}

/// Multiprocessors of the emulated chip: few, so that a block takes several tiles of the small tensors of tests.
const EMULATED: usize = 4;

thread_local! {
    static STANDS_FOR: Cell<Option<Chip>> = const { Cell::new(None) };
}

static KNOWN: Mutex<Vec<(u32, Tier)>> = Mutex::new(Vec::new());

/// What a device other than the host is. The emulated one stands for the oldest chip, unless [`on_chip`] or `PRIME_EMULATOR=chip=9.0` says another.
///
/// # Errors
/// When the device cannot be used.
pub(crate) fn tier(device: Device) -> Result<Tier> {
    let Device::Cuda(number) = device else {
        let chip = match STANDS_FOR.get() {
            Some(chip) => chip,
            None => emulated()?,
        };
        return Ok(Tier { chip, multiprocessors: EMULATED });
    };
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, tier)) = known.iter().find(|(other, _)| *other == number) {
        return Ok(*tier);
    }
    let properties = cuda::properties(number)?;
    let tier = Tier { chip: properties.chip, multiprocessors: properties.multiprocessors as usize };
    known.push((number, tier));
    Ok(tier)
}

#[cfg(feature = "emulated")]
fn emulated() -> Result<Chip> {
    super::emulator::chip()
}

#[cfg(not(feature = "emulated"))]
fn emulated() -> Result<Chip> {
    Ok(Chip::OLDEST)
}

/// Runs `work` with the emulated device standing for a chip, for launches that this thread starts.
#[cfg(test)]
pub(crate) fn on_chip<R>(chip: Chip, work: impl FnOnce() -> R) -> R {
    struct Restore(Option<Chip>);
    impl Drop for Restore {
        fn drop(&mut self) {
            STANDS_FOR.set(self.0);
        }
    }
    let _restore = Restore(STANDS_FOR.replace(Some(chip)));
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_emulated_device_stands_for_the_chip_that_the_thread_says() {
        let chip = || tier(Device::Emulated).unwrap();
        assert!(on_chip(HOPPER, chip).hopper());
        assert!(!on_chip(Chip::OLDEST, chip).hopper());
        assert!(!on_chip(HOPPER, || on_chip(Chip { major: 10, minor: 0 }, chip)).hopper());
    }
}
