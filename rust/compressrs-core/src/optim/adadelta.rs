//! Adadelta.

use super::hyperparameters::hyperparameters;
use super::rule::quotient;
use super::rule::{Formula, Rule, Scalars, State, Update, coefficients};
use crate::numeric::element::Float;

hyperparameters! {
    /// Hyperparameters of Adadelta.
    ///
    /// ```text
    /// g      <- g + weight_decay theta
    /// sq     <- rho sq + (1 - rho) g^2
    /// delta   = sqrt(acc + eps) / sqrt(sq + eps) g
    /// acc    <- rho acc + (1 - rho) delta^2
    /// theta  <- theta - lr delta
    /// ```
    ///
    /// Source: Zeiler (arXiv 1212.5701, algorithm 1), with the factor `lr` of
    /// `torch.optim.Adadelta`.
    Adadelta = "adadelta" {
        /// Learning rate.
        lr: f64 = 1.0, NON_NEGATIVE;
        /// Decay rate of both means.
        rho: f64 = 0.9, DECAY_RATE;
        /// Keeps the divisor from 0.
        eps: f64 = 1e-6, NON_NEGATIVE;
        /// Weight decay.
        weight_decay: f64 = 0.0, NON_NEGATIVE;
    }
}

impl Rule for Adadelta {
    fn states(&self, _: usize) -> Vec<State> {
        vec![State::divisor("square_avg"), State::divisor("acc_delta")]
    }

    fn at(&self, _: u64, _: &mut Scalars) -> Update {
        Update::Adadelta(Deltas {
            lr: self.lr,
            rho: self.rho,
            one_minus_rho: 1.0 - self.rho,
            eps: self.eps,
            weight_decay: self.weight_decay,
        })
    }
}

coefficients! {
    /// One step.
    Deltas { lr, rho, one_minus_rho, eps, weight_decay, }
}

impl<C: Float> Formula<C, 2> for Deltas<C> {
    const DIVISORS: [bool; 2] = [true, true];

    #[inline(always)]
    fn replaces(&self) -> [bool; 2] {
        // The step reads the mean of squared steps before it is updated.
        [self.rho == C::zero(), false]
    }

    #[inline(always)]
    fn apply(&self, theta: C, g: C, [sq, acc]: &mut [C; 2]) -> C {
        let g = self.weight_decay.mul_add(theta, g);
        *sq = self.rho.mul_add(*sq, self.one_minus_rho * g * g);
        let delta = quotient((*acc + self.eps).sqrt(), (*sq + self.eps).sqrt()) * g;
        *acc = self.rho.mul_add(*acc, self.one_minus_rho * delta * delta);
        (-self.lr).mul_add(delta, theta)
    }
}
