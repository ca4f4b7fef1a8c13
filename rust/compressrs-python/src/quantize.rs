//! Ranges, scales, codes.

use compressrs_core::numeric::element::{Element, Float};
use compressrs_core::quantize::{self as core, Affine, E4M3, E5M2, Layout, Levels, NF4};
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arguments::Name;
use crate::buffers::Array;
use crate::dtype::{Dtype, with_compute, with_dtype};
use crate::errors::run;
use crate::overlap::require_disjoint;

/// The kind of codes: a name, bits, whether the range is symmetric, and codebooks.
type Kind<'py> = (String, u32, bool, Option<Bound<'py, PyAny>>);

/// How many weights go, and the mask to write.
type Removal<'py> = ((usize, Option<usize>), Bound<'py, PyAny>);

/// Codes, checked.
enum Grid<'py> {
    Affine(Affine),
    Nf4,
    E4M3,
    E5M2,
    /// As many levels for each block.
    Codebooks(Array<'py, 'static>, usize),
}

impl<'py> Grid<'py> {
    /// The codebooks, which a kernel reads.
    fn array(&self) -> Option<&Array<'py, 'static>> {
        if let Grid::Codebooks(levels, _) = self { Some(levels) } else { None }
    }

    fn new(kind: &Kind<'py>, dtype: impl Into<Dtype>, layout: Layout) -> PyResult<Self> {
        let (kind, bits, symmetric, levels) = kind;
        let affine = |signed| {
            if (1..=8).contains(bits) {
                return Ok(Grid::Affine(Affine::new(*bits, signed, *symmetric)));
            }
            Err(PyValueError::new_err(format!("bits must be from 1 to 8, got {bits}")))
        };
        match (kind.as_str(), levels) {
            ("int", None) => affine(true),
            ("uint", None) => affine(false),
            ("nf4", None) => Ok(Grid::Nf4),
            ("fp8_e4m3", None) => Ok(Grid::E4M3),
            ("fp8_e5m2", None) => Ok(Grid::E5M2),
            ("codebook", Some(levels)) => {
                let levels = Array::new(levels, Name("codebook", ""))?;
                levels.require_dtype(dtype, "scale")?;
                levels.require_contiguous()?;
                levels.require_ndim(2)?;
                let [blocks, count] = *levels.array.shape() else { unreachable!("two axes") };
                if blocks != layout.blocks() || !(1..=256).contains(&count) {
                    let need = format!("have {} rows of 1 to 256 levels", layout.blocks());
                    return Err(levels.name.value_error(need, format_args!("{blocks} of {count}")));
                }
                Ok(Grid::Codebooks(levels, count))
            }
            _ => Err(PyValueError::new_err(format!("there are no codes of dtype {kind:?}"))),
        }
    }
}

/// Runs `$body` with `$grid` of the type that belongs to a [`Grid`] in compute type `$C`.
macro_rules! with_grid {
    ($of:expr, $C:ty, $grid:ident => $body:expr) => {
        match $of {
            Grid::Affine(affine) => {
                let $grid = *affine;
                $body
            }
            Grid::E4M3 => {
                let $grid: E4M3 = core::Fp8;
                $body
            }
            Grid::E5M2 => {
                let $grid: E5M2 = core::Fp8;
                $body
            }
            levels @ (Grid::Nf4 | Grid::Codebooks(..)) => {
                let nf4 = NF4.map(|x| <$C as Float>::from_f64(x.into()));
                let $grid = match levels {
                    // SAFETY: `Grid::new` checked dtype and layout; the package does not
                    // write to codebooks during a call.
                    Grid::Codebooks(levels, count) => unsafe {
                        Levels::of_blocks(levels.slice::<$C>()?, *count)
                    },
                    _ => Levels::new(&nf4),
                };
                $body
            }
        }
    };
}

/// A matrix in C order, and its blocks.
fn layout(matrix: &Array<'_, '_>, block: (usize, usize)) -> PyResult<Layout> {
    matrix.require_ndim(2)?;
    if block.0 == 0 || block.1 == 0 {
        return Err(PyValueError::new_err("blocks must have at least one element"));
    }
    let shape = matrix.array.shape();
    Ok(Layout::new(shape[0], shape[1], block.0, block.1))
}

/// An array of one number for each block, in C order.
fn of_blocks<'py>(
    object: &Bound<'py, PyAny>,
    name: &'static str,
    layout: Layout,
) -> PyResult<Array<'py, 'static>> {
    let array = Array::new(object, Name(name, ""))?;
    let (down, across) = layout.grid();
    array.require_shape(&[down, across], "the blocks")?;
    array.require_contiguous()?;
    Ok(array)
}

/// Zero points or codes, of one byte each.
fn bytes<'py, 'n>(array: Array<'py, 'n>) -> PyResult<Array<'py, 'n>> {
    array.require_element::<u8>()?;
    array.require_contiguous()?;
    Ok(array)
}

fn refuse_not_finite(name: Name<'_>) -> PyErr {
    name.value_error("be finite", "NaN or infinity")
}

/// Writes the smallest and largest value of each block.
#[pyfunction]
pub fn block_ranges(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    name: &str,
    block: (usize, usize),
    low: &Bound<'_, PyAny>,
    high: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let x = Array::new(x, Name(name, ""))?.contiguous()?;
    let dtype = x.float_dtype()?;
    let layout = layout(&x, block)?;
    let (mut low, mut high) = (of_blocks(low, "low", layout)?, of_blocks(high, "high", layout)?);
    low.require_dtype(dtype.compute(), x.name)?;
    high.require_dtype(dtype.compute(), x.name)?;
    require_disjoint(&mut [&mut low, &mut high], [&x])?;
    with_dtype!(dtype, T => {
        // SAFETY: the GIL is held; nothing else of this call uses what is written.
        let (x, low, high) = unsafe { (x.slice::<T>()?, low.slice_mut()?, high.slice_mut()?) };
        run(py, || core::ranges(x, layout, low, high))?
    })
    .map_err(|_| refuse_not_finite(x.name))
}

/// Writes the scales and zero points that ranges ask for.
#[pyfunction]
pub fn scales(
    py: Python<'_>,
    low: &Bound<'_, PyAny>,
    high: &Bound<'_, PyAny>,
    kind: Kind<'_>,
    scale: &Bound<'_, PyAny>,
    zero: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let low = Array::new(low, Name("low", ""))?;
    let dtype = low.compute_dtype()?;
    let layout = layout(&low, (1, 1))?;
    low.require_contiguous()?;
    let (high, mut scale) = (of_blocks(high, "high", layout)?, of_blocks(scale, "scale", layout)?);
    let mut zero = bytes(of_blocks(zero, "zero_point", layout)?)?;
    high.require_dtype(dtype, low.name)?;
    scale.require_dtype(dtype, low.name)?;
    let grid = Grid::new(&kind, dtype, layout)?;
    let read = [&low, &high].into_iter().chain(grid.array());
    require_disjoint(&mut [&mut scale, &mut zero], read)?;
    with_compute!(dtype, C => {
        // SAFETY: as in `block_ranges`.
        let (low, high) = unsafe { (low.slice::<C>()?, high.slice::<C>()?) };
        // SAFETY: as in `block_ranges`.
        let (scale, zero) = unsafe { (scale.slice_mut()?, zero.slice_mut()?) };
        with_grid!(&grid, C, grid => run(py, || core::scales(grid, low, high, scale, zero)))
    })
}

/// Writes the codes of a matrix; before, if `own_range`, scales and zero points.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "called by one place in the package")]
pub fn quantize(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    name: &str,
    block: (usize, usize),
    kind: Kind<'_>,
    own_range: bool,
    scale: &Bound<'_, PyAny>,
    zero: &Bound<'_, PyAny>,
    codes: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let x = Array::new(x, Name(name, ""))?.contiguous()?;
    let dtype = x.float_dtype()?;
    let layout = layout(&x, block)?;
    let mut scale = of_blocks(scale, "scale", layout)?;
    scale.require_dtype(dtype.compute(), x.name)?;
    let mut zero = bytes(of_blocks(zero, "zero_point", layout)?)?;
    let mut codes = bytes(Array::new(codes, Name("codes", ""))?)?;
    codes.require_shape(x.array.shape(), x.name)?;
    let grid = Grid::new(&kind, dtype.compute(), layout)?;
    let read = [&x].into_iter().chain(grid.array());
    if own_range {
        require_disjoint(&mut [&mut codes, &mut scale, &mut zero], read)?;
    } else {
        require_disjoint(&mut [&mut codes], read.chain([&scale, &zero]))?;
    }
    with_dtype!(dtype, T => {
        type C = <T as Element>::Compute;
        // SAFETY: as in `block_ranges`.
        let (x, codes) = unsafe { (x.slice::<T>()?, codes.slice_mut::<u8>()?) };
        with_grid!(&grid, C, grid => if own_range {
            // SAFETY: as above.
            let (scale, zero) = unsafe { (scale.slice_mut()?, zero.slice_mut()?) };
            run(py, || core::quantize_to_range(x, layout, grid, scale, zero, codes))?
        } else {
            // SAFETY: as above.
            let (scale, zero) = unsafe { (scale.slice()?, zero.slice()?) };
            run(py, || core::quantize(x, layout, grid, scale, zero, codes)).map(Ok)?
        })
    })
    .map_err(|_| refuse_not_finite(x.name))
}

/// Writes what the codes of a matrix stand for.
#[pyfunction]
pub fn dequantize(
    py: Python<'_>,
    codes: &Bound<'_, PyAny>,
    block: (usize, usize),
    kind: Kind<'_>,
    scale: &Bound<'_, PyAny>,
    zero: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let codes = bytes(Array::new(codes, Name("codes", ""))?)?;
    let layout = layout(&codes, block)?;
    let scale = of_blocks(scale, "scale", layout)?;
    let zero = bytes(of_blocks(zero, "zero_point", layout)?)?;
    let mut out = Array::new(out, Name("out", ""))?;
    let dtype = out.float_dtype()?;
    scale.require_dtype(dtype.compute(), out.name)?;
    out.require_shape(codes.array.shape(), codes.name)?;
    out.require_in_place()?;
    let grid = Grid::new(&kind, dtype.compute(), layout)?;
    let read = [&codes, &scale, &zero].into_iter().chain(grid.array());
    require_disjoint(&mut [&mut out], read)?;
    with_dtype!(dtype, T => {
        type C = <T as Element>::Compute;
        // SAFETY: as in `block_ranges`.
        let (codes, scale, zero) = unsafe { (codes.slice()?, scale.slice()?, zero.slice()?) };
        with_grid!(&grid, C, grid => {
            if !run(py, || core::within::<C, _>(grid, codes))? {
                return Err(PyValueError::new_err(format!(
                    "codes must be those of {} in {} bits, got others",
                    kind.0, kind.1
                )));
            }
            // SAFETY: as above.
            let out = unsafe { out.slice_mut::<T>()? };
            run(py, || core::dequantize(codes, layout, grid, scale, zero, out))
        })
    })
}

/// Writes `y`, what the codes of `x` stand for.
#[pyfunction]
pub fn fake_quantize(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    block: (usize, usize),
    kind: Kind<'_>,
    scale: &Bound<'_, PyAny>,
    zero: &Bound<'_, PyAny>,
    y: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let x = Array::new(x, Name("x", ""))?.contiguous()?;
    let dtype = x.float_dtype()?;
    let layout = layout(&x, block)?;
    let scale = of_blocks(scale, "scale", layout)?;
    scale.require_dtype(dtype.compute(), x.name)?;
    let zero = bytes(of_blocks(zero, "zero_point", layout)?)?;
    let mut y = written_like(y, "out", &x, dtype)?;
    let grid = Grid::new(&kind, dtype.compute(), layout)?;
    let read = [&x, &scale, &zero].into_iter().chain(grid.array());
    require_disjoint(&mut [&mut y], read)?;
    with_dtype!(dtype, T => {
        type C = <T as Element>::Compute;
        // SAFETY: as in `block_ranges`.
        let (x, y) = unsafe { (x.slice::<T>()?, y.slice_mut::<T>()?) };
        // SAFETY: as above.
        let (scale, zero) = unsafe { (scale.slice()?, zero.slice()?) };
        with_grid!(&grid, C, grid => {
            run(py, || core::fake_quantize(x, layout, grid, scale, zero, y))
        })
    })
}

/// Writes the gradients of `fake_quantize`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "called by one place in the package")]
pub fn fake_quantize_backward(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    dy: &Bound<'_, PyAny>,
    block: (usize, usize),
    kind: Kind<'_>,
    scale: &Bound<'_, PyAny>,
    zero: &Bound<'_, PyAny>,
    dx: &Bound<'_, PyAny>,
    dscale: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let x = Array::new(x, Name("x", ""))?.contiguous()?;
    let dtype = x.float_dtype()?;
    let layout = layout(&x, block)?;
    let dy = Array::new(dy, Name("dy", ""))?.contiguous()?;
    dy.require_dtype(dtype, x.name)?;
    dy.require_shape(x.array.shape(), x.name)?;
    let scale = of_blocks(scale, "scale", layout)?;
    let zero = bytes(of_blocks(zero, "zero_point", layout)?)?;
    let mut dscale = of_blocks(dscale, "dscale", layout)?;
    scale.require_dtype(dtype.compute(), x.name)?;
    dscale.require_dtype(dtype.compute(), x.name)?;
    let mut dx = written_like(dx, "out", &x, dtype)?;
    let grid = Grid::new(&kind, dtype.compute(), layout)?;
    let read = [&x, &dy, &scale, &zero].into_iter().chain(grid.array());
    require_disjoint(&mut [&mut dx, &mut dscale], read)?;
    with_dtype!(dtype, T => {
        type C = <T as Element>::Compute;
        // SAFETY: as in `block_ranges`.
        let (x, dy, dx) = unsafe { (x.slice::<T>()?, dy.slice::<T>()?, dx.slice_mut::<T>()?) };
        // SAFETY: as above.
        let (scale, zero, ds) = unsafe { (scale.slice()?, zero.slice()?, dscale.slice_mut()?) };
        with_grid!(&grid, C, grid => run(py, || {
            core::fake_quantize_backward(x, dy, layout, grid, scale, zero, dx, ds);
        }))
    })
}

/// An array to write to, of the shape and dtype of another.
fn written_like<'py>(
    object: &Bound<'py, PyAny>,
    name: &'static str,
    x: &Array<'_, '_>,
    dtype: Dtype,
) -> PyResult<Array<'py, 'static>> {
    let array = Array::new(object, Name(name, ""))?;
    array.require_dtype(dtype, x.name)?;
    array.require_shape(x.array.shape(), x.name)?;
    array.require_in_place()?;
    Ok(array)
}

/// Writes the levels that k-means finds for each block; `x` is finite.
#[pyfunction]
pub fn kmeans(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    block: (usize, usize),
    keep_zero: bool,
    rounds: usize,
    levels: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let x = Array::new(x, Name("w", ""))?.contiguous()?;
    let dtype = x.float_dtype()?;
    let layout = layout(&x, block)?;
    let mut levels = Array::new(levels, Name("codebook", ""))?;
    levels.require_dtype(dtype.compute(), x.name)?;
    levels.require_in_place()?;
    require_disjoint(&mut [&mut levels], [&x])?;
    levels.require_ndim(2)?;
    let [blocks, count] = *levels.array.shape() else { unreachable!("two axes") };
    levels.require_shape(&[layout.blocks(), count.clamp(1, 256)], "the blocks")?;
    debug_assert_eq!(blocks, layout.blocks());
    with_dtype!(dtype, T => {
        // SAFETY: as in `block_ranges`.
        let (x, levels) = unsafe { (x.slice::<T>()?, levels.slice_mut()?) };
        run(py, || core::kmeans(x, layout, count, keep_zero, rounds, levels))
    })
}

/// Replaces weights by what their codes stand for, the later ones making up for the errors
/// of the earlier ones; returns whether all stayed numbers.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "called by one place in the package")]
pub fn gptq(
    py: Python<'_>,
    w: &Bound<'_, PyAny>,
    u: &Bound<'_, PyAny>,
    step: usize,
    block: (usize, usize),
    kind: Kind<'_>,
    find: bool,
    scale: &Bound<'_, PyAny>,
    zero: &Bound<'_, PyAny>,
    codes: &Bound<'_, PyAny>,
    removal: Option<Removal<'_>>,
) -> PyResult<bool> {
    let mut w = Array::new(w, Name("w", ""))?;
    w.require_element::<f64>()?;
    let layout = layout(&w, block)?;
    w.require_in_place()?;
    let columns = layout.columns();
    let u = Array::new(u, Name("u", ""))?;
    u.require_element::<f64>()?;
    u.require_contiguous()?;
    u.require_shape(&[columns * columns], "the inverse's factor")?;
    let mut scale = of_blocks(scale, "scale", layout)?;
    let dtype = scale.compute_dtype()?;
    let mut zero = bytes(of_blocks(zero, "zero_point", layout)?)?;
    let mut codes = bytes(Array::new(codes, Name("codes", ""))?)?;
    codes.require_shape(w.array.shape(), w.name)?;
    if step == 0 {
        return Err(PyValueError::new_err("block must be at least 1, got 0"));
    }
    let (height, width) = layout.block();
    if find && (height != 1 || !(step.is_multiple_of(width) || step >= columns)) {
        return Err(PyValueError::new_err(format!(
            "block must be a multiple of the {width} columns that share a scale, in one row, to \
             find scales, got {step}"
        )));
    }
    let mut mask = match &removal {
        None => None,
        Some((target, mask)) => {
            let mask = Array::new(mask, Name("mask", ""))?;
            mask.require_element::<bool>()?;
            mask.require_in_place()?;
            mask.require_shape(w.array.shape(), w.name)?;
            Some((crate::prune::removal(*target, columns, step)?, mask))
        }
    };
    let grid = Grid::new(&kind, dtype, layout)?;
    let mut written = vec![&mut w, &mut scale, &mut zero, &mut codes];
    written.extend(mask.as_mut().map(|(_, mask)| mask));
    require_disjoint(&mut written, [&u].into_iter().chain(grid.array()))?;
    with_compute!(dtype, C => {
        // SAFETY: as in `block_ranges`.
        let (w, u) = unsafe { (w.slice_mut::<f64>()?, u.slice::<f64>()?) };
        // SAFETY: as above.
        let (scale, zero, codes) =
            unsafe { (scale.slice_mut::<C>()?, zero.slice_mut()?, codes.slice_mut()?) };
        let removal = match &mut mask {
            None => None,
            // SAFETY: as above; False and True are the bytes 0 and 1.
            Some((target, mask)) => Some((*target, unsafe { mask.slice_mut::<u8>()? })),
        };
        with_grid!(&grid, C, grid => run(py, || {
            let out = core::Codes { scale, zero, codes };
            core::gptq(w, layout, u, step, grid, find, out, removal).is_ok()
        }))
    })
}
