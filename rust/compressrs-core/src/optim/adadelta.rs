//! Adadelta.

use super::rule::{Formula, Hyperparameters, OutOfRange, Scalars, State, Update, coefficients};
use super::rule::{decay_rate, non_negative};
use crate::numeric::element::Float;

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
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adadelta {
    lr: f64,
    rho: f64,
    eps: f64,
    weight_decay: f64,
    maximize: bool,
}

impl Adadelta {
    /// Checks the hyperparameters.
    ///
    /// # Errors
    /// `rho` is not in `[0, 1)`, or another is negative or not finite.
    pub fn new(
        lr: f64,
        rho: f64,
        eps: f64,
        weight_decay: f64,
        maximize: bool,
    ) -> Result<Self, OutOfRange> {
        Ok(Adadelta {
            lr: non_negative("lr", lr)?,
            rho: decay_rate("rho", rho)?,
            eps: non_negative("eps", eps)?,
            weight_decay: non_negative("weight_decay", weight_decay)?,
            maximize,
        })
    }
}

impl Hyperparameters for Adadelta {
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

    fn maximize(&self) -> bool {
        self.maximize
    }
}

coefficients! {
    /// One step.
    Deltas { lr, rho, one_minus_rho, eps, weight_decay, }
}

impl<C: Float> Formula<C, 2> for Deltas<C> {
    const DIVISORS: [bool; 2] = [true, true];

    #[inline(always)]
    fn apply(&self, theta: C, g: C, [sq, acc]: &mut [C; 2]) -> C {
        let g = self.weight_decay.mul_add(theta, g);
        *sq = self.rho.mul_add(*sq, self.one_minus_rho * g * g);
        let delta = ((*acc + self.eps).sqrt() / (*sq + self.eps).sqrt()) * g;
        *acc = self.rho.mul_add(*acc, self.one_minus_rho * delta * delta);
        (-self.lr).mul_add(delta, theta)
    }
}
