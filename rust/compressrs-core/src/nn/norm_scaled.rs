//! Normalization of numbers whose sums, squares or differences overflow: in double precision,
//! scaled by powers of two, which rounds nothing. Rows and channels come here after the ordinary
//! formulas gave no finite sums, so that others cost nothing more.

use super::norm::sums;
use crate::numeric::element::Float;

/// Mean, variance and the inverse of its root, as [`moments`] finds them.
pub(super) struct Scaled<T> {
    pub mean: T,
    /// The largest finite number where the variance is larger.
    pub var: T,
    /// `1 / sqrt(var + eps)`.
    pub inverse: T,
    factor: f64,
    /// Mean and inverse of the numbers times `factor`.
    scaled: (f64, f64),
}

impl<T: Float> Scaled<T> {
    /// `(x - mean) / sqrt(var + eps)`.
    pub fn normal(&self, x: T) -> T {
        let (mean, inverse) = self.scaled;
        T::from_f64((x.to_f64() * self.factor - mean) * inverse)
    }
}

/// The moments of `n` numbers, or None if one of them is not finite.
#[cold]
#[inline(never)]
pub(super) fn moments<T: Float>(n: usize, eps: f64, x: impl Fn(usize) -> T) -> Option<Scaled<T>> {
    let factor = factor(n, &x)?;
    let scaled = |i: usize| x(i).to_f64() * factor;
    let [sum] = sums(n, |i| [scaled(i)]);
    let mean = sum / n as f64;
    // The mean again, of what is left, so that equal numbers have none of variance.
    let [rest] = sums(n, |i| [scaled(i) - mean]);
    let mean = mean + rest / n as f64;
    let [squares] = sums(n, |i| {
        let d = scaled(i) - mean;
        [d * d]
    });
    let var = squares / n as f64;
    let root = (var + eps * factor * factor).sqrt();
    // Without variance all numbers are the mean, whose normal is 0.
    let (inverse, own) =
        if root > 0.0 { (1.0 / root, factor / root) } else { (0.0, 1.0 / eps.sqrt()) };
    Some(Scaled {
        mean: T::from_f64(mean / factor),
        var: T::from_f64(var / factor / factor).min(T::max_value()),
        inverse: T::from_f64(own),
        factor,
        scaled: (mean, inverse),
    })
}

/// A power of two that brings all numbers to at most 4, or None if one of them is not finite.
fn factor<T: Float>(n: usize, x: &impl Fn(usize) -> T) -> Option<f64> {
    let mut largest = 0.0;
    for i in 0..n {
        let x = x(i).to_f64().abs();
        if !x.is_finite() {
            return None;
        }
        largest = f64::max(largest, x);
    }
    // No smaller than the smallest normal number, and so that its inverse is finite.
    let exponent = (largest.to_bits() >> 52) as i32 - 1023;
    Some(f64::from_bits(((1023 - exponent.clamp(-1021, 1021)) as u64) << 52))
}

/// A gradient through a normalization: `dx = (g - mean(g) - normal mean(g normal)) scale`, where
/// `g` is the gradient of the normalized numbers.
pub(super) struct Backward<T> {
    pub mean: T,
    /// The inverse of the root of the variance.
    pub scale: T,
    factor: f64,
    /// Means of `g` and `g normal`, times the factor.
    means: [f64; 2],
}

impl<T: Float> Backward<T> {
    /// `(x - mean) scale`.
    fn normal(&self, x: T) -> f64 {
        normal(x, self.mean, self.scale)
    }

    /// [`Self::normal`] in the type itself.
    pub fn normalized(&self, x: T) -> T {
        T::from_f64(self.normal(x))
    }

    /// The gradient of `x`, whose `g` is `dy weight`.
    pub fn gradient(&self, x: T, dy: T, weight: T) -> T {
        let [mean, along] = self.means;
        let g = dy.to_f64() * self.factor * weight.to_f64();
        T::from_f64((g - mean - self.normal(x) * along) * self.scale.to_f64() / self.factor)
    }

    /// The sums of `g` and `g normal` over all `n`.
    pub fn sums(&self, n: usize) -> [T; 2] {
        self.means.map(|mean| T::from_f64(mean * n as f64 / self.factor))
    }
}

/// `(x - mean) scale`, where half of the difference is finite.
fn normal<T: Float>(x: T, mean: T, scale: T) -> f64 {
    (0.5 * x.to_f64() - 0.5 * mean.to_f64()) * (2.0 * scale.to_f64())
}

/// The means of a gradient, of `n` numbers `x` and gradients `dy` each times its `weight`; None if
/// one of them is not finite.
#[cold]
#[inline(never)]
pub(super) fn backward<T: Float>(
    n: usize,
    (mean, scale): (T, T),
    x: impl Fn(usize) -> T,
    dy: impl Fn(usize) -> T,
    weight: impl Fn(usize) -> T,
) -> Option<Backward<T>> {
    self::factor(n, &x)?;
    let factor = factor(n, &dy)?;
    let totals = sums(n, |i| {
        let g = dy(i).to_f64() * factor * weight(i).to_f64();
        [g, g * normal(x(i), mean, scale)]
    });
    Some(Backward { mean, scale, factor, means: totals.map(|sum| sum / n as f64) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_do_not_depend_on_the_scale() {
        for shift in [0, 20, 100, -100, 1000, 1021, -1021] {
            let scale = 2f64.powi(shift);
            let x = [3.0, -1.0, 0.0, 2.0].map(|x| x * scale);
            let found = moments(4, 1e-300, |i| x[i]).unwrap();
            assert_eq!(found.mean, scale);
            let inverse = 1.0 / (2.5f64.sqrt() * scale);
            assert!((found.inverse / inverse - 1.0).abs() < 1e-15 || shift == -1021, "{shift}");
            assert!((found.normal(x[0]) - 2.0 / 2.5f64.sqrt()).abs() < 1e-15 || shift < -400);
        }
    }

    #[test]
    fn equal_numbers_have_no_variance() {
        let found = moments(7, 1e-5, |_| 1.1e38f32).unwrap();
        assert_eq!((found.mean, found.var, found.normal(1.1e38)), (1.1e38, 0.0, 0.0));
        assert!((found.inverse / 1e-5f32.sqrt().recip() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn what_is_not_finite_has_no_moments() {
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(moments(3, 1e-5, |i| [1.0, bad, 2.0][i]).is_none());
            let numbers = |i: usize| [1.0, bad, 2.0][i];
            assert!(backward(3, (0.0, 1.0), numbers, |_| 1.0, |_| 1.0f32).is_none());
            assert!(backward(3, (0.0, 1.0), |_| 1.0, numbers, |_| 1.0f32).is_none());
        }
    }
}
