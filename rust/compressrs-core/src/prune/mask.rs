//! Masks that remove the smallest values.

use std::marker::PhantomData;

use num_traits::Float as _;

use super::order::Order;
use super::threshold::{HasNan, Rank, rank};
use crate::numeric::element::Element;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// Values worth a task of their own.
const GRAIN_ELEMENTS: usize = 256 * 1024;
const ALIGN: usize = 64;

struct Below<'a, O, E> {
    order: PhantomData<O>,
    w: &'a [E],
    threshold: E,
    mask: &'a mut [u8],
}

impl<O: Order, E: Element> Kernel for Below<'_, O, E> {
    /// Whether there is a NaN.
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let threshold = O::value(self.threshold);
        let mut has_nan = 0;
        for (keep, &w) in self.mask.iter_mut().zip(self.w) {
            let x = O::value(w);
            *keep = u8::from(x >= threshold);
            has_nan |= u8::from(x.is_nan());
        }
        has_nan != 0
    }
}

/// `mask = w >= threshold`, or `|w| >= |threshold|`: removes what lies below.
///
/// # Errors
/// If a value is NaN; the mask has been written then.
///
/// # Panics
/// If the lengths differ.
pub fn mask_below<O: Order, E: Element>(
    w: &[E],
    threshold: E,
    mask: &mut [u8],
) -> Result<(), HasNan> {
    assert_eq!(w.len(), mask.len());
    let shared = SharedMut::new(mask);
    let has_nan = parallel::reduce(
        w.len(),
        GRAIN_ELEMENTS,
        |part| {
            // SAFETY: `mask` is borrowed for the whole call and parts do not overlap.
            let mask = unsafe { shared.slice(part.clone()) };
            simd::dispatch(Below { order: PhantomData::<O>, w: &w[part], threshold, mask })
        },
        |a, b| a | b,
    );
    if has_nan == Some(true) { Err(HasNan) } else { Ok(()) }
}

/// Masks that remove exactly the `k` smallest values of all arrays together.
/// Of equal ones, those that come first are removed.
///
/// # Errors
/// If a value is NaN; the masks are as they were then.
///
/// # Panics
/// If there are fewer than `k` values, or lengths differ.
pub fn mask_smallest<O: Order, E: Element>(
    arrays: &[&[E]],
    k: usize,
    masks: &mut [&mut [u8]],
) -> Result<(), HasNan> {
    assert_eq!(arrays.len(), masks.len());
    let Some(Rank { value, smaller }) = rank::<O, E>(arrays, k)? else {
        assert_eq!(arrays.iter().map(|a| a.len()).sum::<usize>(), k, "values to remove");
        masks.iter_mut().for_each(|mask| mask.fill(0));
        return Ok(());
    };
    let mut ties = k - smaller;
    for (w, mask) in arrays.iter().zip(masks) {
        mask_below::<O, E>(w, value, mask)?;
        remove_ties::<O, E>(w, value, &mut ties, mask);
    }
    Ok(())
}

/// Removes the first `ties` of the values that equal `value`, and counts them down.
fn remove_ties<O: Order, E: Element>(w: &[E], value: E, ties: &mut usize, mask: &mut [u8]) {
    if *ties == 0 {
        return;
    }
    let equal = w.iter().zip(mask).filter(|(w, _)| O::key(**w) == O::key(value));
    for (_, keep) in equal.take(*ties) {
        *keep = 0;
        *ties -= 1;
    }
}

struct Apply<'a, E> {
    w: &'a mut [E],
    mask: &'a [u8],
}

impl<E: Element> Kernel for Apply<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (w, &keep) in self.w.iter_mut().zip(self.mask) {
            *w = if keep != 0 { *w } else { E::default() };
        }
    }
}

/// Sets what the mask does not keep to 0.
///
/// # Panics
/// If the lengths differ.
pub fn apply_mask<E: Element>(w: &mut [E], mask: &[u8]) {
    assert_eq!(w.len(), mask.len());
    let len = w.len();
    let shared = SharedMut::new(w);
    parallel::for_each(0..len, GRAIN_ELEMENTS, ALIGN, |part| {
        // SAFETY: `w` is borrowed for the whole call and parts do not overlap.
        let w = unsafe { shared.slice(part.clone()) };
        simd::dispatch(Apply { w, mask: &mask[part] });
    });
}
