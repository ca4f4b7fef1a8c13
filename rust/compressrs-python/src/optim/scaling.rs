//! What gradients are multiplied by: their scale, clipping, and steps that are left out.

use compressrs_core::optim::{self as core, Fault};
use pyo3::prelude::*;

use super::job::Job;
use crate::arguments::{Name, number};
use crate::dtype::Compute;
use crate::errors::{non_finite, run};

/// What to do about gradients that are not finite.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum NonFinite {
    Raise,
    Skip,
    Ignore,
}

/// What is done to all gradients before the step.
pub(super) struct Scaling {
    pub max_norm: Option<f64>,
    pub scale: f64,
    pub nonfinite: NonFinite,
}

/// The largest magnitude that is finite, or in range, for each gradient.
pub(super) type Largest<'a> = &'a (dyn Fn(usize) -> f64 + Sync);

/// The outcome of [`Scaling::factor`].
pub(super) enum GradientScale {
    /// Take no step; the norm.
    Skip(f64),
    /// Take the step with the gradients times a factor; the norm, if known.
    Apply(f64, Option<f64>),
}

impl Scaling {
    pub fn new(
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
        let nonfinite = match nonfinite.extract::<&str>() {
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

    /// The factor for the gradients of these jobs.
    pub fn factor(&self, py: Python<'_>, jobs: &[Job<'_, '_>]) -> PyResult<GradientScale> {
        if !self.measures() {
            return Ok(GradientScale::Apply(self.scale, None));
        }
        let gradients = jobs
            .iter()
            // SAFETY: nothing writes to gradients here.
            .map(|job| unsafe { job.gradient() })
            .collect::<PyResult<Vec<_>>>()?;
        let norm = run(py, || core::norm(&gradients, 2.0))?;
        let limits = jobs.iter().map(|job| job.slot.dtype.compute()).collect::<Vec<_>>();
        let find_beyond = |largest: Largest<'_>| run(py, || core::find_beyond(&gradients, largest));
        let refuse = |i: usize, fault| {
            let (fault, dtype) = jobs[i].explain(fault)?;
            non_finite(py, &jobs[i].slot.path, fault, dtype)
        };
        self.decide(norm, &limits, find_beyond, refuse)
    }

    /// Whether the factor depends on the gradients.
    pub fn measures(&self) -> bool {
        self.max_norm.is_some() || self.nonfinite != NonFinite::Ignore
    }

    /// The factor for gradients with this norm. Of each there is the type that its parameter
    /// is computed in; `find_beyond` gives the first with an element whose magnitude is not at
    /// most that for its index, and `refuse` the error about it.
    pub fn decide(
        &self,
        norm: core::Norm,
        computed: &[Compute],
        mut find_beyond: impl FnMut(Largest<'_>) -> PyResult<Option<usize>>,
        refuse: impl FnOnce(usize, Fault) -> PyResult<PyErr>,
    ) -> PyResult<GradientScale> {
        let clip = self.max_norm.map_or(1.0, |max| norm.clip(self.scale, max));
        let factor = self.scale * clip;
        // No element is larger than the norm.
        let fits = |&of: &Compute| {
            norm.get() < f64::INFINITY && norm.get() * factor.abs() <= largest_of(of)
        };
        let (mut bad, mut too_large) = (None, false);
        if !computed.iter().all(fits) {
            bad = find_beyond(&|_| f64::MAX)?;
            too_large = bad.is_none();
            // A factor of 0 makes anything fit.
            let times = factor.abs().max(f64::MIN_POSITIVE);
            if too_large {
                bad = find_beyond(&|i| largest_of(computed[i]) / times)?;
            }
        }
        if let Some(bad) = bad {
            match self.nonfinite {
                NonFinite::Raise => {
                    let fault = if too_large { Fault::Scaled } else { Fault::NonFinite };
                    return Err(refuse(bad, fault)?);
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

/// The largest number of a type.
fn largest_of(compute: Compute) -> f64 {
    match compute {
        Compute::F32 => f32::MAX.into(),
        Compute::F64 => f64::MAX,
    }
}
