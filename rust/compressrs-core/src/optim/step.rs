//! The one driver: applies the formulas of any number of tensors, in place.

use num_traits::Zero;

use super::rule::{Formula, MAX_STATES, Update};
use crate::element::{Element, Float};
use crate::parallel::{self, SharedMut};
use crate::simd::{self, Kernel};

/// Elements worth a task of their own; see [`parallel::for_each`].
const GRAIN: usize = 32 * 1024;

/// Tasks start at multiples of this many elements, so that none shares a cache
/// line with another inside a tensor.
const ALIGN: usize = 64;

/// One tensor and what a step does to it.
pub struct Tensor<'a, E: Element> {
    /// The coefficients of this step.
    pub update: Update,
    /// Factor on the gradient.
    pub scale: f64,
    /// The parameter.
    pub param: &'a mut [E],
    /// Its gradient.
    pub grad: &'a [E],
    /// The rule's state, as many buffers as [`Update`] takes, each of the
    /// parameter's length; the rest is empty.
    pub states: [&'a mut [E::Compute]; MAX_STATES],
    /// Where 0, the parameter and its state are set to 0.
    pub mask: Option<&'a [u8]>,
}

/// A tensor as tasks share it.
struct Shared<'a, E: Element> {
    update: Update,
    scale: f64,
    param: SharedMut<E>,
    grad: &'a [E],
    states: [SharedMut<E::Compute>; MAX_STATES],
    mask: Option<&'a [u8]>,
    /// Index of the first element, counted over all tensors.
    start: usize,
}

/// Updates every tensor.
///
/// All tensors are seen as one long range of elements that is divided into
/// tasks, so that many small tensors cost no more than one large one.
///
/// # Panics
/// If a gradient, state or mask is not of its parameter's length.
pub fn step<'a, E: Element>(tensors: impl IntoIterator<Item = Tensor<'a, E>>) {
    let mut total = 0;
    let shared: Vec<Shared<'a, E>> = tensors
        .into_iter()
        .map(|t| {
            let len = t.param.len();
            assert_eq!(t.grad.len(), len, "length of a gradient");
            assert!(t.mask.is_none_or(|m| m.len() == len), "length of a mask");
            let start = total;
            total += len;
            Shared {
                update: t.update,
                scale: t.scale,
                param: SharedMut::new(t.param),
                grad: t.grad,
                states: t.states.map(SharedMut::new),
                mask: t.mask,
                start,
            }
        })
        .collect();
    parallel::for_each(0..total, GRAIN, ALIGN, |range| {
        let first = shared.partition_point(|t| t.start + t.grad.len() <= range.start);
        for tensor in &shared[first..] {
            if tensor.start >= range.end {
                break;
            }
            let begin = range.start.saturating_sub(tensor.start);
            let end = (range.end - tensor.start).min(tensor.grad.len());
            update_part(tensor, begin..end);
        }
    });
}

fn update_part<E: Element>(t: &Shared<'_, E>, part: std::ops::Range<usize>) {
    match t.update {
        Update::Sgd(c) => update_with(t, part, c.cast()),
        Update::SgdMomentum(c) => update_with(t, part, c.cast()),
        Update::Momentum(c) => update_with(t, part, c.cast()),
        Update::Adam(c) => update_with(t, part, c.cast()),
        Update::Amsgrad(c) => update_with(t, part, c.cast()),
    }
}

fn update_with<E: Element, const S: usize>(
    t: &Shared<'_, E>,
    part: std::ops::Range<usize>,
    formula: impl Formula<E::Compute, S>,
) {
    // SAFETY: the tensors are borrowed by `step`, and its tasks get parts that
    // do not overlap.
    let (param, states) = unsafe {
        (t.param.slice(part.clone()), std::array::from_fn(|s| t.states[s].slice(part.clone())))
    };
    simd::dispatch(Elementwise {
        formula,
        scale: E::Compute::from_f64(t.scale),
        param,
        grad: &t.grad[part.clone()],
        states,
        mask: t.mask.map(|m| &m[part]),
    });
}

struct Elementwise<'a, E: Element, F, const S: usize> {
    formula: F,
    scale: E::Compute,
    param: &'a mut [E],
    grad: &'a [E],
    states: [&'a mut [E::Compute]; S],
    mask: Option<&'a [u8]>,
}

impl<E: Element, F: Formula<E::Compute, S>, const S: usize> Kernel for Elementwise<'_, E, F, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match self.mask {
            None => self.update(|_| true),
            Some(mask) => {
                let mask = &mask[..self.param.len()];
                self.update(
                    #[inline(always)]
                    |i| mask[i] != 0,
                );
            }
        }
    }
}

impl<E: Element, F: Formula<E::Compute, S>, const S: usize> Elementwise<'_, E, F, S> {
    #[inline(always)]
    fn update(self, keep: impl Fn(usize) -> bool) {
        // Lengths that the compiler can see are equal need no bounds checks.
        let n = self.param.len();
        let (param, grad) = (&mut self.param[..n], &self.grad[..n]);
        let mut states = self.states;
        for state in &mut states {
            *state = &mut std::mem::take(state)[..n];
        }
        for i in 0..n {
            let mut state = [E::Compute::zero(); S];
            for s in 0..S {
                state[s] = states[s][i];
            }
            let g = grad[i].load() * self.scale;
            let theta = self.formula.apply(param[i].load(), g, &mut state);
            let keep = keep(i);
            param[i] = E::store(if keep { theta } else { E::Compute::zero() });
            for s in 0..S {
                states[s][i] = if keep { state[s] } else { E::Compute::zero() };
            }
        }
    }
}
