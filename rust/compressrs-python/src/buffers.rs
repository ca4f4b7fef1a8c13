//! What an argument must be before a kernel sees it: dtype, byte order, shape,
//! layout, writability. For overlaps see [`crate::overlap`].
//!
//! Kernels get plain slices over the arrays' memory, not rust-numpy's borrow
//! guards: those take a lock for every array, which a step over hundreds of
//! tensors would feel, and refuse two threads that read the same array. What
//! they would guarantee is checked here for the arguments of a call. Python code
//! that writes to an array while a kernel in another thread works on it gets
//! torn values, as with any NumPy function; what decides where a kernel reads or
//! writes (indices, offsets, labels) is read once, or copied and then checked.
//!
//! Python code can also resize and reshape arrays. So no check runs Python code, not
//! even a method of an array, which may be of a subclass; and slices are made last, of
//! what the arrays are then, with nothing between them and the kernel that gives up the
//! GIL.

use std::ffi::c_int;
use std::fmt::Display;
use std::ops::Range;

use compressrs_core::numeric::element::Number;
use numpy::npyffi::{
    self, NPY_ARRAY_ALIGNED, NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_ENSUREARRAY, NPY_ARRAY_ENSURECOPY,
    NPY_ARRAY_WRITEABLE, NPY_TYPES, NpyTypes, PY_ARRAY_API, get_type_object, objects,
};
use numpy::{Element, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::{PyMemoryError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyType, PyWeakrefReference};

use crate::arguments::{Name, Shape};
use crate::dtype::{Compute, Dtype};

/// An array argument and its name.
pub struct Array<'py, 'n> {
    pub array: Bound<'py, PyUntypedArray>,
    pub name: Name<'n>,
    /// The memory that may be written to, once it is known to overlap nothing else.
    granted: Option<Range<usize>>,
}

impl<'py, 'n> Array<'py, 'n> {
    /// The argument, which must be an array in this machine's byte order, aligned.
    pub fn new(object: &Bound<'py, PyAny>, name: Name<'n>) -> PyResult<Self> {
        let Ok(array) = object.cast::<PyUntypedArray>() else {
            let got = object.get_type().name()?.to_string();
            return Err(name.type_error("be a NumPy array", got));
        };
        require_unmasked(array, name)?;
        let array = Array::unchecked(array.clone(), name);
        if array.array.dtype().is_native_byteorder() == Some(false) {
            return Err(name.type_error(
                "be in native byte order (convert it with a.astype(a.dtype.newbyteorder('=')))",
                array.dtype_name(),
            ));
        }
        if !array.array.is_aligned() {
            return Err(name.value_error(
                "be aligned in memory (make an aligned array with a.copy())",
                "an unaligned view",
            ));
        }
        Ok(array)
    }

    /// An array that has passed [`new`](Self::new) before.
    pub fn unchecked(array: Bound<'py, PyUntypedArray>, name: Name<'n>) -> Self {
        Array { array, name, granted: None }
    }

    fn fields(&self) -> &objects::PyArrayObject_fields {
        fields(&self.array)
    }

    fn dtype_name(&self) -> String {
        self.array.dtype().to_string()
    }

    /// Its dtype, which must be one of [`Dtype`].
    pub fn float_dtype(&self) -> PyResult<Dtype> {
        let need = "have dtype float32, float64, float16 or bfloat16";
        self.dtype().ok_or_else(|| self.name.type_error(need, self.dtype_name()))
    }

    /// Its dtype, which must be one of [`Compute`].
    pub fn compute_dtype(&self) -> PyResult<Compute> {
        match self.dtype() {
            Some(Dtype::F32) => Ok(Compute::F32),
            Some(Dtype::F64) => Ok(Compute::F64),
            _ => Err(self.name.type_error("have dtype float32 or float64", self.dtype_name())),
        }
    }

    fn dtype(&self) -> Option<Dtype> {
        match self.array.dtype().num() {
            n if n == NPY_TYPES::NPY_FLOAT as i32 => Some(Dtype::F32),
            n if n == NPY_TYPES::NPY_DOUBLE as i32 => Some(Dtype::F64),
            n if n == NPY_TYPES::NPY_HALF as i32 => Some(Dtype::F16),
            // The number of a dtype that NumPy does not know is given at run time. The
            // name of its type is looked up without Python code, unlike its own.
            n if n >= NPY_TYPES::NPY_USERDEF as i32 => {
                let name = self.array.dtype().typeobj().name().ok()?;
                (name == "bfloat16").then_some(Dtype::Bf16)
            }
            _ => None,
        }
    }

    /// Requires the dtype `dtype`, which is that of `like`.
    pub fn require_dtype(&self, dtype: impl Into<Dtype>, like: impl Display) -> PyResult<()> {
        let dtype = dtype.into();
        if self.dtype() == Some(dtype) {
            return Ok(());
        }
        let need = format!("have dtype {dtype} like {like} (convert it with a.astype('{dtype}'))");
        Err(self.name.type_error(need, self.dtype_name()))
    }

    /// Requires the dtype of this name.
    pub fn require_dtype_name(&self, name: &str) -> PyResult<()> {
        if self.dtype_name() == name {
            return Ok(());
        }
        Err(self.name.type_error(format_args!("have dtype {name}"), self.dtype_name()))
    }

    /// Requires elements of type `T`.
    pub fn require_element<T: Element>(&self) -> PyResult<()> {
        let dtype = numpy::dtype::<T>(self.array.py());
        if self.array.dtype().is_equiv_to(&dtype) {
            return Ok(());
        }
        Err(self.name.type_error(format_args!("have dtype {dtype}"), self.dtype_name()))
    }

    /// Requires a shape.
    pub fn require_shape(&self, shape: &[usize], of: impl Display) -> PyResult<()> {
        if self.array.shape() == shape {
            return Ok(());
        }
        let need = format!("have the shape {} of {of}", Shape(shape));
        Err(self.name.value_error(need, Shape(self.array.shape())))
    }

    /// Requires a number of axes.
    pub fn require_ndim(&self, ndim: usize) -> PyResult<()> {
        if self.array.ndim() == ndim {
            return Ok(());
        }
        let need = format!("have {ndim} {}", if ndim == 1 { "axis" } else { "axes" });
        Err(self.name.value_error(need, format_args!("shape {}", Shape(self.array.shape()))))
    }

    /// Requires that it may be written to.
    pub fn require_writable(&self) -> PyResult<()> {
        require_writable(&self.array, self.name)
    }

    /// Requires that kernels may update it in place.
    pub fn require_in_place(&self) -> PyResult<()> {
        self.require_writable()?;
        self.require_contiguous()
    }

    /// Requires C order without gaps.
    pub fn require_contiguous(&self) -> PyResult<()> {
        if self.is_contiguous() {
            return Ok(());
        }
        Err(self.name.value_error(
            "be C-contiguous, since it is used in place (make it so with np.ascontiguousarray)",
            format_args!(
                "shape {} with strides {:?}",
                Shape(self.array.shape()),
                self.array.strides()
            ),
        ))
    }

    pub fn is_contiguous(&self) -> bool {
        self.fields().flags & NPY_ARRAY_C_CONTIGUOUS != 0
    }

    /// The array, or a copy in C order if it is not in that.
    pub fn contiguous(self) -> PyResult<Self> {
        if self.is_contiguous() {
            return Ok(self);
        }
        self.copied()
    }

    /// A copy in C order, of no subclass, whose methods would be Python code.
    pub fn copied(self) -> PyResult<Self> {
        const FLAGS: c_int = NPY_ARRAY_C_CONTIGUOUS
            | NPY_ARRAY_ALIGNED
            | NPY_ARRAY_ENSURECOPY
            | NPY_ARRAY_ENSUREARRAY;
        let py = self.array.py();
        // SAFETY: a live array; NULL stands for its own dtype. The result is a new
        // reference to an array, or NULL with an exception set.
        let copy = unsafe {
            let copy = PY_ARRAY_API.PyArray_FromArray(
                py,
                self.array.as_array_ptr(),
                std::ptr::null_mut(),
                FLAGS,
            );
            Bound::from_owned_ptr_or_err(py, copy)?
        };
        Ok(Array::unchecked(copy.cast_into()?, self.name))
    }

    /// From the first byte of an array to the one behind the last, of any strides.
    pub fn memory(&self) -> Range<usize> {
        let start = self.fields().data as usize;
        if self.array.len() == 0 {
            return start..start;
        }
        let (mut before, mut after) = (0, self.array.dtype().itemsize());
        for (&len, &stride) in self.array.shape().iter().zip(self.array.strides()) {
            let reach = (len - 1) * stride.unsigned_abs();
            if stride < 0 { before += reach } else { after += reach }
        }
        start - before..start + after
    }

    /// Allows writing to the array, which is known to overlap nothing else that the call
    /// reads or writes.
    pub(crate) fn grant(&mut self) {
        self.granted = Some(self.memory());
    }

    /// Requires elements of the size of `T`, which they were found to have before.
    pub fn require_itemsize<T>(&self) -> PyResult<()> {
        if self.array.dtype().itemsize() == size_of::<T>() { Ok(()) } else { Err(self.changed()) }
    }

    /// Requires what it was checked for: such elements, in C order. Returns their number.
    fn require_elements<T>(&self) -> PyResult<usize> {
        self.require_itemsize::<T>()?;
        if self.is_contiguous() { Ok(self.array.len()) } else { Err(self.changed()) }
    }

    /// The error of an array that is not what it was found to be before.
    fn changed(&self) -> PyErr {
        PyRuntimeError::new_err(format!(
            "{} was resized or reshaped by another thread while it was in use",
            self.name
        ))
    }

    /// The elements of a contiguous array.
    ///
    /// # Errors
    /// It has other elements than it was checked for.
    ///
    /// # Safety
    /// Nothing writes to the elements while the slice is used, and the GIL was held since
    /// the array was last looked at, so that its memory still exists.
    pub unsafe fn slice<T: Number>(&self) -> PyResult<&[T]> {
        let len = self.require_elements::<T>()?;
        // A pointer for no elements need not be aligned in NumPy, as it must be here.
        if len == 0 {
            return Ok(&[]);
        }
        // SAFETY: NumPy has `len` elements of this size here, aligned (`new`), and any
        // bytes are a number; the caller guarantees the rest.
        Ok(unsafe { std::slice::from_raw_parts(self.fields().data.cast(), len) })
    }

    /// The elements of a contiguous array, to write to.
    ///
    /// # Errors
    /// As for [`slice`](Self::slice), or its memory is another than that which
    /// [`require_disjoint`](crate::overlap::require_disjoint) has allowed to be written.
    ///
    /// # Safety
    /// As for [`slice`](Self::slice); and no other thread uses the elements.
    pub unsafe fn slice_mut<T: Number>(&mut self) -> PyResult<&mut [T]> {
        let len = self.require_elements::<T>()?;
        self.require_granted()?;
        if len == 0 {
            return Ok(&mut []);
        }
        // SAFETY: as for `slice`; nothing else of the call uses the memory.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.fields().data.cast(), len) })
    }

    /// Requires that the array may be written to; see [`grant`](Self::grant).
    pub fn require_granted(&self) -> PyResult<()> {
        match &self.granted {
            Some(granted) if *granted == self.memory() => self.require_writable(),
            Some(_) => Err(self.changed()),
            None => Err(PyRuntimeError::new_err(format!(
                "{} is written to though nobody looked for what it overlaps; this is an error in \
                 compressrs",
                self.name
            ))),
        }
    }

    /// Element strides of the two axes and the number of elements from the first
    /// to the last, if no stride is negative or between elements.
    pub fn strides(&self) -> Option<(usize, usize, usize)> {
        let itemsize = self.array.dtype().itemsize();
        let stride = |axis: usize| {
            let bytes = usize::try_from(self.array.strides()[axis]).ok()?;
            (bytes % itemsize == 0).then_some(bytes / itemsize)
        };
        let (rows, columns) = (self.array.shape()[0], self.array.shape()[1]);
        if rows == 0 || columns == 0 {
            return Some((columns, 1, 0));
        }
        // NumPy gives an axis of length 1 any stride.
        let row = if rows == 1 { columns } else { stride(0)? };
        let column = if columns == 1 { 1 } else { stride(1)? };
        Some((row, column, (rows - 1) * row + (columns - 1) * column + 1))
    }

    /// First byte of the array's data.
    pub fn data(&self) -> *mut u8 {
        data(&self.array)
    }
}

/// What an array was found to be, to tell quickly whether it, or another, is the
/// same: dtype, shape, C order, alignment.
pub struct Layout {
    descr: *mut npyffi::PyArray_Descr,
    shape: Vec<usize>,
}

// SAFETY: the pointer is compared, never followed.
unsafe impl Send for Layout {}
// SAFETY: as above.
unsafe impl Sync for Layout {}

impl Layout {
    /// That of an array in C order, which must outlive the result, or its dtype.
    pub fn new(array: &Array<'_, '_>) -> Self {
        Layout { descr: array.fields().descr, shape: array.array.shape().to_vec() }
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Whether an array is laid out so. False may also mean that its dtype is
    /// another object of the same kind.
    pub fn fits(&self, array: &Bound<'_, PyUntypedArray>) -> bool {
        const FLAGS: c_int = NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED;
        let fields = fields(array);
        fields.flags & FLAGS == FLAGS
            && fields.descr == self.descr
            // Element by element: a call to compare a few numbers costs more than they do.
            && array.shape().iter().eq(&self.shape)
    }
}

fn fields<'a>(array: &'a Bound<'_, PyUntypedArray>) -> &'a objects::PyArrayObject_fields {
    // SAFETY: the pointer is that of a live array, which the borrow keeps alive;
    // the GIL is held, so NumPy does not change the fields meanwhile.
    unsafe { &*objects::_PyArray_GET_ITEM_DATA(array.as_array_ptr()) }
}

/// Where the first element of an array is. Its `__array_interface__` says so too, in a microsecond.
#[pyfunction]
pub fn address(array: &Bound<'_, PyUntypedArray>) -> usize {
    fields(array).data as usize
}

/// A view of an array that Python code has no reference to, so that none can change its shape or
/// dtype. It is of no subclass.
pub fn private_view<'py>(
    array: &Bound<'py, PyUntypedArray>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let py = array.py();
    // SAFETY: a live array; NULL stands for its own dtype. The result is a new reference to
    // an array, or NULL with an exception set.
    let view = unsafe {
        let base_class = get_type_object(py, NpyTypes::PyArray_Type);
        let null = std::ptr::null_mut();
        let view = PY_ARRAY_API.PyArray_View(py, array.as_array_ptr(), null, base_class);
        Bound::from_owned_ptr_or_err(py, view)?
    };
    Ok(view.cast_into()?)
}

/// Whether the memory of a contiguous array is immutable: it lies in `bytes`, and
/// the array and all that it is a view of are read-only.
pub fn is_immutable(array: &Bound<'_, PyUntypedArray>) -> bool {
    let memory = Array::unchecked(array.clone(), Name("", "")).memory();
    let mut array = array.clone();
    loop {
        let base = fields(&array).base;
        if fields(&array).flags & NPY_ARRAY_WRITEABLE != 0 || base.is_null() {
            return false;
        }
        // Not by the attribute, which a subclass may give another meaning.
        // SAFETY: the array, which is alive, keeps its base alive.
        let base = unsafe { Bound::from_borrowed_ptr(array.py(), base) };
        match base.cast_into::<PyUntypedArray>() {
            Ok(next) => array = next,
            Err(other) => {
                let other = other.into_inner();
                return other.cast_exact::<PyBytes>().is_ok_and(|bytes| {
                    let whole = bytes.as_bytes().as_ptr_range();
                    whole.start as usize <= memory.start && memory.end <= whole.end as usize
                });
            }
        }
    }
}

/// An array that is kept beyond a call, and cannot be resized meanwhile.
pub struct Kept {
    pub array: Py<PyUntypedArray>,
    /// NumPy refuses to move the memory of an array that has a weak reference, even where
    /// it is told not to look at its references.
    _pin: Py<PyWeakrefReference>,
}

impl Kept {
    pub fn new(array: &Bound<'_, PyUntypedArray>) -> PyResult<Self> {
        let pin = PyWeakrefReference::new(array.as_any())?;
        Ok(Kept { array: array.clone().unbind(), _pin: pin.unbind() })
    }
}

/// A new array of zeros.
///
/// # Errors
/// MemoryError.
pub fn zeros<'py, T: Element>(
    py: Python<'py>,
    shape: &[usize],
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let itemsize = numpy::dtype::<T>(py).itemsize();
    let bytes = shape.iter().try_fold(itemsize, |bytes, &len| bytes.checked_mul(len));
    // NumPy calls what no array can be a ValueError.
    if bytes.is_none_or(|bytes| isize::try_from(bytes).is_err()) {
        return Err(PyMemoryError::new_err(format!(
            "an array of shape {} does not fit into memory",
            Shape(shape)
        )));
    }
    let mut dimensions: Vec<_> = shape.iter().map(|&len| len as npyffi::npy_intp).collect();
    // SAFETY: as many lengths as are said, each of an array that is not too large; the call
    // takes over the reference to the dtype. The result is a new reference to an array, or
    // NULL with an exception set.
    let array = unsafe {
        let dtype = numpy::dtype::<T>(py).into_dtype_ptr();
        let (ndim, start) = (dimensions.len() as c_int, dimensions.as_mut_ptr());
        let array = PY_ARRAY_API.PyArray_Zeros(py, ndim, start, dtype, 0);
        Bound::from_owned_ptr_or_err(py, array)?
    };
    Ok(array.cast_into()?)
}

/// Refuses a masked array, whose mask would be ignored. Runs no code of a subclass.
pub fn require_unmasked(array: &Bound<'_, PyUntypedArray>, name: Name<'_>) -> PyResult<()> {
    static MASKED: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    if array.is_exact_instance_of::<PyUntypedArray>() {
        return Ok(());
    }
    if array.is_instance(MASKED.import(array.py(), "numpy.ma", "MaskedArray")?)? {
        let need = "be an array without a mask (fill masked elements with a.filled(value))";
        return Err(name.type_error(need, "a masked array"));
    }
    Ok(())
}

/// Requires that an array may be written to.
pub fn require_writable(array: &Bound<'_, PyUntypedArray>, name: Name<'_>) -> PyResult<()> {
    if fields(array).flags & NPY_ARRAY_WRITEABLE != 0 {
        return Ok(());
    }
    Err(name.value_error(
        "be writable (pass a copy, or allow it with a.setflags(write=True))",
        "a read-only array",
    ))
}

/// First byte of an array's data.
pub fn data(array: &Bound<'_, PyUntypedArray>) -> *mut u8 {
    fields(array).data.cast()
}
