//! Kernels of products with a panel of columns, and with one column.

use crate::numeric::element::Float;
use crate::numeric::gathered::{LANES, Sums};
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

/// Adds the products of a segment to the sums of its row, of which there are 16 bytes.
///
/// Entry `p` goes to partial sum `p % 4` of an element, and those are added as a tree. A vector
/// takes the partial sums of several entries.
///
/// # Safety
/// As for [`add_segments`], with 16 bytes for `W` elements.
#[inline(always)]
pub(super) unsafe fn add_quarters<T: Float, V: Vector<T>>(
    row: Row<'_, T>,
    len: usize,
    x: *const T,
) {
    let width = const { 16 / size_of::<T>() };
    // Entries of a vector, and vectors of partial sums.
    let each = const { V::LANES * size_of::<T>() / 16 };
    let n = const { 64 / size_of::<T>() / V::LANES };
    let mut parts = [V::splat(T::zero()); 4];
    // SAFETY: see above; a portable vector has 16 bytes.
    unsafe {
        let mut done = 0;
        while done + 4 <= len {
            let columns = row.indices.add(done).cast::<u64>().read_unaligned();
            let mut places = [x; 4];
            for j in 0..4 {
                places[j] = x.add((columns >> (16 * j)) as u16 as usize * width);
            }
            for i in 0..n {
                let a = V::spread(row.values.add(done + i * each));
                let mut own = places;
                own.rotate_left(i * each);
                parts[i] = parts[i].add_product(a, V::load_quarters(own));
            }
            done += 4;
        }
        let mut buffer = [T::zero(); 16];
        for i in 0..n {
            parts[i].store(buffer.as_mut_ptr().add(i * V::LANES));
        }
        let load = |j: usize| T::Portable::load(buffer.as_ptr().add(j * width));
        let mut parts = [load(0), load(1), load(2), load(3)];
        for j in 0..3 {
            if done + j >= len {
                break;
            }
            let x = x.add(usize::from(*row.indices.add(done + j)) * width);
            let a = T::Portable::splat(*row.values.add(done + j));
            parts[j] = parts[j].add_product(a, T::Portable::load(x));
        }
        let mut sum = parts[0].add(parts[2]).add(parts[1].add(parts[3]));
        if !row.from.is_null() {
            sum = T::Portable::load(row.from).add(sum);
        }
        let sum = row.finish.map_or(sum, |finish| finish.apply(sum));
        sum.store(row.to);
    }
}

/// Adds the products of a segment and one column to the sums of its row.
///
/// # Safety
/// The caller guarantees that `len` values may be read and `len + LANES` indices, and that `x`
/// has an element at each of the first `len`.
#[inline(always)]
pub(super) unsafe fn add_lanes<T: Float, S: Sums<T>>(
    values: *const T,
    indices: *const u16,
    len: usize,
    x: *const T,
    mut sums: S,
) -> S {
    let mut done = 0;
    // SAFETY: as the caller guarantees.
    unsafe {
        while done + LANES <= len {
            sums = sums.add_all(values.add(done), indices.add(done), x);
            done += LANES;
        }
        if done < len {
            sums = sums.add_some(values.add(done), indices.add(done), len - done, x);
        }
    }
    sums
}
