//! Rounding during training: to a code and back, with the gradients of straight-through
//! estimation and of the scale.

use num_traits::Float as _;

use super::chunks::{Step, for_each_chunk, grain};
use super::encode::decoded;
use super::grid::{Coder, Grid};
use super::layout::Layout;
use crate::numeric::element::{Element, Float};
use crate::numeric::lanes::sum_tree;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// Accumulators of a chunk's sum.
const LANES: usize = 16;

/// Writes what the codes of elements stand for; NaN stays NaN.
///
/// # Panics
/// If lengths do not fit the layout.
pub fn fake_quantize<E: Element, G: Grid<E::Compute>>(
    x: &[E],
    layout: Layout,
    grid: G,
    scale: &[E::Compute],
    zero: &[u8],
    y: &mut [E],
) {
    for_each_chunk(x, layout, grid, scale, zero, y, RoundTrip);
}

#[derive(Clone, Copy)]
struct RoundTrip;

impl<E: Element> Step<E::Compute, E, E> for RoundTrip {
    #[inline(always)]
    fn run(self, coder: impl Coder<E::Compute>, x: &[E], y: &mut [E]) {
        for (y, x) in y.iter_mut().zip(x) {
            let x = x.load();
            let rounded = decoded::<E>(coder, coder.encode(x));
            *y = E::store(if x.is_nan() { x } else { rounded });
        }
    }
}

/// Writes `dx`, which is `dy` where `x` was rounded and 0 where it was clamped, and for each
/// block the gradient of the scale: with `v = x / scale`, the sum of `dy (y / scale - v)`
/// where `x` was rounded and of `dy y / scale` where it was clamped.
///
/// # Panics
/// If lengths do not fit the layout.
#[expect(clippy::too_many_arguments, reason = "inputs and outputs")]
pub fn fake_quantize_backward<E: Element, G: Grid<E::Compute>>(
    x: &[E],
    dy: &[E],
    layout: Layout,
    grid: G,
    scale: &[E::Compute],
    zero: &[u8],
    dx: &mut [E],
    dscale: &mut [E::Compute],
) {
    assert!(x.len() == layout.elements() && dy.len() == x.len() && dx.len() == x.len());
    assert!(scale.len() == layout.blocks() && zero.len() == scale.len());
    assert!(dscale.len() == scale.len());
    let mut sums = memory::zeroed::<f64>(layout.chunks());
    let shared = (SharedMut::new(dx), SharedMut::new(&mut sums));
    parallel::for_each(0..layout.chunks(), grain(layout), 1, |part| {
        let span = layout.span(part.clone());
        // SAFETY: both are borrowed until the loop ends; parts do not overlap.
        let (dx, sums) = unsafe { (shared.0.slice(span.clone()), shared.1.slice(part.clone())) };
        let first = span.start;
        simd::dispatch(Backward { x, dy, layout, grid, scale, zero, part, first, dx, sums });
    });
    let mut totals = memory::zeroed::<f64>(dscale.len());
    for (chunk, sum) in layout.iter(0..layout.chunks()).zip(sums) {
        totals[chunk.block] += sum;
    }
    for (dscale, total) in dscale.iter_mut().zip(totals) {
        *dscale = E::Compute::from_f64(total);
    }
}

struct Backward<'a, E: Element, G> {
    x: &'a [E],
    dy: &'a [E],
    layout: Layout,
    grid: G,
    scale: &'a [E::Compute],
    zero: &'a [u8],
    part: std::ops::Range<usize>,
    /// Where `dx` begins.
    first: usize,
    dx: &'a mut [E],
    sums: &'a mut [f64],
}

impl<E: Element, G: Grid<E::Compute>> Kernel for Backward<'_, E, G> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let none = E::Compute::from_f64(0.0);
        for (chunk, sum) in self.layout.iter(self.part).zip(self.sums) {
            let scale = self.scale[chunk.block];
            let coder = self.grid.coder(chunk.block, scale, self.zero[chunk.block]);
            let dx = &mut self.dx[chunk.range.start - self.first..][..chunk.range.len()];
            let (x, dy) = (&self.x[chunk.range.clone()], &self.dy[chunk.range]);
            let mut lanes = [0.0; LANES];
            for start in (0..x.len()).step_by(LANES) {
                for l in 0..LANES.min(x.len() - start) {
                    let (x, dy) = (x[start + l].load(), dy[start + l].load());
                    let y = decoded::<E>(coder, coder.encode(x));
                    let inside = coder.contains(x);
                    dx[start + l] = E::store(if inside { dy } else { none });
                    let change = (y - if inside { x } else { none }) / scale;
                    lanes[l] += dy.to_f64() * change.to_f64();
                }
            }
            *sum = sum_tree(lanes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::grid::{Affine, Levels, NF4};
    use super::*;

    #[test]
    fn gradients_pass_where_rounding_decides() {
        let x = [0.3f64, -0.6, 9.0, -9.0, f64::NAN, 0.0];
        let dy = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let layout = Layout::new(1, 6, 1, 5);
        let grid = Affine::new(2, true, true);
        let (mut y, mut dx, mut dscale) = ([0.0; 6], [0.0; 6], [0.0; 2]);
        fake_quantize(&x, layout, grid, &[0.5, 1.0], &[0, 0], &mut y);
        assert_eq!(y[..4], [0.5, -0.5, 0.5, -1.0]);
        assert!(y[4].is_nan());
        let x = [0.3f64, -0.6, 9.0, -9.0, 0.0, 0.0];
        fake_quantize_backward(&x, &dy, layout, grid, &[0.5, 1.0], &[0, 0], &mut dx, &mut dscale);
        assert_eq!(dx, [1.0, 2.0, 0.0, 0.0, 5.0, 6.0]);
        let truth = (1.0 - 0.6) + 2.0 * (-1.0 + 1.2) + 3.0 - 2.0 * 4.0;
        assert!((dscale[0] - truth).abs() < 1e-12 && dscale[1] == 0.0);
    }

    #[test]
    fn a_rounded_value_is_the_code_s() {
        let x: Vec<f32> = (0..300).map(|i| (i as f32).sin()).collect();
        let layout = Layout::new(3, 100, 2, 30);
        let (scale, zero) = (vec![0.7; layout.blocks()], vec![0; layout.blocks()]);
        let (mut y, mut z, mut codes) = (x.clone(), x.clone(), vec![0; 300]);
        fake_quantize(&x, layout, Levels::new(&NF4), &scale, &zero, &mut y);
        super::super::quantize(&x, layout, Levels::new(&NF4), &scale, &zero, &mut codes);
        super::super::dequantize(&codes, layout, Levels::new(&NF4), &scale, &zero, &mut z);
        assert_eq!(y, z);
    }
}
