//! From a parameter group, a dict, to the rule that it describes.

use compressrs_core::optim::{
    Adadelta, Adafactor, Adagrad, Adam, Adamax, AdjustLr, Asgd, Hyperparameters, Lamb, Lion,
    Momentum, Muon, NAdam, OutOfRange, RAdam, RmsProp, Rprop, Sgd, StateShape,
};
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyString, PyTuple};

use crate::buffers::{Array, Name, Shape, flag, number};
use crate::storage::Storage;

/// A rule with its hyperparameters.
pub type Rule = Box<dyn Hyperparameters>;

/// Makes a rule from the hyperparameters of a group.
pub type Make = fn(&Group<'_, '_>) -> PyResult<Rule>;

/// The hyperparameters of a parameter group.
pub struct Group<'a, 'py>(pub &'a Bound<'py, PyDict>);

impl<'py> Group<'_, 'py> {
    fn get(&self, name: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyAny>> {
        self.0.get_item(name)?.ok_or_else(|| {
            PyValueError::new_err(format!("the parameter group has no hyperparameter {name:?}"))
        })
    }

    fn number(&self, name: &Bound<'py, PyString>) -> PyResult<f64> {
        let value = self.get(name)?;
        value.extract().or_else(|_| number(&value, Name(&name.to_string(), "")))
    }

    fn flag(&self, name: &Bound<'py, PyString>) -> PyResult<bool> {
        let value = self.get(name)?;
        value.extract().or_else(|_| flag(&value, Name(&name.to_string(), "")))
    }

    fn items<const N: usize>(
        &self,
        name: &Bound<'py, PyString>,
    ) -> PyResult<[Bound<'py, PyAny>; N]> {
        let value = self.get(name)?;
        value
            .try_iter()
            .and_then(|items| items.collect::<PyResult<Vec<_>>>())
            .ok()
            .and_then(|items| items.try_into().ok())
            .ok_or_else(|| {
                let count = if N == 2 { "two" } else { "three" };
                PyTypeError::new_err(format!("{name} must be {count} numbers, got {value}"))
            })
    }

    fn numbers<const N: usize>(&self, name: &Bound<'py, PyString>) -> PyResult<[f64; N]> {
        let items = self.items::<N>(name)?;
        let mut numbers = [0.0; N];
        for (i, (slot, item)) in numbers.iter_mut().zip(&items).enumerate() {
            *slot = number(item, Name(&name.to_string(), &format!("[{i}]")))?;
        }
        Ok(numbers)
    }

    fn pair(&self, name: &Bound<'py, PyString>) -> PyResult<(f64, f64)> {
        // The usual case first: this is asked for in every step.
        if let Ok(pair) = self.get(name)?.extract() {
            return Ok(pair);
        }
        self.numbers(name).map(|[a, b]| (a, b))
    }

    /// The seed of what is rounded at random.
    pub fn seed(&self) -> PyResult<u64> {
        let name = intern!(self.0.py(), "seed");
        let value = self.get(name)?;
        value.extract().or_else(|_| {
            let need = "be an integer from 0 to 2**64 - 1";
            Err(if value.is_instance_of::<PyInt>() {
                Name("seed", "").value_error(need, &value)
            } else {
                Name("seed", "").type_error(need, value.get_type().name()?)
            })
        })
    }

    /// Whether the group is to be left alone.
    pub fn is_frozen(&self) -> PyResult<bool> {
        let name = intern!(self.0.py(), "frozen");
        Ok(self.0.contains(name)? && self.flag(name)?)
    }
}

fn rule<R: Hyperparameters + 'static>(made: Result<R, OutOfRange>) -> PyResult<Rule> {
    match made {
        Ok(rule) => Ok(Box::new(rule)),
        Err(error) => Err(PyValueError::new_err(error.to_string())),
    }
}

/// The name of a hyperparameter as a Python string.
macro_rules! name {
    ($group:expr, $name:literal) => {
        intern!($group.0.py(), $name)
    };
}

/// What makes the rule named `kind`.
pub fn make(kind: &str) -> PyResult<Make> {
    let make: Make = match kind {
        "adadelta" => |g| {
            rule(Adadelta::new(
                g.number(name!(g, "lr"))?,
                g.number(name!(g, "rho"))?,
                g.number(name!(g, "eps"))?,
                g.number(name!(g, "weight_decay"))?,
                g.flag(name!(g, "maximize"))?,
            ))
        },
        "adafactor" => |g| {
            let [eps1, eps2] = g.items::<2>(name!(g, "eps"))?;
            let eps1 = if eps1.is_none() { None } else { Some(number(&eps1, Name("eps", "[0]"))?) };
            rule(Adafactor::new(
                g.number(name!(g, "lr"))?,
                g.number(name!(g, "beta2_decay"))?,
                (eps1, number(&eps2, Name("eps", "[1]"))?),
                g.number(name!(g, "d"))?,
                g.number(name!(g, "weight_decay"))?,
                g.flag(name!(g, "maximize"))?,
            ))
        },
        "adagrad" => |g| {
            rule(Adagrad::new(
                g.number(name!(g, "lr"))?,
                g.number(name!(g, "lr_decay"))?,
                g.number(name!(g, "weight_decay"))?,
                g.number(name!(g, "initial_accumulator_value"))?,
                g.number(name!(g, "eps"))?,
                g.flag(name!(g, "maximize"))?,
            ))
        },
        "adam" => |g| {
            rule(Adam::new(
                g.number(name!(g, "lr"))?,
                g.pair(name!(g, "betas"))?,
                g.number(name!(g, "eps"))?,
                g.number(name!(g, "weight_decay"))?,
                g.flag(name!(g, "amsgrad"))?,
                g.flag(name!(g, "maximize"))?,
                g.flag(name!(g, "decoupled_weight_decay"))?,
            ))
        },
        "adamax" => |g| {
            rule(Adamax::new(
                g.number(name!(g, "lr"))?,
                g.pair(name!(g, "betas"))?,
                g.number(name!(g, "eps"))?,
                g.number(name!(g, "weight_decay"))?,
                g.flag(name!(g, "maximize"))?,
            ))
        },
        "asgd" => |g| {
            rule(Asgd::new(
                g.number(name!(g, "lr"))?,
                g.number(name!(g, "lambd"))?,
                g.number(name!(g, "alpha"))?,
                g.number(name!(g, "t0"))?,
                g.number(name!(g, "weight_decay"))?,
                g.flag(name!(g, "maximize"))?,
            ))
        },
        "lamb" => |g| {
            rule(Lamb::new(
                g.number(name!(g, "lr"))?,
                g.pair(name!(g, "betas"))?,
                g.number(name!(g, "eps"))?,
                g.number(name!(g, "eps_root"))?,
                g.number(name!(g, "weight_decay"))?,
                g.flag(name!(g, "maximize"))?,
            ))
        },
        "lion" => |g| {
            rule(Lion::new(
                g.number(name!(g, "lr"))?,
                g.pair(name!(g, "betas"))?,
                g.number(name!(g, "weight_decay"))?,
                g.flag(name!(g, "maximize"))?,
            ))
        },
        "momentum" => |g| {
            rule(Momentum::new(
                g.number(name!(g, "lr"))?,
                g.number(name!(g, "momentum"))?,
                g.number(name!(g, "weight_decay"))?,
                g.flag(name!(g, "nesterov"))?,
                g.flag(name!(g, "maximize"))?,
            ))
        },
        "muon" => |g| {
            rule(Muon::new(
                g.number(name!(g, "lr"))?,
                g.number(name!(g, "weight_decay"))?,
                g.number(name!(g, "momentum"))?,
                g.flag(name!(g, "nesterov"))?,
                g.numbers(name!(g, "ns_coefficients"))?,
                g.number(name!(g, "eps"))?,
                g.number(name!(g, "ns_steps"))?,
                adjust_lr(&g.get(name!(g, "adjust_lr_fn"))?)?,
                g.flag(name!(g, "maximize"))?,
            ))
        },
        "nadam" => |g| {
            rule(NAdam::new(
                g.number(name!(g, "lr"))?,
                g.pair(name!(g, "betas"))?,
                g.number(name!(g, "eps"))?,
                g.number(name!(g, "weight_decay"))?,
                g.number(name!(g, "momentum_decay"))?,
                g.flag(name!(g, "decoupled_weight_decay"))?,
                g.flag(name!(g, "maximize"))?,
            ))
        },
        "radam" => |g| {
            rule(RAdam::new(
                g.number(name!(g, "lr"))?,
                g.pair(name!(g, "betas"))?,
                g.number(name!(g, "eps"))?,
                g.number(name!(g, "weight_decay"))?,
                g.flag(name!(g, "decoupled_weight_decay"))?,
                g.flag(name!(g, "maximize"))?,
            ))
        },
        "rmsprop" => |g| {
            rule(RmsProp::new(
                g.number(name!(g, "lr"))?,
                g.number(name!(g, "alpha"))?,
                g.number(name!(g, "eps"))?,
                g.number(name!(g, "weight_decay"))?,
                g.number(name!(g, "momentum"))?,
                g.flag(name!(g, "centered"))?,
                g.flag(name!(g, "maximize"))?,
            ))
        },
        "rprop" => |g| {
            rule(Rprop::new(
                g.number(name!(g, "lr"))?,
                g.pair(name!(g, "etas"))?,
                g.pair(name!(g, "step_sizes"))?,
                g.flag(name!(g, "maximize"))?,
            ))
        },
        "sgd" => |g| {
            rule(Sgd::new(
                g.number(name!(g, "lr"))?,
                g.number(name!(g, "momentum"))?,
                g.number(name!(g, "dampening"))?,
                g.number(name!(g, "weight_decay"))?,
                g.flag(name!(g, "nesterov"))?,
                g.flag(name!(g, "maximize"))?,
            ))
        },
        _ => return Err(PyValueError::new_err(format!("unknown rule {kind:?}"))),
    };
    Ok(make)
}

fn adjust_lr(value: &Bound<'_, PyAny>) -> PyResult<AdjustLr> {
    if value.is_none() {
        return Ok(AdjustLr::Original);
    }
    match value.extract::<String>().as_deref() {
        Ok("original") => Ok(AdjustLr::Original),
        Ok("match_rms_adamw") => Ok(AdjustLr::MatchRmsAdamW),
        Ok("spectral_unclamped") => Ok(AdjustLr::SpectralUnclamped),
        _ => Err(PyValueError::new_err(format!(
            "adjust_lr_fn must be 'original', 'match_rms_adamw', 'spectral_unclamped' or None, \
             got {}",
            value.repr()?
        ))),
    }
}

/// The shape of a state of a parameter.
pub fn state_shape(kind: StateShape, parameter: &[usize]) -> Vec<usize> {
    let mut shape = parameter.to_vec();
    let axes = shape.len();
    match kind {
        StateShape::Parameter => {}
        StateShape::Rows => shape[axes - 1] = 1,
        StateShape::Columns => shape[axes - 2] = 1,
    }
    shape
}

/// Name, shape, dtype and initial value of a buffer.
type Described<'py> = (String, Bound<'py, PyTuple>, &'static str, f64);

/// Checks the hyperparameters of a group, and one of its parameters; name, shape,
/// dtype and initial value of each buffer that is kept for it.
#[pyfunction]
pub fn rule_buffers<'py>(
    kind: &str,
    group: &Bound<'py, PyDict>,
    param: &Bound<'py, PyAny>,
    name: &str,
) -> PyResult<Vec<Described<'py>>> {
    let rule = make(kind)?(&Group(group))?;
    let param = Array::new(param, Name(name, ""))?;
    let (dtype, shape) = (param.float_dtype()?, param.array.shape());
    let axes = shape.len();
    rule.accepts(axes)
        .map_err(|need| param.name.value_error(need, format_args!("shape {}", Shape(shape))))?;
    let buffers = Storage::new(group)?.buffers(&rule.states(axes), dtype, shape)?;
    let tuple = |shape| PyTuple::new(group.py(), shape);
    buffers.into_iter().map(|b| Ok((b.name, tuple(b.shape)?, b.dtype, b.initial))).collect()
}

/// Checks the hyperparameters of a group; the names of the numbers that are kept
/// for a parameter as a whole.
#[pyfunction]
pub fn rule_scalars(kind: &str, group: &Bound<'_, PyDict>) -> PyResult<Vec<&'static str>> {
    Group(group).is_frozen()?;
    Group(group).seed()?;
    Storage::new(group)?;
    Ok(make(kind)?(&Group(group))?.scalars().to_vec())
}
