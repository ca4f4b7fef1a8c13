//! Moments in 8 bits.
//!
//! Each block of [`BLOCK`] numbers has a scale, a power of 2, and each number a
//! code. A code stands for a level `0, 1, ...` and, where numbers may be negative,
//! a sign; levels lie closer together, in proportion to what they stand for, the
//! larger that is. What a level stands for is computed from it by integer
//! operations on the bits of an `f32`, so that a block is decoded and encoded in
//! vector registers, without a table:
//!
//! ```text
//! y = x / scale + eps        in [eps, 2), eps a power of 2
//! l = bits(y) - bits(eps)    a logarithm, linear between powers of 2
//! level = max over i of (slope_i l - offset_i), rounded
//! ```
//!
//! The slopes, powers of 2 as well, grow with `l`: that many levels an octave.
//! Adding `eps` makes the code linear near 0, where the logarithm would go on
//! for ever. The codes were chosen by measurement, see `docs/few_bytes.md`.
//!
//! Level 0 stands for 0, but of a divisor for half of level 1: what steps are
//! divided by must not become 0 while what is divided does not.
//!
//! Numbers that are not finite have codes of their own, in blocks that are marked
//! by the sign of their scale: only these blocks take time for them.

use crate::numeric::element::Float;
pub use crate::numeric::stochastic_rounding::BLOCK;
use crate::numeric::stochastic_rounding::Threshold;
use crate::runtime::simd::Kernel;

/// Version of the code format; bump on any change.
pub const CODE_VERSION: u32 = 1;

/// Moments of fewer numbers than this are not worth 8 bits: those of biases and
/// the like, which matter more than the bytes that they take.
pub const MIN_LEN: usize = 4096;

/// Bits of a level's digits below the point, while it is not rounded yet.
const PLACES: u32 = 19;

/// A code of 8 bits.
pub(crate) trait Code: Copy {
    /// The greatest level. A block's greatest number is below it, so that it may be
    /// rounded up.
    const LEVELS: i32;
    /// `-log2(eps)`
    const OCTAVES: u32;
    /// Slopes, as powers of 2 by which [`PLACES`] digits below the point are a
    /// sixteenth of an octave, and where each begins, in octaves from `eps`, upwards.
    const SLOPES: &'static [(u32, u32)];
    /// Whether numbers are divisors.
    const DIVISOR: bool;

    /// The code of a level with the sign of bit 31.
    fn code(self, level: i32, sign: u32) -> u8;
    /// The level, and the sign in bit 31.
    fn level(self, code: u8) -> (i32, u32);
}

/// For numbers of either sign: 127 levels in two's complement.
#[derive(Clone, Copy)]
pub(crate) struct Signed;

impl Code for Signed {
    const LEVELS: i32 = 127;
    const OCTAVES: u32 = 7;
    const SLOPES: &'static [(u32, u32)] = &[(0, 0)];
    const DIVISOR: bool = false;

    #[inline(always)]
    fn code(self, level: i32, sign: u32) -> u8 {
        let minus = (sign as i32) >> 31;
        // Clamped as the instructions clamp that narrow to 8 bits.
        ((level ^ minus) - minus).clamp(-128, 127) as i8 as u8
    }

    #[inline(always)]
    fn level(self, code: u8) -> (i32, u32) {
        let code = i32::from(code as i8);
        (code.abs(), code as u32 & SIGN)
    }
}

/// For numbers that are not negative and used as divisors: 255 levels.
#[derive(Clone, Copy)]
pub(crate) struct Divisor;

impl Code for Divisor {
    const LEVELS: i32 = 255;
    const OCTAVES: u32 = 12;
    const SLOPES: &'static [(u32, u32)] = &[(0, 0), (1, 10)];
    const DIVISOR: bool = true;

    #[inline(always)]
    fn code(self, level: i32, _: u32) -> u8 {
        level.clamp(0, 255) as u8
    }

    #[inline(always)]
    fn level(self, code: u8) -> (i32, u32) {
        (i32::from(code), 0)
    }
}

const SIGN: u32 = 1 << 31;
const INFINITY: u32 = 0xFF << 23;

/// `eps`
const fn eps<K: Code>() -> f32 {
    f32::from_bits((127 - K::OCTAVES) << 23)
}

/// What is subtracted from `slope l` for slope number `i`, so that the lines meet.
const fn offset<K: Code>(i: usize) -> i32 {
    if i == 0 {
        return 0;
    }
    let ((slope, begin), (before, _)) = (K::SLOPES[i], K::SLOPES[i - 1]);
    let l = (begin as i32) << 23;
    offset::<K>(i - 1) + (l << slope) - (l << before)
}

/// What a level stands for, in units of the scale.
#[inline(always)]
fn value<K: Code>(level: i32) -> f32 {
    let q = level << PLACES;
    let mut l = q;
    // A minimum, since the inverse of each line is the other way round.
    for i in 1..K::SLOPES.len() {
        l = l.min(q.wrapping_add(offset::<K>(i)) >> K::SLOPES[i].0);
    }
    f32::from_bits(eps::<K>().to_bits().wrapping_add(l as u32)) - (eps::<K>() - floor::<K>())
}

/// The level of a magnitude, with [`PLACES`] digits; `inverse` is that of the scale.
#[inline(always)]
fn digits<K: Code>(x: f32, inverse: f32) -> i32 {
    let y = x.mul_add(inverse, eps::<K>() - floor::<K>());
    let l = y.to_bits().wrapping_sub(eps::<K>().to_bits()) as i32;
    let mut q = l;
    for i in 1..K::SLOPES.len() {
        q = q.max((l << K::SLOPES[i].0).wrapping_sub(offset::<K>(i)));
    }
    q
}

/// What level 0 stands for: half of the least level above it for divisors, which
/// must not become 0 while the moment above them does not.
const fn floor<K: Code>() -> f32 {
    if K::DIVISOR { eps::<K>() / 32.0 } else { 0.0 }
}

/// The scale of a block.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    scale: f32,
    inverse: f32,
    /// Whether all numbers are finite.
    finite: bool,
}

impl Scale {
    /// That of a block of numbers, if they are finite.
    #[inline(always)]
    pub fn of<C: Float, K: Code>(block: &[C; BLOCK]) -> Self {
        let greatest = block.iter().fold(0, |greatest, &x| magnitude(x).max(greatest));
        Scale { finite: greatest < INFINITY, ..Scale::with_greatest::<K>(f32::from_bits(greatest)) }
    }

    /// The power of 2 by which the greatest magnitude of a block gets one of the
    /// upper levels, and its inverse; both are normal numbers.
    #[inline(always)]
    fn with_greatest<K: Code>(greatest: f32) -> Self {
        let quotient = greatest * value::<K>(K::LEVELS - 1).recip();
        let exponent = (quotient.to_bits().wrapping_add(0x7F_FFFF)) >> 23;
        let exponent = exponent.clamp(1, 253);
        let (scale, inverse) = (exponent << 23, (254 - exponent) << 23);
        Scale { scale: f32::from_bits(scale), inverse: f32::from_bits(inverse), finite: true }
    }

    /// The scale to be stored beside codes; those of a block that is not finite are
    /// made here.
    #[inline(always)]
    pub fn finish<C: Float>(
        self,
        block: &[C; BLOCK],
        codes: &mut [u8],
        threshold: impl Threshold,
        divisor: bool,
    ) -> f32 {
        if self.finite {
            return self.scale;
        }
        let block = block.map(|x| x.to_f32());
        if divisor {
            with_infinities(Divisor, &block, codes, threshold)
        } else {
            with_infinities(Signed, &block, codes, threshold)
        }
    }
}

/// What a code stands for, in a block whose scale is this, if that is finite.
#[inline(always)]
pub(crate) fn decode<K: Code>(kind: K, code: u8, scale: f32) -> f32 {
    let (level, sign) = kind.level(code);
    f32::from_bits((value::<K>(level) * scale).to_bits() | sign)
}

/// Decodes a block, of which the last may be shorter.
pub(crate) struct Decode<'a, C, K> {
    pub codes: &'a [u8],
    pub scale: f32,
    pub to: &'a mut [C; BLOCK],
    pub kind: K,
}

impl<C: Float, K: Code> Kernel for Decode<'_, C, K> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (to, &code) in self.to.iter_mut().zip(self.codes) {
            *to = C::from_f64(decode(self.kind, code, self.scale.abs()).into());
        }
        if self.scale.is_sign_negative() {
            for (to, &code) in self.to.iter_mut().zip(self.codes) {
                let (level, sign) = self.kind.level(code);
                let x = match level - K::LEVELS {
                    0 => f32::from_bits(INFINITY | sign),
                    -1 => f32::NAN,
                    _ => continue,
                };
                *to = C::from_f64(x.into());
            }
        }
    }
}

/// The bits of a magnitude, which order as magnitudes do.
#[inline(always)]
fn magnitude<C: Float>(x: C) -> u32 {
    x.to_f32().to_bits() & !SIGN
}

/// Encodes a block, of which the last may be shorter; the result is its scale.
pub(crate) struct Encode<'a, C, K, T> {
    /// Zeros behind the end of a shorter block.
    pub from: &'a [C; BLOCK],
    pub codes: &'a mut [u8],
    pub threshold: T,
    pub kind: K,
}

impl<C: Float, K: Code, T: Threshold> Kernel for Encode<'_, C, K, T> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let scale = Scale::of::<C, K>(self.from);
        // A local, which nothing can overlap.
        let mut codes = [0; BLOCK];
        for i in 0..BLOCK {
            codes[i] = encode(self.kind, self.from[i].to_f32(), scale, self.threshold.at(i));
        }
        self.codes.copy_from_slice(&codes[..self.codes.len()]);
        scale.finish(self.from, self.codes, self.threshold, K::DIVISOR)
    }
}

/// The code of a number.
#[inline(always)]
pub(crate) fn encode<K: Code>(kind: K, x: f32, scale: Scale, threshold: u32) -> u8 {
    let magnitude = if K::DIVISOR { x } else { x.abs() };
    let up = threshold >> (32 - PLACES);
    let level = digits::<K>(magnitude, scale.inverse).wrapping_add(up as i32) >> PLACES;
    kind.code(level, x.to_bits() & SIGN)
}

/// Encodes a block in which some are not finite: they get the two upper levels.
#[inline(never)]
fn with_infinities<K: Code>(
    kind: K,
    from: &[f32; BLOCK],
    codes: &mut [u8],
    threshold: impl Threshold,
) -> f32 {
    let finite = from.iter().filter(|x| x.is_finite());
    let greatest = finite.fold(0.0f32, |a, x| a.max(x.abs()));
    // Twice the scale that is needed: the upper levels have another meaning.
    let scale = Scale::with_greatest::<K>((2.0 * greatest).min(f32::MAX));
    for (i, (code, &x)) in codes.iter_mut().zip(from).enumerate() {
        let sign = x.to_bits() & SIGN;
        *code = if x.is_nan() {
            kind.code(K::LEVELS - 1, 0)
        } else if x.is_infinite() {
            kind.code(K::LEVELS, sign)
        } else {
            encode(kind, x, scale, threshold.at(i))
        };
    }
    -scale.scale
}
