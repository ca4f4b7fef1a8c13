//! The instruction sets of x86-64.
//!
//! Without VNNI, bytes are widened to `i16`, whose products are added in pairs by
//! `vpmaddwd`, which cannot overflow here; `vpmaddubsw` would save instructions, but it
//! saturates at `i16`, which two products of bytes exceed. Two products of nibbles and
//! bytes do not, nor do those of [`SHORT_STEPS`](super::isa::SHORT_STEPS) steps. VNNI's
//! `vpdpbusd` adds four products to an `i32`, exactly.

use std::arch::x86_64::*;
use std::ops::Range;

use super::isa::{Body, FloatBody, Isa, Lanes, SHIFT};

/// Two registers of 256 bits.
#[derive(Clone, Copy)]
pub struct Pair<T>(T, T);

/// Lanes in registers of 256 bits: AVX2 and FMA.
pub struct Ymm;

/// Lanes in registers of 512 bits: AVX-512 F and BW.
pub struct Zmm;

/// An expression of the first registers of pairs, and the same of the second.
macro_rules! pair {
    ($($x:ident),* => $value:expr) => {
        Pair(
            {
                let ($($x,)*) = ($($x.0,)*);
                $value
            },
            {
                let ($($x,)*) = ($($x.1,)*);
                $value
            },
        )
    };
}

macro_rules! in_pairs {
    ($($name:ident $(<const $j:ident: u32>)? ($($x:ident: $t:ty),*) -> $out:ty = $value:expr;)*) => {
        $(
            #[inline(always)]
            unsafe fn $name $(<const $j: u32>)? ($($x: $t),*) -> $out {
                // SAFETY: the caller guarantees AVX2 and FMA.
                unsafe { pair!($($x),* => $value) }
            }
        )*
    };
}

type I2 = Pair<__m256i>;
type F2 = Pair<__m256>;

impl Lanes for Ymm {
    type I = I2;
    type F = F2;

    const LONG: bool = false;

    #[inline(always)]
    unsafe fn splat(x: i32) -> I2 {
        // SAFETY: the caller guarantees AVX2, here and below.
        let x = unsafe { _mm256_set1_epi32(x) };
        Pair(x, x)
    }
    #[inline(always)]
    unsafe fn load(x: *const i32) -> I2 {
        // SAFETY: the caller guarantees sixteen elements, here and below.
        unsafe { Pair(_mm256_loadu_si256(x.cast()), _mm256_loadu_si256(x.add(8).cast())) }
    }
    #[inline(always)]
    unsafe fn store(x: I2, to: *mut i32) {
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_si256(to.cast(), x.0);
            _mm256_storeu_si256(to.add(8).cast(), x.1);
        }
    }
    #[inline(always)]
    unsafe fn load_bytes(x: *const u8) -> I2 {
        // SAFETY: as above.
        unsafe {
            let x = _mm_loadu_si128(x.cast());
            Pair(_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(x, x)))
        }
    }
    in_pairs! {
        add(a: I2, b: I2) -> I2 = _mm256_add_epi32(a, b);
        mul(a: I2, b: I2) -> I2 = _mm256_mullo_epi32(a, b);
        byte<const J: u32>(x: I2) -> I2 = match J {
            0 => _mm256_and_si256(x, _mm256_set1_epi32(0xff)),
            1 => _mm256_and_si256(_mm256_srli_epi32::<8>(x), _mm256_set1_epi32(0xff)),
            2 => _mm256_and_si256(_mm256_srli_epi32::<16>(x), _mm256_set1_epi32(0xff)),
            _ => _mm256_srli_epi32::<24>(x),
        };
        lower(x: I2) -> I2 = _mm256_and_si256(x, _mm256_set1_epi8(15));
        upper(x: I2) -> I2 = _mm256_and_si256(_mm256_srli_epi32::<4>(x), _mm256_set1_epi8(15));
        shifted(x: I2) -> F2 =
            _mm256_castsi256_ps(_mm256_or_si256(x, _mm256_castps_si256(_mm256_set1_ps(SHIFT))));
        to_f(x: I2) -> F2 = _mm256_cvtepi32_ps(x);
        add_f(a: F2, b: F2) -> F2 = _mm256_add_ps(a, b);
        sub_f(a: F2, b: F2) -> F2 = _mm256_sub_ps(a, b);
        mul_f(a: F2, b: F2) -> F2 = _mm256_mul_ps(a, b);
        // Of two zeros, and of NaN and a number, the maximum is the second.
        relu(x: F2) -> F2 = _mm256_max_ps(_mm256_setzero_ps(), x);
        fma(a: F2, b: F2, c: F2) -> F2 = _mm256_fmadd_ps(a, b, c);
    }
    #[inline(always)]
    unsafe fn lookup(table: *const f32, x: I2) -> F2 {
        // SAFETY: as above.
        unsafe {
            let (low, high) = (_mm256_loadu_ps(table), _mm256_loadu_ps(table.add(8)));
            pair!(x => {
                // The sign of a lane chooses: bit 3, moved there.
                let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(x));
                let (low, high) =
                    (_mm256_permutevar8x32_ps(low, x), _mm256_permutevar8x32_ps(high, x));
                _mm256_blendv_ps(low, high, upper)
            })
        }
    }
    #[inline(always)]
    unsafe fn splat_f(x: f32) -> F2 {
        // SAFETY: as above.
        let x = unsafe { _mm256_set1_ps(x) };
        Pair(x, x)
    }
    #[inline(always)]
    unsafe fn load_f(x: *const f32) -> F2 {
        // SAFETY: as above.
        unsafe { Pair(_mm256_loadu_ps(x), _mm256_loadu_ps(x.add(8))) }
    }
    #[inline(always)]
    unsafe fn store_f(x: F2, to: *mut f32) {
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(to, x.0);
            _mm256_storeu_ps(to.add(8), x.1);
        }
    }
}

impl Lanes for Zmm {
    type I = __m512i;
    type F = __m512;

    const LONG: bool = true;

    #[inline(always)]
    unsafe fn splat(x: i32) -> __m512i {
        // SAFETY: the caller guarantees AVX-512, here and below.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn load(x: *const i32) -> __m512i {
        // SAFETY: the caller guarantees sixteen elements, here and below.
        unsafe { _mm512_loadu_si512(x.cast()) }
    }
    #[inline(always)]
    unsafe fn store(x: __m512i, to: *mut i32) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(to.cast(), x) }
    }
    #[inline(always)]
    unsafe fn load_bytes(x: *const u8) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(x.cast())) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_mullo_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn byte<const J: u32>(x: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe {
            let mask = _mm512_set1_epi32(0xff);
            match J {
                0 => _mm512_and_si512(x, mask),
                1 => _mm512_and_si512(_mm512_srli_epi32::<8>(x), mask),
                2 => _mm512_and_si512(_mm512_srli_epi32::<16>(x), mask),
                _ => _mm512_srli_epi32::<24>(x),
            }
        }
    }
    #[inline(always)]
    unsafe fn lower(x: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_and_si512(x, _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    unsafe fn upper(x: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_and_si512(_mm512_srli_epi32::<4>(x), _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    unsafe fn shifted(x: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe {
            let shift = _mm512_castps_si512(_mm512_set1_ps(SHIFT));
            _mm512_castsi512_ps(_mm512_or_si512(x, shift))
        }
    }
    #[inline(always)]
    unsafe fn to_f(x: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn lookup(table: *const f32, x: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_permutexvar_ps(x, _mm512_loadu_ps(table)) }
    }
    #[inline(always)]
    unsafe fn splat_f(x: f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load_f(x: *const f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(x) }
    }
    #[inline(always)]
    unsafe fn store_f(x: __m512, to: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn add_f(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub_f(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_f(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn relu(x: __m512) -> __m512 {
        // SAFETY: as above. Of two zeros, and of NaN and a number, the maximum is the second.
        unsafe { _mm512_max_ps(_mm512_setzero_ps(), x) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
}

/// The activations of a step, as one number.
///
/// # Safety
/// There must be so many at `x`.
#[inline(always)]
unsafe fn four(x: *const i8) -> i32 {
    // SAFETY: the caller guarantees four bytes.
    unsafe { x.cast::<i32>().read_unaligned() }
}

/// AVX2.
pub struct Avx2;

impl Isa for Avx2 {
    type V = Ymm;
    /// Bytes 0 and 2 of each lane, and bytes 1 and 3, as `i16`.
    type Bytes = (I2, I2);

    const WIDE: bool = true;
    const SHORT: bool = true;

    #[inline(always)]
    unsafe fn bytes(words: I2) -> (I2, I2) {
        // SAFETY: the caller guarantees AVX2, here and below.
        unsafe {
            let mask = _mm256_set1_epi16(0xff);
            (
                pair!(words => _mm256_and_si256(words, mask)),
                pair!(words => _mm256_srli_epi16::<8>(words)),
            )
        }
    }
    #[inline(always)]
    unsafe fn dot(sum: I2, (even, odd): (I2, I2), x: *const i8) -> I2 {
        // SAFETY: the caller guarantees the activations of a step, here in eight bytes.
        unsafe {
            let (x0, x1) = (_mm256_set1_epi32(four(x)), _mm256_set1_epi32(four(x.add(4))));
            pair!(sum, even, odd => {
                let sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even, x0));
                _mm256_add_epi32(sum, _mm256_madd_epi16(odd, x1))
            })
        }
    }
    #[inline(always)]
    unsafe fn dot_nibbles(sum: I2, weights: I2, x: *const i8) -> I2 {
        // SAFETY: the caller guarantees the activations of a step.
        unsafe {
            let x = _mm256_set1_epi32(four(x));
            pair!(sum, weights => _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, x)))
        }
    }
    #[inline(always)]
    unsafe fn widen(sum: I2, short: I2) -> I2 {
        // SAFETY: as above.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            pair!(sum, short => _mm256_add_epi32(sum, _mm256_madd_epi16(short, ones)))
        }
    }
}

/// AVX-512 without VNNI.
pub struct Avx512;

impl Isa for Avx512 {
    type V = Zmm;
    /// Bytes 0 and 2 of each lane, and bytes 1 and 3, as `i16`.
    type Bytes = (__m512i, __m512i);

    const WIDE: bool = true;
    const SHORT: bool = true;

    #[inline(always)]
    unsafe fn bytes(words: __m512i) -> (__m512i, __m512i) {
        // SAFETY: the caller guarantees AVX-512, here and below.
        unsafe { (_mm512_and_si512(words, _mm512_set1_epi16(0xff)), _mm512_srli_epi16::<8>(words)) }
    }
    #[inline(always)]
    unsafe fn dot(sum: __m512i, (even, odd): (__m512i, __m512i), x: *const i8) -> __m512i {
        // SAFETY: the caller guarantees the activations of a step, here in eight bytes.
        unsafe {
            let (x0, x1) = (_mm512_set1_epi32(four(x)), _mm512_set1_epi32(four(x.add(4))));
            let sum = _mm512_add_epi32(sum, _mm512_madd_epi16(even, x0));
            _mm512_add_epi32(sum, _mm512_madd_epi16(odd, x1))
        }
    }
    #[inline(always)]
    unsafe fn dot_nibbles(sum: __m512i, weights: __m512i, x: *const i8) -> __m512i {
        // SAFETY: the caller guarantees the activations of a step.
        unsafe {
            let x = _mm512_set1_epi32(four(x));
            _mm512_add_epi16(sum, _mm512_maddubs_epi16(weights, x))
        }
    }
    #[inline(always)]
    unsafe fn widen(sum: __m512i, short: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_add_epi32(sum, _mm512_madd_epi16(short, _mm512_set1_epi16(1))) }
    }
}

/// AVX2 with AVX-VNNI.
pub struct AvxVnni;

impl Isa for AvxVnni {
    type V = Ymm;
    type Bytes = I2;

    const WIDE: bool = false;
    const SHORT: bool = false;

    #[inline(always)]
    unsafe fn bytes(words: I2) -> I2 {
        words
    }
    #[inline(always)]
    unsafe fn dot(sum: I2, weights: I2, x: *const i8) -> I2 {
        // SAFETY: the caller guarantees AVX-VNNI and the activations of a step.
        unsafe {
            let x = _mm256_set1_epi32(four(x));
            pair!(sum, weights => _mm256_dpbusd_avx_epi32(sum, weights, x))
        }
    }
    #[inline(always)]
    unsafe fn dot_nibbles(sum: I2, weights: I2, x: *const i8) -> I2 {
        // SAFETY: as the caller guarantees.
        unsafe { Self::dot(sum, weights, x) }
    }
    #[inline(always)]
    unsafe fn widen(sum: I2, short: I2) -> I2 {
        // SAFETY: as the caller guarantees.
        unsafe { Ymm::add(sum, short) }
    }
}

/// AVX-512 with VNNI.
pub struct Avx512Vnni;

impl Isa for Avx512Vnni {
    type V = Zmm;
    type Bytes = __m512i;

    const WIDE: bool = false;
    const SHORT: bool = false;

    #[inline(always)]
    unsafe fn bytes(words: __m512i) -> __m512i {
        words
    }
    #[inline(always)]
    unsafe fn dot(sum: __m512i, weights: __m512i, x: *const i8) -> __m512i {
        // SAFETY: the caller guarantees AVX-512 VNNI and the activations of a step.
        unsafe { _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(four(x))) }
    }
    #[inline(always)]
    unsafe fn dot_nibbles(sum: __m512i, weights: __m512i, x: *const i8) -> __m512i {
        // SAFETY: as the caller guarantees.
        unsafe { Self::dot(sum, weights, x) }
    }
    #[inline(always)]
    unsafe fn widen(sum: __m512i, short: __m512i) -> __m512i {
        // SAFETY: as the caller guarantees.
        unsafe { Zmm::add(sum, short) }
    }
}

macro_rules! wrappers {
    ($($name:ident, $body:ident, $isa:ty, $features:literal;)*) => {
        $(
            /// Does these tasks of a product.
            ///
            /// # Safety
            /// The caller guarantees that the machine has the features named, and that each
            /// task is done once.
            #[target_feature(enable = $features)]
            pub unsafe fn $name<B: $body>(body: &B, tasks: Range<usize>) {
                // SAFETY: as the caller guarantees.
                unsafe { body.run::<$isa>(tasks) }
            }
        )*
    };
}
wrappers! {
    avx2, Body, Avx2, "avx2,fma,f16c";
    avx_vnni, Body, AvxVnni, "avx2,fma,f16c,avxvnni";
    avx512, Body, Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c";
    avx512_vnni, Body, Avx512Vnni, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c";
    avx2_floats, FloatBody, Ymm, "avx2,fma,f16c";
    avx512_floats, FloatBody, Zmm, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c";
}
