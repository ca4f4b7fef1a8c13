//! Adamax.

use super::hyperparameters::hyperparameters;
use super::rule::quotient;
use super::rule::{Formula, Rule, Scalars, State, Update, bias_correction, coefficients};
use crate::numeric::element::Float;
use crate::numeric::elementwise::lerp;

hyperparameters! {
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
    Adamax = "adamax" {
        /// Learning rate.
        lr: f64 = 2e-3, NON_NEGATIVE;
        /// Decay rates of the first moment and of the infinity norm.
        betas: [f64; 2] = [0.9, 0.999], DECAY_RATE;
        /// Keeps the divisor from 0.
        eps: f64 = 1e-8, NON_NEGATIVE;
        /// Weight decay.
        weight_decay: f64 = 0.0, NON_NEGATIVE;
    }
}

impl Rule for Adamax {
    fn states(&self, _: usize) -> Vec<State> {
        vec![State::moment("exp_avg"), State::divisor("exp_inf")]
    }

    fn at(&self, t: u64, _: &mut Scalars) -> Update {
        Update::Adamax(InfinityNorm {
            rate: self.lr / bias_correction(self.betas[0], t),
            one_minus_beta1: 1.0 - self.betas[0],
            beta2: self.betas[1],
            eps: self.eps,
            weight_decay: self.weight_decay,
        })
    }
}

coefficients! {
    /// One step.
    InfinityNorm { rate, one_minus_beta1, beta2, eps, weight_decay, }
}

impl<C: Float> Formula<C, 2> for InfinityNorm<C> {
    const DIVISORS: [bool; 2] = [false, true];

    #[inline(always)]
    fn replaces(&self) -> [bool; 2] {
        [self.one_minus_beta1 == C::one(), self.beta2 == C::zero()]
    }

    #[inline(always)]
    fn apply(&self, theta: C, g: C, [m, u]: &mut [C; 2]) -> C {
        let g = self.weight_decay.mul_add(theta, g);
        *m = lerp(*m, g, self.one_minus_beta1);
        let (decayed, now) = (self.beta2 * *u, g.abs() + self.eps);
        // A NaN gradient must show.
        *u = if decayed > now { decayed } else { now };
        (-self.rate).mul_add(quotient(*m, *u), theta)
    }
}
