//! NAdam: Adam with Nesterov momentum.

use super::adam::{moments, replaced_moments};
use super::cautious::{Directed, Step};
use super::hyperparameters::hyperparameters;
use super::rule::quotient;
use super::rule::{
    Formula, Rule, Scalars, State, Update, bias_correction, coefficients, variant_of, weight_decay,
};
use crate::numeric::element::Float;

hyperparameters! {
    /// Hyperparameters of NAdam.
    ///
    /// ```text
    /// g      <- g + weight_decay theta          (or decoupled, as AdamW)
    /// mu_t    = beta1 (1 - 0.96^(t momentum_decay) / 2)
    /// m      <- beta1 m + (1 - beta1) g
    /// v      <- beta2 v + (1 - beta2) g^2
    /// m'      = mu_(t+1) m / (1 - mu_1 ... mu_(t+1)) + (1 - mu_t) g / (1 - mu_1 ... mu_t)
    /// theta  <- theta - lr m' / (sqrt(v / (1 - beta2^t)) + eps)
    /// ```
    ///
    /// Source: Dozat, "Incorporating Nesterov momentum into Adam" (ICLR workshop,
    /// 2016), in the form of `torch.optim.NAdam`.
    NAdam = "nadam" {
        /// Learning rate.
        lr: f64 = 2e-3, NON_NEGATIVE;
        /// Decay rates of the first and the second moment.
        betas: [f64; 2] = [0.9, 0.999], DECAY_RATE;
        /// Keeps the divisor from 0.
        eps: f64 = 1e-8, NON_NEGATIVE;
        /// Weight decay.
        weight_decay: f64 = 0.0, NON_NEGATIVE;
        /// Decay of the momentum's schedule.
        momentum_decay: f64 = 4e-3, NON_NEGATIVE;
        /// Whether the decay acts on the parameter itself.
        decoupled_weight_decay: bool = false;
        /// Whether only elements move whose step agrees with the gradient.
        cautious: bool = false;
    }
}

impl NAdam {
    fn mu(&self, t: u64) -> f64 {
        self.betas[0] * (1.0 - 0.5 * 0.96f64.powf(t as f64 * self.momentum_decay))
    }
}

impl Rule for NAdam {
    fn states(&self, _: usize) -> Vec<State> {
        vec![State::moment("exp_avg"), State::divisor("exp_avg_sq")]
    }

    fn scalars(&self) -> &'static [&'static str] {
        &["mu_product"]
    }

    fn at(&self, t: u64, [product, ..]: &mut Scalars) -> Update {
        let (mu, next) = (self.mu(t), self.mu(t + 1));
        // In single precision, as PyTorch keeps it, so that trajectories agree.
        let before = if t == 1 { 1.0 } else { *product as f32 };
        *product = f64::from(before * mu as f32);
        let (l2, shrink) = weight_decay(self.lr, self.weight_decay, self.decoupled_weight_decay);
        let update = Nesterov {
            l2,
            shrink,
            one_minus_beta1: 1.0 - self.betas[0],
            beta2: self.betas[1],
            one_minus_beta2: 1.0 - self.betas[1],
            gradient_rate: -self.lr * (1.0 - mu) / (1.0 - *product),
            momentum_rate: -self.lr * next / (1.0 - *product * next),
            root_correction: bias_correction(self.betas[1], t).sqrt().recip(),
            eps: self.eps,
        };
        variant_of!(self.cautious, NAdam, update)
    }
}

coefficients! {
    /// One step.
    Nesterov {
        l2,
        shrink,
        one_minus_beta1,
        beta2,
        one_minus_beta2,
        /// Of the gradient, negative.
        gradient_rate,
        /// Of the first moment, negative.
        momentum_rate,
        /// `1 / sqrt(1 - beta2^t)`
        root_correction,
        eps,
    }
}

impl<C: Float> Nesterov<C> {
    /// What is added to the parameter; the moments are updated.
    #[inline(always)]
    fn change(&self, g: C, [m, v]: &mut [C; 2]) -> C {
        moments(g, m, v, self.one_minus_beta1, self.beta2, self.one_minus_beta2);
        let denominator = v.sqrt().mul_add(self.root_correction, self.eps);
        quotient(self.momentum_rate.mul_add(*m, self.gradient_rate * g), denominator)
    }
}

impl<C: Float> Formula<C, 2> for Nesterov<C> {
    const DIVISORS: [bool; 2] = [false, true];

    #[inline(always)]
    fn replaces(&self) -> [bool; 2] {
        replaced_moments(self.one_minus_beta1, self.beta2)
    }

    #[inline(always)]
    fn apply(&self, theta: C, g: C, state: &mut [C; 2]) -> C {
        let change = self.change(self.l2.mul_add(theta, g), state);
        self.shrink.mul_add(theta, change)
    }
}

impl<C: Float> Directed<C, 2> for Nesterov<C> {
    #[inline(always)]
    fn directed(&self, theta: C, g: C, state: &mut [C; 2]) -> Step<C> {
        let gradient = self.l2.mul_add(theta, g);
        let step = -self.change(gradient, state);
        Step { base: theta * self.shrink, step, gradient }
    }
}
