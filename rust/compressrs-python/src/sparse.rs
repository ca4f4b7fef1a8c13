//! Sparse matrices: conversion and products.

use std::borrow::Cow;
use std::ops::Range;

use compressrs_core::numeric::element::Float;
use compressrs_core::sparse::{self as core, Csr, Epilogue, Index, Keep, Pattern};
use numpy::npyffi::NPY_ARRAY_WRITEABLE;
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffers::{Array, Compute, Name, flags, require_disjoint, with_compute};
use crate::errors::run;
use crate::operand::Operand;

/// A dtype of indices.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    I16,
    I32,
    I64,
}

impl Width {
    fn of(array: &Array<'_, '_>) -> Option<Width> {
        if array.require_element::<i32>().is_ok() {
            Some(Width::I32)
        } else if array.require_element::<i64>().is_ok() {
            Some(Width::I64)
        } else if array.require_element::<i16>().is_ok() {
            Some(Width::I16)
        } else {
            None
        }
    }
}

/// Runs `$body` with `$I` the type that belongs to a [`Width`].
macro_rules! with_index {
    ($width:expr, $I:ident => $body:expr) => {
        match $width {
            Width::I16 => {
                type $I = i16;
                $body
            }
            Width::I32 => {
                type $I = i32;
                $body
            }
            Width::I64 => {
                type $I = i64;
                $body
            }
        }
    };
}

/// Rows and columns of a block, of those that there are kernels for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    One,
    Square,
    Wide,
    Tall,
}

impl Block {
    fn new(shape: (usize, usize)) -> PyResult<Block> {
        match shape {
            (1, 1) => Ok(Block::One),
            (4, 4) => Ok(Block::Square),
            (1, 16) => Ok(Block::Wide),
            (16, 1) => Ok(Block::Tall),
            _ => Err(PyValueError::new_err(format!(
                "blocksize must be (4, 4), (1, 16) or (16, 1), got {shape:?}"
            ))),
        }
    }

    fn shape(self) -> (usize, usize) {
        match self {
            Block::One => (1, 1),
            Block::Square => (4, 4),
            Block::Wide => (1, 16),
            Block::Tall => (16, 1),
        }
    }
}

/// Runs `$body` with `$T` and `$I` the types of a [`Sparse`], and `$R` and `$C` the
/// shape of its blocks, which have int32 indices.
macro_rules! with_types {
    ($sparse:expr, $T:ident, $I:ident, $R:ident, $C:ident => $body:expr) => {
        with_compute!($sparse.dtype, $T => match $sparse.block {
            Block::One => with_index!($sparse.width, $I => {
                const $R: usize = 1;
                const $C: usize = 1;
                $body
            }),
            Block::Square => {
                type $I = i32;
                const $R: usize = 4;
                const $C: usize = 4;
                $body
            }
            Block::Wide => {
                type $I = i32;
                const $R: usize = 1;
                const $C: usize = 16;
                $body
            }
            Block::Tall => {
                type $I = i32;
                const $R: usize = 16;
                const $C: usize = 1;
                $body
            }
        })
    };
}

/// Names of the arrays of a matrix.
const NAMES: [&str; 3] = ["data", "indices", "indptr"];

/// The arrays of a matrix: data, indices, indptr.
type Parts<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>);

/// A sparse matrix, entries or blocks, over the arrays of others.
///
/// What the arrays hold is checked: here, and at each use again, unless indices and
/// indptr are views of `bytes`, which nobody can write to.
#[pyclass(frozen, module = "compressrs._core")]
pub struct Sparse {
    arrays: [Py<PyUntypedArray>; 3],
    /// Rows and columns, in elements.
    shape: (usize, usize),
    block: Block,
    dtype: Compute,
    width: Width,
    /// Offsets of the rows, if all was checked for good.
    checked: Option<Vec<usize>>,
}

/// A matrix for the time of a call.
struct View<'a, T, I, const R: usize, const C: usize> {
    data: &'a [T],
    indices: &'a [I],
    offsets: Cow<'a, [usize]>,
    columns: usize,
}

impl<T: Float, I: Index, const R: usize, const C: usize> View<'_, T, I, R, C> {
    fn pattern(&self) -> Pattern<'_, I> {
        Pattern::checked(self.indices, &self.offsets, self.columns / C)
    }

    fn csr(&self) -> PyResult<Csr<'_, T, I, R, C>> {
        Csr::new(self.pattern(), self.data).map_err(invalid)
    }
}

fn invalid(error: core::CsrError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// Whether nobody can write to an array: it and all that it is a view of are
/// read-only, down to `bytes`.
fn is_immutable(array: &Bound<'_, PyUntypedArray>) -> PyResult<bool> {
    let mut array = array.clone();
    loop {
        if flags(&array) & NPY_ARRAY_WRITEABLE != 0 {
            return Ok(false);
        }
        let base = array.getattr("base")?;
        match base.cast_into::<PyUntypedArray>() {
            Ok(next) => array = next,
            Err(other) => return Ok(other.into_inner().is_exact_instance_of::<PyBytes>()),
        }
    }
}

impl Sparse {
    /// The arrays, of the dtypes and the layout that were found at first.
    fn arrays<'py>(&self, py: Python<'py>) -> PyResult<[Array<'py, 'static>; 3]> {
        let array = |i: usize| -> PyResult<Array<'py, 'static>> {
            let array = Array::new(self.arrays[i].bind(py).as_any(), Name(NAMES[i], ""))?;
            array.require_ndim(if i == 0 && self.block != Block::One { 3 } else { 1 })?;
            array.require_contiguous()?;
            Ok(array)
        };
        let arrays = [array(0)?, array(1)?, array(2)?];
        // An array's dtype can be set, like its shape.
        arrays[0].require_dtype(self.dtype, "it had")?;
        with_index!(self.width, I => arrays[1].require_element::<I>())?;
        Ok(arrays)
    }

    /// Offsets that the array `indptr` gives, checked.
    fn offsets(&self, indptr: &Array<'_, '_>, entries: usize) -> PyResult<Vec<usize>> {
        let rows = self.shape.0 / self.block.shape().0;
        let len = indptr.array.len();
        if len != rows + 1 {
            let need = format!("have one element more than the {rows} rows");
            return Err(indptr.name.value_error(need, len));
        }
        let width = Width::of(indptr).filter(|&width| width != Width::I16);
        let Some(width) = width else {
            let got = indptr.array.dtype().to_string();
            return Err(indptr.name.type_error("have dtype int32 or int64", got));
        };
        // SAFETY: of this type and contiguous; one copy is made, checked, and used.
        with_index!(width, I => core::offsets(unsafe { indptr.slice::<I>() }, entries))
            .map_err(invalid)
    }

    /// Everything that kernels may rely on, checked unless it was for good.
    ///
    /// # Safety
    /// The types are the matrix's, and nothing writes to its data while the result
    /// is used.
    unsafe fn view<'a, T: Float, I: Index, const R: usize, const C: usize>(
        &'a self,
        py: Python<'_>,
    ) -> PyResult<View<'a, T, I, R, C>> {
        let arrays = self.arrays(py)?;
        // SAFETY: `arrays` checked the layout, `new` the types; the rest is the
        // caller's promise.
        let data = unsafe { arrays[0].slice::<T>() };
        // SAFETY: as above.
        let (indices, offsets) = unsafe { self.pattern::<I>(py, &arrays)? };
        let view = View { data, indices, offsets, columns: self.shape.1 };
        view.csr()?;
        Ok(view)
    }

    /// Indices and offsets of what [`arrays`](Self::arrays) gave, checked unless they were
    /// for good.
    ///
    /// # Safety
    /// The type is that of the matrix's indices.
    unsafe fn pattern<'a, I: Index>(
        &'a self,
        py: Python<'_>,
        [_, indices, indptr]: &[Array<'_, 'static>; 3],
    ) -> PyResult<(&'a [I], Cow<'a, [usize]>)> {
        // SAFETY: `arrays` checked the layout; the rest is the caller's promise.
        let indices = unsafe { indices.slice::<I>() };
        let columns = self.shape.1 / self.block.shape().1;
        let offsets = match &self.checked {
            Some(offsets) => Cow::Borrowed(&offsets[..]),
            None => {
                let offsets = self.offsets(indptr, indices.len())?;
                run(py, || Pattern::new(indices, &offsets, columns).map(drop))?.map_err(invalid)?;
                Cow::Owned(offsets)
            }
        };
        Ok((indices, offsets))
    }

    /// Requires that `written` shares no memory with the matrix.
    fn require_disjoint(
        &self,
        py: Python<'_>,
        written: &Array<'_, '_>,
        memory: &Range<usize>,
    ) -> PyResult<()> {
        for array in &self.arrays(py)? {
            require_disjoint(written, memory, array, &array.memory())?;
        }
        Ok(())
    }
}

#[pymethods]
impl Sparse {
    #[new]
    fn new(
        py: Python<'_>,
        parts: Parts<'_>,
        shape: (usize, usize),
        block: (usize, usize),
    ) -> PyResult<Self> {
        let data = Array::new(&parts.0, Name(NAMES[0], ""))?;
        let indices = Array::new(&parts.1, Name(NAMES[1], ""))?;
        let indptr = Array::new(&parts.2, Name(NAMES[2], ""))?;
        let dtype = data.compute_dtype()?;
        let block = Block::new(block)?;
        let allowed = if block == Block::One { "int16, int32 or int64" } else { "int32" };
        let width = Width::of(&indices).filter(|&width| block == Block::One || width == Width::I32);
        let Some(width) = width else {
            let got = indices.array.dtype().to_string();
            return Err(indices.name.type_error(format_args!("have dtype {allowed}"), got));
        };
        let (rows, columns) = block.shape();
        if !shape.0.is_multiple_of(rows) || !shape.1.is_multiple_of(columns) {
            return Err(PyValueError::new_err(format!(
                "shape must be a multiple of the blocks' ({rows}, {columns}), got {shape:?}"
            )));
        }
        let arrays = [data.array, indices.array, indptr.array].map(Bound::unbind);
        let mut this = Sparse { arrays, shape, block, dtype, width, checked: None };
        let [data, indices, indptr] = this.arrays(py)?;
        if block != Block::One {
            let len = data.array.shape()[0];
            data.require_shape(&[len, rows, columns], "one block after another")?;
        }
        let offsets = this.offsets(&indptr, indices.array.len())?;
        // SAFETY: the types are the matrix's; nothing is kept.
        with_types!(this, T, I, R, C => unsafe { this.view::<T, I, R, C>(py) }.map(drop))?;
        if is_immutable(&indices.array)? && is_immutable(&indptr.array)? {
            this.checked = Some(offsets);
        }
        Ok(this)
    }

    /// Whether what was checked at first need not be checked again.
    #[getter]
    fn is_immutable(&self) -> bool {
        self.checked.is_some()
    }

    /// `out = a x`, or `a^T x`, added to what `out` holds, with a bias and cut off at
    /// 0 where asked for. `out` may have any strides that are not negative.
    fn matmul(
        &self,
        py: Python<'_>,
        transposed: bool,
        x: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        epilogue: (bool, Option<Bound<'_, PyAny>>, bool),
    ) -> PyResult<()> {
        let (accumulate, bias, relu) = epilogue;
        let (rows, inner) = if transposed { (self.shape.1, self.shape.0) } else { self.shape };
        let x = Operand::new(x, Name("X", ""), (self.dtype, "data"), false)?;
        let out = Operand::new(out, Name("out", ""), (self.dtype, "data"), true)?;
        x.require_shape(inner, x.columns)?;
        out.require_shape(rows, x.columns)?;
        let memory = out.memory();
        require_disjoint(&out.array, &memory, &x.array, &x.memory())?;
        self.require_disjoint(py, &out.array, &memory)?;
        let bias = match bias {
            None => None,
            Some(bias) => {
                let bias = Array::new(&bias, Name("bias", ""))?;
                bias.require_dtype(self.dtype, "data")?;
                bias.require_ndim(1)?;
                bias.require_shape(&[rows], "the output's rows")?;
                let bias = bias.contiguous()?;
                require_disjoint(&out.array, &memory, &bias, &bias.memory())?;
                Some(bias)
            }
        };
        with_types!(self, T, I, R, C => {
            // SAFETY: the types were checked, and `out` overlaps nothing.
            let (a, x, out, bias) = unsafe {
                let bias = bias.as_ref().map(|bias| bias.slice::<T>());
                (self.view::<T, I, R, C>(py)?, x.dense::<T>(), out.dense_mut::<T>(), bias)
            };
            let (a, epilogue) = (a.csr()?, Epilogue { accumulate, bias, relu });
            run(py, || {
                if transposed {
                    core::matmul_transposed(a, x, out, epilogue);
                } else {
                    core::matmul(a, x, out, epilogue);
                }
            })
        })
    }

    /// The entries of `u v` at those of the pattern, into `out`.
    fn sddmm(
        &self,
        py: Python<'_>,
        u: &Bound<'_, PyAny>,
        v: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        accumulate: bool,
    ) -> PyResult<()> {
        let u = Operand::new(u, Name("U", ""), (self.dtype, "data"), false)?;
        let v = Operand::new(v, Name("V", ""), (self.dtype, "data"), false)?;
        u.require_shape(self.shape.0, u.columns)?;
        v.require_shape(u.columns, self.shape.1)?;
        let out = Array::new(out, Name("out", ""))?;
        out.require_dtype(self.dtype, "data")?;
        out.require_shape(self.arrays[0].bind(py).shape(), "data")?;
        out.require_in_place()?;
        let memory = out.memory();
        require_disjoint(&out, &memory, &u.array, &u.memory())?;
        require_disjoint(&out, &memory, &v.array, &v.memory())?;
        self.require_disjoint(py, &out, &memory)?;
        with_types!(self, T, I, R, C => {
            // SAFETY: the types were checked, and `out` overlaps nothing.
            let (a, u, v, out) = unsafe {
                let out = out.slice_mut::<T>();
                (self.view::<T, I, R, C>(py)?, u.dense::<T>(), v.dense::<T>(), out)
            };
            let a = a.csr()?;
            run(py, || core::sddmm(a, u, v, out, accumulate))
        })
    }

    /// The matrix as an array.
    fn to_dense<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        with_types!(self, T, I, R, C => {
            // SAFETY: the types are the matrix's; nothing here writes to it.
            let view = unsafe { self.view::<T, I, R, C>(py)? };
            let csr = view.csr()?;
            let dense = PyArray2::<T>::zeros(py, [self.shape.0, self.shape.1], false);
            // SAFETY: new, and nothing else knows it.
            let slice = unsafe { dense.as_slice_mut()? };
            run(py, || core::to_dense(csr, slice))?;
            Ok(dense.into_any())
        })
    }

    /// Where the entries of another matrix are in this one, -1 where nowhere.
    fn locate<'py>(&self, py: Python<'py>, other: &Sparse) -> PyResult<Bound<'py, PyArray1<i64>>> {
        if self.shape != other.shape || self.block != other.block {
            return Err(PyValueError::new_err("shapes and blocks must agree"));
        }
        let columns = self.shape.1 / self.block.shape().1;
        let (own, others) = (self.arrays(py)?, other.arrays(py)?);
        with_index!(self.width, I => with_index!(other.width, J => {
            // SAFETY: the types are the matrices'.
            let (old, new) =
                unsafe { (self.pattern::<I>(py, &own)?, other.pattern::<J>(py, &others)?) };
            let old = Pattern::checked(old.0, &old.1, columns);
            let new = Pattern::checked(new.0, &new.1, columns);
            let mut places = vec![0; new.entries()];
            match run(py, || core::locate(old, new, &mut places))? {
                Ok(()) => Ok(PyArray1::from_vec(py, places)),
                Err(repeats) => Err(PyValueError::new_err(format!(
                    "{} must not have repeated entries (see CSRMatrix.canonical)",
                    if repeats == core::Repeats::Old { "old" } else { "new" }
                ))),
            }
        }))
    }

    /// Indices and indptr of the transpose, which nobody can write to, and where its
    /// entries are among those of this matrix.
    fn transpose<'py>(&self, py: Python<'py>) -> PyResult<Parts<'py>> {
        with_types!(self, T, I, R, C => {
            // SAFETY: the types are the matrix's; nothing here writes to it.
            let view = unsafe { self.view::<T, I, R, C>(py)? };
            let pattern = view.pattern();
            if pattern.entries().max(pattern.rows()) <= <i32 as Index>::MAX {
                transposed::<i32, I>(py, pattern)
            } else {
                transposed::<i64, I>(py, pattern)
            }
        })
    }
}

fn transposed<'py, J: Index + numpy::Element, I: Index>(
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
    offsets: &[usize],
) -> PyResult<Bound<'py, PyAny>> {
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
    let (rows, columns) = (w.array.shape()[0], w.array.shape()[1]);
    with_compute!(dtype, T => {
        // SAFETY: checked just now; nothing here writes to them. NumPy keeps booleans
        // as bytes 0 and 1.
        let (dense, mask) = unsafe { (w.slice::<T>(), mask.as_ref().map(|mask| mask.slice())) };
        let keep = mask.map_or(Keep::AtLeast(threshold as T), Keep::Mask);
        let offsets = run(py, || core::row_offsets(dense, rows, columns, keep))?;
        let largest = offsets[rows].max(columns);
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
    offsets: &[usize],
) -> PyResult<Parts<'py>>
where
    T: Float + numpy::Element,
    I: Index + numpy::Element,
    P: Index + numpy::Element,
{
    let nnz = offsets.last().copied().unwrap_or(0);
    if nnz > P::MAX || columns.saturating_sub(1) > I::MAX {
        return Err(PyValueError::new_err(format!(
            "index_dtype is too small for {columns} columns and {nnz} entries"
        )));
    }
    let data = PyArray1::<T>::zeros(py, [nnz], false);
    // SAFETY: new, and nothing else knows it.
    let values = unsafe { data.as_slice_mut()? };
    let indices = immutable::<I>(py, nnz, |indices| {
        run(py, || core::fill(dense, columns, keep, offsets, values, indices))
    })?;
    Ok((data.into_any(), indices, indptr::<P>(py, offsets)?))
}
