//! Softmax and its logarithm.

use super::tile::{self, MAX_CLASSES, ROWS};
use super::{CHUNK, GRAIN};
use crate::element::Float;
use crate::lanes::{LANES, Lanes, max_of, sweep};
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
    parallel::for_each(rows, GRAIN.div_ceil(classes), ROWS, |rows| {
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
        let Softmax { classes, .. } = self.what;
        if classes <= MAX_CLASSES {
            return self.by_tiles();
        }
        let mut copy = vec![C::zero(); if self.z.is_none() { classes } else { 0 }];
        for (i, out) in self.out.chunks_exact_mut(classes).enumerate() {
            let z = match self.z {
                Some(z) => &z[i * classes..(i + 1) * classes],
                None => {
                    copy.copy_from_slice(out);
                    &copy
                }
            };
            softmax_row(self.what, z, out);
        }
    }
}

impl<C: Float> Rows<'_, C> {
    #[inline(always)]
    fn by_tiles(self) {
        let Softmax { classes, temperature, log } = self.what;
        let scale = C::from_f64(temperature.recip());
        let mut values = tile::tile::<C>();
        for (i, out) in self.out.chunks_mut(ROWS * classes).enumerate() {
            let start = i * ROWS * classes;
            let z = self.z.map_or(&*out, |z| &z[start..start + out.len()]);
            tile::load(z, classes, &mut values);
            let values_used = &mut values[..classes];
            let top = tile::max_of(values_used);
            let mut sum = [C::zero(); ROWS];
            for line in &mut *values_used {
                for l in 0..ROWS {
                    let shifted = (line[l] - top[l]) * scale;
                    let e = shifted.exp_fast();
                    sum[l] += e;
                    line[l] = if log { shifted } else { e };
                }
            }
            if log {
                let log_sum = sum.map(|sum| C::from_f64(sum.to_f64().ln()));
                for line in values_used {
                    for l in 0..ROWS {
                        line[l] = line[l] - log_sum[l];
                    }
                }
            } else {
                let factor = sum.map(C::recip);
                for line in values_used {
                    for l in 0..ROWS {
                        line[l] = line[l] * factor[l];
                    }
                }
            }
            tile::store(&values, classes, out);
        }
    }
}

#[inline(always)]
fn softmax_row<C: Float>(what: Softmax, z: &[C], out: &mut [C]) {
    let scale = C::from_f64(what.temperature.recip());
    let top = max_of(z);
    let mut sum = 0.0;
    for (z, out) in z.chunks(CHUNK).zip(out.chunks_mut(CHUNK)) {
        let mut lanes = [Lanes::new(C::zero())];
        sweep([z], [out], &mut lanes, C::neg_infinity(), |[z], [sum], [out]| {
            for l in 0..LANES {
                let shifted = (z[l] - top) * scale;
                let e = shifted.exp_fast();
                sum[l] += e;
                out[l] = if what.log { shifted } else { e };
            }
        });
        sum += lanes[0].sum().to_f64();
    }
    if what.log {
        let log_sum = C::from_f64(sum.ln());
        out.iter_mut().for_each(|x| *x = *x - log_sum);
    } else {
        let factor = C::from_f64(sum.recip());
        out.iter_mut().for_each(|x| *x = *x * factor);
    }
}
