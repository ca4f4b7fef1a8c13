//! Whole tensors to codes, rounded to the nearest, and back.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};

use super::chunks::{Step, for_each_chunk, grain};
use super::grid::{Coder, Grid, clamp};
use super::layout::Layout;
pub use super::range::NotFinite;
use super::range::{Finite, GRAIN_ELEMENTS, extremes, ranges, scale, scales};
use crate::numeric::element::{Element, Float};
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// Bytes that one prefetch asks for, and how far ahead: a block is read twice, and the first
/// time memory should not be waited for.
const PREFETCHED: usize = 128;
const AHEAD: usize = 4096;

/// Writes the code of each element; scales and zero points are given, one a block.
///
/// # Panics
/// If lengths do not fit the layout.
pub fn quantize<E: Element, G: Grid<E::Compute>>(
    x: &[E],
    layout: Layout,
    grid: G,
    scale: &[E::Compute],
    zero: &[u8],
    codes: &mut [u8],
) {
    for_each_chunk(x, layout, grid, scale, zero, codes, Encode);
}

#[derive(Clone, Copy)]
struct Encode;

impl<E: Element> Step<E::Compute, E, u8> for Encode {
    #[inline(always)]
    fn run(self, coder: impl Coder<E::Compute>, x: &[E], codes: &mut [u8]) {
        for (code, x) in codes.iter_mut().zip(x) {
            *code = coder.encode(x.load());
        }
    }
}

/// Writes scale and zero point of each block, from its smallest and largest value, and the
/// code of each element.
///
/// # Errors
/// If a value is NaN or infinite; what has been written is not specified then.
///
/// # Panics
/// If lengths do not fit the layout.
pub fn quantize_to_range<E: Element, G: Grid<E::Compute>>(
    x: &[E],
    layout: Layout,
    grid: G,
    scale: &mut [E::Compute],
    zero: &mut [u8],
    codes: &mut [u8],
) -> Result<(), NotFinite> {
    assert!(x.len() == layout.elements() && codes.len() == x.len());
    assert!(scale.len() == layout.blocks() && zero.len() == scale.len());
    if !layout.is_chunked() {
        let (mut low, mut high) = (memory::zeroed(scale.len()), memory::zeroed(scale.len()));
        ranges(x, layout, &mut low, &mut high)?;
        scales(grid, &low, &high, scale, zero);
        quantize(x, layout, grid, scale, zero, codes);
        return Ok(());
    }
    // Each chunk is a block: it is read once.
    let shared = (SharedMut::new(scale), SharedMut::new(zero), SharedMut::new(codes));
    let finite = AtomicBool::new(true);
    parallel::for_each(0..layout.chunks(), grain(layout), 1, |part| {
        let span = layout.span(part.clone());
        // SAFETY: all three are borrowed until the loop ends; parts do not overlap.
        let (scale, zero, codes) = unsafe {
            (
                shared.0.slice(part.clone()),
                shared.1.slice(part.clone()),
                shared.2.slice(span.clone()),
            )
        };
        let chunks = part.start..part.end;
        let (x, first) = (x, span.start);
        if !simd::dispatch(RangeAndEncode { x, layout, grid, scale, zero, chunks, first, codes }) {
            finite.store(false, Ordering::Relaxed);
        }
    });
    if finite.into_inner() { Ok(()) } else { Err(NotFinite) }
}

struct RangeAndEncode<'a, E: Element, G> {
    x: &'a [E],
    layout: Layout,
    grid: G,
    scale: &'a mut [E::Compute],
    zero: &'a mut [u8],
    chunks: std::ops::Range<usize>,
    /// Where the codes begin.
    first: usize,
    codes: &'a mut [u8],
}

impl<E: Element, G: Grid<E::Compute>> Kernel for RangeAndEncode<'_, E, G> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let parameters = self.scale.iter_mut().zip(self.zero);
        let mut finite = Finite::new();
        for (chunk, parameters) in self.layout.iter(self.chunks).zip(parameters) {
            let x = &self.x[chunk.range.clone()];
            for at in (0..x.len()).step_by(PREFETCHED / size_of::<E>()) {
                simd::prefetch(x.as_ptr().wrapping_add(at).wrapping_byte_add(AHEAD));
            }
            let (low, high) = extremes(x, self.grid.is_symmetric(), &mut finite);
            (*parameters.0, *parameters.1) = scale(self.grid, low, high);
            let coder = self.grid.coder(chunk.block, *parameters.0, *parameters.1);
            let codes = &mut self.codes[chunk.range.start - self.first..][..x.len()];
            if coder.has_reciprocal() {
                for (code, x) in codes.iter_mut().zip(x) {
                    *code = coder.encode_by_reciprocal(x.load());
                }
            } else {
                Encode.run(coder, x, codes);
            }
        }
        finite.holds()
    }
}

/// Writes what codes stand for.
///
/// # Panics
/// If lengths do not fit the layout.
pub fn dequantize<E: Element, G: Grid<E::Compute>>(
    codes: &[u8],
    layout: Layout,
    grid: G,
    scale: &[E::Compute],
    zero: &[u8],
    x: &mut [E],
) {
    for_each_chunk(codes, layout, grid, scale, zero, x, Decode);
}

#[derive(Clone, Copy)]
struct Decode;

impl<E: Element> Step<E::Compute, u8, E> for Decode {
    #[inline(always)]
    fn run(self, coder: impl Coder<E::Compute>, codes: &[u8], x: &mut [E]) {
        for (x, code) in x.iter_mut().zip(codes) {
            *x = E::store(decoded::<E>(coder, *code));
        }
    }
}

/// What a code stands for, in an array of `E`: the last code of a block with the largest finite
/// number may stand for a larger one, which becomes that number.
#[inline(always)]
pub(super) fn decoded<E: Element>(coder: impl Coder<E::Compute>, code: u8) -> E::Compute {
    let infinity = E::store(num_traits::Float::infinity());
    let largest = E::from_magnitude(infinity.magnitude() - 1).load();
    clamp(coder.decode(code), -largest, largest)
}

/// Whether all codes stand for numbers.
pub fn within<C: Float, G: Grid<C>>(grid: G, codes: &[u8]) -> bool {
    let all = AtomicBool::new(true);
    parallel::for_each(0..codes.len(), GRAIN_ELEMENTS, 1, |part| {
        if !simd::dispatch(Within { grid, codes: &codes[part], of: PhantomData }) {
            all.store(false, Ordering::Relaxed);
        }
    });
    all.into_inner()
}

struct Within<'a, C, G> {
    grid: G,
    codes: &'a [u8],
    of: PhantomData<C>,
}

impl<C: Float, G: Grid<C>> Kernel for Within<'_, C, G> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        // Not `all`, which stops early and is not vectorized.
        self.codes.iter().fold(true, |all, code| all & self.grid.is_code(*code))
    }
}

#[cfg(test)]
mod tests {
    use super::super::grid::{Affine, Fp8, Levels, NF4};
    use super::*;
    use crate::runtime::simd::{Level, dispatch_at};

    fn values(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 12.9898).sin() * (i % 37) as f32 * 0.03).collect()
    }

    #[test]
    fn one_pass_gives_what_two_give() {
        let x = values(70 * 130);
        for (height, width) in [(1, 1), (1, 32), (1, 130), (3, 50), (70, 130)] {
            let layout = Layout::new(70, 130, height, width);
            let grid = Affine::new(4, true, false);
            let mut once = (vec![0.0; layout.blocks()], vec![0; layout.blocks()], vec![0; x.len()]);
            let mut twice = once.clone();
            quantize_to_range(&x, layout, grid, &mut once.0, &mut once.1, &mut once.2).unwrap();
            let (mut low, mut high) = (twice.0.clone(), twice.0.clone());
            ranges(&x, layout, &mut low, &mut high).unwrap();
            scales(grid, &low, &high, &mut twice.0, &mut twice.1);
            quantize(&x, layout, grid, &twice.0, &twice.1, &mut twice.2);
            assert_eq!(once, twice);
            assert!(within::<f32, _>(grid, &once.2));
            let mut back = vec![0.0; x.len()];
            dequantize(&once.2, layout, grid, &once.0, &once.1, &mut back);
            for (i, (x, back)) in x.iter().zip(back).enumerate() {
                let block = i / 130 / height * layout.grid().1 + i % 130 / width;
                assert!((x - back).abs() <= once.0[block] * 1.01, "{x} {back}");
            }
        }
    }

    #[test]
    fn all_levels_give_the_same_codes() {
        let x = values(1000);
        let layout = Layout::new(4, 250, 1, 64);
        fn codes(
            level: Level,
            x: &[f32],
            layout: Layout,
            grid: impl Grid<f32>,
        ) -> (Vec<u32>, Vec<u8>) {
            let n = layout.blocks();
            let (mut scale, mut zero, mut codes) = (vec![0.0; n], vec![0; n], vec![0; x.len()]);
            let chunks = 0..layout.chunks();
            let (scale_out, zero_out, codes_out) = (&mut scale[..], &mut zero[..], &mut codes[..]);
            assert!(dispatch_at(
                level,
                RangeAndEncode {
                    x,
                    layout,
                    grid,
                    scale: scale_out,
                    zero: zero_out,
                    chunks,
                    first: 0,
                    codes: codes_out
                }
            ));
            (scale.iter().map(|s| s.to_bits()).collect(), codes)
        }
        for level in Level::supported() {
            let base = Level::Portable;
            let affine = Affine::new(4, true, false);
            assert_eq!(codes(level, &x, layout, affine), codes(base, &x, layout, affine));
            assert_eq!(
                codes(level, &x, layout, Levels::new(&NF4)),
                codes(base, &x, layout, Levels::new(&NF4))
            );
            let fp8 = Fp8::<3, 0x7E>;
            assert_eq!(codes(level, &x, layout, fp8), codes(base, &x, layout, fp8));
        }
    }

    #[test]
    fn what_is_not_finite_is_found() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 63, 64, 99] {
                let mut x = values(100);
                x[at] = bad;
                for layout in [Layout::new(1, 100, 1, 100), Layout::new(2, 50, 2, 50)] {
                    let result = quantize_to_range(
                        &x,
                        layout,
                        Affine::new(8, true, true),
                        &mut [0.0],
                        &mut [0],
                        &mut [0; 100],
                    );
                    let blocks = layout.blocks();
                    assert!(blocks == 1 && result == Err(NotFinite));
                }
            }
        }
    }
}
