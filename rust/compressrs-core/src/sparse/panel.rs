//! Dense matrices in panels of columns, and these in tiles of rows.

use std::ops::Range;

use super::csr::{Index, Pattern};
use super::dense::Rows;
use crate::linalg::matrix::Matrix;
use crate::numeric::element::Float;

/// Bytes of a tile: the least, which stays in the first level of cache, and the most,
/// which stays in the second.
const TILE_BYTES: Range<usize> = 24 * 1024..384 * 1024;

/// Bytes that one row of the sparse matrix reads of a tile, so that it is worth while to
/// begin with the row once more.
const ENOUGH: usize = 5 * 1024;

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
pub(super) fn panels<T: Float>(x: Matrix<'_, T>, widest: usize, pack: bool) -> Vec<Panel<'_, T>> {
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
        let rows = x.block(0..x.rows(), left..left + width).to_rows(padded, pack);
        panels.push(Panel { rows, left, width, padded });
        left += width;
    }
    panels
}

/// How many columns of the pattern make a tile of a dense matrix that has so many bytes
/// for each of them.
///
/// Sums depend on it, so it must not depend on what part of the matrix a task has.
#[inline(always)]
pub(super) fn tile_height<I: Index>(pattern: Pattern<'_, I>, bytes: usize) -> usize {
    let places =
        pattern.rows().saturating_mul(pattern.columns()).div_ceil(pattern.entries().max(1));
    let tile = TILE_BYTES.start.max(ENOUGH.saturating_mul(places));
    if tile > TILE_BYTES.end { pattern.columns() } else { tile.div_ceil(bytes.max(1)) }
}
