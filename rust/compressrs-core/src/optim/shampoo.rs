//! Shampoo: gradients multiplied by inverse roots of the second moments of rows and columns.

use super::full_tensor::FullTensor;
use super::hyperparameters::{Parameter, Source, Value, hyperparameters, require};
use super::kronecker::{Blocks, Square, between, filled, sides, unit};
use super::norm::root_of_squares;
use super::rule::{
    Formula, Rule, Scalars, State, Update, bias_correction, coefficients, quotient, weight_decay,
};
use crate::linalg::eigen::eigen;
use crate::linalg::gemm::multiply_by_transpose;
use crate::linalg::matrix::Matrix;
use crate::numeric::element::Float;
use crate::numeric::elementwise::lerp;
use crate::numeric::lanes::total;
use crate::runtime::parallel::SharedMut;
use crate::runtime::scratch::Scratch;

/// Whose step gives the norm of Shampoo's in each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grafting {
    /// That of `g / (sqrt(v) + eps)`: RMSprop or, as both are averaged afterwards, Adam.
    Adam,
    /// That of the gradient.
    Sgd,
    /// Its own.
    Nothing,
}

impl Grafting {
    const ALL: [Grafting; 3] = [Grafting::Adam, Grafting::Sgd, Grafting::Nothing];

    fn name(self) -> &'static str {
        match self {
            Grafting::Adam => "adam",
            Grafting::Sgd => "sgd",
            Grafting::Nothing => "none",
        }
    }
}

impl Parameter for Grafting {
    fn read<S: Source>(source: &S, name: &'static str) -> Result<Self, S::Error> {
        let chosen = source.choice(name, &Grafting::ALL.map(Grafting::name))?;
        Ok(Grafting::ALL[chosen.unwrap_or(0)])
    }
    fn value(&self) -> Value {
        Value::Choice(self.name())
    }
}

hyperparameters! {
    /// Hyperparameters of Shampoo.
    ///
    /// ```text
    /// v      <- beta2 v + (1 - beta2) g^2
    /// left   <- beta2 left + (1 - beta2) g g^T        for each block of rows and columns
    /// right  <- beta2 right + (1 - beta2) g^T g
    /// every precondition_frequency steps, from the first one on:
    ///     root   <- (left / (1 - beta2^t) + matrix_eps)^(-1/4), and alike on the right
    /// u       = left_root g right_root
    /// u       = u |a| / |u|,  a = g / (sqrt(v / (1 - beta2^t)) + eps)   (grafting "adam")
    /// m      <- beta1 m + (1 - beta1) u
    /// theta  <- (1 - lr weight_decay) theta - lr / (1 - beta1^t) m
    /// ```
    ///
    /// With `beta2 = 1` sums take the place of averages, and of `1 - beta2` and `1 - beta2^t`.
    /// Axes after the first one are taken as one; with fewer than two axes, `u = a`.
    /// Eigenvalues below the largest one times the machine epsilon count as that.
    ///
    /// Sources: Gupta, Koren & Singer (arXiv 1802.09568, algorithm 1); grafting and blocks:
    /// Anil et al. (arXiv 2002.09018), Shi et al. (arXiv 2309.06497).
    Shampoo = "shampoo" {
        /// Learning rate.
        lr: f64 = 1e-3, NON_NEGATIVE;
        /// Decay rates of the first moment and of the second ones.
        betas: [f64; 2] = [0.9, 0.999], UP_TO_ONE;
        /// Keeps the divisor of the grafted step from 0.
        eps: f64 = 1e-8, NON_NEGATIVE;
        /// Weight decay.
        weight_decay: f64 = 0.0, NON_NEGATIVE;
        /// Added to the eigenvalues of the second moments.
        matrix_eps: f64 = 1e-12, NON_NEGATIVE;
        /// Steps from one computation of the roots to the next.
        precondition_frequency: f64 = 10.0, COUNT;
        /// Most rows and columns of a block.
        block_size: f64 = 512.0, COUNT;
        /// Whose step gives the norm.
        grafting: Grafting = Grafting::Adam;
    }
    where |rule: &Shampoo| {
        require("betas", Some(0), rule.betas[0], rule.betas[0] < 1.0, "in [0, 1)")
    }
}

impl Rule for Shampoo {
    fn states(&self, axes: usize) -> Vec<State> {
        let mut states = vec![State::moment("exp_avg"), State::divisor("exp_avg_sq")];
        if axes >= 2 {
            let size = self.block_size as usize;
            states.extend(sides(["left", "right"], size));
            states.extend(sides(["left_root", "right_root"], size));
        }
        states
    }

    fn at(&self, t: u64, _: &mut Scalars) -> Update {
        let (_, shrink) = weight_decay(self.lr, self.weight_decay, true);
        let [beta1, beta2] = self.betas;
        let summed = beta2 == 1.0;
        Update::Shampoo(Preconditioned {
            rate: self.lr / bias_correction(beta1, t),
            shrink,
            one_minus_beta1: 1.0 - beta1,
            beta2,
            weight: if summed { 1.0 } else { 1.0 - beta2 },
            correction: if summed { 1.0 } else { bias_correction(beta2, t).recip() },
            eps: self.eps,
            matrix_eps: self.matrix_eps,
            computes_roots: (t - 1).is_multiple_of(self.precondition_frequency as u64),
            block_size: self.block_size as usize,
            grafting: self.grafting,
        })
    }
}

/// The coefficients of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preconditioned {
    rate: f64,
    /// Factor on the parameter.
    shrink: f64,
    one_minus_beta1: f64,
    beta2: f64,
    /// Of the new squares.
    weight: f64,
    /// Of second moments.
    correction: f64,
    eps: f64,
    matrix_eps: f64,
    computes_roots: bool,
    block_size: usize,
    grafting: Grafting,
}

coefficients! {
    /// The squares of the gradient, in the second of two states.
    Squares { beta2, weight, }
}

impl<C: Float> Formula<C, 2> for Squares<C> {
    const DIVISORS: [bool; 2] = [false, true];

    #[inline(always)]
    fn replaces(&self) -> [bool; 2] {
        [false, self.beta2 == C::zero()]
    }

    #[inline(always)]
    fn apply(&self, theta: C, g: C, [_, v]: &mut [C; 2]) -> C {
        *v = self.beta2.mul_add(*v, self.weight * g * g);
        theta
    }
}

coefficients! {
    /// Averages the direction, and steps along the average.
    Along { one_minus_beta1, rate, shrink, }
}

impl<C: Float> Formula<C, 1> for Along<C> {
    #[inline(always)]
    fn replaces(&self) -> [bool; 1] {
        [self.one_minus_beta1 == C::one()]
    }

    #[inline(always)]
    fn apply(&self, theta: C, u: C, [m]: &mut [C; 1]) -> C {
        *m = lerp(*m, u, self.one_minus_beta1);
        (-self.rate).mul_add(*m, theta * self.shrink)
    }
}

impl Preconditioned {
    /// The blocks of a matrix of this shape.
    pub(super) fn blocks(&self, shape: (usize, usize)) -> Blocks {
        Blocks::new(shape, self.block_size)
    }

    pub(super) fn step<C: Float>(self, t: &FullTensor<'_, C>) {
        let n = t.grad.len();
        if n == 0 {
            return;
        }
        t.apply(Squares { beta2: self.beta2, weight: self.weight }.cast::<C>());
        let grad = filled(n, |i| t.gradient(i));
        // SAFETY: no loop writes to the second moment any more.
        let v = unsafe { t.states[1].read(0..n) };
        let (correction, eps) = (C::from_f64(self.correction), C::from_f64(self.eps));
        let diagonal = |i: usize| quotient(grad[i], (v[i] * correction).sqrt() + eps);
        let direction = match t.unfolded {
            None => filled(n, diagonal),
            Some(shape) => self.precondition(t, shape, &grad, diagonal),
        };
        let (rate, shrink) = (self.rate, self.shrink);
        let along = Along { one_minus_beta1: self.one_minus_beta1, rate, shrink };
        t.apply_to(&direction, along.cast::<C>());
    }

    /// The gradient times the roots, with the norm of another step in each block.
    fn precondition<C: Float>(
        &self,
        t: &FullTensor<'_, C>,
        shape: (usize, usize),
        grad: &[C],
        diagonal: impl Fn(usize) -> C + Sync,
    ) -> Scratch<C> {
        let mut direction = Scratch::<C>::new(grad.len());
        let shared = SharedMut::new(&mut direction);
        let blocks = self.blocks(shape);
        // Of the direction, grafting leaves the size to another step.
        let unit = unit(grad);
        let scaled = (unit != C::one()).then(|| filled(grad.len(), |i| grad[i] / unit));
        let whole = Matrix::row_major(scaled.as_deref().unwrap_or(grad), shape.0, shape.1);
        let (keep, add) = (C::from_f64(self.beta2), C::from_f64(self.weight) * unit * unit);
        blocks.for_each(|block| {
            let g = whole.block(block.rows.clone(), block.columns.clone());
            let mut matrices = [0, 1].map(|side| {
                // SAFETY: blocks have different matrices, one of each state.
                unsafe {
                    let moment = blocks.side(&t.states[2 + side], &block, side);
                    (moment, blocks.side(&t.states[4 + side], &block, side))
                }
            });
            for ((moment, root), g) in matrices.iter_mut().zip([g, g.transposed()]) {
                moment.accumulate(keep, add, g);
                if self.computes_roots {
                    self.root(moment.to_f64(self.correction), root);
                }
            }
            let [(_, left), (_, right)] = &matrices;
            let u = between(left.matrix(), g, right.matrix());
            let width = block.columns.len();
            let first = |row: usize| (block.rows.start + row) * shape.1 + block.columns.start;
            let at = |i: usize| first(i / width) + i % width;
            let scale = match self.grafting {
                Grafting::Adam => graft(&u, |i| diagonal(at(i))),
                Grafting::Sgd => graft(&u, |i| grad[at(i)]),
                Grafting::Nothing => unit.to_f64(),
            };
            let scale = C::from_f64(scale);
            for (row, u) in u.chunks_exact(width).enumerate() {
                // SAFETY: blocks do not overlap, nor do their rows.
                let to = unsafe { shared.slice(first(row)..first(row) + width) };
                to.iter_mut().zip(u).for_each(|(to, u)| *to = scale * *u);
            }
        });
        direction
    }

    /// Writes `(a + matrix_eps)^(-1/4)`, or 0 if `a` is not finite, as Adam's steps are 0 where the
    /// second moment is infinite.
    fn root<C: Float>(&self, a: Vec<f64>, root: &mut Square<'_, C>) {
        let n = root.n();
        let Ok(eigen) = eigen(a, n) else { return root.fill(|_, _| 0.0) };
        let least = <C as num_traits::Float>::epsilon().to_f64() * eigen.values[0].max(0.0);
        let mut half = eigen.vectors;
        for (vector, value) in half.chunks_exact_mut(n).zip(&eigen.values) {
            // The root is the square of this: each vector times the eighth root.
            let eighth = (value.max(least) + self.matrix_eps).sqrt().sqrt().sqrt();
            let factor = quotient(1.0, eighth);
            vector.iter_mut().for_each(|x| *x *= factor);
        }
        let mut whole = Scratch::<f64>::new(n * n);
        let columns = Matrix::row_major(&half, n, n).transposed();
        multiply_by_transpose(1.0, columns, None, &mut whole);
        root.fill(|i, j| whole[i * n + j]);
    }
}

/// What the step `u` is multiplied by to have the norm of the step `a`.
fn graft<C: Float>(u: &[C], a: impl Fn(usize) -> C + Sync) -> f64 {
    let norm = |x: &(dyn Fn(usize) -> f64 + Sync)| {
        root_of_squares(|unit| {
            let [sum] = total(u.len(), |i| {
                let x = x(i) / unit;
                [x * x]
            });
            sum
        })
    };
    let (own, own_unit) = norm(&|i| u[i].to_f64());
    let (other, other_unit) = norm(&|i| a(i).to_f64());
    quotient(other, own) * (other_unit / own_unit)
}
