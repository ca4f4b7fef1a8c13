//! One-shot pruning of a layer, whose remaining weights compensate for removed ones:
//! SparseGPT (Frantar & Alistarh, arXiv 2301.00774), by the column loop of [`crate::linalg::obs`].
//!
//! Which weights go is chosen by what is lost, `(w_j / U_jj)^2`. What stays may be changed
//! as well, as where it is quantized in the same pass.

use super::groups::mask_n_of_m;
use super::mask::mask_smallest;
use super::order::Magnitude;
use super::threshold::HasNan;
use crate::linalg::obs::{Decide, Pending, decide_columns};
use crate::runtime::memory;
use crate::runtime::parallel::SharedMut;

/// How many weights go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
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

/// Removes weights of `w`, with `columns` columns, and updates the others to compensate.
///
/// `u` is the factor of the inverse Hessian, see
/// [`Factor::inverse`](crate::linalg::cholesky::Factor::inverse). `block` columns are decided
/// together: which of them go is chosen before any of them has changed. What is removed is
/// 0 in `w` and in `mask`. `kept` gives the value of a weight that stays.
///
/// # Errors
/// If a weight or an error is NaN; `w` has been written to then.
///
/// # Panics
/// If lengths do not fit, `block` is 0, or it and `columns` are not multiples of `m`.
pub fn reconstruct<K: Decide<Error = HasNan>>(
    w: &mut [f64],
    columns: usize,
    u: &[f64],
    target: Target,
    block: usize,
    mask: &mut [u8],
    kept: &mut K,
) -> Result<(), HasNan> {
    assert_eq!(w.len(), mask.len());
    if let Target::NOfM { m, .. } = target {
        assert!(block.is_multiple_of(m) && columns.is_multiple_of(m));
    }
    let mask = SharedMut::new(mask);
    decide_columns(w, columns, u, block, &mut Removal { target, mask, columns, removed: 0, kept })?;
    if w.iter().any(|x| x.is_nan()) { Err(HasNan) } else { Ok(()) }
}

/// Weights that stay as they are.
pub struct Unchanged;

impl Decide for Unchanged {
    type Error = HasNan;

    fn begin(
        &mut self,
        _: &[f64],
        _: usize,
        _: &[f64],
        _: std::ops::Range<usize>,
    ) -> Result<(), HasNan> {
        Ok(())
    }

    #[inline(always)]
    fn decide(&self, _: usize, _: usize, pending: Pending<'_>) -> f64 {
        pending.w[0]
    }
}

struct Removal<'a, K> {
    target: Target,
    /// All of a block of columns is written between two of them; within one, a row by the
    /// thread that decides it.
    mask: SharedMut<'a, u8>,
    columns: usize,
    removed: usize,
    kept: &'a mut K,
}

impl<K: Decide<Error = HasNan>> Decide for Removal<'_, K> {
    type Error = HasNan;

    fn begin(
        &mut self,
        w: &[f64],
        columns: usize,
        pivots: &[f64],
        block: std::ops::Range<usize>,
    ) -> Result<(), HasNan> {
        self.kept.begin(w, columns, pivots, block.clone())?;
        let Target::Total(total) = self.target else { return Ok(()) };
        let mut losses = memory::with_capacity(w.len() / columns * block.len());
        for row in w.chunks_exact(columns) {
            losses.extend(block.clone().map(|j| row[j] / pivots[j]));
        }
        // To the nearest, so that all parts together are the total.
        let until = (total as u128 * block.end as u128 + columns as u128 / 2) / columns as u128;
        let k = (until as usize).min(self.removed + losses.len()) - self.removed;
        let mut part = memory::zeroed::<u8>(losses.len());
        mask_smallest::<Magnitude, f64>(&[&losses], k, &mut [&mut part])?;
        self.removed += k;
        for (i, part) in part.chunks_exact(block.len()).enumerate() {
            let range = i * columns + block.start..i * columns + block.end;
            // SAFETY: nothing else looks at the mask between two blocks of columns.
            unsafe { self.mask.slice(range) }.copy_from_slice(part);
        }
        Ok(())
    }

    #[inline(always)]
    fn decide(&self, i: usize, j: usize, pending: Pending<'_>) -> f64 {
        let at = i * self.columns + j;
        if let Target::NOfM { n, m } = self.target
            && j.is_multiple_of(m)
        {
            // Chosen after the errors of earlier columns have been compensated for.
            let pairs = pending.w.iter().zip(pending.pivots).take(m);
            let losses = memory::collect(pairs.map(|(w, pivot)| w / pivot));
            // SAFETY: this row is decided by this thread alone.
            mask_n_of_m::<Magnitude, f64>(&losses, n, m, unsafe { self.mask.slice(at..at + m) });
        }
        let kept = self.kept.decide(i, j, pending);
        // SAFETY: as above.
        if unsafe { self.mask.read(at..at + 1) }[0] == 0 { 0.0 } else { kept }
    }
}
