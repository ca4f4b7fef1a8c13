//! Masks of rows and of groups within them; norms of blocks.

use std::marker::PhantomData;

use super::order::Order;
use super::threshold::{HasNan, find_nan};
use crate::numeric::element::{Element, Float};
use crate::numeric::lanes;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// Values worth a task of their own.
const GRAIN_ELEMENTS: usize = 64 * 1024;

/// Rows that make such a task.
fn rows_of_grain(columns: usize) -> usize {
    GRAIN_ELEMENTS.div_ceil(columns.max(1))
}

/// A mask that removes exactly the `k` smallest values of each row.
///
/// # Errors
/// If a value is NaN; the mask is as it was then.
///
/// # Panics
/// If lengths do not fit, or there are fewer than `k` columns.
pub fn mask_rows<O: Order, E: Element>(
    w: &[E],
    columns: usize,
    k: usize,
    mask: &mut [u8],
) -> Result<(), HasNan> {
    assert_eq!(w.len(), mask.len());
    assert!(k <= columns && w.len() == w.len() / columns.max(1) * columns);
    if w.is_empty() {
        return Ok(());
    }
    if find_nan(&[w]).is_some() {
        return Err(HasNan);
    }
    let rows = w.len() / columns;
    let shared = SharedMut::new(mask);
    parallel::for_each(0..rows, rows_of_grain(columns), 1, |part| {
        // SAFETY: `mask` is borrowed for the whole call and parts do not overlap.
        let mask = unsafe { shared.slice(part.start * columns..part.end * columns) };
        let w = &w[part.start * columns..part.end * columns];
        let mut keys = memory::with_capacity(columns);
        for (w, mask) in w.chunks_exact(columns).zip(mask.chunks_exact_mut(columns)) {
            mask.fill(if k == columns { 0 } else { 1 });
            if k == 0 || k == columns {
                continue;
            }
            keys.clear();
            keys.extend(w.iter().map(|&x| O::key(x)));
            let (smaller, &mut bound, _) = keys.select_nth_unstable(k);
            let mut ties = k - smaller.iter().filter(|key| **key < bound).count();
            for (keep, &x) in mask.iter_mut().zip(w) {
                let key = O::key(x);
                let tie = key == bound && ties > 0;
                ties -= usize::from(tie);
                *keep = u8::from(key >= bound && !tie);
            }
        }
    });
    Ok(())
}

/// A mask that keeps the `n` largest of each `m` values. NaN counts as the largest.
///
/// # Panics
/// If lengths do not fit, or `m` is 0 or less than `n`.
pub fn mask_n_of_m<O: Order, E: Element>(w: &[E], n: usize, m: usize, mask: &mut [u8]) {
    assert_eq!(w.len(), mask.len());
    assert!(n <= m && m > 0 && w.len().is_multiple_of(m));
    let shared = SharedMut::new(mask);
    parallel::for_each(0..w.len() / m, rows_of_grain(m), 1, |part| {
        let part = part.start * m..part.end * m;
        // SAFETY: `mask` is borrowed for the whole call and parts do not overlap.
        let mask = unsafe { shared.slice(part.clone()) };
        simd::dispatch(NOfM { order: PhantomData::<O>, w: &w[part], n, m, mask });
    });
}

struct NOfM<'a, O, E> {
    order: PhantomData<O>,
    w: &'a [E],
    n: usize,
    m: usize,
    mask: &'a mut [u8],
}

impl<O: Order, E: Element> Kernel for NOfM<'_, O, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match self.m {
            2 => groups::<O, E, 2>(self.w, self.n, self.mask),
            4 => groups::<O, E, 4>(self.w, self.n, self.mask),
            8 => groups::<O, E, 8>(self.w, self.n, self.mask),
            m => {
                let mut keys = memory::zeroed(m);
                for (w, mask) in self.w.chunks_exact(m).zip(self.mask.chunks_exact_mut(m)) {
                    keys.iter_mut().zip(w).for_each(|(key, &x)| *key = O::key(x));
                    keep_top_n(&keys, self.n, mask);
                }
            }
        }
    }
}

#[inline(always)]
fn groups<O: Order, E: Element, const M: usize>(w: &[E], n: usize, mask: &mut [u8]) {
    for (w, mask) in w.as_chunks::<M>().0.iter().zip(mask.as_chunks_mut::<M>().0) {
        keep_top_n(&w.map(|x| O::key(x)), n, mask);
    }
}

/// Keeps what fewer than `n` others outrank: the larger ones, and equal ones after it.
#[inline(always)]
fn keep_top_n(keys: &[u64], n: usize, mask: &mut [u8]) {
    for (i, keep) in mask.iter_mut().enumerate() {
        let mut above = 0;
        for (j, key) in keys.iter().enumerate() {
            above += usize::from(*key > keys[i] || (*key == keys[i] && j > i));
        }
        *keep = u8::from(above < n);
    }
}

/// From how many values on a row is summed in lanes.
const LONG: usize = 32;

/// How the values of a block become one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// The sum of the values.
    Sum,
    /// The sum of the magnitudes.
    One,
    /// The root of the sum of the squares.
    Two,
    /// The largest magnitude.
    Max,
}

/// A norm of each block of `height` by `width`, in double precision, row by row of blocks.
///
/// # Panics
/// If lengths do not fit, or blocks do not divide the matrix.
pub fn block_norms<E: Element>(
    w: &[E],
    columns: usize,
    block: (usize, usize),
    norm: Norm,
    out: &mut [f64],
) {
    let (height, width) = block;
    assert!(height > 0 && width > 0 && columns.is_multiple_of(width));
    assert_eq!(w.len(), out.len() * height * width);
    let across = columns / width;
    let down = out.len() / across.max(1);
    let shared = SharedMut::new(out);
    // By whichever there is more of: rows of blocks, or columns.
    let by_columns = down < across;
    let (count, each) =
        if by_columns { (across, width * height * down) } else { (down, height * columns) };
    parallel::for_each(0..count, rows_of_grain(each), 1, |part| {
        let (rows, lines) = if by_columns { (0..down, part) } else { (part, 0..across) };
        for row in rows {
            let range = row * across + lines.start..row * across + lines.end;
            // SAFETY: `out` is borrowed for the whole call and parts do not overlap.
            let out = unsafe { shared.slice(range) };
            let w = &w[row * height * columns + lines.start * width..];
            simd::dispatch(Norms { w, columns, block, norm, out });
        }
    });
}

/// A row of blocks.
struct Norms<'a, E> {
    /// From the first of its values on.
    w: &'a [E],
    columns: usize,
    block: (usize, usize),
    norm: Norm,
    out: &'a mut [f64],
}

impl<E: Element> Kernel for Norms<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match self.norm {
            Norm::Sum => self.add_up(|x| x),
            Norm::One => self.add_up(f64::abs),
            Norm::Two => {
                let Norms { w, columns, block, norm, out } = self;
                Norms { w, columns, block, norm, out: &mut *out }.add_up(|x| x * x);
                out.iter_mut().for_each(|sum| *sum = sum.sqrt());
            }
            // NaN stays.
            Norm::Max => self.fold(|a, x| if a.is_nan() || x.abs() <= a { a } else { x.abs() }),
        }
    }
}

impl<E: Element> Norms<'_, E> {
    /// Sums of long rows run in lanes, of short ones straight on.
    #[inline(always)]
    fn add_up(self, term: impl Fn(f64) -> f64) {
        let width = self.block.1;
        if width < LONG {
            return self.fold(|a, x| a + term(x));
        }
        self.out.fill(0.0);
        for row in 0..self.block.0 {
            for (b, out) in self.out.iter_mut().enumerate() {
                let w = &self.w[row * self.columns + b * width..][..width];
                *out += lanes::sums(width, |j| [term(w[j].load().to_f64())])[0];
            }
        }
    }

    /// Takes the values of each block in one after another.
    #[inline(always)]
    fn fold(self, take: impl Fn(f64, f64) -> f64) {
        let width = self.block.1;
        self.out.fill(0.0);
        for row in 0..self.block.0 {
            let w = &self.w[row * self.columns..][..self.out.len() * width];
            for (out, w) in self.out.iter_mut().zip(w.chunks_exact(width)) {
                *out = w.iter().fold(*out, |a, x| take(a, x.load().to_f64()));
            }
        }
    }
}

/// Spreads what is kept of blocks over their values.
///
/// # Panics
/// If lengths do not fit, or blocks do not divide the matrix.
pub fn expand_blocks(blocks: &[u8], block: (usize, usize), columns: usize, mask: &mut [u8]) {
    let (height, width) = block;
    assert!(height > 0 && width > 0 && columns.is_multiple_of(width));
    assert_eq!(mask.len(), blocks.len() * height * width);
    let across = columns / width;
    let rows = mask.len() / columns.max(1);
    let shared = SharedMut::new(mask);
    parallel::for_each(0..rows, rows_of_grain(columns), 1, |part| {
        for row in part {
            // SAFETY: `mask` is borrowed for the whole call and rows do not overlap.
            let mask = unsafe { shared.slice(row * columns..(row + 1) * columns) };
            let blocks = &blocks[row / height * across..][..across];
            for (mask, keep) in mask.chunks_exact_mut(width).zip(blocks) {
                mask.fill(*keep);
            }
        }
    });
}
