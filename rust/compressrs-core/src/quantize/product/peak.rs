//! How fast the dot products of a level can be.

use std::hint::black_box;
use std::ops::Range;

use super::isa::{self, Body, Isa, LANES, Lanes, STEP};
use crate::runtime::{parallel, simd};

/// Tasks that all threads share.
const TASKS: usize = 64;
/// Steps whose operands stay in the first cache.
const STEPS: usize = 16;

/// Adds up products of bytes whose operands are in the first cache, `rounds` times in each
/// task, and returns how many multiply-adds that was.
///
/// # Panics
/// If the environment names no level of this machine.
pub fn dot_products(rounds: usize) -> usize {
    let level = simd::level().expect("a level");
    parallel::for_each(0..TASKS, 1, 1, |tasks| {
        // SAFETY: the level is supported.
        unsafe { isa::run_at(level, &Tile { rounds }, tasks) };
    });
    let (rows, vectors) = if isa::is_long(level) { LONG } else { SHORT };
    TASKS * rounds * STEPS * rows * vectors * LANES * STEP
}

/// Rows of activations and vectors of weights of a tile: as many sums as registers hold
/// beside their operands, where a vector is one register, and where it is two.
const LONG: (usize, usize) = (6, 2);
const SHORT: (usize, usize) = (4, 1);

struct Tile {
    rounds: usize,
}

impl Body for Tile {
    #[inline(always)]
    unsafe fn run<I: Isa>(&self, tasks: Range<usize>) {
        for _ in tasks {
            // SAFETY: the caller guarantees the instruction set.
            unsafe {
                if I::V::LONG {
                    self.tile::<I, { LONG.0 }, { LONG.1 }>();
                } else {
                    self.tile::<I, { SHORT.0 }, { SHORT.1 }>();
                }
            }
        }
    }
}

impl Tile {
    /// # Safety
    /// The caller guarantees the instruction set.
    #[inline(always)]
    unsafe fn tile<I: Isa, const R: usize, const P: usize>(&self) {
        // Activations of a step take eight bytes where they are wide.
        let weights = vec![1_u8; STEPS * P * LANES * STEP];
        let x = vec![1_i8; STEPS * R * 2 * STEP];
        // No two alike, or the compiler would add once for all.
        let start: [[i32; R]; P] =
            black_box(std::array::from_fn(|p| std::array::from_fn(|r| (p * R + r) as i32)));
        // SAFETY: the caller guarantees the instruction set; all reads are within the
        // vectors, which have all steps.
        unsafe {
            let mut sums = start.map(|row| row.map(|x| I::V::splat(x)));
            for _ in 0..self.rounds {
                let (weights, x) = (black_box(weights.as_ptr()), black_box(x.as_ptr()));
                for step in 0..STEPS {
                    for (p, sums) in sums.iter_mut().enumerate() {
                        let at = weights.add((step * P + p) * LANES * STEP);
                        let bytes = I::bytes(I::V::load(at.cast()));
                        for (r, sum) in sums.iter_mut().enumerate() {
                            *sum = I::dot(*sum, bytes, x.add((step * R + r) * 2 * STEP));
                        }
                    }
                }
            }
            for sum in sums.into_iter().flatten() {
                let mut to = [0; LANES];
                I::V::store(sum, to.as_mut_ptr());
                black_box(to);
            }
        }
    }
}
