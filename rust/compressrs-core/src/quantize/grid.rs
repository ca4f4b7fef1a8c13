//! Codes: which numbers they stand for, once divided by a scale.
//!
//! A [`Grid`] is chosen for a tensor; of a block's scale and zero point it makes a
//! [`Coder`], whose `encode` and `decode` are called in the loops.

use crate::numeric::element::Float;

/// Types whose numbers can be rounded to a small integer by an addition.
pub trait Round: Float {
    /// The nearest integer, ties to even, of a magnitude below `2^21`.
    fn nearest(self) -> i32;
    /// Its last byte.
    fn nearest_byte(self) -> u8;
    /// An integer, exactly, of a magnitude below `2^24`.
    fn from_integer(i: i32) -> Self;
}

// Next to 1.5 * 2^p, p the digits behind the first, the last place is 1.
const ORIGIN_F32: f32 = (3 << 22) as f32;
const ORIGIN_F64: f64 = (3u64 << 51) as f64;

impl Round for f32 {
    #[inline(always)]
    fn from_integer(i: i32) -> f32 {
        i as f32
    }
    #[inline(always)]
    fn nearest(self) -> i32 {
        (self + ORIGIN_F32).to_bits().wrapping_sub(ORIGIN_F32.to_bits()) as i32
    }
    #[inline(always)]
    fn nearest_byte(self) -> u8 {
        // The last byte of the origin is 0.
        (self + ORIGIN_F32).to_bits() as u8
    }
}
impl Round for f64 {
    #[inline(always)]
    fn from_integer(i: i32) -> f64 {
        i as f64
    }
    #[inline(always)]
    fn nearest(self) -> i32 {
        (self + ORIGIN_F64).to_bits().wrapping_sub(ORIGIN_F64.to_bits()) as i32
    }
    #[inline(always)]
    fn nearest_byte(self) -> u8 {
        // The last byte of the origin is 0.
        (self + ORIGIN_F64).to_bits() as u8
    }
}

/// `x`, but not below `low` nor above `high`; of NaN, `low`.
#[inline(always)]
pub(crate) fn clamp<C: Float>(x: C, low: C, high: C) -> C {
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

/// The code of a number and the number of a code, in one block.
pub trait Coder<C>: Copy {
    /// The code of the nearest number.
    fn encode(&self, x: C) -> u8;
    /// What a code stands for.
    fn decode(&self, code: u8) -> C;
    /// Whether rounding, not the end of the range, decides the code.
    fn contains(&self, x: C) -> bool;
    /// Whether [`encode_by_reciprocal`](Self::encode_by_reciprocal) may be used.
    #[inline(always)]
    fn has_reciprocal(&self) -> bool {
        false
    }
    /// As [`encode`](Self::encode), without a division, of a number for which the scale was
    /// made.
    #[inline(always)]
    fn encode_by_reciprocal(&self, x: C) -> u8 {
        self.encode(x)
    }
}

/// A kind of codes.
pub trait Grid<C: Float>: Copy + Sync {
    /// Its coder.
    type Coder: Coder<C>;
    /// That of a block with this number, scale and zero point.
    fn coder(&self, block: usize, scale: C, zero: u8) -> Self::Coder;
    /// The scale and zero point for numbers from `low` to `high`, of which one is 0 or
    /// 0 is between; finite.
    fn scale(&self, low: C, high: C) -> (C, u8);
    /// Whether a code stands for a number.
    fn is_code(&self, code: u8) -> bool;
    /// Whether [`scale`](Self::scale) depends on nothing but the largest magnitude.
    #[inline(always)]
    fn is_symmetric(&self) -> bool {
        true
    }
}

/// The scale for which `steps` steps reach a magnitude; a normal number.
#[inline(always)]
fn steps<C: Float>(range: C, steps: C) -> C {
    let scale = range / steps;
    if range == C::zero() {
        // Any scale gives 0; this one can be stored in every type.
        C::one()
    } else if scale < C::min_positive_value() {
        C::min_positive_value()
    } else {
        scale
    }
}

/// Integers of some bits: `x = scale (code - zero)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    low: i32,
    high: i32,
    symmetric: bool,
}

impl Affine {
    /// Codes of `bits` bits, from `-2^(bits - 1)` if they are signed, else from 0.
    ///
    /// # Panics
    /// If `bits` is not from 1 to 8.
    pub fn new(bits: u32, signed: bool, symmetric: bool) -> Self {
        assert!((1..=8).contains(&bits));
        let low = if signed { -(1 << (bits - 1)) } else { 0 };
        Affine { low, high: low + (1 << bits) - 1, symmetric }
    }

    /// The code that stands for 0 where the range is symmetric.
    pub fn middle(&self) -> u8 {
        ((self.low + self.high + 1) / 2) as u8
    }

    #[inline(always)]
    fn integer(&self, code: u8) -> i32 {
        let flip = if self.low < 0 { 0x80 } else { 0 };
        i32::from(code ^ flip) - i32::from(flip)
    }
}

/// Integers of a block.
#[derive(Clone, Copy, Debug)]
pub struct AffineCoder<C> {
    affine: Affine,
    /// The scale.
    pub scale: C,
    zero: i32,
    /// The smallest and largest code, less the zero point.
    pub ends: (C, C),
    /// That of the scale; 0 if it could underflow, or what is computed with it could.
    reciprocal: C,
}

impl<C: Round> AffineCoder<C> {
    /// The integer that a number divided by the scale becomes, less the zero point.
    #[inline(always)]
    pub fn integer(&self, v: C) -> i32 {
        clamp(v, self.ends.0, self.ends.1).nearest()
    }
}

impl<C: Round> Coder<C> for AffineCoder<C> {
    #[inline(always)]
    fn encode(&self, x: C) -> u8 {
        (self.integer(x / self.scale) + self.zero) as u8
    }

    #[inline(always)]
    fn has_reciprocal(&self) -> bool {
        self.reciprocal > C::zero()
    }

    #[inline(always)]
    fn encode_by_reciprocal(&self, x: C) -> u8 {
        // The first correction makes the quotient one of the two numbers next to the exact
        // one; then, the reciprocal being rounded to nearest, the second gives what a division
        // does (Markstein, IBM J. Res. Dev. 34(1), 1990, theorem 7.2). Remainders are exact
        // unless they underflow, and then the code is 0 anyway.
        let (scale, reciprocal) = (-self.scale, self.reciprocal);
        let v = x * reciprocal;
        let v = v.mul_add(scale, x).mul_add(reciprocal, v);
        let v = v.mul_add(scale, x).mul_add(reciprocal, v);
        clamp(v, self.ends.0, self.ends.1).nearest_byte().wrapping_add(self.zero as u8)
    }

    #[inline(always)]
    fn decode(&self, code: u8) -> C {
        // Exact in both types, and a conversion that vector units have.
        C::from_integer(self.affine.integer(code) - self.zero) * self.scale
    }

    #[inline(always)]
    fn contains(&self, x: C) -> bool {
        let v = x / self.scale;
        v >= self.ends.0 && v <= self.ends.1
    }
}

impl<C: Round> Grid<C> for Affine {
    type Coder = AffineCoder<C>;

    #[inline(always)]
    fn coder(&self, _: usize, scale: C, zero: u8) -> AffineCoder<C> {
        let zero = self.integer(zero);
        let ends = (C::from_integer(self.low - zero), C::from_integer(self.high - zero));
        let (least, most) = (C::from_f64(2f64.powi(-60)), C::from_f64(2f64.powi(60)));
        let reciprocal = if scale > least && scale < most { C::one() / scale } else { C::zero() };
        AffineCoder { affine: *self, scale, zero, ends, reciprocal }
    }

    #[inline(always)]
    fn scale(&self, low: C, high: C) -> (C, u8) {
        let count = C::from_integer(self.high - self.low);
        if self.symmetric {
            let two = C::one() + C::one();
            let magnitude = if -low > high { -low } else { high };
            return (steps(magnitude, count / two), self.middle());
        }
        let range = high - low;
        let scale =
            if range.is_finite() { steps(range, count) } else { high / count - low / count };
        let (least, most) = (C::from_integer(self.low), C::from_integer(self.high));
        (scale, clamp(least - low / scale, least, most).nearest() as u8)
    }

    #[inline(always)]
    fn is_code(&self, code: u8) -> bool {
        (self.low..=self.high).contains(&self.integer(code))
    }

    #[inline(always)]
    fn is_symmetric(&self) -> bool {
        self.symmetric
    }
}

/// The levels of NF4: quantiles of the normal distribution, with 0 among them
/// (Dettmers et al., arXiv 2305.14314, appendix E).
#[expect(clippy::excessive_precision, reason = "as published")]
pub const NF4: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// Levels that each number is compared with; more are searched by halving.
const FEW: usize = 16;

/// The middles between few levels, then infinities, which nothing is above.
fn middles<C: Float>(levels: &[C]) -> [C; FEW - 1] {
    let mut middles = [C::infinity(); FEW - 1];
    for (middle, pair) in middles.iter_mut().zip(levels.windows(2)) {
        *middle = between(pair);
    }
    middles
}

/// The middle between two levels.
#[inline(always)]
fn between<C: Float>(pair: &[C]) -> C {
    let half = C::from_f64(0.5);
    pair[0] * half + pair[1] * half
}

/// Levels in ascending order: the same for all blocks, or a set for each.
#[derive(Clone, Copy, Debug)]
pub struct Levels<'a, C> {
    /// Those of all blocks, or of one block after another.
    levels: &'a [C],
    /// How many a block has, if each has its own.
    own: Option<usize>,
    /// Of levels for all blocks.
    middles: [C; FEW - 1],
}

impl<'a, C: Float> Levels<'a, C> {
    /// These levels, at least one, for all blocks. Scales make the last one the largest
    /// magnitude of a block.
    pub fn new(levels: &'a [C]) -> Self {
        Levels { levels, own: None, middles: middles(levels) }
    }

    /// `count` of the levels for each block. Scales are 1.
    pub fn of_blocks(levels: &'a [C], count: usize) -> Self {
        Levels { levels, own: Some(count), middles: [C::infinity(); FEW - 1] }
    }
}

/// The levels of one block.
#[derive(Clone, Copy, Debug)]
pub struct LevelCoder<'a, C> {
    levels: &'a [C],
    middles: [C; FEW - 1],
    scale: C,
}

impl<C: Float> Coder<C> for LevelCoder<'_, C> {
    #[inline(always)]
    fn encode(&self, x: C) -> u8 {
        let x = x / self.scale;
        // How many middles are below: of two levels equally near, the lower one.
        if self.levels.len() <= FEW {
            return self.middles.iter().fold(0, |code, middle| code + u8::from(*middle < x));
        }
        let (mut low, mut high) = (0, self.levels.len() - 1);
        while low < high {
            let middle = (low + high) / 2;
            let below = between(&self.levels[middle..middle + 2]) < x;
            if below { low = middle + 1 } else { high = middle }
        }
        low as u8
    }

    #[inline(always)]
    fn decode(&self, code: u8) -> C {
        // What is no code, which `within` finds, may come from another thread.
        self.levels.get(usize::from(code)).map_or(C::nan(), |level| *level * self.scale)
    }

    #[inline(always)]
    fn contains(&self, x: C) -> bool {
        let x = x / self.scale;
        x >= self.levels[0] && x <= self.levels[self.levels.len() - 1]
    }
}

impl<'a, C: Float> Grid<C> for Levels<'a, C> {
    type Coder = LevelCoder<'a, C>;

    #[inline(always)]
    fn coder(&self, block: usize, scale: C, _: u8) -> LevelCoder<'a, C> {
        match self.own {
            None => LevelCoder { levels: self.levels, middles: self.middles, scale },
            Some(count) => {
                let levels = &self.levels[block * count..(block + 1) * count];
                LevelCoder { levels, middles: middles(levels), scale }
            }
        }
    }

    #[inline(always)]
    fn scale(&self, low: C, high: C) -> (C, u8) {
        if self.own.is_some() {
            return (C::one(), 0);
        }
        let magnitude = if -low > high { -low } else { high };
        (steps(magnitude, self.levels[self.levels.len() - 1]), 0)
    }

    #[inline(always)]
    fn is_code(&self, code: u8) -> bool {
        usize::from(code) < self.own.unwrap_or(self.levels.len())
    }
}

/// A floating-point format of 8 bits, of which `MANTISSA` follow the first digit, and whose
/// largest finite number has the code `LARGEST`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fp8<const MANTISSA: u32, const LARGEST: u8>;

/// E4M3 without infinities: up to 448.
pub type E4M3 = Fp8<3, 0x7E>;
/// E5M2: up to 57344.
pub type E5M2 = Fp8<2, 0x7B>;

impl<const MANTISSA: u32, const LARGEST: u8> Fp8<MANTISSA, LARGEST> {
    /// By how much the exponent of `f32` is greater.
    const REBIAS: u32 = 127 - ((1 << (6 - MANTISSA)) - 1);
    /// Binary digits of `f32` that have no place.
    const CUT: u32 = 23 - MANTISSA;
    /// The least normal number.
    const NORMAL: f32 = f32::from_bits((Self::REBIAS + 1) << 23);
    /// Next to it the last place of `f32` is the least number of the format.
    const ORIGIN: f32 = f32::from_bits((Self::REBIAS + 1 + Self::CUT) << 23);

    /// The number of a code that is not infinite and not NaN.
    #[inline(always)]
    pub fn value(code: u8) -> f32 {
        let magnitude = u32::from(code & 0x7F) << Self::CUT;
        let normal = f32::from_bits(magnitude + (Self::REBIAS << 23));
        // Below the normal range the digits stand as if before them stood a 1.
        let subnormal = f32::from_bits(magnitude + Self::NORMAL.to_bits()) - Self::NORMAL;
        let value = if magnitude < 1 << 23 { subnormal } else { normal };
        f32::from_bits(value.to_bits() | u32::from(code & 0x80) << 24)
    }

    /// The largest finite number.
    pub fn largest() -> f32 {
        Self::value(LARGEST)
    }

    /// The code of the nearest number, ties to even; the largest beyond it.
    #[inline(always)]
    pub fn code(x: f32) -> u8 {
        let magnitude = clamp(x.abs(), 0.0, Self::largest());
        let bits = magnitude.to_bits();
        let up = (1 << (Self::CUT - 1)) - 1 + (bits >> Self::CUT & 1);
        let normal = (bits + up).wrapping_sub(Self::REBIAS << 23) >> Self::CUT;
        let subnormal = (magnitude + Self::ORIGIN).to_bits() - Self::ORIGIN.to_bits();
        let code = if magnitude < Self::NORMAL { subnormal } else { normal };
        (code | (x.to_bits() >> 24 & 0x80)) as u8
    }
}

/// FP8 with a scale.
#[derive(Clone, Copy, Debug)]
pub struct Fp8Coder<C, const MANTISSA: u32, const LARGEST: u8> {
    scale: C,
}

impl<C: Float, const M: u32, const L: u8> Coder<C> for Fp8Coder<C, M, L> {
    #[inline(always)]
    fn encode(&self, x: C) -> u8 {
        Fp8::<M, L>::code((x / self.scale).to_f32())
    }

    #[inline(always)]
    fn decode(&self, code: u8) -> C {
        C::from_f64(Fp8::<M, L>::value(code).into()) * self.scale
    }

    #[inline(always)]
    fn contains(&self, x: C) -> bool {
        (x / self.scale).to_f32().abs() <= Fp8::<M, L>::largest()
    }
}

impl<C: Float, const M: u32, const L: u8> Grid<C> for Fp8<M, L> {
    type Coder = Fp8Coder<C, M, L>;

    #[inline(always)]
    fn coder(&self, _: usize, scale: C, _: u8) -> Fp8Coder<C, M, L> {
        Fp8Coder { scale }
    }

    #[inline(always)]
    fn scale(&self, low: C, high: C) -> (C, u8) {
        let magnitude = if -low > high { -low } else { high };
        (steps(magnitude, C::from_f64(Self::largest().into())), 0)
    }

    #[inline(always)]
    fn is_code(&self, code: u8) -> bool {
        code & 0x7F <= L
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_rounded_half_to_even_and_clamped() {
        let coder = Grid::<f32>::coder(&Affine::new(4, true, true), 0, 0.5, 0);
        for (x, code) in [(0.25, 0), (0.75, 2), (-0.25, 0), (-0.75, -2), (9.0, 7), (-9.0, -8)] {
            assert_eq!(coder.encode(x) as i8, code, "{x}");
            assert_eq!(coder.decode(code as u8), 0.5 * f32::from(code));
        }
        assert!(coder.contains(3.5) && !coder.contains(3.6) && coder.contains(-4.0));
        assert_eq!(coder.encode(f32::NAN) as i8, -8);
        assert_eq!(coder.encode(f32::INFINITY) as i8, 7);
        let coder = Grid::<f64>::coder(&Affine::new(8, false, false), 0, 1.0, 200);
        for (x, code) in
            [(0.5, 200), (1.5, 202), (-200.0, 0), (-201.0, 0), (55.0, 255), (1e300, 255)]
        {
            assert_eq!(coder.encode(x), code, "{x}");
        }
    }

    #[test]
    fn reciprocals_give_what_divisions_give() {
        fn check<C: Round + std::fmt::Display>(mut values: impl Iterator<Item = (C, C)>) {
            for affine in [Affine::new(4, true, true), Affine::new(8, false, false)] {
                for (x, scale) in values.by_ref().take(200_000) {
                    let coder = affine.coder(0, scale, if affine.symmetric { 0 } else { 130 });
                    assert!(coder.has_reciprocal());
                    assert_eq!(coder.encode_by_reciprocal(x), coder.encode(x), "{x} {scale}");
                }
            }
        }
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 32
        };
        // Quotients at and next to the middles between integers, and others.
        let mut pairs = std::iter::repeat_with(|| {
            let scale =
                f32::from_bits((next() as u32 & 0x7F_FFFF) | (70 + next() as u32 % 110) << 23);
            let v = (next() % 512) as f32 * 0.5 - 128.0;
            let x = f32::from_bits(
                (v * scale).to_bits().wrapping_add(next() as u32 % 5).wrapping_sub(2),
            );
            if x.abs() < 200.0 * scale { (x, scale) } else { (v * scale, scale) }
        });
        check::<f32>(pairs.by_ref());
        check::<f64>(pairs.map(|(x, scale)| (f64::from(x) * 1.1, f64::from(scale) / 0.7)));
        let coder = |scale: f32| Affine::new(4, true, true).coder(0, scale, 0).has_reciprocal();
        assert!(!coder(f32::MIN_POSITIVE) && !coder(f32::MAX));
    }

    #[test]
    fn scales_are_normal_numbers() {
        for affine in [Affine::new(8, true, true), Affine::new(2, false, false)] {
            for (low, high) in [(0.0, 0.0), (0.0, 1e-45), (-1e-40, 0.0), (-f32::MAX, f32::MAX)] {
                let (scale, zero) = affine.scale(low, high);
                assert!(scale.is_normal() && affine.is_code_of::<f32>(zero), "{scale}");
            }
        }
        assert_eq!(Affine::new(8, true, true).scale(-2.55f32, 1.0), (2.55 / 127.5, 0));
        assert_eq!(Affine::new(4, false, true).scale(0.0f64, 7.5), (1.0, 8));
        assert_eq!(Affine::new(8, true, false).scale(-1.0f64, 254.0), (1.0, -127i8 as u8));
    }

    impl Affine {
        fn is_code_of<C: Round>(&self, code: u8) -> bool {
            Grid::<C>::is_code(self, code)
        }
    }

    fn every_code<const M: u32, const L: u8>(bias: i32) {
        let values: Vec<f32> = (0..=L).map(Fp8::<M, L>::value).collect();
        for (code, value) in (0..=L).zip(&values) {
            let (exponent, digits) = (i32::from(code >> M), f32::from(code & ((1 << M) - 1)));
            let unit = 2f32.powi(exponent.max(1) - bias - M as i32);
            let leading = if exponent == 0 { 0.0 } else { 2f32.powi(M as i32) };
            assert_eq!(*value, (leading + digits) * unit);
            assert_eq!(Fp8::<M, L>::code(*value), code);
            assert_eq!(Fp8::<M, L>::code(-*value), code | 0x80);
            assert_eq!(Fp8::<M, L>::value(code | 0x80), -*value);
        }
        for (code, pair) in (0..L).zip(values.windows(2)) {
            let middle = f32::midpoint(pair[0], pair[1]);
            assert_eq!(Fp8::<M, L>::code(middle), code + (code & 1), "tie to even");
            assert_eq!(Fp8::<M, L>::code(middle.next_down()), code);
            assert_eq!(Fp8::<M, L>::code(middle.next_up()), code + 1);
        }
        assert_eq!(Fp8::<M, L>::code(f32::INFINITY), L);
    }

    #[test]
    fn fp8_rounds_to_the_nearest_of_all_codes() {
        every_code::<3, 0x7E>(7);
        every_code::<2, 0x7B>(15);
        assert_eq!((E4M3::largest(), E5M2::largest()), (448.0, 57344.0));
    }

    #[test]
    fn levels_are_the_nearest_and_of_two_the_lower() {
        let many: Vec<f32> = (0..256).map(|i| (i as f32).powi(2)).collect();
        for levels in [&NF4[..], &[0.0], &[-1.0, 1.0], &many] {
            let coder = Levels::new(levels).coder(0, 2.0, 0);
            for (code, pair) in levels.windows(2).enumerate() {
                let middle = pair[0] + pair[1];
                assert_eq!(usize::from(coder.encode(middle)), code);
                let above = middle + 1e-6 * (1.0 + middle.abs());
                assert_eq!(usize::from(coder.encode(above)), code + 1);
                assert_eq!(coder.decode(code as u8), 2.0 * pair[0]);
            }
            assert_eq!(usize::from(coder.encode(f32::INFINITY)), levels.len() - 1);
            assert_eq!(coder.encode(f32::NAN), 0);
        }
        assert!(Levels::new(&NF4).coder(0, 1.0, 0).decode(16).is_nan());
    }
}
