//! Rprop: step sizes that grow and shrink with the gradient's sign.

use super::rule::{Formula, Hyperparameters, OutOfRange, Scalars, State, Update, coefficients};
use super::rule::{non_negative, require, sign};
use crate::numeric::element::Float;

/// Hyperparameters of resilient backpropagation.
///
/// ```text
/// size  <- size etas[1]  where g prev > 0      (lr at first)
///          size etas[0]  where g prev < 0, and g <- 0 there
/// size  <- min(max(size, step_sizes[0]), step_sizes[1])
/// theta <- theta - sign(g) size
/// prev  <- g
/// ```
///
/// Source: Riedmiller & Braun, "A direct adaptive method for faster
/// backpropagation learning" (ICNN 1993), in the form of `torch.optim.Rprop`
/// (iRprop-).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rprop {
    lr: f64,
    etas: (f64, f64),
    step_sizes: (f64, f64),
    maximize: bool,
}

impl Rprop {
    /// Checks the hyperparameters.
    ///
    /// # Errors
    /// `lr` is negative or not finite, or not `0 < etas[0] < 1 < etas[1]`, or not
    /// `0 <= step_sizes[0] <= step_sizes[1]`.
    pub fn new(
        lr: f64,
        etas: (f64, f64),
        step_sizes: (f64, f64),
        maximize: bool,
    ) -> Result<Self, OutOfRange> {
        let (low, high) = etas;
        require("etas[0]", low, 0.0 < low && low < 1.0, "in (0, 1)")?;
        require("etas[1]", high, high.is_finite() && high > 1.0, "a finite number > 1")?;
        non_negative("step_sizes[0]", step_sizes.0)?;
        let ordered = step_sizes.1.is_finite() && step_sizes.0 <= step_sizes.1;
        require("step_sizes[1]", step_sizes.1, ordered, "a finite number >= step_sizes[0]")?;
        Ok(Rprop { lr: non_negative("lr", lr)?, etas, step_sizes, maximize })
    }
}

impl Hyperparameters for Rprop {
    fn states(&self, _: usize) -> Vec<State> {
        vec![State::exact("prev"), State::exact("step_size")]
    }

    fn at(&self, t: u64, _: &mut Scalars) -> Update {
        Update::Rprop(StepSizes {
            lr: self.lr,
            shrink: self.etas.0,
            grow: self.etas.1,
            smallest: self.step_sizes.0,
            largest: self.step_sizes.1,
            first: t == 1,
        })
    }

    fn maximize(&self) -> bool {
        self.maximize
    }
}

coefficients! {
    /// One step.
    StepSizes { lr, shrink, grow, smallest, largest, } flags { first, }
}

impl<C: Float> Formula<C, 2> for StepSizes<C> {
    #[inline(always)]
    fn apply(&self, theta: C, g: C, [prev, size]: &mut [C; 2]) -> C {
        let agreement = g * *prev;
        let turned = agreement < C::zero();
        let factor = if turned { self.shrink } else { C::one() };
        let factor = if agreement > C::zero() { self.grow } else { factor };
        let scaled = factor * if self.first { self.lr } else { *size };
        let scaled = if scaled < self.smallest { self.smallest } else { scaled };
        *size = if scaled > self.largest { self.largest } else { scaled };
        *prev = if turned { C::zero() } else { g };
        (-sign(*prev)).mul_add(*size, theta)
    }
}
