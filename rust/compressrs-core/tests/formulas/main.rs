//! Every rule over several steps, with options that are not the defaults, against its formula in
//! plain double precision: element by element, without lanes, blocks or threads.

mod decay_rates;
mod elementwise;
mod hyperparameters;
mod matrices;
mod norms;
mod storage;
mod whole_tensor;

use compressrs_core::optim::{
    MAX_STATES, Moments, Rule, Scalars, StateShape, Tensor, block_len, estimate, mask_bytes, step,
};

/// Steps of every trajectory.
const STEPS: u64 = 7;

/// Numbers in [-1, 1) that look random, none of them 0.
fn values(seed: u64, len: usize) -> Vec<f64> {
    let mut state = seed * 0x9E37_79B9 + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 11) | 1) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..16).for_each(|_| _ = next());
    (0..len).map(|_| next()).collect()
}

/// The gradient of step `t`.
fn gradient(t: u64, len: usize) -> Vec<f64> {
    values(100 + t, len)
}

fn first_weights(len: usize) -> Vec<f64> {
    values(1, len)
}

/// Elements of a state buffer of this shape.
fn len(shape: StateShape, of: &[usize]) -> usize {
    let len = of.iter().product::<usize>();
    let (rows, columns) = (of[0], of[1..].iter().product::<usize>());
    match shape {
        StateShape::Parameter | StateShape::Rotated => len,
        StateShape::Rows => len / of[of.len() - 1],
        StateShape::Columns => len / of[of.len() - 2],
        StateShape::OfRows { block_size } => {
            columns.div_ceil(block_len(columns, block_size)) * rows * block_len(rows, block_size)
        }
        StateShape::OfColumns { block_size } => {
            rows.div_ceil(block_len(rows, block_size)) * columns * block_len(columns, block_size)
        }
    }
}

/// What a trajectory is of.
#[derive(Clone, Copy)]
struct Run<'a> {
    shape: &'a [usize],
    /// Which elements are kept.
    kept: fn(usize) -> bool,
    /// Factor on the gradients.
    scale: f64,
    /// What is added to every element of the gradients.
    drift: f64,
}

impl<'a> Run<'a> {
    fn of(shape: &'a [usize]) -> Self {
        Run { shape, kept: |_| true, scale: 1.0, drift: 0.0 }
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The gradient of step `t`, which is 0 in some steps at two places.
    fn gradient(&self, t: u64) -> Vec<f64> {
        let mut grad: Vec<f64> = gradient(t, self.len()).iter().map(|g| g + self.drift).collect();
        if let Some(place) = grad.get_mut(5 + (t % 2) as usize) {
            *place = 0.0;
        }
        grad
    }

    /// This one, with elements that are not kept, and with a factor on the gradients.
    fn variants(self) -> [Self; 3] {
        [self, Run { kept: |i| i % 3 != 1, ..self }, Run { scale: 0.25, ..self }]
    }

    /// The weights after each step of the rule.
    fn weights(&self, rule: &dyn Rule) -> Vec<Vec<f64>> {
        let states = rule.states(self.shape.len());
        let mut buffers: [Vec<f64>; MAX_STATES] = Default::default();
        for (buffer, state) in buffers.iter_mut().zip(&states) {
            *buffer = vec![state.initial; len(state.shape, self.shape)];
        }
        let mut mask = vec![0u8; mask_bytes(self.len())];
        (0..self.len()).for_each(|i| mask[i / 8] |= u8::from((self.kept)(i)) << (i % 8));
        let masked = (0..self.len()).any(|i| !(self.kept)(i));
        let mut weights = first_weights(self.len());
        let mut scalars = Scalars::default();
        let mut after = |t| {
            let grad: Vec<f64> = self.gradient(t).iter().map(|g| g / self.scale).collect();
            let update = rule.at(t, &mut scalars);
            let states = buffers.each_mut().map(|buffer| Moments::from(buffer.as_mut_slice()));
            let mut tensors =
                [Tensor::new(update, self.shape, &mut weights[..], &grad[..], states)
                    .masked(masked.then_some(&mask))
                    .scaled(self.scale)];
            if let Some(found) = estimate(&mut [], &mut tensors) {
                scalars = found;
            }
            step(&mut tensors);
            weights.clone()
        };
        (1..=STEPS).map(&mut after).collect()
    }

    /// Compares the weights of every step with what `formula` makes of weights and gradient.
    #[track_caller]
    fn compare(&self, rule: &dyn Rule, mut formula: impl FnMut(u64, &mut [f64], &[f64])) {
        let mut expected = first_weights(self.len());
        for (t, got) in (1..).zip(self.weights(rule)) {
            let mut grad = self.gradient(t);
            for i in (0..self.len()).filter(|&i| !(self.kept)(i)) {
                grad[i] = 0.0;
            }
            formula(t, &mut expected, &grad);
            for i in 0..self.len() {
                let wanted = if (self.kept)(i) { expected[i] } else { 0.0 };
                let close = (got[i] - wanted).abs() <= 1e-9 * (1.0 + wanted.abs());
                assert!(close, "step {t}, element {i}: {} instead of {wanted}", got[i]);
            }
        }
    }
}
