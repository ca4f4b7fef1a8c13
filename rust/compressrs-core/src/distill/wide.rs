//! Conversion to a wider type: half precision to single precision, in which it is computed, and
//! what needs double precision.

use crate::numeric::element::{Element, Float};
use crate::numeric::elementwise::Convert;
use crate::runtime::memory;
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

/// Above this temperature, losses that depend on rounded probabilities are computed in double
/// precision: the nearly uniform distributions differ by about `1 / T` of a probability.
pub const MAX_SINGLE_TEMPERATURE: f64 = 64.0;

/// Whether elements of this type are computed in single precision.
pub fn is_single<T: Element>() -> bool {
    size_of::<T::Compute>() < size_of::<f64>()
}

/// Elements in double precision.
pub fn to_double<T: Element>(x: &[T]) -> Vec<f64> {
    memory::collect(x.iter().map(|x| x.load().to_f64()))
}

/// Rounds doubles to elements.
pub fn from_double<T: Element>(from: &[f64], to: &mut [T]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = T::store(T::Compute::from_f64(from));
    }
}
