//! Rows of activations in eight bits, by a scale and a zero point that are given.

use super::grid::{Affine, Coder, Grid};
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// Elements worth a task of their own.
const GRAIN_ELEMENTS: usize = 16 * 1024;

/// Writes `clamp(round(x / scale) + zero)`, and the scale of each row: `scale`, or NaN where a
/// row is not finite.
///
/// # Panics
/// If lengths disagree.
pub fn fixed_codes(
    x: &[f32],
    columns: usize,
    (scale, zero): (f32, i8),
    codes: &mut [i8],
    scales: &mut [f32],
) {
    assert!(x.len() == codes.len() && x.len() == scales.len() * columns);
    let (codes, scales) = (SharedMut::new(codes), SharedMut::new(scales));
    parallel::for_each(0..scales.len(), GRAIN_ELEMENTS.div_ceil(columns.max(1)), 1, |part| {
        let elements = part.start * columns..part.end * columns;
        // SAFETY: parts do not overlap; both are borrowed until the loop ends.
        let (codes, scales) = unsafe { (codes.slice(elements.clone()), scales.slice(part)) };
        simd::dispatch(Fixed {
            x: &x[elements],
            columns,
            parameters: (scale, zero),
            codes,
            scales,
        });
    });
}

struct Fixed<'a> {
    x: &'a [f32],
    columns: usize,
    parameters: (f32, i8),
    codes: &'a mut [i8],
    scales: &'a mut [f32],
}

impl Kernel for Fixed<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (scale, zero) = self.parameters;
        let coder = Affine::new(8, true, true).coder(0, scale, zero.cast_unsigned());
        for (i, to) in self.scales.iter_mut().enumerate() {
            let row = i * self.columns..(i + 1) * self.columns;
            let mut finite = true;
            for (code, x) in self.codes[row.clone()].iter_mut().zip(&self.x[row]) {
                finite &= x.is_finite();
                *code = coder.encode(*x).cast_signed();
            }
            *to = if finite { scale } else { f32::NAN };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_rounded_to_even_and_clamped() {
        let x = [0.25, 0.75, -0.25, 1e9, -1e9, 63.0, f32::NAN, 0.0, 1.0];
        let (mut codes, mut scales) = ([7; 9], [7.0; 3]);
        fixed_codes(&x, 3, (0.5, -3), &mut codes, &mut scales);
        assert_eq!(codes[..6], [-3, -1, -3, 127, -128, 123]);
        assert_eq!(codes[7..], [-3, -1]);
        assert_eq!(scales[..2], [0.5; 2]);
        assert!(scales[2].is_nan());
        fixed_codes(&[], 0, (0.5, -3), &mut [], &mut scales);
        assert_eq!(scales, [0.5; 3]);
    }
}
