//! Cautious updates: only elements whose step agrees in sign with the gradient move.
//!
//! ```text
//! u       = the rule's step
//! phi     = 1 where u g > 0, else 0
//! theta  <- theta - n / (sum phi + 1) phi u         (n: number of elements)
//! ```
//!
//! Source: Liang, Chen, Liu & Liu, "Cautious optimizers" (arXiv 2411.16085, algorithm 1). Weight
//! decay, where it is decoupled, acts on all elements. Masked elements do not count.

use super::full_tensor::FullTensor;
use super::rule::{Formula, sign};
use super::tensor::{ALIGN, GRAIN_ELEMENTS, is_kept, mask_bytes};
use super::{adam, ademamix, lion, nadam, radam};
use crate::numeric::element::Float;
use crate::runtime::parallel;
use crate::runtime::simd::{self, Kernel};

/// What a rule would do to an element.
#[derive(Clone, Copy)]
pub(super) struct Step<C> {
    /// The parameter after what does not depend on the gradient.
    pub base: C,
    /// What is subtracted from it.
    pub step: C,
    /// The gradient, an L2 penalty included.
    pub gradient: C,
}

impl<C: Float> Step<C> {
    /// Whether the step descends along this element's gradient. By signs, since a product of small
    /// numbers would be 0.
    #[inline(always)]
    fn agrees(self) -> bool {
        sign(self.step) * sign(self.gradient) > C::zero()
    }
}

/// A formula whose step is known apart from the parameter.
pub(super) trait Directed<C: Float, const S: usize>: Formula<C, S> {
    /// The step of the parameter `theta` whose gradient is `g`; `state` is updated.
    fn directed(&self, theta: C, g: C, state: &mut [C; S]) -> Step<C>;
}

/// The coefficients of one cautious step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cautious {
    /// Of [`adam::Adam`].
    Adam(adam::Moments<f64>),
    /// Of [`adam::Adam`] with the largest second moment kept.
    Amsgrad(adam::LargestMoments<f64>),
    /// Of [`nadam::NAdam`].
    NAdam(nadam::Nesterov<f64>),
    /// Of [`radam::RAdam`].
    RAdam(radam::Rectified<f64>),
    /// Of [`lion::Lion`].
    Lion(lion::Signs<f64>),
    /// Of [`lion::Lion`] with a decay rate of 0.
    LionReplacing(lion::Replacing<f64>),
    /// Of [`ademamix::AdEmaMix`].
    AdEmaMix(ademamix::Mixed<f64>),
}

impl Cautious {
    pub(super) fn step<C: Float>(self, t: &FullTensor<'_, C>) {
        match self {
            Cautious::Adam(formula) => step(formula.cast(), t),
            Cautious::Amsgrad(formula) => step(formula.cast(), t),
            Cautious::NAdam(formula) => step(formula.cast(), t),
            Cautious::RAdam(formula) => step(formula.cast(), t),
            Cautious::Lion(formula) => step(formula.cast(), t),
            Cautious::LionReplacing(formula) => step(formula.cast(), t),
            Cautious::AdEmaMix(formula) => step(formula.cast(), t),
        }
    }
}

fn step<C: Float, const S: usize>(formula: impl Directed<C, S>, t: &FullTensor<'_, C>) {
    for (state, is_replaced) in t.states.iter().zip(formula.replaces()) {
        if is_replaced {
            // The steps that are counted are those that are then taken.
            parallel::for_each(0..t.grad.len(), GRAIN_ELEMENTS, ALIGN, |part| {
                // SAFETY: parts do not overlap, and nothing else uses the tensor.
                unsafe { state.slice(part) }.fill(C::zero());
            });
        }
    }
    let count = |part: std::ops::Range<usize>| {
        let mask = t.mask.map(|mask| &mask[part.start / 8..mask_bytes(part.end)]);
        // SAFETY: nothing writes to the tensor before the counts are known.
        let (param, states) = unsafe {
            let states: [&[C]; S] = std::array::from_fn(|s| t.states[s].read(part.clone()));
            (t.param.read(part.clone()), states)
        };
        let grad = &t.grad[part];
        simd::dispatch(Count { formula, scale: t.scale, param, grad, states, mask })
    };
    let add = |[a, b]: [usize; 2], [c, d]: [usize; 2]| [a + c, b + d];
    let [agree, all] = parallel::reduce(t.grad.len(), GRAIN_ELEMENTS, count, add).unwrap_or([0; 2]);
    let factor = C::from_f64(all as f64 / (agree as f64 + 1.0));
    parallel::for_each(0..t.grad.len(), GRAIN_ELEMENTS, ALIGN, |part| {
        // SAFETY: parts do not overlap, and nothing else uses the tensor.
        unsafe { t.update_in_place(part, Agreeing { formula, factor }) };
    });
}

/// The formula where its step agrees with the gradient.
#[derive(Clone, Copy)]
struct Agreeing<C, F> {
    formula: F,
    /// What the mean step is made up for.
    factor: C,
}

impl<C: Float, F: Directed<C, S>, const S: usize> Formula<C, S> for Agreeing<C, F> {
    #[inline(always)]
    fn apply(&self, theta: C, g: C, state: &mut [C; S]) -> C {
        let step = self.formula.directed(theta, g, state);
        let moved = (-self.factor).mul_add(step.step, step.base);
        // NaN of either must not be lost.
        let invalid = (step.step * step.gradient).is_nan();
        if step.agrees() || invalid { moved } else { step.base }
    }
}

/// Counts the elements whose step agrees with the gradient, and those that count.
struct Count<'a, C, F, const S: usize> {
    formula: F,
    scale: C,
    param: &'a [C],
    grad: &'a [C],
    states: [&'a [C]; S],
    mask: Option<&'a [u8]>,
}

impl<C: Float, F: Directed<C, S>, const S: usize> Kernel for Count<'_, C, F, S> {
    type Output = [usize; 2];

    #[inline(always)]
    fn run(self) -> [usize; 2] {
        let n = self.param.len();
        let (param, grad) = (&self.param[..n], &self.grad[..n]);
        let states = self.states.map(|state| &state[..n]);
        let agrees = |i: usize| {
            let mut state = std::array::from_fn(|s| states[s][i]);
            self.formula.directed(param[i], grad[i] * self.scale, &mut state).agrees()
        };
        match self.mask {
            None => [(0..n).map(|i| usize::from(agrees(i))).sum(), n],
            Some(mask) => {
                let kept = (0..n).filter(|&i| is_kept(mask, i));
                kept.fold([0; 2], |[agree, all], i| [agree + usize::from(agrees(i)), all + 1])
            }
        }
    }
}
