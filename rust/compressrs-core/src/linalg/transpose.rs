//! Copies of blocks as their transposes.

use crate::numeric::element::Float;
use crate::numeric::vector::Vector;

/// Rows and columns that are done together: those of a line of the cache.
const BLOCK: usize = 16;

/// Side of the squares that any machine transposes in registers; see `Vectors::transpose`.
const FOUR: usize = 4;

/// Copies the transpose of `rows` rows of `columns` elements, `step` and `to_step` elements from
/// one to the next.
///
/// # Safety
/// All elements of `from` may be read, and all of `to` written; they do not overlap.
#[inline(always)]
pub(crate) unsafe fn copy_transposed<T: Float, V: Vector<T>>(
    (from, step): (*const T, usize),
    (to, to_step): (*mut T, usize),
    (rows, columns): (usize, usize),
) {
    let whole = |length: usize, side: usize| length / side * side;
    let (high, wide) = (whole(rows, V::LANES), whole(columns, V::LANES));
    // SAFETY: squares, and then elements, within the rows and columns that the caller
    // guarantees.
    unsafe {
        for left in (0..wide).step_by(BLOCK) {
            for top in (0..high).step_by(BLOCK) {
                for j in (left..wide.min(left + BLOCK)).step_by(V::LANES) {
                    for i in (top..high.min(top + BLOCK)).step_by(V::LANES) {
                        let square = (from.add(i * step + j), to.add(j * to_step + i));
                        V::transpose(square.0, step, square.1, to_step);
                    }
                }
            }
        }
        // What is left on the right of the squares, and below them.
        for (tops, lefts) in [(0..high, wide..columns), (high..rows, 0..columns)] {
            let bottom = tops.start + whole(tops.len(), FOUR);
            let right = lefts.start + whole(lefts.len(), FOUR);
            for j in (lefts.start..right).step_by(FOUR) {
                for i in (tops.start..bottom).step_by(FOUR) {
                    T::transpose(from.add(i * step + j), step, to.add(j * to_step + i), to_step);
                }
            }
            for j in lefts.clone() {
                let first = if j < right { bottom } else { tops.start };
                for i in first..tops.end {
                    to.add(j * to_step + i).write(from.add(i * step + j).read());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;

    use super::*;
    use crate::numeric::vector::{WithWidth, full_width, half_width};

    struct Sizes<T>(PhantomData<T>);

    impl<T: Float> WithWidth<T> for Sizes<T> {
        #[inline(always)]
        fn run<V: Vector<T>>(self) {
            let lengths = [0, 1, 3, 4, 7, 8, 15, 16, 17, 33, 52];
            for (rows, columns) in lengths.iter().flat_map(|&r| lengths.map(|c| (r, c))) {
                let (step, to_step) = (columns + 3, rows + 1);
                let from: Vec<T> = (0..rows * step).map(|i| T::from_f64(i as f64)).collect();
                let mut to = vec![-T::one(); columns * to_step];
                // SAFETY: there are so many elements.
                unsafe {
                    copy_transposed::<T, V>(
                        (from.as_ptr(), step),
                        (to.as_mut_ptr(), to_step),
                        (rows, columns),
                    );
                }
                for j in 0..columns {
                    for i in 0..rows {
                        assert_eq!(to[j * to_step + i], from[i * step + j], "{rows}x{columns}");
                    }
                    assert_eq!(to[j * to_step + rows], -T::one(), "what lies between rows");
                }
            }
        }
    }

    #[test]
    fn blocks_of_any_size_are_transposed() {
        full_width(Sizes::<f32>(PhantomData));
        half_width(Sizes::<f32>(PhantomData));
        full_width(Sizes::<f64>(PhantomData));
        half_width(Sizes::<f64>(PhantomData));
    }
}
