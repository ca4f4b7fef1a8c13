//! Magnitude thresholds and masks.

use compressrs_core::element::{Element, Float};
use compressrs_core::prune as core;
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::buffers::{Array, Dtype, Name, require_disjoint, with_dtype};
use crate::errors::run;

/// Weights of one dtype, in C order, free of NaN.
struct Weights<'py, 'n> {
    arrays: Vec<Array<'py, 'n>>,
    dtype: Dtype,
}

impl<'py, 'n> Weights<'py, 'n> {
    /// Checks `arrays`; `names` are their names in messages.
    fn new(py: Python<'py>, arrays: &[Bound<'py, PyAny>], names: &'n [String]) -> PyResult<Self> {
        let arrays = arrays
            .iter()
            .zip(names)
            .map(|(array, name)| Array::new(array, Name(name, ""))?.contiguous())
            .collect::<PyResult<Vec<_>>>()?;
        let Some(first) = arrays.first() else {
            return Err(PyValueError::new_err("arrays must hold at least one array, got none"));
        };
        let dtype = first.float_dtype()?;
        for array in &arrays {
            array.require_dtype(dtype, first.name)?;
        }
        let weights = Weights { arrays, dtype };
        let nan = with_dtype!(dtype, T => {
            let slices = weights.slices::<T>();
            run(py, || core::find_nan(&slices))?
        });
        match nan {
            None => Ok(weights),
            Some((array, i)) => Err(weights.arrays[array].name.value_error(
                "hold no NaN, which has no place in an order of magnitudes",
                format_args!("one at flat index {i}"),
            )),
        }
    }

    fn slices<T: Element>(&self) -> Vec<&[T]> {
        // SAFETY: `new` checked dtype and layout; nothing here writes to weights.
        self.arrays.iter().map(|a| unsafe { a.slice() }).collect()
    }
}

/// The magnitude with `k` smaller ones or ties before it, over all arrays;
/// infinity if there are only `k`.
#[pyfunction]
pub fn magnitude_threshold(
    py: Python<'_>,
    arrays: Vec<Bound<'_, PyAny>>,
    names: Vec<String>,
    k: usize,
) -> PyResult<f64> {
    let weights = Weights::new(py, &arrays, &names)?;
    with_dtype!(weights.dtype, T => {
        let slices = weights.slices::<T>();
        let rank = run(py, || core::rank(&slices, k))?;
        Ok(rank.map_or(f64::INFINITY, |rank| rank.value.load().to_f64()))
    })
}

/// Fills boolean arrays so that exactly the `k` smallest magnitudes are False.
#[pyfunction]
pub fn mask_smallest(
    py: Python<'_>,
    arrays: Vec<Bound<'_, PyAny>>,
    names: Vec<String>,
    k: usize,
    masks: Vec<Bound<'_, PyAny>>,
) -> PyResult<()> {
    let weights = Weights::new(py, &arrays, &names)?;
    let masks = masks.iter().map(check_mask).collect::<PyResult<Vec<_>>>()?;
    if !weights.arrays.iter().map(|a| a.array.shape()).eq(masks.iter().map(|m| m.array.shape())) {
        return Err(PyValueError::new_err("masks must have the shapes of the arrays"));
    }
    // SAFETY: `check_mask` checked dtype and layout, and the package allocates
    // the masks for this call.
    let mut slices: Vec<&mut [u8]> = masks.iter().map(|m| unsafe { m.slice_mut() }).collect();
    with_dtype!(weights.dtype, T => {
        let arrays = weights.slices::<T>();
        run(py, || core::mask_smallest(&arrays, k, &mut slices))
    })
}

/// Fills a boolean array with `|w| >= threshold`.
#[pyfunction]
pub fn mask_below(
    py: Python<'_>,
    w: Bound<'_, PyAny>,
    threshold: f64,
    mask: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let names = [String::from("w")];
    let weights = Weights::new(py, &[w], &names)?;
    let mask = check_mask(mask)?;
    mask.require_shape(weights.arrays[0].array.shape(), "w")?;
    // SAFETY: as in `mask_smallest`.
    let mask = unsafe { mask.slice_mut() };
    with_dtype!(weights.dtype, T => {
        let w = weights.slices::<T>()[0];
        // As NumPy compares an array with a Python float.
        let threshold = T::store(<T as Element>::Compute::from_f64(threshold));
        run(py, || core::mask_below(w, threshold, mask))
    })
}

/// Sets to 0, in place, what a mask does not keep.
#[pyfunction]
pub fn apply_mask(
    py: Python<'_>,
    w: &Bound<'_, PyAny>,
    mask: &Bound<'_, PyAny>,
    name: &str,
) -> PyResult<()> {
    let w = Array::new(w, Name(name, ""))?;
    let dtype = w.float_dtype()?;
    w.require_in_place()?;
    let mask = check_mask(mask)?;
    mask.require_shape(w.array.shape(), w.name)?;
    require_disjoint(&w, &w.memory(), &mask, &mask.memory())?;
    // SAFETY: checked just now; the two do not overlap.
    let mask = unsafe { mask.slice() };
    with_dtype!(dtype, T => {
        // SAFETY: as above.
        let w = unsafe { w.slice_mut::<T>() };
        run(py, || core::apply_mask(w, mask))
    })
}

fn check_mask<'py>(mask: &Bound<'py, PyAny>) -> PyResult<Array<'py, 'static>> {
    let mask = Array::new(mask, Name("mask", ""))?;
    mask.require_element::<bool>()?;
    mask.require_contiguous()?;
    Ok(mask)
}
