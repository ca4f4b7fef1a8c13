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

/// Elements that [`sweep`] takes at a time: a register of `f32` where
/// registers are widest, and what a short row is filled up to.
pub const UNIT: usize = 16;

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

/// Calls `f` for each element of the inputs, with the accumulators of its lane,
/// and writes what it returns to the outputs. All slices are of one length.
///
/// Elements go in units, the last of which is filled up with `fill`: a loop whose
/// length is known while compiling becomes vector instructions with nothing left
/// over, and a row shorter than a register costs one unit. `f` sees what is
/// filled in, which must not change the accumulators.
#[inline(always)]
pub fn sweep<C: Float, const I: usize, const O: usize, const A: usize>(
    inputs: [&[C]; I],
    mut outputs: [&mut [C]; O],
    accumulators: &mut [Lanes<C>; A],
    fill: C,
    f: impl Fn([C; I], &mut [C; A]) -> [C; O],
) {
    // Lengths that the compiler can see are equal need no bounds checks.
    let n = inputs[0].len();
    let inputs = inputs.map(|x| x[..n].as_chunks::<UNIT>());
    let mut outputs = outputs.each_mut().map(|x| x[..n].as_chunks_mut::<UNIT>());
    let mut call = |unit: usize, inputs: [&[C; UNIT]; I]| {
        let lane = unit % (LANES / UNIT);
        let slots = accumulators.each_mut().map(|a| &mut a.0.as_chunks_mut::<UNIT>().0[lane]);
        // Locals, which nothing can overlap.
        let mut sums: [[C; UNIT]; A] = slots.each_ref().map(|slot| **slot);
        let mut results = [[C::zero(); UNIT]; O];
        for l in 0..UNIT {
            let mut sum = sums.each_ref().map(|s| s[l]);
            let result = f(inputs.map(|x| x[l]), &mut sum);
            for a in 0..A {
                sums[a][l] = sum[a];
            }
            for o in 0..O {
                results[o][l] = result[o];
            }
        }
        for (slot, sum) in slots.into_iter().zip(sums) {
            *slot = sum;
        }
        results
    };
    for unit in 0..n / UNIT {
        let results = call(unit, inputs.map(|(units, _)| &units[unit]));
        for ((units, _), result) in outputs.iter_mut().zip(results) {
            units[unit] = result;
        }
    }
    let rest = n % UNIT;
    if rest > 0 {
        let inputs = inputs.map(|(_, tail)| {
            let mut unit = [fill; UNIT];
            unit[..rest].copy_from_slice(tail);
            unit
        });
        let results = call(n / UNIT, inputs.each_ref());
        for ((_, tail), result) in outputs.iter_mut().zip(results) {
            tail.copy_from_slice(&result[..rest]);
        }
    }
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
    sweep([x], [], &mut top, C::neg_infinity(), |[x], [top]| {
        *top = max(*top, x);
        []
    });
    tree(top[0].0, max)
}

/// Elements that [`total`] sums in lanes before partial sums are added up.
const BLOCK: usize = 1 << 15;

/// The sums over `0..n` of the terms that `f` gives, in double precision.
#[inline(always)]
pub fn sums<const K: usize>(n: usize, f: impl Fn(usize) -> [f64; K]) -> [f64; K] {
    let mut lanes = [[0.0; UNIT]; K];
    for start in (0..n).step_by(UNIT) {
        for l in 0..UNIT.min(n - start) {
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
