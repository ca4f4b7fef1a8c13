//! Activation functions: forward and backward.

use compressrs_core::nn::activation;
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::{first, read, written};
use crate::dtype::with_compute;
use crate::errors::run;
use crate::overlap::require_disjoint;

fn activation_of(name: &str) -> PyResult<activation::Activation> {
    match name {
        "gelu" => Ok(activation::Activation::Gelu),
        "gelu_tanh" => Ok(activation::Activation::GeluTanh),
        "silu" => Ok(activation::Activation::Silu),
        _ => Err(PyValueError::new_err(format!("no activation is called {name:?}"))),
    }
}

/// Writes an activation function of `x` to `out`.
#[pyfunction]
pub fn activate(
    py: Python<'_>,
    of: &str,
    x: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let of = activation_of(of)?;
    let (x, dtype) = first(x, "x")?;
    let mut out = written(out, "out", (dtype, "x"), x.array.shape())?;
    require_disjoint(&mut [&mut out], [&x])?;
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (x, out) = unsafe { (x.slice::<T>()?, out.slice_mut::<T>()?) };
        run(py, || activation::forward(of, x, out))
    })
}

/// Writes `dy` times the derivative of an activation function at `x` to `dx`.
#[pyfunction]
pub fn activate_backward(
    py: Python<'_>,
    of: &str,
    x: &Bound<'_, PyAny>,
    dy: &Bound<'_, PyAny>,
    dx: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let of = activation_of(of)?;
    let (x, dtype) = first(x, "x")?;
    let dy = read(dy, "dy", (dtype, "x"), x.array.shape())?;
    let mut dx = written(dx, "dx", (dtype, "x"), x.array.shape())?;
    require_disjoint(&mut [&mut dx], [&x, &dy])?;
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (x, dy, dx) = unsafe { (x.slice::<T>()?, dy.slice::<T>()?, dx.slice_mut::<T>()?) };
        run(py, || activation::backward(of, x, dy, dx))
    })
}
