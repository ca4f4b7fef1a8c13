//! Failures, as exceptions.

use std::panic::{AssertUnwindSafe, catch_unwind};

use compressrs_core::runtime::memory::OutOfMemory;
use pyo3::exceptions::{PyMemoryError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

pyo3::create_exception!(
    compressrs.optim,
    NonFiniteGradientError,
    PyValueError,
    "A gradient holds NaN or infinity; the message names it. Nothing was changed."
);

/// Runs a kernel without the GIL.
///
/// Arguments are checked before, so a panic means an error in compressrs, or
/// arrays that another thread resized or rewrote meanwhile; it becomes a
/// RuntimeError. An allocation that failed becomes a MemoryError.
pub fn run<T: Send>(py: Python<'_>, kernel: impl FnOnce() -> T + Send) -> PyResult<T> {
    py.detach(|| guard(kernel))
}

/// Runs what may allocate or panic, with or without the GIL; see [`run`].
pub fn guard<T>(body: impl FnOnce() -> T) -> PyResult<T> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|panic| {
        if let Some(OutOfMemory { bytes }) = panic.downcast_ref() {
            return PyMemoryError::new_err(match *bytes {
                usize::MAX => String::from("more memory is needed than there can be"),
                bytes => format!("could not allocate {bytes} bytes"),
            });
        }
        let message = panic
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        PyRuntimeError::new_err(format!(
            "a kernel failed ({message}); did another thread change its arrays?"
        ))
    })
}
