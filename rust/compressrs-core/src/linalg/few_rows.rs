//! Products of few rows with a transposed matrix, `out = a b + bias` where columns of `b`
//! are contiguous, as of a layer whose weight is (outputs, inputs).
//!
//! Packing `b` would take longer than the product. Each element is a dot product in a fixed
//! number of lanes, see [`lanes`](crate::numeric::lanes), and `b` is read once, in order.

use std::ops::Range;

use super::matrix::Matrix;
use crate::numeric::element::Float;
use crate::numeric::lanes::sum_tree;
use crate::numeric::vector::{Vector, WithVector, by_level};
use crate::runtime::parallel::{self, SharedMut};

/// Rows up to which dot products are faster than tiles.
const FEW: usize = 8;

/// Lanes of a dot product, at most: 512 bits of `f32`.
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
        by_level(Dots { a, b, bias, columns, out: &out });
    });
}

struct Dots<'a, 'o, T> {
    a: Matrix<'a, T>,
    b: Matrix<'a, T>,
    bias: Option<&'a [T]>,
    columns: Range<usize>,
    out: &'a SharedMut<'o, T>,
}

impl<T: Float> WithVector<T> for Dots<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector<T>, const R: usize, const Q: usize>(self) {
        let Dots { a, b, bias, columns, out } = self;
        let row = |i: usize| a.line(i);
        let column = |j: usize| b.transposed().line(j);
        for first in columns.clone().step_by(COLUMNS) {
            let last = columns.end - 1;
            // Columns beyond the last are computed once more, but not stored.
            let group = [0, 1, 2, 3].map(|c| column(last.min(first + c)));
            for i in 0..a.rows() {
                let sums = dots::<T, V>(row(i), group);
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

/// The dot products of `x` with four vectors of its length: element `k` in lane `k` modulo
/// the lanes of 512 bits, whatever the vectors, and the lanes added up in a tree.
#[inline(always)]
fn dots<T: Float, V: Vector<T>>(x: &[T], y: [&[T]; COLUMNS]) -> [T; COLUMNS] {
    let lanes = 64 / size_of::<T>();
    let vectors = lanes / V::LANES;
    let whole = x.len() - x.len() % lanes;
    let mut sums = [[V::splat(T::zero()); LANES]; COLUMNS];
    for k in (0..whole).step_by(lanes) {
        for v in 0..vectors {
            let at = k + v * V::LANES;
            // SAFETY: `at + V::LANES` is at most `whole`; all have the length of `x`.
            let x = unsafe { V::load(x.as_ptr().add(at)) };
            for (sums, y) in sums.iter_mut().zip(y) {
                // SAFETY: as above.
                let y = unsafe { V::load(y.as_ptr().add(at)) };
                sums[v] = sums[v].add_product(x, y);
            }
        }
    }
    let mut products = [T::zero(); COLUMNS];
    for ((to, sums), y) in products.iter_mut().zip(&sums).zip(y) {
        let mut lane = [T::zero(); LANES];
        for v in 0..vectors {
            // SAFETY: there are `vectors` times as many lanes, at most `LANES`.
            unsafe { sums[v].store(lane.as_mut_ptr().add(v * V::LANES)) };
        }
        for (l, (&x, &y)) in x[whole..].iter().zip(&y[whole..]).enumerate() {
            lane[l] = x.mul_add(y, lane[l]);
        }
        *to = sum_tree(lane);
    }
    products
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_without_rows_columns_or_inner_length() {
        let data = [1.0f32; 4];
        for (rows, inner, columns) in
            (0..8).map(|i| [i & 1, i >> 1 & 1, i >> 2 & 1]).map(|[a, b, c]| (3 * a, 2 * b, 2 * c))
        {
            let all: [f32; 6] = [1.0; 6];
            // However rows and columns lie.
            let of = |rows: usize, columns: usize| {
                let whole = Matrix::row_major(&all[..6], 3, 2);
                [
                    Matrix::row_major(&all[..rows * columns], rows, columns),
                    Matrix::row_major(&all[..rows * columns], columns, rows).transposed(),
                    if rows <= 3 && columns <= 2 {
                        whole.block(0..rows, 0..columns)
                    } else {
                        whole.transposed().block(0..rows, 0..columns)
                    },
                ]
            };
            let bias = &data[..columns];
            for a in of(rows, inner) {
                for b in of(inner, columns) {
                    let mut out = vec![f32::NAN; rows * columns];
                    super::super::gemm::affine(a, b, Some(bias), &mut out);
                    assert!(out.iter().all(|y| *y == 1.0 + inner as f32), "{a:?} {b:?}");
                    super::super::gemm::multiply(2.0, a, b, None, &mut out);
                    assert!(out.iter().all(|y| *y == 2.0 * inner as f32), "{a:?} {b:?}");
                }
                let mut square = vec![f32::NAN; rows * rows];
                super::super::gemm::multiply_by_transpose(1.0, a, None, &mut square);
                assert!(square.iter().all(|y| *y == inner as f32), "{a:?}");
            }
        }
    }

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
