//! Adagrad.

use super::rule::non_negative;
use super::rule::{Formula, Hyperparameters, OutOfRange, Scalars, State, Update, coefficients};
use crate::numeric::element::Float;

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
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adagrad {
    lr: f64,
    lr_decay: f64,
    weight_decay: f64,
    initial: f64,
    eps: f64,
    maximize: bool,
}

impl Adagrad {
    /// Checks the hyperparameters.
    ///
    /// # Errors
    /// One is negative or not finite.
    pub fn new(
        lr: f64,
        lr_decay: f64,
        weight_decay: f64,
        initial_accumulator_value: f64,
        eps: f64,
        maximize: bool,
    ) -> Result<Self, OutOfRange> {
        Ok(Adagrad {
            lr: non_negative("lr", lr)?,
            lr_decay: non_negative("lr_decay", lr_decay)?,
            weight_decay: non_negative("weight_decay", weight_decay)?,
            initial: non_negative("initial_accumulator_value", initial_accumulator_value)?,
            eps: non_negative("eps", eps)?,
            maximize,
        })
    }
}

impl Hyperparameters for Adagrad {
    fn states(&self, _: usize) -> Vec<State> {
        vec![State { initial: self.initial, ..State::divisor("sum") }]
    }

    fn at(&self, t: u64, _: &mut Scalars) -> Update {
        Update::Adagrad(Accumulated {
            rate: self.lr / (1.0 + (t - 1) as f64 * self.lr_decay),
            weight_decay: self.weight_decay,
            eps: self.eps,
        })
    }

    fn maximize(&self) -> bool {
        self.maximize
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
        (-self.rate).mul_add(g / (sum.sqrt() + self.eps), theta)
    }
}
