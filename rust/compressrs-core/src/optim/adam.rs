//! Adam and AdamW: one formula, in which a neutral coefficient switches either
//! kind of weight decay off.

use super::cautious::{Directed, Step};
use super::hyperparameters::hyperparameters;
use super::rule::quotient;
use super::rule::{
    Formula, Rule, Scalars, State, Update, bias_correction, coefficients, variant, variant_of,
    weight_decay,
};
use crate::numeric::element::Float;
use crate::numeric::elementwise::lerp;

hyperparameters! {
    /// Hyperparameters of Adam and AdamW.
    ///
    /// ```text
    /// g     <- g + weight_decay theta               (Adam: L2 penalty)
    /// theta <- theta - lr weight_decay theta        (AdamW: decoupled)
    /// m     <- beta1 m + (1 - beta1) g
    /// v     <- beta2 v + (1 - beta2) g^2
    /// v'     = v / (1 - beta2^t)                    (amsgrad: of the largest v so far)
    /// theta <- theta - lr / (1 - beta1^t) m / (sqrt(v') + eps)
    /// ```
    ///
    /// Sources: Kingma & Ba (arXiv 1412.6980, algorithm 1); Loshchilov & Hutter
    /// (arXiv 1711.05101, algorithm 2) for the decoupled decay; Reddi, Kale & Kumar
    /// (arXiv 1904.09237) for amsgrad.
    Adam = "adam" {
        /// Learning rate.
        lr: f64 = 1e-3, NON_NEGATIVE;
        /// Decay rates of the first and the second moment.
        betas: [f64; 2] = [0.9, 0.999], DECAY_RATE;
        /// Keeps the divisor from 0.
        eps: f64 = 1e-8, NON_NEGATIVE;
        /// Weight decay.
        weight_decay: f64 = 0.0, NON_NEGATIVE;
        /// Whether to divide by the largest second moment so far.
        amsgrad: bool = false;
        /// Whether the decay acts on the parameter itself, as in AdamW.
        decoupled_weight_decay: bool = false;
        /// Whether only elements move whose step agrees with the gradient.
        cautious: bool = false;
    }
}

impl Rule for Adam {
    fn states(&self, _: usize) -> Vec<State> {
        let mut states = vec![State::moment("exp_avg"), State::divisor("exp_avg_sq")];
        if self.amsgrad {
            states.push(State::divisor("max_exp_avg_sq"));
        }
        states
    }

    fn at(&self, t: u64, _: &mut Scalars) -> Update {
        let (l2, shrink) = weight_decay(self.lr, self.weight_decay, self.decoupled_weight_decay);
        let moments = Moments {
            l2,
            shrink,
            beta2: self.betas[1],
            one_minus_beta1: 1.0 - self.betas[0],
            one_minus_beta2: 1.0 - self.betas[1],
            rate: self.lr / bias_correction(self.betas[0], t),
            root_correction: bias_correction(self.betas[1], t).sqrt().recip(),
            eps: self.eps,
        };
        if self.amsgrad {
            variant_of!(self.cautious, Amsgrad, LargestMoments(moments))
        } else {
            variant_of!(self.cautious, Adam, moments)
        }
    }
}

/// The moving averages of the gradient and of its square, which Adam's kin share.
#[inline(always)]
pub(super) fn moments<C: Float>(
    g: C,
    m: &mut C,
    v: &mut C,
    one_minus_beta1: C,
    beta2: C,
    one_minus_beta2: C,
) {
    *m = lerp(*m, g, one_minus_beta1);
    *v = beta2.mul_add(*v, one_minus_beta2 * g * g);
}

/// Which of [`moments`] are replaced.
#[inline(always)]
pub(super) fn replaced_moments<C: Float>(one_minus_beta1: C, beta2: C) -> [bool; 2] {
    [one_minus_beta1 == C::one(), beta2 == C::zero()]
}

coefficients! {
    /// One step of Adam.
    Moments {
        /// Weight decay added to the gradient; 0 for AdamW.
        l2,
        /// Factor on the parameter; 1 for Adam.
        shrink,
        beta2,
        one_minus_beta1,
        one_minus_beta2,
        /// `lr / (1 - beta1^t)`
        rate,
        /// `1 / sqrt(1 - beta2^t)`
        root_correction,
        eps,
    }
}

impl Moments<f64> {
    /// A step whose moments are taken as they are.
    pub(super) fn uncorrected(
        l2: f64,
        shrink: f64,
        [beta1, beta2]: [f64; 2],
        rate: f64,
        eps: f64,
    ) -> Self {
        let (one_minus_beta1, one_minus_beta2) = (1.0 - beta1, 1.0 - beta2);
        let root_correction = 1.0;
        Moments { l2, shrink, beta2, one_minus_beta1, one_minus_beta2, rate, root_correction, eps }
    }
}

impl<C: Float> Moments<C> {
    #[inline(always)]
    fn update(&self, theta: C, g: C, m: &mut C, v: &mut C) {
        let g = self.l2.mul_add(theta, g);
        moments(g, m, v, self.one_minus_beta1, self.beta2, self.one_minus_beta2);
    }

    /// `m` over the root of `v`.
    #[inline(always)]
    fn direction(&self, m: C, v: C) -> C {
        quotient(m, v.sqrt().mul_add(self.root_correction, self.eps))
    }

    /// The parameter after a step along `m` over the root of `v`.
    #[inline(always)]
    fn along(&self, theta: C, m: C, v: C) -> C {
        (-self.rate).mul_add(self.direction(m, v), theta * self.shrink)
    }

    /// The same, apart from the parameter.
    #[inline(always)]
    fn apart(&self, theta: C, g: C, m: C, v: C) -> Step<C> {
        let step = self.rate * self.direction(m, v);
        Step { base: theta * self.shrink, step, gradient: self.l2.mul_add(theta, g) }
    }
}

impl<C: Float> Formula<C, 2> for Moments<C> {
    const DIVISORS: [bool; 2] = [false, true];
    const IN_TWO: bool = true;

    #[inline(always)]
    fn replaces(&self) -> [bool; 2] {
        replaced_moments(self.one_minus_beta1, self.beta2)
    }

    #[inline(always)]
    fn apply(&self, theta: C, g: C, state: &mut [C; 2]) -> C {
        self.advance(theta, g, state);
        self.step(theta, g, state)
    }

    #[inline(always)]
    fn advance(&self, theta: C, g: C, [m, v]: &mut [C; 2]) {
        self.update(theta, g, m, v);
    }

    #[inline(always)]
    fn step(&self, theta: C, _: C, &[m, v]: &[C; 2]) -> C {
        self.along(theta, m, v)
    }
}

impl<C: Float> Directed<C, 2> for Moments<C> {
    #[inline(always)]
    fn directed(&self, theta: C, g: C, state: &mut [C; 2]) -> Step<C> {
        self.advance(theta, g, state);
        self.apart(theta, g, state[0], state[1])
    }
}

impl<C: Float> Directed<C, 3> for LargestMoments<C> {
    #[inline(always)]
    fn directed(&self, theta: C, g: C, state: &mut [C; 3]) -> Step<C> {
        self.advance(theta, g, state);
        self.0.apart(theta, g, state[0], state[2])
    }
}

variant! {
    /// One step of Adam with amsgrad.
    LargestMoments(Moments)
}

impl<C: Float> Formula<C, 3> for LargestMoments<C> {
    const DIVISORS: [bool; 3] = [false, true, true];
    const IN_TWO: bool = true;

    #[inline(always)]
    fn replaces(&self) -> [bool; 3] {
        let [m, v] = self.0.replaces();
        [m, v, false]
    }

    #[inline(always)]
    fn apply(&self, theta: C, g: C, state: &mut [C; 3]) -> C {
        self.advance(theta, g, state);
        self.step(theta, g, state)
    }

    #[inline(always)]
    fn advance(&self, theta: C, g: C, [m, v, v_max]: &mut [C; 3]) {
        self.0.update(theta, g, m, v);
        // A NaN must not be lost, as it would be in a comparison.
        *v_max = if *v_max > *v { *v_max } else { *v };
    }

    #[inline(always)]
    fn step(&self, theta: C, _: C, &[m, _, v_max]: &[C; 3]) -> C {
        self.0.along(theta, m, v_max)
    }
}
