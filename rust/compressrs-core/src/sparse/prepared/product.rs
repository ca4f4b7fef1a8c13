//! The product of a prepared matrix and a dense one.

use std::ops::Range;
use std::ptr::null;

use super::panels::{Finish, Row, add_lanes, add_quarters, add_segments};
use super::{BAND, Band, Places, Prepared, Segment};
use crate::linalg::matrix::{Matrix, MatrixMut};
use crate::numeric::element::Float;
use crate::numeric::gathered::{LANES, Sums};
use crate::numeric::vector::{Vector, WithWidth, full_width, half_width};
use crate::runtime::memory;
use crate::runtime::parallel;
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, ByVectors, Kernel};
use crate::sparse::dense::{Cells, Rows, SharedMatrix};
use crate::sparse::epilogue::Epilogue;
use crate::sparse::values::{Values, some, widened};

/// Clock cycles worth a task of their own, about; see [`parallel::for_each`].
const GRAIN: usize = 64 * 1024;

/// Reads of each row of the dense matrix that pay for a copy of it which is aligned.
const PACK: usize = 12;

/// Elements of a dense matrix that stay in the second level of each thread's cache.
const SHARED: usize = 256 * 1024;

/// Values that each thread widens for itself, at most.
const FEW: usize = 32 * 1024;

/// Bytes of a panel's rows, at most.
const PANEL: usize = 256;

/// `y = a x`, and what the epilogue makes of it, where `a` has the pattern and the values
/// given.
///
/// The order in which an element is summed depends on the pattern and on the number of
/// columns of `x`.
///
/// # Panics
/// If the shapes do not fit, or there are not as many values as entries.
pub fn matmul_prepared<T: Float>(
    a: &Prepared,
    data: &dyn Values<T>,
    x: Matrix<'_, T>,
    y: MatrixMut<'_, T>,
    epilogue: Epilogue<'_, T>,
) {
    assert_eq!((a.rows, a.columns), (y.rows(), x.rows()));
    assert_eq!(x.columns(), y.columns());
    assert_eq!(a.entries(), data.count());
    assert!(epilogue.bias.is_none_or(|bias| bias.len() == a.rows));
    if a.rows == 0 || x.columns() == 0 {
        return;
    }
    let moved = Permuted::of(a, data);
    let values = moved.as_ref().map_or(data, |moved| moved as &dyn Values<T>);
    // What is read for several panels is widened, or moved, once; a few values by each thread,
    // for that takes less time than fetching them from another's cache.
    let times = if a.entries() < FEW { parallel::num_threads().unwrap_or(1) } else { 1 };
    let wide = (x.columns() * size_of::<T>() > PANEL * times).then(|| widened(values));
    let wide = wide.as_deref();
    let values = wide.as_ref().map_or(values, |wide| wide);
    let Some(parts) = &a.parts else {
        return Product { a, values, y: &y.share(), epilogue }.run(x);
    };
    let (count, n) = (parts[a.rows], x.columns());
    let mut sums = memory::zeroed(memory::product(count, n));
    let of_parts = MatrixMut::row_major(&mut sums, count, n).share();
    Product { a, values, y: &of_parts, epilogue: Epilogue::default() }.run(x);
    let y = y.share();
    for (row, parts) in parts.windows(2).enumerate() {
        for j in 0..n {
            let at = (row, j);
            let mut sum = [[T::zero()]];
            // SAFETY: `y` is borrowed by this call, and no other task runs.
            unsafe {
                epilogue.begin(&y, at, 1, &mut sum);
                for part in parts[0]..parts[1] {
                    sum[0][0] += sums[part * n + j];
                }
                epilogue.end::<T::Portable, _>(&y, at, 1, &mut sum);
            }
        }
    }
}

/// Values in the order of a prepared pattern that has another than the matrix.
pub(super) struct Permuted<'a, T: Float> {
    data: Cells<'a, T>,
    places: &'a Places,
}

impl<'a, T: Float> Permuted<'a, T> {
    /// None if the order is the same.
    pub fn of(a: &'a Prepared, data: &'a dyn Values<T>) -> Option<Self> {
        a.places.as_ref().map(|places| Permuted { data: widened(data), places })
    }
}

impl<T: Float> Values<T> for Permuted<'_, T> {
    fn count(&self) -> usize {
        self.data.len()
    }

    fn stored(&self) -> Option<&[T]> {
        None
    }

    fn widen(&self, range: Range<usize>, out: &mut [T]) {
        let Permuted { data, places } = self;
        match places {
            Places::Short(places) => simd::dispatch(Permute { data, places: &places[range], out }),
            Places::Long(places) => {
                for (out, &place) in out.iter_mut().zip(&places[range]) {
                    *out = data[place];
                }
            }
        }
    }
}

struct Permute<'a, T> {
    data: &'a [T],
    /// Below the length of `data`.
    places: &'a [u32],
    out: &'a mut [T],
}

impl<T: Float> Kernel for Permute<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (out, &place) in self.out.iter_mut().zip(self.places) {
            // SAFETY: each place is that of an entry, see `build`, and there are as many
            // values, see `matmul_prepared`.
            *out = unsafe { *self.data.get_unchecked(place as usize) };
        }
    }
}

/// What all tasks of a product share.
#[derive(Clone, Copy)]
struct Product<'a, T> {
    a: &'a Prepared,
    /// In the order of the pattern's entries.
    values: &'a dyn Values<T>,
    y: &'a SharedMatrix<'a, T>,
    epilogue: Epilogue<'a, T>,
}

/// Some columns of the dense matrix.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    pub left: usize,
    pub width: usize,
    /// With those that fill it up.
    pub padded: usize,
}

/// Columns of the first panel of so many, with those that fill it up: 256, 128, 64, 32 or 16
/// bytes.
pub(super) fn padded<T>(columns: usize) -> usize {
    let least = 16 / size_of::<T>();
    if columns <= least {
        return least;
    }
    // The widest that is at least three quarters full.
    let mut padded = PANEL / size_of::<T>();
    while padded > 32 / size_of::<T>() && 4 * columns < 3 * padded {
        padded /= 2;
    }
    padded
}

/// Cuts `columns` into panels.
pub(super) fn panels<T>(columns: usize) -> Vec<Panel> {
    let mut panels = Vec::new();
    let mut left = 0;
    while left < columns {
        let padded = padded::<T>(columns - left);
        let width = padded.min(columns - left);
        memory::reserve(&mut panels, 1);
        panels.push(Panel { left, width, padded });
        left += width;
    }
    panels
}

impl<T: Float> Product<'_, T> {
    fn run(self, x: Matrix<'_, T>) {
        let bands = self.a.bands.len();
        // Of a band and a panel, about.
        let cycles = |columns: usize| {
            self.a.entries() * (1 + columns * size_of::<T>() / 48) / bands.max(1) + 1
        };
        if x.columns() == 1 {
            let x = x.to_rows(1, false);
            let grain = GRAIN.div_ceil(cycles(1));
            parallel::for_each_fine(
                0..bands,
                grain,
                || (),
                |(), bands| {
                    simd::dispatch(Column { product: self, x: x.as_slice(), bands });
                },
            );
            return;
        }
        let panels = panels::<T>(x.columns());
        // Where rows are one after another, copying them pays if they are read often and not
        // aligned to the lines of the cache, of which 32 bytes touch one or two.
        let first = panels[0].padded;
        let often = first * size_of::<T>() > 32 && self.a.entries() >= PACK * x.rows();
        let align = often || x.row_stride() != first;
        let block = |panel: Panel| x.block(0..x.rows(), panel.left..panel.left + panel.width);
        let threads = parallel::num_threads().unwrap_or(1);
        let grain = GRAIN.div_ceil(cycles(panels[0].padded));
        // Threads would take lines that hold parts of two panels from each other; but a large
        // panel should stay in a thread's cache.
        let by_bands = self.y.shares_lines() && memory::product(x.rows(), x.columns()) <= SHARED;
        if self.epilogue.accumulate {
            memory::look_for::<T>(memory::product(threads.min(bands) * first, x.rows()));
        }
        let even = panels.len().is_multiple_of(threads) || panels.len() >= 4 * threads;
        if even && !by_bands {
            // Each task packs its panels, which are still in its cache then.
            let grain = grain.div_ceil(bands.max(1));
            parallel::for_each_fine(
                0..panels.len(),
                grain,
                || (),
                |(), some| {
                    for panel in &panels[some] {
                        let rows = block(*panel).to_rows_here(panel.padded, align);
                        self.multiply(&rows, *panel, 0..bands);
                    }
                },
            );
            return;
        }
        if let [panel] = panels[..] {
            // Each thread packs the panel: fetching it from another's cache takes longer.
            let pack = || block(panel).to_rows_here(panel.padded, align);
            parallel::for_each_fine(0..bands, grain, pack, |rows, bands| {
                self.multiply(rows, panel, bands);
            });
            return;
        }
        let rows =
            memory::collect(panels.iter().map(|panel| block(*panel).to_rows(panel.padded, align)));
        parallel::for_each(0..panels.len() * bands, grain, 1, |some| {
            for task in some {
                let (panel, band) = if by_bands {
                    (task % panels.len(), task / panels.len())
                } else {
                    (task / bands, task % bands)
                };
                self.multiply(&rows[panel], panels[panel], band..band + 1);
            }
        });
    }

    /// Multiplies the rows of some bands with a panel.
    fn multiply(self, x: &Rows<'_, T>, panel: Panel, bands: Range<usize>) {
        match (panel.padded * size_of::<T>(), size_of::<T>()) {
            (256, 4) => full_width(self.task::<64, 1>(x, panel, bands)),
            (256, _) => full_width(self.task::<32, 1>(x, panel, bands)),
            (128, 4) => full_width(self.task::<32, 2>(x, panel, bands)),
            (128, _) => full_width(self.task::<16, 2>(x, panel, bands)),
            (64, 4) => full_width(self.task::<16, 4>(x, panel, bands)),
            (64, _) => full_width(self.task::<8, 4>(x, panel, bands)),
            (32, 4) => half_width(self.task::<8, 8>(x, panel, bands)),
            (32, _) => half_width(self.task::<4, 8>(x, panel, bands)),
            (_, 4) => full_width(self.task::<4, 4>(x, panel, bands)),
            (_, _) => full_width(self.task::<2, 4>(x, panel, bands)),
        }
    }

    fn task<'b, const W: usize, const E: usize>(
        &'b self,
        x: &'b Rows<'_, T>,
        panel: Panel,
        bands: Range<usize>,
    ) -> Multiply<'b, T, W, E> {
        assert_eq!((self.values.count(), x.count()), (self.a.entries(), self.a.columns));
        Multiply { product: self, x: x.packed(W), panel, bands }
    }
}

/// Multiplies bands with a panel of `W` columns, each element in `E` partial sums.
struct Multiply<'a, T, const W: usize, const E: usize> {
    product: &'a Product<'a, T>,
    /// Rows of `W` elements.
    x: &'a [T],
    panel: Panel,
    bands: Range<usize>,
}

impl<T: Float, const W: usize, const E: usize> WithWidth<T> for Multiply<'_, T, W, E> {
    #[inline(always)]
    fn run<V: Vector<T>>(self) {
        let Multiply { product: &Product { a, values, y, epilogue }, x, panel, bands } = self;
        let mut sums = Scratch::<T>::new(BAND * W);
        let (sums, _) = sums.as_chunks_mut::<W>();
        let mut buffer = Scratch::new(0);
        for band in &a.bands[bands] {
            let at = (band.rows.0, panel.left);
            let values = some(values, band.entries.0..band.entries.1, &mut buffer);
            let mut indices = a.indices[band.entries.0..].as_ptr();
            let height = band.rows.1 - band.rows.0;
            let sums = &mut sums[..height];
            // Finished sums go where they belong at once, if a row's follow one another there.
            let direct = if panel.width == W && !epilogue.accumulate {
                y.rows(at, (height, W))
            } else {
                None
            };
            let finish = |row: usize| Finish {
                bias: epilogue.bias.map(|bias| &bias[band.rows.0 + row]),
                relu: epilogue.relu,
            };
            match direct {
                // SAFETY: tasks have different bands or panels, and each panel of a band is
                // done once; the rows have `W` elements each.
                Some((first, stride)) => unsafe {
                    for row in band.empty.iter().map(|&row| usize::from(row)) {
                        let zero = finish(row).apply(T::Portable::splat(T::zero()));
                        for i in (0..W).step_by(T::Portable::LANES) {
                            zero.store(first.add(row * stride + i));
                        }
                    }
                },
                // SAFETY: as above.
                None if epilogue.accumulate => unsafe {
                    epilogue.begin(y, at, panel.width, sums);
                },
                None => {
                    for &row in &band.empty {
                        sums[usize::from(row)] = [T::zero(); W];
                    }
                }
            }
            let sums_of = sums.as_mut_ptr();
            for (tile, segments) in band.by_tile() {
                let x = &x[tile * a.height * W..];
                let mut row = |segment: Segment| {
                    // SAFETY: segments are within their band, and so are their rows, of which
                    // there are sums, and which `y` has; a band has an index for each entry.
                    unsafe {
                        let row = segment.row();
                        let sums = sums_of.add(row).cast::<T>();
                        let begins = segment.is_first() && !epilogue.accumulate;
                        let from = if begins { null() } else { sums.cast_const() };
                        let (to, finish) = match direct {
                            Some((first, stride)) if segment.is_last() => {
                                (first.add(row * stride), Some(finish(row)))
                            }
                            _ => (sums, None),
                        };
                        let values = values.as_ptr().add(segment.start());
                        let own = indices;
                        indices = indices.add(segment.len());
                        Row { values, indices: own, from, to, finish }
                    }
                };
                let mut rest = segments;
                while let [first, ..] = rest {
                    if const { W * size_of::<T>() == 16 } {
                        // SAFETY: as below.
                        unsafe { add_quarters::<T, V>(row(*first), first.len(), x.as_ptr()) };
                        rest = &rest[1..];
                        continue;
                    }
                    // As many chains of multiply-adds as the registers hold.
                    let pair =
                        if const { V::LANES * size_of::<T>() < 64 } { None } else { rest.get(1) };
                    let pair = pair.filter(|second| second.len() == first.len());
                    let (len, x) = (first.len(), x.as_ptr());
                    // SAFETY: as above; indices are of columns that there are, see `build`,
                    // and segments of a tile are of different rows.
                    unsafe {
                        match pair {
                            Some(second) => {
                                let rows = [row(*first), row(*second)];
                                add_segments::<T, V, W, E, 2>(rows, len, x);
                            }
                            None => add_segments::<T, V, W, E, 1>([row(*first)], len, x),
                        }
                    }
                    rest = &rest[1 + usize::from(pair.is_some())..];
                }
            }
            if direct.is_none() {
                // SAFETY: as above.
                unsafe { epilogue.end::<V, _>(y, at, panel.width, sums) };
            }
        }
    }
}

/// Multiplies bands with one column.
struct Column<'a, T> {
    product: Product<'a, T>,
    x: &'a [T],
    bands: Range<usize>,
}

impl<T: Float> ByVectors for Column<'_, T> {
    type Output = ();

    #[inline(always)]
    fn target(self) {
        self.run::<[T; LANES]>();
    }

    #[inline(always)]
    unsafe fn avx2(self) {
        self.run::<[T; LANES]>();
    }

    #[inline(always)]
    unsafe fn avx512(self) {
        self.run::<T::Gathered>();
    }
}

impl<T: Float> Column<'_, T> {
    #[inline(always)]
    fn run<S: Sums<T>>(self) {
        let Column { product: Product { a, values, y, epilogue }, x, bands } = self;
        assert!(x.len() >= a.columns && values.count() == a.entries());
        let mut sums = [[T::zero()]; BAND];
        let mut parts = [S::zero(); BAND];
        let mut buffer = Scratch::new(0);
        for band in &a.bands[bands] {
            let at = (band.rows.0, 0);
            let sums = &mut sums[..band.rows.1 - band.rows.0];
            // SAFETY: tasks have different bands.
            unsafe { epilogue.begin(y, at, 1, sums) };
            let Band { entries, .. } = *band;
            let values = some(values, entries.0..entries.1, &mut buffer);
            let mut indices = a.indices[entries.0..].as_ptr();
            let alone = band.tiles.len() == 1;
            let parts = &mut parts[..sums.len()];
            if !alone {
                parts.fill(S::zero());
            }
            for (tile, segments) in band.by_tile() {
                let x = &x[tile * a.height..];
                for segment in segments {
                    let (row, start) = (segment.row(), segment.start());
                    let so_far = if alone { S::zero() } else { parts[row] };
                    // SAFETY: as in `Multiply`; there are more indices than values.
                    let added = unsafe {
                        let values = values.as_ptr().add(start);
                        add_lanes(values, indices, segment.len(), x.as_ptr(), so_far)
                    };
                    // SAFETY: the band has an index for each entry.
                    indices = unsafe { indices.add(segment.len()) };
                    if alone {
                        sums[row][0] += added.total();
                    } else {
                        parts[row] = added;
                    }
                }
            }
            if !alone {
                for (sum, parts) in sums.iter_mut().zip(parts) {
                    sum[0] += parts.total();
                }
            }
            // SAFETY: as above.
            unsafe { epilogue.end::<T::Portable, _>(y, at, 1, sums) };
        }
    }
}
