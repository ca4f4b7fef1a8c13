//! Products of a CSR matrix and a dense one.
//!
//! Both kernels go through the dense matrix in panels of columns, whose width is
//! a compile-time constant, so that a panel's row stays in vector registers.

use super::csr::{Csr, Index};
use super::dense::{Dense, DenseMut, SharedRows};
use crate::element::Float;
use crate::parallel;
use crate::simd::{self, Kernel};

/// Multiply-adds worth a task of their own; see [`parallel::for_each`].
const GRAIN: usize = 256 * 1024;

/// Width of the widest panel.
const MAX_WIDTH: usize = 64;

/// Runs `$body` with the constant `$W` for each panel of `$columns`, from the
/// widest down, and `$j` its first column.
macro_rules! panels {
    ($columns:expr, |$j:ident, $W:ident| $body:expr) => {{
        let columns: std::ops::Range<usize> = $columns;
        let mut $j = columns.start;
        panels!(@ columns, $j, $W, $body, MAX_WIDTH, 32, 16, 8, 4, 2, 1);
    }};
    (@ $columns:ident, $j:ident, $W:ident, $body:expr, $($width:expr),*) => {
        $({
            const $W: usize = $width;
            while $columns.end - $j >= $W {
                $body;
                $j += $W;
            }
        })*
    };
}

/// `y = a x`.
///
/// Within a row, entries are summed in the order they are stored, each by a
/// fused multiply-add.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul<T: Float, I: Index>(a: Csr<'_, T, I>, x: Dense<'_, T>, y: DenseMut<'_, T>) {
    assert_eq!((a.rows(), a.columns()), (y.rows(), x.rows()));
    assert_eq!(x.columns(), y.columns());
    let columns = x.columns();
    if goes_by_panels(&a, &y) {
        return by_panels(a.nnz() + a.rows(), x, y, |x, y, _| {
            simd::dispatch(Gather { a, x, y, rows: 0..a.rows() });
        });
    }
    let mut buffer = Vec::new();
    let x = x.with_contiguous_rows(&mut buffer);
    y.through_contiguous_rows(|y| {
        a.for_rows(GRAIN.div_ceil(columns.max(1)), |rows| {
            simd::dispatch(Gather { a, x, y, rows });
        });
    });
}

/// Whether each thread gets panels of its own: where `y` has contiguous columns,
/// as that of a layer that takes a batch of rows, and there are enough of them.
fn goes_by_panels<T: Float, I: Index>(a: &Csr<'_, T, I>, y: &DenseMut<'_, T>) -> bool {
    let threads = parallel::num_threads().unwrap_or(1);
    a.nnz() > 0 && y.has_contiguous_columns() && y.columns() >= threads * MAX_WIDTH
}

/// Calls `multiply` with panels of `x` and `y` in row-major buffers that stay in
/// cache, so that the transposing copies to and from them do not go to memory.
fn by_panels<T: Float>(
    work: usize,
    x: Dense<'_, T>,
    y: DenseMut<'_, T>,
    multiply: impl Fn(Dense<'_, T>, &SharedRows<'_, T>, usize) + Sync,
) {
    let (rows, columns) = (y.rows(), y.columns());
    let y = y.into_shared_columns();
    let grain = GRAIN.div_ceil(work).next_multiple_of(MAX_WIDTH);
    parallel::for_each(0..columns, grain, MAX_WIDTH, |part| {
        let mut x_buffer = vec![T::zero(); x.rows() * MAX_WIDTH];
        let mut y_buffer = vec![T::zero(); rows * MAX_WIDTH];
        for j in part.clone().step_by(MAX_WIDTH) {
            let width = MAX_WIDTH.min(part.end - j);
            let x_panel = &mut x_buffer[..x.rows() * width];
            let y_panel = &mut y_buffer[..rows * width];
            x.columns_range(j..j + width).copy_to(x_panel);
            let x_panel = Dense::row_major(x_panel, x.rows(), width);
            multiply(x_panel, &SharedRows::row_major(y_panel, width), width);
            let source = Dense::row_major(y_panel, rows, width).transposed();
            // SAFETY: parts have different columns.
            unsafe { y.copy_from(source, 0..width, j) };
        }
    });
}

/// `y[rows] = a[rows] x`: each element of the result is gathered.
struct Gather<'a, T, I> {
    a: Csr<'a, T, I>,
    x: Dense<'a, T>,
    y: &'a SharedRows<'a, T>,
    rows: std::ops::Range<usize>,
}

impl<T: Float, I: Index> Kernel for Gather<'_, T, I> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        panels!(0..self.x.columns(), |j, W| {
            for r in self.rows.clone() {
                let mut sum = [T::zero(); W];
                let (data, indices) = self.a.row(r);
                for (&a, &c) in data.iter().zip(indices) {
                    let x = self.x.row_from::<W>(c.get(), j);
                    for l in 0..W {
                        sum[l] = a.mul_add(x[l], sum[l]);
                    }
                }
                // SAFETY: tasks have different rows, and each panel is done once.
                *unsafe { self.y.row_from::<W>(r, j) } = sum;
            }
        });
    }
}

/// `y = a^T x`.
///
/// Each element is summed over the rows of `a` from the first to the last, each
/// term by a fused multiply-add.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul_transposed<T: Float, I: Index>(
    a: Csr<'_, T, I>,
    x: Dense<'_, T>,
    y: DenseMut<'_, T>,
) {
    assert_eq!((a.columns(), a.rows()), (y.rows(), x.rows()));
    assert_eq!(x.columns(), y.columns());
    let columns = x.columns();
    if goes_by_panels(&a, &y) {
        return by_panels(a.nnz() + a.columns(), x, y, |x, y, width| {
            let mut panel = vec![T::zero(); a.columns() * width];
            simd::dispatch(Scatter { a, x, y, columns: 0..width, panel: &mut panel });
        });
    }
    let mut buffer = Vec::new();
    let x = x.with_contiguous_rows(&mut buffer);
    y.through_contiguous_rows(|y| {
        // Tasks own columns, since rows of `a` add to the same rows of `y`. Each
        // reads all of `a`, so there is one a thread.
        let threads = parallel::num_threads().unwrap_or(1);
        let enough = GRAIN.div_ceil((a.nnz() + a.columns()).max(1));
        let grain = enough.max(columns.div_ceil(threads)).next_multiple_of(16);
        parallel::for_each(0..columns, grain, 16, |columns| {
            let mut panel = vec![T::zero(); a.columns() * MAX_WIDTH.min(columns.len())];
            simd::dispatch(Scatter { a, x, y, columns, panel: &mut panel });
        });
    });
}

/// `y[:, columns] = (a^T x)[:, columns]`: each term is scattered to its row.
struct Scatter<'a, T, I> {
    a: Csr<'a, T, I>,
    x: Dense<'a, T>,
    y: &'a SharedRows<'a, T>,
    columns: std::ops::Range<usize>,
    /// Where a panel of `y` is summed: next to each other, and away from the
    /// cache lines that other tasks write to.
    panel: &'a mut [T],
}

impl<T: Float, I: Index> Kernel for Scatter<'_, T, I> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        panels!(self.columns, |j, W| {
            let (panel, _) = self.panel.as_chunks_mut::<W>();
            let panel = &mut panel[..self.a.columns()];
            panel.fill([T::zero(); W]);
            for r in 0..self.a.rows() {
                let x = *self.x.row_from::<W>(r, j);
                let (data, indices) = self.a.row(r);
                for (&a, &c) in data.iter().zip(indices) {
                    let y = &mut panel[c.get()];
                    for l in 0..W {
                        y[l] = a.mul_add(x[l], y[l]);
                    }
                }
            }
            for (c, sum) in panel.iter().enumerate() {
                // SAFETY: tasks have different columns, and each panel is done once.
                *unsafe { self.y.row_from::<W>(c, j) } = *sum;
            }
        });
    }
}
