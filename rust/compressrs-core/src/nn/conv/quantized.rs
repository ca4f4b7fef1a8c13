//! Convolutions of images in eight bits with quantized filters.
//!
//! Each image is quantized once, with one scale, to a padded copy of bytes. The patches that
//! the kernel covers are gathered for some places at a time, so that they stay in the second
//! cache, and multiplied by [`crate::quantize::product`]. Nothing of the size of im2col is made.
//!
//! Sums of codes are exact, so that results depend neither on threads nor on the instruction
//! set.

use super::{Geometry, Side};
use crate::quantize::Affine;
use crate::quantize::grid::{Coder, Grid};
use crate::quantize::product::{Epilogue, Output, Rows, Weights, multiply, row_scales};
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, Kernel};

/// Bytes of quantized images that are held at a time, about.
const BATCH: usize = 8 << 20;

/// Bytes of patches and of their results that are held at a time, about.
const BLOCK: usize = 128 * 1024;

/// Places that are multiplied at a time: a multiple of the first, at most the second.
const PLACES: (usize, usize) = (64, 1024);

/// Bytes that are copied at once: what lies behind the patches and the images is as long.
const CHUNK: usize = 16;

/// Elements worth a task of their own; see [`parallel::for_each`].
const GRAIN_ELEMENTS: usize = 16 * 1024;

/// Multiply-adds worth a task of their own.
const GRAIN_MULTIPLY_ADDS: usize = 1024 * 1024;

/// The scales of images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// `max |x| / 127` of each image, at least the smallest normal number.
    Dynamic,
    /// A scale, and the code of 0.
    Static(f32, i8),
}

impl Scaling {
    /// The code of 0.
    fn zero(self) -> i8 {
        match self {
            Scaling::Dynamic => 0,
            Scaling::Static(_, zero) => zero,
        }
    }
}

/// Quantized filters.
#[derive(Clone, Copy)]
pub struct Filters<'a> {
    /// Those of each group, one in a row.
    pub groups: &'a [&'a Weights],
    /// Whether a row has all channels of a place of the kernel one after another, else all
    /// places of a channel.
    pub channels_last: bool,
    /// For each filter of all groups.
    pub bias: Option<&'a [f32]>,
}

/// `out = x * filters + bias`, with `x` in codes. Images that are not finite become NaN.
///
/// # Panics
/// If lengths disagree, or filters are not integers.
///
/// # Unwinds
/// With [`OutOfMemory`](memory::OutOfMemory).
pub fn forward_in_codes(
    geometry: &Geometry,
    x: &[f32],
    filters: Filters<'_>,
    scaling: Scaling,
    out: &mut [f32],
) {
    let g = geometry;
    let [of_x, _, of_out] = g.lengths();
    assert!(x.len() == of_x && out.len() == of_out && filters.groups.len() == g.groups);
    let columns = g.channels * g.rows.kernel * g.columns.kernel;
    for weights in filters.groups {
        assert!(weights.channels() == g.filters && weights.columns().count == columns);
    }
    assert!(filters.bias.is_none_or(|bias| bias.len() == g.groups * g.filters));
    if out.is_empty() {
        return;
    }
    let layout = Layout::new(g, filters.channels_last);
    let per_image = of_x / g.images;
    let scales = image_scales(x, g, scaling);
    let batch = (BATCH / layout.image.max(1)).clamp(1, g.images);
    let mut codes =
        memory::zeroed::<i8>(memory::product(layout.image, batch).saturating_add(CHUNK));
    let shared = SharedMut::new(out);
    for first in (0..g.images).step_by(batch) {
        let count = batch.min(g.images - first);
        let images = first..first + count;
        let scales = &scales[images.clone()];
        let x = &x[images.start * per_image..images.end * per_image];
        layout.encode(x, scaling, scales, &mut codes);
        let product = Product { layout: &layout, filters, codes: &codes, scales, first };
        let places = product.places();
        let tasks = (count * layout.results()).div_ceil(places);
        let work = columns * g.filters * g.groups * places;
        parallel::for_each(0..tasks, GRAIN_MULTIPLY_ADDS.div_ceil(work.max(1)), 1, |part| {
            product.run(part, places, count, &shared);
        });
    }
}

/// The scale of each image; NaN where it is not finite.
fn image_scales(x: &[f32], g: &Geometry, scaling: Scaling) -> Vec<f32> {
    let channels = g.groups * g.channels;
    let mut of_channels = memory::zeroed::<f32>(memory::product(g.images, channels));
    row_scales(x, g.rows.input * g.columns.input, &mut of_channels);
    memory::collect(of_channels.chunks_exact(channels).map(|scales| {
        // NaN is larger than infinity, and that than all numbers, as bits are.
        let largest = f32::from_bits(scales.iter().fold(0, |m, scale| m.max(scale.to_bits())));
        match scaling {
            _ if !largest.is_finite() => f32::NAN,
            Scaling::Dynamic => largest.max(f32::MIN_POSITIVE),
            Scaling::Static(scale, _) => scale,
        }
    }))
}

/// Where the codes of an image are: padded, group by group, channels last or first.
struct Layout<'a> {
    geometry: &'a Geometry,
    channels_last: bool,
    /// Places along height and width, padding included.
    padded: [usize; 2],
    /// From one channel, row and column to the next.
    steps: [usize; 3],
    /// Codes of a group, and of all.
    group: usize,
    image: usize,
    /// Where the runs of a patch begin, counted from its first place, and their length.
    runs: Vec<usize>,
    run: usize,
}

impl<'a> Layout<'a> {
    fn new(g: &'a Geometry, channels_last: bool) -> Self {
        let padded = [g.rows, g.columns].map(|side: Side| side.input + 2 * side.padding);
        let [height, width] = padded;
        let plane = memory::product(height, width);
        let group = memory::product(plane, g.channels);
        let steps =
            if channels_last { [1, width * g.channels, g.channels] } else { [plane, width, 1] };
        let [c, y, x] = steps;
        let adjacent = g.columns.dilation == 1;
        let (kernel, channels) = (g.columns.kernel, g.channels);
        let taps = |count: usize| 0..count;
        let mut runs = Vec::new();
        if channels_last {
            for k in taps(g.rows.kernel) {
                for l in taps(if adjacent { 1 } else { kernel }) {
                    runs.push(k * g.rows.dilation * y + l * g.columns.dilation * x);
                }
            }
        } else {
            for channel in taps(channels) {
                for k in taps(g.rows.kernel) {
                    for l in taps(if adjacent { 1 } else { kernel }) {
                        runs.push(
                            channel * c + k * g.rows.dilation * y + l * g.columns.dilation * x,
                        );
                    }
                }
            }
        }
        let run = if channels_last { channels } else { 1 } * if adjacent { kernel } else { 1 };
        let image = memory::product(group, g.groups);
        Layout { geometry: g, channels_last, padded, steps, group, image, runs, run }
    }

    /// Places of a result.
    fn results(&self) -> usize {
        let [rows, columns] = self.sides();
        rows * columns
    }

    fn sides(&self) -> [usize; 2] {
        [self.geometry.rows, self.geometry.columns].map(|side| side.output().unwrap_or(0))
    }

    /// Writes the codes of images.
    fn encode(&self, x: &[f32], scaling: Scaling, scales: &[f32], codes: &mut [i8]) {
        let [height, width] = self.padded;
        // Rows of all channels of a group, or of one.
        let (planes, depth) = if self.channels_last {
            (self.geometry.groups, self.geometry.channels)
        } else {
            (self.geometry.groups * self.geometry.channels, 1)
        };
        let line = width * depth;
        let shared = SharedMut::new(codes);
        let lines = scales.len() * planes * height;
        parallel::for_each(0..lines, GRAIN_ELEMENTS.div_ceil(line.max(1)), 1, |part| {
            // SAFETY: parts do not overlap, and `codes` is borrowed until the loop ends.
            let codes = unsafe { shared.slice(part.start * line..part.end * line) };
            simd::dispatch(Encode { layout: self, x, scaling, scales, planes, depth, part, codes });
        });
    }
}

struct Encode<'a, 'g> {
    layout: &'a Layout<'g>,
    x: &'a [f32],
    scaling: Scaling,
    scales: &'a [f32],
    planes: usize,
    depth: usize,
    /// Of the lines of all images.
    part: std::ops::Range<usize>,
    codes: &'a mut [i8],
}

impl Kernel for Encode<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Encode { layout, x, scaling, scales, planes, depth, part, codes } = self;
        let (rows, columns) = (layout.geometry.rows, layout.geometry.columns);
        let [height, width] = layout.padded;
        let affine = Affine::new(8, true, true);
        let mut narrow =
            Scratch::<i8>::new(if depth > 1 { columns.input * INTERLEAVED } else { 0 });
        for (at, to) in part.zip(codes.chunks_exact_mut(width * depth)) {
            let (plane, row) = (at / height, at % height);
            let inside = row >= rows.padding && row - rows.padding < rows.input;
            if !inside || columns.padding > 0 {
                to.fill(scaling.zero());
            }
            if !inside || columns.input == 0 {
                continue;
            }
            let scale = scales[plane / planes];
            let scale = if scale.is_finite() { scale } else { 1.0 };
            let coder = affine.coder(0, scale, scaling.zero().cast_unsigned());
            let to = &mut to[columns.padding * depth..][..columns.input * depth];
            let source = |channel: usize| {
                let from = plane * depth + channel;
                let from = (from * rows.input + row - rows.padding) * columns.input;
                &x[from..from + columns.input]
            };
            if depth == 1 {
                encode(coder, source(0), to);
                continue;
            }
            for first in (0..depth).step_by(INTERLEAVED) {
                let few = INTERLEAVED.min(depth - first);
                for (c, line) in narrow.chunks_exact_mut(columns.input).enumerate().take(few) {
                    let from = source(first + c);
                    // The next row of a channel is far from that of the next channel.
                    for ahead in (0..columns.input).step_by(16) {
                        simd::prefetch(from.as_ptr().wrapping_add(columns.input + ahead));
                    }
                    encode(coder, from, line);
                }
                interleave(&narrow, few, &mut to[first..], depth);
            }
        }
    }
}

/// Channels that are brought together at a time.
const INTERLEAVED: usize = 4;

#[inline(always)]
fn encode(coder: impl Coder<f32>, x: &[f32], codes: &mut [i8]) {
    for (code, x) in codes.iter_mut().zip(x) {
        *code = coder.encode(*x).cast_signed();
    }
}

/// Writes `few` lines as the first of every `depth` codes.
#[inline(always)]
fn interleave(lines: &[i8], few: usize, to: &mut [i8], depth: usize) {
    let width = lines.len() / INTERLEAVED;
    let [a, b, c, d] = std::array::from_fn(|i| &lines[i * width..][..width]);
    if few == INTERLEAVED {
        for x in 0..width {
            to[x * depth..][..INTERLEAVED].copy_from_slice(&[a[x], b[x], c[x], d[x]]);
        }
    } else {
        for x in 0..width {
            to[x * depth..][..few].copy_from_slice(&[a[x], b[x], c[x], d[x]][..few]);
        }
    }
}

/// The product of a batch of images.
struct Product<'a> {
    layout: &'a Layout<'a>,
    filters: Filters<'a>,
    codes: &'a [i8],
    scales: &'a [f32],
    /// The first image of the batch.
    first: usize,
}

impl Product<'_> {
    /// Places whose patches are gathered at a time.
    fn places(&self) -> usize {
        let columns = self.layout.runs.len() * self.layout.run;
        let each = columns + self.layout.geometry.filters * size_of::<f32>();
        (BLOCK / each.max(1) / PLACES.0 * PLACES.0).clamp(PLACES.0, PLACES.1)
    }

    /// Blocks of places, which are counted through all `images`.
    fn run(
        &self,
        blocks: std::ops::Range<usize>,
        places: usize,
        images: usize,
        out: &SharedMut<'_, f32>,
    ) {
        let layout = self.layout;
        let (columns, filters) = (layout.runs.len() * layout.run, layout.geometry.filters);
        let results = layout.results();
        let mut patches = Scratch::<i8>::new(places * columns + CHUNK);
        let mut sums = Scratch::<f32>::new(places * filters);
        let mut scales = Scratch::<f32>::new(places);
        for block in blocks {
            let rows = block * places..(images * results).min((block + 1) * places);
            let count = rows.len();
            for (scale, row) in scales.iter_mut().zip(rows.clone()) {
                *scale = self.scales[row / results];
            }
            for (group, weights) in self.filters.groups.iter().enumerate() {
                self.gather(group, rows.clone(), &mut patches);
                let own = group * filters..(group + 1) * filters;
                let epilogue = Epilogue {
                    bias: self.filters.bias.map(|bias| &bias[own]),
                    ..Epilogue::default()
                };
                let patches = Rows::Codes(&patches[..count * columns], &scales[..count]);
                let sums = &mut sums[..count * filters];
                multiply(patches, count, weights, epilogue, Output::Numbers(sums));
                let mut start = rows.start;
                while start < rows.end {
                    let (image, place) = (start / results, start % results);
                    let end = rows.end.min((image + 1) * results);
                    let plane = ((self.first + image) * layout.geometry.groups + group) * filters;
                    let of_image =
                        &sums[(start - rows.start) * filters..][..(end - start) * filters];
                    // SAFETY: blocks, and so these places of every plane, do not overlap,
                    // and `out` is borrowed until the loop over them ends.
                    unsafe { transpose(of_image, filters, out, plane * results + place, results) };
                    start = end;
                }
            }
        }
    }

    /// Gathers the patches of a group at places counted through all images, one in a row.
    fn gather(&self, group: usize, rows: std::ops::Range<usize>, patches: &mut [i8]) {
        let layout = self.layout;
        let g = layout.geometry;
        let [height, width] = layout.sides();
        let columns = layout.runs.len() * layout.run;
        let [_, down, right] = layout.steps;
        let (down, right) = (down * g.rows.stride, right * g.columns.stride);
        for (at, row) in rows.enumerate() {
            let (image, i, j) = (row / (height * width), row / width % height, row % width);
            let from = image * layout.image + group * layout.group + i * down + j * right;
            let to = &mut patches[at * columns..];
            for (r, offset) in layout.runs.iter().enumerate() {
                copy(&self.codes[from + offset..], &mut to[r * layout.run..], layout.run);
            }
        }
    }
}

/// Copies `len` bytes, and up to [`CHUNK`] more where they are few.
#[inline(always)]
fn copy(from: &[i8], to: &mut [i8], len: usize) {
    if len > 8 * CHUNK {
        to[..len].copy_from_slice(&from[..len]);
        return;
    }
    let (from, to) = (from.as_chunks::<CHUNK>().0, to.as_chunks_mut::<CHUNK>().0);
    for (to, from) in to[..len.div_ceil(CHUNK)].iter_mut().zip(from) {
        *to = *from;
    }
}

/// Writes rows of `filters` as columns of planes, from `at` on in the first plane.
///
/// # Safety
/// The caller guarantees that nobody else uses these places of the planes.
unsafe fn transpose(
    rows: &[f32],
    filters: usize,
    out: &SharedMut<'_, f32>,
    at: usize,
    plane: usize,
) {
    /// Filters that are written at a time.
    const WIDE: usize = 8;
    let count = rows.len() / filters;
    for first in (0..filters).step_by(WIDE) {
        let wide = WIDE.min(filters - first);
        // SAFETY: as the caller guarantees; planes do not overlap.
        let planes: [&mut [f32]; WIDE] = std::array::from_fn(|f| unsafe {
            let start = at + (first + f.min(wide - 1)) * plane;
            out.slice(start..start + if f < wide { count } else { 0 })
        });
        if wide == WIDE {
            for (i, row) in rows.chunks_exact(filters).enumerate() {
                for f in 0..WIDE {
                    planes[f][i] = row[first + f];
                }
            }
        } else {
            for (i, row) in rows.chunks_exact(filters).enumerate() {
                for f in 0..wide {
                    planes[f][i] = row[first + f];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::product::{Columns, Meaning};

    fn side(input: usize, kernel: usize, stride: usize, padding: usize, dilation: usize) -> Side {
        Side { input, kernel, stride, padding, dilation }
    }

    /// The sums of codes, by loops; `w` in the order of channels.
    fn truth(g: &Geometry, x: &[i64], w: &[i64], zero: i64) -> Vec<i64> {
        let [height, width] = [g.rows, g.columns].map(|side| side.output().unwrap());
        let (kernel, inner) = (g.columns.kernel, g.rows.kernel * g.columns.kernel);
        let mut out = Vec::new();
        for plane in 0..g.images * g.groups * g.filters {
            let (image, filter) = (plane / g.filters, plane % (g.groups * g.filters));
            for (i, j) in (0..height).flat_map(|i| (0..width).map(move |j| (i, j))) {
                let mut sum = 0;
                for at in 0..g.channels * inner {
                    let (c, k, l) = (at / inner, at % inner / kernel, at % kernel);
                    let y = (i * g.rows.stride + k * g.rows.dilation).wrapping_sub(g.rows.padding);
                    let z = j * g.columns.stride + l * g.columns.dilation;
                    let z = z.wrapping_sub(g.columns.padding);
                    let inside = y < g.rows.input && z < g.columns.input;
                    let from = ((image * g.channels + c) * g.rows.input).wrapping_add(y);
                    let x = if inside { x[from * g.columns.input + z] } else { zero };
                    sum += x * w[filter * g.channels * inner + at];
                }
                out.push(sum);
            }
        }
        out
    }

    #[test]
    fn sums_are_those_of_loops() {
        for (images, groups, channels, filters, rows, columns) in [
            (2, 1, 3, 5, side(6, 3, 1, 1, 1), side(7, 3, 1, 1, 1)),
            (1, 2, 6, 3, side(9, 2, 2, 0, 3), side(8, 3, 3, 2, 1)),
            (3, 1, 1, 13, side(1, 1, 1, 0, 1), side(40, 5, 1, 4, 2)),
            (1, 4, 2, 1, side(5, 3, 4, 5, 1), side(5, 1, 2, 0, 1)),
            (70, 1, 9, 17, side(4, 2, 1, 0, 1), side(3, 2, 1, 1, 1)),
            (0, 1, 2, 2, side(5, 3, 1, 0, 1), side(5, 3, 1, 0, 1)),
            (2, 1, 2, 3, side(5, 3, 1, 2, 1), side(0, 3, 1, 2, 1)),
            (1, 2, 1, 3, side(0, 2, 1, 1, 1), side(4, 3, 1, 2, 1)),
        ] {
            let g = Geometry { images, groups, channels, filters, rows, columns };
            let [of_x, of_w, of_y] = g.lengths();
            let x: Vec<f32> = (0..of_x).map(|i| ((i * 7) % 251) as f32 - 125.0).collect();
            let w: Vec<u8> = (0..of_w).map(|i| ((i * 37) % 256) as u8).collect();
            for (channels_last, zero) in [(true, 0), (true, -3), (false, 9)] {
                let inner = rows.kernel * columns.kernel;
                let count = channels * inner;
                let code = |filter: usize, to: &mut [u8]| {
                    let own = &w[filter * count..(filter + 1) * count];
                    for (at, to) in to.iter_mut().enumerate() {
                        let last = at % channels * inner + at / channels;
                        *to = own[if channels_last { last } else { at }];
                    }
                };
                let ones = vec![1.0; filters];
                let packed: Vec<Weights> = (0..groups)
                    .map(|group| {
                        let row = |f: usize, to: &mut [u8]| code(group * filters + f, to);
                        let columns = Columns::new(count, count, false);
                        Weights::pack(filters, columns, row, Meaning::Zero(128), Some(&ones))
                    })
                    .collect::<Result<_, _>>()
                    .unwrap();
                let groups: Vec<&Weights> = packed.iter().collect();
                let filters = Filters { groups: &groups, channels_last, bias: None };
                let mut y = vec![f32::NAN; of_y];
                forward_in_codes(&g, &x, filters, Scaling::Static(1.0, zero), &mut y);
                let integers = |x: &[f32]| -> Vec<i64> {
                    x.iter().map(|x| (*x as i64 + i64::from(zero)).clamp(-128, 127)).collect()
                };
                let w: Vec<i64> = w.iter().map(|w| i64::from(*w) - 128).collect();
                let sums = truth(&g, &integers(&x), &w, i64::from(zero));
                let sums: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
                assert_eq!(y, sums, "{g:?} {channels_last} {zero}");
            }
        }
    }
}
