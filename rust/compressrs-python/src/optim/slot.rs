//! Parameters with their state and gradients, checked once.

use std::ops::Range;
use std::sync::atomic::AtomicUsize;

use compressrs_core::optim::{BLOCK, Rule, State, mask_bytes};
use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::rows::GivenRows;
use crate::arguments::Name;
use crate::buffers::{Array, Kept, Layout, data, require_unmasked};
use crate::dtype::Dtype;
use crate::storage::{RawBuffer, StorageFormat};

/// An array that was checked, and what it was then.
pub(super) struct Checked {
    pub kept: Kept,
    pub data: *mut u8,
    pub bytes: usize,
    pub layout: Layout,
}

// SAFETY: the pointer is used only in `step`, which checks that it is still the
// array's.
unsafe impl Send for Checked {}
// SAFETY: as above.
unsafe impl Sync for Checked {}

impl Checked {
    pub fn new(array: &Array<'_, '_>) -> PyResult<Self> {
        let layout = Layout::new(array);
        let bytes = array.memory().len();
        Ok(Checked { data: array.data(), bytes, layout, kept: Kept::new(&array.array)? })
    }

    pub fn len(&self) -> usize {
        self.layout.shape().iter().product()
    }

    /// Bytes of an element; 0 if there is none.
    pub fn itemsize(&self) -> usize {
        self.bytes.checked_div(self.len()).unwrap_or(0)
    }

    /// Its bytes.
    pub fn memory(&self) -> Range<usize> {
        let start = self.data as usize;
        start..start + self.bytes
    }

    pub fn raw(&self) -> RawBuffer {
        RawBuffer { data: self.data, len: self.len() }
    }

    /// Whether the array is still what it was when it was checked: arrays can be
    /// reshaped or locked behind our back.
    pub fn is_unchanged(&self, py: Python<'_>) -> bool {
        let array = self.kept.array.bind(py);
        data(array) == self.data && self.layout.fits(array)
    }
}

/// A parameter with all that belongs to it.
pub(super) struct Slot {
    /// What leads from `params` or `grads` to the tensor, as in `[0]['bias']`.
    pub path: String,
    pub dtype: Dtype,
    pub group: usize,
    pub param: Checked,
    pub storage: StorageFormat,
    pub states: Vec<State>,
    /// Of the states, and of what the parameter's precision needs.
    pub buffers: Vec<Checked>,
    pub mask: Option<Checked>,
    pub part: Part,
    /// The memory of a gradient that was found to overlap nothing, see [`memory_key`]. What
    /// it must not overlap never changes, so the next one there need not be looked up.
    pub disjoint: AtomicUsize,
}

impl Slot {
    pub fn shape(&self) -> &[usize] {
        self.param.layout.shape()
    }
}

/// Which part of a tensor a parameter is: optimizers of parts step as one of the tensors does.
#[derive(Clone, Copy)]
pub(super) struct Part {
    /// The tensor's number.
    pub tensor: usize,
    /// The element that the part begins with.
    pub start: usize,
    /// The tensor's number of elements.
    pub elements: usize,
}

/// The arguments of one slot: its path, parameter, states, mask and group.
pub(super) type SlotArguments<'py> =
    (String, Bound<'py, PyAny>, Vec<Bound<'py, PyAny>>, Option<Bound<'py, PyAny>>, usize);

/// Number `index` of the slots, with the part of a tensor that it is, if it is not the whole.
pub(super) fn check_slot<'py>(
    index: usize,
    (path, param, buffers, mask, group): SlotArguments<'py>,
    part: Option<(usize, usize, usize)>,
    rules: &[(Box<dyn Rule>, StorageFormat)],
    mut owns: impl FnMut(std::ops::Range<usize>),
) -> PyResult<Slot> {
    let name = Name("params", &path);
    let param = Array::new(&param, name)?;
    let dtype = param.float_dtype()?;
    param.require_in_place()?;
    owns(param.memory());
    let (rule, storage) = rules.get(group).ok_or_else(|| PyValueError::new_err("no such group"))?;
    let states = rule.states(param.array.ndim());
    let len = param.array.len();
    let (tensor, start, elements) = part.unwrap_or((index, 0, len));
    let end = start.checked_add(len);
    if !start.is_multiple_of(BLOCK) || end.is_none_or(|end| end > elements) {
        let need =
            format_args!("begin at a multiple of {BLOCK} elements of its tensor and end in it");
        return Err(name.value_error(need, format_args!("{len} from {start} of {elements}")));
    }
    let part = Part { tensor, start, elements };
    let wanted = storage.buffers(&states, dtype, param.array.shape(), elements)?;
    if buffers.len() != wanted.len() {
        let (wanted, got) = (wanted.len(), buffers.len());
        return Err(PyValueError::new_err(format!("{name} needs {wanted} buffers, got {got}")));
    }
    let buffers = buffers
        .iter()
        .zip(&wanted)
        .map(|(buffer, wanted)| {
            let buffer = Array::new(buffer, Name("state of params", &path))?;
            buffer.require_dtype_name(wanted.dtype)?;
            buffer.require_shape(&wanted.shape, format_args!("{:?} of {name}", wanted.name))?;
            buffer.require_in_place()?;
            owns(buffer.memory());
            Checked::new(&buffer)
        })
        .collect::<PyResult<Vec<_>>>()?;
    let mask = mask
        .map(|mask| {
            let mask = Array::new(&mask, Name("masks", &path))?;
            mask.require_element::<u8>()?;
            mask.require_contiguous()?;
            mask.require_shape(&[mask_bytes(len)], format_args!("the bits of {name}"))?;
            Checked::new(&mask)
        })
        .transpose()?;
    let (param, storage) = (Checked::new(&param)?, *storage);
    let disjoint = AtomicUsize::new(0);
    let path = path.clone();
    Ok(Slot { path, dtype, group, param, storage, states, buffers, mask, part, disjoint })
}

impl Slot {
    /// A gradient as an array in C order, copied if it is not in that. This may run Python
    /// code, and give up the GIL.
    pub fn view<'py>(&self, grad: &Bound<'py, PyAny>) -> PyResult<Given<'py, '_>> {
        let (py, name) = (grad.py(), Name("grads", &self.path));
        match grad.cast::<PyUntypedArray>() {
            // The usual case, without the steps that find out what is wrong.
            Ok(array) if self.param.layout.fits(array) => {
                require_unmasked(array, name)?;
                return Ok(Given::Dense(Array::unchecked(array.clone(), name)));
            }
            Ok(_) => Array::new(grad, name)?,
            Err(_) => {
                if let Some(rows) = GivenRows::of(grad, &self.path)? {
                    return Ok(Given::Rows(rows));
                }
                // A tensor, perhaps.
                let as_gradient = py.import("compressrs._arrays")?.getattr("as_gradient")?;
                Array::new(&as_gradient.call1((grad, name.to_string()))?, name)?
            }
        }
        .contiguous()
        .map(Given::Dense)
    }

    /// Requires a gradient that a step could be taken with. This may run Python code, and give
    /// up the GIL.
    pub fn require_gradient(&self, grad: &Bound<'_, PyAny>) -> PyResult<()> {
        match self.view(grad)? {
            Given::Dense(grad) => self.require_fit(&grad),
            Given::Rows(rows) => rows.require_fit(self),
        }
    }

    /// Requires that a gradient in C order has a floating-point dtype and the parameter's
    /// shape.
    pub fn require_fit(&self, grad: &Array<'_, '_>) -> PyResult<()> {
        if self.param.layout.fits(&grad.array) {
            return Ok(());
        }
        // Once more, since it may have been changed since `view`.
        Array::new(grad.array.as_any(), grad.name)?;
        grad.float_dtype()?;
        grad.require_shape(self.shape(), Name("params", &self.path))?;
        grad.require_contiguous()
    }

    /// Requires that the rule's states are those that this slot has, stored so.
    pub fn require_states_of(&self, rule: &dyn Rule, storage: StorageFormat) -> PyResult<()> {
        let needed = rule.states(self.shape().len());
        if needed == self.states && storage == self.storage {
            return Ok(());
        }
        let names = |states: &[State]| states.iter().map(|s| s.name).collect::<Vec<_>>();
        let shapes = |states: &[State]| states.iter().map(|s| s.shape).collect::<Vec<_>>();
        if names(&needed) == names(&self.states) && shapes(&needed) != shapes(&self.states) {
            return Err(PyValueError::new_err(format!(
                "block_size of the group of params{} cannot be changed, since its state has the shape of blocks (make a new optimizer)",
                self.path,
            )));
        }
        if names(&needed) != names(&self.states) {
            return Err(PyValueError::new_err(format!(
                "the state of params{} does not fit the hyperparameters of its group, which now need {:?} \
                 (momentum, amsgrad and the like cannot be switched on or off; make a new optimizer)",
                self.path,
                names(&needed),
            )));
        }
        if storage != self.storage {
            return Err(PyValueError::new_err(format!(
                "state_dtype and precision of the group of params{} cannot be changed so \
                 (use convert_state)",
                self.path
            )));
        }
        Ok(())
    }
}

/// A gradient as it was given.
pub(super) enum Given<'py, 's> {
    /// Of the whole parameter, in C order.
    Dense(Array<'py, 's>),
    /// Of some of its rows.
    Rows(GivenRows<'py, 's>),
}

/// The name of an owner of a region.
pub(super) fn owner(slots: &[Slot], i: usize) -> String {
    slots.get(i).map_or_else(
        || String::from("the optimizer's count of steps"),
        |slot| format!("params{}", slot.path),
    )
}

/// One number for where a gradient of a given slot begins and, by the size of its elements,
/// ends.
pub(super) fn memory_key(grad: &Array<'_, '_>) -> usize {
    // Addresses of processes have 56 bits at most.
    (grad.data() as usize) << 8 | grad.array.dtype().itemsize()
}

/// A slice over the memory of an array, which may have none if it is empty.
///
/// # Safety
/// There are `len` aligned elements at `data`, which nothing else uses while the
/// slice is used.
pub(super) unsafe fn slice_mut<'a, T>(data: *mut T, len: usize) -> &'a mut [T] {
    if len == 0 {
        return &mut [];
    }
    // SAFETY: as the caller guarantees.
    unsafe { std::slice::from_raw_parts_mut(data, len) }
}
