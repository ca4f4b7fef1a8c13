//! What pruning asks of the inputs of a layer: sums over their rows, in double precision.

use crate::linalg::gemm::{Matrix, multiply_by_transpose};
use crate::numeric::element::{Element, Float};
use crate::numeric::elementwise::zip_into;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// Values worth a task of their own.
const GRAIN: usize = 128 * 1024;

/// Columns of a task.
const STRIP: usize = 64;

/// Adds the squares of each column, row by row, to `sums`.
///
/// # Panics
/// If lengths do not fit.
pub fn accumulate_squares<E: Element>(x: &[E], sums: &mut [f64]) {
    let columns = sums.len();
    assert_eq!(x.len(), x.len() / columns.max(1) * columns);
    let rows = x.len() / columns.max(1);
    let grain = GRAIN.div_ceil(rows.max(1)).next_multiple_of(STRIP);
    let shared = SharedMut::new(sums);
    parallel::for_each(0..columns, grain, STRIP, |part| {
        // SAFETY: `sums` is borrowed for the whole call and parts do not overlap.
        let sums = unsafe { shared.slice(part.clone()) };
        simd::dispatch(Squares { x, columns, first: part.start, sums });
    });
}

struct Squares<'a, E> {
    x: &'a [E],
    columns: usize,
    first: usize,
    sums: &'a mut [f64],
}

impl<E: Element> Kernel for Squares<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let width = self.sums.len();
        for row in self.x.chunks_exact(self.columns.max(1)) {
            for (sum, x) in self.sums.iter_mut().zip(&row[self.first..self.first + width]) {
                let x = x.load().to_f64();
                *sum = x.mul_add(x, *sum);
            }
        }
    }
}

/// Rows that are widened at a time.
const ROWS: usize = 2048;

/// Adds `X' X` to `gram`, where `X` has the columns that `gram` has.
///
/// # Panics
/// If lengths do not fit. `gram` has to be symmetric.
pub fn accumulate_gram<E: Element>(x: &[E], columns: usize, gram: &mut [f64]) {
    assert_eq!(gram.len(), columns * columns);
    assert_eq!(x.len(), x.len() / columns.max(1) * columns);
    if columns == 0 {
        return;
    }
    let mut wide = vec![0.0; x.len().min(ROWS * columns)];
    let mut sum = vec![0.0; gram.len()];
    for rows in x.chunks(ROWS * columns) {
        let wide = &mut wide[..rows.len()];
        zip_into(wide, rows, |wide, x| *wide = x.load().to_f64());
        let x = Matrix::row_major(wide, rows.len() / columns, columns);
        multiply_by_transpose(1.0, x.transposed(), Some((1.0, gram)), &mut sum);
        gram.copy_from_slice(&sum);
    }
}
