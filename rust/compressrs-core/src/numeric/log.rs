//! The natural logarithm, in a form that compilers vectorize.
//!
//! `x = 2^k m` with `m` from `sqrt(1/2)` to `sqrt(2)`, `ln m = 2 atanh s` with
//! `s = (m - 1) / (m + 1)` by the series in odd powers of `s`, arranged so that the
//! largest terms are added last and exactly. As in [`crate::numeric::exp`] there is neither a
//! branch nor a table, and the bits are the same at every vector width.
//!
//! The error is below one unit in the last place; the tests measure it.

/// `ln x` without branches.
pub trait Log {
    /// `ln self`, within one unit in the last place: -inf for 0, NaN below.
    fn ln(self) -> Self;
}

macro_rules! log {
    (
        $t:ident, $bits:ident, shift: $shift:expr, magic: $magic:expr, scale: $scale:expr,
        low_bits: $low_bits:expr, ln2_rest: $ln2_rest:expr, terms: $terms:expr
    ) => {
        impl Log for $t {
            #[inline(always)]
            fn ln(self) -> $t {
                /// `2 / (2 k + 3)`
                const SERIES: [$t; $terms] = {
                    let mut c = [0.0; $terms];
                    let mut k = 0;
                    while k < $terms {
                        c[k] = (2.0 / (2 * k + 3) as f64) as $t;
                        k += 1;
                    }
                    c
                };
                // Times any exponent it is exact.
                const LN2_HIGH: $t =
                    $t::from_bits(core::$t::consts::LN_2.to_bits() & !((1 << $low_bits) - 1));
                const LN2_LOW: $t = (core::$t::consts::LN_2 - LN2_HIGH) + $ln2_rest;
                const ONE: $bits = (1.0 as $t).to_bits();
                const ROOT: $bits = core::$t::consts::FRAC_1_SQRT_2.to_bits();
                const MAGIC: $t = $magic;
                const BIAS: $t = (ONE >> $shift) as $t;
                // What is below the normal range comes into it.
                const UP: $t = (1u64 << $scale) as $t;

                let small = self < $t::MIN_POSITIVE;
                let x = if small { self * UP } else { self };
                let bits = x.to_bits();
                let biased = bits.wrapping_add(ONE - ROOT) >> $shift;
                let m = $t::from_bits(bits.wrapping_sub(biased << $shift).wrapping_add(ONE));
                // The integer stands in the low bits of a large number.
                let k = $t::from_bits(MAGIC.to_bits().wrapping_add(biased)) - (MAGIC + BIAS);
                let k = if small { k - $scale as $t } else { k };

                let f = m - 1.0;
                let s = f / (2.0 + f);
                let z = s * s;
                let mut r = SERIES[$terms - 1];
                let mut i = $terms - 1;
                while i > 0 {
                    i -= 1;
                    r = r.mul_add(z, SERIES[i]);
                }
                let half = 0.5 * f * f;
                // ln m = f - (half - s (half + z r))
                let low = s.mul_add(r.mul_add(z, half), k * LN2_LOW);
                let y = k.mul_add(LN2_HIGH, f - (half - low));

                let y = if self == $t::INFINITY { self } else { y };
                let y = if self == 0.0 { $t::NEG_INFINITY } else { y };
                if self >= 0.0 { y } else { $t::NAN }
            }
        }
    };
}

log!(
    f32, u32, shift: 23, magic: 12_582_912.0, scale: 24,
    low_bits: 12, ln2_rest: -1.904_654_3e-9, terms: 5
);
log!(
    f64, u64, shift: 52, magic: 6_755_399_441_055_744.0, scale: 54,
    low_bits: 32, ln2_rest: 2.319_046_813_846_299_6e-17, terms: 10
);

#[cfg(test)]
mod tests {
    use super::Log;

    #[test]
    fn f32_error_is_below_one_ulp() {
        let mut worst = 0.0f64;
        for bits in (1..f32::INFINITY.to_bits()).step_by(97) {
            let x = f32::from_bits(bits);
            let truth = f64::from(x).ln();
            let ulp = 2f64.powi(truth.abs().max(1e-30).log2().floor() as i32 - 23);
            worst = worst.max((f64::from(Log::ln(x)) - truth).abs() / ulp);
        }
        println!("f32 ln: largest error {worst:.3} ulp");
        assert!(worst < 1.0, "{worst} ulp");
    }

    /// Against the C library, which is right to half an ulp and a little.
    #[test]
    fn f64_error_is_below_one_ulp() {
        let mut worst = 0.0f64;
        let mut seed = 1u64;
        for i in 0..3_000_000u64 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let x = match i % 3 {
                0 => f64::from_bits(seed % f64::INFINITY.to_bits()),
                1 => 0.5 + (seed >> 11) as f64 / 2f64.powi(53),
                _ => 1.0 + ((seed >> 11) as f64 / 2f64.powi(53) - 0.5) * 1e-3,
            };
            let truth = x.ln();
            let ulp = 2f64.powi(truth.abs().max(1e-300).log2().floor() as i32 - 52);
            worst = worst.max((Log::ln(x) - truth).abs() / ulp);
        }
        println!("f64 ln: largest difference {worst:.3} ulp");
        assert!(worst <= 1.0, "{worst} ulp");
    }

    #[test]
    fn ends_of_the_range() {
        for (x, y) in [(0.0, f32::NEG_INFINITY), (-0.0, f32::NEG_INFINITY), (1.0, 0.0)] {
            assert_eq!(Log::ln(x), y);
            assert_eq!(Log::ln(f64::from(x)), f64::from(y));
        }
        assert_eq!(Log::ln(f32::INFINITY), f32::INFINITY);
        assert_eq!(Log::ln(f64::INFINITY), f64::INFINITY);
        for x in [-1.0, f32::NEG_INFINITY, f32::NAN] {
            assert!(Log::ln(x).is_nan() && Log::ln(f64::from(x)).is_nan());
        }
        assert_eq!(Log::ln(f64::from_bits(1)), f64::from_bits(1).ln());
        assert_eq!(Log::ln(f32::from_bits(1)), f32::from_bits(1).ln());
    }
}
