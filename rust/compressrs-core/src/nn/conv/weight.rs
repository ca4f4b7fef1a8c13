//! Gradients of kernels: sums of products over places.
//!
//! With many filters, filters are lanes: the results of a band are transposed, and tiles of
//! six places of the kernel by some vectors of filters are summed over the places of the
//! band. With few (`weight_few`), places are lanes.

use super::planes::{Layout, Line};
use super::{Geometry, OutOfMemory, check_memory, weight_few};
use crate::linalg::matrix::Matrix;
use crate::numeric::element::Float;
use crate::numeric::vector::{Vector, WithVector, by_level};
use crate::runtime::scratch::Scratch;
use crate::runtime::{memory, parallel};

/// Filters from which on they are lanes: two vectors of 16.
const MANY: usize = 32;

/// Places of a band, at least, where the image has them: the transposed results stay in the
/// first cache. With few filters so many that adding up lanes at its end does not show.
const BAND: usize = 128;
const BAND_OF_FEW: usize = 1024;

/// Partial sums of the gradient, which are added up in a tree.
const PARTS: usize = 16;

/// Places of the kernel in a tile.
const TAPS: usize = 6;

/// Filters of a panel at most: lanes of `Q` vectors.
const FILTERS: usize = 64;

/// The gradient with respect to the kernel, given that with respect to the result.
///
/// # Errors
/// If there is no memory for a band of the padded image, or for partial sums.
///
/// # Panics
/// If lengths disagree.
pub fn weight_gradient<T: Float>(
    geometry: &Geometry,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
) -> Result<(), OutOfMemory> {
    assert_eq!([x.len(), dw.len(), dy.len()], geometry.lengths());
    if dw.is_empty() {
        return Ok(());
    }
    let line = |side: &super::Side| {
        let taps =
            (0..side.kernel).map(|k| (k, (k * side.dilation) as isize - side.padding as isize));
        Line::new(side.input, side.output().unwrap_or(0), side.stride, taps)
    };
    let (rows, columns) = (line(&geometry.rows), line(&geometry.columns));
    let is_many = geometry.filters >= MANY;
    // Whole lanes are read behind the last place.
    let lanes = weight_few::lanes::<T>();
    let band = if is_many { BAND } else { BAND_OF_FEW };
    let layout = Layout::new(&rows, &columns, band, lanes)?;
    let places = layout.places.checked_next_multiple_of(lanes).ok_or(OutOfMemory)?;
    let length = layout.len(geometry.channels).ok_or(OutOfMemory)?;
    let filters = geometry.filters.checked_next_multiple_of(FILTERS).ok_or(OutOfMemory)?;
    let results = places.checked_mul(filters).ok_or(OutOfMemory)?;
    check_memory::<T>(length.checked_add(results))?;
    check_memory::<T>(dw.len().checked_mul(4))?;
    let offsets = layout.offsets(&rows, &columns, geometry.channels);
    let bands = rows.results.div_ceil(layout.band);
    let units = geometry.images * bands;
    let task = Task { geometry, rows: &rows, columns: &columns, layout, places, offsets: &offsets };
    let part = |part| by_level(Part { task: &task, x, dy, units: part, bands });
    let add = |mut a: Vec<T>, b: Vec<T>| {
        for (a, b) in a.iter_mut().zip(b) {
            *a += b;
        }
        a
    };
    match parallel::reduce(units, units.div_ceil(PARTS).max(1), part, add) {
        Some(sum) => dw.copy_from_slice(&sum),
        None => dw.fill(T::zero()),
    }
    Ok(())
}

struct Task<'a> {
    geometry: &'a Geometry,
    rows: &'a Line,
    columns: &'a Line,
    layout: Layout,
    /// Places of a band of results, up to whole lanes.
    places: usize,
    offsets: &'a [usize],
}

/// Bands of images, whose products are added up.
struct Part<'a, T> {
    task: &'a Task<'a>,
    x: &'a [T],
    dy: &'a [T],
    units: std::ops::Range<usize>,
    bands: usize,
}

impl<T: Float> WithVector<T> for Part<'_, T> {
    type Output = Vec<T>;

    #[inline(always)]
    fn run<V: Vector<T>, const R: usize, const Q: usize>(self) -> Vec<T> {
        let Task { geometry, rows, columns, layout, places, offsets } = *self.task;
        let (filters, inner) = (geometry.filters, offsets.len());
        let is_many = filters >= MANY;
        // Filters of a gradient as it is summed: whole vectors, where they are lanes.
        let lanes = if is_many { filters.next_multiple_of(V::LANES) } else { filters };
        let mut gradient = memory::zeroed::<T>(geometry.groups * lanes * inner);
        let mut planes = Scratch::<T>::new(layout.len(geometry.channels).unwrap_or(0));
        let mut results = Scratch::<T>::new(lanes * places);
        let of_x = geometry.channels * geometry.rows.input * geometry.columns.input;
        let channel = rows.results * columns.results;
        for unit in self.units {
            let (image, first) = (unit / self.bands, unit % self.bands * layout.band);
            let height = layout.band.min(rows.results - first);
            for group in 0..geometry.groups {
                let at = image * geometry.groups + group;
                layout.fill(rows, columns, &self.x[at * of_x..(at + 1) * of_x], first, &mut planes);
                let dy = &self.dy[at * filters * channel..][..filters * channel];
                let gradient = &mut gradient[group * lanes * inner..][..lanes * inner];
                if is_many {
                    let here = first * columns.results..(first + height) * columns.results;
                    let dy = Matrix::row_major(dy, filters, channel).block(0..filters, here);
                    let band = Band { layout, height, columns: columns.results, planes: &planes };
                    band.add_products::<V, Q>(dy, &mut results, offsets, gradient);
                } else {
                    let dy = (&dy[first * columns.results..], channel);
                    let size = (height, columns.results);
                    weight_few::lay_out(&layout, dy, size, (&mut results, places));
                    let (lines, planes) = ((&*results, places), (&*planes, offsets));
                    weight_few::add_products::<T, V, Q>(lines, planes, gradient);
                }
            }
        }
        if is_many { to_filters::<T, V, Q>(&gradient, geometry, inner) } else { gradient }
    }
}

/// The planes of a band, of one group of one image.
struct Band<'a, T> {
    layout: Layout,
    /// Rows of results, and columns.
    height: usize,
    columns: usize,
    planes: &'a [T],
}

/// Panels of filters: of `Q` vectors, and what remains, of fewer.
#[inline(always)]
fn panels<T, V: Vector<T>, const Q: usize>(filters: usize) -> impl Iterator<Item = (usize, usize)> {
    let vectors = filters.div_ceil(V::LANES);
    // Tiles of three vectors are not compiled.
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = vectors - at;
        let here = if rest >= Q { Q } else { rest.min(2) };
        at += here;
        (here > 0).then(|| ((at - here) * V::LANES, here))
    })
}

impl<T: Float> Band<'_, T> {
    /// Adds the products of `dy`, `[filters, places]`, to a gradient that has, one panel of
    /// filters after another, `[channels and places of the kernel, filters]`.
    #[inline(always)]
    fn add_products<V: Vector<T>, const Q: usize>(
        &self,
        dy: Matrix<'_, T>,
        panel: &mut [T],
        offsets: &[usize],
        gradient: &mut [T],
    ) {
        for (left, vectors) in panels::<T, V, Q>(dy.rows()) {
            let width = vectors * V::LANES;
            let filters = left..dy.rows().min(left + width);
            let panel = &mut panel[..dy.columns() * width];
            if filters.len() < width {
                panel.fill(T::zero());
            }
            dy.block(filters, 0..dy.columns()).transposed().pack(panel, width);
            let gradient = &mut gradient[left * offsets.len()..][..width * offsets.len()];
            for (taps, sums) in offsets.chunks(TAPS).zip(gradient.chunks_mut(TAPS * width)) {
                match vectors {
                    1 => self.tile::<V, 1>(taps, panel, sums),
                    2 => self.tile::<V, 2>(taps, panel, sums),
                    _ => self.tile::<V, Q>(taps, panel, sums),
                }
            }
        }
    }

    /// Adds the products of `Q` vectors of filters with six places of the kernel, or fewer.
    #[inline(always)]
    fn tile<V: Vector<T>, const Q: usize>(&self, taps: &[usize], panel: &[T], gradient: &mut [T]) {
        let width = Q * V::LANES;
        assert!(panel.len() == self.height * self.columns * width);
        assert!(gradient.len() == taps.len() * width);
        let mut sums = [[V::splat(T::zero()); Q]; TAPS];
        for q in 0..self.height {
            // Beyond the last, it is done once more and not used.
            let mut x: [&[T]; TAPS] = [&[]; TAPS];
            for t in 0..TAPS {
                let from = taps[t.min(taps.len() - 1)] + q * self.layout.pitch;
                x[t] = &self.planes[from..from + self.columns];
            }
            let line = &panel[q * self.columns * width..][..self.columns * width];
            for k in 0..self.columns {
                let mut y = [V::splat(T::zero()); Q];
                for v in 0..Q {
                    // SAFETY: the line has `Q` vectors for each of its columns.
                    y[v] = unsafe { V::load(line.as_ptr().add(k * width + v * V::LANES)) };
                }
                for t in 0..TAPS {
                    let x = V::splat(x[t][k]);
                    for v in 0..Q {
                        sums[t][v] = sums[t][v].add_product(x, y[v]);
                    }
                }
            }
        }
        for (sums, gradient) in sums.into_iter().zip(gradient.chunks_exact_mut(width)) {
            let mut here = [T::zero(); FILTERS];
            for v in 0..Q {
                // SAFETY: `here` has space for `Q` vectors at any level.
                unsafe { sums[v].store(here.as_mut_ptr().add(v * V::LANES)) };
            }
            for (total, sum) in gradient.iter_mut().zip(here) {
                *total += sum;
            }
        }
    }
}

/// A gradient `[filters, channels and places of the kernel]` of each group.
fn to_filters<T: Float, V: Vector<T>, const Q: usize>(
    gradient: &[T],
    geometry: &Geometry,
    inner: usize,
) -> Vec<T> {
    let filters = geometry.filters;
    let lanes = filters.next_multiple_of(V::LANES);
    let mut out = memory::zeroed::<T>(geometry.groups * filters * inner);
    for (out, gradient) in out.chunks_exact_mut(filters * inner).zip(gradient.chunks(lanes * inner))
    {
        for (left, vectors) in panels::<T, V, Q>(filters) {
            let width = vectors * V::LANES;
            let panel = Matrix::row_major(&gradient[left * inner..][..width * inner], inner, width);
            let here = width.min(filters - left);
            let panel = panel.block(0..inner, 0..here).transposed();
            panel.pack(&mut out[left * inner..][..here * inner], inner);
        }
    }
    out
}
