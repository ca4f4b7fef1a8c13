//! Failures, as exceptions.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
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
/// RuntimeError.
pub fn run<T: Send>(py: Python<'_>, kernel: impl FnOnce() -> T + Send) -> PyResult<T> {
    py.detach(|| catch_unwind(AssertUnwindSafe(kernel))).map_err(|panic| {
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
