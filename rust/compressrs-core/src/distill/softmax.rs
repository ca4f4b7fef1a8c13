//! Softmax, its logarithm, and the logarithm of its sum, along any axis.

use std::ops::Range;

use super::GRAIN_ELEMENTS;
use super::tile::{
    LANES, MAX_TRANSPOSED, TILE_ROWS, broadcast, by_row, map_reduce, max_of, transpose,
    transpose_back, update,
};
use super::wide::wide_len;
use crate::numeric::element::{Element, Float};
use crate::numeric::elementwise::convert_into;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, Kernel};

/// An array in C order seen from one of its axes: element `j` of the row at
/// `(o, i)` is `o * classes * inner + j * inner + i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Elements of the axes before.
    pub outer: usize,
    /// Length of a row.
    pub classes: usize,
    /// Elements of the axes behind.
    pub inner: usize,
}

impl Axis {
    /// Rows that lie one after another.
    pub fn last(rows: usize, classes: usize) -> Self {
        Axis { outer: rows, classes, inner: 1 }
    }

    /// Number of rows.
    pub fn rows(self) -> usize {
        self.outer * self.inner
    }

    fn len(self) -> usize {
        self.rows() * self.classes
    }
}

/// A number for all rows, or one for each.
#[derive(Clone, Copy, Debug)]
pub enum PerRow<'a> {
    /// The same for all.
    All(f64),
    /// One a row.
    Each(&'a [f64]),
}

impl PerRow<'_> {
    /// That of a row; that of the last for what lies beyond.
    #[inline(always)]
    pub fn of(self, row: usize) -> f64 {
        match self {
            PerRow::All(x) => x,
            PerRow::Each(x) => x[row.min(x.len() - 1)],
        }
    }

    /// Whether any is greater than `limit`.
    pub(super) fn any_above(self, limit: f64) -> bool {
        match self {
            PerRow::All(x) => x > limit,
            PerRow::Each(x) => x.iter().any(|&x| x > limit),
        }
    }

    pub(super) fn fits(self, rows: usize) -> bool {
        match self {
            PerRow::All(_) => true,
            PerRow::Each(x) => x.len() == rows,
        }
    }
}

/// What becomes of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftmaxOutput {
    /// `exp(z_j / T) / sum_k exp(z_k / T)`
    Probability,
    /// `(z_j - max z) / T - ln sum_k exp((z_k - max z) / T)`, which is exact where the
    /// probability itself would be 0.
    Log,
}

/// Softmax at a temperature, or its logarithm, of each row; in place where `z` is None.
///
/// The row's maximum is subtracted before the division by `T`, so that no finite
/// logit overflows at any temperature. A row that holds NaN or +inf, or nothing
/// but -inf, becomes NaN.
///
/// # Panics
/// If lengths disagree.
pub fn softmax<T: Element>(
    axis: Axis,
    output: SoftmaxOutput,
    temperature: PerRow<'_>,
    z: Option<&[T]>,
    out: &mut [T],
) {
    assert_eq!(out.len(), axis.len());
    assert!(z.is_none_or(|z| z.len() == out.len()) && temperature.fits(axis.rows()));
    let out = SharedMut::new(out);
    for_each_tile(axis, |tiles| {
        simd::dispatch(Softmax { axis, output, temperature, z, out: &out, tiles });
    });
}

/// `ln sum_j exp(z_j / T)` of each row.
///
/// +inf if one is +inf, -inf if all are, NaN if one is.
///
/// # Panics
/// If lengths disagree.
pub fn logsumexp<T: Element>(axis: Axis, temperature: PerRow<'_>, z: &[T], out: &mut [T]) {
    assert_eq!(z.len(), axis.len());
    assert!(out.len() == axis.rows() && temperature.fits(axis.rows()));
    if axis.classes == 0 {
        return out.fill(T::store(T::Compute::from_f64(f64::NEG_INFINITY)));
    }
    let out = SharedMut::new(out);
    for_each_tile(axis, |tiles| {
        simd::dispatch(LogSumExp { axis, temperature, z, out: &out, tiles });
    });
}

/// Whether rows are transposed: short ones, and those whose elements lie apart, which are
/// read and written by lines of rows beside one another.
fn is_transposed(axis: Axis) -> bool {
    axis.inner > 1 || axis.classes <= MAX_TRANSPOSED
}

/// Calls `body` in parallel with parts of the tiles that the rows make: those of
/// [`TILE_ROWS`] rows with the same `o`, or all of one row.
fn for_each_tile(axis: Axis, body: impl Fn(Range<usize>) + Sync) {
    if axis.len() == 0 {
        return;
    }
    let (tiles, size) = if !is_transposed(axis) {
        (axis.rows(), axis.classes)
    } else if axis.inner == 1 {
        (axis.outer.div_ceil(TILE_ROWS), TILE_ROWS * axis.classes)
    } else {
        (axis.outer * axis.inner.div_ceil(TILE_ROWS), TILE_ROWS.min(axis.inner) * axis.classes)
    };
    parallel::for_each(0..tiles, GRAIN_ELEMENTS.div_ceil(size), 1, body);
}

/// A tile of transposed rows.
#[derive(Clone, Copy)]
struct TransposedTile {
    axis: Axis,
    /// The first row.
    first: usize,
    rows: usize,
}

impl TransposedTile {
    #[inline(always)]
    fn new(axis: Axis, tile: usize) -> Self {
        let (first, beside) = if axis.inner == 1 {
            (tile * TILE_ROWS, axis.outer)
        } else {
            let tiles = axis.inner.div_ceil(TILE_ROWS);
            let (o, i) = (tile / tiles, tile % tiles * TILE_ROWS);
            (o * axis.inner + i, (o + 1) * axis.inner)
        };
        TransposedTile { axis, first, rows: TILE_ROWS.min(beside - first) }
    }

    /// Where the rows lie, one after another.
    #[inline(always)]
    fn range(self) -> Range<usize> {
        self.first * self.axis.classes..(self.first + self.rows) * self.axis.classes
    }

    /// Where class `j` of all rows lies.
    #[inline(always)]
    fn line(self, j: usize) -> Range<usize> {
        let Axis { classes, inner, .. } = self.axis;
        let (o, i) = (self.first / inner, self.first % inner);
        let start = (o * classes + j) * inner + i;
        start..start + self.rows
    }

    #[inline(always)]
    fn load<'a, T: Element + 'a>(
        self,
        read: impl Fn(Range<usize>) -> &'a [T],
        tile: &mut [T::Compute],
    ) {
        if self.axis.inner == 1 {
            return transpose(read(self.range()), self.axis.classes, tile);
        }
        for (j, line) in tile.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            for (to, from) in line.iter_mut().zip(read(self.line(j))) {
                *to = from.load();
            }
        }
    }

    #[inline(always)]
    fn store<'a, T: Element + 'a>(
        self,
        tile: &[T::Compute],
        write: impl Fn(Range<usize>) -> &'a mut [T],
    ) {
        if self.axis.inner == 1 {
            return transpose_back(tile, self.axis.classes, write(self.range()));
        }
        for (j, line) in tile.as_chunks::<LANES>().0.iter().enumerate() {
            for (to, from) in write(self.line(j)).iter_mut().zip(line) {
                *to = T::store(*from);
            }
        }
    }

    /// `1 / T` of each row.
    #[inline(always)]
    fn scales<C: Float>(self, temperature: PerRow<'_>) -> [C; TILE_ROWS] {
        std::array::from_fn(|r| C::from_f64(temperature.of(self.first + r).recip()))
    }
}

struct Softmax<'a, T> {
    axis: Axis,
    output: SoftmaxOutput,
    temperature: PerRow<'a>,
    z: Option<&'a [T]>,
    out: &'a SharedMut<'a, T>,
    tiles: Range<usize>,
}

impl<T: Element> Kernel for Softmax<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Softmax { axis, output, temperature, z, out, tiles } = self;
        let classes = axis.classes;
        let read = |range: Range<usize>| match z {
            Some(z) => &z[range],
            // SAFETY: each element belongs to one tile, and what is read of a tile has
            // been copied before the tile is written.
            None => unsafe { out.read(range) },
        };
        // SAFETY: as above.
        let write = |range: Range<usize>| unsafe { out.slice(range) };
        if is_transposed(axis) {
            let mut x = Scratch::<T::Compute>::new(classes * LANES);
            let mut y = Scratch::<T::Compute>::new(classes * LANES);
            // Lanes without a row hold numbers, not what was left there.
            x.fill(T::Compute::from_f64(0.0));
            for tile in tiles {
                let rows = TransposedTile::new(axis, tile);
                rows.load(read, &mut x);
                softmax_tile::<_, TILE_ROWS>(output, rows.scales(temperature), &x, &mut y);
                rows.store(&y, write);
            }
            return;
        }
        let copies = if z.is_some() { 0 } else { classes };
        let mut copy = Scratch::<T>::new(copies);
        let mut wide = [(); 2].map(|()| Scratch::<T::Compute>::new(wide_len::<T>(classes)));
        for row in tiles {
            let part = row * classes..(row + 1) * classes;
            let scale = [T::Compute::from_f64(temperature.of(row).recip())];
            let x = match z {
                Some(z) => &z[part.clone()],
                None => {
                    copy.copy_from_slice(read(part.clone()));
                    &copy
                }
            };
            let out = write(part);
            let [wide_x, wide_y] = &mut wide;
            if let (Some(x), Some(y)) = (T::as_compute(x), T::as_compute_mut(out)) {
                softmax_tile::<_, 1>(output, scale, x, y);
            } else {
                convert_into(x, wide_x);
                softmax_tile::<_, 1>(output, scale, wide_x, wide_y);
                convert_into(wide_y, out);
            }
        }
    }
}

/// Softmax of a tile, or its logarithm.
#[inline(always)]
pub(super) fn softmax_tile<C: Float, const R: usize>(
    output: SoftmaxOutput,
    scale: [C; R],
    z: &[C],
    out: &mut [C],
) {
    let top = broadcast(max_of::<C, R>(z));
    let scale = broadcast(scale);
    match output {
        SoftmaxOutput::Probability => {
            let [sums] = map_reduce::<C, R, 1, 1, 1>([z], [&mut *out], C::neg_infinity(), {
                |[z], [sum], [e]| {
                    for l in 0..LANES {
                        e[l] = ((z[l] - top[l]) * scale[l]).exp_negative();
                        sum[l] += e[l];
                    }
                }
            });
            let factor = broadcast(sums.map(|sum| C::from_f64(sum.recip())));
            update(out, [], |e, []| {
                for l in 0..LANES {
                    e[l] = e[l] * factor[l];
                }
            });
        }
        SoftmaxOutput::Log => {
            let [sums] = map_reduce::<C, R, 1, 1, 1>([z], [&mut *out], C::neg_infinity(), {
                |[z], [sum], [shifted]| {
                    for l in 0..LANES {
                        shifted[l] = (z[l] - top[l]) * scale[l];
                        sum[l] += shifted[l].exp_negative();
                    }
                }
            });
            let logs: [f64; R] = by_row(|r| sums[r].ln_fast());
            let log_sum = broadcast(logs.map(C::from_f64));
            update(out, [], |x, []| {
                for l in 0..LANES {
                    x[l] = x[l] - log_sum[l];
                }
            });
        }
    }
}

struct LogSumExp<'a, T> {
    axis: Axis,
    temperature: PerRow<'a>,
    z: &'a [T],
    out: &'a SharedMut<'a, T>,
    tiles: Range<usize>,
}

impl<T: Element> Kernel for LogSumExp<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let LogSumExp { axis, temperature, z, out, tiles } = self;
        let classes = axis.classes;
        // SAFETY: each row belongs to one tile.
        let write = |range: Range<usize>| unsafe { out.slice(range) };
        if is_transposed(axis) {
            let mut x = Scratch::<T::Compute>::new(classes * LANES);
            x.fill(T::Compute::from_f64(0.0));
            for tile in tiles {
                let rows = TransposedTile::new(axis, tile);
                rows.load(|range| &z[range], &mut x);
                let sums = logsumexp_tile::<_, TILE_ROWS>(rows.scales(temperature), &x);
                convert_into(&sums[..rows.rows], write(rows.first..rows.first + rows.rows));
            }
            return;
        }
        let mut wide = Scratch::<T::Compute>::new(wide_len::<T>(classes));
        for row in tiles {
            let x = &z[row * classes..(row + 1) * classes];
            let scale = [T::Compute::from_f64(temperature.of(row).recip())];
            let sum = if let Some(x) = T::as_compute(x) {
                logsumexp_tile::<_, 1>(scale, x)
            } else {
                convert_into(x, &mut wide);
                logsumexp_tile::<_, 1>(scale, &wide)
            };
            convert_into(&sum, write(row..row + 1));
        }
    }
}

/// `ln sum exp(scale z)` of each row of a tile.
#[inline(always)]
fn logsumexp_tile<C: Float, const R: usize>(scale: [C; R], z: &[C]) -> [C; R] {
    let tops: [C; R] = max_of(z);
    let (top, scales) = (broadcast(tops), broadcast(scale));
    let [sums] = map_reduce::<C, R, 1, 0, 1>([z], [], C::neg_infinity(), |[z], [sum], []| {
        for l in 0..LANES {
            // Infinities are not subtracted from themselves.
            let shifted = if z[l] == top[l] { C::zero() } else { (z[l] - top[l]) * scales[l] };
            sum[l] += shifted.exp_negative();
        }
    });
    std::array::from_fn(|r| C::from_f64((tops[r].to_f64() * scale[r].to_f64()) + sums[r].ln_fast()))
}
