//! Copies of matrices in the order in which products read them.

use super::matrix::Matrix;
use crate::numeric::element::Float;
use crate::runtime::simd::prefetch;

/// Rows and columns of the squares that transposing copies go by; see `Vectors::transpose`.
const SQUARE: usize = 4;

/// Rows of the transpose whose copy stays in the first cache until it has all columns.
const STRIP: usize = 128;

/// Rows ahead that are asked for: rows may lie pages apart, where hardware does not look.
const AHEAD: usize = 16;

impl<T: Float> Matrix<'_, T> {
    /// Copies the elements so that `(i, j)` is `out[i * width + j]`; what lies between the
    /// rows there is unspecified.
    ///
    /// # Panics
    /// If `width` is less than the columns, or `out` does not hold all rows.
    #[inline(always)]
    pub(crate) fn pack(self, out: &mut [T], width: usize) {
        let (rows, columns) = (self.rows(), self.columns());
        let (row_stride, column_stride) = (self.row_stride(), self.column_stride());
        let data = self.data();
        assert!(columns <= width && out.len() >= rows * width);
        if rows == 0 || columns == 0 {
            return;
        }
        if column_stride == 1 {
            // A loop of its own for whole rows, whose length the compiler mostly knows.
            if columns == width {
                for (i, line) in out.chunks_exact_mut(width).take(rows).enumerate() {
                    let start = i * row_stride;
                    prefetch(data.as_ptr().wrapping_add(start + AHEAD * row_stride));
                    line.copy_from_slice(&data[start..start + width]);
                }
            } else {
                for (i, line) in out.chunks_exact_mut(width).take(rows).enumerate() {
                    let start = i * row_stride;
                    line[..columns].copy_from_slice(&data[start..start + columns]);
                }
            }
            return;
        }
        // Squares, along the rows of the transpose, as it mostly lies in memory.
        let (mut whole_rows, mut whole_columns) = (0, 0);
        if row_stride == 1 {
            (whole_rows, whole_columns) = (rows / SQUARE * SQUARE, columns / SQUARE * SQUARE);
            assert!((rows - 1) + (columns - 1) * column_stride < data.len());
            for first in (0..whole_rows).step_by(STRIP) {
                let strip = first..whole_rows.min(first + STRIP);
                for left in (0..whole_columns).step_by(SQUARE) {
                    for top in strip.clone().step_by(SQUARE) {
                        // SAFETY: columns below `columns`, of rows below `rows`, lie within
                        // the data, and within `out` as asserted, which is borrowed mutably.
                        unsafe {
                            let from = data.as_ptr().add(left * column_stride + top);
                            let to = out.as_mut_ptr().add(top * width + left);
                            T::transpose(from, column_stride, to, width);
                        }
                    }
                }
            }
        }
        for j in 0..columns {
            let first = if j < whole_columns { whole_rows } else { 0 };
            for i in first..rows {
                out[i * width + j] = data[i * row_stride + j * column_stride];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_copies_agree_with_the_matrix_whichever_way_it_lies() {
        for (rows, columns) in [(0, 3), (3, 0), (1, 1), (4, 4), (9, 7), (33, 20)] {
            let data: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
            let matrix = Matrix::row_major(&data, rows, columns);
            for matrix in [matrix, matrix.transposed()] {
                let width = matrix.columns() + 2;
                let mut out = vec![-1.0; matrix.rows() * width];
                matrix.pack(&mut out, width);
                for i in 0..matrix.rows() {
                    for j in 0..matrix.columns() {
                        assert_eq!(out[i * width + j], matrix.to_vec()[i * matrix.columns() + j]);
                    }
                }
            }
        }
    }
}
