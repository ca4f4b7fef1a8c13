//! Softmax and distillation losses.

use compressrs_core::distill as core;
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::buffers::{Array, Name, require_disjoint, with_compute};
use crate::errors::run;

/// Writes `softmax(z / temperature)` over the last axis to `out`, or its
/// logarithm; `out` may be `z` itself.
#[pyfunction]
pub fn softmax(
    py: Python<'_>,
    z: &Bound<'_, PyAny>,
    temperature: f64,
    log: bool,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let z = Array::new(z, Name("z", ""))?;
    let dtype = z.compute_dtype()?;
    let out = Array::new(out, Name("out", ""))?;
    out.require_dtype(dtype, z.name)?;
    out.require_shape(z.array.shape(), z.name)?;
    out.require_in_place()?;
    let classes = z.array.shape().last().copied().unwrap_or(1);
    let same = z.data() == out.data() && z.is_contiguous();
    let z = z.contiguous()?;
    let (read, written) = (z.memory(), out.memory());
    if !same && read.start < written.end && written.start < read.end {
        return Err(PyValueError::new_err(
            "out must be z itself or share no memory with it, got a shifted view of it",
        ));
    }
    let what = core::Softmax { classes, temperature, log };
    with_compute!(dtype, T => {
        // SAFETY: checked above; `z` is used only where it shares nothing with `out`.
        let (z, out) = unsafe { ((!same).then(|| z.slice::<T>()), out.slice_mut::<T>()) };
        run(py, || core::softmax(what, z, out))
    })
}

/// Returns the loss and writes its gradient to `grad`; logits are `[rows,
/// classes]`, labels int64 of `[rows]`.
#[pyfunction]
pub fn kd_loss(
    py: Python<'_>,
    student: &Bound<'_, PyAny>,
    teacher: &Bound<'_, PyAny>,
    temperature: f64,
    labels: Option<&Bound<'_, PyAny>>,
    alpha: f64,
    grad: &Bound<'_, PyAny>,
) -> PyResult<f64> {
    let student = Array::new(student, Name("student", ""))?;
    let dtype = student.compute_dtype()?;
    student.require_ndim(2)?;
    let teacher = Array::new(teacher, Name("teacher", ""))?;
    teacher.require_dtype(dtype, student.name)?;
    teacher.require_shape(student.array.shape(), student.name)?;
    let (student, teacher) = (student.contiguous()?, teacher.contiguous()?);
    let (rows, classes) = (student.array.shape()[0], student.array.shape()[1]);
    if rows * classes == 0 {
        return Err(student.name.value_error("have at least one row and one class", "none"));
    }
    let labels = labels.map(|labels| check_labels(labels, rows, classes)).transpose()?;
    if labels.is_none() && alpha != 1.0 {
        return Err(PyValueError::new_err(format!(
            "labels must be given unless alpha is 1, got None with alpha={alpha}"
        )));
    }
    let grad = Array::new(grad, Name("grad", ""))?;
    grad.require_dtype(dtype, student.name)?;
    grad.require_shape(student.array.shape(), student.name)?;
    grad.require_in_place()?;
    for read in [&student, &teacher] {
        require_disjoint(&grad, &grad.memory(), read, &read.memory())?;
    }
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to the logits.
        let (input, grad) = unsafe {
            let input = core::KdLoss {
                student: student.slice::<T>(),
                teacher: teacher.slice::<T>(),
                labels: labels.as_deref(),
                classes,
                temperature,
                alpha,
            };
            (input, grad.slice_mut::<T>())
        };
        run(py, || core::kd_loss(input, grad))
    })
}

/// Labels as indices into a row.
fn check_labels(labels: &Bound<'_, PyAny>, rows: usize, classes: usize) -> PyResult<Vec<usize>> {
    let labels = Array::new(labels, Name("labels", ""))?;
    labels.require_element::<i64>()?;
    labels.require_shape(&[rows], "the rows of student")?;
    let labels = labels.contiguous()?;
    // SAFETY: checked just now; nothing writes to them while the GIL is held.
    let slice = unsafe { labels.slice::<i64>() };
    slice
        .iter()
        .enumerate()
        .map(|(row, &label)| {
            usize::try_from(label).ok().filter(|&l| l < classes).ok_or_else(|| {
                labels.name.value_error(
                    format_args!("be from 0 to {}", classes - 1),
                    format_args!("{label} in row {row}"),
                )
            })
        })
        .collect()
}
