//! The matrix: three borrowed slices, checked.

use std::fmt;
use std::ops::Range;

use crate::parallel;

/// Non-zeros worth a task of their own in a check or a conversion.
const GRAIN: usize = 128 * 1024;

/// An integer that stores column indices and row offsets.
pub trait Index: Copy + Send + Sync + Ord + fmt::Display + Default + 'static {
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
index!(i32);
index!(i64);

/// A matrix in compressed sparse row form.
///
/// The entries of row `r` are `indptr[r]..indptr[r + 1]` of `data` and
/// `indices`. Indices may be unsorted, and may repeat: repeated entries count as
/// their sum.
#[derive(Clone, Copy, Debug)]
pub struct Csr<'a, T, I> {
    data: &'a [T],
    indices: &'a [I],
    indptr: &'a [I],
    columns: usize,
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

impl<'a, T: Sync, I: Index> Csr<'a, T, I> {
    /// Checks the slices.
    ///
    /// # Errors
    /// They do not describe a matrix with this many columns.
    pub fn new(
        data: &'a [T],
        indices: &'a [I],
        indptr: &'a [I],
        columns: usize,
    ) -> Result<Self, CsrError> {
        let (Some(first), Some(last)) = (indptr.first(), indptr.last()) else {
            return Err(CsrError::NoOffsets);
        };
        if first.get() != 0 {
            return Err(CsrError::Start(first.to_string()));
        }
        if let Some(row) = indptr.windows(2).position(|w| w[0] > w[1]) {
            return Err(CsrError::Decreasing(row));
        }
        if last.get() != indices.len() {
            return Err(CsrError::End { last: last.to_string(), entries: indices.len() });
        }
        if data.len() != indices.len() {
            return Err(CsrError::Lengths { data: data.len(), indices: indices.len() });
        }
        // As unsigned numbers, negative indices are too large as well.
        let largest = parallel::reduce(
            indices.len(),
            GRAIN,
            |part| indices[part].iter().fold(0, |m: usize, i| m.max(i.get())),
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
        Ok(Csr { data, indices, indptr, columns })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.indptr.len() - 1
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Number of stored entries.
    pub fn nnz(&self) -> usize {
        self.data.len()
    }

    /// Where the entries of a row stand.
    #[inline(always)]
    pub(super) fn entries(&self, row: usize) -> Range<usize> {
        self.indptr[row].get()..self.indptr[row + 1].get()
    }

    /// Values and column indices of a row.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> (&'a [T], &'a [I]) {
        let entries = self.entries(row);
        (&self.data[entries.clone()], &self.indices[entries])
    }

    /// Column indices of a row.
    #[inline(always)]
    pub(super) fn row_indices(&self, row: usize) -> &'a [I] {
        &self.indices[self.entries(row)]
    }

    /// Calls `body` on ranges of rows, in parallel, balanced by their entries.
    ///
    /// `grain` is the number of entries worth a task; a row counts as one more.
    pub(super) fn for_rows(&self, grain: usize, body: impl Fn(Range<usize>) + Sync) {
        // Position on the path that goes through all rows and entries.
        let before = |row: usize| row + self.indptr[row].get();
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
