//! Which elements of a tensor share a scale.

use std::ops::Range;

/// Elements of a row that are worked on at a time, so that they stay in the first cache.
const CHUNK: usize = 4096;

/// A matrix in row-major order, in blocks of `height` rows by `width` columns that share a
/// scale; those at the right and the bottom may be smaller.
///
/// One block is a tensor, one of a row a channel, several in a row are groups.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layout {
    rows: usize,
    columns: usize,
    height: usize,
    width: usize,
    /// Blocks side by side.
    across: usize,
}

/// Some elements of a row, all of one block.
pub struct Chunk {
    /// Where they are in the matrix.
    pub range: Range<usize>,
    /// The number of their block.
    pub block: usize,
}

impl Layout {
    /// A matrix of `rows` by `columns` in blocks of `height` by `width`.
    ///
    /// # Panics
    /// If a side of the blocks is 0.
    pub fn new(rows: usize, columns: usize, height: usize, width: usize) -> Self {
        assert!(height > 0 && width > 0);
        let width = width.min(columns.max(1));
        Layout { rows, columns, height, width, across: columns.div_ceil(width) }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.rows * self.columns
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Rows and columns of a block.
    pub fn block(&self) -> (usize, usize) {
        (self.height, self.width)
    }

    /// Blocks below one another, and side by side.
    #[inline(always)]
    pub fn grid(&self) -> (usize, usize) {
        (self.rows.div_ceil(self.height), self.across)
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        let (down, across) = self.grid();
        down * across
    }

    /// The elements of a block, row by row.
    pub fn rows_of(&self, block: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (layout, across) = (*self, self.across.max(1));
        let (down, column) = (block / across * layout.height, block % across * layout.width);
        let end = layout.columns.min(column + layout.width);
        (down..layout.rows.min(down + layout.height))
            .map(move |row| row * layout.columns + column..row * layout.columns + end)
    }

    /// Whether each block is a single chunk.
    pub fn is_chunked(&self) -> bool {
        self.height == 1 && self.width <= CHUNK
    }

    fn pieces(&self) -> usize {
        self.width.div_ceil(CHUNK)
    }

    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        self.rows * self.across * self.pieces()
    }

    /// Elements of a full chunk, for grain sizes.
    pub fn chunk_len(&self) -> usize {
        self.width.min(CHUNK)
    }

    /// The chunk of this number, which may be empty.
    fn chunk(&self, number: usize) -> Chunk {
        let Cursor { row, column, piece, .. } = self.cursor(number..number);
        self.chunk_at(row, column, piece)
    }

    #[inline(always)]
    fn chunk_at(&self, row: usize, column: usize, piece: usize) -> Chunk {
        let end = self.columns.min((column + 1) * self.width);
        let start = end.min(column * self.width + piece * CHUNK);
        let end = end.min(start + CHUNK);
        let first = row * self.columns;
        let down = if self.height == 1 { row } else { row / self.height };
        Chunk { range: first + start..first + end, block: down * self.across + column }
    }

    fn cursor(&self, chunks: Range<usize>) -> Cursor {
        let pieces = self.pieces();
        let in_row = (self.across * pieces).max(1);
        let (row, rest) = (chunks.start / in_row, chunks.start % in_row);
        let (column, piece) = (rest / pieces, rest % pieces);
        Cursor { layout: *self, left: chunks.len(), pieces, row, column, piece }
    }

    /// The chunks of these numbers, some of which may be empty. Without a division for each:
    /// it would take as long as a chunk of 32 elements.
    #[inline(always)]
    pub fn iter(&self, chunks: Range<usize>) -> impl Iterator<Item = Chunk> + use<> {
        self.cursor(chunks)
    }

    /// The elements from the first of some chunks to the last, which touch.
    pub fn span(&self, chunks: Range<usize>) -> Range<usize> {
        if chunks.is_empty() {
            return 0..0;
        }
        self.chunk(chunks.start).range.start..self.chunk(chunks.end - 1).range.end
    }
}

/// Where an iteration over chunks is.
struct Cursor {
    layout: Layout,
    left: usize,
    pieces: usize,
    row: usize,
    column: usize,
    piece: usize,
}

impl Iterator for Cursor {
    type Item = Chunk;

    #[inline(always)]
    fn next(&mut self) -> Option<Chunk> {
        self.left = self.left.checked_sub(1)?;
        let chunk = self.layout.chunk_at(self.row, self.column, self.piece);
        self.piece += 1;
        if self.piece == self.pieces {
            (self.piece, self.column) = (0, self.column + 1);
            if self.column == self.layout.across {
                (self.column, self.row) = (0, self.row + 1);
            }
        }
        Some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_each_element_once_in_order() {
        for rows in [0, 1, 3, 7] {
            for columns in [0, 1, 5, 4096, 10_000] {
                for height in [1, 2, 7, 100] {
                    for width in [1, 3, 4096, 5000, 10_000, 20_000] {
                        let layout = Layout::new(rows, columns, height, width);
                        let mut next = 0;
                        for (number, chunk) in layout.iter(0..layout.chunks()).enumerate() {
                            let alone = layout.chunk(number);
                            assert_eq!((&alone.range, alone.block), (&chunk.range, chunk.block));
                            assert_eq!(chunk.range.start, next, "{layout:?}");
                            next = chunk.range.end;
                            if let Some(last) =
                                next.checked_sub(1).filter(|_| !chunk.range.is_empty())
                            {
                                let (i, j) = (last / columns, last % columns);
                                let across = columns.div_ceil(width.min(columns));
                                assert_eq!(chunk.block, i / height * across + j / width);
                            }
                        }
                        assert_eq!(next, layout.elements());
                        assert_eq!(layout.span(0..layout.chunks()), 0..next);
                    }
                }
            }
        }
    }
}
