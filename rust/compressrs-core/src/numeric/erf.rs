//! The error function and what is made of it, in a form that compilers vectorize.

/// `erf(x)`, within 2 units in the last place of 1.
///
/// A rational function, as Eigen's: beyond 4 the result is 1 in single precision.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    const P: [f32; 7] = [
        -2.726_142_3e-10,
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_6e-5,
        -7.349_906_3e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ];
    const Q: [f32; 5] =
        [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_474e-2];
    let z = x * x;
    let p = P[1..].iter().fold(P[0], |p, c| p.mul_add(z, *c));
    let q = Q[1..].iter().fold(Q[0], |q, c| q.mul_add(z, *c));
    let y = x * p / q;
    // The comparisons are false for NaN, which passes through. Exactly 1, so that nothing is
    // left of it in `1 - erf`.
    let y = if x >= 4.0 { 1.0 } else { y };
    if x <= -4.0 { -1.0 } else { y }
}

/// `x Phi(x)`, with the normal distribution's `Phi(x) = (1 + erf(x / sqrt 2)) / 2`.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    let half = 0.5 * x;
    half.mul_add(erf(x * core::f32::consts::FRAC_1_SQRT_2), half)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the Taylor series, in double precision.
    fn truth(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * core::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn error_is_below_two_places() {
        let mut worst = 0.0f64;
        for i in -45_000..=45_000 {
            let x = i as f32 * 1e-4;
            worst = worst.max((f64::from(erf(x)) - truth(f64::from(x))).abs());
        }
        println!("erf: largest error {worst:e}");
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
    }

    #[test]
    fn ends_of_the_range() {
        assert_eq!((erf(f32::INFINITY), erf(f32::MIN), erf(0.0)), (1.0, -1.0, 0.0));
        assert!(erf(f32::NAN).is_nan() && gelu(f32::NAN).is_nan());
        assert_eq!((gelu(f32::MAX), gelu(f32::MIN)), (f32::MAX, 0.0));
    }
}
