//! Checks of arguments that every operation makes, beside the named dimensions.

use prime_runtime::{Device, Element, Error, Result, View, ViewMut};

/// The elements of a contiguous host tensor of type `E`.
///
/// # Errors
/// A sentence that names the tensor when its dtype is another or its rows are spread out.
pub(crate) fn slice<'a, E: Element>(
    operation: &'static str,
    tensor: &'static str,
    view: View<'a>,
) -> Result<&'a [E]> {
    dense::<E>(operation, tensor, view)?;
    Ok(view.as_slice())
}

/// [`slice`], to write.
///
/// # Errors
/// As for [`slice`].
pub(crate) fn slice_mut<'a, E: Element>(
    operation: &'static str,
    tensor: &'static str,
    view: ViewMut<'a>,
) -> Result<&'a mut [E]> {
    dense::<E>(operation, tensor, view.as_view())?;
    Ok(view.into_slice())
}

/// Checks that a tensor holds elements of type `E`.
///
/// # Errors
/// A sentence that names the tensor.
pub(crate) fn dtype<E: Element>(
    operation: &'static str,
    tensor: &'static str,
    view: View<'_>,
) -> Result<()> {
    if view.dtype() == E::DTYPE {
        return Ok(());
    }
    Err(Error::DType { operation, tensor, found: view.dtype(), expected: E::DTYPE.name() })
}

/// The error of an operation that has no version for a device.
pub(crate) fn no_version(operation: &'static str, device: Device) -> Error {
    Error::Device(format!("{operation} does not run on {device}"))
}

/// An [`Error::Value`] of an operation.
pub(crate) fn value(operation: &'static str, message: impl std::fmt::Display) -> Error {
    Error::Value(format!("{operation}: {message}"))
}

fn dense<E: Element>(operation: &'static str, tensor: &'static str, view: View<'_>) -> Result<()> {
    dtype::<E>(operation, tensor, view)?;
    if view.is_contiguous() {
        return Ok(());
    }
    let message = format!("the rows of `{tensor}` are spread out, expected them without gaps");
    Err(Error::Shape { operation, message })
}
