//! Norms of gradients over any number of tensors, and where one is not finite.

use super::step::is_kept;
use super::storage::{Values, with_values};
use crate::numeric::element::{Element, Float};
use crate::numeric::lanes::tree;
use crate::runtime::parallel;
use crate::runtime::simd::{self, Kernel};

/// Elements of one partial sum; partial sums are added up in a fixed tree.
const BLOCK: usize = 1 << 15;

/// Accumulators of a partial sum: with four registers where they hold four, enough
/// to hide the latency of the addition.
const LANES: usize = 16;

/// A gradient, and which of its elements count.
#[derive(Clone, Copy, Debug)]
pub struct Gradient<'a> {
    /// Its elements.
    pub values: Values<'a>,
    /// A bit for each element, 0 where it does not count; see
    /// [`Tensor::new`](super::Tensor::new).
    pub mask: Option<&'a [u8]>,
}

/// The `order`-norm of all elements together, `(sum |x|^order)^(1/order)`; the
/// largest magnitude for an infinite order. In double precision.
///
/// It is not finite only if an element is not, unless the norm itself is beyond
/// the range of `f64`.
pub fn norm(gradients: &[Gradient<'_>], order: f64) -> f64 {
    if order == f64::INFINITY {
        return reduce(gradients, Largest);
    }
    let sum = |scale: f64| {
        if order == 2.0 {
            reduce(gradients, Square(scale))
        } else if order == 1.0 {
            reduce(gradients, Magnitude(scale))
        } else {
            reduce(gradients, Power(scale, order))
        }
    };
    let plain = sum(1.0);
    if plain.is_finite() && plain >= f64::MIN_POSITIVE / f64::EPSILON {
        return plain.powf(order.recip());
    }
    // Powers that overflowed, or lost digits below the normal range.
    let largest = reduce(gradients, Largest);
    if largest == 0.0 || !largest.is_finite() {
        return largest;
    }
    // Finite, though `largest` may be below the normal range.
    let scale = largest.max(f64::MIN_POSITIVE).recip();
    sum(scale).powf(order.recip()) / scale
}

/// The index of the first gradient with an element that counts and is not finite.
pub fn find_non_finite(gradients: &[Gradient<'_>]) -> Option<usize> {
    gradients.iter().position(|g| !reduce(std::slice::from_ref(g), Largest).is_finite())
}

/// What is summed, or compared.
trait Term: Copy + Sync {
    /// Combines what came before with one element.
    fn add(self, sum: f64, x: f64) -> f64;

    /// Combines two partial results.
    #[inline(always)]
    fn combine(self, a: f64, b: f64) -> f64 {
        a + b
    }
}

/// `(scale x)^2`
#[derive(Clone, Copy)]
struct Square(f64);
/// `|scale x|`
#[derive(Clone, Copy)]
struct Magnitude(f64);
/// `|scale x|^order`
#[derive(Clone, Copy)]
struct Power(f64, f64);
/// The largest magnitude, NaN if there is one.
#[derive(Clone, Copy)]
struct Largest;

impl Term for Square {
    #[inline(always)]
    fn add(self, sum: f64, x: f64) -> f64 {
        let x = self.0 * x;
        x.mul_add(x, sum)
    }
}

impl Term for Magnitude {
    #[inline(always)]
    fn add(self, sum: f64, x: f64) -> f64 {
        sum + (self.0 * x).abs()
    }
}

impl Term for Power {
    #[inline(always)]
    fn add(self, sum: f64, x: f64) -> f64 {
        sum + (self.0 * x).abs().powf(self.1)
    }
}

impl Term for Largest {
    #[inline(always)]
    fn add(self, sum: f64, x: f64) -> f64 {
        self.combine(sum, x.abs())
    }

    #[inline(always)]
    fn combine(self, a: f64, b: f64) -> f64 {
        if a > b || a.is_nan() { a } else { b }
    }
}

fn reduce<T: Term>(gradients: &[Gradient<'_>], term: T) -> f64 {
    // A tree for each tensor, so that a tensor's norm does not depend on the others.
    let partial = |g: &Gradient<'_>| {
        let block = |part: std::ops::Range<usize>| {
            let mask = g.mask.map(|mask| &mask[part.start / 8..]);
            with_values!(g.values, x => simd::dispatch(Block { values: &x[part], mask, term }))
        };
        parallel::reduce(g.values.len(), BLOCK, block, |a, b| term.combine(a, b)).unwrap_or(0.0)
    };
    gradients.iter().map(partial).fold(0.0, |a, b| term.combine(a, b))
}

struct Block<'a, E, T> {
    values: &'a [E],
    mask: Option<&'a [u8]>,
    term: T,
}

impl<E: Element, T: Term> Kernel for Block<'_, E, T> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let mut lanes = [0.0; LANES];
        if let Some(mask) = self.mask {
            for (i, x) in self.values.iter().enumerate() {
                if is_kept(mask, i) {
                    lanes[i % LANES] = self.term.add(lanes[i % LANES], x.load().to_f64());
                }
            }
        } else {
            let (units, rest) = self.values.as_chunks::<LANES>();
            for unit in units {
                // Locals of a length known while compiling, which stay in registers.
                let mut sums = lanes;
                for l in 0..LANES {
                    sums[l] = self.term.add(sums[l], unit[l].load().to_f64());
                }
                lanes = sums;
            }
            for (lane, x) in lanes.iter_mut().zip(rest) {
                *lane = self.term.add(*lane, x.load().to_f64());
            }
        }
        tree(lanes, |a, b| self.term.combine(a, b))
    }
}
