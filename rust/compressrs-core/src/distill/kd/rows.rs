//! A few rows of the batch, and what is known of them.

use super::super::tile::{LANES, broadcast, update};
use super::loss::{KdLoss, UNLABELLED, Weights};
use crate::numeric::element::Float;
use crate::runtime::memory;

/// A few rows as a tile, and what is known of them.
pub(super) struct Tile<'a, C, const R: usize> {
    pub what: &'a KdLoss<'a>,
    pub weights: Weights,
    pub per_class: &'a PerClass<C>,
    /// The first row's number in the batch, and how many there are.
    pub first: usize,
    pub rows: usize,
    /// The student's logits, and the largest of each row.
    pub s: &'a [C],
    pub top: [C; R],
}

/// The weights of classes, laid out as the tiles of logits are, for label
/// smoothing; empty without.
pub(super) struct PerClass<C> {
    pub weights: Vec<C>,
    /// The sum of the weights.
    pub total: f64,
}

impl<C: Float> PerClass<C> {
    pub fn new(what: &KdLoss<'_>, times: usize) -> Self {
        if what.label_smoothing == 0.0 || !what.is_hard() {
            return PerClass { weights: vec![], total: 0.0 };
        }
        let weight = |class| what.class_weights.map_or(1.0, |w: &[f64]| w[class]);
        let all = (0..what.classes).map(weight);
        let mut weights = memory::with_capacity(memory::product(what.classes, times));
        weights.extend(all.clone().flat_map(|w| std::iter::repeat_n(C::from_f64(w), times)));
        PerClass { total: all.sum(), weights }
    }
}

impl<C: Float, const R: usize> Tile<'_, C, R> {
    /// Where a tile has a class of a row.
    #[inline(always)]
    pub(super) fn at(class: usize, row: usize) -> usize {
        if R == 1 { class } else { class * LANES + row }
    }

    /// Weight of a row.
    #[inline(always)]
    pub(super) fn weight(&self, row: usize) -> f64 {
        match self.what.sample_weights {
            Some(v) => v[(self.first + row).min(v.len() - 1)],
            None => 1.0,
        }
    }

    #[inline(always)]
    pub(super) fn label(&self, row: usize) -> Option<usize> {
        let labels = self.what.labels?;
        labels.get(self.first + row).copied().filter(|&label| label != UNLABELLED)
    }

    #[inline(always)]
    pub(super) fn temperatures(&self) -> [f64; R] {
        std::array::from_fn(|r| self.what.temperature.of(self.first + r))
    }
}

/// `grad += factor x`
#[inline(always)]
pub(super) fn add<C: Float, const R: usize>(grad: &mut [C], x: &[C], factor: [f64; R]) {
    let factor = broadcast(factor.map(C::from_f64));
    update(grad, [x], |g, [x]| {
        for l in 0..LANES {
            g[l] = factor[l].mul_add(x[l], g[l]);
        }
    });
}
