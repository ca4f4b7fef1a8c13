//! SOAP: Adam in the basis of the eigenvectors of Shampoo's second moments.

use super::adam::{moments, replaced_moments};
use super::full_tensor::FullTensor;
use super::hyperparameters::hyperparameters;
use super::kronecker::{Block, Blocks, Square, between, filled, sides, unit};
use super::rule::{
    Formula, Rule, Scalars, State, StateShape, Update, bias_correction, coefficients, quotient,
    weight_decay,
};
use crate::linalg::eigen::eigen;
use crate::linalg::gemm::multiply;
use crate::linalg::householder::orthonormal;
use crate::linalg::matrix::Matrix;
use crate::numeric::element::Float;
use crate::numeric::elementwise::lerp;
use crate::numeric::lanes::sums;
use crate::runtime::memory;
use crate::runtime::parallel::SharedMut;
use crate::runtime::scratch::Scratch;

hyperparameters! {
    /// Hyperparameters of SOAP.
    ///
    /// ```text
    /// t = 1:  left  <- (1 - shampoo_beta) g g^T       for each block of rows and columns
    ///         right <- (1 - shampoo_beta) g^T g
    ///         left_basis, right_basis <- their eigenvectors, largest eigenvalue first
    /// then, with s = t - 1:
    ///         m     <- beta1 m + (1 - beta1) g
    ///         v     <- beta2 v + (1 - beta2) (left_basis^T g right_basis)^2
    ///         u      = left_basis^T m right_basis / (sqrt(v) + eps)
    ///         theta <- theta - lr sqrt(1 - beta2^s) / (1 - beta1^s) left_basis u right_basis^T
    ///         theta <- (1 - lr weight_decay) theta
    ///         left  <- shampoo_beta left + (1 - shampoo_beta) g g^T, and alike on the right
    ///         every precondition_frequency steps: left_basis <- Q of Q R = left left_basis,
    ///         its columns in the order of their eigenvalues, and v alike
    /// ```
    ///
    /// `shampoo_beta` is `beta2` if it is None. Axes after the first one are taken as one; with
    /// fewer than two axes both bases are 1. Source: Vyas et al. (arXiv 2409.11321, algorithm
    /// 3), in the form of the authors' code.
    Soap = "soap" {
        /// Learning rate.
        lr: f64 = 3e-3, NON_NEGATIVE;
        /// Decay rates of the first and the second moment.
        betas: [f64; 2] = [0.95, 0.95], DECAY_RATE;
        /// Decay rate of the second moments of rows and columns.
        shampoo_beta: Option<f64> = None, DECAY_RATE;
        /// Keeps the divisor from 0.
        eps: f64 = 1e-8, NON_NEGATIVE;
        /// Weight decay.
        weight_decay: f64 = 0.01, NON_NEGATIVE;
        /// Steps from one change of the bases to the next.
        precondition_frequency: f64 = 10.0, COUNT;
        /// Most rows and columns of a block.
        block_size: f64 = 512.0, COUNT;
    }
}

impl Rule for Soap {
    fn states(&self, axes: usize) -> Vec<State> {
        if axes < 2 {
            return vec![State::moment("exp_avg"), State::divisor("exp_avg_sq")];
        }
        let size = self.block_size as usize;
        let rotated = State { shape: StateShape::Rotated, ..State::exact("exp_avg_sq") };
        let mut states = vec![State::moment("exp_avg"), rotated];
        states.extend(sides(["left", "right"], size));
        states.extend(sides(["left_basis", "right_basis"], size));
        states
    }

    fn at(&self, t: u64, _: &mut Scalars) -> Update {
        let (_, shrink) = weight_decay(self.lr, self.weight_decay, true);
        let [beta1, beta2] = self.betas;
        let s = t - 1;
        let rate = if s == 0 {
            0.0
        } else {
            self.lr * bias_correction(beta2, s).sqrt() / bias_correction(beta1, s)
        };
        Update::Soap(Rotated {
            is_first: s == 0,
            rate,
            shrink,
            one_minus_beta1: 1.0 - beta1,
            beta2,
            eps: self.eps,
            shampoo_beta: self.shampoo_beta.unwrap_or(beta2),
            updates_bases: s > 0 && s.is_multiple_of(self.precondition_frequency as u64),
            block_size: self.block_size as usize,
        })
    }
}

/// The coefficients of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotated {
    /// Whether the bases are still to be found, which is all that the first step does.
    is_first: bool,
    rate: f64,
    /// Factor on the parameter.
    shrink: f64,
    one_minus_beta1: f64,
    beta2: f64,
    eps: f64,
    shampoo_beta: f64,
    /// Whether the bases change.
    updates_bases: bool,
    block_size: usize,
}

coefficients! {
    /// Averages the gradient.
    Average { one_minus_beta1, }
}

impl<C: Float> Formula<C, 1> for Average<C> {
    #[inline(always)]
    fn replaces(&self) -> [bool; 1] {
        [self.one_minus_beta1 == C::one()]
    }

    #[inline(always)]
    fn apply(&self, theta: C, g: C, [m]: &mut [C; 1]) -> C {
        *m = lerp(*m, g, self.one_minus_beta1);
        theta
    }
}

coefficients! {
    /// Steps along a direction, then decays.
    Along { rate, shrink, }
}

impl<C: Float> Formula<C, 0> for Along<C> {
    #[inline(always)]
    fn apply(&self, theta: C, u: C, _: &mut [C; 0]) -> C {
        (-self.rate).mul_add(u, theta) * self.shrink
    }
}

coefficients! {
    /// Adam, of what has no basis.
    Plain {
        one_minus_beta1,
        beta2,
        one_minus_beta2,
        eps,
        rate,
        shrink,
    }
}

impl<C: Float> Formula<C, 2> for Plain<C> {
    const DIVISORS: [bool; 2] = [false, true];

    #[inline(always)]
    fn replaces(&self) -> [bool; 2] {
        replaced_moments(self.one_minus_beta1, self.beta2)
    }

    #[inline(always)]
    fn apply(&self, theta: C, g: C, [m, v]: &mut [C; 2]) -> C {
        moments(g, m, v, self.one_minus_beta1, self.beta2, self.one_minus_beta2);
        (-self.rate).mul_add(quotient(*m, v.sqrt() + self.eps), theta) * self.shrink
    }
}

impl Rotated {
    /// The blocks of a matrix of this shape.
    pub(super) fn blocks(&self, shape: (usize, usize)) -> Blocks {
        Blocks::new(shape, self.block_size)
    }

    pub(super) fn step<C: Float>(self, t: &FullTensor<'_, C>) {
        let n = t.grad.len();
        if n == 0 {
            return;
        }
        let Rotated { rate, shrink, one_minus_beta1, beta2, eps, .. } = self;
        let Some(shape) = t.unfolded else {
            if !self.is_first {
                let one_minus_beta2 = 1.0 - beta2;
                let plain = Plain { one_minus_beta1, beta2, one_minus_beta2, eps, rate, shrink };
                t.apply(plain.cast::<C>());
            }
            return;
        };
        if !self.is_first {
            t.apply(Average { one_minus_beta1 }.cast::<C>());
        }
        let grad = filled(n, |i| t.gradient(i));
        // SAFETY: no loop writes to the first moment any more.
        let average = unsafe { t.states[0].read(0..n) };
        let units = [&*grad, average].map(unit);
        let scaled = [(&*grad, units[0]), (average, units[1])]
            .map(|(x, unit)| (unit != C::one()).then(|| filled(n, |i| x[i] / unit)));
        let matrix = |i: usize, x| {
            let x = scaled[i].as_deref().unwrap_or(x);
            Matrix::row_major(x, shape.0, shape.1)
        };
        let (grad, average) = (matrix(0, &grad), matrix(1, average));
        let mut direction = Scratch::<C>::new(if self.is_first { 0 } else { n });
        let shared = SharedMut::new(&mut direction);
        let blocks = self.blocks(shape);
        let keep = C::from_f64(self.shampoo_beta);
        let add = C::from_f64(1.0 - self.shampoo_beta) * units[0] * units[0];
        blocks.for_each(|block| {
            let [g, m] =
                [grad, average].map(|x| x.block(block.rows.clone(), block.columns.clone()));
            let mut matrices = [0, 1].map(|side| {
                // SAFETY: blocks have different matrices, one of each state.
                unsafe {
                    let moment = blocks.side(&t.states[2 + side], &block, side);
                    (moment, blocks.side(&t.states[4 + side], &block, side))
                }
            });
            if !self.is_first {
                let [(_, left), (_, right)] = &matrices;
                let bases = [left.matrix(), right.matrix()];
                let u = self.direction(t, &block, shape.1, bases, [g, m], units);
                let width = block.columns.len();
                for (row, u) in block.rows.clone().zip(u.chunks_exact(width)) {
                    let start = row * shape.1 + block.columns.start;
                    // SAFETY: blocks do not overlap, nor do their rows.
                    unsafe { shared.slice(start..start + width) }.copy_from_slice(u);
                }
            }
            let mut orders = [const { Vec::new() }; 2];
            for (side, x) in [g, g.transposed()].into_iter().enumerate() {
                let (moment, basis) = &mut matrices[side];
                moment.accumulate(keep, add, x);
                if self.is_first {
                    let n = basis.n();
                    match eigen(moment.to_f64(1.0), n) {
                        Ok(found) => basis.fill(|i, j| found.vectors[j * n + i]),
                        // Adam in the parameter's own basis, where squares overflow.
                        Err(_) => basis.fill(|i, j| f64::from(i == j)),
                    }
                } else if self.updates_bases {
                    orders[side] = update_basis(moment, basis);
                }
            }
            if self.updates_bases {
                reorder(&t.states[1], &block, shape.1, &orders);
            }
        });
        if !self.is_first {
            t.apply_to(&direction, Along { rate, shrink }.cast::<C>());
        }
    }

    /// Adam's direction in the bases, of a block of a matrix with this number of columns.
    fn direction<C: Float>(
        &self,
        t: &FullTensor<'_, C>,
        block: &Block,
        columns: usize,
        [left, right]: [Matrix<'_, C>; 2],
        [g, m]: [Matrix<'_, C>; 2],
        units: [C; 2],
    ) -> Scratch<C> {
        let into = |x| between(left.transposed(), x, right);
        let (g, mut u) = (into(g), into(m));
        let [beta2, add, eps] = [self.beta2, 1.0 - self.beta2, self.eps].map(C::from_f64);
        let width = block.columns.len();
        let lines = u.chunks_exact_mut(width).zip(g.chunks_exact(width));
        for (row, (u, g)) in block.rows.clone().zip(lines) {
            let start = row * columns + block.columns.start;
            // SAFETY: blocks do not overlap, nor do their rows.
            let v = unsafe { t.states[1].slice(start..start + width) };
            for ((u, g), v) in u.iter_mut().zip(g).zip(v) {
                let g = *g * units[0];
                let old = if beta2 == C::zero() { beta2 } else { *v };
                *v = beta2.mul_add(old, add * g * g);
                *u = quotient(*u, v.sqrt() + eps) * units[1];
            }
        }
        between(left, Matrix::row_major(&u, block.rows.len(), width), right.transposed())
    }
}

/// One step of the power iteration: replaces the basis by the orthogonal factor of
/// `moment basis`, its columns in the order of their eigenvalues, largest first; returns that
/// order. A moment that is not finite leaves the basis as it is.
fn update_basis<C: Float>(moment: &Square<'_, C>, basis: &mut Square<'_, C>) -> Vec<usize> {
    let n = basis.n();
    let old = basis.to_f64(1.0);
    let moment = moment.to_f64(1.0);
    if !moment.iter().all(|x| x.is_finite()) {
        return memory::collect(0..n);
    }
    let mut product = Scratch::<f64>::new(n * n);
    // By columns: (moment basis)' = basis' moment.
    let columns = Matrix::row_major(&old, n, n).transposed();
    multiply(1.0, columns, Matrix::row_major(&moment, n, n), None, &mut product);
    let eigenvalue = |j: usize| {
        let [sum] = sums(n, |i| [old[i * n + j] * product[j * n + i]]);
        sum
    };
    let values: Vec<f64> = memory::collect((0..n).map(eigenvalue));
    let mut order: Vec<usize> = memory::collect(0..n);
    order.sort_by(|&i, &j| values[j].total_cmp(&values[i]));
    let mut sorted = memory::with_capacity(n * n);
    for &j in &order {
        sorted.extend_from_slice(&product[j * n..(j + 1) * n]);
    }
    let new = orthonormal(sorted, n);
    basis.fill(|i, j| new[j * n + i]);
    order
}

/// Brings the rows and columns of a block into another order.
fn reorder<C: Float>(
    v: &SharedMut<'_, C>,
    block: &Block,
    columns: usize,
    [rows_order, columns_order]: &[Vec<usize>; 2],
) {
    let width = block.columns.len();
    let line = |row: usize| {
        let start = (block.rows.start + row) * columns + block.columns.start;
        start..start + width
    };
    let mut old = Scratch::<C>::new(block.rows.len() * width);
    for (row, old) in old.chunks_exact_mut(width).enumerate() {
        // SAFETY: blocks do not overlap, and nothing writes to this one meanwhile.
        old.copy_from_slice(unsafe { v.read(line(row)) });
    }
    for (row, &from) in rows_order.iter().enumerate() {
        // SAFETY: blocks do not overlap, nor do their rows.
        let to = unsafe { v.slice(line(row)) };
        for (to, &column) in to.iter_mut().zip(columns_order) {
            *to = old[from * width + column];
        }
    }
}
