//! The product of dense matrices, in an order of summation that depends on
//! nothing but their shape: each element is one chain of fused multiply-adds.

use std::ops::Range;

use crate::element::Float;
use crate::parallel::{self, SharedMut};
use crate::simd::{self, Kernel};

/// Rows and columns of the block that is summed in registers.
const ROWS: usize = 4;
const COLUMNS: usize = 16;

/// Multiply-adds worth a task of their own; see [`parallel::for_each`].
const GRAIN: usize = 512 * 1024;

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
        let row = |i| (0..self.columns).map(move |j| (i, j));
        (0..self.rows).flat_map(row).map(|(i, j)| self.at(i, j)).collect()
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
    assert_eq!(a.columns, b.rows);
    assert_eq!(out.len(), a.rows * b.columns);
    assert!(add.is_none_or(|(_, c)| c.len() == out.len()));
    let (rows, inner, columns) = (a.rows, a.columns, b.columns);
    // Panels of `b`, each read from the first to the last byte.
    let panels = columns.div_ceil(COLUMNS);
    let mut packed = vec![[T::zero(); COLUMNS]; panels * inner];
    for panel in 0..panels {
        for k in 0..inner {
            let line = &mut packed[panel * inner + k];
            for (l, x) in line.iter_mut().enumerate().take(columns - panel * COLUMNS) {
                *x = b.at(k, panel * COLUMNS + l);
            }
        }
    }
    let out = SharedMut::new(out);
    let grain = GRAIN.div_ceil((inner * columns).max(1)).next_multiple_of(ROWS);
    parallel::for_each(0..rows, grain, ROWS, |part| {
        // SAFETY: `out` is borrowed until the loop ends; parts do not overlap.
        let out = unsafe { out.slice(part.start * columns..part.end * columns) };
        simd::dispatch(Rows { alpha, a, packed: &packed, add, out, rows: part, columns });
    });
}

struct Rows<'a, T> {
    alpha: T,
    a: Matrix<'a, T>,
    packed: &'a [[T; COLUMNS]],
    add: Option<(T, &'a [T])>,
    out: &'a mut [T],
    rows: Range<usize>,
    columns: usize,
}

impl<T: Float> Kernel for Rows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (inner, columns) = (self.a.columns, self.columns);
        for panel in 0..columns.div_ceil(COLUMNS) {
            let b = &self.packed[panel * inner..(panel + 1) * inner];
            let left = panel * COLUMNS;
            let width = COLUMNS.min(columns - left);
            for top in self.rows.clone().step_by(ROWS) {
                let height = ROWS.min(self.rows.end - top);
                let mut sums = [[T::zero(); COLUMNS]; ROWS];
                for (k, b) in b.iter().enumerate() {
                    for r in 0..ROWS {
                        // Rows beyond the last are computed, but not stored.
                        let a = self.a.at(top + r.min(height - 1), k);
                        for l in 0..COLUMNS {
                            sums[r][l] = a.mul_add(b[l], sums[r][l]);
                        }
                    }
                }
                for (r, sums) in sums.iter().enumerate().take(height) {
                    let at = (top + r) * columns + left;
                    let from = at - self.rows.start * columns;
                    for (l, out) in self.out[from..from + width].iter_mut().enumerate() {
                        let product = self.alpha * sums[l];
                        *out = match self.add {
                            Some((beta, c)) => beta.mul_add(c[at + l], product),
                            None => product,
                        };
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_agree_with_triple_loops() {
        let value = |i: usize| ((i * 7 + 3) % 13) as f64 - 6.0;
        for (m, k, n) in [(0, 3, 2), (3, 0, 2), (1, 1, 1), (5, 3, 17), (4, 40, 16), (33, 20, 50)] {
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
        }
    }
}
