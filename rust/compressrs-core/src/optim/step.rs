//! The one driver: applies the formulas of any number of tensors, in place.

use std::marker::PhantomData;
use std::ops::Range;

use num_traits::Zero;

use super::rule::{Formula, MAX_STATES, Update, with_formula};
use crate::element::{Element, Float};
use crate::parallel::{self, SharedMut};
use crate::simd::{self, Kernel};

/// Elements worth a task of their own; see [`parallel::for_each`].
pub(super) const GRAIN: usize = 32 * 1024;

/// Tasks start at multiples of this many elements, so that none shares a cache
/// line with another inside a tensor, nor a byte of a mask.
pub(super) const ALIGN: usize = 64;

/// Elements that the masked loop takes at a time.
const UNIT: usize = 16;

/// Number of bytes of a mask for `len` elements; see [`Tensor::new`].
pub fn mask_bytes(len: usize) -> usize {
    len.div_ceil(8)
}

/// Whether element `i` is kept by a mask of bits, the lowest of a byte first.
#[inline(always)]
pub(super) fn is_kept(mask: &[u8], i: usize) -> bool {
    mask[i / 8] >> (i % 8) & 1 != 0
}

/// One tensor and what a step does to it.
pub struct Tensor<'a, E: Element> {
    pub(super) update: Update,
    pub(super) scale: f64,
    /// Lengths of the last two axes, if there are two.
    pub(super) matrix: Option<(usize, usize)>,
    pub(super) param: SharedMut<E>,
    pub(super) grad: &'a [E],
    pub(super) states: [SharedMut<E::Compute>; MAX_STATES],
    pub(super) mask: Option<&'a [u8]>,
    /// Where its elements stand among those of all elementwise tensors.
    range: Range<usize>,
    borrowed: PhantomData<&'a mut E>,
}

impl<'a, E: Element> Tensor<'a, E> {
    /// A tensor to be updated by `update`, its gradient multiplied by `scale` first.
    ///
    /// `states` are the rule's, in the order of
    /// [`states`](super::Hyperparameters::states); the rest is empty. `shape` is
    /// the parameter's. `mask` holds a bit for each element, the lowest of a byte
    /// first: where it is 0, the parameter and its state are set to 0, and the
    /// gradient does not count.
    ///
    /// # Panics
    /// If the shape, the gradient or the mask is not of the parameter's length.
    pub fn new(
        update: Update,
        scale: f64,
        shape: &[usize],
        param: &'a mut [E],
        grad: &'a [E],
        states: [&'a mut [E::Compute]; MAX_STATES],
        mask: Option<&'a [u8]>,
    ) -> Self {
        let len = param.len();
        assert_eq!(shape.iter().product::<usize>(), len, "length of a parameter");
        assert_eq!(grad.len(), len, "length of a gradient");
        assert!(mask.is_none_or(|m| m.len() == mask_bytes(len)), "length of a mask");
        let matrix = match *shape {
            [.., rows, columns] => Some((rows, columns)),
            _ => None,
        };
        Tensor {
            update,
            scale,
            matrix,
            param: SharedMut::new(param),
            grad,
            states: states.map(SharedMut::new),
            mask,
            range: 0..0,
            borrowed: PhantomData,
        }
    }

    /// The gradient of element `i` as the rule takes it.
    #[inline(always)]
    pub(super) fn gradient(&self, i: usize) -> E::Compute {
        if self.mask.is_some_and(|mask| !is_kept(mask, i)) {
            return E::Compute::zero();
        }
        self.grad[i].load() * E::Compute::from_f64(self.scale)
    }

    /// Applies a formula to every element, in parallel.
    pub(super) fn apply<const S: usize>(&self, formula: impl Formula<E::Compute, S>) {
        parallel::for_each(0..self.grad.len(), GRAIN, ALIGN, |part| {
            // SAFETY: parts do not overlap, and only one loop at a time works on
            // a tensor.
            unsafe { update_part(self, part, formula) };
        });
    }
}

/// Updates every tensor.
///
/// All elementwise tensors are seen as one long range of elements that is divided
/// into tasks, so that many small tensors cost no more than one large one.
///
/// # Panics
/// If a state is shorter than its rule needs.
pub fn step<E: Element>(tensors: &mut [Tensor<'_, E>]) {
    let mut total = 0;
    for tensor in &mut *tensors {
        let elements = match tensor.update {
            Update::Lamb(layerwise) => {
                layerwise.step(tensor);
                0
            }
            Update::Adafactor(factored) => {
                factored.step(tensor);
                0
            }
            Update::Muon(orthogonal) => {
                orthogonal.step(tensor);
                0
            }
            _ => tensor.grad.len(),
        };
        tensor.range = total..total + elements;
        total += elements;
    }
    let tensors = &*tensors;
    parallel::for_each(0..total, GRAIN, ALIGN, |range| {
        let first = tensors.partition_point(|t| t.range.end <= range.start);
        for tensor in &tensors[first..] {
            if tensor.range.start >= range.end {
                break;
            }
            let begin = range.start.saturating_sub(tensor.range.start);
            let end = (range.end - tensor.range.start).min(tensor.range.len());
            // A tensor need not start at a multiple of ALIGN, but its tasks must
            // for the sake of its mask. The one before takes what is left of one.
            let part = round_up(begin, tensor.range.len())..round_up(end, tensor.range.len());
            if part.is_empty() {
                continue;
            }
            // SAFETY: the tensors are borrowed by `step`, and its tasks get parts
            // that do not overlap, since both ends are rounded alike.
            with_formula!(tensor.update, formula => unsafe { update_part(tensor, part, formula) }, {});
        }
    });
}

/// The next multiple of ALIGN, or the end.
fn round_up(i: usize, len: usize) -> usize {
    i.next_multiple_of(ALIGN).min(len)
}

/// # Safety
/// No reference to this part of the parameter or its states may be alive.
unsafe fn update_part<E: Element, const S: usize>(
    t: &Tensor<'_, E>,
    part: Range<usize>,
    formula: impl Formula<E::Compute, S>,
) {
    // SAFETY: the tensor's borrows are alive; the rest is the caller's promise.
    let (param, states) = unsafe {
        (t.param.slice(part.clone()), std::array::from_fn(|s| t.states[s].slice(part.clone())))
    };
    simd::dispatch(Elementwise {
        formula,
        scale: E::Compute::from_f64(t.scale),
        param,
        grad: &t.grad[part.clone()],
        states,
        // Parts start at multiples of ALIGN, and so of 8.
        mask: t.mask.map(|m| &m[part.start / 8..mask_bytes(part.end)]),
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
            None => self.update(),
            Some(mask) => self.update_masked(mask),
        }
    }
}

impl<E: Element, F: Formula<E::Compute, S>, const S: usize> Elementwise<'_, E, F, S> {
    /// The new parameter of one element, its state updated.
    #[inline(always)]
    fn element(&self, param: E, grad: E, state: &mut [E::Compute; S]) -> E::Compute {
        self.formula.apply(param.load(), grad.load() * self.scale, state)
    }

    #[inline(always)]
    fn update(mut self) {
        // Lengths that the compiler can see are equal need no bounds checks.
        let n = self.param.len();
        let (param, grad) = (&mut std::mem::take(&mut self.param)[..n], &self.grad[..n]);
        let states = self.states.each_mut().map(|state| &mut std::mem::take(state)[..n]);
        for i in 0..n {
            let mut state: [E::Compute; S] = std::array::from_fn(|s| states[s][i]);
            param[i] = E::store(self.element(param[i], grad[i], &mut state));
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
        param: &mut [E],
        grad: &[E],
        states: &mut [&mut [E::Compute]; S],
        bits: u32,
        start: usize,
        len: usize,
    ) {
        let unit = start..start + len;
        let (mut theta, mut g) = ([E::default(); UNIT], [E::default(); UNIT]);
        theta[..len].copy_from_slice(&param[unit.clone()]);
        g[..len].copy_from_slice(&grad[unit.clone()]);
        let mut kept = [[E::Compute::zero(); UNIT]; S];
        for s in 0..S {
            kept[s][..len].copy_from_slice(&states[s][unit.clone()]);
        }
        for l in 0..UNIT {
            let mut state: [E::Compute; S] = std::array::from_fn(|s| kept[s][l]);
            let new = self.element(theta[l], g[l], &mut state);
            let keep = bits >> l & 1 != 0;
            theta[l] = E::store(if keep { new } else { E::Compute::zero() });
            for s in 0..S {
                kept[s][l] = if keep { state[s] } else { E::Compute::zero() };
            }
        }
        param[unit.clone()].copy_from_slice(&theta[..len]);
        for s in 0..S {
            states[s][unit.clone()].copy_from_slice(&kept[s][..len]);
        }
    }
}
