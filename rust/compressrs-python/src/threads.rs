//! Threads and instruction sets, and what they can do at most.
//!
//! The `extern "C"` functions are what threadpoolctl looks for in a shared
//! library that it governs.

use std::ffi::c_int;

use compressrs_core::peak;
use compressrs_core::runtime::{parallel, simd};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

/// The number of threads that kernels use.
#[pyfunction]
pub fn get_num_threads() -> PyResult<usize> {
    parallel::num_threads().map_err(PyRuntimeError::new_err)
}

/// Sets the number of threads that kernels use.
#[pyfunction]
pub fn set_num_threads(py: Python<'_>, n: i64) -> PyResult<()> {
    // -1 and the like become 0, which is refused with the range in the message.
    let clamped = usize::try_from(n).unwrap_or(0);
    py.detach(|| parallel::set_num_threads(clamped)).map_err(|_| {
        PyValueError::new_err(format!("n must be from 1 to {}, got {n}", parallel::MAX_THREADS))
    })
}

/// Ends the threads of the pool; the next large kernel starts them again.
#[pyfunction]
pub fn shutdown(py: Python<'_>) {
    py.detach(parallel::shutdown);
}

/// The instruction set that kernels run in.
#[pyfunction]
pub fn simd_level() -> PyResult<&'static str> {
    simd::level().map(simd::Level::name).map_err(PyRuntimeError::new_err)
}

/// The instruction sets that kernels could run in on this machine.
#[pyfunction]
pub fn simd_levels() -> Vec<&'static str> {
    simd::Level::supported().map(simd::Level::name).collect()
}

/// Multiplies and adds in registers alone; returns the number of multiply-adds of float32.
///
/// Like the next function it does an amount of work that the caller times.
#[pyfunction]
pub fn peak_multiply_adds(py: Python<'_>, rounds: u32) -> usize {
    py.detach(|| peak::multiply_adds(rounds as usize))
}

/// Adds up products of bytes in the first cache; returns the number of multiply-adds.
#[pyfunction]
pub fn peak_dot_products(py: Python<'_>, rounds: u32) -> usize {
    py.detach(|| peak::dot_products(rounds as usize))
}

/// For threadpoolctl: the number of threads.
#[unsafe(no_mangle)]
pub extern "C" fn compressrs_get_num_threads() -> c_int {
    parallel::num_threads().map_or(1, |n| n as c_int)
}

/// For threadpoolctl: sets the number of threads; out of range changes nothing.
#[unsafe(no_mangle)]
pub extern "C" fn compressrs_set_num_threads(n: c_int) {
    if let Ok(n) = usize::try_from(n) {
        let _ = parallel::set_num_threads(n);
    }
}
