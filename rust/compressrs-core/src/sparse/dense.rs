//! Dense matrices of any strides, and their row-major form.

use std::borrow::Cow;
use std::ops::Range;

use crate::element::Float;
use crate::parallel::{self, SharedMut};

/// Elements worth a task of their own in a copy.
const GRAIN: usize = 64 * 1024;

/// Side of the squares in which a transposing copy goes.
const TILE: usize = 32;

/// A dense matrix: element `(i, j)` is `data[i * row_stride + j * column_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Dense<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

/// Length of the buffer that a matrix of these strides reaches into.
fn extent(rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> Option<usize> {
    if rows == 0 || columns == 0 {
        return Some(0);
    }
    let last_row = (rows - 1).checked_mul(row_stride)?;
    let last_column = (columns - 1).checked_mul(column_stride)?;
    last_row.checked_add(last_column)?.checked_add(1)
}

impl<'a, T: Float> Dense<'a, T> {
    /// Describes a matrix.
    ///
    /// # Panics
    /// If it reaches beyond `data`.
    pub fn new(data: &'a [T], rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> Self {
        let extent = extent(rows, columns, row_stride, column_stride);
        assert!(extent.is_some_and(|n| n <= data.len()), "a matrix beyond its buffer");
        Dense { data, rows, columns, row_stride, column_stride }
    }

    /// Rows one after another.
    pub fn row_major(data: &'a [T], rows: usize, columns: usize) -> Self {
        Dense::new(data, rows, columns, columns, 1)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The transpose; nothing moves.
    pub fn transposed(self) -> Self {
        Dense {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// The matrix with each row contiguous: itself where it is so already, else
    /// a copy in `buffer`.
    pub(super) fn with_contiguous_rows<'b>(self, buffer: &'b mut Vec<T>) -> Dense<'b, T>
    where
        'a: 'b,
    {
        if self.column_stride == 1 || self.columns <= 1 {
            return self;
        }
        let width = self.columns;
        *buffer = self.padded(width).into_owned();
        Dense::row_major(buffer, self.rows, width)
    }

    /// Rows one after another, each filled up with zeros to `width`; borrowed
    /// where the matrix is stored just so.
    pub(super) fn padded(self, width: usize) -> Cow<'a, [T]> {
        if self.column_stride == 1 && self.row_stride == width && self.columns == width {
            return Cow::Borrowed(&self.data[..self.rows * width]);
        }
        let mut buffer = vec![T::zero(); self.rows * width];
        let shared = SharedMut::new(&mut buffer);
        parallel::for_each(0..self.rows, GRAIN.div_ceil(width.max(1)), TILE, |rows| {
            // SAFETY: `buffer` is borrowed until the loop ends and ranges of
            // rows do not overlap.
            let part = unsafe { shared.slice(rows.start * width..rows.end * width) };
            self.copy_rows(rows, part, width);
        });
        Cow::Owned(buffer)
    }

    /// Tile by tile, since one side of a transposing copy is strided.
    fn copy_rows(&self, rows: Range<usize>, out: &mut [T], width: usize) {
        for top in rows.clone().step_by(TILE) {
            for left in (0..self.columns).step_by(TILE) {
                for i in top..rows.end.min(top + TILE) {
                    for j in left..self.columns.min(left + TILE) {
                        out[(i - rows.start) * width + j] =
                            self.data[i * self.row_stride + j * self.column_stride];
                    }
                }
            }
        }
    }

    /// The start of row `i` from column `j` on, which must be contiguous.
    #[inline(always)]
    pub(super) fn row_from<const W: usize>(&self, i: usize, j: usize) -> &'a [T; W] {
        let start = i * self.row_stride + j;
        self.data[start..].first_chunk().expect("a row within the matrix")
    }
}

/// A dense matrix to write to; see [`Dense`].
///
/// Different `(i, j)` must be different elements, which [`DenseMut::new`] checks.
pub struct DenseMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T: Float> DenseMut<'a, T> {
    /// Describes a matrix.
    ///
    /// # Panics
    /// If it reaches beyond `data`, or elements share memory.
    pub fn new(
        data: &'a mut [T],
        rows: usize,
        columns: usize,
        row_stride: usize,
        column_stride: usize,
    ) -> Self {
        let extent = extent(rows, columns, row_stride, column_stride);
        assert!(extent.is_some_and(|n| n <= data.len()), "a matrix beyond its buffer");
        let empty = rows == 0 || columns == 0;
        let disjoint = rows <= 1
            || columns <= 1
            || (column_stride > 0 && row_stride > (columns - 1) * column_stride)
            || (row_stride > 0 && column_stride > (rows - 1) * row_stride);
        let spread = (rows <= 1 || row_stride > 0) && (columns <= 1 || column_stride > 0);
        assert!(empty || disjoint && spread, "elements of an output share memory");
        DenseMut { data, rows, columns, row_stride, column_stride }
    }

    /// Rows one after another.
    pub fn row_major(data: &'a mut [T], rows: usize, columns: usize) -> Self {
        DenseMut::new(data, rows, columns, columns, 1)
    }

    /// The transpose; nothing moves.
    pub fn transposed(self) -> Self {
        DenseMut {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Calls `body` with this matrix if its rows are contiguous, else with a
    /// temporary that is then copied here.
    pub(super) fn through_contiguous_rows(self, body: impl FnOnce(&SharedRows<T>)) {
        if self.column_stride == 1 || self.columns <= 1 {
            return body(&SharedRows { data: SharedMut::new(self.data), stride: self.row_stride });
        }
        let (rows, columns) = (self.rows, self.columns);
        let mut buffer = vec![T::zero(); rows * columns];
        body(&SharedRows { data: SharedMut::new(&mut buffer), stride: columns });
        let source = Dense::row_major(&buffer, rows, columns);
        if self.row_stride == 1 || rows <= 1 {
            // The output's transpose has contiguous rows: fill it in parallel.
            let shared = SharedRows { data: SharedMut::new(self.data), stride: self.column_stride };
            parallel::for_each(0..columns, GRAIN.div_ceil(rows.max(1)), TILE, |part| {
                // SAFETY: as for `padded`; columns do not overlap by `new`.
                let out = unsafe { shared.rows(part.clone(), rows) };
                source.transposed().copy_rows(part, out, shared.stride);
            });
        } else {
            for i in 0..rows {
                for j in 0..columns {
                    self.data[i * self.row_stride + j * self.column_stride] = buffer[i * columns + j];
                }
            }
        }
    }
}

/// Contiguous rows that tasks write to.
pub(super) struct SharedRows<T> {
    data: SharedMut<T>,
    stride: usize,
}

impl<T> SharedRows<T> {
    /// `W` elements of row `i` from column `j` on.
    ///
    /// # Safety
    /// No other reference to these elements may be alive.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "see Safety")]
    pub unsafe fn row_from<const W: usize>(&self, i: usize, j: usize) -> &mut [T; W] {
        let start = i * self.stride + j;
        // SAFETY: the caller's promise.
        let row = unsafe { self.data.slice(start..start + W) };
        row.first_chunk_mut().expect("W elements")
    }

    /// From the start of the first row to the end of column `columns` of the last.
    ///
    /// # Safety
    /// No other reference to these rows may be alive.
    #[expect(clippy::mut_from_ref, reason = "see Safety")]
    unsafe fn rows(&self, rows: Range<usize>, columns: usize) -> &mut [T] {
        let end = if rows.is_empty() { rows.start * self.stride } else { (rows.end - 1) * self.stride + columns };
        // SAFETY: the caller's promise.
        unsafe { self.data.slice(rows.start * self.stride..end) }
    }
}
