//! Loops over whole slices: conversion between element types, and formulas of one or two
//! elements.

use super::element::{Element, Float};
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// Elements worth a task of their own; see [`parallel::for_each`].
const GRAIN_ELEMENTS: usize = 32 * 1024;

/// Tasks start at multiples of this many elements, so that none shares a cache line.
const ALIGN: usize = 64;

/// Converts an element to another type: exactly where it can be, else rounded to nearest.
#[inline(always)]
pub fn convert<A: Element, B: Element>(x: A) -> B {
    B::store(B::Compute::from_f64(x.load().to_f64()))
}

/// Converts the elements of one slice into another of the same length.
#[inline(always)]
pub fn convert_into<A: Element, B: Element>(from: &[A], to: &mut [B]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = convert(from);
    }
}

/// [`convert_into`] as a kernel.
pub struct Convert<'a, A, B> {
    /// What is converted.
    pub from: &'a [A],
    /// Where it goes.
    pub to: &'a mut [B],
}

impl<A: Element, B: Element> Kernel for Convert<'_, A, B> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        convert_into(self.from, self.to);
    }
}

/// `start + weight (end - start)` for a weight from 0 to 1, which is finite where both ends are.
/// With a weight of 1 this is `end` for a start of 0 alone: another start can be so much larger
/// that the difference loses digits of `end`.
#[inline(always)]
pub fn lerp<C: Float>(start: C, end: C, weight: C) -> C {
    // Without halves, which would round the smallest numbers. One choice for all elements.
    let part = if weight == C::one() { weight } else { C::from_f64(0.5) };
    let times = if weight == C::one() { weight } else { weight + weight };
    times.mul_add(part.mul_add(end, -(part * start)), start)
}

/// [`lerp`] for a weight below 1: several between the same ends share half of the difference.
///
/// The difference of two large numbers can overflow, half of it cannot.
#[inline(always)]
pub fn lerp_below_one<C: Float>(start: C, end: C, weight: C) -> C {
    let half = C::from_f64(0.5);
    (weight + weight).mul_add(half.mul_add(end, -(half * start)), start)
}

/// Calls `f` with each element of `x` and the one of `y` at its place.
///
/// # Panics
/// If the lengths differ.
pub fn zip_into<X: Element, Y: Element>(x: &mut [X], y: &[Y], f: impl Fn(&mut X, Y) + Copy + Sync) {
    assert_eq!(x.len(), y.len());
    let len = x.len();
    let shared = SharedMut::new(x);
    parallel::for_each(0..len, GRAIN_ELEMENTS, ALIGN, |part| {
        // SAFETY: `x` is borrowed until the loop ends; parts do not overlap.
        let x = unsafe { shared.slice(part.clone()) };
        simd::dispatch(Zip { x, y: &y[part], f });
    });
}

struct Zip<'a, X, Y, F> {
    x: &'a mut [X],
    y: &'a [Y],
    f: F,
}

impl<X: Element, Y: Element, F: Fn(&mut X, Y)> Kernel for Zip<'_, X, Y, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (x, &y) in self.x.iter_mut().zip(self.y) {
            (self.f)(x, y);
        }
    }
}

/// Replaces each element by `f` of it.
pub fn map_in_place<E: Element>(x: &mut [E], f: impl Fn(E::Compute) -> E::Compute + Copy + Sync) {
    let len = x.len();
    let shared = SharedMut::new(x);
    parallel::for_each(0..len, GRAIN_ELEMENTS, ALIGN, |part| {
        // SAFETY: `x` is borrowed until the loop ends; parts do not overlap.
        let x = unsafe { shared.slice(part) };
        simd::dispatch(Map { x, f });
    });
}

struct Map<'a, E, F> {
    x: &'a mut [E],
    f: F,
}

impl<E: Element, F: Fn(E::Compute) -> E::Compute> Kernel for Map<'_, E, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for x in self.x {
            *x = E::store((self.f)(x.load()));
        }
    }
}
