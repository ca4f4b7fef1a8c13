//! RAdam: Adam with a rectified adaptive rate.

use super::adam::{moments, replaced_moments};
use super::cautious::{Directed, Step};
use super::hyperparameters::hyperparameters;
use super::rule::quotient;
use super::rule::{
    Formula, Rule, Scalars, State, Update, bias_correction, coefficients, variant_of, weight_decay,
};
use crate::numeric::element::Float;

hyperparameters! {
    /// Hyperparameters of RAdam.
    ///
    /// ```text
    /// g       <- g + weight_decay theta         (or decoupled, as AdamW)
    /// m       <- beta1 m + (1 - beta1) g
    /// v       <- beta2 v + (1 - beta2) g^2
    /// m'       = m / (1 - beta1^t)
    /// rho_inf  = 2 / (1 - beta2) - 1
    /// rho_t    = rho_inf - 2 t beta2^t / (1 - beta2^t)
    /// theta   <- theta - lr m' r sqrt(1 - beta2^t) / (sqrt(v) + eps)    if rho_t > 5
    /// theta   <- theta - lr m'                                          else
    /// r        = sqrt((rho_t - 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t))
    /// ```
    ///
    /// Source: Liu et al. (arXiv 1908.03265, algorithm 2), in the form of
    /// `torch.optim.RAdam`.
    RAdam = "radam" {
        /// Learning rate.
        lr: f64 = 1e-3, NON_NEGATIVE;
        /// Decay rates of the first and the second moment.
        betas: [f64; 2] = [0.9, 0.999], DECAY_RATE;
        /// Keeps the divisor from 0.
        eps: f64 = 1e-8, NON_NEGATIVE;
        /// Weight decay.
        weight_decay: f64 = 0.0, NON_NEGATIVE;
        /// Whether the decay acts on the parameter itself.
        decoupled_weight_decay: bool = false;
        /// Whether only elements move whose step agrees with the gradient.
        cautious: bool = false;
    }
}

impl Rule for RAdam {
    fn states(&self, _: usize) -> Vec<State> {
        vec![State::moment("exp_avg"), State::divisor("exp_avg_sq")]
    }

    fn at(&self, t: u64, _: &mut Scalars) -> Update {
        let correction = bias_correction(self.betas[1], t);
        let rho_inf = 2.0 / (1.0 - self.betas[1]) - 1.0;
        let rho = rho_inf - 2.0 * t as f64 * (1.0 - correction) / correction;
        let adaptive = rho > 5.0;
        let rectification = if adaptive {
            ((rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho)).sqrt()
                * correction.sqrt()
        } else {
            1.0
        };
        let (l2, shrink) = weight_decay(self.lr, self.weight_decay, self.decoupled_weight_decay);
        let update = Rectified {
            l2,
            shrink,
            one_minus_beta1: 1.0 - self.betas[0],
            beta2: self.betas[1],
            one_minus_beta2: 1.0 - self.betas[1],
            rate: self.lr * rectification / bias_correction(self.betas[0], t),
            eps: self.eps,
            adaptive,
        };
        variant_of!(self.cautious, RAdam, update)
    }
}

coefficients! {
    /// One step.
    Rectified {
        l2,
        shrink,
        one_minus_beta1,
        beta2,
        one_minus_beta2,
        rate,
        eps,
    } flags {
        /// Whether the variance of the adaptive rate is tractable.
        adaptive,
    }
}

impl<C: Float> Rectified<C> {
    /// The direction; the moments are updated.
    #[inline(always)]
    fn direction(&self, g: C, [m, v]: &mut [C; 2]) -> C {
        moments(g, m, v, self.one_minus_beta1, self.beta2, self.one_minus_beta2);
        if self.adaptive { quotient(*m, v.sqrt() + self.eps) } else { *m }
    }
}

impl<C: Float> Formula<C, 2> for Rectified<C> {
    const DIVISORS: [bool; 2] = [false, true];

    #[inline(always)]
    fn replaces(&self) -> [bool; 2] {
        replaced_moments(self.one_minus_beta1, self.beta2)
    }

    #[inline(always)]
    fn apply(&self, theta: C, g: C, state: &mut [C; 2]) -> C {
        let direction = self.direction(self.l2.mul_add(theta, g), state);
        (-self.rate).mul_add(direction, theta * self.shrink)
    }
}

impl<C: Float> Directed<C, 2> for Rectified<C> {
    #[inline(always)]
    fn directed(&self, theta: C, g: C, state: &mut [C; 2]) -> Step<C> {
        let gradient = self.l2.mul_add(theta, g);
        let step = self.rate * self.direction(gradient, state);
        Step { base: theta * self.shrink, step, gradient }
    }
}
