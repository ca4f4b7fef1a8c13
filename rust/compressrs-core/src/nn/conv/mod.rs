//! Two-dimensional convolution and its gradients, in PyTorch's layouts: images
//! `[images, groups channels, height, width]`, kernels `[groups filters, channels, height, width]`.
//!
//! Nothing of the size of im2col is made. A band of rows of one image is copied to padded
//! planes, one for each remainder of a place modulo the stride; then each place of the
//! kernel is an offset into a plane, and a tile of results, filters by neighbouring places,
//! is summed in registers straight from there (`correlate`). The gradient of the input is
//! the same with the kernel rotated by 180 degrees, once for each remainder of the stride. The
//! gradient of the kernel sums products of planes over places (`weight`, and `weight_few` for
//! few filters).
//!
//! Each result is one chain of fused multiply-adds over channels and places of the kernel;
//! of the gradient of the kernel each sum over a band runs in lanes of 64 bytes. Neither
//! depends on threads or the width of vectors.

mod correlate;
mod planes;
mod quantized;
mod weight;
mod weight_few;

pub use correlate::{forward, input_gradient};
pub use quantized::{Filters, Scaling, forward_in_codes};
pub use weight::weight_gradient;

use crate::numeric::element::Float;

/// Multiply-adds worth a task of their own; see [`crate::runtime::parallel::for_each`].
const GRAIN_MULTIPLY_ADDS: usize = 512 * 1024;

/// Places of a band, at least, where the image has them.
const BAND: usize = 256;

/// One direction of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// Places of the image.
    pub input: usize,
    /// Places of the kernel.
    pub kernel: usize,
    /// Places of the image from one result to the next.
    pub stride: usize,
    /// Zeros before and behind the image.
    pub padding: usize,
    /// Places of the image from one of the kernel to the next.
    pub dilation: usize,
}

impl Side {
    /// Places of the result; None if the kernel is longer than the padded image, or a number
    /// too large.
    pub fn output(self) -> Option<usize> {
        let span = (self.kernel.checked_sub(1)?).checked_mul(self.dilation)?.checked_add(1)?;
        let padded = self.padding.checked_mul(2)?.checked_add(self.input)?;
        // Places are counted with a sign.
        isize::try_from(padded.checked_add(span)?).ok()?;
        Some(padded.checked_sub(span)? / self.stride + 1)
    }
}

/// The sizes of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Images in the batch.
    pub images: usize,
    /// Groups of channels that do not meet.
    pub groups: usize,
    /// Channels of the image, of each group.
    pub channels: usize,
    /// Filters of each group.
    pub filters: usize,
    /// Along the height.
    pub rows: Side,
    /// Along the width.
    pub columns: Side,
}

impl Geometry {
    /// Elements of the image, of the kernel and of the result.
    ///
    /// # Panics
    /// If the kernel does not fit into the image.
    pub fn lengths(&self) -> [usize; 3] {
        let output = self.rows.output().zip(self.columns.output());
        let (rows, columns) = output.expect("a kernel that fits into the image");
        [
            self.images * self.groups * self.channels * self.rows.input * self.columns.input,
            self.groups * self.filters * self.channels * self.rows.kernel * self.columns.kernel,
            self.images * self.groups * self.filters * rows * columns,
        ]
    }
}

/// There is no memory for what a convolution needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

/// So many zeros.
fn zeros<T: Float>(len: Option<usize>) -> Result<Vec<T>, OutOfMemory> {
    let len = len.ok_or(OutOfMemory)?;
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(len).map_err(|_| OutOfMemory)?;
    zeros.resize(len, T::zero());
    Ok(zeros)
}

/// Finds out whether there is memory for so many numbers.
fn check_memory<T>(len: Option<usize>) -> Result<(), OutOfMemory> {
    Vec::<T>::new().try_reserve_exact(len.ok_or(OutOfMemory)?).map_err(|_| OutOfMemory)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls `f` with the places in image, kernel and result of every product.
    fn products(g: &Geometry, mut f: impl FnMut(usize, usize, usize)) {
        let [height, width] = [g.rows, g.columns].map(|side| side.output().unwrap());
        let place = |side: Side, result: usize, k: usize| {
            let at = (result * side.stride + k * side.dilation).checked_sub(side.padding)?;
            (at < side.input).then_some(at)
        };
        for image in 0..g.images * g.groups {
            for filter in 0..g.filters {
                for (i, j) in (0..height).flat_map(|i| (0..width).map(move |j| (i, j))) {
                    let result = ((image * g.filters + filter) * height + i) * width + j;
                    for c in 0..g.channels {
                        for k in 0..g.rows.kernel {
                            for l in 0..g.columns.kernel {
                                let (Some(y), Some(x)) =
                                    (place(g.rows, i, k), place(g.columns, j, l))
                                else {
                                    continue;
                                };
                                let own = (image % g.groups * g.filters + filter) * g.channels + c;
                                let w = (own * g.rows.kernel + k) * g.columns.kernel + l;
                                let plane = (image * g.channels + c) * g.rows.input + y;
                                f(plane * g.columns.input + x, w, result);
                            }
                        }
                    }
                }
            }
        }
    }

    fn values(len: usize, seed: usize) -> Vec<f64> {
        (0..len).map(|i| ((i * 7 + seed) % 13) as f64 - 6.0).collect()
    }

    #[test]
    fn all_three_agree_with_loops() {
        let side = |input, kernel, stride, padding, dilation| Side {
            input,
            kernel,
            stride,
            padding,
            dilation,
        };
        for (images, groups, channels, filters, rows, columns) in [
            (2, 1, 3, 5, side(6, 3, 1, 1, 1), side(7, 3, 1, 1, 1)),
            (1, 2, 2, 3, side(9, 2, 2, 0, 3), side(8, 3, 3, 2, 1)),
            (3, 1, 1, 13, side(1, 1, 1, 0, 1), side(40, 5, 1, 4, 2)),
            (1, 4, 1, 1, side(5, 3, 4, 5, 1), side(5, 1, 2, 0, 1)),
            (0, 1, 2, 2, side(5, 3, 1, 0, 1), side(5, 3, 1, 0, 1)),
            // Nothing but padding.
            (2, 1, 2, 3, side(0, 3, 1, 2, 1), side(5, 3, 1, 2, 1)),
            (1, 2, 1, 40, side(4, 2, 2, 1, 1), side(0, 2, 1, 3, 2)),
            (1, 1, 3, 1, side(0, 1, 1, 1, 1), side(0, 2, 3, 2, 1)),
            // Many filters, which the gradient of the kernel takes as lanes.
            (2, 2, 3, 37, side(5, 3, 1, 1, 1), side(70, 3, 2, 1, 1)),
            (1, 1, 2, 100, side(9, 2, 1, 0, 2), side(33, 3, 1, 2, 1)),
        ] {
            let g = Geometry { images, groups, channels, filters, rows, columns };
            let [of_x, of_w, of_y] = g.lengths();
            let (x, w, dy) = (values(of_x, 1), values(of_w, 5), values(of_y, 9));
            let mut truth = (vec![0.0; of_y], vec![0.0; of_x], vec![0.0; of_w]);
            products(&g, |i, k, j| {
                truth.0[j] += x[i] * w[k];
                truth.1[i] += dy[j] * w[k];
                truth.2[k] += dy[j] * x[i];
            });
            // Small whole numbers, so that every sum is exact.
            let mut y = vec![f64::NAN; of_y];
            forward(&g, &x, &w, None, &mut y).unwrap();
            assert_eq!(y, truth.0, "{g:?}");
            let mut dx = vec![f64::NAN; of_x];
            input_gradient(&g, &dy, &w, &mut dx).unwrap();
            assert_eq!(dx, truth.1, "{g:?}");
            let mut dw = vec![f64::NAN; of_w];
            weight_gradient(&g, &x, &dy, &mut dw).unwrap();
            assert_eq!(dw, truth.2, "{g:?}");
        }
    }

    #[test]
    fn sizes_that_no_memory_holds_are_an_error() {
        let side = Side { input: 1, kernel: 1, stride: 1, padding: usize::MAX / 8, dilation: 1 };
        let layout = planes::Line::new(1, side.output().unwrap(), 1, [(0, 0)].into_iter());
        assert!(planes::Layout::new(&layout, &layout, BAND, 32).is_ok_and(|l| l.len(9).is_none()));
        assert_eq!(Side { padding: usize::MAX / 2, ..side }.output(), None);
    }
}
