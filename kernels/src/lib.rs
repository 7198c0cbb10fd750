//! The operations of a transformer, one folder an operation.
//!
//! A folder holds all that a person needs to understand, change, test and speed up its operation:
//! `mod.rs` the contract, the checks and the dispatch; `reference.rs` the float64 oracle; `cpu.rs` the fast host
//! version; `cuda.rs` its launchers and the `.cu` files the device code; `check.rs` one random case compared with the oracle on any
//! device.
//!
//! Rules that hold in every folder:
//! - Outputs come first in an argument list, then inputs, then scalars. Gradients of weights are float32 and are
//!   **added to**; gradients of activations are overwritten.
//! - Integers (token ids, positions, cumulative sequence lengths) are `u32` views. `cu_seqlens` has one entry more than
//!   there are sequences, starts at 0, never falls, and ends at the number of tokens; sequences may be empty.
//! - Arithmetic is float32 whatever the storage; storage is float32 or bfloat16, rounded to nearest even.
//! - The order of every reduction is fixed: results do not depend on the number of threads, and what is computed for
//!   one row or sequence does not depend on the others in the batch.
//! - Values of index arrays are checked where the host can see them; those on a device have been checked before they were uploaded.
//! - Nothing is allocated after the first call of a size.

/// Declares the operations: a module each, and the table that the conformance test walks.
macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $($(#[$doc])* pub mod $name;)*

        /// Every operation with its check: one random case of a seed, compared with the oracle on a device.
        pub const OPERATIONS: &[(&str, testing::Check)] = &[$((stringify!($name), $name::check::check)),*];

        /// The device code of every operation.
        const CODE: &[&device::Code] = &[$(&$name::CODE),*];

        /// A test an operation and device, so that they run side by side.
        #[cfg(test)]
        mod agrees_with_its_oracle {
            mod on_the_host {
                $(#[test]
                fn $name() {
                    crate::testing::assert_cases(prime_runtime::Device::Cpu, crate::$name::check::check);
                })*
            }

            #[cfg(feature = "emulated")]
            mod on_the_emulated_device {
                $(#[test]
                fn $name() {
                    crate::testing::assert_cases(prime_runtime::Device::Emulated, crate::$name::check::check);
                })*
            }
        }
    };
}

mod arguments;
pub mod ceiling;
pub mod device;
mod math;
pub mod numerics;
mod parallel;
mod scratch;
pub mod simd;
pub mod testing;
pub mod working_memory;

operations! {
    adamw,
    attention,
    cast,
    embedding,
    fill,
    gather,
    kl_penalty,
    log_prob,
    matmul,
    policy_loss,
    prm_loss,
    reduce,
    rms_norm,
    rope,
    sample,
    scale,
    scan,
    scatter,
    swiglu,
    value_loss,
}
