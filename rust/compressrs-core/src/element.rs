//! Storage types, and the type each is computed in.
//!
//! A kernel is written once over [`Element`]: it loads, computes in
//! [`Element::Compute`] and stores. Half-precision storage therefore needs no
//! formula of its own.

use half::{bf16, f16};

/// A type arithmetic is done in: `f32` or `f64`.
///
/// Everything the formulas need comes from [`num_traits::Float`]; what is added
/// here is conversion from and to `f64`, for hyperparameters and for totals.
pub trait Float:
    num_traits::Float + Element<Compute = Self> + core::ops::AddAssign + core::fmt::Debug
{
    /// Rounds a double to this type.
    fn from_f64(x: f64) -> Self;
    /// Widens to a double, exactly.
    fn to_f64(self) -> f64;
    /// `e^self`, see [`crate::exp`].
    fn exp_fast(self) -> Self;
}

/// A type that buffers store.
pub trait Element: Copy + Send + Sync + Default + PartialEq + 'static {
    /// The type that arithmetic on this element is done in.
    type Compute: Float;
    /// Widens to the compute type, exactly.
    fn load(self) -> Self::Compute;
    /// Rounds to nearest, ties to even.
    fn store(x: Self::Compute) -> Self;

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
    ($t:ty, $bits:ty) => {
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
            fn exp_fast(self) -> $t {
                <$t as crate::exp::Exp>::exp(self)
            }
        }
    };
}
float!(f32, u32);
float!(f64, u64);

macro_rules! half {
    ($t:ty) => {
        impl Element for $t {
            type Compute = f32;
            #[inline(always)]
            fn load(self) -> f32 {
                self.to_f32()
            }
            #[inline(always)]
            fn store(x: f32) -> $t {
                <$t>::from_f32(x)
            }
            magnitude!(u16);
        }
    };
}
half!(f16);
half!(bf16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_types_round_trip_every_finite_value() {
        for bits in 0..=u16::MAX {
            let (h, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            if !h.is_nan() {
                assert_eq!(f16::store(h.load()), h);
            }
            if !b.is_nan() {
                assert_eq!(bf16::store(b.load()), b);
            }
        }
    }

    #[test]
    fn half_types_round_to_nearest_even() {
        // 2049 lies half way between the f16 neighbours 2048 and 2050.
        assert_eq!(f16::store(2049.0), f16::from_f32(2048.0));
        assert_eq!(f16::store(2051.0), f16::from_f32(2052.0));
        // 257 lies half way between the bf16 neighbours 256 and 258.
        assert_eq!(bf16::store(257.0), bf16::from_f32(256.0));
    }
}
