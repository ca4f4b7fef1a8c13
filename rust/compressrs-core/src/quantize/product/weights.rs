//! Weights: packed codes, and what they stand for.

use std::collections::TryReserveError;

use super::isa::LANES;
use super::panels::{Columns, Panels};
use crate::runtime::scratch::Scratch;

/// What codes stand for.
#[derive(Clone, Copy, Debug)]
pub enum Meaning<'a> {
    /// `scale (code - zero)`, with one zero.
    Zero(u8),
    /// The same, with a zero for each channel and group: channel by channel.
    Zeros(&'a [u8]),
    /// `scale table[code]`, of codes of four bits.
    Table([f32; LANES]),
}

/// What codes stand for, by panels.
pub(super) enum Levels {
    Zero(u8),
    /// For each panel and group, of each lane.
    Zeros(Vec<u8>),
    Table([f32; LANES]),
}

/// A matrix of weights, channels by columns, packed for products with rows.
pub struct Weights {
    pub(super) panels: Panels,
    pub(super) levels: Levels,
    /// For each panel and group, of each lane. None of integers.
    pub(super) scales: Option<Vec<f32>>,
}

impl Weights {
    /// Packs codes, of which `row` writes those of a channel. `scales` are of each channel
    /// and group, channel by channel.
    ///
    /// # Errors
    /// There is not the memory for them.
    ///
    /// # Panics
    /// If there are not as many scales and zeros as groups, or a table comes without scales.
    pub fn pack(
        channels: usize,
        columns: Columns,
        row: impl Fn(usize, &mut [u8]) + Sync,
        meaning: Meaning<'_>,
        scales: Option<&[f32]>,
    ) -> Result<Self, TryReserveError> {
        assert!(scales.is_some() || !matches!(meaning, Meaning::Table(_)));
        let groups = columns.groups();
        let levels = match meaning {
            Meaning::Zero(zero) => Levels::Zero(zero),
            Meaning::Zeros(zeros) => Levels::Zeros(by_panels(zeros, channels, groups)?),
            Meaning::Table(table) => Levels::Table(table),
        };
        let scales = scales.map(|scales| by_panels(scales, channels, groups)).transpose()?;
        Ok(Weights { panels: Panels::pack(channels, columns, row)?, levels, scales })
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.panels.channels()
    }

    /// Their columns.
    pub fn columns(&self) -> Columns {
        self.panels.columns()
    }

    /// Writes the codes of a channel.
    ///
    /// # Panics
    /// If there are not as many as columns.
    pub fn row(&self, channel: usize, to: &mut [u8]) {
        self.panels.row(channel, to);
    }

    /// The scale of a channel and a group; 1 if there are none.
    pub fn scale(&self, channel: usize, group: usize) -> f32 {
        let at = self.at(channel, group);
        self.scales.as_ref().map_or(1.0, |scales| scales[at])
    }

    /// What stands for 0 in a channel and a group; 0 where a table says it.
    pub fn zero(&self, channel: usize, group: usize) -> u8 {
        match &self.levels {
            Levels::Zero(zero) => *zero,
            Levels::Zeros(zeros) => zeros[self.at(channel, group)],
            Levels::Table(_) => 0,
        }
    }

    /// For each channel, `factor` times the sum of `code - zero`, wrapping; of weights without
    /// groups or with one zero.
    ///
    /// # Errors
    /// There is not the memory for them.
    pub fn sums_of_codes(&self, factor: i32) -> Result<Vec<i32>, TryReserveError> {
        let mut sums = Vec::new();
        sums.try_reserve_exact(self.channels())?;
        let mut codes = Scratch::new(self.columns().count);
        sums.extend((0..self.channels()).map(|channel| {
            self.row(channel, &mut codes);
            let zero = i32::from(self.zero(channel, 0));
            let codes = codes.iter().map(|code| i32::from(*code) - zero);
            codes.fold(0i32, i32::wrapping_add).wrapping_mul(factor)
        }));
        Ok(sums)
    }

    /// Bytes that codes, scales and zeros take.
    pub fn nbytes(&self) -> usize {
        let scales = self.scales.as_ref().map_or(0, |scales| size_of_val(&scales[..]));
        let zeros = if let Levels::Zeros(zeros) = &self.levels { zeros.len() } else { 0 };
        self.panels.nbytes() + scales + zeros
    }

    fn at(&self, channel: usize, group: usize) -> usize {
        (channel / LANES * self.columns().groups() + group) * LANES + channel % LANES
    }
}

/// What is of each channel and group, in the order of panels; 0 behind the last channel.
fn by_panels<T: Copy + Default>(
    x: &[T],
    channels: usize,
    groups: usize,
) -> Result<Vec<T>, TryReserveError> {
    assert_eq!(x.len(), channels * groups);
    let mut to = Vec::new();
    let len = channels.div_ceil(LANES) * groups * LANES;
    to.try_reserve_exact(len)?;
    to.resize(len, T::default());
    for channel in 0..channels {
        for group in 0..groups {
            let at = (channel / LANES * groups + group) * LANES + channel % LANES;
            to[at] = x[channel * groups + group];
        }
    }
    Ok(to)
}

/// The transpose of a matrix in row-major order, square by square.
///
/// # Errors
/// There is not the memory for it.
///
/// # Panics
/// If `x` is not of this size.
pub fn transposed<T: Copy>(
    x: &[T],
    rows: usize,
    columns: usize,
) -> Result<Vec<T>, TryReserveError> {
    /// Rows and columns that stay in the first cache.
    const SQUARE: usize = 64;
    assert_eq!(x.len(), rows * columns);
    let mut to = Vec::new();
    to.try_reserve_exact(x.len())?;
    to.extend_from_slice(x);
    for top in (0..rows).step_by(SQUARE) {
        for left in (0..columns).step_by(SQUARE) {
            for j in left..columns.min(left + SQUARE) {
                for i in top..rows.min(top + SQUARE) {
                    to[j * rows + i] = x[i * columns + j];
                }
            }
        }
    }
    Ok(to)
}
