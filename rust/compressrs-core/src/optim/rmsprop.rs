//! RMSprop.

use super::hyperparameters::hyperparameters;
use super::rule::quotient;
use super::rule::{Formula, Rule, Scalars, State, Update, coefficients, variant};
use crate::numeric::element::Float;
use crate::numeric::elementwise::lerp;

hyperparameters! {
    /// Hyperparameters of RMSprop.
    ///
    /// ```text
    /// g      <- g + weight_decay theta
    /// sq     <- alpha sq + (1 - alpha) g^2
    /// mean   <- alpha mean + (1 - alpha) g                 (centered)
    /// d       = g / (sqrt(sq) + eps), or g / (sqrt(sq - mean^2) + eps) if centered
    /// buf    <- momentum buf + d                           (momentum)
    /// theta  <- theta - lr buf, or lr d without momentum
    /// ```
    ///
    /// Where rounding makes `sq - mean^2` negative it counts as 0. Source: Tieleman &
    /// Hinton, lecture 6.5 (2012); Graves (arXiv 1308.0850) for the centered form; in
    /// the form of `torch.optim.RMSprop`, with epsilon outside the root.
    RmsProp = "rmsprop" {
        /// Learning rate.
        lr: f64 = 1e-2, NON_NEGATIVE;
        /// Decay rate of the mean of squares.
        alpha: f64 = 0.99, DECAY_RATE;
        /// Keeps the divisor from 0.
        eps: f64 = 1e-8, NON_NEGATIVE;
        /// Weight decay.
        weight_decay: f64 = 0.0, NON_NEGATIVE;
        /// What is kept of the last step.
        momentum: f64 = 0.0, NON_NEGATIVE;
        /// Whether to divide by the standard deviation.
        centered: bool = false;
    }
}

impl Rule for RmsProp {
    fn states(&self, _: usize) -> Vec<State> {
        // Centered, the divisor is a difference of squares, which rounding could
        // make negative.
        let divisor = if self.centered { State::exact } else { State::divisor };
        let mut states = vec![divisor("square_avg")];
        if self.momentum > 0.0 {
            states.push(State::moment("momentum_buffer"));
        }
        if self.centered {
            states.push(State::exact("grad_avg"));
        }
        states
    }

    fn at(&self, _: u64, _: &mut Scalars) -> Update {
        let scaled = Scaled {
            lr: self.lr,
            alpha: self.alpha,
            one_minus_alpha: 1.0 - self.alpha,
            eps: self.eps,
            weight_decay: self.weight_decay,
            momentum: self.momentum,
        };
        match (self.centered, self.momentum > 0.0) {
            (false, false) => Update::RmsProp(scaled),
            (false, true) => Update::RmsPropMomentum(WithMomentum(scaled)),
            (true, false) => Update::RmsPropCentered(Centered(scaled)),
            (true, true) => Update::RmsPropCenteredMomentum(CenteredMomentum(scaled)),
        }
    }
}

coefficients! {
    /// One step.
    Scaled { lr, alpha, one_minus_alpha, eps, weight_decay, momentum, }
}
variant! {
    /// One step with momentum.
    WithMomentum(Scaled)
}
variant! {
    /// One step of the centered form.
    Centered(Scaled)
}
variant! {
    /// One step of the centered form with momentum.
    CenteredMomentum(Scaled)
}

impl<C: Float> Scaled<C> {
    /// The gradient over its root mean square.
    #[inline(always)]
    fn scaled(&self, theta: C, g: C, sq: &mut C, mean: Option<&mut C>) -> C {
        let g = self.weight_decay.mul_add(theta, g);
        *sq = self.alpha.mul_add(*sq, self.one_minus_alpha * g * g);
        let variance = match mean {
            None => *sq,
            Some(mean) => {
                *mean = lerp(*mean, g, self.one_minus_alpha);
                let variance = (-*mean).mul_add(*mean, *sq);
                // False for NaN, which is kept.
                if variance < C::zero() { C::zero() } else { variance }
            }
        };
        quotient(g, variance.sqrt() + self.eps)
    }

    /// Whether nothing is kept of the mean of squares, and of that of gradients.
    #[inline(always)]
    fn replaces_means(&self) -> [bool; 2] {
        [self.alpha == C::zero(), self.one_minus_alpha == C::one()]
    }

    /// The step along the momentum buffer.
    #[inline(always)]
    fn along(&self, theta: C, d: C, buf: &mut C) -> C {
        *buf = self.momentum.mul_add(*buf, d);
        (-self.lr).mul_add(*buf, theta)
    }
}

impl<C: Float> Formula<C, 1> for Scaled<C> {
    const DIVISORS: [bool; 1] = [true];

    #[inline(always)]
    fn replaces(&self) -> [bool; 1] {
        [self.replaces_means()[0]]
    }

    #[inline(always)]
    fn apply(&self, theta: C, g: C, [sq]: &mut [C; 1]) -> C {
        (-self.lr).mul_add(self.scaled(theta, g, sq, None), theta)
    }
}

impl<C: Float> Formula<C, 2> for WithMomentum<C> {
    const DIVISORS: [bool; 2] = [true, false];

    #[inline(always)]
    fn replaces(&self) -> [bool; 2] {
        [self.0.replaces_means()[0], false]
    }

    #[inline(always)]
    fn apply(&self, theta: C, g: C, [sq, buf]: &mut [C; 2]) -> C {
        self.0.along(theta, self.0.scaled(theta, g, sq, None), buf)
    }
}

impl<C: Float> Formula<C, 2> for Centered<C> {
    #[inline(always)]
    fn replaces(&self) -> [bool; 2] {
        self.0.replaces_means()
    }

    #[inline(always)]
    fn apply(&self, theta: C, g: C, [sq, mean]: &mut [C; 2]) -> C {
        (-self.0.lr).mul_add(self.0.scaled(theta, g, sq, Some(mean)), theta)
    }
}

impl<C: Float> Formula<C, 3> for CenteredMomentum<C> {
    #[inline(always)]
    fn replaces(&self) -> [bool; 3] {
        let [sq, mean] = self.0.replaces_means();
        [sq, false, mean]
    }

    #[inline(always)]
    fn apply(&self, theta: C, g: C, [sq, buf, mean]: &mut [C; 3]) -> C {
        self.0.along(theta, self.0.scaled(theta, g, sq, Some(mean)), buf)
    }
}
