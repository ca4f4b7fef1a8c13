//! Dense matrices in panels of columns.

use super::dense::{Dense, Rows};
use crate::element::Float;

/// A part of the columns of a dense matrix.
pub(super) struct Panel<'a, T: Float> {
    /// What is in it.
    pub rows: Rows<'a, T>,
    /// The first of the columns.
    pub left: usize,
    /// Number of columns.
    pub width: usize,
    /// Number of columns with those that fill it up.
    pub padded: usize,
}

/// Cuts a matrix into panels of `widest`, or 128, 64 or 32 bytes, or of one column if it
/// has but one. `pack` copies what is not aligned to the lines of the cache.
pub(super) fn panels<T: Float>(x: Dense<'_, T>, widest: usize, pack: bool) -> Vec<Panel<'_, T>> {
    let mut panels = Vec::new();
    let mut left = 0;
    while left < x.columns() {
        let rest = x.columns() - left;
        let padded = if x.columns() == 1 {
            1
        } else {
            // The widest that is at least three quarters full.
            let mut padded = widest / size_of::<T>();
            while padded > 32 / size_of::<T>() && 4 * rest < 3 * padded {
                padded /= 2;
            }
            padded
        };
        let width = rest.min(padded);
        let rows = x.columns_range(left..left + width).to_rows(padded, pack);
        panels.push(Panel { rows, left, width, padded });
        left += width;
    }
    panels
}
