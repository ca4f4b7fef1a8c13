//! What a call writes must share no memory with anything else that it reads or writes.
//!
//! Every function with an output goes through [`require_disjoint`] (or, where it is about
//! very many arrays, through [`Regions`]): an array that has not is refused by
//! [`Array::slice_mut`].

use std::ops::Range;

use numpy::Element;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arguments::Name;
use crate::buffers::{Array, zeros};

/// Memory that a call writes to, by owner, for finding overlaps.
pub struct Regions {
    /// Sorted, disjoint, not empty; with the number of the owner.
    sorted: Vec<(Range<usize>, usize)>,
}

impl Regions {
    /// Collects regions.
    ///
    /// # Errors
    /// The owners of two that overlap.
    pub fn new(
        regions: impl IntoIterator<Item = (Range<usize>, usize)>,
    ) -> Result<Self, (usize, usize)> {
        let mut sorted: Vec<_> = regions.into_iter().filter(|(r, _)| !r.is_empty()).collect();
        sorted.sort_by_key(|(r, _)| r.start);
        match sorted.windows(2).find(|w| w[0].0.end > w[1].0.start) {
            Some(w) => Err((w[0].1.min(w[1].1), w[0].1.max(w[1].1))),
            None => Ok(Regions { sorted }),
        }
    }

    /// The owner of a region that overlaps this one.
    pub fn overlapping(&self, region: &Range<usize>) -> Option<usize> {
        if region.is_empty() {
            return None;
        }
        let next = self.sorted.partition_point(|(r, _)| r.end <= region.start);
        self.sorted.get(next).filter(|(r, _)| r.start < region.end).map(|&(_, owner)| owner)
    }
}

/// Requires that each array of `written` may be written to, and shares no memory with
/// another one or with one of `read`; allows [`Array::slice_mut`] then.
///
/// `written` and `read` are all the arrays that the kernel gets. What was copied before
/// may be left out.
pub fn require_disjoint<'a, 'py: 'a, 'n: 'a>(
    written: &mut [&mut Array<'_, '_>],
    read: impl IntoIterator<Item = &'a Array<'py, 'n>>,
) -> PyResult<()> {
    for array in &*written {
        array.require_writable()?;
    }
    let share = |written: &Array<'_, '_>, other: &Array<'_, '_>| {
        PyValueError::new_err(format!(
            "{} and {} share memory, which is only allowed where nothing is written (pass a copy \
             of one)",
            written.name, other.name
        ))
    };
    let regions = Regions::new(written.iter().enumerate().map(|(i, array)| (array.memory(), i)))
        .map_err(|(a, b)| share(written[a], written[b]))?;
    for array in read {
        if let Some(owner) = regions.overlapping(&array.memory()) {
            return Err(share(written[owner], array));
        }
    }
    written.iter_mut().for_each(|array| array.grant());
    Ok(())
}

/// A new array of zeros, to write to.
///
/// # Errors
/// MemoryError.
pub fn new_array<'py, T: Element>(
    py: Python<'py>,
    shape: &[usize],
) -> PyResult<Array<'py, 'static>> {
    let mut array = Array::unchecked(zeros::<T>(py, shape)?, Name("out", ""));
    // Nothing else knows it.
    array.grant();
    Ok(array)
}
