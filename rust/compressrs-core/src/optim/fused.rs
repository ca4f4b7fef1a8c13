//! A block decoded, updated and encoded without a stop at a buffer before and after.
//!
//! Storage of any kind can be decoded to a buffer, updated there and encoded (see
//! [`super::storage`]). The usual kinds have loops of their own, one that decodes
//! and updates and one that stores: weights and gradients as they are computed or in
//! bfloat16, with moments in 8 bits or bfloat16. Where a formula can be taken in two
//! (see [`Formula::IN_TWO`]), its division and its root go to the second, which
//! converts while it waits for them.

use std::mem::MaybeUninit;
use std::ops::Range;

use half::bf16;

use super::rule::{Formula, MAX_STATES};
use super::storage::{Codes, Moments, Rounding, Weights};
use super::values::Values;
use crate::numeric::element::{Element, Float};
use crate::numeric::elementwise::convert;
use crate::numeric::stochastic_rounding::{Of, StochasticRounding, Threshold, Thresholds};
use crate::quantize::blockwise::{self, BLOCK};
use crate::runtime::simd::{self, Kernel};

/// A block of numbers to be read.
trait Source<C> {
    /// Number `i`; `divisor` is a constant once this is inlined.
    fn get(&self, i: usize, divisor: bool) -> C;
}

/// The weights of a block, to be read and then written.
trait Target<C>: Source<C> {
    /// Holds what is written until all is. Being a local, nothing can overlap it,
    /// so that the loop becomes vector instructions without a look at addresses.
    type Buffer;

    fn buffer() -> Self::Buffer;

    /// Writes number `i`.
    fn put(&mut self, buffer: &mut Self::Buffer, i: usize, x: C);

    /// Stores the block.
    ///
    /// # Safety
    /// All of its numbers have been written.
    unsafe fn finish(self, buffer: &Self::Buffer);
}

/// A state of a block, to be read and then stored.
trait Column<C>: Source<C> {
    /// What a number is stored as.
    type Stored: Copy;
    /// What must be known of all numbers of a block before one is stored.
    type Summary: Copy;

    fn summary(block: &[C; BLOCK], divisor: bool) -> Self::Summary;

    /// What a number is stored as.
    fn stored(summary: Self::Summary, x: C, threshold: u32, divisor: bool) -> Self::Stored;

    /// Stores the block.
    fn finish(
        self,
        summary: Self::Summary,
        stored: &[Self::Stored; BLOCK],
        block: &[C; BLOCK],
        thresholds: Thresholds,
        divisor: bool,
    );
}

/// Numbers as they are.
impl<C: Float> Source<C> for &[C; BLOCK] {
    #[inline(always)]
    fn get(&self, i: usize, _: bool) -> C {
        self[i]
    }
}

impl<C: Float> Source<C> for &mut [C; BLOCK] {
    #[inline(always)]
    fn get(&self, i: usize, _: bool) -> C {
        self[i]
    }
}

impl<C: Float> Target<C> for &mut [C; BLOCK] {
    type Buffer = ();

    #[inline(always)]
    fn buffer() {}

    #[inline(always)]
    fn put(&mut self, (): &mut (), i: usize, x: C) {
        self[i] = x;
    }

    #[inline(always)]
    unsafe fn finish(self, (): &()) {}
}

impl<C: Float> Source<C> for &[bf16; BLOCK] {
    #[inline(always)]
    fn get(&self, i: usize, _: bool) -> C {
        convert(self[i])
    }
}

/// Weights in bfloat16.
struct Bf16<'a, T> {
    values: &'a mut [bf16; BLOCK],
    round: T,
}

impl<C: Float, T> Source<C> for Bf16<'_, T> {
    #[inline(always)]
    fn get(&self, i: usize, _: bool) -> C {
        convert(self.values[i])
    }
}

impl<C: Float, T: Round> Target<C> for Bf16<'_, T> {
    type Buffer = Uninit<C>;

    #[inline(always)]
    fn buffer() -> Uninit<C> {
        [MaybeUninit::uninit(); BLOCK]
    }

    #[inline(always)]
    fn put(&mut self, buffer: &mut Uninit<C>, i: usize, x: C) {
        buffer[i].write(x);
    }

    #[inline(always)]
    unsafe fn finish(self, buffer: &Uninit<C>) {
        // SAFETY: the caller guarantees that every element has been put.
        let from = unsafe { written(buffer) };
        let mut rounded = [bf16::ZERO; BLOCK];
        for i in 0..BLOCK {
            rounded[i] = self.round.round(from[i].to_f32(), i);
        }
        *self.values = rounded;
    }
}

/// States in bfloat16.
impl<C: Float> Source<C> for &mut [bf16; BLOCK] {
    #[inline(always)]
    fn get(&self, i: usize, _: bool) -> C {
        convert(self[i])
    }
}

impl<C: Float> Column<C> for &mut [bf16; BLOCK] {
    type Stored = bf16;
    type Summary = ();

    #[inline(always)]
    fn summary(_: &[C; BLOCK], _: bool) {}

    #[inline(always)]
    fn stored((): (), x: C, threshold: u32, _: bool) -> bf16 {
        bf16::store_stochastic(x.to_f32(), threshold)
    }

    #[inline(always)]
    fn finish(self, (): (), stored: &[bf16; BLOCK], _: &[C; BLOCK], _: Thresholds, _: bool) {
        *self = *stored;
    }
}

/// Numbers that are written before they are read.
type Uninit<T> = [MaybeUninit<T>; BLOCK];

/// # Safety
/// All have been written.
#[inline(always)]
unsafe fn written<T>(buffer: &Uninit<T>) -> &[T; BLOCK] {
    // SAFETY: the layout is the same, and the caller guarantees that all have been written.
    unsafe { &*std::ptr::from_ref(buffer).cast() }
}

/// How number `i` of a block is rounded.
trait Round {
    fn round(&self, x: f32, i: usize) -> bf16;
}

struct Nearest;

impl Round for Nearest {
    #[inline(always)]
    fn round(&self, x: f32, _: usize) -> bf16 {
        bf16::store(x)
    }
}

impl Round for Thresholds {
    #[inline(always)]
    fn round(&self, x: f32, i: usize) -> bf16 {
        bf16::store_stochastic(x, self.at(i))
    }
}

/// Moments in 8 bits.
struct Coded<'a> {
    codes: &'a mut [u8; BLOCK],
    scale: f32,
    new_scale: &'a mut f32,
}

impl<C: Float> Source<C> for Coded<'_> {
    #[inline(always)]
    fn get(&self, i: usize, divisor: bool) -> C {
        let (code, scale) = (self.codes[i], self.scale);
        let x = if divisor {
            blockwise::decode(blockwise::Divisor, code, scale)
        } else {
            blockwise::decode(blockwise::Signed, code, scale)
        };
        C::from_f64(x.into())
    }
}

impl<C: Float> Column<C> for Coded<'_> {
    type Stored = u8;
    type Summary = blockwise::Scale;

    #[inline(always)]
    fn summary(block: &[C; BLOCK], divisor: bool) -> blockwise::Scale {
        if divisor {
            blockwise::Scale::of::<C, blockwise::Divisor>(block)
        } else {
            blockwise::Scale::of::<C, blockwise::Signed>(block)
        }
    }

    #[inline(always)]
    fn stored(scale: blockwise::Scale, x: C, threshold: u32, divisor: bool) -> u8 {
        let x = x.to_f32();
        if divisor {
            blockwise::encode(blockwise::Divisor, x, scale, threshold)
        } else {
            blockwise::encode(blockwise::Signed, x, scale, threshold)
        }
    }

    #[inline(always)]
    fn finish(
        self,
        scale: blockwise::Scale,
        stored: &[u8; BLOCK],
        block: &[C; BLOCK],
        thresholds: Thresholds,
        divisor: bool,
    ) {
        *self.codes = *stored;
        *self.new_scale = scale.finish(block, self.codes, thresholds, divisor);
    }
}

struct Fused<C, F, P, G, M, const S: usize> {
    formula: F,
    scale: C,
    param: P,
    grad: G,
    states: [M; S],
    /// Of the states.
    thresholds: Thresholds,
}

impl<C, F, P, G, M, const S: usize> Kernel for Fused<C, F, P, G, M, S>
where
    C: Float,
    F: Formula<C, S>,
    P: Target<C>,
    G: Source<C>,
    M: Column<C>,
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Fused { formula, scale, mut param, grad, states, thresholds } = self;
        let mut buffer = P::buffer();
        let mut new_states = [[MaybeUninit::uninit(); BLOCK]; S];
        for i in 0..BLOCK {
            let mut state = std::array::from_fn(|s| states[s].get(i, F::DIVISORS[s]));
            let (theta, g) = (param.get(i, false), grad.get(i, false) * scale);
            if F::IN_TWO {
                formula.advance(theta, g, &mut state);
            } else {
                param.put(&mut buffer, i, formula.apply(theta, g, &mut state));
            }
            for s in 0..S {
                new_states[s][i].write(state[s]);
            }
        }
        // SAFETY: the loop has written all.
        let new_states = new_states.each_ref().map(|states| unsafe { written(states) });
        let summaries: [M::Summary; S] =
            std::array::from_fn(|s| M::summary(new_states[s], F::DIVISORS[s]));
        let mut stored = [[MaybeUninit::uninit(); BLOCK]; S];
        for i in 0..BLOCK {
            let state = std::array::from_fn(|s| new_states[s][i]);
            if F::IN_TWO {
                let (theta, g) = (param.get(i, false), grad.get(i, false) * scale);
                param.put(&mut buffer, i, formula.step(theta, g, &state));
            }
            let threshold = thresholds.at(i);
            for s in 0..S {
                stored[s][i].write(M::stored(summaries[s], state[s], threshold, F::DIVISORS[s]));
            }
        }
        // SAFETY: the loops have written all.
        unsafe { param.finish(&buffer) };
        for (s, state) in states.into_iter().enumerate() {
            // SAFETY: as above.
            let stored = unsafe { written(&stored[s]) };
            state.finish(summaries[s], stored, new_states[s], thresholds, F::DIVISORS[s]);
        }
    }
}

/// Updates a whole block, if its storage is of a kind that has loops of its own;
/// whether it was.
///
/// # Safety
/// Nothing else may use this block of the parameter or its states meanwhile. It
/// starts at a multiple of [`BLOCK`].
pub(super) unsafe fn update<C: Float, F: Formula<C, S>, const S: usize>(
    formula: F,
    scale: C,
    param: &Weights<'_, C>,
    grad: &Values<'_>,
    states: &[Moments<'_, C>; MAX_STATES],
    block: &Range<usize>,
    rounding: StochasticRounding,
) -> bool {
    if formula.replaces().contains(&true) {
        return false;
    }
    let number = block.start / BLOCK;
    let thresholds = rounding.thresholds(Of::States, number);
    let common = Common { formula, scale, thresholds };
    // SAFETY: the caller guarantees that nothing else uses this block.
    let (coded, halves) = unsafe { (coded::<C, F, S>(states, block), halves(states, block)) };
    match (param, grad) {
        (Weights::Full(param), _) => {
            let grad = grad.as_slice::<C>().and_then(|grad| full_block(&grad[block.clone()]));
            // SAFETY: the caller guarantees that nothing else uses this block.
            let param = full_block_mut(unsafe { param.slice(block.clone()) });
            let (Some(param), Some(grad)) = (param, grad) else { return false };
            common.run_either(param, grad, coded, halves)
        }
        (Weights::Bf16(param), Values::Bf16(grad)) => {
            // SAFETY: the caller guarantees that nothing else uses this block.
            let values = full_block_mut(unsafe { param.values.slice(block.clone()) });
            let (Some(values), Some(grad)) = (values, full_block(&grad[block.clone()])) else {
                return false;
            };
            match &param.rounding {
                Rounding::Nearest => {
                    let param = Bf16 { values, round: Nearest };
                    common.run_either(param, grad, coded, halves)
                }
                Rounding::Stochastic => {
                    let round = rounding.thresholds(Of::Weights, number);
                    common.run_either(Bf16 { values, round }, grad, coded, halves)
                }
                Rounding::Kahan(_) | Rounding::Master(_) => false,
            }
        }
        _ => false,
    }
}

/// What does not depend on the storage.
struct Common<C, F> {
    formula: F,
    scale: C,
    thresholds: Thresholds,
}

impl<C: Float, F> Common<C, F> {
    fn run<P: Target<C>, G: Source<C>, M: Column<C>, const S: usize>(
        self,
        param: P,
        grad: G,
        states: [M; S],
    ) where
        F: Formula<C, S>,
    {
        let Common { formula, scale, thresholds } = self;
        simd::dispatch(Fused { formula, scale, param, grad, states, thresholds });
    }

    /// With the states that there are; whether there are.
    fn run_either<P: Target<C>, G: Source<C>, const S: usize>(
        self,
        param: P,
        grad: G,
        coded: Option<[Coded<'_>; S]>,
        halves: Option<[&mut [bf16; BLOCK]; S]>,
    ) -> bool
    where
        F: Formula<C, S>,
    {
        match (coded, halves) {
            (Some(states), _) => self.run(param, grad, states),
            (None, Some(states)) => self.run(param, grad, states),
            (None, None) => return false,
        }
        true
    }
}

/// The states of a block, if all are in 8 bits and finite.
///
/// # Safety
/// As for [`update`].
unsafe fn coded<'a, C: Float, F: Formula<C, S>, const S: usize>(
    states: &[Moments<'a, C>; MAX_STATES],
    block: &Range<usize>,
) -> Option<[Coded<'a>; S]> {
    let number = block.start / BLOCK;
    all(|s| {
        let Moments::Coded(Codes { codes, scales, divisor }) = &states[s] else { return None };
        // SAFETY: the caller guarantees that nothing else uses this block, and a
        // scale is used with its block alone.
        let (codes, scales) =
            unsafe { (codes.slice(block.clone()), scales.slice(number..number + 1)) };
        let new_scale = &mut scales[0];
        let scale = *new_scale;
        if *divisor != F::DIVISORS[s] || scale.is_sign_negative() {
            return None;
        }
        Some(Coded { codes: full_block_mut(codes)?, scale, new_scale })
    })
}

/// The states of a block, if all are in bfloat16.
///
/// # Safety
/// As for [`update`].
unsafe fn halves<'a, C: Float, const S: usize>(
    states: &[Moments<'a, C>; MAX_STATES],
    block: &Range<usize>,
) -> Option<[&'a mut [bf16; BLOCK]; S]> {
    all(|s| {
        let Moments::Bf16(values) = &states[s] else { return None };
        // SAFETY: the caller guarantees that nothing else uses this block.
        full_block_mut(unsafe { values.slice(block.clone()) })
    })
}

/// What `f` gives for `0..S`, if it gives something for each.
fn all<T, const S: usize>(f: impl FnMut(usize) -> Option<T>) -> Option<[T; S]> {
    let items = std::array::from_fn(f);
    if items.iter().any(Option::is_none) {
        return None;
    }
    Some(items.map(|item| item.expect("none is None")))
}

fn full_block<T>(block: &[T]) -> Option<&[T; BLOCK]> {
    block.try_into().ok()
}

fn full_block_mut<T>(block: &mut [T]) -> Option<&mut [T; BLOCK]> {
    block.try_into().ok()
}
