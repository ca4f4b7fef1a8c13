//! Lion: the sign of an interpolated momentum.

use super::rule::{Formula, Hyperparameters, OutOfRange, Scalars, State, Update, coefficients};
use super::rule::{betas, non_negative, sign, weight_decay};
use crate::numeric::element::Float;

/// Hyperparameters of Lion.
///
/// ```text
/// theta <- theta - lr (sign(beta1 m + (1 - beta1) g) + weight_decay theta)
/// m     <- beta2 m + (1 - beta2) g
/// ```
///
/// Source: Chen et al. (arXiv 2302.06675, algorithm 2), in the form of
/// `optax.lion`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lion {
    lr: f64,
    beta1: f64,
    beta2: f64,
    weight_decay: f64,
    maximize: bool,
}

impl Lion {
    /// Checks the hyperparameters.
    ///
    /// # Errors
    /// A beta is not in `[0, 1)`, or another is negative or not finite.
    pub fn new(
        lr: f64,
        both: (f64, f64),
        weight_decay: f64,
        maximize: bool,
    ) -> Result<Self, OutOfRange> {
        let (beta1, beta2) = betas(both)?;
        Ok(Lion {
            lr: non_negative("lr", lr)?,
            beta1,
            beta2,
            weight_decay: non_negative("weight_decay", weight_decay)?,
            maximize,
        })
    }
}

impl Hyperparameters for Lion {
    fn states(&self, _: usize) -> Vec<State> {
        vec![State::moment("exp_avg")]
    }

    fn at(&self, _: u64, _: &mut Scalars) -> Update {
        let (_, shrink) = weight_decay(self.lr, self.weight_decay, true);
        Update::Lion(Signs {
            lr: self.lr,
            shrink,
            one_minus_beta1: 1.0 - self.beta1,
            one_minus_beta2: 1.0 - self.beta2,
        })
    }

    fn maximize(&self) -> bool {
        self.maximize
    }
}

coefficients! {
    /// One step.
    Signs { lr, shrink, one_minus_beta1, one_minus_beta2, }
}

impl<C: Float> Formula<C, 1> for Signs<C> {
    #[inline(always)]
    fn apply(&self, theta: C, g: C, [m]: &mut [C; 1]) -> C {
        let direction = self.one_minus_beta1.mul_add(g - *m, *m);
        *m = self.one_minus_beta2.mul_add(g - *m, *m);
        (-self.lr).mul_add(sign(direction), theta * self.shrink)
    }
}
