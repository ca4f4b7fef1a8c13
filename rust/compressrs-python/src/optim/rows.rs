//! Gradients of some rows of a parameter.

use compressrs_core::optim::{BLOCK, Fault, Gradient, RowSums, Rows, Rule};
use compressrs_core::runtime::memory;
use compressrs_core::runtime::parallel::SharedMut;
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use super::slot::{Checked, Slot, slice_mut};
use crate::arguments::Name;
use crate::buffers::Array;
use crate::dtype::Dtype;
use crate::errors::{guard, run};
use crate::storage::{RawBuffer, values};

/// A `RowGradient` of Python: rows and their gradients, in C order.
pub(super) struct GivenRows<'py, 's> {
    rows: Array<'py, 's>,
    values: Array<'py, 's>,
}

impl<'py, 's> GivenRows<'py, 's> {
    /// What the object holds, if it is a `RowGradient`. This may run Python code.
    pub fn of(object: &Bound<'py, PyAny>, path: &'s str) -> PyResult<Option<Self>> {
        static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        let py = object.py();
        if !object.is_instance(CLASS.import(py, "compressrs.optim.rows", "RowGradient")?)? {
            return Ok(None);
        }
        let part = |name: &Bound<'py, _>| {
            Array::new(&object.getattr(name)?, Name("grads", path))?.contiguous()
        };
        let (rows, values) = (part(intern!(py, "rows"))?, part(intern!(py, "values"))?);
        Ok(Some(GivenRows { rows, values }))
    }

    /// Requires that these are gradients of rows of a parameter. May give up the GIL.
    pub fn require_fit(&self, slot: &Slot) -> PyResult<()> {
        self.require_shape(slot)?;
        // SAFETY: the GIL is held and nothing runs between this and the kernel.
        let indices = unsafe { self.rows.slice::<i64>()? };
        let of = slot.shape()[0];
        let made = run(self.rows.array.py(), || Rows::new(indices, of).map(drop))?;
        made.map_err(|wrong| out_of_range(slot, wrong))
    }

    /// Requires the dtypes and shapes of gradients of rows.
    fn require_shape(&self, slot: &Slot) -> PyResult<()> {
        let GivenRows { rows, values } = self;
        let param = Name("params", &slot.path);
        let [_, rest @ ..] = slot.shape() else {
            return Err(PyValueError::new_err(format!(
                "{} has the gradients of rows, but {param} has no rows: its shape is ()",
                values.name
            )));
        };
        rows.require_ndim(1)?;
        rows.require_element::<i64>()?;
        rows.require_contiguous()?;
        values.float_dtype()?;
        values.require_contiguous()?;
        let shape: Vec<_> = std::iter::once(rows.array.len()).chain(rest.iter().copied()).collect();
        values.require_shape(&shape, format_args!("rows and {param}"))
    }
}

/// The error of the first row that the parameter does not have, at this position.
fn out_of_range(slot: &Slot, (position, row): (usize, i64)) -> PyErr {
    PyValueError::new_err(format!(
        "grads{0}.rows[{position}] must be a row of params{0}, from 0 to {1} (negative rows do not \
         count from the end), got {row}",
        slot.path,
        slot.shape()[0].saturating_sub(1)
    ))
}

/// Memory for copies of rows, aligned for every number.
struct Scratch {
    start: *mut [u64],
    bytes: usize,
}

impl Scratch {
    /// # Unwinds
    /// With [`OutOfMemory`](memory::OutOfMemory).
    fn new(bytes: usize) -> Self {
        let words = memory::zeroed::<u64>(bytes.div_ceil(size_of::<u64>()));
        Scratch { start: Box::into_raw(words.into_boxed_slice()), bytes }
    }

    fn data(&self) -> *mut u8 {
        self.start.cast()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: it came from `into_raw`, and nothing that was made of it outlives it.
        drop(unsafe { Box::from_raw(self.start) });
    }
}

// SAFETY: it owns the memory.
unsafe impl Send for Scratch {}

/// The rows of a parameter that are updated, with the sums of their gradients and memory for
/// copies of them.
pub(super) struct RowStep<'py, 's> {
    /// What was added up.
    given: GivenRows<'py, 's>,
    rows: Rows,
    sums: RowSums,
    mask: Option<Vec<u8>>,
    /// Shape of the copied rows of the parameter.
    shape: Vec<usize>,
    param: Scratch,
    buffers: Vec<Scratch>,
}

impl<'py, 's> RowStep<'py, 's> {
    /// Checks rows and their gradients, and adds up those of the same row. Gives up the GIL.
    pub fn new(
        py: Python<'_>,
        slot: &Slot,
        given: GivenRows<'py, 's>,
        rule: &dyn Rule,
    ) -> PyResult<Self> {
        let GivenRows { rows, values: grads } = &given;
        let param = Name("params", &slot.path);
        given.require_shape(slot)?;
        let (of, rest) = (slot.shape()[0], &slot.shape()[1..]);
        rule.accepts_rows().map_err(|what| {
            PyValueError::new_err(format!(
                "{} must be a dense gradient, since the rule of {param} {what}; got a RowGradient",
                grads.name
            ))
        })?;
        let width = rest.iter().product::<usize>();
        if !width.is_multiple_of(BLOCK) && slot.storage.has_codes(&slot.states, slot.part.elements)
        {
            return Err(PyValueError::new_err(format!(
                "{} must be a dense gradient, since 8-bit states of {param} share a scale among \
                 {BLOCK} elements, and its rows have {width} (use state_dtype 'bfloat16'); got a \
                 RowGradient",
                grads.name
            )));
        }
        if slot.part.elements != slot.param.len() {
            return Err(PyTypeError::new_err(format!(
                "{} must be a dense gradient for an optimizer of parts of parameters, got a \
                 RowGradient",
                grads.name
            )));
        }
        // SAFETY: the GIL is held and nothing runs between this and the kernel, which writes
        // to neither; `new` checked the mask, which is the optimizer's own.
        let (indices, grads, mask) = unsafe {
            let mask = slot.mask.as_ref().map(|m| &*slice_mut(m.data, m.len()));
            (rows.slice::<i64>()?, values(grads)?, mask)
        };
        let made = run(py, || {
            let rows = Rows::new(indices, of)?;
            let bytes = |array: &Checked| array.bytes.checked_div(of).unwrap_or(0) * rows.len();
            let scratch = |array: &Checked| Scratch::new(bytes(array));
            let sums = rows.sums(grads, width);
            let mask = mask.map(|mask| rows.gather_bits(mask, width));
            let buffers = slot.buffers.iter().map(scratch).collect();
            Ok((sums, mask, scratch(&slot.param), buffers, rows))
        })?;
        let (sums, mask, param, buffers, rows) = made.map_err(|wrong| out_of_range(slot, wrong))?;
        let shape = std::iter::once(rows.len()).chain(rest.iter().copied()).collect();
        Ok(RowStep { given, rows, sums, mask, shape, param, buffers })
    }

    pub fn gradient(&self) -> Gradient<'_> {
        Gradient { values: self.sums.values(), mask: self.mask.as_deref() }
    }

    /// What is wrong with sums that are not finite, and the type that they are of.
    pub fn explain(&self) -> PyResult<(Fault, Dtype)> {
        // SAFETY: the GIL is held, and nothing runs meanwhile.
        let addends = unsafe { values(&self.given.values)? };
        let dtype = match self.sums {
            RowSums::F64(_) => Dtype::F64,
            RowSums::F32(_) => Dtype::F32,
        };
        Ok((guard(|| Fault::of_sums(addends))?, dtype))
    }

    /// Shape of the copied rows, and the memory of those of the parameter and its buffers.
    pub fn raw(&self, slot: &Slot) -> (&[usize], RawBuffer, Vec<RawBuffer>) {
        let raw = |scratch: &Scratch, of: &Checked| {
            let len = scratch.bytes.checked_div(of.itemsize()).unwrap_or(0);
            RawBuffer { data: scratch.data(), len }
        };
        let buffers = self.buffers.iter().zip(&slot.buffers).map(|(s, of)| raw(s, of)).collect();
        (&self.shape, raw(&self.param, &slot.param), buffers)
    }

    /// What copies the rows to where they are updated, and back.
    ///
    /// # Safety
    /// While one of the copies is made nothing else uses the parameter, its buffers, and what
    /// [`raw`](Self::raw) gives.
    pub unsafe fn copies<'a>(&'a self, slot: &'a Slot) -> RowCopies<'a> {
        let whole = std::iter::once(&slot.param).chain(&slot.buffers);
        let few = std::iter::once(&self.param).chain(&self.buffers);
        let pairs = whole.zip(few).map(|(whole, few)| {
            // SAFETY: the caller guarantees that nothing else uses them while they are copied.
            let slices =
                unsafe { (slice_mut(whole.data, whole.bytes), slice_mut(few.data(), few.bytes)) };
            (SharedMut::new(slices.0), SharedMut::new(slices.1))
        });
        RowCopies { rows: &self.rows, pairs: pairs.collect() }
    }
}

/// Arrays and the copies of some of their rows.
pub(super) struct RowCopies<'a> {
    rows: &'a Rows,
    pairs: Vec<(SharedMut<'a, u8>, SharedMut<'a, u8>)>,
}

impl RowCopies<'_> {
    pub fn gather(&self) {
        for (whole, few) in &self.pairs {
            // SAFETY: the caller of `copies` guarantees that nothing else uses them.
            unsafe { self.rows.gather(whole, few) };
        }
    }

    pub fn scatter(&self) {
        for (whole, few) in &self.pairs {
            // SAFETY: as above.
            unsafe { self.rows.scatter(few, whole) };
        }
    }
}
