//! Sparse matrices from dense ones, and transposed.

use compressrs_core::numeric::element::Float;
use compressrs_core::sparse::{self as core, Index, Keep, Offsets, Pattern};
use numpy::{PyArray1, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::arguments::Name;
use crate::buffers::{Array, Kept};
use crate::dtype::with_compute;
use crate::errors::run;
use crate::overlap::new_array;

/// The arrays of a matrix: data, indices, indptr.
pub(super) type Parts<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>);

pub(super) fn transposed<'py, J: Index + numpy::Element, I: Index>(
    py: Python<'py>,
    pattern: Pattern<'_, I>,
) -> PyResult<Parts<'py>> {
    let transpose = run(py, || core::transpose::<I, J>(pattern))?;
    let (offsets, indices) = (transpose.offsets, transpose.indices);
    let indices = immutable(py, indices.len(), |out| {
        out.copy_from_slice(&indices);
        Ok(())
    })?;
    let places = PyArray1::from_vec(py, transpose.places);
    Ok((indices, indptr::<J>(py, &offsets)?, places.into_any()))
}

/// An array in new memory that nobody can write to, once `fill` has.
fn immutable<'py, I: Index + numpy::Element>(
    py: Python<'py>,
    len: usize,
    fill: impl FnOnce(&mut [I]) -> PyResult<()>,
) -> PyResult<Bound<'py, PyAny>> {
    let numpy = py.import("numpy")?;
    let dtype = numpy::dtype::<I>(py);
    if len == 0 {
        // `frombuffer` does not take empty buffers.
        let empty = numpy.call_method1("empty", (0, &dtype))?;
        fill(&mut [])?;
        return Ok(empty);
    }
    let bytes = PyBytes::new_with(py, len * size_of::<I>(), |bytes| {
        // SAFETY: any bytes are an integer.
        let (before, out, after) = unsafe { bytes.align_to_mut::<I>() };
        assert!(before.is_empty() && after.is_empty(), "bytes objects are aligned");
        fill(out)
    })?;
    numpy.call_method1("frombuffer", (bytes, dtype))
}

fn indptr<'py, I: Index + numpy::Element>(
    py: Python<'py>,
    offsets: &Offsets,
) -> PyResult<Bound<'py, PyAny>> {
    let offsets = offsets.as_slice();
    immutable::<I>(py, offsets.len(), |out| {
        for (out, &offset) in out.iter_mut().zip(offsets) {
            *out = I::new(offset);
        }
        Ok(())
    })
}

/// The entries of a dense matrix where a mask is true, or, without one, that are not 0
/// and not below a threshold. Nobody can write to indices and indptr.
#[pyfunction]
#[pyo3(signature = (w, threshold, mask, short))]
pub fn csr_from_dense<'py>(
    py: Python<'py>,
    w: &Bound<'py, PyAny>,
    threshold: f64,
    mask: Option<&Bound<'py, PyAny>>,
    short: bool,
) -> PyResult<Parts<'py>> {
    let w = Array::new(w, Name("w", ""))?;
    let dtype = w.compute_dtype()?;
    w.require_ndim(2)?;
    let w = w.contiguous()?;
    let mask = match mask {
        None => None,
        Some(mask) => {
            let mask = Array::new(mask, Name("mask", ""))?;
            mask.require_element::<bool>()?;
            mask.require_shape(w.array.shape(), "w")?;
            Some(mask.contiguous()?)
        }
    };
    // Two kernels look at them, between which others could resize them.
    let _pins = (Kept::new(&w.array)?, mask.as_ref().map(|m| Kept::new(&m.array)).transpose()?);
    let (rows, columns) = (w.array.shape()[0], w.array.shape()[1]);
    with_compute!(dtype, T => {
        // SAFETY: the GIL is held; nothing here writes to them.
        let (dense, mask) = unsafe {
            (w.slice::<T>()?, mask.as_ref().map(|mask| mask.slice::<u8>()).transpose()?)
        };
        let keep = mask.map_or(Keep::AtLeast(threshold as T), Keep::Mask);
        let offsets = run(py, || core::row_offsets(dense, rows, columns, keep))?;
        let largest = offsets.entries().max(columns);
        if short {
            fill::<T, i16, i32>(py, dense, columns, keep, &offsets)
        } else if largest <= <i32 as Index>::MAX {
            fill::<T, i32, i32>(py, dense, columns, keep, &offsets)
        } else {
            fill::<T, i64, i64>(py, dense, columns, keep, &offsets)
        }
    })
}

fn fill<'py, T, I, P>(
    py: Python<'py>,
    dense: &[T],
    columns: usize,
    keep: Keep<'_, T>,
    offsets: &Offsets,
) -> PyResult<Parts<'py>>
where
    T: Float + numpy::Element,
    I: Index + numpy::Element,
    P: Index + numpy::Element,
{
    let nnz = offsets.entries();
    if nnz > P::MAX || columns.saturating_sub(1) > I::MAX {
        return Err(PyValueError::new_err(format!(
            "index_dtype is too small for {columns} columns and {nnz} entries"
        )));
    }
    let mut data = new_array::<T>(py, &[nnz])?;
    // SAFETY: nothing else knows it.
    let values = unsafe { data.slice_mut::<T>()? };
    let indices = immutable::<I>(py, nnz, |indices| {
        run(py, || core::fill(dense, columns, keep, offsets, values, indices))
    })?;
    Ok((data.array.into_any(), indices, indptr::<P>(py, offsets)?))
}
