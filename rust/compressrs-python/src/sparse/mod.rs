//! Sparse matrices: checks and products.

pub mod convert;
mod prepared;

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use compressrs_core::numeric::element::Float;
use compressrs_core::runtime::memory;
use compressrs_core::sparse::{self as core, Csr, Epilogue, Index, Offsets, Pattern, Prepared};
use numpy::{PyArray1, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arguments::Name;
use crate::buffers::{Array, Kept, is_immutable, private_view};
use crate::dtype::{Compute, with_compute};
use crate::errors::{guard, run};
use crate::operand::Operand;
use crate::overlap::{new_array, require_disjoint};
use convert::{Parts, transposed};
use prepared::Cache;

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

/// Runs `$body` with `$R` and `$C` the shape of blocks, and `$I` the type of their indices.
macro_rules! with_blocks {
    ($block:expr, $I:ident, $R:ident, $C:ident => $body:expr) => {
        match $block {
            Block::One => unreachable!("entries are no blocks"),
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
        }
    };
}

/// Runs `$body` with `$T` and `$I` the types of a [`Sparse`], and `$R` and `$C` the
/// shape of its blocks.
macro_rules! with_types {
    ($sparse:expr, $T:ident, $I:ident, $R:ident, $C:ident => $body:expr) => {
        with_compute!($sparse.dtype, $T => match $sparse.block {
            Block::One => with_index!($sparse.width, $I => {
                const $R: usize = 1;
                const $C: usize = 1;
                $body
            }),
            blocks => with_blocks!(blocks, $I, $R, $C => $body),
        })
    };
}

/// Names of the arrays of a matrix.
const NAMES: [&str; 3] = ["data", "indices", "indptr"];

/// A sparse matrix, entries or blocks, over the arrays of others.
///
/// What the arrays hold is checked: here, and at each use again, unless indices and
/// indptr are views of `bytes`, which nobody can write to. Nobody else has the views by
/// which it is looked at then.
#[pyclass(frozen, module = "compressrs._core")]
pub struct Sparse {
    arrays: [Kept; 3],
    /// Rows and columns, in elements.
    shape: (usize, usize),
    block: Block,
    dtype: Compute,
    width: Width,
    /// Offsets of the rows, if all was checked for good.
    checked: Option<Offsets>,
    /// What products of single entries read in place of the arrays. Matrices that share an
    /// immutable pattern may share it. Locked for a moment only.
    cache: Mutex<Arc<Cache>>,
}

/// A matrix for the time of a call.
struct View<'a, T, I, const R: usize, const C: usize> {
    data: &'a [T],
    indices: &'a [I],
    offsets: Cow<'a, Offsets>,
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

impl Sparse {
    /// The arrays, of the dtypes and the layout that were found at first.
    fn arrays<'py>(&self, py: Python<'py>) -> PyResult<[Array<'py, 'static>; 3]> {
        let array = |i: usize| -> PyResult<Array<'py, 'static>> {
            let array = Array::new(self.arrays[i].array.bind(py).as_any(), Name(NAMES[i], ""))?;
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
    fn offsets(&self, indptr: &Array<'_, '_>, entries: usize) -> PyResult<Offsets> {
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
        with_index!(width, I => {
            // SAFETY: the GIL is held; one copy is made, checked, and used.
            let indptr = unsafe { indptr.slice::<I>()? };
            guard(|| Offsets::new(indptr, entries))?.map_err(invalid)
        })
    }

    /// Everything that kernels may rely on, checked unless it was for good. This may give
    /// up the GIL.
    ///
    /// # Safety
    /// Nothing writes to the data while the result is used.
    unsafe fn view<'a, T: Float, I: Index, const R: usize, const C: usize>(
        &'a self,
        py: Python<'_>,
        arrays: &'a [Array<'_, 'static>; 3],
    ) -> PyResult<View<'a, T, I, R, C>> {
        let (indices, offsets) = self.pattern::<I>(py, arrays)?;
        // SAFETY: these arrays are never moved, see `Kept`; the caller guarantees the rest.
        let data = unsafe { arrays[0].slice::<T>()? };
        let view = View { data, indices, offsets, columns: self.shape.1 };
        view.csr()?;
        Ok(view)
    }

    /// Indices and offsets of what [`arrays`](Self::arrays) gave, checked unless they were
    /// for good. Indices may change once more; kernels read each once and check it.
    fn pattern<'a, I: Index>(
        &'a self,
        py: Python<'_>,
        [_, indices, indptr]: &'a [Array<'_, 'static>; 3],
    ) -> PyResult<(&'a [I], Cow<'a, Offsets>)> {
        // SAFETY: these arrays are never moved, see `Kept`.
        let indices = unsafe { indices.slice::<I>()? };
        let columns = self.shape.1 / self.block.shape().1;
        let offsets = match &self.checked {
            Some(offsets) => Cow::Borrowed(offsets),
            None => {
                let offsets = self.offsets(indptr, indices.len())?;
                run(py, || Pattern::new(indices, &offsets, columns).map(drop))?.map_err(invalid)?;
                Cow::Owned(offsets)
            }
        };
        Ok((indices, offsets))
    }

    fn cache(&self) -> Arc<Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The pattern as products of single entries read it, or of its transpose: as it is
    /// now, checked.
    fn prepared(
        &self,
        py: Python<'_>,
        [_, indices, indptr]: &[Array<'_, 'static>; 3],
        transposed: bool,
    ) -> PyResult<Arc<Prepared>> {
        with_index!(self.width, I => {
            // SAFETY: these arrays are never moved, see `Kept`.
            let indices = unsafe { indices.slice::<I>()? };
            let columns = self.shape.1;
            match &self.checked {
                Some(offsets) => {
                    let pattern = Pattern::checked(indices, offsets, columns);
                    self.cache().of_checked(py, pattern, transposed)
                }
                None => {
                    let offsets = self.offsets(indptr, indices.len())?;
                    self.cache()
                        .of_writable(py, indices, offsets, columns, transposed)?
                        .map_err(invalid)
                }
            }
        })
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
        let mut parts = [data.array, indices.array, indptr.array];
        let views = [private_view(&parts[1])?, private_view(&parts[2])?];
        let is_immutable = views.iter().all(is_immutable);
        if is_immutable {
            [parts[1], parts[2]] = views;
        }
        let [data, indices, indptr] = &parts;
        let arrays = [Kept::new(data)?, Kept::new(indices)?, Kept::new(indptr)?];
        let mut this =
            Sparse { arrays, shape, block, dtype, width, checked: None, cache: Mutex::default() };
        let arrays = this.arrays(py)?;
        if block != Block::One {
            let len = arrays[0].array.shape()[0];
            arrays[0].require_shape(&[len, rows, columns], "one block after another")?;
        }
        let offsets = with_types!(this, T, I, R, C => {
            // SAFETY: nothing here writes to the data.
            unsafe { this.view::<T, I, R, C>(py, &arrays) }.map(|view| view.offsets.into_owned())
        })?;
        drop(arrays);
        if is_immutable {
            this.checked = Some(offsets);
        }
        Ok(this)
    }

    /// Whether what was checked at first need not be checked again.
    #[getter]
    fn is_immutable(&self) -> bool {
        self.checked.is_some()
    }

    /// Bytes of memory that products keep beside the arrays.
    #[getter]
    fn prepared_bytes(&self) -> usize {
        self.cache().bytes()
    }

    /// Shares what products keep with another matrix, if both have one immutable pattern.
    fn share(&self, py: Python<'_>, other: &Sparse) -> PyResult<()> {
        let same = self.checked.is_some()
            && self.checked == other.checked
            && (self.shape, self.block, self.width) == (other.shape, other.block, other.width);
        if same {
            let (own, others) = (self.arrays(py)?, other.arrays(py)?);
            with_index!(self.width, I => {
                // SAFETY: nothing is read.
                let (own, others) = unsafe { (own[1].slice::<I>()?, others[1].slice::<I>()?) };
                if std::ptr::eq(own, others) {
                    let cache = other.cache();
                    *self.cache.lock().unwrap_or_else(PoisonError::into_inner) = cache;
                }
            });
        }
        Ok(())
    }

    /// Raises ValueError or TypeError unless the arrays describe a matrix of this shape.
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        let own = self.arrays(py)?;
        // SAFETY: nothing here writes to the data.
        with_types!(self, T, I, R, C => unsafe { self.view::<T, I, R, C>(py, &own) }.map(drop))
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
        let own = self.arrays(py)?;
        let (rows, inner) = if transposed { (self.shape.1, self.shape.0) } else { self.shape };
        let x = Operand::new(x, Name("x", ""), (self.dtype, "data"), false)?;
        let mut out = Operand::new(out, Name("out", ""), (self.dtype, "data"), true)?;
        x.require_shape(inner, x.columns)?;
        out.require_shape(rows, x.columns)?;
        let bias = match bias {
            None => None,
            Some(bias) => {
                let bias = Array::new(&bias, Name("bias", ""))?;
                bias.require_dtype(self.dtype, "data")?;
                bias.require_ndim(1)?;
                bias.require_shape(&[rows], "the output's rows")?;
                Some(bias.contiguous()?)
            }
        };
        require_disjoint(&mut [&mut out.array], [&x.array].into_iter().chain(&bias).chain(&own))?;
        if self.block == Block::One {
            // Few columns need no pattern of the transpose, nor values in its order.
            let scatter =
                transposed && with_compute!(self.dtype, T => core::scatters::<T>(x.columns));
            let prepared = self.prepared(py, &own, transposed && !scatter)?;
            return with_compute!(self.dtype, T => {
                // SAFETY: slices are made last, with the GIL held; `out` overlaps nothing.
                let (data, x, out, bias) = unsafe {
                    let bias = bias.as_ref().map(|bias| bias.slice::<T>()).transpose()?;
                    (own[0].slice::<T>()?, x.matrix::<T>()?, out.matrix_mut::<T>()?, bias)
                };
                let epilogue = Epilogue { accumulate, bias, relu };
                run(py, || {
                    if scatter {
                        core::matmul_transposed_prepared(&prepared, data, x, out, epilogue);
                    } else {
                        core::matmul_prepared(&prepared, data, x, out, epilogue);
                    }
                })
            });
        }
        with_compute!(self.dtype, T => with_blocks!(self.block, I, R, C => {
            // SAFETY: as above.
            let (a, x, out, bias) = unsafe {
                let a = self.view::<T, I, R, C>(py, &own)?;
                let bias = bias.as_ref().map(|bias| bias.slice::<T>()).transpose()?;
                (a, x.matrix::<T>()?, out.matrix_mut::<T>()?, bias)
            };
            let (a, epilogue) = (a.csr()?, Epilogue { accumulate, bias, relu });
            run(py, || {
                if transposed {
                    core::matmul_transposed(a, x, out, epilogue);
                } else {
                    core::matmul(a, x, out, epilogue);
                }
            })
        }))
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
        let own = self.arrays(py)?;
        let u = Operand::new(u, Name("u", ""), (self.dtype, "data"), false)?;
        let v = Operand::new(v, Name("v", ""), (self.dtype, "data"), false)?;
        u.require_shape(self.shape.0, u.columns)?;
        v.require_shape(u.columns, self.shape.1)?;
        let mut out = Array::new(out, Name("out", ""))?;
        out.require_dtype(self.dtype, "data")?;
        out.require_shape(own[0].array.shape(), "data")?;
        out.require_in_place()?;
        require_disjoint(&mut [&mut out], [&u.array, &v.array].into_iter().chain(&own))?;
        with_types!(self, T, I, R, C => {
            // SAFETY: as in `matmul`.
            let (a, u, v, out) = unsafe {
                let a = self.view::<T, I, R, C>(py, &own)?;
                (a, u.matrix::<T>()?, v.matrix::<T>()?, out.slice_mut::<T>()?)
            };
            let a = a.csr()?;
            run(py, || core::sddmm(a, u, v, out, accumulate))
        })
    }

    /// The matrix as an array.
    fn to_dense<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let own = self.arrays(py)?;
        with_types!(self, T, I, R, C => {
            let mut dense = new_array::<T>(py, &[self.shape.0, self.shape.1])?;
            // SAFETY: nothing here writes to the matrix, and nothing else knows the result.
            let (view, slice) =
                unsafe { (self.view::<T, I, R, C>(py, &own)?, dense.slice_mut::<T>()?) };
            let csr = view.csr()?;
            run(py, || core::to_dense(csr, slice))?;
            Ok(dense.array.into_any())
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
            let (old, new) = (self.pattern::<I>(py, &own)?, other.pattern::<J>(py, &others)?);
            let old = Pattern::checked(old.0, &old.1, columns);
            let new = Pattern::checked(new.0, &new.1, columns);
            let places = run(py, || {
                let mut places = memory::zeroed(new.entries());
                core::locate(old, new, &mut places).map(|()| places)
            })?;
            match places {
                Ok(places) => Ok(PyArray1::from_vec(py, places)),
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
        let own = self.arrays(py)?;
        with_types!(self, T, I, R, C => {
            // SAFETY: nothing here writes to the matrix.
            let view = unsafe { self.view::<T, I, R, C>(py, &own)? };
            let pattern = view.pattern();
            if pattern.entries().max(pattern.rows()) <= <i32 as Index>::MAX {
                transposed::<i32, I>(py, pattern)
            } else {
                transposed::<i64, I>(py, pattern)
            }
        })
    }
}
