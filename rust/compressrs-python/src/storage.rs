//! How the numbers of an optimizer's tensors are stored, as its groups say.

use compressrs_core::numeric::element::{bf16, f16};
use compressrs_core::optim::{
    BLOCK, Codes, Halves, MAX_STATES, MIN_LEN, Moments, Rounding, State, StateKind, StateShape,
    Values, Weights, block_len,
};
use compressrs_core::runtime::parallel::SharedMut;
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::arguments::Name;
use crate::buffers::Array;
use crate::dtype::Dtype;
use crate::errors::run;
use crate::overlap::require_disjoint;

/// What moments are kept in.
#[derive(Clone, Copy, PartialEq)]
enum StateDtype {
    Full,
    Bf16,
    Int8,
}

/// How weights in half precision are rounded.
#[derive(Clone, Copy, PartialEq)]
enum Precision {
    Nearest,
    Stochastic,
    Kahan,
    Master,
}

/// What a group says of how its tensors are stored.
#[derive(Clone, Copy, PartialEq)]
pub struct StorageFormat {
    state_dtype: StateDtype,
    precision: Precision,
}

/// A buffer that is kept for a tensor.
pub struct Buffer {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: &'static str,
    /// What it holds before the first step.
    pub initial: f64,
}

/// What a state of a tensor is kept in.
#[derive(Clone, Copy)]
enum Kept {
    Full,
    Bf16,
    Int8 { divisor: bool },
}

impl StorageFormat {
    pub fn new(group: &Bound<'_, PyDict>) -> PyResult<Self> {
        let py = group.py();
        let state_dtype = choice(group, intern!(py, "state_dtype"))?;
        let state_dtype = match text(&state_dtype, "state_dtype")? {
            "float32" => StateDtype::Full,
            "bfloat16" => StateDtype::Bf16,
            "int8" => StateDtype::Int8,
            other => return Err(refused("state_dtype", "'float32', 'bfloat16' or 'int8'", other)),
        };
        let precision = choice(group, intern!(py, "precision"))?;
        let precision = match text(&precision, "precision")? {
            "nearest" => Precision::Nearest,
            "stochastic" => Precision::Stochastic,
            "kahan" => Precision::Kahan,
            "master" => Precision::Master,
            other => {
                let need = "'nearest', 'stochastic', 'kahan' or 'master'";
                return Err(refused("precision", need, other));
            }
        };
        Ok(StorageFormat { state_dtype, precision })
    }

    fn kept(self, state: &State, elements: usize) -> Kept {
        if state.shape != StateShape::Parameter || state.kind == StateKind::Exact {
            return Kept::Full;
        }
        match self.state_dtype {
            StateDtype::Full => Kept::Full,
            StateDtype::Bf16 => Kept::Bf16,
            StateDtype::Int8 if elements < MIN_LEN => Kept::Full,
            StateDtype::Int8 => Kept::Int8 { divisor: state.kind == StateKind::Divisor },
        }
    }

    /// Whether a state of a tensor with so many elements is kept in codes, which share scales.
    pub fn has_codes(self, states: &[State], elements: usize) -> bool {
        states.iter().any(|state| matches!(self.kept(state, elements), Kept::Int8 { .. }))
    }

    /// The buffers that are kept for a parameter, in their order. It is a part of a tensor
    /// with this number of elements, or all of it.
    ///
    /// # Errors
    /// No state of the rule may be kept as the group says.
    pub fn buffers(
        self,
        states: &[State],
        dtype: Dtype,
        shape: &[usize],
        of_tensor: usize,
    ) -> PyResult<Vec<Buffer>> {
        let exact = |s: &State| s.kind == StateKind::Exact;
        if self.state_dtype != StateDtype::Full && !states.is_empty() && states.iter().all(exact) {
            return Err(PyValueError::new_err(
                "state_dtype must be 'float32' for this rule, whose state must not be rounded",
            ));
        }
        let elements: usize = shape.iter().product();
        let full: &'static str = match Dtype::from(dtype.compute()) {
            Dtype::F64 => "float64",
            _ => "float32",
        };
        let mut buffers = Vec::with_capacity(2 * MAX_STATES + 1);
        for state in states {
            let kept = self.kept(state, of_tensor);
            buffers.push(Buffer {
                name: state.name.to_owned(),
                shape: state_shape(state.shape, shape),
                dtype: match kept {
                    Kept::Full => full,
                    Kept::Bf16 => "bfloat16",
                    Kept::Int8 { divisor: false } => "int8",
                    Kept::Int8 { divisor: true } => "uint8",
                },
                initial: state.initial,
            });
            if let Kept::Int8 { .. } = kept {
                buffers.push(Buffer {
                    name: format!("{}_scale", state.name),
                    shape: vec![elements.div_ceil(BLOCK)],
                    dtype: "float32",
                    initial: 0.0,
                });
            }
        }
        let half = match dtype {
            Dtype::F16 => "float16",
            Dtype::Bf16 => "bfloat16",
            Dtype::F32 | Dtype::F64 => return Ok(buffers),
        };
        let (name, dtype) = match self.precision {
            Precision::Nearest | Precision::Stochastic => return Ok(buffers),
            Precision::Kahan => ("compensation", half),
            Precision::Master => ("master", "float32"),
        };
        buffers.push(Buffer { name: name.to_owned(), shape: shape.to_vec(), dtype, initial: 0.0 });
        Ok(buffers)
    }

    /// The states of a parameter from its buffers; the tensor that it is a part of, or all
    /// of, has this number of elements.
    ///
    /// # Safety
    /// The buffers are those that [`buffers`](Self::buffers) lists, and nothing else
    /// uses them while the result is used.
    pub unsafe fn moments<'a, C>(
        self,
        states: &[State],
        of_tensor: usize,
        buffers: &mut impl Iterator<Item = RawBuffer>,
    ) -> [Moments<'a, C>; MAX_STATES] {
        let mut moments: [Moments<'a, C>; MAX_STATES] = Default::default();
        for (slot, state) in moments.iter_mut().zip(states) {
            let mut next = || buffers.next().expect("as many as are listed");
            // SAFETY: the caller guarantees that the buffers are those listed, which
            // nothing else uses.
            *slot = unsafe {
                match self.kept(state, of_tensor) {
                    Kept::Full => Moments::Full(next().shared()),
                    Kept::Bf16 => Moments::Bf16(next().shared()),
                    Kept::Int8 { divisor } => {
                        let (codes, scales) = (next().shared(), next().shared());
                        Moments::Coded(Codes { codes, scales, divisor })
                    }
                }
            };
        }
        moments
    }

    /// A parameter, with the remainders of its buffers.
    ///
    /// # Safety
    /// As for [`moments`](Self::moments), for the parameter too, which is of this dtype.
    pub unsafe fn weights<'a, C>(
        self,
        dtype: Dtype,
        param: RawBuffer,
        buffers: &mut impl Iterator<Item = RawBuffer>,
    ) -> Weights<'a, C> {
        // SAFETY: the caller guarantees that the buffers are those listed, the
        // parameter is of this dtype, and nothing else uses them.
        unsafe {
            match dtype {
                Dtype::F32 | Dtype::F64 => Weights::Full(param.shared()),
                Dtype::F16 => Weights::F16(self.halves::<f16>(param, buffers)),
                Dtype::Bf16 => Weights::Bf16(self.halves::<bf16>(param, buffers)),
            }
        }
    }

    /// # Safety
    /// As for [`weights`](Self::weights).
    unsafe fn halves<'a, H>(
        self,
        param: RawBuffer,
        buffers: &mut impl Iterator<Item = RawBuffer>,
    ) -> Halves<'a, H> {
        let mut next = || buffers.next().expect("as many as are listed");
        // SAFETY: the caller guarantees that the buffers are those listed, the
        // parameter is of this type, and nothing else uses them.
        unsafe {
            Halves {
                values: param.shared(),
                rounding: match self.precision {
                    Precision::Nearest => Rounding::Nearest,
                    Precision::Stochastic => Rounding::Stochastic,
                    Precision::Kahan => Rounding::Kahan(next().shared()),
                    Precision::Master => Rounding::Master(next().shared()),
                },
            }
        }
    }
}

fn choice<'py>(
    group: &Bound<'py, PyDict>,
    name: &Bound<'py, PyString>,
) -> PyResult<Bound<'py, PyAny>> {
    group.get_item(name)?.ok_or_else(|| {
        PyValueError::new_err(format!("the parameter group has no setting {name:?}"))
    })
}

fn text<'a>(value: &'a Bound<'_, PyAny>, name: &str) -> PyResult<&'a str> {
    value.extract().or_else(|_| {
        let got = value.get_type().name()?;
        Err(Name(name, "").type_error("be a string", got))
    })
}

fn refused(name: &str, need: &str, got: &str) -> PyErr {
    Name(name, "").value_error(format_args!("be {need}"), format_args!("{got:?}"))
}

/// The memory of an array: where its elements begin, and their number.
#[derive(Clone, Copy)]
pub struct RawBuffer {
    pub data: *mut u8,
    pub len: usize,
}

impl RawBuffer {
    /// # Safety
    /// There are `len` aligned elements of type `T`, which nothing else uses while
    /// the result is used.
    unsafe fn shared<'a, T>(self) -> SharedMut<'a, T> {
        if self.len == 0 {
            return SharedMut::new(&mut []);
        }
        // SAFETY: the caller guarantees that there are `len` aligned elements,
        // which nothing else uses.
        SharedMut::new(unsafe { std::slice::from_raw_parts_mut(self.data.cast(), self.len) })
    }
}

/// The elements of a contiguous array of any floating-point dtype.
///
/// # Safety
/// As for [`Array::slice`].
pub unsafe fn values<'a>(array: &'a Array<'_, '_>) -> PyResult<Values<'a>> {
    // SAFETY: as the caller guarantees.
    Ok(unsafe {
        match array.float_dtype()? {
            Dtype::F32 => Values::F32(array.slice()?),
            Dtype::F64 => Values::F64(array.slice()?),
            Dtype::F16 => Values::F16(array.slice()?),
            Dtype::Bf16 => Values::Bf16(array.slice()?),
        }
    })
}

/// Checks that codes and scales belong together.
fn check_codes<'py>(
    codes: &Bound<'py, PyAny>,
    scales: &Bound<'py, PyAny>,
    name: &str,
    x: &Bound<'py, PyAny>,
    body: impl FnOnce(Codes<'_>, &mut [f32]) -> PyResult<()>,
) -> PyResult<()> {
    let mut codes = Array::new(codes, Name(name, ""))?;
    let mut scales = Array::new(scales, Name(name, "_scale"))?;
    let mut x = Array::new(x, Name(name, ""))?;
    let divisor = codes.require_element::<i8>().is_err();
    if divisor {
        codes.require_element::<u8>()?;
    }
    scales.require_element::<f32>()?;
    x.require_element::<f32>()?;
    scales.require_shape(
        &[codes.array.len().div_ceil(BLOCK)],
        format_args!("a scale for each {BLOCK} of {name}"),
    )?;
    x.require_shape(codes.array.shape(), name)?;
    for array in [&codes, &scales, &x] {
        array.require_in_place()?;
    }
    require_disjoint(&mut [&mut codes, &mut scales, &mut x], [])?;
    // SAFETY: the GIL is held. Codes of either sign are bytes.
    let (codes, scales, x) =
        unsafe { (codes.slice_mut()?, scales.slice_mut()?, x.slice_mut::<f32>()?) };
    let (codes, scales) = (SharedMut::new(codes), SharedMut::new(scales));
    body(Codes { codes, scales, divisor }, x)
}

/// The shape of a state of a parameter.
fn state_shape(kind: StateShape, parameter: &[usize]) -> Vec<usize> {
    let mut shape = parameter.to_vec();
    let axes = shape.len();
    match kind {
        StateShape::Parameter => {}
        StateShape::Rows => shape[axes - 1] = 1,
        StateShape::Columns => shape[axes - 2] = 1,
        StateShape::OfRows { .. } | StateShape::OfColumns { .. } | StateShape::Rotated => {
            // The caller asks for them with two axes or more only. A saturated product is
            // larger than any array.
            let rows = parameter[0];
            let columns = parameter[1..].iter().fold(1, |n: usize, &len| n.saturating_mul(len));
            let sides = |others: usize, own: usize, most: usize| {
                let blocks = others.div_ceil(block_len(others, most).max(1));
                vec![blocks, own, block_len(own, most)]
            };
            return match kind {
                StateShape::OfRows { block_size } => sides(columns, rows, block_size),
                StateShape::OfColumns { block_size } => sides(rows, columns, block_size),
                _ => vec![rows, columns, 1],
            };
        }
    }
    shape
}

/// Encodes a float32 array in 8 bits, rounded to nearest: int8 codes for a moment,
/// uint8 codes for a divisor.
#[pyfunction]
pub fn encode_state<'py>(
    x: &Bound<'py, PyAny>,
    codes: &Bound<'py, PyAny>,
    scales: &Bound<'py, PyAny>,
    name: &str,
) -> PyResult<()> {
    check_codes(codes, scales, name, x, |mut codes, x| run(scales.py(), || codes.encode(x)))
}

/// Decodes what `encode_state` or a step made.
#[pyfunction]
pub fn decode_state<'py>(
    codes: &Bound<'py, PyAny>,
    scales: &Bound<'py, PyAny>,
    x: &Bound<'py, PyAny>,
    name: &str,
) -> PyResult<()> {
    check_codes(codes, scales, name, x, |codes, x| run(scales.py(), || codes.decode(x)))
}
