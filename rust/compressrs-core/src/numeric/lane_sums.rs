//! Sums of the lanes of several vectors at once, for [`Vector::sum_lanes`].
//!
//! Each step adds two halves of each of two vectors: halves of the register first, then of
//! 128 bits, as [`sum_tree`](crate::numeric::lanes::sum_tree) does. A last permutation puts the
//! sums in the order of the vectors.
//!
//! [`Vector::sum_lanes`]: crate::numeric::vector::Vector::sum_lanes

use std::arch::x86_64::*;

use crate::numeric::vector::Fours;

/// The sums of 16 vectors.
///
/// # Safety
/// The machine has AVX-512 F.
#[inline(always)]
pub unsafe fn f32x16(fours: impl Fours<__m512>) -> __m512 {
    #[inline(always)]
    unsafe fn quarters(four: Option<[__m512; 4]>) -> __m512 {
        // SAFETY: as for `f32x16`.
        unsafe {
            let Some([a, b, c, d]) = four else { return _mm512_setzero_ps() };
            let ab = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
            );
            let cd = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d),
            );
            _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd),
                _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd),
            )
        }
    }
    #[inline(always)]
    unsafe fn pairs(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as for `f32x16`.
        unsafe {
            let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
            let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
            _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
        }
    }
    // SAFETY: the caller guarantees that the machine has the instructions.
    unsafe {
        let first = quarters(fours.four(0));
        let first = pairs(first, quarters(fours.four(1)));
        let second = quarters(fours.four(2));
        let second = pairs(second, quarters(fours.four(3)));
        let sums = _mm512_add_ps(
            _mm512_shuffle_ps::<0b10_00_10_00>(first, second),
            _mm512_shuffle_ps::<0b11_01_11_01>(first, second),
        );
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        _mm512_permutexvar_ps(order, sums)
    }
}

/// The sums of 8 vectors.
///
/// # Safety
/// The machine has AVX-512 F.
#[inline(always)]
pub unsafe fn f64x8(fours: impl Fours<__m512d>) -> __m512d {
    #[inline(always)]
    unsafe fn quarters(four: Option<[__m512d; 4]>) -> __m512d {
        // SAFETY: as for `f64x8`.
        unsafe {
            let Some([a, b, c, d]) = four else { return _mm512_setzero_pd() };
            let ab = _mm512_add_pd(
                _mm512_shuffle_f64x2::<0b01_00_01_00>(a, b),
                _mm512_shuffle_f64x2::<0b11_10_11_10>(a, b),
            );
            let cd = _mm512_add_pd(
                _mm512_shuffle_f64x2::<0b01_00_01_00>(c, d),
                _mm512_shuffle_f64x2::<0b11_10_11_10>(c, d),
            );
            _mm512_add_pd(
                _mm512_shuffle_f64x2::<0b10_00_10_00>(ab, cd),
                _mm512_shuffle_f64x2::<0b11_01_11_01>(ab, cd),
            )
        }
    }
    // SAFETY: the caller guarantees that the machine has the instructions.
    unsafe {
        let a = quarters(fours.four(0));
        let b = quarters(fours.four(1));
        let sums = _mm512_add_pd(_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
        _mm512_permutexvar_pd(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), sums)
    }
}

/// The sums of 8 vectors.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
pub unsafe fn f32x8(fours: impl Fours<__m256>) -> __m256 {
    #[inline(always)]
    unsafe fn pairs(four: Option<[__m256; 4]>) -> __m256 {
        // SAFETY: as for `f32x8`.
        unsafe {
            let Some([a, b, c, d]) = four else { return _mm256_setzero_ps() };
            let ab = _mm256_add_ps(
                _mm256_permute2f128_ps::<0x20>(a, b),
                _mm256_permute2f128_ps::<0x31>(a, b),
            );
            let cd = _mm256_add_ps(
                _mm256_permute2f128_ps::<0x20>(c, d),
                _mm256_permute2f128_ps::<0x31>(c, d),
            );
            let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
            let (low, high) = (_mm256_unpacklo_pd(ab, cd), _mm256_unpackhi_pd(ab, cd));
            _mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high))
        }
    }
    // SAFETY: the caller guarantees that the machine has the instructions.
    unsafe {
        let first = pairs(fours.four(0));
        let second = pairs(fours.four(1));
        let sums = _mm256_add_ps(
            _mm256_shuffle_ps::<0b10_00_10_00>(first, second),
            _mm256_shuffle_ps::<0b11_01_11_01>(first, second),
        );
        _mm256_permutevar8x32_ps(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
    }
}

/// The sums of 4 vectors.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
pub unsafe fn f64x4(fours: impl Fours<__m256d>) -> __m256d {
    // SAFETY: the caller guarantees that the machine has the instructions.
    unsafe {
        let Some([a, b, c, d]) = fours.four(0) else { return _mm256_setzero_pd() };
        let ab = _mm256_add_pd(
            _mm256_permute2f128_pd::<0x20>(a, b),
            _mm256_permute2f128_pd::<0x31>(a, b),
        );
        let cd = _mm256_add_pd(
            _mm256_permute2f128_pd::<0x20>(c, d),
            _mm256_permute2f128_pd::<0x31>(c, d),
        );
        let sums = _mm256_add_pd(_mm256_unpacklo_pd(ab, cd), _mm256_unpackhi_pd(ab, cd));
        _mm256_permute4x64_pd::<0b11_01_10_00>(sums)
    }
}
