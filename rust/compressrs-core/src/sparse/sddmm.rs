//! The product of two dense matrices, sampled at the blocks of a sparse one.

use std::ops::Range;

use super::csr::{Index, Pattern};
use super::dense::Rows;
use super::dots::{LINE, MOST, Pairs, dots, operands};
use super::panel::tile_height;
use crate::linalg::matrix::Matrix;
use crate::numeric::element::Float;
use crate::numeric::vector::{Vector, WithWidth, full_width, half_width};
use crate::runtime::parallel::SharedMut;

/// Clock cycles worth a task of their own, about; see [`crate::runtime::parallel::for_each`].
const GRAIN_CYCLES: usize = 64 * 1024;

/// Rows that go through a tile before the next is begun.
const ROW_BLOCK: usize = 64;

/// `out[p] = sum_k u[r, k] v[k, c]` for every value `p` of the blocks, at `(r, c)`, in the
/// order of the values; added to what `out` holds if it is to
/// accumulate. The gradient of a loss with respect to a sparse weight, for one.
///
/// # Panics
/// If the shapes do not fit, or an index is out of range.
pub fn sddmm<T: Float, I: Index, const R: usize, const C: usize>(
    pattern: Pattern<'_, I>,
    u: Matrix<'_, T>,
    v: Matrix<'_, T>,
    out: &mut [T],
    accumulate: bool,
) {
    assert_eq!((pattern.rows() * R, pattern.columns() * C), (u.rows(), v.columns()));
    assert_eq!(u.columns(), v.rows());
    assert_eq!(pattern.entries() * R * C, out.len());
    let (u, v, width) = operands(u, v);
    let out = SharedMut::new(out);
    let cycles = (4 + width * size_of::<T>() / 48) * R * C;
    pattern.for_rows(GRAIN_CYCLES.div_ceil(cycles), |rows| {
        let sample =
            Sample::<T, I, R, C> { pattern, u: &u, v: &v, width, out: &out, accumulate, rows };
        match (width * size_of::<T>() < LINE, size_of::<T>()) {
            (false, 4) => full_width(Lines::<_, { LINE / 4 }>(sample)),
            (false, _) => full_width(Lines::<_, { LINE / 8 }>(sample)),
            (true, 4) => half_width(Lines::<_, { LINE / 8 }>(sample)),
            (true, _) => half_width(Lines::<_, { LINE / 16 }>(sample)),
        }
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

/// Work with so many sums for each dot product.
struct Lines<S, const L: usize>(S);

impl<T: Float, I: Index, const R: usize, const C: usize, const L: usize> WithWidth<T>
    for Lines<Sample<'_, T, I, R, C>, L>
{
    #[inline(always)]
    fn run<V: Vector<T>>(self) {
        let Sample { pattern, u, v, width, out, accumulate, rows } = self.0;
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
                    for column in pattern.indices().range(entries).iter() {
                        if column >= right {
                            break;
                        }
                        // SAFETY: tasks have different rows.
                        let out = unsafe { out.slice(*next * R * C..(*next + 1) * R * C) };
                        let mut sums = [T::zero(); MOST];
                        for at in (0..R * C).step_by(V::SUMS) {
                            let pairs = Block::<T, C> { u, v, width, row: row * R, column, at };
                            // SAFETY: there are the rows of this row's blocks, and of columns
                            // below `right`, see above, of this width.
                            unsafe {
                                let sums = sums.as_mut_ptr().add(at);
                                let count = V::SUMS.min(R * C - at);
                                dots::<T, V, L>(pairs, (count, width), sums);
                            }
                        }
                        for (out, sum) in out.iter_mut().zip(sums) {
                            *out = if accumulate { *out + sum } else { sum };
                        }
                        *next += 1;
                    }
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

/// The rows of the values of a block, from value `at` on.
struct Block<'a, T: Float, const C: usize> {
    u: &'a Rows<'a, T>,
    v: &'a Rows<'a, T>,
    width: usize,
    row: usize,
    column: usize,
    at: usize,
}

impl<T: Float, const C: usize> Pairs<T> for Block<'_, T, C> {
    #[inline(always)]
    fn pair(&self, i: usize) -> (*const T, *const T) {
        let (r, c) = ((self.at + i) / C, (self.at + i) % C);
        // SAFETY: there are such rows, as the caller of `dots` guarantees.
        unsafe {
            let u = self.u.row_unchecked(self.row + r, self.width);
            let v = self.v.row_unchecked(self.column * C + c, self.width);
            (u.as_ptr(), v.as_ptr())
        }
    }
}
