//! Transposes of squares in registers, for [`Vector::transpose`].
//!
//! A register takes 128 bits of each of several rows, so that the two steps of unpacking, which
//! stay within 128 bits, leave whole rows of the result.
//!
//! [`Vector::transpose`]: crate::numeric::vector::Vector::transpose

use std::arch::x86_64::*;

/// A square of 16 rows.
///
/// # Safety
/// The machine has AVX-512 F and DQ; the rows may be read, and those of the result written.
#[inline(always)]
pub unsafe fn f32x16((from, step): (*const f32, usize), (to, to_step): (*mut f32, usize)) {
    // SAFETY: as the caller guarantees.
    unsafe {
        for left in (0..16).step_by(4) {
            // Four elements of rows i, i + 4, i + 8 and i + 12.
            let mut of = [_mm512_setzero_ps(); 4];
            for i in 0..4 {
                let at = from.add(i * step + left);
                of[i] = _mm512_castps128_ps512(_mm_loadu_ps(at));
                of[i] = _mm512_insertf32x4::<1>(of[i], _mm_loadu_ps(at.add(4 * step)));
                of[i] = _mm512_insertf32x4::<2>(of[i], _mm_loadu_ps(at.add(8 * step)));
                of[i] = _mm512_insertf32x4::<3>(of[i], _mm_loadu_ps(at.add(12 * step)));
            }
            let [a, b, c, d] = of;
            let ab = [_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)];
            let cd = [_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)];
            for half in 0..2 {
                let ab = _mm512_castps_pd(ab[half]);
                let cd = _mm512_castps_pd(cd[half]);
                let to = to.add((left + 2 * half) * to_step);
                _mm512_storeu_ps(to, _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)));
                _mm512_storeu_ps(to.add(to_step), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
            }
        }
    }
}

/// A square of 8 rows.
///
/// # Safety
/// The machine has AVX-512 F and DQ; the rows may be read, and those of the result written.
#[inline(always)]
pub unsafe fn f64x8((from, step): (*const f64, usize), (to, to_step): (*mut f64, usize)) {
    // SAFETY: as the caller guarantees.
    unsafe {
        for left in (0..8).step_by(2) {
            // Two elements of rows i, i + 2, i + 4 and i + 6.
            let mut of = [_mm512_setzero_pd(); 2];
            for i in 0..2 {
                let at = from.add(i * step + left);
                of[i] = _mm512_castpd128_pd512(_mm_loadu_pd(at));
                of[i] = _mm512_insertf64x2::<1>(of[i], _mm_loadu_pd(at.add(2 * step)));
                of[i] = _mm512_insertf64x2::<2>(of[i], _mm_loadu_pd(at.add(4 * step)));
                of[i] = _mm512_insertf64x2::<3>(of[i], _mm_loadu_pd(at.add(6 * step)));
            }
            let [a, b] = of;
            let to = to.add(left * to_step);
            _mm512_storeu_pd(to, _mm512_unpacklo_pd(a, b));
            _mm512_storeu_pd(to.add(to_step), _mm512_unpackhi_pd(a, b));
        }
    }
}

/// A square of 8 rows.
///
/// # Safety
/// The machine has AVX; the rows may be read, and those of the result written.
#[inline(always)]
pub unsafe fn f32x8((from, step): (*const f32, usize), (to, to_step): (*mut f32, usize)) {
    // SAFETY: as the caller guarantees.
    unsafe {
        for left in (0..8).step_by(4) {
            // Four elements of rows i and i + 4.
            let mut of = [_mm256_setzero_ps(); 4];
            for i in 0..4 {
                let at = from.add(i * step + left);
                of[i] = _mm256_castps128_ps256(_mm_loadu_ps(at));
                of[i] = _mm256_insertf128_ps::<1>(of[i], _mm_loadu_ps(at.add(4 * step)));
            }
            let [a, b, c, d] = of;
            let ab = [_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)];
            let cd = [_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d)];
            for half in 0..2 {
                let ab = _mm256_castps_pd(ab[half]);
                let cd = _mm256_castps_pd(cd[half]);
                let to = to.add((left + 2 * half) * to_step);
                _mm256_storeu_ps(to, _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd)));
                _mm256_storeu_ps(to.add(to_step), _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd)));
            }
        }
    }
}

/// A square of 4 rows.
///
/// # Safety
/// The machine has AVX; the rows may be read, and those of the result written.
#[inline(always)]
pub unsafe fn f64x4((from, step): (*const f64, usize), (to, to_step): (*mut f64, usize)) {
    // SAFETY: as the caller guarantees.
    unsafe {
        for left in (0..4).step_by(2) {
            // Two elements of rows i and i + 2.
            let mut of = [_mm256_setzero_pd(); 2];
            for i in 0..2 {
                let at = from.add(i * step + left);
                of[i] = _mm256_castpd128_pd256(_mm_loadu_pd(at));
                of[i] = _mm256_insertf128_pd::<1>(of[i], _mm_loadu_pd(at.add(2 * step)));
            }
            let [a, b] = of;
            let to = to.add(left * to_step);
            _mm256_storeu_pd(to, _mm256_unpacklo_pd(a, b));
            _mm256_storeu_pd(to.add(to_step), _mm256_unpackhi_pd(a, b));
        }
    }
}
