//! What sparse products make of dense matrices: rows that can be read a vector at a time,
//! and outputs that tasks write blocks of.

use std::ops::{Deref, Range};

use crate::linalg::matrix::{Matrix, MatrixMut};
use crate::linalg::transpose::copy_transposed;
use crate::numeric::element::Float;
use crate::numeric::vector::{Vector, WithWidth, full_width};
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;

/// Elements worth a task of their own in a copy.
const GRAIN_ELEMENTS: usize = 64 * 1024;

/// Rows of a transposing copy that go together: those of a line of the cache.
const TILE_SIDE: usize = 16;

/// Elements that a short copy takes at a time.
const FOUR: usize = 4;

impl<'a, T: Float> Matrix<'a, T> {
    /// The matrix as rows that can be read `width` elements at a time, filled up
    /// with zeros: borrowed where it is stored so, unless it is to be aligned to the
    /// lines of the cache and is not.
    pub(super) fn to_rows(self, width: usize, align: bool) -> Rows<'a, T> {
        self.borrow_rows(width, align).unwrap_or_else(|| {
            let mut buffer = Scratch::new(memory::product(self.rows(), width));
            let shared = SharedMut::new(&mut buffer);
            let grain = GRAIN_ELEMENTS.div_ceil(width);
            parallel::for_each(0..self.rows(), grain, TILE_SIDE, |rows| {
                // SAFETY: `buffer` is borrowed until the loop ends and ranges of
                // rows do not overlap.
                let part = unsafe { shared.slice(rows.start * width..rows.end * width) };
                self.pack_rows(rows, part, width);
            });
            Rows { data: Cells::Owned(buffer), count: self.rows(), stride: width }
        })
    }

    /// As [`to_rows`](Self::to_rows), on the thread of the caller.
    pub(super) fn to_rows_here(self, width: usize, align: bool) -> Rows<'a, T> {
        self.borrow_rows(width, align).unwrap_or_else(|| {
            let mut buffer = Scratch::new(memory::product(self.rows(), width));
            self.pack_rows(0..self.rows(), &mut buffer, width);
            Rows { data: Cells::Owned(buffer), count: self.rows(), stride: width }
        })
    }

    fn borrow_rows(self, width: usize, align: bool) -> Option<Rows<'a, T>> {
        if width == 0 {
            return Some(Rows { data: Cells::Borrowed(&[]), count: self.rows(), stride: 0 });
        }
        let stored = self.columns() == width && (self.column_stride() == 1 || width == 1);
        let line = width * size_of::<T>();
        let aligned = self.data().as_ptr().addr().is_multiple_of(LINE.min(line))
            && self.row_stride() == width;
        // A vector's elements follow one another, so that finding one takes no product.
        let fits = stored && if width == 1 { self.row_stride() == 1 } else { aligned || !align };
        fits.then(|| Rows {
            data: Cells::Borrowed(self.data()),
            count: self.rows(),
            stride: self.row_stride(),
        })
    }

    /// Copies `rows` to `out`, `width` elements for each, filled up with zeros.
    fn pack_rows(&self, rows: Range<usize>, out: &mut [T], width: usize) {
        if self.columns() < width {
            out.fill(T::zero());
        }
        full_width(CopyRows { source: self, rows, out, width });
    }
}

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Elements that are borrowed, or copies.
pub enum Cells<'a, T: Float> {
    /// Those of others.
    Borrowed(&'a [T]),
    /// Copies.
    Owned(Scratch<T>),
}

impl<T: Float> Deref for Cells<'_, T> {
    type Target = [T];
    #[inline(always)]
    fn deref(&self) -> &[T] {
        match self {
            Cells::Borrowed(slice) => slice,
            Cells::Owned(buffer) => buffer,
        }
    }
}

/// Contiguous rows, some elements of each.
pub(super) struct Rows<'a, T: Float> {
    /// At least `width` elements from `i * stride` on, for each row `i`.
    data: Cells<'a, T>,
    count: usize,
    stride: usize,
}

impl<T: Float> Rows<'_, T> {
    /// To read rows from: with its length at hand.
    #[inline(always)]
    pub fn view<const W: usize>(&self) -> RowsView<'_, T, W> {
        let end = if self.count == 0 { 0 } else { (self.count - 1) * self.stride + W };
        RowsView { data: &self.data[..end], count: self.count, stride: self.stride }
    }

    /// All of them, where they are one after another.
    pub fn as_slice(&self) -> &[T] {
        &self.data
    }

    /// All of them, `width` elements each.
    ///
    /// # Panics
    /// If there is anything between them.
    pub fn packed(&self, width: usize) -> &[T] {
        assert!(self.count <= 1 || self.stride == width);
        &self.data[..self.count * width]
    }

    /// Number of rows.
    #[inline(always)]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The `width` elements of a row, as many as [`Matrix::to_rows`] was asked for.
    ///
    /// # Safety
    /// There must be such a row, and it must be as wide.
    #[inline(always)]
    pub unsafe fn row_unchecked(&self, i: usize, width: usize) -> &[T] {
        debug_assert!(i < self.count && i * self.stride + width <= self.data.len());
        // SAFETY: the caller guarantees that there is such a row, as wide.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().add(i * self.stride), width) }
    }
}

/// `W` elements of each of some rows.
#[derive(Clone, Copy)]
pub(super) struct RowsView<'a, T, const W: usize> {
    data: &'a [T],
    count: usize,
    stride: usize,
}

impl<'a, T: Float, const W: usize> RowsView<'a, T, W> {
    /// Number of rows.
    #[inline(always)]
    pub fn count(&self) -> usize {
        self.count
    }

    /// `V` of the elements, from `left` on.
    #[inline(always)]
    pub fn columns<const V: usize>(self, left: usize) -> RowsView<'a, T, V> {
        assert!(left + V <= W);
        let data = if self.count == 0 { self.data } else { &self.data[left..] };
        RowsView { data, count: self.count, stride: self.stride }
    }

    /// A row.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline(always)]
    pub fn get(&self, i: usize) -> &'a [T; W] {
        assert!(i < self.count);
        // SAFETY: just checked.
        unsafe { self.get_unchecked(i) }
    }

    /// A row.
    ///
    /// # Safety
    /// There must be such a row.
    #[inline(always)]
    pub unsafe fn get_unchecked(&self, i: usize) -> &'a [T; W] {
        debug_assert!(i < self.count && (W > 1 || self.stride == 1));
        let at = if W == 1 { i } else { i * self.stride };
        // SAFETY: `data` has at least `(count - 1) * stride + W` elements, see `Rows::view`;
        // the caller guarantees
        // that there is such a row.
        unsafe { &*self.data.as_ptr().add(at).cast::<[T; W]>() }
    }
}

/// Copies rows to contiguous ones, tile by tile, since one side of the copy is
/// strided.
struct CopyRows<'a, 'b, T> {
    source: &'b Matrix<'a, T>,
    rows: Range<usize>,
    out: &'b mut [T],
    width: usize,
}

impl<T: Float> WithWidth<T> for CopyRows<'_, '_, T> {
    #[inline(always)]
    fn run<V: Vector<T>>(self) {
        let CopyRows { source, rows, out, width } = self;
        if source.column_stride() == 1 {
            if source.columns() == width {
                match width {
                    8 => return copy::<T, 8>(source, rows, out),
                    16 => return copy::<T, 16>(source, rows, out),
                    32 => return copy::<T, 32>(source, rows, out),
                    64 => return copy::<T, 64>(source, rows, out),
                    _ => {}
                }
            }
            for (i, out) in rows.zip(out.chunks_mut(width)) {
                copy_short(source.line(i), &mut out[..source.columns()]);
            }
            return;
        }
        let (row_stride, column_stride) = (source.row_stride(), source.column_stride());
        if row_stride == 1 && !rows.is_empty() && source.columns() > 0 {
            let last = (source.columns() - 1) * column_stride + rows.end;
            assert!(last <= source.data().len() && rows.len() * width <= out.len());
            // SAFETY: the rows' elements in each column of the source, and as many of the copy,
            // see above.
            unsafe {
                let from = source.data().as_ptr().add(rows.start);
                let size = (source.columns(), rows.len());
                copy_transposed::<T, V>((from, column_stride), (out.as_mut_ptr(), width), size);
            }
            return;
        }
        for top in rows.clone().step_by(TILE_SIDE) {
            let bottom = rows.end.min(top + TILE_SIDE);
            let to = (top - rows.start) * width;
            for i in top..bottom {
                for j in 0..source.columns() {
                    out[to + (i - top) * width + j] =
                        source.data()[i * row_stride + j * column_stride];
                }
            }
        }
    }
}

/// Copies a few elements, without a call.
#[inline(always)]
fn copy_short<T: Copy>(from: &[T], to: &mut [T]) {
    let (fours, rest) = from.as_chunks::<FOUR>();
    let (to_fours, to_rest) = to.as_chunks_mut::<FOUR>();
    for (to, from) in to_fours.iter_mut().zip(fours) {
        *to = *from;
    }
    for (to, from) in to_rest.iter_mut().zip(rest).take(FOUR - 1) {
        *to = *from;
    }
}

/// Copies rows of `W` elements, without a call for each.
#[inline(always)]
fn copy<T: Float, const W: usize>(source: &Matrix<'_, T>, rows: Range<usize>, out: &mut [T]) {
    for (i, out) in rows.zip(out.as_chunks_mut::<W>().0) {
        *out = *source.line(i).first_chunk().expect("a whole row");
    }
}

impl<'a, T: Float> MatrixMut<'a, T> {
    /// The same, for tasks that write to different elements.
    pub(super) fn share(self) -> SharedMatrix<'a, T> {
        let (data, row_stride, column_stride) = self.into_parts();
        SharedMatrix { data: SharedMut::new(data), row_stride, column_stride }
    }
}

/// A dense matrix that tasks write blocks of.
pub(super) struct SharedMatrix<'a, T> {
    data: SharedMut<'a, T>,
    row_stride: usize,
    column_stride: usize,
}

impl<T: Float> SharedMatrix<'_, T> {
    /// Whether lines of the cache hold elements of several panels of a row: those follow one
    /// another, and do not begin with a line.
    pub fn shares_lines(&self) -> bool {
        let begins = self.data.as_ptr().addr().is_multiple_of(LINE)
            && (self.row_stride * size_of::<T>()).is_multiple_of(LINE);
        self.column_stride == 1 && !begins
    }

    /// Where `height` rows of `width` elements begin, and elements from one to the next, if
    /// those of a row follow one another. They may be written while nothing else refers to
    /// them.
    #[inline(always)]
    pub fn rows(
        &self,
        (top, left): (usize, usize),
        (height, width): (usize, usize),
    ) -> Option<(*mut T, usize)> {
        if self.column_stride != 1 || height == 0 {
            return None;
        }
        let start = top * self.row_stride + left;
        assert!(start + (height - 1) * self.row_stride + width <= self.data.len());
        Some((self.data.as_ptr().cast_mut().wrapping_add(start), self.row_stride))
    }

    /// Reads the first `width` elements of a block's rows, from row `top` and column
    /// `left` on.
    ///
    /// # Safety
    /// Nothing may write to these elements meanwhile.
    #[inline(always)]
    pub unsafe fn read<const W: usize>(
        &self,
        (top, left): (usize, usize),
        width: usize,
        block: &mut [[T; W]],
    ) {
        for (i, line) in block.iter_mut().enumerate() {
            let start = (top + i) * self.row_stride + left * self.column_stride;
            for (l, x) in line.iter_mut().enumerate().take(width) {
                let at = start + l * self.column_stride;
                // SAFETY: the caller guarantees that nothing writes to the elements.
                *x = unsafe { self.data.read(at..at + 1)[0] };
            }
        }
    }

    /// Writes the first `width` elements of a block's rows, from row `top` and column
    /// `left` on.
    ///
    /// # Safety
    /// No reference to these elements may be alive.
    #[inline(always)]
    pub unsafe fn write<V: Vector<T>, const W: usize>(
        &self,
        (top, left): (usize, usize),
        width: usize,
        block: &[[T; W]],
    ) {
        let start = top * self.row_stride + left * self.column_stride;
        if self.column_stride == 1 || width == 1 {
            for (i, line) in block.iter().enumerate() {
                let start = start + i * self.row_stride;
                // SAFETY: the caller guarantees that no reference to the elements is
                // alive.
                let out = unsafe { self.data.slice(start..start + width) };
                match out.first_chunk_mut::<W>() {
                    Some(out) => *out = *line,
                    None => copy_short(&line[..width], out),
                }
            }
            return;
        }
        if self.row_stride == 1 && width > 0 && !block.is_empty() {
            let (step, last) = (self.column_stride, start + (width - 1) * self.column_stride);
            assert!(width <= W && last + block.len() <= self.data.len());
            // SAFETY: the elements of the block's rows, and of the matrix's columns, see above;
            // the caller guarantees that no reference to them is alive.
            unsafe {
                let to = self.data.as_mut_ptr().add(start);
                let from = block.as_ptr().cast::<T>();
                copy_transposed::<T, V>((from, W), (to, step), (block.len(), width));
            }
            return;
        }
        for (i, line) in block.iter().enumerate() {
            for (l, x) in line.iter().enumerate().take(width) {
                let at = start + i * self.row_stride + l * self.column_stride;
                // SAFETY: the caller guarantees that no reference to the elements is
                // alive.
                let out = unsafe { self.data.slice(at..at + 1) };
                out[0] = *x;
            }
        }
    }
}
