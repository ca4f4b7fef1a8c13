//! Softmax with temperature.

use compressrs_core::distill as core;
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::PerRow;
use crate::arguments::Name;
use crate::buffers::Array;
use crate::dtype::with_dtype;
use crate::errors::run;
use crate::overlap::require_disjoint;

/// Writes `softmax(z / temperature)` along an axis to `out`, or its logarithm; `out`
/// may be `z` itself. Temperatures are a number or float64, one a row.
#[pyfunction]
pub fn softmax(
    py: Python<'_>,
    z: &Bound<'_, PyAny>,
    temperature: &Bound<'_, PyAny>,
    axis: usize,
    log: bool,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let z = Array::new(z, Name("z", ""))?;
    let dtype = z.float_dtype()?;
    let mut out = Array::new(out, Name("out", ""))?;
    out.require_dtype(dtype, z.name)?;
    out.require_shape(z.array.shape(), z.name)?;
    out.require_in_place()?;
    let axis = view(&z, axis)?;
    let temperature = PerRow::new(temperature, Name("temperature", ""), axis.rows())?;
    // In place, `z` itself is not looked at.
    let same = z.data() == out.data() && z.is_contiguous();
    let z = if same { None } else { Some(z.contiguous()?) };
    require_disjoint(&mut [&mut out], z.iter().chain(temperature.array()))?;
    let output = if log { core::SoftmaxOutput::Log } else { core::SoftmaxOutput::Probability };
    with_dtype!(dtype, T => {
        // SAFETY: the GIL is held; nothing else of this call uses `out`.
        let (z, out, temperature) = unsafe {
            let z = z.as_ref().map(|z| z.slice::<T>()).transpose()?;
            (z, out.slice_mut::<T>()?, temperature.get()?)
        };
        run(py, || core::softmax(axis, output, temperature, z, out))
    })
}

/// Writes `ln sum exp(z / temperature)` along an axis to `out`, which lacks that axis.
#[pyfunction]
pub fn logsumexp(
    py: Python<'_>,
    z: &Bound<'_, PyAny>,
    temperature: &Bound<'_, PyAny>,
    axis: usize,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let z = Array::new(z, Name("z", ""))?.contiguous()?;
    let dtype = z.float_dtype()?;
    let mut out = Array::new(out, Name("out", ""))?;
    out.require_dtype(dtype, z.name)?;
    let mut shape = z.array.shape().to_vec();
    let rows = view(&z, axis)?;
    shape.remove(axis);
    out.require_shape(&shape, "z without the axis")?;
    out.require_in_place()?;
    let axis = rows;
    let temperature = PerRow::new(temperature, Name("temperature", ""), axis.rows())?;
    require_disjoint(&mut [&mut out], [&z].into_iter().chain(temperature.array()))?;
    with_dtype!(dtype, T => {
        // SAFETY: as in `softmax`.
        let (z, out, temperature) =
            unsafe { (z.slice::<T>()?, out.slice_mut::<T>()?, temperature.get()?) };
        run(py, || core::logsumexp(axis, temperature, z, out))
    })
}

/// An array seen from an axis, which must be one of it.
fn view(z: &Array<'_, '_>, axis: usize) -> PyResult<core::Axis> {
    let shape = z.array.shape();
    let Some(&classes) = shape.get(axis) else {
        return Err(PyValueError::new_err(format!(
            "axis must be below {}, got {axis}",
            shape.len()
        )));
    };
    let (outer, inner) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product());
    Ok(core::Axis { outer, classes, inner })
}
