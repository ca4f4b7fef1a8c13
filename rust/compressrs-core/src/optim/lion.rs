//! Lion: the sign of an interpolated momentum.

use super::cautious::{Directed, Step};
use super::hyperparameters::hyperparameters;
use super::rule::{
    Formula, Rule, Scalars, State, Update, coefficients, sign, variant, variant_of, weight_decay,
};
use crate::numeric::element::Float;
use crate::numeric::elementwise::lerp_below_one;

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
        // Or one that is lost in single precision.
        if self.betas.iter().any(|beta| (1.0 - beta) as f32 == 1.0) {
            return variant_of!(self.cautious, LionReplacing, Replacing(update));
        }
        variant_of!(self.cautious, Lion, update)
    }
}

coefficients! {
    /// One step.
    Signs { lr, shrink, one_minus_beta1, one_minus_beta2, }
}

impl<C: Float> Signs<C> {
    /// The direction, by this kind of average; the momentum is updated.
    #[inline(always)]
    fn direction(&self, g: C, m: &mut C, average: impl Fn(C, C, C) -> C) -> C {
        let direction = average(*m, g, self.one_minus_beta1);
        *m = average(*m, g, self.one_minus_beta2);
        sign(direction)
    }

    #[inline(always)]
    fn along(&self, theta: C, direction: C) -> C {
        (-self.lr).mul_add(direction, theta * self.shrink)
    }

    #[inline(always)]
    fn apart(&self, theta: C, g: C, direction: C) -> Step<C> {
        Step { base: theta * self.shrink, step: self.lr * direction, gradient: g }
    }
}

impl<C: Float> Formula<C, 1> for Signs<C> {
    #[inline(always)]
    fn apply(&self, theta: C, g: C, [m]: &mut [C; 1]) -> C {
        self.along(theta, self.direction(g, m, lerp_below_one))
    }
}

impl<C: Float> Directed<C, 1> for Signs<C> {
    #[inline(always)]
    fn directed(&self, theta: C, g: C, [m]: &mut [C; 1]) -> Step<C> {
        self.apart(theta, g, self.direction(g, m, lerp_below_one))
    }
}

variant! {
    /// One step with a decay rate of 0. The momentum cannot be cleared first, as other states
    /// that are replaced: only one of the two averages keeps nothing of it.
    Replacing(Signs)
}

/// [`lerp_below_one`], which is the gradient with a weight of 1.
#[inline(always)]
fn replacing<C: Float>(m: C, g: C, weight: C) -> C {
    if weight == C::one() { g } else { lerp_below_one(m, g, weight) }
}

impl<C: Float> Formula<C, 1> for Replacing<C> {
    #[inline(always)]
    fn apply(&self, theta: C, g: C, [m]: &mut [C; 1]) -> C {
        self.0.along(theta, self.0.direction(g, m, replacing))
    }
}

impl<C: Float> Directed<C, 1> for Replacing<C> {
    #[inline(always)]
    fn directed(&self, theta: C, g: C, [m]: &mut [C; 1]) -> Step<C> {
        self.0.apart(theta, g, self.0.direction(g, m, replacing))
    }
}
