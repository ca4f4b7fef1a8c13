//! The matrix: three borrowed slices, checked.

use std::fmt;
use std::ops::Range;

use crate::numeric::element::{Element, Number};
use crate::runtime::parallel;
use crate::runtime::simd::{self, Kernel};

/// Non-zeros worth a task of their own in a check or a conversion.
const GRAIN: usize = 128 * 1024;

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
    indices: &'a [I],
    offsets: &'a [usize],
    columns: usize,
}

/// A matrix in compressed sparse row form: a pattern and, for each entry, its value,
/// or a block of `ROWS` times `COLUMNS` values, rows one after another.
#[derive(Clone, Copy, Debug)]
pub struct Csr<'a, T, I, const ROWS: usize = 1, const COLUMNS: usize = 1> {
    pattern: Pattern<'a, I>,
    data: &'a [T],
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

/// The offsets of `entries` entries that an `indptr` array gives.
///
/// # Errors
/// It does not start at 0, decreases, or does not end at `entries`.
pub fn offsets<I: Index>(indptr: &[I], entries: usize) -> Result<Vec<usize>, CsrError> {
    let (Some(first), Some(last)) = (indptr.first(), indptr.last()) else {
        return Err(CsrError::NoOffsets);
    };
    if first.get() != 0 {
        return Err(CsrError::Start(first.to_string()));
    }
    // One copy is checked and kept: the array may change meanwhile.
    let offsets: Vec<usize> = indptr.iter().map(|i| i.get()).collect();
    if let Some(row) = offsets.windows(2).position(|w| w[0] > w[1]) {
        return Err(CsrError::Decreasing(row));
    }
    if offsets.last() != Some(&entries) {
        return Err(CsrError::End { last: last.to_string(), entries });
    }
    Ok(offsets)
}

impl<'a, I: Index> Pattern<'a, I> {
    /// Checks every index.
    ///
    /// # Errors
    /// One is negative or not below the number of columns.
    ///
    /// # Panics
    /// If `offsets` is not what [`offsets`] gives for as many indices.
    pub fn new(indices: &'a [I], offsets: &'a [usize], columns: usize) -> Result<Self, CsrError> {
        // As unsigned numbers, negative indices are too large as well.
        let largest = parallel::reduce(
            indices.len(),
            GRAIN,
            |part| simd::dispatch(Largest { indices: &indices[part] }),
            usize::max,
        );
        if largest.is_some_and(|i| i >= columns) {
            let position = indices.iter().position(|i| i.get() >= columns).unwrap_or(0);
            return Err(CsrError::Index {
                position,
                index: indices[position].to_string(),
                columns,
            });
        }
        Ok(Pattern::checked(indices, offsets, columns))
    }

    /// A pattern whose indices have been checked before.
    ///
    /// Kernels check each index that they follow once more, and panic at a bad one:
    /// what has been changed since is an error, not a read outside memory.
    ///
    /// # Panics
    /// If `offsets` is not what [`offsets`] gives for as many indices.
    pub fn checked(indices: &'a [I], offsets: &'a [usize], columns: usize) -> Self {
        assert_eq!(offsets.last(), Some(&indices.len()), "offsets of another matrix");
        Pattern { indices, offsets, columns }
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
    pub(super) fn indices(&self) -> &'a [I] {
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
    indices: &'a [I],
}

impl<I: Index> Kernel for Largest<'_, I> {
    type Output = usize;

    #[inline(always)]
    fn run(self) -> usize {
        // Without the sign bit none is negative; with it, one is.
        let (mut largest, mut least) = (I::default(), I::default());
        for &i in self.indices {
            largest = largest.max(i);
            least = least.min(i);
        }
        if least < I::default() { usize::MAX } else { largest.get() }
    }
}

impl<'a, T: Element, I: Index, const ROWS: usize, const COLUMNS: usize>
    Csr<'a, T, I, ROWS, COLUMNS>
{
    /// Puts values to a pattern.
    ///
    /// # Errors
    /// There are not as many as entries, times the size of a block.
    pub fn new(pattern: Pattern<'a, I>, data: &'a [T]) -> Result<Self, CsrError> {
        if data.len() != pattern.entries() * ROWS * COLUMNS {
            let indices = pattern.entries() * ROWS * COLUMNS;
            return Err(CsrError::Lengths { data: data.len(), indices });
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
        offsets: &'b [usize],
    ) -> Csr<'b, T, I, ROWS, COLUMNS>
    where
        'a: 'b,
    {
        let size = ROWS * COLUMNS;
        let indices = &self.pattern.indices[entries.clone()];
        let pattern = Pattern::checked(indices, offsets, self.pattern.columns);
        Csr { pattern, data: &self.data[entries.start * size..entries.end * size] }
    }

    /// Values of some entries.
    #[inline(always)]
    pub(super) fn values(&self, entries: Range<usize>) -> &'a [T] {
        &self.data[entries.start * ROWS * COLUMNS..entries.end * ROWS * COLUMNS]
    }
}
