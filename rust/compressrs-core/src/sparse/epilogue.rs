//! What is done with a product while it is in the cache.

use super::dense::SharedMatrix;
use crate::numeric::element::Float;
use crate::numeric::vector::Vector;

/// What a product is to become, element by element: `sum`, the product, is in this
/// order added to the output's old value, then to the bias, then cut off at 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a, T> {
    /// Whether the output's old values are added to.
    pub accumulate: bool,
    /// For each row of the output.
    pub bias: Option<&'a [T]>,
    /// Whether negative values become 0. NaN stays NaN.
    pub relu: bool,
}

impl<T: Float> Epilogue<'_, T> {
    /// What the sums of a block of the output, which begins at `at`, begin with.
    ///
    /// # Safety
    /// Nothing may write to the block meanwhile.
    #[inline(always)]
    pub(super) unsafe fn begin<const W: usize>(
        &self,
        y: &SharedMatrix<'_, T>,
        at: (usize, usize),
        width: usize,
        sums: &mut [[T; W]],
    ) {
        sums.fill([T::zero(); W]);
        if self.accumulate {
            // SAFETY: the caller guarantees that nothing writes to the block.
            unsafe { y.read(at, width, sums) };
        }
    }

    /// Writes the finished sums of a block of the output, which begins at `at`, with vectors `V`.
    ///
    /// # Safety
    /// No reference to the block may be alive.
    #[inline(always)]
    pub(super) unsafe fn end<V: Vector<T>, const W: usize>(
        &self,
        y: &SharedMatrix<'_, T>,
        at: (usize, usize),
        width: usize,
        sums: &mut [[T; W]],
    ) {
        if let Some(bias) = self.bias {
            for (sums, &bias) in sums.iter_mut().zip(&bias[at.0..]) {
                // By vectors along a row: LLVM would gather a vector from several.
                if const { W.is_multiple_of(V::LANES) } {
                    add_to_all::<T, V>(sums, bias);
                } else if const { W.is_multiple_of(<T::Portable as Vector<T>>::LANES) } {
                    add_to_all::<T, T::Portable>(sums, bias);
                } else {
                    sums.iter_mut().for_each(|sum| *sum += bias);
                }
            }
        }
        if self.relu {
            for sum in sums.as_flattened_mut() {
                // Written so that NaN stays.
                *sum = if *sum < T::zero() { T::zero() } else { *sum };
            }
        }
        // SAFETY: the caller guarantees that no reference to the block is alive.
        unsafe { y.write::<V, W>(at, width, sums) };
    }
}

/// Adds the same to all elements, as many as vectors hold.
#[inline(always)]
fn add_to_all<T: Float, V: Vector<T>>(sums: &mut [T], bias: T) {
    let bias = V::splat(bias);
    for sums in sums.chunks_exact_mut(V::LANES) {
        // SAFETY: so many elements.
        unsafe { V::load(sums.as_ptr()).add(bias).store(sums.as_mut_ptr()) };
    }
}
