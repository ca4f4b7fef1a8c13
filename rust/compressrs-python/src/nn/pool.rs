//! Pooling: forward and backward.

use compressrs_core::nn::pool as pooling;
use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;

use super::{Two, first, read, require_exact, side, written};
use crate::arguments::{Name, Shape};
use crate::buffers::Array;
use crate::dtype::with_compute;
use crate::errors::run;
use crate::overlap::require_disjoint;

/// Windows over images, and the shape of their result.
fn windows(
    x: &[usize],
    kernel: Two,
    stride: Two,
    padding: Two,
) -> PyResult<(pooling::Windows, [usize; 4])> {
    let &[images, channels, height, width] = x else {
        return Err(Name("x", "").value_error("have 4 axes", format_args!("shape {}", Shape(x))));
    };
    if height.checked_mul(width).is_none_or(|places| u32::try_from(places).is_err()) {
        return Err(Name("x", "").value_error("have planes of fewer than 2^32 places", Shape(x)));
    }
    let (rows, down) = side((height, kernel.0), (stride.0, padding.0, 1))?;
    let (columns, right) = side((width, kernel.1), (stride.1, padding.1, 1))?;
    let windows = pooling::Windows { planes: images * channels, rows, columns };
    Ok((windows, [images, channels, down, right]))
}

/// Returns the shape of what a pooling gives.
#[pyfunction]
pub fn pool_shape(x: Vec<usize>, kernel: Two, stride: Two, padding: Two) -> PyResult<[usize; 4]> {
    Ok(windows(&x, kernel, stride, padding)?.1)
}

/// Writes the largest of each window to `out` and its place, uint32, to `places`; or, without
/// `places`, the mean.
#[pyfunction]
pub fn pool(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    kernel: Two,
    stride: Two,
    padding: Two,
    out: &Bound<'_, PyAny>,
    places: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let (x, dtype) = first(x, "x")?;
    let (windows, shape) = windows(x.array.shape(), kernel, stride, padding)?;
    let mut out = written(out, "out", (dtype, "x"), &shape)?;
    let mut places = places.map(|places| self::places(places, &shape)).transpose()?;
    let mut outputs = vec![&mut out];
    outputs.extend(&mut places);
    require_disjoint(&mut outputs, [&x])?;
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (x, out, places) = unsafe {
            (
                x.slice::<T>()?,
                out.slice_mut::<T>()?,
                places.as_mut().map(|places| places.slice_mut::<u32>()).transpose()?,
            )
        };
        run(py, || match places {
            Some(places) => pooling::max(&windows, x, out, places),
            None => pooling::mean(&windows, x, out),
        })
    })
}

/// Writes the gradient of [`pool`] to `dx`.
#[pyfunction]
pub fn pool_backward(
    py: Python<'_>,
    dy: &Bound<'_, PyAny>,
    kernel: Two,
    stride: Two,
    padding: Two,
    places: Option<&Bound<'_, PyAny>>,
    dx: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let dx = Array::new(dx, Name("dx", ""))?;
    let dtype = dx.compute_dtype()?;
    let (windows, shape) = windows(dx.array.shape(), kernel, stride, padding)?;
    let dy = read(dy, "dy", (dtype, "dx"), &shape)?;
    let places = places.map(|places| self::places(places, &shape)).transpose()?;
    let mut sources = vec![&dy];
    sources.extend(&places);
    let mut dx = written(&dx.array, "dx", (dtype, "dx"), dx.array.shape())?;
    require_disjoint(&mut [&mut dx], sources)?;
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here. Places may change
        // meanwhile: the kernel checks each when it reads it.
        let (dy, places, dx) = unsafe {
            (
                dy.slice::<T>()?,
                places.as_ref().map(|places| places.slice::<u32>()).transpose()?,
                dx.slice_mut::<T>()?,
            )
        };
        run(py, || match places {
            Some(places) => pooling::max_backward(&windows, places, dy, dx),
            None => pooling::mean_backward(&windows, dy, dx),
        })
    })
}

fn places<'py>(object: &Bound<'py, PyAny>, shape: &[usize]) -> PyResult<Array<'py, 'static>> {
    let places = Array::new(object, Name("places", ""))?;
    places.require_element::<u32>()?;
    require_exact(&places, shape)?;
    places.require_in_place()?;
    Ok(places)
}
