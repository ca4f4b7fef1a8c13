//! Lamb: Adam's direction, scaled for each tensor to the norm of its weights.

use super::adam::{moments, replaced_moments};
use super::hyperparameters::hyperparameters;
use super::norm::unit_of_squares;
use super::rule::quotient;
use super::rule::{Formula, Rule, Scalars, State, Update, bias_correction, coefficients};
use super::tensor::Tensor;
use crate::numeric::element::Float;

hyperparameters! {
    /// Hyperparameters of Lamb.
    ///
    /// ```text
    /// m      <- beta1 m + (1 - beta1) g
    /// v      <- beta2 v + (1 - beta2) g^2
    /// u       = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t) + eps_root) + eps) + weight_decay theta
    /// theta  <- theta - lr |theta| / |u| u           (the ratio is 1 where a norm is 0)
    /// ```
    ///
    /// Source: You et al. (arXiv 1904.00962, algorithm 2), in the form of
    /// `optax.lamb`.
    Lamb = "lamb" {
        /// Learning rate.
        lr: f64 = 1e-3, NON_NEGATIVE;
        /// Decay rates of the first and the second moment.
        betas: [f64; 2] = [0.9, 0.999], DECAY_RATE;
        /// Keeps the divisor from 0.
        eps: f64 = 1e-6, NON_NEGATIVE;
        /// Added to the second moment under the root.
        eps_root: f64 = 0.0, NON_NEGATIVE;
        /// Weight decay.
        weight_decay: f64 = 0.0, NON_NEGATIVE;
    }
}

impl Rule for Lamb {
    fn states(&self, _: usize) -> Vec<State> {
        vec![State::moment("exp_avg"), State::divisor("exp_avg_sq")]
    }

    fn at(&self, t: u64, _: &mut Scalars) -> Update {
        Update::Lamb(Layerwise {
            one_minus_beta1: 1.0 - self.betas[0],
            beta2: self.betas[1],
            one_minus_beta2: 1.0 - self.betas[1],
            correction: bias_correction(self.betas[0], t).recip(),
            square_correction: bias_correction(self.betas[1], t).recip(),
            eps: self.eps,
            eps_root: self.eps_root,
            weight_decay: self.weight_decay,
            rate: self.lr,
        })
    }
}

coefficients! {
    /// One step.
    Layerwise {
        one_minus_beta1,
        beta2,
        one_minus_beta2,
        /// `1 / (1 - beta1^t)`
        correction,
        /// `1 / (1 - beta2^t)`
        square_correction,
        eps,
        eps_root,
        weight_decay,
        /// The learning rate, times the ratio of the norms once that is known.
        rate,
    }
}

/// Updates the moments only.
#[derive(Clone, Copy)]
struct MomentsOf<C>(Layerwise<C>);

impl<C: Float> Formula<C, 2> for MomentsOf<C> {
    const DIVISORS: [bool; 2] = [false, true];

    #[inline(always)]
    fn replaces(&self) -> [bool; 2] {
        replaced_moments(self.0.one_minus_beta1, self.0.beta2)
    }

    #[inline(always)]
    fn apply(&self, theta: C, g: C, [m, v]: &mut [C; 2]) -> C {
        moments(g, m, v, self.0.one_minus_beta1, self.0.beta2, self.0.one_minus_beta2);
        theta
    }
}

impl<C: Float> Formula<C, 2> for Layerwise<C> {
    const DIVISORS: [bool; 2] = [false, true];

    /// Steps along the moments as they are.
    #[inline(always)]
    fn apply(&self, theta: C, _: C, [m, v]: &mut [C; 2]) -> C {
        (-self.rate).mul_add(self.direction(theta, *m, *v), theta)
    }
}

impl<C: Float> Layerwise<C> {
    #[inline(always)]
    fn direction(&self, theta: C, m: C, v: C) -> C {
        let root = v.mul_add(self.square_correction, self.eps_root).sqrt();
        // The correction last: a moment near the largest number may overflow by it.
        let scaled = quotient(m, root + self.eps) * self.correction;
        self.weight_decay.mul_add(theta, scaled)
    }
}

impl Layerwise<f64> {
    pub(super) fn step<C: Float>(self, t: &Tensor<'_, C>) {
        let formula: Layerwise<C> = self.cast();
        t.apply(MomentsOf(formula));
        // The squares of both norms, each divided by its unit.
        let squares = |units: [f64; 2]| {
            let [of_weight, of_direction] = units.map(f64::recip);
            t.sums(move |theta, [m, v]| {
                let u = of_direction * formula.direction(theta, m, v).to_f64();
                let theta = of_weight * theta.to_f64();
                [theta * theta, u * u]
            })
        };
        let plain = squares([1.0; 2]);
        let units = plain.map(unit_of_squares);
        let [weight, direction] = if units == [1.0; 2] { plain } else { squares(units) };
        let ratio = if weight > 0.0 && direction > 0.0 {
            (weight / direction).sqrt() * (units[0] / units[1])
        } else {
            1.0
        };
        t.apply(Layerwise { rate: self.rate * ratio, ..self }.cast::<C>());
    }
}
