//! Dense operands of sparse products: matrices of any strides.

use std::ops::Range;

use compressrs_core::numeric::element::Float;
use compressrs_core::sparse::{Dense, DenseMut};
use numpy::{PyArrayDescrMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::buffers::{Array, Compute, Name, Shape};

/// A dense operand: its array (or a copy, for strides that kernels do not take)
/// and those strides.
pub struct Operand<'py, 'n> {
    pub array: Array<'py, 'n>,
    pub rows: usize,
    pub columns: usize,
    row_stride: usize,
    column_stride: usize,
    extent: usize,
}

impl<'py, 'n> Operand<'py, 'n> {
    pub fn new(
        object: &Bound<'py, PyAny>,
        name: Name<'n>,
        (dtype, like): (Compute, &str),
        output: bool,
    ) -> PyResult<Self> {
        let mut array = Array::new(object, name)?;
        array.require_dtype(dtype, like)?;
        array.require_ndim(2)?;
        if output {
            array.require_writable()?;
        }
        if array.strides().is_none() && !output {
            let copy = array.array.call_method0("copy")?;
            array = Array::new(&copy, name)?;
        }
        let (row_stride, column_stride, extent) = array.strides().ok_or_else(|| {
            name.value_error(
                "have strides that are multiples of its elements and not negative",
                format_args!("{:?}", array.array.strides()),
            )
        })?;
        let (rows, columns) = (array.array.shape()[0], array.array.shape()[1]);
        let shared = rows > 1 && columns > 1 && {
            let (short, long, count) = if row_stride >= column_stride {
                (column_stride, row_stride, columns)
            } else {
                (row_stride, column_stride, rows)
            };
            short == 0 || long <= (count - 1) * short
        };
        let repeated = (rows > 1 && row_stride == 0) || (columns > 1 && column_stride == 0);
        if output && extent > 0 && (shared || repeated) {
            return Err(
                name.value_error("not share memory between its own elements", "a broadcast view")
            );
        }
        Ok(Operand { array, rows, columns, row_stride, column_stride, extent })
    }

    pub fn require_shape(&self, rows: usize, columns: usize) -> PyResult<()> {
        if (self.rows, self.columns) == (rows, columns) {
            return Ok(());
        }
        let need = format!("have shape {}", Shape(&[rows, columns]));
        Err(self.array.name.value_error(need, Shape(&[self.rows, self.columns])))
    }

    /// All bytes from the first to the last element.
    pub fn memory(&self) -> Range<usize> {
        let start = self.array.data() as usize;
        start..start + self.extent * self.array.array.dtype().itemsize()
    }

    /// # Safety
    /// As for [`Array::slice`].
    pub unsafe fn dense<'a, T: Float>(&self) -> Dense<'a, T> {
        let data = if self.extent == 0 {
            &[]
        } else {
            // SAFETY: the elements from the first to the last lie in one
            // allocation, in `extent` places; the rest is the caller's promise.
            unsafe { std::slice::from_raw_parts(self.array.data().cast::<T>(), self.extent) }
        };
        Dense::new(data, self.rows, self.columns, self.row_stride, self.column_stride)
    }

    /// # Safety
    /// As for [`Array::slice_mut`]; places between the elements count as used.
    pub unsafe fn dense_mut<'a, T: Float>(&self) -> DenseMut<'a, T> {
        let data = if self.extent == 0 {
            &mut []
        } else {
            // SAFETY: as for `dense`.
            unsafe { std::slice::from_raw_parts_mut(self.array.data().cast::<T>(), self.extent) }
        };
        DenseMut::new(data, self.rows, self.columns, self.row_stride, self.column_stride)
    }
}
