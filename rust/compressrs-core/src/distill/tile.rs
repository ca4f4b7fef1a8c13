//! Rows in lanes.
//!
//! A kernel works on a tile: `R` rows of classes, laid out as lines of [`LANES`]
//! numbers. One row (`R = 1`) lies along the lanes, sixteen classes a line. Vector
//! instructions along a row of ten would leave most of a register empty, and each row
//! would pay for a sum over all lanes; so short rows are transposed, sixteen at a time
//! (`R = 16`): lane `l` belongs to row `l`, line `j` to class `j`. A formula is written
//! once for both: [`map_reduce`] goes through the lines, [`broadcast`] says what each lane's
//! row has.
//!
//! Element `i` of a row is summed in lane `i % LANES` or in a lane of its own, chunk
//! by chunk in the compute type and over the chunks in double precision: the order
//! does not depend on the vector width, and rows of any length keep their accuracy.

use std::hint::black_box;

use crate::numeric::element::{Element, Float};
use crate::numeric::lanes::tree;

/// Numbers in a line.
pub const LANES: usize = 16;

/// Rows that are transposed together.
pub const TILE_ROWS: usize = LANES;

/// Longest row that is transposed.
pub const MAX_TRANSPOSED: usize = 64;

/// Elements of a tile that are summed in the compute type.
const CHUNK: usize = 1024;

/// What a line holds of some slice.
pub type Line<C> = [C; LANES];

/// Of each lane, what its row has.
#[inline(always)]
pub fn broadcast<C: Copy, const R: usize>(rows: [C; R]) -> Line<C> {
    std::array::from_fn(|l| rows[l % R])
}

/// Of each row, its lanes in one.
#[inline(always)]
pub fn fold<C: Float, const R: usize>(lanes: Line<C>, combine: impl Fn(C, C) -> C) -> [C; R] {
    const { assert!(R == 1 || R == LANES) };
    if R == 1 { [tree(lanes, combine); R] } else { std::array::from_fn(|r| lanes[r]) }
}

/// `f(r)` of each row: a plain loop, which becomes vectors where `from_fn` would not.
#[inline(always)]
pub fn by_row<const R: usize>(f: impl Fn(usize) -> f64) -> [f64; R] {
    let mut out = [0.0; R];
    for r in 0..R {
        out[r] = f(r);
    }
    out
}

/// Calls `f` with each line of the inputs, accumulators, and a line for each output;
/// returns what the accumulators come to in each row. All slices are of one length.
///
/// The last line is filled up with `fill`, which must not change the accumulators: a
/// loop whose length is known while compiling becomes vector instructions with nothing
/// left over.
#[inline(always)]
pub fn map_reduce<C: Float, const R: usize, const I: usize, const O: usize, const A: usize>(
    inputs: [&[C]; I],
    mut outputs: [&mut [C]; O],
    fill: C,
    f: impl Fn([&Line<C>; I], &mut [Line<C>; A], &mut [Line<C>; O]),
) -> [[f64; R]; A] {
    let n = inputs[0].len();
    let mut totals = [[0.0; R]; A];
    for start in (0..n).step_by(CHUNK) {
        let end = n.min(start + CHUNK);
        // Lengths that the compiler can see are equal need no bounds checks.
        let inputs = inputs.map(|x| x[start..end].as_chunks::<LANES>());
        let mut outputs = outputs.each_mut().map(|x| x[start..end].as_chunks_mut::<LANES>());
        // Locals, which nothing can overlap.
        let mut sums = [[C::zero(); LANES]; A];
        let mut results = [[C::zero(); LANES]; O];
        for line in 0..(end - start) / LANES {
            f(inputs.map(|(lines, _)| &lines[line]), &mut sums, &mut results);
            for ((lines, _), result) in outputs.iter_mut().zip(&results) {
                lines[line] = *result;
            }
        }
        let rest = (end - start) % LANES;
        if rest > 0 {
            let filled = inputs.map(|(_, tail)| filled(tail, fill));
            f(filled.each_ref(), &mut sums, &mut results);
            for ((_, tail), result) in outputs.iter_mut().zip(&results) {
                tail.copy_from_slice(&result[..rest]);
            }
        }
        for (totals, sums) in totals.iter_mut().zip(sums) {
            let sums: [C; R] = fold(sums, |a, b| a + b);
            for r in 0..R {
                totals[r] += sums[r].to_f64();
            }
        }
    }
    totals
}

/// Calls `f` with each line of `x`, to be changed, and of the inputs.
#[inline(always)]
pub fn update<C: Float, const I: usize>(
    x: &mut [C],
    inputs: [&[C]; I],
    f: impl Fn(&mut Line<C>, [&Line<C>; I]),
) {
    let n = x.len();
    let inputs = inputs.map(|x| x[..n].as_chunks::<LANES>());
    let (lines, tail) = x.as_chunks_mut::<LANES>();
    for (i, line) in lines.iter_mut().enumerate() {
        // Or LLVM makes vectors across lines, of elements that it gathers.
        black_box(());
        let mut result = *line;
        f(&mut result, inputs.map(|(lines, _)| &lines[i]));
        *line = result;
    }
    if !tail.is_empty() {
        let mut result = filled(tail, C::zero());
        let inputs = inputs.map(|(_, tail)| filled(tail, C::zero()));
        f(&mut result, inputs.each_ref());
        tail.copy_from_slice(&result[..tail.len()]);
    }
}

#[inline(always)]
fn filled<C: Float>(tail: &[C], fill: C) -> Line<C> {
    let mut line = [fill; LANES];
    line[..tail.len()].copy_from_slice(tail);
    line
}

/// The larger; the first where either is NaN.
#[inline(always)]
fn max<C: Float>(a: C, b: C) -> C {
    if b > a { b } else { a }
}

/// The largest of each row, NaN passed over; -inf if all is NaN.
#[inline(always)]
pub fn max_of<C: Float, const R: usize>(x: &[C]) -> [C; R] {
    // More lines at a time than the latency of a comparison.
    const LINES: usize = 4;
    let mut tops = [[C::neg_infinity(); LANES]; LINES];
    let (lines, tail) = x.as_chunks::<LANES>();
    let (groups, lines) = lines.as_chunks::<LINES>();
    for group in groups {
        // As in `update`.
        black_box(());
        for (top, line) in tops.iter_mut().zip(group) {
            for l in 0..LANES {
                top[l] = max(top[l], line[l]);
            }
        }
    }
    let last = filled(tail, C::neg_infinity());
    let mut top = [C::neg_infinity(); LANES];
    for line in tops.iter().chain(lines).chain([&last]) {
        for l in 0..LANES {
            top[l] = max(top[l], line[l]);
        }
    }
    fold(top, max)
}

/// Rows and classes that are transposed at once; see [`Float::transpose_fours`].
const SQUARE: usize = 4;

/// Transposes up to [`TILE_ROWS`] rows of `classes` classes into a tile. Lanes without a row
/// keep what they have.
#[inline(always)]
pub fn transpose<T: Element>(rows: &[T], classes: usize, tile: &mut [T::Compute]) {
    let lines = &mut tile.as_chunks_mut::<LANES>().0[..classes];
    for (four, rows) in rows.chunks(SQUARE * classes).enumerate() {
        let lane = four * SQUARE;
        let mut rest = 0;
        if rows.len() == SQUARE * classes {
            let rows: [_; SQUARE] = std::array::from_fn(|r| &rows[r * classes..(r + 1) * classes]);
            let squares = rows.map(|row| row.as_chunks::<SQUARE>().0);
            for (i, lines) in lines.as_chunks_mut::<SQUARE>().0.iter_mut().enumerate() {
                let square = squares.map(|row| row[i].map(Element::load));
                for (line, x) in lines.iter_mut().zip(Float::transpose_fours(square)) {
                    line[lane..lane + SQUARE].copy_from_slice(&x);
                }
            }
            rest = classes - classes % SQUARE;
        }
        for (l, row) in rows.chunks_exact(classes).enumerate() {
            for (line, x) in lines[rest..].iter_mut().zip(&row[rest..]) {
                // As in `update`.
                black_box(());
                line[lane + l] = x.load();
            }
        }
    }
}

/// Writes a transposed tile to as many rows as there are.
#[inline(always)]
pub fn transpose_back<T: Element>(tile: &[T::Compute], classes: usize, rows: &mut [T]) {
    let lines = &tile.as_chunks::<LANES>().0[..classes];
    for (four, rows) in rows.chunks_mut(SQUARE * classes).enumerate() {
        let lane = four * SQUARE;
        let mut rest = 0;
        if rows.len() == SQUARE * classes {
            for (i, lines) in lines.as_chunks::<SQUARE>().0.iter().enumerate() {
                let square = lines.each_ref().map(|line| std::array::from_fn(|r| line[lane + r]));
                for (r, x) in Float::transpose_fours(square).into_iter().enumerate() {
                    let start = r * classes + i * SQUARE;
                    rows[start..start + SQUARE].copy_from_slice(&x.map(T::store));
                }
            }
            rest = classes - classes % SQUARE;
        }
        for (l, row) in rows.chunks_exact_mut(classes).enumerate() {
            for (line, x) in lines[rest..].iter().zip(&mut row[rest..]) {
                // As in `update`.
                black_box(());
                *x = T::store(line[lane + l]);
            }
        }
    }
}
