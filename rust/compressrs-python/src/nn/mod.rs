//! Layers of neural networks, in files named as in the core; here is what they share.

pub mod activation;
pub mod attention;
pub mod conv;
pub mod embedding;
pub mod linear;
pub mod norm;
pub mod pool;
pub mod quantized;

use compressrs_core::nn::conv::Side;
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arguments::{Name, Shape};
use crate::buffers::Array;
use crate::dtype::Compute;

/// An array to read, with a copy in C order if it is not in that, and its dtype.
fn first<'py>(
    object: &Bound<'py, PyAny>,
    name: &'static str,
) -> PyResult<(Array<'py, 'static>, Compute)> {
    let array = Array::new(object, Name(name, ""))?;
    let dtype = array.compute_dtype()?;
    Ok((array.contiguous()?, dtype))
}

/// An array to read, of the same dtype as another.
fn read<'py>(
    object: &Bound<'py, PyAny>,
    name: &'static str,
    (dtype, like): (Compute, &str),
    shape: &[usize],
) -> PyResult<Array<'py, 'static>> {
    let array = Array::new(object, Name(name, ""))?;
    array.require_dtype(dtype, like)?;
    require_exact(&array, shape)?;
    array.contiguous()
}

/// An array to write to, of which it has to be found out what it overlaps.
fn written<'py>(
    object: &Bound<'py, PyAny>,
    name: &'static str,
    (dtype, like): (Compute, &str),
    shape: &[usize],
) -> PyResult<Array<'py, 'static>> {
    let array = Array::new(object, Name(name, ""))?;
    array.require_dtype(dtype, like)?;
    require_exact(&array, shape)?;
    array.require_in_place()?;
    Ok(array)
}

fn require_exact(array: &Array<'_, '_>, shape: &[usize]) -> PyResult<()> {
    if array.array.shape() == shape {
        return Ok(());
    }
    let need = format!("have shape {}", Shape(shape));
    Err(array.name.value_error(need, Shape(array.array.shape())))
}

fn pair(array: &Array<'_, '_>) -> [usize; 2] {
    [array.array.shape()[0], array.array.shape()[1]]
}

/// Height and width of something.
type Two = (usize, usize);

/// What a convolution, or a pooling, has along an axis.
fn side(
    (input, kernel): Two,
    (stride, padding, dilation): (usize, usize, usize),
) -> PyResult<(Side, usize)> {
    if stride == 0 || dilation == 0 {
        return Err(PyValueError::new_err("stride and dilation must be at least 1, got 0"));
    }
    let side = Side { input, kernel, stride, padding, dilation };
    match side.output() {
        Some(output) => Ok((side, output)),
        None => Err(PyValueError::new_err(format!(
            "x must be at least as large as the kernel: {input} places with padding {padding} \
             on each side for {kernel} places with dilation {dilation}"
        ))),
    }
}
