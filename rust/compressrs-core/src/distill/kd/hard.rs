//! The hard term: cross-entropy with labels, smoothing and weights.

use super::super::tile::{LANES, broadcast, by_row, map_reduce, update};
use super::loss::KdLoss;
use super::rows::Tile;
use crate::numeric::element::Float;
use crate::runtime::simd::{self, Kernel};

/// What the hard term adds to the loss of each row, and how its gradient is made of
/// the exponentials of the logits less the largest.
pub(super) struct Hard<const R: usize> {
    losses: [f64; R],
    pub factor: [f64; R],
    /// The label of each row, and what is taken from its gradient.
    labels: [Option<(usize, f64)>; R],
    /// What is taken from the gradient of each class for its weight of 1.
    smooth: [f64; R],
}

/// [`Tile::plain`], of which each way through the loss takes one: compiled once.
struct Plain<'a, C, const R: usize> {
    s: &'a [C],
    top: [C; R],
    out: &'a mut [C],
}

impl<C: Float, const R: usize> Kernel for Plain<'_, C, R> {
    type Output = [f64; R];

    #[inline(always)]
    fn run(self) -> [f64; R] {
        let top = broadcast(self.top);
        let (inputs, outputs) = ([self.s], [self.out]);
        let [sums] =
            map_reduce::<C, R, 1, 1, 1>(inputs, outputs, C::neg_infinity(), |[s], [sum], [e]| {
                for l in 0..LANES {
                    e[l] = (s[l] - top[l]).exp_negative();
                    sum[l] += e[l];
                }
            });
        sums
    }
}

impl<C: Float, const R: usize> Tile<'_, C, R> {
    /// Writes the exponentials of the logits less the largest; returns their sums.
    #[inline(always)]
    pub(super) fn plain(&self, out: &mut [C]) -> [f64; R] {
        simd::dispatch(Plain { s: self.s, top: self.top, out })
    }

    /// The hard term, given the sums of the exponentials.
    #[inline(always)]
    pub(super) fn hard(&self, sums: [f64; R]) -> Hard<R> {
        let KdLoss { class_weights, label_smoothing, classes, .. } = *self.what;
        let weighted = self.weighted_logits();
        // What label smoothing leaves to the label, and gives to each class.
        let (own, each) = (1.0 - label_smoothing, label_smoothing / classes as f64);
        let logs: [f64; R] = by_row(|r| Float::ln_fast(sums[r]));
        let mut hard =
            Hard { losses: [0.0; R], factor: [0.0; R], labels: [None; R], smooth: [0.0; R] };
        for r in 0..R {
            let Some(label) = self.label(r) else { continue };
            let weight = self.weights.hard * self.weight(r);
            let own = own * class_weights.map_or(1.0, |w| w[label]);
            let distance = self.distance(label, r);
            let mut loss = own * (logs[r] - distance);
            if label_smoothing != 0.0 {
                loss += each * (self.per_class.total * logs[r] - weighted[r]);
            }
            hard.losses[r] = weight * loss;
            hard.factor[r] = weight * (own + each * self.per_class.total) / sums[r];
            hard.labels[r] = Some((label, weight * own));
            hard.smooth[r] = weight * each;
        }
        hard
    }

    /// A logit less the largest of its row; in double precision where that of the type overflows.
    #[inline(always)]
    fn distance(&self, class: usize, row: usize) -> f64 {
        let (logit, top) = (self.s[Self::at(class, row)], self.top[row]);
        let distance = (logit - top).to_f64();
        if distance.is_infinite() { logit.to_f64() - top.to_f64() } else { distance }
    }

    /// The sum of the classes' weights times the logits less the largest.
    #[inline(always)]
    fn weighted_logits(&self) -> [f64; R] {
        if self.what.label_smoothing == 0.0 {
            return [0.0; R];
        }
        let top = broadcast(self.top);
        let inputs = [self.s, &self.per_class.weights];
        // The last line is filled with weights of 0.
        let [mut sums] = map_reduce::<C, R, 2, 0, 1>(inputs, [], C::zero(), |[s, w], [sum], []| {
            for l in 0..LANES {
                let term = w[l] * (s[l] - top[l]);
                sum[l] += if w[l] == C::zero() { C::zero() } else { term };
            }
        });
        for (r, sum) in sums.iter_mut().enumerate().filter(|(_, sum)| sum.is_infinite()) {
            let term = |class: usize| {
                let weight = self.per_class.weights[Self::at(class, r)].to_f64();
                if weight == 0.0 { 0.0 } else { weight * self.distance(class, r) }
            };
            *sum = (0..self.what.classes).map(term).sum();
        }
        sums
    }

    /// Adds what concerns labels.
    #[inline(always)]
    pub(super) fn finish(
        &self,
        mut losses: [f64; R],
        hard: Option<Hard<R>>,
        grad: &mut [C],
    ) -> [f64; R] {
        let Some(hard) = hard else { return losses };
        if self.what.label_smoothing != 0.0 {
            let smooth = broadcast(hard.smooth.map(C::from_f64));
            update(grad, [&self.per_class.weights], |g, [w]| {
                for l in 0..LANES {
                    g[l] = (-smooth[l]).mul_add(w[l], g[l]);
                }
            });
        }
        for r in 0..R {
            losses[r] += hard.losses[r];
            if let Some((label, taken)) = hard.labels[r] {
                let g = &mut grad[Self::at(label, r)];
                *g = *g - C::from_f64(taken);
            }
        }
        losses
    }
}
