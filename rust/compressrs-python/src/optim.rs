//! Steps of optimizers.

use compressrs_core::element::Float;
use compressrs_core::optim::{
    Adam, MAX_STATES, Momentum, OutOfRange, Rule, Sgd, Tensor, Update, step as core_step,
};
use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use crate::buffers::{Array, Dtype, Name, Regions, flag, number, with_dtype};
use crate::errors::run;

/// The hyperparameters of a rule, by position.
struct Hyperparameters<'a, 'py>(&'a Bound<'py, PyTuple>);

impl Hyperparameters<'_, '_> {
    fn number(&self, i: usize, name: &str) -> PyResult<f64> {
        number(&self.0.get_item(i)?, Name(name, ""))
    }

    fn flag(&self, i: usize, name: &str) -> PyResult<bool> {
        flag(&self.0.get_item(i)?, Name(name, ""))
    }

    fn pair(&self, i: usize, name: &str) -> PyResult<(f64, f64)> {
        let item = self.0.get_item(i)?;
        let [a, b]: [Bound<'_, PyAny>; 2] = item
            .try_iter()
            .and_then(|items| items.collect::<PyResult<Vec<_>>>())
            .ok()
            .and_then(|items| items.try_into().ok())
            .ok_or_else(|| {
                PyTypeError::new_err(format!("{name} must be two numbers, got {item}"))
            })?;
        Ok((number(&a, Name(name, "[0]"))?, number(&b, Name(name, "[1]"))?))
    }

    /// The rule named `kind`; the Python classes pass its hyperparameters in
    /// this order.
    fn rule(&self, kind: &str) -> PyResult<Rule> {
        let rule = match kind {
            "sgd" => Sgd::new(
                self.number(0, "lr")?,
                self.number(1, "momentum")?,
                self.number(2, "dampening")?,
                self.number(3, "weight_decay")?,
                self.flag(4, "nesterov")?,
                self.flag(5, "maximize")?,
            )
            .map(Rule::Sgd),
            "momentum" => Momentum::new(
                self.number(0, "lr")?,
                self.number(1, "momentum")?,
                self.number(2, "weight_decay")?,
                self.flag(3, "nesterov")?,
                self.flag(4, "maximize")?,
            )
            .map(Rule::Momentum),
            "adam" | "adamw" => Adam::new(
                self.number(0, "lr")?,
                self.pair(1, "betas")?,
                self.number(2, "eps")?,
                self.number(3, "weight_decay")?,
                self.flag(4, "amsgrad")?,
                self.flag(5, "maximize")?,
                kind == "adamw",
            )
            .map(Rule::Adam),
            _ => return Err(PyValueError::new_err(format!("unknown rule {kind:?}"))),
        };
        rule.map_err(|error: OutOfRange| PyValueError::new_err(error.to_string()))
    }
}

/// Checks the hyperparameters of a rule; the names of the state buffers it keeps.
#[pyfunction]
pub fn rule_states<'py>(
    py: Python<'py>,
    kind: &str,
    hyperparameters: &Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyTuple>> {
    PyTuple::new(py, Hyperparameters(hyperparameters).rule(kind)?.states())
}

/// A parameter with all that belongs to it.
struct Slot {
    /// What leads from `params` or `grads` to the tensor, as in `[0]['bias']`.
    path: String,
    param: Py<PyUntypedArray>,
    states: Vec<Py<PyUntypedArray>>,
    mask: Option<Py<PyUntypedArray>>,
    group: usize,
    dtype: Dtype,
    /// Where the parameter was when it was checked.
    data: usize,
}

/// The tensors of an optimizer, checked once, so that a step checks only the
/// gradients and that no parameter has moved.
#[pyclass(frozen, module = "compressrs._core")]
pub struct Stepper {
    kind: String,
    slots: Vec<Slot>,
    /// Steps taken, by slot.
    steps: Py<PyUntypedArray>,
    /// Memory of the parameters and states, by slot.
    regions: Regions,
}

#[pymethods]
impl Stepper {
    /// `slots`: for each tensor its path, parameter, states, mask or None, and
    /// the index of its group. `steps`: an int64 array, one element a tensor.
    #[new]
    #[expect(clippy::type_complexity, reason = "the shape of the Python argument")]
    fn new<'py>(
        kind: String,
        slots: Vec<(
            String,
            Bound<'py, PyAny>,
            Vec<Bound<'py, PyAny>>,
            Option<Bound<'py, PyAny>>,
            usize,
        )>,
        steps: &Bound<'py, PyAny>,
    ) -> PyResult<Self> {
        let mut checked = Vec::with_capacity(slots.len());
        let mut regions = Vec::new();
        for (i, (path, param, states, mask, group)) in slots.into_iter().enumerate() {
            let param = Array::new(&param, Name("params", &path))?;
            let dtype = param.float_dtype()?;
            param.require_in_place()?;
            let shape = param.array.shape();
            regions.push((param.memory(), i));
            let states = states
                .iter()
                .map(|state| {
                    let state = Array::new(state, Name("state of params", &path))?;
                    state.require_dtype(dtype, param.name)?;
                    state.require_shape(shape, param.name)?;
                    state.require_in_place()?;
                    regions.push((state.memory(), i));
                    Ok(state.array.unbind())
                })
                .collect::<PyResult<Vec<_>>>()?;
            let mask = mask
                .map(|mask| {
                    let mask = Array::new(&mask, Name("masks", &path))?;
                    mask.require_element::<bool>()?;
                    mask.require_shape(shape, param.name)?;
                    mask.require_contiguous()?;
                    PyResult::Ok(mask.array.unbind())
                })
                .transpose()?;
            let data = param.data() as usize;
            let param = param.array.unbind();
            checked.push(Slot { path, param, states, mask, group, dtype, data });
        }
        let regions = Regions::new(regions).map_err(|(a, b)| {
            let name = |i: usize| format!("params{}", checked[i].path);
            PyValueError::new_err(if a == b {
                format!("{} shares memory with its own state (give each a copy)", name(a))
            } else {
                format!(
                    "{} and {} share memory, so that a step would update it twice (pass it once, or a copy)",
                    name(a),
                    name(b)
                )
            })
        })?;
        let steps = Array::new(steps, Name("steps", ""))?;
        steps.require_element::<i64>()?;
        steps.require_shape(&[checked.len()], "the list of tensors")?;
        steps.require_contiguous()?;
        let steps = steps.array.unbind();

        Ok(Stepper { kind, slots: checked, steps, regions })
    }

    /// One step. `grads`: an array or None for each tensor; `groups`: a tuple of
    /// hyperparameters for each group.
    fn step<'py>(
        &self,
        py: Python<'py>,
        grads: Vec<Option<Bound<'py, PyAny>>>,
        groups: &Bound<'py, PyList>,
    ) -> PyResult<()> {
        if grads.len() != self.slots.len() {
            return Err(PyValueError::new_err(format!(
                "grads must hold {} arrays, one for each parameter, got {}",
                self.slots.len(),
                grads.len()
            )));
        }
        let rules = groups
            .iter()
            .map(|group| Hyperparameters(group.cast::<PyTuple>()?).rule(&self.kind))
            .collect::<PyResult<Vec<Rule>>>()?;

        let steps = Array::new(self.steps.bind(py).as_any(), Name("steps", ""))?;
        // SAFETY: `new` checked the dtype; only this method writes to it, and
        // the Python class lets one thread at a time into it.
        let steps = unsafe { steps.slice_mut::<i64>() };
        let mut jobs = Vec::with_capacity(self.slots.len());
        // Groups at the same step have the same coefficients.
        let mut last: Option<(usize, i64, Update)> = None;
        for (i, (slot, grad)) in self.slots.iter().zip(&grads).enumerate() {
            let Some(grad) = grad else { continue };
            let rule = &rules[slot.group];
            let update = match last {
                Some((group, step, update)) if (group, step) == (slot.group, steps[i]) => update,
                _ => rule.at((steps[i] + 1).max(1) as u64),
            };
            last = Some((slot.group, steps[i], update));
            jobs.push(self.check(py, i, slot, rule, update, grad)?);
        }
        for dtype in [Dtype::F32, Dtype::F64] {
            if jobs.iter().any(|job| job.slot.dtype == dtype) {
                with_dtype!(dtype, T => {
                    // SAFETY: `check` checked every array of the job; parameters
                    // and states are disjoint by `regions`, and gradients and
                    // masks from them. The arrays live as long as `jobs`.
                    let tensors: Vec<Tensor<'_, T>> = jobs
                        .iter()
                        .filter(|job| job.slot.dtype == dtype)
                        .map(|job| unsafe { job.tensor(py) })
                        .collect::<PyResult<_>>()?;
                    run(py, || core_step(tensors))?;
                });
            }
        }
        for job in &jobs {
            steps[job.index] += 1;
        }
        Ok(())
    }
}

/// A tensor whose gradient has been checked.
struct Job<'py, 's> {
    index: usize,
    slot: &'s Slot,
    update: Update,
    sign: f64,
    grad: Array<'py, 's>,
}

impl Stepper {
    fn check<'py, 's>(
        &'s self,
        py: Python<'py>,
        index: usize,
        slot: &'s Slot,
        rule: &Rule,
        update: Update,
        grad: &Bound<'py, PyAny>,
    ) -> PyResult<Job<'py, 's>> {
        let param = Array::new(slot.param.bind(py).as_any(), Name("params", &slot.path))?;
        let name = Name("grads", &slot.path);
        let grad = if grad.is_instance_of::<PyUntypedArray>() {
            Array::new(grad, name)?
        } else {
            // A tensor, perhaps. Looked up only here, off the fast path.
            let as_gradient = py.import("compressrs._arrays")?.getattr("as_gradient")?;
            Array::new(&as_gradient.call1((grad, name.to_string()))?, name)?
        };
        grad.require_dtype(slot.dtype, param.name)?;
        grad.require_shape(param.array.shape(), param.name)?;
        let grad = grad.contiguous()?;
        if let Some(owner) = self.regions.overlapping(&grad.memory()) {
            return Err(PyValueError::new_err(format!(
                "{} shares memory with params{} or its state, which the step writes to (pass a copy)",
                grad.name, self.slots[owner].path
            )));
        }
        // Arrays can be resized, replaced or locked behind our back.
        param.require_writable()?;
        if param.data() as usize != slot.data
            || !param.is_contiguous()
            || slot.states.iter().any(|state| state.bind(py).shape() != param.array.shape())
        {
            return Err(PyValueError::new_err(format!(
                "{} was resized or reshaped since the optimizer was made (make a new optimizer)",
                param.name
            )));
        }
        if rule.states().len() != slot.states.len() {
            return Err(PyValueError::new_err(format!(
                "the state of {} does not fit the hyperparameters of its group, which now need {:?} \
                 (momentum and amsgrad cannot be switched on or off; make a new optimizer)",
                param.name,
                rule.states()
            )));
        }
        Ok(Job { index, slot, update, sign: rule.gradient_sign(), grad })
    }
}

impl Job<'_, '_> {
    /// # Safety
    /// `T` is the slot's dtype, and nothing else uses the parameter and its
    /// states, or writes to the gradient and the mask, while the result is used.
    unsafe fn tensor<'a, T: Float>(&self, py: Python<'_>) -> PyResult<Tensor<'a, T>> {
        let array =
            |array: &Py<PyUntypedArray>| Array::new(array.bind(py).as_any(), Name("params", ""));
        let mut states: [&mut [T]; MAX_STATES] = Default::default();
        for (slice, state) in states.iter_mut().zip(&self.slot.states) {
            // SAFETY: the caller's promise; `new` checked dtype and layout.
            *slice = unsafe { array(state)?.slice_mut() };
        }
        let mask = match &self.slot.mask {
            // SAFETY: as above.
            Some(mask) => Some(unsafe { array(mask)?.slice() }),
            None => None,
        };
        Ok(Tensor {
            update: self.update,
            scale: self.sign,
            // SAFETY: as above.
            param: unsafe { array(&self.slot.param)?.slice_mut() },
            // SAFETY: as above.
            grad: unsafe { self.grad.slice() },
            states,
            mask,
        })
    }
}
