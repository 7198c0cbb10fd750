//! Checks of arguments that every operation makes, beside the named dimensions.

use prime_runtime::{DType, Device, Element, Error, NamedDims, Result, View};

/// The elements of a contiguous tensor of type `E` where the host can see them; none on other devices, where the values of index arrays
/// have been checked before they were uploaded.
///
/// # Errors
/// A sentence that names the tensor when its dtype is another or its rows are spread out.
pub(crate) fn on_host<'a, E: Element>(
    operation: &'static str,
    tensor: &'static str,
    view: View<'a>,
) -> Result<Option<&'a [E]>> {
    dense::<E>(operation, tensor, view)?;
    Ok((view.device() == Device::Cpu).then(|| view.as_slice()))
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

/// Checks that a tensor is float32 or bfloat16.
///
/// # Errors
/// A sentence that names the tensor.
pub(crate) fn float(operation: &'static str, tensor: &'static str, view: View<'_>) -> Result<()> {
    if matches!(view.dtype(), DType::F32 | DType::BF16) {
        return Ok(());
    }
    let found = view.dtype();
    Err(Error::DType { operation, tensor, found, expected: "float32 or bfloat16" })
}

/// Checks that a tensor has the dtype that another of the call has.
///
/// # Errors
/// A sentence that names the tensor.
pub(crate) fn same_dtype(
    operation: &'static str,
    tensor: &'static str,
    view: View<'_>,
    expected: DType,
) -> Result<()> {
    if view.dtype() == expected {
        return Ok(());
    }
    Err(Error::DType { operation, tensor, found: view.dtype(), expected: expected.name() })
}

/// Evaluates an expression with a name for the Rust type of a dtype that [`float`] accepted.
macro_rules! with_float {
    ($dtype:expr, $element:ident => $body:expr) => {
        match $dtype {
            prime_runtime::DType::BF16 => {
                type $element = prime_runtime::bf16;
                $body
            }
            _ => {
                type $element = f32;
                $body
            }
        }
    };
}
pub(crate) use with_float;

/// The error of an operation that has no version for a device.
pub(crate) fn no_version(operation: &'static str, device: Device) -> Error {
    Error::Device(format!("{operation} does not run on {device}"))
}

/// An [`Error::Value`] of an operation.
pub(crate) fn value(operation: &'static str, message: impl std::fmt::Display) -> Error {
    Error::Value(format!("{operation}: {message}"))
}

/// Checks that a tensor holds elements of type `E` and that its rows follow each other without gaps.
///
/// # Errors
/// A sentence that names the tensor.
pub(crate) fn dense<E: Element>(
    operation: &'static str,
    tensor: &'static str,
    view: View<'_>,
) -> Result<()> {
    dtype::<E>(operation, tensor, view)?;
    contiguous(operation, tensor, view)
}

/// Checks that tensors hold one float32 of each token, without gaps, and returns them.
///
/// # Errors
/// A sentence that names the first that does not.
pub(crate) fn per_token<'a, const N: usize>(
    operation: &'static str,
    dims: &mut NamedDims,
    columns: [(&'static str, View<'a>); N],
) -> Result<[View<'a>; N]> {
    for (name, column) in columns {
        dims.bind(name, column.dims(), ["tokens"])?;
        dense::<f32>(operation, name, column)?;
    }
    Ok(columns.map(|(_, column)| column))
}

/// Checks that a tensor's rows follow each other without gaps.
///
/// # Errors
/// A sentence that names the tensor.
pub(crate) fn contiguous(
    operation: &'static str,
    tensor: &'static str,
    view: View<'_>,
) -> Result<()> {
    if view.is_contiguous() {
        return Ok(());
    }
    let message = format!("the rows of `{tensor}` are spread out, expected them without gaps");
    Err(Error::Shape { operation, message })
}
