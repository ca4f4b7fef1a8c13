//! Scores that add up over steps.

use num_traits::Float as _;

use crate::numeric::element::Element;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// Values worth a task of their own.
const GRAIN_ELEMENTS: usize = 128 * 1024;
const ALIGN: usize = 64;

/// What a step adds to the score of a weight `w` with gradient `g`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Term {
    /// `w g`: what a change of the weight by its own value changes the loss by.
    Product,
    /// `-w g`: positive where the step moves the weight away from 0.
    Opposite,
    /// `(w g)^2`.
    Square,
}

/// Adds products of weights and gradients to their scores.
///
/// # Panics
/// If the lengths differ.
pub fn accumulate_products<E: Element>(
    scores: &mut [E::Compute],
    w: &[E],
    g: &[E::Compute],
    term: Term,
) {
    assert!(scores.len() == w.len() && w.len() == g.len());
    let shared = SharedMut::new(scores);
    parallel::for_each(0..w.len(), GRAIN_ELEMENTS, ALIGN, |part| {
        // SAFETY: `scores` is borrowed for the whole call and parts do not overlap.
        let scores = unsafe { shared.slice(part.clone()) };
        simd::dispatch(Products { scores, w: &w[part.clone()], g: &g[part], term });
    });
}

struct Products<'a, E: Element> {
    scores: &'a mut [E::Compute],
    w: &'a [E],
    g: &'a [E::Compute],
    term: Term,
}

impl<E: Element> Kernel for Products<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let lines = self.scores.iter_mut().zip(self.w).zip(self.g);
        let terms = lines.map(|((s, w), g)| (s, w.load(), *g));
        match self.term {
            Term::Product => terms.for_each(|(s, w, g)| *s = w.mul_add(g, *s)),
            Term::Opposite => terms.for_each(|(s, w, g)| *s = (-w).mul_add(g, *s)),
            Term::Square => terms.for_each(|(s, w, g)| *s = (w * g).mul_add(w * g, *s)),
        }
    }
}
