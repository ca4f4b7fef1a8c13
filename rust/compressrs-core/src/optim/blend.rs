//! What is done to weights and gradients besides a rule's step, in place.

use num_traits::{Float as _, One as _};

use super::values::{Values, with_values};
use crate::numeric::element::{Element, Float};
use crate::numeric::elementwise::{self, convert, map_in_place, zip_into};

/// `x <- x + weight (end - x)`, in the type that `x` is computed in.
///
/// With a weight of 1 the values of `end`, whatever `x` was.
///
/// # Panics
/// If the lengths differ.
pub fn lerp<X: Element>(x: &mut [X], end: Values<'_>, weight: f64) {
    let weight = X::Compute::from_f64(weight);
    if weight == X::Compute::one() {
        with_values!(end, end => zip_into(x, end, |x, end| *x = X::store(convert(end))));
        return;
    }
    with_values!(end, end => zip_into(x, end, |x, end| {
        let (start, end) = (x.load(), convert::<_, X::Compute>(end));
        *x = X::store(elementwise::lerp(start, end, weight));
    }));
}

/// `sum <- sum + weight x`, in the type that `sum` is computed in.
///
/// # Panics
/// If the lengths differ.
pub fn accumulate<X: Element>(sum: &mut [X], x: Values<'_>, weight: f64) {
    let weight = X::Compute::from_f64(weight);
    with_values!(x, x => zip_into(sum, x, |sum, x| {
        *sum = X::store(weight.mul_add(convert(x), sum.load()));
    }));
}

/// `x <- factor x`.
pub fn scale<E: Element>(x: &mut [E], factor: f64) {
    let narrow = E::Compute::from_f64(factor);
    if factor == 0.0 || narrow.is_normal() {
        map_in_place(x, |x| narrow * x);
    } else {
        // A factor beyond the range of the type, whose products need not be.
        map_in_place(x, |x| E::Compute::from_f64(factor * x.to_f64()));
    }
}

/// `x <- min(max(x, -limit), limit)`; NaN stays.
pub fn clamp<E: Element>(x: &mut [E], limit: f64) {
    let limit = E::Compute::from_f64(limit);
    map_in_place(x, |x| {
        let x = if x > limit { limit } else { x };
        if x < -limit { -limit } else { x }
    });
}
