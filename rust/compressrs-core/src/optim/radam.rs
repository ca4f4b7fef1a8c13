//! RAdam: Adam with a rectified adaptive rate.

use super::adam::moments;
use super::rule::{Formula, Hyperparameters, OutOfRange, Scalars, State, Update, coefficients};
use super::rule::{betas, bias_correction, non_negative, weight_decay};
use crate::numeric::element::Float;

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
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RAdam {
    lr: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    decoupled: bool,
    maximize: bool,
}

impl RAdam {
    /// Checks the hyperparameters.
    ///
    /// # Errors
    /// A beta is not in `[0, 1)`, or another is negative or not finite.
    pub fn new(
        lr: f64,
        both: (f64, f64),
        eps: f64,
        weight_decay: f64,
        decoupled_weight_decay: bool,
        maximize: bool,
    ) -> Result<Self, OutOfRange> {
        let (beta1, beta2) = betas(both)?;
        Ok(RAdam {
            lr: non_negative("lr", lr)?,
            beta1,
            beta2,
            eps: non_negative("eps", eps)?,
            weight_decay: non_negative("weight_decay", weight_decay)?,
            decoupled: decoupled_weight_decay,
            maximize,
        })
    }
}

impl Hyperparameters for RAdam {
    fn states(&self, _: usize) -> Vec<State> {
        vec![State::moment("exp_avg"), State::divisor("exp_avg_sq")]
    }

    fn at(&self, t: u64, _: &mut Scalars) -> Update {
        let correction = bias_correction(self.beta2, t);
        let rho_inf = 2.0 / (1.0 - self.beta2) - 1.0;
        let rho = rho_inf - 2.0 * t as f64 * (1.0 - correction) / correction;
        let adaptive = rho > 5.0;
        let rectification = if adaptive {
            ((rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho)).sqrt()
                * correction.sqrt()
        } else {
            1.0
        };
        let (l2, shrink) = weight_decay(self.lr, self.weight_decay, self.decoupled);
        Update::RAdam(Rectified {
            l2,
            shrink,
            one_minus_beta1: 1.0 - self.beta1,
            beta2: self.beta2,
            one_minus_beta2: 1.0 - self.beta2,
            rate: self.lr * rectification / bias_correction(self.beta1, t),
            eps: self.eps,
            adaptive,
        })
    }

    fn maximize(&self) -> bool {
        self.maximize
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

impl<C: Float> Formula<C, 2> for Rectified<C> {
    const DIVISORS: [bool; 2] = [false, true];

    #[inline(always)]
    fn apply(&self, theta: C, g: C, [m, v]: &mut [C; 2]) -> C {
        let g = self.l2.mul_add(theta, g);
        moments(g, m, v, self.one_minus_beta1, self.beta2, self.one_minus_beta2);
        let step = if self.adaptive { *m / (v.sqrt() + self.eps) } else { *m };
        (-self.rate).mul_add(step, theta * self.shrink)
    }
}
