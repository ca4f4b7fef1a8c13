//! What products need of an instruction set, and the portable form of it.
//!
//! A product is written once, over [`Isa`], in terms of sixteen lanes of 32 bits: one
//! channel each. [`super::x86`] has the forms with vector registers.

use std::ops::Range;

use crate::runtime::simd::{Level, Vectors};

/// Channels in a panel: 32-bit lanes in a vector of 512 bits.
pub const LANES: usize = 16;

/// Columns whose codes share a lane of a panel.
pub const STEP: usize = 4;

/// Steps whose products of nibbles and bytes fit an `i16`: two in each step, of 15 and
/// 128 at most.
pub const SHORT_STEPS: usize = 8;

const _: () = assert!(SHORT_STEPS as i32 * 2 * 15 * 128 <= i16::MAX as i32);

/// 2^23, of which small integers are the last bits.
pub const SHIFT: f32 = 8_388_608.0;

/// Sixteen lanes, of 32-bit integers or of `f32`.
///
/// # Safety of the functions
/// The caller guarantees that the machine has the instruction set, and that pointers
/// point to as many elements as there are lanes, of any alignment.
pub trait Lanes {
    /// Integers, or bytes, or pairs of `i16`.
    type I: Copy;
    /// Numbers.
    type F: Copy;

    /// Whether a register holds sixteen lanes: four panels fit them at once, else one.
    const LONG: bool;

    unsafe fn splat(x: i32) -> Self::I;
    unsafe fn load(x: *const i32) -> Self::I;
    unsafe fn store(x: Self::I, to: *mut i32);
    /// The bytes at `x`, widened.
    unsafe fn load_bytes(x: *const u8) -> Self::I;
    unsafe fn add(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn mul(a: Self::I, b: Self::I) -> Self::I;
    /// Byte `J` of each lane.
    unsafe fn byte<const J: u32>(x: Self::I) -> Self::I;
    /// The lower half of each byte.
    unsafe fn lower(x: Self::I) -> Self::I;
    /// The upper half of each byte.
    unsafe fn upper(x: Self::I) -> Self::I;
    /// `2^23 + x` of lanes from 0 to 255: their bits are those of a number's mantissa.
    unsafe fn shifted(x: Self::I) -> Self::F;
    /// Of each lane, rounded to nearest, ties to even.
    unsafe fn to_f(x: Self::I) -> Self::F;
    /// The entry of a table of sixteen that each lane, from 0 to 15, names.
    unsafe fn lookup(table: *const f32, x: Self::I) -> Self::F;

    unsafe fn splat_f(x: f32) -> Self::F;
    unsafe fn load_f(x: *const f32) -> Self::F;
    unsafe fn store_f(x: Self::F, to: *mut f32);
    unsafe fn add_f(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub_f(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul_f(a: Self::F, b: Self::F) -> Self::F;
    /// 0 where negative; NaN and -0 stay.
    unsafe fn relu(x: Self::F) -> Self::F;
    /// `a b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
}

/// Dot products of four unsigned bytes and four activations in each lane.
///
/// Sums wrap: they are right whenever what is summed fits an `i32` in the end.
///
/// # Safety of the functions
/// As of [`Lanes`]; `x` points to the activations of a step.
pub trait Isa: 'static {
    /// Its lanes.
    type V: Lanes;
    /// The bytes of a step, made ready for products.
    type Bytes: Copy;

    /// Whether activations are `i16`, those of a step in the order 0, 2, 1, 3, where
    /// weights are bytes. Else they are `i8` in their own order, as for nibbles.
    const WIDE: bool;
    /// Whether products of nibbles are summed in `i16` first, in up to [`SHORT_STEPS`].
    const SHORT: bool;

    unsafe fn bytes(words: <Self::V as Lanes>::I) -> Self::Bytes;
    /// `sum` plus the dot products.
    unsafe fn dot(
        sum: <Self::V as Lanes>::I,
        weights: Self::Bytes,
        x: *const i8,
    ) -> <Self::V as Lanes>::I;
    /// The same of bytes below 16 and activations that are not wide. Where sums are
    /// [`SHORT`](Self::SHORT), in pairs of `i16`, which must not overflow.
    unsafe fn dot_nibbles(
        sum: <Self::V as Lanes>::I,
        weights: <Self::V as Lanes>::I,
        x: *const i8,
    ) -> <Self::V as Lanes>::I;
    /// `sum` plus the two `i16` in each lane, where sums are short.
    unsafe fn widen(
        sum: <Self::V as Lanes>::I,
        short: <Self::V as Lanes>::I,
    ) -> <Self::V as Lanes>::I;
}

/// Arrays, which the compiler makes of what the target has.
pub struct Arrays;

#[inline(always)]
fn each<A: Copy, B>(a: [A; LANES], f: impl Fn(A) -> B) -> [B; LANES] {
    a.map(f)
}

#[inline(always)]
fn both<A: Copy, B>(a: [A; LANES], b: [A; LANES], f: impl Fn(A, A) -> B) -> [B; LANES] {
    std::array::from_fn(|l| f(a[l], b[l]))
}

impl Lanes for Arrays {
    type I = [i32; LANES];
    type F = [f32; LANES];

    const LONG: bool = false;

    #[inline(always)]
    unsafe fn splat(x: i32) -> [i32; LANES] {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(x: *const i32) -> [i32; LANES] {
        // SAFETY: the caller guarantees that there are so many.
        unsafe { x.cast::<[i32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(x: [i32; LANES], to: *mut i32) {
        // SAFETY: as for `load`.
        unsafe { to.cast::<[i32; LANES]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_bytes(x: *const u8) -> [i32; LANES] {
        // SAFETY: as for `load`.
        each(unsafe { x.cast::<[u8; LANES]>().read_unaligned() }, i32::from)
    }
    #[inline(always)]
    unsafe fn add(a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
        both(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn mul(a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
        both(a, b, i32::wrapping_mul)
    }
    #[inline(always)]
    unsafe fn byte<const J: u32>(x: [i32; LANES]) -> [i32; LANES] {
        each(x, |x| (x >> (8 * J)) & 0xff)
    }
    #[inline(always)]
    unsafe fn lower(x: [i32; LANES]) -> [i32; LANES] {
        each(x, |x| x & 0x0f0f_0f0f)
    }
    #[inline(always)]
    unsafe fn upper(x: [i32; LANES]) -> [i32; LANES] {
        each(x, |x| (x >> 4) & 0x0f0f_0f0f)
    }
    #[inline(always)]
    unsafe fn shifted(x: [i32; LANES]) -> [f32; LANES] {
        each(x, |x| f32::from_bits(x.cast_unsigned() | SHIFT.to_bits()))
    }
    #[inline(always)]
    unsafe fn to_f(x: [i32; LANES]) -> [f32; LANES] {
        each(x, |x| x as f32)
    }
    #[inline(always)]
    unsafe fn lookup(table: *const f32, x: [i32; LANES]) -> [f32; LANES] {
        // SAFETY: the caller guarantees that there are so many.
        let table = unsafe { table.cast::<[f32; LANES]>().read_unaligned() };
        each(x, |x| table[x as usize % LANES])
    }
    #[inline(always)]
    unsafe fn splat_f(x: f32) -> [f32; LANES] {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load_f(x: *const f32) -> [f32; LANES] {
        // SAFETY: as for `load`.
        unsafe { x.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_f(x: [f32; LANES], to: *mut f32) {
        // SAFETY: as for `load`.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn add_f(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        both(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub_f(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        both(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul_f(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        both(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn relu(x: [f32; LANES]) -> [f32; LANES] {
        each(x, |x| if x < 0.0 { 0.0 } else { x })
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|l| a[l].mul_add(b[l], c[l]))
    }
}

impl Isa for Arrays {
    type V = Arrays;
    type Bytes = [i32; LANES];

    const WIDE: bool = false;
    const SHORT: bool = false;

    #[inline(always)]
    unsafe fn bytes(words: [i32; LANES]) -> [i32; LANES] {
        words
    }
    #[inline(always)]
    unsafe fn dot(sum: [i32; LANES], weights: [i32; LANES], x: *const i8) -> [i32; LANES] {
        // SAFETY: the caller guarantees that there are the activations of a step.
        let x = unsafe { x.cast::<[i8; STEP]>().read_unaligned() }.map(i32::from);
        both(sum, weights, |sum, w| {
            let [a, b, c, d] = w.to_le_bytes().map(i32::from);
            sum.wrapping_add(a * x[0] + b * x[1] + c * x[2] + d * x[3])
        })
    }
    #[inline(always)]
    unsafe fn dot_nibbles(sum: [i32; LANES], weights: [i32; LANES], x: *const i8) -> [i32; LANES] {
        // SAFETY: as the caller guarantees.
        unsafe { Self::dot(sum, weights, x) }
    }
    #[inline(always)]
    unsafe fn widen(sum: [i32; LANES], short: [i32; LANES]) -> [i32; LANES] {
        both(sum, short, i32::wrapping_add)
    }
}

/// A part of a product, for the instruction set of a level.
pub trait Body: Sync {
    /// Does these tasks. Implementations must be `#[inline(always)]`, like all that they
    /// call in a loop.
    ///
    /// # Safety
    /// The caller guarantees that the machine has the instruction set, and that each task
    /// is done once.
    unsafe fn run<I: Isa>(&self, tasks: Range<usize>);
}

/// A part of a product that takes numbers alone, for the vectors of a level.
pub trait FloatBody: Sync {
    /// Does these tasks. Implementations must be `#[inline(always)]`, like all that they
    /// call in a loop.
    ///
    /// # Safety
    /// As of [`Body::run`].
    unsafe fn run<V: Lanes>(&self, tasks: Range<usize>);
}

/// Whether [`Isa::WIDE`] is true at a level.
pub fn is_wide(level: Level) -> bool {
    matches!(level, Level::Avx2 | Level::Avx512)
}

/// Whether [`Lanes::LONG`] is true at a level.
pub fn is_long(level: Level) -> bool {
    matches!(level.vectors(), Vectors::Avx512)
}

/// Does these tasks of a product at a level.
///
/// # Safety
/// The caller guarantees that the machine supports the level, and that each task is done
/// once.
pub unsafe fn run_at<B: Body>(level: Level, body: &B, tasks: Range<usize>) {
    match level {
        // SAFETY: the caller guarantees that the machine has the instruction set, in all.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { super::x86::avx2(body, tasks) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::AvxVnni => unsafe { super::x86::avx_vnni(body, tasks) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx512 => unsafe { super::x86::avx512(body, tasks) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx512Vnni => unsafe { super::x86::avx512_vnni(body, tasks) },
        // SAFETY: what the target has is enough.
        Level::Portable | Level::Neon => unsafe { body.run::<Arrays>(tasks) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => unreachable!("{} is of another architecture", level.name()),
    }
}

/// Does these tasks of a product of numbers at a level.
///
/// # Safety
/// As of [`run_at`].
pub unsafe fn run_floats_at<B: FloatBody>(level: Level, body: &B, tasks: Range<usize>) {
    match level.vectors() {
        // SAFETY: the caller guarantees that the machine has the instruction set, in all.
        #[cfg(target_arch = "x86_64")]
        Vectors::Avx2 => unsafe { super::x86::avx2_floats(body, tasks) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Vectors::Avx512 => unsafe { super::x86::avx512_floats(body, tasks) },
        // SAFETY: what the target has is enough.
        Vectors::Target => unsafe { body.run::<Arrays>(tasks) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => unreachable!("{} is of another architecture", level.name()),
    }
}
