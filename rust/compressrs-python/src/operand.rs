//! Dense operands of sparse products: matrices of any strides.

use compressrs_core::linalg::matrix::{Matrix, MatrixMut};
use compressrs_core::numeric::element::Number;
use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;

use crate::arguments::{Name, Shape};
use crate::buffers::Array;
use crate::dtype::Dtype;

/// A dense operand: its array, or a copy, for strides that kernels do not take.
pub struct Operand<'py, 'n> {
    pub array: Array<'py, 'n>,
    pub rows: usize,
    pub columns: usize,
}

/// How the elements of a matrix lie in memory.
struct Strides {
    row: usize,
    column: usize,
    /// Elements from the first to the last.
    extent: usize,
}

impl<'py, 'n> Operand<'py, 'n> {
    pub fn new(
        object: &Bound<'py, PyAny>,
        name: Name<'n>,
        (dtype, like): (Dtype, &str),
        output: bool,
    ) -> PyResult<Self> {
        let mut array = Array::new(object, name)?;
        array.require_dtype(dtype, like)?;
        array.require_ndim(2)?;
        if output {
            array.require_writable()?;
        }
        if array.strides().is_none() && !output {
            array = array.copied()?;
        }
        let (rows, columns) = (array.array.shape()[0], array.array.shape()[1]);
        let operand = Operand { array, rows, columns };
        let Strides { row, column, extent } = operand.strides()?;
        let shared = rows > 1 && columns > 1 && {
            let (short, long, count) =
                if row >= column { (column, row, columns) } else { (row, column, rows) };
            short == 0 || long <= (count - 1) * short
        };
        let repeated = (rows > 1 && row == 0) || (columns > 1 && column == 0);
        if output && extent > 0 && (shared || repeated) {
            return Err(
                name.value_error("not share memory between its own elements", "a broadcast view")
            );
        }
        Ok(operand)
    }

    /// The strides as they are now.
    fn strides(&self) -> PyResult<Strides> {
        let strides =
            self.array.strides().filter(|_| self.array.array.shape() == [self.rows, self.columns]);
        let (row, column, extent) = strides.ok_or_else(|| {
            self.array.name.value_error(
                "have strides that are multiples of its elements and not negative",
                format_args!("{:?}", self.array.array.strides()),
            )
        })?;
        Ok(Strides { row, column, extent })
    }

    pub fn require_shape(&self, rows: usize, columns: usize) -> PyResult<()> {
        if (self.rows, self.columns) == (rows, columns) {
            return Ok(());
        }
        let need = format!("have shape {}", Shape(&[rows, columns]));
        Err(self.array.name.value_error(need, Shape(&[self.rows, self.columns])))
    }

    /// # Safety
    /// As for [`Array::slice`].
    pub unsafe fn matrix<T: Number>(&self) -> PyResult<Matrix<'_, T>> {
        let Strides { row, column, extent } = self.strides()?;
        self.array.require_itemsize::<T>()?;
        let data = if extent == 0 {
            &[]
        } else {
            // SAFETY: the elements from the first to the last lie in one allocation, in
            // `extent` places of this size; the caller guarantees the rest.
            unsafe { std::slice::from_raw_parts(self.array.data().cast::<T>(), extent) }
        };
        Ok(Matrix::new(data, self.rows, self.columns, row, column))
    }

    /// # Safety
    /// As for [`Array::slice_mut`]; places between the elements count as used.
    pub unsafe fn matrix_mut<T: Number>(&mut self) -> PyResult<MatrixMut<'_, T>> {
        let Strides { row, column, extent } = self.strides()?;
        self.array.require_itemsize::<T>()?;
        self.array.require_granted()?;
        let data = if extent == 0 {
            &mut []
        } else {
            // SAFETY: as for `dense`; nothing else of the call uses the memory.
            unsafe { std::slice::from_raw_parts_mut(self.array.data().cast::<T>(), extent) }
        };
        Ok(MatrixMut::new(data, self.rows, self.columns, row, column))
    }
}
