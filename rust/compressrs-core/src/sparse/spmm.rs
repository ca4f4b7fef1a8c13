//! The product of a sparse matrix and a dense one.
//!
//! The dense matrix is read in panels of columns, whose width is a compile-time
//! constant, so that the sums of a row stay in vector registers, and where a panel
//! is larger than the cache, in tiles of its rows: all entries of a block of rows
//! that lie in a tile are added up before the next tile is begun.

use std::ops::Range;

use super::csr::{Csr, Index, Indices, Offsets, Pattern};
use super::dense::{RowsView, SharedMatrix};
use super::epilogue::Epilogue;
use super::panel::{Panel, panels, tile_height};
use crate::linalg::matrix::{Matrix, MatrixMut};
use crate::numeric::element::Float;
use crate::runtime::memory;
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, Kernel};

/// Clock cycles worth a task of their own, about; see [`crate::runtime::parallel::for_each`].
pub(super) const GRAIN_CYCLES: usize = 64 * 1024;

/// Bytes of a panel's rows at most: eight vectors of 32 bytes, enough sums to hide the
/// latency of a multiply-add. Rows of blocks are done four at a time.
pub(super) const fn panel_bytes(block_rows: usize) -> usize {
    if block_rows < GROUP { 256 } else { 64 }
}

/// Rows of a block whose sums are in registers together.
pub(super) const GROUP: usize = 4;

/// Reads of each row of the dense matrix that pay for a copy of it which is aligned
/// to the lines of the cache.
const PACK: usize = 16;

/// Rows that go through a tile before the next is begun.
pub(super) const ROW_BLOCK: usize = 64;

/// Entries of the longest row that one task sums. A longer one is cut up, and the
/// parts' sums are added in their order.
const LONGEST: usize = 32 * 1024;

/// `y = a x`, and what the epilogue makes of it.
///
/// Entries of a row are summed by fused multiply-adds in an order that depends on
/// the shapes alone.
///
/// # Panics
/// If the shapes do not fit, or an index of `a` is out of range.
pub fn matmul<T: Float, I: Index, const R: usize, const C: usize>(
    a: Csr<'_, T, I, R, C>,
    x: Matrix<'_, T>,
    y: MatrixMut<'_, T>,
    epilogue: Epilogue<'_, T>,
) {
    assert_eq!((a.rows(), a.columns()), (y.rows(), x.rows()));
    assert_eq!(x.columns(), y.columns());
    assert!(epilogue.bias.is_none_or(|bias| bias.len() == a.rows()));
    if a.rows() == 0 || x.columns() == 0 {
        return;
    }
    let reads = a.pattern().entries() * R;
    let panels = panels(x, panel_bytes(R), reads >= PACK * x.rows());
    let pattern = a.pattern();
    let long = long_rows(a, x);
    if epilogue.accumulate {
        a.look_for_widened();
    }
    let y = y.share();
    let cycles = 4 + x.columns() * size_of::<T>() * R * C / 24;
    pattern.for_rows(GRAIN_CYCLES.div_ceil(cycles), |rows| {
        let mut buffer = Scratch::new(0);
        let step = a.rows_to_widen(rows.len());
        for top in rows.clone().step_by(step) {
            let rows = top..rows.end.min(top + step);
            let entries = pattern.offsets()[rows.start]..pattern.offsets()[rows.end];
            let values = a.values(entries, &mut buffer);
            let task = Task { pattern, rows, values, long: &long, y: &y, epilogue };
            for panel in &panels {
                task.multiply::<R, C>(panel);
            }
        }
    });
}

/// The sums of a row that is too long for one task.
struct LongRow<T> {
    row: usize,
    sums: Vec<T>,
}

fn long_rows<T: Float, I: Index, const R: usize, const C: usize>(
    a: Csr<'_, T, I, R, C>,
    x: Matrix<'_, T>,
) -> Vec<LongRow<T>> {
    let pattern = a.pattern();
    if pattern.entries() <= LONGEST {
        return Vec::new();
    }
    let mut long = Vec::new();
    for row in (0..pattern.rows()).filter(|&row| pattern.row(row).len() > LONGEST) {
        let entries = pattern.row(row);
        let offsets = Offsets::even(entries.len(), LONGEST);
        let parts = a.piece(entries, &offsets);
        let columns = x.columns();
        let mut sums = memory::zeroed(memory::product(parts.rows(), columns));
        let y = MatrixMut::row_major(&mut sums, parts.rows(), columns);
        matmul(parts, x, y, Epilogue::default());
        let (total, rest) = sums.split_at_mut(R * columns);
        for part in rest.chunks(R * columns) {
            for (total, x) in total.iter_mut().zip(part) {
                *total += *x;
            }
        }
        sums.truncate(R * columns);
        memory::reserve(&mut long, 1);
        long.push(LongRow { row, sums });
    }
    long
}

/// What a task has to do with each panel.
struct Task<'a, T, I> {
    pattern: Pattern<'a, I>,
    /// Rows of the pattern.
    rows: Range<usize>,
    /// The values of their entries.
    values: &'a [T],
    long: &'a [LongRow<T>],
    y: &'a SharedMatrix<'a, T>,
    epilogue: Epilogue<'a, T>,
}

impl<T: Float, I: Index> Task<'_, T, I> {
    /// Does a panel, with as many sums of each element as keep eight vectors busy.
    fn multiply<const R: usize, const C: usize>(&self, panel: &Panel<'_, T>) {
        // What a block of one row keeps in several sums, one of more keeps in its rows.
        match (panel.padded * size_of::<T>(), size_of::<T>()) {
            (64, 4) if R >= GROUP => self.run::<R, C, 16, 1>(panel),
            (64, _) if R >= GROUP => self.run::<R, C, 8, 1>(panel),
            (32, 4) if R >= GROUP => self.run::<R, C, 8, 2>(panel),
            (32, _) if R >= GROUP => self.run::<R, C, 4, 2>(panel),
            (_, _) if R >= GROUP => self.run::<R, C, 1, 2>(panel),
            (256, 4) => self.run::<R, C, 64, 1>(panel),
            (256, _) => self.run::<R, C, 32, 1>(panel),
            (128, 4) => self.run::<R, C, 32, 2>(panel),
            (128, _) => self.run::<R, C, 16, 2>(panel),
            (64, 4) => self.run::<R, C, 16, 4>(panel),
            (64, _) => self.run::<R, C, 8, 4>(panel),
            (32, 4) => self.run::<R, C, 8, 4>(panel),
            (32, _) => self.run::<R, C, 4, 4>(panel),
            _ => self.run::<R, C, 1, 8>(panel),
        }
    }

    fn run<const R: usize, const C: usize, const W: usize, const E: usize>(
        &self,
        panel: &Panel<'_, T>,
    ) {
        simd::dispatch(Multiply::<T, I, R, C, W, E> { task: self, panel });
    }
}

/// Multiplies the rows of a task with a panel of `W` columns, each element in `E` sums.
struct Multiply<'a, 'b, T: Float, I, const R: usize, const C: usize, const W: usize, const E: usize>
{
    task: &'a Task<'b, T, I>,
    panel: &'a Panel<'b, T>,
}

impl<T: Float, I: Index, const R: usize, const C: usize, const W: usize, const E: usize> Kernel
    for Multiply<'_, '_, T, I, R, C, W, E>
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Multiply { task, panel } = self;
        let (pattern, columns) = (task.pattern, task.pattern.columns());
        let x = panel.rows.view::<W>();
        let first = pattern.offsets()[task.rows.start];
        let height = tile_height(pattern, W * C * size_of::<T>());
        let mut sums = Scratch::new(R * ROW_BLOCK.min(task.rows.len()) * W);
        let (sums, _) = sums.as_chunks_mut::<W>();
        let mut next = [0; ROW_BLOCK];
        for top in task.rows.clone().step_by(ROW_BLOCK) {
            let rows = top..task.rows.end.min(top + ROW_BLOCK);
            let sums = &mut sums[..R * rows.len()];
            self.begin(top, sums);
            for (next, row) in next.iter_mut().zip(rows.clone()) {
                let entries = pattern.row(row);
                *next = if entries.len() > LONGEST { entries.end } else { entries.start };
            }
            let mut right = 0;
            while right < columns {
                right = columns.min(right + height);
                for ((row, next), sums) in rows.clone().zip(&mut next).zip(sums.chunks_exact_mut(R))
                {
                    let end = pattern.row(row).end;
                    let indices = pattern.indices().range(*next..end);
                    let values = &task.values[(*next - first) * R * C..][..indices.len() * R * C];
                    *next += add::<T, I, R, C, W, E>(values, indices, right, x, sums);
                    if right < columns {
                        pattern.indices().prefetch(*next);
                        simd::prefetch(task.values.as_ptr().wrapping_add((*next - first) * R * C));
                    }
                }
            }
            for (next, row) in next.iter().zip(rows) {
                assert_eq!(*next, pattern.row(row).end, "an index out of range");
            }
            self.end(top, sums);
        }
    }
}

impl<T: Float, I: Index, const R: usize, const C: usize, const W: usize, const E: usize>
    Multiply<'_, '_, T, I, R, C, W, E>
{
    /// What the sums of a block of rows begin with.
    #[inline(always)]
    fn begin(&self, top: usize, sums: &mut [[T; W]]) {
        let Multiply { task, panel } = self;
        // SAFETY: tasks have different rows, and each panel is done once.
        unsafe { task.epilogue.begin(task.y, (top * R, panel.left), panel.width, sums) };
        let from = task.long.partition_point(|long| long.row < top);
        for long in &task.long[from..] {
            let rows = (long.row - top) * R..(long.row - top + 1) * R;
            let Some(sums) = sums.get_mut(rows) else { break };
            for (sums, long) in sums.iter_mut().zip(long.sums.chunks(long.sums.len() / R)) {
                for (sum, x) in sums.iter_mut().zip(&long[panel.left..][..panel.width]) {
                    *sum += *x;
                }
            }
        }
    }

    /// Writes the finished sums of a block of rows.
    #[inline(always)]
    fn end(&self, top: usize, sums: &mut [[T; W]]) {
        let Multiply { task, panel } = self;
        // SAFETY: tasks have different rows, and each panel is done once.
        unsafe {
            task.epilogue.end::<T::Portable, _>(task.y, (top * R, panel.left), panel.width, sums)
        };
    }
}

/// Adds the products of a row's first entries to the sums of its `R` rows, until one
/// is not left of column `right`; returns how many were. The formula of all products.
///
/// Entry `p` goes to sum `p % E` of an element, and those are added as a tree.
#[inline(always)]
fn add<T: Float, I: Index, const R: usize, const C: usize, const W: usize, const E: usize>(
    values: &[T],
    columns: Indices<'_, I>,
    right: usize,
    x: RowsView<'_, T, W>,
    sums: &mut [[T; W]],
) -> usize {
    assert!(right * C <= x.count());
    let mut done = 0;
    for (g, sums) in sums.chunks_mut(GROUP).enumerate() {
        let mut parts = [[[T::zero(); W]; E]; GROUP];
        let height = if R < GROUP { R } else { GROUP };
        for r in 0..height {
            parts[r][0] = sums[r];
        }
        let group = g * GROUP;
        done = 0;
        // As many entries at a time as there are sums, and then what is left.
        'row: {
            for (values, columns) in values.chunks_exact(E * R * C).zip(columns.chunks::<E>()) {
                for e in 0..E {
                    let column = columns.get(e);
                    if column >= right {
                        done += e;
                        break 'row;
                    }
                    let block = &values[e * R * C..(e + 1) * R * C];
                    // SAFETY: left of `right`, see above.
                    unsafe { add_entry::<T, R, C, W, E>(block, group, x, column, e, &mut parts) };
                }
                done += E;
            }
            let values = &values[done * R * C..];
            let columns = columns.range(done..columns.len());
            for e in 0..E {
                if e == columns.len() {
                    break 'row;
                }
                let column = columns.get(e);
                if column >= right {
                    break 'row;
                }
                let block = &values[e * R * C..(e + 1) * R * C];
                // SAFETY: as above.
                unsafe { add_entry::<T, R, C, W, E>(block, group, x, column, e, &mut parts) };
                done += 1;
            }
        }
        for r in 0..height {
            let mut half = E / 2;
            while half > 0 {
                for e in 0..half {
                    for l in 0..W {
                        parts[r][e][l] += parts[r][e + half][l];
                    }
                }
                half /= 2;
            }
            sums[r] = parts[r][0];
        }
    }
    done
}

/// Adds the products of an entry to sum `e` of those rows of its block that begin with
/// `group`.
///
/// # Safety
/// `x` must have the rows of this column.
#[inline(always)]
unsafe fn add_entry<T: Float, const R: usize, const C: usize, const W: usize, const E: usize>(
    block: &[T],
    group: usize,
    x: RowsView<'_, T, W>,
    column: usize,
    e: usize,
    parts: &mut [[[T; W]; E]; GROUP],
) {
    let height = if R < GROUP { R } else { GROUP };
    for c in 0..C {
        // SAFETY: the caller guarantees that `x` has the rows of this column.
        let x = unsafe { x.get_unchecked(column * C + c) };
        for r in 0..height {
            let a = block[(group + r) * C + c];
            for l in 0..W {
                parts[r][e][l] = a.mul_add(x[l], parts[r][e][l]);
            }
        }
    }
}
