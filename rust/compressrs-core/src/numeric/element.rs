//! Storage types, and the type each is computed in.
//!
//! A kernel is written once over [`Element`]: it loads, computes in
//! [`Element::Compute`] and stores. Half-precision storage therefore needs no
//! formula of its own.

pub use half::{bf16, f16};

use crate::numeric::vector::Vectors;

/// A number.
///
/// # Safety
/// Any bytes are a value of the type, and it is aligned to no more than 64.
pub unsafe trait Number: Copy {}

macro_rules! numbers {
    ($($t:ty)*) => {
        $(
            // SAFETY: so it is of integers and of floating-point numbers.
            unsafe impl Number for $t {}
        )*
    };
}
numbers!(f32 f64 f16 bf16 u8 i8 u16 i16 u32 i32 u64 i64 usize);

// SAFETY: an array's bytes are those of its elements.
unsafe impl<T: Number, const N: usize> Number for [T; N] {}

/// A type arithmetic is done in: `f32` or `f64`.
///
/// Everything the formulas need comes from [`num_traits::Float`]; what is added
/// here is conversion from and to `f64`, for hyperparameters and for totals.
pub trait Float:
    num_traits::Float + Element<Compute = Self> + Vectors + core::ops::AddAssign + core::fmt::Debug
{
    /// Rounds a double to this type.
    fn from_f64(x: f64) -> Self;
    /// Widens to a double, exactly.
    fn to_f64(self) -> f64;
    /// Rounds to single precision.
    fn to_f32(self) -> f32;
    /// `e^self`, see [`crate::numeric::exp`].
    fn exp_fast(self) -> Self;
    /// `e^self` for what is not above 0, see [`crate::numeric::exp`].
    fn exp_negative(self) -> Self;
    /// `ln self`, see [`crate::numeric::log`].
    fn ln_fast(self) -> Self;
    /// `(x[0] + x[2]) + (x[1] + x[3])` of each of four.
    #[inline(always)]
    fn sum_fours(fours: [[Self; 4]; 4]) -> [Self; 4] {
        fours.map(|x| (x[0] + x[2]) + (x[1] + x[3]))
    }
    /// Rows as columns.
    #[inline(always)]
    fn transpose_fours(fours: [[Self; 4]; 4]) -> [[Self; 4]; 4] {
        std::array::from_fn(|c| fours.map(|row| row[c]))
    }
}

/// A type that buffers store.
pub trait Element: Number + Send + Sync + Default + PartialEq + 'static {
    /// The type that arithmetic on this element is done in.
    type Compute: Float;
    /// Widens to the compute type, exactly.
    fn load(self) -> Self::Compute;
    /// Rounds to nearest, ties to even.
    fn store(x: Self::Compute) -> Self;
    /// Rounds up, away from 0, if the part that is cut off, taken as a fraction of
    /// the last place, plus `threshold / 2^32` is 1 or more: for a threshold that
    /// is uniform over all `u32`, the mean of the results is `x`.
    fn store_stochastic(x: Self::Compute, threshold: u32) -> Self;

    /// The same elements in the compute type, where that is this type.
    #[inline(always)]
    fn as_compute(_: &[Self]) -> Option<&[Self::Compute]> {
        None
    }
    /// As [`as_compute`](Self::as_compute), to write to.
    #[inline(always)]
    fn as_compute_mut(_: &mut [Self]) -> Option<&mut [Self::Compute]> {
        None
    }

    /// Number of bits of a magnitude, that is, all but the sign.
    const MAGNITUDE_BITS: u32;
    /// The bits of `|self|`. They order like the magnitudes, NaN last.
    fn magnitude(self) -> u64;
    /// The magnitude with these bits.
    fn from_magnitude(bits: u64) -> Self;
}

macro_rules! magnitude {
    ($bits:ty) => {
        const MAGNITUDE_BITS: u32 = <$bits>::BITS - 1;
        #[inline(always)]
        fn magnitude(self) -> u64 {
            u64::from(self.to_bits() & (<$bits>::MAX >> 1))
        }
        #[inline(always)]
        fn from_magnitude(bits: u64) -> Self {
            Self::from_bits(bits as $bits)
        }
    };
}

macro_rules! float {
    ($t:ty, $bits:ty, { $($more:tt)* }) => {
        impl Element for $t {
            type Compute = $t;
            #[inline(always)]
            fn load(self) -> $t {
                self
            }
            #[inline(always)]
            fn store(x: $t) -> $t {
                x
            }
            #[inline(always)]
            fn store_stochastic(x: $t, _: u32) -> $t {
                x
            }
            #[inline(always)]
            fn as_compute(x: &[$t]) -> Option<&[$t]> {
                Some(x)
            }
            #[inline(always)]
            fn as_compute_mut(x: &mut [$t]) -> Option<&mut [$t]> {
                Some(x)
            }
            magnitude!($bits);
        }
        impl Float for $t {
            #[inline(always)]
            fn from_f64(x: f64) -> $t {
                x as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                self as f32
            }
            #[inline(always)]
            fn exp_fast(self) -> $t {
                <$t as crate::numeric::exp::Exp>::exp(self)
            }
            #[inline(always)]
            fn exp_negative(self) -> $t {
                <$t as crate::numeric::exp::Exp>::exp_negative(self)
            }
            #[inline(always)]
            fn ln_fast(self) -> $t {
                <$t as crate::numeric::log::Log>::ln(self)
            }
            $($more)*
        }
    };
}
// LLVM takes vectors apart to transpose them, or to add their elements; so they are transposed
// by name.
float!(f32, u32, {
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn sum_fours(fours: [[f32; 4]; 4]) -> [f32; 4] {
        use std::arch::x86_64::_mm_add_ps;
        let [x0, x1, x2, x3] = sse::transpose(fours);
        // SAFETY: SSE is part of x86-64.
        sse::store(unsafe { _mm_add_ps(_mm_add_ps(x0, x2), _mm_add_ps(x1, x3)) })
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn transpose_fours(fours: [[f32; 4]; 4]) -> [[f32; 4]; 4] {
        sse::transpose(fours).map(sse::store)
    }
});
float!(f64, u64, {});

#[cfg(target_arch = "x86_64")]
mod sse {
    use std::arch::x86_64::{
        __m128, _mm_loadu_ps, _mm_movehl_ps, _mm_movelh_ps, _mm_storeu_ps, _mm_unpackhi_ps,
        _mm_unpacklo_ps,
    };

    #[inline(always)]
    pub fn transpose(fours: [[f32; 4]; 4]) -> [__m128; 4] {
        // SAFETY: SSE is part of x86-64; loads are of arrays of four.
        unsafe {
            let [a, b, c, d] = fours.map(|x| _mm_loadu_ps(x.as_ptr()));
            let (ab, cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
            let (ab2, cd2) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
            [
                _mm_movelh_ps(ab, cd),
                _mm_movehl_ps(cd, ab),
                _mm_movelh_ps(ab2, cd2),
                _mm_movehl_ps(cd2, ab2),
            ]
        }
    }

    #[inline(always)]
    pub fn store(x: __m128) -> [f32; 4] {
        let mut out = [0.0; 4];
        // SAFETY: SSE is part of x86-64; the store is to an array of four.
        unsafe { _mm_storeu_ps(out.as_mut_ptr(), x) };
        out
    }
}

// The conversions of the `half` crate ask for the CPU's features element by
// element, which keeps a loop over them from becoming vector instructions. These
// are integer operations and selections.

const SIGN: u32 = 1 << 31;
const INFINITY: u32 = 0xFF << 23;

impl Element for bf16 {
    type Compute = f32;

    #[inline(always)]
    fn load(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn store(x: f32) -> bf16 {
        bf16_from(x, 0x7FFF + (x.to_bits() >> 16 & 1))
    }

    #[inline(always)]
    fn store_stochastic(x: f32, threshold: u32) -> bf16 {
        bf16_from(x, threshold >> 16)
    }

    magnitude!(u16);
}

/// The upper half of the sum of the bits of `x` and `up`.
#[inline(always)]
fn bf16_from(x: f32, up: u32) -> bf16 {
    let bits = x.to_bits();
    let rounded = if x.is_nan() { bits | 1 << 22 } else { bits.wrapping_add(up) };
    bf16::from_bits((rounded >> 16) as u16)
}

/// The difference of the exponents' biases of `f32` and `f16`, in its place.
const REBIAS: u32 = (127 - 15) << 23;
/// The least normal `f16`, `2^-14`, as `f32`.
const LEAST_NORMAL: u32 = REBIAS + (1 << 23);

impl Element for f16 {
    type Compute = f32;

    #[inline(always)]
    fn load(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7FFF) << 13;
        let normal = magnitude + REBIAS;
        // Below the normal range the digits stand as if before them stood a 1.
        let subnormal = f32::from_bits(magnitude + LEAST_NORMAL) - f32::from_bits(LEAST_NORMAL);
        let special = magnitude + 2 * REBIAS;
        let result = if magnitude < 1 << 23 { subnormal.to_bits() } else { normal };
        let result = if magnitude >= 0x1F << 23 { special } else { result };
        f32::from_bits(result | bits << 16 & SIGN)
    }

    #[inline(always)]
    fn store(x: f32) -> f16 {
        let magnitude = x.to_bits() & !SIGN;
        let normal = magnitude + 0xFFF + (magnitude >> 13 & 1);
        // Next to 0.5 the last place of `f32` is that of a subnormal `f16`.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits();
        f16_from(x, normal, subnormal)
    }

    #[inline(always)]
    fn store_stochastic(x: f32, threshold: u32) -> f16 {
        const PLACES: f32 = (1 << 24) as f32;
        let magnitude = x.to_bits() & !SIGN;
        // What is no normal number is far below 2^24 here, so that the sum is too.
        let places = f32::from_bits(magnitude.min(LEAST_NORMAL)) * PLACES;
        let up = (threshold >> 8) as f32 / PLACES;
        f16_from(x, magnitude + (threshold >> 19), (places + up) as i32 as u32)
    }

    magnitude!(u16);
}

/// An `f16` with the sign of `x` and the digits of `normal`, rounded, those of
/// `subnormal` below the normal range, or infinity or NaN.
#[inline(always)]
fn f16_from(x: f32, normal: u32, subnormal: u32) -> f16 {
    let magnitude = x.to_bits() & !SIGN;
    let result = normal.wrapping_sub(REBIAS) >> 13;
    let result = if result > 0x7C00 { 0x7C00 } else { result };
    let result = if magnitude < LEAST_NORMAL { subnormal } else { result };
    let result = if magnitude >= INFINITY { 0x7C00 } else { result };
    let result = if magnitude > INFINITY { 0x7E00 } else { result };
    f16::from_bits((result | x.to_bits() >> 16 & 0x8000) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn half_types_load_every_value_and_store_it_back() {
        for bits in 0..=u16::MAX {
            let (h, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            if h.is_nan() {
                assert!(h.load().is_nan() && f16::store(h.load()).is_nan());
            } else {
                assert_eq!(h.load().to_bits(), h.to_f32().to_bits());
                assert_eq!(f16::store(h.load()).to_bits(), bits);
            }
            if b.is_nan() {
                assert!(b.load().is_nan() && bf16::store(b.load()).is_nan());
            } else {
                assert_eq!(b.load().to_bits(), b.to_f32().to_bits());
                assert_eq!(bf16::store(b.load()).to_bits(), bits);
            }
        }
    }

    /// What is half way between neighbours, next to it, and anything else.
    fn singles() -> impl Strategy<Value = f32> {
        prop_oneof![
            any::<u32>().prop_map(f32::from_bits),
            (any::<u16>(), 0x7FFFu32..0x8002)
                .prop_map(|(h, low)| f32::from_bits(u32::from(h) << 16 | low)),
            (any::<u16>(), 0xFFFu32..0x1002).prop_map(|(h, low)| {
                f32::from_bits(f16::from_bits(h).to_f32().to_bits() & !0x1FFF | low)
            }),
            (-70000.0f32..70000.0),
            (-7e-5f32..7e-5),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn half_types_round_as_the_half_crate_does(x in singles()) {
            let (h, b) = (f16::from_f32(x), bf16::from_f32(x));
            prop_assert!(f16::store(x).to_bits() == h.to_bits() || h.is_nan() && f16::store(x).is_nan());
            prop_assert!(bf16::store(x).to_bits() == b.to_bits() || b.is_nan() && bf16::store(x).is_nan());
        }

        #[test]
        fn dithering_rounds_up_in_proportion_to_what_is_cut_off(x in singles()) {
            proportion::<f16>(x, 65504.0)?;
            proportion::<bf16>(x, bf16::MAX.to_f32())?;
        }
    }

    /// The share of thresholds that round up is what is cut off, in places of `H`.
    fn proportion<H: Element<Compute = f32>>(x: f32, max: f32) -> Result<(), TestCaseError> {
        let low = H::store_stochastic(x, 0);
        if x.is_nan() || x.abs() >= max {
            let high = H::store_stochastic(x, u32::MAX);
            for y in [low.load(), high.load()] {
                prop_assert!(y.is_nan() == x.is_nan() && (y.is_nan() || y.abs() >= max));
            }
            return Ok(());
        }
        prop_assert_eq!(low.load().is_sign_negative(), x.is_sign_negative());
        // The greatest threshold that does not round up, found by halving.
        let (mut greatest, mut above) = (0u64, 1u64 << 32);
        while above - greatest > 1 {
            let middle = greatest + (above - greatest) / 2;
            let up = H::store_stochastic(x, middle as u32) != low;
            if up { above = middle } else { greatest = middle }
        }
        let share = 1.0 - (greatest + 1) as f64 / 2f64.powi(32);
        let next = f64::from(H::from_magnitude(low.magnitude() + 1).load());
        let low = f64::from(low.load().abs());
        let cut = (f64::from(x.abs()) - low) / (next - low);
        // Of f32, 13 bits more than those of f16 are seen.
        prop_assert!((share - cut).abs() < 2f64.powi(-12), "{x:e}: {share} for {cut}");
        Ok(())
    }
}
