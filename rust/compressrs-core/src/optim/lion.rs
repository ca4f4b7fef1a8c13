//! Lion: the sign of an interpolated momentum.

use super::cautious::{Directed, Step};
use super::hyperparameters::hyperparameters;
use super::rule::{
    Formula, Rule, Scalars, State, Update, coefficients, sign, variant_of, weight_decay,
};
use crate::numeric::element::Float;
use crate::numeric::elementwise::lerp;

hyperparameters! {
    /// Hyperparameters of Lion.
    ///
    /// ```text
    /// theta <- theta - lr (sign(beta1 m + (1 - beta1) g) + weight_decay theta)
    /// m     <- beta2 m + (1 - beta2) g
    /// ```
    ///
    /// Source: Chen et al. (arXiv 2302.06675, algorithm 2), in the form of
    /// `optax.lion`.
    Lion = "lion" {
        /// Learning rate.
        lr: f64 = 1e-4, NON_NEGATIVE;
        /// Decay rates of the direction and of the momentum.
        betas: [f64; 2] = [0.9, 0.99], DECAY_RATE;
        /// Weight decay.
        weight_decay: f64 = 1e-3, NON_NEGATIVE;
        /// Whether only elements move whose step agrees with the gradient.
        cautious: bool = false;
    }
}

impl Rule for Lion {
    fn states(&self, _: usize) -> Vec<State> {
        vec![State::moment("exp_avg")]
    }

    fn at(&self, _: u64, _: &mut Scalars) -> Update {
        let (_, shrink) = weight_decay(self.lr, self.weight_decay, true);
        let update = Signs {
            lr: self.lr,
            shrink,
            one_minus_beta1: 1.0 - self.betas[0],
            one_minus_beta2: 1.0 - self.betas[1],
        };
        variant_of!(self.cautious, Lion, update)
    }
}

coefficients! {
    /// One step.
    Signs { lr, shrink, one_minus_beta1, one_minus_beta2, }
}

impl<C: Float> Signs<C> {
    /// The direction; the momentum is updated.
    #[inline(always)]
    fn direction(&self, g: C, m: &mut C) -> C {
        let direction = lerp(*m, g, self.one_minus_beta1);
        *m = lerp(*m, g, self.one_minus_beta2);
        sign(direction)
    }
}

impl<C: Float> Formula<C, 1> for Signs<C> {
    #[inline(always)]
    fn apply(&self, theta: C, g: C, [m]: &mut [C; 1]) -> C {
        (-self.lr).mul_add(self.direction(g, m), theta * self.shrink)
    }
}

impl<C: Float> Directed<C, 1> for Signs<C> {
    #[inline(always)]
    fn directed(&self, theta: C, g: C, [m]: &mut [C; 1]) -> Step<C> {
        Step { base: theta * self.shrink, step: self.lr * self.direction(g, m), gradient: g }
    }
}
