//! Rows of a table, and the gradient that they leave there.

use crate::numeric::element::Float;
use crate::runtime::parallel::{self, SharedMut};

/// Adds each row of `dy` to the row of `out` that its id names, in the order of the ids.
///
/// # Panics
/// If lengths disagree, or an id names no row, unless rows are empty.
pub fn add_rows<T: Float>(ids: &[usize], dy: &[T], width: usize, out: &mut [T]) {
    assert_eq!(dy.len(), ids.len() * width);
    if width == 0 {
        assert!(out.is_empty());
        return;
    }
    let rows = out.len() / width;
    assert!(ids.iter().all(|&id| id < rows) && out.len() == rows * width);
    let out = SharedMut::new(out);
    // Parts are columns, so that no two threads meet in a row.
    let grain = super::GRAIN_ELEMENTS.div_ceil(ids.len().max(1));
    parallel::for_each(0..width, grain, 16, |part| {
        for (row, &id) in ids.iter().enumerate() {
            let to = id * width + part.start..id * width + part.end;
            // SAFETY: parts do not overlap.
            let out = unsafe { out.slice(to) };
            for (sum, x) in out.iter_mut().zip(&dy[row * width..][part.clone()]) {
                *sum += *x;
            }
        }
    });
}
