//! What pruning asks of the inputs of a layer: sums over their rows, in double precision.

use crate::linalg::gemm::multiply_by_transpose;
use crate::linalg::matrix::Matrix;
use crate::numeric::element::{Element, Float};
use crate::numeric::elementwise::zip_into;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// Values worth a task of their own.
const GRAIN_ELEMENTS: usize = 128 * 1024;

/// Columns of a task.
const STRIP: usize = 64;

/// A sum is not finite, since inputs are not, or are too large for their squares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overflow;

/// Adds the squares of each column, row by row, to `sums`.
///
/// # Errors
/// If a sum is not finite; `sums` are unchanged then.
///
/// # Panics
/// If lengths do not fit.
pub fn accumulate_squares<E: Element>(x: &[E], sums: &mut [f64]) -> Result<(), Overflow> {
    let columns = sums.len();
    assert_eq!(x.len(), x.len() / columns.max(1) * columns);
    let rows = x.len() / columns.max(1);
    let grain = GRAIN_ELEMENTS.div_ceil(rows.max(1)).next_multiple_of(STRIP);
    let mut total = memory::copied(sums);
    let shared = SharedMut::new(&mut total);
    parallel::for_each(0..columns, grain, STRIP, |part| {
        // SAFETY: `total` is borrowed until the loop ends; parts do not overlap.
        let sums = unsafe { shared.slice(part.clone()) };
        simd::dispatch(Squares { x, columns, first: part.start, sums });
    });
    replace(sums, &total)
}

/// Replaces sums by new ones, if all of these are finite.
fn replace(sums: &mut [f64], total: &[f64]) -> Result<(), Overflow> {
    if !total.iter().all(|sum| sum.is_finite()) {
        return Err(Overflow);
    }
    sums.copy_from_slice(total);
    Ok(())
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
/// # Errors
/// If a sum is not finite; `gram` is unchanged then.
///
/// # Panics
/// If lengths do not fit. `gram` has to be symmetric.
pub fn accumulate_gram<E: Element>(
    x: &[E],
    columns: usize,
    gram: &mut [f64],
) -> Result<(), Overflow> {
    assert_eq!(gram.len(), columns * columns);
    assert_eq!(x.len(), x.len() / columns.max(1) * columns);
    if x.is_empty() {
        return Ok(());
    }
    let mut wide = memory::zeroed(x.len().min(ROWS * columns));
    let mut total = memory::copied(gram);
    let mut sum = memory::zeroed(gram.len());
    for rows in x.chunks(ROWS * columns) {
        let wide = &mut wide[..rows.len()];
        zip_into(wide, rows, |wide, x| *wide = x.load().to_f64());
        let x = Matrix::row_major(wide, rows.len() / columns, columns);
        multiply_by_transpose(1.0, x.transposed(), Some((1.0, &total)), &mut sum);
        std::mem::swap(&mut total, &mut sum);
    }
    replace(gram, &total)
}
