//! Softmax and distillation losses.

use compressrs_core::distill as core;
use compressrs_core::numeric::element::Element;
use compressrs_core::runtime::memory;
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use crate::buffers::{Array, Compute, Dtype, Name, with_compute, with_dtype};
use crate::errors::{guard, run};
use crate::overlap::require_disjoint;

/// Writes `softmax(z / temperature)` along an axis to `out`, or its logarithm; `out`
/// may be `z` itself. Temperatures are a number or float64, one a row.
#[pyfunction]
pub fn softmax(
    py: Python<'_>,
    z: &Bound<'_, PyAny>,
    temperature: &Bound<'_, PyAny>,
    axis: usize,
    log: bool,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let z = Array::new(z, Name("z", ""))?;
    let dtype = z.float_dtype()?;
    let mut out = Array::new(out, Name("out", ""))?;
    out.require_dtype(dtype, z.name)?;
    out.require_shape(z.array.shape(), z.name)?;
    out.require_in_place()?;
    let axis = view(&z, axis)?;
    let temperature = PerRow::new(temperature, Name("temperature", ""), axis.rows())?;
    // In place, `z` itself is not looked at.
    let same = z.data() == out.data() && z.is_contiguous();
    let z = if same { None } else { Some(z.contiguous()?) };
    require_disjoint(&mut [&mut out], z.iter().chain(temperature.array()))?;
    let output = if log { core::SoftmaxOutput::Log } else { core::SoftmaxOutput::Probability };
    with_dtype!(dtype, T => {
        // SAFETY: the GIL is held; nothing else of this call uses `out`.
        let (z, out, temperature) = unsafe {
            let z = z.as_ref().map(|z| z.slice::<T>()).transpose()?;
            (z, out.slice_mut::<T>()?, temperature.get()?)
        };
        run(py, || core::softmax(axis, output, temperature, z, out))
    })
}

/// Writes `ln sum exp(z / temperature)` along an axis to `out`, which lacks that axis.
#[pyfunction]
pub fn logsumexp(
    py: Python<'_>,
    z: &Bound<'_, PyAny>,
    temperature: &Bound<'_, PyAny>,
    axis: usize,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let z = Array::new(z, Name("z", ""))?.contiguous()?;
    let dtype = z.float_dtype()?;
    let mut out = Array::new(out, Name("out", ""))?;
    out.require_dtype(dtype, z.name)?;
    let mut shape = z.array.shape().to_vec();
    let rows = view(&z, axis)?;
    shape.remove(axis);
    out.require_shape(&shape, "z without the axis")?;
    out.require_in_place()?;
    let axis = rows;
    let temperature = PerRow::new(temperature, Name("temperature", ""), axis.rows())?;
    require_disjoint(&mut [&mut out], [&z].into_iter().chain(temperature.array()))?;
    with_dtype!(dtype, T => {
        // SAFETY: as in `softmax`.
        let (z, out, temperature) =
            unsafe { (z.slice::<T>()?, out.slice_mut::<T>()?, temperature.get()?) };
        run(py, || core::logsumexp(axis, temperature, z, out))
    })
}

/// An array seen from an axis, which must be one of it.
fn view(z: &Array<'_, '_>, axis: usize) -> PyResult<core::Axis> {
    let shape = z.array.shape();
    let Some(&classes) = shape.get(axis) else {
        return Err(PyValueError::new_err(format!(
            "axis must be below {}, got {axis}",
            shape.len()
        )));
    };
    let (outer, inner) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product());
    Ok(core::Axis { outer, classes, inner })
}

/// A number, or an array of float64 with one for each row.
enum PerRow<'py> {
    All(f64),
    Each(Array<'py, 'static>),
}

impl<'py> PerRow<'py> {
    fn new(object: &Bound<'py, PyAny>, name: Name<'static>, rows: usize) -> PyResult<Self> {
        if let Ok(x) = object.extract::<f64>() {
            return Ok(PerRow::All(x));
        }
        each(object, name, rows, "the rows").map(PerRow::Each)
    }

    /// The array, if there is one.
    fn array(&self) -> Option<&Array<'py, 'static>> {
        match self {
            PerRow::All(_) => None,
            PerRow::Each(array) => Some(array),
        }
    }

    /// # Safety
    /// As for [`Array::slice`].
    unsafe fn get(&self) -> PyResult<core::PerRow<'_>> {
        Ok(match self {
            PerRow::All(x) => core::PerRow::All(*x),
            // SAFETY: as the caller guarantees.
            PerRow::Each(array) => core::PerRow::Each(unsafe { array.slice::<f64>()? }),
        })
    }
}

/// A contiguous array of float64 with so many elements.
fn each<'py, 'n>(
    object: &Bound<'py, PyAny>,
    name: Name<'n>,
    len: usize,
    of: &str,
) -> PyResult<Array<'py, 'n>> {
    let array = Array::new(object, name)?;
    array.require_element::<f64>()?;
    array.require_shape(&[len], of)?;
    array.contiguous()
}

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
    with_pair!(py, pair, |s, t, g| {
        let (s, t) =
            (core::Features { data: s, width }, core::Features { data: t, width: of_teacher });
        if angles { core::angle(rows, s, t, g) } else { core::distance(rows, s, t, g) }
    })
}
