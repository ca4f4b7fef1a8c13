//! The product of dense matrices, in an order of summation that depends on
//! nothing but their shape: each element is one chain of fused multiply-adds.

use std::ops::Range;

use crate::numeric::element::Float;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// Rows of the tile that is summed in registers.
const ROWS: usize = 4;

/// Bytes in a row of it: two registers of 512 bits, four of 256.
const WIDTH: usize = 128;

/// Products of a tile that are added up before the next one: what is read of `b` for them
/// stays in the first cache.
const DEPTH: usize = 256;

/// Multiply-adds worth a task of their own; see [`parallel::for_each`].
const GRAIN: usize = 512 * 1024;

/// Rows and columns that are turned at a time.
const SQUARE: usize = 32;

/// Elements worth packing by a task of their own.
const PACKED: usize = 64 * 1024;

/// A dense matrix: element `(i, j)` is `data[i * row_stride + j * column_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T: Float> Matrix<'a, T> {
    /// Rows one after another.
    ///
    /// # Panics
    /// If `data` is not of this size.
    pub fn row_major(data: &'a [T], rows: usize, columns: usize) -> Self {
        assert_eq!(data.len(), rows * columns);
        Matrix { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// A part of the matrix.
    ///
    /// # Panics
    /// If it reaches beyond the matrix.
    pub fn block(self, rows: Range<usize>, columns: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        assert!(columns.start <= columns.end && columns.end <= self.columns);
        let first = rows.start * self.row_stride + columns.start * self.column_stride;
        let data = if rows.is_empty() || columns.is_empty() { &[] } else { &self.data[first..] };
        Matrix { data, rows: rows.len(), columns: columns.len(), ..self }
    }

    /// The transpose; nothing moves.
    pub fn transposed(self) -> Self {
        Matrix {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Its elements, row by row.
    pub fn to_vec(self) -> Vec<T> {
        let mut elements = memory::with_capacity(memory::product(self.rows, self.columns));
        for i in 0..self.rows {
            elements.extend((0..self.columns).map(|j| self.at(i, j)));
        }
        elements
    }

    #[inline(always)]
    fn at(&self, i: usize, j: usize) -> T {
        self.data[i * self.row_stride + j * self.column_stride]
    }
}

/// `out = alpha a b + beta c`, where `(beta, c)` is `add`; `c` and `out` are in
/// row-major order.
///
/// # Panics
/// If the shapes do not fit.
pub fn multiply<T: Float>(
    alpha: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    add: Option<(T, &[T])>,
    out: &mut [T],
) {
    product(alpha, a, b, add, Part::All, out);
}

/// `out = alpha a a' + beta c`, where `(beta, c)` is `add`, and `c` is symmetric: the same
/// bits as of [`multiply`] in little more than half the time.
///
/// # Panics
/// If the shapes do not fit.
pub fn multiply_by_transpose<T: Float>(
    alpha: T,
    a: Matrix<'_, T>,
    add: Option<(T, &[T])>,
    out: &mut [T],
) {
    product(alpha, a, a.transposed(), add, Part::RightOfDiagonal, out);
    mirror(out, a.rows);
}

/// What of a product is computed.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    All,
    /// Tiles that reach the diagonal or are right of it.
    RightOfDiagonal,
}

fn product<T: Float>(
    alpha: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    add: Option<(T, &[T])>,
    part: Part,
    out: &mut [T],
) {
    if size_of::<T>() == 4 {
        by_tiles::<T, { WIDTH / 4 }>(alpha, a, b, add, part, out);
    } else {
        by_tiles::<T, { WIDTH / 8 }>(alpha, a, b, add, part, out);
    }
}

/// Copies what is right of the diagonal to the left of it.
fn mirror<T: Float>(out: &mut [T], n: usize) {
    // Square by square, so that what is read and what is written stay in the first cache.
    for top in (0..n).step_by(SQUARE) {
        for left in (0..=top).step_by(SQUARE) {
            for i in top..n.min(top + SQUARE) {
                for j in left..i.min(left + SQUARE) {
                    out[i * n + j] = out[j * n + i];
                }
            }
        }
    }
}

/// As [`product`], by tiles of so many columns.
fn by_tiles<T: Float, const COLUMNS: usize>(
    alpha: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    add: Option<(T, &[T])>,
    of: Part,
    out: &mut [T],
) {
    assert_eq!(a.columns, b.rows);
    assert_eq!(out.len(), a.rows * b.columns);
    assert!(add.is_none_or(|(_, c)| c.len() == out.len()));
    let (rows, inner, columns) = (a.rows, a.columns, b.columns);
    // Panels of `b`, each read from the first to the last byte.
    let panels = columns.div_ceil(COLUMNS);
    let mut packed = memory::zeroed::<[T; COLUMNS]>(memory::product(panels, inner));
    let lines = SharedMut::new(&mut packed);
    parallel::for_each(0..panels, PACKED.div_ceil((inner * COLUMNS).max(1)), 1, |part| {
        for panel in part {
            // SAFETY: `packed` is borrowed until the loop ends; parts do not overlap.
            let lines = unsafe { lines.slice(panel * inner..(panel + 1) * inner) };
            let left = panel * COLUMNS;
            for (block, lines) in lines.chunks_mut(SQUARE).enumerate() {
                // Down the columns, as a transpose lies in memory; else either way will do.
                for l in 0..COLUMNS.min(columns - left) {
                    for (k, line) in lines.iter_mut().enumerate() {
                        line[l] = b.at(block * SQUARE + k, left + l);
                    }
                }
            }
        }
    });
    let out = SharedMut::new(out);
    let grain = GRAIN.div_ceil((inner * columns).max(1)).next_multiple_of(ROWS);
    parallel::for_each(0..rows, grain, ROWS, |part| {
        // SAFETY: `out` is borrowed until the loop ends; parts do not overlap.
        let out = unsafe { out.slice(part.start * columns..part.end * columns) };
        let add = add.map(|(beta, c)| (beta, &c[part.start * columns..part.end * columns]));
        let diagonal = if of == Part::All { None } else { Some(part.start) };
        let a = a.block(part, 0..inner);
        simd::dispatch(Strip { alpha, a, packed: &packed, add, out, columns, diagonal });
    });
}

/// Rows of a product.
struct Strip<'a, T, const COLUMNS: usize> {
    alpha: T,
    a: Matrix<'a, T>,
    packed: &'a [[T; COLUMNS]],
    add: Option<(T, &'a [T])>,
    out: &'a mut [T],
    columns: usize,
    /// Where the diagonal is in the first row, if only what is right of it counts.
    diagonal: Option<usize>,
}

impl<T: Float, const COLUMNS: usize> Kernel for Strip<'_, T, COLUMNS> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Strip { alpha, a, packed, add, out, columns, diagonal } = self;
        let (rows, inner) = (a.rows, a.columns);
        let mut lines = memory::zeroed::<[T; ROWS]>(rows.div_ceil(ROWS) * DEPTH.min(inner));
        // Once without a product, too, for what is added.
        for first in (0..inner.max(1)).step_by(DEPTH) {
            let depth = DEPTH.min(inner - first);
            let is_last = first + depth == inner;
            for tile in 0..rows.div_ceil(ROWS) {
                for k in 0..depth {
                    // Rows beyond the last are computed, but not stored.
                    lines[tile * depth + k] =
                        std::array::from_fn(|r| a.at((tile * ROWS + r).min(rows - 1), first + k));
                }
            }
            for panel in 0..columns.div_ceil(COLUMNS) {
                let b = &packed[panel * inner + first..][..depth];
                let left = panel * COLUMNS;
                let width = COLUMNS.min(columns - left);
                for tile in 0..rows.div_ceil(ROWS) {
                    let top = tile * ROWS;
                    if diagonal.is_some_and(|diagonal| left + COLUMNS <= diagonal + top) {
                        break;
                    }
                    let height = ROWS.min(rows - top);
                    let mut sums = [[T::zero(); COLUMNS]; ROWS];
                    if first > 0 {
                        // Goes on where the last depth ended, so that the chain is one.
                        for (r, sums) in sums.iter_mut().enumerate().take(height) {
                            let at = (top + r) * columns + left;
                            sums[..width].copy_from_slice(&out[at..at + width]);
                        }
                    }
                    chain(&lines[tile * depth..(tile + 1) * depth], b, &mut sums);
                    for (r, sums) in sums.iter().enumerate().take(height) {
                        let at = (top + r) * columns + left;
                        for l in 0..width {
                            let sum = sums[l];
                            out[at + l] = match add {
                                _ if !is_last => sum,
                                Some((beta, c)) => beta.mul_add(c[at + l], alpha * sum),
                                None => alpha * sum,
                            };
                        }
                    }
                }
            }
        }
    }
}

/// Adds the products of a tile, one after another.
#[inline(always)]
fn chain<T: Float, const COLUMNS: usize>(
    a: &[[T; ROWS]],
    b: &[[T; COLUMNS]],
    sums: &mut [[T; COLUMNS]; ROWS],
) {
    // In registers, where `sums` itself would be in memory.
    let mut tile = *sums;
    for (a, b) in a.iter().zip(b) {
        for r in 0..ROWS {
            for l in 0..COLUMNS {
                tile[r][l] = a[r].mul_add(b[l], tile[r][l]);
            }
        }
    }
    *sums = tile;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_agree_with_triple_loops() {
        let value = |i: usize| ((i * 7 + 3) % 13) as f64 - 6.0;
        for (m, k, n) in
            [(0, 3, 2), (3, 0, 2), (1, 1, 1), (5, 3, 17), (4, 40, 16), (33, 20, 50), (9, 600, 18)]
        {
            let a: Vec<f64> = (0..m * k).map(value).collect();
            let b: Vec<f64> = (0..k * n).map(|i| value(i + 5)).collect();
            let c: Vec<f64> = (0..m * n).map(|i| value(i + 9)).collect();
            let truth: Vec<f64> = (0..m * n)
                .map(|i| {
                    let dot: f64 = (0..k).map(|l| a[i / n * k + l] * b[l * n + i % n]).sum();
                    2.0 * dot - 3.0 * c[i]
                })
                .collect();
            let mut out = vec![f64::NAN; m * n];
            let (a, b) = (Matrix::row_major(&a, m, k), Matrix::row_major(&b, k, n));
            multiply(2.0, a, b, Some((-3.0, &c)), &mut out);
            assert_eq!(out, truth, "{m} {k} {n}");
            // The transposes, multiplied the other way round.
            let mut transposed = vec![f64::NAN; m * n];
            multiply(1.0, b.transposed(), a.transposed(), None, &mut transposed);
            for i in 0..m * n {
                let product = transposed[i % n * m + i / n];
                assert_eq!(2.0 * product - 3.0 * c[i], truth[i]);
            }
            let (mut square, mut half) = (vec![f64::NAN; m * m], vec![f64::NAN; m * m]);
            multiply(2.0, a, a.transposed(), None, &mut square);
            multiply_by_transpose(2.0, a, None, &mut half);
            assert_eq!(half, square);
            multiply_by_transpose(2.0, a, Some((-3.0, &square)), &mut half);
            assert!(half.iter().zip(&square).all(|(half, x)| *half == -2.0 * x));
        }
    }
}
