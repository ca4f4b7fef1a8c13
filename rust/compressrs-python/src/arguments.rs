//! Names of arguments and shapes in messages, and arguments that are plain values.

use std::fmt::{self, Display};

use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyFloat, PyInt};

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

/// A number, which a bool is not.
pub fn number(object: &Bound<'_, PyAny>, name: Name<'_>) -> PyResult<f64> {
    if let Ok(float) = object.cast::<PyFloat>() {
        return Ok(float.value());
    }
    if is_bool(object) {
        return Err(name.type_error("be a number", "bool"));
    }
    object.extract::<f64>().map_err(|error| match object.get_type().name() {
        Ok(_) if error.is_instance_of::<PyOverflowError>(object.py()) => {
            name.value_error("be a finite number", "one beyond the range of float64")
        }
        Ok(got) => name.type_error("be a number", got),
        Err(error) => error,
    })
}

/// Whether an object is a bool of Python, NumPy or another framework, as
/// `compressrs._checks.is_bool` has it.
fn is_bool(object: &Bound<'_, PyAny>) -> bool {
    object.is_instance_of::<PyBool>()
        || !object.is_instance_of::<PyInt>()
            && object.getattr("dtype").is_ok_and(|dtype| {
                let name = dtype.to_string();
                name == "bool" || name.ends_with(".bool")
            })
}

/// A boolean.
pub fn flag(object: &Bound<'_, PyAny>, name: Name<'_>) -> PyResult<bool> {
    object.extract::<bool>().map_err(|_| match object.get_type().name() {
        Ok(got) => name.type_error("be True or False", got),
        Err(error) => error,
    })
}
