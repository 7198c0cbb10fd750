//! What a GPU's clocks, power and temperature are while it is measured, and what holds its clock down, by NVML.
//!
//! Names and values are those of `nvml.h` of CUDA 13 (through `nvidia-ml-py` 13.615, whose bindings name the same functions).

use std::ffi::{c_int, c_uint, c_ulonglong, c_void};
use std::ptr::null_mut;

use anyhow::{Result, ensure};
use prime::bench::statistics::quantile;
use serde_json::{Map, Value, json};

use crate::baselines::libraries::{done, function, open};

type Device = *mut c_void;
const CLOCK_SM: c_int = 1;
const CLOCK_MEMORY: c_int = 2;
const TEMPERATURE_GPU: c_int = 0;

/// What each bit of `nvmlClocksEventReasons` says.
const REASONS: [(c_ulonglong, &str); 9] = [
    (0x1, "idle"),
    (0x2, "clocks set by an application"),
    (0x4, "power cap"),
    (0x8, "hardware slowdown"),
    (0x10, "synchronised boost"),
    (0x20, "too hot, by software"),
    (0x40, "too hot, by hardware"),
    (0x80, "power brake"),
    (0x100, "display"),
];

type Ask = unsafe extern "C" fn(Device, *mut c_uint) -> c_int;
type AskOf = unsafe extern "C" fn(Device, c_int, *mut c_uint) -> c_int;
type AskReasons = unsafe extern "C" fn(Device, *mut c_ulonglong) -> c_int;

/// One look at a device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// MHz of multiprocessors.
    pub clock: u32,
    /// MHz of memory.
    pub memory_clock: u32,
    /// Milliwatts.
    pub power: u32,
    /// Degrees Celsius.
    pub temperature: u32,
    /// Bits of `REASONS`.
    pub reasons: u64,
}

/// NVML, for one device.
pub struct Clocks {
    device: Device,
    clock: AskOf,
    power: Ask,
    temperature: AskOf,
    reasons: AskReasons,
}

impl Clocks {
    /// Opens NVML for the device of a number, as NVML counts them: without `CUDA_VISIBLE_DEVICES`, and in the order of the bus.
    ///
    /// # Errors
    /// When there is no NVML, or no such device.
    pub fn open(number: u32) -> Result<Clocks> {
        let (library, _) = open(&["libnvidia-ml.so.1", "libnvidia-ml.so"])?;
        let init: unsafe extern "C" fn() -> c_int = function(library, c"nvmlInit_v2")?;
        let by_index: unsafe extern "C" fn(c_uint, *mut Device) -> c_int =
            function(library, c"nvmlDeviceGetHandleByIndex_v2")?;
        let count: unsafe extern "C" fn(*mut c_uint) -> c_int =
            function(library, c"nvmlDeviceGetCount_v2")?;
        // The first name is that of drivers from 535 on.
        let reasons = function(library, c"nvmlDeviceGetCurrentClocksEventReasons")
            .or_else(|_| function(library, c"nvmlDeviceGetCurrentClocksThrottleReasons"))?;
        let (mut device, mut devices) = (null_mut(), 0);
        // SAFETY: it may be called as often as one likes.
        done(unsafe { init() }, "nvmlInit")?;
        // SAFETY: the place for the number lives for the call.
        done(unsafe { count(&mut devices) }, "nvmlDeviceGetCount")?;
        let hidden = std::env::var_os("CUDA_VISIBLE_DEVICES").is_some();
        ensure!(
            devices == 1 || !hidden,
            "CUDA_VISIBLE_DEVICES hides some of {devices} GPUs, so NVML's numbers are not CUDA's"
        );
        // SAFETY: the place for the handle lives for the call.
        done(unsafe { by_index(number, &mut device) }, "nvmlDeviceGetHandleByIndex")?;
        Ok(Clocks {
            device,
            clock: function(library, c"nvmlDeviceGetClockInfo")?,
            power: function(library, c"nvmlDeviceGetPowerUsage")?,
            temperature: function(library, c"nvmlDeviceGetTemperature")?,
            reasons,
        })
    }

    /// Looks at the device. What it does not tell is 0.
    pub fn sample(&self) -> Sample {
        let mut sample = Sample::default();
        // SAFETY: the handle is NVML's, and the places for values live for the calls.
        unsafe {
            (self.clock)(self.device, CLOCK_SM, &mut sample.clock);
            (self.clock)(self.device, CLOCK_MEMORY, &mut sample.memory_clock);
            (self.power)(self.device, &mut sample.power);
            (self.temperature)(self.device, TEMPERATURE_GPU, &mut sample.temperature);
            (self.reasons)(self.device, &mut sample.reasons);
        }
        sample
    }
}

/// What the samples of a case say, by name.
pub fn summary(samples: &[Sample]) -> Map<String, Value> {
    let mut summary = Map::new();
    if samples.is_empty() {
        return summary;
    }
    let mut add = |name: &str, of: &dyn Fn(&Sample) -> f64| {
        let values: Vec<f64> = samples.iter().map(of).collect();
        let at = |part| quantile(&values, part).unwrap_or(0.0);
        summary.insert(name.to_owned(), json!([at(0.0), at(0.5), at(1.0)]));
    };
    add("clock, MHz (least, median, most)", &|sample| f64::from(sample.clock));
    add("memory clock, MHz", &|sample| f64::from(sample.memory_clock));
    add("power, W", &|sample| f64::from(sample.power) / 1e3);
    add("temperature, C", &|sample| f64::from(sample.temperature));
    let bits = samples.iter().fold(0, |bits, sample| bits | sample.reasons);
    summary.insert("clock held by".to_owned(), json!(reasons(bits)));
    summary
}

fn reasons(bits: u64) -> Vec<&'static str> {
    REASONS.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_up_with_every_reason_that_was_seen() {
        let sample =
            |clock, reasons| Sample { clock, power: 350_500, reasons, ..Sample::default() };
        let summary = summary(&[sample(1500, 0x4), sample(1980, 0), sample(1755, 0x20)]);
        assert_eq!(summary["clock, MHz (least, median, most)"], json!([1500.0, 1755.0, 1980.0]));
        assert_eq!(summary["power, W"], json!([350.5, 350.5, 350.5]));
        assert_eq!(summary["clock held by"], json!(["power cap", "too hot, by software"]));
        assert!(super::summary(&[]).is_empty());
    }
}
