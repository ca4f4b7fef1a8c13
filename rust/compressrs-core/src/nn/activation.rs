//! Activation functions of single elements, and their gradients.

use std::ops::Range;

use super::GRAIN_ELEMENTS;
use crate::numeric::element::Float;
pub use crate::numeric::erf::Erf;
use crate::numeric::erf::normal_cdf;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x Phi(x)`, with the normal distribution's `Phi(x) = (1 + erf(x / sqrt 2)) / 2`.
    Gelu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `x / (1 + exp(-x))`.
    Silu,
}

/// `sqrt(2 / pi)`, and the factor of the cube.
const TANH: (f64, f64) = (0.797_884_560_802_865_4, 0.044_715);

/// `1 / (1 + exp(-x))`.
#[inline(always)]
fn sigmoid<T: Float>(x: T) -> T {
    let e = (-x.abs()).exp_negative();
    let share = T::one() / (T::one() + e);
    if x < T::zero() { e * share } else { share }
}

/// `f(x)`.
#[inline(always)]
fn value<T: Float + Erf>(of: Activation, x: T) -> T {
    // The limit, where the product would be NaN.
    let bounded = if x == T::neg_infinity() { T::zero() } else { x };
    bounded * gate(of, x)
}

/// What `x` is multiplied with.
#[inline(always)]
fn gate<T: Float + Erf>(of: Activation, x: T) -> T {
    match of {
        Activation::Gelu => normal_cdf(x),
        // (1 + tanh u) / 2 is the sigmoid of 2 u.
        Activation::GeluTanh => sigmoid(inner(x)),
        Activation::Silu => sigmoid(x),
    }
}

/// Twice the argument of the tangent.
#[inline(always)]
fn inner<T: Float>(x: T) -> T {
    let cube = T::from_f64(2.0 * TANH.0 * TANH.1) * x * x;
    (cube + T::from_f64(2.0 * TANH.0)) * x
}

/// `f'(x)`.
#[inline(always)]
fn slope<T: Float + Erf>(of: Activation, x: T) -> T {
    let share = gate(of, x);
    match of {
        Activation::Gelu => {
            let density = (x * x * T::from_f64(-0.5)).exp_negative();
            let factor = T::from_f64(std::f64::consts::FRAC_1_SQRT_2 / std::f64::consts::PI.sqrt());
            // At infinity, where the density is 0.
            let x = if x.abs() == T::infinity() { T::zero() } else { x };
            (x * factor).mul_add(density, share)
        }
        Activation::GeluTanh | Activation::Silu => {
            let change = match of {
                Activation::Silu => x,
                _ => {
                    let cube = T::from_f64(6.0 * TANH.0 * TANH.1) * x * x;
                    (cube + T::from_f64(2.0 * TANH.0)) * x
                }
            };
            let other = sigmoid(match of {
                Activation::Silu => -x,
                _ => -inner(x),
            });
            let product = share * other;
            // Far out the product is 0, and the other factor may be infinite.
            let product = if product == T::zero() { product } else { product * change };
            share + product
        }
    }
}

/// `out = f(x)`.
///
/// # Panics
/// If lengths disagree.
pub fn forward<T: Float + Erf>(of: Activation, x: &[T], out: &mut [T]) {
    assert_eq!(x.len(), out.len());
    let out = SharedMut::new(out);
    parallel::for_each(0..x.len(), GRAIN_ELEMENTS, 64, |part| {
        // SAFETY: parts do not overlap.
        let out = unsafe { out.slice(part.clone()) };
        simd::dispatch(Forward { of, x: &x[part], out });
    });
}

struct Forward<'a, T> {
    of: Activation,
    x: &'a [T],
    out: &'a mut [T],
}

impl<T: Float + Erf> Kernel for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        // The choice is outside of the loop, which vectorizes then.
        macro_rules! each {
            ($of:expr) => {
                for (y, x) in self.out.iter_mut().zip(self.x) {
                    *y = value($of, *x);
                }
            };
        }
        match self.of {
            Activation::Gelu => each!(Activation::Gelu),
            Activation::GeluTanh => each!(Activation::GeluTanh),
            Activation::Silu => each!(Activation::Silu),
        }
    }
}

/// `dx = dy f'(x)`.
///
/// # Panics
/// If lengths disagree.
pub fn backward<T: Float + Erf>(of: Activation, x: &[T], dy: &[T], dx: &mut [T]) {
    assert!(x.len() == dx.len() && dy.len() == dx.len());
    let dx = SharedMut::new(dx);
    parallel::for_each(0..x.len(), GRAIN_ELEMENTS, 64, |part: Range<usize>| {
        // SAFETY: parts do not overlap.
        let dx = unsafe { dx.slice(part.clone()) };
        simd::dispatch(Backward { of, x: &x[part.clone()], dy: &dy[part], dx });
    });
}

struct Backward<'a, T> {
    of: Activation,
    x: &'a [T],
    dy: &'a [T],
    dx: &'a mut [T],
}

impl<T: Float + Erf> Kernel for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        macro_rules! each {
            ($of:expr) => {
                for ((dx, dy), x) in self.dx.iter_mut().zip(self.dy).zip(self.x) {
                    *dx = *dy * slope($of, *x);
                }
            };
        }
        match self.of {
            Activation::Gelu => each!(Activation::Gelu),
            Activation::GeluTanh => each!(Activation::GeluTanh),
            Activation::Silu => each!(Activation::Silu),
        }
    }
}
