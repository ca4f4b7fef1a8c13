//! Adam and AdamW: one formula, in which a neutral coefficient switches either
//! kind of weight decay off.

use super::rule::{Formula, OutOfRange, Update, coefficients, decay_rate, non_negative};
use crate::element::Float;

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
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    lr: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    decoupled: bool,
    amsgrad: bool,
    pub(super) maximize: bool,
}

impl Adam {
    /// Checks the hyperparameters; `decoupled` chooses AdamW.
    ///
    /// # Errors
    /// `lr`, `eps` or `weight_decay` is negative or not finite, or a beta is not
    /// in `[0, 1)`.
    pub fn new(
        lr: f64,
        (beta1, beta2): (f64, f64),
        eps: f64,
        weight_decay: f64,
        amsgrad: bool,
        maximize: bool,
        decoupled: bool,
    ) -> Result<Self, OutOfRange> {
        Ok(Adam {
            lr: non_negative("lr", lr)?,
            beta1: decay_rate("betas[0]", beta1)?,
            beta2: decay_rate("betas[1]", beta2)?,
            eps: non_negative("eps", eps)?,
            weight_decay: non_negative("weight_decay", weight_decay)?,
            decoupled,
            amsgrad,
            maximize,
        })
    }

    pub(super) fn states(&self) -> &'static [&'static str] {
        if self.amsgrad {
            &["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
        } else {
            &["exp_avg", "exp_avg_sq"]
        }
    }

    pub(super) fn at(&self, t: u64) -> Update {
        let correction = |beta: f64| 1.0 - beta.powf(t as f64);
        let (l2, shrink) = if self.decoupled {
            (0.0, 1.0 - self.lr * self.weight_decay)
        } else {
            (self.weight_decay, 1.0)
        };
        let moments = Moments {
            l2,
            shrink,
            beta2: self.beta2,
            one_minus_beta1: 1.0 - self.beta1,
            one_minus_beta2: 1.0 - self.beta2,
            rate: self.lr / correction(self.beta1),
            root_correction: correction(self.beta2).sqrt().recip(),
            eps: self.eps,
        };
        if self.amsgrad { Update::Amsgrad(LargestMoments(moments)) } else { Update::Adam(moments) }
    }
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

impl<C: Float> Moments<C> {
    /// Updates both moments; `largest` chooses the second moment to divide by.
    #[inline(always)]
    fn update(&self, theta: C, g: C, m: &mut C, v: &mut C, largest: impl FnOnce(C) -> C) -> C {
        let g = self.l2.mul_add(theta, g);
        *m = self.one_minus_beta1.mul_add(g - *m, *m);
        *v = self.beta2.mul_add(*v, self.one_minus_beta2 * g * g);
        let denominator = largest(*v).sqrt().mul_add(self.root_correction, self.eps);
        (-self.rate).mul_add(*m / denominator, theta * self.shrink)
    }
}

impl<C: Float> Formula<C, 2> for Moments<C> {
    #[inline(always)]
    fn apply(&self, theta: C, g: C, [m, v]: &mut [C; 2]) -> C {
        self.update(theta, g, m, v, |v| v)
    }
}

/// One step of Adam with amsgrad.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LargestMoments<C>(Moments<C>);

impl LargestMoments<f64> {
    pub(super) fn cast<C: Float>(self) -> LargestMoments<C> {
        LargestMoments(self.0.cast())
    }
}

impl<C: Float> Formula<C, 3> for LargestMoments<C> {
    #[inline(always)]
    fn apply(&self, theta: C, g: C, [m, v, v_max]: &mut [C; 3]) -> C {
        self.0.update(theta, g, m, v, |v| {
            // A NaN must not be lost, as it would be in a comparison.
            *v_max = if *v_max > v { *v_max } else { v };
            *v_max
        })
    }
}
