//! Half precision, which is computed with in single precision: from one to the other.

use crate::numeric::element::Element;
use crate::numeric::elementwise::Convert;
use crate::runtime::scratch::Scratch;
use crate::runtime::simd;

/// Elements of a row that must be widened before they are computed with.
pub fn wide_len<T: Element>(classes: usize) -> usize {
    if T::as_compute(&[]).is_some() { 0 } else { classes }
}

/// Elements in the compute type, where that is another.
pub struct Wide<T: Element>(Scratch<T::Compute>);

impl<T: Element> Wide<T> {
    /// Converts them.
    pub fn new(x: &[T]) -> Self {
        let mut wide = Scratch::new(wide_len::<T>(x.len()));
        simd::dispatch(Convert { from: x, to: &mut wide });
        Wide(wide)
    }

    /// They, or `x`, which are the same, where nothing had to be converted.
    pub fn get<'a>(&'a self, x: &'a [T]) -> &'a [T::Compute] {
        T::as_compute(x).unwrap_or(&self.0)
    }
}
