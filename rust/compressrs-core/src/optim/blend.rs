//! What is done to weights and gradients besides a rule's step, in place.

use num_traits::Float as _;

use crate::element::{Element, Float};
use crate::parallel::{self, SharedMut};
use crate::simd::{self, Kernel};

use super::step::{ALIGN, GRAIN};

/// Calls `f` for each element of `x` and the one of `y` at its place.
fn zip<E: Element>(x: &mut [E], y: &[E], f: impl Fn(&mut E, E) + Copy + Sync) {
    assert_eq!(x.len(), y.len());
    let len = x.len();
    let shared = SharedMut::new(x);
    parallel::for_each(0..len, GRAIN, ALIGN, |part| {
        // SAFETY: `x` is borrowed until the loop ends; parts do not overlap.
        let x = unsafe { shared.slice(part.clone()) };
        simd::dispatch(Zip { x, y: &y[part], f });
    });
}

struct Zip<'a, E, F> {
    x: &'a mut [E],
    y: &'a [E],
    f: F,
}

impl<E: Element, F: Fn(&mut E, E)> Kernel for Zip<'_, E, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (x, &y) in self.x.iter_mut().zip(self.y) {
            (self.f)(x, y);
        }
    }
}

/// `x <- x + weight (end - x)`.
///
/// # Panics
/// If the lengths differ.
pub fn lerp<E: Element>(x: &mut [E], end: &[E], weight: f64) {
    let weight = E::Compute::from_f64(weight);
    zip(x, end, |x, end| {
        let start = x.load();
        *x = E::store(weight.mul_add(end.load() - start, start));
    });
}

/// `sum <- sum + weight x`.
///
/// # Panics
/// If the lengths differ.
pub fn accumulate<E: Element>(sum: &mut [E], x: &[E], weight: f64) {
    let weight = E::Compute::from_f64(weight);
    zip(sum, x, |sum, x| *sum = E::store(weight.mul_add(x.load(), sum.load())));
}

/// Exchanges two slices.
///
/// # Panics
/// If the lengths differ.
pub fn swap<E: Element>(x: &mut [E], y: &mut [E]) {
    assert_eq!(x.len(), y.len());
    let len = x.len();
    let (x, y) = (SharedMut::new(x), SharedMut::new(y));
    parallel::for_each(0..len, GRAIN, ALIGN, |part| {
        // SAFETY: both are borrowed until the loop ends; parts do not overlap.
        unsafe { x.slice(part.clone()).swap_with_slice(y.slice(part)) };
    });
}

fn each<E: Element>(x: &mut [E], f: impl Fn(E::Compute) -> E::Compute + Copy + Sync) {
    let len = x.len();
    let shared = SharedMut::new(x);
    parallel::for_each(0..len, GRAIN, ALIGN, |part| {
        // SAFETY: `x` is borrowed until the loop ends; parts do not overlap.
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
