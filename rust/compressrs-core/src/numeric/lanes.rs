//! Reductions in a fixed order.
//!
//! A sum runs in a fixed number of accumulators, element `i` in accumulator `i` modulo
//! that number, which are then added up in a fixed binary tree. The order does not depend
//! on the vector width, and the accumulators are enough to hide the latency of an addition.

use crate::numeric::element::Float;
use crate::runtime::parallel;
use crate::runtime::simd::{self, Kernel};

/// Combines the lanes as a binary tree: `l` with `l + N / 2`, then `l + N / 4`, ...
#[inline(always)]
pub fn tree<C: Float, const N: usize>(mut lanes: [C; N], combine: impl Fn(C, C) -> C) -> C {
    const { assert!(N.is_power_of_two()) };
    let mut half = N / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] = combine(lanes[l], lanes[l + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// The sum of the lanes.
#[inline(always)]
pub fn sum_tree<C: Float, const N: usize>(lanes: [C; N]) -> C {
    tree(lanes, |a, b| a + b)
}

/// Elements that [`total`] sums in lanes before partial sums are added up.
const PARTIAL_SUM_ELEMENTS: usize = 1 << 15;

/// Accumulators of [`sums`].
const TERMS: usize = 16;

/// The sums over `0..n` of the terms that `f` gives, in double precision.
#[inline(always)]
pub fn sums<const K: usize>(n: usize, f: impl Fn(usize) -> [f64; K]) -> [f64; K] {
    let mut lanes = [[0.0; TERMS]; K];
    for start in (0..n).step_by(TERMS) {
        for l in 0..TERMS.min(n - start) {
            let terms = f(start + l);
            for k in 0..K {
                lanes[k][l] += terms[k];
            }
        }
    }
    lanes.map(sum_tree)
}

/// As [`sums`], in parallel, by blocks whose sums are added up in a fixed tree.
pub fn total<const K: usize>(n: usize, f: impl Fn(usize) -> [f64; K] + Sync) -> [f64; K] {
    let block = |part: std::ops::Range<usize>| {
        simd::dispatch(Sums { n: part.len(), f: |i| f(part.start + i) })
    };
    let add = |a: [f64; K], b: [f64; K]| std::array::from_fn(|k| a[k] + b[k]);
    parallel::reduce(n, PARTIAL_SUM_ELEMENTS, block, add).unwrap_or([0.0; K])
}

struct Sums<F> {
    n: usize,
    f: F,
}

impl<F: Fn(usize) -> [f64; K], const K: usize> Kernel for Sums<F> {
    type Output = [f64; K];

    #[inline(always)]
    fn run(self) -> [f64; K] {
        sums(self.n, self.f)
    }
}
