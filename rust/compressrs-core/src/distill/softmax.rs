//! Softmax and its logarithm.

use super::{CHUNK, GRAIN};
use crate::element::Float;
use crate::lanes::{LANES, max_of, sum_tree};
use crate::parallel::{self, SharedMut};
use crate::simd::{self, Kernel};

/// What [`softmax`] computes for each row of length `classes`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softmax {
    /// Length of a row.
    pub classes: usize,
    /// `T`.
    pub temperature: f64,
    /// Whether to take the logarithm, `(z - max) / T - log(sum exp((z - max) / T))`,
    /// which is exact where the probability itself would be 0.
    pub log: bool,
}

/// `out[i, j] = exp(z[i, j] / T) / sum_k exp(z[i, k] / T)`, or its logarithm; in
/// place where `z` is None.
///
/// The row's maximum is subtracted before the division by `T`, so that no finite
/// logit overflows at any temperature. A row that holds NaN or +inf, or nothing
/// but -inf, becomes NaN.
///
/// # Panics
/// If the lengths differ or are no multiple of `classes`.
pub fn softmax<C: Float>(what: Softmax, z: Option<&[C]>, out: &mut [C]) {
    if out.is_empty() {
        return;
    }
    let classes = what.classes;
    assert_eq!(out.len() % classes, 0);
    assert!(z.is_none_or(|z| z.len() == out.len()));
    let rows = 0..out.len() / classes;
    let shared = SharedMut::new(out);
    parallel::for_each(rows, GRAIN.div_ceil(classes), 1, |rows| {
        let part = rows.start * classes..rows.end * classes;
        // SAFETY: `out` is borrowed for the whole call and parts do not overlap.
        let out = unsafe { shared.slice(part.clone()) };
        simd::dispatch(Rows { what, z: z.map(|z| &z[part]), out });
    });
}

struct Rows<'a, C> {
    what: Softmax,
    z: Option<&'a [C]>,
    out: &'a mut [C],
}

impl<C: Float> Kernel for Rows<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let scale = C::from_f64(self.what.temperature.recip());
        let classes = self.what.classes;
        for (i, row) in self.out.chunks_exact_mut(classes).enumerate() {
            // One copy while the row is in cache makes this one path.
            if let Some(z) = self.z {
                row.copy_from_slice(&z[i * classes..(i + 1) * classes]);
            }
            let top = max_of(row);
            if self.what.log {
                let log_sum = C::from_f64(exp_sum::<C, false>(row, top, scale).ln());
                for x in row {
                    *x = (*x - top) * scale - log_sum;
                }
            } else {
                let factor = C::from_f64(exp_sum::<C, true>(row, top, scale).recip());
                for x in row {
                    *x = *x * factor;
                }
            }
        }
    }
}

/// The sum of `exp((x - top) scale)`; writes the terms to the row where `KEEP`.
#[inline(always)]
fn exp_sum<C: Float, const KEEP: bool>(row: &mut [C], top: C, scale: C) -> f64 {
    let mut sum = 0.0;
    for chunk in row.chunks_mut(CHUNK) {
        let mut lanes = [C::zero(); LANES];
        for block in chunk.chunks_mut(LANES) {
            for (x, lane) in block.iter_mut().zip(&mut lanes) {
                let e = ((*x - top) * scale).exp_fast();
                *lane += e;
                if KEEP {
                    *x = e;
                }
            }
        }
        sum += sum_tree(lanes).to_f64();
    }
    sum
}
