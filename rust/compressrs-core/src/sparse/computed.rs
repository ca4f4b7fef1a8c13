//! Dense operands that are stored in half precision: copies in the type that products compute
//! in, and back.

use super::dense::Cells;
use super::values::Load;
use crate::linalg::matrix::{Matrix, MatrixMut};
use crate::numeric::element::Element;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, Kernel};

/// Elements worth a task of their own.
const GRAIN: usize = 32 * 1024;

/// A matrix in the type that it is computed in: the matrix itself, or a copy.
pub struct Computed<'a, E: Element> {
    cells: Cells<'a, E::Compute>,
    lines: Lines,
}

/// How the elements of a matrix lie in memory: `count` lines of `len`, which are rows, or
/// columns.
#[derive(Clone, Copy)]
struct Lines {
    are_columns: bool,
    count: usize,
    len: usize,
    /// Elements from one line to the next.
    apart: usize,
    /// Elements from one of a line to the next.
    step: usize,
}

impl Lines {
    fn new(rows: usize, columns: usize, (row, column): (usize, usize)) -> Self {
        if row < column {
            Lines { are_columns: true, count: columns, len: rows, apart: column, step: row }
        } else {
            Lines { are_columns: false, count: rows, len: columns, apart: row, step: column }
        }
    }

    /// Of the same elements, without gaps.
    fn packed(self) -> Self {
        Lines { apart: self.len, step: 1, ..self }
    }

    fn size(&self) -> usize {
        memory::product(self.count, self.len)
    }

    /// Rows and columns, and the strides of both.
    fn shape(&self) -> ((usize, usize), (usize, usize)) {
        let Lines { are_columns, count, len, apart, step } = *self;
        if are_columns { ((len, count), (step, apart)) } else { ((count, len), (apart, step)) }
    }

    /// Calls `body` with the first element of each of some lines, here and in `others`.
    fn for_each(&self, others: Lines, body: impl Fn(usize, usize) + Sync) {
        parallel::for_each(0..self.count, GRAIN.div_ceil(self.len.max(1)), 1, |lines| {
            lines.for_each(|i| body(i * self.apart, i * others.apart));
        });
    }
}

impl<'a, E: Element> Computed<'a, E> {
    /// Copies a matrix unless it is stored in the type that it is computed in.
    pub fn new(x: Matrix<'a, E>) -> Self {
        let lines = Lines::new(x.rows(), x.columns(), (x.row_stride(), x.column_stride()));
        if let Some(data) = E::as_compute(x.data()) {
            return Computed { cells: Cells::Borrowed(data), lines };
        }
        Computed { cells: Cells::Owned(load(x.data(), lines)), lines: lines.packed() }
    }

    /// As [`new`](Self::new), of a vector.
    pub fn vector(x: &'a [E]) -> Self {
        Computed::new(Matrix::row_major(x, 1, x.len()))
    }

    /// The elements of a vector.
    pub fn elements(&self) -> &[E::Compute] {
        &self.cells
    }

    /// The matrix.
    pub fn matrix(&self) -> Matrix<'_, E::Compute> {
        let ((rows, columns), (row, column)) = self.lines.shape();
        Matrix::new(&self.cells, rows, columns, row, column)
    }
}

/// A packed copy of a matrix.
fn load<E: Element>(data: &[E], lines: Lines) -> Scratch<E::Compute> {
    let packed = lines.packed();
    let mut buffer = Scratch::new(lines.size());
    let shared = SharedMut::new(&mut buffer);
    lines.for_each(packed, |from, to| {
        // SAFETY: `buffer` is borrowed until the loop ends, and lines do not overlap.
        let to = unsafe { shared.slice(to..to + lines.len) };
        if lines.step == 1 {
            simd::dispatch(Load { from: &data[from..from + lines.len], to });
        } else {
            for (i, to) in to.iter_mut().enumerate() {
                *to = data[from + i * lines.step].load();
            }
        }
    });
    buffer
}

/// Has `compute` write a matrix in the type that it is computed in, which holds the elements of
/// `y` if it is `read`; then rounds it to nearest where that is another than its own.
pub fn store_computed<E: Element>(
    y: MatrixMut<'_, E>,
    read: bool,
    compute: impl FnOnce(MatrixMut<'_, E::Compute>),
) {
    let (rows, columns) = (y.rows(), y.columns());
    let (data, row, column) = y.into_parts();
    if let Some(data) = E::as_compute_mut(data) {
        return compute(MatrixMut::new(data, rows, columns, row, column));
    }
    let lines = Lines::new(rows, columns, (row, column));
    let packed = lines.packed();
    let mut buffer = if read { load(data, lines) } else { Scratch::new(lines.size()) };
    let (_, (row, column)) = packed.shape();
    compute(MatrixMut::new(&mut buffer, rows, columns, row, column));
    let shared = SharedMut::new(data);
    packed.for_each(lines, |from, to| {
        let from = &buffer[from..from + lines.len];
        let whole = if lines.step == 1 { lines.len } else { 0 };
        // SAFETY: `data` is borrowed until the loop ends, and lines do not overlap; elements of
        // one that is not contiguous are written one by one, since those of others may be
        // between them.
        unsafe {
            simd::dispatch(Round { from: &from[..whole], to: shared.slice(to..to + whole) });
            for (i, x) in from.iter().enumerate().skip(whole) {
                let at = to + i * lines.step;
                shared.slice(at..at + 1)[0] = E::store(*x);
            }
        }
    });
}

/// As [`store_computed`], of a slice.
pub fn store_computed_slice<E: Element>(
    y: &mut [E],
    read: bool,
    compute: impl FnOnce(&mut [E::Compute]),
) {
    let len = y.len();
    store_computed(MatrixMut::row_major(y, 1, len), read, |y| compute(y.into_parts().0));
}

/// Rounds elements to the type that they are stored in.
struct Round<'a, E: Element> {
    from: &'a [E::Compute],
    to: &'a mut [E],
}

impl<E: Element> Kernel for Round<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (to, from) in self.to.iter_mut().zip(self.from) {
            *to = E::store(*from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::element::bf16;

    #[test]
    fn matrices_of_any_strides_are_copied_and_written_back() {
        for (rows, columns, row, column) in
            [(3, 5, 5, 1), (3, 5, 1, 3), (3, 5, 20, 3), (3, 5, 2, 9), (1, 4, 4, 1), (0, 3, 3, 1)]
        {
            let mut data: Vec<bf16> = (0..100).map(|i| bf16::from_f32(i as f32)).collect();
            let before = data.clone();
            let x = Computed::new(Matrix::new(&before, rows, columns, row, column));
            let at = |i: usize, j: usize| (i * row + j * column) as f32;
            let all = |i: usize| (0..columns).map(move |j| at(i, j));
            let truth: Vec<f32> = (0..rows).flat_map(all).collect();
            assert_eq!(x.matrix().to_vec(), truth);
            for read in [false, true] {
                store_computed(MatrixMut::new(&mut data, rows, columns, row, column), read, |y| {
                    let (y, row, column) = y.into_parts();
                    for i in 0..rows {
                        for j in 0..columns {
                            let old = if read { y[i * row + j * column] } else { 0.0 };
                            y[i * row + j * column] = old + 0.5 * truth[i * columns + j];
                        }
                    }
                });
            }
            // Two halves are the number; what is between is left alone.
            assert_eq!(data, before);
        }
    }
}
