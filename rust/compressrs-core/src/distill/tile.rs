//! Short rows, sixteen at a time.
//!
//! Vector instructions along a row of ten classes leave most of a register empty,
//! and each row pays for a maximum and a sum over all lanes. So short rows are
//! turned: lane `l` works on row `l`, and goes through its classes one by one.

use crate::element::Float;
use crate::lanes::max;

/// Rows of a tile.
pub const ROWS: usize = 16;

/// Longest row that goes by tiles.
pub const MAX_CLASSES: usize = 64;

/// Values of [`ROWS`] rows: class by class, and of each class row by row.
pub type Tile<C> = [[C; ROWS]; MAX_CLASSES];

/// A tile of zeros.
#[inline(always)]
pub fn tile<C: Float>() -> Tile<C> {
    [[C::zero(); ROWS]; MAX_CLASSES]
}

/// Fills a tile with up to [`ROWS`] rows; what is beyond them stays.
#[inline(always)]
pub fn load<C: Float>(rows: &[C], classes: usize, tile: &mut Tile<C>) {
    for (l, row) in rows.chunks_exact(classes).enumerate() {
        for (line, &x) in tile.iter_mut().zip(row) {
            line[l] = x;
        }
    }
}

/// Writes a tile to as many rows as there are.
#[inline(always)]
pub fn store<C: Float>(tile: &Tile<C>, classes: usize, rows: &mut [C]) {
    for (l, row) in rows.chunks_exact_mut(classes).enumerate() {
        for (line, x) in tile.iter().zip(row) {
            *x = line[l];
        }
    }
}

/// The largest of each row, NaN passed over; -inf if all is NaN.
#[inline(always)]
pub fn max_of<C: Float>(tile: &[[C; ROWS]]) -> [C; ROWS] {
    let mut top = [C::neg_infinity(); ROWS];
    for line in tile {
        for l in 0..ROWS {
            top[l] = max(top[l], line[l]);
        }
    }
    top
}
