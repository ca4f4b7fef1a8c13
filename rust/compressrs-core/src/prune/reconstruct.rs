//! Pruning a layer in one go, with the weights that stay made up for those that go:
//! SparseGPT (Frantar & Alistarh, arXiv 2301.00774).
//!
//! Columns are decided from left to right. Where weight `j` of a row is removed, the error
//! that this makes of the row's outputs is least if the weights after it change by
//! `-w_j / U_jj U_j`, where `U` is the upper triangular factor of the inverse Hessian,
//! `inverse(X' X) = U' U`; what is lost then is `(w_j / U_jj)^2`, by which is chosen.

use super::groups::mask_n_of_m;
use super::mask::mask_smallest;
use super::order::Magnitude;
use super::threshold::HasNan;
use crate::linalg::gemm::{Matrix, multiply};
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// Multiply-adds worth a task of their own.
const GRAIN: usize = 128 * 1024;

/// How many weights go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// As many of all in all, the first columns having their part.
    Total(usize),
    /// All but `n` of each `m` columns.
    NOfM {
        /// How many stay.
        n: usize,
        /// Of how many.
        m: usize,
    },
}

/// Removes weights of `w`, of `columns` columns, and makes up for them with the others.
///
/// `u` is the factor of the inverse Hessian, see
/// [`Factor::inverse`](crate::linalg::cholesky::Factor::inverse). `block` columns are decided
/// together: which of them go is chosen before any of them has changed. What is removed is
/// 0 in `w` and in `mask`.
///
/// # Errors
/// If a weight or an error is NaN; `w` has been written to then.
///
/// # Panics
/// If lengths do not fit, `block` is 0, or it and `columns` are not multiples of `m`.
pub fn reconstruct(
    w: &mut [f64],
    columns: usize,
    u: &[f64],
    choice: Choice,
    block: usize,
    mask: &mut [u8],
) -> Result<(), HasNan> {
    assert!(block > 0 && w.len() == mask.len() && u.len() == columns * columns);
    let rows = w.len() / columns.max(1);
    assert_eq!(w.len(), rows * columns);
    if let Choice::NOfM { m, .. } = choice {
        assert!(block.is_multiple_of(m) && columns.is_multiple_of(m));
    }
    let mut removed = 0;
    for left in (0..columns).step_by(block) {
        let right = columns.min(left + block);
        let width = right - left;
        let mut part = memory::zeroed::<u8>(rows * width);
        if let Choice::Total(total) = choice {
            let mut losses = memory::with_capacity(rows * width);
            for row in w.chunks_exact(columns) {
                losses.extend((left..right).map(|j| row[j] / u[j * columns + j]));
            }
            // To the nearest, so that all parts together are the total.
            let until = (total as u128 * right as u128 + columns as u128 / 2) / columns as u128;
            let k = (until as usize).min(removed + rows * width) - removed;
            mask_smallest::<Magnitude, f64>(&[&losses], k, &mut [&mut part])?;
            removed += k;
        }
        let mut errors = memory::zeroed::<f64>(rows * width);
        let shared = (SharedMut::new(w), SharedMut::new(&mut part), SharedMut::new(&mut errors));
        parallel::for_each(0..rows, GRAIN.div_ceil(width * width), 1, |some| {
            for i in some {
                // SAFETY: all three are borrowed until the loop ends, and each row is
                // visited once.
                let (w, mask, errors) = unsafe {
                    (
                        shared.0.slice(i * columns + left..i * columns + right),
                        shared.1.slice(i * width..(i + 1) * width),
                        shared.2.slice(i * width..(i + 1) * width),
                    )
                };
                simd::dispatch(Row { w, mask, errors, u, columns, left, choice });
            }
        });
        for (row, part) in mask.chunks_exact_mut(columns).zip(part.chunks_exact(width)) {
            row[left..right].copy_from_slice(part);
        }
        if right < columns {
            spread(w, columns, &errors, Matrix::row_major(u, columns, columns), left..right);
        }
    }
    if w.iter().any(|x| x.is_nan()) { Err(HasNan) } else { Ok(()) }
}

/// Has the columns after some make up for the errors of these.
fn spread(
    w: &mut [f64],
    columns: usize,
    errors: &[f64],
    u: Matrix<'_, f64>,
    decided: std::ops::Range<usize>,
) {
    let (rows, width, later) = (w.len() / columns, decided.len(), columns - decided.end);
    let mut changes = memory::zeroed(rows * later);
    let errors = Matrix::row_major(errors, rows, width);
    multiply(1.0, errors, u.block(decided, columns - later..columns), None, &mut changes);
    for (row, changes) in w.chunks_exact_mut(columns).zip(changes.chunks_exact(later)) {
        for (w, change) in row[columns - later..].iter_mut().zip(changes) {
            *w -= change;
        }
    }
}

/// Some columns of one row.
struct Row<'a> {
    w: &'a mut [f64],
    mask: &'a mut [u8],
    /// What each removed weight leaves to make up for, over `U_jj`; 0 for the others.
    errors: &'a mut [f64],
    u: &'a [f64],
    columns: usize,
    left: usize,
    choice: Choice,
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Row { w, mask, errors, u, columns, left, choice } = self;
        let width = w.len();
        for j in 0..width {
            let from = |j: usize| &u[(left + j) * columns + left..][..width];
            if let Choice::NOfM { n, m } = choice
                && j % m == 0
            {
                // Chosen when those before have been made up for.
                let losses = memory::collect((j..j + m).map(|l| w[l] / from(l)[l]));
                mask_n_of_m::<Magnitude, f64>(&losses, n, m, &mut mask[j..j + m]);
            }
            if mask[j] == 0 {
                let u = from(j);
                errors[j] = w[j] / u[j];
                w[j] = 0.0;
                for (w, u) in w[j + 1..].iter_mut().zip(&u[j + 1..]) {
                    *w = (-errors[j]).mul_add(*u, *w);
                }
            }
        }
    }
}
