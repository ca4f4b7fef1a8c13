//! Codes, packed for products.
//!
//! A panel has the codes of [`LANES`] channels: for each step of [`STEP`] columns a line of
//! 64 bytes, four columns of one channel after those of the other. Codes of up to four bits
//! take half of that: a line holds two steps, the first in the lower halves of its bytes.
//! Up to [`BLOCK_PANELS`] panels lie interleaved, line by line, so that a product with one row
//! reads memory from the first to the last byte and still has sums enough to hide latency.
//!
//! Each group of columns begins with a line; what is behind the last column of a group, and
//! behind the last channel, is 0, as activations are there.

use std::collections::TryReserveError;
use std::ops::Range;

use super::isa::{LANES, STEP};
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;

/// Columns of a group at most: products of a byte and an activation of eight bits, so
/// many of them, fit an `i32`. Longer groups are cut, and parts scaled alike.
pub const MAX_GROUP: usize = 1 << 16;

const _: () = assert!(255 * 128 * MAX_GROUP <= i32::MAX as usize);

/// Bytes of a line of the cache, and of a step of a panel.
pub(super) const LINE: usize = LANES * STEP;

/// Panels that are interleaved.
pub(super) const BLOCK_PANELS: usize = 4;

/// Bytes worth packing by a task of their own.
const GRAIN_BYTES: usize = 64 * 1024;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u8; LINE]);

/// How columns are laid out in steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Columns.
    pub count: usize,
    /// Columns of each group but the last, which may have fewer.
    pub group: usize,
    /// Whether a line holds two steps.
    pub nibbles: bool,
    /// Kept, since products ask for them in loops, and they take divisions.
    groups: usize,
    steps: usize,
}

impl Columns {
    /// Groups of `group` columns.
    ///
    /// # Panics
    /// If a group has none, or too many.
    pub fn new(count: usize, group: usize, nibbles: bool) -> Self {
        assert!((1..=MAX_GROUP).contains(&group));
        let mut this = Columns { count, group, nibbles, groups: count.div_ceil(group), steps: 0 };
        if let Some(last) = this.groups.checked_sub(1) {
            this.steps = last * this.group_steps() + this.steps_of(this.of_group(last).len());
        }
        this
    }

    /// Number of groups.
    #[inline(always)]
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// The columns of a group.
    pub fn of_group(&self, g: usize) -> Range<usize> {
        g * self.group..self.count.min((g + 1) * self.group)
    }

    #[inline(always)]
    fn steps_of(&self, columns: usize) -> usize {
        columns.div_ceil(STEP).next_multiple_of(if self.nibbles { 2 } else { 1 })
    }

    /// Steps of each group but the last.
    #[inline(always)]
    pub(super) fn group_steps(&self) -> usize {
        self.steps_of(self.group)
    }

    /// Steps of a row.
    #[inline(always)]
    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    /// Steps in a line.
    #[inline(always)]
    pub(super) fn per_line(&self) -> usize {
        if self.nibbles { 2 } else { 1 }
    }

    /// Lines of a panel.
    #[inline(always)]
    fn lines(&self) -> usize {
        self.steps() / self.per_line()
    }
}

/// Codes of channels by columns.
pub struct Panels {
    channels: usize,
    columns: Columns,
    lines: Vec<Line>,
}

impl Panels {
    /// Packs the codes that `row` writes, those of a channel: bytes, below 16 if two share
    /// one.
    ///
    /// # Errors
    /// There is not the memory for them.
    pub fn pack(
        channels: usize,
        columns: Columns,
        row: impl Fn(usize, &mut [u8]) + Sync,
    ) -> Result<Self, TryReserveError> {
        let count = channels.div_ceil(LANES) * columns.lines();
        let mut lines: Vec<Line> = Vec::new();
        lines.try_reserve_exact(count)?;
        lines.resize(count, Line([0; LINE]));
        let mut this = Panels { channels, columns, lines };
        let blocks = 0..this.blocks();
        let spans: Vec<_> = blocks.clone().map(|block| this.span(block)).collect();
        let shared = SharedMut::new(&mut this.lines);
        let grain = GRAIN_BYTES.div_ceil((columns.lines() * BLOCK_PANELS * LINE).max(1));
        parallel::for_each(blocks, grain, 1, |part| {
            let mut codes = Scratch::new(columns.count);
            for block in part {
                // SAFETY: the spans of blocks do not overlap, and `lines` is borrowed until
                // the loop ends.
                let lines = unsafe { shared.slice(spans[block].clone()) };
                let width = BLOCK_PANELS.min(channels.div_ceil(LANES) - block * BLOCK_PANELS);
                for lane in 0..(width * LANES).min(channels - block * BLOCK_PANELS * LANES) {
                    row(block * BLOCK_PANELS * LANES + lane, &mut codes);
                    fill(columns, &codes, lane, width, lines);
                }
            }
        });
        Ok(this)
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Their columns.
    pub fn columns(&self) -> Columns {
        self.columns
    }

    /// Bytes that the codes take.
    pub fn nbytes(&self) -> usize {
        size_of_val(&self.lines[..])
    }

    /// Writes the codes of a channel.
    pub fn row(&self, channel: usize, to: &mut [u8]) {
        let (columns, lane) = (self.columns, channel % (LANES * BLOCK_PANELS));
        assert_eq!(to.len(), columns.count);
        let (bytes, width) = self.block(channel / (LANES * BLOCK_PANELS));
        let bytes = bytes.as_chunks::<LINE>().0.iter().skip(lane / LANES).step_by(width);
        let mut bytes = bytes.map(|line| &line[lane % LANES * STEP..][..STEP]);
        for g in 0..columns.groups() {
            let to = &mut to[columns.of_group(g)];
            for to in to.chunks_mut(STEP * columns.per_line()) {
                let Some(bytes) = bytes.next() else { return };
                for (j, to) in to.iter_mut().enumerate() {
                    *to = match columns.nibbles {
                        false => bytes[j],
                        true if j < STEP => bytes[j] & 15,
                        true => bytes[j - STEP] >> 4,
                    };
                }
            }
        }
    }

    /// Number of blocks.
    pub(super) fn blocks(&self) -> usize {
        self.channels.div_ceil(LANES * BLOCK_PANELS)
    }

    /// Number of panels in a block.
    #[inline(always)]
    pub(super) fn width(&self, block: usize) -> usize {
        BLOCK_PANELS.min(self.channels.div_ceil(LANES) - block * BLOCK_PANELS)
    }

    /// The lines of a block.
    #[inline(always)]
    fn span(&self, block: usize) -> Range<usize> {
        let start = block * BLOCK_PANELS * self.columns.lines();
        start..start + self.width(block) * self.columns.lines()
    }

    /// The bytes of a block, and the number of its panels: line by line, one of each panel.
    #[inline(always)]
    pub(super) fn block(&self, block: usize) -> (&[u8], usize) {
        let lines = &self.lines[self.span(block)];
        // SAFETY: a line is 64 bytes.
        let bytes =
            unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * LINE) };
        (bytes, self.width(block))
    }
}

/// Writes the codes of a channel to its lane in the lines of a block of `width` panels.
fn fill(columns: Columns, codes: &[u8], lane: usize, width: usize, lines: &mut [Line]) {
    // A matrix without columns has no lines.
    let lines = lines.get_mut(lane / LANES..).unwrap_or_default();
    let mut lines = lines.iter_mut().step_by(width);
    for g in 0..columns.groups() {
        for codes in codes[columns.of_group(g)].chunks(STEP * columns.per_line()) {
            let Some(line) = lines.next() else { return };
            let bytes = &mut line.0.as_chunks_mut::<STEP>().0[lane % LANES];
            let (lower, upper) = codes.split_at(STEP.min(codes.len()));
            if let Some(lower) = lower.first_chunk::<STEP>() {
                *bytes = *lower;
            } else {
                bytes[..lower.len()].copy_from_slice(lower);
            }
            for (byte, code) in bytes.iter_mut().zip(upper) {
                *byte |= code << 4;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_come_back() {
        for (channels, count, group) in [
            (0, 5, 4),
            (1, 1, 1),
            (16, 8, 8),
            (17, 9, 4),
            (33, 100, 32),
            (130, 13, 5),
            (3, 0, 7),
            (130, 0, 7),
        ] {
            for nibbles in [false, true] {
                let code = |i: usize, j: usize| {
                    ((i * 31 + j * 7 + 3) % if nibbles { 16 } else { 256 }) as u8
                };
                let columns = Columns::new(count, group, nibbles);
                let row = |i: usize, to: &mut [u8]| {
                    to.iter_mut().enumerate().for_each(|(j, to)| *to = code(i, j));
                };
                let panels = Panels::pack(channels, columns, row).unwrap();
                for i in 0..channels {
                    let (mut to, mut truth) = (vec![0; count], vec![0; count]);
                    panels.row(i, &mut to);
                    row(i, &mut truth);
                    assert_eq!(to, truth, "{i} {columns:?}");
                }
            }
        }
    }
}
