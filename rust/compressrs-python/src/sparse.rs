//! CSR conversions and products.

use std::ops::Range;

use compressrs_core::element::Float;
use compressrs_core::sparse::{self as core, Csr, Dense, DenseMut, Index};
use numpy::{PyArray1, PyArray2, PyArrayDescrMethods, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::buffers::{Array, Compute, Name, Shape, require_disjoint, with_compute};
use crate::errors::run;

/// The arrays of a matrix, of checked dtypes and layout; what they hold is
/// checked by [`Matrix::csr`].
struct Matrix<'py> {
    data: Array<'py, 'static>,
    indices: Array<'py, 'static>,
    indptr: Array<'py, 'static>,
    shape: (usize, usize),
    dtype: Compute,
    /// Whether indices are int64; else they are int32.
    wide: bool,
}

/// Runs `$body` with `$T` and `$I` the element and index type of a [`Matrix`].
macro_rules! with_types {
    ($matrix:expr, $T:ident, $I:ident => $body:expr) => {
        with_compute!($matrix.dtype, $T => {
            if $matrix.wide {
                type $I = i64;
                $body
            } else {
                type $I = i32;
                $body
            }
        })
    };
}

impl<'py> Matrix<'py> {
    fn new(
        (data, indices, indptr): (Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>),
        shape: (usize, usize),
    ) -> PyResult<Self> {
        let data = Array::new(&data, Name("data", ""))?;
        let indices = Array::new(&indices, Name("indices", ""))?;
        let indptr = Array::new(&indptr, Name("indptr", ""))?;
        let dtype = data.compute_dtype()?;
        let wide = indices.require_element::<i64>().is_ok();
        if !wide && indices.require_element::<i32>().is_err() {
            let got = indices.array.dtype().to_string();
            return Err(indices.name.type_error("have dtype int32 or int64", got));
        }
        if wide {
            indptr.require_element::<i64>()?;
        } else {
            indptr.require_element::<i32>()?;
        }
        for array in [&data, &indices, &indptr] {
            array.require_ndim(1)?;
            array.require_contiguous()?;
        }
        if indptr.array.len() != shape.0 + 1 {
            return Err(indptr.name.value_error(
                format_args!("have one element more than the {} rows", shape.0),
                indptr.array.len(),
            ));
        }
        Ok(Matrix { data, indices, indptr, shape, dtype, wide })
    }

    /// The matrix, every index of it checked.
    ///
    /// # Safety
    /// `T` and `I` are its types, and nothing writes to its arrays while the
    /// result is used.
    unsafe fn csr<'a, T: Float, I: Index>(&self, py: Python<'_>) -> PyResult<Csr<'a, T, I>> {
        // SAFETY: `new` checked the layout; the rest is the caller's promise.
        let (data, indices, indptr) =
            unsafe { (self.data.slice(), self.indices.slice(), self.indptr.slice()) };
        let columns = self.shape.1;
        run(py, || Csr::new(data, indices, indptr, columns))?
            .map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// Requires that `written` shares no memory with the matrix.
    fn require_disjoint(&self, written: &Array<'_, '_>, memory: &Range<usize>) -> PyResult<()> {
        for array in [&self.data, &self.indices, &self.indptr] {
            require_disjoint(written, memory, array, &array.memory())?;
        }
        Ok(())
    }
}

/// A dense operand: its array (or a copy, for strides that kernels do not take)
/// and those strides.
struct Operand<'py, 'n> {
    array: Array<'py, 'n>,
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
    extent: usize,
}

impl<'py, 'n> Operand<'py, 'n> {
    fn new(
        object: &Bound<'py, PyAny>,
        name: Name<'n>,
        dtype: Compute,
        output: bool,
    ) -> PyResult<Self> {
        let mut array = Array::new(object, name)?;
        array.require_dtype(dtype, "data")?;
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

    fn require_shape(&self, rows: usize, columns: usize) -> PyResult<()> {
        if (self.rows, self.columns) == (rows, columns) {
            return Ok(());
        }
        let need = format!("have shape {}", Shape(&[rows, columns]));
        Err(self.array.name.value_error(need, Shape(&[self.rows, self.columns])))
    }

    /// All bytes from the first to the last element.
    fn memory(&self) -> Range<usize> {
        let start = self.array.data() as usize;
        start..start + self.extent * self.array.array.dtype().itemsize()
    }

    /// # Safety
    /// As for [`Array::slice`].
    unsafe fn dense<'a, T: Float>(&self) -> Dense<'a, T> {
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
    unsafe fn dense_mut<'a, T: Float>(&self) -> DenseMut<'a, T> {
        let data = if self.extent == 0 {
            &mut []
        } else {
            // SAFETY: as for `dense`.
            unsafe { std::slice::from_raw_parts_mut(self.array.data().cast::<T>(), self.extent) }
        };
        DenseMut::new(data, self.rows, self.columns, self.row_stride, self.column_stride)
    }
}

/// The arrays of a matrix.
type Parts<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>);

/// Checks that three arrays describe a matrix.
#[pyfunction]
pub fn csr_check(py: Python<'_>, parts: Parts<'_>, shape: (usize, usize)) -> PyResult<()> {
    let matrix = Matrix::new(parts, shape)?;
    with_types!(matrix, T, I => {
        // SAFETY: the types are the matrix's; the result is not kept.
        unsafe { matrix.csr::<T, I>(py) }.map(drop)
    })
}

/// The entries of a dense matrix that are not 0 and not below a threshold.
#[pyfunction]
pub fn csr_from_dense<'py>(
    py: Python<'py>,
    w: &Bound<'py, PyAny>,
    threshold: f64,
) -> PyResult<Parts<'py>> {
    let w = Array::new(w, Name("w", ""))?;
    let dtype = w.compute_dtype()?;
    w.require_ndim(2)?;
    let w = w.contiguous()?;
    let (rows, columns) = (w.array.shape()[0], w.array.shape()[1]);
    with_compute!(dtype, T => {
        // SAFETY: checked just now; nothing here writes to it.
        let dense = unsafe { w.slice::<T>() };
        let threshold = threshold as T;
        let offsets = run(py, || core::row_offsets(dense, rows, columns, threshold))?;
        let largest = offsets[rows].max(columns);
        if largest <= <i32 as Index>::MAX {
            fill::<T, i32>(py, dense, columns, threshold, &offsets)
        } else {
            fill::<T, i64>(py, dense, columns, threshold, &offsets)
        }
    })
}

fn fill<'py, T: Float + numpy::Element, I: Index + numpy::Element>(
    py: Python<'py>,
    dense: &[T],
    columns: usize,
    threshold: T,
    offsets: &[usize],
) -> PyResult<Parts<'py>> {
    let nnz = offsets.last().copied().unwrap_or(0);
    let data = PyArray1::<T>::zeros(py, [nnz], false);
    let indices = PyArray1::<I>::zeros(py, [nnz], false);
    // SAFETY: both are new, and nothing else knows them.
    let (data_slice, indices_slice) = unsafe { (data.as_slice_mut()?, indices.as_slice_mut()?) };
    run(py, || core::fill(dense, columns, threshold, offsets, data_slice, indices_slice))?;
    let indptr = PyArray1::from_iter(py, offsets.iter().map(|&i| I::new(i)));
    Ok((data.into_any(), indices.into_any(), indptr.into_any()))
}

/// The dense form of a matrix.
#[pyfunction]
pub fn csr_to_dense<'py>(
    py: Python<'py>,
    parts: Parts<'py>,
    shape: (usize, usize),
) -> PyResult<Bound<'py, PyAny>> {
    let matrix = Matrix::new(parts, shape)?;
    with_types!(matrix, T, I => {
        // SAFETY: the types are the matrix's; nothing here writes to it.
        let csr = unsafe { matrix.csr::<T, I>(py)? };
        let dense = PyArray2::<T>::zeros(py, [shape.0, shape.1], false);
        // SAFETY: new, and nothing else knows it.
        let slice = unsafe { dense.as_slice_mut()? };
        run(py, || core::to_dense(csr, slice))?;
        Ok(dense.into_any())
    })
}

/// `out = a @ x`, or `a.T @ x`; `out` must be given, of any non-negative strides.
#[pyfunction]
pub fn csr_matmul<'py>(
    py: Python<'py>,
    parts: Parts<'py>,
    shape: (usize, usize),
    transposed: bool,
    x: &Bound<'py, PyAny>,
    out: &Bound<'py, PyAny>,
) -> PyResult<()> {
    let matrix = Matrix::new(parts, shape)?;
    let (rows, inner) = if transposed { (shape.1, shape.0) } else { shape };
    let x = Operand::new(x, Name("X", ""), matrix.dtype, false)?;
    let out = Operand::new(out, Name("out", ""), matrix.dtype, true)?;
    x.require_shape(inner, x.columns)?;
    out.require_shape(rows, x.columns)?;
    let memory = out.memory();
    require_disjoint(&out.array, &memory, &x.array, &x.memory())?;
    matrix.require_disjoint(&out.array, &memory)?;
    with_types!(matrix, T, I => {
        // SAFETY: the types were checked, and `out` overlaps nothing.
        let (a, x, out) = unsafe { (matrix.csr::<T, I>(py)?, x.dense::<T>(), out.dense_mut::<T>()) };
        run(py, || if transposed { core::matmul_transposed(a, x, out) } else { core::matmul(a, x, out) })
    })
}

/// The entries of `u @ v` at those of the pattern, into `out`.
#[pyfunction]
pub fn sddmm<'py>(
    py: Python<'py>,
    parts: Parts<'py>,
    shape: (usize, usize),
    u: &Bound<'py, PyAny>,
    v: &Bound<'py, PyAny>,
    out: &Bound<'py, PyAny>,
) -> PyResult<()> {
    let pattern = Matrix::new(parts, shape)?;
    let u = Operand::new(u, Name("U", ""), pattern.dtype, false)?;
    let v = Operand::new(v, Name("V", ""), pattern.dtype, false)?;
    u.require_shape(shape.0, u.columns)?;
    v.require_shape(u.columns, shape.1)?;
    let out = Array::new(out, Name("out", ""))?;
    out.require_dtype(pattern.dtype, "data")?;
    out.require_shape(pattern.data.array.shape(), "data")?;
    out.require_in_place()?;
    let memory = out.memory();
    require_disjoint(&out, &memory, &u.array, &u.memory())?;
    require_disjoint(&out, &memory, &v.array, &v.memory())?;
    pattern.require_disjoint(&out, &memory)?;
    with_types!(pattern, T, I => {
        // SAFETY: the types were checked, and `out` overlaps nothing.
        let (csr, u, v, out) =
            unsafe { (pattern.csr::<T, I>(py)?, u.dense::<T>(), v.dense::<T>(), out.slice_mut::<T>()) };
        run(py, || core::sddmm(csr, u, v, out))
    })
}
