//! Prodigy: Adam that estimates its own learning rate, from how far weights have come.
//!
//! The estimate is one for all tensors: [`estimate`] makes it, and Adam's steps of them.

use super::adam;
use super::hyperparameters::hyperparameters;
use super::rule::{Rule, Scalars, State, Update, bias_correction, weight_decay};
use super::storage::BlockAccess;
use super::tensor::{GRAIN_ELEMENTS, Tensor, is_kept};
use crate::numeric::element::Float;
use crate::numeric::lanes;
use crate::quantize::blockwise::BLOCK;
use crate::runtime::parallel;
use crate::runtime::simd::{self, Kernel};

hyperparameters! {
    /// Hyperparameters of Prodigy.
    ///
    /// ```text
    /// rate   = d lr                       (use_bias_correction: times sqrt(1 - beta2^t) / (1 - beta1^t))
    /// r     <- sqrt(beta2) r + d / d0 rate <g, theta_0 - theta>
    /// s     <- sqrt(beta2) s + d / d0 rate g                 (safeguard_warmup: d / d0 d g)
    /// m     <- beta1 m + (1 - beta1) d g
    /// v     <- beta2 v + (1 - beta2) d^2 g^2
    /// d      = max(d, d_coef r / |s|_1), at most growth_rate times the last
    /// theta <- theta - rate (m / (sqrt(v) + d eps) + weight_decay theta)
    /// ```
    ///
    /// Scalar product and norm are over all tensors.
    ///
    /// Source: Mishchenko & Defazio (arXiv 2306.06101, algorithm 4), in the form of
    /// `prodigyopt.Prodigy`.
    Prodigy = "prodigy" {
        /// Factor on the estimated learning rate.
        lr: f64 = 1.0, NON_NEGATIVE;
        /// Decay rates of the first and the second moment.
        betas: [f64; 2] = [0.9, 0.999], DECAY_RATE;
        /// Keeps the divisor from 0.
        eps: f64 = 1e-8, NON_NEGATIVE;
        /// Weight decay.
        weight_decay: f64 = 0.0, NON_NEGATIVE;
        /// Whether the decay acts on the parameter itself.
        decoupled_weight_decay: bool = true;
        /// Whether to correct the moments' bias, which warms up.
        use_bias_correction: bool = false;
        /// Whether the estimate leaves the factors of a warm-up out of its divisor.
        safeguard_warmup: bool = false;
        /// The first estimate.
        d0: f64 = 1e-6, POSITIVE;
        /// Factor on new estimates.
        d_coef: f64 = 1.0, POSITIVE;
        /// By how much the estimate may grow in a step.
        growth_rate: f64 = f64::INFINITY, GROWTH;
    }
}

impl Rule for Prodigy {
    fn states(&self, _: usize) -> Vec<State> {
        vec![
            State::moment("exp_avg"),
            State::divisor("exp_avg_sq"),
            State::exact("s"),
            State::exact("p0"),
        ]
    }

    fn scalars(&self) -> &'static [&'static str] {
        &["d", "d_max", "d_numerator"]
    }

    fn at(&self, t: u64, known: &mut Scalars) -> Update {
        let correction = if self.use_bias_correction {
            bias_correction(self.betas[1], t).sqrt() / bias_correction(self.betas[0], t)
        } else {
            1.0
        };
        Update::Prodigy(Distance { rule: *self, rate: self.lr * correction, t, known: *known })
    }
}

/// One step, before the estimate is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distance {
    rule: Prodigy,
    /// The rate in units of the estimate.
    rate: f64,
    t: u64,
    /// Estimate, largest estimate, and numerator; 0 before the first step.
    known: Scalars,
}

/// Estimates the distance from the gradients of all tensors of [`Prodigy`] and makes their steps
/// those of Adam. The new scalars of all of them; None if there are none.
///
/// # Unwinds
/// With [`OutOfMemory`](crate::runtime::memory::OutOfMemory).
pub fn estimate(
    singles: &mut [Tensor<'_, f32>],
    doubles: &mut [Tensor<'_, f64>],
) -> Option<Scalars> {
    let steps = || distances(singles).chain(distances(doubles));
    let first = steps().next()?;
    let beta3 = first.rule.betas[1].sqrt();
    // A tensor that was added later knows nothing yet.
    let known = steps().map(|step| step.known).find(|known| known[0] > 0.0);
    let [mut d, mut d_max, numerator] = known.unwrap_or([first.rule.d0, first.rule.d0, 0.0]);
    let before = d;
    let [product, norm] = add(measure(singles, d), measure(doubles, d));
    let mut numerator = beta3 * numerator;
    let moves = norm != 0.0;
    if moves {
        numerator += product;
        let estimated = first.rule.d_coef * numerator / norm;
        if d == first.rule.d0 {
            d = d.max(estimated);
        }
        d_max = d_max.max(estimated);
        d = d_max.min(d * first.rule.growth_rate);
    } else {
        // No gradient yet: the estimate stays.
        numerator = known.map_or(0.0, |known| known[2]);
    }
    follow(singles, before, d, moves);
    follow(doubles, before, d, moves);
    Some([d, d_max, numerator])
}

fn add(a: [f64; 2], b: [f64; 2]) -> [f64; 2] {
    [a[0] + b[0], a[1] + b[1]]
}

fn distances<'t, C: Float>(tensors: &'t [Tensor<'_, C>]) -> impl Iterator<Item = Distance> + 't {
    tensors.iter().filter_map(Tensor::distance)
}

/// Updates the sums of gradients of all tensors; the scalar product and the norm.
fn measure<C: Float>(tensors: &[Tensor<'_, C>], d: f64) -> [f64; 2] {
    let of = |t: &Tensor<'_, C>| t.distance().map(|step| step.measure(t, d));
    tensors.iter().filter_map(of).fold([0.0; 2], add)
}

/// Gives all tensors Adam's step with this estimate and the one before it.
fn follow<C: Float>(tensors: &mut [Tensor<'_, C>], before: f64, d: f64, moves: bool) {
    for t in tensors {
        if let Some(step) = t.distance() {
            t.update = Update::Adam(step.of_adam(before, d, moves));
            t.scale *= before;
        }
    }
}

impl<C: Float> Tensor<'_, C> {
    fn distance(&self) -> Option<Distance> {
        if let Update::Prodigy(distance) = self.update { Some(distance) } else { None }
    }
}

impl Distance {
    fn of_adam(&self, before: f64, d: f64, moves: bool) -> adam::Moments<f64> {
        let rate = if moves { before * self.rate } else { 0.0 };
        let Prodigy { betas, eps, weight_decay: decay, decoupled_weight_decay, .. } = self.rule;
        let (l2, shrink) = weight_decay(rate, decay, decoupled_weight_decay);
        // The gradient that the penalty is added to is in units of the estimate.
        adam::Moments::uncorrected(l2 * before, shrink, betas, rate, d * eps)
    }

    fn measure<C: Float>(&self, t: &Tensor<'_, C>, d: f64) -> [f64; 2] {
        let rate = d * self.rate;
        if self.rule.lr == 0.0 {
            return [0.0; 2];
        }
        let relative = d / self.rule.d0;
        let penalty = if self.rule.decoupled_weight_decay { 0.0 } else { self.rule.weight_decay };
        let factor = t.factor();
        let (penalty, keep) = (C::from_f64(penalty), C::from_f64(self.rule.betas[1].sqrt()));
        let gain = C::from_f64(relative * if self.rule.safeguard_warmup { d } else { rate });
        let [_, _, sums, starts, ..] = &t.states;
        let (sums, starts) = sums.in_place().zip(starts.in_place()).expect("states that are exact");
        let part = |part: std::ops::Range<usize>| {
            let (mut params, mut grads) = ([C::zero(); BLOCK], [C::zero(); BLOCK]);
            let mut total = [0.0; 2];
            for start in part.clone().step_by(BLOCK) {
                let block = start..part.end.min(start + BLOCK);
                // SAFETY: parts do not overlap, and nothing writes to the parameter here.
                let (param, sums, starts) = unsafe {
                    t.param.load(block.clone(), &mut params);
                    (&params[..block.len()], sums.slice(block.clone()), starts.slice(block.clone()))
                };
                let grad = &mut grads[..block.len()];
                match factor {
                    Some(_) => t.grad.load(block.clone(), grad),
                    None => t.grad.load_times(t.scale, block.clone(), grad),
                }
                if let Some(mask) = t.mask {
                    for (g, i) in grad.iter_mut().zip(block) {
                        *g = if is_kept(mask, i) { *g } else { C::zero() };
                    }
                }
                let scale = factor.unwrap_or(C::one());
                let first = self.t == 1;
                total = add(
                    total,
                    simd::dispatch(Measure {
                        scale,
                        penalty,
                        keep,
                        gain,
                        first,
                        param,
                        grad,
                        sums,
                        starts,
                    }),
                );
            }
            total
        };
        let [product, norm] =
            parallel::reduce(t.len(), GRAIN_ELEMENTS, part, add).unwrap_or([0.0; 2]);
        [relative * rate * product, norm]
    }
}

/// Updates the sums of gradients of a block; the scalar product of its gradient with the way it
/// has gone, and the norm of the sums.
struct Measure<'a, C> {
    scale: C,
    penalty: C,
    keep: C,
    gain: C,
    first: bool,
    param: &'a [C],
    grad: &'a mut [C],
    sums: &'a mut [C],
    starts: &'a mut [C],
}

impl<C: Float> Kernel for Measure<'_, C> {
    type Output = [f64; 2];

    #[inline(always)]
    fn run(self) -> [f64; 2] {
        let n = self.param.len();
        let (param, grad) = (self.param, &mut self.grad[..n]);
        let (sums, starts) = (&mut self.sums[..n], &mut self.starts[..n]);
        if self.first {
            starts.copy_from_slice(param);
        }
        if self.keep == C::zero() {
            sums.fill(C::zero());
        }
        for i in 0..n {
            grad[i] = self.penalty.mul_add(param[i], grad[i] * self.scale);
            sums[i] = self.gain.mul_add(grad[i], self.keep * sums[i]);
        }
        lanes::sums(n, |i| [(grad[i] * (starts[i] - param[i])).to_f64(), sums[i].abs().to_f64()])
    }
}
