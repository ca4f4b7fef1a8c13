//! Softmax and attention: forward and backward.

use compressrs_core::nn::attention;
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::{first, read, require_exact, written};
use crate::arguments::{Name, Shape};
use crate::buffers::Array;
use crate::dtype::with_compute;
use crate::errors::run;
use crate::overlap::require_disjoint;

/// Writes the gradient of `y = softmax(x)` along the last axis to `dx`.
#[pyfunction]
pub fn softmax_backward(
    py: Python<'_>,
    y: &Bound<'_, PyAny>,
    dy: &Bound<'_, PyAny>,
    dx: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (y, dtype) = first(y, "y")?;
    let dy = read(dy, "dy", (dtype, "y"), y.array.shape())?;
    let mut dx = written(dx, "dx", (dtype, "y"), y.array.shape())?;
    require_disjoint(&mut [&mut dx], [&y, &dy])?;
    let columns = y.array.shape().last().copied().unwrap_or(1);
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (y, dy, dx) = unsafe { (y.slice::<T>()?, dy.slice::<T>()?, dx.slice_mut::<T>()?) };
        run(py, || attention::softmax_backward(columns, y, dy, dx))
    })
}

/// The sizes of an attention of queries and keys `[batch, length, features]`.
fn heads(
    q: &Array<'_, '_>,
    k: &Array<'_, '_>,
    heads: usize,
    causal: bool,
) -> PyResult<attention::Heads> {
    let (&[batch, queries, features], &[of_keys, keys, width]) = (q.array.shape(), k.array.shape())
    else {
        let got = format!("shapes {} and {}", Shape(q.array.shape()), Shape(k.array.shape()));
        return Err(q.name.value_error("have 3 axes, as those of k", got));
    };
    if batch != of_keys || features != width || heads == 0 || !features.is_multiple_of(heads) {
        return Err(PyValueError::new_err(format!(
            "q and k must have the same batch and features, a multiple of {heads} heads, got {} and {}",
            Shape(q.array.shape()),
            Shape(k.array.shape())
        )));
    }
    Ok(attention::Heads { batch, queries, keys, heads, width: features / heads, causal })
}

/// Writes attention to `out` and its probabilities `[batch, heads, queries, keys]`; int64
/// `lengths` are the numbers of keys that count, of each sequence.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "inputs and outputs")]
pub fn attend(
    py: Python<'_>,
    q: &Bound<'_, PyAny>,
    k: &Bound<'_, PyAny>,
    v: &Bound<'_, PyAny>,
    heads: usize,
    causal: bool,
    lengths: Option<&Bound<'_, PyAny>>,
    probabilities: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (q, dtype) = first(q, "q")?;
    let like = (dtype, "q");
    let k = Array::new(k, Name("k", ""))?;
    let heads = self::heads(&q, &k, heads, causal)?;
    let k = read(&k.array, "k", like, k.array.shape())?;
    let v = read(v, "v", like, k.array.shape())?;
    let shape = [heads.batch, heads.heads, heads.queries, heads.keys];
    let mut probabilities = written(probabilities, "probabilities", like, &shape)?;
    let mut out = written(out, "out", like, q.array.shape())?;
    require_disjoint(&mut [&mut probabilities, &mut out], [&q, &k, &v])?;
    let lengths = lengths.map(|lengths| self::lengths(lengths, &heads)).transpose()?;
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (q, k, v, probabilities, out) = unsafe {
            (
                q.slice::<T>()?,
                k.slice::<T>()?,
                v.slice::<T>()?,
                probabilities.slice_mut::<T>()?,
                out.slice_mut::<T>()?,
            )
        };
        run(py, || attention::forward(&heads, (q, k, v), lengths.as_deref(), probabilities, out))
    })
}

fn lengths(object: &Bound<'_, PyAny>, heads: &attention::Heads) -> PyResult<Vec<usize>> {
    let lengths = Array::new(object, Name("lengths", ""))?;
    lengths.require_element::<i64>()?;
    require_exact(&lengths, &[heads.batch])?;
    let lengths = lengths.contiguous()?;
    // SAFETY: of int64; nothing writes to them while the GIL is held.
    let given = unsafe { lengths.slice::<i64>() }?;
    given
        .iter()
        .map(|&length| {
            let fits = usize::try_from(length).ok().filter(|n| (1..=heads.keys).contains(n));
            fits.ok_or_else(|| {
                lengths.name.value_error(format_args!("be from 1 to {}", heads.keys), length)
            })
        })
        .collect()
}

/// Writes the gradients of [`attend`].
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "inputs and outputs")]
pub fn attend_backward(
    py: Python<'_>,
    q: &Bound<'_, PyAny>,
    k: &Bound<'_, PyAny>,
    v: &Bound<'_, PyAny>,
    heads: usize,
    probabilities: &Bound<'_, PyAny>,
    dy: &Bound<'_, PyAny>,
    dq: &Bound<'_, PyAny>,
    dk: &Bound<'_, PyAny>,
    dv: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (q, dtype) = first(q, "q")?;
    let like = (dtype, "q");
    let k = Array::new(k, Name("k", ""))?;
    let heads = self::heads(&q, &k, heads, false)?;
    let k = read(&k.array, "k", like, k.array.shape())?;
    let v = read(v, "v", like, k.array.shape())?;
    let shape = [heads.batch, heads.heads, heads.queries, heads.keys];
    let probabilities = read(probabilities, "probabilities", like, &shape)?;
    let dy = read(dy, "dy", like, q.array.shape())?;
    let sources = [&q, &k, &v, &probabilities, &dy];
    let mut dq = written(dq, "dq", like, q.array.shape())?;
    let mut dk = written(dk, "dk", like, k.array.shape())?;
    let mut dv = written(dv, "dv", like, k.array.shape())?;
    require_disjoint(&mut [&mut dq, &mut dk, &mut dv], sources)?;
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (q, k, v, p, dy, gradients) = unsafe {
            (
                q.slice::<T>()?,
                k.slice::<T>()?,
                v.slice::<T>()?,
                probabilities.slice::<T>()?,
                dy.slice::<T>()?,
                (dq.slice_mut::<T>()?, dk.slice_mut::<T>()?, dv.slice_mut::<T>()?),
            )
        };
        run(py, || attention::backward(&heads, (q, k, v), p, dy, gradients))
    })
}
