//! Activations in eight bits, row by row.

use super::isa::STEP;
use super::panels::Columns;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, Kernel};

/// Elements worth a task of their own.
const GRAIN_ELEMENTS: usize = 16 * 1024;

/// Rows of activations, as they come.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    /// Numbers, to be quantized row by row: the scale is `max |x| / 127`, which is not finite
    /// where the row is not.
    Numbers(&'a [f32]),
    /// Codes, and the scales of the rows.
    Codes(&'a [i8], &'a [f32]),
    /// Integers.
    Signed(&'a [i8]),
    /// Integers, of which 128 is to be subtracted.
    Unsigned(&'a [u8]),
}

impl Rows<'_> {
    /// Whether rows have scales; integers have none.
    pub(super) fn are_scaled(self) -> bool {
        matches!(self, Rows::Numbers(_) | Rows::Codes(..))
    }

    /// Number of elements.
    pub(super) fn len(self) -> usize {
        match self {
            Rows::Numbers(x) => x.len(),
            Rows::Codes(x, _) | Rows::Signed(x) => x.len(),
            Rows::Unsigned(x) => x.len(),
        }
    }
}

/// The scale of each row, `max |x| / 127`; not finite where the row is not.
///
/// # Panics
/// If `x` is not rows of `columns`.
pub fn row_scales(x: &[f32], columns: usize, scales: &mut [f32]) {
    assert_eq!(x.len(), scales.len() * columns);
    let rows = SharedMut::new(scales);
    parallel::for_each(0..rows.len(), GRAIN_ELEMENTS.div_ceil(columns.max(1)), 1, |part| {
        // SAFETY: parts do not overlap, and `scales` is borrowed until the loop ends.
        let scales = unsafe { rows.slice(part.clone()) };
        simd::dispatch(Scales { x: &x[part.start * columns..part.end * columns], columns, scales });
    });
}

struct Scales<'a> {
    x: &'a [f32],
    columns: usize,
    scales: &'a mut [f32],
}

impl Kernel for Scales<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (i, scale) in self.scales.iter_mut().enumerate() {
            *scale = scale_of(&self.x[i * self.columns..(i + 1) * self.columns]);
        }
    }
}

/// Rows of activations, laid out for products with panels.
pub(super) struct Activations {
    /// The codes, row by row: `i8`, or `i16` in the order that wide products take.
    pub codes: Scratch<i8>,
    /// Bytes of a row.
    pub stride: usize,
    /// For each row, the sums of the codes of each group.
    pub sums: Scratch<i32>,
    /// The scales of the rows, 0 of integers.
    pub scales: Scratch<f32>,
}

impl Activations {
    /// Lays out rows `first..first + count`.
    pub fn new(rows: Rows<'_>, first: usize, count: usize, columns: Columns, wide: bool) -> Self {
        let groups = columns.groups();
        let stride = columns.steps() * STEP * if wide { 2 } else { 1 };
        let mut this = Activations {
            codes: Scratch::new(count * stride),
            stride,
            sums: Scratch::new(count * groups),
            scales: Scratch::new(count),
        };
        let codes = SharedMut::new(&mut this.codes);
        let sums = SharedMut::new(&mut this.sums);
        let scales = SharedMut::new(&mut this.scales);
        parallel::for_each(0..count, GRAIN_ELEMENTS.div_ceil(columns.count.max(1)), 1, |part| {
            // SAFETY: parts do not overlap; all three are borrowed until the loop ends.
            let (codes, sums, scales) = unsafe {
                (
                    codes.slice(part.start * stride..part.end * stride),
                    sums.slice(part.start * groups..part.end * groups),
                    scales.slice(part.clone()),
                )
            };
            let first = first + part.start;
            simd::dispatch(Lay { rows, first, columns, wide, codes, sums, scales });
        });
        this
    }
}

struct Lay<'a> {
    rows: Rows<'a>,
    first: usize,
    columns: Columns,
    wide: bool,
    codes: &'a mut [i8],
    sums: &'a mut [i32],
    scales: &'a mut [f32],
}

impl Kernel for Lay<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Lay { rows, first, columns, wide, codes, sums, scales } = self;
        let (k, groups) = (columns.count, columns.groups());
        for (i, to) in scales.iter_mut().enumerate() {
            *to = match rows {
                Rows::Codes(_, scales) => scales[first + i],
                _ => 0.0,
            };
        }
        if k == 0 {
            return;
        }
        let narrow = columns.steps() * STEP;
        let mut line = Scratch::<i8>::new(if wide { narrow } else { 0 });
        let strides = codes.chunks_exact_mut(if wide { 2 * narrow } else { narrow });
        let strides = strides.zip(sums.chunks_exact_mut(groups)).zip(scales);
        for (i, ((codes, sums), scale)) in strides.enumerate() {
            let row = (first + i) * k..(first + i + 1) * k;
            let to: &mut [i8] = if wide { &mut line } else { &mut *codes };
            match rows {
                Rows::Numbers(x) => {
                    let x = &x[row];
                    *scale = scale_of(x);
                    lay(columns, x, to, sums, |x, to| quantize(x, *scale, to));
                }
                Rows::Codes(x, _) | Rows::Signed(x) => {
                    lay(columns, &x[row], to, sums, |x, to| to.copy_from_slice(x));
                }
                Rows::Unsigned(x) => lay(columns, &x[row], to, sums, |x, to| {
                    to.iter_mut().zip(x).for_each(|(to, x)| *to = (x ^ 128).cast_signed());
                }),
            }
            if wide {
                for (from, to) in line.as_chunks::<STEP>().0.iter().zip(codes.chunks_exact_mut(8)) {
                    let [a, b, c, d] =
                        from.map(|x| i16::from(x).to_le_bytes().map(u8::cast_signed));
                    to.copy_from_slice([a, c, b, d].as_flattened());
                }
            }
        }
    }
}

/// `max |x| / 127`
#[inline(always)]
fn scale_of(x: &[f32]) -> f32 {
    // Bits of magnitudes order as they do, NaN last.
    f32::from_bits(x.iter().fold(0, |m, x| m.max(x.to_bits() & 0x7fff_ffff))) / 127.0
}

/// Elements that are quantized at a time.
const CHUNK: usize = 64;

/// Writes `x / scale`, rounded to nearest, ties to even, and clamped to 127; 0 where the
/// scale is 0 or not finite.
#[inline(always)]
fn quantize(x: &[f32], scale: f32, to: &mut [i8]) {
    /// Scales whose reciprocals are as exact as others.
    const USUAL: std::ops::Range<f32> = 1e-30..1e30;
    /// The reciprocal, its rounding and that of the quotient are each off by 2^-24 at most.
    const SLACK: f32 = 1.0 / (1 << 22) as f32;
    if !(scale > 0.0 && scale.is_finite()) {
        to.fill(0);
    } else if USUAL.contains(&scale) {
        // The rounded quotient is between the products with these. Rounding to an integer is
        // monotonic: where both give the same one, so does the quotient.
        let reciprocal = 1.0 / scale;
        let (low, high) = (reciprocal * (1.0 - SLACK), reciprocal * (1.0 + SLACK));
        for (x, to) in x.chunks(CHUNK).zip(to.chunks_mut(CHUNK)) {
            let mut unclear = 0;
            for (x, to) in x.iter().zip(&mut *to) {
                let (low, high) =
                    (x.mul_add(low, MAGIC).to_bits(), x.mul_add(high, MAGIC).to_bits());
                unclear |= low ^ high;
                *to = low as i8;
            }
            if unclear != 0 {
                divide(x, scale, to);
            }
        }
    } else {
        divide(x, scale, to);
    }
}

#[inline(always)]
fn divide(x: &[f32], scale: f32, to: &mut [i8]) {
    for (x, to) in x.iter().zip(to) {
        let x = x / scale;
        // A subnormal scale is rounded so much that quotients may be larger.
        let x = if x > 127.0 { 127.0 } else { x };
        let x = if x < -127.0 { -127.0 } else { x };
        *to = round(x) as i8;
    }
}

/// 1.5 * 2^23: adding it leaves the nearest integer, ties to even, in the low bits of the
/// representation.
const MAGIC: f32 = 12_582_912.0;

/// The nearest integer, ties to even, of what is below 2^22.
#[inline(always)]
pub(super) fn round(x: f32) -> i32 {
    (x + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()).cast_signed()
}

/// Writes a row, each group from a step on, and its sums.
#[inline(always)]
fn lay<T: Copy>(
    columns: Columns,
    x: &[T],
    to: &mut [i8],
    sums: &mut [i32],
    codes: impl Fn(&[T], &mut [i8]),
) {
    let steps = columns.group_steps() * STEP;
    for (g, (to, sum)) in to.chunks_mut(steps).zip(sums).enumerate() {
        let x = &x[columns.of_group(g)];
        let (to, rest) = to.split_at_mut(x.len());
        codes(x, to);
        rest.fill(0);
        *sum = to.iter().fold(0i32, |sum, x| sum + i32::from(*x));
    }
}
