//! Kernels of products with a panel of columns, and with one column.

use crate::numeric::element::Float;
use crate::numeric::vector::Vector;

/// Vectors of sums at most.
const SUMS: usize = 32;

/// Where a segment's entries are, and the sums of its row.
#[derive(Clone, Copy)]
pub(super) struct Row<T> {
    pub values: *const T,
    pub indices: *const u16,
    pub sums: *mut T,
}

/// Adds the products of segments of `R` rows, all of one length, to the `W` sums of each.
///
/// Entry `p` goes to partial sum `p % E` of an element, and those are added as a tree. The
/// sums of a row do not depend on `R`.
///
/// # Safety
/// The caller guarantees that of each row `len` entries may be read, that `x` has `W`
/// elements for each index, and that the rows have `W` sums of their own.
#[inline(always)]
pub(super) unsafe fn add_segments<
    T: Float,
    V: Vector<T>,
    const W: usize,
    const E: usize,
    const R: usize,
>(
    rows: [Row<T>; R],
    len: usize,
    x: *const T,
) {
    // Widths that belong to the other type are never asked for.
    if const { !W.is_multiple_of(V::LANES) || W / V::LANES * E > SUMS } {
        unreachable!("a panel of {W} columns");
    }
    let n = const { W / V::LANES };
    let unroll = const { if E < 4 { 4 } else { E } };
    let mut parts = [[V::splat(T::zero()); SUMS]; R];
    // SAFETY: see above.
    unsafe {
        for r in 0..R {
            for i in 0..n {
                parts[r][i] = V::load(rows[r].sums.add(i * V::LANES));
            }
        }
        let mut done = 0;
        while done + unroll <= len {
            for four in 0..unroll / 4 {
                let at = done + four * 4;
                // Four at once: as single ones LLVM would take them out of a vector.
                let columns = rows.map(|row| row.indices.add(at).cast::<u64>().read_unaligned());
                let a = rows.map(|row| V::load_four(row.values.add(at)));
                for j in 0..4 {
                    let e = (four * 4 + j) % E;
                    for r in 0..R {
                        let column = (columns[r] >> (16 * j)) as u16 as usize;
                        let x = x.add(column * W);
                        for i in 0..n {
                            let part = &mut parts[r][e * n + i];
                            *part = part.add_product(a[r][j], V::load(x.add(i * V::LANES)));
                        }
                    }
                }
            }
            done += unroll;
        }
        let rest = len - done;
        for j in 0..unroll - 1 {
            if j >= rest {
                break;
            }
            let e = j % E;
            for r in 0..R {
                let x = x.add(usize::from(*rows[r].indices.add(done + j)) * W);
                let a = V::splat(*rows[r].values.add(done + j));
                for i in 0..n {
                    let part = &mut parts[r][e * n + i];
                    *part = part.add_product(a, V::load(x.add(i * V::LANES)));
                }
            }
        }
        for r in 0..R {
            let mut half = E / 2;
            while half > 0 {
                for i in 0..half * n {
                    parts[r][i] = parts[r][i].add(parts[r][i + half * n]);
                }
                half /= 2;
            }
            for i in 0..n {
                parts[r][i].store(rows[r].sums.add(i * V::LANES));
            }
        }
    }
}

/// Accumulators of a dot product.
pub(super) const LANES: usize = 8;

/// Adds the products of a segment and one column to `LANES` sums: entry `p` to sum
/// `p % LANES`.
///
/// # Safety
/// As for [`add_segments`], with `x` of one element at each index.
#[inline(always)]
pub(super) unsafe fn add_lanes<T: Float>(
    values: *const T,
    indices: *const u16,
    len: usize,
    x: *const T,
    sums: &mut [T; LANES],
) {
    let mut lanes = *sums;
    // SAFETY: see above.
    unsafe {
        let mut done = 0;
        while done + LANES <= len {
            let columns = indices.add(done).cast::<[u64; 2]>().read_unaligned();
            let a = values.add(done).cast::<[T; LANES]>().read_unaligned();
            let x: [T; LANES] = std::array::from_fn(|l| {
                let column = (columns[l / 4] >> (16 * (l % 4))) as u16 as usize;
                *x.add(column)
            });
            for l in 0..LANES {
                lanes[l] = a[l].mul_add(x[l], lanes[l]);
            }
            done += LANES;
        }
        let rest = len - done;
        let (mut a, mut b) = ([T::zero(); LANES], [T::zero(); LANES]);
        for l in 0..LANES - 1 {
            if l >= rest {
                break;
            }
            a[l] = *values.add(done + l);
            b[l] = *x.add(usize::from(*indices.add(done + l)));
        }
        for l in 0..LANES {
            lanes[l] = a[l].mul_add(b[l], lanes[l]);
        }
    }
    *sums = lanes;
}
