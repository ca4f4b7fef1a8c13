//! The product of two dense matrices, sampled at the entries of a sparse one.

use std::ops::Range;

use super::csr::{Csr, Index, Indices, Pattern};
use super::dense::Rows;
use super::panel::tile_height;
use crate::linalg::matrix::Matrix;
use crate::numeric::element::Float;
use crate::runtime::parallel::SharedMut;
use crate::runtime::simd::{self, Kernel};

/// Clock cycles worth a task of their own, about; see [`crate::runtime::parallel::for_each`].
const GRAIN_CYCLES: usize = 64 * 1024;

/// Accumulators of one dot product; inner dimensions are filled up to it.
const LANES: usize = 8;

/// Dot products that are done at a time.
const GROUP: usize = 4;

/// Rows that go through a tile before the next is begun.
const ROW_BLOCK: usize = 64;

/// `out[p] = sum_k u[r, k] v[k, c]` for every entry `p = (r, c)` of the matrix, in the
/// order of its values, which do not count themselves; added to what `out` holds if it
/// is to accumulate. The gradient of a loss with respect to a sparse weight, for one.
///
/// Term `k` goes to sum `k % 8` of an element, and those are added as a tree.
///
/// # Panics
/// If the shapes do not fit, or an index is out of range.
pub fn sddmm<T: Float, I: Index, const R: usize, const C: usize>(
    a: Csr<'_, T, I, R, C>,
    u: Matrix<'_, T>,
    v: Matrix<'_, T>,
    out: &mut [T],
    accumulate: bool,
) {
    assert_eq!((a.rows(), a.columns()), (u.rows(), v.columns()));
    assert_eq!(u.columns(), v.rows());
    let pattern = a.pattern();
    assert_eq!(pattern.entries() * R * C, out.len());
    let inner = u.columns();
    let width = if inner == 1 && R * C == 1 { 1 } else { inner.next_multiple_of(LANES) };
    let (u, v) = (u.to_rows(width, R > 1), v.transposed().to_rows(width, true));
    let out = SharedMut::new(out);
    let cycles = (4 + width * size_of::<T>() / 24) * R * C;
    pattern.for_rows(GRAIN_CYCLES.div_ceil(cycles), |rows| {
        simd::dispatch(Sample::<T, I, R, C> {
            pattern,
            u: &u,
            v: &v,
            width,
            out: &out,
            accumulate,
            rows,
        });
    });
}

struct Sample<'a, T: Float, I, const R: usize, const C: usize> {
    pattern: Pattern<'a, I>,
    u: &'a Rows<'a, T>,
    v: &'a Rows<'a, T>,
    width: usize,
    out: &'a SharedMut<'a, T>,
    accumulate: bool,
    rows: Range<usize>,
}

impl<T: Float, I: Index, const R: usize, const C: usize> Kernel for Sample<'_, T, I, R, C> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Sample { pattern, u, v, width, out, accumulate, ref rows } = self;
        let columns = pattern.columns();
        assert!(rows.end * R <= u.count() && columns * C <= v.count());
        let height = tile_height(pattern, C * width * size_of::<T>());
        let mut next = [0; ROW_BLOCK];
        for top in rows.clone().step_by(ROW_BLOCK) {
            let rows = top..rows.end.min(top + ROW_BLOCK);
            for (next, row) in next.iter_mut().zip(rows.clone()) {
                *next = pattern.row(row).start;
            }
            let mut right = 0;
            while right < columns {
                right = columns.min(right + height);
                for (next, row) in next.iter_mut().zip(rows.clone()) {
                    let entries = *next..pattern.row(row).end;
                    let rest = pattern.indices().range(entries.clone());
                    // SAFETY: tasks have different rows.
                    let out = unsafe { out.slice(entries.start * R * C..entries.end * R * C) };
                    let mut put = |at: usize, sums: &[T]| {
                        for (out, sum) in out[at..at + sums.len()].iter_mut().zip(sums) {
                            *out = if accumulate { *out + *sum } else { *sum };
                        }
                    };
                    // SAFETY: `rows` and `right` are not beyond what was counted above.
                    let done = unsafe {
                        if R * C > 1 {
                            blocks::<T, I, R, C>((u, v), width, row, rest, right, &mut put)
                        } else if width == 1 {
                            scale(u.row_unchecked(row, 1)[0], v, rest, right, &mut put)
                        } else {
                            sample(u.row_unchecked(row, width), v, rest, right, &mut put)
                        }
                    };
                    *next += done;
                    if right < columns {
                        pattern.indices().prefetch(*next);
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
///
/// # Safety
/// `v` must have `end` rows.
#[inline(always)]
unsafe fn scale<T: Float, I: Index>(
    u: T,
    v: &Rows<'_, T>,
    rows: Indices<'_, I>,
    end: usize,
    put: &mut impl FnMut(usize, &[T]),
) -> usize {
    let mut done = 0;
    for row in rows.iter() {
        if row >= end {
            break;
        }
        // SAFETY: below `end`.
        put(done, &[u * unsafe { v.row_unchecked(row, 1) }[0]]);
        done += 1;
    }
    done
}

/// The dot products of `u` with the first rows of `v`, up to one that is not above
/// `end`; returns how many there are. In a row of the pattern that is not sorted, some
/// wait for a later tile.
///
/// # Safety
/// `v` must have `end` rows, as wide as `u`.
#[inline(always)]
unsafe fn sample<T: Float, I: Index>(
    u: &[T],
    v: &Rows<'_, T>,
    rows: Indices<'_, I>,
    end: usize,
    put: &mut impl FnMut(usize, &[T]),
) -> usize {
    // SAFETY: those asked for are below `end`, see below.
    let row = |i: usize| unsafe { v.row_unchecked(i, u.len()) };
    let mut done = 0;
    for group in rows.chunks::<GROUP>() {
        let group: [usize; GROUP] = std::array::from_fn(|i| group.get(i));
        if group.iter().fold(0, |last, row| last.max(*row)) >= end {
            break;
        }
        put(done, &dot(u, group.map(row)));
        done += GROUP;
    }
    // What is left of the row, or up to one that is not below `end`.
    let rest = rows.range(done..rows.len());
    let group: [usize; GROUP] =
        std::array::from_fn(|i| if i < rest.len() { rest.get(i) } else { usize::MAX });
    let count = group.iter().take_while(|row| **row < end).count();
    if count > 0 {
        let group: [usize; GROUP] = std::array::from_fn(|i| group[i.min(count - 1)]);
        put(done, &dot(u, group.map(row))[..count]);
    }
    done + count
}

/// As [`sample`], for a row of blocks: each value is the dot product of a row of `u`
/// and one of `v`.
///
/// # Safety
/// There must be `row + 1` times `R` rows in `u` and `end` times `C` rows in `v`, all of
/// this width.
#[inline(always)]
unsafe fn blocks<T: Float, I: Index, const R: usize, const C: usize>(
    (u, v): (&Rows<'_, T>, &Rows<'_, T>),
    width: usize,
    row: usize,
    columns: Indices<'_, I>,
    end: usize,
    put: &mut impl FnMut(usize, &[T]),
) -> usize {
    const { assert!(R * C == 1 || R.is_multiple_of(GROUP) || C.is_multiple_of(GROUP)) };
    // SAFETY: those asked for exist: rows of this row's blocks, and columns below `end`.
    let u = |r: usize| unsafe { u.row_unchecked(row * R + r, width) };
    let mut done = 0;
    for column in columns.iter() {
        if column >= end {
            break;
        }
        // SAFETY: as above.
        let v = |c: usize| unsafe { v.row_unchecked(column * C + c, width) };
        let at = done * R * C;
        if C.is_multiple_of(GROUP) {
            for r in 0..R {
                for c in (0..C).step_by(GROUP) {
                    put(at + r * C + c, &dot(u(r), std::array::from_fn(|g| v(c + g))));
                }
            }
        } else {
            for r in (0..R).step_by(GROUP) {
                for c in 0..C {
                    let sums = dot(v(c), std::array::from_fn(|g| u(r + g)));
                    for (g, sum) in sums.iter().enumerate() {
                        put(at + (r + g) * C + c, &[*sum]);
                    }
                }
            }
        }
        done += 1;
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
