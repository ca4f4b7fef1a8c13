//! Dense matrices of any strides: what products take.

use std::ops::Range;

use crate::runtime::memory;

/// A dense matrix: element `(i, j)` is `data[i * row_stride + j * column_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, T> {
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

impl<'a, T: Copy> Matrix<'a, T> {
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
        Matrix { data, rows, columns, row_stride, column_stride }
    }

    /// Rows one after another.
    ///
    /// # Panics
    /// If `data` is not of this size.
    pub fn row_major(data: &'a [T], rows: usize, columns: usize) -> Self {
        assert_eq!(Some(data.len()), rows.checked_mul(columns), "elements of a matrix");
        Matrix { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Number of rows.
    #[inline(always)]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[inline(always)]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Elements from one row to the next.
    #[inline(always)]
    pub(crate) fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Elements from one column to the next.
    #[inline(always)]
    pub(crate) fn column_stride(&self) -> usize {
        self.column_stride
    }

    /// The buffer from the first element on, which reaches to the last one at least.
    #[inline(always)]
    pub(crate) fn data(&self) -> &'a [T] {
        self.data
    }

    /// Row `i` of a matrix whose columns are next to each other.
    #[inline(always)]
    pub(crate) fn line(&self, i: usize) -> &'a [T] {
        debug_assert!(i < self.rows && (self.column_stride == 1 || self.columns <= 1));
        // Without columns there is no element where a row would begin.
        if self.columns == 0 { &[] } else { &self.data[i * self.row_stride..][..self.columns] }
    }

    /// A part of the matrix.
    ///
    /// # Panics
    /// If it reaches beyond the matrix.
    pub fn block(self, rows: Range<usize>, columns: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        assert!(columns.start <= columns.end && columns.end <= self.columns);
        let first = rows.start * self.row_stride + columns.start * self.column_stride;
        let data = if rows.is_empty() || columns.is_empty() { &[] } else { &self.data[first..] };
        Matrix { data, rows: rows.len(), columns: columns.len(), ..self }
    }

    /// The transpose; nothing moves.
    pub fn transposed(self) -> Self {
        Matrix {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Its elements, row by row.
    pub fn to_vec(self) -> Vec<T> {
        let mut elements = memory::with_capacity(memory::product(self.rows, self.columns));
        for i in 0..self.rows {
            elements.extend((0..self.columns).map(|j| self.at(i, j)));
        }
        elements
    }

    #[inline(always)]
    fn at(&self, i: usize, j: usize) -> T {
        self.data[i * self.row_stride + j * self.column_stride]
    }
}

/// A dense matrix to write to; see [`Matrix`].
///
/// Different `(i, j)` must be different elements, which [`MatrixMut::new`] checks.
pub struct MatrixMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T: Copy> MatrixMut<'a, T> {
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
        let moves = (rows <= 1 || row_stride > 0) && (columns <= 1 || column_stride > 0);
        assert!(empty || disjoint && moves, "elements of an output share memory");
        MatrixMut { data, rows, columns, row_stride, column_stride }
    }

    /// Rows one after another.
    pub fn row_major(data: &'a mut [T], rows: usize, columns: usize) -> Self {
        MatrixMut::new(data, rows, columns, columns, 1)
    }

    /// The transpose; nothing moves.
    pub fn transposed(self) -> Self {
        MatrixMut {
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

    /// The buffer, and the strides of rows and columns.
    pub(crate) fn into_parts(self) -> (&'a mut [T], usize, usize) {
        (self.data, self.row_stride, self.column_stride)
    }
}
