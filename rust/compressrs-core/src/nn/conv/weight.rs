//! Gradients of kernels: sums of products over places.

use super::planes::{Layout, Line};
use super::{Geometry, OutOfMemory, check_memory};
use crate::numeric::element::Float;
use crate::numeric::lanes::sum_tree;
use crate::numeric::vector::{Vector, WithVector, by_level};
use crate::runtime::parallel;
use crate::runtime::scratch::Scratch;

/// Places of a band, at least, where the image has them: enough that adding up lanes at its
/// end does not show.
const BAND: usize = 1024;

/// Partial sums of the gradient, which are added up in a tree.
const PARTS: usize = 16;

/// Places of the kernel in a tile.
const TAPS: usize = 6;

/// Lanes of a sum: 64 bytes.
const BYTES: usize = 64;

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
    let line = |side: &super::Side| {
        let taps =
            (0..side.kernel).map(|k| (k, (k * side.dilation) as isize - side.padding as isize));
        Line::new(side.input, side.output().unwrap_or(0), side.stride, taps)
    };
    let (rows, columns) = (line(&geometry.rows), line(&geometry.columns));
    let lanes = BYTES / size_of::<T>();
    // Whole lanes are read behind the last place.
    let layout = Layout::new(&rows, &columns, BAND, lanes)?;
    let places = layout.places.checked_next_multiple_of(lanes).ok_or(OutOfMemory)?;
    let length = layout.len(geometry.channels).ok_or(OutOfMemory)?;
    let results = places.checked_mul(geometry.filters).ok_or(OutOfMemory)?;
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
        let mut gradient = vec![T::zero(); geometry.groups * filters * inner];
        let mut planes = Scratch::<T>::new(layout.len(geometry.channels).unwrap_or(0));
        let mut results = Scratch::<T>::new(filters * places);
        let of_x = geometry.channels * geometry.rows.input * geometry.columns.input;
        let channel = rows.results * columns.results;
        for unit in self.units {
            let (image, first) = (unit / self.bands, unit % self.bands * layout.band);
            let height = layout.band.min(rows.results - first);
            for group in 0..geometry.groups {
                let at = image * geometry.groups + group;
                layout.fill(rows, columns, &self.x[at * of_x..(at + 1) * of_x], first, &mut planes);
                // Zeros where rows of the planes have no results.
                results.fill(T::zero());
                for (f, line) in results.chunks_exact_mut(places).enumerate() {
                    let dy = &self.dy[(at * filters + f) * channel..][..channel];
                    for q in 0..height {
                        line[q * layout.pitch..][..columns.results].copy_from_slice(
                            &dy[(first + q) * columns.results..][..columns.results],
                        );
                    }
                }
                let gradient = &mut gradient[group * filters * inner..][..filters * inner];
                for top in (0..filters).step_by(Q) {
                    for left in (0..inner).step_by(TAPS) {
                        // Beyond the last, it is done once more and not used.
                        let mut lines: [&[T]; Q] = [&[]; Q];
                        for q in 0..Q {
                            lines[q] = &results[(top + q).min(filters - 1) * places..][..places];
                        }
                        let mut taps: [&[T]; TAPS] = [&[]; TAPS];
                        for t in 0..TAPS {
                            taps[t] = &planes[offsets[(left + t).min(inner - 1)]..][..places];
                        }
                        let sums = products::<T, V, Q>(lines, taps, places);
                        for q in 0..Q.min(filters - top) {
                            for t in 0..TAPS.min(inner - left) {
                                gradient[(top + q) * inner + left + t] += sums[q][t];
                            }
                        }
                    }
                }
            }
        }
        gradient
    }
}

/// Sums of products of each two lines, which have `places` elements.
#[inline(always)]
fn products<T: Float, V: Vector<T>, const Q: usize>(
    lines: [&[T]; Q],
    taps: [&[T]; TAPS],
    places: usize,
) -> [[T; TAPS]; Q] {
    let lanes = BYTES / size_of::<T>();
    for line in lines.iter().chain(&taps) {
        assert_eq!(line.len(), places);
    }
    assert!(places.is_multiple_of(lanes));
    // 16 of float32, 8 of float64, the others being 0.
    let mut all = [[[T::zero(); 16]; TAPS]; Q];
    // Lanes that one vector holds, then the next; for most there is one.
    for lane in (0..lanes).step_by(V::LANES) {
        let mut sums = [[V::splat(T::zero()); TAPS]; Q];
        // Loops, not closures: those would be compiled without the instructions of the level.
        for at in (lane..places).step_by(lanes) {
            let mut y = [V::splat(T::zero()); Q];
            for q in 0..Q {
                // SAFETY: lines are of whole lanes.
                y[q] = unsafe { V::load(lines[q].as_ptr().add(at)) };
            }
            for t in 0..TAPS {
                // SAFETY: as above.
                let x = unsafe { V::load(taps[t].as_ptr().add(at)) };
                for q in 0..Q {
                    sums[q][t] = sums[q][t].add_product(y[q], x);
                }
            }
        }
        for q in 0..Q {
            for t in 0..TAPS {
                // SAFETY: there are `lanes` places, of which this vector has its own.
                unsafe { sums[q][t].store(all[q][t].as_mut_ptr().add(lane)) };
            }
        }
    }
    let mut totals = [[T::zero(); TAPS]; Q];
    for q in 0..Q {
        for t in 0..TAPS {
            totals[q][t] = sum_tree::<T, 16>(all[q][t]);
        }
    }
    totals
}
