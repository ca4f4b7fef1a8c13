//! Adamax.

use super::rule::{Formula, Hyperparameters, OutOfRange, Scalars, State, Update, coefficients};
use super::rule::{betas, bias_correction, non_negative};
use crate::numeric::element::Float;

/// Hyperparameters of Adamax.
///
/// ```text
/// g     <- g + weight_decay theta
/// m     <- beta1 m + (1 - beta1) g
/// u     <- max(beta2 u, |g| + eps)
/// theta <- theta - lr / (1 - beta1^t) m / u
/// ```
///
/// Source: Kingma & Ba (arXiv 1412.6980, algorithm 2), with the epsilon of
/// `torch.optim.Adamax`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adamax {
    lr: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    maximize: bool,
}

impl Adamax {
    /// Checks the hyperparameters.
    ///
    /// # Errors
    /// A beta is not in `[0, 1)`, or another is negative or not finite.
    pub fn new(
        lr: f64,
        both: (f64, f64),
        eps: f64,
        weight_decay: f64,
        maximize: bool,
    ) -> Result<Self, OutOfRange> {
        let (beta1, beta2) = betas(both)?;
        Ok(Adamax {
            lr: non_negative("lr", lr)?,
            beta1,
            beta2,
            eps: non_negative("eps", eps)?,
            weight_decay: non_negative("weight_decay", weight_decay)?,
            maximize,
        })
    }
}

impl Hyperparameters for Adamax {
    fn states(&self, _: usize) -> Vec<State> {
        vec![State::moment("exp_avg"), State::divisor("exp_inf")]
    }

    fn at(&self, t: u64, _: &mut Scalars) -> Update {
        Update::Adamax(InfinityNorm {
            rate: self.lr / bias_correction(self.beta1, t),
            one_minus_beta1: 1.0 - self.beta1,
            beta2: self.beta2,
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
    InfinityNorm { rate, one_minus_beta1, beta2, eps, weight_decay, }
}

impl<C: Float> Formula<C, 2> for InfinityNorm<C> {
    const DIVISORS: [bool; 2] = [false, true];

    #[inline(always)]
    fn apply(&self, theta: C, g: C, [m, u]: &mut [C; 2]) -> C {
        let g = self.weight_decay.mul_add(theta, g);
        *m = self.one_minus_beta1.mul_add(g - *m, *m);
        let (decayed, now) = (self.beta2 * *u, g.abs() + self.eps);
        // A NaN gradient must show.
        *u = if decayed > now { decayed } else { now };
        (-self.rate).mul_add(*m / *u, theta)
    }
}
