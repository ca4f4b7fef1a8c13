//! The values of a matrix's entries, in the types that they are stored in.

use std::ops::Range;

use super::dense::Cells;
use crate::numeric::element::{Element, Float};
use crate::quantize::grid::{Affine, Coder, Grid};
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, Kernel};

/// Values worth a task of their own.
const GRAIN: usize = 32 * 1024;

/// Values in the order of a matrix's entries, of which products read `T`.
pub trait Values<T>: Sync {
    /// How many there are.
    fn count(&self) -> usize;
    /// All of them, where they are stored as `T`.
    fn stored(&self) -> Option<&[T]>;
    /// Writes some of them.
    ///
    /// # Panics
    /// If there are not so many, or `out` is of another length.
    fn widen(&self, range: Range<usize>, out: &mut [T]);
}

impl<E: Element> Values<E::Compute> for &[E] {
    fn count(&self) -> usize {
        self.len()
    }

    fn stored(&self) -> Option<&[E::Compute]> {
        E::as_compute(self)
    }

    fn widen(&self, range: Range<usize>, out: &mut [E::Compute]) {
        simd::dispatch(Load { from: &self[range], to: out });
    }
}

/// Elements in the type that they are computed in.
pub(super) struct Load<'a, E: Element> {
    pub from: &'a [E],
    pub to: &'a mut [E::Compute],
}

impl<E: Element> Kernel for Load<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        assert_eq!(self.from.len(), self.to.len());
        for (to, from) in self.to.iter_mut().zip(self.from) {
            *to = from.load();
        }
    }
}

/// Codes of 8 bits, `value = scale code`, with a scale for each group of entries.
#[derive(Clone, Copy, Debug)]
pub struct Coded<'a> {
    codes: &'a [u8],
    scale: &'a [f32],
    groups: Groups<'a>,
}

/// Which entries share a scale.
#[derive(Clone, Copy, Debug)]
pub enum Groups<'a> {
    /// So many, one after another; the last group may be shorter.
    Every(usize),
    /// Those of a row, by the offsets of the rows.
    Rows(&'a [usize]),
}

impl Groups<'_> {
    /// How many groups so many entries have.
    fn count(&self, entries: usize) -> usize {
        match self {
            Groups::Every(size) => entries.div_ceil(*size),
            Groups::Rows(offsets) => offsets.len() - 1,
        }
    }

    fn of(&self, entry: usize) -> usize {
        match self {
            Groups::Every(size) => entry / size,
            Groups::Rows(offsets) => offsets.partition_point(|&offset| offset <= entry) - 1,
        }
    }

    #[inline(always)]
    fn end(&self, group: usize) -> usize {
        match self {
            Groups::Every(size) => (group + 1) * size,
            Groups::Rows(offsets) => offsets[group + 1],
        }
    }
}

impl<'a> Coded<'a> {
    /// Puts codes, each an `i8`, and scales together.
    ///
    /// # Panics
    /// If there is not one scale for each group, or offsets do not end at the number of codes.
    pub fn new(codes: &'a [u8], scale: &'a [f32], groups: Groups<'a>) -> Self {
        assert_eq!(scale.len(), groups.count(codes.len()), "a scale for each group");
        if let Groups::Rows(offsets) = groups {
            assert_eq!(offsets.last(), Some(&codes.len()), "offsets of another matrix");
        }
        Coded { codes, scale, groups }
    }
}

impl Values<f32> for Coded<'_> {
    fn count(&self) -> usize {
        self.codes.len()
    }

    fn stored(&self) -> Option<&[f32]> {
        None
    }

    fn widen(&self, range: Range<usize>, out: &mut [f32]) {
        assert!(range.end <= self.codes.len() && range.len() == out.len());
        simd::dispatch(Decode { values: self, range, out });
    }
}

struct Decode<'a> {
    values: &'a Coded<'a>,
    range: Range<usize>,
    out: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Decode { values: &Coded { codes, scale, groups }, range, out } = self;
        if range.is_empty() {
            return;
        }
        let grid = Affine::new(8, true, true);
        let mut group = groups.of(range.start);
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(groups.end(group));
            let coder = grid.coder(group, scale[group], grid.middle());
            let to = &mut out[start - range.start..end - range.start];
            for (to, code) in to.iter_mut().zip(&codes[start..end]) {
                *to = coder.decode(*code);
            }
            (start, group) = (end, group + 1);
        }
    }
}

/// All values, in the type that products read.
pub(super) fn widened<T: Float>(values: &dyn Values<T>) -> Cells<'_, T> {
    if let Some(stored) = values.stored() {
        return Cells::Borrowed(stored);
    }
    let mut buffer = Scratch::new(values.count());
    let shared = SharedMut::new(&mut buffer);
    parallel::for_each(0..values.count(), GRAIN, 1, |part| {
        // SAFETY: `buffer` is borrowed until the loop ends and parts do not overlap.
        values.widen(part.clone(), unsafe { shared.slice(part) });
    });
    Cells::Owned(buffer)
}

/// Some of the values, in `buffer` unless they are stored as what products read.
pub(super) fn some<'a, T: Float>(
    values: &'a dyn Values<T>,
    range: Range<usize>,
    buffer: &'a mut Scratch<T>,
) -> &'a [T] {
    if let Some(stored) = values.stored() {
        return &stored[range];
    }
    if buffer.len() < range.len() {
        *buffer = Scratch::new(range.len());
    }
    let buffer = &mut buffer[..range.len()];
    values.widen(range, buffer);
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::{Layout, dequantize};

    #[test]
    fn codes_stand_for_what_quantization_says() {
        let codes: Vec<u8> = (0..1000u32).map(|i| (i * 77) as u8).collect();
        let scale: Vec<f32> = (0..32).map(|i| 0.1 + i as f32).collect();
        let grid = Affine::new(8, true, true);
        let mut truth = vec![0.0; 1000];
        let layout = Layout::new(1, 1000, 1, 32);
        dequantize(&codes, layout, grid, &scale, &[grid.middle(); 32], &mut truth);
        let offsets: Vec<usize> = (0..33).map(|i| (i * 32).min(1000)).collect();
        for groups in [Groups::Every(32), Groups::Rows(&offsets)] {
            let values = Coded::new(&codes, &scale, groups);
            for range in [0..1000, 5..5, 31..33, 100..999] {
                let mut out = vec![f32::NAN; range.len()];
                values.widen(range.clone(), &mut out);
                assert_eq!(out, truth[range]);
            }
            assert_eq!(&widened(&values)[..], &truth);
        }
    }
}
