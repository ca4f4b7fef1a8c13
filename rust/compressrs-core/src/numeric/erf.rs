//! The error function, in a form that compilers vectorize.
//!
//! Each range has its approximation; all are computed and one is selected, so that there is
//! no branch. In single precision two polynomials that N. Juffa fitted, one of them in the
//! exponent of `1 - exp(p(x))`; in double precision the rational functions of FreeBSD's msun
//! (Sun Microsystems, 1993). Within 1.2 units in the last place.

#![expect(clippy::excessive_precision, reason = "coefficients as published")]

use crate::numeric::element::Float;

/// `erf(x)` without branches.
pub trait Erf {
    /// `2 / sqrt(pi)` times the integral of `exp(-t^2)` from 0 to `self`.
    fn error_function(self) -> Self;
}

/// The normal distribution's `Phi(x) = (1 + erf(x / sqrt 2)) / 2`.
#[inline(always)]
pub fn normal_cdf<T: Float + Erf>(x: T) -> T {
    let half = T::from_f64(0.5);
    half.mul_add((x * T::from_f64(core::f64::consts::FRAC_1_SQRT_2)).error_function(), half)
}

/// `x Phi(x)`, and its limit 0 at negative infinity.
#[inline(always)]
pub fn gelu<T: Float + Erf>(x: T) -> T {
    let bounded = if x == T::neg_infinity() { T::zero() } else { x };
    bounded * normal_cdf(x)
}

#[inline(always)]
fn horner<T: Float, const N: usize>(x: T, coefficients: [T; N]) -> T {
    let mut sum = coefficients[N - 1];
    for k in (0..N - 1).rev() {
        sum = sum.mul_add(x, coefficients[k]);
    }
    sum
}

impl Erf for f32 {
    #[inline(always)]
    fn error_function(self) -> f32 {
        let (t, s) = (self.abs(), self * self);
        // Beyond 4 the result is 1, and the exponent should not overflow; NaN passes.
        let u = if t > 4.0 { 4.0 } else { t };
        let v = u * u;
        let high = (-1.728_534_7e-5f32).mul_add(u, 3.831_971_3e-4);
        let low = (-3.883_964_4e-3f32).mul_add(u, 2.425_462_2e-2);
        let r = high.mul_add(v, low);
        let r = r.mul_add(u, -1.067_778_8e-1);
        let r = r.mul_add(u, -6.348_467e-1);
        let r = r.mul_add(u, -1.287_175_1e-1);
        let large = 1.0 - r.mul_add(u, -u).exp_negative();
        let small = horner(
            s,
            [
                1.283_791_7e-1f32,
                -3.761_253_4e-1,
                1.128_199_25e-1,
                -2.676_813_5e-2,
                4.991_194e-3,
                -5.967_617e-4,
            ],
        );
        let small = small.mul_add(self, self);
        if t > 0.927_734_4 { large.copysign(self) } else { small }
    }
}

impl Erf for f64 {
    #[inline(always)]
    fn error_function(self) -> f64 {
        let t = self.abs();
        let s = self * self;
        // |x| < 0.84375
        let p = horner(
            s,
            [
                1.283_791_670_955_125_585_61e-1,
                -3.250_421_072_470_014_993_70e-1,
                -2.848_174_957_559_851_047_66e-2,
                -5.770_270_296_489_441_591_57e-3,
                -2.376_301_665_665_016_260_84e-5,
            ],
        );
        let q = horner(
            s,
            [
                1.0,
                3.979_172_239_591_553_528_19e-1,
                6.502_224_998_876_729_444_85e-2,
                5.081_306_281_875_765_627_76e-3,
                1.324_947_380_043_216_445_26e-4,
                -3.960_228_278_775_368_123_20e-6,
            ],
        );
        let small = self + self * (p / q);
        // |x| < 1.25
        let u = t - 1.0;
        let p = horner(
            u,
            [
                -2.362_118_560_752_659_440_77e-3,
                4.148_561_186_837_483_316_66e-1,
                -3.722_078_760_357_013_238_47e-1,
                3.183_466_199_011_617_536_74e-1,
                -1.108_946_942_823_966_774_76e-1,
                3.547_830_432_561_823_593_71e-2,
                -2.166_375_594_868_790_843_00e-3,
            ],
        );
        let q = horner(
            u,
            [
                1.0,
                1.064_208_804_008_442_282_86e-1,
                5.403_979_177_021_710_489_37e-1,
                7.182_865_441_419_626_628_68e-2,
                1.261_712_198_087_616_421_12e-1,
                1.363_708_391_202_905_073_62e-2,
                1.198_449_984_679_910_741_70e-2,
            ],
        );
        let middle = 8.450_629_115_104_675_292_97e-1 + p / q;
        // Beyond 6 the result is 1; NaN passes.
        let v = if t > 6.0 { 6.0 } else { t };
        let w = 1.0 / (v * v);
        let near = horner(
            w,
            [
                -9.864_944_034_847_148_227_05e-3,
                -6.938_585_727_071_817_643_72e-1,
                -1.055_862_622_532_329_098_14e1,
                -6.237_533_245_032_600_603_96e1,
                -1.623_966_694_625_734_703_55e2,
                -1.846_050_929_067_110_359_94e2,
                -8.128_743_550_630_659_342_46e1,
                -9.814_329_344_169_145_485_92,
            ],
        ) / horner(
            w,
            [
                1.0,
                1.965_127_166_743_925_712_92e1,
                1.376_577_541_435_190_426_00e2,
                4.345_658_774_752_292_288_21e2,
                6.453_872_717_332_678_803_36e2,
                4.290_081_400_275_678_333_86e2,
                1.086_350_055_417_794_351_34e2,
                6.570_249_770_319_281_701_35,
                -6.042_441_521_485_809_874_38e-2,
            ],
        );
        let far = horner(
            w,
            [
                -9.864_942_924_700_099_285_97e-3,
                -7.992_832_376_805_230_065_74e-1,
                -1.775_795_491_775_475_198_89e1,
                -1.606_363_848_558_219_160_62e2,
                -6.375_664_433_683_896_277_22e2,
                -1.025_095_131_611_077_249_54e3,
                -4.835_191_916_086_513_970_19e2,
            ],
        ) / horner(
            w,
            [
                1.0,
                3.033_806_074_348_245_829_24e1,
                3.257_925_129_965_739_188_26e2,
                1.536_729_586_084_436_959_94e3,
                3.199_858_219_508_595_539_08e3,
                2.553_050_406_433_164_425_83e3,
                4.745_285_412_069_553_672_15e2,
                -2.244_095_244_658_581_833_62e1,
            ],
        );
        let ratio = if v < 1.0 / 0.35 { near } else { far };
        // The upper half of the digits, whose square is exact.
        let z = f64::from_bits(v.to_bits() & 0xffff_ffff_0000_0000);
        let e = (-z * z - 0.5625).exp_negative() * ((z - v) * (z + v) + ratio).exp_fast();
        let large = 1.0 - e / v;
        let outer = if t < 1.25 { middle } else { large };
        if t < 0.84375 { small } else { outer.copysign(self) }
    }
}

#[cfg(test)]
mod tests {
    use super::Erf;

    /// The Maclaurin series, or the continued fraction, with more digits than are compared.
    fn reference(x: f64) -> f64 {
        let scale = 2.0 / std::f64::consts::PI.sqrt();
        if x < 2.5 {
            let (mut term, mut sum, mut k) = (x, x, 0.0);
            while term.abs() > 1e-20 {
                k += 1.0;
                term *= -x * x / k;
                sum += term / (2.0 * k + 1.0);
            }
            return scale * sum;
        }
        let fraction = (1..=200).rev().fold(0.0, |f, k| f64::from(k) / 2.0 / (x + f));
        1.0 - (-x * x).exp() / (x + fraction) / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn agrees_with_series_and_continued_fraction() {
        let mut x = -7.0f64;
        while x < 7.0 {
            let truth = reference(x.abs()).copysign(x);
            // The series itself loses some digits to cancellation.
            let close = 3e-14;
            assert!(
                (x.error_function() - truth).abs() <= close * truth.abs(),
                "{x}: {}",
                x.error_function()
            );
            let single = x as f32;
            let truth = reference(f64::from(single.abs())).copysign(x);
            let error = (f64::from(single.error_function()) - truth).abs() / truth.abs();
            assert!(error < 1.3e-7, "{x}: {error:e}");
            x += 0.000_917;
        }
        assert_eq!(
            [0.0f64, -0.0, f64::INFINITY, f64::NEG_INFINITY].map(Erf::error_function),
            [0.0, -0.0, 1.0, -1.0]
        );
        assert_eq!(
            [0.0f32, -0.0, f32::INFINITY, f32::NEG_INFINITY].map(Erf::error_function),
            [0.0, -0.0, 1.0, -1.0]
        );
        assert!(f64::NAN.error_function().is_nan() && f32::NAN.error_function().is_nan());
    }
}
