//! Stochastic gradient descent, in PyTorch's form: the learning rate stands
//! outside the momentum buffer.

use super::hyperparameters::{hyperparameters, require};
use super::rule::{Formula, Rule, Scalars, State, Update, coefficients};
use crate::numeric::element::Float;

hyperparameters! {
    /// Hyperparameters of stochastic gradient descent.
    ///
    /// ```text
    /// g   <- g + weight_decay theta
    /// buf <- momentum buf + (1 - dampening) g      (buf <- g at the first step)
    /// d    = g + momentum buf  if nesterov, else buf; g without momentum
    /// theta <- theta - lr d
    /// ```
    ///
    /// Source: Sutskever, Martens, Dahl & Hinton, "On the importance of
    /// initialization and momentum in deep learning" (ICML 2013), in the form of
    /// `torch.optim.SGD`.
    Sgd = "sgd" {
        /// Learning rate.
        lr: f64 = 1e-3, NON_NEGATIVE;
        /// What is kept of the momentum buffer.
        momentum: f64 = 0.0, NON_NEGATIVE;
        /// What is left out of the gradient that is added to the buffer.
        dampening: f64 = 0.0, FINITE;
        /// Weight decay.
        weight_decay: f64 = 0.0, NON_NEGATIVE;
        /// Whether to look ahead by the momentum.
        nesterov: bool = false;
    }
    where |rule: &Sgd| {
        let (momentum, dampening) = (rule.momentum, rule.dampening);
        let ok = !rule.nesterov || momentum > 0.0;
        require("momentum", None, momentum, ok, "> 0 for nesterov=True")?;
        let ok = !rule.nesterov || dampening == 0.0;
        require("dampening", None, dampening, ok, "0 for nesterov=True")
    }
}

impl Rule for Sgd {
    fn states(&self, _: usize) -> Vec<State> {
        if self.momentum == 0.0 { vec![] } else { vec![State::moment("momentum_buffer")] }
    }

    fn at(&self, t: u64, _: &mut Scalars) -> Update {
        if self.momentum == 0.0 {
            return Update::Sgd(Plain { lr: self.lr, weight_decay: self.weight_decay });
        }
        // The first step takes the gradient as the buffer.
        let (keep, add) = if t == 1 { (0.0, 1.0) } else { (self.momentum, 1.0 - self.dampening) };
        Update::SgdMomentum(WithMomentum {
            lr: self.lr,
            weight_decay: self.weight_decay,
            keep,
            add,
            momentum: self.momentum,
            nesterov: self.nesterov,
        })
    }
}

coefficients! {
    /// One step without momentum.
    Plain { lr, weight_decay, }
}

impl<C: Float> Formula<C, 0> for Plain<C> {
    #[inline(always)]
    fn apply(&self, theta: C, g: C, _: &mut [C; 0]) -> C {
        let d = self.weight_decay.mul_add(theta, g);
        (-self.lr).mul_add(d, theta)
    }
}

coefficients! {
    /// One step with momentum.
    WithMomentum { lr, weight_decay, keep, add, momentum, } flags { nesterov, }
}

impl<C: Float> Formula<C, 1> for WithMomentum<C> {
    #[inline(always)]
    fn apply(&self, theta: C, g: C, [buf]: &mut [C; 1]) -> C {
        let g = self.weight_decay.mul_add(theta, g);
        *buf = self.keep.mul_add(*buf, self.add * g);
        let d = if self.nesterov { self.momentum.mul_add(*buf, g) } else { *buf };
        (-self.lr).mul_add(d, theta)
    }
}
