//! Choices between speed, accuracy and independence for products on devices other than the host.

use crate::numerics::Numerics;

/// How products run on devices other than the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Multiply float32 by tensor cores, both factors rounded to TF32 (10 bits of fraction). Otherwise each product is exact.
    pub(crate) tf32: bool,
    /// Never cut k into parts: a row of C is the same bits whatever m is, as on the host. A product of few rows then leaves multiprocessors
    /// idle.
    pub(crate) invariant: bool,
}

impl From<Numerics> for Settings {
    fn from(numerics: Numerics) -> Self {
        Settings { tf32: numerics == Numerics::Tf32, invariant: numerics == Numerics::Invariant }
    }
}

/// What holds for this process.
pub(super) fn settings() -> Settings {
    crate::numerics::chosen().into()
}
