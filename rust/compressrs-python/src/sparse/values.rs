//! Values of sparse matrices, by the type that they are stored in.

use compressrs_core::numeric::element::{Float, bf16, f16};
use compressrs_core::sparse::{Coded, Groups, Offsets, Values};
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::arguments::Name;
use crate::buffers::{Array, Kept};
use crate::dtype::Dtype;

/// Values for the time of a call.
pub enum Data<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
    Coded(Coded<'a>),
}

impl<'a> Data<'a> {
    /// # Safety
    /// As for [`Array::slice`].
    pub unsafe fn new(array: &'a Array<'_, '_>, dtype: Dtype) -> PyResult<Self> {
        // SAFETY: as the caller guarantees.
        unsafe {
            Ok(match dtype {
                Dtype::F32 => Data::F32(array.slice()?),
                Dtype::F64 => Data::F64(array.slice()?),
                Dtype::F16 => Data::F16(array.slice()?),
                Dtype::Bf16 => Data::Bf16(array.slice()?),
            })
        }
    }
}

/// A type that products compute in, and read values as.
pub trait FromData: Float {
    /// The values.
    ///
    /// # Errors
    /// They are read as another type.
    fn values<'a>(data: &'a Data<'_>) -> PyResult<&'a dyn Values<Self>>;
}

impl FromData for f32 {
    fn values<'a>(data: &'a Data<'_>) -> PyResult<&'a dyn Values<f32>> {
        match data {
            Data::F32(data) => Ok(data),
            Data::F16(data) => Ok(data),
            Data::Bf16(data) => Ok(data),
            Data::Coded(data) => Ok(data),
            Data::F64(_) => Err(mismatch()),
        }
    }
}

impl FromData for f64 {
    fn values<'a>(data: &'a Data<'_>) -> PyResult<&'a dyn Values<f64>> {
        match data {
            Data::F64(data) => Ok(data),
            _ => Err(mismatch()),
        }
    }
}

fn mismatch() -> PyErr {
    PyRuntimeError::new_err("values of another type than the product's; an error in compressrs")
}

/// The scales of codes.
pub struct Scale {
    array: Kept,
    /// Entries of a group; 0 if each row is one.
    size: usize,
}

const NAME: Name<'static> = Name("scale", "");

impl Scale {
    pub fn new(scale: &Bound<'_, PyAny>, size: usize) -> PyResult<Self> {
        let array = Kept::new(&Array::new(scale, NAME)?.array)?;
        Ok(Scale { array, size })
    }

    /// The array, of the dtype and the layout that it must have.
    pub fn array<'py>(&self, py: Python<'py>) -> PyResult<Array<'py, 'static>> {
        let array = Array::new(self.array.array.bind(py).as_any(), NAME)?;
        array.require_dtype(Dtype::F32, "products compute in")?;
        array.require_ndim(1)?;
        array.require_contiguous()?;
        Ok(array)
    }

    /// How many groups so many entries have.
    pub fn groups(&self, entries: usize, offsets: &Offsets) -> usize {
        if self.size == 0 { offsets.rows() } else { entries.div_ceil(self.size) }
    }

    /// Codes and scales.
    ///
    /// # Errors
    /// There is not a scale for each group.
    ///
    /// # Safety
    /// As for [`Array::slice`].
    pub unsafe fn values<'a>(
        &self,
        codes: &'a [u8],
        scale: &'a Array<'_, '_>,
        offsets: &'a Offsets,
    ) -> PyResult<Data<'a>> {
        let need = self.groups(codes.len(), offsets);
        if scale.array.len() != need || codes.len() != offsets.entries() {
            return Err(PyValueError::new_err(format!(
                "scale must have one element for each of {need} groups, got {}",
                scale.array.len()
            )));
        }
        let groups = if self.size == 0 {
            Groups::Rows(offsets.as_slice())
        } else {
            Groups::Every(self.size)
        };
        // SAFETY: as the caller guarantees.
        Ok(Data::Coded(Coded::new(codes, unsafe { scale.slice()? }, groups)))
    }
}
