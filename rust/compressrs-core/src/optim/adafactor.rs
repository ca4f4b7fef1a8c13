//! Adafactor: a second moment that is stored as a row and a column.

use super::full_tensor::FullTensor;
use super::hyperparameters::hyperparameters;
use super::norm::unit_of_squares;
use super::rule::quotient;
use super::rule::{Formula, Rule, Scalars, State, StateShape, Update, coefficients, weight_decay};
use super::tensor::{GRAIN_ELEMENTS, is_kept};
use crate::numeric::element::Float;
use crate::numeric::elementwise::lerp;
use crate::numeric::lanes::{sums, total};
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};

/// Elements whose column sums one task adds up.
const PARTIAL_SUM_ELEMENTS: usize = 1 << 16;

hyperparameters! {
    /// Hyperparameters of Adafactor.
    ///
    /// ```text
    /// b       = t^beta2_decay
    /// row    <- row + b (mean over each row of g^2 - row)
    /// col    <- col + b (mean over each column of g^2 - col)
    /// v       = row col / max(mean of row, eps[0])       (a moment of its own for vectors)
    /// u       = g / sqrt(max(v, eps[0]^2))
    /// alpha   = max(eps[1], rms(theta)) min(lr, 1 / sqrt(t))
    /// u       = alpha u / max(1, rms(u) / d)
    /// m      <- beta1 m + (1 - beta1) u                  (if beta1 is given; else u itself)
    /// theta  <- (1 - lr weight_decay) theta - m
    /// ```
    ///
    /// Rows and columns are the last two axes. Source: Shazeer & Stern (arXiv
    /// 1804.04235, algorithms 4 to 6), in the form of `torch.optim.Adafactor`, which has no
    /// first moment; that is kept as in `optax.adafactor`.
    Adafactor = "adafactor" {
        /// Learning rate.
        lr: f64 = 1e-2, NON_NEGATIVE;
        /// Exponent of the step number in the decay rate of the second moment.
        beta2_decay: f64 = -0.8, NON_POSITIVE;
        /// Least root of the second moment (the machine epsilon if None), and least scale of a parameter.
        eps: (Option<f64>, f64) = (None, 1e-3), NON_NEGATIVE;
        /// Root mean square of an update from which on it is clipped.
        d: f64 = 1.0, AT_LEAST_ONE;
        /// Weight decay.
        weight_decay: f64 = 0.0, NON_NEGATIVE;
        /// Decay rate of the first moment; none is kept if None.
        beta1: Option<f64> = None, DECAY_RATE;
    }
}

impl Rule for Adafactor {
    fn states(&self, axes: usize) -> Vec<State> {
        let mut states = if axes < 2 {
            vec![State::exact("variance")]
        } else {
            vec![
                State { shape: StateShape::Rows, ..State::exact("row_var") },
                State { shape: StateShape::Columns, ..State::exact("col_var") },
            ]
        };
        states.extend(self.beta1.map(|_| State::moment("exp_avg")));
        states
    }

    fn at(&self, t: u64, _: &mut Scalars) -> Update {
        let (_, shrink) = weight_decay(self.lr, self.weight_decay, true);
        Update::Adafactor(Factored {
            blend: (t as f64).powf(self.beta2_decay),
            eps1: self.eps.0,
            eps2: self.eps.1,
            d: self.d,
            shrink,
            rate: self.lr.min((t as f64).sqrt().recip()),
            one_minus_beta1: self.beta1.map(|beta1| 1.0 - beta1),
        })
    }
}

/// The coefficients of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factored {
    /// Weight of the new means.
    blend: f64,
    eps1: Option<f64>,
    eps2: f64,
    d: f64,
    /// Factor on the parameter.
    shrink: f64,
    rate: f64,
    /// Of the first moment, if there is one.
    one_minus_beta1: Option<f64>,
}

coefficients! {
    /// Averages the squared gradient of a vector.
    SecondMoment { blend, }
}

impl<C: Float> Formula<C, 1> for SecondMoment<C> {
    #[inline(always)]
    fn replaces(&self) -> [bool; 1] {
        [self.blend == C::one()]
    }

    #[inline(always)]
    fn apply(&self, theta: C, g: C, [v]: &mut [C; 1]) -> C {
        *v = self.blend.mul_add(g * g - *v, *v);
        theta
    }
}

coefficients! {
    /// Steps a vector along the gradient over the root of its second moment.
    Scaled {
        shrink,
        rate,
        /// The least second moment.
        floor,
    }
}

impl<C: Float> Formula<C, 1> for Scaled<C> {
    #[inline(always)]
    fn apply(&self, theta: C, g: C, [v]: &mut [C; 1]) -> C {
        let v = if *v < self.floor { self.floor } else { *v };
        (-self.rate).mul_add(quotient(g, v.sqrt()), theta * self.shrink)
    }
}

coefficients! {
    /// The same, by way of a first moment.
    Averaged {
        shrink,
        rate,
        floor,
        one_minus_beta1,
    }
}

impl<C: Float> Formula<C, 2> for Averaged<C> {
    #[inline(always)]
    fn replaces(&self) -> [bool; 2] {
        [false, self.one_minus_beta1 == C::one()]
    }

    #[inline(always)]
    fn apply(&self, theta: C, g: C, [v, m]: &mut [C; 2]) -> C {
        let v = if *v < self.floor { self.floor } else { *v };
        *m = lerp(*m, self.rate * quotient(g, v.sqrt()), self.one_minus_beta1);
        theta * self.shrink - *m
    }
}

impl Factored {
    pub(super) fn step<C: Float>(self, t: &FullTensor<'_, C>) {
        let n = t.grad.len();
        if n == 0 {
            return;
        }
        // SAFETY: no loop works on the tensor while it is read.
        let theta = unsafe { t.param.read(0..n) };
        let squares = |unit: f64| {
            let share = unit.recip();
            let [sum] = total(n, |i| {
                let theta = share * theta[i].to_f64();
                [theta * theta]
            });
            sum
        };
        let plain = squares(1.0);
        let unit = unit_of_squares(plain);
        let weight = if unit == 1.0 { plain } else { squares(unit) };
        let rate = self.eps2.max((weight / n as f64).sqrt() * unit) * self.rate;
        let eps1 = self.eps1.unwrap_or_else(|| <C as num_traits::Float>::epsilon().to_f64());
        match t.matrix {
            None => self.step_vector(t, rate, eps1),
            Some(shape) => self.step_matrix(t, shape, rate, eps1),
        }
    }

    /// The rate, lowered where the root mean square of the update exceeds `d`.
    fn clipped(&self, rate: f64, squares: f64, n: usize) -> f64 {
        rate / f64::max(1.0, (squares / n as f64).sqrt() / self.d)
    }

    fn step_vector<C: Float>(self, t: &FullTensor<'_, C>, rate: f64, eps1: f64) {
        t.apply(SecondMoment { blend: self.blend }.cast::<C>());
        let (n, floor) = (t.grad.len(), eps1 * eps1);
        // SAFETY: no loop works on the tensor while it is read.
        let variance = unsafe { t.states[0].read(0..n) };
        let [squares] = total(n, |i| {
            let g = t.gradient(i).to_f64();
            [quotient(g * g, variance[i].to_f64().max(floor))]
        });
        let rate = self.clipped(rate, squares, n);
        let shrink = self.shrink;
        match self.one_minus_beta1 {
            None => t.apply(Scaled { shrink, rate, floor }.cast::<C>()),
            Some(one_minus_beta1) => {
                t.apply(Averaged { shrink, rate, floor, one_minus_beta1 }.cast::<C>());
            }
        }
    }

    fn step_matrix<C: Float>(
        self,
        t: &FullTensor<'_, C>,
        (rows, columns): (usize, usize),
        rate: f64,
        eps1: f64,
    ) {
        let n = t.grad.len();
        let matrices = n / (rows * columns);
        let block = PARTIAL_SUM_ELEMENTS.div_ceil(columns);
        let square = |row: usize, column: usize| {
            let g = t.gradient(row * columns + column).to_f64();
            g * g
        };
        // Means of rows so far, one for each matrix.
        let mut means = memory::zeroed(matrices);
        for (matrix, mean) in means.iter_mut().enumerate() {
            let first = matrix * rows;
            // SAFETY: nothing else works on the tensor.
            let row_var = unsafe { t.states[0].slice(first..first + rows) };
            // SAFETY: as above.
            let col_var = unsafe { t.states[1].slice(matrix * columns..(matrix + 1) * columns) };
            let shared = SharedMut::new(row_var);
            let column_sums = parallel::reduce(
                rows,
                block,
                |part| {
                    let [mut column_sums, mut squares] = [(); 2].map(|()| memory::zeroed(columns));
                    for row in part {
                        for (column, square_of) in squares.iter_mut().enumerate() {
                            *square_of = square(first + row, column);
                        }
                        let [sum] = sums(columns, |column| [squares[column]]);
                        // SAFETY: tasks have different rows.
                        blend(
                            unsafe { &mut shared.slice(row..row + 1)[0] },
                            sum / columns as f64,
                            self.blend,
                        );
                        column_sums.iter_mut().zip(&squares).for_each(|(sum, x)| *sum += x);
                    }
                    column_sums
                },
                |mut a, b| {
                    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
                    a
                },
            );
            for (var, sum) in col_var.iter_mut().zip(column_sums.unwrap_or_default()) {
                blend(var, sum / rows as f64, self.blend);
            }
            let [sum] = sums(rows, |row| [row_var[row].to_f64()]);
            *mean = (sum / rows as f64).max(eps1);
        }
        // SAFETY: nothing writes to the states any more.
        let (row_var, col_var) = unsafe {
            (t.states[0].read(0..matrices * rows), t.states[1].read(0..matrices * columns))
        };
        let floor = eps1 * eps1;
        let variance = |row: usize, column: usize| {
            let matrix = row / rows;
            let (of_row, mean) = (row_var[row].to_f64(), means[matrix]);
            let of_column = col_var[matrix * columns + column].to_f64();
            let product = of_row * of_column;
            // Means may be in range where their product is not.
            let in_range = product.is_finite() && product >= f64::MIN_POSITIVE;
            let variance = if in_range { product / mean } else { of_column * (of_row / mean) };
            if mean > 0.0 { variance.max(floor) } else { floor }
        };
        let squares = parallel::reduce(
            matrices * rows,
            block,
            |part| {
                let update = |row: usize| {
                    let [sum] = sums(columns, |column| {
                        [quotient(square(row, column), variance(row, column))]
                    });
                    sum
                };
                part.map(update).sum::<f64>()
            },
            |a, b| a + b,
        );
        let rate = self.clipped(rate, squares.unwrap_or(0.0), n);
        parallel::for_each(0..matrices * rows, GRAIN_ELEMENTS.div_ceil(columns), 1, |part| {
            for row in part {
                // SAFETY: tasks have different rows.
                let theta = unsafe { t.param.slice(row * columns..(row + 1) * columns) };
                let mut average = self.one_minus_beta1.map(|weight| {
                    // SAFETY: as above.
                    (weight, unsafe { t.states[2].slice(row * columns..(row + 1) * columns) })
                });
                for (column, theta) in theta.iter_mut().enumerate() {
                    let i = row * columns + column;
                    let kept = t.mask.is_none_or(|mask| is_kept(mask, i));
                    let mut step =
                        quotient(rate * t.gradient(i).to_f64(), variance(row, column).sqrt());
                    if let Some((weight, average)) = &mut average {
                        let m = &mut average[column];
                        let old = if *weight == 1.0 { 0.0 } else { m.to_f64() };
                        step = lerp(old, step, *weight);
                        *m = C::from_f64(if kept { step } else { 0.0 });
                    }
                    let new = theta.to_f64() * self.shrink - step;
                    *theta = C::from_f64(if kept { new } else { 0.0 });
                }
            }
        });
    }
}

/// Moves a mean towards a new value.
fn blend<C: Float>(mean: &mut C, new: f64, weight: f64) {
    // As states that a formula replaces.
    let old = if weight == 1.0 { 0.0 } else { mean.to_f64() };
    *mean = C::from_f64((new - old).mul_add(weight, old));
}
