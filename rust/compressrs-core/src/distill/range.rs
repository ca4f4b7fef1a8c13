//! Numbers whose squares are beyond the range of their type, brought into it by a power
//! of 2, which changes no digit.

use crate::numeric::element::Float;
use crate::runtime::memory;

/// What the numbers are to be divided by so that their squares, and sums of these, are
/// in range: a power of 2, None if they are as they stand. All must be finite.
pub fn unit<C: Float>(x: &[C]) -> Option<f64> {
    let limit = C::max_value().to_f64().cbrt();
    let unit = of_largest(x);
    if (limit.recip()..limit).contains(&unit) { None } else { Some(unit) }
}

/// The power of 2 by which the largest magnitude comes to `[1, 2)`; 1 if that is 0 or not
/// finite.
pub fn of_largest<C: Float>(x: &[C]) -> f64 {
    let largest = x.iter().fold(0.0, |top: f64, &x| top.max(Float::to_f64(x).abs()));
    if largest == 0.0 || largest == f64::INFINITY {
        return 1.0;
    }
    // 2^1023, whose reciprocal is not normal, is not needed.
    let exponent = (largest.to_bits() >> 52).clamp(1, 2045);
    f64::from_bits(exponent << 52)
}

/// The numbers times a factor.
pub fn times<C: Float>(x: &[C], factor: f64) -> Vec<C> {
    memory::collect(x.iter().map(|&x| C::from_f64(factor * Float::to_f64(x))))
}

/// `x <- factor x`
pub fn multiply<C: Float>(x: &mut [C], factor: f64) {
    for x in x {
        *x = C::from_f64(factor * x.to_f64());
    }
}
