//! Adagrad.

use super::hyperparameters::hyperparameters;
use super::rule::quotient;
use super::rule::{Formula, Rule, Scalars, State, Update, coefficients};
use crate::numeric::element::Float;

hyperparameters! {
    /// Hyperparameters of Adagrad.
    ///
    /// ```text
    /// g     <- g + weight_decay theta
    /// sum   <- sum + g^2                       (initial_accumulator_value at first)
    /// theta <- theta - lr / (1 + (t - 1) lr_decay) g / (sqrt(sum) + eps)
    /// ```
    ///
    /// Source: Duchi, Hazan & Singer (JMLR 12, 2011), in the form of
    /// `torch.optim.Adagrad`.
    Adagrad = "adagrad" {
        /// Learning rate.
        lr: f64 = 1e-2, NON_NEGATIVE;
        /// Decay of the learning rate.
        lr_decay: f64 = 0.0, NON_NEGATIVE;
        /// Weight decay.
        weight_decay: f64 = 0.0, NON_NEGATIVE;
        /// What the sum of squares starts with.
        initial_accumulator_value: f64 = 0.0, NON_NEGATIVE;
        /// Keeps the divisor from 0.
        eps: f64 = 1e-10, NON_NEGATIVE;
    }
}

impl Rule for Adagrad {
    fn states(&self, _: usize) -> Vec<State> {
        vec![State { initial: self.initial_accumulator_value, ..State::divisor("sum") }]
    }

    fn at(&self, t: u64, _: &mut Scalars) -> Update {
        Update::Adagrad(Accumulated {
            rate: self.lr / (1.0 + (t - 1) as f64 * self.lr_decay),
            weight_decay: self.weight_decay,
            eps: self.eps,
        })
    }
}

coefficients! {
    /// One step.
    Accumulated { rate, weight_decay, eps, }
}

impl<C: Float> Formula<C, 1> for Accumulated<C> {
    const DIVISORS: [bool; 1] = [true];

    #[inline(always)]
    fn apply(&self, theta: C, g: C, [sum]: &mut [C; 1]) -> C {
        let g = self.weight_decay.mul_add(theta, g);
        *sum = g.mul_add(g, *sum);
        (-self.rate).mul_add(quotient(g, sum.sqrt() + self.eps), theta)
    }
}
