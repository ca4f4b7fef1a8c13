//! The product of dense matrices, in an order of summation that depends on
//! nothing but their shape: each element is one chain of fused multiply-adds.

use std::ops::Range;

use super::matrix::Matrix;
use crate::numeric::element::Float;
use crate::numeric::vector::{Vector, WithVector, by_level};
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};

/// Elements of a tile, at most: 12 rows of two vectors of 16.
const MOST: usize = 12 * 32;

/// Products of a tile that are added up before the next one: what is read of `b` for them
/// stays in the first cache.
const DEPTH: usize = 256;

/// Multiply-adds worth a task of their own; see [`parallel::for_each`].
const GRAIN_MULTIPLY_ADDS: usize = 512 * 1024;

/// Rows and columns that are transposed at a time.
const SQUARE: usize = 32;

/// Elements worth packing by a task of their own.
const PACKED: usize = 64 * 1024;

/// `out = alpha a b + beta c`, where `(beta, c)` is `add`; `c` and `out` are in
/// row-major order.
///
/// # Panics
/// If the shapes do not fit.
pub fn multiply<T: Float>(
    alpha: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    add: Option<(T, &[T])>,
    out: &mut [T],
) {
    product(alpha, a, b, matrix(add), Part::All, out);
}

/// `out = a b + bias` for each row, as [`multiply`].
///
/// # Panics
/// If the shapes do not fit.
pub fn affine<T: Float>(a: Matrix<'_, T>, b: Matrix<'_, T>, bias: Option<&[T]>, out: &mut [T]) {
    product(T::one(), a, b, bias.map_or(Add::Nothing, Add::Row), Part::All, out);
}

/// `out = alpha a a' + beta c`, where `(beta, c)` is `add`, and `c` is symmetric: the same
/// bits as of [`multiply`] in little more than half the time.
///
/// # Panics
/// If the shapes do not fit.
pub fn multiply_by_transpose<T: Float>(
    alpha: T,
    a: Matrix<'_, T>,
    add: Option<(T, &[T])>,
    out: &mut [T],
) {
    product(alpha, a, a.transposed(), matrix(add), Part::RightOfDiagonal, out);
    mirror(out, a.rows());
}

fn matrix<T>(add: Option<(T, &[T])>) -> Add<'_, T> {
    add.map_or(Add::Nothing, |(beta, c)| Add::Matrix(beta, c))
}

/// What of a product is computed.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    All,
    /// Tiles that reach the diagonal or are right of it.
    RightOfDiagonal,
}

/// What is added to a product.
#[derive(Clone, Copy)]
enum Add<'a, T> {
    Nothing,
    /// So many times a matrix.
    Matrix(T, &'a [T]),
    /// The same to each row.
    Row(&'a [T]),
}

impl<T: Float> Add<'_, T> {
    /// What is added to rows of so many columns.
    fn of_rows(self, rows: Range<usize>, columns: usize) -> Self {
        match self {
            Add::Matrix(beta, c) => Add::Matrix(beta, &c[rows.start * columns..rows.end * columns]),
            other => other,
        }
    }
}

fn product<T: Float>(
    alpha: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    add: Add<'_, T>,
    part: Part,
    out: &mut [T],
) {
    assert_eq!(a.columns(), b.rows());
    assert_eq!(out.len(), a.rows() * b.columns());
    match add {
        Add::Nothing => {}
        Add::Matrix(_, c) => assert_eq!(c.len(), out.len()),
        Add::Row(row) => assert_eq!(row.len(), b.columns()),
    }
    by_level(Product { alpha, a, b, add, part, out });
}

/// Copies what is right of the diagonal to the left of it.
fn mirror<T: Float>(out: &mut [T], n: usize) {
    // Square by square, so that what is read and what is written stay in the first cache.
    for top in (0..n).step_by(SQUARE) {
        for left in (0..=top).step_by(SQUARE) {
            for i in top..n.min(top + SQUARE) {
                for j in left..i.min(left + SQUARE) {
                    out[i * n + j] = out[j * n + i];
                }
            }
        }
    }
}

/// A product, by tiles of so many rows and of two vectors.
struct Product<'a, T> {
    alpha: T,
    a: Matrix<'a, T>,
    b: Matrix<'a, T>,
    add: Add<'a, T>,
    part: Part,
    out: &'a mut [T],
}

impl<T: Float> WithVector<T> for Product<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector<T>, const R: usize, const Q: usize>(self) {
        let Product { alpha, a, b, add, part: of, out } = self;
        let (rows, inner, columns) = (a.rows(), a.columns(), b.columns());
        let width = 2 * V::LANES;
        // Panels of `b`, each read from the first to the last byte.
        let panels = columns.div_ceil(width);
        let size = memory::product(memory::product(panels, inner), width);
        let mut packed = memory::zeroed::<T>(size);
        let lines = SharedMut::new(&mut packed);
        parallel::for_each(0..panels, PACKED.div_ceil((inner * width).max(1)), 1, |part| {
            for panel in part {
                let size = inner * width;
                // SAFETY: `packed` is borrowed until the loop ends; parts do not overlap.
                let lines = unsafe { lines.slice(panel * size..(panel + 1) * size) };
                let left = panel * width;
                let here = width.min(columns - left);
                if b.column_stride() == 1 {
                    for (k, line) in lines.chunks_exact_mut(width).enumerate() {
                        copy(&b.data()[k * b.row_stride() + left..][..here], line, width);
                    }
                    continue;
                }
                for (block, lines) in lines.chunks_mut(SQUARE * width).enumerate() {
                    // Down the columns, as a transpose lies in memory.
                    for l in 0..here {
                        let column = (left + l) * b.column_stride();
                        for (k, line) in lines.chunks_exact_mut(width).enumerate() {
                            line[l] = b.data()[(block * SQUARE + k) * b.row_stride() + column];
                        }
                    }
                }
            }
        });
        let out = SharedMut::new(out);
        let grain = GRAIN_MULTIPLY_ADDS.div_ceil((inner * columns).max(1)).next_multiple_of(R);
        parallel::for_each(0..rows, grain, R, |part| {
            // SAFETY: `out` is borrowed until the loop ends; parts do not overlap.
            let out = unsafe { out.slice(part.start * columns..part.end * columns) };
            let add = add.of_rows(part.clone(), columns);
            let diagonal = if of == Part::All { None } else { Some(part.start) };
            let a = a.block(part, 0..inner);
            by_level(Strip { alpha, a, packed: &packed, add, out, columns, diagonal });
        });
    }
}

/// Rows of a product.
struct Strip<'a, T> {
    alpha: T,
    a: Matrix<'a, T>,
    packed: &'a [T],
    add: Add<'a, T>,
    out: &'a mut [T],
    columns: usize,
    /// Where the diagonal is in the first row, if only what is right of it counts.
    diagonal: Option<usize>,
}

impl<T: Float> WithVector<T> for Strip<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector<T>, const R: usize, const Q: usize>(self) {
        let Strip { alpha, a, packed, add, out, columns, diagonal } = self;
        let (rows, inner) = (a.rows(), a.columns());
        let width = 2 * V::LANES;
        let mut lines = memory::zeroed::<[T; R]>(rows.div_ceil(R) * DEPTH.min(inner));
        // The results of a tile, whole even where the matrix ends in it.
        let mut results = [T::zero(); MOST];
        // Once without a product, too, for what is added.
        for first in (0..inner.max(1)).step_by(DEPTH) {
            let depth = DEPTH.min(inner - first);
            let is_last = first + depth == inner;
            for tile in 0..rows.div_ceil(R) {
                pack(a, tile * R, first, &mut lines[tile * depth..(tile + 1) * depth]);
            }
            for panel in 0..columns.div_ceil(width) {
                let b = &packed[(panel * inner + first) * width..][..depth * width];
                let left = panel * width;
                let columns_here = width.min(columns - left);
                for tile in 0..rows.div_ceil(R) {
                    let top = tile * R;
                    if diagonal.is_some_and(|diagonal| left + width <= diagonal + top) {
                        break;
                    }
                    let height = R.min(rows - top);
                    let results = &mut results[..R * width];
                    if first == 0 {
                        results.fill(T::zero());
                    } else {
                        // Goes on where the last depth ended, so that the chain is one.
                        for r in 0..height {
                            let at = (top + r) * columns + left;
                            copy(&out[at..at + columns_here], &mut results[r * width..], width);
                        }
                    }
                    chain::<T, V, R>(&lines[tile * depth..(tile + 1) * depth], b, results);
                    for r in 0..height {
                        let at = (top + r) * columns + left;
                        let out = &mut out[at..at + columns_here];
                        let sums = &results[r * width..][..columns_here];
                        match add {
                            _ if !is_last => copy(sums, out, width),
                            Add::Matrix(beta, c) => {
                                for ((y, sum), c) in out.iter_mut().zip(sums).zip(&c[at..]) {
                                    *y = beta.mul_add(*c, alpha * *sum);
                                }
                            }
                            Add::Row(row) => {
                                for ((y, sum), c) in out.iter_mut().zip(sums).zip(&row[left..]) {
                                    *y = alpha * *sum + *c;
                                }
                            }
                            Add::Nothing => {
                                for (y, sum) in out.iter_mut().zip(sums) {
                                    *y = alpha * *sum;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Copies a row of a tile, mostly a whole one, whose length the compiler knows.
#[inline(always)]
fn copy<T: Float>(from: &[T], to: &mut [T], width: usize) {
    if from.len() == width {
        to[..width].copy_from_slice(&from[..width]);
    } else {
        to[..from.len()].copy_from_slice(from);
    }
}

/// Copies rows from `top` on so that those of a tile lie side by side. Rows beyond the last
/// are computed, but not stored.
#[inline(always)]
fn pack<T: Float, const R: usize>(
    a: Matrix<'_, T>,
    top: usize,
    first: usize,
    lines: &mut [[T; R]],
) {
    // A matrix without columns may be a part of one, whose rows lie elsewhere.
    if lines.is_empty() {
        return;
    }
    for r in 0..R {
        let row = (top + r).min(a.rows() - 1) * a.row_stride();
        if a.column_stride() == 1 {
            let row = &a.data()[row + first..][..lines.len()];
            for (line, x) in lines.iter_mut().zip(row) {
                line[r] = *x;
            }
        } else {
            for (k, line) in lines.iter_mut().enumerate() {
                line[r] = a.data()[row + (first + k) * a.column_stride()];
            }
        }
    }
}

/// Adds the products of a tile to its sums, one after another.
#[inline(always)]
fn chain<T: Float, V: Vector<T>, const R: usize>(a: &[[T; R]], b: &[T], results: &mut [T]) {
    let width = 2 * V::LANES;
    assert!(b.len() == a.len() * width && results.len() == R * width);
    let mut sums = [[V::splat(T::zero()); 2]; R];
    for r in 0..R {
        // SAFETY: each row of the results has two vectors.
        unsafe {
            let row = results.as_ptr().add(r * width);
            sums[r][0] = V::load(row);
            sums[r][1] = V::load(row.add(V::LANES));
        }
    }
    for k in 0..a.len() {
        // SAFETY: `b` has two vectors for each line of `a`.
        let (x, y) = unsafe {
            let line = b.as_ptr().add(k * width);
            (V::load(line), V::load(line.add(V::LANES)))
        };
        let line = &a[k];
        for r in 0..R {
            let w = V::splat(line[r]);
            sums[r][0] = sums[r][0].add_product(w, x);
            sums[r][1] = sums[r][1].add_product(w, y);
        }
    }
    for r in 0..R {
        // SAFETY: as above.
        unsafe {
            let row = results.as_mut_ptr().add(r * width);
            sums[r][0].store(row);
            sums[r][1].store(row.add(V::LANES));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_agree_with_triple_loops() {
        let value = |i: usize| ((i * 7 + 3) % 13) as f64 - 6.0;
        for (m, k, n) in
            [(0, 3, 2), (3, 0, 2), (1, 1, 1), (5, 3, 17), (4, 40, 16), (33, 20, 50), (9, 600, 18)]
        {
            let a: Vec<f64> = (0..m * k).map(value).collect();
            let b: Vec<f64> = (0..k * n).map(|i| value(i + 5)).collect();
            let c: Vec<f64> = (0..m * n).map(|i| value(i + 9)).collect();
            let truth: Vec<f64> = (0..m * n)
                .map(|i| {
                    let dot: f64 = (0..k).map(|l| a[i / n * k + l] * b[l * n + i % n]).sum();
                    2.0 * dot - 3.0 * c[i]
                })
                .collect();
            let mut out = vec![f64::NAN; m * n];
            let (a, b) = (Matrix::row_major(&a, m, k), Matrix::row_major(&b, k, n));
            multiply(2.0, a, b, Some((-3.0, &c)), &mut out);
            assert_eq!(out, truth, "{m} {k} {n}");
            // The transposes, multiplied the other way round.
            let mut transposed = vec![f64::NAN; m * n];
            multiply(1.0, b.transposed(), a.transposed(), None, &mut transposed);
            for i in 0..m * n {
                let product = transposed[i % n * m + i / n];
                assert_eq!(2.0 * product - 3.0 * c[i], truth[i]);
            }
            // No products of a part that has no columns, nor rows.
            let mut none = vec![f64::NAN; m * n];
            let empty = (a.block(0..m, 0..0), b.block(0..0, 0..n));
            multiply(1.0, empty.0, empty.1, Some((1.0, &c)), &mut none);
            assert_eq!(none, c);
            let (mut square, mut half) = (vec![f64::NAN; m * m], vec![f64::NAN; m * m]);
            multiply(2.0, a, a.transposed(), None, &mut square);
            multiply_by_transpose(2.0, a, None, &mut half);
            assert_eq!(half, square);
            multiply_by_transpose(2.0, a, Some((-3.0, &square)), &mut half);
            assert!(half.iter().zip(&square).all(|(half, x)| *half == -2.0 * x));
        }
    }
}
