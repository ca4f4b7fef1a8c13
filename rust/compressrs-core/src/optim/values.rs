//! Numbers of any floating-point type, to read: gradients, and what weights become.

use std::any::TypeId;
use std::borrow::Cow;
use std::ops::Range;

use half::{bf16, f16};

use crate::numeric::element::{Element, Float};
use crate::numeric::elementwise::{Convert, convert};
use crate::runtime::memory;
use crate::runtime::simd::{self, Kernel};

/// Numbers of any floating-point type, to read.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// In double precision.
    F64(&'a [f64]),
    /// In single precision.
    F32(&'a [f32]),
    /// In half precision of IEEE 754.
    F16(&'a [f16]),
    /// In bfloat16.
    Bf16(&'a [bf16]),
}

/// Runs `$body` with the slice of a [`Values`] as `$slice`.
macro_rules! with_values {
    ($values:expr, $slice:ident => $body:expr) => {
        match $values {
            $crate::optim::Values::F64($slice) => $body,
            $crate::optim::Values::F32($slice) => $body,
            $crate::optim::Values::F16($slice) => $body,
            $crate::optim::Values::Bf16($slice) => $body,
        }
    };
}

pub(super) use with_values;

macro_rules! values_from {
    ($($t:ty => $name:ident),*) => {
        $(impl<'a> From<&'a [$t]> for Values<'a> {
            fn from(slice: &'a [$t]) -> Self {
                Values::$name(slice)
            }
        })*
    };
}

values_from!(f64 => F64, f32 => F32, f16 => F16, bf16 => Bf16);

impl<'a> Values<'a> {
    /// Number of elements.
    #[expect(clippy::len_without_is_empty, reason = "not needed")]
    pub fn len(&self) -> usize {
        with_values!(self, x => x.len())
    }

    /// Numbers of the type that is computed in.
    pub(super) fn of<C: Float>(numbers: &'a [C]) -> Self {
        match (same(numbers), same(numbers)) {
            (Some(single), _) => Values::F32(single),
            (_, Some(double)) => Values::F64(double),
            _ => unreachable!("single and double precision are all that is computed in"),
        }
    }

    /// The slice, if its elements are of type `C`.
    pub(super) fn as_slice<C: Float>(&self) -> Option<&'a [C]> {
        with_values!(*self, x => same(x))
    }

    /// The numbers as type `C`.
    pub(super) fn as_compute<C: Float>(&self) -> Cow<'a, [C]> {
        match self.as_slice() {
            Some(slice) => Cow::Borrowed(slice),
            None => {
                with_values!(self, x => Cow::Owned(memory::collect(x.iter().map(|&x| convert(x)))))
            }
        }
    }

    /// Converts numbers to type `C`.
    pub(super) fn load<C: Float>(&self, range: Range<usize>, to: &mut [C]) {
        with_values!(self, x => simd::dispatch(Convert { from: &x[range], to }));
    }
}

impl Values<'_> {
    /// The numbers times a factor, in double precision, then as type `C`.
    pub(super) fn times<C: Float>(&self, factor: f64) -> Vec<C> {
        let mut product = memory::zeroed(self.len());
        self.load_times(factor, 0..self.len(), &mut product);
        product
    }

    /// Converts numbers times a factor, in double precision, to type `C`.
    pub(super) fn load_times<C: Float>(&self, factor: f64, range: Range<usize>, to: &mut [C]) {
        with_values!(self, x => simd::dispatch(ConvertTimes { factor, from: &x[range], to }));
    }
}

/// A slice as one of another name for its type.
fn same<A: 'static, B: 'static>(x: &[A]) -> Option<&[B]> {
    if TypeId::of::<A>() != TypeId::of::<B>() {
        return None;
    }
    // SAFETY: the types are the same.
    Some(unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), x.len()) })
}

struct ConvertTimes<'a, E, C> {
    factor: f64,
    from: &'a [E],
    to: &'a mut [C],
}

impl<E: Element, C: Float> Kernel for ConvertTimes<'_, E, C> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (to, &from) in self.to.iter_mut().zip(self.from) {
            *to = C::from_f64(self.factor * from.load().to_f64());
        }
    }
}
