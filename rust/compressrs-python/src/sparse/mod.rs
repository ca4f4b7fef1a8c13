//! Sparse matrices: checks and products.

pub mod convert;
mod kinds;
mod prepared;
mod products;
mod values;

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use compressrs_core::numeric::element::Element;
use compressrs_core::runtime::memory;
use compressrs_core::sparse::{self as core, Csr, CsrError, Index, Offsets, Pattern, Prepared};
use numpy::{PyArray1, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arguments::Name;
use crate::buffers::{Array, Kept, is_immutable, private_view};
use crate::dtype::{Dtype, with_compute, with_dtype};
use crate::errors::{guard, run};
use crate::operand::Operand;
use crate::overlap::{new_array, require_disjoint};
use convert::{Parts, transposed};
use kinds::{Block, Width, with_blocks, with_index, with_types};
use prepared::{Cache, Form};
use products::Product;
use values::{Data, FromData, Scale};

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
    /// That of the values; int8 if they have scales.
    dtype: Dtype,
    scale: Option<Scale>,
    width: Width,
    /// Offsets of the rows, if all was checked for good.
    checked: Option<Offsets>,
    /// What products of single entries read in place of the arrays. Matrices that share an
    /// immutable pattern may share it. Locked for a moment only.
    cache: Mutex<Arc<Cache>>,
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
        match &self.scale {
            None => arrays[0].require_dtype(self.dtype, "it had")?,
            Some(_) => arrays[0].require_element::<i8>()?,
        }
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

    /// Indices and offsets of what [`arrays`](Self::arrays) gave, checked unless they were
    /// for good. Indices may change once more; kernels read each once and check it.
    fn pattern<'a, I: Index>(
        &'a self,
        py: Python<'_>,
        [data, indices, indptr]: &'a [Array<'_, 'static>; 3],
    ) -> PyResult<(&'a [I], Cow<'a, Offsets>)> {
        // SAFETY: these arrays are never moved, see `Kept`.
        let indices = unsafe { indices.slice::<I>()? };
        let (rows, columns) = self.block.shape();
        let (values, indices_of_values) = (data.array.len(), indices.len() * rows * columns);
        if values != indices_of_values {
            let lengths = CsrError::Lengths { data: values, indices: indices_of_values };
            return Err(invalid(lengths));
        }
        let columns = self.shape.1 / columns;
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

    /// The values, in the type that they are stored in.
    ///
    /// # Safety
    /// As for [`Array::slice`].
    unsafe fn data<'a>(
        &'a self,
        own: &'a [Array<'_, 'static>; 3],
        scale: Option<&'a Array<'_, 'static>>,
    ) -> PyResult<Data<'a>> {
        // SAFETY: as the caller guarantees.
        unsafe {
            match (&self.scale, scale, &self.checked) {
                (Some(kind), Some(scale), Some(offsets)) => {
                    kind.values(own[0].slice()?, scale, offsets)
                }
                _ => Data::new(&own[0], self.dtype),
            }
        }
    }

    /// The dtype of a dense operand: that of the values, or the one that products compute in.
    fn operand_dtype(&self, operand: &Bound<'_, PyAny>, name: Name<'_>) -> PyResult<(Dtype, &str)> {
        let compute = self.dtype.compute().into();
        let array = Array::new(operand, name)?;
        let is_wide = self.scale.is_some() || array.require_dtype(compute, "").is_ok();
        let like = if self.scale.is_some() { "scale" } else { "data" };
        Ok((if is_wide { compute } else { self.dtype }, like))
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
        form: Form,
    ) -> PyResult<Arc<Prepared>> {
        with_index!(self.width, I => {
            // SAFETY: these arrays are never moved, see `Kept`.
            let indices = unsafe { indices.slice::<I>()? };
            let columns = self.shape.1;
            match &self.checked {
                Some(offsets) => {
                    let pattern = Pattern::checked(indices, offsets, columns);
                    self.cache().of_checked(py, pattern, form)
                }
                None => {
                    let offsets = self.offsets(indptr, indices.len())?;
                    self.cache()
                        .of_writable(py, indices, offsets, columns, form)?
                        .map_err(invalid)
                }
            }
        })
    }
}

#[pymethods]
impl Sparse {
    #[new]
    #[pyo3(signature = (parts, shape, block, scale=None))]
    fn new(
        py: Python<'_>,
        parts: Parts<'_>,
        shape: (usize, usize),
        block: (usize, usize),
        scale: Option<(Bound<'_, PyAny>, usize)>,
    ) -> PyResult<Self> {
        let data = Array::new(&parts.0, Name(NAMES[0], ""))?;
        let indices = Array::new(&parts.1, Name(NAMES[1], ""))?;
        let indptr = Array::new(&parts.2, Name(NAMES[2], ""))?;
        let dtype = match scale {
            None => data.float_dtype()?,
            Some(_) => Dtype::F32,
        };
        let scale = scale.map(|(scale, size)| Scale::new(&scale, size)).transpose()?;
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
        let (checked, cache) = (None, Mutex::default());
        let mut this = Sparse { arrays, shape, block, dtype, scale, width, checked, cache };
        let arrays = this.arrays(py)?;
        if block != Block::One {
            let len = arrays[0].array.shape()[0];
            arrays[0].require_shape(&[len, rows, columns], "one block after another")?;
        }
        let offsets = with_index!(this.width, I => {
            this.pattern::<I>(py, &arrays).map(|(_, offsets)| offsets.into_owned())
        })?;
        // Nobody can write to what has no elements.
        let is_immutable = is_immutable || this.scale.is_some() && offsets.entries() == 0;
        if let Some(scale) = &this.scale {
            if !is_immutable {
                let need = "be immutable for codes with scales";
                return Err(Name(NAMES[1], "").value_error(need, "writable arrays"));
            }
            let groups = scale.groups(arrays[0].array.len(), &offsets);
            scale.array(py)?.require_shape(&[groups], "the groups")?;
        }
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
        with_index!(self.width, I => self.pattern::<I>(py, &own).map(drop))
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
        let scale = self.scale.as_ref().map(|scale| scale.array(py)).transpose()?;
        let (rows, inner) = if transposed { (self.shape.1, self.shape.0) } else { self.shape };
        let (dtype, like) = self.operand_dtype(x, Name("x", ""))?;
        let x = Operand::new(x, Name("x", ""), (dtype, like), false)?;
        let mut out = Operand::new(out, Name("out", ""), (dtype, "x"), true)?;
        x.require_shape(inner, x.columns)?;
        out.require_shape(rows, x.columns)?;
        let bias = match bias {
            None => None,
            Some(bias) => {
                let bias = Array::new(&bias, Name("bias", ""))?;
                bias.require_dtype(dtype, "x")?;
                bias.require_ndim(1)?;
                bias.require_shape(&[rows], "the output's rows")?;
                Some(bias.contiguous()?)
            }
        };
        let read = [&x.array].into_iter().chain(&bias).chain(&own).chain(&scale);
        require_disjoint(&mut [&mut out.array], read)?;
        with_dtype!(dtype, O => {
            type T = <O as Element>::Compute;
            let product = Product { transposed, accumulate, relu };
            self.multiply::<O, T>(py, (&own, scale.as_ref()), product, &x, &mut out, bias.as_ref())
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
        let own = self.arrays(py)?;
        let (dtype, like) = self.operand_dtype(u, Name("u", ""))?;
        let u = Operand::new(u, Name("u", ""), (dtype, like), false)?;
        let v = Operand::new(v, Name("v", ""), (dtype, like), false)?;
        u.require_shape(self.shape.0, u.columns)?;
        v.require_shape(u.columns, self.shape.1)?;
        let mut out = Array::new(out, Name("out", ""))?;
        out.require_dtype(self.dtype, "data")?;
        out.require_shape(own[0].array.shape(), "data")?;
        out.require_in_place()?;
        require_disjoint(&mut [&mut out], [&u.array, &v.array].into_iter().chain(&own))?;
        with_dtype!(self.dtype, E => {
            type T = <E as Element>::Compute;
            if dtype == self.dtype {
                self.sample::<E, E>(py, &own, (&u, &v), &mut out, accumulate)
            } else {
                self.sample::<E, T>(py, &own, (&u, &v), &mut out, accumulate)
            }
        })
    }

    /// The matrix as an array, of the dtype that products compute in.
    fn to_dense<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let own = self.arrays(py)?;
        let scale = self.scale.as_ref().map(|scale| scale.array(py)).transpose()?;
        with_compute!(self.dtype.compute(), T => with_types!(self, I, R, C => {
            let mut dense = new_array::<T>(py, &[self.shape.0, self.shape.1])?;
            let (indices, offsets) = self.pattern::<I>(py, &own)?;
            // SAFETY: nothing here writes to the matrix, and nothing else knows the result.
            let (data, slice) =
                unsafe { (self.data(&own, scale.as_ref())?, dense.slice_mut::<T>()?) };
            let pattern = Pattern::checked(indices, &offsets, self.shape.1 / C);
            let values = T::values(&data)?;
            run(py, || {
                let csr = Csr::<T, I, R, C>::of_values(pattern, values)?;
                core::to_dense(csr, slice);
                Ok(())
            })?
            .map_err(invalid)?;
            Ok(dense.array.into_any())
        }))
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
        with_index!(self.width, I => {
            let (indices, offsets) = self.pattern::<I>(py, &own)?;
            let columns = self.shape.1 / self.block.shape().1;
            let pattern = Pattern::checked(indices, &offsets, columns);
            if pattern.entries().max(pattern.rows()) <= <i32 as Index>::MAX {
                transposed::<i32, I>(py, pattern)
            } else {
                transposed::<i64, I>(py, pattern)
            }
        })
    }
}
