//! Products of few rows with a transposed matrix, `out = a b + bias` where columns of `b`
//! are contiguous, as of a layer whose weight is (outputs, inputs).
//!
//! Packing `b` would take longer than the product. Each element is a dot product in a fixed
//! number of lanes, see [`lanes`](crate::numeric::lanes), and `b` is read once, in order.

use super::matrix::Matrix;
use crate::numeric::element::Float;
use crate::numeric::lanes::sum_tree;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// Rows up to which dot products are faster than tiles.
const FEW: usize = 8;

/// Lanes of a dot product.
const LANES: usize = 16;

/// Columns at a time: enough independent chains to hide the latency of a multiply-add.
const COLUMNS: usize = 4;

/// Multiply-adds worth a task of their own; see [`parallel::for_each`].
const GRAIN_MULTIPLY_ADDS: usize = 128 * 1024;

/// Whether [`affine`] is the faster way to a product.
pub(super) fn applies<T: Float>(a: &Matrix<'_, T>, b: &Matrix<'_, T>) -> bool {
    a.rows() <= FEW
        && (a.column_stride() == 1 || a.columns() <= 1)
        && (b.row_stride() == 1 || b.rows() <= 1)
}

/// `out = a b + bias` for each row, where [`applies`] holds.
pub(super) fn affine<T: Float>(
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    bias: Option<&[T]>,
    out: &mut [T],
) {
    let (inner, columns) = (a.columns(), b.columns());
    let work = a.rows() * inner * COLUMNS;
    let grain = GRAIN_MULTIPLY_ADDS.div_ceil(work.max(1));
    let out = SharedMut::new(out);
    parallel::for_each(0..columns.div_ceil(COLUMNS), grain, 1, |groups| {
        let columns = groups.start * COLUMNS..columns.min(groups.end * COLUMNS);
        simd::dispatch(Dots { a, b, bias, columns, out: &out });
    });
}

struct Dots<'a, 'o, T> {
    a: Matrix<'a, T>,
    b: Matrix<'a, T>,
    bias: Option<&'a [T]>,
    columns: std::ops::Range<usize>,
    out: &'a SharedMut<'o, T>,
}

impl<T: Float> Kernel for Dots<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Dots { a, b, bias, columns, out } = self;
        let inner = a.columns();
        let row = |i: usize| &a.data()[i * a.row_stride()..][..inner];
        let column = |j: usize| &b.data()[j * b.column_stride()..][..inner];
        for first in columns.clone().step_by(COLUMNS) {
            let last = columns.end - 1;
            // Columns beyond the last are computed once more, but not stored.
            let group = [0, 1, 2, 3].map(|c| column(last.min(first + c)));
            for i in 0..a.rows() {
                let sums = dots(row(i), group);
                let count = COLUMNS.min(columns.end - first);
                let at = i * b.columns() + first;
                // SAFETY: `out` is borrowed until the loop ends; tasks have columns of their
                // own.
                let to = unsafe { out.slice(at..at + count) };
                for (c, to) in to.iter_mut().enumerate() {
                    *to = bias.map_or(sums[c], |bias| sums[c] + bias[first + c]);
                }
            }
        }
    }
}

/// The dot products of `x` with four vectors of its length.
#[inline(always)]
fn dots<T: Float>(x: &[T], y: [&[T]; COLUMNS]) -> [T; COLUMNS] {
    let mut sums = [[T::zero(); LANES]; COLUMNS];
    let (whole, rest) = x.as_chunks::<LANES>();
    let parts = y.map(|y| y.as_chunks::<LANES>());
    for (k, x) in whole.iter().enumerate() {
        for (sums, (y, _)) in sums.iter_mut().zip(&parts) {
            let y = &y[k];
            for l in 0..LANES {
                sums[l] = x[l].mul_add(y[l], sums[l]);
            }
        }
    }
    for (sums, (_, y)) in sums.iter_mut().zip(&parts) {
        for (l, (&x, &y)) in rest.iter().zip(*y).enumerate() {
            sums[l] = x.mul_add(y, sums[l]);
        }
    }
    sums.map(sum_tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_are_those_of_the_definition() {
        for (rows, inner, columns) in [(0, 3, 2), (1, 0, 5), (1, 1, 1), (3, 16, 4), (8, 37, 9)] {
            let a: Vec<f64> = (0..rows * inner).map(|i| (i * 7 % 11) as f64 - 5.0).collect();
            let b: Vec<f64> = (0..columns * inner).map(|i| (i * 5 % 13) as f64 - 6.0).collect();
            let bias: Vec<f64> = (0..columns).map(|j| j as f64).collect();
            let (x, w) =
                (Matrix::row_major(&a, rows, inner), Matrix::row_major(&b, columns, inner));
            assert!(applies(&x, &w.transposed()));
            let mut out = vec![0.0; rows * columns];
            affine(x, w.transposed(), Some(&bias), &mut out);
            for i in 0..rows {
                for j in 0..columns {
                    let sum: f64 = (0..inner).map(|k| a[i * inner + k] * b[j * inner + k]).sum();
                    assert_eq!(out[i * columns + j], sum + bias[j]);
                }
            }
        }
    }
}
