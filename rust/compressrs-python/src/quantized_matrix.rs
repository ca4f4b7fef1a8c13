//! Products with quantized weights.

use compressrs_core::quantize::product::{
    self as core, Activation, Columns, Epilogue, MAX_GROUP, Meaning, Output, Rows, Weights,
};
use compressrs_core::runtime::memory;
use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;

use crate::arguments::{Name, Shape};
use crate::buffers::{Array, Kept};
use crate::dtype::Compute;
use crate::errors::{guard, run};
use crate::overlap::{new_array, require_disjoint};

/// An array of bytes, as signed or unsigned integers.
enum Bytes<'a> {
    Signed(&'a [i8]),
    Unsigned(&'a [u8]),
}

impl<'a> Bytes<'a> {
    /// # Safety
    /// As of [`Array::slice`].
    unsafe fn of(array: &'a Array<'_, '_>) -> PyResult<Bytes<'a>> {
        // SAFETY: as the caller guarantees.
        unsafe {
            if array.require_element::<i8>().is_ok() {
                Ok(Bytes::Signed(array.slice()?))
            } else if array.require_element::<u8>().is_ok() {
                Ok(Bytes::Unsigned(array.slice()?))
            } else {
                let got = array.array.dtype().to_string();
                Err(array.name.type_error("have dtype int8 or uint8", got))
            }
        }
    }

    /// Whether all are codes of `bits` bits.
    fn fit(&self, bits: u32) -> bool {
        match self {
            Bytes::Signed(x) => x.iter().all(|x| x >> (bits - 1) == 0 || x >> (bits - 1) == -1),
            Bytes::Unsigned(x) => x.iter().all(|x| bits == 8 || x >> bits == 0),
        }
    }

    /// Elements from `first` on, as unsigned numbers of `bits` bits.
    fn unsigned(&self, first: usize, bits: u32, to: &mut [u8]) {
        let (mask, half) = (u8::MAX >> (8 - bits), 1 << (bits - 1));
        match self {
            Bytes::Signed(x) => to.iter_mut().zip(&x[first..]).for_each(|(to, x)| {
                *to = x.cast_unsigned().wrapping_add(half) & mask;
            }),
            Bytes::Unsigned(x) => {
                to.iter_mut().zip(&x[first..]).for_each(|(to, x)| *to = x & mask);
            }
        }
    }
}

fn memory_error(error: std::collections::TryReserveError) -> PyErr {
    PyMemoryError::new_err(error.to_string())
}

fn range(signed: bool, bits: u32) -> String {
    if signed {
        format!("from {} to {}", -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        format!("from 0 to {}", (1 << bits) - 1)
    }
}

/// Codes, zero points (none where a table says what codes stand for), table.
type Parts<'py> = (Bound<'py, PyAny>, Option<Bound<'py, PyAny>>, Option<Bound<'py, PyAny>>);

/// A packed copy of a matrix of weights, which Python code cannot write to.
#[pyclass(frozen, module = "compressrs._core")]
pub struct PackedWeights {
    weights: Weights,
    bits: u32,
    signed: bool,
}

impl PackedWeights {
    /// The weights, which nobody changes.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }
}

#[pymethods]
impl PackedWeights {
    /// Packs codes [out, in] of `bits` bits, with scales and zero points [out, groups].
    #[new]
    fn new(
        py: Python<'_>,
        parts: Parts<'_>,
        scale: &Bound<'_, PyAny>,
        bits: u32,
        group: usize,
    ) -> PyResult<Self> {
        if !(2..=8).contains(&bits) {
            return Err(PyValueError::new_err(format!("bits must be from 2 to 8, got {bits}")));
        }
        let codes = Array::new(&parts.0, Name("codes", ""))?;
        codes.require_ndim(2)?;
        let (channels, k) = (codes.array.shape()[0], codes.array.shape()[1]);
        let codes = codes.contiguous()?;
        // Two kernels look at it, between which others could resize it.
        let _pin = Kept::new(&codes.array)?;
        // SAFETY: it is not moved; what another thread writes meanwhile is masked.
        let bytes = unsafe { Bytes::of(&codes)? };
        let signed = matches!(bytes, Bytes::Signed(_));
        if !run(py, || bytes.fit(bits))? {
            let need = format!("be {} for {bits} bits", range(signed, bits));
            return Err(codes.name.value_error(need, "others"));
        }
        if group == 0 || group > MAX_GROUP {
            return Err(PyValueError::new_err(format!(
                "group_size must be from 1 to {MAX_GROUP}, got {group}"
            )));
        }
        let columns = Columns::new(k, group, bits <= 4);
        let shape = [channels, columns.groups()];
        let scale = Array::new(scale, Name("scale", ""))?;
        scale.require_dtype(Compute::F32, "the products")?;
        scale.require_shape(&shape, "codes with this group_size")?;
        let scale = scale.contiguous()?;
        // SAFETY: the GIL is held; copied, and looked at in the copy.
        let scales = unsafe { scale.slice::<f32>()? };
        let scales = guard(|| memory::copied(scales))?;
        if scales.iter().any(|scale| !scale.is_finite()) {
            return Err(scale.name.value_error("be finite", "NaN or infinity"));
        }
        let table = match parts.2 {
            None => None,
            Some(table) => {
                let table = Array::new(&table, Name("levels", ""))?;
                table.require_dtype(Compute::F32, "the products")?;
                table.require_shape(&[1 << bits], "the codes")?;
                table.require_contiguous()?;
                if signed || bits > 4 {
                    let need = "belong to unsigned codes of up to 4 bits";
                    return Err(table.name.value_error(need, format_args!("{bits} bits")));
                }
                // SAFETY: the GIL is held; copied.
                let from = unsafe { table.slice::<f32>()? };
                let mut all = [0.0; 16];
                all[..from.len()].copy_from_slice(from);
                Some(all)
            }
        };
        let zeros: Option<Vec<u8>> = match parts.1 {
            None => None,
            Some(zeros) => {
                let zeros = Array::new(&zeros, Name("zero_point", ""))?;
                zeros.require_shape(&shape, "codes with this group_size")?;
                let zeros = zeros.contiguous()?;
                // SAFETY: the GIL is held; what another thread writes meanwhile is masked.
                let bytes = unsafe { Bytes::of(&zeros)? };
                if matches!(bytes, Bytes::Signed(_)) != signed {
                    let got = zeros.array.dtype().to_string();
                    return Err(zeros.name.type_error("have the dtype of codes", got));
                }
                if !bytes.fit(bits) {
                    let need = format!("be {} for {bits} bits", range(signed, bits));
                    return Err(zeros.name.value_error(need, "others"));
                }
                let mut to = guard(|| memory::zeroed::<u8>(zeros.array.len()))?;
                bytes.unsigned(0, bits, &mut to);
                Some(to)
            }
        };
        let meaning = match (&table, &zeros) {
            (Some(table), _) => Meaning::Table(*table),
            // One for all costs nothing.
            (None, Some(zeros)) if zeros.iter().any(|zero| *zero != zeros[0]) => {
                Meaning::Zeros(zeros)
            }
            (None, Some(zeros)) => Meaning::Zero(zeros.first().copied().unwrap_or(0)),
            (None, None) => Meaning::Zero(if signed { 1 << (bits - 1) } else { 0 }),
        };
        let row = |n: usize, to: &mut [u8]| bytes.unsigned(n * k, bits, to);
        let weights = run(py, || Weights::pack(channels, columns, row, meaning, Some(&scales)))?
            .map_err(memory_error)?;
        Ok(PackedWeights { weights, bits, signed })
    }

    /// Bytes of codes, scales and zero points.
    #[getter]
    fn nbytes(&self) -> usize {
        self.weights.nbytes()
    }

    /// The codes, of the dtype they were packed from.
    fn codes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let w = &self.weights;
        let k = w.columns().count;
        let shape = [w.channels(), k];
        let low = if self.signed { 1 << (self.bits - 1) } else { 0u8 };
        let mut codes =
            if self.signed { new_array::<i8>(py, &shape)? } else { new_array::<u8>(py, &shape)? };
        // SAFETY: one byte an element, and nothing else knows it.
        let to = unsafe { codes.slice_mut::<u8>()? };
        run(py, || {
            for (n, row) in to.chunks_exact_mut(k.max(1)).enumerate() {
                w.row(n, row);
                row.iter_mut().for_each(|to| *to = to.wrapping_sub(low));
            }
        })?;
        Ok(codes.array.into_any())
    }

    /// The scales [out, groups].
    fn scale<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let w = &self.weights;
        let groups = w.columns().groups();
        let mut scale = new_array::<f32>(py, &[w.channels(), groups])?;
        // SAFETY: nothing else knows it.
        let to = unsafe { scale.slice_mut::<f32>()? };
        for (at, to) in to.iter_mut().enumerate() {
            *to = w.scale(at / groups, at % groups);
        }
        Ok(scale.array.into_any())
    }

    /// The zero points [out, groups], of the dtype of the codes.
    fn zero_point<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let w = &self.weights;
        let groups = w.columns().groups();
        let low = if self.signed { 1 << (self.bits - 1) } else { 0 };
        let mut zeros = new_array::<u8>(py, &[w.channels(), groups])?;
        // SAFETY: nothing else knows it.
        let to = unsafe { zeros.slice_mut::<u8>()? };
        for (at, to) in to.iter_mut().enumerate() {
            *to = w.zero(at / groups, at % groups).wrapping_sub(low);
        }
        let zeros = zeros.array.into_any();
        if self.signed { zeros.call_method1("view", ("int8",)) } else { Ok(zeros) }
    }

    /// `out = activation(x w' + bias)`. Numbers are quantized row by row if `codes`; `x` may
    /// also be codes, with the scales of its rows. An output in codes has a scale and a
    /// zero point.
    #[expect(clippy::too_many_arguments, reason = "a product and all that may follow it")]
    fn linear(
        &self,
        py: Python<'_>,
        x: &Bound<'_, PyAny>,
        codes: bool,
        input_scale: Option<Bound<'_, PyAny>>,
        bias: Option<Bound<'_, PyAny>>,
        activation: &str,
        out: &Bound<'_, PyAny>,
        requantize: Option<(f32, i32)>,
    ) -> PyResult<()> {
        let w = &self.weights;
        let (channels, k) = (w.channels(), w.columns().count);
        let x = Array::new(x, Name("x", ""))?;
        x.require_ndim(2)?;
        let rows = x.array.shape()[0];
        if x.array.shape()[1] != k {
            let need = format!("have {k} columns like the weights");
            return Err(x.name.value_error(need, format_args!("shape {}", Shape(x.array.shape()))));
        }
        let activation = match activation {
            "none" => Activation::None,
            "relu" => Activation::Relu,
            "gelu" => Activation::Gelu,
            _ => return Err(PyValueError::new_err(format!("no activation {activation:?}"))),
        };
        let of_rows =
            input_scale.map(|scale| of_length(&scale, "input_scale", rows)).transpose()?;
        match &of_rows {
            None => x.require_dtype(Compute::F32, "the products")?,
            Some(_) => x.require_element::<i8>()?,
        }
        let bias = bias.map(|bias| of_length(&bias, "bias", channels)).transpose()?;
        let mut out = Array::new(out, Name("out", ""))?;
        match requantize {
            None => out.require_dtype(Compute::F32, "the products")?,
            Some(_) => out.require_element::<i8>()?,
        }
        out.require_shape(&[rows, channels], "the product")?;
        out.require_in_place()?;
        let x = x.contiguous()?;
        let read = [&x].into_iter().chain(&bias).chain(&of_rows);
        require_disjoint(&mut [&mut out], read)?;
        // Outputs in codes take two kernels, between which others could resize an array.
        let pins = [Some(&x), bias.as_ref(), of_rows.as_ref(), Some(&out)].into_iter().flatten();
        let _pins = pins.map(|array| Kept::new(&array.array)).collect::<PyResult<Vec<_>>>()?;
        // SAFETY: they are not moved, and `out` shares nothing with the others.
        let (bias, given) = unsafe {
            (
                bias.as_ref().map(|bias| bias.slice::<f32>()).transpose()?,
                of_rows.as_ref().map(|s| s.slice::<f32>()).transpose()?,
            )
        };
        let epilogue = Epilogue { bias, activation };
        if requantize.is_some() {
            let is_finite = |x: &[f32]| x.iter().all(|x| x.is_finite());
            let numbers: &[f32] = match given {
                // SAFETY: as above.
                None => unsafe { x.slice()? },
                Some(_) => &[],
            };
            if !run(py, || is_finite(numbers))? {
                let need = "be finite for an output in codes";
                return Err(x.name.value_error(need, "NaN or infinity"));
            }
            if !bias.is_none_or(is_finite) {
                return Err(PyValueError::new_err(
                    "bias must be finite for an output in codes, got NaN or infinity",
                ));
            }
        }
        // SAFETY: as above.
        let output = unsafe {
            match requantize {
                None => Output::Numbers(out.slice_mut()?),
                Some((scale, zero)) => Output::Codes(out.slice_mut()?, scale, zero),
            }
        };
        // SAFETY: as above.
        unsafe {
            if let Some(given) = given {
                let x = Rows::Codes(x.slice()?, given);
                run(py, || core::multiply(x, rows, w, epilogue, output))
            } else if codes {
                let x = Rows::Numbers(x.slice()?);
                run(py, || core::multiply(x, rows, w, epilogue, output))
            } else {
                let x = x.slice()?;
                run(py, || core::multiply_float(x, rows, w, epilogue, output))
            }
        }
    }
}

/// An array of one axis of float32, one for each row or channel.
fn of_length<'py, 'n>(
    object: &Bound<'py, PyAny>,
    name: &'n str,
    len: usize,
) -> PyResult<Array<'py, 'n>> {
    let array = Array::new(object, Name(name, ""))?;
    array.require_dtype(Compute::F32, "the products")?;
    array.require_shape(&[len], "the product")?;
    array.contiguous()
}

/// `out = a b` of bytes, in 32-bit integers.
#[pyfunction]
pub fn matmul_integer(
    py: Python<'_>,
    a: &Bound<'_, PyAny>,
    b: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (a, b) = (Array::new(a, Name("a", ""))?, Array::new(b, Name("b", ""))?);
    a.require_ndim(2)?;
    b.require_ndim(2)?;
    let (rows, k, channels) = (a.array.shape()[0], a.array.shape()[1], b.array.shape()[1]);
    b.require_shape(&[k, channels], "a factor of a")?;
    let mut out = Array::new(out, Name("out", ""))?;
    out.require_element::<i32>()?;
    out.require_shape(&[rows, channels], "the product")?;
    out.require_in_place()?;
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    require_disjoint(&mut [&mut out], [&a, &b])?;
    // SAFETY: the GIL is held, and nothing here writes to them.
    let (x, w) = unsafe { (Bytes::of(&a)?, Bytes::of(&b)?) };
    let largest = |bytes: &Bytes<'_>| if matches!(bytes, Bytes::Signed(_)) { 128 } else { 255 };
    let limit = i32::MAX as usize / (largest(&x) * largest(&w));
    if k > limit {
        return Err(PyValueError::new_err(format!(
            "a must have at most {limit} columns, so that sums fit int32, got {k}"
        )));
    }
    // SAFETY: the GIL is held; nothing else of this call uses it.
    let out = unsafe { out.slice_mut::<i32>()? };
    let columns = Columns::new(k, k.clamp(1, MAX_GROUP), false);
    run(py, || {
        // Rows of the packed matrix are columns of `b`.
        let (signed, unsigned);
        let columns_of_b = match w {
            Bytes::Signed(w) => {
                signed = core::transposed(w, k, channels)?;
                Bytes::Signed(&signed)
            }
            Bytes::Unsigned(w) => {
                unsigned = core::transposed(w, k, channels)?;
                Bytes::Unsigned(&unsigned)
            }
        };
        let row = |n: usize, to: &mut [u8]| columns_of_b.unsigned(n * k, 8, to);
        let zero = if matches!(w, Bytes::Signed(_)) { 128 } else { 0 };
        let weights = Weights::pack(channels, columns, row, Meaning::Zero(zero), None)?;
        match x {
            Bytes::Signed(x) => {
                let out = Output::Integers(out, None);
                core::multiply(Rows::Signed(x), rows, &weights, Epilogue::default(), out);
            }
            Bytes::Unsigned(x) => {
                let add = weights.sums_of_codes(128)?;
                let out = Output::Integers(out, Some(&add));
                core::multiply(Rows::Unsigned(x), rows, &weights, Epilogue::default(), out);
            }
        }
        Ok(())
    })?
    .map_err(memory_error)
}
