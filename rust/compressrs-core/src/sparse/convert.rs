//! Dense to CSR and back.

use super::csr::{Csr, Index};
use crate::element::Float;
use crate::parallel::{self, SharedMut};

/// Elements worth a task of their own; see [`crate::parallel::for_each`].
const GRAIN: usize = 128 * 1024;

/// Whether an element is stored: it is not 0 and not below the threshold. NaN is
/// stored, so that it does not vanish.
#[inline(always)]
fn is_kept<T: Float>(x: T, threshold: T) -> bool {
    x != T::zero() && (x.abs() >= threshold || x.is_nan())
}

/// Offsets of the rows of the matrix that [`fill`] makes of `dense`: one more
/// than there are rows, the last being the number of entries.
///
/// `dense` holds rows of `columns` elements one after another. Kept is what is
/// not 0 and not below `threshold` in magnitude.
///
/// # Panics
/// If `dense` is not `rows` times `columns` long.
pub fn row_offsets<T: Float>(dense: &[T], rows: usize, columns: usize, threshold: T) -> Vec<usize> {
    assert_eq!(dense.len(), rows * columns);
    let mut offsets = vec![0; rows + 1];
    let counts = SharedMut::new(&mut offsets[1..]);
    parallel::for_each(0..rows, GRAIN.div_ceil(columns.max(1)), 1, |rows| {
        // SAFETY: `offsets` is borrowed until the loop ends; parts do not overlap.
        let counts = unsafe { counts.slice(rows.clone()) };
        for (row, count) in rows.zip(counts) {
            let row = &dense[row * columns..(row + 1) * columns];
            *count = row.iter().map(|&x| usize::from(is_kept(x, threshold))).sum();
        }
    });
    let mut total = 0;
    for offset in &mut offsets {
        total += *offset;
        *offset = total;
    }
    offsets
}

/// Writes the entries of `dense` to the places that [`row_offsets`] gave them.
///
/// # Panics
/// If `dense` has changed since, or a length disagrees.
pub fn fill<T: Float, I: Index>(
    dense: &[T],
    columns: usize,
    threshold: T,
    offsets: &[usize],
    data: &mut [T],
    indices: &mut [I],
) {
    let rows = offsets.len() - 1;
    assert_eq!(dense.len(), rows * columns);
    let (data, indices) = (SharedMut::new(data), SharedMut::new(indices));
    parallel::for_each(0..rows, GRAIN.div_ceil(columns.max(1)), 1, |rows| {
        for row in rows {
            let entries = offsets[row]..offsets[row + 1];
            // SAFETY: both are borrowed until the loop ends; rows have entries
            // of their own.
            let (data, indices) =
                unsafe { (data.slice(entries.clone()), indices.slice(entries.clone())) };
            let mut n = 0;
            for (column, &x) in dense[row * columns..(row + 1) * columns].iter().enumerate() {
                if is_kept(x, threshold) {
                    data[n] = x;
                    indices[n] = I::new(column);
                    n += 1;
                }
            }
            assert_eq!(n, entries.len(), "the matrix changed while it was read");
        }
    });
}

/// Writes the matrix to `dense`, rows one after another; repeated entries add up.
///
/// # Panics
/// If `dense` is not of the matrix's size.
pub fn to_dense<T: Float, I: Index>(a: Csr<'_, T, I>, dense: &mut [T]) {
    let columns = a.columns();
    assert_eq!(dense.len(), a.rows() * columns);
    let dense = SharedMut::new(dense);
    a.for_rows(GRAIN, |rows| {
        // SAFETY: `dense` is borrowed until the loop ends; tasks have different rows.
        let dense = unsafe { dense.slice(rows.start * columns..rows.end * columns) };
        dense.fill(T::zero());
        let base = rows.start;
        for r in rows {
            let (data, indices) = a.row(r);
            let row = &mut dense[(r - base) * columns..][..columns];
            for (&x, &c) in data.iter().zip(indices) {
                row[c.get()] += x;
            }
        }
    });
}
