//! The product of two dense matrices, sampled at the entries of a prepared one.

use std::ops::Range;

use super::{Places, Prepared};
use crate::linalg::matrix::Matrix;
use crate::numeric::element::Float;
use crate::numeric::vector::{Vector, WithWidth, full_width, half_width};
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;
use crate::sparse::dense::Rows;
use crate::sparse::dots::{LINE, MOST, Pairs, dots, operands};

/// Clock cycles worth a task of their own, about; see [`parallel::for_each`].
const GRAIN: usize = 64 * 1024;

/// `out[p] = sum_k u[r, k] v[k, c]` for every entry `p = (r, c)` of the pattern, in the order
/// of its values; added to what `out` holds if it is to accumulate. The gradient of a loss with
/// respect to a sparse weight, for one.
///
/// # Panics
/// If the shapes do not fit.
pub fn sddmm_prepared<T: Float>(
    a: &Prepared,
    u: Matrix<'_, T>,
    v: Matrix<'_, T>,
    out: &mut [T],
    accumulate: bool,
) {
    assert_eq!((a.rows, a.columns), (u.rows(), v.columns()));
    assert_eq!(u.columns(), v.rows());
    assert_eq!(a.entries(), out.len());
    // Parts of long rows are rows of the bands.
    let rows = a.parts.as_ref().map(|parts| {
        let mut rows = memory::zeroed(parts[a.rows]);
        for (row, parts) in parts.windows(2).enumerate() {
            rows[parts[0]..parts[1]].fill(row);
        }
        rows
    });
    let rows = rows.as_deref();
    let Some(places) = &a.places else {
        return sample(a, rows, u, v, out, accumulate);
    };
    let mut moved = Scratch::new(out.len());
    sample(a, rows, u, v, &mut moved, false);
    let mut put = |place: usize, sum: T| {
        out[place] = if accumulate { out[place] + sum } else { sum };
    };
    match places {
        Places::Short(places) => {
            places.iter().zip(&moved[..]).for_each(|(place, sum)| put(*place as usize, *sum));
        }
        Places::Long(places) => {
            places.iter().zip(&moved[..]).for_each(|(place, sum)| put(*place, *sum));
        }
    }
}

/// As [`sddmm_prepared`], in the order of the prepared entries.
fn sample<T: Float>(
    a: &Prepared,
    row_of: Option<&[usize]>,
    u: Matrix<'_, T>,
    v: Matrix<'_, T>,
    out: &mut [T],
    accumulate: bool,
) {
    let single = u.columns() == 1;
    let (u, v, width) = if single {
        (u.to_rows(1, false), v.transposed().to_rows(1, false), 1)
    } else {
        operands(u, v)
    };
    let bands = a.bands.len();
    let out = SharedMut::new(out);
    let cycles = a.entries() * (2 + width * size_of::<T>() / 48) / bands.max(1) + 1;
    parallel::for_each(0..bands, GRAIN.div_ceil(cycles), 1, |bands| {
        let (u, v, out) = (&u, &v, &out);
        let sample = Sample { a, row_of, u, v, width, out, accumulate, bands };
        match (width * size_of::<T>() < LINE, size_of::<T>()) {
            _ if single => full_width(Lines::<_, 1>(sample)),
            (false, 4) => full_width(Lines::<_, { LINE / 4 }>(sample)),
            (false, _) => full_width(Lines::<_, { LINE / 8 }>(sample)),
            (true, 4) => half_width(Lines::<_, { LINE / 8 }>(sample)),
            (true, _) => half_width(Lines::<_, { LINE / 16 }>(sample)),
        }
    });
}

struct Sample<'a, T: Float> {
    a: &'a Prepared,
    /// Which row each row of the bands is a part of, unless it is the same.
    row_of: Option<&'a [usize]>,
    u: &'a Rows<'a, T>,
    v: &'a Rows<'a, T>,
    width: usize,
    out: &'a SharedMut<'a, T>,
    accumulate: bool,
    bands: Range<usize>,
}

/// Work with so many sums for each dot product; with 1, rows have one element.
struct Lines<S, const L: usize>(S);

impl<T: Float, const L: usize> WithWidth<T> for Lines<Sample<'_, T>, L> {
    #[inline(always)]
    fn run<V: Vector<T>>(self) {
        let Sample { a, row_of, u, v, width, out, accumulate, bands } = self.0;
        assert!(u.count() == a.rows && v.count() == a.columns);
        let v = v.packed(width);
        for band in &a.bands[bands] {
            let entries = band.entries.0..band.entries.1;
            // SAFETY: `out` is borrowed by the caller, and tasks have different bands.
            let out = unsafe { out.slice(entries.clone()) };
            let mut indices = &a.indices[entries];
            for (tile, segments) in band.by_tile() {
                let v = &v[tile * a.height * width..];
                for segment in segments {
                    let (columns, rest) = indices.split_at(segment.len());
                    indices = rest;
                    let out = &mut out[segment.start()..][..segment.len()];
                    let row = band.rows.0 + segment.row();
                    let row = row_of.map_or(row, |rows| rows[row]);
                    // SAFETY: there is such a row, of `width` elements, see `operands`.
                    let u = unsafe { u.row_unchecked(row, width) };
                    if const { L == 1 } {
                        for (out, column) in out.iter_mut().zip(columns) {
                            // SAFETY: indices are of columns that there are, see `build`.
                            let product = u[0] * unsafe { *v.get_unchecked(usize::from(*column)) };
                            *out = if accumulate { *out + product } else { product };
                        }
                        continue;
                    }
                    let parts = columns.chunks(V::SUMS).zip(out.chunks_mut(V::SUMS));
                    for (columns, out) in parts {
                        let pairs = Entries { u, v, width, columns };
                        if columns.len() == V::SUMS && !accumulate {
                            // SAFETY: there is a row of `v` for each column, see `build`, and
                            // there are so many results.
                            unsafe { dots::<T, V, L>(pairs, (V::SUMS, width), out.as_mut_ptr()) };
                            continue;
                        }
                        let mut sums = [T::zero(); MOST];
                        // SAFETY: as above.
                        unsafe {
                            dots::<T, V, L>(pairs, (columns.len(), width), sums.as_mut_ptr());
                        }
                        for (out, sum) in out.iter_mut().zip(sums) {
                            *out = if accumulate { *out + sum } else { sum };
                        }
                    }
                }
            }
        }
    }
}

/// A row of `u` and those of `v` at some columns.
struct Entries<'a, T> {
    u: &'a [T],
    v: &'a [T],
    width: usize,
    columns: &'a [u16],
}

impl<T: Float> Pairs<T> for Entries<'_, T> {
    #[inline(always)]
    fn pair(&self, i: usize) -> (*const T, *const T) {
        // SAFETY: the caller of `dots` guarantees that there are such rows.
        unsafe {
            let column = usize::from(*self.columns.get_unchecked(i));
            (self.u.as_ptr(), self.v.as_ptr().add(column * self.width))
        }
    }
}
