//! Coded streams of checkpoints: planes of bytes, positions, checksums.

use compressrs_core::codec::planes::{self, Elements};
use compressrs_core::codec::{Damaged, positions};
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use xxhash_rust::xxh3::Xxh3Default;

use crate::arguments::Name;
use crate::buffers::Array;
use crate::errors::run;
use crate::overlap::require_disjoint;

/// An array of bytes without gaps.
fn bytes<'py, 'n>(object: &Bound<'py, PyAny>, name: &'n str) -> PyResult<Array<'py, 'n>> {
    let array = Array::new(object, Name(name, ""))?;
    array.require_element::<u8>()?;
    array.require_contiguous()?;
    Ok(array)
}

fn elements(width: usize, rotate: bool) -> PyResult<Elements> {
    Elements::new(width, rotate)
        .ok_or_else(|| PyValueError::new_err(format!("width must be 1, 2, 4 or 8, got {width}")))
}

fn require_whole(array: &Array<'_, '_>, width: usize) -> PyResult<()> {
    let len = array.array.len();
    if len.is_multiple_of(width) {
        return Ok(());
    }
    Err(array.name.value_error(format_args!("be elements of {width} bytes"), format_args!("{len}")))
}

fn damaged(reason: Damaged) -> PyErr {
    PyValueError::new_err(format!("the stream is damaged: {reason}"))
}

/// The parts, one after the other, as bytes.
fn joined<'py>(py: Python<'py>, parts: &[Vec<u8>]) -> PyResult<Bound<'py, PyBytes>> {
    PyBytes::new_with(py, parts.iter().map(Vec::len).sum(), |mut out| {
        for part in parts {
            let (here, rest) = out.split_at_mut(part.len());
            here.copy_from_slice(part);
            out = rest;
        }
        Ok(())
    })
}

/// The stream of elements of `width` bytes, split into planes of bytes.
#[pyfunction]
pub fn encode_planes<'py>(
    py: Python<'py>,
    data: &Bound<'py, PyAny>,
    width: usize,
    rotate: bool,
) -> PyResult<Bound<'py, PyBytes>> {
    let elements = elements(width, rotate)?;
    let data = bytes(data, "data")?;
    require_whole(&data, width)?;
    // SAFETY: the GIL is held; the encoder copies before it looks twice.
    let data = unsafe { data.slice::<u8>()? };
    let parts = run(py, || planes::encode(elements, data))?;
    joined(py, &parts)
}

/// Decodes what `encode_planes` returned to `out`, all of it.
#[pyfunction]
pub fn decode_planes(
    py: Python<'_>,
    stream: &Bound<'_, PyAny>,
    width: usize,
    rotate: bool,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let elements = elements(width, rotate)?;
    let (stream, mut out) = (bytes(stream, "stream")?, bytes(out, "out")?);
    require_whole(&out, width)?;
    require_disjoint(&mut [&mut out], [&stream])?;
    // SAFETY: the GIL is held; nothing else of this call uses `out`. The decoder checks where
    // it reads against the lengths, whatever the bytes say.
    let (stream, out) = unsafe { (stream.slice::<u8>()?, out.slice_mut::<u8>()?) };
    run(py, || planes::decode(elements, stream, out))?.map_err(damaged)
}

/// Runs `$body` with `$T` the unsigned type of an array's elements.
macro_rules! with_unsigned {
    ($array:expr, $T:ident => $body:expr) => {
        if $array.require_element::<u8>().is_ok() {
            type $T = u8;
            $body
        } else if $array.require_element::<u16>().is_ok() {
            type $T = u16;
            $body
        } else if $array.require_element::<u32>().is_ok() {
            type $T = u32;
            $body
        } else {
            $array.require_element::<u64>()?;
            type $T = u64;
            $body
        }
    };
}

/// Bytes of unsigned numbers.
fn as_bytes<T: positions::Element>(values: &[T]) -> &[u8] {
    // SAFETY: the elements are unsigned numbers without padding; any byte is a u8.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Where `x` is not zero, as bits or as gaps, and the values there, both as bytes.
#[pyfunction]
pub fn split_positions<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    gaps: bool,
) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
    let x = Array::new(x, Name("x", ""))?;
    x.require_contiguous()?;
    with_unsigned!(x, T => {
        // SAFETY: the GIL is held; each element is read by itself.
        let x = unsafe { x.slice::<T>()? };
        let split = || {
            let (mut places, mut values) = (Vec::new(), Vec::new());
            values.try_reserve_exact(positions::count(x))?;
            if gaps {
                places.try_reserve(positions::count(x) + x.len() / 255)?;
                positions::to_gaps(x, &mut places, &mut values);
            } else {
                places.try_reserve_exact(x.len().div_ceil(8))?;
                places.resize(x.len().div_ceil(8), 0);
                positions::to_bits(x, &mut places, &mut values);
            }
            Ok::<_, std::collections::TryReserveError>((places, values))
        };
        let (places, values) =
            run(py, split)?.map_err(|error| PyMemoryError::new_err(format!("x: {error}")))?;
        Ok((PyBytes::new(py, &places), PyBytes::new(py, as_bytes(&values))))
    })
}

/// Writes values to where bits or gaps say, and zeros elsewhere.
#[pyfunction]
pub fn merge_positions(
    py: Python<'_>,
    places: &Bound<'_, PyAny>,
    values: &Bound<'_, PyAny>,
    gaps: bool,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let places = bytes(places, "places")?;
    let values = Array::new(values, Name("values", ""))?;
    values.require_contiguous()?;
    let mut out = Array::new(out, Name("out", ""))?;
    out.require_in_place()?;
    require_disjoint(&mut [&mut out], [&places, &values])?;
    with_unsigned!(out, T => {
        values.require_element::<T>()?;
        // SAFETY: the GIL is held; nothing else of this call uses `out`. Each byte and each
        // value is read once, and where they lead to is checked.
        let (places, values, out) =
            unsafe { (places.slice::<u8>()?, values.slice::<T>()?, out.slice_mut::<T>()?) };
        let merge = || match gaps {
            true => positions::from_gaps(places, values, out),
            false => positions::from_bits(places, values, out),
        };
        run(py, merge)?.map_err(damaged)
    })
}

/// XXH3 of 64 bits over bytes that come in parts.
#[pyclass]
#[derive(Default)]
pub struct Checksum {
    state: Box<Xxh3Default>,
}

#[pymethods]
impl Checksum {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Adds bytes to those seen so far.
    fn update(&mut self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let data = bytes(data, "data")?;
        // SAFETY: the GIL is held.
        let data = unsafe { data.slice::<u8>()? };
        run(py, || self.state.update(data))
    }

    /// The checksum of the bytes seen so far.
    fn digest(&self) -> u64 {
        self.state.digest()
    }
}
