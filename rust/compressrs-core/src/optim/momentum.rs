//! Classical momentum: the learning rate stands inside the velocity.

use super::rule::{Formula, Hyperparameters, OutOfRange, Scalars, State, Update, coefficients};
use super::rule::{decay_rate, non_negative};
use crate::numeric::element::Float;

/// Hyperparameters of classical (heavy-ball) momentum.
///
/// ```text
/// g     <- g + weight_decay theta
/// v     <- momentum v - lr g
/// theta <- theta + v                       (+ momentum v - lr g if nesterov)
/// ```
///
/// For a constant learning rate this is [`Sgd`](super::Sgd) with momentum; when
/// the rate changes, past gradients keep the rate they came with. Source: Polyak
/// (1964); Sutskever, Martens, Dahl & Hinton (ICML 2013), equations 1 to 4; the
/// form of Keras and scikit-learn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Momentum {
    lr: f64,
    momentum: f64,
    weight_decay: f64,
    nesterov: bool,
    maximize: bool,
}

impl Momentum {
    /// Checks the hyperparameters.
    ///
    /// # Errors
    /// `lr` or `weight_decay` is negative or not finite, or `momentum` is not in
    /// `[0, 1)`.
    pub fn new(
        lr: f64,
        momentum: f64,
        weight_decay: f64,
        nesterov: bool,
        maximize: bool,
    ) -> Result<Self, OutOfRange> {
        Ok(Momentum {
            lr: non_negative("lr", lr)?,
            momentum: decay_rate("momentum", momentum)?,
            weight_decay: non_negative("weight_decay", weight_decay)?,
            nesterov,
            maximize,
        })
    }
}

impl Hyperparameters for Momentum {
    fn states(&self, _: usize) -> Vec<State> {
        vec![State::moment("velocity")]
    }

    fn at(&self, _: u64, _: &mut Scalars) -> Update {
        Update::Momentum(Classical {
            lr: self.lr,
            momentum: self.momentum,
            weight_decay: self.weight_decay,
            nesterov: self.nesterov,
        })
    }

    fn maximize(&self) -> bool {
        self.maximize
    }
}

coefficients! {
    /// One step.
    Classical { lr, momentum, weight_decay, } flags { nesterov, }
}

impl<C: Float> Formula<C, 1> for Classical<C> {
    #[inline(always)]
    fn apply(&self, theta: C, g: C, [v]: &mut [C; 1]) -> C {
        let pull = -self.lr * self.weight_decay.mul_add(theta, g);
        *v = self.momentum.mul_add(*v, pull);
        theta + if self.nesterov { self.momentum.mul_add(*v, pull) } else { *v }
    }
}
