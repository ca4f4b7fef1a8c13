//! Scores, masks, and reconstruction.

use compressrs_core::linalg::cholesky;
use compressrs_core::numeric::element::{Element, Float};
use compressrs_core::prune::{
    self as core, HasNan, Magnitude, Norm, Overflow, Target, Term, Value,
};
use numpy::{PyArray1, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arguments::Name;
use crate::buffers::Array;
use crate::dtype::{Dtype, with_dtype};
use crate::errors::{guard, run};
use crate::overlap::require_disjoint;

/// Weights or scores of one dtype, in C order.
struct Weights<'py, 'n> {
    arrays: Vec<Array<'py, 'n>>,
    dtype: Dtype,
}

impl<'py, 'n> Weights<'py, 'n> {
    /// Checks `arrays`; `names` are their names in messages.
    fn new(arrays: &[Bound<'py, PyAny>], names: &'n [String]) -> PyResult<Self> {
        if arrays.len() != names.len() {
            return Err(PyValueError::new_err("names must be as many as arrays"));
        }
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
        Ok(Weights { arrays, dtype })
    }

    /// Their elements.
    ///
    /// # Safety
    /// As for [`Array::slice`].
    unsafe fn slices<T: Element>(&self) -> PyResult<Vec<&[T]>> {
        // SAFETY: as the caller guarantees.
        self.arrays.iter().map(|a| unsafe { a.slice() }).collect()
    }

    /// The elements of the only array.
    ///
    /// # Safety
    /// As for [`Array::slice`].
    unsafe fn slice<T: Element>(&self) -> PyResult<&[T]> {
        // SAFETY: as the caller guarantees.
        unsafe { self.arrays[0].slice() }
    }

    /// Where a value is NaN.
    fn find_nan(&self, py: Python<'_>) -> PyResult<Option<(usize, usize)>> {
        with_dtype!(self.dtype, T => {
            // SAFETY: the GIL is held; nothing here writes to weights.
            let slices = unsafe { self.slices::<T>()? };
            run(py, || core::find_nan(&slices))
        })
    }

    /// The error of a kernel that came upon NaN.
    fn has_nan(&self, py: Python<'_>, HasNan: HasNan) -> PyErr {
        match self.find_nan(py) {
            Err(error) => error,
            Ok(None) => PyValueError::new_err("arrays must hold no NaN"),
            Ok(Some(place)) => self.nan_at(place),
        }
    }

    /// The error of a NaN in an array at an index.
    fn nan_at(&self, (array, i): (usize, usize)) -> PyErr {
        self.arrays[array].name.value_error(
            "hold no NaN, which has no place in an order of magnitudes",
            format_args!("one at flat index {i}"),
        )
    }
}

/// Raises the error of the kernels that rank values, for those that do not.
#[pyfunction]
pub fn refuse_nan(py: Python<'_>, w: Bound<'_, PyAny>, name: String) -> PyResult<()> {
    let names = [name];
    let weights = Weights::new(&[w], &names)?;
    weights.find_nan(py)?.map_or(Ok(()), |place| Err(weights.nan_at(place)))
}

/// Requires that there are `k` values of `n`.
fn require_at_most(k: usize, n: usize, what: &str) -> PyResult<()> {
    if k <= n {
        return Ok(());
    }
    Err(Name("k", "").value_error(format_args!("be at most {n}, the number of {what}"), k))
}

/// Calls a kernel by the order of magnitudes, or of values.
macro_rules! by_order {
    ($by_value:expr, $O:ident => $call:expr) => {
        if $by_value {
            type $O = Value;
            $call
        } else {
            type $O = Magnitude;
            $call
        }
    };
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
    let weights = Weights::new(&arrays, &names)?;
    with_dtype!(weights.dtype, T => {
        // SAFETY: the GIL is held; nothing here writes to weights.
        let slices = unsafe { weights.slices::<T>()? };
        let rank = run(py, || core::rank::<Magnitude, T>(&slices, k))?;
        let rank = rank.map_err(|nan| weights.has_nan(py, nan))?;
        Ok(rank.map_or(f64::INFINITY, |rank| rank.value.load().to_f64()))
    })
}

/// Fills boolean arrays so that exactly the `k` smallest are False.
#[pyfunction]
pub fn mask_smallest(
    py: Python<'_>,
    arrays: Vec<Bound<'_, PyAny>>,
    names: Vec<String>,
    k: usize,
    by_value: bool,
    masks: Vec<Bound<'_, PyAny>>,
) -> PyResult<()> {
    let weights = Weights::new(&arrays, &names)?;
    let mut masks = masks.iter().map(check_mask).collect::<PyResult<Vec<_>>>()?;
    if !weights.arrays.iter().map(|a| a.array.shape()).eq(masks.iter().map(|m| m.array.shape())) {
        return Err(PyValueError::new_err("masks must have the shapes of the arrays"));
    }
    require_disjoint(&mut masks.iter_mut().collect::<Vec<_>>(), &weights.arrays)?;
    require_at_most(k, weights.arrays.iter().map(|a| a.array.len()).sum(), "values")?;
    with_dtype!(weights.dtype, T => {
        // SAFETY: the GIL is held; nothing else of this call uses the masks.
        let (arrays, mut slices) = unsafe {
            let masks = masks.iter_mut().map(|mask| mask.slice_mut());
            (weights.slices::<T>()?, masks.collect::<PyResult<Vec<&mut [u8]>>>()?)
        };
        by_order!(by_value, O => run(py, || core::mask_smallest::<O, T>(&arrays, k, &mut slices)))?
            .map_err(|nan| weights.has_nan(py, nan))
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
    let weights = Weights::new(&[w], &names)?;
    let mut mask = mask_of(mask, &weights)?;
    with_dtype!(weights.dtype, T => {
        // SAFETY: as in `mask_smallest`.
        let (w, mask) = unsafe { (weights.slice::<T>()?, mask.slice_mut()?) };
        // As NumPy compares an array with a Python float.
        let threshold = T::store(<T as Element>::Compute::from_f64(threshold));
        run(py, || core::mask_below::<Magnitude, T>(w, threshold, mask))?
            .map_err(|nan| weights.has_nan(py, nan))
    })
}

/// Fills a boolean array so that exactly the `k` smallest of each row are False.
#[pyfunction]
pub fn mask_rows(
    py: Python<'_>,
    w: Bound<'_, PyAny>,
    name: String,
    k: usize,
    by_value: bool,
    mask: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let names = [name];
    let weights = Weights::new(&[w], &names)?;
    weights.arrays[0].require_ndim(2)?;
    let columns = weights.arrays[0].array.shape()[1];
    require_at_most(k, columns, "columns")?;
    let mut mask = mask_of(mask, &weights)?;
    with_dtype!(weights.dtype, T => {
        // SAFETY: as in `mask_smallest`.
        let (w, mask) = unsafe { (weights.slice::<T>()?, mask.slice_mut()?) };
        by_order!(by_value, O => run(py, || core::mask_rows::<O, T>(w, columns, k, mask)))?
            .map_err(|nan| weights.has_nan(py, nan))
    })
}

/// Fills a boolean array so that the `n` largest of each `m` values are True.
#[pyfunction]
pub fn mask_n_of_m(
    py: Python<'_>,
    w: Bound<'_, PyAny>,
    name: String,
    n: usize,
    m: usize,
    by_value: bool,
    mask: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let names = [name];
    let weights = Weights::new(&[w], &names)?;
    let mut mask = mask_of(mask, &weights)?;
    if n > m || m == 0 {
        return Err(Name("n", "").value_error("be at most m, which is at least 1", n));
    }
    let len = weights.arrays[0].array.len();
    if !len.is_multiple_of(m) {
        let need = format_args!("hold a multiple of {m} elements");
        return Err(weights.arrays[0].name.value_error(need, len));
    }
    with_dtype!(weights.dtype, T => {
        // SAFETY: as in `mask_smallest`.
        let (w, mask) = unsafe { (weights.slice::<T>()?, mask.slice_mut()?) };
        by_order!(by_value, O => run(py, || core::mask_n_of_m::<O, T>(w, n, m, mask)))
    })
}

/// Writes a norm of each block of rows and columns: "sum", "1", "2" or "inf".
#[pyfunction]
pub fn block_norms(
    py: Python<'_>,
    w: Bound<'_, PyAny>,
    name: String,
    block: (usize, usize),
    norm: &str,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let norm = match norm {
        "sum" => Norm::Sum,
        "1" => Norm::One,
        "2" => Norm::Two,
        "inf" => Norm::Max,
        other => return Err(PyValueError::new_err(format!("no norm is called {other:?}"))),
    };
    let names = [name];
    let weights = Weights::new(&[w], &names)?;
    weights.arrays[0].require_ndim(2)?;
    let shape = weights.arrays[0].array.shape();
    let (columns, blocks) = (shape[1], grid(shape, block)?);
    let mut out = check::<f64>(out, "out", &blocks)?;
    require_disjoint(&mut [&mut out], &weights.arrays)?;
    with_dtype!(weights.dtype, T => {
        // SAFETY: as in `mask_smallest`.
        let (w, out) = unsafe { (weights.slice::<T>()?, out.slice_mut::<f64>()?) };
        run(py, || core::block_norms(w, columns, block, norm, out))
    })
}

/// Spreads a boolean for each block over its rows and columns.
#[pyfunction]
pub fn expand_blocks(
    py: Python<'_>,
    blocks: &Bound<'_, PyAny>,
    block: (usize, usize),
    mask: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (blocks, mut mask) = (check_mask(blocks)?, check_mask(mask)?);
    mask.require_ndim(2)?;
    let columns = mask.array.shape()[1];
    blocks.require_shape(&grid(mask.array.shape(), block)?, "the blocks of mask")?;
    require_disjoint(&mut [&mut mask], [&blocks])?;
    // SAFETY: as in `mask_smallest`.
    let (blocks, out) = unsafe { (blocks.slice::<u8>()?, mask.slice_mut::<u8>()?) };
    run(py, || core::expand_blocks(blocks, block, columns, out))
}

/// How many blocks a matrix has along its axes.
fn grid(shape: &[usize], block: (usize, usize)) -> PyResult<[usize; 2]> {
    let (height, width) = block;
    if shape.len() != 2
        || height == 0
        || width == 0
        || !shape[0].is_multiple_of(height)
        || !shape[1].is_multiple_of(width)
    {
        return Err(PyValueError::new_err("blocks must divide the matrix"));
    }
    Ok([shape[0] / height, shape[1] / width])
}

/// Adds to scores what a step says of weights: "product", "opposite" or "square".
#[pyfunction]
pub fn accumulate_products(
    py: Python<'_>,
    scores: &Bound<'_, PyAny>,
    w: Bound<'_, PyAny>,
    g: &Bound<'_, PyAny>,
    name: String,
    term: &str,
) -> PyResult<()> {
    let term = match term {
        "product" => Term::Product,
        "opposite" => Term::Opposite,
        "square" => Term::Square,
        other => return Err(PyValueError::new_err(format!("no term is called {other:?}"))),
    };
    let names = [name];
    let weights = Weights::new(&[w], &names)?;
    let shape = weights.arrays[0].array.shape();
    with_dtype!(weights.dtype, T => {
        type C = <T as Element>::Compute;
        let mut scores = Array::new(scores, Name("scores", ""))?;
        scores.require_element::<C>()?;
        scores.require_shape(shape, weights.arrays[0].name)?;
        scores.require_in_place()?;
        let g = Array::new(g, Name("grads", ""))?.contiguous()?;
        g.require_element::<C>()?;
        g.require_shape(shape, weights.arrays[0].name)?;
        require_disjoint(&mut [&mut scores], [&weights.arrays[0], &g])?;
        // SAFETY: as in `mask_smallest`.
        let (w, scores, g) =
            unsafe { (weights.slice::<T>()?, scores.slice_mut::<C>()?, g.slice::<C>()?) };
        run(py, || core::accumulate_products(scores, w, g, term))
    })
}

/// Adds the squares of each column of `x` to `sums`, or `x' x` where it has two axes.
#[pyfunction]
pub fn accumulate_inputs(
    py: Python<'_>,
    x: Bound<'_, PyAny>,
    sums: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let names = [String::from("x")];
    let x = Weights::new(&[x], &names)?;
    x.arrays[0].require_ndim(2)?;
    let columns = x.arrays[0].array.shape()[1];
    let mut sums = Array::new(sums, Name("sums", ""))?;
    let is_gram = sums.array.ndim() == 2;
    let shape = [columns, columns];
    sums.require_element::<f64>()?;
    sums.require_shape(if is_gram { &shape } else { &shape[..1] }, "x")?;
    sums.require_in_place()?;
    require_disjoint(&mut [&mut sums], &x.arrays)?;
    let done = with_dtype!(x.dtype, T => {
        // SAFETY: as in `mask_smallest`.
        let (x, sums) = unsafe { (x.slice::<T>()?, sums.slice_mut::<f64>()?) };
        run(py, || {
            if is_gram {
                core::accumulate_gram(x, columns, sums)
            } else {
                core::accumulate_squares(x, sums)
            }
        })?
    });
    done.map_err(|Overflow| {
        PyValueError::new_err(
            "x must not be so large that the sums of its squares overflow, with which nothing \
             can be weighed (scale the inputs down)",
        )
    })
}

/// A factored matrix; see the core.
#[pyclass(frozen, module = "compressrs._core")]
pub struct Factor(cholesky::Factor);

#[pymethods]
impl Factor {
    /// Factors a matrix; None if it is not positive definite.
    #[staticmethod]
    fn of(py: Python<'_>, a: &Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        let a = Array::new(a, Name("a", ""))?.contiguous()?;
        a.require_element::<f64>()?;
        a.require_ndim(2)?;
        let n = a.array.shape()[0];
        a.require_shape(&[n, n], "a square")?;
        // SAFETY: the GIL is held; nothing writes to it.
        let a = unsafe { a.slice::<f64>()? };
        Ok(run(py, || cholesky::Factor::new(a, n))?.ok().map(Factor))
    }

    /// What the later variables leave unexplained of each one.
    fn pivots<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f64>>> {
        Ok(PyArray1::from_vec(py, guard(|| self.0.pivots())?))
    }

    /// The factor `U` of the inverse, `inverse(a) = U' U`, row by row.
    fn inverse<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f64>>> {
        Ok(PyArray1::from_vec(py, run(py, || self.0.inverse())?))
    }
}

/// Removes weights and updates the others to compensate: `k` of all, or all but `n` of each
/// `m` columns.
#[pyfunction]
pub fn reconstruct(
    py: Python<'_>,
    w: &Bound<'_, PyAny>,
    u: &Bound<'_, PyAny>,
    target: (usize, Option<usize>),
    block: usize,
    mask: &Bound<'_, PyAny>,
) -> PyResult<bool> {
    let mut w = Array::new(w, Name("w", ""))?;
    w.require_element::<f64>()?;
    w.require_ndim(2)?;
    w.require_in_place()?;
    let columns = w.array.shape()[1];
    let u = check::<f64>(u, "u", &[columns * columns])?;
    let mut mask = check::<bool>(mask, "mask", w.array.shape())?;
    if block == 0 {
        return Err(PyValueError::new_err("block must be at least 1, got 0"));
    }
    let target = removal(target, columns, block)?;
    require_disjoint(&mut [&mut w, &mut mask], [&u])?;
    // SAFETY: as in `mask_smallest`.
    let (w, u, mask) = unsafe { (w.slice_mut::<f64>()?, u.slice::<f64>()?, mask.slice_mut()?) };
    run(py, || core::reconstruct(w, columns, u, target, block, mask, &mut core::Unchanged).is_ok())
}

/// How many weights are removed: `k`, or all but `n` of `m`, of so many columns, of which a block
/// is decided at a time.
pub fn removal(target: (usize, Option<usize>), columns: usize, block: usize) -> PyResult<Target> {
    match target {
        (k, None) => Ok(Target::Total(k)),
        (n, Some(m)) if n <= m && columns.is_multiple_of(m) && block.is_multiple_of(m) => {
            Ok(Target::NOfM { n, m })
        }
        (n, Some(m)) => Err(PyValueError::new_err(format!(
            "columns and block must be multiples of m, of which n are kept, got {columns} columns, \
             block {block}, n {n} and m {m}"
        ))),
    }
}

/// Sets to 0, in place, what a mask does not keep.
#[pyfunction]
pub fn apply_mask(
    py: Python<'_>,
    w: &Bound<'_, PyAny>,
    mask: &Bound<'_, PyAny>,
    name: &str,
) -> PyResult<()> {
    let mut w = Array::new(w, Name(name, ""))?;
    let dtype = w.float_dtype()?;
    w.require_in_place()?;
    let mask = check_mask(mask)?;
    mask.require_shape(w.array.shape(), w.name)?;
    require_disjoint(&mut [&mut w], [&mask])?;
    with_dtype!(dtype, T => {
        // SAFETY: as in `mask_smallest`.
        let (w, mask) = unsafe { (w.slice_mut::<T>()?, mask.slice()?) };
        run(py, || core::apply_mask(w, mask))
    })
}

/// A mask of the only array of `weights`, to write to.
fn mask_of<'py>(
    mask: &Bound<'py, PyAny>,
    weights: &Weights<'py, '_>,
) -> PyResult<Array<'py, 'static>> {
    let mut mask = check_mask(mask)?;
    mask.require_shape(weights.arrays[0].array.shape(), weights.arrays[0].name)?;
    require_disjoint(&mut [&mut mask], &weights.arrays)?;
    Ok(mask)
}

/// An array in C order of a dtype and shape.
fn check<'py, T: numpy::Element>(
    array: &Bound<'py, PyAny>,
    name: &'static str,
    shape: &[usize],
) -> PyResult<Array<'py, 'static>> {
    let array = Array::new(array, Name(name, ""))?;
    array.require_element::<T>()?;
    array.require_contiguous()?;
    array.require_shape(shape, name)?;
    Ok(array)
}

fn check_mask<'py>(mask: &Bound<'py, PyAny>) -> PyResult<Array<'py, 'static>> {
    let mask = Array::new(mask, Name("mask", ""))?;
    mask.require_element::<bool>()?;
    mask.require_contiguous()?;
    Ok(mask)
}
