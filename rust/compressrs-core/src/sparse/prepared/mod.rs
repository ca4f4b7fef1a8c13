//! The pattern of a CSR matrix, rearranged for its products.
//!
//! A [`Prepared`] pattern is made once and serves until the pattern changes. It holds, in
//! memory of its own, the column of each entry in two bytes, and the rows cut at tiles of
//! columns: a [`Segment`] is what a row has in a tile. The values are not copied: a product
//! reads them where they are, so they may be trained in place between products.
//!
//! Rows are grouped into bands, which are what threads share. The segments of a band and a
//! tile are sorted by length, so that branches on the length are predicted.

mod build;
mod panels;
mod product;
mod scatter;

pub use product::matmul_prepared;
pub use scatter::{matmul_transposed_prepared, scatters};

/// Rows of a band at most; a segment has 8 bits for its row.
const BAND: usize = 256;

/// Columns of a wide tile at most: those that two bytes can tell apart.
const WIDE: usize = 1 << 16;

/// Entries of the longest row that one task sums. A longer one is cut into several rows,
/// whose sums are added in their order.
const LONGEST: usize = 32 * 1024;

/// Entries of a segment, in the mean, below which panels are of 256 bytes, since that halves
/// the number of segments, rather than of 128, which keep what they read in cache.
const SHORT: usize = 12;

/// The pattern of a matrix, or of its transpose, in the form that products read.
#[derive(Debug)]
pub struct Prepared {
    rows: usize,
    columns: usize,
    /// Columns of the entries, counted from the first of their wide tile, in the order in
    /// which bands and rows have them.
    indices: Vec<u16>,
    /// Where the value of each entry is, unless values are in the same order.
    places: Option<Places>,
    bands: Vec<Band>,
    /// Columns of a narrow tile and of a wide one, which is a multiple.
    heights: (usize, usize),
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
    /// Segments in narrow tiles, for products with panels of columns.
    narrow: Segments,
    /// Segments in wide tiles, for products with one column; None where those are the same.
    wide: Option<Segments>,
}

/// Segments of a band: by tile, and then by length.
#[derive(Debug)]
struct Segments {
    all: Vec<Segment>,
    /// Tiles that have any, and where their segments end.
    tiles: Vec<(usize, usize)>,
}

/// The entries of a row in a tile: from which entry of the band on, how many, and the row
/// of the band, in 40, 16 (less 1) and 8 bits.
#[derive(Clone, Copy, Debug)]
struct Segment(u64);

impl Segment {
    fn new(start: usize, len: usize, row: usize) -> Self {
        assert!(start < 1 << 40 && (1..=WIDE).contains(&len) && row < BAND);
        Segment((start as u64) << 24 | (len as u64 - 1) << 8 | row as u64)
    }

    #[inline(always)]
    fn start(self) -> usize {
        (self.0 >> 24) as usize
    }

    #[inline(always)]
    fn len(self) -> usize {
        (self.0 >> 8 & 0xffff) as usize + 1
    }

    #[inline(always)]
    fn row(self) -> usize {
        (self.0 & 0xff) as usize
    }
}

impl Segments {
    /// The tiles that have segments, and these.
    #[inline(always)]
    fn by_tile(&self) -> impl Iterator<Item = (usize, &[Segment])> {
        let mut start = 0;
        self.tiles.iter().map(move |&(tile, end)| {
            let segments = &self.all[start..end];
            start = end;
            (tile, segments)
        })
    }

    fn bytes(&self) -> usize {
        size_of_val(&self.all[..]) + size_of_val(&self.tiles[..])
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
        self.indices.len()
    }

    /// Whether segments are so short that what each costs shows.
    fn has_short_segments(&self) -> bool {
        let segments: usize = self.bands.iter().map(|band| band.narrow.all.len()).sum();
        self.entries() < SHORT * segments
    }

    /// Bytes of memory that it holds.
    pub fn bytes(&self) -> usize {
        let places = match &self.places {
            None => 0,
            Some(Places::Short(places)) => size_of_val(&places[..]),
            Some(Places::Long(places)) => size_of_val(&places[..]),
        };
        let bands = self.bands.iter().map(|band| {
            size_of::<Band>() + band.narrow.bytes() + band.wide.as_ref().map_or(0, Segments::bytes)
        });
        let parts = self.parts.as_ref().map_or(0, |parts| size_of_val(&parts[..]));
        size_of_val(&self.indices[..]) + places + bands.sum::<usize>() + parts
    }
}
