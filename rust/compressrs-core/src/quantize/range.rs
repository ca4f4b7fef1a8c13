//! The smallest and largest value of each block, and the scales they ask for.

use num_traits::{Float as _, Zero};

use super::grid::Grid;
use super::layout::Layout;
use crate::numeric::element::{Element, Float};
use crate::numeric::lanes::tree;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// Elements worth a task of their own.
pub(super) const GRAIN_ELEMENTS: usize = 128 * 1024;

/// Accumulators: two vectors of 512 bits. More take longer to combine than they save in groups.
const LANES: usize = 32;

/// A value is NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NotFinite;

/// Whether all values so far were finite.
pub(super) struct Finite<C> {
    /// Stay 0 as long as values are finite: 0 times others is NaN.
    poison: [C; LANES],
}

impl<C: Float> Finite<C> {
    #[inline(always)]
    pub fn new() -> Self {
        Finite { poison: [C::zero(); LANES] }
    }

    #[inline(always)]
    fn take(&mut self, l: usize, x: C) {
        self.poison[l] = x.mul_add(C::zero(), self.poison[l]);
    }

    #[inline(always)]
    pub fn holds(self) -> bool {
        tree(self.poison, |a, b| a + b) == C::zero()
    }
}

/// The smallest and the largest element, infinities for none; or, `by_magnitude`, the largest
/// magnitude, negative and positive. Unspecified of elements that are not finite.
#[inline(always)]
pub(super) fn extremes<E: Element>(
    x: &[E],
    by_magnitude: bool,
    finite: &mut Finite<E::Compute>,
) -> (E::Compute, E::Compute) {
    let (chunks, rest) = x.as_chunks::<LANES>();
    if by_magnitude {
        let mut high = [E::Compute::zero(); LANES];
        for chunk in chunks {
            for l in 0..LANES {
                let x = chunk[l].load();
                high[l] = larger(x.abs(), high[l]);
                finite.take(l, x);
            }
        }
        for (l, x) in rest.iter().enumerate() {
            high[l] = larger(x.load().abs(), high[l]);
            finite.take(l, x.load());
        }
        let high = tree(high, |a, b| larger(b, a));
        return (-high, high);
    }
    let mut low = [E::Compute::infinity(); LANES];
    let mut high = [-E::Compute::infinity(); LANES];
    for chunk in chunks {
        for l in 0..LANES {
            let x = chunk[l].load();
            low[l] = smaller(x, low[l]);
            high[l] = larger(x, high[l]);
            finite.take(l, x);
        }
    }
    for (l, x) in rest.iter().enumerate() {
        let x = x.load();
        low[l] = smaller(x, low[l]);
        high[l] = larger(x, high[l]);
        finite.take(l, x);
    }
    (tree(low, |a, b| smaller(b, a)), tree(high, |a, b| larger(b, a)))
}

#[inline(always)]
fn smaller<C: Float>(x: C, than: C) -> C {
    if x < than { x } else { than }
}

#[inline(always)]
fn larger<C: Float>(x: C, than: C) -> C {
    if x > than { x } else { than }
}

/// The smallest and the largest element; infinities for none; None if one is not finite.
#[inline(always)]
pub(super) fn range<E: Element>(x: &[E]) -> Option<(E::Compute, E::Compute)> {
    let mut finite = Finite::new();
    let range = extremes(x, false, &mut finite);
    finite.holds().then_some(range)
}

/// Writes the smallest and the largest value of each block: `(inf, -inf)` for none.
///
/// # Errors
/// If a value is NaN or infinite; what has been written is not specified then.
///
/// # Panics
/// If lengths do not fit the layout.
pub fn ranges<E: Element>(
    x: &[E],
    layout: Layout,
    low: &mut [E::Compute],
    high: &mut [E::Compute],
) -> Result<(), NotFinite> {
    assert!(x.len() == layout.elements());
    assert!(low.len() == layout.blocks() && high.len() == layout.blocks());
    let nothing = (E::Compute::infinity(), -E::Compute::infinity());
    let mut found = memory::with_capacity(layout.chunks());
    found.resize(layout.chunks(), Some(nothing));
    let shared = SharedMut::new(&mut found);
    let grain = GRAIN_ELEMENTS.div_ceil(layout.chunk_len());
    parallel::for_each(0..layout.chunks(), grain, 1, |part| {
        // SAFETY: `found` is borrowed until the loop ends; parts do not overlap.
        let found = unsafe { shared.slice(part.clone()) };
        simd::dispatch(Ranges { x, layout, first: part.start, found });
    });
    low.fill(nothing.0);
    high.fill(nothing.1);
    for (chunk, found) in layout.iter(0..layout.chunks()).zip(found) {
        let (least, most) = found.ok_or(NotFinite)?;
        let block = chunk.block;
        low[block] = low[block].min(least);
        high[block] = high[block].max(most);
    }
    Ok(())
}

struct Ranges<'a, E: Element> {
    x: &'a [E],
    layout: Layout,
    first: usize,
    found: &'a mut [Option<(E::Compute, E::Compute)>],
}

impl<E: Element> Kernel for Ranges<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let chunks = self.layout.iter(self.first..self.first + self.found.len());
        for (chunk, found) in chunks.zip(self.found) {
            *found = range(&self.x[chunk.range]);
        }
    }
}

/// The scale and zero point of a range, 0 included.
#[inline(always)]
pub(super) fn scale<C: Float, G: Grid<C>>(grid: G, low: C, high: C) -> (C, u8) {
    let zero = C::zero();
    grid.scale(if low < zero { low } else { zero }, if high > zero { high } else { zero })
}

/// Writes the scales and zero points for values from `low` to `high` and 0, finite.
///
/// # Panics
/// If lengths differ.
pub fn scales<C: Float, G: Grid<C>>(
    grid: G,
    low: &[C],
    high: &[C],
    scale_out: &mut [C],
    zero_out: &mut [u8],
) {
    assert!(low.len() == high.len());
    assert!(low.len() == scale_out.len() && low.len() == zero_out.len());
    for i in 0..low.len() {
        (scale_out[i], zero_out[i]) = scale(grid, low[i], high[i]);
    }
}
