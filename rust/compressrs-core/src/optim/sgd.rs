//! Stochastic gradient descent, in PyTorch's form: the learning rate stands
//! outside the momentum buffer.

use super::rule::{Formula, Hyperparameters, OutOfRange, Scalars, State, Update, coefficients};
use super::rule::{non_negative, require};
use crate::numeric::element::Float;

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
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    lr: f64,
    momentum: f64,
    dampening: f64,
    weight_decay: f64,
    nesterov: bool,
    maximize: bool,
}

impl Sgd {
    /// Checks the hyperparameters.
    ///
    /// # Errors
    /// `lr`, `momentum` or `weight_decay` is negative or not finite, `dampening`
    /// is not finite, or `nesterov` is asked for without momentum or with
    /// dampening.
    pub fn new(
        lr: f64,
        momentum: f64,
        dampening: f64,
        weight_decay: f64,
        nesterov: bool,
        maximize: bool,
    ) -> Result<Self, OutOfRange> {
        let ok = !nesterov || momentum > 0.0;
        require("momentum", momentum, ok, "> 0 for nesterov=True")?;
        let ok = !nesterov || dampening == 0.0;
        require("dampening", dampening, ok, "0 for nesterov=True")?;
        Ok(Sgd {
            lr: non_negative("lr", lr)?,
            momentum: non_negative("momentum", momentum)?,
            dampening: require("dampening", dampening, dampening.is_finite(), "a finite number")?,
            weight_decay: non_negative("weight_decay", weight_decay)?,
            nesterov,
            maximize,
        })
    }
}

impl Hyperparameters for Sgd {
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

    fn maximize(&self) -> bool {
        self.maximize
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
