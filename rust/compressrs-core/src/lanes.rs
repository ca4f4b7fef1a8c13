//! Reductions in a fixed order.
//!
//! A sum runs in [`LANES`] accumulators, element `i` in accumulator
//! `i % LANES`, which are then added up in a fixed binary tree. The order does
//! not depend on the vector width, and 64 independent accumulators hide the
//! latency of the addition at every width.

use crate::element::Float;
use crate::parallel;
use crate::simd::{self, Kernel};

/// Number of accumulators of a reduction.
pub const LANES: usize = 64;

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

/// Accumulators, one a lane.
#[derive(Clone, Copy)]
pub struct Lanes<C>([C; LANES]);

impl<C: Float> Lanes<C> {
    /// All the same.
    #[inline(always)]
    pub fn new(value: C) -> Self {
        Lanes([value; LANES])
    }

    /// The sum of all.
    #[inline(always)]
    pub fn sum(self) -> C {
        sum_tree(self.0)
    }
}

/// Calls `f` with blocks of [`LANES`] elements of the inputs, the accumulators, and
/// blocks for the outputs. All slices are of one length.
///
/// The last block is filled up with `fill`, which must not change the accumulators:
/// a loop over a block, whose length is known while compiling, becomes vector
/// instructions with nothing left over.
#[inline(always)]
pub fn sweep<C: Float, const I: usize, const O: usize, const A: usize>(
    inputs: [&[C]; I],
    mut outputs: [&mut [C]; O],
    accumulators: &mut [Lanes<C>; A],
    fill: C,
    f: impl Fn([&[C; LANES]; I], &mut [[C; LANES]; A], &mut [[C; LANES]; O]),
) {
    let n = inputs[0].len();
    // Lengths that the compiler can see are equal need no bounds checks.
    let inputs = inputs.map(|x| x[..n].as_chunks::<LANES>());
    let mut outputs = outputs.each_mut().map(|x| x[..n].as_chunks_mut::<LANES>());
    // Locals, which nothing can overlap.
    let mut sums: [[C; LANES]; A] = accumulators.each_ref().map(|a| a.0);
    let mut results = [[C::zero(); LANES]; O];
    for block in 0..n / LANES {
        f(inputs.map(|(blocks, _)| &blocks[block]), &mut sums, &mut results);
        for ((blocks, _), result) in outputs.iter_mut().zip(&results) {
            blocks[block] = *result;
        }
    }
    let rest = n % LANES;
    if rest > 0 {
        let filled = inputs.map(|(_, tail)| {
            let mut block = [fill; LANES];
            block[..rest].copy_from_slice(tail);
            block
        });
        f(filled.each_ref(), &mut sums, &mut results);
        for ((_, tail), result) in outputs.iter_mut().zip(&results) {
            tail.copy_from_slice(&result[..rest]);
        }
    }
    *accumulators = sums.map(Lanes);
}

/// The larger; the first where either is NaN.
#[inline(always)]
pub fn max<C: Float>(a: C, b: C) -> C {
    if b > a { b } else { a }
}

/// The largest element, NaN passed over; -inf for an empty slice or if all is NaN.
#[inline(always)]
pub fn max_of<C: Float>(x: &[C]) -> C {
    let mut top = [Lanes::new(C::neg_infinity())];
    sweep([x], [], &mut top, C::neg_infinity(), |[x], [top], []| {
        for l in 0..LANES {
            top[l] = max(top[l], x[l]);
        }
    });
    tree(top[0].0, max)
}

/// Elements that [`total`] sums in lanes before partial sums are added up.
const BLOCK: usize = 1 << 15;

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
    parallel::reduce(n, BLOCK, block, add).unwrap_or([0.0; K])
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
