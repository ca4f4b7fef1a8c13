//! Steps of optimizers.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use compressrs_core::numeric::element::Float;
use compressrs_core::optim::{
    self as core, Gradient, MAX_SCALARS, Rule, Scalars, State, StochasticRounding, Tensor, Update,
    mask_bytes,
};
use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::buffers::{Array, Compute, Dtype, Kept, Layout, Name, data, number, require_writable};
use crate::errors::{NonFiniteGradientError, run};
use crate::overlap::Regions;
use crate::rules::{Group, read};
use crate::storage::{RawBuffer, StorageFormat, values};

/// An array that was checked, and what it was then.
struct Checked {
    kept: Kept,
    data: *mut u8,
    bytes: usize,
    layout: Layout,
}

// SAFETY: the pointer is used only in `step`, which checks that it is still the
// array's.
unsafe impl Send for Checked {}
// SAFETY: as above.
unsafe impl Sync for Checked {}

impl Checked {
    fn new(array: &Array<'_, '_>) -> PyResult<Self> {
        let layout = Layout::new(array);
        let bytes = array.memory().len();
        Ok(Checked { data: array.data(), bytes, layout, kept: Kept::new(&array.array)? })
    }

    fn len(&self) -> usize {
        self.layout.shape().iter().product()
    }

    /// Its bytes.
    fn memory(&self) -> Range<usize> {
        let start = self.data as usize;
        start..start + self.bytes
    }

    fn raw(&self) -> RawBuffer {
        RawBuffer { data: self.data, len: self.len() }
    }

    /// Whether the array is still what it was when it was checked: arrays can be
    /// reshaped or locked behind our back.
    fn is_unchanged(&self, py: Python<'_>) -> bool {
        let array = self.kept.array.bind(py);
        data(array) == self.data && self.layout.fits(array)
    }
}

/// A parameter with all that belongs to it.
struct Slot {
    /// What leads from `params` or `grads` to the tensor, as in `[0]['bias']`.
    path: String,
    dtype: Dtype,
    group: usize,
    param: Checked,
    storage: StorageFormat,
    states: Vec<State>,
    /// Of the states, and of what the parameter's precision needs.
    buffers: Vec<Checked>,
    mask: Option<Checked>,
    /// The memory of a gradient that was found to overlap nothing, see [`memory_key`]. What
    /// it must not overlap never changes, so the next one there need not be looked up.
    disjoint: AtomicUsize,
}

impl Slot {
    fn shape(&self) -> &[usize] {
        self.param.layout.shape()
    }
}

/// The tensors of an optimizer, checked once, so that a step checks only the
/// gradients and that no parameter has moved.
#[pyclass(frozen, module = "compressrs._core")]
pub struct Stepper {
    /// Name of the rule.
    kind: String,
    slots: Vec<Slot>,
    /// Number of parameter groups.
    groups: usize,
    /// Steps taken, by slot.
    steps: Checked,
    /// Numbers of the rule for each slot as a whole.
    scalars: Checked,
    /// Memory of the parameters and states, by slot.
    regions: Regions,
}

/// The arguments of one slot: its path, parameter, states, mask and group.
type SlotArguments<'py> =
    (String, Bound<'py, PyAny>, Vec<Bound<'py, PyAny>>, Option<Bound<'py, PyAny>>, usize);

#[pymethods]
impl Stepper {
    /// `slots`: for each tensor its path, parameter, states, bits of its mask or
    /// None, and the index of its group in `groups`. `steps`: an int64 array, one
    /// element a tensor; `scalars`: a float64 array, one row a tensor.
    #[new]
    fn new<'py>(
        kind: &str,
        slots: Vec<SlotArguments<'py>>,
        groups: Vec<Bound<'py, PyDict>>,
        steps: &Bound<'py, PyAny>,
        scalars: &Bound<'py, PyAny>,
    ) -> PyResult<Self> {
        let rules = groups
            .iter()
            .map(|g| Ok((read(kind, &Group(g))?, StorageFormat::new(g)?)))
            .collect::<PyResult<Vec<_>>>()?;
        let mut checked = Vec::with_capacity(slots.len());
        let mut regions = Vec::new();
        for (i, arguments) in slots.into_iter().enumerate() {
            let slot = check_slot(arguments, &rules, |memory| regions.push((memory, i)))?;
            checked.push(slot);
        }
        let steps = Array::new(steps, Name("steps", ""))?;
        steps.require_element::<i64>()?;
        steps.require_shape(&[checked.len()], "the list of tensors")?;
        steps.require_in_place()?;
        let scalars = Array::new(scalars, Name("scalars", ""))?;
        scalars.require_element::<f64>()?;
        scalars.require_shape(&[checked.len(), MAX_SCALARS], "the list of tensors")?;
        scalars.require_in_place()?;
        // Those belong to nobody among the tensors.
        regions.extend([&steps, &scalars].map(|array| (array.memory(), checked.len())));
        let regions = Regions::new(regions).map_err(|(a, b)| {
            PyValueError::new_err(if a == b {
                format!(
                    "{} shares memory with its own state (give each a copy)",
                    owner(&checked, a)
                )
            } else {
                format!(
                    "{} and {} share memory, so that a step would update it twice (pass it once, or a copy)",
                    owner(&checked, a),
                    owner(&checked, b)
                )
            })
        })?;
        for slot in &checked {
            let memory = slot.mask.as_ref().map(Checked::memory);
            if let Some(other) = memory.and_then(|memory| regions.overlapping(&memory)) {
                return Err(PyValueError::new_err(format!(
                    "the mask of params{} shares memory with {} or its state",
                    slot.path,
                    owner(&checked, other)
                )));
            }
        }
        let (steps, scalars) = (Checked::new(&steps)?, Checked::new(&scalars)?);
        Ok(Stepper {
            kind: kind.to_owned(),
            slots: checked,
            groups: rules.len(),
            steps,
            scalars,
            regions,
        })
    }

    /// One step. `grads`: an array or None for each tensor; `groups`: the dicts of
    /// hyperparameters. Returns the norm of all gradients where it was asked for,
    /// by `max_grad_norm` or by another `nonfinite` than "ignore".
    fn step<'py>(
        &self,
        py: Python<'py>,
        grads: Vec<Option<Bound<'py, PyAny>>>,
        groups: &Bound<'py, PyList>,
        max_grad_norm: Option<&Bound<'py, PyAny>>,
        grad_scale: &Bound<'py, PyAny>,
        nonfinite: &Bound<'py, PyAny>,
    ) -> PyResult<Option<f64>> {
        if grads.len() != self.slots.len() {
            return Err(PyValueError::new_err(format!(
                "grads must hold {} arrays, one for each parameter, got {}",
                self.slots.len(),
                grads.len()
            )));
        }
        if groups.len() != self.groups {
            return Err(PyValueError::new_err(format!(
                "param_groups must hold the {} groups that the optimizer was made with, got {} \
                 (add groups with add_param_group)",
                self.groups,
                groups.len()
            )));
        }
        let scaling = Scaling::new(max_grad_norm, grad_scale, nonfinite)?;
        let mut rules = Vec::with_capacity(groups.len());
        for group in groups.iter() {
            let group = group.cast::<PyDict>()?;
            let rule = read(&self.kind, &Group(group))?;
            let frozen = Group(group).is_frozen()?;
            rules.push((!frozen).then_some((
                rule,
                StorageFormat::new(group)?,
                Group(group).seed()?,
            )));
        }
        // What is not an array yet, or not in C order, first: that may run Python code or
        // give up the GIL. Until the kernel runs nothing does any more, so that what is
        // found below still holds then.
        let mut views = Vec::with_capacity(self.slots.len());
        for (slot, grad) in self.slots.iter().zip(&grads) {
            let active = grad.as_ref().filter(|_| rules[slot.group].is_some());
            views.push(active.map(|grad| slot.view(grad)).transpose()?);
        }
        if !self.steps.is_unchanged(py) || !self.scalars.is_unchanged(py) {
            return Err(PyValueError::new_err("the optimizer's counts of steps were reshaped"));
        }
        // SAFETY: they are what `new` checked; only this method writes to them, and the
        // Python class lets one thread at a time into it.
        let (steps, scalars) = unsafe {
            let (n, m) = (self.steps.len(), self.scalars.len());
            (slice_mut(self.steps.data.cast::<i64>(), n), slice_mut(self.scalars.data.cast(), m))
        };
        let (scalars, _) = scalars.as_chunks_mut::<MAX_SCALARS>();

        let mut jobs: Vec<Job<'py, '_>> = Vec::with_capacity(self.slots.len());
        // Tensors of a group that are at the same step have the same coefficients.
        let mut last: Option<(usize, usize, i64)> = None;
        for (i, (slot, grad)) in self.slots.iter().zip(views).enumerate() {
            let (Some(grad), Some((rule, storage, seed))) = (grad, &rules[slot.group]) else {
                continue;
            };
            self.check(py, slot, &grad)?;
            let t = u64::try_from(steps[i]).unwrap_or(0) + 1;
            let mut numbers = scalars[i];
            let key = (slot.group, slot.shape().len(), steps[i]);
            let update = match jobs.last() {
                Some(job) if last == Some(key) && rule.scalars().is_empty() => job.update,
                _ => {
                    slot.require_states_of(rule.as_ref(), *storage)?;
                    rule.at(t, &mut numbers)
                }
            };
            last = Some(key);
            let sign = if rule.maximize() { -1.0 } else { 1.0 };
            let rounding = StochasticRounding::new(*seed, i as u64, t);
            jobs.push(Job { index: i, slot, update, numbers, sign, grad, rounding });
        }

        let (factor, norm) = match scaling.factor(py, &jobs)? {
            GradientScale::Skip(norm) => return Ok(Some(norm)),
            GradientScale::Apply(factor, norm) => (factor, norm),
        };
        if norm.is_some() {
            // The kernels of the norm gave up the GIL.
            for job in &jobs {
                self.check(py, job.slot, &job.grad)?;
            }
        }
        // SAFETY: `check` looked at every array of the job, and the GIL was held since, or
        // they are of those that are not moved, see `Kept`; parameters and states are disjoint
        // by `regions`, and gradients and masks from them. The arrays live as long as `jobs`.
        let (mut singles, mut doubles) = unsafe {
            (
                tensors::<f32>(&jobs, Compute::F32, factor)?,
                tensors::<f64>(&jobs, Compute::F64, factor)?,
            )
        };
        run(py, || {
            core::reserve(&singles);
            core::reserve(&doubles);
            core::step(&mut singles);
            core::step(&mut doubles);
        })?;
        for job in &jobs {
            steps[job.index] = steps[job.index].saturating_add(1);
            scalars[job.index] = job.numbers;
        }
        Ok(norm)
    }
}

fn check_slot<'py>(
    (path, param, buffers, mask, group): SlotArguments<'py>,
    rules: &[(Box<dyn Rule>, StorageFormat)],
    mut owns: impl FnMut(std::ops::Range<usize>),
) -> PyResult<Slot> {
    let name = Name("params", &path);
    let param = Array::new(&param, name)?;
    let dtype = param.float_dtype()?;
    param.require_in_place()?;
    owns(param.memory());
    let (rule, storage) = rules.get(group).ok_or_else(|| PyValueError::new_err("no such group"))?;
    let states = rule.states(param.array.ndim());
    let wanted = storage.buffers(&states, dtype, param.array.shape())?;
    if buffers.len() != wanted.len() {
        let (wanted, got) = (wanted.len(), buffers.len());
        return Err(PyValueError::new_err(format!("{name} needs {wanted} buffers, got {got}")));
    }
    let buffers = buffers
        .iter()
        .zip(&wanted)
        .map(|(buffer, wanted)| {
            let buffer = Array::new(buffer, Name("state of params", &path))?;
            buffer.require_dtype_name(wanted.dtype)?;
            buffer.require_shape(&wanted.shape, format_args!("{:?} of {name}", wanted.name))?;
            buffer.require_in_place()?;
            owns(buffer.memory());
            Checked::new(&buffer)
        })
        .collect::<PyResult<Vec<_>>>()?;
    let len = param.array.len();
    let mask = mask
        .map(|mask| {
            let mask = Array::new(&mask, Name("masks", &path))?;
            mask.require_element::<u8>()?;
            mask.require_contiguous()?;
            mask.require_shape(&[mask_bytes(len)], format_args!("the bits of {name}"))?;
            Checked::new(&mask)
        })
        .transpose()?;
    let (param, storage) = (Checked::new(&param)?, *storage);
    let disjoint = AtomicUsize::new(0);
    Ok(Slot { path: path.clone(), dtype, group, param, storage, states, buffers, mask, disjoint })
}

impl Slot {
    /// A gradient as an array in C order, copied if it is not in that. This may run Python
    /// code, and give up the GIL.
    fn view<'py>(&self, grad: &Bound<'py, PyAny>) -> PyResult<Array<'py, '_>> {
        let (py, name) = (grad.py(), Name("grads", &self.path));
        match grad.cast::<PyUntypedArray>() {
            // The usual case, without the steps that find out what is wrong.
            Ok(array) if self.param.layout.fits(array) => {
                return Ok(Array::unchecked(array.clone(), name));
            }
            Ok(_) => Array::new(grad, name)?,
            Err(_) => {
                // A tensor, perhaps.
                let as_gradient = py.import("compressrs._arrays")?.getattr("as_gradient")?;
                Array::new(&as_gradient.call1((grad, name.to_string()))?, name)?
            }
        }
        .contiguous()
    }

    /// Requires that a gradient in C order has a floating-point dtype and the parameter's
    /// shape.
    fn require_fit(&self, grad: &Array<'_, '_>) -> PyResult<()> {
        if self.param.layout.fits(&grad.array) {
            return Ok(());
        }
        // Once more, since it may have been changed since `view`.
        Array::new(grad.array.as_any(), grad.name)?;
        grad.float_dtype()?;
        grad.require_shape(self.shape(), Name("params", &self.path))?;
        grad.require_contiguous()
    }

    /// Requires that the rule's states are those that this slot has, stored so.
    fn require_states_of(&self, rule: &dyn Rule, storage: StorageFormat) -> PyResult<()> {
        let needed = rule.states(self.shape().len());
        let names = |states: &[State]| states.iter().map(|s| s.name).collect::<Vec<_>>();
        if names(&needed) != names(&self.states) {
            return Err(PyValueError::new_err(format!(
                "the state of params{} does not fit the hyperparameters of its group, which now need {:?} \
                 (momentum, amsgrad and the like cannot be switched on or off; make a new optimizer)",
                self.path,
                names(&needed),
            )));
        }
        if storage != self.storage {
            return Err(PyValueError::new_err(format!(
                "state_dtype and precision of the group of params{} cannot be changed so \
                 (use convert_state)",
                self.path
            )));
        }
        Ok(())
    }
}

/// A tensor whose gradient has been checked.
struct Job<'py, 's> {
    index: usize,
    slot: &'s Slot,
    update: Update,
    /// The rule's numbers after this step.
    numbers: Scalars,
    sign: f64,
    grad: Array<'py, 's>,
    rounding: StochasticRounding,
}

impl Stepper {
    /// Requires that a slot and its gradient are fit for a kernel. Runs no Python code and
    /// keeps the GIL, unless there is an error.
    fn check(&self, py: Python<'_>, slot: &Slot, grad: &Array<'_, '_>) -> PyResult<()> {
        let param = Name("params", &slot.path);
        require_writable(slot.param.kept.array.bind(py), param)?;
        if !slot.param.is_unchanged(py) || slot.buffers.iter().any(|s| !s.is_unchanged(py)) {
            return Err(PyValueError::new_err(format!(
                "{param} was resized or reshaped since the optimizer was made, or its state was \
                 (make a new optimizer)"
            )));
        }
        slot.require_fit(grad)?;
        let key = memory_key(grad);
        if slot.disjoint.load(Ordering::Relaxed) != key {
            if let Some(other) = self.regions.overlapping(&grad.memory()) {
                return Err(PyValueError::new_err(format!(
                    "{} shares memory with {} or its state, which the step writes to (pass a copy)",
                    grad.name,
                    owner(&self.slots, other)
                )));
            }
            slot.disjoint.store(key, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// The name of an owner of a region.
fn owner(slots: &[Slot], i: usize) -> String {
    slots.get(i).map_or_else(
        || String::from("the optimizer's count of steps"),
        |slot| format!("params{}", slot.path),
    )
}

/// One number for where a gradient of a given slot begins and, by the size of its elements,
/// ends.
fn memory_key(grad: &Array<'_, '_>) -> usize {
    // Addresses of processes have 56 bits at most.
    (grad.data() as usize) << 8 | grad.array.dtype().itemsize()
}

/// The tensors of the jobs that are computed in a type.
///
/// # Safety
/// As for [`Job::tensor`], for each of them.
unsafe fn tensors<'a, C: Float>(
    jobs: &'a [Job<'_, '_>],
    compute: Compute,
    factor: f64,
) -> PyResult<Vec<Tensor<'a, C>>> {
    let of_type = jobs.iter().filter(|job| job.slot.dtype.compute() == compute);
    // SAFETY: as the caller guarantees.
    of_type.map(|job| unsafe { job.tensor(factor) }).collect()
}

impl Job<'_, '_> {
    /// The largest number of the type that the parameter is computed in.
    fn limit(&self) -> f64 {
        match self.slot.dtype.compute() {
            Compute::F32 => f32::MAX.into(),
            Compute::F64 => f64::MAX,
        }
    }

    /// # Safety
    /// `C` is the slot's compute type, and nothing else uses the parameter and its
    /// buffers, or writes to the gradient and the mask, while the result is used.
    unsafe fn tensor<C: Float>(&self, factor: f64) -> PyResult<Tensor<'_, C>> {
        let slot = self.slot;
        let mut buffers = slot.buffers.iter().map(Checked::raw);
        let (raw, len) = (slot.param.raw(), slot.param.len());
        // SAFETY: `check` found the arrays where and as `new` checked them; the caller
        // guarantees the rest.
        let (states, param, Gradient { values, mask }) = unsafe {
            let states = slot.storage.moments(&slot.states, len, &mut buffers);
            (states, slot.storage.weights(slot.dtype, raw, &mut buffers), self.gradient()?)
        };
        Ok(Tensor::new(self.update, slot.shape(), param, values, states)
            .scaled(self.sign * factor)
            .masked(mask)
            .rounded_stochastically(self.rounding))
    }

    /// # Safety
    /// Nothing writes to the gradient and the mask while the result is used.
    unsafe fn gradient(&self) -> PyResult<Gradient<'_>> {
        Ok(Gradient {
            // SAFETY: as the caller guarantees.
            values: unsafe { values(&self.grad)? },
            // SAFETY: `new` checked the mask, which is the optimizer's own.
            mask: self.slot.mask.as_ref().map(|m| unsafe { &*slice_mut(m.data, m.len()) }),
        })
    }
}

/// A slice over the memory of an array, which may have none if it is empty.
///
/// # Safety
/// There are `len` aligned elements at `data`, which nothing else uses while the
/// slice is used.
unsafe fn slice_mut<'a, T>(data: *mut T, len: usize) -> &'a mut [T] {
    if len == 0 {
        return &mut [];
    }
    // SAFETY: as the caller guarantees.
    unsafe { std::slice::from_raw_parts_mut(data, len) }
}

/// What to do about gradients that are not finite.
#[derive(Clone, Copy, PartialEq)]
enum NonFinite {
    Raise,
    Skip,
    Ignore,
}

/// What is done to all gradients before the step.
struct Scaling {
    max_norm: Option<f64>,
    scale: f64,
    nonfinite: NonFinite,
}

/// The outcome of [`Scaling::factor`].
enum GradientScale {
    /// Take no step; the norm.
    Skip(f64),
    /// Take the step with the gradients times a factor; the norm, if known.
    Apply(f64, Option<f64>),
}

impl Scaling {
    fn new(
        max_grad_norm: Option<&Bound<'_, PyAny>>,
        grad_scale: &Bound<'_, PyAny>,
        nonfinite: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let scale = number(grad_scale, Name("grad_scale", ""))?;
        if !scale.is_finite() {
            let need = "be a finite number";
            return Err(Name("grad_scale", "").value_error(need, scale));
        }
        let max_norm = max_grad_norm.map(|n| number(n, Name("max_grad_norm", ""))).transpose()?;
        if let Some(norm) = max_norm.filter(|norm| norm.is_nan() || *norm < 0.0) {
            let need = "be a number >= 0 (infinity only measures the norm)";
            return Err(Name("max_grad_norm", "").value_error(need, norm));
        }
        // A string with a surrogate has no UTF-8.
        let nonfinite = match nonfinite.extract::<String>().as_deref() {
            Ok("raise") => NonFinite::Raise,
            Ok("skip") => NonFinite::Skip,
            Ok("ignore") => NonFinite::Ignore,
            _ => {
                let need = "be 'raise', 'skip' or 'ignore'";
                return Err(Name("nonfinite", "").value_error(need, nonfinite.repr()?));
            }
        };
        Ok(Scaling { max_norm, scale, nonfinite })
    }

    fn factor(&self, py: Python<'_>, jobs: &[Job<'_, '_>]) -> PyResult<GradientScale> {
        if self.max_norm.is_none() && self.nonfinite == NonFinite::Ignore {
            return Ok(GradientScale::Apply(self.scale, None));
        }
        let gradients = jobs
            .iter()
            // SAFETY: nothing writes to gradients here.
            .map(|job| unsafe { job.gradient() })
            .collect::<PyResult<Vec<_>>>()?;
        let limits = jobs.iter().map(Job::limit).collect::<Vec<f64>>();
        let (norm, factor, bad, too_large) = run(py, || {
            let norm = core::norm(&gradients, 2.0);
            let clip = self.max_norm.map_or(1.0, |max| norm.clip(self.scale, max));
            let factor = self.scale * clip;
            // No element is larger than the norm.
            let fits =
                |&limit: &f64| norm.get() < f64::INFINITY && norm.get() * factor.abs() <= limit;
            let (mut bad, mut too_large) = (None, false);
            if !limits.iter().all(fits) {
                bad = core::find_beyond(&gradients, |_| f64::MAX);
                too_large = bad.is_none();
                // A factor of 0 makes anything fit.
                let times = factor.abs().max(f64::MIN_POSITIVE);
                bad = bad.or_else(|| core::find_beyond(&gradients, |i| limits[i] / times));
            }
            (norm, factor, bad, too_large)
        })?;
        if let Some(bad) = bad {
            match self.nonfinite {
                NonFinite::Raise => {
                    let slot = jobs[bad].slot;
                    let what = match slot.dtype.compute() {
                        _ if !too_large => "NaN or infinity",
                        Compute::F32 => "numbers that are beyond the range of float32 as scaled",
                        Compute::F64 => "numbers that are beyond the range of float64 as scaled",
                    };
                    return Err(NonFiniteGradientError::new_err(format!(
                        "grads{} holds {what}; nothing was changed \
                         (nonfinite=\"skip\" leaves such steps out)",
                        slot.path
                    )));
                }
                NonFinite::Skip if too_large => return Ok(GradientScale::Skip(f64::INFINITY)),
                NonFinite::Skip => return Ok(GradientScale::Skip(norm.get())),
                NonFinite::Ignore => {}
            }
        }
        let scaled = core::Norm { value: norm.value * self.scale.abs(), ..norm };
        Ok(GradientScale::Apply(factor, Some(scaled.get())))
    }
}
