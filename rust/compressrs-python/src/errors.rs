//! Failures, as exceptions.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use compressrs_core::optim::Fault;
use compressrs_core::runtime::memory::OutOfMemory;
use pyo3::exceptions::{PyMemoryError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::dtype::Dtype;

pyo3::create_exception!(
    compressrs.optim,
    NonFiniteGradientError,
    PyValueError,
    "A gradient holds NaN or infinity; the message names it. Nothing was changed.

Attributes
----------
reason : {'nonfinite', 'sum', 'scale'}
    What is beyond the range of its type: a number of the gradient, the sum of finite gradients
    of the same row, or a finite number after scaling and clipping."
);

/// Gives the class the reason of errors that are raised without one.
pub fn set_default_reason(py: Python<'_>) -> PyResult<()> {
    py.get_type::<NonFiniteGradientError>().setattr("reason", reason(Fault::NonFinite))
}

fn reason(fault: Fault) -> &'static str {
    match fault {
        Fault::NonFinite => "nonfinite",
        Fault::RowSum => "sum",
        Fault::Scaled => "scale",
    }
}

/// The error of a gradient whose numbers, sums or products are of the type `dtype`.
pub fn non_finite(py: Python<'_>, path: &str, fault: Fault, dtype: Dtype) -> PyResult<PyErr> {
    let what = match fault {
        Fault::NonFinite => String::from("NaN or infinity"),
        Fault::RowSum => {
            format!("finite gradients of the same row whose sum is beyond the range of {dtype}")
        }
        Fault::Scaled => format!("numbers that are beyond the range of {dtype} as scaled"),
    };
    let error = NonFiniteGradientError::new_err(format!(
        "grads{path} holds {what}; nothing was changed (nonfinite=\"skip\" leaves such steps out)"
    ));
    error.value(py).setattr("reason", reason(fault))?;
    Ok(error)
}

/// Runs a kernel without the GIL.
///
/// Arguments are checked before, so a panic means an error in compressrs, or
/// arrays that another thread resized or rewrote meanwhile; it becomes a
/// RuntimeError. An allocation that failed becomes a MemoryError.
pub fn run<T: Send>(py: Python<'_>, kernel: impl FnOnce() -> T + Send) -> PyResult<T> {
    py.detach(|| guard(kernel))
}

/// Signals that arrive while a long kernel runs; see [`Signals::check`].
pub struct Signals {
    /// When they were last looked for.
    last: Mutex<Instant>,
    raised: Mutex<Option<PyErr>>,
}

impl Default for Signals {
    fn default() -> Self {
        Signals { last: Mutex::new(Instant::now()), raised: Mutex::new(None) }
    }
}

impl Signals {
    /// Taking the GIL can take milliseconds where other threads use it.
    const INTERVAL: Duration = Duration::from_millis(50);

    /// Runs the Python handlers of signals that have arrived, at most once per interval.
    /// Returns whether one raised an exception, as that of Ctrl-C does; see `result`.
    pub fn check(&self) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() < Self::INTERVAL {
            return false;
        }
        *last = Instant::now();
        let Err(error) = Python::attach(|py| py.check_signals()) else { return false };
        *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        true
    }

    /// The exception that a handler raised, if any.
    pub fn result(self) -> PyResult<()> {
        self.raised.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
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
