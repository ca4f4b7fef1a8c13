//! Classical momentum: the learning rate stands inside the velocity.

use super::hyperparameters::hyperparameters;
use super::rule::{Formula, Rule, Scalars, State, Update, coefficients};
use crate::numeric::element::Float;

hyperparameters! {
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
    Momentum = "momentum" {
        /// Learning rate.
        lr: f64 = 1e-3, NON_NEGATIVE;
        /// What is kept of the velocity.
        momentum: f64 = 0.9, DECAY_RATE;
        /// Weight decay.
        weight_decay: f64 = 0.0, NON_NEGATIVE;
        /// Whether to look ahead by the velocity.
        nesterov: bool = false;
    }
}

impl Rule for Momentum {
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
}

coefficients! {
    /// One step.
    Classical { lr, momentum, weight_decay, } flags { nesterov, }
}

impl<C: Float> Formula<C, 1> for Classical<C> {
    #[inline(always)]
    fn replaces(&self) -> [bool; 1] {
        [self.momentum == C::zero()]
    }

    #[inline(always)]
    fn apply(&self, theta: C, g: C, [v]: &mut [C; 1]) -> C {
        let pull = -self.lr * self.weight_decay.mul_add(theta, g);
        *v = self.momentum.mul_add(*v, pull);
        theta + if self.nesterov { self.momentum.mul_add(*v, pull) } else { *v }
    }
}
