//! ASGD: stochastic gradient descent that averages its iterates.

use super::hyperparameters::hyperparameters;
use super::rule::{Formula, Rule, Scalars, State, Update, coefficients};
use crate::numeric::element::Float;
use crate::numeric::elementwise::lerp;

hyperparameters! {
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
    Asgd = "asgd" {
        /// Learning rate.
        lr: f64 = 1e-2, NON_NEGATIVE;
        /// Decay of the parameter and of the step size.
        lambd: f64 = 1e-4, NON_NEGATIVE;
        /// Power of the decay of the step size.
        alpha: f64 = 0.75, FINITE;
        /// Step at which averaging starts.
        t0: f64 = 1e6, FINITE;
        /// Weight decay.
        weight_decay: f64 = 0.0, NON_NEGATIVE;
    }
}

impl Rule for Asgd {
    fn states(&self, _: usize) -> Vec<State> {
        vec![State::exact("ax")]
    }

    fn scalars(&self) -> &'static [&'static str] {
        &["eta", "mu"]
    }

    fn at(&self, t: u64, [eta, mu, _]: &mut Scalars) -> Update {
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

    fn accepts_rows(&self) -> Result<(), &'static str> {
        Err("averages all weights over the steps")
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
        *ax = if self.mu == C::one() { theta } else { lerp(*ax, theta, self.mu) };
        theta
    }
}
