//! Norms of gradients over any number of tensors, and where one is not finite.

use std::convert::Infallible;
use std::ops::Range;

use super::tensor::is_kept;
use super::values::{Values, with_values};
use crate::numeric::element::{Element, Float};
use crate::numeric::lanes::tree;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// Elements of one partial sum; partial sums are added up in a fixed tree.
pub const PARTIAL_SUM_ELEMENTS: usize = 1 << 15;

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

/// What is wrong with a gradient that a step is not taken with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It holds NaN or infinity.
    NonFinite,
    /// It holds finite gradients of the same row, whose sum is beyond the range of its type.
    RowSum,
    /// As scaled, it holds numbers beyond the range of the type that its parameter is computed in.
    Scaled,
}

impl Fault {
    /// What is wrong with sums that are not finite, by what was added up.
    pub fn of_sums(addends: Values<'_>) -> Self {
        let all = [Gradient { values: addends, mask: None }];
        if find_beyond(&all, |_| f64::MAX).is_none() { Fault::RowSum } else { Fault::NonFinite }
    }
}

/// A norm: `value * unit`, which may be beyond the range of `f64` where both are finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// The norm in units; not finite only if an element is not.
    pub value: f64,
    /// A power of 2, which is 1 unless powers of the elements overflow or lose digits.
    pub unit: f64,
}

impl Norm {
    /// The norm; infinite if it is beyond the range of `f64`.
    pub fn get(self) -> f64 {
        self.value * self.unit
    }

    /// What `scale` times the numbers are multiplied by so that their norm is at most
    /// `max`, as PyTorch clips, epsilon included; NaN if the norm is.
    pub fn clip(self, scale: f64, max: f64) -> f64 {
        let (max, epsilon) = (max / self.unit, 1e-6 / self.unit);
        let clip = max / (self.value * scale.abs() + epsilon);
        // min drops NaN, which PyTorch's clamp keeps.
        if self.value.is_nan() { self.value } else { clip.min(1.0) }
    }
}

/// What is reduced over all elements to find a norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reduction {
    /// The sum of the powers of the magnitudes, each divided by a unit.
    Powers {
        /// The exponent.
        order: f64,
        /// The unit.
        unit: f64,
    },
    /// The largest magnitude, NaN if there is one.
    Largest,
}

/// The `order`-norm of all elements together, `(sum |x|^order)^(1/order)`; the
/// largest magnitude for an infinite order. In double precision.
pub fn norm(gradients: &[Gradient<'_>], order: f64) -> Norm {
    let norm = norm_by(order, |reduction| Ok::<_, Infallible>(reduce(gradients, reduction)));
    norm.unwrap_or_else(|never| match never {})
}

/// The same from a function that reduces over all elements, wherever they are.
///
/// # Errors
/// The function's.
pub fn norm_by<E>(
    order: f64,
    mut reduce: impl FnMut(Reduction) -> Result<f64, E>,
) -> Result<Norm, E> {
    let plain = |value| Norm { value, unit: 1.0 };
    if order == f64::INFINITY {
        return Ok(plain(reduce(Reduction::Largest)?));
    }
    let powers = reduce(Reduction::Powers { order, unit: 1.0 })?;
    if keeps_digits(powers) {
        return Ok(plain(powers.powf(order.recip())));
    }
    // Powers that overflowed, or lost digits below the normal range.
    let largest = reduce(Reduction::Largest)?;
    if largest == 0.0 || !largest.is_finite() {
        return Ok(plain(largest));
    }
    // By a power of 2, so that no digit is lost, which has a reciprocal: in
    // [2^-1022, 2^1022].
    let exponent = (largest.to_bits() >> 52).clamp(1, 2045);
    let unit = f64::from_bits(exponent << 52);
    let powers = reduce(Reduction::Powers { order, unit })?;
    if keeps_digits(powers) {
        return Ok(Norm { value: powers.powf(order.recip()), unit });
    }
    // A large order, for which even powers of numbers between 1 and 2 overflow.
    let powers = reduce(Reduction::Powers { order, unit: largest })?;
    Ok(Norm { value: largest / unit * powers.powf(order.recip()), unit })
}

/// Whether a sum of powers neither overflowed nor lost digits below the normal range.
fn keeps_digits(sum: f64) -> bool {
    sum.is_finite() && sum >= f64::MIN_POSITIVE / f64::EPSILON
}

/// The root of the sum of squares that `squares` gives of numbers divided by a unit, and
/// that unit: root times unit is the norm, which may be out of range where both are not.
pub(super) fn root_of_squares(squares: impl Fn(f64) -> f64) -> (f64, f64) {
    let plain = squares(1.0);
    let unit = unit_of_squares(plain);
    if unit != 1.0 {
        let scaled = squares(unit);
        if scaled > 0.0 && scaled.is_finite() {
            return (scaled.sqrt(), unit);
        }
    }
    (plain.sqrt(), 1.0)
}

/// What numbers are to be divided by before they are squared, given the sum of their
/// squares as it came out: 1, unless squares overflowed or lost digits.
pub(super) fn unit_of_squares(sum: f64) -> f64 {
    // Squares of what is beyond the range of these units' squares do not count.
    const LARGE: f64 = f64::from_bits((1023 + 600) << 52);
    const SMALL: f64 = f64::from_bits((1023 - 600) << 52);
    match sum {
        sum if keeps_digits(sum) || sum.is_nan() => 1.0,
        sum if sum == f64::INFINITY => LARGE,
        _ => SMALL,
    }
}

/// The index of the first gradient with an element that counts whose magnitude is not
/// at most that of `largest` for this index: NaN, infinite, or too large.
pub fn find_beyond(gradients: &[Gradient<'_>], largest: impl Fn(usize) -> f64) -> Option<usize> {
    let within = |(i, g)| reduce(std::slice::from_ref(g), Reduction::Largest) <= largest(i);
    gradients.iter().enumerate().position(|pair| !within(pair))
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
/// `|x / unit|^order`
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
        sum + (x / self.0).abs().powf(self.1)
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

/// Calls `$body` with the term of a reduction as `$term`.
macro_rules! with_term {
    ($reduction:expr, $term:ident => $body:expr) => {
        match $reduction {
            Reduction::Largest => {
                let $term = Largest;
                $body
            }
            Reduction::Powers { order: 2.0, unit } => {
                let $term = Square(unit.recip());
                $body
            }
            Reduction::Powers { order: 1.0, unit } => {
                let $term = Magnitude(unit.recip());
                $body
            }
            Reduction::Powers { order, unit } => {
                let $term = Power(unit, order);
                $body
            }
        }
    };
}

fn reduce(gradients: &[Gradient<'_>], reduction: Reduction) -> f64 {
    with_term!(reduction, term => {
        // A tree for each tensor, so that a tensor's norm does not depend on the others.
        let tensor = |g: &Gradient<'_>| {
            let block = |part| reduce_block(g, part, term);
            parallel::reduce(g.values.len(), PARTIAL_SUM_ELEMENTS, block, |a, b| {
                term.combine(a, b)
            })
            .unwrap_or(0.0)
        };
        gradients.iter().map(tensor).fold(0.0, |a, b| term.combine(a, b))
    })
}

/// Writes the reductions of each [`PARTIAL_SUM_ELEMENTS`] of a gradient, as many as `out` has;
/// [`combine`] makes of all of them what [`norm`] reduces to.
///
/// # Panics
/// If `out` has another number of elements than the gradient has such blocks.
pub fn partial_reductions(gradient: &Gradient<'_>, reduction: Reduction, out: &mut [f64]) {
    let len = gradient.values.len();
    assert_eq!(out.len(), len.div_ceil(PARTIAL_SUM_ELEMENTS), "number of blocks");
    let out = SharedMut::new(out);
    with_term!(reduction, term => {
        parallel::for_each(0..out.len(), 1, 1, |blocks| {
            // SAFETY: parts do not overlap, and `out` is borrowed by this function.
            let out = unsafe { out.slice(blocks.clone()) };
            for (sum, i) in out.iter_mut().zip(blocks) {
                let part = i * PARTIAL_SUM_ELEMENTS..len.min((i + 1) * PARTIAL_SUM_ELEMENTS);
                *sum = reduce_block(gradient, part, term);
            }
        });
    });
}

/// Combines the partial reductions of each tensor, and then those of the tensors.
pub fn combine(tensors: &[&[f64]], reduction: Reduction) -> f64 {
    with_term!(reduction, term => {
        let tensor = |partials: &&[f64]| {
            let one = |part: Range<usize>| partials[part.start];
            parallel::reduce(partials.len(), 1, one, |a, b| term.combine(a, b)).unwrap_or(0.0)
        };
        tensors.iter().map(tensor).fold(0.0, |a, b| term.combine(a, b))
    })
}

fn reduce_block<T: Term>(gradient: &Gradient<'_>, part: Range<usize>, term: T) -> f64 {
    let mask = gradient.mask.map(|mask| &mask[part.start / 8..]);
    with_values!(gradient.values, x => simd::dispatch(Block { values: &x[part], mask, term }))
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
