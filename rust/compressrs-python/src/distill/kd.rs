//! The loss of Hinton, Vinyals & Dean, and the largest logits of a teacher.

use compressrs_core::distill as core;
use compressrs_core::numeric::element::Element;
use compressrs_core::runtime::memory;
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use super::{PerRow, each};
use crate::arguments::Name;
use crate::buffers::Array;
use crate::dtype::{Dtype, with_dtype};
use crate::errors::{guard, run};
use crate::overlap::require_disjoint;

/// Logits `[rows, classes]` and what has their shape and dtype.
struct Logits<'py, 'n> {
    array: Array<'py, 'n>,
    dtype: Dtype,
    rows: usize,
    classes: usize,
}

impl<'py, 'n> Logits<'py, 'n> {
    fn new(object: &Bound<'py, PyAny>, name: Name<'n>) -> PyResult<Self> {
        let array = Array::new(object, name)?;
        let dtype = array.float_dtype()?;
        array.require_ndim(2)?;
        let array = array.contiguous()?;
        let (rows, classes) = (array.array.shape()[0], array.array.shape()[1]);
        if rows * classes == 0 {
            return Err(name.value_error("have at least one row and one class", "none"));
        }
        Ok(Logits { array, dtype, rows, classes })
    }

    /// Another array of the same shape and dtype.
    fn like(&self, object: &Bound<'py, PyAny>, name: Name<'n>) -> PyResult<Array<'py, 'n>> {
        let array = Array::new(object, name)?;
        array.require_dtype(self.dtype, self.array.name)?;
        array.require_shape(self.array.array.shape(), self.array.name)?;
        array.contiguous()
    }

    /// An array of the same shape and dtype to write to.
    fn output(&self, object: &Bound<'py, PyAny>, name: Name<'n>) -> PyResult<Array<'py, 'n>> {
        let array = Array::new(object, name)?;
        array.require_dtype(self.dtype, self.array.name)?;
        array.require_shape(self.array.array.shape(), self.array.name)?;
        array.require_in_place()?;
        Ok(array)
    }
}

/// What is known of a teacher, as Python gives it.
enum Teacher<'py> {
    Logits(Array<'py, 'static>),
    Probabilities(Array<'py, 'static>),
    Ensemble(Vec<Array<'py, 'static>>),
    TopK {
        values: Array<'py, 'static>,
        classes: Array<'py, 'static>,
        offsets: Vec<usize>,
        rest: Array<'py, 'static>,
    },
}

impl<'py> Teacher<'py> {
    fn new(
        kind: &str,
        teacher: &Bound<'py, PyAny>,
        student: &Logits<'py, 'static>,
    ) -> PyResult<Self> {
        let name = Name("teacher", "");
        Ok(match kind {
            "logits" => Teacher::Logits(student.like(teacher, name)?),
            "probabilities" => Teacher::Probabilities(student.like(teacher, name)?),
            "ensemble" => {
                let members = teacher.cast::<PyList>()?.iter();
                Teacher::Ensemble(members.map(|z| student.like(&z, name)).collect::<PyResult<_>>()?)
            }
            "top_k" => {
                let parts = teacher.cast::<PyTuple>()?;
                let values = Array::new(&parts.get_item(0)?, name)?;
                values.require_element::<f64>()?;
                let classes = Array::new(&parts.get_item(1)?, name)?;
                classes.require_element::<i32>()?;
                let offsets = Array::new(&parts.get_item(2)?, name)?;
                offsets.require_element::<i64>()?;
                offsets.require_shape(&[student.rows + 1], "the rows of student, and one")?;
                let offsets = offsets.contiguous()?;
                // SAFETY: the GIL is held; the copy is made without giving it up.
                let slice = unsafe { offsets.slice::<i64>()? };
                let offsets = slice.iter().map(|&x| usize::try_from(x).unwrap_or(usize::MAX));
                let offsets = guard(|| memory::collect(offsets))?;
                let rest = each(&parts.get_item(3)?, name, student.rows, "the rows of student")?;
                Teacher::TopK {
                    values: values.contiguous()?,
                    classes: classes.contiguous()?,
                    offsets,
                    rest,
                }
            }
            _ => return Err(name.value_error("be of a known kind", kind)),
        })
    }

    fn arrays(&self) -> Vec<&Array<'py, 'static>> {
        match self {
            Teacher::Logits(array) | Teacher::Probabilities(array) => vec![array],
            Teacher::Ensemble(arrays) => arrays.iter().collect(),
            Teacher::TopK { values, classes, rest, .. } => vec![values, classes, rest],
        }
    }

    /// # Safety
    /// As for [`Array::slice`].
    unsafe fn get<T: Element>(&self) -> PyResult<core::Teacher<'_, T>> {
        // SAFETY: as the caller guarantees.
        Ok(unsafe {
            match self {
                Teacher::Logits(z) => core::Teacher::Logits(z.slice()?),
                Teacher::Probabilities(p) => core::Teacher::Probabilities(p.slice()?),
                Teacher::Ensemble(members) => core::Teacher::Ensemble(
                    members.iter().map(|z| z.slice()).collect::<PyResult<_>>()?,
                ),
                Teacher::TopK { values, classes, offsets, rest } => {
                    core::Teacher::TopK(core::TopK {
                        values: values.slice()?,
                        classes: classes.slice()?,
                        offsets,
                        rest: rest.slice()?,
                    })
                }
            }
        })
    }
}

/// Writes what each row adds to the loss to `losses`, and the gradient to `grad`;
/// returns the sum. Logits are `[rows, classes]`, labels int64 of `[rows]`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "all that a loss may depend on")]
pub fn kd_loss(
    py: Python<'_>,
    student: &Bound<'_, PyAny>,
    kind: &str,
    teacher: &Bound<'_, PyAny>,
    temperature: &Bound<'_, PyAny>,
    divergence: &str,
    decoupled: (f64, f64),
    standardize: bool,
    alpha: f64,
    labels: Option<&Bound<'_, PyAny>>,
    ignore_index: i64,
    label_smoothing: f64,
    class_weight: Option<&Bound<'_, PyAny>>,
    sample_weight: Option<&Bound<'_, PyAny>>,
    mean: bool,
    losses: &Bound<'_, PyAny>,
    grad: &Bound<'_, PyAny>,
) -> PyResult<f64> {
    let student = Logits::new(student, Name("student", ""))?;
    let (rows, classes) = (student.rows, student.classes);
    let teacher = Teacher::new(kind, teacher, &student)?;
    let labels =
        labels.map(|labels| check_labels(labels, rows, classes, ignore_index)).transpose()?;
    if labels.is_none() && alpha != 1.0 {
        return Err(PyValueError::new_err(format!(
            "labels must be given unless alpha is 1, got None with alpha={alpha}"
        )));
    }
    let temperature = PerRow::new(temperature, Name("temperature", ""), rows)?;
    let class_weight = class_weight
        .map(|w| each(w, Name("class_weight", ""), classes, "the classes of student"))
        .transpose()?;
    let sample_weight = sample_weight
        .map(|w| each(w, Name("sample_weight", ""), rows, "the rows of student"))
        .transpose()?;
    let mut losses = each(losses, Name("losses", ""), rows, "the rows of student")?;
    losses.require_in_place()?;
    let mut grad = student.output(grad, Name("out", ""))?;
    let weights = [&class_weight, &sample_weight].into_iter().flatten();
    let read = teacher.arrays().into_iter().chain(temperature.array()).chain(weights);
    require_disjoint(&mut [&mut grad, &mut losses], [&student.array].into_iter().chain(read))?;
    // SAFETY: the GIL is held; nothing else of this call uses what is written.
    let (temperature, class_weights, sample_weights) = unsafe {
        (
            temperature.get()?,
            class_weight.as_ref().map(|w| w.slice()).transpose()?,
            sample_weight.as_ref().map(|w| w.slice()).transpose()?,
        )
    };
    let what = core::KdLoss {
        classes,
        temperature,
        divergence: match divergence {
            "forward_kl" => core::Divergence::ForwardKl,
            "reverse_kl" => core::Divergence::ReverseKl,
            "js" => core::Divergence::JensenShannon,
            _ => core::Divergence::Decoupled { alpha: decoupled.0, beta: decoupled.1 },
        },
        standardize,
        alpha,
        labels: labels.as_deref(),
        label_smoothing,
        class_weights,
        sample_weights,
        reduction: if mean { core::Reduction::Mean } else { core::Reduction::Sum },
    };
    with_dtype!(student.dtype, T => {
        // SAFETY: as above.
        let (z, teacher, losses, grad) = unsafe {
            (
                student.array.slice::<T>()?,
                teacher.get::<T>()?,
                losses.slice_mut::<f64>()?,
                grad.slice_mut::<T>()?,
            )
        };
        if let core::Teacher::TopK(top) = &teacher
            && !top.is_valid(rows, classes)
        {
            return Err(PyValueError::new_err(
                "teacher must have classes that ascend in each row and are below those of student",
            ));
        }
        run(py, || {
            core::kd_loss(&what, z, &teacher, losses, grad);
            losses.iter().sum()
        })
    })
}

/// Labels as indices into a row.
fn check_labels(
    labels: &Bound<'_, PyAny>,
    rows: usize,
    classes: usize,
    ignore_index: i64,
) -> PyResult<Vec<usize>> {
    let labels = Array::new(labels, Name("labels", ""))?;
    labels.require_element::<i64>()?;
    labels.require_shape(&[rows], "the rows of student")?;
    let labels = labels.contiguous()?;
    // SAFETY: the GIL is held; the copy is made without giving it up.
    let slice = unsafe { labels.slice::<i64>()? };
    // They are copied, since what is checked must be what is used.
    let mut checked = guard(|| memory::with_capacity(rows))?;
    for (row, &label) in slice.iter().enumerate() {
        checked.push(if label == ignore_index {
            core::UNLABELLED
        } else {
            usize::try_from(label).ok().filter(|&l| l < classes).ok_or_else(|| {
                labels.name.value_error(
                    format_args!("be from 0 to {}", classes - 1),
                    format_args!("{label} in row {row}"),
                )
            })?
        });
    }
    Ok(checked)
}

/// Writes the classes of the largest logits of each row to `chosen` (int32, `[rows,
/// k]`) and the logarithm of what the others come to at the temperature to `rest`.
#[pyfunction]
pub fn top_k(
    py: Python<'_>,
    z: &Bound<'_, PyAny>,
    temperature: f64,
    chosen: &Bound<'_, PyAny>,
    rest: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let z = Logits::new(z, Name("z", ""))?;
    let mut chosen = Array::new(chosen, Name("chosen", ""))?;
    chosen.require_element::<i32>()?;
    chosen.require_ndim(2)?;
    chosen.require_in_place()?;
    let k = chosen.array.shape()[1];
    if k == 0 || k > z.classes || chosen.array.shape()[0] != z.rows {
        return Err(chosen.name.value_error("have a row for each of z, of its classes", k));
    }
    let mut rest = each(rest, Name("rest", ""), z.rows, "the rows of z")?;
    rest.require_in_place()?;
    require_disjoint(&mut [&mut chosen, &mut rest], [&z.array])?;
    with_dtype!(z.dtype, T => {
        // SAFETY: as in `softmax`.
        let (z_slice, chosen, rest) = unsafe {
            (z.array.slice::<T>()?, chosen.slice_mut::<i32>()?, rest.slice_mut::<f64>()?)
        };
        let temperature = core::PerRow::All(temperature);
        run(py, || core::top_k(z_slice, z.classes, temperature, chosen, rest))
    })
}
