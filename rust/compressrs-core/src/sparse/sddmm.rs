//! The product of two dense matrices, sampled at the entries of a sparse one.

use std::ops::Range;

use super::csr::{Index, Pattern};
use super::dense::{Dense, Rows};
use crate::element::Float;
use crate::parallel::SharedMut;
use crate::simd::{self, Kernel};

/// Clock cycles worth a task of their own, about; see [`crate::parallel::for_each`].
const GRAIN: usize = 64 * 1024;

/// Accumulators of one dot product; inner dimensions are filled up to it.
const LANES: usize = 8;

/// Dot products that are done at a time.
const GROUP: usize = 4;

/// Bytes of the rows of `v`'s transpose that are to stay in the second level of cache.
const TILE: usize = 128 * 1024;

/// Rows that go through a tile before the next is begun.
const BLOCK: usize = 64;

/// `out[p] = sum_k u[r, k] v[k, c]` for every entry `p = (r, c)` of the pattern,
/// in the order of its indices: the gradient of a loss with respect to the
/// entries of a sparse weight, for one.
///
/// Term `k` goes to sum `k % 8` of an element, and those are added as a tree.
///
/// # Panics
/// If the shapes do not fit, or an index is out of range.
pub fn sddmm<T: Float, I: Index>(
    pattern: Pattern<'_, I>,
    u: Dense<'_, T>,
    v: Dense<'_, T>,
    out: &mut [T],
) {
    assert_eq!((pattern.rows(), pattern.columns()), (u.rows(), v.columns()));
    assert_eq!(u.columns(), v.rows());
    assert_eq!(pattern.entries(), out.len());
    let inner = u.columns();
    let width = if inner == 1 { 1 } else { inner.next_multiple_of(LANES) };
    let (u, v) = (u.to_rows(width, false), v.transposed().to_rows(width, true));
    let out = SharedMut::new(out);
    let cycles = (width * size_of::<T>() / 32).max(4);
    pattern.for_rows(GRAIN.div_ceil(cycles), |rows| {
        simd::dispatch(Sample { pattern, u: &u, v: &v, width, out: &out, rows });
    });
}

struct Sample<'a, T: Float, I> {
    pattern: Pattern<'a, I>,
    u: &'a Rows<'a, T>,
    v: &'a Rows<'a, T>,
    width: usize,
    out: &'a SharedMut<'a, T>,
    rows: Range<usize>,
}

impl<T: Float, I: Index> Kernel for Sample<'_, T, I> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Sample { pattern, u, v, width, .. } = self;
        let columns = pattern.columns();
        let height = (TILE / (width * size_of::<T>()).max(1)).max(1);
        let mut next = [0; BLOCK];
        for top in self.rows.clone().step_by(BLOCK) {
            let rows = top..self.rows.end.min(top + BLOCK);
            for (next, row) in next.iter_mut().zip(rows.clone()) {
                *next = pattern.row(row).start;
            }
            let mut right = 0;
            while right < columns {
                right = columns.min(right + height);
                for (next, row) in next.iter_mut().zip(rows.clone()) {
                    let entries = *next..pattern.row(row).end;
                    let rest = &pattern.indices()[entries.clone()];
                    // SAFETY: tasks have different rows.
                    let out = unsafe { self.out.slice(entries) };
                    *next += if width == 1 {
                        scale(u.row(row, 1)[0], v, rest, right, out)
                    } else {
                        sample(u.row(row, width), v, rest, right, out)
                    };
                    if right < columns {
                        simd::prefetch(pattern.indices(), *next);
                    }
                }
            }
            for (next, row) in next.iter().zip(rows) {
                assert_eq!(*next, pattern.row(row).end, "an index out of range");
            }
        }
    }
}

/// The products of `u` with the first rows of `v`, of one element each, up to one that
/// is not above `end`; returns how many there are.
#[inline(always)]
fn scale<T: Float, I: Index>(
    u: T,
    v: &Rows<'_, T>,
    rows: &[I],
    end: usize,
    out: &mut [T],
) -> usize {
    assert!(end <= v.count());
    let mut done = 0;
    for (out, row) in out.iter_mut().zip(rows) {
        if row.get() >= end {
            break;
        }
        // SAFETY: below `end`, see above.
        *out = u * unsafe { v.row_unchecked(row.get(), 1) }[0];
        done += 1;
    }
    done
}

/// The dot products of `u` with the first rows of `v`, up to one that is not above
/// `end`; returns how many there are. In a row of the pattern that is not sorted, some
/// wait for a later tile.
#[inline(always)]
fn sample<T: Float, I: Index>(
    u: &[T],
    v: &Rows<'_, T>,
    rows: &[I],
    end: usize,
    out: &mut [T],
) -> usize {
    assert!(end <= v.count());
    let width = u.len();
    // SAFETY: those asked for are below `end`, see above.
    let row = |i: I| unsafe { v.row_unchecked(i.get(), width) };
    let mut done = 0;
    for (rows, out) in rows.chunks(GROUP).zip(out.chunks_mut(GROUP)) {
        if let (Some(rows), Some(out)) = (rows.first_chunk::<GROUP>(), out.first_chunk_mut())
            && rows.iter().fold(0, |last, row| row.get().max(last)) < end
        {
            *out = dot(u, rows.map(row));
            done += GROUP;
            continue;
        }
        let count = rows.iter().take_while(|row| row.get() < end).count();
        if count > 0 {
            let rows: [I; GROUP] = std::array::from_fn(|i| rows[i.min(count - 1)]);
            let sums = dot(u, rows.map(row));
            for (out, sum) in out.iter_mut().zip(sums).take(count) {
                *out = sum;
            }
        }
        done += count;
        break;
    }
    done
}

/// Dot products of `u` with rows of the same length, a multiple of the lanes.
#[inline(always)]
fn dot<T: Float>(u: &[T], v: [&[T]; GROUP]) -> [T; GROUP] {
    let (u, _) = u.as_chunks::<LANES>();
    let v = v.map(|v| &v.as_chunks::<LANES>().0[..u.len()]);
    let mut sums = [[T::zero(); LANES]; GROUP];
    for (k, u) in u.iter().enumerate() {
        for g in 0..GROUP {
            for l in 0..LANES {
                sums[g][l] = u[l].mul_add(v[g][k][l], sums[g][l]);
            }
        }
    }
    // LLVM would put halves of different sums into one vector, so each is shown to it
    // alone.
    let fours = sums.map(|sum| {
        let s = std::hint::black_box(sum);
        [s[0] + s[4], s[1] + s[5], s[2] + s[6], s[3] + s[7]]
    });
    T::sum_fours(fours)
}
