//! Vectors put together of 16 bytes each, for [`Vector::load_quarters`] and [`Vector::spread`].
//!
//! [`Vector::load_quarters`]: crate::numeric::vector::Vector::load_quarters
//! [`Vector::spread`]: crate::numeric::vector::Vector::spread

use std::arch::x86_64::*;

/// Four elements of each of four places.
///
/// # Safety
/// The machine has AVX-512 F and DQ; the elements may be read.
#[inline(always)]
pub unsafe fn load_f32x16([a, b, c, d]: [*const f32; 4]) -> __m512 {
    // SAFETY: as the caller guarantees.
    unsafe {
        let low = load_f32x8([a, b, c, d]);
        let high = load_f32x8([c, d, a, b]);
        _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high)
    }
}

/// Each of four elements four times.
///
/// # Safety
/// The machine has AVX-512 F; the elements may be read.
#[inline(always)]
pub unsafe fn spread_f32x16(x: *const f32) -> __m512 {
    // SAFETY: as the caller guarantees.
    unsafe {
        let order = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        _mm512_permutexvar_ps(order, _mm512_castps128_ps512(_mm_loadu_ps(x)))
    }
}

/// Two elements of each of four places.
///
/// # Safety
/// The machine has AVX-512 F and DQ; the elements may be read.
#[inline(always)]
pub unsafe fn load_f64x8([a, b, c, d]: [*const f64; 4]) -> __m512d {
    // SAFETY: as the caller guarantees.
    unsafe {
        let low = load_f64x4([a, b, c, d]);
        let high = load_f64x4([c, d, a, b]);
        _mm512_insertf64x4::<1>(_mm512_castpd256_pd512(low), high)
    }
}

/// Each of four elements twice.
///
/// # Safety
/// The machine has AVX-512 F; the elements may be read.
#[inline(always)]
pub unsafe fn spread_f64x8(x: *const f64) -> __m512d {
    // SAFETY: as the caller guarantees.
    unsafe {
        let order = _mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3);
        _mm512_permutexvar_pd(order, _mm512_castpd256_pd512(_mm256_loadu_pd(x)))
    }
}

/// Four elements of each of the first two places.
///
/// # Safety
/// The machine has AVX; the elements may be read.
#[inline(always)]
pub unsafe fn load_f32x8([a, b, ..]: [*const f32; 4]) -> __m256 {
    // SAFETY: as the caller guarantees.
    unsafe { _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(_mm_loadu_ps(a)), _mm_loadu_ps(b)) }
}

/// Each of two elements four times.
///
/// # Safety
/// The machine has AVX; the elements may be read.
#[inline(always)]
pub unsafe fn spread_f32x8(x: *const f32) -> __m256 {
    // SAFETY: as the caller guarantees; two elements of 4 bytes are read as one of 8.
    unsafe {
        let both = _mm256_set1_pd(x.cast::<f64>().read_unaligned());
        let order = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
        _mm256_permutevar_ps(_mm256_castpd_ps(both), order)
    }
}

/// Two elements of each of the first two places.
///
/// # Safety
/// The machine has AVX; the elements may be read.
#[inline(always)]
pub unsafe fn load_f64x4([a, b, ..]: [*const f64; 4]) -> __m256d {
    // SAFETY: as the caller guarantees.
    unsafe { _mm256_insertf128_pd::<1>(_mm256_castpd128_pd256(_mm_loadu_pd(a)), _mm_loadu_pd(b)) }
}

/// Each of two elements twice.
///
/// # Safety
/// The machine has AVX2; the elements may be read.
#[inline(always)]
pub unsafe fn spread_f64x4(x: *const f64) -> __m256d {
    // SAFETY: as the caller guarantees.
    unsafe { _mm256_permute4x64_pd::<0b01_01_00_00>(_mm256_castpd128_pd256(_mm_loadu_pd(x))) }
}
