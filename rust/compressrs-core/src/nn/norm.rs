//! Normalization of rows and of channels.

use std::ops::Range;

use super::norm_scaled::{self, Scaled};
use crate::numeric::element::Float;
use crate::numeric::lanes::sum_tree;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// Elements worth a task of their own; see [`parallel::for_each`].
const GRAIN_ELEMENTS: usize = 16 * 1024;

/// Lanes of a sum.
const LANES: usize = 16;

/// Rows whose gradients of scale and shift are added up before partial sums are.
const PARTIAL_SUM_ROWS: usize = 64;

/// The sums over `0..n` of the terms that `f` gives.
#[inline(always)]
pub(super) fn sums<T: Float, const K: usize>(n: usize, f: impl Fn(usize) -> [T; K]) -> [T; K] {
    let mut lanes = [[T::zero(); LANES]; K];
    let whole = n / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for l in 0..LANES {
            let terms = f(start + l);
            for k in 0..K {
                lanes[k][l] += terms[k];
            }
        }
    }
    for l in 0..n - whole {
        let terms = f(whole + l);
        for k in 0..K {
            lanes[k][l] += terms[k];
        }
    }
    lanes.map(sum_tree)
}

/// `out = (x - mean) / sqrt(var + eps) weight + bias` for each row; `mean` and `scale`, the
/// inverse of the root, are kept for the gradient.
///
/// # Panics
/// If lengths disagree.
pub fn layer_norm<T: Float>(
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    eps: f64,
    out: &mut [T],
    (mean, scale): (&mut [T], &mut [T]),
) {
    let (rows, width) = (mean.len(), weight.len());
    assert!(x.len() == rows * width && out.len() == x.len() && scale.len() == rows);
    assert!(bias.is_none_or(|bias| bias.len() == width));
    let (out, mean, scale) = (SharedMut::new(out), SharedMut::new(mean), SharedMut::new(scale));
    parallel::for_each(0..rows, GRAIN_ELEMENTS.div_ceil(width.max(1)), 1, |part| {
        let range = part.start * width..part.end * width;
        // SAFETY: parts do not overlap.
        let (out, mean, scale) =
            unsafe { (out.slice(range.clone()), mean.slice(part.clone()), scale.slice(part)) };
        simd::dispatch(Rows { x: &x[range], weight, bias, eps, out, mean, scale });
    });
}

struct Rows<'a, T> {
    x: &'a [T],
    weight: &'a [T],
    bias: Option<&'a [T]>,
    eps: f64,
    out: &'a mut [T],
    mean: &'a mut [T],
    scale: &'a mut [T],
}

impl<T: Float> Kernel for Rows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let width = self.weight.len();
        let share = T::from_f64(1.0 / width as f64);
        let rows = self.x.chunks_exact(width.max(1)).zip(self.out.chunks_exact_mut(width.max(1)));
        let kept = self.mean.iter_mut().zip(self.scale.iter_mut());
        for ((x, out), (mean, scale)) in rows.zip(kept) {
            let [sum] = sums(width, |i| [x[i]]);
            let m = sum * share;
            let [squares] = sums(width, |i| {
                let d = x[i] - m;
                [d * d]
            });
            if !squares.is_finite()
                && let Some(row) = norm_scaled::moments(width, self.eps, |i| x[i])
            {
                (*mean, *scale) = (row.mean, row.inverse);
                for i in 0..width {
                    let bias = self.bias.map_or(T::zero(), |bias| bias[i]);
                    out[i] = row.normal(x[i]).mul_add(self.weight[i], bias);
                }
                continue;
            }
            let s = T::one() / (squares * share + T::from_f64(self.eps)).sqrt();
            (*mean, *scale) = (m, s);
            match self.bias {
                Some(bias) => {
                    for (((y, x), w), b) in out.iter_mut().zip(x).zip(self.weight).zip(bias) {
                        *y = ((*x - m) * s).mul_add(*w, *b);
                    }
                }
                None => {
                    for ((y, x), w) in out.iter_mut().zip(x).zip(self.weight) {
                        *y = (*x - m) * s * *w;
                    }
                }
            }
        }
    }
}

/// What [`layer_norm`] was given and kept.
#[derive(Clone, Copy, Debug)]
pub struct Normalized<'a, T> {
    /// The input.
    pub x: &'a [T],
    /// The mean of each row.
    pub mean: &'a [T],
    /// The inverse of the root of each row's variance.
    pub scale: &'a [T],
}

/// The gradients of [`layer_norm`]: of the input to `dx`, of weight and bias to `dw` and `db`.
///
/// # Panics
/// If lengths disagree.
pub fn layer_norm_backward<T: Float>(
    of: Normalized<'_, T>,
    weight: &[T],
    dy: &[T],
    dx: &mut [T],
    (dw, db): (&mut [T], &mut [T]),
) {
    let (rows, width) = (of.mean.len(), weight.len());
    assert!(of.x.len() == rows * width && dy.len() == of.x.len() && dx.len() == dy.len());
    assert!(of.scale.len() == rows && dw.len() == width && db.len() == width);
    let dx = SharedMut::new(dx);
    let block = |part: Range<usize>| {
        let range = part.start * width..part.end * width;
        // SAFETY: parts do not overlap.
        let dx = unsafe { dx.slice(range.clone()) };
        let x = &of.x[range.clone()];
        let of = Normalized { x, mean: &of.mean[part.clone()], scale: &of.scale[part] };
        simd::dispatch(RowsBackward { of, weight, dy: &dy[range], dx })
    };
    let add = |mut a: Vec<T>, b: Vec<T>| {
        for (a, b) in a.iter_mut().zip(b) {
            *a += b;
        }
        a
    };
    let both =
        parallel::reduce(rows, PARTIAL_SUM_ROWS, block, add).unwrap_or(vec![T::zero(); 2 * width]);
    dw.copy_from_slice(&both[..width]);
    db.copy_from_slice(&both[width..]);
}

struct RowsBackward<'a, T> {
    of: Normalized<'a, T>,
    weight: &'a [T],
    dy: &'a [T],
    dx: &'a mut [T],
}

impl<T: Float> Kernel for RowsBackward<'_, T> {
    /// The gradients of weight and bias.
    type Output = Vec<T>;

    #[inline(always)]
    fn run(self) -> Vec<T> {
        let RowsBackward { of, weight, dy, dx } = self;
        let width = weight.len();
        let share = T::from_f64(1.0 / width as f64);
        let mut both = vec![T::zero(); 2 * width];
        let (dw, db) = both.split_at_mut(width);
        for (row, (&m, &s)) in of.mean.iter().zip(of.scale).enumerate() {
            let range = row * width..(row + 1) * width;
            let (x, dy, dx) = (&of.x[range.clone()], &dy[range.clone()], &mut dx[range]);
            let [sum, along] = sums(width, |i| {
                let g = dy[i] * weight[i];
                [g, g * ((x[i] - m) * s)]
            });
            if !(sum.is_finite() && along.is_finite())
                && let Some(row) =
                    norm_scaled::backward(width, (m, s), |i| x[i], |i| dy[i], |i| weight[i])
            {
                for i in 0..width {
                    dx[i] = row.gradient(x[i], dy[i], weight[i]);
                    dw[i] = dy[i].mul_add(row.normalized(x[i]), dw[i]);
                    db[i] += dy[i];
                }
                continue;
            }
            let (sum, along) = (sum * share, along * share);
            for i in 0..width {
                let normal = (x[i] - m) * s;
                dx[i] = (dy[i] * weight[i] - sum - normal * along) * s;
                dw[i] = dy[i].mul_add(normal, dw[i]);
                db[i] += dy[i];
            }
        }
        both
    }
}

/// An array `[images, channels, places]`.
#[derive(Clone, Copy, Debug)]
pub struct Channels {
    /// Images, or rows.
    pub images: usize,
    /// Channels.
    pub channels: usize,
    /// Places of an image; 1 for rows of features.
    pub places: usize,
}

impl Channels {
    fn len(self) -> usize {
        self.images * self.channels * self.places
    }

    /// Where the places of a channel are in an image.
    #[inline(always)]
    fn range(self, image: usize, channel: usize) -> Range<usize> {
        let start = (image * self.channels + channel) * self.places;
        start..start + self.places
    }

    /// Where element `i` of a channel is, counted through all images.
    fn at(self, channel: usize, i: usize) -> usize {
        self.range(i / self.places, channel).start + i % self.places
    }

    /// Runs a body for ranges of channels.
    fn for_each(self, body: impl Fn(Range<usize>) + Sync) {
        let grain = GRAIN_ELEMENTS.div_ceil((self.images * self.places).max(1));
        // Of features, as many as share a line of the cache.
        parallel::for_each(0..self.channels, grain, if self.places == 1 { 16 } else { 1 }, body);
    }
}

/// The sum over images and places of each channel.
///
/// # Panics
/// If lengths disagree.
pub fn channel_sums<T: Float>(shape: Channels, x: &[T], out: &mut [T]) {
    assert!(x.len() == shape.len() && out.len() == shape.channels);
    let out = SharedMut::new(out);
    shape.for_each(|part| {
        // SAFETY: parts do not overlap.
        let out = unsafe { out.slice(part.clone()) };
        let zero = |_: usize| T::zero();
        let moments = Moments { shape, channels: part, shift: zero, f: |i, _| [x[i]] };
        for (out, [sum]) in out.iter_mut().zip(simd::dispatch(moments)) {
            *out = T::from_f64(sum);
        }
    });
}

/// Sums over images and places, for some channels, in double precision.
struct Moments<S, F> {
    shape: Channels,
    channels: Range<usize>,
    /// A number of the channel that its terms need.
    shift: S,
    /// The terms of an element.
    f: F,
}

impl<T: Float, S: Fn(usize) -> T, F: Fn(usize, T) -> [T; K], const K: usize> Kernel
    for Moments<S, F>
{
    type Output = Vec<[f64; K]>;

    #[inline(always)]
    fn run(self) -> Vec<[f64; K]> {
        let Moments { shape, channels, shift, f } = self;
        let shifts: Vec<T> = channels.clone().map(shift).collect();
        let mut totals = vec![[0.0f64; K]; channels.len()];
        for image in 0..shape.images {
            for (c, total) in totals.iter_mut().enumerate() {
                let start = shape.range(image, channels.start + c).start;
                let shift = shifts[c];
                let terms = if shape.places == 1 {
                    f(start, shift)
                } else {
                    sums(shape.places, |i| f(start + i, shift))
                };
                for k in 0..K {
                    total[k] += terms[k].to_f64();
                }
            }
        }
        totals
    }
}

/// Mean and variance (divided by the number, not one less) of each channel.
#[derive(Debug)]
pub struct ChannelMoments<'a, T> {
    /// The mean, rounded.
    pub mean: &'a mut [T],
    /// What the mean is more than `mean`, which matters where it is far above the deviation.
    pub rest: &'a mut [T],
    /// The variance; the largest finite number where it is larger.
    pub var: &'a mut [T],
    /// `1 / sqrt(var + eps)`, of variances that are too large, too.
    pub inverse: &'a mut [T],
}

/// The moments of each channel.
///
/// # Panics
/// If lengths disagree.
pub fn channel_moments<T: Float>(
    shape: Channels,
    x: &[T],
    eps: f64,
    ChannelMoments { mean, rest, var, inverse }: ChannelMoments<'_, T>,
) {
    assert!(x.len() == shape.len());
    assert!([&*mean, &*rest, &*var, &*inverse].iter().all(|out| out.len() == shape.channels));
    let n = shape.images * shape.places;
    let share = 1.0 / n as f64;
    let [mean, rest, var, inverse] = [mean, rest, var, inverse].map(SharedMut::new);
    shape.for_each(|part| {
        // SAFETY: parts do not overlap.
        let [mean, rest, var, inverse] =
            unsafe { [&mean, &rest, &var, &inverse].map(|out| out.slice(part.clone())) };
        let zero = |_: usize| T::zero();
        let moments = Moments { shape, channels: part.clone(), shift: zero, f: |i, _| [x[i]] };
        for (mean, [sum]) in mean.iter_mut().zip(simd::dispatch(moments)) {
            *mean = T::from_f64(sum * share);
        }
        let first = part.start;
        let squares = Moments {
            shape,
            channels: part,
            shift: |c: usize| mean[c - first],
            f: |i: usize, m: T| {
                let d = x[i] - m;
                [d, d * d]
            },
        };
        for (k, [sum, squares]) in simd::dispatch(squares).into_iter().enumerate() {
            let left = sum * share;
            rest[k] = T::from_f64(left);
            let variance = squares * share - left * left;
            // Not by `max`, which makes 0 of NaN.
            var[k] = T::from_f64(if variance < 0.0 { 0.0 } else { variance });
            inverse[k] = T::one() / (var[k] + T::from_f64(eps)).sqrt();
            if !var[k].is_finite()
                && let Some(channel) = norm_scaled::moments(n, eps, |i| x[shape.at(first + k, i)])
            {
                Scaled { mean: mean[k], var: var[k], inverse: inverse[k], .. } = channel;
                rest[k] = T::zero();
            }
        }
    });
}

/// What a channel is scaled by.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a, T> {
    /// What is subtracted first.
    pub mean: &'a [T],
    /// The factor.
    pub scale: &'a [T],
    /// What is added.
    pub bias: &'a [T],
}

/// `out = (x - mean) scale + bias` for each channel.
///
/// # Panics
/// If lengths disagree.
pub fn scale_channels<T: Float>(shape: Channels, x: &[T], by: Affine<'_, T>, out: &mut [T]) {
    assert!(x.len() == shape.len() && out.len() == x.len());
    for of_channel in [by.mean, by.scale, by.bias] {
        assert_eq!(of_channel.len(), shape.channels);
    }
    let images = shape.channels * shape.places;
    let out = SharedMut::new(out);
    parallel::for_each(0..shape.images, GRAIN_ELEMENTS.div_ceil(images.max(1)), 1, |part| {
        let range = part.start * images..part.end * images;
        // SAFETY: parts do not overlap.
        let out = unsafe { out.slice(range.clone()) };
        simd::dispatch(Scale { shape, x: &x[range], by, out });
    });
}

struct Scale<'a, T> {
    shape: Channels,
    x: &'a [T],
    by: Affine<'a, T>,
    out: &'a mut [T],
}

impl<T: Float> Kernel for Scale<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Scale { shape, x, by: Affine { mean, scale, bias }, out } = self;
        // Without the mean subtracted first, where the difference overflows.
        let shift = |c: usize| (-mean[c]).mul_add(scale[c], bias[c]);
        let images = (shape.channels * shape.places).max(1);
        for (x, out) in x.chunks_exact(images).zip(out.chunks_exact_mut(images)) {
            if shape.places == 1 {
                for c in 0..shape.channels {
                    out[c] = scaled(x[c], mean[c], scale[c], bias[c], shift(c));
                }
                continue;
            }
            for c in 0..shape.channels {
                let range = shape.range(0, c);
                let (mean, scale, bias, shift) = (mean[c], scale[c], bias[c], shift(c));
                for (y, x) in out[range.clone()].iter_mut().zip(&x[range]) {
                    *y = scaled(*x, mean, scale, bias, shift);
                }
            }
        }
    }
}

/// `(x - mean) scale + bias`, or `x scale + shift` where the difference overflows: both operands
/// are large then, and of different signs.
#[inline(always)]
fn scaled<T: Float>(x: T, mean: T, scale: T, bias: T, shift: T) -> T {
    let difference = x - mean;
    if difference.abs() <= T::max_value() {
        difference.mul_add(scale, bias)
    } else {
        x.mul_add(scale, shift)
    }
}

/// The gradients of a normalization by the batch's own moments, whose means are `rest` more than
/// those of `of`.
///
/// # Panics
/// If lengths disagree.
pub fn batch_norm_backward<T: Float>(
    shape: Channels,
    of: Normalized<'_, T>,
    rest: &[T],
    weight: &[T],
    dy: &[T],
    dx: &mut [T],
    (dw, db): (&mut [T], &mut [T]),
) {
    let Normalized { x, mean, scale } = of;
    assert!(x.len() == shape.len() && dy.len() == x.len() && dx.len() == x.len());
    for of_channel in [mean, rest, scale, weight, &*dw, &*db] {
        assert_eq!(of_channel.len(), shape.channels);
    }
    let share = 1.0 / (shape.images * shape.places).max(1) as f64;
    let (dx, dw, db) = (SharedMut::new(dx), SharedMut::new(dw), SharedMut::new(db));
    shape.for_each(|part| {
        // SAFETY: parts do not overlap.
        let (dw, db) = unsafe { (dw.slice(part.clone()), db.slice(part.clone())) };
        let moments = Moments {
            shape,
            channels: part.clone(),
            shift: |c: usize| mean[c],
            f: |i: usize, m: T| [dy[i], dy[i] * (x[i] - m)],
        };
        let totals = simd::dispatch(moments);
        for (k, c) in part.enumerate() {
            let [sum, along] = totals[k];
            if !(sum.is_finite() && along.is_finite())
                && let Some(channel) = norm_scaled::backward(
                    shape.images * shape.places,
                    (mean[c], scale[c]),
                    |i| x[shape.at(c, i)],
                    |i| dy[shape.at(c, i)],
                    |_| T::one(),
                )
            {
                [db[k], dw[k]] = channel.sums(shape.images * shape.places);
                for image in 0..shape.images {
                    let range = shape.range(image, c);
                    // SAFETY: a channel belongs to one part.
                    let dx = unsafe { dx.slice(range.clone()) };
                    for (dx, i) in dx.iter_mut().zip(range) {
                        *dx = channel.gradient(x[i], dy[i], T::one()) * weight[c];
                    }
                }
                continue;
            }
            let (s, rest) = (scale[c].to_f64(), rest[c].to_f64());
            let along = along - rest * sum;
            dw[k] = T::from_f64(along * s);
            db[k] = T::from_f64(sum);
            // dx = weight s (dy - mean(dy) - normal mean(dy normal)), normal = (x - mean) s
            let factor = weight[c] * scale[c];
            let slope = -along * s * s * share;
            let level = T::from_f64(-sum * share - slope * rest);
            let slope = T::from_f64(slope);
            for image in 0..shape.images {
                let range = shape.range(image, c);
                // SAFETY: a channel belongs to one part.
                let dx = unsafe { dx.slice(range.clone()) };
                let (x, dy) = (&x[range.clone()], &dy[range]);
                simd::dispatch(Combine { x, dy, dx, mean: mean[c], factor, slope, level });
            }
        }
    });
}

struct Combine<'a, T> {
    x: &'a [T],
    dy: &'a [T],
    dx: &'a mut [T],
    mean: T,
    factor: T,
    slope: T,
    level: T,
}

impl<T: Float> Kernel for Combine<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for ((dx, dy), x) in self.dx.iter_mut().zip(self.dy).zip(self.x) {
            *dx = (*x - self.mean).mul_add(self.slope, *dy + self.level) * self.factor;
        }
    }
}
