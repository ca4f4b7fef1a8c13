//! What Shampoo and SOAP have in common: a matrix divided into blocks, each with the second
//! moments of its rows and of its columns.

use std::ops::Range;

use super::rule::{State, StateShape};
use super::tensor::GRAIN_ELEMENTS;
use crate::linalg::gemm::{multiply, multiply_by_transpose};
use crate::linalg::matrix::Matrix;
use crate::numeric::element::Float;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, Kernel};

/// Numbers of the type that is computed in, at most, that a block of side `b` needs on the side,
/// as a multiple of `b * b`: its products and, in double precision, a decomposition.
const SIDES: usize = 16;

/// The side of the blocks along an axis of `len` elements: as equal as can be, none longer than
/// `most`.
pub fn block_len(len: usize, most: usize) -> usize {
    len.div_ceil(len.div_ceil(most.max(1)).max(1))
}

/// Matrices that belong to the blocks: of their rows, of their columns.
pub(super) fn sides(names: [&'static str; 2], block_size: usize) -> [State; 2] {
    [
        State { shape: StateShape::OfRows { block_size }, ..State::exact(names[0]) },
        State { shape: StateShape::OfColumns { block_size }, ..State::exact(names[1]) },
    ]
}

/// A matrix in blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    rows: usize,
    columns: usize,
    /// Rows and columns of a block; fewer in the last ones.
    height: usize,
    width: usize,
}

/// A block: its rows and its columns.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub rows: Range<usize>,
    pub columns: Range<usize>,
    /// Where the matrices of its rows and of its columns begin.
    sides: [usize; 2],
}

impl Blocks {
    pub fn new((rows, columns): (usize, usize), block_size: usize) -> Self {
        let (height, width) = (block_len(rows, block_size), block_len(columns, block_size));
        Blocks { rows, columns, height, width }
    }

    /// How many numbers a step computes on the side, at most.
    pub fn scratch_len(self) -> usize {
        let threads = parallel::num_threads().unwrap_or(1);
        let side = self.height.max(self.width);
        let of_block = side.saturating_mul(side).saturating_mul(SIDES);
        let elements = self.rows.saturating_mul(self.columns).saturating_mul(2);
        elements.saturating_add(of_block.saturating_mul(threads))
    }

    fn len(self) -> usize {
        if self.rows == 0 || self.columns == 0 {
            return 0;
        }
        self.rows.div_ceil(self.height) * self.columns.div_ceil(self.width)
    }

    fn get(self, i: usize) -> Block {
        let across = self.columns.div_ceil(self.width);
        let (down, right) = (i / across, i % across);
        let (top, left) = (down * self.height, right * self.width);
        Block {
            rows: top..self.rows.min(top + self.height),
            columns: left..self.columns.min(left + self.width),
            sides: [
                (right * self.rows + top) * self.height,
                (down * self.columns + left) * self.width,
            ],
        }
    }

    /// Calls a function with each block, in parallel.
    pub fn for_each(self, body: impl Fn(Block) + Sync) {
        parallel::for_each(0..self.len(), 1, 1, |part| part.for_each(|i| body(self.get(i))));
    }

    /// The matrix that belongs to a block's rows (side 0) or to its columns (side 1).
    ///
    /// # Safety
    /// Nothing else uses the matrix while the result is used.
    pub unsafe fn side<'a, C: Float>(
        self,
        of: &SharedMut<'a, C>,
        block: &Block,
        side: usize,
    ) -> Square<'a, C> {
        let (n, stride) = match side {
            0 => (block.rows.len(), self.height),
            _ => (block.columns.len(), self.width),
        };
        let start = block.sides[side];
        // SAFETY: the matrices of different blocks do not overlap, and the caller guarantees
        // that nothing else uses this one.
        Square { elements: unsafe { of.slice(start..start + n * stride) }, n, stride }
    }
}

/// A square matrix, whose rows may lie further apart than they are long.
pub(super) struct Square<'a, C> {
    elements: &'a mut [C],
    n: usize,
    stride: usize,
}

impl<C: Float> Square<'_, C> {
    pub fn n(&self) -> usize {
        self.n
    }

    pub fn matrix(&self) -> Matrix<'_, C> {
        Matrix::new(self.elements, self.n, self.n, self.stride, 1)
    }

    pub fn rows(&mut self) -> impl Iterator<Item = &mut [C]> {
        let n = self.n;
        self.elements.chunks_exact_mut(self.stride.max(1)).map(move |row| &mut row[..n])
    }

    /// `s <- keep s + add x x'`, symmetric to the last bit; if nothing is kept, whatever `s` was.
    pub fn accumulate(&mut self, keep: C, add: C, x: Matrix<'_, C>) {
        let n = self.n;
        let [mut old, mut new] = [(); 2].map(|()| Scratch::<C>::new(n * n));
        for (old, row) in old.chunks_exact_mut(n.max(1)).zip(self.rows()) {
            old.copy_from_slice(row);
        }
        let kept = (keep != C::zero()).then_some((keep, &*old));
        multiply_by_transpose(add, x, kept, &mut new);
        for (row, new) in self.rows().zip(new.chunks_exact(n.max(1))) {
            row.copy_from_slice(new);
        }
    }

    /// Fills the matrix with what `f` gives for a row and a column.
    pub fn fill(&mut self, f: impl Fn(usize, usize) -> f64) {
        for (i, row) in self.rows().enumerate() {
            for (j, x) in row.iter_mut().enumerate() {
                *x = C::from_f64(f(i, j));
            }
        }
    }

    /// In double precision, times a factor.
    pub fn to_f64(&self, factor: f64) -> Vec<f64> {
        let row = |i: usize| self.elements[i * self.stride..][..self.n].iter();
        let mut all = memory::with_capacity(self.n * self.n);
        all.extend((0..self.n).flat_map(row).map(|x| factor * Float::to_f64(*x)));
        all
    }
}

/// `a x b`, of a block of `m` rows and `n` columns.
pub(super) fn between<C: Float>(
    a: Matrix<'_, C>,
    x: Matrix<'_, C>,
    b: Matrix<'_, C>,
) -> Scratch<C> {
    let (m, n) = (x.rows(), x.columns());
    let [mut half, mut whole] = [(); 2].map(|()| Scratch::<C>::new(m * n));
    multiply(C::one(), a, x, None, &mut half);
    multiply(C::one(), Matrix::row_major(&half, m, n), b, None, &mut whole);
    whole
}

/// What the numbers are divided by so that sums of products of them are in range: 1, unless the
/// sum of as many squares of the largest one is not, and then a power of 2.
pub(super) fn unit<C: Float>(numbers: &[C]) -> C {
    let largest = |part: Range<usize>| {
        numbers[part].iter().fold(C::zero(), |largest, x| {
            let x = num_traits::Float::abs(*x);
            if x > largest { x } else { largest }
        })
    };
    let larger = |a, b| if a > b { a } else { b };
    let largest = parallel::reduce(numbers.len(), GRAIN_ELEMENTS, largest, larger);
    let largest = largest.unwrap_or(C::zero()).to_f64();
    // Also for sums of products with orthogonal matrices and with what rounds them.
    let most = C::max_value().to_f64() / numbers.len() as f64;
    if largest < most.sqrt() || !largest.is_finite() {
        return C::one();
    }
    // Half of it, whose logarithm is not rounded up to that of infinity.
    C::from_f64((0.5 * largest).log2().floor().exp2())
}

/// The numbers that `f` gives, in parallel.
pub(super) fn filled<C: Float>(n: usize, f: impl Fn(usize) -> C + Sync) -> Scratch<C> {
    let mut numbers = Scratch::new(n);
    let shared = SharedMut::new(&mut numbers);
    parallel::for_each(0..n, GRAIN_ELEMENTS, 1, |part| {
        // SAFETY: parts do not overlap.
        let numbers = unsafe { shared.slice(part.clone()) };
        simd::dispatch(Each(part.zip(numbers), |(i, x): (usize, &mut C)| *x = f(i)));
    });
    numbers
}

/// Calls a function with each item.
struct Each<I, F>(I, F);

impl<I: Iterator, F: FnMut(I::Item)> Kernel for Each<I, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.0.for_each(self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_a_matrix_and_their_sides_do_not_overlap() {
        for (shape, size) in [((5, 7), 3), ((8, 3), 4), ((1, 1), 1), ((6, 6), 100), ((0, 3), 2)] {
            let blocks = Blocks::new(shape, size);
            let mut seen = vec![0; shape.0 * shape.1];
            let mut used = [vec![false; 400], vec![false; 400]];
            for i in 0..blocks.len() {
                let block = blocks.get(i);
                assert!(block.rows.len() <= size && block.columns.len() <= size);
                for row in block.rows.clone() {
                    block.columns.clone().for_each(|c| seen[row * shape.1 + c] += 1);
                }
                let lens = [block.rows.len() * blocks.height, block.columns.len() * blocks.width];
                for side in 0..2 {
                    for used in &mut used[side][block.sides[side]..][..lens[side]] {
                        assert!(!std::mem::replace(used, true));
                    }
                }
            }
            assert!(seen.iter().all(|&n| n == 1));
        }
    }

    #[test]
    fn units_are_1_until_sums_of_squares_overflow() {
        for largest in [0.0, 1.0, 1e18, f32::INFINITY] {
            assert_eq!(unit(&[0.0, -largest, largest, 0.0]), 1.0);
        }
        assert_eq!(unit::<f64>(&[]), 1.0);
        for largest in [1e19, 1e30, f32::MAX] {
            // The largest number comes to between 2 and 4.
            let scaled = largest / unit(&[0.0, -largest, 1.0, 0.0]);
            assert!((2.0..=4.0).contains(&scaled), "{scaled}");
        }
        assert_eq!(unit(&[f64::MAX, 1.0]), 2f64.powi(1023));
        // The largest number in any of the parts that are searched on their own.
        let mut many = vec![1.0f32; 3 * GRAIN_ELEMENTS];
        for place in [0, many.len() / 2, many.len() - 1] {
            many[place] = 2f32.powi(100);
            assert_eq!(unit(&many), 2f32.powi(99));
            many[place] = 1.0;
        }
    }
}
