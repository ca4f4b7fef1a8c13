//! Masks by magnitude.

use super::threshold::{Rank, rank};
use crate::element::Element;
use crate::parallel::{self, SharedMut};
use crate::simd::{self, Kernel};

const GRAIN: usize = 256 * 1024;
const ALIGN: usize = 64;

struct Below<'a, E> {
    w: &'a [E],
    threshold: E,
    mask: &'a mut [u8],
}

impl<E: Element> Kernel for Below<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let threshold = self.threshold.magnitude();
        for (keep, w) in self.mask.iter_mut().zip(self.w) {
            *keep = u8::from(w.magnitude() >= threshold);
        }
    }
}

/// `mask = |w| >= threshold`: removes what lies below. NaN is kept.
///
/// # Panics
/// If the lengths differ.
pub fn mask_below<E: Element>(w: &[E], threshold: E, mask: &mut [u8]) {
    assert_eq!(w.len(), mask.len());
    let shared = SharedMut::new(mask);
    parallel::for_each(0..w.len(), GRAIN, ALIGN, |part| {
        // SAFETY: `mask` is borrowed for the whole call and parts do not overlap.
        let mask = unsafe { shared.slice(part.clone()) };
        simd::dispatch(Below { w: &w[part], threshold, mask });
    });
}

/// Masks that remove exactly the `k` smallest magnitudes of all arrays together.
/// Of equal ones, those that come first are removed.
///
/// # Panics
/// If there are fewer than `k` values, or lengths differ.
pub fn mask_smallest<E: Element>(arrays: &[&[E]], k: usize, masks: &mut [&mut [u8]]) {
    assert_eq!(arrays.len(), masks.len());
    let Some(Rank { value, smaller }) = rank(arrays, k) else {
        assert_eq!(arrays.iter().map(|a| a.len()).sum::<usize>(), k, "values to remove");
        masks.iter_mut().for_each(|mask| mask.fill(0));
        return;
    };
    let mut ties = k - smaller;
    for (w, mask) in arrays.iter().zip(masks) {
        mask_below(w, value, mask);
        if ties > 0 {
            for (keep, w) in mask.iter_mut().zip(*w) {
                if w.magnitude() == value.magnitude() {
                    *keep = 0;
                    ties -= 1;
                    if ties == 0 {
                        break;
                    }
                }
            }
        }
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
    parallel::for_each(0..len, GRAIN, ALIGN, |part| {
        // SAFETY: `w` is borrowed for the whole call and parts do not overlap.
        let w = unsafe { shared.slice(part.clone()) };
        simd::dispatch(Apply { w, mask: &mask[part] });
    });
}
