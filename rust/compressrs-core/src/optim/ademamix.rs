//! AdEMAMix: Adam with a second, slow moving average of the gradient.

use super::adam::{moments, replaced_moments};
use super::cautious::{Directed, Step};
use super::hyperparameters::hyperparameters;
use super::rule::quotient;
use super::rule::{
    Formula, Rule, Scalars, State, Update, bias_correction, coefficients, variant_of,
};
use crate::numeric::element::Float;
use crate::numeric::elementwise::lerp;

hyperparameters! {
    /// Hyperparameters of AdEMAMix.
    ///
    /// ```text
    /// m       <- beta1 m + (1 - beta1) g
    /// v       <- beta2 v + (1 - beta2) g^2
    /// s       <- beta3_t s + (1 - beta3_t) g
    /// theta   <- theta - lr ((m / (1 - beta1^t) + alpha_t s) / (sqrt(v / (1 - beta2^t)) + eps)
    ///            + weight_decay theta)
    /// alpha_t  = alpha min(1, t / warmup)
    /// beta3_t  = min(beta3, exp(ln beta1 ln beta3 / ((1 - t / warmup) ln beta3
    ///            + t / warmup ln beta1)))                    (without warm-up: alpha, beta3)
    /// ```
    ///
    /// Source: Pagliardini, Ablin & Grangier (arXiv 2409.03137, algorithm 1).
    AdEmaMix = "ademamix" {
        /// Learning rate.
        lr: f64 = 1e-3, NON_NEGATIVE;
        /// Decay rates of the first moment, the second, and the slow average.
        betas: [f64; 3] = [0.9, 0.999, 0.9999], DECAY_RATE;
        /// Weight of the slow average.
        alpha: f64 = 5.0, NON_NEGATIVE;
        /// Keeps the divisor from 0.
        eps: f64 = 1e-8, NON_NEGATIVE;
        /// Decoupled weight decay.
        weight_decay: f64 = 0.0, NON_NEGATIVE;
        /// Steps over which `alpha` and the slow decay rate grow.
        warmup: f64 = 0.0, NON_NEGATIVE;
        /// Whether only elements move whose step agrees with the gradient.
        cautious: bool = false;
    }
}

impl AdEmaMix {
    /// `alpha_t` and `beta3_t`.
    fn scheduled(&self, t: u64) -> (f64, f64) {
        let [beta1, _, beta3] = self.betas;
        let share = t as f64 / self.warmup;
        // Without a warm-up the share is infinite.
        if share >= 1.0 {
            return (self.alpha, beta3);
        }
        let alpha = self.alpha * share;
        if beta3 == 0.0 {
            return (alpha, beta3);
        }
        // The half-life grows linearly.
        let (start, end) = (beta1.ln(), beta3.ln());
        if beta1 == 0.0 {
            // From 0; this is the limit of what follows.
            return (alpha, (end / share).exp());
        }
        (alpha, (start * end / ((1.0 - share) * end + share * start)).exp().min(beta3))
    }
}

impl Rule for AdEmaMix {
    fn states(&self, _: usize) -> Vec<State> {
        vec![State::moment("exp_avg"), State::divisor("exp_avg_sq"), State::moment("exp_avg_slow")]
    }

    fn at(&self, t: u64, _: &mut Scalars) -> Update {
        let (alpha, beta3) = self.scheduled(t);
        let update = Mixed {
            shrink: 1.0 - self.lr * self.weight_decay,
            one_minus_beta1: 1.0 - self.betas[0],
            beta2: self.betas[1],
            one_minus_beta2: 1.0 - self.betas[1],
            one_minus_beta3: 1.0 - beta3,
            correction: bias_correction(self.betas[0], t).recip(),
            root_correction: bias_correction(self.betas[1], t).sqrt().recip(),
            alpha,
            rate: self.lr,
            eps: self.eps,
        };
        variant_of!(self.cautious, AdEmaMix, update)
    }
}

coefficients! {
    /// One step.
    Mixed {
        shrink,
        one_minus_beta1,
        beta2,
        one_minus_beta2,
        one_minus_beta3,
        /// `1 / (1 - beta1^t)`
        correction,
        /// `1 / sqrt(1 - beta2^t)`
        root_correction,
        alpha,
        rate,
        eps,
    }
}

impl<C: Float> Mixed<C> {
    /// The direction, the moments being updated.
    #[inline(always)]
    fn direction(&self, g: C, [m, v, slow]: &mut [C; 3]) -> C {
        moments(g, m, v, self.one_minus_beta1, self.beta2, self.one_minus_beta2);
        *slow = lerp(*slow, g, self.one_minus_beta3);
        let denominator = v.sqrt().mul_add(self.root_correction, self.eps);
        // Factors last: moments near the largest number may overflow by them.
        let fast = quotient(*m, denominator) * self.correction;
        self.alpha.mul_add(quotient(*slow, denominator), fast)
    }
}

impl<C: Float> Formula<C, 3> for Mixed<C> {
    const DIVISORS: [bool; 3] = [false, true, false];

    #[inline(always)]
    fn replaces(&self) -> [bool; 3] {
        let [m, v] = replaced_moments(self.one_minus_beta1, self.beta2);
        [m, v, self.one_minus_beta3 == C::one()]
    }

    #[inline(always)]
    fn apply(&self, theta: C, g: C, state: &mut [C; 3]) -> C {
        (-self.rate).mul_add(self.direction(g, state), theta * self.shrink)
    }
}

impl<C: Float> Directed<C, 3> for Mixed<C> {
    #[inline(always)]
    fn directed(&self, theta: C, g: C, state: &mut [C; 3]) -> Step<C> {
        let step = self.rate * self.direction(g, state);
        Step { base: theta * self.shrink, step, gradient: g }
    }
}
