//! Parameters of a step, whose gradients have been checked.

use compressrs_core::numeric::element::Float;
use compressrs_core::optim::{Fault, Gradient, Scalars, StochasticRounding, Tensor, Update};
use pyo3::prelude::*;

use super::rows::{RowCopies, RowStep};
use super::slot::{Checked, Slot, slice_mut};
use crate::buffers::Array;
use crate::dtype::{Compute, Dtype};
use crate::storage::{RawBuffer, values};

/// A tensor whose gradient has been checked.
pub(super) struct Job<'py, 's> {
    pub index: usize,
    pub slot: &'s Slot,
    pub update: Update,
    /// The rule's numbers after this step.
    pub numbers: Scalars,
    pub sign: f64,
    pub grad: JobGradient<'py, 's>,
    pub rounding: StochasticRounding,
}

/// A gradient that has been checked.
pub(super) enum JobGradient<'py, 's> {
    /// Of the whole parameter.
    Dense(Array<'py, 's>),
    /// Of some of its rows, to be updated in copies.
    Rows(Box<RowStep<'py, 's>>),
}

/// The tensors of the jobs that are computed in a type.
///
/// # Safety
/// As for [`Job::tensor`], for each of them.
pub(super) unsafe fn tensors<'a, C: Float>(
    jobs: &'a [Job<'_, '_>],
    compute: Compute,
    factor: f64,
) -> PyResult<Vec<Tensor<'a, C>>> {
    let of_type = || jobs.iter().filter(|job| job.slot.dtype.compute() == compute);
    // Tensors are large: they are not moved to make room for further ones.
    let mut tensors = Vec::with_capacity(of_type().count());
    for job in of_type() {
        // SAFETY: as the caller guarantees.
        tensors.push(unsafe { job.tensor(factor)? });
    }
    Ok(tensors)
}

impl Job<'_, '_> {
    /// # Safety
    /// `C` is the slot's compute type, and nothing else uses the parameter and its
    /// buffers, or writes to the gradient and the mask, while the result is used.
    pub unsafe fn tensor<C: Float>(&self, factor: f64) -> PyResult<Tensor<'_, C>> {
        let slot = self.slot;
        // SAFETY: as the caller guarantees.
        unsafe {
            match &self.grad {
                JobGradient::Dense(_) => {
                    let buffers = slot.buffers.iter().map(Checked::raw);
                    self.tensor_of(factor, slot.shape(), slot.param.raw(), buffers)
                }
                JobGradient::Rows(rows) => {
                    let (shape, raw, buffers) = rows.raw(slot);
                    self.tensor_of(factor, shape, raw, buffers.into_iter())
                }
            }
        }
    }

    /// # Safety
    /// As for [`tensor`](Self::tensor); the memory is the slot's, or that of copies of its rows.
    unsafe fn tensor_of<C: Float>(
        &self,
        factor: f64,
        shape: &[usize],
        raw: RawBuffer,
        mut buffers: impl Iterator<Item = RawBuffer>,
    ) -> PyResult<Tensor<'_, C>> {
        let slot = self.slot;
        // SAFETY: `check` found the arrays where and as `new` checked them; the caller
        // guarantees the rest.
        let (states, param, Gradient { values, mask }) = unsafe {
            let states = slot.storage.moments(&slot.states, slot.part.elements, &mut buffers);
            (states, slot.storage.weights(slot.dtype, raw, &mut buffers), self.gradient()?)
        };
        Ok(Tensor::new(self.update, shape, param, values, states)
            .scaled(self.sign * factor)
            .masked(mask)
            .rounded_stochastically(self.rounding))
    }

    /// # Safety
    /// Nothing writes to the gradient and the mask while the result is used.
    pub unsafe fn gradient(&self) -> PyResult<Gradient<'_>> {
        let grad = match &self.grad {
            JobGradient::Dense(grad) => grad,
            JobGradient::Rows(rows) => return Ok(rows.gradient()),
        };
        Ok(Gradient {
            // SAFETY: as the caller guarantees.
            values: unsafe { values(grad)? },
            // SAFETY: `new` checked the mask, which is the optimizer's own.
            mask: self.slot.mask.as_ref().map(|m| unsafe { &*slice_mut(m.data, m.len()) }),
        })
    }

    /// What is wrong with the gradient, given what is with what the step would take, and the type
    /// that this is of.
    pub fn explain(&self, fault: Fault) -> PyResult<(Fault, Dtype)> {
        match &self.grad {
            JobGradient::Rows(rows) if fault == Fault::NonFinite => rows.explain(),
            _ => Ok((fault, self.slot.dtype.compute().into())),
        }
    }

    /// Whether only some rows have a gradient.
    pub fn is_of_rows(&self) -> bool {
        matches!(self.grad, JobGradient::Rows(_))
    }

    /// What copies the rows that are updated, if these are some only.
    ///
    /// # Safety
    /// As for [`tensor`](Self::tensor), except that the tensor may be used in between the
    /// copies.
    pub unsafe fn row_copies(&self) -> Option<RowCopies<'_>> {
        let JobGradient::Rows(rows) = &self.grad else { return None };
        // SAFETY: as the caller guarantees.
        Some(unsafe { rows.copies(self.slot) })
    }
}
