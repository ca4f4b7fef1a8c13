//! Softmax and its logarithm.

use super::{CHUNK, GRAIN};
use crate::element::{Element, Float};
use crate::lanes::{LANES, max_of, sum_tree};
use crate::parallel::{self, SharedMut};
use crate::simd::{self, Kernel};

/// `out[i, j] = exp(z[i, j] / T) / sum_k exp(z[i, k] / T)` for rows of length
/// `classes`.
///
/// The row's maximum is subtracted before the division by `T`, so that no finite
/// logit overflows at any temperature. A row that holds NaN or +inf, or nothing
/// but -inf, becomes NaN.
///
/// # Panics
/// If the lengths differ or are no multiple of `classes`.
pub fn softmax<E: Element>(z: &[E], classes: usize, temperature: f64, out: &mut [E]) {
    rows::<E, false>(z, classes, temperature, out);
}

/// The logarithm of [`softmax`], without taking one of a small number:
/// `(z - max) / T - log(sum exp((z - max) / T))`.
///
/// # Panics
/// If the lengths differ or are no multiple of `classes`.
pub fn log_softmax<E: Element>(z: &[E], classes: usize, temperature: f64, out: &mut [E]) {
    rows::<E, true>(z, classes, temperature, out);
}

fn rows<E: Element, const LOG: bool>(z: &[E], classes: usize, temperature: f64, out: &mut [E]) {
    assert_eq!(z.len(), out.len());
    if z.is_empty() {
        return;
    }
    assert_eq!(z.len() % classes, 0);
    let shared = SharedMut::new(out);
    parallel::for_each(0..z.len() / classes, GRAIN.div_ceil(classes), 1, |rows| {
        let part = rows.start * classes..rows.end * classes;
        // SAFETY: `out` is borrowed for the whole call and parts do not overlap.
        let out = unsafe { shared.slice(part.clone()) };
        simd::dispatch(Rows::<E, LOG> { z: &z[part], classes, temperature, out });
    });
}

struct Rows<'a, E: Element, const LOG: bool> {
    z: &'a [E],
    classes: usize,
    temperature: f64,
    out: &'a mut [E],
}

impl<E: Element, const LOG: bool> Kernel for Rows<'_, E, LOG> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let scale = E::Compute::from_f64(self.temperature.recip());
        let rows = self.z.chunks_exact(self.classes);
        for (z, out) in rows.zip(self.out.chunks_exact_mut(self.classes)) {
            let top = max_of(z);
            let sum = if LOG {
                exp_sum(z, top, scale, |_, _| ())
            } else {
                exp_sum(z, top, scale, |i, e| out[i] = E::store(e))
            };
            if LOG {
                let log_sum = E::Compute::from_f64(sum.ln());
                for (out, z) in out.iter_mut().zip(z) {
                    *out = E::store((z.load() - top) * scale - log_sum);
                }
            } else {
                let factor = E::Compute::from_f64(sum.recip());
                for out in out {
                    *out = E::store(out.load() * factor);
                }
            }
        }
    }
}

/// The sum of `e_i = exp((z_i - top) scale)`, each of which `each` is shown.
#[inline(always)]
fn exp_sum<E: Element>(
    z: &[E],
    top: E::Compute,
    scale: E::Compute,
    mut each: impl FnMut(usize, E::Compute),
) -> f64 {
    let zero = E::Compute::from_f64(0.0);
    let mut sum = 0.0;
    for start in (0..z.len()).step_by(CHUNK) {
        let chunk = &z[start..z.len().min(start + CHUNK)];
        let mut lanes = [zero; LANES];
        for block in (0..chunk.len()).step_by(LANES) {
            let width = LANES.min(chunk.len() - block);
            for l in 0..width {
                let e = ((chunk[block + l].load() - top) * scale).exp_fast();
                each(start + block + l, e);
                lanes[l] += e;
            }
        }
        sum += sum_tree(lanes).to_f64();
    }
    sum
}
