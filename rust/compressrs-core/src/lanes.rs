//! Reductions in a fixed order.
//!
//! A sum runs in [`LANES`] accumulators, element `i` in accumulator
//! `i % LANES`, which are then added up in a fixed binary tree. The order does
//! not depend on the vector width, and 64 independent accumulators hide the
//! latency of the addition at every width.

use num_traits::Float as _;

use crate::element::{Element, Float};

/// Number of accumulators of a reduction.
pub const LANES: usize = 64;

/// Adds up the lanes as a binary tree: `l` with `l + 32`, then `l + 16`, ...
#[inline(always)]
pub fn sum_tree<C: Float, const N: usize>(mut lanes: [C; N]) -> C {
    const { assert!(N.is_power_of_two()) };
    let mut half = N / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The larger; the first where either is NaN.
#[inline(always)]
pub fn max<C: Float>(a: C, b: C) -> C {
    if b > a { b } else { a }
}

/// The largest element, NaN passed over; -inf for an empty slice or if all is NaN.
#[inline(always)]
pub fn max_of<E: Element>(x: &[E]) -> E::Compute {
    let mut lanes = [E::Compute::neg_infinity(); LANES];
    let (blocks, tail) = x.as_chunks::<LANES>();
    for block in blocks {
        for l in 0..LANES {
            lanes[l] = max(lanes[l], block[l].load());
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(tail) {
        *lane = max(*lane, x.load());
    }
    lanes.into_iter().fold(E::Compute::neg_infinity(), max)
}
