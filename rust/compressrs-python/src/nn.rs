//! Layers of neural networks: forward and backward.

use compressrs_core::linalg::gemm::{self, Matrix};
use compressrs_core::nn::{activation, attention, conv, embedding, norm, pool as pooling};
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;

use crate::buffers::{Array, Compute, Name, Shape, with_compute};
use crate::errors::run;
use crate::overlap::require_disjoint;

/// An array to read, with a copy in C order if it is not in that, and its dtype.
fn first<'py>(
    object: &Bound<'py, PyAny>,
    name: &'static str,
) -> PyResult<(Array<'py, 'static>, Compute)> {
    let array = Array::new(object, Name(name, ""))?;
    let dtype = array.compute_dtype()?;
    Ok((array.contiguous()?, dtype))
}

/// An array to read, of the same dtype as another.
fn read<'py>(
    object: &Bound<'py, PyAny>,
    name: &'static str,
    (dtype, like): (Compute, &str),
    shape: &[usize],
) -> PyResult<Array<'py, 'static>> {
    let array = Array::new(object, Name(name, ""))?;
    array.require_dtype(dtype, like)?;
    require_exact(&array, shape)?;
    array.contiguous()
}

/// An array to write to, of which it has to be found out what it overlaps.
fn written<'py>(
    object: &Bound<'py, PyAny>,
    name: &'static str,
    (dtype, like): (Compute, &str),
    shape: &[usize],
) -> PyResult<Array<'py, 'static>> {
    let array = Array::new(object, Name(name, ""))?;
    array.require_dtype(dtype, like)?;
    require_exact(&array, shape)?;
    array.require_in_place()?;
    Ok(array)
}

fn require_exact(array: &Array<'_, '_>, shape: &[usize]) -> PyResult<()> {
    if array.array.shape() == shape {
        return Ok(());
    }
    let need = format!("have shape {}", Shape(shape));
    Err(array.name.value_error(need, Shape(array.array.shape())))
}

/// Runs a kernel that may find no memory.
fn run_fallibly(
    py: Python<'_>,
    kernel: impl FnOnce() -> Result<(), conv::OutOfMemory> + Send,
) -> PyResult<()> {
    run(py, kernel)?.map_err(|_| PyMemoryError::new_err("no memory for the padded image"))
}

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

fn pair(array: &Array<'_, '_>) -> [usize; 2] {
    [array.array.shape()[0], array.array.shape()[1]]
}

/// Height and width of something.
type Two = (usize, usize);

/// What a convolution, or a pooling, has along an axis.
fn side(
    (input, kernel): Two,
    (stride, padding, dilation): (usize, usize, usize),
) -> PyResult<(conv::Side, usize)> {
    if stride == 0 || dilation == 0 {
        return Err(PyValueError::new_err("stride and dilation must be at least 1, got 0"));
    }
    let side = conv::Side { input, kernel, stride, padding, dilation };
    match side.output() {
        Some(output) => Ok((side, output)),
        None => Err(PyValueError::new_err(format!(
            "x must be at least as large as the kernel: {input} places with padding {padding} \
             on each side for {kernel} places with dilation {dilation}"
        ))),
    }
}

/// A convolution of an image of this shape, and the shape of its result.
fn geometry(
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

/// Writes the gradients of [`conv2d`] to `dx` (if not None), `dw` and `db` (if not None).
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
    dw: &Bound<'_, PyAny>,
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
    let mut dw = written(dw, "dw", like, weight.array.shape())?;
    let mut db = db.map(|db| written(db, "db", like, &shape[1..2])).transpose()?;
    let mut outputs = vec![&mut dx, &mut dw];
    outputs.extend(&mut db);
    require_disjoint(&mut outputs, [&x, &weight, &dy])?;
    let channels =
        norm::Channels { images: shape[0], channels: shape[1], places: shape[2] * shape[3] };
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (x, weight, dy, dx, dw, db) = unsafe {
            (
                x.slice::<T>()?,
                weight.slice::<T>()?,
                dy.slice::<T>()?,
                dx.slice_mut::<T>()?,
                dw.slice_mut::<T>()?,
                db.as_mut().map(|db| db.slice_mut::<T>()).transpose()?,
            )
        };
        run_fallibly(py, || {
            conv::weight_gradient(&geometry, x, dy, dw)?;
            if let Some(db) = db {
                norm::channel_sums(channels, dy, db);
            }
            conv::input_gradient(&geometry, dy, weight, dx)
        })
    })
}

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

/// Writes the gradient of `y = softmax(x)` along the last axis to `dx`.
#[pyfunction]
pub fn softmax_backward(
    py: Python<'_>,
    y: &Bound<'_, PyAny>,
    dy: &Bound<'_, PyAny>,
    dx: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (y, dtype) = first(y, "y")?;
    let dy = read(dy, "dy", (dtype, "y"), y.array.shape())?;
    let mut dx = written(dx, "dx", (dtype, "y"), y.array.shape())?;
    require_disjoint(&mut [&mut dx], [&y, &dy])?;
    let columns = y.array.shape().last().copied().unwrap_or(1);
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (y, dy, dx) = unsafe { (y.slice::<T>()?, dy.slice::<T>()?, dx.slice_mut::<T>()?) };
        run(py, || attention::softmax_backward(columns, y, dy, dx))
    })
}

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

/// Writes mean and variance of each channel of `[images, channels, ...]`.
#[pyfunction]
pub fn channel_moments(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    mean: &Bound<'_, PyAny>,
    var: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (x, dtype) = first(x, "x")?;
    let shape = channels(&x)?;
    let mut mean = written(mean, "mean", (dtype, "x"), &[shape.channels])?;
    let mut var = written(var, "var", (dtype, "x"), &[shape.channels])?;
    require_disjoint(&mut [&mut mean, &mut var], [&x])?;
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (x, mean, var) = unsafe { (x.slice::<T>()?, mean.slice_mut::<T>()?, var.slice_mut::<T>()?) };
        run(py, || norm::channel_moments(shape, x, mean, var))
    })
}

/// Writes `x scale + shift`, with a scale and a shift for each channel, to `out`.
#[pyfunction]
pub fn scale_channels(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    scale: &Bound<'_, PyAny>,
    shift: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (x, dtype) = first(x, "x")?;
    let shape = channels(&x)?;
    let like = (dtype, "x");
    let scale = read(scale, "scale", like, &[shape.channels])?;
    let shift = read(shift, "shift", like, &[shape.channels])?;
    let mut out = written(out, "out", like, x.array.shape())?;
    require_disjoint(&mut [&mut out], [&x, &scale, &shift])?;
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (x, scale, shift, out) = unsafe {
            (x.slice::<T>()?, scale.slice::<T>()?, shift.slice::<T>()?, out.slice_mut::<T>()?)
        };
        run(py, || norm::scale_channels(shape, x, scale, shift, out))
    })
}

/// Writes the gradients of a normalization by the batch's own moments.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "inputs and outputs")]
pub fn batch_norm_backward(
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
    let (x, dtype) = first(x, "x")?;
    let shape = channels(&x)?;
    let like = (dtype, "x");
    let each = [shape.channels];
    let (mean, scale) = (read(mean, "mean", like, &each)?, read(scale, "scale", like, &each)?);
    let weight = read(weight, "weight", like, &each)?;
    let dy = read(dy, "dy", like, x.array.shape())?;
    let sources = [&x, &mean, &scale, &weight, &dy];
    let mut dx = written(dx, "dx", like, x.array.shape())?;
    let mut dw = written(dw, "dw", like, &each)?;
    let mut db = written(db, "db", like, &each)?;
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
        run(py, || norm::batch_norm_backward(shape, of, weight, dy, dx, (dw, db)))
    })
}

/// Adds rows of `dy` `[ids, width]` to the rows of `out` that int64 ids name.
#[pyfunction]
pub fn add_rows(
    py: Python<'_>,
    ids: &Bound<'_, PyAny>,
    dy: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let ids = Array::new(ids, Name("ids", ""))?;
    ids.require_element::<i64>()?;
    ids.require_ndim(1)?;
    let ids = ids.contiguous()?;
    let out = Array::new(out, Name("out", ""))?;
    let dtype = out.compute_dtype()?;
    out.require_ndim(2)?;
    let [rows, width] = pair(&out);
    let dy = read(dy, "dy", (dtype, "out"), &[ids.array.len(), width])?;
    let mut out = written(&out.array, "out", (dtype, "out"), &[rows, width])?;
    require_disjoint(&mut [&mut out], [&ids, &dy])?;
    // Copied, so that no other thread changes them once they are checked.
    // SAFETY: of int64; the GIL is held.
    let given = unsafe { ids.slice::<i64>() }?.to_vec();
    let index = |&id: &i64| {
        usize::try_from(id).ok().filter(|&id| id < rows).ok_or_else(|| {
            ids.name.value_error(format_args!("be from 0 to {}", rows as i64 - 1), id)
        })
    };
    let indices = given.iter().map(index).collect::<PyResult<Vec<usize>>>()?;
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (dy, out) = unsafe { (dy.slice::<T>()?, out.slice_mut::<T>()?) };
        run(py, || embedding::add_rows(&indices, dy, width, out))
    })
}

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

/// The sizes of an attention of queries and keys `[batch, length, features]`.
fn heads(
    q: &Array<'_, '_>,
    k: &Array<'_, '_>,
    heads: usize,
    causal: bool,
) -> PyResult<attention::Heads> {
    let (&[batch, queries, features], &[of_keys, keys, width]) = (q.array.shape(), k.array.shape())
    else {
        let got = format!("shapes {} and {}", Shape(q.array.shape()), Shape(k.array.shape()));
        return Err(q.name.value_error("have 3 axes, as those of k", got));
    };
    if batch != of_keys || features != width || heads == 0 || !features.is_multiple_of(heads) {
        return Err(PyValueError::new_err(format!(
            "q and k must have the same batch and features, a multiple of {heads} heads, got {} and {}",
            Shape(q.array.shape()),
            Shape(k.array.shape())
        )));
    }
    Ok(attention::Heads { batch, queries, keys, heads, width: features / heads, causal })
}

/// Writes attention to `out` and its probabilities `[batch, heads, queries, keys]`; int64
/// `lengths` are the numbers of keys that count, of each sequence.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "inputs and outputs")]
pub fn attend(
    py: Python<'_>,
    q: &Bound<'_, PyAny>,
    k: &Bound<'_, PyAny>,
    v: &Bound<'_, PyAny>,
    heads: usize,
    causal: bool,
    lengths: Option<&Bound<'_, PyAny>>,
    probabilities: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (q, dtype) = first(q, "q")?;
    let like = (dtype, "q");
    let k = Array::new(k, Name("k", ""))?;
    let heads = self::heads(&q, &k, heads, causal)?;
    let k = read(&k.array, "k", like, k.array.shape())?;
    let v = read(v, "v", like, k.array.shape())?;
    let shape = [heads.batch, heads.heads, heads.queries, heads.keys];
    let mut probabilities = written(probabilities, "probabilities", like, &shape)?;
    let mut out = written(out, "out", like, q.array.shape())?;
    require_disjoint(&mut [&mut probabilities, &mut out], [&q, &k, &v])?;
    let lengths = lengths.map(|lengths| self::lengths(lengths, &heads)).transpose()?;
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (q, k, v, probabilities, out) = unsafe {
            (
                q.slice::<T>()?,
                k.slice::<T>()?,
                v.slice::<T>()?,
                probabilities.slice_mut::<T>()?,
                out.slice_mut::<T>()?,
            )
        };
        run(py, || attention::forward(&heads, (q, k, v), lengths.as_deref(), probabilities, out))
    })
}

fn lengths(object: &Bound<'_, PyAny>, heads: &attention::Heads) -> PyResult<Vec<usize>> {
    let lengths = Array::new(object, Name("lengths", ""))?;
    lengths.require_element::<i64>()?;
    require_exact(&lengths, &[heads.batch])?;
    let lengths = lengths.contiguous()?;
    // SAFETY: of int64; nothing writes to them while the GIL is held.
    let given = unsafe { lengths.slice::<i64>() }?;
    given
        .iter()
        .map(|&length| {
            let fits = usize::try_from(length).ok().filter(|n| (1..=heads.keys).contains(n));
            fits.ok_or_else(|| {
                lengths.name.value_error(format_args!("be from 1 to {}", heads.keys), length)
            })
        })
        .collect()
}

/// Writes the gradients of [`attend`].
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "inputs and outputs")]
pub fn attend_backward(
    py: Python<'_>,
    q: &Bound<'_, PyAny>,
    k: &Bound<'_, PyAny>,
    v: &Bound<'_, PyAny>,
    heads: usize,
    probabilities: &Bound<'_, PyAny>,
    dy: &Bound<'_, PyAny>,
    dq: &Bound<'_, PyAny>,
    dk: &Bound<'_, PyAny>,
    dv: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (q, dtype) = first(q, "q")?;
    let like = (dtype, "q");
    let k = Array::new(k, Name("k", ""))?;
    let heads = self::heads(&q, &k, heads, false)?;
    let k = read(&k.array, "k", like, k.array.shape())?;
    let v = read(v, "v", like, k.array.shape())?;
    let shape = [heads.batch, heads.heads, heads.queries, heads.keys];
    let probabilities = read(probabilities, "probabilities", like, &shape)?;
    let dy = read(dy, "dy", like, q.array.shape())?;
    let sources = [&q, &k, &v, &probabilities, &dy];
    let mut dq = written(dq, "dq", like, q.array.shape())?;
    let mut dk = written(dk, "dk", like, k.array.shape())?;
    let mut dv = written(dv, "dv", like, k.array.shape())?;
    require_disjoint(&mut [&mut dq, &mut dk, &mut dv], sources)?;
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (q, k, v, p, dy, gradients) = unsafe {
            (
                q.slice::<T>()?,
                k.slice::<T>()?,
                v.slice::<T>()?,
                probabilities.slice::<T>()?,
                dy.slice::<T>()?,
                (dq.slice_mut::<T>()?, dk.slice_mut::<T>()?, dv.slice_mut::<T>()?),
            )
        };
        run(py, || attention::backward(&heads, (q, k, v), p, dy, gradients))
    })
}
