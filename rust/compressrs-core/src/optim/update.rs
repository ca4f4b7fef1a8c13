//! The loops that apply a formula to the elements of a tensor, block by block.

use std::ops::Range;

use super::full_tensor::FullTensor;
use super::fused;
use super::rule::Formula;
use super::storage::BlockAccess;
use super::tensor::{ALIGN, GRAIN_ELEMENTS, Tensor, mask_bytes};
use crate::numeric::element::Float;
use crate::numeric::lanes;
use crate::quantize::blockwise::BLOCK;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// Elements that the masked loop takes at a time.
const UNIT: usize = 16;

impl<C: Float> Tensor<'_, C> {
    /// Applies a formula to every element, in parallel.
    pub(super) fn apply<const S: usize>(&self, formula: impl Formula<C, S>) {
        parallel::for_each(0..self.len(), GRAIN_ELEMENTS, ALIGN, |part| {
            // SAFETY: parts do not overlap, and only one loop at a time works on
            // a tensor.
            unsafe { update_part(self, part, formula) };
        });
    }

    /// The sums of the terms that `f` gives for each parameter and its states.
    pub(super) fn sums<const S: usize, const K: usize>(
        &self,
        f: impl Fn(C, [C; S]) -> [f64; K] + Copy + Sync,
    ) -> [f64; K] {
        let add = |a: [f64; K], b: [f64; K]| std::array::from_fn(|k| a[k] + b[k]);
        let part = |part: Range<usize>| {
            let mut scratch = BlockBuffers::<C, S>::default();
            let mut sum = [0.0; K];
            for start in part.clone().step_by(BLOCK) {
                let block = start..part.end.min(start + BLOCK);
                // SAFETY: nothing writes to the tensor meanwhile.
                let terms = unsafe {
                    let param = view(&self.param, &block, &mut scratch.param);
                    let mut buffers = scratch.states.iter_mut();
                    let states: [&[C]; S] = std::array::from_fn(|s| {
                        &*view(&self.states[s], &block, buffers.next().expect("one a state"))
                    });
                    simd::dispatch(Terms { param, states, f })
                };
                sum = add(sum, terms);
            }
            sum
        };
        parallel::reduce(self.len(), GRAIN_ELEMENTS, part, add).unwrap_or([0.0; K])
    }
}

/// Where blocks are decoded to.
struct BlockBuffers<C, const S: usize> {
    param: [C; BLOCK],
    grad: [C; BLOCK],
    states: [[C; BLOCK]; S],
}

impl<C: Float, const S: usize> Default for BlockBuffers<C, S> {
    fn default() -> Self {
        let zeros = [C::zero(); BLOCK];
        BlockBuffers { param: zeros, grad: zeros, states: [zeros; S] }
    }
}

/// The numbers of a block where they are, or decoded to `scratch`.
///
/// # Safety
/// Nothing else may use the numbers of the block while the result is used.
unsafe fn view<'s, 'a: 's, C: Float>(
    source: &impl BlockAccess<'a, C>,
    block: &Range<usize>,
    scratch: &'s mut [C; BLOCK],
) -> &'s mut [C] {
    // SAFETY: the caller guarantees that nothing else uses the block while
    // the result is used.
    unsafe {
        if let Some(numbers) = source.in_place() {
            return numbers.slice(block.clone());
        }
        source.load(block.clone(), scratch);
    }
    &mut scratch[..block.len()]
}

/// # Safety
/// No reference to this part of the parameter or its states may be alive. The
/// part starts at a multiple of ALIGN.
pub(super) unsafe fn update_part<C: Float, const S: usize>(
    t: &Tensor<'_, C>,
    part: Range<usize>,
    formula: impl Formula<C, S>,
) {
    // Parts start at multiples of ALIGN, and so of 8.
    let mask = |range: &Range<usize>| t.mask.map(|m| &m[range.start / 8..mask_bytes(range.end)]);
    let factor = t.factor();
    let states_in_place = || {
        let mut states: [SharedMut<'_, C>; S] = std::array::from_fn(|_| SharedMut::new(&mut []));
        for (state, moments) in states.iter_mut().zip(&t.states) {
            *state = moments.in_place()?;
        }
        Some(states)
    };
    if let (Some(scale), Some(param), Some(grad), Some(states)) =
        (factor, t.param.in_place(), t.grad.as_slice(), states_in_place())
    {
        // SAFETY: the caller guarantees that no reference to this part is alive.
        let (param, states) =
            unsafe { (param.slice(part.clone()), states.map(|state| state.slice(part.clone()))) };
        let (grad, mask) = (&grad[part.clone()], mask(&part));
        simd::dispatch(Elementwise { formula, scale, param, grad, states, mask });
        return;
    }
    let mut scratch = BlockBuffers::<C, S>::default();
    for start in part.clone().step_by(BLOCK) {
        let block = start..part.end.min(start + BLOCK);
        // SAFETY: the caller guarantees that no reference to this part, in which
        // the block lies, is alive.
        unsafe { update_block(t, &block, formula, factor, mask(&block), &mut scratch) };
    }
}

impl<C: Float> FullTensor<'_, C> {
    /// Applies a formula to a part. Other than [`apply`](Self::apply), this compiles no loops
    /// for other types of storage.
    ///
    /// # Safety
    /// As for [`update_part`].
    pub(super) unsafe fn update_in_place<const S: usize>(
        &self,
        part: Range<usize>,
        formula: impl Formula<C, S>,
    ) {
        // SAFETY: the caller guarantees that no reference to this part is alive.
        let (param, states) = unsafe {
            let states = std::array::from_fn(|s| self.states[s].slice(part.clone()));
            (self.param.slice(part.clone()), states)
        };
        let mask = self.mask.map(|m| &m[part.start / 8..mask_bytes(part.end)]);
        let (scale, grad) = (self.scale, &self.grad[part]);
        simd::dispatch(Elementwise { formula, scale, param, grad, states, mask });
    }
}

/// Decodes a block, updates it, encodes it.
///
/// # Safety
/// No reference to this block of the parameter or its states may be alive.
unsafe fn update_block<C: Float, const S: usize>(
    t: &Tensor<'_, C>,
    block: &Range<usize>,
    formula: impl Formula<C, S>,
    factor: Option<C>,
    mask: Option<&[u8]>,
    scratch: &mut BlockBuffers<C, S>,
) {
    let Tensor { param, grad, states, rounding, .. } = t;
    if let (Some(scale), None) = (factor, mask) {
        // SAFETY: the caller guarantees that nothing else uses this block, which
        // starts at a multiple of BLOCK.
        if unsafe { fused::update(formula, scale, param, grad, states, block, *rounding) } {
            return;
        }
    }
    let (scale, grad) = match (factor, t.grad.as_slice()) {
        (Some(scale), Some(grad)) => (scale, &grad[block.clone()]),
        (factor, _) => {
            let grad = &mut scratch.grad[..block.len()];
            match factor {
                Some(_) => t.grad.load(block.clone(), grad),
                None => t.grad.load_times(t.scale, block.clone(), grad),
            }
            (factor.unwrap_or(C::one()), &*grad)
        }
    };
    // SAFETY: the caller guarantees that nothing else uses this block; what
    // is in place is not stored.
    unsafe {
        let param = view(&t.param, block, &mut scratch.param);
        let mut buffers = scratch.states.iter_mut();
        let states = std::array::from_fn(|s| {
            view(&t.states[s], block, buffers.next().expect("one a state"))
        });
        simd::dispatch(Elementwise { formula, scale, param, grad, states, mask });
        if t.param.in_place().is_none() {
            t.param.store(block.clone(), &mut scratch.param, t.rounding);
        }
        for (state, numbers) in t.states.iter().zip(&mut scratch.states) {
            if state.in_place().is_none() {
                state.store(block.clone(), numbers, t.rounding);
            }
        }
    }
}

struct Terms<'a, C, F, const S: usize> {
    param: &'a [C],
    states: [&'a [C]; S],
    f: F,
}

impl<C, F, const S: usize, const K: usize> Kernel for Terms<'_, C, F, S>
where
    C: Float,
    F: Fn(C, [C; S]) -> [f64; K],
{
    type Output = [f64; K];

    #[inline(always)]
    fn run(self) -> [f64; K] {
        let n = self.param.len();
        let states = self.states.map(|state| &state[..n]);
        lanes::sums(n, |i| (self.f)(self.param[i], states.map(|state| state[i])))
    }
}

struct Elementwise<'a, C, F, const S: usize> {
    formula: F,
    scale: C,
    param: &'a mut [C],
    grad: &'a [C],
    states: [&'a mut [C]; S],
    mask: Option<&'a [u8]>,
}

impl<C: Float, F: Formula<C, S>, const S: usize> Kernel for Elementwise<'_, C, F, S> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        for (state, is_replaced) in self.states.iter_mut().zip(self.formula.replaces()) {
            if is_replaced {
                state.fill(C::zero());
            }
        }
        match self.mask {
            None => self.update(),
            Some(mask) => self.update_masked(mask),
        }
    }
}

impl<C: Float, F: Formula<C, S>, const S: usize> Elementwise<'_, C, F, S> {
    /// The new parameter of one element, its state updated.
    #[inline(always)]
    fn element(&self, param: C, grad: C, state: &mut [C; S]) -> C {
        self.formula.apply(param, grad * self.scale, state)
    }

    #[inline(always)]
    fn update(mut self) {
        // Lengths that the compiler can see are equal need no bounds checks.
        let n = self.param.len();
        let (param, grad) = (&mut std::mem::take(&mut self.param)[..n], &self.grad[..n]);
        let states = self.states.each_mut().map(|state| &mut std::mem::take(state)[..n]);
        for i in 0..n {
            let mut state: [C; S] = std::array::from_fn(|s| states[s][i]);
            param[i] = self.element(param[i], grad[i], &mut state);
            for s in 0..S {
                states[s][i] = state[s];
            }
        }
    }

    #[inline(always)]
    fn update_masked(mut self, mask: &[u8]) {
        let n = self.param.len();
        let (param, grad) = (&mut std::mem::take(&mut self.param)[..n], &self.grad[..n]);
        let mut states = self.states.each_mut().map(|state| &mut std::mem::take(state)[..n]);
        let full = n / UNIT * UNIT;
        for start in (0..full).step_by(UNIT) {
            let bits = u32::from(mask[start / 8]) | u32::from(mask[start / 8 + 1]) << 8;
            self.update_unit(param, grad, &mut states, bits, start, UNIT);
        }
        if full < n {
            let bytes = mask[full / 8..].iter().rev();
            let bits = bytes.fold(0u32, |bits, &byte| bits << 8 | u32::from(byte));
            self.update_unit(param, grad, &mut states, bits, full, n - full);
        }
    }

    /// Updates `len` elements from `start` on, of which `bits` are kept, by way of
    /// locals of a fixed length: the loop over them becomes vector instructions,
    /// with the bits spread over a register.
    #[inline(always)]
    fn update_unit(
        &self,
        param: &mut [C],
        grad: &[C],
        states: &mut [&mut [C]; S],
        bits: u32,
        start: usize,
        len: usize,
    ) {
        let unit = start..start + len;
        let (mut theta, mut g) = ([C::zero(); UNIT], [C::zero(); UNIT]);
        theta[..len].copy_from_slice(&param[unit.clone()]);
        g[..len].copy_from_slice(&grad[unit.clone()]);
        let mut kept = [[C::zero(); UNIT]; S];
        for s in 0..S {
            kept[s][..len].copy_from_slice(&states[s][unit.clone()]);
        }
        for l in 0..UNIT {
            let mut state: [C; S] = std::array::from_fn(|s| kept[s][l]);
            let new = self.element(theta[l], g[l], &mut state);
            let keep = bits >> l & 1 != 0;
            theta[l] = if keep { new } else { C::zero() };
            for s in 0..S {
                kept[s][l] = if keep { state[s] } else { C::zero() };
            }
        }
        param[unit.clone()].copy_from_slice(&theta[..len]);
        for s in 0..S {
            states[s][unit.clone()].copy_from_slice(&kept[s][..len]);
        }
    }
}
