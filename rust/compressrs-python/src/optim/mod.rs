//! Steps of optimizers.

mod job;
mod parts;
mod rows;
mod scaling;
mod slot;

use std::sync::atomic::Ordering;

use compressrs_core::optim::{self as core, BLOCK, MAX_SCALARS, StochasticRounding};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::arguments::Name;
use crate::buffers::{Array, require_writable};
use crate::dtype::Compute;
use crate::errors::run;
use crate::overlap::Regions;
use crate::rules::{Group, read};
use crate::storage::StorageFormat;
use job::{Job, JobGradient, tensors};
pub use parts::{gradient_scale, partial_norms};
use rows::{RowCopies, RowStep};
use scaling::{GradientScale, Scaling};
use slot::{Checked, Given, Slot, SlotArguments, check_slot, memory_key, owner, slice_mut};

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

#[pymethods]
impl Stepper {
    /// `slots`: for each tensor its path, parameter, states, bits of its mask or
    /// None, and the index of its group in `groups`. `steps`: an int64 array, one
    /// element a tensor; `scalars`: a float64 array, one row a tensor. `parts`: for
    /// parameters that are parts of tensors the tensor's number, the element that the
    /// part begins with, and the tensor's number of elements.
    #[new]
    #[pyo3(signature = (kind, slots, groups, steps, scalars, parts=None))]
    fn new<'py>(
        kind: &str,
        slots: Vec<SlotArguments<'py>>,
        groups: Vec<Bound<'py, PyDict>>,
        steps: &Bound<'py, PyAny>,
        scalars: &Bound<'py, PyAny>,
        parts: Option<Vec<(usize, usize, usize)>>,
    ) -> PyResult<Self> {
        if let Some(parts) = parts.as_ref().filter(|parts| parts.len() != slots.len()) {
            let got = parts.len();
            return Err(Name("parts", "").value_error(format_args!("hold {}", slots.len()), got));
        }
        let rules = groups
            .iter()
            .map(|g| Ok((read(kind, &Group(g))?, StorageFormat::new(g)?)))
            .collect::<PyResult<Vec<_>>>()?;
        let mut checked = Vec::with_capacity(slots.len());
        let mut regions = Vec::new();
        for (i, arguments) in slots.into_iter().enumerate() {
            let part = parts.as_ref().map(|parts| parts[i]);
            let slot = check_slot(i, arguments, part, &rules, |memory| regions.push((memory, i)))?;
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
        // They belong to none of the tensors.
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
    /// by `max_grad_norm` or by another `nonfinite` than "ignore". If `dry`, finds all
    /// that a step could fail by, and takes none.
    #[expect(clippy::too_many_arguments, reason = "those of Optimizer.step")]
    #[pyo3(signature = (grads, groups, max_grad_norm, grad_scale, nonfinite, dry=false))]
    fn step<'py>(
        &self,
        py: Python<'py>,
        grads: Vec<Option<Bound<'py, PyAny>>>,
        groups: &Bound<'py, PyList>,
        max_grad_norm: Option<&Bound<'py, PyAny>>,
        grad_scale: &Bound<'py, PyAny>,
        nonfinite: &Bound<'py, PyAny>,
        dry: bool,
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
            views.push(match grad {
                Some(grad) if rules[slot.group].is_some() => Some(slot.view(grad)?),
                Some(grad) => {
                    slot.require_gradient(grad)?;
                    None
                }
                None => None,
            });
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
            self.check(py, slot)?;
            let grad = match grad {
                Given::Dense(grad) => {
                    self.check_gradient(slot, &grad)?;
                    JobGradient::Dense(grad)
                }
                // Gives up the GIL.
                Given::Rows(rows) => {
                    JobGradient::Rows(Box::new(RowStep::new(py, slot, rows, &**rule)?))
                }
            };
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
            let rounding = StochasticRounding::new(*seed, slot.part.tensor as u64, t)
                .from_block(slot.part.start / BLOCK);
            jobs.push(Job { index: i, slot, update, numbers, sign, grad, rounding });
        }

        // A dense gradient was looked at before the GIL was given up.
        if jobs.iter().any(Job::is_of_rows) {
            self.check_again(py, &jobs)?;
        }
        let (factor, norm) = match scaling.factor(py, &jobs)? {
            GradientScale::Skip(norm) => return Ok(Some(norm)),
            GradientScale::Apply(factor, norm) => (factor, norm),
        };
        if norm.is_some() {
            // The kernels of the norm gave up the GIL.
            self.check_again(py, &jobs)?;
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
        if dry {
            run(py, || {
                core::reserve(&singles);
                core::reserve(&doubles);
            })?;
            return Ok(norm);
        }
        // SAFETY: as above.
        let copies = unsafe { jobs.iter().filter_map(|job| job.row_copies()).collect::<Vec<_>>() };
        let common = run(py, || {
            core::reserve(&singles);
            core::reserve(&doubles);
            let common = core::estimate(&mut singles, &mut doubles);
            copies.iter().for_each(RowCopies::gather);
            core::step(&mut singles);
            core::step(&mut doubles);
            copies.iter().for_each(RowCopies::scatter);
            common
        })?;
        for job in &jobs {
            steps[job.index] = steps[job.index].saturating_add(1);
            scalars[job.index] = job.numbers;
        }
        if let Some(common) = common {
            // Those without a gradient too: they are of all tensors.
            scalars.fill(common);
        }
        Ok(norm)
    }
}

impl Stepper {
    /// Requires that a slot is fit for a kernel. Runs no Python code and keeps the GIL,
    /// unless there is an error.
    fn check(&self, py: Python<'_>, slot: &Slot) -> PyResult<()> {
        let param = Name("params", &slot.path);
        require_writable(slot.param.kept.array.bind(py), param)?;
        if !slot.param.is_unchanged(py) || slot.buffers.iter().any(|s| !s.is_unchanged(py)) {
            return Err(PyValueError::new_err(format!(
                "{param} was resized or reshaped since the optimizer was made, or its state was \
                 (make a new optimizer)"
            )));
        }
        Ok(())
    }

    /// The same of a gradient.
    fn check_gradient(&self, slot: &Slot, grad: &Array<'_, '_>) -> PyResult<()> {
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

    /// Checks slots and gradients of all jobs, after the GIL was given up.
    fn check_again(&self, py: Python<'_>, jobs: &[Job<'_, '_>]) -> PyResult<()> {
        for job in jobs {
            self.check(py, job.slot)?;
            if let JobGradient::Dense(grad) = &job.grad {
                self.check_gradient(job.slot, grad)?;
            }
        }
        Ok(())
    }
}
