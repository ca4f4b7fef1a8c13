//! What is done to weights and gradients besides the step: averages, norms,
//! clipping.

use compressrs_core::optim::{self as core, Gradient};
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::arguments::Name;
use crate::buffers::Array;
use crate::dtype::with_dtype;
use crate::errors::run;
use crate::overlap::Regions;
use crate::storage::values;

/// Arrays of weights or gradients, checked for being changed in place.
struct Targets<'py, 'n> {
    arrays: Vec<Array<'py, 'n>>,
    regions: Regions,
}

impl<'py, 'n> Targets<'py, 'n> {
    fn new(arrays: &[Bound<'py, PyAny>], names: &'n [String]) -> PyResult<Self> {
        if arrays.len() != names.len() {
            return Err(PyTypeError::new_err("names must be as many as arrays"));
        }
        let mut arrays = arrays
            .iter()
            .zip(names)
            .map(|(array, name)| {
                let array = Array::new(array, Name(name, ""))?;
                array.float_dtype()?;
                array.require_in_place()?;
                Ok(array)
            })
            .collect::<PyResult<Vec<_>>>()?;
        let regions = Regions::new(arrays.iter().enumerate().map(|(i, a)| (a.memory(), i)))
            .map_err(|(a, b)| {
                PyValueError::new_err(format!(
                    "{} and {} share memory, so that it would be changed twice (pass it once, or a copy)",
                    arrays[a].name, arrays[b].name
                ))
            })?;
        arrays.iter_mut().for_each(Array::grant);
        Ok(Targets { arrays, regions })
    }

    /// Arrays of the same shapes that share no memory with these.
    fn others<'m>(
        &self,
        arrays: &[Bound<'py, PyAny>],
        names: &'m [String],
    ) -> PyResult<Vec<Array<'py, 'm>>> {
        if arrays.len() != self.arrays.len() || names.len() != arrays.len() {
            return Err(PyValueError::new_err(format!(
                "there must be {} arrays, got {}",
                self.arrays.len(),
                arrays.len()
            )));
        }
        let mut checked = Vec::with_capacity(arrays.len());
        for ((array, name), target) in arrays.iter().zip(names).zip(&self.arrays) {
            let array = Array::new(array, Name(name, ""))?;
            array.float_dtype()?;
            array.require_shape(target.array.shape(), target.name)?;
            let array = array.contiguous()?;
            if let Some(owner) = self.regions.overlapping(&array.memory()) {
                return Err(PyValueError::new_err(format!(
                    "{} shares memory with {}, which is written to (pass a copy)",
                    array.name, self.arrays[owner].name
                )));
            }
            checked.push(array);
        }
        Ok(checked)
    }
}

/// `targets <- targets + weight (ends - targets)`, array by array.
#[pyfunction]
pub fn lerp<'py>(
    py: Python<'py>,
    targets: Vec<Bound<'py, PyAny>>,
    names: Vec<String>,
    ends: Vec<Bound<'py, PyAny>>,
    end_names: Vec<String>,
    weight: f64,
) -> PyResult<()> {
    let mut targets = Targets::new(&targets, &names)?;
    let ends = targets.others(&ends, &end_names)?;
    for (target, end) in targets.arrays.iter_mut().zip(&ends) {
        with_dtype!(target.float_dtype()?, T => {
            // SAFETY: the GIL is held, and `others` found them disjoint.
            let (target, end) = unsafe { (target.slice_mut::<T>()?, values(end)?) };
            run(py, || core::lerp(target, end, weight))?;
        });
    }
    Ok(())
}

/// `sums <- sums + weight x`, array by array.
#[pyfunction]
pub fn accumulate<'py>(
    py: Python<'py>,
    sums: Vec<Bound<'py, PyAny>>,
    names: Vec<String>,
    x: Vec<Bound<'py, PyAny>>,
    x_names: Vec<String>,
    weight: f64,
) -> PyResult<()> {
    let mut sums = Targets::new(&sums, &names)?;
    let x = sums.others(&x, &x_names)?;
    for (sum, x) in sums.arrays.iter_mut().zip(&x) {
        with_dtype!(sum.float_dtype()?, T => {
            // SAFETY: the GIL is held, and `others` found them disjoint.
            let (sum, x) = unsafe { (sum.slice_mut::<T>()?, values(x)?) };
            run(py, || core::accumulate(sum, x, weight))?;
        });
    }
    Ok(())
}

/// The norm of all arrays together, and what they are to be multiplied by so that it is
/// at most `max_norm`; `order` is positive, perhaps infinite.
#[pyfunction]
pub fn norm<'py>(
    py: Python<'py>,
    arrays: Vec<Bound<'py, PyAny>>,
    names: Vec<String>,
    order: f64,
    max_norm: f64,
) -> PyResult<(f64, f64)> {
    let arrays = arrays
        .iter()
        .zip(&names)
        .map(|(array, name)| {
            let array = Array::new(array, Name(name, ""))?.contiguous()?;
            array.float_dtype()?;
            Ok(array)
        })
        .collect::<PyResult<Vec<_>>>()?;
    let gradients = arrays
        .iter()
        // SAFETY: the GIL is held; nothing writes to it here.
        .map(|array| Ok(Gradient { values: unsafe { values(array)? }, mask: None }))
        .collect::<PyResult<Vec<_>>>()?;
    let norm = run(py, || core::norm(&gradients, order))?;
    Ok((norm.get(), norm.clip(1.0, max_norm)))
}

/// `arrays <- factor arrays`.
#[pyfunction]
pub fn scale<'py>(
    py: Python<'py>,
    arrays: Vec<Bound<'py, PyAny>>,
    names: Vec<String>,
    factor: f64,
) -> PyResult<()> {
    for array in &mut Targets::new(&arrays, &names)?.arrays {
        with_dtype!(array.float_dtype()?, T => {
            // SAFETY: the GIL is held, and `new` found them disjoint.
            let array = unsafe { array.slice_mut::<T>()? };
            run(py, || core::scale(array, factor))?;
        });
    }
    Ok(())
}

/// `arrays <- min(max(arrays, -limit), limit)`.
#[pyfunction]
pub fn clamp<'py>(
    py: Python<'py>,
    arrays: Vec<Bound<'py, PyAny>>,
    names: Vec<String>,
    limit: f64,
) -> PyResult<()> {
    for array in &mut Targets::new(&arrays, &names)?.arrays {
        with_dtype!(array.float_dtype()?, T => {
            // SAFETY: the GIL is held, and `new` found them disjoint.
            let array = unsafe { array.slice_mut::<T>()? };
            run(py, || core::clamp(array, limit))?;
        });
    }
    Ok(())
}
