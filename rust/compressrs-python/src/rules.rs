//! From a parameter group, a dict, to the rule that it describes.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use compressrs_core::optim::{self as core, Rule, Value};
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyMapping, PyString, PyTuple};

use crate::arguments::{Name, Shape, flag, number};
use crate::buffers::Array;
use crate::storage::StorageFormat;

/// The hyperparameters of a parameter group.
pub struct Group<'a, 'py>(pub &'a Bound<'py, PyDict>);

/// Why a group's hyperparameters were refused.
pub enum Refused {
    /// One is missing, or cannot be what it must be whatever the others are.
    Value(PyErr),
    /// One is out of range, which may depend on others.
    Range(core::OutOfRange),
}

impl From<PyErr> for Refused {
    fn from(error: PyErr) -> Self {
        Refused::Value(error)
    }
}

impl From<core::OutOfRange> for Refused {
    fn from(error: core::OutOfRange) -> Self {
        Refused::Range(error)
    }
}

impl From<Refused> for PyErr {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Value(error) => error,
            Refused::Range(error) => PyValueError::new_err(error.to_string()),
        }
    }
}

/// FNV-1a: of names in the program, which nobody chooses so that they collide.
#[derive(Clone)]
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Names as Python strings.
type Names = HashMap<&'static str, Py<PyString>, BuildHasherDefault<Fnv>>;

/// The names of all hyperparameters as Python strings: every step reads them.
fn interned<'py>(py: Python<'py>, name: &'static str) -> Bound<'py, PyString> {
    static NAMES: PyOnceLock<Names> = PyOnceLock::new();
    let names = NAMES.get_or_init(py, || {
        let of_rules = core::rules().into_iter().flat_map(|(_, values)| values);
        let names = of_rules.map(|(name, _)| name).chain(["seed", "frozen"]);
        names.map(|name| (name, PyString::new(py, name).unbind())).collect()
    });
    match names.get(name) {
        Some(name) => name.bind(py).clone(),
        None => PyString::new(py, name),
    }
}

impl<'py> Group<'_, 'py> {
    fn get(&self, name: &'static str) -> PyResult<Bound<'py, PyAny>> {
        self.0.get_item(interned(self.0.py(), name))?.ok_or_else(|| {
            PyValueError::new_err(format!("the parameter group has no hyperparameter '{name}'"))
        })
    }

    /// The seed of what is rounded at random.
    pub fn seed(&self) -> PyResult<u64> {
        let (value, name) = (self.get("seed")?, Name("seed", ""));
        let is_bool = value.is_instance_of::<PyBool>();
        if !is_bool && let Ok(seed) = value.extract() {
            return Ok(seed);
        }
        let need = "be an integer from 0 to 2**64 - 1";
        Err(if value.is_instance_of::<PyInt>() && !is_bool {
            name.value_error(need, &value)
        } else {
            name.type_error(need, value.get_type().name()?)
        })
    }

    /// Whether the group is to be left alone.
    pub fn is_frozen(&self) -> PyResult<bool> {
        let name = "frozen";
        if !self.0.contains(interned(self.0.py(), name))? {
            return Ok(false);
        }
        let value = self.get(name)?;
        value.extract().or_else(|_| flag(&value, Name(name, "")))
    }
}

impl core::Source for Group<'_, '_> {
    type Error = Refused;

    fn number(&self, name: &'static str) -> Result<f64, Refused> {
        Ok(number(&self.get(name)?, Name(name, ""))?)
    }

    fn optional(&self, name: &'static str) -> Result<Option<f64>, Refused> {
        if self.get(name)?.is_none() { Ok(None) } else { self.number(name).map(Some) }
    }

    fn flag(&self, name: &'static str) -> Result<bool, Refused> {
        let value = self.get(name)?;
        Ok(value.extract().or_else(|_| flag(&value, Name(name, "")))?)
    }

    fn numbers<const N: usize>(
        &self,
        name: &'static str,
        optional: [bool; N],
    ) -> Result<[Option<f64>; N], Refused> {
        let value = self.get(name)?;
        let refused = || {
            let got = match value.len() {
                Ok(len) if len > 8 => format!("{len} elements"),
                _ => value.to_string(),
            };
            PyTypeError::new_err(format!("{name} must be {N} numbers, got {got}"))
        };
        // Of a length and an order: a dict, a set or an iterator is none.
        let is_tuple = value.is_exact_instance_of::<PyTuple>();
        let is_sequence = is_tuple || value.cast::<PyMapping>().is_err();
        if !is_sequence || value.len().ok() != Some(N) {
            return Err(refused().into());
        }
        let mut numbers = [None; N];
        for (i, element) in numbers.iter_mut().enumerate() {
            let item = value.get_item(i).map_err(|_| refused())?;
            if !(optional[i] && item.is_none()) {
                *element = Some(match item.cast::<PyFloat>() {
                    Ok(float) => float.value(),
                    Err(_) => number(&item, Name(name, &format!("[{i}]")))?,
                });
            }
        }
        Ok(numbers)
    }

    fn choice(&self, name: &'static str, options: &[&str]) -> Result<Option<usize>, Refused> {
        let value = self.get(name)?;
        if value.is_none() {
            return Ok(None);
        }
        let chosen = value.extract::<String>().ok();
        let found = options.iter().position(|&option| chosen.as_deref() == Some(option));
        found.map(Some).ok_or_else(|| {
            let got = value.repr().map_or_else(|_| value.get_type().to_string(), |r| r.to_string());
            let options: Vec<String> = options.iter().map(|o| format!("'{o}'")).collect();
            let need = format!("{name} must be {} or None, got {got}", options.join(", "));
            PyValueError::new_err(need).into()
        })
    }
}

/// The rule named `kind` that a group describes.
pub fn read<'a, 'py>(kind: &str, group: &Group<'a, 'py>) -> Result<Box<dyn Rule>, Refused> {
    let reader: core::Reader<Group<'a, 'py>> = core::reader(kind)
        .ok_or_else(|| PyValueError::new_err(format!("unknown rule {kind:?}")))?;
    reader(group)
}

/// Default hyperparameters of every rule, by its name.
#[pyfunction]
pub fn rules(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let all = PyDict::new(py);
    for (rule, values) in core::rules() {
        let defaults = PyDict::new(py);
        for (name, value) in values {
            match value {
                Value::Number(x) => defaults.set_item(name, x)?,
                Value::Flag(x) => defaults.set_item(name, x)?,
                Value::Numbers(x) => defaults.set_item(name, PyTuple::new(py, x)?)?,
                Value::Choice(x) => defaults.set_item(name, x)?,
                Value::Nothing => defaults.set_item(name, py.None())?,
            }
        }
        all.set_item(rule, defaults)?;
    }
    Ok(all)
}

/// Name, shape, dtype and initial value of a buffer.
type Described<'py> = (String, Bound<'py, PyTuple>, &'static str, f64);

/// Checks the hyperparameters of a group, and one of its parameters, which may be a part
/// of a tensor with `elements`; name, shape, dtype and initial value of each buffer that
/// is kept for it.
#[pyfunction]
#[pyo3(signature = (kind, group, param, name, elements=None))]
pub fn rule_buffers<'py>(
    kind: &str,
    group: &Bound<'py, PyDict>,
    param: &Bound<'py, PyAny>,
    name: &str,
    elements: Option<usize>,
) -> PyResult<Vec<Described<'py>>> {
    let rule = read(kind, &Group(group))?;
    let param = Array::new(param, Name(name, ""))?;
    let (dtype, shape) = (param.float_dtype()?, param.array.shape());
    let axes = shape.len();
    rule.accepts(axes)
        .map_err(|need| param.name.value_error(need, format_args!("shape {}", Shape(shape))))?;
    let elements = elements.unwrap_or_else(|| shape.iter().product());
    let buffers = StorageFormat::new(group)?.buffers(&rule.states(axes), dtype, shape, elements)?;
    let tuple = |shape| PyTuple::new(group.py(), shape);
    buffers.into_iter().map(|b| Ok((b.name, tuple(b.shape)?, b.dtype, b.initial))).collect()
}

/// Checks the hyperparameters of a group; the names of the numbers that are kept
/// for a parameter as a whole.
#[pyfunction]
pub fn rule_scalars(kind: &str, group: &Bound<'_, PyDict>) -> PyResult<Vec<&'static str>> {
    Group(group).is_frozen()?;
    Group(group).seed()?;
    StorageFormat::new(group)?;
    Ok(read(kind, &Group(group))?.scalars().to_vec())
}

/// Checks the types of the hyperparameters of a group, and what does not depend on others.
#[pyfunction]
pub fn rule_types(kind: &str, group: &Bound<'_, PyDict>) -> PyResult<()> {
    Group(group).is_frozen()?;
    Group(group).seed()?;
    match read(kind, &Group(group)) {
        Err(Refused::Value(error)) => Err(error),
        Err(Refused::Range(_)) | Ok(_) => Ok(()),
    }
}

/// Whether the rule that a group describes updates each element by itself, so that parts of
/// a tensor can be updated separately.
#[pyfunction]
pub fn rule_is_elementwise(kind: &str, group: &Bound<'_, PyDict>) -> PyResult<bool> {
    let mut scalars = [0.0; core::MAX_SCALARS];
    Ok(read(kind, &Group(group))?.at(1, &mut scalars).is_elementwise())
}
