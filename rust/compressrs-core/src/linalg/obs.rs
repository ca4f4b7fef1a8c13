//! The optimal brain surgeon, column by column: SparseGPT (Frantar & Alistarh, arXiv
//! 2301.00774) and GPTQ (Frantar et al., arXiv 2210.17323) share it.
//!
//! Columns are decided from left to right. Where weight `j` of a row becomes `v_j`, the error
//! that this makes of the row's outputs is least if the weights after it change by
//! `-(w_j - v_j) / U_jj U_j`, where `U` is the upper triangular factor of the inverse
//! Hessian, `inverse(X' X) = U' U`; what is lost then is `((w_j - v_j) / U_jj)^2`.

use crate::linalg::gemm::multiply;
use crate::linalg::matrix::Matrix;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// Multiply-adds worth a task of their own.
const GRAIN_MULTIPLY_ADDS: usize = 128 * 1024;

/// Weights of a row from one that is decided now to the last of its block of columns, with
/// all earlier errors compensated for.
#[derive(Clone, Copy)]
pub struct Pending<'a> {
    /// The weights.
    pub w: &'a [f64],
    /// The diagonal of `U` for each of them.
    pub pivots: &'a [f64],
}

/// What becomes of weights.
pub trait Decide: Sync {
    /// Why it fails.
    type Error;
    /// Looks at a block of columns, of which none is decided yet: `w` are rows of `columns`
    /// weights, `pivots` the diagonal of `U`.
    ///
    /// # Errors
    /// Those of the method.
    fn begin(
        &mut self,
        w: &[f64],
        columns: usize,
        pivots: &[f64],
        block: std::ops::Range<usize>,
    ) -> Result<(), Self::Error>;

    /// The new value of weight `j` of row `i`. Each is asked for once; those of a row in
    /// order, by one thread.
    fn decide(&self, i: usize, j: usize, pending: Pending<'_>) -> f64;
}

/// Replaces weights of `w`, of `columns` columns, by what `method` decides, and has those
/// after them compensate for the errors.
///
/// `u` is the factor of the inverse Hessian, see
/// [`Factor::inverse`](crate::linalg::cholesky::Factor::inverse). `block` columns are decided
/// before the errors are propagated to the columns after them.
///
/// # Errors
/// Those of the method; `w` has been written to then.
///
/// # Panics
/// If lengths do not fit, or `block` is 0.
pub fn decide_columns<D: Decide>(
    w: &mut [f64],
    columns: usize,
    u: &[f64],
    block: usize,
    method: &mut D,
) -> Result<(), D::Error> {
    assert!(block > 0 && u.len() == columns * columns);
    let rows = w.len() / columns.max(1);
    assert_eq!(w.len(), rows * columns);
    let pivots = memory::collect((0..columns).map(|j| u[j * columns + j]));
    for left in (0..columns).step_by(block) {
        let right = columns.min(left + block);
        let width = right - left;
        method.begin(w, columns, &pivots, left..right)?;
        let mut errors = memory::zeroed::<f64>(rows * width);
        let shared = (SharedMut::new(w), SharedMut::new(&mut errors));
        let method = &*method;
        parallel::for_each(0..rows, GRAIN_MULTIPLY_ADDS.div_ceil(width * width), 1, |some| {
            for i in some {
                // SAFETY: both are borrowed until the loop ends, and each row is visited
                // once.
                let (w, errors) = unsafe {
                    (
                        shared.0.slice(i * columns + left..i * columns + right),
                        shared.1.slice(i * width..(i + 1) * width),
                    )
                };
                let pivots = &pivots[left..right];
                simd::dispatch(Row { i, w, errors, u, pivots, columns, left, method });
            }
        });
        if right < columns {
            propagate(w, columns, &errors, Matrix::row_major(u, columns, columns), left..right);
        }
    }
    Ok(())
}

/// Updates the columns after some to compensate for the errors of these.
fn propagate(
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
struct Row<'a, D> {
    i: usize,
    w: &'a mut [f64],
    /// The error of each weight over `U_jj`.
    errors: &'a mut [f64],
    u: &'a [f64],
    pivots: &'a [f64],
    columns: usize,
    left: usize,
    method: &'a D,
}

impl<D: Decide> Kernel for Row<'_, D> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Row { i, w, errors, u, pivots, columns, left, method } = self;
        let width = w.len();
        for j in 0..width {
            let value = method.decide(i, left + j, Pending { w: &w[j..], pivots: &pivots[j..] });
            let error = (w[j] - value) / pivots[j];
            w[j] = value;
            errors[j] = error;
            if error != 0.0 {
                let u = &u[(left + j) * columns + left..][..width];
                for (w, u) in w[j + 1..].iter_mut().zip(&u[j + 1..]) {
                    *w = (-error).mul_add(*u, *w);
                }
            }
        }
    }
}
