//! What is done to weights and gradients besides a rule's step, in place.

use num_traits::Float as _;

use crate::numeric::element::{Element, Float};
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

use super::step::{ALIGN, GRAIN};
use super::storage::{Values, convert, with_values};

/// Calls `f` for each element of `x` and the one of `y` at its place.
fn zip<X: Element, Y: Element>(x: &mut [X], y: &[Y], f: impl Fn(&mut X, Y) + Copy + Sync) {
    assert_eq!(x.len(), y.len());
    let len = x.len();
    let shared = SharedMut::new(x);
    parallel::for_each(0..len, GRAIN, ALIGN, |part| {
        // SAFETY: parts do not overlap.
        let x = unsafe { shared.slice(part.clone()) };
        simd::dispatch(Zip { x, y: &y[part], f });
    });
}

struct Zip<'a, X, Y, F> {
    x: &'a mut [X],
    y: &'a [Y],
    f: F,
}

impl<X: Element, Y: Element, F: Fn(&mut X, Y)> Kernel for Zip<'_, X, Y, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (x, &y) in self.x.iter_mut().zip(self.y) {
            (self.f)(x, y);
        }
    }
}

/// `x <- x + weight (end - x)`, in the type that `x` is computed in.
///
/// # Panics
/// If the lengths differ.
pub fn lerp<X: Element>(x: &mut [X], end: Values<'_>, weight: f64) {
    let weight = X::Compute::from_f64(weight);
    with_values!(end, end => zip(x, end, |x, end| {
        let (start, end) = (x.load(), convert::<_, X::Compute>(end));
        *x = X::store(weight.mul_add(end - start, start));
    }));
}

/// `sum <- sum + weight x`, in the type that `sum` is computed in.
///
/// # Panics
/// If the lengths differ.
pub fn accumulate<X: Element>(sum: &mut [X], x: Values<'_>, weight: f64) {
    let weight = X::Compute::from_f64(weight);
    with_values!(x, x => zip(sum, x, |sum, x| {
        *sum = X::store(weight.mul_add(convert(x), sum.load()));
    }));
}

fn each<E: Element>(x: &mut [E], f: impl Fn(E::Compute) -> E::Compute + Copy + Sync) {
    let len = x.len();
    let shared = SharedMut::new(x);
    parallel::for_each(0..len, GRAIN, ALIGN, |part| {
        // SAFETY: parts do not overlap.
        let x = unsafe { shared.slice(part) };
        simd::dispatch(Each { x, f });
    });
}

struct Each<'a, E, F> {
    x: &'a mut [E],
    f: F,
}

impl<E: Element, F: Fn(E::Compute) -> E::Compute> Kernel for Each<'_, E, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for x in self.x {
            *x = E::store((self.f)(x.load()));
        }
    }
}

/// `x <- factor x`.
pub fn scale<E: Element>(x: &mut [E], factor: f64) {
    let factor = E::Compute::from_f64(factor);
    each(x, |x| factor * x);
}

/// `x <- min(max(x, -limit), limit)`; NaN stays.
pub fn clamp<E: Element>(x: &mut [E], limit: f64) {
    let limit = E::Compute::from_f64(limit);
    each(x, |x| {
        let x = if x > limit { limit } else { x };
        if x < -limit { -limit } else { x }
    });
}
