//! The product of the transpose and few columns, from the form that is prepared for the
//! matrix itself: each row is added to the sums of its columns, and no value is moved.

use std::ops::Range;

use super::product::Permuted;
use super::{BAND, Prepared};
use crate::linalg::matrix::{Matrix, MatrixMut};
use crate::numeric::element::Float;
use crate::numeric::vector::Vector;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, Kernel};
use crate::sparse::epilogue::Epilogue;
use crate::sparse::values::{Values, some};

/// Entries for each column of the matrix that pay for sums of their own.
const PIECE: usize = 16;

/// Pieces at most.
const PIECES: usize = 8;

/// Entries worth a task of their own.
const GRAIN: usize = 32 * 1024;

/// Bytes of a row of the dense matrix at most: more are gathered, by a pattern that is
/// prepared for the transpose, since that stores each sum but once.
const FEW: usize = 16;

/// Whether [`matmul_transposed_prepared`] does so many columns.
pub fn scatters<T>(columns: usize) -> bool {
    columns <= FEW / size_of::<T>()
}

/// `y = a^T x`, and what the epilogue makes of it, where `x` and `y` have few columns, see
/// [`scatters`].
///
/// The entries are cut into pieces, as many as their number allows and independent of the
/// number of threads; each has sums of its own, which are added in their order.
///
/// # Panics
/// If the shapes do not fit, or there are not as many values as entries.
pub fn matmul_transposed_prepared<T: Float>(
    a: &Prepared,
    data: &dyn Values<T>,
    x: Matrix<'_, T>,
    y: MatrixMut<'_, T>,
    epilogue: Epilogue<'_, T>,
) {
    match (x.columns(), size_of::<T>()) {
        (1, _) => product::<T, 1>(a, data, x, y, epilogue),
        (_, 4) => product::<T, { FEW / 4 }>(a, data, x, y, epilogue),
        (_, _) => product::<T, { FEW / 8 }>(a, data, x, y, epilogue),
    }
}

/// The product with `W` columns or fewer.
fn product<T: Float, const W: usize>(
    a: &Prepared,
    data: &dyn Values<T>,
    x: Matrix<'_, T>,
    y: MatrixMut<'_, T>,
    epilogue: Epilogue<'_, T>,
) {
    assert_eq!((a.columns, a.rows), (y.rows(), x.rows()));
    assert!(x.columns() == y.columns() && x.columns() <= W);
    assert_eq!(a.entries(), data.count());
    assert!(epilogue.bias.is_none_or(|bias| bias.len() == a.columns));
    let (columns, width, bands) = (a.columns, x.columns(), a.bands.len());
    if columns == 0 || width == 0 {
        return;
    }
    let moved = Permuted::of(a, data);
    let values = moved.as_ref().map_or(data, |moved| moved as &dyn Values<T>);
    let x = x.to_rows(W, true);
    let packed = x.as_slice().as_chunks::<W>().0;
    let of_parts = a.parts.as_ref().map(|parts| {
        let mut of_parts = memory::zeroed::<T>(memory::product(parts[a.rows], W));
        for (part, x) in parts.windows(2).zip(packed) {
            of_parts.as_chunks_mut::<W>().0[part[0]..part[1]].fill(*x);
        }
        of_parts
    });
    let x = of_parts.as_deref().map_or(packed, |parts| parts.as_chunks::<W>().0);
    let pieces = a.entries() / PIECE.saturating_mul(columns);
    let pieces = pieces.clamp(1, PIECES).min(bands.max(1));
    let mut sums = Scratch::<T>::new(memory::product(memory::product(pieces, columns), W));
    let shared = SharedMut::new(&mut sums);
    let grain = (GRAIN * pieces).div_ceil(a.entries().max(1));
    parallel::for_each_fine(
        0..pieces,
        grain,
        || (),
        |(), some| {
            for piece in some {
                // SAFETY: `sums` is borrowed until the loop ends, and pieces have their own.
                let sums = unsafe { shared.slice(piece * columns * W..(piece + 1) * columns * W) };
                sums.fill(T::zero());
                let bands = piece * bands / pieces..(piece + 1) * bands / pieces;
                let (sums, _) = sums.as_chunks_mut::<W>();
                simd::dispatch(Scatter { a, values, x, bands, sums });
            }
        },
    );
    let (sums, _) = sums.as_chunks::<W>();
    let y = y.share();
    let mut block = [[T::zero(); W]; BAND];
    for top in (0..columns).step_by(BAND) {
        let block = &mut block[..BAND.min(columns - top)];
        // SAFETY: `y` is borrowed by this call, and no other task runs.
        unsafe { epilogue.begin(&y, (top, 0), width, block) };
        for piece in sums.chunks_exact(columns) {
            for (total, sum) in block.iter_mut().zip(&piece[top..]) {
                for l in 0..W {
                    total[l] += sum[l];
                }
            }
        }
        // SAFETY: as above.
        unsafe { epilogue.end::<T::Portable, _>(&y, (top, 0), width, block) };
    }
}

/// Adds the rows of some bands, times those of `x`, to `sums`, of which there is one for each
/// column.
struct Scatter<'a, T, const W: usize> {
    a: &'a Prepared,
    values: &'a dyn Values<T>,
    x: &'a [[T; W]],
    bands: Range<usize>,
    sums: &'a mut [[T; W]],
}

impl<T: Float, const W: usize> Kernel for Scatter<'_, T, W> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Scatter { a, values, x, bands, sums } = self;
        assert!(values.count() == a.entries() && sums.len() == a.columns);
        let mut buffer = Scratch::new(0);
        for band in &a.bands[bands] {
            let entries = band.entries.0..band.entries.1;
            let values = some(values, entries.clone(), &mut buffer);
            let mut indices = &a.indices[entries];
            let x = &x[band.rows.0..band.rows.1];
            for (tile, segments) in band.by_tile() {
                let sums = &mut sums[tile * a.height..];
                for segment in segments {
                    let (columns, rest) = indices.split_at(segment.len());
                    indices = rest;
                    let values = &values[segment.start()..][..segment.len()];
                    let x = &x[segment.row()];
                    for (value, index) in values.iter().zip(columns) {
                        // SAFETY: indices are of columns that there are, see `build`.
                        let sum = unsafe { sums.get_unchecked_mut(usize::from(*index)) };
                        if const { W == 1 } {
                            sum[0] = value.mul_add(x[0], sum[0]);
                            continue;
                        }
                        // Widths that belong to the other type are never asked for.
                        if const { W != T::Portable::LANES } {
                            unreachable!("{W} columns");
                        }
                        // SAFETY: both have `W` elements.
                        unsafe {
                            let of = T::Portable::load(sum.as_ptr());
                            let x = T::Portable::load(x.as_ptr());
                            of.add_product(T::Portable::splat(*value), x).store(sum.as_mut_ptr());
                        }
                    }
                }
            }
        }
    }
}
