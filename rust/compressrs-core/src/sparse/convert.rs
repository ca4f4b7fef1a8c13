//! Dense to CSR and back, and the transpose.

use std::ops::Range;

use super::csr::{Csr, Index, Offsets, Pattern};
use crate::numeric::element::Float;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, Kernel};

/// Elements worth a task of their own; see [`crate::runtime::parallel::for_each`].
const GRAIN_ELEMENTS: usize = 128 * 1024;

/// Elements that are packed in the first level of cache before they are stored.
const CHUNK: usize = 256;

/// Which elements of a dense matrix become entries.
#[derive(Clone, Copy, Debug)]
pub enum Keep<'a, T> {
    /// Those that are not 0, and not below this in magnitude. NaN is kept, so that
    /// it does not vanish.
    AtLeast(T),
    /// Those where the mask is not 0, even if they are 0. Bytes, as NumPy's booleans may be
    /// others than Rust's.
    Mask(&'a [u8]),
}

/// One row of a matrix, and which of its elements are kept.
trait Row: Copy {
    type Value: Float;
    fn len(self) -> usize;
    /// An element, and whether it is kept.
    fn get(self, column: usize) -> (Self::Value, bool);
}

#[derive(Clone, Copy)]
struct AtLeast<'a, T>(&'a [T], T);

impl<T: Float> Row for AtLeast<'_, T> {
    type Value = T;

    #[inline(always)]
    fn len(self) -> usize {
        self.0.len()
    }
    #[inline(always)]
    fn get(self, column: usize) -> (T, bool) {
        let x = self.0[column];
        // Without a branch.
        (x, (x != T::zero()) & ((x.abs() >= self.1) | x.is_nan()))
    }
}

#[derive(Clone, Copy)]
struct Masked<'a, T>(&'a [T], &'a [u8]);

impl<T: Float> Row for Masked<'_, T> {
    type Value = T;

    #[inline(always)]
    fn len(self) -> usize {
        self.0.len()
    }
    #[inline(always)]
    fn get(self, column: usize) -> (T, bool) {
        (self.0[column], self.1[column] != 0)
    }
}

/// Runs `$body` with `$row` what is kept of a row, that of `$range`, of `$dense`.
macro_rules! with_row {
    ($keep:expr, $dense:expr, $range:expr, $row:ident => $body:expr) => {{
        let range: Range<usize> = $range;
        match $keep {
            Keep::AtLeast(threshold) => {
                let $row = AtLeast(&$dense[range], threshold);
                $body
            }
            Keep::Mask(mask) => {
                let $row = Masked(&$dense[range.clone()], &mask[range]);
                $body
            }
        }
    }};
}

/// Offsets of the rows of the matrix that [`fill`] makes of `dense`.
///
/// `dense` holds rows of `columns` elements one after another.
///
/// # Panics
/// If `dense` or the mask is not `rows` times `columns` long.
pub fn row_offsets<T: Float>(
    dense: &[T],
    rows: usize,
    columns: usize,
    keep: Keep<'_, T>,
) -> Offsets {
    require_size(dense, rows, columns, keep);
    let mut all = memory::zeroed::<usize>(rows + 1);
    let counts = SharedMut::new(&mut all[1..]);
    parallel::for_each(0..rows, GRAIN_ELEMENTS.div_ceil(columns.max(1)), 1, |rows| {
        // SAFETY: `all` is borrowed until the loop ends; parts do not overlap.
        let counts = unsafe { counts.slice(rows.clone()) };
        for (row, count) in rows.zip(counts) {
            let range = row * columns..(row + 1) * columns;
            *count = with_row!(keep, dense, range, row => simd::dispatch(Count(row)));
        }
    });
    Offsets::from_counts(all)
}

fn require_size<T>(dense: &[T], rows: usize, columns: usize, keep: Keep<'_, T>) {
    assert_eq!(Some(dense.len()), rows.checked_mul(columns));
    if let Keep::Mask(mask) = keep {
        assert_eq!(mask.len(), dense.len());
    }
}

struct Count<R>(R);

impl<R: Row> Kernel for Count<R> {
    type Output = usize;

    #[inline(always)]
    fn run(self) -> usize {
        let mut total = 0;
        for start in (0..self.0.len()).step_by(CHUNK) {
            let mut count = 0u32;
            for column in start..self.0.len().min(start + CHUNK) {
                count += u32::from(self.0.get(column).1);
            }
            total += count as usize;
        }
        total
    }
}

/// Writes the entries of `dense` to the places that [`row_offsets`] gave them.
///
/// # Panics
/// If `dense` has changed since, or a length disagrees.
pub fn fill<T: Float, I: Index>(
    dense: &[T],
    columns: usize,
    keep: Keep<'_, T>,
    offsets: &Offsets,
    data: &mut [T],
    indices: &mut [I],
) {
    let rows = offsets.rows();
    let offsets = offsets.as_slice();
    require_size(dense, rows, columns, keep);
    let (data, indices) = (SharedMut::new(data), SharedMut::new(indices));
    parallel::for_each(0..rows, GRAIN_ELEMENTS.div_ceil(columns.max(1)), 1, |rows| {
        for row in rows {
            let entries = offsets[row]..offsets[row + 1];
            // SAFETY: both are borrowed until the loop ends; rows have entries
            // of their own.
            let (data, indices) =
                unsafe { (data.slice(entries.clone()), indices.slice(entries.clone())) };
            let range = row * columns..(row + 1) * columns;
            let n = with_row!(keep, dense, range, row => {
                simd::dispatch(Pack { row, data, indices })
            });
            assert_eq!(n, entries.len(), "the matrix changed while it was read");
        }
    });
}

struct Pack<'a, R: Row, I> {
    row: R,
    data: &'a mut [R::Value],
    indices: &'a mut [I],
}

impl<R: Row, I: Index> Kernel for Pack<'_, R, I> {
    type Output = usize;

    /// Returns the number of entries, of which as many are stored as there is room for.
    #[inline(always)]
    fn run(self) -> usize {
        let Pack { row, data, indices } = self;
        let mut values = [num_traits::zero(); CHUNK];
        let mut columns = [I::default(); CHUNK];
        let mut stored = 0;
        for start in (0..row.len()).step_by(CHUNK) {
            let mut n = 0;
            for column in start..row.len().min(start + CHUNK) {
                // Every element is written, and overwritten by the next if it is
                // not kept: a branch would be guessed wrong too often.
                let (x, kept) = row.get(column);
                values[n] = x;
                columns[n] = I::new(column);
                n += usize::from(kept);
            }
            let end = data.len().min(stored + n);
            data[stored.min(end)..end].copy_from_slice(&values[..end - stored.min(end)]);
            indices[stored.min(end)..end].copy_from_slice(&columns[..end - stored.min(end)]);
            stored += n;
        }
        stored
    }
}

/// Writes the matrix to `dense`, rows one after another; repeated entries add up.
///
/// # Panics
/// If `dense` is not of the matrix's size, or an index is out of range.
pub fn to_dense<T: Float, I: Index, const R: usize, const C: usize>(
    a: Csr<'_, T, I, R, C>,
    dense: &mut [T],
) {
    let (pattern, columns) = (a.pattern(), a.columns());
    assert_eq!(Some(dense.len()), a.rows().checked_mul(columns));
    let dense = SharedMut::new(dense);
    pattern.for_rows(GRAIN_ELEMENTS, |rows| {
        let mut buffer = Scratch::new(0);
        for row in rows {
            // SAFETY: `dense` is borrowed until the loop ends; tasks have different rows.
            let out = unsafe { dense.slice(row * R * columns..(row + 1) * R * columns) };
            out.fill(T::zero());
            let entries = pattern.row(row);
            let values = a.values(entries.clone(), &mut buffer);
            let columns_of = pattern.indices().range(entries);
            for (block, column) in values.chunks_exact(R * C).zip(columns_of.iter()) {
                assert!(column < pattern.columns(), "an index out of range");
                for (i, line) in block.chunks_exact(C).enumerate() {
                    let start = i * columns + column * C;
                    for (out, x) in out[start..start + C].iter_mut().zip(line) {
                        *out += *x;
                    }
                }
            }
        }
    });
}

/// The pattern of a transpose.
#[derive(Clone, Debug)]
pub struct Transpose<I> {
    /// Offsets of its rows, the columns of the original.
    pub offsets: Offsets,
    /// Its columns, the rows of the original; ascending in each row.
    pub indices: Vec<I>,
    /// Where each of its entries is in the original.
    pub places: Vec<I>,
}

/// Transposes a pattern. Entries of a column keep their order.
///
/// # Panics
/// If `I` is too small for a row or a place, or an index is out of range.
pub fn transpose<I: Index, J: Index>(pattern: Pattern<'_, I>) -> Transpose<J> {
    let (rows, columns, entries) = (pattern.rows(), pattern.columns(), pattern.entries());
    assert!(entries <= J::MAX && rows <= J::MAX);
    // They are counted and then placed by what was counted, so they are read but once.
    let columns_of = memory::collect(pattern.indices().iter().map(I::new));
    // Parts of the rows, each with a count of its entries in each column. That costs
    // something for each column as well, so there are not more than pay.
    let threads = parallel::num_threads().unwrap_or(1);
    let parts =
        threads.min(entries / (columns.saturating_mul(4).saturating_add(GRAIN_ELEMENTS))).max(1);
    let bound = |part: usize| {
        if part == parts {
            return rows;
        }
        pattern.offsets().partition_point(|&offset| offset < entries / parts * part).min(rows)
    };
    let mut counts = memory::zeroed::<usize>(memory::product(parts, columns));
    let shared = SharedMut::new(&mut counts);
    let for_parts = |body: &(dyn Fn(Range<usize>, &mut [usize]) + Sync)| {
        parallel::for_each(0..parts, 1, 1, |some| {
            for part in some {
                // SAFETY: parts have counts of their own, used by one loop at a time.
                let counts = unsafe { shared.slice(part * columns..(part + 1) * columns) };
                body(bound(part)..bound(part + 1), counts);
            }
        });
    };
    for_parts(&|rows, counts| {
        let part = pattern.offsets()[rows.start]..pattern.offsets()[rows.end];
        for column in &columns_of[part] {
            counts[column.get()] += 1;
        }
    });
    // From counts to where the entries of each column and part begin.
    let mut of_columns = memory::zeroed::<usize>(columns + 1);
    let mut total = 0;
    for column in 0..columns {
        let before = total;
        for part in 0..parts {
            // SAFETY: no loop runs.
            let count = unsafe {
                &mut shared.slice(part * columns + column..part * columns + column + 1)[0]
            };
            (total, *count) = (total + *count, total);
        }
        of_columns[column + 1] = total - before;
    }
    let [mut indices, mut places] = [(); 2].map(|()| memory::zeroed::<J>(entries));
    {
        let (indices, places) = (SharedMut::new(&mut indices), SharedMut::new(&mut places));
        for_parts(&|rows, next| {
            for row in rows {
                for place in pattern.row(row) {
                    let next = &mut next[columns_of[place].get()];
                    // SAFETY: both are borrowed until the loop ends, and the counts
                    // keep what parts write apart.
                    unsafe {
                        indices.slice(*next..*next + 1)[0] = J::new(row);
                        places.slice(*next..*next + 1)[0] = J::new(place);
                    }
                    *next += 1;
                }
            }
        });
    }
    Transpose { offsets: Offsets::from_counts(of_columns), indices, places }
}
