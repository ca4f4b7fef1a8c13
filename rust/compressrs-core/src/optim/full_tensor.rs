//! Tensors all of whose numbers are of the type that is computed in, for rules that look at
//! them as a whole.

use super::rule::{Formula, MAX_STATES};
use super::storage::{BlockAccess, Moments, Weights};
use super::tensor::{ALIGN, GRAIN_ELEMENTS, Tensor, is_kept};
use super::values::Values;
use crate::numeric::element::Float;
use crate::numeric::stochastic_rounding::StochasticRounding;
use crate::quantize::blockwise::BLOCK;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};

impl<C: Float> Tensor<'_, C> {
    /// Calls `f` with this tensor, all of its numbers being of the type that is
    /// computed in: itself, or a copy that is then stored here.
    pub(super) fn with_full(&self, f: impl FnOnce(&FullTensor<'_, C>)) {
        let mut param = ComputeCopy::new(&self.param);
        let mut states = self.states.each_ref().map(ComputeCopy::new);
        let factor = self.factor();
        let grad = match factor {
            Some(_) => self.grad.as_compute(),
            None => self.grad.times(self.scale).into(),
        };
        let shared = param.shared();
        let shared_states = states.each_mut().map(ComputeCopy::shared);
        f(&FullTensor {
            tensor: Tensor {
                param: Weights::Full(shared.alias()),
                grad: self.grad,
                states: shared_states.each_ref().map(|s| Moments::Full(s.alias())),
                range: 0..0,
                ..*self
            },
            scale: factor.unwrap_or(C::one()),
            matrix: self.matrix,
            unfolded: self.unfolded,
            param: shared,
            grad: &grad,
            states: shared_states,
            mask: self.mask,
        });
        param.store(&self.param, self.rounding);
        for (state, target) in states.iter_mut().zip(&self.states) {
            state.store(target, self.rounding);
        }
    }
}

/// A tensor all of whose numbers are of the type that is computed in, for rules
/// that look at it as a whole.
pub(super) struct FullTensor<'a, C: Float> {
    pub scale: C,
    /// Lengths of the last two axes, if there are two.
    pub matrix: Option<(usize, usize)>,
    /// The length of the first axis, and the product of the others, if there are two.
    pub unfolded: Option<(usize, usize)>,
    pub param: SharedMut<'a, C>,
    pub grad: &'a [C],
    pub states: [SharedMut<'a, C>; MAX_STATES],
    pub mask: Option<&'a [u8]>,
    pub tensor: Tensor<'a, C>,
}

impl<C: Float> FullTensor<'_, C> {
    /// The gradient of element `i` as the rule takes it.
    #[inline(always)]
    pub fn gradient(&self, i: usize) -> C {
        if self.mask.is_some_and(|mask| !is_kept(mask, i)) {
            return C::zero();
        }
        self.grad[i] * self.scale
    }

    /// Applies a formula to every element, in parallel, with a direction in place of the
    /// gradient.
    pub fn apply_to<const S: usize>(&self, direction: &[C], formula: impl Formula<C, S>) {
        let states = self.states.each_ref().map(|state| Moments::Full(state.alias()));
        let param = Weights::Full(self.param.alias());
        let grad = Values::of(direction);
        Tensor { param, grad, states, scale: 1.0, range: 0..0, ..self.tensor }.apply(formula);
    }

    /// Applies a formula to every element, in parallel.
    pub fn apply<const S: usize>(&self, formula: impl Formula<C, S>) {
        self.tensor.apply(formula);
    }
}

/// Numbers of a tensor where they are, or copied to the type that is computed in.
enum ComputeCopy<'a, C> {
    InPlace(SharedMut<'a, C>),
    Copy(Vec<C>),
}

impl<'a, C: Float> ComputeCopy<'a, C> {
    fn new(source: &impl BlockAccess<'a, C>) -> Self {
        if let Some(numbers) = source.in_place() {
            return ComputeCopy::InPlace(numbers);
        }
        let len = source.len();
        let mut copy = memory::zeroed(len);
        let shared = SharedMut::new(&mut copy);
        parallel::for_each(0..len, GRAIN_ELEMENTS, ALIGN, |part| {
            let mut scratch = [C::zero(); BLOCK];
            for start in part.clone().step_by(BLOCK) {
                let block = start..part.end.min(start + BLOCK);
                // SAFETY: parts do not overlap, and nothing writes to the source.
                unsafe {
                    source.load(block.clone(), &mut scratch);
                    shared.slice(block.clone()).copy_from_slice(&scratch[..block.len()]);
                }
            }
        });
        ComputeCopy::Copy(copy)
    }

    fn shared(&mut self) -> SharedMut<'_, C> {
        match self {
            ComputeCopy::InPlace(numbers) => numbers.alias(),
            ComputeCopy::Copy(copy) => SharedMut::new(copy),
        }
    }

    /// Stores what was copied.
    fn store(&mut self, target: &impl BlockAccess<'a, C>, rounding: StochasticRounding) {
        let ComputeCopy::Copy(copy) = self else { return };
        parallel::for_each(0..copy.len(), GRAIN_ELEMENTS, ALIGN, |part| {
            let mut scratch = [C::zero(); BLOCK];
            for start in part.clone().step_by(BLOCK) {
                let block = start..part.end.min(start + BLOCK);
                scratch[..block.len()].copy_from_slice(&copy[block.clone()]);
                // SAFETY: parts do not overlap, and nothing else uses the target.
                unsafe { target.store(block, &mut scratch, rounding) };
            }
        });
    }
}
