//! A teacher of whom only the largest logits of each row are known, and what the
//! others come to: what can be stored of 200,000 classes.
//!
//! Student and teacher are compared in the classes that are known and in one more,
//! that of all others: a lower bound of the divergence, which assumes nothing about
//! how the rest is distributed.

use std::cmp::Ordering;

use super::super::GRAIN_ELEMENTS;
use super::super::softmax::PerRow;
use super::super::tile::{LANES, broadcast, map_reduce, max_of, update};
use super::super::wide::wide_len;
use super::close::{SMALL, exponential_rest};
use super::loss::TopK;
use super::rows::Tile;
use crate::numeric::element::{Element, Float};
use crate::numeric::elementwise::convert_into;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, Kernel};

/// `ln(exp(rest) + sum exp(x))`
#[inline(always)]
fn log_sum(rest: f64, x: &[f64]) -> f64 {
    let [top] = max_of::<f64, 1>(x);
    let top = if rest > top { rest } else { top };
    if top == f64::NEG_INFINITY {
        return top;
    }
    let [[sum]] = map_reduce::<f64, 1, 1, 0, 1>([x], [], f64::NEG_INFINITY, |[x], [sum], []| {
        for l in 0..LANES {
            sum[l] += (x[l] - top).exp_negative();
        }
    });
    top + (sum + (rest - top).exp_negative()).ln_fast()
}

impl<C: Float> Tile<'_, C, 1> {
    /// As [`soft`](Tile::soft). The classes that are known are taken out of the row,
    /// so that nothing is lost where they have nearly all the weight.
    #[inline(always)]
    pub(super) fn soft_top_k(&self, top_k: &TopK<'_>, grad: &mut [C], x: &mut [C]) -> f64 {
        let (values, classes, rest) = top_k.row(self.first);
        let [temperature] = self.temperatures();
        let scale = temperature.recip();
        x.copy_from_slice(self.s);
        for &class in classes {
            x[class as usize] = C::neg_infinity();
        }
        let [top] = max_of::<C, 1>(x);
        // The logarithm of what all others come to for the student, and for the teacher.
        let (mut others, mut sum) = (f64::NEG_INFINITY, 0.0);
        if top == C::neg_infinity() {
            grad.fill(C::zero());
        } else {
            let factor = C::from_f64(scale);
            let (top_s, factor) = (broadcast([top]), broadcast([factor]));
            let [[total]] = map_reduce::<C, 1, 1, 1, 1>([x], [&mut *grad], C::neg_infinity(), {
                |[s], [sum], [e]| {
                    for l in 0..LANES {
                        e[l] = ((s[l] - top_s[l]) * factor[l]).exp_negative();
                        sum[l] += e[l];
                    }
                }
            });
            sum = total;
            others = top.to_f64() * scale + total.ln_fast();
        }
        let [mut a, mut b, mut slopes] = [(); 3].map(|()| Scratch::<f64>::new(classes.len()));
        for ((a, b), (&z, &class)) in a.iter_mut().zip(&mut *b).zip(values.iter().zip(classes)) {
            *a = z * scale;
            *b = self.s[class as usize].to_f64() * scale;
        }
        let (all_t, all_s) = (log_sum(rest, &a), log_sum(others, &b));
        let inner = self.weights.soft * self.weight(0) * temperature;
        // p ln(p / q) + q - p, whose sum is the divergence as well, without cancellation where
        // p and q are close; q where the teacher gives nothing, whatever the student says.
        let term = |[p, q]: [f64; 2], [log_p, log_q]: [f64; 2]| {
            let d = log_q - log_p;
            let small = p * exponential_rest(d);
            let term = if d.abs() < SMALL { small } else { q - p - p * d };
            if p > 0.0 { term } else { q }
        };
        let (inputs, fill) = ([&*a, &*b], f64::NEG_INFINITY);
        let [[known]] =
            map_reduce::<f64, 1, 2, 1, 1>(inputs, [&mut slopes], fill, |[a, b], [sum], [g]| {
                for l in 0..LANES {
                    let (log_p, log_q) = (a[l] - all_t, b[l] - all_s);
                    let (p, q) = (log_p.exp_negative(), log_q.exp_negative());
                    sum[l] += term([p, q], [log_p, log_q]);
                    g[l] = inner * (q - p);
                }
            });
        let (log_p, log_q) = (rest - all_t, others - all_s);
        let (p, q) = (log_p.exp_negative(), log_q.exp_negative());
        let divergence = known + term([p, q], [log_p, log_q]);
        if sum > 0.0 {
            let factor = broadcast([C::from_f64(inner * (q - p) / sum)]);
            update(grad, [], |g, []| {
                for l in 0..LANES {
                    g[l] = g[l] * factor[l];
                }
            });
        }
        for (&class, &slope) in classes.iter().zip(&*slopes) {
            grad[class as usize] = C::from_f64(slope);
        }
        inner * temperature * divergence
    }
}

/// The classes of the `k` largest logits of each row, ascending, and
/// `ln sum exp(z / T)` over the others. Of equal logits those of the first classes
/// are taken; NaN is taken for the least.
///
/// # Panics
/// If lengths disagree, or `k` is 0 or more than the classes.
pub fn top_k<T: Element>(
    z: &[T],
    classes: usize,
    temperature: PerRow<'_>,
    chosen: &mut [i32],
    rest: &mut [f64],
) {
    let rows = rest.len();
    assert!(z.len() == rows * classes && temperature.fits(rows));
    if rows == 0 {
        return;
    }
    let k = chosen.len() / rows;
    assert!(k > 0 && k <= classes && chosen.len() == rows * k);
    let (chosen, rest) = (SharedMut::new(chosen), SharedMut::new(rest));
    parallel::for_each(0..rows, GRAIN_ELEMENTS.div_ceil(classes), 1, |part| {
        let mut wide = Scratch::<T::Compute>::new(wide_len::<T>(classes));
        let mut masked = Scratch::<f64>::new(classes);
        let mut found = memory::with_capacity(2 * k + LOGITS_AT_ONCE);
        for row in part {
            let z = &z[row * classes..(row + 1) * classes];
            // SAFETY: each row is done once.
            let (chosen, rest) =
                unsafe { (chosen.slice(row * k..(row + 1) * k), rest.slice(row..row + 1)) };
            convert_into(z, &mut wide);
            let z = T::as_compute(z).unwrap_or(&wide);
            simd::dispatch(Select { z, found: &mut found, k });
            // In double precision: at high temperatures the digits of the sum are all there is.
            for (masked, z) in masked.iter_mut().zip(z) {
                *masked = z.to_f64();
            }
            for (chosen, &(_, class)) in chosen.iter_mut().zip(&found) {
                *chosen = class;
                masked[class as usize] = f64::NEG_INFINITY;
            }
            chosen.sort_unstable();
            let scale = temperature.of(row).recip();
            rest[0] = simd::dispatch(Rest { z: &masked, scale });
        }
    });
}

/// Logits that are compared at once with the least of those that were found.
const LOGITS_AT_ONCE: usize = 64;

/// Leaves the `k` largest and their classes in `found`.
struct Select<'a, C> {
    z: &'a [C],
    found: &'a mut Vec<(C, i32)>,
    k: usize,
}

impl<C: Float> Kernel for Select<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Select { z, found, k } = self;
        found.clear();
        // The least of the `k` found so far: later ones must be larger.
        let mut least = None;
        for (i, block) in z.chunks(LOGITS_AT_ONCE).enumerate() {
            if let Some(least) = least
                && !block.iter().fold(false, |any, &x| any | (x > least))
            {
                continue;
            }
            for (j, &x) in block.iter().enumerate() {
                let x = if x.is_nan() { C::neg_infinity() } else { x };
                if least.is_none_or(|least| x > least) {
                    found.push((x, (i * LOGITS_AT_ONCE + j) as i32));
                }
            }
            if found.len() >= 2 * k {
                keep(found, k);
                least = Some(found[k - 1].0);
            }
        }
        keep(found, k);
    }
}

/// Keeps the `k` largest, the least of them last.
fn keep<C: Float>(found: &mut Vec<(C, i32)>, k: usize) {
    if found.len() > k {
        found.select_nth_unstable_by(k - 1, |a, b| {
            b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1))
        });
        found.truncate(k);
    }
}

struct Rest<'a> {
    z: &'a [f64],
    scale: f64,
}

impl Kernel for Rest<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let [top] = max_of::<f64, 1>(self.z);
        if top == f64::NEG_INFINITY {
            return f64::NEG_INFINITY;
        }
        let [[sum]] =
            map_reduce::<f64, 1, 1, 0, 1>([self.z], [], f64::NEG_INFINITY, |[z], [sum], []| {
                for l in 0..LANES {
                    sum[l] += ((z[l] - top) * self.scale).exp_negative();
                }
            });
        top * self.scale + sum.ln_fast()
    }
}
