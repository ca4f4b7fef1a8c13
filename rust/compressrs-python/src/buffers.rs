//! What an argument must be before a kernel sees it: dtype, byte order, shape,
//! layout, writability, overlap.
//!
//! Kernels get plain slices over the arrays' memory, not rust-numpy's borrow
//! guards: those take a lock for every array, which a step over hundreds of
//! tensors would feel, and refuse two threads that read the same array. What
//! they would guarantee is checked here for the arguments of a call. Python code
//! that writes to an array while a kernel in another thread works on it gets
//! torn values, as with any NumPy function.

use std::ffi::c_int;
use std::fmt::{self, Display};
use std::ops::Range;

use numpy::npyffi::{
    self, NPY_ARRAY_ALIGNED, NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_WRITEABLE, NPY_TYPES, objects,
};
use numpy::{Element, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

/// A floating-point dtype that numbers are stored in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// float32
    F32,
    /// float64
    F64,
    /// float16
    F16,
    /// bfloat16, of ml_dtypes
    Bf16,
}

impl Dtype {
    /// The type that arithmetic on it is done in.
    pub fn compute(self) -> Compute {
        if self == Dtype::F64 { Compute::F64 } else { Compute::F32 }
    }
}

impl Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "float32",
            Dtype::F64 => "float64",
            Dtype::F16 => "float16",
            Dtype::Bf16 => "bfloat16",
        })
    }
}

/// A floating-point dtype that arithmetic is done in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Compute {
    /// float32
    F32,
    /// float64
    F64,
}

impl From<Compute> for Dtype {
    fn from(compute: Compute) -> Dtype {
        match compute {
            Compute::F32 => Dtype::F32,
            Compute::F64 => Dtype::F64,
        }
    }
}

/// Runs `$body` with `$T` the type that belongs to a [`Dtype`].
macro_rules! with_dtype {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::buffers::Dtype::F32 => {
                type $T = f32;
                $body
            }
            $crate::buffers::Dtype::F64 => {
                type $T = f64;
                $body
            }
            $crate::buffers::Dtype::F16 => {
                type $T = ::compressrs_core::numeric::element::f16;
                $body
            }
            $crate::buffers::Dtype::Bf16 => {
                type $T = ::compressrs_core::numeric::element::bf16;
                $body
            }
        }
    };
}
pub(crate) use with_dtype;

/// Runs `$body` with `$T` the type that belongs to a [`Compute`].
macro_rules! with_compute {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::buffers::Compute::F32 => {
                type $T = f32;
                $body
            }
            $crate::buffers::Compute::F64 => {
                type $T = f64;
                $body
            }
        }
    };
}
pub(crate) use with_compute;

/// An argument's name in messages: that of the parameter and what leads from it
/// to the array, as in `grads` and `[2]['weight']`.
#[derive(Clone, Copy)]
pub struct Name<'a>(pub &'a str, pub &'a str);

impl Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)?;
        f.write_str(self.1)
    }
}

impl Name<'_> {
    /// A TypeError about this argument.
    pub fn type_error(&self, need: impl Display, got: impl Display) -> PyErr {
        PyTypeError::new_err(format!("{self} must {need}, got {got}"))
    }

    /// A ValueError about this argument.
    pub fn value_error(&self, need: impl Display, got: impl Display) -> PyErr {
        PyValueError::new_err(format!("{self} must {need}, got {got}"))
    }
}

/// An array argument and its name.
pub struct Array<'py, 'n> {
    pub array: Bound<'py, PyUntypedArray>,
    pub name: Name<'n>,
}

impl<'py, 'n> Array<'py, 'n> {
    /// The argument, which must be an array in this machine's byte order, aligned.
    pub fn new(object: &Bound<'py, PyAny>, name: Name<'n>) -> PyResult<Self> {
        let Ok(array) = object.cast::<PyUntypedArray>() else {
            let got = object.get_type().name()?.to_string();
            return Err(name.type_error("be a NumPy array", got));
        };
        let array = Array { array: array.clone(), name };
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
        Array { array, name }
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
            // The number of a dtype that NumPy does not know is given at run time.
            n if n >= NPY_TYPES::NPY_USERDEF as i32 => {
                (self.dtype_name() == "bfloat16").then_some(Dtype::Bf16)
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
        let copy = self.array.call_method0("copy")?.cast_into::<PyUntypedArray>()?;
        Ok(Array { array: copy, ..self })
    }

    /// First byte and the one behind the last of a contiguous array.
    pub fn memory(&self) -> Range<usize> {
        let start = self.fields().data as usize;
        start..start + self.array.len() * self.array.dtype().itemsize()
    }

    /// The elements of a contiguous array.
    ///
    /// # Safety
    /// Its elements are of type `T`, and nothing writes to them while the slice
    /// is used.
    pub unsafe fn slice<'a, T>(&self) -> &'a [T] {
        debug_assert!(self.is_contiguous());
        let len = self.array.len();
        // A pointer for no elements need not be aligned in NumPy, as it must be here.
        if len == 0 {
            return &[];
        }
        // SAFETY: NumPy owns `len` aligned elements here (`new`); the rest is the
        // caller's promise.
        unsafe { std::slice::from_raw_parts(self.fields().data.cast(), len) }
    }

    /// The elements of a contiguous array, to write to.
    ///
    /// # Safety
    /// Its elements are of type `T`, and nothing else uses them while the slice
    /// is used.
    pub unsafe fn slice_mut<'a, T>(&self) -> &'a mut [T] {
        debug_assert!(self.is_contiguous());
        let len = self.array.len();
        if len == 0 {
            return &mut [];
        }
        // SAFETY: as for `slice`.
        unsafe { std::slice::from_raw_parts_mut(self.fields().data.cast(), len) }
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

/// NumPy's flags of an array.
pub fn flags(array: &Bound<'_, PyUntypedArray>) -> c_int {
    fields(array).flags
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

/// A shape, written as Python does.
pub struct Shape<'a>(pub &'a [usize]);

impl Display for Shape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [n] => write!(f, "({n},)"),
            shape => {
                let numbers: Vec<String> = shape.iter().map(ToString::to_string).collect();
                write!(f, "({})", numbers.join(", "))
            }
        }
    }
}

/// Memory that a call writes to, by owner, for finding overlaps.
pub struct Regions {
    /// Sorted, disjoint, not empty; with the number of the owner.
    sorted: Vec<(Range<usize>, usize)>,
}

impl Regions {
    /// Collects regions.
    ///
    /// # Errors
    /// The owners of two that overlap.
    pub fn new(
        regions: impl IntoIterator<Item = (Range<usize>, usize)>,
    ) -> Result<Self, (usize, usize)> {
        let mut sorted: Vec<_> = regions.into_iter().filter(|(r, _)| !r.is_empty()).collect();
        sorted.sort_by_key(|(r, _)| r.start);
        match sorted.windows(2).find(|w| w[0].0.end > w[1].0.start) {
            Some(w) => Err((w[0].1.min(w[1].1), w[0].1.max(w[1].1))),
            None => Ok(Regions { sorted }),
        }
    }

    /// The owner of a region that overlaps this one.
    pub fn overlapping(&self, region: &Range<usize>) -> Option<usize> {
        if region.is_empty() {
            return None;
        }
        let next = self.sorted.partition_point(|(r, _)| r.end <= region.start);
        self.sorted.get(next).filter(|(r, _)| r.start < region.end).map(|&(_, owner)| owner)
    }
}

/// Requires that an array that is written to shares no memory with one that is read.
pub fn require_disjoint(
    written: &Array<'_, '_>,
    written_memory: &Range<usize>,
    read: &Array<'_, '_>,
    read_memory: &Range<usize>,
) -> PyResult<()> {
    let overlap = written_memory.start < read_memory.end && read_memory.start < written_memory.end;
    if overlap && !written_memory.is_empty() && !read_memory.is_empty() {
        return Err(PyValueError::new_err(format!(
            "{} and {} share memory, which is only allowed where nothing is written (pass a copy of one)",
            written.name, read.name
        )));
    }
    Ok(())
}

/// A number.
pub fn number(object: &Bound<'_, PyAny>, name: Name<'_>) -> PyResult<f64> {
    object.extract::<f64>().map_err(|_| match object.get_type().name() {
        Ok(got) => name.type_error("be a number", got),
        Err(error) => error,
    })
}

/// A boolean.
pub fn flag(object: &Bound<'_, PyAny>, name: Name<'_>) -> PyResult<bool> {
    object.extract::<bool>().map_err(|_| match object.get_type().name() {
        Ok(got) => name.type_error("be True or False", got),
        Err(error) => error,
    })
}
