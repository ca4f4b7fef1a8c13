//! Losses between features, and DIST.

use compressrs_core::distill as core;
use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;

use crate::arguments::Name;
use crate::buffers::Array;
use crate::dtype::{Compute, with_compute};
use crate::errors::{Signals, run};
use crate::overlap::require_disjoint;

/// A student's array of one of the compute types, what it is compared with, and where
/// its gradient goes.
struct Pair<'py> {
    student: Array<'py, 'static>,
    teacher: Array<'py, 'static>,
    grad: Array<'py, 'static>,
    dtype: Compute,
}

impl<'py> Pair<'py> {
    fn new(
        student: &Bound<'py, PyAny>,
        teacher: &Bound<'py, PyAny>,
        grad: &Bound<'py, PyAny>,
    ) -> PyResult<Self> {
        let student = Array::new(student, Name("student", ""))?;
        let dtype = student.compute_dtype()?;
        let teacher = Array::new(teacher, Name("teacher", ""))?;
        teacher.require_dtype(dtype, student.name)?;
        let mut grad = Array::new(grad, Name("out", ""))?;
        grad.require_dtype(dtype, student.name)?;
        grad.require_shape(student.array.shape(), student.name)?;
        grad.require_in_place()?;
        let (student, teacher) = (student.contiguous()?, teacher.contiguous()?);
        require_disjoint(&mut [&mut grad], [&student, &teacher])?;
        if student.array.len() == 0 || teacher.array.len() == 0 {
            return Err(student.name.value_error("not be empty", "no elements"));
        }
        Ok(Pair { student, teacher, grad, dtype })
    }

    fn shape(&self) -> &[usize] {
        self.student.array.shape()
    }

    /// Requires axes: the same for both, but for those that may differ.
    fn require(&self, ndim: usize, may_differ: &[usize]) -> PyResult<()> {
        self.student.require_ndim(ndim)?;
        self.teacher.require_ndim(ndim)?;
        let mut shape = self.shape().to_vec();
        for &axis in may_differ {
            shape[axis] = self.teacher.array.shape()[axis];
        }
        self.teacher.require_shape(&shape, self.student.name)
    }
}

/// Runs `$body` with the slices of a pair.
macro_rules! with_pair {
    ($py:expr, $pair:expr, |$s:ident, $t:ident, $g:ident| $body:expr) => {
        with_compute!($pair.dtype, T => {
            let Pair { student, teacher, grad, .. } = &mut $pair;
            // SAFETY: the GIL is held; nothing else of this call uses the gradient.
            let ($s, $t, $g) = unsafe {
                (student.slice::<T>()?, teacher.slice::<T>()?, grad.slice_mut::<T>()?)
            };
            run($py, || $body)
        })
    };
}

/// DIST: logits `[rows, classes]`.
#[pyfunction]
pub fn dist_loss(
    py: Python<'_>,
    student: &Bound<'_, PyAny>,
    teacher: &Bound<'_, PyAny>,
    temperature: f64,
    beta: f64,
    gamma: f64,
    grad: &Bound<'_, PyAny>,
) -> PyResult<f64> {
    let mut pair = Pair::new(student, teacher, grad)?;
    pair.require(2, &[])?;
    let what = core::Dist { classes: pair.shape()[1], temperature, beta, gamma };
    with_pair!(py, pair, |s, t, g| core::dist(what, s, t, g))
}

/// FitNets: features of the same shape, the first axis being the batch.
#[pyfunction]
pub fn hint_loss(
    py: Python<'_>,
    student: &Bound<'_, PyAny>,
    teacher: &Bound<'_, PyAny>,
    grad: &Bound<'_, PyAny>,
) -> PyResult<f64> {
    let mut pair = Pair::new(student, teacher, grad)?;
    pair.require(pair.shape().len().max(1), &[])?;
    let rows = pair.shape()[0];
    with_pair!(py, pair, |s, t, g| core::hint(rows, s, t, g))
}

/// Attention transfer: maps `[samples, channels, places]`.
#[pyfunction]
pub fn attention_loss(
    py: Python<'_>,
    student: &Bound<'_, PyAny>,
    teacher: &Bound<'_, PyAny>,
    grad: &Bound<'_, PyAny>,
) -> PyResult<f64> {
    let mut pair = Pair::new(student, teacher, grad)?;
    pair.require(3, &[1])?;
    let shape = pair.shape();
    let (samples, channels, places) = (shape[0], shape[1], shape[2]);
    let of_teacher = pair.teacher.array.shape()[1];
    with_pair!(py, pair, |s, t, g| core::attention(
        samples,
        places,
        core::Maps { data: s, channels },
        core::Maps { data: t, channels: of_teacher },
        g
    ))
}

/// Relational distillation: features `[rows, width]`, by distances or by angles.
#[pyfunction]
pub fn rkd_loss(
    py: Python<'_>,
    student: &Bound<'_, PyAny>,
    teacher: &Bound<'_, PyAny>,
    angles: bool,
    grad: &Bound<'_, PyAny>,
) -> PyResult<f64> {
    let mut pair = Pair::new(student, teacher, grad)?;
    pair.require(2, &[1])?;
    let (rows, width) = (pair.shape()[0], pair.shape()[1]);
    let of_teacher = pair.teacher.array.shape()[1];
    let signals = Signals::default();
    let loss = with_pair!(py, pair, |s, t, g| {
        let (s, t) =
            (core::Features { data: s, width }, core::Features { data: t, width: of_teacher });
        if angles {
            core::angle(rows, s, t, g, &|| signals.check())
        } else {
            Some(core::distance(rows, s, t, g))
        }
    })?;
    signals.result()?;
    Ok(loss.expect("nothing was interrupted"))
}
