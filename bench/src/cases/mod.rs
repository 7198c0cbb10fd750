//! The cases: each operation's shapes, what a call of each computes and moves, and how it is made.

pub mod attention;
pub mod log_prob;
pub mod losses;
pub mod matmul;
pub mod memory;
pub mod plain;
pub mod steps;

use anyhow::Result;
use prime_runtime::DType;

use crate::work::{Setup, Work};

/// One thing to measure, not made yet.
pub struct Case {
    /// The operation.
    pub operation: &'static str,
    /// The model, the layer and the shape.
    pub name: String,
    /// What its numbers are stored in.
    pub dtype: DType,
    /// Floating-point operations of a call.
    pub flops: f64,
    /// Bytes that a call must read and write.
    pub bytes: f64,
    /// What rates count, and how much of it a call does; FLOP or bytes where this is none.
    pub counts: Option<(&'static str, f64)>,
    /// Bytes that one copy of its buffers takes: what a call moves, unless it touches but a part of them, or the same several times.
    pub footprint: f64,
    /// Whether calls take turns through copies of its buffers.
    pub copies: bool,
    /// The names of those who do it, ours first; they are in this order in the work that is made.
    pub contestants: Vec<String>,
    /// Whether its calls only start kernels, so that a GPU can record them.
    pub recordable: bool,
    /// Makes it.
    pub make: Maker,
}

/// Makes the work of a case.
pub type Maker = Box<dyn FnOnce(&Setup) -> Result<Work>>;

impl Case {
    /// A case of ours alone, of so many operations and bytes.
    pub fn new(
        operation: &'static str,
        name: String,
        dtype: DType,
        [flops, bytes]: [f64; 2],
        make: impl FnOnce(&Setup) -> Result<Work> + 'static,
    ) -> Case {
        Case {
            operation,
            name,
            dtype,
            flops,
            bytes,
            counts: None,
            footprint: bytes,
            copies: true,
            contestants: vec![OURS.to_owned()],
            recordable: true,
            make: Box::new(make),
        }
    }

    /// Whose calls return what was computed, and therefore wait for the device.
    #[must_use]
    pub fn waits(mut self) -> Case {
        self.recordable = false;
        self
    }

    /// What rates count, and how much of it a call does.
    pub fn amount(&self) -> (&'static str, f64) {
        self.counts.unwrap_or(if self.flops > 4.0 * self.bytes {
            ("FLOP", self.flops)
        } else {
            ("byte", self.bytes)
        })
    }
}

/// What this project's own kernels are called.
pub const OURS: &str = "prime";

/// Makes the cases of a group.
pub type Make = fn(&Setup) -> Vec<Case>;

/// All groups in the order in which they run, each with its part of the time that there is.
pub const GROUPS: &[(&str, f64, Make)] = &[
    ("matmul", 28.0, matmul::cases),
    ("attention", 14.0, attention::cases),
    ("log_prob", 8.0, log_prob::cases),
    ("sample", 5.0, log_prob::samples),
    ("rms_norm", 5.0, memory::norms),
    ("swiglu", 4.0, memory::activations),
    ("rope", 3.0, memory::rotations),
    ("rows", 5.0, memory::rows),
    ("plain", 4.0, plain::cases),
    ("adamw", 4.0, memory::updates),
    ("losses", 5.0, losses::cases),
    ("steps", 25.0, steps::cases),
];

/// Both dtypes, for shapes of this project's own models; others are in bfloat16 alone.
fn dtypes(floats: bool) -> &'static [DType] {
    if floats { &[DType::BF16, DType::F32] } else { &[DType::BF16] }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use prime_runtime::Device;

    use super::*;
    use crate::baselines::Baselines;
    use crate::harness::Measured;
    use crate::shapes::Scale;

    fn setup(scale: Scale) -> Setup {
        let baselines = Baselines::none("it is a test");
        Setup { device: Device::Cpu, scale, cache: 1 << 14, baselines }
    }

    /// What the benchmarks run on the emulated device, on the host: every case is made, runs, and is right.
    #[test]
    fn every_tiny_case_is_right_by_its_own_check() {
        let setup = setup(Scale::Tiny);
        for (group, _, make) in GROUPS {
            for case in make(&setup) {
                let (name, contestants) = (case.name.clone(), case.contestants.clone());
                let mut work =
                    (case.make)(&setup).unwrap_or_else(|e| panic!("{group} {name}: {e:#}"));
                let names: Vec<&str> = work.contestants.iter().map(|c| c.name.as_str()).collect();
                assert_eq!(names, contestants, "{group} {name}");
                for contestant in 0..contestants.len() {
                    let found =
                        work.check(contestant).unwrap_or_else(|e| panic!("{group} {name}: {e:#}"));
                    assert!(found.compared > 0 && found.worst <= 1.0, "{group} {name}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn a_tiny_case_is_timed_on_the_host() {
        let setup = setup(Scale::Tiny);
        let case = memory::norms(&setup).remove(0);
        let mut measured = Measured::new((case.make)(&setup).unwrap(), Device::Cpu, false).unwrap();
        for _ in 0..3 {
            measured.next(0, 1, None).unwrap();
        }
        assert_eq!(measured.seconds_of(0).len(), 2);
        assert!(measured.seconds_of(0).iter().all(|&seconds| seconds > 0.0 && seconds < 1.0));
    }

    #[test]
    fn names_are_unique_and_every_operation_is_measured() {
        let setup = setup(Scale::Real);
        let mut operations = HashSet::new();
        let mut names = HashSet::new();
        for (_, _, make) in GROUPS {
            for case in make(&setup) {
                assert!(
                    case.bytes > 0.0 || case.counts.is_some(),
                    "{} {}",
                    case.operation,
                    case.name
                );
                operations.insert(case.operation);
                let name = format!("{} {} {}", case.operation, case.name, case.dtype);
                assert!(names.insert(name.clone()), "{name}");
            }
        }
        for (operation, _) in prime_kernels::OPERATIONS {
            let measured = operations.iter().any(|name| name.starts_with(operation));
            assert!(measured, "{operation} has no benchmark");
        }
    }
}
