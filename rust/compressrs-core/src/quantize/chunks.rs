//! Loops over the chunks of a tensor, in parallel, at the instruction set in force.

use std::ops::Range;

use super::grid::{Coder, Grid};
use super::layout::Layout;
use super::range::GRAIN_ELEMENTS;
use crate::numeric::element::Float;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// Chunks worth a task of their own.
pub(super) fn grain(layout: Layout) -> usize {
    GRAIN_ELEMENTS.div_ceil(layout.chunk_len())
}

/// What is done with a chunk: a type of its own instead of a closure, so that it can be
/// `#[inline(always)]`, as all that a [`Kernel`] calls in a loop must be.
pub(super) trait Step<C, A, B>: Copy + Sync {
    /// Writes `out`, an element for each of `x`, which lie in the block of the coder.
    fn run(self, coder: impl Coder<C>, x: &[A], out: &mut [B]);
}

/// Writes `out`, which has an element for each of `x`; scales and zero points are given, one
/// a block.
///
/// # Panics
/// If lengths do not fit the layout.
pub(super) fn for_each_chunk<C: Float, G: Grid<C>, A: Sync, B: Send + Sync>(
    x: &[A],
    layout: Layout,
    grid: G,
    scale: &[C],
    zero: &[u8],
    out: &mut [B],
    step: impl Step<C, A, B>,
) {
    assert!(x.len() == layout.elements() && out.len() == x.len());
    assert!(scale.len() == layout.blocks() && zero.len() == scale.len());
    let shared = SharedMut::new(out);
    parallel::for_each(0..layout.chunks(), grain(layout), 1, |part| {
        let span = layout.span(part.clone());
        // SAFETY: `out` is borrowed until the loop ends; parts do not overlap.
        let out = unsafe { shared.slice(span.clone()) };
        simd::dispatch(Chunks { x, layout, grid, scale, zero, part, first: span.start, out, step });
    });
}

struct Chunks<'a, C, G, A, B, S> {
    x: &'a [A],
    layout: Layout,
    grid: G,
    scale: &'a [C],
    zero: &'a [u8],
    part: Range<usize>,
    /// Where `out` begins.
    first: usize,
    out: &'a mut [B],
    step: S,
}

impl<C: Float, G: Grid<C>, A, B, S: Step<C, A, B>> Kernel for Chunks<'_, C, G, A, B, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for chunk in self.layout.iter(self.part) {
            let coder =
                self.grid.coder(chunk.block, self.scale[chunk.block], self.zero[chunk.block]);
            let out = &mut self.out[chunk.range.start - self.first..][..chunk.range.len()];
            self.step.run(coder, &self.x[chunk.range], out);
        }
    }
}
