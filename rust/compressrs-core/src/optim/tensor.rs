//! One tensor and what a step does to it.

use std::ops::Range;

use super::rule::{MAX_STATES, Update};
use super::storage::{BlockAccess, Moments, Weights};
use super::values::Values;
use crate::numeric::element::Float;
use crate::numeric::stochastic_rounding::StochasticRounding;
use crate::quantize::blockwise::BLOCK;

/// Elements worth a task of their own; see [`crate::runtime::parallel::for_each`].
pub(super) const GRAIN_ELEMENTS: usize = 32 * 1024;

/// Tasks start at multiples of this many elements, so that inside a tensor none
/// shares a cache line with another, nor a byte of a mask, nor a block of moments.
pub(super) const ALIGN: usize = BLOCK;

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
pub struct Tensor<'a, C: Float> {
    pub(super) update: Update,
    pub(super) scale: f64,
    /// Lengths of the last two axes, if there are two.
    pub(super) matrix: Option<(usize, usize)>,
    /// The length of the first axis, and the product of the others, if there are two.
    pub(super) unfolded: Option<(usize, usize)>,
    pub(super) param: Weights<'a, C>,
    pub(super) grad: Values<'a>,
    pub(super) states: [Moments<'a, C>; MAX_STATES],
    pub(super) mask: Option<&'a [u8]>,
    pub(super) rounding: StochasticRounding,
    /// Where its elements stand among those of all elementwise tensors.
    pub(super) range: Range<usize>,
}

impl<'a, C: Float> Tensor<'a, C> {
    /// A tensor to be updated by `update`.
    ///
    /// `states` are the rule's, in the order of
    /// [`states`](super::Rule::states); the rest is empty. `shape` is
    /// the parameter's.
    ///
    /// # Panics
    /// If the shape or the gradient is not of the parameter's length.
    #[inline]
    pub fn new(
        update: Update,
        shape: &[usize],
        param: impl Into<Weights<'a, C>>,
        grad: impl Into<Values<'a>>,
        states: [Moments<'a, C>; MAX_STATES],
    ) -> Self {
        let (param, grad) = (param.into(), grad.into());
        assert_eq!(shape.iter().product::<usize>(), param.len(), "length of a parameter");
        assert_eq!(grad.len(), param.len(), "length of a gradient");
        let matrix = match *shape {
            [.., rows, columns] => Some((rows, columns)),
            _ => None,
        };
        let unfolded = match *shape {
            [rows, ref rest @ ..] if !rest.is_empty() => Some((rows, rest.iter().product())),
            _ => None,
        };
        Tensor {
            update,
            scale: 1.0,
            matrix,
            unfolded,
            param,
            grad,
            states,
            mask: None,
            rounding: StochasticRounding::new(0, 0, 0),
            range: 0..0,
        }
    }

    /// Multiplies the gradient by `scale` first.
    #[inline]
    pub fn scaled(mut self, scale: f64) -> Self {
        self.scale = scale;
        self
    }

    /// `mask` holds a bit for each element, the lowest of a byte first: where it is
    /// 0, the parameter and its state are set to 0, and the gradient does not count.
    ///
    /// # Panics
    /// If the mask is not of the parameter's length.
    #[inline]
    pub fn masked(mut self, mask: Option<&'a [u8]>) -> Self {
        assert!(mask.is_none_or(|m| m.len() == mask_bytes(self.len())), "length of a mask");
        self.mask = mask;
        self
    }

    /// What rounding that is not to nearest decides by.
    #[inline]
    pub fn rounded_stochastically(mut self, rounding: StochasticRounding) -> Self {
        self.rounding = rounding;
        self
    }

    pub(super) fn len(&self) -> usize {
        self.grad.len()
    }

    /// What the gradient is multiplied by in the type that is computed in. None if the
    /// product must be taken in double precision, of which the gradient is or whose
    /// range the factor needs: only the product has to fit the narrower type.
    pub(super) fn factor(&self) -> Option<C> {
        let factor = C::from_f64(self.scale);
        let is_wider = matches!(self.grad, Values::F64(_)) && self.grad.as_slice::<C>().is_none();
        (!is_wider && (self.scale == 0.0 || factor.is_normal())).then_some(factor)
    }

    /// Whether all numbers are of the type that is computed in.
    pub(super) fn is_in_place(&self) -> bool {
        self.param.in_place().is_some()
            && self.grad.as_slice::<C>().is_some()
            && self.states.iter().all(|state| state.in_place().is_some())
    }

    /// How many numbers a step copies and computes on the side, at most.
    pub(super) fn scratch_len(&self) -> usize {
        let of_rule = match self.update {
            Update::Muon(orthogonal) => {
                self.matrix.map_or(0, |matrix| orthogonal.scratch_len(matrix))
            }
            Update::Shampoo(preconditioned) => {
                let of_blocks = |shape| preconditioned.blocks(shape).scratch_len();
                self.unfolded.map_or(2 * self.len(), of_blocks)
            }
            Update::Soap(rotated) => {
                self.unfolded.map_or(0, |shape| rotated.blocks(shape).scratch_len())
            }
            Update::Adafactor(_) | Update::Cautious(_) => 0,
            _ => return 0,
        };
        let mut len = of_rule;
        if self.param.in_place().is_none() {
            len += self.param.len();
        }
        if self.grad.as_slice::<C>().is_none() || self.factor().is_none() {
            len += self.grad.len();
        }
        for state in self.states.iter().filter(|state| state.in_place().is_none()) {
            len += state.len();
        }
        len
    }
}
