//! Normalizations: forward and backward.

use compressrs_core::nn::norm;
use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;

use super::{first, read, written};
use crate::arguments::{Name, Shape};
use crate::buffers::Array;
use crate::dtype::with_compute;
use crate::errors::run;
use crate::overlap::require_disjoint;

/// Normalizes rows `[rows, width]` to `out`; `mean` and `scale`, `[rows]`, are kept.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "inputs and outputs")]
pub fn layer_norm(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    weight: &Bound<'_, PyAny>,
    bias: Option<&Bound<'_, PyAny>>,
    eps: f64,
    out: &Bound<'_, PyAny>,
    mean: &Bound<'_, PyAny>,
    scale: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (weight, dtype) = first(weight, "weight")?;
    weight.require_ndim(1)?;
    let like = (dtype, "weight");
    let width = weight.array.len();
    let x = Array::new(x, Name("x", ""))?;
    x.require_ndim(2)?;
    let rows = x.array.shape()[0];
    let x = read(&x.array, "x", like, &[rows, width])?;
    let bias = bias.map(|bias| read(bias, "bias", like, &[width])).transpose()?;
    let mut sources = vec![&x, &weight];
    sources.extend(&bias);
    let mut out = written(out, "out", like, &[rows, width])?;
    let mut mean = written(mean, "mean", like, &[rows])?;
    let mut scale = written(scale, "scale", like, &[rows])?;
    require_disjoint(&mut [&mut out, &mut mean, &mut scale], sources)?;
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (x, weight, bias, out, mean, scale) = unsafe {
            (
                x.slice::<T>()?,
                weight.slice::<T>()?,
                bias.as_ref().map(|bias| bias.slice::<T>()).transpose()?,
                out.slice_mut::<T>()?,
                mean.slice_mut::<T>()?,
                scale.slice_mut::<T>()?,
            )
        };
        run(py, || norm::layer_norm(x, weight, bias, eps, out, (mean, scale)))
    })
}

/// Writes the gradients of [`layer_norm`].
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "inputs and outputs")]
pub fn layer_norm_backward(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    mean: &Bound<'_, PyAny>,
    scale: &Bound<'_, PyAny>,
    weight: &Bound<'_, PyAny>,
    dy: &Bound<'_, PyAny>,
    dx: &Bound<'_, PyAny>,
    dw: &Bound<'_, PyAny>,
    db: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (weight, dtype) = first(weight, "weight")?;
    weight.require_ndim(1)?;
    let like = (dtype, "weight");
    let width = weight.array.len();
    let dy = Array::new(dy, Name("dy", ""))?;
    dy.require_ndim(2)?;
    let rows = dy.array.shape()[0];
    let dy = read(&dy.array, "dy", like, &[rows, width])?;
    let x = read(x, "x", like, &[rows, width])?;
    let (mean, scale) = (read(mean, "mean", like, &[rows])?, read(scale, "scale", like, &[rows])?);
    let sources = [&x, &mean, &scale, &weight, &dy];
    let mut dx = written(dx, "dx", like, &[rows, width])?;
    let mut dw = written(dw, "dw", like, &[width])?;
    let mut db = written(db, "db", like, &[width])?;
    require_disjoint(&mut [&mut dx, &mut dw, &mut db], sources)?;
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (of, weight, dy, dx, dw, db) = unsafe {
            let (x, mean, scale) = (x.slice::<T>()?, mean.slice::<T>()?, scale.slice::<T>()?);
            (
                norm::Normalized { x, mean, scale },
                weight.slice::<T>()?,
                dy.slice::<T>()?,
                dx.slice_mut::<T>()?,
                dw.slice_mut::<T>()?,
                db.slice_mut::<T>()?,
            )
        };
        run(py, || norm::layer_norm_backward(of, weight, dy, dx, (dw, db)))
    })
}

/// An array `[images, channels, ...]`.
fn channels(x: &Array<'_, '_>) -> PyResult<norm::Channels> {
    match x.array.shape() {
        &[images, channels, ref places @ ..] => {
            Ok(norm::Channels { images, channels, places: places.iter().product() })
        }
        shape => {
            let got = format!("shape {}", Shape(shape));
            Err(x.name.value_error("have at least 2 axes", got))
        }
    }
}

/// Writes mean and variance of each channel of `[images, channels, ...]`, the inverse of
/// `sqrt(variance + eps)`, and what the mean is more than the one that is written.
#[pyfunction]
pub fn channel_moments(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    eps: f64,
    mean: &Bound<'_, PyAny>,
    rest: &Bound<'_, PyAny>,
    var: &Bound<'_, PyAny>,
    inverse: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (x, dtype) = first(x, "x")?;
    let shape = channels(&x)?;
    let mut mean = written(mean, "mean", (dtype, "x"), &[shape.channels])?;
    let mut rest = written(rest, "rest", (dtype, "x"), &[shape.channels])?;
    let mut var = written(var, "var", (dtype, "x"), &[shape.channels])?;
    let mut inverse = written(inverse, "inverse", (dtype, "x"), &[shape.channels])?;
    require_disjoint(&mut [&mut mean, &mut rest, &mut var, &mut inverse], [&x])?;
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (x, moments) = unsafe {
            let (mean, var) = (mean.slice_mut::<T>()?, var.slice_mut::<T>()?);
            let (rest, inverse) = (rest.slice_mut::<T>()?, inverse.slice_mut::<T>()?);
            (x.slice::<T>()?, norm::ChannelMoments { mean, rest, var, inverse })
        };
        run(py, || norm::channel_moments(shape, x, eps, moments))
    })
}

/// Writes `(x - mean) scale + bias` for each channel to `out`.
#[pyfunction]
pub fn scale_channels(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    mean: &Bound<'_, PyAny>,
    scale: &Bound<'_, PyAny>,
    bias: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (x, dtype) = first(x, "x")?;
    let shape = channels(&x)?;
    let like = (dtype, "x");
    let mean = read(mean, "mean", like, &[shape.channels])?;
    let scale = read(scale, "scale", like, &[shape.channels])?;
    let bias = read(bias, "bias", like, &[shape.channels])?;
    let mut out = written(out, "out", like, x.array.shape())?;
    require_disjoint(&mut [&mut out], [&x, &mean, &scale, &bias])?;
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (x, by, out) = unsafe {
            let (mean, scale, bias) =
                (mean.slice::<T>()?, scale.slice::<T>()?, bias.slice::<T>()?);
            (x.slice::<T>()?, norm::Affine { mean, scale, bias }, out.slice_mut::<T>()?)
        };
        run(py, || norm::scale_channels(shape, x, by, out))
    })
}

/// Writes the gradients of a normalization by the batch's own moments.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "inputs and outputs")]
pub fn batch_norm_backward(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    mean: &Bound<'_, PyAny>,
    rest: &Bound<'_, PyAny>,
    scale: &Bound<'_, PyAny>,
    weight: &Bound<'_, PyAny>,
    dy: &Bound<'_, PyAny>,
    dx: &Bound<'_, PyAny>,
    dw: &Bound<'_, PyAny>,
    db: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (x, dtype) = first(x, "x")?;
    let shape = channels(&x)?;
    let like = (dtype, "x");
    let each = [shape.channels];
    let (mean, scale) = (read(mean, "mean", like, &each)?, read(scale, "scale", like, &each)?);
    let rest = read(rest, "rest", like, &each)?;
    let weight = read(weight, "weight", like, &each)?;
    let dy = read(dy, "dy", like, x.array.shape())?;
    let sources = [&x, &mean, &rest, &scale, &weight, &dy];
    let mut dx = written(dx, "dx", like, x.array.shape())?;
    let mut dw = written(dw, "dw", like, &each)?;
    let mut db = written(db, "db", like, &each)?;
    require_disjoint(&mut [&mut dx, &mut dw, &mut db], sources)?;
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (of, rest, weight, dy, dx, dw, db) = unsafe {
            let (x, mean, scale) = (x.slice::<T>()?, mean.slice::<T>()?, scale.slice::<T>()?);
            (
                norm::Normalized { x, mean, scale },
                rest.slice::<T>()?,
                weight.slice::<T>()?,
                dy.slice::<T>()?,
                dx.slice_mut::<T>()?,
                dw.slice_mut::<T>()?,
                db.slice_mut::<T>()?,
            )
        };
        run(py, || norm::batch_norm_backward(shape, of, rest, weight, dy, dx, (dw, db)))
    })
}
