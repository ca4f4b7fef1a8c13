//! Gradients of kernels with few filters: sums of products of lines, in lanes of places.

use super::planes::Layout;
use crate::numeric::element::Float;
use crate::numeric::lanes::sum_tree;
use crate::numeric::vector::Vector;

/// Places of the kernel in a tile.
const TAPS: usize = 6;

/// Lanes of a sum: 64 bytes.
const BYTES: usize = 64;

/// Lanes of a sum of this type.
pub fn lanes<T>() -> usize {
    BYTES / size_of::<T>()
}

/// Copies the results of a band, whose rows have so many columns, to where the planes have
/// what they are multiplied with; zeros where rows of the planes have no results. One filter
/// is `places` from the next in `lines`, and `channel` in `dy`.
#[inline(always)]
pub fn lay_out<T: Float>(
    layout: &Layout,
    (dy, channel): (&[T], usize),
    (height, columns): (usize, usize),
    (lines, places): (&mut [T], usize),
) {
    lines.fill(T::zero());
    for (f, line) in lines.chunks_exact_mut(places).enumerate() {
        for q in 0..height {
            let from = f * channel + q * columns;
            line[q * layout.pitch..][..columns].copy_from_slice(&dy[from..from + columns]);
        }
    }
}

/// Adds the products of lines with what they met at each place of the kernel to a gradient
/// `[filters, channels and places of the kernel]`.
#[inline(always)]
pub fn add_products<T: Float, V: Vector<T>, const Q: usize>(
    (lines, places): (&[T], usize),
    (planes, offsets): (&[T], &[usize]),
    gradient: &mut [T],
) {
    let inner = offsets.len();
    let filters = gradient.len() / inner;
    for top in (0..filters).step_by(Q) {
        for left in (0..inner).step_by(TAPS) {
            // Beyond the last, it is done once more and not used.
            let mut rows: [&[T]; Q] = [&[]; Q];
            for q in 0..Q {
                rows[q] = &lines[(top + q).min(filters - 1) * places..][..places];
            }
            let mut taps: [&[T]; TAPS] = [&[]; TAPS];
            for t in 0..TAPS {
                taps[t] = &planes[offsets[(left + t).min(inner - 1)]..][..places];
            }
            let sums = products::<T, V, Q>(rows, taps, places);
            for q in 0..Q.min(filters - top) {
                for t in 0..TAPS.min(inner - left) {
                    gradient[(top + q) * inner + left + t] += sums[q][t];
                }
            }
        }
    }
}

/// Sums of products of each two lines, which have `places` elements.
#[inline(always)]
fn products<T: Float, V: Vector<T>, const Q: usize>(
    lines: [&[T]; Q],
    taps: [&[T]; TAPS],
    places: usize,
) -> [[T; TAPS]; Q] {
    let lanes = lanes::<T>();
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
