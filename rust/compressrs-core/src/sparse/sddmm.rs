//! The product of two dense matrices, sampled at the entries of a sparse one.

use std::ops::Range;

use super::csr::{Csr, Index};
use super::dense::Dense;
use crate::element::Float;
use crate::lanes::sum_tree;
use crate::parallel::SharedMut;
use crate::simd::{self, Kernel};

/// Multiply-adds worth a task of their own; see [`crate::parallel::for_each`].
const GRAIN: usize = 256 * 1024;

/// Accumulators of one dot product; inner dimensions are filled up to it.
const LANES: usize = 32;

/// `out[p] = sum_k u[r, k] v[k, c]` for every entry `p = (r, c)` of the pattern,
/// in the order of its `data`: the gradient of a loss with respect to the
/// entries of a sparse weight, for one.
///
/// # Panics
/// If the shapes do not fit.
pub fn sddmm<T: Float, I: Index>(
    pattern: Csr<'_, T, I>,
    u: Dense<'_, T>,
    v: Dense<'_, T>,
    out: &mut [T],
) {
    assert_eq!((pattern.rows(), pattern.columns()), (u.rows(), v.columns()));
    assert_eq!(u.columns(), v.rows());
    assert_eq!(pattern.nnz(), out.len());
    let width = u.columns().next_multiple_of(LANES);
    let (u, v) = (u.padded(width), v.transposed().padded(width));
    let out = SharedMut::new(out);
    pattern.for_rows(GRAIN.div_ceil(width.max(1)), |rows| {
        simd::dispatch(Sample { pattern, u: &u, v: &v, width, out: &out, rows });
    });
}

struct Sample<'a, T, I> {
    pattern: Csr<'a, T, I>,
    u: &'a [T],
    v: &'a [T],
    width: usize,
    out: &'a SharedMut<'a, T>,
    rows: Range<usize>,
}

impl<T: Float, I: Index> Kernel for Sample<'_, T, I> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for r in self.rows {
            let u = &self.u[r * self.width..(r + 1) * self.width];
            // SAFETY: tasks have different rows.
            let out = unsafe { self.out.slice(self.pattern.entries(r)) };
            for (out, &c) in out.iter_mut().zip(self.pattern.row_indices(r)) {
                let v = &self.v[c.get() * self.width..][..self.width];
                let mut sum = [T::zero(); LANES];
                let blocks = u.as_chunks::<LANES>().0.iter().zip(v.as_chunks::<LANES>().0);
                for (u, v) in blocks {
                    for l in 0..LANES {
                        sum[l] = u[l].mul_add(v[l], sum[l]);
                    }
                }
                *out = sum_tree(sum);
            }
        }
    }
}
