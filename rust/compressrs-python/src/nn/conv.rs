//! Convolutions: forward and backward.

use compressrs_core::nn::{conv, norm};
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;

use super::{Two, first, read, side, written};
use crate::arguments::{Name, Shape};
use crate::buffers::Array;
use crate::dtype::with_compute;
use crate::errors::run;
use crate::overlap::require_disjoint;

/// Runs a kernel that may find no memory.
fn run_fallibly(
    py: Python<'_>,
    kernel: impl FnOnce() -> Result<(), conv::OutOfMemory> + Send,
) -> PyResult<()> {
    run(py, kernel)?.map_err(|_| PyMemoryError::new_err("no memory for the padded image"))
}

/// A convolution of an image of this shape, and the shape of its result.
pub(super) fn geometry(
    x: &[usize],
    weight: &[usize],
    stride: Two,
    padding: Two,
    dilation: Two,
    groups: usize,
) -> PyResult<(conv::Geometry, [usize; 4])> {
    let &[images, channels, height, width] = x else {
        return Err(Name("x", "").value_error("have 4 axes", format_args!("shape {}", Shape(x))));
    };
    let &[filters, own, rows, columns] = weight else {
        let got = format!("shape {}", Shape(weight));
        return Err(Name("weight", "").value_error("have 4 axes", got));
    };
    if groups == 0 || !filters.is_multiple_of(groups) || own.checked_mul(groups) != Some(channels) {
        return Err(PyValueError::new_err(format!(
            "x must have {own} channels for each of {groups} groups, and weight filters for each, \
             got shapes {} and {}",
            Shape(x),
            Shape(weight)
        )));
    }
    let (rows, height) = side((height, rows), (stride.0, padding.0, dilation.0))?;
    let (columns, width) = side((width, columns), (stride.1, padding.1, dilation.1))?;
    let filters_of_group = filters / groups;
    let geometry =
        conv::Geometry { images, groups, channels: own, filters: filters_of_group, rows, columns };
    Ok((geometry, [images, filters, height, width]))
}

/// Returns the shape of a convolution's result, or a reason why there is none.
#[pyfunction]
pub fn conv2d_shape(
    x: Vec<usize>,
    weight: Vec<usize>,
    stride: Two,
    padding: Two,
    dilation: Two,
    groups: usize,
) -> PyResult<[usize; 4]> {
    Ok(geometry(&x, &weight, stride, padding, dilation, groups)?.1)
}

/// Writes the correlation of images `[images, channels, height, width]` with filters
/// `[filters, channels / groups, height, width]` to `out`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "all that a convolution depends on")]
pub fn conv2d(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    weight: &Bound<'_, PyAny>,
    bias: Option<&Bound<'_, PyAny>>,
    stride: Two,
    padding: Two,
    dilation: Two,
    groups: usize,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (weight, dtype) = first(weight, "weight")?;
    let like = (dtype, "weight");
    let x = Array::new(x, Name("x", ""))?;
    let (geometry, shape) =
        geometry(x.array.shape(), weight.array.shape(), stride, padding, dilation, groups)?;
    let x = read(&x.array, "x", like, x.array.shape())?;
    let bias = bias.map(|bias| read(bias, "bias", like, &shape[1..2])).transpose()?;
    let mut sources = vec![&x, &weight];
    sources.extend(&bias);
    let mut out = written(out, "out", like, &shape)?;
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
        run_fallibly(py, || conv::forward(&geometry, x, weight, bias, out))
    })
}

/// Writes the gradients of [`conv2d`] to `dx`, and to `dw` and `db` if they are not None;
/// without `dw` of `x` only the shape counts, and it may be `dx`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "all that a convolution depends on")]
pub fn conv2d_backward(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    weight: &Bound<'_, PyAny>,
    dy: &Bound<'_, PyAny>,
    stride: Two,
    padding: Two,
    dilation: Two,
    groups: usize,
    dx: &Bound<'_, PyAny>,
    dw: Option<&Bound<'_, PyAny>>,
    db: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let (weight, dtype) = first(weight, "weight")?;
    let like = (dtype, "weight");
    let x = Array::new(x, Name("x", ""))?;
    let (geometry, shape) =
        geometry(x.array.shape(), weight.array.shape(), stride, padding, dilation, groups)?;
    let x = read(&x.array, "x", like, x.array.shape())?;
    let dy = read(dy, "dy", like, &shape)?;
    let mut dx = written(dx, "dx", like, x.array.shape())?;
    let mut dw = dw.map(|dw| written(dw, "dw", like, weight.array.shape())).transpose()?;
    let mut db = db.map(|db| written(db, "db", like, &shape[1..2])).transpose()?;
    let mut sources = vec![&weight, &dy];
    if dw.is_some() {
        sources.push(&x);
    }
    let mut outputs = vec![&mut dx];
    outputs.extend(&mut dw);
    outputs.extend(&mut db);
    require_disjoint(&mut outputs, sources)?;
    let channels =
        norm::Channels { images: shape[0], channels: shape[1], places: shape[2] * shape[3] };
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (weight, dy, dx, dw, db) = unsafe {
            (
                weight.slice::<T>()?,
                dy.slice::<T>()?,
                dx.slice_mut::<T>()?,
                dw.as_mut().map(|dw| Ok::<_, PyErr>((x.slice::<T>()?, dw.slice_mut::<T>()?))).transpose()?,
                db.as_mut().map(|db| db.slice_mut::<T>()).transpose()?,
            )
        };
        run_fallibly(py, || {
            if let Some((x, dw)) = dw {
                conv::weight_gradient(&geometry, x, dy, dw)?;
            }
            if let Some(db) = db {
                norm::channel_sums(channels, dy, db);
            }
            conv::input_gradient(&geometry, dy, weight, dx)
        })
    })
}
