//! Dot products of rows of dense matrices, several at a time.
//!
//! Term `k` of a dot product goes to sum `k % L`, of as many as a line of the cache holds, or
//! half of that for short rows, and those are added as a tree.

use std::marker::PhantomData;

use super::dense::Rows;
use crate::linalg::matrix::Matrix;
use crate::numeric::element::Float;
use crate::numeric::vector::{Fours, Vector};

/// Bytes of the sums of a dot product.
pub(super) const LINE: usize = 64;

/// Vectors of sums at most.
pub(super) const VECTORS: usize = 4;

/// Dot products at most that are written at a time.
pub(super) const MOST: usize = 16;

/// Rows of `u` and of `v`'s transpose, filled up to a multiple of the sums, and how many elements
/// each has then.
pub(super) fn operands<'a, T: Float>(
    u: Matrix<'a, T>,
    v: Matrix<'a, T>,
) -> (Rows<'a, T>, Rows<'a, T>, usize) {
    let (inner, line) = (u.columns(), LINE / size_of::<T>());
    let width = if inner <= line / 2 { line / 2 } else { inner.next_multiple_of(line) };
    (u.to_rows(width, false), v.transposed().to_rows(width, true), width)
}

/// Rows whose dot products are asked for.
pub(super) trait Pairs<T> {
    /// The rows of pair `i`. Implementations must be `#[inline(always)]`.
    fn pair(&self, i: usize) -> (*const T, *const T);
}

/// Writes dot products of `width` terms, a multiple of `L`, of the pairs `0..count`, which is at
/// most [`Vector::SUMS`]; up to that, `out` holds anything then.
///
/// # Safety
/// The caller guarantees that `width` elements may be read from both rows of each pair below
/// `count`, and `V::SUMS` written from `out` on.
#[inline(always)]
pub(super) unsafe fn dots<T: Float, V: Vector<T>, const L: usize>(
    pairs: impl Pairs<T>,
    (count, width): (usize, usize),
    out: *mut T,
) {
    // Widths that belong to the other type are never asked for.
    if const { !L.is_multiple_of(V::LANES) || L / V::LANES > VECTORS || V::SUMS > MOST } {
        unreachable!("{L} sums");
    }
    // SAFETY: as the caller guarantees.
    unsafe { V::sum_lanes(Dots::<_, T, L> { pairs, count, width, of: PhantomData }, out) };
}

/// The sums of dot products, whose lanes are to be added up.
struct Dots<P, T, const L: usize> {
    pairs: P,
    count: usize,
    width: usize,
    of: PhantomData<T>,
}

impl<T: Float, V: Vector<T>, P: Pairs<T>, const L: usize> Fours<V> for Dots<P, T, L> {
    #[inline(always)]
    fn four(&self, i: usize) -> Option<[V; 4]> {
        if 4 * i >= self.count {
            return None;
        }
        let last = self.count - 1;
        let n = const { L / V::LANES };
        let mut sums = [[V::splat(T::zero()); VECTORS]; 4];
        let pairs = [0, 1, 2, 3].map(|p| self.pairs.pair((4 * i + p).min(last)));
        let mut k = 0;
        while k < self.width {
            for s in 0..n {
                for p in 0..4 {
                    // SAFETY: within `width` elements, as the caller of `dots` guarantees.
                    let (u, v) = unsafe {
                        let at = k + s * V::LANES;
                        (V::load(pairs[p].0.add(at)), V::load(pairs[p].1.add(at)))
                    };
                    sums[p][s] = sums[p][s].add_product(u, v);
                }
            }
            k += L;
        }
        let mut half = n / 2;
        while half > 0 {
            for s in 0..half {
                for p in 0..4 {
                    sums[p][s] = sums[p][s].add(sums[p][s + half]);
                }
            }
            half /= 2;
        }
        Some([sums[0][0], sums[1][0], sums[2][0], sums[3][0]])
    }
}
