//! The product of the transpose of a sparse matrix and a dense one.
//!
//! Each entry adds a row of the one dense matrix to a row of the other, so tasks that
//! had different entries would add to the same rows. The entries are cut into pieces,
//! as many as their number allows and independent of the number of threads; each piece
//! has sums of its own, which are added in their order.

use std::ops::Range;

use super::csr::{Csr, Index, Indices};
use super::dense::{RowsView, SharedMatrix};
use super::epilogue::Epilogue;
use super::panel::{Panel, panels, tile_height};
use super::spmm::{GRAIN_CYCLES, GROUP, ROW_BLOCK, panel_bytes};
use crate::linalg::matrix::{Matrix, MatrixMut};
use crate::numeric::element::Float;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, Kernel};

/// Entries for each row of the result that pay for sums of their own.
const PIECE: usize = 32;

/// Pieces at most.
const PIECES: usize = 8;

/// `y = a^T x`, and what the epilogue makes of it.
///
/// Within a piece, each element is summed over the rows of `a` from the first to the
/// last, each term by a fused multiply-add.
///
/// # Panics
/// If the shapes do not fit, or an index of `a` is out of range.
pub fn matmul_transposed<T: Float, I: Index, const R: usize, const C: usize>(
    a: Csr<'_, T, I, R, C>,
    x: Matrix<'_, T>,
    y: MatrixMut<'_, T>,
    epilogue: Epilogue<'_, T>,
) {
    assert_eq!((a.columns(), a.rows()), (y.rows(), x.rows()));
    assert_eq!(x.columns(), y.columns());
    assert!(epilogue.bias.is_none_or(|bias| bias.len() == a.columns()));
    let pattern = a.pattern();
    let pieces =
        (pattern.entries() / PIECE.saturating_mul(pattern.columns().max(1))).clamp(1, PIECES);
    if epilogue.accumulate {
        a.look_for_widened();
    }
    let y = y.share();
    for panel in &panels(x, panel_bytes(R), false) {
        let product = Product { a, panel, y: &y, epilogue, pieces };
        match (panel.padded * size_of::<T>(), size_of::<T>()) {
            (256, 4) => product.run::<64>(),
            (256, _) => product.run::<32>(),
            (128, 4) => product.run::<32>(),
            (128, _) | (64, 4) => product.run::<16>(),
            (64, _) | (32, 4) => product.run::<8>(),
            (32, _) => product.run::<4>(),
            _ => product.run::<1>(),
        }
    }
}

/// The product with one panel.
#[derive(Clone, Copy)]
struct Product<'a, T: Float, I, const R: usize, const C: usize> {
    a: Csr<'a, T, I, R, C>,
    panel: &'a Panel<'a, T>,
    y: &'a SharedMatrix<'a, T>,
    epilogue: Epilogue<'a, T>,
    pieces: usize,
}

impl<T: Float, I: Index, const R: usize, const C: usize> Product<'_, T, I, R, C> {
    fn run<const W: usize>(self) {
        // Where pieces are fewer than threads, these share the columns: that changes
        // no sum.
        let threads = parallel::num_threads().unwrap_or(1);
        match threads.div_ceil(self.pieces) {
            _ if W * size_of::<T>() < 128 => self.cut::<W, W>(),
            1 => self.cut::<W, W>(),
            2 if W == 64 => self.cut::<W, 32>(),
            2 if W == 32 => self.cut::<W, 16>(),
            2 => self.cut::<W, 8>(),
            _ if W == 64 => self.cut::<W, 16>(),
            _ => self.cut::<W, 8>(),
        }
    }

    /// The product in parts of `V` of the panel's `W` columns.
    fn cut<const W: usize, const V: usize>(self) {
        let (rows, entries) = (self.a.columns(), self.a.pattern().entries());
        let parts = W / V;
        let mut sums = Scratch::<T>::new(memory::product(rows, self.pieces * W));
        let shared = SharedMut::new(&mut sums);
        let tasks = self.pieces * parts;
        // Not of `V`, which depends on the number of threads: where rows are not sorted,
        // tiles decide the order of sums.
        let height = tile_height(self.a.pattern(), W * C * size_of::<T>());
        let cycles = entries * (4 + W * R * C * size_of::<T>() / 16);
        parallel::for_each(
            0..tasks,
            if cycles < 2 * GRAIN_CYCLES { tasks } else { 1 },
            1,
            |some| {
                for task in some {
                    let (piece, part) = (task / parts, task % parts);
                    let bound = |piece| {
                        entries / self.pieces * piece + entries % self.pieces * piece / self.pieces
                    };
                    let entries = bound(piece)..bound(piece + 1);
                    // SAFETY: tasks have sums of their own.
                    let sums = unsafe { shared.slice(task * rows * V..(task + 1) * rows * V) };
                    let (sums, _) = sums.as_chunks_mut::<V>();
                    let x = self.panel.rows.view::<W>().columns::<V>(part * V);
                    simd::dispatch(Scatter { a: self.a, x, entries, height, sums });
                }
            },
        );
        let grain = GRAIN_CYCLES.div_ceil(W * self.pieces).next_multiple_of(ROW_BLOCK);
        let sums = &sums[..];
        parallel::for_each(0..rows, grain, ROW_BLOCK, |rows| {
            simd::dispatch(Finish::<T, W> {
                sums,
                height: self.a.columns(),
                parts,
                panel: (self.panel.left, self.panel.width),
                y: self.y,
                epilogue: self.epilogue,
                rows,
            });
        });
    }
}

/// Adds the products of some entries to `V` columns of sums.
struct Scatter<'a, T, I, const R: usize, const C: usize, const V: usize> {
    a: Csr<'a, T, I, R, C>,
    x: RowsView<'a, T, V>,
    entries: Range<usize>,
    /// Columns of the pattern in a tile.
    height: usize,
    sums: &'a mut [[T; V]],
}

impl<T: Float, I: Index, const R: usize, const C: usize, const V: usize> Kernel
    for Scatter<'_, T, I, R, C, V>
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Scatter { a, x, entries, height, sums } = self;
        sums.fill([T::zero(); V]);
        if entries.is_empty() {
            return;
        }
        let (pattern, columns) = (a.pattern(), a.pattern().columns());
        let first = pattern.offsets().partition_point(|&offset| offset <= entries.start) - 1;
        let last = pattern.offsets().partition_point(|&offset| offset < entries.end);
        assert!(last * R <= x.count());
        // A row's entries, as far as they are in the piece.
        let of = |row| {
            let row = pattern.row(row);
            row.start.max(entries.start)..row.end.min(entries.end)
        };
        let mut next = [0; ROW_BLOCK];
        let mut buffer = Scratch::new(0);
        for top in (first..last).step_by(ROW_BLOCK) {
            let rows = top..last.min(top + ROW_BLOCK);
            let begin = of(top).start;
            let values = a.values(begin..of(rows.end - 1).end, &mut buffer);
            for (next, row) in next.iter_mut().zip(rows.clone()) {
                *next = of(row).start;
            }
            let mut right = 0;
            while right < columns {
                right = columns.min(right + height);
                for (next, row) in next.iter_mut().zip(rows.clone()) {
                    let rest = *next..of(row).end.max(*next);
                    let values = &values[(rest.start - begin) * R * C..(rest.end - begin) * R * C];
                    let indices = pattern.indices().range(rest);
                    *next += add::<T, I, R, C, V>(values, indices, right, x, row, sums);
                    if right < columns {
                        pattern.indices().prefetch(*next);
                        simd::prefetch(values.as_ptr().wrapping_add((*next - begin) * R * C));
                    }
                }
            }
            for (next, row) in next.iter().zip(rows) {
                assert!(*next >= of(row).end, "an index out of range");
            }
        }
    }
}

/// Adds the products of a row's first entries to the sums of their columns, until one
/// is not left of column `right`; returns how many were.
#[inline(always)]
fn add<T: Float, I: Index, const R: usize, const C: usize, const V: usize>(
    values: &[T],
    columns: Indices<'_, I>,
    right: usize,
    x: RowsView<'_, T, V>,
    row: usize,
    sums: &mut [[T; V]],
) -> usize {
    let mut done = 0;
    for g in (0..R).step_by(GROUP) {
        let height = if R < GROUP { R } else { GROUP };
        let mut lines = [[T::zero(); V]; GROUP];
        for r in 0..height {
            lines[r] = *x.get(row * R + g + r);
        }
        let sums = &mut sums[..right * C];
        done = 0;
        for (block, column) in values.chunks_exact(R * C).zip(columns.iter()) {
            if column >= right {
                break;
            }
            for c in 0..C {
                let sum = &mut sums[column * C + c];
                let mut total = *sum;
                for r in 0..height {
                    let a = block[(g + r) * C + c];
                    for l in 0..V {
                        total[l] = a.mul_add(lines[r][l], total[l]);
                    }
                }
                *sum = total;
            }
            done += 1;
        }
    }
    done
}

/// Adds up the sums of the pieces, and writes some rows of the result.
///
/// Knows no more of the product than it must, so that few copies of it are compiled.
struct Finish<'a, T: Float, const W: usize> {
    /// For each piece and each part of the panel's columns: a row of sums for each row of
    /// the result.
    sums: &'a [T],
    /// Number of rows of the result.
    height: usize,
    /// Number of parts of equal width.
    parts: usize,
    /// First column and number of columns of the panel.
    panel: (usize, usize),
    y: &'a SharedMatrix<'a, T>,
    epilogue: Epilogue<'a, T>,
    rows: Range<usize>,
}

impl<T: Float, const W: usize> Kernel for Finish<'_, T, W> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Finish { sums, height, parts, panel: (left, width), y, epilogue, rows } = self;
        let part_width = W / parts;
        let mut block = [[T::zero(); W]; ROW_BLOCK];
        for top in rows.clone().step_by(ROW_BLOCK) {
            let block = &mut block[..ROW_BLOCK.min(rows.end - top)];
            // SAFETY: tasks have different rows, and each panel is done once.
            unsafe { epilogue.begin(y, (top, left), width, block) };
            for (task, sums) in sums.chunks_exact(height * part_width).enumerate() {
                let first = task % parts * part_width;
                let sums = &sums[top * part_width..][..block.len() * part_width];
                for (line, sums) in block.iter_mut().zip(sums.chunks_exact(part_width)) {
                    for (x, sum) in line[first..first + part_width].iter_mut().zip(sums) {
                        *x += *sum;
                    }
                }
            }
            // SAFETY: as above.
            unsafe { epilogue.end::<T::Portable, _>(y, (top, left), width, block) };
        }
    }
}
