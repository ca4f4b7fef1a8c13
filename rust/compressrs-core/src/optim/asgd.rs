//! ASGD: stochastic gradient descent that averages its iterates.

use super::rule::{Formula, Hyperparameters, OutOfRange, Scalars, State, Update, coefficients};
use super::rule::{non_negative, require};
use crate::numeric::element::Float;

/// Hyperparameters of averaged stochastic gradient descent.
///
/// ```text
/// g      <- g + weight_decay theta
/// theta  <- (1 - lambd eta) theta - eta g
/// ax     <- ax + mu (theta - ax)
/// eta    <- lr / (1 + lambd lr t)^alpha      (lr before the first step)
/// mu     <- 1 / max(1, t - t0)               (1 before the first step)
/// ```
///
/// Source: Polyak & Juditsky, "Acceleration of stochastic approximation by
/// averaging" (1992), in the form of `torch.optim.ASGD`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Asgd {
    lr: f64,
    lambd: f64,
    alpha: f64,
    t0: f64,
    weight_decay: f64,
    maximize: bool,
}

impl Asgd {
    /// Checks the hyperparameters.
    ///
    /// # Errors
    /// `lr`, `lambd` or `weight_decay` is negative or not finite, or `alpha` or
    /// `t0` is not finite.
    pub fn new(
        lr: f64,
        lambd: f64,
        alpha: f64,
        t0: f64,
        weight_decay: f64,
        maximize: bool,
    ) -> Result<Self, OutOfRange> {
        Ok(Asgd {
            lr: non_negative("lr", lr)?,
            lambd: non_negative("lambd", lambd)?,
            alpha: require("alpha", alpha, alpha.is_finite(), "a finite number")?,
            t0: require("t0", t0, t0.is_finite(), "a finite number")?,
            weight_decay: non_negative("weight_decay", weight_decay)?,
            maximize,
        })
    }
}

impl Hyperparameters for Asgd {
    fn states(&self, _: usize) -> Vec<State> {
        vec![State::exact("ax")]
    }

    fn scalars(&self) -> &'static [&'static str] {
        &["eta", "mu"]
    }

    fn at(&self, t: u64, [eta, mu]: &mut Scalars) -> Update {
        // In single precision, as PyTorch keeps them, so that trajectories agree.
        let single = |x: f64| f64::from(x as f32);
        let (eta_now, mu_now) = if t == 1 { (single(self.lr), 1.0) } else { (*eta, *mu) };
        let steps = t as f64;
        *eta = single(self.lr / (1.0 + self.lambd * self.lr * steps).powf(self.alpha));
        *mu = single(1.0 / f64::max(1.0, steps - self.t0));
        Update::Asgd(Averaged {
            eta: eta_now,
            mu: mu_now,
            shrink: 1.0 - self.lambd * eta_now,
            weight_decay: self.weight_decay,
        })
    }

    fn maximize(&self) -> bool {
        self.maximize
    }
}

coefficients! {
    /// One step.
    Averaged { eta, mu, shrink, weight_decay, }
}

impl<C: Float> Formula<C, 1> for Averaged<C> {
    #[inline(always)]
    fn apply(&self, theta: C, g: C, [ax]: &mut [C; 1]) -> C {
        let g = self.weight_decay.mul_add(theta, g);
        let theta = (-self.eta).mul_add(g, theta * self.shrink);
        // mu is 1 at first, where ax must become theta exactly.
        *ax = if self.mu == C::one() { theta } else { self.mu.mul_add(theta - *ax, *ax) };
        theta
    }
}
