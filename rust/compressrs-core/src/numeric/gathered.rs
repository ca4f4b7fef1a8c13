//! Dot products of which one side is gathered by 16-bit indices.

use super::element::Float;
use super::lanes::sum_tree;

/// Sums of a dot product.
pub const LANES: usize = 8;

/// The sums of a row and one column, which entries are added to: entry `p` to sum `p % LANES`.
pub trait Sums<T>: Copy {
    /// Sums of nothing.
    fn zero() -> Self;

    /// Adds the products of `LANES` entries.
    ///
    /// # Safety
    /// The caller guarantees that so many values and indices may be read, and that `x` has an
    /// element at each.
    unsafe fn add_all(self, values: *const T, indices: *const u16, x: *const T) -> Self;

    /// Adds the products of `len` entries, fewer than `LANES`.
    ///
    /// # Safety
    /// The caller guarantees that `len` values may be read and `LANES` indices, and that `x` has
    /// an element at each of the first `len`.
    unsafe fn add_some(
        self,
        values: *const T,
        indices: *const u16,
        len: usize,
        x: *const T,
    ) -> Self;

    /// The sum of all, as [`sum_tree`] adds them.
    fn total(self) -> T;
}

/// Sums whose elements of `x` are read one by one.
impl<T: Float> Sums<T> for [T; LANES] {
    #[inline(always)]
    fn zero() -> Self {
        [T::zero(); LANES]
    }

    #[inline(always)]
    unsafe fn add_all(mut self, values: *const T, indices: *const u16, x: *const T) -> Self {
        // SAFETY: as the caller guarantees.
        unsafe {
            // Four at once: as single ones LLVM would take them out of a vector.
            let columns = indices.cast::<[u64; 2]>().read_unaligned();
            let a = values.cast::<[T; LANES]>().read_unaligned();
            for l in 0..LANES {
                let column = (columns[l / 4] >> (16 * (l % 4))) as u16 as usize;
                self[l] = a[l].mul_add(*x.add(column), self[l]);
            }
        }
        self
    }

    #[inline(always)]
    unsafe fn add_some(
        mut self,
        values: *const T,
        indices: *const u16,
        len: usize,
        x: *const T,
    ) -> Self {
        for l in 0..LANES - 1 {
            if l >= len {
                break;
            }
            // SAFETY: as the caller guarantees.
            unsafe {
                let column = usize::from(*indices.add(l));
                self[l] = (*values.add(l)).mul_add(*x.add(column), self[l]);
            }
        }
        self
    }

    #[inline(always)]
    fn total(self) -> T {
        sum_tree(self)
    }
}

/// Sums with the gathers of AVX-512, which take less time than single elements do.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, Sums};

    impl Sums<f32> for __m256 {
        #[inline(always)]
        fn zero() -> Self {
            // SAFETY: vectors of this width are used only where the machine has AVX-512.
            unsafe { _mm256_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn add_all(self, values: *const f32, indices: *const u16, x: *const f32) -> Self {
            // SAFETY: as for `zero`; the caller guarantees the memory.
            unsafe {
                let columns = _mm256_cvtepu16_epi32(_mm_loadu_si128(indices.cast()));
                let x = _mm256_i32gather_ps::<4>(x, columns);
                _mm256_fmadd_ps(_mm256_loadu_ps(values), x, self)
            }
        }

        #[inline(always)]
        unsafe fn add_some(
            self,
            values: *const f32,
            indices: *const u16,
            len: usize,
            x: *const f32,
        ) -> Self {
            let some = (1 << len) as u8 - 1;
            // SAFETY: as for `zero`; the caller guarantees the memory, and lanes beyond `len`
            // are not read.
            unsafe {
                let columns = _mm256_cvtepu16_epi32(_mm_loadu_si128(indices.cast()));
                let none = _mm256_setzero_ps();
                let x = _mm256_mmask_i32gather_ps::<4>(none, some, columns, x);
                _mm256_mask3_fmadd_ps(_mm256_maskz_loadu_ps(some, values), x, self, some)
            }
        }

        #[inline(always)]
        fn total(self) -> f32 {
            // SAFETY: as for `zero`.
            unsafe {
                let halves = (_mm256_castps256_ps128(self), _mm256_extractf128_ps::<1>(self));
                let four = _mm_add_ps(halves.0, halves.1);
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            }
        }
    }

    impl Sums<f64> for __m512d {
        #[inline(always)]
        fn zero() -> Self {
            // SAFETY: vectors of this width are used only where the machine has AVX-512.
            unsafe { _mm512_setzero_pd() }
        }

        #[inline(always)]
        unsafe fn add_all(self, values: *const f64, indices: *const u16, x: *const f64) -> Self {
            // SAFETY: as for `zero`; the caller guarantees the memory.
            unsafe {
                let columns = _mm256_cvtepu16_epi32(_mm_loadu_si128(indices.cast()));
                let x = _mm512_i32gather_pd::<8>(columns, x);
                _mm512_fmadd_pd(_mm512_loadu_pd(values), x, self)
            }
        }

        #[inline(always)]
        unsafe fn add_some(
            self,
            values: *const f64,
            indices: *const u16,
            len: usize,
            x: *const f64,
        ) -> Self {
            let some = (1 << len) as u8 - 1;
            // SAFETY: as for `zero`; the caller guarantees the memory, and lanes beyond `len`
            // are not read.
            unsafe {
                let columns = _mm256_cvtepu16_epi32(_mm_loadu_si128(indices.cast()));
                let none = _mm512_setzero_pd();
                let x = _mm512_mask_i32gather_pd::<8>(none, some, columns, x);
                _mm512_mask3_fmadd_pd(_mm512_maskz_loadu_pd(some, values), x, self, some)
            }
        }

        #[inline(always)]
        fn total(self) -> f64 {
            let mut lanes = [0.0; LANES];
            // SAFETY: as for `zero`; there are so many.
            unsafe { _mm512_storeu_pd(lanes.as_mut_ptr(), self) };
            lanes.total()
        }
    }
}
