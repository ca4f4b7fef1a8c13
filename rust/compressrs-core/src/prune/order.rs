//! By what values are ranked.

use num_traits::{Float as _, Zero as _};

use crate::numeric::element::Element;

/// An order of floating-point values; equal ones have the same key.
pub trait Order {
    /// Bits that a key has.
    fn key_bits<E: Element>() -> u32;
    /// Bits that order like the values. What is NaN comes last.
    fn key<E: Element>(x: E) -> u64;
    /// The value with this key.
    fn from_key<E: Element>(key: u64) -> E;
    /// What to compare, in the type that arithmetic is done in.
    fn value<E: Element>(x: E) -> E::Compute;
}

/// By `|x|`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Magnitude;

impl Order for Magnitude {
    #[inline(always)]
    fn key_bits<E: Element>() -> u32 {
        E::MAGNITUDE_BITS
    }
    #[inline(always)]
    fn key<E: Element>(x: E) -> u64 {
        x.magnitude()
    }
    #[inline(always)]
    fn from_key<E: Element>(key: u64) -> E {
        E::from_magnitude(key)
    }
    #[inline(always)]
    fn value<E: Element>(x: E) -> E::Compute {
        x.load().abs()
    }
}

/// By `x`; 0 and -0 are equal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Value;

impl Order for Value {
    #[inline(always)]
    fn key_bits<E: Element>() -> u32 {
        E::MAGNITUDE_BITS + 1
    }
    #[inline(always)]
    fn key<E: Element>(x: E) -> u64 {
        let zero = 1 << E::MAGNITUDE_BITS;
        let negative = x.load() < E::Compute::zero();
        if negative { zero - x.magnitude() } else { zero + x.magnitude() }
    }
    #[inline(always)]
    fn from_key<E: Element>(key: u64) -> E {
        let zero = 1 << E::MAGNITUDE_BITS;
        if key < zero {
            E::store(-E::from_magnitude(zero - key).load())
        } else {
            E::from_magnitude(key - zero)
        }
    }
    #[inline(always)]
    fn value<E: Element>(x: E) -> E::Compute {
        x.load()
    }
}
