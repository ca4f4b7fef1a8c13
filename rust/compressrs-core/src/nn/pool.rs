//! Pooling of images: the largest or the mean of each window.

use crate::numeric::element::Float;
use crate::runtime::parallel::{self, SharedMut};

use super::conv::Side;

/// Elements read, worth a task of their own; see [`parallel::for_each`].
const GRAIN_ELEMENTS: usize = 16 * 1024;

/// What windows are laid over: `planes` of `rows` by `columns`.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// Images times channels.
    pub planes: usize,
    /// Along the height.
    pub rows: Side,
    /// Along the width.
    pub columns: Side,
}

impl Windows {
    /// Elements of a plane, and of its result.
    ///
    /// # Panics
    /// If windows do not fit.
    fn lengths(&self) -> [usize; 2] {
        let output = self.rows.output().zip(self.columns.output());
        let (rows, columns) = output.expect("windows that fit");
        [self.rows.input * self.columns.input, rows * columns]
    }

    /// Runs a body for each plane, given the places that each window has there.
    fn for_each(&self, body: impl Fn(usize) + Sync) {
        let [input, output] = self.lengths();
        let work = input.max(output * self.rows.kernel * self.columns.kernel).max(1);
        parallel::for_each(0..self.planes, GRAIN_ELEMENTS.div_ceil(work), 1, |part| {
            part.for_each(&body)
        });
    }
}

/// The first and the last place but one of a window that are in the image.
#[inline(always)]
fn inside(side: &Side, result: usize) -> std::ops::Range<usize> {
    let start = result * side.stride;
    let end = (start + side.kernel).saturating_sub(side.padding).min(side.input);
    start.saturating_sub(side.padding).min(end)..end
}

/// The largest of each window to `out`, and its place in the plane to `places`; NaN is larger
/// than all, and of equal ones the first is taken. What lies outside does not count.
///
/// # Panics
/// If lengths disagree.
pub fn max<T: Float>(windows: &Windows, x: &[T], out: &mut [T], places: &mut [u32]) {
    let [input, output] = windows.lengths();
    assert!(x.len() == windows.planes * input && out.len() == windows.planes * output);
    assert!(places.len() == out.len() && u32::try_from(input).is_ok());
    let width = windows.columns.input;
    let columns = windows.columns.output().unwrap_or(0);
    let (out, places) = (SharedMut::new(out), SharedMut::new(places));
    windows.for_each(|plane| {
        let x = &x[plane * input..(plane + 1) * input];
        let range = plane * output..(plane + 1) * output;
        // SAFETY: each plane is one part's.
        let (out, places) = unsafe { (out.slice(range.clone()), places.slice(range)) };
        for (at, (out, place)) in out.iter_mut().zip(places).enumerate() {
            let (mut top, mut best) = (T::neg_infinity(), usize::MAX);
            for row in inside(&windows.rows, at / columns) {
                for column in inside(&windows.columns, at % columns) {
                    let value = x[row * width + column];
                    if best == usize::MAX || value > top || (value.is_nan() && !top.is_nan()) {
                        (top, best) = (value, row * width + column);
                    }
                }
            }
            (*out, *place) = (top, best as u32);
        }
    });
}

/// Adds what each window's largest is given to `dx`, which is overwritten. Places that are
/// not in the plane are left out.
///
/// # Panics
/// If lengths disagree.
pub fn max_backward<T: Float>(windows: &Windows, places: &[u32], dy: &[T], dx: &mut [T]) {
    let [input, output] = windows.lengths();
    assert!(dx.len() == windows.planes * input && dy.len() == windows.planes * output);
    assert_eq!(places.len(), dy.len());
    let dx = SharedMut::new(dx);
    windows.for_each(|plane| {
        // SAFETY: each plane is one part's.
        let dx = unsafe { dx.slice(plane * input..(plane + 1) * input) };
        dx.fill(T::zero());
        let range = plane * output..(plane + 1) * output;
        for (dy, &place) in dy[range.clone()].iter().zip(&places[range]) {
            if let Some(dx) = dx.get_mut(place as usize) {
                *dx += *dy;
            }
        }
    });
}

/// The mean of each window to `out`, padding included.
///
/// # Panics
/// If lengths disagree.
pub fn mean<T: Float>(windows: &Windows, x: &[T], out: &mut [T]) {
    let [input, output] = windows.lengths();
    assert!(x.len() == windows.planes * input && out.len() == windows.planes * output);
    let width = windows.columns.input;
    let columns = windows.columns.output().unwrap_or(0);
    let share = T::from_f64(1.0 / (windows.rows.kernel * windows.columns.kernel) as f64);
    let out = SharedMut::new(out);
    windows.for_each(|plane| {
        let x = &x[plane * input..(plane + 1) * input];
        // SAFETY: each plane is one part's.
        let out = unsafe { out.slice(plane * output..(plane + 1) * output) };
        for (at, out) in out.iter_mut().enumerate() {
            let mut sum = T::zero();
            for row in inside(&windows.rows, at / columns) {
                for column in inside(&windows.columns, at % columns) {
                    sum += x[row * width + column];
                }
            }
            *out = sum * share;
        }
    });
}

/// The gradient of [`mean`].
///
/// # Panics
/// If lengths disagree.
pub fn mean_backward<T: Float>(windows: &Windows, dy: &[T], dx: &mut [T]) {
    let [input, output] = windows.lengths();
    assert!(dx.len() == windows.planes * input && dy.len() == windows.planes * output);
    let width = windows.columns.input;
    let columns = windows.columns.output().unwrap_or(0);
    let share = T::from_f64(1.0 / (windows.rows.kernel * windows.columns.kernel) as f64);
    let dx = SharedMut::new(dx);
    windows.for_each(|plane| {
        // SAFETY: each plane is one part's.
        let dx = unsafe { dx.slice(plane * input..(plane + 1) * input) };
        dx.fill(T::zero());
        for (at, dy) in dy[plane * output..(plane + 1) * output].iter().enumerate() {
            for row in inside(&windows.rows, at / columns) {
                for column in inside(&windows.columns, at % columns) {
                    dx[row * width + column] += *dy * share;
                }
            }
        }
    });
}
