//! The pattern of a CSR matrix, rearranged for its products.
//!
//! A [`Prepared`] pattern is made once and serves until the pattern changes. It holds, in
//! memory of its own, the column of each entry in two bytes, and the rows cut at [tiles](Tiling)
//! of columns: a [`Segment`] is what a row has in a tile. The values are not copied: a product
//! reads them where they are, so they may be trained in place between products.
//!
//! Rows are grouped into bands, which are what threads share. The segments of a band and a
//! tile are sorted by length, so that branches on the length are predicted, and columns are in
//! the order of the segments, so that they are read one after another.

use crate::numeric::gathered::LANES;

mod build;
mod panels;
mod product;
mod sample;
mod scatter;

pub use product::matmul_prepared;
pub use sample::sddmm_prepared;
pub use scatter::{matmul_transposed_prepared, scatters};

/// Rows of a band at most; a segment has 8 bits for its row.
const BAND: usize = 256;

/// Columns of a tile at most: those that two bytes can tell apart.
const TALLEST: usize = 1 << 16;

/// Entries of the longest row that one task sums. A longer one is cut into several rows,
/// whose sums are added in their order.
const LONGEST: usize = 32 * 1024;

/// How many columns of a pattern make a tile, which is how many rows of the dense matrix are
/// read again and again before the next ones: those of a panel of its columns are to stay in the
/// first level of cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tiling {
    /// For panels of up to 32 bytes: all columns, since a row's overhead counts more than where
    /// so few bytes come from.
    Rows,
    /// For panels of 64 or 128 bytes.
    Tall,
    /// For panels of 256 bytes.
    Short,
}

impl Tiling {
    /// All of them.
    pub const ALL: [Tiling; 3] = [Tiling::Rows, Tiling::Tall, Tiling::Short];

    /// The best for products with so many columns.
    pub fn of<T>(columns: usize) -> Self {
        match product::padded::<T>(columns) * size_of::<T>() {
            0..=32 => Tiling::Rows,
            33..=128 => Tiling::Tall,
            _ => Tiling::Short,
        }
    }
}

/// The pattern of a matrix, or of its transpose, in the form that products read.
#[derive(Debug)]
pub struct Prepared {
    rows: usize,
    columns: usize,
    /// Columns of the entries, counted from the first of their tile, in the order of the bands'
    /// segments, and some more, which may be read with the last.
    indices: Vec<u16>,
    /// Where the value of each entry is, in the order of `indices`, unless the values of a row
    /// follow one another.
    places: Option<Places>,
    bands: Vec<Band>,
    /// Columns of a tile.
    height: usize,
    /// Where rows are longer than [`LONGEST`]: the first of the parts of each row, which
    /// are rows of the bands, and the end of the last.
    parts: Option<Vec<usize>>,
}

/// Positions in an array.
#[derive(Debug)]
enum Places {
    Short(Vec<u32>),
    Long(Vec<usize>),
}

/// Some consecutive rows.
#[derive(Debug)]
struct Band {
    /// The first row, and the end.
    rows: (usize, usize),
    /// The first entry, and the end.
    entries: (usize, usize),
    /// Segments, by tile and then by length.
    segments: Vec<Segment>,
    /// Tiles that have any, and where their segments end.
    tiles: Vec<(usize, usize)>,
    /// Rows without entries.
    empty: Vec<u8>,
}

/// The entries of a row in a tile: from which value of the band on, how many, whether they are
/// the row's first, its last, and the row of the band, in 38, 16 (less 1), 1, 1 and 8 bits.
#[derive(Clone, Copy, Debug)]
struct Segment(u64);

impl Segment {
    fn new(start: usize, len: usize, row: usize, (first, last): (bool, bool)) -> Self {
        let start = start as u64;
        assert!(start < 1 << 38 && (1..=TALLEST).contains(&len) && row < BAND);
        let flags = u64::from(first) << 1 | u64::from(last);
        Segment(start << 26 | (len as u64 - 1) << 10 | flags << 8 | row as u64)
    }

    /// The same of values that have moved.
    fn moved(self, start: usize) -> Self {
        Segment::new(start, self.len(), self.row(), (self.is_first(), self.is_last()))
    }

    #[inline(always)]
    fn start(self) -> usize {
        (self.0 >> 26) as usize
    }

    #[inline(always)]
    fn len(self) -> usize {
        (self.0 >> 10 & 0xffff) as usize + 1
    }

    #[inline(always)]
    fn is_first(self) -> bool {
        self.0 >> 9 & 1 == 1
    }

    #[inline(always)]
    fn is_last(self) -> bool {
        self.0 >> 8 & 1 == 1
    }

    #[inline(always)]
    fn row(self) -> usize {
        (self.0 & 0xff) as usize
    }
}

impl Band {
    /// The tiles that have segments, and these.
    #[inline(always)]
    fn by_tile(&self) -> impl Iterator<Item = (usize, &[Segment])> {
        let mut start = 0;
        self.tiles.iter().map(move |&(tile, end)| {
            let segments = &self.segments[start..end];
            start = end;
            (tile, segments)
        })
    }
}

impl Prepared {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Number of entries.
    pub fn entries(&self) -> usize {
        self.indices.len() - LANES
    }

    /// Bytes of memory that it holds.
    pub fn bytes(&self) -> usize {
        let places = match &self.places {
            None => 0,
            Some(Places::Short(places)) => size_of_val(&places[..]),
            Some(Places::Long(places)) => size_of_val(&places[..]),
        };
        let bands = self.bands.iter().map(|band| {
            size_of::<Band>()
                + size_of_val(&band.segments[..])
                + size_of_val(&band.tiles[..])
                + band.empty.len()
        });
        let parts = self.parts.as_ref().map_or(0, |parts| size_of_val(&parts[..]));
        size_of_val(&self.indices[..]) + places + bands.sum::<usize>() + parts
    }
}
