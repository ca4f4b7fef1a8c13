//! From a pattern to its prepared form.

use std::ops::Range;

use super::{BAND, Band, LONGEST, Places, Prepared, Segment, TALLEST, Tiling};
use crate::numeric::gathered::LANES;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::sparse::convert::transpose;
use crate::sparse::csr::{Index, Pattern};

/// Entries worth a task of their own.
const GRAIN: usize = 16 * 1024;

/// Columns of a tile: at least so many, since their rows of the widest panel then fill the
/// first level of cache, and at most, so that they stay in the second.
const TALL: Range<usize> = 320..2048;
const SHORT: Range<usize> = 112..512;

/// Entries of a band, about: what is fetched with a segment of the next tile, since it shares
/// a line or follows, is then still in the second level of cache.
const BAND_ENTRIES: usize = 64 * 1024;

/// Entries of a segment, in the mean, that are worth its overhead.
const ENOUGH: usize = 12;

impl Prepared {
    /// Prepares products with the matrix.
    ///
    /// # Panics
    /// If an index is out of range.
    pub fn new<I: Index>(pattern: Pattern<'_, I>, tiling: Tiling) -> Self {
        // What follows relies on a copy, which nobody writes to.
        let (offsets, columns) = (pattern.offsets(), pattern.columns());
        if columns <= <i32 as Index>::MAX {
            sorted::<i32, I>(pattern, offsets, tiling)
        } else {
            sorted::<i64, I>(pattern, offsets, tiling)
        }
    }

    /// Prepares products with the transpose of the matrix.
    ///
    /// # Panics
    /// If an index is out of range.
    pub fn transposed<I: Index>(pattern: Pattern<'_, I>, tiling: Tiling) -> Self {
        let (rows, columns) = (pattern.rows(), pattern.columns());
        if pattern.entries().max(rows) <= <i32 as Index>::MAX {
            let turned = transpose::<I, i32>(pattern);
            let (offsets, places) = (turned.offsets.as_slice(), Some(&turned.places[..]));
            build((columns, rows), offsets, &turned.indices, places, tiling)
        } else {
            let turned = transpose::<I, i64>(pattern);
            let (offsets, places) = (turned.offsets.as_slice(), Some(&turned.places[..]));
            build((columns, rows), offsets, &turned.indices, places, tiling)
        }
    }
}

/// Prepares a pattern of any order.
fn sorted<J: Index, I: Index>(
    pattern: Pattern<'_, I>,
    offsets: &[usize],
    tiling: Tiling,
) -> Prepared {
    let (rows, columns) = (pattern.rows(), pattern.columns());
    let mut indices = memory::zeroed::<J>(pattern.entries());
    let shared = SharedMut::new(&mut indices);
    parallel::for_each(0..pattern.entries(), GRAIN, 1, |part| {
        // SAFETY: `indices` is borrowed until the loop ends and parts do not overlap.
        let out = unsafe { shared.slice(part.clone()) };
        for (out, index) in out.iter_mut().zip(pattern.indices().range(part).iter()) {
            assert!(index < columns, "an index out of range");
            *out = J::new(index);
        }
    });
    if (0..rows).all(|row| indices[offsets[row]..offsets[row + 1]].is_sorted()) {
        return build::<J, i64>((rows, columns), offsets, &indices, None, tiling);
    }
    let mut places = memory::collect((0..indices.len()).map(|place| place as i64));
    for row in 0..rows {
        // Equal columns keep their order.
        places[offsets[row]..offsets[row + 1]]
            .sort_unstable_by_key(|&place| (indices[place as usize], place));
    }
    let sorted = memory::collect(places.iter().map(|&place| indices[place as usize]));
    build::<J, i64>((rows, columns), offsets, &sorted, Some(&places), tiling)
}

/// Prepares a pattern whose rows are sorted, with the place of each entry's value.
fn build<I: Index, P: Index>(
    (rows, columns): (usize, usize),
    offsets: &[usize],
    sorted: &[I],
    places: Option<&[P]>,
    tiling: Tiling,
) -> Prepared {
    let entries = sorted.len();
    let height = height((rows, columns), entries, tiling);
    let parts = parts(offsets);
    let cut = parts.as_ref().map(|(_, offsets)| &offsets[..]);
    let offsets = cut.unwrap_or(offsets);
    let rows_cut = offsets.len() - 1;
    // Long bands, in which many rows are of one length, but some where threads need them.
    let step = (rows_cut / 4).next_multiple_of(16).clamp(64, BAND);
    let of_entries = (BAND_ENTRIES.saturating_mul(rows_cut) / entries.max(1)).next_multiple_of(16);
    let step = step.min(of_entries.max(16));
    let mut indices = memory::zeroed::<u16>(entries + LANES);
    let mut moved = memory::zeroed::<P>(if places.is_some() { entries } else { 0 });
    let mut bands = memory::collect((0..rows_cut.div_ceil(step)).map(|_| None));
    {
        let (indices, bands) = (SharedMut::new(&mut indices), SharedMut::new(&mut bands));
        let moved = SharedMut::new(&mut moved);
        let grain = GRAIN.div_ceil((entries / bands.len().max(1)).max(1));
        parallel::for_each(0..bands.len(), grain, 1, |some| {
            for i in some {
                let rows = i * step..rows_cut.min((i + 1) * step);
                let of_band = offsets[rows.start]..offsets[rows.end];
                // SAFETY: both are borrowed until the loop ends, and bands do not overlap.
                let (indices, band) =
                    unsafe { (indices.slice(of_band.clone()), bands.slice(i..i + 1)) };
                let sorted = &sorted[of_band.clone()];
                // SAFETY: as above.
                let mut moved = places.map(|places| unsafe {
                    (moved.slice(of_band.clone()), &places[of_band.clone()])
                });
                let offsets = &offsets[rows.start..=rows.end];
                let (mut segments, tiles) = by_length(cut_rows(offsets, sorted, height));
                let mut next = 0;
                for segment in &mut segments {
                    let from = segment.start()..segment.start() + segment.len();
                    let to = next..next + segment.len();
                    for (out, column) in indices[to.clone()].iter_mut().zip(&sorted[from.clone()]) {
                        *out = (column.get() % height) as u16;
                    }
                    if let Some((moved, places)) = &mut moved {
                        moved[to.clone()].copy_from_slice(&places[from]);
                        *segment = segment.moved(next);
                    }
                    next = to.end;
                }
                let mut empty = Vec::new();
                for (row, range) in (0..=u8::MAX).zip(offsets.windows(2)) {
                    if range[0] == range[1] {
                        memory::reserve(&mut empty, 1);
                        empty.push(row);
                    }
                }
                band[0] = Some(Band {
                    rows: (rows.start, rows.end),
                    entries: (of_band.start, of_band.end),
                    segments,
                    tiles,
                    empty,
                });
            }
        });
    }
    let places = places.map(|_| match u32::try_from(entries) {
        Ok(_) => Places::Short(memory::collect(moved.iter().map(|place| place.get() as u32))),
        Err(_) => Places::Long(memory::collect(moved.iter().map(|place| place.get()))),
    });
    let bands = memory::collect(bands.into_iter().map(|band| band.expect("all were made")));
    let parts = parts.map(|(parts, _)| parts);
    Prepared { rows, columns, indices, places, bands, height, parts }
}

/// Columns of a tile.
fn height((rows, columns): (usize, usize), entries: usize, tiling: Tiling) -> usize {
    let bounds = match tiling {
        Tiling::Rows => return columns.clamp(1, TALLEST),
        Tiling::Tall => TALL,
        Tiling::Short => SHORT,
    };
    let apart = rows.saturating_mul(columns) / entries.max(1);
    let height = apart.saturating_mul(ENOUGH).clamp(bounds.start, bounds.end);
    // Of equal height, but not much less than that.
    columns.div_ceil((columns / height).max(1)).clamp(1, bounds.end)
}

/// Where rows are too long: the first part of each row, and the offsets of the parts.
fn parts(offsets: &[usize]) -> Option<(Vec<usize>, Vec<usize>)> {
    let count = |row: &[usize]| (row[1] - row[0]).div_ceil(LONGEST).max(1);
    if offsets.windows(2).all(|row| count(row) == 1) {
        return None;
    }
    let total = offsets.windows(2).map(count).sum::<usize>();
    let mut first = memory::with_capacity(offsets.len());
    let mut cut = memory::with_capacity(total + 1);
    for row in offsets.windows(2) {
        first.push(cut.len());
        cut.extend((0..count(row)).map(|part| row[0] + part * LONGEST));
    }
    first.push(cut.len());
    cut.push(*offsets.last().expect("the end of the last row"));
    Some((first, cut))
}

/// Cuts the rows of a band at tiles: the tile of each segment, and where it is in `sorted`.
fn cut_rows<I: Index>(offsets: &[usize], sorted: &[I], height: usize) -> Vec<(usize, Segment)> {
    let mut all = Vec::new();
    for (row, range) in offsets.windows(2).enumerate() {
        let (mut begin, end) = (range[0] - offsets[0], range[1] - offsets[0]);
        while begin < end {
            let tile = sorted[begin].get() / height;
            let bound = (tile + 1) * height;
            let rest = &sorted[begin..end];
            let len = rest.iter().position(|column| column.get() >= bound).unwrap_or(rest.len());
            let ends = (begin + offsets[0] == range[0], begin + len == end);
            memory::reserve(&mut all, 1);
            all.push((tile, Segment::new(begin, len, row, ends)));
            begin += len;
        }
    }
    all
}

/// Sorts segments by tile and length: all of them, and the tiles with the ends of theirs.
fn by_length(mut all: Vec<(usize, Segment)>) -> (Vec<Segment>, Vec<(usize, usize)>) {
    all.sort_unstable_by_key(|&(tile, segment)| (tile, segment.len(), segment.row()));
    let mut tiles: Vec<(usize, usize)> = Vec::new();
    for (i, &(tile, _)) in all.iter().enumerate() {
        match tiles.last_mut() {
            Some(last) if last.0 == tile => last.1 = i + 1,
            _ => {
                memory::reserve(&mut tiles, 1);
                tiles.push((tile, i + 1));
            }
        }
    }
    (memory::collect(all.into_iter().map(|(_, segment)| segment)), tiles)
}
