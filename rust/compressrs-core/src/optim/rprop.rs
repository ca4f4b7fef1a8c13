//! Rprop: step sizes that grow and shrink with the gradient's sign.

use super::hyperparameters::{hyperparameters, require};
use super::rule::{Formula, Rule, Scalars, State, Update, coefficients, sign};
use crate::numeric::element::Float;

hyperparameters! {
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
    Rprop = "rprop" {
        /// Size of the first step.
        lr: f64 = 1e-2, NON_NEGATIVE;
        /// Factors on the step size where the sign changes and where it stays.
        etas: [f64; 2] = [0.5, 1.2];
        /// Least and largest step size.
        step_sizes: [f64; 2] = [1e-6, 50.0], NON_NEGATIVE;
    }
    where |rule: &Rprop| {
        let ([low, high], [_, largest]) = (rule.etas, rule.step_sizes);
        require("etas", Some(0), low, 0.0 < low && low < 1.0, "in (0, 1)")?;
        require("etas", Some(1), high, high.is_finite() && high > 1.0, "a finite number > 1")?;
        let ordered = rule.step_sizes[0] <= largest;
        require("step_sizes", Some(1), largest, ordered, "a finite number >= step_sizes[0]")
    }
}

impl Rule for Rprop {
    fn states(&self, _: usize) -> Vec<State> {
        vec![State::exact("prev"), State::exact("step_size")]
    }

    fn at(&self, _: u64, _: &mut Scalars) -> Update {
        Update::Rprop(StepSizes {
            lr: self.lr,
            shrink: self.etas[0],
            grow: self.etas[1],
            smallest: self.step_sizes[0],
            largest: self.step_sizes[1],
        })
    }
}

coefficients! {
    /// One step.
    StepSizes { lr, shrink, grow, smallest, largest, }
}

impl<C: Float> Formula<C, 2> for StepSizes<C> {
    #[inline(always)]
    fn apply(&self, theta: C, g: C, [prev, size]: &mut [C; 2]) -> C {
        // Of signs, since a product of small gradients would be 0.
        let agreement = sign(g) * sign(*prev);
        let sign_changed = agreement < C::zero();
        let factor = if sign_changed { self.shrink } else { C::one() };
        let factor = if agreement > C::zero() { self.grow } else { factor };
        // A row whose first gradient comes later has no size yet.
        let scaled = factor * if *size == C::zero() { self.lr } else { *size };
        let scaled = if scaled < self.smallest { self.smallest } else { scaled };
        *size = if scaled > self.largest { self.largest } else { scaled };
        *prev = if sign_changed { C::zero() } else { g };
        (-sign(*prev)).mul_add(*size, theta)
    }
}
