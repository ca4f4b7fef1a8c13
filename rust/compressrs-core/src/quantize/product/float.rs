//! Products of numbers and packed weights, which are widened on the way.
//!
//! Up to [`TILE_ROWS`] rows widen in registers; more share weights that were widened once, part
//! by part, in the first cache. Both sum in the same order: the sum of a group is one chain
//! of fused multiply-adds, from the first to the last column.

use std::ops::Range;

use super::epilogue::{Direct, Epilogue, Output, Shared};
use super::integer::ask;
use super::isa::{self, FloatBody, LANES, Lanes, STEP};
use super::panels::{BLOCK_PANELS, Columns, LINE};
use super::weights::{Levels, Weights};
use crate::linalg::gemm::pack_tiles;
use crate::linalg::matrix::Matrix;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, Level};

/// Rows that widen weights in registers at most.
const TILE_ROWS: usize = 4;

/// Rows that go through a block of panels, part by part: a multiple of the rows of a tile.
const ROWS: usize = 192;

/// Rows of a tile where a register holds sixteen lanes, and where it holds eight.
const TALL: usize = 12;
const LOW: usize = 6;

/// Steps of a part: 16 KiB of a panel's numbers, of which a tile takes two at most.
const DEPTH: usize = 64;

/// Bytes of copied rows at a time, about.
const BATCH: usize = 16 << 20;

/// Bytes ahead of what is read that memory is asked for.
const AHEAD: usize = 1024;

/// Clock cycles worth a task of their own; see [`parallel::for_each`].
const GRAIN_CYCLES: usize = 32 * 1024;

/// `out = x w'` for the weights that codes stand for, and what the epilogue makes of it.
///
/// The sum of a group is multiplied by its scale and added to those before, each operation
/// rounded on its own.
///
/// # Panics
/// If sizes do not fit, or there are no scales.
pub fn multiply_float(
    x: &[f32],
    rows: usize,
    w: &Weights,
    epilogue: Epilogue<'_>,
    out: Output<'_>,
) {
    multiply_float_at(simd::level().expect("a level"), x, rows, w, epilogue, out);
}

/// As [`multiply_float`], at a given level, for tests that compare them.
///
/// # Panics
/// As there, or if this machine does not support `level`.
pub fn multiply_float_at(
    level: Level,
    x: &[f32],
    rows: usize,
    w: &Weights,
    epilogue: Epilogue<'_>,
    mut out: Output<'_>,
) {
    assert!(level.is_supported(), "{} is not supported here", level.name());
    let (channels, columns) = (w.channels(), w.columns());
    assert_eq!((x.len(), out.len()), (rows * columns.count, rows * channels));
    assert!(w.scales.is_some() && !out.is_integers());
    epilogue.require(channels);
    let stride = columns.steps() * STEP;
    let batch = (BATCH / (4 * stride).max(1)).next_multiple_of(ROWS);
    let out = out.share();
    for first in (0..rows).step_by(batch) {
        let count = batch.min(rows - first);
        let padded;
        let x = &x[first * columns.count..(first + count) * columns.count];
        let x = if stride == columns.count {
            x
        } else {
            padded = pad(x, count, columns);
            &padded
        };
        let is_long = isa::is_long(level);
        let lines;
        let x = if count <= TILE_ROWS {
            x
        } else {
            let tall = if is_long { TALL } else { LOW };
            let mut packed = Scratch::new(count.next_multiple_of(tall) * stride);
            let x = Matrix::row_major(x, count, stride);
            if is_long {
                pack_tiles::<f32, TALL>(x, &mut packed);
            } else {
                pack_tiles::<f32, LOW>(x, &mut packed);
            }
            lines = packed;
            &lines
        };
        let product = Product { w, x, stride, first, rows: count, epilogue, out: &out };
        let tasks = w.panels.blocks() * count.div_ceil(ROWS);
        let cycles = columns.steps() * BLOCK_PANELS * STEP * (4 + ROWS.min(count));
        parallel::for_each(0..tasks, GRAIN_CYCLES.div_ceil(cycles.max(1)), 1, |part| {
            // SAFETY: the level is supported; parts do not overlap.
            unsafe { isa::run_floats_at(level, &product, part) };
        });
    }
}

/// Rows whose groups each begin with a step.
fn pad(x: &[f32], rows: usize, columns: Columns) -> Scratch<f32> {
    let stride = columns.steps() * STEP;
    let mut padded = Scratch::new(rows * stride);
    let shared = SharedMut::new(&mut padded);
    parallel::for_each(0..rows, (GRAIN_CYCLES / stride.max(1)).max(1), 1, |part| {
        for row in part {
            // SAFETY: rows do not overlap, and `padded` is borrowed until the loop ends.
            let to = unsafe { shared.slice(row * stride..(row + 1) * stride) };
            let from = &x[row * columns.count..(row + 1) * columns.count];
            for (g, to) in to.chunks_mut(columns.group_steps() * STEP).enumerate() {
                let within = columns.of_group(g);
                let (to, rest) = to.split_at_mut(within.len());
                to.copy_from_slice(&from[within]);
                rest.fill(0.0);
            }
        }
    });
    padded
}

/// A product of a batch of rows. A task is up to [`ROWS`] rows with a block of panels; rows
/// stay in the second cache while all blocks pass.
struct Product<'a> {
    w: &'a Weights,
    /// Rows, `stride` apart; of more than [`TILE_ROWS`], tiles whose columns lie side by side.
    x: &'a [f32],
    stride: usize,
    /// The first row of the batch, and their number.
    first: usize,
    rows: usize,
    epilogue: Epilogue<'a>,
    out: &'a Shared<'a>,
}

impl FloatBody for Product<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(&self, tasks: Range<usize>) {
        let each = self.w.panels.blocks();
        let height = ROWS.min(self.rows);
        let mut sums = Scratch::new(height * BLOCK_PANELS * LANES);
        let mut part =
            Scratch::new(if height > TILE_ROWS { height * BLOCK_PANELS * LANES } else { 0 });
        let mut wide = Scratch::new(if height > TILE_ROWS { 2 * DEPTH * STEP * LANES } else { 0 });
        for task in tasks {
            let (block, top) = (task % each, task / each * ROWS);
            let rows = top..self.rows.min(top + ROWS);
            let width = self.w.panels.width(block);
            let last = (block * BLOCK_PANELS + width) * LANES;
            let direct = self.out.direct(&self.epilogue, last, self.w.channels());
            let state = State {
                product: self,
                block,
                top,
                sums: sums.as_mut_ptr(),
                part: part.as_mut_ptr(),
                direct,
            };
            // SAFETY: the caller guarantees the instruction set; panels and rows exist, and
            // there are sums for them.
            unsafe {
                if self.rows <= TILE_ROWS {
                    state.narrow::<V>(rows.len(), width);
                } else {
                    state.widened::<V>(rows.len(), width, &mut wide);
                }
                if direct.is_none() || self.stride == 0 {
                    self.finish::<V>(block, rows, &sums);
                }
            }
        }
    }
}

impl Product<'_> {
    /// Writes what the sums of rows and a block become where tiles have not.
    ///
    /// # Safety
    /// The caller guarantees the instruction set, and that nobody else writes the result.
    #[inline(always)]
    unsafe fn finish<V: Lanes>(&self, block: usize, rows: Range<usize>, sums: &[f32]) {
        let none = self.stride == 0;
        for (r, row) in rows.enumerate() {
            for p in 0..self.w.panels.width(block) {
                let at = (r * BLOCK_PANELS + p) * LANES;
                let to = (self.first + row, (block * BLOCK_PANELS + p) * LANES);
                // SAFETY: as the caller guarantees; sums are of sixteen lanes.
                unsafe {
                    let y = if none { V::splat_f(0.0) } else { V::load_f(sums[at..].as_ptr()) };
                    self.out.write::<V>(&self.epilogue, y, to, self.w.channels());
                }
            }
        }
    }
}

/// Sums of rows by the panels of a block.
struct State<'a> {
    product: &'a Product<'a>,
    block: usize,
    /// The first row, of the batch.
    top: usize,
    /// Sums of the finished groups, for each row and panel.
    sums: *mut f32,
    /// Sums of a group that is not finished.
    part: *mut f32,
    /// Where the sums of all groups are written to, instead.
    direct: Option<Direct<'a>>,
}

impl State<'_> {
    /// What stands for 0 in a panel and a group, plus 2^23.
    #[inline(always)]
    unsafe fn zero<V: Lanes>(&self, panel: usize, g: usize) -> V::F {
        let w = self.product.w;
        let at = ((self.block * BLOCK_PANELS + panel) * w.columns().groups() + g) * LANES;
        // SAFETY: the caller guarantees the instruction set; there are zeros for all panels.
        unsafe {
            V::shifted(match &w.levels {
                Levels::Zero(zero) => V::splat(i32::from(*zero)),
                Levels::Zeros(zeros) => V::load_bytes(zeros[at..].as_ptr()),
                Levels::Table(_) => V::splat(0),
            })
        }
    }

    /// Adds the sums of a group, of `R` rows and `P` panels, to those before.
    #[inline(always)]
    unsafe fn add<V: Lanes, const R: usize, const P: usize>(
        &self,
        (row, panel): (usize, usize),
        g: usize,
        mut group: [[V::F; P]; R],
    ) {
        let Product { w, first, .. } = *self.product;
        let Some(scales) = &w.scales else { return };
        let groups = w.columns().groups();
        let panels = self.block * BLOCK_PANELS + panel;
        // SAFETY: the caller guarantees the instruction set and the sums; there are scales
        // for all panels.
        unsafe {
            let sums =
                |r: usize, p: usize| self.sums.add(((row + r) * BLOCK_PANELS + panel + p) * LANES);
            let scale: [_; P] = std::array::from_fn(|p| {
                V::load_f(scales[((panels + p) * groups + g) * LANES..].as_ptr())
            });
            for r in 0..R {
                for p in 0..P {
                    let before = if g == 0 { V::splat_f(0.0) } else { V::load_f(sums(r, p)) };
                    group[r][p] = V::add_f(before, V::mul_f(group[r][p], scale[p]));
                }
            }
            if let (Some(direct), true) = (self.direct, g + 1 == groups) {
                for r in 0..R {
                    let to = (first + self.top + row + r, panels * LANES);
                    direct.write::<V, P>(group[r], to);
                }
            } else {
                for r in 0..R {
                    for p in 0..P {
                        V::store_f(group[r][p], sums(r, p));
                    }
                }
            }
        }
    }

    /// All of a few rows.
    ///
    /// # Safety
    /// The caller guarantees the instruction set, so many rows and panels, and sums.
    #[inline(always)]
    unsafe fn narrow<V: Lanes>(&self, height: usize, width: usize) {
        // SAFETY: as the caller guarantees.
        unsafe {
            match (height, width) {
                (1, 4) => self.few::<V, 1, 4>(0),
                (2, 4) => {
                    self.few::<V, 2, 2>(0);
                    self.few::<V, 2, 2>(2);
                }
                _ => {
                    for panel in 0..width {
                        match height {
                            1 => self.few::<V, 1, 1>(panel),
                            2 => self.few::<V, 2, 1>(panel),
                            3 => self.few::<V, 3, 1>(panel),
                            _ => self.few::<V, 4, 1>(panel),
                        }
                    }
                }
            }
        }
    }

    /// `R` rows by `P` panels.
    ///
    /// # Safety
    /// As of `narrow`.
    #[inline(always)]
    unsafe fn few<V: Lanes, const R: usize, const P: usize>(&self, panel: usize) {
        let Product { w, x, stride, .. } = *self.product;
        let columns = w.columns();
        let (bytes, width) = w.panels.block(self.block);
        let (group, total) = (columns.group_steps(), columns.steps());
        for g in 0..columns.groups() {
            let steps = g * group..total.min((g + 1) * group);
            // SAFETY: as the caller guarantees; what is read of panels and rows lies before
            // their ends, as steps do.
            unsafe {
                let mut zeros = [V::splat_f(0.0); P];
                for p in 0..P {
                    zeros[p] = self.zero::<V>(panel + p, g);
                }
                let mut acc = [[V::splat_f(0.0); P]; R];
                let rows: [*const f32; R] =
                    std::array::from_fn(|r| x[(self.top + r) * stride..].as_ptr());
                for step in steps.step_by(columns.per_line()) {
                    let line = bytes[(step / columns.per_line() * width + panel) * LINE..].as_ptr();
                    for p in 0..P {
                        let words = V::load(line.add(p * LINE).cast());
                        if R == 1 {
                            ask(line.wrapping_add(AHEAD + p * LINE));
                        }
                        if columns.nibbles {
                            let w = widen::<V>(&w.levels, V::lower(words), zeros[p]);
                            chain::<V, R, P>(&mut acc, p, &rows, step * STEP, w);
                            let w = widen::<V>(&self.product.w.levels, V::upper(words), zeros[p]);
                            chain::<V, R, P>(&mut acc, p, &rows, (step + 1) * STEP, w);
                        } else {
                            let w = widen::<V>(&w.levels, words, zeros[p]);
                            chain::<V, R, P>(&mut acc, p, &rows, step * STEP, w);
                        }
                    }
                }
                self.add::<V, R, P>((0, panel), g, acc);
            }
        }
    }

    /// All of many rows.
    ///
    /// # Safety
    /// As of `narrow`.
    #[inline(always)]
    unsafe fn widened<V: Lanes>(&self, height: usize, width: usize, wide: &mut [f32]) {
        let mut panel = 0;
        while panel < width {
            // SAFETY: as the caller guarantees.
            unsafe {
                if V::LONG && panel + 2 <= width {
                    self.many::<V, 2>(height, panel, wide);
                    panel += 2;
                } else {
                    self.many::<V, 1>(height, panel, wide);
                    panel += 1;
                }
            }
        }
    }

    /// Many rows by `P` panels.
    #[inline(always)]
    unsafe fn many<V: Lanes, const P: usize>(&self, height: usize, panel: usize, wide: &mut [f32]) {
        let columns = self.product.w.columns();
        let (group, total) = (columns.group_steps(), columns.steps());
        let wide = &mut wide[..P * DEPTH * STEP * LANES];
        let mut start = 0;
        while start < total {
            let g = start / group;
            let last = total.min((g + 1) * group);
            let end = last.min(start + DEPTH);
            let part = Part { panel, g, start, end, begins: start == g * group, ends: end == last };
            // SAFETY: as the caller guarantees; `wide` has room for a part.
            unsafe {
                self.widen_part::<V, P>(&part, wide);
                let mut row = 0;
                while row < height {
                    row += match height - row {
                        TALL.. if V::LONG => self.tile::<V, TALL, TALL, P>(row, &part, wide),
                        8.. if V::LONG => self.tile::<V, 8, TALL, P>(row, &part, wide),
                        4.. if V::LONG => self.tile::<V, 4, TALL, P>(row, &part, wide),
                        2.. if V::LONG => self.tile::<V, 2, TALL, P>(row, &part, wide),
                        _ if V::LONG => self.tile::<V, 1, TALL, P>(row, &part, wide),
                        LOW.. => self.tile::<V, LOW, LOW, P>(row, &part, wide),
                        4.. => self.tile::<V, 4, LOW, P>(row, &part, wide),
                        2.. => self.tile::<V, 2, LOW, P>(row, &part, wide),
                        _ => self.tile::<V, 1, LOW, P>(row, &part, wide),
                    };
                }
            }
            start = end;
        }
    }

    /// Writes the numbers of a part, `P` times sixteen a column.
    #[inline(always)]
    unsafe fn widen_part<V: Lanes, const P: usize>(&self, part: &Part, wide: &mut [f32]) {
        let w = self.product.w;
        let columns = w.columns();
        let (bytes, width) = w.panels.block(self.block);
        for p in 0..P {
            // SAFETY: the caller guarantees the instruction set, the panels, and room.
            unsafe {
                let zero = self.zero::<V>(part.panel + p, part.g);
                let mut to = wide[p * LANES..].as_mut_ptr();
                let lines = part.start / columns.per_line()..part.end / columns.per_line();
                for line in lines.clone() {
                    let line = bytes[(line * width + part.panel + p) * LINE..].as_ptr();
                    // Those of the next part.
                    ask(line.wrapping_add(lines.len() * width * LINE));
                    let words = V::load(line.cast());
                    if columns.nibbles {
                        to = store::<V, P>(widen::<V>(&w.levels, V::lower(words), zero), to);
                        to = store::<V, P>(widen::<V>(&w.levels, V::upper(words), zero), to);
                    } else {
                        to = store::<V, P>(widen::<V>(&w.levels, words, zero), to);
                    }
                }
            }
        }
    }

    /// `R` rows, from `row` on, of a tile of `T`, by a part; returns `R`.
    #[inline(always)]
    unsafe fn tile<V: Lanes, const R: usize, const T: usize, const P: usize>(
        &self,
        row: usize,
        part: &Part,
        wide: &[f32],
    ) -> usize {
        let Product { x, stride, .. } = *self.product;
        let count = (part.end - part.start) * STEP;
        let at = |r: usize, p: usize| ((row + r) * BLOCK_PANELS + part.panel + p) * LANES;
        // Smaller tiles are parts of the last one.
        let (tile, within) = ((self.top + row) / T, (self.top + row) % T);
        assert!(within + R <= T);
        let x = x[(tile * stride + part.start * STEP) * T..][..count * T].as_ptr();
        let w = wide[..count * P * LANES].as_ptr();
        // SAFETY: the caller guarantees the instruction set and sums; slices were taken of
        // all that is read.
        unsafe {
            let mut acc = [[V::splat_f(0.0); P]; R];
            if let (Some(direct), true) =
                (self.direct, part.end == self.product.w.columns().steps())
            {
                // The result is written soon.
                let channel = (self.block * BLOCK_PANELS + part.panel) * LANES;
                for r in 0..R {
                    direct.ask((self.product.first + self.top + row + r, channel), P);
                }
            }
            if !part.begins {
                for r in 0..R {
                    for p in 0..P {
                        acc[r][p] = V::load_f(self.part.add(at(r, p)));
                    }
                }
            }
            products::<V, R, T, P>(&mut acc, x.add(within), w, count);
            if part.ends {
                self.add::<V, R, P>((row, part.panel), part.g, acc);
            } else {
                for r in 0..R {
                    for p in 0..P {
                        V::store_f(acc[r][p], self.part.add(at(r, p)));
                    }
                }
            }
        }
        R
    }
}

/// Adds the products of `count` columns of `R` rows of a tile of `T` and `P` panels.
///
/// # Safety
/// The caller guarantees the instruction set, and numbers of so many columns.
#[inline(always)]
unsafe fn products<V: Lanes, const R: usize, const T: usize, const P: usize>(
    sums: &mut [[V::F; P]; R],
    x: *const f32,
    w: *const f32,
    count: usize,
) {
    // A copy, which stays in registers.
    let mut acc = *sums;
    for k in 0..count {
        // SAFETY: as the caller guarantees.
        unsafe {
            let mut line = [V::splat_f(0.0); P];
            for p in 0..P {
                line[p] = V::load_f(w.add((k * P + p) * LANES));
            }
            for r in 0..R {
                let x = V::splat_f(*x.add(k * T + r));
                for p in 0..P {
                    acc[r][p] = V::fma(x, line[p], acc[r][p]);
                }
            }
        }
    }
    *sums = acc;
}

/// A part of a group, of the panels from one on.
struct Part {
    panel: usize,
    g: usize,
    /// Steps.
    start: usize,
    end: usize,
    /// Whether it begins its group, and ends it.
    begins: bool,
    ends: bool,
}

/// What the codes of a step stand for, without their scale, column by column.
///
/// # Safety
/// The caller guarantees the instruction set.
#[inline(always)]
unsafe fn widen<V: Lanes>(levels: &Levels, words: V::I, zero: V::F) -> [V::F; STEP] {
    // SAFETY: as the caller guarantees; a table has sixteen entries.
    unsafe {
        let codes =
            [V::byte::<0>(words), V::byte::<1>(words), V::byte::<2>(words), V::byte::<3>(words)];
        let mut w = [V::splat_f(0.0); STEP];
        for j in 0..STEP {
            w[j] = match levels {
                Levels::Table(table) => V::lookup(table.as_ptr(), codes[j]),
                _ => V::sub_f(V::shifted(codes[j]), zero),
            };
        }
        w
    }
}

/// Writes the columns of a step, `P` times sixteen apart; returns where the next goes.
///
/// # Safety
/// The caller guarantees the instruction set and room.
#[inline(always)]
unsafe fn store<V: Lanes, const P: usize>(w: [V::F; STEP], to: *mut f32) -> *mut f32 {
    for (j, w) in w.into_iter().enumerate() {
        // SAFETY: as the caller guarantees.
        unsafe { V::store_f(w, to.add(j * P * LANES)) };
    }
    to.wrapping_add(STEP * P * LANES)
}

/// Adds the products of a step to the sums of panel `p`.
///
/// # Safety
/// The caller guarantees the instruction set, and four numbers of each row.
#[inline(always)]
unsafe fn chain<V: Lanes, const R: usize, const P: usize>(
    acc: &mut [[V::F; P]; R],
    p: usize,
    rows: &[*const f32; R],
    column: usize,
    w: [V::F; STEP],
) {
    for (j, w) in w.into_iter().enumerate() {
        for r in 0..R {
            // SAFETY: as the caller guarantees.
            unsafe {
                let x = V::splat_f(*rows[r].add(column + j));
                acc[r][p] = V::fma(x, w, acc[r][p]);
            }
        }
    }
}
