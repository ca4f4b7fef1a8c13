//! Vectors in registers, for the kernels whose tile of sums must stay there.
//!
//! The compiler turns loops over arrays into vector instructions, but keeps an array of
//! hundreds of sums in memory. A tile of [`Vector`]s it keeps in registers. The lanes of a
//! vector are independent, so the width that a level of instructions takes does not show in
//! the results.

use std::marker::PhantomData;

use crate::numeric::element::Float;
use crate::numeric::gathered::Sums;
use crate::numeric::lanes::sum_tree;
use crate::runtime::simd::{ByVectors, dispatch};

/// Some lanes of a type.
pub trait Vector<T>: Copy {
    /// Number of lanes.
    const LANES: usize;
    /// The same number in each lane.
    fn splat(x: T) -> Self;
    /// The first elements of a slice.
    ///
    /// # Safety
    /// `x + LANES` elements from `x` on may be read.
    unsafe fn load(x: *const T) -> Self;
    /// Writes the lanes.
    ///
    /// # Safety
    /// `LANES` elements from `x` on may be written.
    unsafe fn store(self, x: *mut T);
    /// `self + a b`, rounded once.
    fn add_product(self, a: Self, b: Self) -> Self;
    /// The sum.
    fn add(self, other: Self) -> Self;
    /// Zero in lanes whose number is below; NaN stays.
    fn relu(self) -> Self;
    /// Each of the first four elements of a slice in all lanes.
    ///
    /// # Safety
    /// Four elements from `x` on may be read.
    #[inline(always)]
    unsafe fn load_four(x: *const T) -> [Self; 4]
    where
        T: Copy,
    {
        // SAFETY: the caller guarantees that the elements may be read.
        std::array::from_fn(|i| Self::splat(unsafe { x.add(i).read() }))
    }
    /// 16 bytes from each of these places, as many of them as a vector holds.
    ///
    /// # Safety
    /// 16 bytes from each place on may be read.
    unsafe fn load_quarters(places: [*const T; 4]) -> Self;
    /// Each element of a slice in 16 bytes, as many of them as a vector holds.
    ///
    /// # Safety
    /// As many elements from `x` on may be read.
    unsafe fn spread(x: *const T) -> Self;
    /// Copies the transpose of `LANES` rows of `LANES` elements, `from_stride` and `to_stride`
    /// elements from one to the next.
    ///
    /// # Safety
    /// All elements of `from` may be read, and all of `to` written; they do not overlap.
    #[inline(always)]
    unsafe fn transpose(from: *const T, from_stride: usize, to: *mut T, to_stride: usize)
    where
        T: Copy,
    {
        for i in 0..Self::LANES {
            for j in 0..Self::LANES {
                // SAFETY: as the caller guarantees.
                unsafe { to.add(j * to_stride + i).write(from.add(i * from_stride + j).read()) };
            }
        }
    }
    /// How many sums [`sum_lanes`](Self::sum_lanes) gives: a multiple of 4.
    const SUMS: usize;
    /// Writes the sums of the lanes of `SUMS` vectors, each added up as
    /// [`sum_tree`] does. `fours` is asked once for each four,
    /// in order.
    ///
    /// # Safety
    /// `SUMS` elements from `out` on may be written.
    unsafe fn sum_lanes(fours: impl Fours<Self>, out: *mut T);
}

/// Vectors that [`Vector::sum_lanes`] adds up.
///
/// A trait, not a closure: instructions of a level must be inlined where it is enabled, which
/// is said of methods only.
pub trait Fours<V> {
    /// Vectors `4 i` to `4 i + 3`, or None if their sums may be anything, as those of all
    /// that follow. Implementations must be `#[inline(always)]`.
    fn four(&self, i: usize) -> Option<[V; 4]>;
}

/// The vectors of a type, by level.
pub trait Vectors: Sized {
    /// 512 bits where the machine has AVX-512.
    type Avx512: Vector<Self>;
    /// 256 bits where the machine has AVX2.
    type Avx2: Vector<Self>;
    /// 128 bits, as arrays.
    type Portable: Vector<Self>;
    /// Sums of dot products whose elements are gathered, where the machine has AVX-512.
    type Gathered: Sums<Self>;

    /// Copies the transpose of four rows of four, `from_stride` and `to_stride` elements from
    /// one to the next.
    ///
    /// # Safety
    /// All four of `from` may be read, and all four of `to` written; they do not overlap.
    #[inline(always)]
    unsafe fn transpose(from: *const Self, from_stride: usize, to: *mut Self, to_stride: usize) {
        for i in 0..4 {
            for j in 0..4 {
                // SAFETY: as the caller guarantees.
                unsafe { to.add(j * to_stride + i).write(from.add(i * from_stride + j).read()) };
            }
        }
    }
}

macro_rules! portable {
    ($t:ty, $n:literal) => {
        impl Vector<$t> for [$t; $n] {
            const LANES: usize = $n;
            #[inline(always)]
            fn splat(x: $t) -> Self {
                [x; $n]
            }
            #[inline(always)]
            unsafe fn load(x: *const $t) -> Self {
                // SAFETY: the caller guarantees that the elements may be read.
                unsafe { x.cast::<Self>().read_unaligned() }
            }
            #[inline(always)]
            unsafe fn store(self, x: *mut $t) {
                // SAFETY: the caller guarantees that the elements may be written.
                unsafe { x.cast::<Self>().write_unaligned(self) }
            }
            #[inline(always)]
            unsafe fn load_quarters(places: [*const $t; 4]) -> Self {
                // SAFETY: the caller guarantees that the elements may be read.
                unsafe { Self::load(places[0]) }
            }
            #[inline(always)]
            unsafe fn spread(x: *const $t) -> Self {
                // SAFETY: the caller guarantees that the element may be read.
                Self::splat(unsafe { x.read() })
            }
            #[inline(always)]
            fn add_product(self, a: Self, b: Self) -> Self {
                std::array::from_fn(|l| a[l].mul_add(b[l], self[l]))
            }
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                std::array::from_fn(|l| self[l] + other[l])
            }
            #[inline(always)]
            fn relu(self) -> Self {
                self.map(|x| if x < 0.0 { 0.0 } else { x })
            }
            const SUMS: usize = 4;
            #[inline(always)]
            unsafe fn sum_lanes(fours: impl Fours<Self>, out: *mut $t) {
                // SAFETY: the caller guarantees that four elements may be written.
                unsafe {
                    if let Some(four) = fours.four(0) {
                        out.cast::<[$t; 4]>().write_unaligned(four.map(sum_tree));
                    }
                }
            }
        }
    };
}
portable!(f32, 4);
portable!(f64, 2);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Fours, Vector};
    use crate::numeric::{lane_sums, quarters, squares};
    use std::arch::x86_64::*;

    macro_rules! vector {
        ($t:ty, $v:ty, $n:literal, $set:ident, $load:ident, $store:ident, $fma:ident, $add:ident, $max:ident, $sum:path, $transpose:path, $load_quarters:path, $spread:path) => {
            impl Vector<$t> for $v {
                const LANES: usize = $n;
                #[inline(always)]
                fn splat(x: $t) -> Self {
                    // SAFETY: vectors of this width are used only where `by_level` found
                    // that the machine has them.
                    unsafe { $set(x) }
                }
                #[inline(always)]
                unsafe fn load(x: *const $t) -> Self {
                    // SAFETY: as above; the caller guarantees that the elements may be read.
                    unsafe { $load(x) }
                }
                #[inline(always)]
                unsafe fn store(self, x: *mut $t) {
                    // SAFETY: as above; the caller guarantees that they may be written.
                    unsafe { $store(x, self) }
                }
                #[inline(always)]
                fn add_product(self, a: Self, b: Self) -> Self {
                    // SAFETY: as for `splat`.
                    unsafe { $fma(a, b, self) }
                }
                #[inline(always)]
                fn add(self, other: Self) -> Self {
                    // SAFETY: as for `splat`.
                    unsafe { $add(self, other) }
                }
                #[inline(always)]
                fn relu(self) -> Self {
                    // SAFETY: as for `splat`. Of numbers that do not compare, the second stays.
                    unsafe { $max($set(0.0), self) }
                }
                #[inline(always)]
                unsafe fn load_quarters(places: [*const $t; 4]) -> Self {
                    // SAFETY: as for `splat`; the caller guarantees that they may be read.
                    unsafe { $load_quarters(places) }
                }
                #[inline(always)]
                unsafe fn spread(x: *const $t) -> Self {
                    // SAFETY: as for `splat`; the caller guarantees that they may be read.
                    unsafe { $spread(x) }
                }
                #[inline(always)]
                unsafe fn transpose(from: *const $t, step: usize, to: *mut $t, to_step: usize) {
                    // SAFETY: as for `splat`; the caller guarantees the memory.
                    unsafe { $transpose((from, step), (to, to_step)) }
                }
                const SUMS: usize = $n;
                #[inline(always)]
                unsafe fn sum_lanes(fours: impl Fours<Self>, out: *mut $t) {
                    // SAFETY: as for `splat`; the caller guarantees that they may be written.
                    unsafe { $sum(fours).store(out) };
                }
            }
        };
    }
    vector!(
        f32,
        __m512,
        16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_fmadd_ps,
        _mm512_add_ps,
        _mm512_max_ps,
        lane_sums::f32x16,
        squares::f32x16,
        quarters::load_f32x16,
        quarters::spread_f32x16
    );
    vector!(
        f64,
        __m512d,
        8,
        _mm512_set1_pd,
        _mm512_loadu_pd,
        _mm512_storeu_pd,
        _mm512_fmadd_pd,
        _mm512_add_pd,
        _mm512_max_pd,
        lane_sums::f64x8,
        squares::f64x8,
        quarters::load_f64x8,
        quarters::spread_f64x8
    );
    vector!(
        f32,
        __m256,
        8,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_fmadd_ps,
        _mm256_add_ps,
        _mm256_max_ps,
        lane_sums::f32x8,
        squares::f32x8,
        quarters::load_f32x8,
        quarters::spread_f32x8
    );
    vector!(
        f64,
        __m256d,
        4,
        _mm256_set1_pd,
        _mm256_loadu_pd,
        _mm256_storeu_pd,
        _mm256_fmadd_pd,
        _mm256_add_pd,
        _mm256_max_pd,
        lane_sums::f64x4,
        squares::f64x4,
        quarters::load_f64x4,
        quarters::spread_f64x4
    );

    impl super::Vectors for f32 {
        type Avx512 = __m512;
        type Avx2 = __m256;
        type Portable = [f32; 4];
        type Gathered = __m256;

        #[inline(always)]
        unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
            // SAFETY: SSE is part of the target; the caller guarantees the memory.
            unsafe {
                let a = _mm_loadu_ps(from);
                let b = _mm_loadu_ps(from.add(from_stride));
                let c = _mm_loadu_ps(from.add(2 * from_stride));
                let d = _mm_loadu_ps(from.add(3 * from_stride));
                let (left, right) = (_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
                let (other_left, other_right) = (_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
                _mm_storeu_ps(to, _mm_movelh_ps(left, other_left));
                _mm_storeu_ps(to.add(to_stride), _mm_movehl_ps(other_left, left));
                _mm_storeu_ps(to.add(2 * to_stride), _mm_movelh_ps(right, other_right));
                _mm_storeu_ps(to.add(3 * to_stride), _mm_movehl_ps(other_right, right));
            }
        }
    }
    impl super::Vectors for f64 {
        type Avx512 = __m512d;
        type Avx2 = __m256d;
        type Portable = [f64; 2];
        type Gathered = __m512d;
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod others {
    use crate::numeric::gathered::LANES;

    impl super::Vectors for f32 {
        type Avx512 = [f32; 4];
        type Avx2 = [f32; 4];
        type Portable = [f32; 4];
        type Gathered = [f32; LANES];
    }
    impl super::Vectors for f64 {
        type Avx512 = [f64; 2];
        type Avx2 = [f64; 2];
        type Portable = [f64; 2];
        type Gathered = [f64; LANES];
    }
}

/// Work that is written once for vectors of any width.
pub trait WithVector<T: Float> {
    /// What the work returns.
    type Output;
    /// The work, with tiles of `R` rows of two vectors, or of `Q` rows of six. Implementations
    /// must be `#[inline(always)]`.
    fn run<V: Vector<T>, const R: usize, const Q: usize>(self) -> Self::Output;
}

/// Runs work with the widest vectors, and as many rows as the registers hold.
#[inline]
pub fn by_level<T: Float, W: WithVector<T>>(work: W) -> W::Output {
    dispatch(ByLevel(work, PhantomData))
}

struct ByLevel<T, W>(W, PhantomData<T>);

impl<T: Float, W: WithVector<T>> ByVectors for ByLevel<T, W> {
    type Output = W::Output;

    // NEON has 32 registers; elsewhere the compiler does what it can.
    #[inline(always)]
    fn target(self) -> W::Output {
        self.0.run::<T::Portable, 12, 4>()
    }

    // 12 of 16 registers hold sums.
    #[inline(always)]
    unsafe fn avx2(self) -> W::Output {
        self.0.run::<T::Avx2, 6, 2>()
    }

    // 24 of 32 registers hold sums.
    #[inline(always)]
    unsafe fn avx512(self) -> W::Output {
        self.0.run::<T::Avx512, 12, 4>()
    }
}

/// Work that is written once for vectors of any width, whose results do not show it.
pub trait WithWidth<T: Float> {
    /// The work. Implementations must be `#[inline(always)]`.
    fn run<V: Vector<T>>(self);
}

/// Runs work with the widest vectors.
#[inline]
pub fn full_width<T: Float, W: WithWidth<T>>(work: W) {
    dispatch(FullWidth(work, PhantomData));
}

/// Runs work with vectors of 256 bits at most.
#[inline]
pub fn half_width<T: Float, W: WithWidth<T>>(work: W) {
    dispatch(HalfWidth(work, PhantomData));
}

macro_rules! of_width {
    ($name:ident, $avx512:ident) => {
        struct $name<T, W>(W, PhantomData<T>);

        impl<T: Float, W: WithWidth<T>> ByVectors for $name<T, W> {
            type Output = ();

            #[inline(always)]
            fn target(self) {
                self.0.run::<T::Portable>();
            }

            #[inline(always)]
            unsafe fn avx2(self) {
                self.0.run::<T::Avx2>();
            }

            #[inline(always)]
            unsafe fn avx512(self) {
                self.0.run::<T::$avx512>();
            }
        }
    };
}
of_width!(FullWidth, Avx512);
of_width!(HalfWidth, Avx2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::simd::{Level, Vectors, dispatch_at};

    /// Lanes and rows of the tiles that it is run with.
    struct Shape;

    impl<T: Float> WithVector<T> for Shape {
        type Output = (usize, usize);

        #[inline(always)]
        fn run<V: Vector<T>, const R: usize, const Q: usize>(self) -> (usize, usize) {
            (V::LANES, R)
        }
    }

    #[test]
    fn every_level_takes_its_own_vectors() {
        for level in Level::supported() {
            let (bits, rows) = match level.vectors() {
                Vectors::Target => (128, 12),
                Vectors::Avx2 => (256, 6),
                Vectors::Avx512 => (512, 12),
            };
            assert_eq!(
                dispatch_at(level, ByLevel::<f32, _>(Shape, PhantomData)),
                (bits / 32, rows)
            );
            assert_eq!(
                dispatch_at(level, ByLevel::<f64, _>(Shape, PhantomData)),
                (bits / 64, rows)
            );
        }
    }

    impl<T: Float, V: Vector<T>> Fours<V> for &[T] {
        #[inline(always)]
        fn four(&self, i: usize) -> Option<[V; 4]> {
            let x = self[4 * i * V::LANES..][..4 * V::LANES].as_ptr();
            // SAFETY: there are `LANES` elements for each.
            Some([0, 1, 2, 3].map(|j| unsafe { V::load(x.add(j * V::LANES)) }))
        }
    }

    /// Compares sums of lanes with halves that are added up.
    struct Sums<T>(PhantomData<T>);

    impl<T: Float> WithVector<T> for Sums<T> {
        type Output = ();

        #[inline(always)]
        fn run<V: Vector<T>, const R: usize, const Q: usize>(self) {
            let x: Vec<T> = (0..V::LANES * V::SUMS)
                .map(|i| T::from_f64((i as f64 * 12.9898).sin() * (1 << (i % 23)) as f64))
                .collect();
            let mut sums = vec![T::zero(); V::SUMS];
            // SAFETY: there are `SUMS` elements.
            unsafe { V::sum_lanes(&x[..], sums.as_mut_ptr()) };
            for (sum, x) in sums.iter().zip(x.chunks(V::LANES)) {
                let mut lanes = x.to_vec();
                while lanes.len() > 1 {
                    let (low, high) = lanes.split_at(lanes.len() / 2);
                    lanes = low.iter().zip(high).map(|(a, b)| *a + *b).collect();
                }
                assert_eq!(*sum, lanes[0]);
            }
        }
    }

    #[test]
    fn lanes_add_up_in_the_order_of_the_vectors() {
        for level in Level::supported() {
            dispatch_at(level, ByLevel::<f32, _>(Sums(PhantomData), PhantomData));
            dispatch_at(level, ByLevel::<f64, _>(Sums(PhantomData), PhantomData));
        }
    }
}
