//! Softmax and distillation losses; here is what these share.

pub mod features;
pub mod kd;
pub mod softmax;

use compressrs_core::distill as core;
use pyo3::prelude::*;

use crate::arguments::Name;
use crate::buffers::Array;

/// A number, or an array of float64 with one for each row.
pub(super) enum PerRow<'py> {
    All(f64),
    Each(Array<'py, 'static>),
}

impl<'py> PerRow<'py> {
    pub fn new(object: &Bound<'py, PyAny>, name: Name<'static>, rows: usize) -> PyResult<Self> {
        if let Ok(x) = object.extract::<f64>() {
            return Ok(PerRow::All(x));
        }
        each(object, name, rows, "the rows").map(PerRow::Each)
    }

    /// The array, if there is one.
    pub fn array(&self) -> Option<&Array<'py, 'static>> {
        match self {
            PerRow::All(_) => None,
            PerRow::Each(array) => Some(array),
        }
    }

    /// # Safety
    /// As for [`Array::slice`].
    pub unsafe fn get(&self) -> PyResult<core::PerRow<'_>> {
        Ok(match self {
            PerRow::All(x) => core::PerRow::All(*x),
            // SAFETY: as the caller guarantees.
            PerRow::Each(array) => core::PerRow::Each(unsafe { array.slice::<f64>()? }),
        })
    }
}

/// A contiguous array of float64 with `len` elements.
pub(super) fn each<'py, 'n>(
    object: &Bound<'py, PyAny>,
    name: Name<'n>,
    len: usize,
    of: &str,
) -> PyResult<Array<'py, 'n>> {
    let array = Array::new(object, name)?;
    array.require_element::<f64>()?;
    array.require_shape(&[len], of)?;
    array.contiguous()
}
