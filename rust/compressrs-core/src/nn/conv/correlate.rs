//! Results, and gradients of images: tiles of filters by places.

use super::planes::{Layout, Line};
use super::{BAND, GRAIN_MULTIPLY_ADDS, Geometry, OutOfMemory, Side, check_memory, zeros};
use crate::numeric::element::Float;
use crate::numeric::vector::{Vector, WithVector, by_level};
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;

/// Places that a tile has at most.
const WIDE: usize = 32;

/// `out = x * weight + bias`.
///
/// # Errors
/// If there is no memory for a band of the padded image or the packed kernel.
///
/// # Panics
/// If lengths disagree.
pub fn forward<T: Float>(
    geometry: &Geometry,
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    out: &mut [T],
) -> Result<(), OutOfMemory> {
    assert_eq!([x.len(), weight.len(), out.len()], geometry.lengths());
    assert!(bias.is_none_or(|bias| bias.len() == geometry.groups * geometry.filters));
    let line = |side: &Side| {
        let taps = (0..side.kernel).map(|k| (k, at(k * side.dilation, side.padding)));
        Line::new(side.input, side.output().unwrap_or(0), side.stride, taps)
    };
    let (rows, columns) = (line(&geometry.rows), line(&geometry.columns));
    let places = geometry.rows.kernel * geometry.columns.kernel;
    let task = Correlation {
        rows: &rows,
        columns: &columns,
        channels: geometry.channels,
        filters: geometry.filters,
        images: geometry.images,
        groups: geometry.groups,
        source: x,
        bias,
        height: rows.results,
        width: columns.results,
        first: (0, 0),
        step: (1, 1),
        // As the kernel lies in memory.
        weight: &|filter, channel, place| {
            weight[(filter * geometry.channels + channel) * places + place]
        },
        out: &SharedMut::new(out),
    };
    by_level(task)
}

/// The gradient with respect to the image, given that with respect to the result.
///
/// # Errors
/// As for [`forward`].
///
/// # Panics
/// If lengths disagree.
pub fn input_gradient<T: Float>(
    geometry: &Geometry,
    dy: &[T],
    weight: &[T],
    dx: &mut [T],
) -> Result<(), OutOfMemory> {
    assert_eq!([dx.len(), weight.len(), dy.len()], geometry.lengths());
    let (down, right) = (&geometry.rows, &geometry.columns);
    let line = |side: &Side, phase: usize| {
        // A place `i = phase + stride m` of the image met that of the kernel in the result
        // `(i + padding - dilation k) / stride`, if that is whole.
        let taps = (0..side.kernel).filter_map(move |k| {
            let from = at(phase + side.padding, side.dilation * k);
            let stride = side.stride as isize;
            (from.rem_euclid(stride) == 0).then(|| (k, from.div_euclid(stride)))
        });
        let results = (side.input - phase).div_ceil(side.stride);
        Line::new(side.output().unwrap_or(0), results, 1, taps)
    };
    let out = SharedMut::new(dx);
    for y in 0..down.stride.min(down.input) {
        for x in 0..right.stride.min(right.input) {
            let (rows, columns) = (line(down, y), line(right, x));
            let places = down.kernel * right.kernel;
            let inner = columns.kernel.len();
            let task = Correlation {
                rows: &rows,
                columns: &columns,
                channels: geometry.filters,
                filters: geometry.channels,
                images: geometry.images,
                groups: geometry.groups,
                source: dy,
                bias: None,
                height: down.input,
                width: right.input,
                first: (y, x),
                step: (down.stride, right.stride),
                // Filters and channels change places.
                weight: &|filter, channel, place| {
                    let (group, c) = (filter / geometry.channels, filter % geometry.channels);
                    let f = group * geometry.filters + channel;
                    let (k, l) = (rows.kernel[place / inner], columns.kernel[place % inner]);
                    weight[(f * geometry.channels + c) * places + k * right.kernel + l]
                },
                out: &out,
            };
            by_level(task)?;
        }
    }
    Ok(())
}

/// `a - b`; both are places of a padded image, which fit (see [`Side::output`]).
fn at(a: usize, b: usize) -> isize {
    a as isize - b as isize
}

/// Correlations of all images with a kernel, for results that lie `step` apart.
struct Correlation<'a, T: Float> {
    rows: &'a Line,
    columns: &'a Line,
    /// Of the source, in each group.
    channels: usize,
    /// Channels of what comes out, in each group.
    filters: usize,
    images: usize,
    groups: usize,
    source: &'a [T],
    bias: Option<&'a [T]>,
    height: usize,
    width: usize,
    /// Where the first result goes to in a channel, and how far to the next.
    first: (usize, usize),
    step: (usize, usize),
    /// The weight of a filter (of all groups), a channel and a place of the kernel, counted
    /// among those that have a part.
    weight: &'a (dyn Fn(usize, usize, usize) -> T + Sync),
    out: &'a SharedMut<'a, T>,
}

impl<T: Float> WithVector<T> for Correlation<'_, T> {
    type Output = Result<(), OutOfMemory>;

    // Not in the instructions of the level itself: its parts, which run in other threads, are.
    #[inline(always)]
    fn run<V: Vector<T>, const R: usize, const Q: usize>(self) -> Result<(), OutOfMemory> {
        self.all::<R>()
    }
}

impl<T: Float> Correlation<'_, T> {
    #[inline(always)]
    fn all<const R: usize>(&self) -> Result<(), OutOfMemory> {
        let taps = self.rows.taps.len() * self.columns.taps.len();
        let inner = self.channels * taps;
        let layout = Layout::new(self.rows, self.columns, BAND, WIDE)?;
        let tiles = self.filters.div_ceil(R);
        let size = tiles.checked_mul(inner).and_then(|n| n.checked_mul(R * self.groups));
        let mut packed: Vec<T> = zeros(size)?;
        // Filters beyond the last stay 0.
        for (at, lines) in packed.chunks_exact_mut((inner * R).max(1)).enumerate() {
            let (group, tile) = (at / tiles, at % tiles);
            for (k, line) in lines.chunks_exact_mut(R).enumerate() {
                for (r, w) in line.iter_mut().enumerate().take(self.filters - tile * R) {
                    let filter = group * self.filters + tile * R + r;
                    *w = (self.weight)(filter, k / taps, k % taps);
                }
            }
        }
        // Found out before anything is written.
        let length = layout.len(self.channels).ok_or(OutOfMemory)?;
        let sums = layout.places.checked_add(WIDE).ok_or(OutOfMemory)?;
        let sums = sums.checked_mul(self.filters).ok_or(OutOfMemory)?;
        check_memory::<T>(length.checked_add(sums))?;
        let bands = self.rows.results.div_ceil(layout.band);
        let offsets = layout.offsets(self.rows, self.columns, self.channels);
        let work = inner * self.filters * layout.places;
        parallel::for_each(
            0..self.images * self.groups * bands,
            GRAIN_MULTIPLY_ADDS.div_ceil(work.max(1)),
            1,
            |part| {
                let band = Bands { task: self, layout, offsets: &offsets, packed: &packed, part };
                by_level(band);
            },
        );
        Ok(())
    }
}

/// Some bands of some images.
struct Bands<'a, 'b, T: Float> {
    task: &'a Correlation<'b, T>,
    layout: Layout,
    offsets: &'a [usize],
    packed: &'a [T],
    part: std::ops::Range<usize>,
}

impl<T: Float> WithVector<T> for Bands<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector<T>, const R: usize, const Q: usize>(self) {
        let Bands { task, layout, offsets, packed, part } = self;
        let (rows, columns) = (task.rows, task.columns);
        let bands = rows.results.div_ceil(layout.band);
        let inner = offsets.len();
        let tiles = task.filters.div_ceil(R);
        let width = 2 * V::LANES;
        let line = layout.places + WIDE;
        let mut planes = Scratch::<T>::new(layout.len(task.channels).unwrap_or(0));
        let mut sums = Scratch::<T>::new(task.filters * line);
        let channel = task.height * task.width;
        let of_group = task.channels * rows.source * columns.source;
        for at in part {
            let (image, first) = (at / bands, at % bands * layout.band);
            let group = image % task.groups;
            let source = &task.source[image * of_group..(image + 1) * of_group];
            layout.fill(rows, columns, source, first, &mut planes);
            let height = layout.band.min(rows.results - first);
            let places = (height - 1) * layout.pitch + columns.results;
            // Tiles go on from row to row, unless each row takes a whole number of them.
            let each = columns.results.div_ceil(width);
            let (segments, length) = if height * each <= places.div_ceil(width) {
                (height, columns.results)
            } else {
                (1, places)
            };
            for segment in 0..segments {
                for left in (0..length).step_by(width) {
                    let left = segment * layout.pitch + left;
                    for tile in 0..tiles {
                        let weights = &packed[(group * tiles + tile) * inner * R..][..inner * R];
                        let rest = task.filters - tile * R;
                        let sums = &mut sums[tile * R * line + left..];
                        if rest <= 4 {
                            let tile = tile_of::<T, V, R, 4>(weights, offsets, &planes, left);
                            store(tile, rest, sums, line);
                        } else {
                            let tile = tile_of::<T, V, R, R>(weights, offsets, &planes, left);
                            store(tile, rest, sums, line);
                        }
                    }
                }
            }
            for filter in 0..task.filters {
                let bias = task.bias.map(|bias| bias[group * task.filters + filter]);
                let start = (image * task.filters + filter) * channel;
                for q in 0..height {
                    let sums = &sums[filter * line + q * layout.pitch..][..columns.results];
                    let row = task.first.0 + (first + q) * task.step.0;
                    let from = start + row * task.width;
                    // SAFETY: the row of an image and filter is written by one band of one
                    // correlation at a time, which no other part shares; correlations for
                    // other remainders run before or after.
                    let out = unsafe { task.out.slice(from..from + task.width) };
                    write_row(out, sums, bias, task.first.1, task.step.1);
                }
            }
        }
    }
}

/// The sums of the first `H` filters of a tile: one chain over channels and places of the
/// kernel.
#[inline(always)]
fn tile_of<T: Float, V: Vector<T>, const R: usize, const H: usize>(
    weights: &[T],
    offsets: &[usize],
    planes: &[T],
    left: usize,
) -> [[V; 2]; H] {
    let mut sums = [[V::splat(T::zero()); 2]; H];
    let (lines, _) = weights.as_chunks::<R>();
    for (line, &offset) in lines.iter().zip(offsets) {
        let x = &planes[offset + left..][..2 * V::LANES];
        // SAFETY: `x` has two vectors.
        let (a, b) = unsafe { (V::load(x.as_ptr()), V::load(x.as_ptr().add(V::LANES))) };
        for r in 0..H {
            let w = V::splat(line[r]);
            sums[r][0] = sums[r][0].add_product(w, a);
            sums[r][1] = sums[r][1].add_product(w, b);
        }
    }
    sums
}

/// Writes the first so many rows of a tile, which lie `line` apart.
#[inline(always)]
fn store<T: Float, V: Vector<T>, const H: usize>(
    tile: [[V; 2]; H],
    rows: usize,
    sums: &mut [T],
    line: usize,
) {
    for (r, [a, b]) in tile.into_iter().enumerate().take(rows) {
        let out = &mut sums[r * line..][..2 * V::LANES];
        // SAFETY: `out` has two vectors.
        unsafe {
            a.store(out.as_mut_ptr());
            b.store(out.as_mut_ptr().add(V::LANES));
        }
    }
}

/// Writes sums and a bias to every `step`-th place of a row.
#[inline(always)]
fn write_row<T: Float>(out: &mut [T], sums: &[T], bias: Option<T>, first: usize, step: usize) {
    // What changes nothing where there is no bias; short copies take longer than sums.
    let bias = bias.unwrap_or(-T::zero());
    if step == 1 {
        for (y, sum) in out[first..].iter_mut().zip(sums) {
            *y = *sum + bias;
        }
    } else {
        for (y, sum) in out[first..].iter_mut().step_by(step).zip(sums) {
            *y = *sum + bias;
        }
    }
}
