//! What a step multiplies gradients by, where each process holds parts of them.

use compressrs_core::optim::{self as core, Gradient, Reduction, mask_bytes};
use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::scaling::{GradientScale, Largest, Scaling};
use crate::arguments::Name;
use crate::buffers::Array;
use crate::errors::{non_finite, run};
use crate::overlap::new_array;
use crate::storage::values;

/// The sum of squares of the elements, divided by `unit`, of each block of an array, or the
/// largest magnitude if there is no unit; `mask` holds the bits of those that count.
#[pyfunction]
pub fn partial_norms<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    name: &str,
    mask: Option<Bound<'py, PyAny>>,
    unit: Option<f64>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let x = Array::new(x, Name(name, ""))?.contiguous()?;
    x.float_dtype()?;
    let mask = mask.map(|mask| Array::new(&mask, Name("mask", ""))).transpose()?;
    if let Some(mask) = &mask {
        mask.require_element::<u8>()?;
        mask.require_contiguous()?;
        mask.require_shape(&[mask_bytes(x.array.len())], format_args!("the bits of {name}"))?;
    }
    let blocks = x.array.len().div_ceil(core::PARTIAL_SUM_ELEMENTS);
    let mut out = new_array::<f64>(py, &[blocks])?;
    // SAFETY: the GIL is held, so that nothing moves the arrays until the kernel runs, which
    // writes to `out` alone.
    let (gradient, sums) = unsafe {
        let mask = mask.as_ref().map(|mask| mask.slice::<u8>()).transpose()?;
        (Gradient { values: values(&x)?, mask }, out.slice_mut::<f64>()?)
    };
    run(py, || core::partial_reductions(&gradient, reduction(unit), sums))?;
    Ok(out.array)
}

fn reduction(unit: Option<f64>) -> Reduction {
    unit.map_or(Reduction::Largest, |unit| Reduction::Powers { order: 2.0, unit })
}

/// What a step multiplies all gradients by, None to take no step, and their norm, if it
/// depends on it. `partials` gives what [`partial_norms`] wrote for each gradient, given the
/// unit; `paths` and `params` are of their parameters.
#[pyfunction]
pub fn gradient_scale<'py>(
    py: Python<'py>,
    partials: &Bound<'py, PyAny>,
    paths: Vec<String>,
    params: Vec<Bound<'py, PyAny>>,
    max_grad_norm: Option<&Bound<'py, PyAny>>,
    grad_scale: &Bound<'py, PyAny>,
    nonfinite: &Bound<'py, PyAny>,
) -> PyResult<(Option<f64>, Option<f64>)> {
    let scaling = Scaling::new(max_grad_norm, grad_scale, nonfinite)?;
    if !scaling.measures() {
        return Ok((Some(scaling.scale), None));
    }
    let computed = params
        .iter()
        .zip(&paths)
        .map(|(param, path)| Array::new(param, Name("params", path))?.compute_dtype())
        .collect::<PyResult<Vec<_>>>()?;
    if computed.len() != paths.len() {
        return Err(PyValueError::new_err("params must be as many as paths"));
    }
    let reduced = |reduction: Reduction| -> PyResult<Vec<Vec<f64>>> {
        let unit = match reduction {
            Reduction::Powers { unit, .. } => Some(unit),
            Reduction::Largest => None,
        };
        let tensors: Vec<Vec<f64>> = partials.call1((unit,))?.extract()?;
        if tensors.len() != paths.len() {
            return Err(PyValueError::new_err("partials must be as many as paths"));
        }
        Ok(tensors)
    };
    let combined = |tensors: &[Vec<f64>], reduction| {
        let slices = tensors.iter().map(Vec::as_slice).collect::<Vec<_>>();
        run(py, || core::combine(&slices, reduction))
    };
    let norm = core::norm_by(2.0, |reduction| combined(&reduced(reduction)?, reduction))?;
    let find_beyond = |largest: Largest<'_>| {
        let tensors = reduced(Reduction::Largest)?;
        for (i, tensor) in tensors.into_iter().enumerate() {
            let within = combined(&[tensor], Reduction::Largest)? <= largest(i);
            if !within {
                return Ok(Some(i));
            }
        }
        Ok(None)
    };
    let refuse = |i: usize, fault| non_finite(py, &paths[i], fault, computed[i].into());
    Ok(match scaling.decide(norm, &computed, find_beyond, refuse)? {
        GradientScale::Skip(norm) => (None, Some(norm)),
        GradientScale::Apply(factor, norm) => (Some(factor), norm),
    })
}
