//! Affine layers: forward and backward.

use compressrs_core::linalg::gemm;
use compressrs_core::linalg::matrix::Matrix;
use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;

use super::{first, pair, read, written};
use crate::arguments::Name;
use crate::buffers::Array;
use crate::dtype::with_compute;
use crate::errors::run;
use crate::overlap::require_disjoint;

/// Writes `x @ weight.T + bias` to `out`: `x` is `[rows, inputs]`.
#[pyfunction]
pub fn linear(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    weight: &Bound<'_, PyAny>,
    bias: Option<&Bound<'_, PyAny>>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (weight, dtype) = first(weight, "weight")?;
    weight.require_ndim(2)?;
    let like = (dtype, "weight");
    let x = Array::new(x, Name("x", ""))?;
    x.require_ndim(2)?;
    let (rows, [outputs, inputs]) = (x.array.shape()[0], pair(&weight));
    let x = read(&x.array, "x", like, &[rows, inputs])?;
    let bias = bias.map(|bias| read(bias, "bias", like, &[outputs])).transpose()?;
    let mut sources = vec![&x, &weight];
    sources.extend(&bias);
    let mut out = written(out, "out", like, &[rows, outputs])?;
    require_disjoint(&mut [&mut out], sources)?;
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (x, weight, bias, out) = unsafe {
            (
                x.slice::<T>()?,
                weight.slice::<T>()?,
                bias.as_ref().map(|bias| bias.slice::<T>()).transpose()?,
                out.slice_mut::<T>()?,
            )
        };
        run(py, || {
            let weight = Matrix::row_major(weight, outputs, inputs).transposed();
            gemm::affine(Matrix::row_major(x, rows, inputs), weight, bias, out);
        })
    })
}

/// Writes the gradients of [`linear`] where asked for: `dy @ weight` to `dx`, `dy.T @ x` to
/// `dw`.
#[pyfunction]
pub fn linear_backward(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    weight: &Bound<'_, PyAny>,
    dy: &Bound<'_, PyAny>,
    dx: &Bound<'_, PyAny>,
    dw: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (weight, dtype) = first(weight, "weight")?;
    weight.require_ndim(2)?;
    let like = (dtype, "weight");
    let [outputs, inputs] = pair(&weight);
    let dy = Array::new(dy, Name("dy", ""))?;
    dy.require_ndim(2)?;
    let rows = dy.array.shape()[0];
    let dy = read(&dy.array, "dy", like, &[rows, outputs])?;
    let x = read(x, "x", like, &[rows, inputs])?;
    let sources = [&x, &weight, &dy];
    let mut dx = written(dx, "dx", like, &[rows, inputs])?;
    let mut dw = written(dw, "dw", like, &[outputs, inputs])?;
    require_disjoint(&mut [&mut dx, &mut dw], sources)?;
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (x, weight, dy, dx, dw) = unsafe {
            (
                x.slice::<T>()?,
                weight.slice::<T>()?,
                dy.slice::<T>()?,
                dx.slice_mut::<T>()?,
                dw.slice_mut::<T>()?,
            )
        };
        run(py, || {
            let dy = Matrix::row_major(dy, rows, outputs);
            gemm::affine(dy.transposed(), Matrix::row_major(x, rows, inputs), None, dw);
            gemm::affine(dy, Matrix::row_major(weight, outputs, inputs), None, dx);
        })
    })
}
