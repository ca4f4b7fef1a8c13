//! Half precision, which is computed with in single precision: from one to the other.

use crate::numeric::element::Element;
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, Kernel};

/// Elements of a row that must be widened before they are computed with.
pub fn wide_len<T: Element>(classes: usize) -> usize {
    if T::as_compute(&[]).is_some() { 0 } else { classes }
}

/// Converts to the compute type.
#[inline(always)]
pub fn widen<T: Element>(from: &[T], to: &mut [T::Compute]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.load();
    }
}

/// Converts to the storage type.
#[inline(always)]
pub fn narrow<T: Element>(from: &[T::Compute], to: &mut [T]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = T::store(*from);
    }
}

/// Elements in the compute type, where that is another.
pub struct Wide<T: Element>(Scratch<T::Compute>);

impl<T: Element> Wide<T> {
    /// Converts them.
    pub fn new(x: &[T]) -> Self {
        let mut wide = Scratch::new(wide_len::<T>(x.len()));
        simd::dispatch(Widen { from: x, to: &mut wide });
        Wide(wide)
    }

    /// They, or `x`, which are the same, where nothing had to be converted.
    pub fn get<'a>(&'a self, x: &'a [T]) -> &'a [T::Compute] {
        T::as_compute(x).unwrap_or(&self.0)
    }
}

struct Widen<'a, T: Element> {
    from: &'a [T],
    to: &'a mut [T::Compute],
}

impl<T: Element> Kernel for Widen<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        widen(self.from, self.to);
    }
}

/// Converts to the storage type.
pub struct Narrow<'a, T: Element> {
    /// What is converted.
    pub from: &'a [T::Compute],
    /// Where it goes.
    pub to: &'a mut [T],
}

impl<T: Element> Kernel for Narrow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        narrow(self.from, self.to);
    }
}
