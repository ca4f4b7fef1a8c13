//! Kernels of products with a panel of columns, and with one column.

use crate::numeric::element::Float;
use crate::numeric::vector::Vector;

/// Vectors of sums at most.
const SUMS: usize = 32;

/// Where a segment's entries are, and the sums of its row.
#[derive(Clone, Copy)]
pub(super) struct Row<'a, T> {
    pub values: *const T,
    pub indices: *const u16,
    /// The sums so far; null if there are none.
    pub from: *const T,
    /// Where the sums go.
    pub to: *mut T,
    /// What becomes of finished sums.
    pub finish: Option<Finish<'a, T>>,
}

/// What becomes of the sums of a row.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a, T> {
    pub bias: Option<&'a T>,
    pub relu: bool,
}

impl<T: Float> Finish<'_, T> {
    #[inline(always)]
    pub fn apply<V: Vector<T>>(self, sum: V) -> V {
        let sum = match self.bias {
            Some(&bias) => sum.add(V::splat(bias)),
            None => sum,
        };
        if self.relu { sum.relu() } else { sum }
    }
}

/// Adds the products of segments of `R` rows, all of one length, to the `W` sums of each.
///
/// Entry `p` goes to partial sum `p % E` of an element, and those are added as a tree. The
/// sums of a row do not depend on `R`.
///
/// # Safety
/// The caller guarantees that of each row `len` entries may be read, that `x` has `W`
/// elements for each index, and that `from` and `to` have `W` for each row, of its own.
#[inline(always)]
pub(super) unsafe fn add_segments<
    T: Float,
    V: Vector<T>,
    const W: usize,
    const E: usize,
    const R: usize,
>(
    rows: [Row<'_, T>; R],
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
            if !rows[r].from.is_null() {
                for i in 0..n {
                    parts[r][i] = V::load(rows[r].from.add(i * V::LANES));
                }
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
                let sum = parts[r][i];
                let sum = rows[r].finish.map_or(sum, |finish| finish.apply(sum));
                sum.store(rows[r].to.add(i * V::LANES));
            }
        }
    }
}

/// Accumulators of a dot product, and indices that may be read beyond the last.
pub(super) const LANES: usize = 8;

/// The products of a segment and one column, added to `LANES` sums: entry `p` to sum
/// `p % LANES`.
///
/// # Safety
/// The caller guarantees that `len` values may be read, `readable` in all, that
/// `len + LANES` indices may be read, and that `x` has an element at each of the first `len`
/// and at 0.
#[inline(always)]
pub(super) unsafe fn add_lanes<T: Float>(
    (values, readable): (*const T, usize),
    indices: *const u16,
    len: usize,
    x: *const T,
    mut sums: [T; LANES],
) -> [T; LANES] {
    // SAFETY: see above.
    unsafe {
        // Four indices at once: as single ones LLVM would take them out of a vector.
        let gather = |columns: [u64; 2]| -> [T; LANES] {
            std::array::from_fn(|l| {
                let column = (columns[l / 4] >> (16 * (l % 4))) as u16 as usize;
                *x.add(column)
            })
        };
        let mut done = 0;
        while done + LANES <= len {
            let columns = indices.add(done).cast::<[u64; 2]>().read_unaligned();
            let a = values.add(done).cast::<[T; LANES]>().read_unaligned();
            let x = gather(columns);
            for l in 0..LANES {
                sums[l] = a[l].mul_add(x[l], sums[l]);
            }
            done += LANES;
        }
        let rest = len - done;
        if rest == 0 {
            return sums;
        }
        // The others count as zero times the first element, then as zero times zero.
        let columns = indices.add(done).cast::<[u64; 2]>().read_unaligned();
        let x = gather(std::array::from_fn(|i| {
            let kept = rest.saturating_sub(4 * i).min(4) as u32;
            columns[i] & (1_u64.checked_shl(16 * kept).unwrap_or(0).wrapping_sub(1))
        }));
        let a = if done + LANES <= readable {
            values.add(done).cast::<[T; LANES]>().read_unaligned()
        } else {
            let mut a = [T::zero(); LANES];
            a[..rest].copy_from_slice(std::slice::from_raw_parts(values.add(done), rest));
            a
        };
        for l in 0..LANES {
            let (a, x) = if l < rest { (a[l], x[l]) } else { (T::zero(), T::zero()) };
            sums[l] = a.mul_add(x, sums[l]);
        }
    }
    sums
}
