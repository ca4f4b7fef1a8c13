//! The product of dense matrices, in an order of summation that depends on
//! nothing but their shape: each element is one chain of fused multiply-adds.
//!
//! The rows of `a` are packed in tiles, for a block of rows and of the inner dimension at a
//! time. Tasks then take panels of two vectors of columns of `b`, pack a part that fits into
//! the first cache, and multiply it with all tiles, whose sums stay in registers.

use std::ops::Range;

use super::few_rows;
use super::matrix::Matrix;
use crate::numeric::element::Float;
use crate::numeric::vector::{Vector, WithVector, by_level};
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, Kernel};

/// Elements of a tile, at most: 12 rows of two vectors of 16.
const MOST: usize = 12 * 32;

/// Lines of a packed part of a panel: 16 KiB of vectors of 256 bits, 32 KiB of those of 512, for
/// which the first cache has room.
const DEPTH: usize = 256;

/// Elements of packed tiles of `a`, and how many of them at most in a row: tiles stay in the
/// second or third cache, and packing `b` again for each block of rows does not show.
const BLOCK: usize = 1024 * 1024;
const INNER: usize = 2048;

/// Multiply-adds worth a task of their own; see [`parallel::for_each`].
const GRAIN_MULTIPLY_ADDS: usize = 512 * 1024;

/// Tasks for each thread, if the rows suffice to pack `b` so often.
const TASKS: usize = 8;

/// Rows and columns that are mirrored at a time.
const SQUARE: usize = 32;

/// Elements worth packing by a task of their own.
const PACKED: usize = 32 * 1024;

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

/// `out = a b + bias` for each row, as [`multiply`]; of few rows each element is a sum in lanes.
///
/// # Panics
/// If the shapes do not fit.
pub fn affine<T: Float>(a: Matrix<'_, T>, b: Matrix<'_, T>, bias: Option<&[T]>, out: &mut [T]) {
    if few_rows::applies(&a, &b) {
        assert_eq!(a.columns(), b.rows());
        assert_eq!(out.len(), a.rows() * b.columns());
        assert!(bias.is_none_or(|bias| bias.len() == b.columns()));
        return few_rows::affine(a, b, bias, out);
    }
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
    multiply_symmetric(alpha, a, a.transposed(), add, out);
}

/// `out = alpha a b + beta c`, where `(beta, c)` is `add`, and both `a b` and `c` are symmetric,
/// as of two polynomials in one symmetric matrix: what is left of the diagonal is not computed
/// but copied, so that the result is symmetric to the last bit.
///
/// # Panics
/// If the shapes do not fit.
pub fn multiply_symmetric<T: Float>(
    alpha: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    add: Option<(T, &[T])>,
    out: &mut [T],
) {
    product(alpha, a, b, matrix(add), Part::RightOfDiagonal, out);
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
    let out = SharedMut::new(out);
    // Square by square, so that what is read and what is written stay in the first cache.
    let grain = PACKED.div_ceil(SQUARE * n.max(1));
    parallel::for_each(0..n.div_ceil(SQUARE), grain, 1, |part| {
        for top in part.map(|square| square * SQUARE) {
            for left in (0..=top).step_by(SQUARE) {
                // SAFETY: tasks write different rows left of the diagonal, and read what is
                // right of it, which none of them writes.
                unsafe { mirror_square(&out, n, top, left) };
            }
        }
    });
}

/// Writes the square at row `top` and column `left`, or what of it is left of the diagonal.
///
/// # Safety
/// Nothing else uses the elements of the square, nor writes to those of its mirror image, which
/// are the elements of a matrix of `n` rows and columns.
unsafe fn mirror_square<T: Float>(out: &SharedMut<'_, T>, n: usize, top: usize, left: usize) {
    assert!(out.len() == n * n && left <= top && top < n);
    let start = out.as_mut_ptr();
    let (rows, columns) = (top..n.min(top + SQUARE), left..left + SQUARE);
    if rows.len() == SQUARE && left < top {
        for i in rows.step_by(4) {
            for j in columns.clone().step_by(4) {
                // SAFETY: four rows of four, on either side of the diagonal, of a matrix that is
                // as large as asserted; the caller guarantees that nothing else uses them.
                unsafe { T::transpose(start.add(j * n + i), n, start.add(i * n + j), n) };
            }
        }
        return;
    }
    for i in rows {
        for j in columns.start..i.min(columns.end) {
            // SAFETY: as above, of one element, since `j < i < n`.
            unsafe { start.add(i * n + j).write(start.add(j * n + i).read()) };
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
        let Product { alpha, a, b, add, part, out } = self;
        let (rows, inner, columns) = (a.rows(), a.columns(), b.columns());
        let width = 2 * V::LANES;
        let panels = columns.div_ceil(width);
        let threads = parallel::num_threads().unwrap_or(1);
        let out = SharedMut::new(out);
        // Once without a product, too, for what is added.
        for first in (0..inner.max(1)).step_by(INNER) {
            let depth = first..inner.min(first + INNER);
            let height = (BLOCK / depth.len().max(1)).next_multiple_of(R);
            for top in (0..rows).step_by(height) {
                let here = top..rows.min(top + height);
                let mut packed = Scratch::<T>::new(here.len().next_multiple_of(R) * depth.len());
                pack_tiles::<T, R>(a.block(here.clone(), depth.clone()), &mut packed);
                // Blocks of rows make enough tasks where there are few panels, but have to
                // repay that `b` is packed for each of them.
                let blocks = (TASKS * threads).div_ceil(panels.max(1));
                let block = here.len().div_ceil(blocks).max(8 * R).next_multiple_of(R);
                let work = block.min(here.len()) * depth.len().max(1) * width;
                let tasks = here.len().div_ceil(block) * panels;
                parallel::for_each(0..tasks, GRAIN_MULTIPLY_ADDS.div_ceil(work), 1, |tasks| {
                    by_level(Tasks {
                        alpha,
                        packed: &packed,
                        b: b.block(depth.clone(), 0..columns),
                        add,
                        part,
                        rows: here.clone(),
                        is_first: first == 0,
                        is_last: depth.end == inner,
                        block,
                        tasks,
                        out: &out,
                    });
                });
            }
        }
    }
}

/// Packs rows tile by tile, so that a line of a tile is a column of it. Rows beyond the last
/// are computed, but not stored.
pub(crate) fn pack_tiles<T: Float, const R: usize>(a: Matrix<'_, T>, packed: &mut [T]) {
    let (rows, size) = (a.rows(), R * a.columns());
    let packed = SharedMut::new(packed);
    parallel::for_each(0..rows.div_ceil(R), PACKED.div_ceil(size.max(1)), 1, |part| {
        for tile in part {
            // SAFETY: `packed` is borrowed until the loop ends; parts do not overlap.
            let lines = unsafe { packed.slice(tile * size..(tile + 1) * size) };
            let here = tile * R..rows.min((tile + 1) * R);
            simd::dispatch(Pack::<_, R> { matrix: a.block(here, 0..a.columns()), lines });
        }
    });
}

struct Pack<'a, T, const R: usize> {
    matrix: Matrix<'a, T>,
    lines: &'a mut [T],
}

impl<T: Float, const R: usize> Kernel for Pack<'_, T, R> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.matrix.transposed().pack(self.lines, R);
    }
}

/// Panels of two vectors of columns, each for a block of rows.
struct Tasks<'a, T> {
    alpha: T,
    /// The tiles of `rows`.
    packed: &'a [T],
    b: Matrix<'a, T>,
    add: Add<'a, T>,
    part: Part,
    rows: Range<usize>,
    /// Whether nothing is in `out` yet, and whether this completes it.
    is_first: bool,
    is_last: bool,
    /// Rows of a task.
    block: usize,
    /// All panels for the first block of rows, then those for the next.
    tasks: Range<usize>,
    out: &'a SharedMut<'a, T>,
}

impl<T: Float> WithVector<T> for Tasks<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector<T>, const R: usize, const Q: usize>(self) {
        let (inner, columns) = (self.b.rows(), self.b.columns());
        let width = 2 * V::LANES;
        let panels = columns.div_ceil(width);
        let (lines, _) = self.packed.as_chunks::<R>();
        let mut step = DEPTH;
        if self.block.min(self.rows.len()) <= 2 * R {
            // Then reading `b` takes the time, which likes to go on.
            step *= 4;
        }
        let mut panel = Scratch::<T>::new(step.min(inner) * width);
        for task in self.tasks.clone() {
            let left = task % panels * width;
            let here = left..columns.min(left + width);
            let from = task / panels * self.block;
            let rows = from..self.rows.len().min(from + self.block);
            for first in (0..inner.max(1)).step_by(step) {
                let depth = first..inner.min(first + step);
                let panel = &mut panel[..depth.len() * width];
                self.b.block(depth.clone(), here.clone()).pack(panel, width);
                let is_first = self.is_first && first == 0;
                let is_last = self.is_last && depth.end == inner;
                for top in rows.clone().step_by(R) {
                    let row = self.rows.start + top;
                    if self.part == Part::RightOfDiagonal && left + width <= row {
                        break;
                    }
                    let lines = &lines[top / R * inner..][depth.clone()];
                    let height = R.min(rows.end - top);
                    let tile = Tile { row, columns: here.clone(), is_first, is_last };
                    // Few rows, as of a single input, need not be computed as a whole tile.
                    match height {
                        1 => self.tile::<V, R, 1>(lines, panel, tile, height),
                        2..=4 => self.tile::<V, R, 4>(lines, panel, tile, height),
                        _ => self.tile::<V, R, R>(lines, panel, tile, height),
                    }
                }
            }
        }
    }
}

/// Where a tile lies in a product.
struct Tile {
    row: usize,
    columns: Range<usize>,
    is_first: bool,
    is_last: bool,
}

impl<T: Float> Tasks<'_, T> {
    /// Adds products to the sums of `height` rows of a tile, computed as `H`.
    #[inline(always)]
    fn tile<V: Vector<T>, const R: usize, const H: usize>(
        &self,
        lines: &[[T; R]],
        panel: &[T],
        tile: Tile,
        height: usize,
    ) {
        let (columns, width) = (self.b.columns(), 2 * V::LANES);
        let is_whole = height == H && tile.columns.len() == width;
        let out = |r: usize| {
            let at = (tile.row + r) * columns + tile.columns.start;
            // SAFETY: `out` is borrowed while tasks run, each of which writes its own block of
            // rows of its own panel; one reference at a time is used here.
            unsafe { self.out.slice(at..at + tile.columns.len()) }
        };
        let mut rows = [std::ptr::null_mut::<T>(); H];
        if is_whole {
            for r in 0..H {
                rows[r] = out(r).as_mut_ptr();
            }
            // SAFETY: each pointer is to two vectors, those of a row of `out`.
            unsafe { chain::<T, V, R, H>(lines, panel, rows, tile.is_first) };
        } else {
            // The sums of a whole tile, of which the matrix has a part.
            let mut sums = [T::zero(); MOST];
            for (r, sums) in sums.chunks_exact_mut(width).enumerate().take(H) {
                if r < height && !tile.is_first {
                    sums[..tile.columns.len()].copy_from_slice(out(r));
                }
                rows[r] = sums.as_mut_ptr();
            }
            // SAFETY: each pointer is to two vectors, of `sums`.
            unsafe { chain::<T, V, R, H>(lines, panel, rows, tile.is_first) };
            for (r, sums) in sums.chunks_exact(width).enumerate().take(height) {
                out(r).copy_from_slice(&sums[..tile.columns.len()]);
            }
        }
        if tile.is_last {
            for r in 0..height {
                self.finish(out(r), tile.row + r, tile.columns.start);
            }
        }
    }

    /// Multiplies sums by alpha and adds what is to be added.
    #[inline(always)]
    fn finish(&self, sums: &mut [T], row: usize, left: usize) {
        let alpha = self.alpha;
        match self.add {
            Add::Matrix(beta, c) => {
                let c = &c[row * self.b.columns() + left..][..sums.len()];
                for (y, c) in sums.iter_mut().zip(c) {
                    *y = beta.mul_add(*c, alpha * *y);
                }
            }
            Add::Row(row) => {
                for (y, c) in sums.iter_mut().zip(&row[left..]) {
                    *y = alpha * *y + *c;
                }
            }
            Add::Nothing if alpha == T::one() => {}
            Add::Nothing => sums.iter_mut().for_each(|y| *y = alpha * *y),
        }
    }
}

/// Adds the products of a tile to its sums, one after another; the first ones to 0.
///
/// # Safety
/// Two vectors may be read and written at each of the sums.
#[inline(always)]
unsafe fn chain<T: Float, V: Vector<T>, const R: usize, const H: usize>(
    a: &[[T; R]],
    b: &[T],
    rows: [*mut T; H],
    is_first: bool,
) {
    assert!(b.len() == 2 * V::LANES * a.len() && H <= R);
    let mut sums = [[V::splat(T::zero()); 2]; H];
    if !is_first {
        for r in 0..H {
            // SAFETY: the caller guarantees two vectors there.
            sums[r] = unsafe { [V::load(rows[r]), V::load(rows[r].add(V::LANES))] };
        }
    }
    for (k, line) in a.iter().enumerate() {
        // SAFETY: `b` has two vectors for each line of `a`.
        let (x, y) = unsafe {
            let from = b.as_ptr().add(k * 2 * V::LANES);
            (V::load(from), V::load(from.add(V::LANES)))
        };
        for r in 0..H {
            let w = V::splat(line[r]);
            sums[r][0] = sums[r][0].add_product(w, x);
            sums[r][1] = sums[r][1].add_product(w, y);
        }
    }
    for r in 0..H {
        // SAFETY: as above.
        unsafe {
            sums[r][0].store(rows[r]);
            sums[r][1].store(rows[r].add(V::LANES));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_agree_with_triple_loops() {
        let value = |i: usize| ((i * 7 + 3) % 13) as f64 - 6.0;
        for (m, k, n) in [
            (0, 3, 2),
            (3, 0, 2),
            (1, 1, 1),
            (5, 3, 17),
            (4, 40, 16),
            (33, 20, 50),
            (9, 600, 18),
            (530, 2100, 3),
        ] {
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
            // The square and its own square commute.
            let s = Matrix::row_major(&square, m, m);
            let (mut fourth, mut sixth) = (half.clone(), half.clone());
            multiply(1.0, s, s, None, &mut fourth);
            let f = Matrix::row_major(&fourth, m, m);
            multiply(0.5, s, f, Some((2.0, &square)), &mut sixth);
            multiply_symmetric(0.5, s, f, Some((2.0, &square)), &mut half);
            for i in 0..m * m {
                assert_eq!(half[i], half[i % m * m + i / m]);
                assert!((half[i] - sixth[i]).abs() <= 1e-12 * sixth[i].abs());
            }
        }
    }
}
