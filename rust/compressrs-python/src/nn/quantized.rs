//! Layers whose inputs are in codes of eight bits.

use compressrs_core::nn::conv::{Filters, Scaling, forward_in_codes};
use compressrs_core::quantize::fixed_codes as core_fixed_codes;
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::conv::geometry;
use super::{Two, read, written};
use crate::arguments::Name;
use crate::buffers::Array;
use crate::dtype::Compute;
use crate::errors::run;
use crate::overlap::require_disjoint;
use crate::quantized_matrix::PackedWeights;

/// What other arrays have the dtype of.
const LIKE: (Compute, &str) = (Compute::F32, "the products");

/// A scale and a zero point that kernels take.
fn parameters((scale, zero): (f32, i8)) -> PyResult<(f32, i8)> {
    if !scale.is_normal() || scale < 0.0 {
        let need = "scale must be a normal, positive float32";
        return Err(PyValueError::new_err(format!("{need}, got {scale}")));
    }
    Ok((scale, zero))
}

/// Writes the convolution of images `[images, channels, height, width]`, quantized image by
/// image, with the packed filters of each group to `out`. Filters have the size `kernel`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "all that a convolution depends on")]
pub fn conv2d_in_codes(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    weights: Vec<Py<PackedWeights>>,
    bias: Option<&Bound<'_, PyAny>>,
    kernel: Two,
    channels_last: bool,
    stride: Two,
    padding: Two,
    dilation: Two,
    fixed: Option<(f32, i8)>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let filters: Vec<_> = weights.iter().map(|of_group| of_group.get().weights()).collect();
    let Some(first) = filters.first() else {
        return Err(PyValueError::new_err("weights must be of at least one group, got none"));
    };
    let (each, columns) = (first.channels(), first.columns().count);
    let places = kernel.0.checked_mul(kernel.1).filter(|places| *places > 0);
    let Some(channels) = places.filter(|places| columns > 0 && columns.is_multiple_of(*places))
    else {
        return Err(PyValueError::new_err(format!(
            "kernel must divide the {columns} columns of weights, got {kernel:?}"
        )));
    };
    let channels = columns / channels;
    if filters.iter().any(|w| (w.channels(), w.columns().count) != (each, columns)) {
        return Err(PyValueError::new_err("weights must have one shape, got several"));
    }
    let groups = filters.len();
    let scaling = match fixed.map(parameters).transpose()? {
        None => Scaling::Dynamic,
        Some((scale, zero)) => Scaling::Static(scale, zero),
    };
    let x = Array::new(x, Name("x", ""))?;
    let shape = [groups * each, channels, kernel.0, kernel.1];
    let (geometry, shape) = geometry(x.array.shape(), &shape, stride, padding, dilation, groups)?;
    let x = read(&x.array, "x", LIKE, x.array.shape())?;
    let bias = bias.map(|bias| read(bias, "bias", LIKE, &shape[1..2])).transpose()?;
    let mut out = written(out, "out", LIKE, &shape)?;
    require_disjoint(&mut [&mut out], [&x].into_iter().chain(&bias))?;
    // SAFETY: checked above; nothing else writes to them here.
    let (x, bias, out) = unsafe {
        (
            x.slice::<f32>()?,
            bias.as_ref().map(|bias| bias.slice::<f32>()).transpose()?,
            out.slice_mut::<f32>()?,
        )
    };
    let filters = Filters { groups: &filters, channels_last, bias };
    run(py, || forward_in_codes(&geometry, x, filters, scaling, out))
}

/// Writes the codes of rows for a scale and a zero point, and the scale of each row: NaN
/// where it is not finite.
#[pyfunction]
pub fn fixed_codes(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    scale: f32,
    zero_point: i8,
    codes: &Bound<'_, PyAny>,
    scales: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let fixed = parameters((scale, zero_point))?;
    let x = Array::new(x, Name("x", ""))?;
    x.require_ndim(2)?;
    let (rows, columns) = (x.array.shape()[0], x.array.shape()[1]);
    let x = read(&x.array, "x", LIKE, &[rows, columns])?;
    let mut codes = Array::new(codes, Name("codes", ""))?;
    codes.require_element::<i8>()?;
    codes.require_shape(&[rows, columns], "x")?;
    codes.require_in_place()?;
    let mut scales = written(scales, "scales", LIKE, &[rows])?;
    require_disjoint(&mut [&mut codes, &mut scales], [&x])?;
    // SAFETY: checked above; nothing else writes to them here.
    let (x, codes, scales) =
        unsafe { (x.slice::<f32>()?, codes.slice_mut::<i8>()?, scales.slice_mut::<f32>()?) };
    run(py, || core_fixed_codes(x, columns, fixed, codes, scales))
}
