//! The gradient of an embedding.

use compressrs_core::nn::embedding;
use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;

use super::{pair, read, written};
use crate::arguments::Name;
use crate::buffers::Array;
use crate::dtype::with_compute;
use crate::errors::run;
use crate::overlap::require_disjoint;

/// Adds rows of `dy` `[ids, width]` to the rows of `out` that int64 ids name.
#[pyfunction]
pub fn add_rows(
    py: Python<'_>,
    ids: &Bound<'_, PyAny>,
    dy: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let ids = Array::new(ids, Name("ids", ""))?;
    ids.require_element::<i64>()?;
    ids.require_ndim(1)?;
    let ids = ids.contiguous()?;
    let out = Array::new(out, Name("out", ""))?;
    let dtype = out.compute_dtype()?;
    out.require_ndim(2)?;
    let [rows, width] = pair(&out);
    let dy = read(dy, "dy", (dtype, "out"), &[ids.array.len(), width])?;
    let mut out = written(&out.array, "out", (dtype, "out"), &[rows, width])?;
    require_disjoint(&mut [&mut out], [&ids, &dy])?;
    // Copied, so that no other thread changes them once they are checked.
    // SAFETY: of int64; the GIL is held.
    let given = unsafe { ids.slice::<i64>() }?.to_vec();
    let index = |&id: &i64| {
        usize::try_from(id).ok().filter(|&id| id < rows).ok_or_else(|| {
            ids.name.value_error(format_args!("be from 0 to {}", rows as i64 - 1), id)
        })
    };
    let indices = given.iter().map(index).collect::<PyResult<Vec<usize>>>()?;
    with_compute!(dtype, T => {
        // SAFETY: checked above; nothing else writes to them here.
        let (dy, out) = unsafe { (dy.slice::<T>()?, out.slice_mut::<T>()?) };
        run(py, || embedding::add_rows(&indices, dy, width, out))
    })
}
