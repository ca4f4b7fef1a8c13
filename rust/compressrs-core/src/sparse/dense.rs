//! Dense matrices of any strides, and their row-major form.

use std::borrow::Cow;
use std::ops::Range;

use crate::element::Float;
use crate::parallel::{self, SharedMut};
use crate::simd::{self, Kernel};

/// Elements worth a task of their own in a copy.
const GRAIN: usize = 64 * 1024;

/// Side of the squares in which a transposing copy goes.
const TILE: usize = 16;

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
    pub fn new(
        data: &'a [T],
        rows: usize,
        columns: usize,
        row_stride: usize,
        column_stride: usize,
    ) -> Self {
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

    /// Some of the columns.
    pub(super) fn columns_range(self, columns: Range<usize>) -> Self {
        let start = (columns.start * self.column_stride).min(self.data.len());
        Dense { data: &self.data[start..], columns: columns.len(), ..self }
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

    /// Copies all rows to `out`, one after another.
    pub(super) fn copy_to(&self, out: &mut [T]) {
        self.copy_rows(0..self.rows, out, self.columns);
    }

    /// Copies `rows` to `out`, whose rows start `width` elements apart.
    fn copy_rows(&self, rows: Range<usize>, out: &mut [T], width: usize) {
        simd::dispatch(CopyRows { source: self, rows, out, width });
    }

    /// The start of row `i` from column `j` on, which must be contiguous.
    #[inline(always)]
    pub(super) fn row_from<const W: usize>(&self, i: usize, j: usize) -> &'a [T; W] {
        let start = i * self.row_stride + j;
        self.data[start..].first_chunk().expect("a row within the matrix")
    }
}

/// Copies rows to contiguous ones, tile by tile, since one side of the copy is
/// strided.
struct CopyRows<'a, 'b, T> {
    source: &'b Dense<'a, T>,
    rows: Range<usize>,
    out: &'b mut [T],
    width: usize,
}

impl<T: Float> Kernel for CopyRows<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let CopyRows { source, rows, out, width } = self;
        for top in rows.clone().step_by(TILE) {
            let bottom = rows.end.min(top + TILE);
            for left in (0..source.columns).step_by(TILE) {
                let right = source.columns.min(left + TILE);
                let start = (top - rows.start) * width + left;
                if source.row_stride == 1 && bottom - top == TILE && right - left == TILE {
                    let first = top + left * source.column_stride;
                    transpose_tile(
                        &source.data[first..],
                        source.column_stride,
                        &mut out[start..],
                        width,
                    );
                    continue;
                }
                for i in top..bottom {
                    for j in left..right {
                        out[start + (i - top) * width + j - left] =
                            source.data[i * source.row_stride + j * source.column_stride];
                    }
                }
            }
        }
    }
}

/// Transposes one full tile, through registers and the first level of cache.
#[inline(always)]
fn transpose_tile<T: Float>(source: &[T], source_stride: usize, out: &mut [T], out_stride: usize) {
    let mut tile = [[T::zero(); TILE]; TILE];
    for (j, line) in tile.iter_mut().enumerate() {
        *line = *source[j * source_stride..].first_chunk().expect("a full tile");
    }
    for i in 0..TILE {
        let line: &mut [T; TILE] = out[i * out_stride..].first_chunk_mut().expect("a full tile");
        for j in 0..TILE {
            line[j] = tile[j][i];
        }
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

    /// Whether each column is contiguous.
    pub(super) fn has_contiguous_columns(&self) -> bool {
        self.row_stride == 1 && self.column_stride >= self.rows
    }

    /// Calls `body` with this matrix if its rows are contiguous, else with a
    /// temporary that is then copied here.
    pub(super) fn through_contiguous_rows(self, body: impl FnOnce(&SharedRows<'_, T>)) {
        if self.column_stride == 1 || self.columns <= 1 {
            return body(&SharedRows { data: SharedMut::new(self.data), stride: self.row_stride });
        }
        let (rows, columns) = (self.rows, self.columns);
        let mut buffer = vec![T::zero(); rows * columns];
        body(&SharedRows::row_major(&mut buffer, columns));
        if self.has_contiguous_columns() {
            let source = Dense::row_major(&buffer, rows, columns).transposed();
            let shared = self.into_shared_columns();
            parallel::for_each(0..columns, GRAIN.div_ceil(rows.max(1)), TILE, |part| {
                // SAFETY: parts do not overlap.
                unsafe { shared.copy_from(source, part.clone(), part.start) };
            });
        } else {
            for i in 0..rows {
                for j in 0..columns {
                    self.data[i * self.row_stride + j * self.column_stride] =
                        buffer[i * columns + j];
                }
            }
        }
    }

    /// The columns, which must be contiguous, as the rows of the transpose.
    pub(super) fn into_shared_columns(self) -> SharedRows<'a, T> {
        SharedRows { data: SharedMut::new(self.data), stride: self.column_stride }
    }
}

/// Contiguous rows that tasks write to.
pub(super) struct SharedRows<'a, T> {
    data: SharedMut<'a, T>,
    stride: usize,
}

impl<'a, T: Float> SharedRows<'a, T> {
    /// `W` elements of row `i` from column `j` on.
    ///
    /// # Safety
    /// No other reference to these elements may be alive.
    #[inline(always)]
    pub unsafe fn row_from<const W: usize>(&self, i: usize, j: usize) -> &'a mut [T; W] {
        let start = i * self.stride + j;
        // SAFETY: the caller's promise.
        let row = unsafe { self.data.slice(start..start + W) };
        row.first_chunk_mut().expect("W elements")
    }

    /// Writes `rows` of `source` here, from row `first` on.
    ///
    /// # Safety
    /// No reference to the rows written may be alive.
    pub unsafe fn copy_from(&self, source: Dense<'_, T>, rows: Range<usize>, first: usize) {
        if rows.is_empty() || source.columns == 0 {
            return;
        }
        let start = first * self.stride;
        let end = start + (rows.len() - 1) * self.stride + source.columns;
        // SAFETY: the caller's promise.
        let out = unsafe { self.data.slice(start..end) };
        source.copy_rows(rows, out, self.stride);
    }

    /// Rows one after another in a buffer.
    pub fn row_major(buffer: &'a mut [T], columns: usize) -> Self {
        SharedRows { data: SharedMut::new(buffer), stride: columns }
    }
}
