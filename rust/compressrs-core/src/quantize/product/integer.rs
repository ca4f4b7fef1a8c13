//! Products of codes: activations of eight bits and packed weights.
//!
//! With `u` a weight's stored byte, `z` the zero of its group and `x` the activations, the
//! sum of a group is `sum (u - z) x`, in integers: `u` is unsigned and `x` signed, as VNNI
//! takes them, and `-z sum x` is what a sum begins with. It fits an `i32` by
//! [`MAX_GROUP`](super::panels::MAX_GROUP); sums that wrap on the way are right in the end.

use std::ops::Range;

use super::activations::{Activations, Rows};
use super::epilogue::{Direct, Epilogue, Output, Shared};
use super::isa::{self, Body, Isa, LANES, Lanes, SHORT_STEPS, STEP};
use super::panels::{BLOCK_PANELS, LINE};
use super::weights::{Levels, Weights};
use crate::runtime::parallel;
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, Level};

/// Rows of a tile at most.
const TILE_ROWS: usize = 4;

/// Rows that go through a block of panels, part by part.
const ROWS: usize = 64;

/// Lines of a panel in a part: those of a block, 32 KiB, stay in the nearest caches while
/// rows pass.
const DEPTH: usize = 128;

/// Bytes of activations that are laid out at a time, about.
const BATCH: usize = 8 << 20;

/// Bytes ahead of what is read that memory is asked for.
const AHEAD: usize = 4096;

/// Clock cycles worth a task of their own; see [`parallel::for_each`].
const GRAIN_CYCLES: usize = 32 * 1024;

/// `out = x w'`, and what the epilogue makes of it.
///
/// Sums of groups are exact. They are rounded to `f32`, multiplied by the scale of their
/// group and added up, from the first group to the last, then multiplied by the scale of
/// their row, each operation rounded on its own.
///
/// # Panics
/// If sizes do not fit, codes stand for a table, or numbers are asked for without scales
/// or the other way round.
pub fn multiply(x: Rows<'_>, rows: usize, w: &Weights, epilogue: Epilogue<'_>, out: Output<'_>) {
    multiply_at(simd::level().expect("a level"), x, rows, w, epilogue, out);
}

/// As [`multiply`], at a given level, for tests that compare them.
///
/// # Panics
/// As there, or if this machine does not support `level`.
pub fn multiply_at(
    level: Level,
    x: Rows<'_>,
    rows: usize,
    w: &Weights,
    epilogue: Epilogue<'_>,
    mut out: Output<'_>,
) {
    assert!(level.is_supported(), "{} is not supported here", level.name());
    let (channels, columns) = (w.channels(), w.columns());
    assert_eq!((x.len(), out.len()), (rows * columns.count, rows * channels));
    assert_eq!(w.scales.is_none(), out.is_integers());
    assert_ne!(x.are_scaled(), out.is_integers());
    assert!(!matches!(x, Rows::Codes(_, scales) if scales.len() != rows));
    assert!(!matches!(w.levels, Levels::Table(_)), "a table has no integers");
    epilogue.require(channels);
    let batch = (BATCH / (columns.steps() * STEP).max(1)).next_multiple_of(ROWS).max(ROWS);
    let wide = isa::is_wide(level) && !columns.nibbles;
    let scaled = x.are_scaled();
    let out = out.share();
    for first in (0..rows).step_by(batch) {
        let count = batch.min(rows - first);
        let x = Activations::new(x, first, count, columns, wide);
        let product = Product { w, x: &x, first, rows: count, scaled, epilogue, out: &out };
        // Blocks one after another, each with all rows while it is in the second cache.
        let tasks = w.panels.blocks() * count.div_ceil(ROWS);
        let lines = columns.steps() * BLOCK_PANELS;
        let cycles = lines * (4 + ROWS.min(count) / if wide { 1 } else { 2 });
        parallel::for_each(0..tasks, GRAIN_CYCLES.div_ceil(cycles.max(1)), 1, |part| {
            // SAFETY: the level is supported; parts do not overlap.
            unsafe { isa::run_at(level, &product, part) };
        });
    }
}

/// A product of a batch of rows. A task is a block of panels with up to [`ROWS`] rows.
struct Product<'a> {
    w: &'a Weights,
    x: &'a Activations,
    /// The first row of the batch, and their number.
    first: usize,
    rows: usize,
    /// Whether rows have scales.
    scaled: bool,
    epilogue: Epilogue<'a>,
    out: &'a Shared<'a>,
}

impl Body for Product<'_> {
    #[inline(always)]
    unsafe fn run<I: Isa>(&self, tasks: Range<usize>) {
        let each = self.rows.div_ceil(ROWS);
        let mut sums = Scratch::new(ROWS.min(self.rows) * BLOCK_PANELS * LANES);
        let mut part = Scratch::new(ROWS.min(self.rows) * BLOCK_PANELS * LANES);
        for task in tasks {
            let top = task % each * ROWS;
            let rows = top..self.rows.min(top + ROWS);
            // SAFETY: as the caller guarantees.
            unsafe { self.block::<I>(task / each, rows, &mut sums, &mut part) };
        }
    }
}

impl Product<'_> {
    /// Multiplies rows of the batch by a block of panels.
    ///
    /// # Safety
    /// The caller guarantees the instruction set, and that nobody else writes the result.
    #[inline(always)]
    unsafe fn block<I: Isa>(
        &self,
        block: usize,
        rows: Range<usize>,
        sums: &mut [f32],
        part: &mut [i32],
    ) {
        let (columns, channels) = (self.w.columns(), self.w.channels());
        let width = self.w.panels.width(block);
        let last = (block * BLOCK_PANELS + width) * LANES;
        let direct = self.out.direct(&self.epilogue, last, channels);
        let mut start = 0;
        while start < columns.steps() {
            let end =
                if rows.len() <= TILE_ROWS { columns.steps() } else { self.end_of_part(start) };
            for top in rows.clone().step_by(TILE_ROWS) {
                let at = (top - rows.start) * BLOCK_PANELS * LANES;
                let tile = Tile {
                    product: self,
                    block,
                    row: top,
                    steps: start..end,
                    sums: sums[at..].as_mut_ptr(),
                    part: part[at..].as_mut_ptr(),
                    direct,
                    fresh: top == rows.start,
                };
                let height = TILE_ROWS.min(rows.end - top);
                // SAFETY: as the caller guarantees; panels and rows exist, and there are
                // sums for them.
                unsafe { tile.run_all::<I>(height, width) };
            }
            start = end;
        }
        if direct.is_none() || columns.steps() == 0 {
            // SAFETY: as above.
            unsafe { self.finish::<I::V>(block, rows, sums, part) };
        }
    }

    /// The end of a part that begins with a step: of groups, or of parts of a group.
    #[inline(always)]
    fn end_of_part(&self, start: usize) -> usize {
        let columns = self.w.columns();
        let (group, depth) = (columns.group_steps(), DEPTH * columns.per_line());
        let g = start / group;
        let end = if group > depth {
            (start + depth).min((g + 1) * group)
        } else {
            (g + depth / group) * group
        };
        end.min(columns.steps())
    }

    /// Writes what the sums of rows and a block become where tiles have not.
    ///
    /// # Safety
    /// The caller guarantees the instruction set, and that nobody else writes the result.
    #[inline(always)]
    unsafe fn finish<V: Lanes>(
        &self,
        block: usize,
        rows: Range<usize>,
        sums: &[f32],
        part: &[i32],
    ) {
        let channels = self.w.channels();
        let none = self.w.columns().steps() == 0;
        for (r, row) in rows.enumerate() {
            for p in 0..self.w.panels.width(block) {
                let at = (r * BLOCK_PANELS + p) * LANES;
                let to = (self.first + row, (block * BLOCK_PANELS + p) * LANES);
                // SAFETY: the caller guarantees the instruction set and the result; sums
                // are of sixteen lanes.
                unsafe {
                    if self.scaled {
                        let sum =
                            if none { V::splat_f(0.0) } else { V::load_f(sums[at..].as_ptr()) };
                        // Zeros have the sign of their scale, unless it is no number.
                        let y = V::mul_f(sum, V::splat_f(self.x.scales[row]));
                        self.out.write::<V>(&self.epilogue, y, to, channels);
                    } else {
                        let sum = if none { V::splat(0) } else { V::load(part[at..].as_ptr()) };
                        self.out.write_integers::<V>(sum, to, channels);
                    }
                }
            }
        }
    }
}

/// A few rows by the panels of a block, in a part of the steps.
struct Tile<'a> {
    product: &'a Product<'a>,
    block: usize,
    /// The first row, of the batch.
    row: usize,
    steps: Range<usize>,
    /// Sums of the finished groups, for each row and panel.
    sums: *mut f32,
    /// The sum of a group that is not finished, or of all where there are no scales.
    part: *mut i32,
    /// Where the sums of all groups are written to, instead.
    direct: Option<Direct<'a>>,
    /// Whether the weights of the part are read for the first time.
    fresh: bool,
}

impl Tile<'_> {
    /// By as many panels at once as have room for their sums in registers.
    ///
    /// # Safety
    /// The caller guarantees the instruction set, so many rows and panels, and sums for
    /// them.
    #[inline(always)]
    unsafe fn run_all<I: Isa>(&self, height: usize, width: usize) {
        // SAFETY: as the caller guarantees.
        unsafe {
            match (height, width) {
                (1, 4) => self.run::<I, 1, 4>(0),
                (2, 4) if I::V::LONG => self.run::<I, 2, 4>(0),
                (3, 4) if I::V::LONG => self.run::<I, 3, 4>(0),
                (4, 4) if I::V::LONG => self.run::<I, 4, 4>(0),
                (2, 4) => {
                    self.run::<I, 2, 2>(0);
                    self.run::<I, 2, 2>(2);
                }
                _ => {
                    for panel in 0..width {
                        match height {
                            1 => self.run::<I, 1, 1>(panel),
                            2 => self.run::<I, 2, 1>(panel),
                            3 => self.run::<I, 3, 1>(panel),
                            _ => self.run::<I, 4, 1>(panel),
                        }
                    }
                }
            }
        }
    }

    /// `R` rows by `P` panels.
    ///
    /// # Safety
    /// As of `run_all`.
    #[inline(always)]
    unsafe fn run<I: Isa, const R: usize, const P: usize>(&self, panel: usize) {
        let Product { w, x, .. } = self.product;
        let columns = w.columns();
        let (bytes, width) = w.panels.block(self.block);
        let first = self.block * BLOCK_PANELS + panel;
        let at = |r: usize, p: usize| (r * BLOCK_PANELS + panel + p) * LANES;
        let groups = columns.groups();
        let (group, total) = (columns.group_steps(), columns.steps());
        let wide = I::WIDE && !columns.nibbles;
        let step_bytes = if wide { 2 * STEP } else { STEP };
        // SAFETY: the caller guarantees the instruction set.
        let nothing = unsafe { I::V::splat(0) };
        let mut acc = [[nothing; P]; R];
        let to = |r: usize| (self.product.first + self.row + r, first * LANES);
        let direct = self.direct.filter(|_| self.steps.end == total);
        if let Some(direct) = direct {
            // The result is written soon.
            for r in 0..R {
                direct.ask(to(r), P);
            }
        }
        let mut step = self.steps.start;
        let mut g = step / group;
        // SAFETY: the caller guarantees the instruction set and the sums; what is read of
        // panels and activations lies before their ends, as steps do, and `Weights` has
        // scales and zeros for all panels and groups.
        unsafe {
            if step > 0 && (step > g * group || w.scales.is_none()) {
                for r in 0..R {
                    for p in 0..P {
                        acc[r][p] = I::V::load(self.part.add(at(r, p)));
                    }
                }
            }
            while step < self.steps.end {
                let of_group = |p: usize| ((first + p) * groups + g) * LANES;
                if step == g * group {
                    let zero: [_; P] = std::array::from_fn(|p| match &w.levels {
                        Levels::Zeros(zeros) => I::V::load_bytes(zeros[of_group(p)..].as_ptr()),
                        Levels::Zero(zero) => I::V::splat(i32::from(*zero)),
                        Levels::Table(_) => nothing,
                    });
                    for r in 0..R {
                        let sum = I::V::splat(-x.sums[(self.row + r) * groups + g]);
                        for p in 0..P {
                            let begin = I::V::mul(sum, zero[p]);
                            acc[r][p] = if w.scales.is_none() {
                                I::V::add(acc[r][p], begin)
                            } else {
                                begin
                            };
                        }
                    }
                }
                let end = self.steps.end.min(total.min((g + 1) * group));
                let lines = bytes[(step / columns.per_line() * width + panel) * LINE..].as_ptr();
                let rows = std::array::from_fn(|r| {
                    x.codes[(self.row + r) * x.stride + step * step_bytes..].as_ptr()
                });
                if columns.nibbles {
                    nibbles::<I, R, P>(
                        &mut acc,
                        lines,
                        width * LINE,
                        rows,
                        (end - step) / 2,
                        self.fresh,
                    );
                } else {
                    whole_bytes::<I, R, P>(
                        &mut acc,
                        lines,
                        width * LINE,
                        rows,
                        end - step,
                        self.fresh,
                    );
                }
                if let Some(scales) = &w.scales
                    && (end == total || end == (g + 1) * group)
                {
                    let scale: [_; P] =
                        std::array::from_fn(|p| I::V::load_f(scales[of_group(p)..].as_ptr()));
                    for r in 0..R {
                        let sums = self.sums.add(at(r, 0));
                        let mut y = [I::V::splat_f(0.0); P];
                        if g > 0 {
                            for p in 0..P {
                                y[p] = I::V::load_f(sums.add(p * LANES));
                            }
                        }
                        for p in 0..P {
                            let sum = I::V::mul_f(I::V::to_f(acc[r][p]), scale[p]);
                            y[p] = I::V::add_f(y[p], sum);
                        }
                        if let Some(direct) = direct.filter(|_| end == total) {
                            let scale = I::V::splat_f(x.scales[self.row + r]);
                            let y = y.map(|y| I::V::mul_f(y, scale));
                            direct.write::<I::V, P>(y, to(r));
                        } else {
                            for p in 0..P {
                                I::V::store_f(y[p], sums.add(p * LANES));
                            }
                        }
                    }
                    g += 1;
                } else if end == (g + 1) * group {
                    g += 1;
                }
                step = end;
            }
            // What begins a group, or all, is not gone on with.
            if w.scales.is_none() || step < total && step > g * group {
                for r in 0..R {
                    for p in 0..P {
                        I::V::store(acc[r][p], self.part.add(at(r, p)));
                    }
                }
            }
        }
    }
}

type Sums<I, const R: usize, const P: usize> = [[<<I as Isa>::V as Lanes>::I; P]; R];

/// Adds the products of steps whose weights are bytes.
///
/// # Safety
/// The caller guarantees the instruction set, so many lines of `P` panels, `stride` bytes
/// from one to the next, and activations for them.
#[inline(always)]
unsafe fn whole_bytes<I: Isa, const R: usize, const P: usize>(
    sums: &mut Sums<I, R, P>,
    lines: *const u8,
    stride: usize,
    x: [*const i8; R],
    steps: usize,
    fresh: bool,
) {
    let mut acc = *sums;
    let step_bytes = if I::WIDE { 2 * STEP } else { STEP };
    for s in 0..steps {
        // SAFETY: as the caller guarantees.
        unsafe {
            let line = lines.add(s * stride);
            if fresh {
                for p in 0..P {
                    ask(line.wrapping_add(AHEAD + p * LINE));
                }
            }
            let w: [I::Bytes; P] =
                std::array::from_fn(|p| I::bytes(I::V::load(line.add(p * LINE).cast())));
            for r in 0..R {
                for p in 0..P {
                    acc[r][p] = I::dot(acc[r][p], w[p], x[r].add(s * step_bytes));
                }
            }
        }
    }
    *sums = acc;
}

/// Adds the products of pairs of steps whose weights are halves of bytes.
///
/// # Safety
/// As of [`whole_bytes`].
#[inline(always)]
unsafe fn nibbles<I: Isa, const R: usize, const P: usize>(
    sums: &mut Sums<I, R, P>,
    lines: *const u8,
    stride: usize,
    x: [*const i8; R],
    pairs: usize,
    fresh: bool,
) {
    let mut acc = *sums;
    let run = if I::SHORT { SHORT_STEPS / 2 } else { pairs.max(1) };
    for start in (0..pairs).step_by(run) {
        // SAFETY: as the caller guarantees; short sums are of so many steps at most.
        unsafe {
            let mut short = if I::SHORT { [[I::V::splat(0); P]; R] } else { acc };
            for s in start..pairs.min(start + run) {
                let line = lines.add(s * stride);
                if fresh {
                    for p in 0..P {
                        ask(line.wrapping_add(AHEAD + p * LINE));
                    }
                }
                for p in 0..P {
                    let words = I::V::load(line.add(p * LINE).cast());
                    let (lower, upper) = (I::V::lower(words), I::V::upper(words));
                    for r in 0..R {
                        let x = x[r].add(s * 2 * STEP);
                        let sum = I::dot_nibbles(short[r][p], lower, x);
                        short[r][p] = I::dot_nibbles(sum, upper, x.add(STEP));
                    }
                }
            }
            for r in 0..R {
                for p in 0..P {
                    acc[r][p] =
                        if I::SHORT { I::widen(acc[r][p], short[r][p]) } else { short[r][p] };
                }
            }
        }
    }
    *sums = acc;
}

/// Asks for a line of the cache, which need not exist.
#[inline(always)]
pub(super) fn ask(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which reads nothing and takes any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
