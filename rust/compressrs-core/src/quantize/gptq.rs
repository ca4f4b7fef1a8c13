//! Rounding in which later weights compensate for the errors of earlier ones:
//! GPTQ (Frantar et al., arXiv 2210.17323), by the column loop of [`crate::linalg::obs`].

use super::encode::decoded;
use super::grid::{Coder, Grid};
use super::layout::Layout;
use super::range::{range, scale};
use crate::linalg::obs::{Decide, Pending, decide_columns};
use crate::numeric::element::Float;
use crate::prune::{HasNan, Target, reconstruct};
use crate::runtime::memory;
use crate::runtime::parallel::SharedMut;

/// Where the codes of a pass go.
pub struct Codes<'a, C> {
    /// One a block.
    pub scale: &'a mut [C],
    /// One a block.
    pub zero: &'a mut [u8],
    /// One a weight.
    pub codes: &'a mut [u8],
}

/// Replaces the weights of `w` by what their codes stand for.
///
/// `u` and `block` are as in [`decide_columns`]. With `find`, scales and zero points are written when
/// the first weight of a group is reached, from the group's range at that time; the blocks of
/// the layout are one row high then, and `block` is a multiple of their width. Otherwise they
/// are given. With `removal`, weights are removed in the same decide_columns, see
/// [`reconstruct`]; their codes are unspecified.
///
/// # Errors
/// If a weight or an error is NaN; `w` has been written to then.
///
/// # Panics
/// If lengths do not fit.
#[expect(clippy::too_many_arguments, reason = "inputs and outputs")]
pub fn gptq<C: Float, G: Grid<C>>(
    w: &mut [f64],
    layout: Layout,
    u: &[f64],
    block: usize,
    grid: G,
    find: bool,
    out: Codes<'_, C>,
    removal: Option<(Target, &mut [u8])>,
) -> Result<(), HasNan> {
    assert!(w.len() == layout.elements() && out.codes.len() == w.len());
    assert!(out.scale.len() == layout.blocks() && out.zero.len() == layout.blocks());
    let columns = layout.columns();
    let (height, width) = layout.block();
    assert!(!find || height == 1 && (block.is_multiple_of(width) || block >= columns));
    let mut method = Rounding {
        grid,
        layout,
        group: memory::collect((0..columns).map(|j| j / width)),
        find,
        scale: SharedMut::new(out.scale),
        zero: SharedMut::new(out.zero),
        codes: SharedMut::new(out.codes),
    };
    match removal {
        Some((target, mask)) => reconstruct(w, columns, u, target, block, mask, &mut method),
        None => {
            decide_columns(w, columns, u, block, &mut method)?;
            if w.iter().any(|x| x.is_nan()) { Err(HasNan) } else { Ok(()) }
        }
    }
}

/// A row's codes, and, if they are found, its scales and zero points, are written by the
/// thread that decides it; no other code writes to scales and zero points.
struct Rounding<'a, C, G> {
    grid: G,
    layout: Layout,
    /// The number in its row of the block of each column.
    group: Vec<usize>,
    find: bool,
    scale: SharedMut<'a, C>,
    zero: SharedMut<'a, u8>,
    codes: SharedMut<'a, u8>,
}

impl<C: Float, G: Grid<C>> Decide for Rounding<'_, C, G> {
    type Error = HasNan;

    fn begin(
        &mut self,
        _: &[f64],
        _: usize,
        _: &[f64],
        _: std::ops::Range<usize>,
    ) -> Result<(), HasNan> {
        Ok(())
    }

    #[inline(always)]
    fn decide(&self, i: usize, j: usize, pending: Pending<'_>) -> f64 {
        // Without a division for each weight.
        let (height, width) = self.layout.block();
        let down = if height == 1 { i } else { i / height };
        let block = down * self.layout.grid().1 + self.group[j];
        if self.find && j == self.group[j] * width {
            let group = &pending.w[..width.min(pending.w.len())];
            // What is not finite gives NaN, which is found at the end.
            let (low, high) = range(group).unwrap_or((f64::NAN, f64::NAN));
            let found = scale(self.grid, C::from_f64(low), C::from_f64(high));
            // SAFETY: see the type.
            unsafe {
                self.scale.slice(block..block + 1)[0] = found.0;
                self.zero.slice(block..block + 1)[0] = found.1;
            }
        }
        // SAFETY: see the type.
        let (scale, zero) =
            unsafe { (self.scale.read(block..block + 1)[0], self.zero.read(block..block + 1)[0]) };
        let coder = self.grid.coder(block, scale, zero);
        let code = coder.encode(C::from_f64(pending.w[0]));
        let at = i * self.layout.columns() + j;
        // SAFETY: see the type.
        unsafe { self.codes.slice(at..at + 1)[0] = code };
        if pending.w[0].is_nan() { f64::NAN } else { decoded::<C>(coder, code).to_f64() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Affine, quantize_to_range};
    use super::*;

    #[test]
    fn without_correlation_it_is_rounding_to_the_nearest() {
        let w: Vec<f64> = (0..60).map(|i| (f64::from(i) * 7.3).sin()).collect();
        let layout = Layout::new(3, 20, 1, 8);
        let identity: Vec<f64> = (0..400).map(|i| f64::from(u8::from(i % 21 == 0))).collect();
        let grid = Affine::new(3, true, false);
        let mut nearest = (vec![0.0; 9], vec![0; 9], vec![0; 60]);
        quantize_to_range(&w, layout, grid, &mut nearest.0, &mut nearest.1, &mut nearest.2)
            .unwrap();
        let mut swept = (vec![0.0; 9], vec![0; 9], vec![0; 60]);
        let (scale, zero, codes) = (&mut swept.0[..], &mut swept.1[..], &mut swept.2[..]);
        let out = Codes { scale, zero, codes };
        gptq(&mut w.clone(), layout, &identity, 16, grid, true, out, None).unwrap();
        assert_eq!(nearest, swept);
    }
}
