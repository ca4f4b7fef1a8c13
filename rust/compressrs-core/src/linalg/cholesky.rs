//! Triangular factors of a symmetric positive definite matrix, in an order of summation
//! that depends on nothing but its size.

use crate::linalg::gemm::multiply;
use crate::linalg::matrix::Matrix;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};

/// Columns that are factored together; the remaining update is a matrix product.
const PANEL: usize = 64;

/// Rows of a panel worth a task of their own: `PANEL * PANEL / 2` multiply-adds each.
const GRAIN_ROWS: usize = 64;

/// A pivot is not positive: the matrix is not positive definite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NotPositive;

/// The factor `R` of a matrix `A = R R'`, upper triangular.
///
/// It is the Cholesky factor of `A` with rows and columns in reverse, read in reverse.
#[derive(Clone, Debug)]
pub struct Factor {
    /// The lower triangular factor of the matrix in reverse.
    reverse: Vec<f64>,
    n: usize,
}

impl Factor {
    /// Factors a matrix.
    ///
    /// # Errors
    /// If `a` is not positive definite.
    ///
    /// # Panics
    /// If `a` is not of size `n * n`.
    pub fn new(a: &[f64], n: usize) -> Result<Self, NotPositive> {
        assert_eq!(a.len(), n * n);
        // In row-major order, all elements in reverse are the rows and columns in reverse.
        let mut reverse = memory::collect(a.iter().rev().copied());
        factor(&mut reverse, n)?;
        Ok(Factor { reverse, n })
    }

    /// The squares of the diagonal: what the later variables leave unexplained of each one.
    pub fn pivots(&self) -> Vec<f64> {
        let diagonal = (0..self.n).rev().map(|i| self.reverse[i * self.n + i]);
        memory::collect(diagonal.map(|pivot| pivot * pivot))
    }

    /// The upper triangular `U = inverse(R)`, with which `inverse(A) = U' U`.
    pub fn inverse(&self) -> Vec<f64> {
        let mut inverse = invert(&self.reverse, self.n);
        inverse.reverse();
        inverse
    }
}

/// Overwrites the lower triangle of `a` by `L` with `A = L L'`.
fn factor(a: &mut [f64], n: usize) -> Result<(), NotPositive> {
    for left in (0..n).step_by(PANEL) {
        let right = n.min(left + PANEL);
        let width = right - left;
        let whole = Matrix::row_major(a, n, n);
        let panel = whole.block(left..n, left..right).to_vec();
        let mut rest = memory::zeroed(panel.len());
        let (rows, top) = (whole.block(left..n, 0..left), whole.block(left..right, 0..left));
        multiply(-1.0, rows, top.transposed(), Some((1.0, &panel)), &mut rest);

        let (square, below) = rest.split_at_mut(width * width);
        for j in 0..width {
            let pivot = square[j * width + j];
            // False for NaN, too.
            if !(pivot > 0.0 && pivot.is_finite()) {
                return Err(NotPositive);
            }
            for i in j..width {
                square[i * width + j] /= pivot.sqrt();
            }
            for i in j + 1..width {
                for k in j + 1..=i {
                    square[i * width + k] -= square[i * width + j] * square[k * width + j];
                }
            }
        }
        let shared = SharedMut::new(below);
        parallel::for_each(0..n - right, GRAIN_ROWS, 1, |part| {
            // SAFETY: `below` is borrowed until the loop ends; parts do not overlap.
            let rows = unsafe { shared.slice(part.start * width..part.end * width) };
            rows.chunks_exact_mut(width).for_each(|row| solve(square, row));
        });
        for (i, row) in rest.chunks_exact(width).enumerate() {
            let at = (left + i) * n + left;
            // The upper triangle is not looked at.
            a[at..at + width].copy_from_slice(row);
        }
    }
    Ok(())
}

/// Replaces `x` by the solution of `L y = x`.
fn solve(l: &[f64], x: &mut [f64]) {
    let width = x.len();
    for j in 0..width {
        let known: f64 = (0..j).map(|k| l[j * width + k] * x[k]).sum();
        x[j] = (x[j] - known) / l[j * width + j];
    }
}

/// The inverse of a lower triangular matrix, whose upper triangle is not looked at.
fn invert(l: &[f64], n: usize) -> Vec<f64> {
    let mut inverse = memory::zeroed(n * n);
    let l = Matrix::row_major(l, n, n);
    for top in (0..n).step_by(PANEL) {
        let bottom = n.min(top + PANEL);
        let height = bottom - top;
        let square = l.block(top..bottom, top..bottom).to_vec();
        // The columns of the inverse of the square on the diagonal, as rows.
        let mut columns = memory::zeroed(height * height);
        for (j, column) in columns.chunks_exact_mut(height).enumerate() {
            column[j] = 1.0;
            solve(&square, column);
        }
        let own = Matrix::row_major(&columns, height, height).transposed();
        // Of the rows of the inverse above, these explain a part.
        let mut explained = memory::zeroed(height * top);
        let above = Matrix::row_major(&inverse, n, n).block(0..top, 0..top);
        multiply(1.0, l.block(top..bottom, 0..top), above, None, &mut explained);
        let mut row = memory::zeroed(height * top);
        let explained = Matrix::row_major(&explained, height, top);
        multiply(-1.0, own, explained, None, &mut row);
        let own = own.to_vec();
        for i in 0..height {
            let line = &mut inverse[(top + i) * n..(top + i) * n + bottom];
            line[..top].copy_from_slice(&row[i * top..(i + 1) * top]);
            line[top..].copy_from_slice(&own[i * height..(i + 1) * height]);
        }
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_is_that_of_the_inverse() {
        for n in [0, 1, 2, 5, 63, 64, 65, 150] {
            // Diagonally dominant, so that errors stay small.
            let a: Vec<f64> = (0..n * n)
                .map(|i| {
                    let (r, c) = (i / n, i % n);
                    if r == c { 2.0 + r as f64 } else { 1.0 / (1.0 + (r * c % 7 + r + c) as f64) }
                })
                .collect();
            let factor = Factor::new(&a, n).unwrap();
            let (u, pivots) = (factor.inverse(), factor.pivots());
            for i in 0..n {
                assert!(u[i * n..i * n + i].iter().all(|x| *x == 0.0), "upper");
                assert!((u[i * n + i].powi(-2) / pivots[i] - 1.0).abs() < 1e-12);
                for j in 0..n {
                    // A U' U = 1
                    let product: f64 = (0..n)
                        .map(|k| {
                            let inverse: f64 = (0..n).map(|m| u[m * n + k] * u[m * n + j]).sum();
                            a[i * n + k] * inverse
                        })
                        .sum();
                    let truth = if i == j { 1.0 } else { 0.0 };
                    assert!((product - truth).abs() < 1e-10, "{n}: {i}, {j}: {product}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_is_refused() {
        assert!(Factor::new(&[1.0, 2.0, 2.0, 1.0], 2).is_err());
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Factor::new(&[bad], 1).is_err());
        }
    }
}
