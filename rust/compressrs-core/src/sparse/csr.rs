//! The matrix: three borrowed slices, checked.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use super::spmm::ROW_BLOCK;
use super::values::{Values, some};
use crate::numeric::element::{Float, Number};
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, Kernel};
use crate::runtime::{memory, parallel};

/// Non-zeros worth a task of their own in a check or a conversion.
const GRAIN_ENTRIES: usize = 128 * 1024;

/// An integer that stores column indices and row offsets.
pub trait Index: Number + Send + Sync + Ord + fmt::Display + Default + 'static {
    /// As an offset; a negative value becomes one that no slice has.
    fn get(self) -> usize;
    /// From an offset; the caller knows that it fits.
    fn new(i: usize) -> Self;
    /// The largest value, if an offset can hold it.
    const MAX: usize;
}

macro_rules! index {
    ($t:ty) => {
        impl Index for $t {
            #[inline(always)]
            fn get(self) -> usize {
                self as usize
            }
            #[inline(always)]
            fn new(i: usize) -> Self {
                i as $t
            }
            const MAX: usize = <$t>::MAX as usize;
        }
    };
}
index!(i16);
index!(i32);
index!(i64);

/// Where the entries of a matrix in compressed sparse row form are.
///
/// Those of row `r` are `offsets[r]..offsets[r + 1]`, in the columns that
/// `indices` has there. Indices may be unsorted, and may repeat: repeated entries
/// count as their sum. A matrix of blocks has block rows and block columns.
#[derive(Clone, Copy, Debug)]
pub struct Pattern<'a, I> {
    indices: Indices<'a, I>,
    offsets: &'a [usize],
    columns: usize,
}

/// Column indices in memory that others may write to meanwhile, as NumPy's arrays allow.
///
/// Each access reads the memory once and gives a number, so that what has been compared
/// with a bound is what is used. Nothing else about the indices may be relied on.
#[derive(Clone, Copy, Debug)]
pub struct Indices<'a, I> {
    start: *const I,
    len: usize,
    borrowed: PhantomData<&'a [I]>,
}

// SAFETY: it gives access to what a shared slice does.
unsafe impl<I: Sync> Send for Indices<'_, I> {}
// SAFETY: as above.
unsafe impl<I: Sync> Sync for Indices<'_, I> {}

impl<'a, I> From<&'a [I]> for Indices<'a, I> {
    fn from(slice: &'a [I]) -> Self {
        Indices { start: slice.as_ptr(), len: slice.len(), borrowed: PhantomData }
    }
}

impl<'a, I, const N: usize> From<&'a [I; N]> for Indices<'a, I> {
    fn from(array: &'a [I; N]) -> Self {
        Indices::from(&array[..])
    }
}

impl<'a, I> From<&'a Vec<I>> for Indices<'a, I> {
    fn from(vec: &'a Vec<I>) -> Self {
        Indices::from(&vec[..])
    }
}

impl<I: Index> Indices<'_, I> {
    /// How many there are.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// An index, as the memory holds it now; a negative one becomes larger than any bound.
    ///
    /// # Panics
    /// If there are not so many.
    #[inline(always)]
    pub fn get(&self, i: usize) -> usize {
        assert!(i < self.len);
        // SAFETY: within the slice that it was made from, whose borrow lasts.
        let index = unsafe { &*self.start.add(i) };
        read_once(index)
    }

    /// Some of them.
    ///
    /// # Panics
    /// If there are not so many.
    #[inline(always)]
    pub(super) fn range(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: within the slice, or at its end.
        let start = unsafe { self.start.add(range.start) };
        Indices { start, len: range.len(), ..*self }
    }

    /// `N` after `N` of them; what is left over is not among them.
    #[inline(always)]
    pub(super) fn chunks<const N: usize>(self) -> impl ExactSizeIterator<Item = Self> {
        (0..self.len / N).map(move |i| {
            // SAFETY: within the slice, since chunk `i` is whole.
            let start = unsafe { self.start.add(i * N) };
            Indices { start, len: N, ..self }
        })
    }

    /// All of them, one after another.
    #[inline(always)]
    pub(super) fn iter(self) -> impl ExactSizeIterator<Item = usize> {
        (0..self.len).map(move |i| self.get(i))
    }

    /// Has the processor fetch those from `i` on.
    #[inline(always)]
    pub(super) fn prefetch(&self, i: usize) {
        simd::prefetch(self.start.wrapping_add(i));
    }
}

/// Reads an index once: the compiler cannot replace the number by a second look at the
/// memory.
///
/// A volatile read would say as much, but to the optimizer it is an access to any memory,
/// so that what kernels have in registers would be read again after each index.
#[inline(always)]
fn read_once<I: Index>(index: &I) -> usize {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    {
        let mut number = index.get();
        // SAFETY: no instruction; the number comes out as it went in, from where nobody
        // but the compiler of this block sees.
        unsafe {
            std::arch::asm!(
                "/* {0} */",
                inout(reg) number,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        number
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        // SAFETY: a reference can be read.
        unsafe { std::ptr::from_ref(index).read_volatile() }.get()
    }
}

/// Where the rows of a matrix begin, and the last ends: from 0 on, never less than the one
/// before.
#[derive(Clone, Debug, PartialEq)]
pub struct Offsets(Vec<usize>);

impl Offsets {
    /// The offsets of `entries` entries that an `indptr` array gives.
    ///
    /// # Errors
    /// It does not start at 0, decreases, or does not end at `entries`.
    pub fn new<I: Index>(indptr: &[I], entries: usize) -> Result<Self, CsrError> {
        // One copy is checked and kept: the array may change meanwhile.
        let offsets = memory::collect(indptr.iter().map(|i| i.get()));
        let (Some(&first), Some(&last)) = (offsets.first(), offsets.last()) else {
            return Err(CsrError::NoOffsets);
        };
        // Negative numbers are as large as no number of entries.
        if first != 0 {
            return Err(CsrError::Start((first as isize).to_string()));
        }
        if let Some(row) = offsets.windows(2).position(|w| w[0] > w[1]) {
            return Err(CsrError::Decreasing(row));
        }
        if last != entries {
            return Err(CsrError::End { last: (last as isize).to_string(), entries });
        }
        Ok(Offsets(offsets))
    }

    /// Offsets from counts, which they replace: the first of `counts` is 0, and each other
    /// is the number of entries of a row.
    ///
    /// # Panics
    /// If there is none, or the first is not 0.
    pub(super) fn from_counts(mut counts: Vec<usize>) -> Self {
        assert_eq!(counts.first(), Some(&0));
        let mut total = 0;
        for offset in &mut counts {
            total += *offset;
            *offset = total;
        }
        Offsets(counts)
    }

    /// Those of `entries` entries in rows of `length`, the last of which may be shorter.
    pub(super) fn even(entries: usize, length: usize) -> Self {
        let rows = entries.div_ceil(length);
        Offsets(memory::collect((0..rows + 1).map(|row| entries.min(row * length))))
    }

    /// One for each row, and the end of the last.
    pub fn as_slice(&self) -> &[usize] {
        &self.0
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.0.len() - 1
    }

    /// Number of entries.
    pub fn entries(&self) -> usize {
        self.0[self.rows()]
    }
}

/// A matrix in compressed sparse row form: a pattern and, for each entry, its value,
/// or a block of `ROWS` times `COLUMNS` values, rows one after another.
#[derive(Clone, Copy)]
pub struct Csr<'a, T, I, const ROWS: usize = 1, const COLUMNS: usize = 1> {
    pattern: Pattern<'a, I>,
    data: Data<'a, T>,
}

/// The values of a matrix, or of some of its entries.
#[derive(Clone, Copy)]
enum Data<'a, T> {
    Stored(&'a [T]),
    /// Stored in another type, from this value on.
    Widened(&'a dyn Values<T>, usize),
}

/// What is wrong with the slices of a matrix.
#[derive(Clone, Debug, PartialEq)]
pub enum CsrError {
    /// `indptr` is empty; it needs one more element than there are rows.
    NoOffsets,
    /// `indptr` does not start at 0.
    Start(String),
    /// `indptr` decreases after this row.
    Decreasing(usize),
    /// `indptr` ends at another number than there are entries.
    End {
        /// The last offset.
        last: String,
        /// Length of `indices`.
        entries: usize,
    },
    /// `data` and `indices` differ in length.
    Lengths {
        /// Length of `data`.
        data: usize,
        /// Length of `indices`.
        indices: usize,
    },
    /// An index is negative or not below the number of columns.
    Index {
        /// Where it stands in `indices`.
        position: usize,
        /// The index.
        index: String,
        /// The number of columns.
        columns: usize,
    },
}

impl fmt::Display for CsrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CsrError::NoOffsets => {
                write!(f, "indptr must have one element more than there are rows, got none")
            }
            CsrError::Start(first) => write!(f, "indptr must start at 0, got {first}"),
            CsrError::Decreasing(row) => {
                write!(f, "indptr must not decrease, but does after row {row}")
            }
            CsrError::End { last, entries } => {
                write!(f, "indptr must end at the number of indices, {entries}, got {last}")
            }
            CsrError::Lengths { data, indices } => {
                write!(f, "data and indices must have the same length, got {data} and {indices}")
            }
            CsrError::Index { position, index, columns } => write!(
                f,
                "indices must be at least 0 and below the number of columns, {columns}; \
                 indices[{position}] is {index}"
            ),
        }
    }
}

impl std::error::Error for CsrError {}

impl<'a, I: Index> Pattern<'a, I> {
    /// Checks every index.
    ///
    /// # Errors
    /// One is negative or not below the number of columns.
    ///
    /// # Panics
    /// If there are not as many indices as the offsets say.
    pub fn new(
        indices: impl Into<Indices<'a, I>>,
        offsets: &'a Offsets,
        columns: usize,
    ) -> Result<Self, CsrError> {
        let pattern = Pattern::checked(indices, offsets, columns);
        let indices = pattern.indices;
        // As unsigned numbers, negative indices are too large as well.
        let largest = parallel::reduce(
            indices.len(),
            GRAIN_ENTRIES,
            |part| simd::dispatch(Largest { indices: indices.range(part) }),
            usize::max,
        );
        if largest.is_some_and(|i| i >= columns) {
            // None may be left if another thread has mended them meanwhile.
            let mut all = indices.iter().enumerate();
            let (position, index) = all.find(|(_, i)| *i >= columns).unwrap_or((0, columns));
            return Err(CsrError::Index { position, index: (index as isize).to_string(), columns });
        }
        Ok(pattern)
    }

    /// A pattern whose indices have been checked before.
    ///
    /// Kernels check each index that they follow once more, and panic at a bad one:
    /// what has been changed since is an error, not a read outside memory.
    ///
    /// # Panics
    /// If there are not as many indices as the offsets say.
    pub fn checked(
        indices: impl Into<Indices<'a, I>>,
        offsets: &'a Offsets,
        columns: usize,
    ) -> Self {
        let indices = indices.into();
        assert_eq!(offsets.entries(), indices.len(), "offsets of another matrix");
        Pattern { indices, offsets: offsets.as_slice(), columns }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Number of stored entries.
    pub fn entries(&self) -> usize {
        self.indices.len()
    }

    /// Column indices of all entries.
    #[inline(always)]
    pub(super) fn indices(&self) -> Indices<'a, I> {
        self.indices
    }

    /// Where the entries of a row stand.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> Range<usize> {
        self.offsets[row]..self.offsets[row + 1]
    }

    /// Offsets of the rows.
    pub(super) fn offsets(&self) -> &'a [usize] {
        self.offsets
    }

    /// Calls `body` on ranges of rows, in parallel, balanced by their entries.
    ///
    /// `grain` is the number of entries worth a task; a row counts as one more.
    pub(super) fn for_rows(&self, grain: usize, body: impl Fn(Range<usize>) + Sync) {
        // Position on the path that goes through all rows and entries.
        let before = |row: usize| row + self.offsets[row];
        let row_at = |position: usize| {
            let (mut low, mut high) = (0, self.rows());
            while low < high {
                let middle = low + (high - low) / 2;
                if before(middle) < position { low = middle + 1 } else { high = middle }
            }
            low
        };
        parallel::for_each(0..before(self.rows()), grain, 1, |part| {
            let rows = row_at(part.start)..row_at(part.end);
            if !rows.is_empty() {
                body(rows);
            }
        });
    }
}

/// The largest of some indices, as unsigned numbers.
struct Largest<'a, I> {
    indices: Indices<'a, I>,
}

impl<I: Index> Kernel for Largest<'_, I> {
    type Output = usize;

    #[inline(always)]
    fn run(self) -> usize {
        // Without the sign bit none is negative; with it, one is.
        let (mut largest, mut least) = (I::default(), I::default());
        // SAFETY: what it was made from. As a slice, since what is found here decides only
        // whether there is an error, and vectors of indices are read at a time.
        let indices = unsafe { std::slice::from_raw_parts(self.indices.start, self.indices.len) };
        for &i in indices {
            largest = largest.max(i);
            least = least.min(i);
        }
        if least < I::default() { usize::MAX } else { largest.get() }
    }
}

impl<'a, T: Float, I: Index, const ROWS: usize, const COLUMNS: usize> Csr<'a, T, I, ROWS, COLUMNS> {
    /// Puts values to a pattern.
    ///
    /// # Errors
    /// There are not as many as entries, times the size of a block.
    pub fn new(pattern: Pattern<'a, I>, data: &'a [T]) -> Result<Self, CsrError> {
        Self::with_count(pattern, Data::Stored(data), data.len())
    }

    /// Puts values to a pattern, which products widen block by block if they are stored in
    /// another type.
    ///
    /// # Errors
    /// As for [`Csr::new`].
    pub fn of_values(pattern: Pattern<'a, I>, values: &'a dyn Values<T>) -> Result<Self, CsrError> {
        let data = values.stored().map_or(Data::Widened(values, 0), Data::Stored);
        Self::with_count(pattern, data, values.count())
    }

    fn with_count(
        pattern: Pattern<'a, I>,
        data: Data<'a, T>,
        count: usize,
    ) -> Result<Self, CsrError> {
        let need = pattern.entries() * ROWS * COLUMNS;
        if count != need {
            return Err(CsrError::Lengths { data: count, indices: need });
        }
        Ok(Csr { pattern, data })
    }

    /// Where the entries are.
    pub fn pattern(&self) -> Pattern<'a, I> {
        self.pattern
    }

    /// Number of rows of values.
    pub fn rows(&self) -> usize {
        self.pattern.rows() * ROWS
    }

    /// Number of columns of values.
    pub fn columns(&self) -> usize {
        self.pattern.columns * COLUMNS
    }

    /// Some of the entries, as a matrix with other rows.
    pub(super) fn piece<'b>(
        &self,
        entries: Range<usize>,
        offsets: &'b Offsets,
    ) -> Csr<'b, T, I, ROWS, COLUMNS>
    where
        'a: 'b,
    {
        let (size, start) = (ROWS * COLUMNS, entries.start);
        let data = match self.data {
            Data::Stored(data) => Data::Stored(&data[start * size..entries.end * size]),
            Data::Widened(values, first) => Data::Widened(values, first + start * size),
        };
        let indices = self.pattern.indices.range(entries);
        let pattern = Pattern::checked(indices, offsets, self.pattern.columns);
        Csr { pattern, data }
    }

    /// Values of some entries, in `buffer` unless they are stored as what products read.
    pub(super) fn values<'b>(&self, entries: Range<usize>, buffer: &'b mut Scratch<T>) -> &'b [T]
    where
        'a: 'b,
    {
        let size = ROWS * COLUMNS;
        let (start, end) = (entries.start * size, entries.end * size);
        match self.data {
            Data::Stored(data) => &data[start..end],
            Data::Widened(values, first) => some(values, first + start..first + end, buffer),
        }
    }

    /// Looks for the memory that threads widen values in, before anything is written.
    ///
    /// # Unwinds
    /// With [`memory::OutOfMemory`].
    pub(super) fn look_for_widened(&self) {
        if matches!(self.data, Data::Stored(_)) {
            return;
        }
        let offsets = self.pattern.offsets;
        let end = |row| offsets[self.pattern.rows().min(row + ROW_BLOCK)];
        let most = (0..self.pattern.rows()).map(|row| end(row) - offsets[row]).max();
        let threads = parallel::num_threads().unwrap_or(1);
        let entries = most.unwrap_or(0).saturating_mul(threads).min(self.pattern.entries());
        memory::look_for::<T>(memory::product(entries, ROWS * COLUMNS));
    }

    /// As many rows as are worth widening together, so that they stay in the cache.
    pub(super) fn rows_to_widen(&self, rows: usize) -> usize {
        if matches!(self.data, Data::Stored(_)) { rows.max(1) } else { ROW_BLOCK }
    }
}
