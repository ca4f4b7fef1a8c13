//! The product of two dense matrices, sampled at the entries of a prepared one.

use std::ops::Range;
use std::ptr::null;

use super::product::{Panel, panels};
use super::{Band, Places, Prepared, Segment};
use crate::linalg::matrix::Matrix;
use crate::numeric::element::Float;
use crate::numeric::vector::{Fours, Vector, WithWidth, full_width, half_width};
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;
use crate::sparse::dense::Rows;
use crate::sparse::dots::{MOST, VECTORS};

/// Clock cycles worth a task of their own, about; see [`parallel::for_each`].
const GRAIN: usize = 64 * 1024;

/// Entries for each column of the matrix that are worth packing the dense one's.
const ENTRIES_OF_COLUMN: usize = 64;

/// `out[p] = sum_k u[r, k] v[k, c]` for every entry `p = (r, c)` of the pattern, in the order
/// of its values; added to what `out` holds if it is to accumulate. The gradient of a loss with
/// respect to a sparse weight, for one.
///
/// # Panics
/// If the shapes do not fit.
pub fn sddmm_prepared<T: Float>(
    a: &Prepared,
    u: Matrix<'_, T>,
    v: Matrix<'_, T>,
    out: &mut [T],
    accumulate: bool,
) {
    assert_eq!((a.rows, a.columns), (u.rows(), v.columns()));
    assert_eq!(u.columns(), v.rows());
    assert_eq!(a.entries(), out.len());
    // Parts of long rows are rows of the bands.
    let rows = a.parts.as_ref().map(|parts| {
        let mut rows = memory::zeroed(parts[a.rows]);
        for (row, parts) in parts.windows(2).enumerate() {
            rows[parts[0]..parts[1]].fill(row);
        }
        rows
    });
    let rows = rows.as_deref();
    let Some(places) = &a.places else {
        return sample(a, rows, u, v, out, accumulate);
    };
    let mut moved = Scratch::new(out.len());
    sample(a, rows, u, v, &mut moved, false);
    let mut put = |place: usize, sum: T| {
        out[place] = if accumulate { out[place] + sum } else { sum };
    };
    match places {
        Places::Short(places) => {
            places.iter().zip(&moved[..]).for_each(|(place, sum)| put(*place as usize, *sum));
        }
        Places::Long(places) => {
            places.iter().zip(&moved[..]).for_each(|(place, sum)| put(*place, *sum));
        }
    }
}

/// As [`sddmm_prepared`], in the order of the prepared entries.
fn sample<T: Float>(
    a: &Prepared,
    row_of: Option<&[usize]>,
    u: Matrix<'_, T>,
    v: Matrix<'_, T>,
    out: &mut [T],
    accumulate: bool,
) {
    if u.columns() == 0 && !accumulate {
        out.fill(T::zero());
    }
    let (panels, v) = (panels::<T>(u.columns()), v.transposed());
    let threads = parallel::num_threads().unwrap_or(1);
    if accumulate && let Some(panel) = panels.first() {
        let threads = threads.min(a.bands.len());
        memory::look_for::<T>(memory::product(threads * panel.padded, a.columns));
    }
    let out = SharedMut::new(out);
    let task = Task { a, row_of, u, v, panels: &panels, out: &out, accumulate };
    // Each part packs `v` for itself, so that it is in its thread's cache.
    let bands = a.bands.len();
    let most = a.entries() / ENTRIES_OF_COLUMN.saturating_mul(a.columns).max(1);
    let parts = parts(bands, most, threads);
    let of_entry = 3 + u.columns() * size_of::<T>() / 32;
    let cycles = memory::product(a.entries(), of_entry) / parts + 1;
    parallel::for_each_fine(
        0..parts,
        GRAIN.div_ceil(cycles),
        || (),
        |(), some| {
            task.run(some.start * bands / parts..some.end * bands / parts);
        },
    );
}

/// How many parts to divide bands into: about `most`, but such that threads finish together.
fn parts(bands: usize, most: usize, threads: usize) -> usize {
    if bands <= most.max(threads) {
        return bands.max(1);
    }
    let even = |parts: &usize| bands.is_multiple_of(*parts) || bands >= 4 * parts;
    (1..=most / threads).rev().map(|n| n * threads).find(even).unwrap_or(threads)
}

/// What all tasks share.
struct Task<'a, T: Float> {
    a: &'a Prepared,
    /// Which row each row of the bands is a part of, unless it is the same.
    row_of: Option<&'a [usize]>,
    u: Matrix<'a, T>,
    /// Transposed.
    v: Matrix<'a, T>,
    panels: &'a [Panel],
    out: &'a SharedMut<'a, T>,
    accumulate: bool,
}

impl<T: Float> Task<'_, T> {
    /// Samples at the entries of some bands, panel by panel of the dense matrices' columns.
    fn run(&self, bands: Range<usize>) {
        for (i, &panel) in self.panels.iter().enumerate() {
            let Panel { left, width, padded } = panel;
            // Vectors are at least 32 bytes long here.
            let padded = if self.u.columns() == 1 { 1 } else { padded.max(32 / size_of::<T>()) };
            let v = self.v.block(0..self.a.columns, left..left + width);
            let v = v.to_rows_here(padded, padded > 1);
            for band in &self.a.bands[bands.clone()] {
                let row_of = |row: usize| self.row_of.map_or(row, |rows| rows[row]);
                let rows = row_of(band.rows.0)..row_of(band.rows.1 - 1) + 1;
                let u = self
                    .u
                    .block(rows, left..left + width)
                    .to_rows_here(padded, self.panels.len() > 1);
                let (accumulate, task) = (self.accumulate || i > 0, self);
                let sample = Sample { task, u: &u, v: v.packed(padded), band, accumulate };
                match (padded * size_of::<T>(), size_of::<T>()) {
                    _ if padded == 1 => sample.single(),
                    (256, 4) => full_width(Dots::<_, 64, 16>(sample)),
                    (256, _) => full_width(Dots::<_, 32, 8>(sample)),
                    (128, 4) => full_width(Dots::<_, 32, 16>(sample)),
                    (128, _) => full_width(Dots::<_, 16, 8>(sample)),
                    (64, 4) => full_width(Dots::<_, 16, 16>(sample)),
                    (64, _) => full_width(Dots::<_, 8, 8>(sample)),
                    (_, 4) => half_width(Dots::<_, 8, 8>(sample)),
                    (_, _) => half_width(Dots::<_, 4, 4>(sample)),
                }
            }
        }
    }
}

/// The entries of a band, and a panel of the dense matrices' columns.
struct Sample<'a, T: Float> {
    task: &'a Task<'a, T>,
    /// From the band's first row on.
    u: &'a Rows<'a, T>,
    v: &'a [T],
    band: &'a Band,
    accumulate: bool,
}

impl<'a, T: Float> Sample<'a, T> {
    /// The indices and the results of the band's entries.
    #[inline(always)]
    fn entries(&self) -> (&'a [u16], &'a mut [T]) {
        let Task { a, out, .. } = self.task;
        let entries = self.band.entries.0..self.band.entries.1;
        // SAFETY: `out` is borrowed by the caller of `sample`, and tasks have different bands.
        (&a.indices[entries.clone()], unsafe { out.slice(entries) })
    }

    /// The row of `u` that a segment is of.
    #[inline(always)]
    fn row(&self, segment: Segment) -> usize {
        let (first, row) = (self.band.rows.0, segment.row());
        self.task.row_of.map_or(row, |rows| rows[first + row] - rows[first])
    }

    /// The entries if the dense matrices have one column.
    fn single(self) {
        let (u, height) = (self.u.packed(1), self.task.a.height);
        let (mut indices, out) = self.entries();
        for (tile, segments) in self.band.by_tile() {
            let v = &self.v[tile * height..];
            for &segment in segments {
                let (columns, rest) = indices.split_at(segment.len());
                indices = rest;
                let u = u[self.row(segment)];
                let out = &mut out[segment.start()..][..segment.len()];
                for (out, column) in out.iter_mut().zip(columns) {
                    // SAFETY: indices are of columns that there are, see `build`.
                    let product = u * unsafe { *v.get_unchecked(usize::from(*column)) };
                    *out = if self.accumulate { *out + product } else { product };
                }
            }
        }
    }
}

/// Dot products of `W` terms. Term `k` goes to sum `k % L`, and those are added as a tree.
struct Dots<S, const W: usize, const L: usize>(S);

impl<T: Float, const W: usize, const L: usize> WithWidth<T> for Dots<Sample<'_, T>, W, L> {
    #[inline(always)]
    fn run<V: Vector<T>>(self) {
        // Widths that belong to the other type are never asked for.
        if const { !W.is_multiple_of(L) || !L.is_multiple_of(V::LANES) || V::SUMS > MOST } {
            unreachable!("{W} columns");
        }
        let Dots(sample) = self;
        let Sample { task, u, v, band, accumulate } = sample;
        assert!(v.len() == task.a.columns * W);
        let (indices, out) = sample.entries();
        let (mut indices, out) = (indices.as_ptr(), out.as_mut_ptr());
        let mut quads = [Quad { u: null(), indices, out, count: 0 }; MOST / 4];
        let mut count = 0;
        for (tile, segments) in band.by_tile() {
            let v = v[tile * task.a.height * W..].as_ptr();
            for &segment in segments {
                // SAFETY: there is such a row, of `W` elements; indices are of columns that there
                // are, see `build`, of which a band has one for each entry, and as many results.
                unsafe {
                    let u = u.row_unchecked(sample.row(segment), W).as_ptr();
                    let mut out = out.add(segment.start());
                    let mut rest = segment.len();
                    while rest >= V::SUMS {
                        Run::<T, W, L> { u, indices, v }.sample::<V>(out, accumulate);
                        rest -= V::SUMS;
                        (indices, out) = (indices.add(V::SUMS), out.add(V::SUMS));
                    }
                    while rest > 0 {
                        quads[count] = Quad { u, indices, out, count: rest.min(4) };
                        count += 1;
                        if count == const { V::SUMS / 4 } {
                            Quads::<T, W, L> { quads: &quads[..count], v }.sample::<V>(accumulate);
                            count = 0;
                        }
                        let done = rest.min(4);
                        (indices, out, rest) = (indices.add(done), out.add(done), rest - done);
                    }
                }
            }
            // SAFETY: as above.
            unsafe { Quads::<T, W, L> { quads: &quads[..count], v }.sample::<V>(accumulate) };
            count = 0;
        }
    }
}

/// As many entries of a row as are added up together.
struct Run<T, const W: usize, const L: usize> {
    u: *const T,
    indices: *const u16,
    v: *const T,
}

impl<T: Float, const W: usize, const L: usize> Run<T, W, L> {
    /// Writes the results, or adds them to what there is.
    ///
    /// # Safety
    /// The caller guarantees that there are `W` elements of `u`, and of `v` at each index, and as
    /// many indices as `V` has sums, and results which nothing else refers to.
    #[inline(always)]
    unsafe fn sample<V: Vector<T>>(&self, out: *mut T, accumulate: bool) {
        // SAFETY: as the caller guarantees; `V` gives at most `MOST` sums.
        unsafe {
            if !accumulate {
                return V::sum_lanes(self, out);
            }
            let mut sums = [T::zero(); MOST];
            V::sum_lanes(self, sums.as_mut_ptr());
            for i in (0..V::SUMS).step_by(4) {
                put_four(&raw const sums[i], out.add(i), true);
            }
        }
    }
}

impl<T: Float, V: Vector<T>, const W: usize, const L: usize> Fours<V> for &Run<T, W, L> {
    #[inline(always)]
    fn four(&self, i: usize) -> Option<[V; 4]> {
        // SAFETY: as the caller of `sample` guarantees.
        unsafe {
            let columns = self.indices.add(4 * i).cast::<u64>().read_unaligned();
            let row = |p: usize| self.v.add((columns >> (16 * p)) as u16 as usize * W);
            Some(four::<T, V, W, L>(self.u, [row(0), row(1), row(2), row(3)]))
        }
    }
}

/// Up to four entries of a row.
#[derive(Clone, Copy)]
struct Quad<T> {
    u: *const T,
    indices: *const u16,
    out: *mut T,
    count: usize,
}

/// Entries of several rows that are added up together.
struct Quads<'a, T, const W: usize, const L: usize> {
    quads: &'a [Quad<T>],
    v: *const T,
}

impl<T: Float, const W: usize, const L: usize> Quads<'_, T, W, L> {
    /// Writes the results, or adds them to what there is.
    ///
    /// # Safety
    /// The caller guarantees that there are `W` elements of `u`, of `v` at each index, and
    /// `count` indices, and results which nothing else refers to.
    #[inline(always)]
    unsafe fn sample<V: Vector<T>>(&self, accumulate: bool) {
        let mut sums = [T::zero(); MOST];
        // SAFETY: `V` gives at most `MOST` sums.
        unsafe { V::sum_lanes(self, sums.as_mut_ptr()) };
        for (quad, sums) in self.quads.iter().zip(sums.as_chunks::<4>().0) {
            if quad.count == 4 {
                // SAFETY: as the caller guarantees.
                unsafe { put_four(sums.as_ptr(), quad.out, accumulate) };
                continue;
            }
            for (i, &sum) in sums.iter().enumerate().take(quad.count) {
                // SAFETY: as the caller guarantees.
                unsafe {
                    let out = quad.out.add(i);
                    *out = if accumulate { *out + sum } else { sum };
                }
            }
        }
    }
}

impl<T: Float, V: Vector<T>, const W: usize, const L: usize> Fours<V> for &Quads<'_, T, W, L> {
    #[inline(always)]
    fn four(&self, i: usize) -> Option<[V; 4]> {
        let Quad { u, indices, count, .. } = *self.quads.get(i)?;
        // SAFETY: as the caller of `sample` guarantees.
        unsafe {
            // The last again where there are fewer.
            let row = |p: usize| self.v.add(usize::from(*indices.add(p.min(count - 1))) * W);
            Some(four::<T, V, W, L>(u, [row(0), row(1), row(2), row(3)]))
        }
    }
}

/// The products of a row of `u` with four of `v`, in lanes that are to be added up.
///
/// # Safety
/// The caller guarantees that `W` elements of each may be read.
#[inline(always)]
unsafe fn four<T: Float, V: Vector<T>, const W: usize, const L: usize>(
    u: *const T,
    v: [*const T; 4],
) -> [V; 4] {
    let n = const { L / V::LANES };
    let mut sums = [[V::splat(T::zero()); VECTORS]; 4];
    for k in 0..const { W / V::LANES } {
        // SAFETY: as the caller guarantees.
        let x = unsafe { V::load(u.add(k * V::LANES)) };
        for p in 0..4 {
            // SAFETY: as above.
            let y = unsafe { V::load(v[p].add(k * V::LANES)) };
            sums[p][k % n] = sums[p][k % n].add_product(x, y);
        }
    }
    let mut half = n / 2;
    while half > 0 {
        for s in 0..half {
            for sums in &mut sums {
                sums[s] = sums[s].add(sums[s + half]);
            }
        }
        half /= 2;
    }
    sums.map(|sums| sums[0])
}

/// Writes four results, or adds them to what there is.
///
/// # Safety
/// The caller guarantees that four elements may be read, and four written.
#[inline(always)]
unsafe fn put_four<T: Float>(sums: *const T, out: *mut T, accumulate: bool) {
    for i in (0..4).step_by(const { <T::Portable as Vector<T>>::LANES }) {
        // SAFETY: as the caller guarantees.
        unsafe {
            let (out, sums) = (out.add(i), T::Portable::load(sums.add(i)));
            if accumulate { T::Portable::load(out).add(sums) } else { sums }.store(out);
        }
    }
}
