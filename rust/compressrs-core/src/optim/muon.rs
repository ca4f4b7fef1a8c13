//! Muon: momentum, orthogonalized by a Newton-Schulz iteration.

use super::full_tensor::FullTensor;
use super::hyperparameters::{Parameter, Source, Value, hyperparameters};
use super::kronecker::filled;
use super::norm::root_of_squares;
use super::rule::{Formula, Rule, Scalars, State, Update, coefficients, weight_decay};
use crate::linalg::orthogonalize;
use crate::numeric::element::Float;
use crate::numeric::elementwise::lerp;
use crate::numeric::lanes::total;

/// How the learning rate follows the shape of a matrix of `a` rows and `b` columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdjustLr {
    /// `sqrt(max(1, a / b))`, of Jordan's original.
    Original,
    /// `0.2 sqrt(max(a, b))`, which gives updates of the size of AdamW's (Moonshot).
    MatchRmsAdamW,
    /// `sqrt(a / b)`, the condition on the spectral norm (Bernstein).
    SpectralUnclamped,
}

impl AdjustLr {
    const ALL: [AdjustLr; 3] =
        [AdjustLr::Original, AdjustLr::MatchRmsAdamW, AdjustLr::SpectralUnclamped];

    /// Its name in PyTorch.
    fn name(self) -> &'static str {
        match self {
            AdjustLr::Original => "original",
            AdjustLr::MatchRmsAdamW => "match_rms_adamw",
            AdjustLr::SpectralUnclamped => "spectral_unclamped",
        }
    }
}

impl Parameter for AdjustLr {
    fn read<S: Source>(source: &S, name: &'static str) -> Result<Self, S::Error> {
        let chosen = source.choice(name, &AdjustLr::ALL.map(AdjustLr::name))?;
        Ok(AdjustLr::ALL[chosen.unwrap_or(0)])
    }
    fn value(&self) -> Value {
        Value::Choice(self.name())
    }
}

hyperparameters! {
    /// Hyperparameters of Muon.
    ///
    /// ```text
    /// buf    <- momentum buf + (1 - momentum) g
    /// u       = momentum buf + (1 - momentum) g if nesterov, else buf
    /// x       = u / max(|u|, eps), transposed if it has more rows than columns
    /// repeat ns_steps times:  a = x x^T,  x <- c[0] x + (c[1] a + c[2] a a) x
    /// theta  <- (1 - lr weight_decay) theta - lr adjustment x
    /// ```
    ///
    /// `|u|` is the Frobenius norm, `c` the coefficients of the iteration, which runs
    /// in the type the parameter is computed in. Source: Jordan et al., "Muon: an
    /// optimizer for hidden layers in neural networks" (2024), in the form of
    /// `torch.optim.Muon`, whose iteration runs in bfloat16.
    Muon = "muon" {
        /// Learning rate.
        lr: f64 = 1e-3, NON_NEGATIVE;
        /// Weight decay.
        weight_decay: f64 = 0.1, NON_NEGATIVE;
        /// Decay rate of the momentum buffer.
        momentum: f64 = 0.95, DECAY_RATE;
        /// Whether to look ahead by the momentum.
        nesterov: bool = true;
        /// Coefficients of the iteration.
        ns_coefficients: [f64; 3] = [3.4445, -4.7750, 2.0315], FINITE;
        /// Least norm to divide by.
        eps: f64 = 1e-7, POSITIVE;
        /// Number of iterations, a whole number.
        ns_steps: f64 = 5.0, BELOW_100;
        /// How the learning rate follows the shape.
        adjust_lr_fn: AdjustLr = AdjustLr::Original;
    }
}

impl Rule for Muon {
    fn states(&self, _: usize) -> Vec<State> {
        vec![State::moment("momentum_buffer")]
    }

    fn at(&self, _: u64, _: &mut Scalars) -> Update {
        let (_, shrink) = weight_decay(self.lr, self.weight_decay, true);
        Update::Muon(Orthogonal {
            lr: self.lr,
            shrink,
            momentum: self.momentum,
            nesterov: self.nesterov,
            coefficients: self.ns_coefficients,
            eps: self.eps,
            ns_steps: self.ns_steps as u32,
            adjust_lr: self.adjust_lr_fn,
        })
    }

    fn accepts(&self, axes: usize) -> Result<(), &'static str> {
        if axes == 2 { Ok(()) } else { Err("have two axes for Muon (train others with AdamW)") }
    }
}

/// The coefficients of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Orthogonal {
    lr: f64,
    /// Factor on the parameter.
    shrink: f64,
    momentum: f64,
    nesterov: bool,
    coefficients: [f64; 3],
    eps: f64,
    ns_steps: u32,
    adjust_lr: AdjustLr,
}

coefficients! {
    /// Averages the gradient.
    Buffer { one_minus_momentum, }
}

impl<C: Float> Formula<C, 1> for Buffer<C> {
    #[inline(always)]
    fn replaces(&self) -> [bool; 1] {
        [self.one_minus_momentum == C::one()]
    }

    #[inline(always)]
    fn apply(&self, theta: C, g: C, [buf]: &mut [C; 1]) -> C {
        *buf = lerp(*buf, g, self.one_minus_momentum);
        theta
    }
}

coefficients! {
    /// Steps along a direction.
    Along {
        /// Factor on the parameter.
        shrink,
        rate,
    }
}

impl<C: Float> Formula<C, 0> for Along<C> {
    #[inline(always)]
    fn apply(&self, theta: C, u: C, _: &mut [C; 0]) -> C {
        (-self.rate).mul_add(u, theta * self.shrink)
    }
}

impl Orthogonal {
    /// The learning rate for a matrix of this shape.
    fn rate(&self, rows: usize, columns: usize) -> f64 {
        let (a, b) = (rows as f64, columns as f64);
        self.lr
            * match self.adjust_lr {
                AdjustLr::Original => f64::max(1.0, a / b).sqrt(),
                AdjustLr::MatchRmsAdamW => 0.2 * f64::max(a, b).sqrt(),
                AdjustLr::SpectralUnclamped => (a / b).sqrt(),
            }
    }

    /// How many numbers a step computes on the side for a matrix of this shape, at most.
    pub(super) fn scratch_len(&self, (rows, columns): (usize, usize)) -> usize {
        orthogonalize::scratch_len(rows, columns)
    }

    pub(super) fn step<C: Float>(self, t: &FullTensor<'_, C>) {
        let n = t.grad.len();
        let Some((rows, columns)) = t.matrix.filter(|_| n > 0) else { return };
        t.apply(Buffer { one_minus_momentum: 1.0 - self.momentum }.cast::<C>());

        // SAFETY: no loop works on the tensor while it is read.
        let buf = unsafe { t.states[0].read(0..n) };
        let momentum = C::from_f64(self.momentum);
        let direction = |i: usize| {
            let g = t.gradient(i);
            // A decay rate near 1 may be that once it is rounded.
            if self.nesterov && momentum < C::one() { lerp(g, buf[i], momentum) } else { buf[i] }
        };
        let (root, unit) = root_of_squares(|unit| {
            let share = unit.recip();
            let [sum] = total(n, |i| {
                let u = share * direction(i).to_f64();
                [u * u]
            });
            sum
        });
        // Two factors, which are in range where the norm is not.
        let share = C::from_f64(unit.recip());
        let factor = C::from_f64(root.max(self.eps / unit).recip()).min(C::max_value());
        let mut x = filled(n, |i| direction(i) * share * factor);
        let coefficients = self.coefficients.map(C::from_f64);
        orthogonalize::orthogonalize(&mut x, rows, columns, coefficients, self.ns_steps);

        let rate = self.rate(rows, columns);
        t.apply_to(&x, Along { shrink: self.shrink, rate }.cast::<C>());
    }
}
