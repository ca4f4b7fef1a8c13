//! Weights, gradients and moments in few bits: every kind of storage, in the loops that take whole
//! blocks and in those that take any number of elements, against a step in single precision.

use compressrs_core::optim::{
    AdEmaMix, Adam, BLOCK, Codes, Halves, MAX_STATES, Moments, Momentum, RmsProp, Rounding, Rule,
    Scalars, Sgd, StateKind, StochasticRounding, Tensor, Values, Weights, mask_bytes, step,
};
use compressrs_core::runtime::parallel::SharedMut;
use half::{bf16, f16};

use crate::{first_weights, gradient};

/// Two whole blocks and a rest.
const LEN: usize = 2 * BLOCK + 3;

/// What weights are stored as.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weight {
    Single,
    Half,
    Nearest,
    Stochastic,
    Kahan,
    Master,
}

/// What gradients are stored as.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Grad {
    Single,
    Half,
    Bf16,
}

/// What moments are stored as.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Single,
    Bf16,
    Coded,
}

/// All that a step changes.
#[derive(Clone, Debug, PartialEq)]
struct Owned {
    single: Vec<f32>,
    half: Vec<f16>,
    bf16: Vec<bf16>,
    /// What Kahan's summation keeps.
    rest: Vec<bf16>,
    master: Vec<f32>,
    /// In single precision, and the scales of codes.
    states: Vec<[Vec<f32>; 2]>,
    bf16_states: Vec<Vec<bf16>>,
    codes: Vec<Vec<u8>>,
}

impl Owned {
    /// Numbers that bfloat16 has, so that storage loses none of the first weights.
    fn new(rule: &dyn Rule) -> Self {
        let bf16: Vec<bf16> = first_weights(LEN).into_iter().map(bf16::from_f64).collect();
        let single: Vec<f32> = bf16.iter().map(|x| x.to_f32()).collect();
        let states = rule.states(1).len();
        Owned {
            half: single.iter().map(|x| f16::from_f32(*x)).collect(),
            rest: vec![bf16::ZERO; LEN],
            master: single.clone(),
            states: (0..states).map(|_| [vec![0.0; LEN], vec![0.0; 3]]).collect(),
            bf16_states: vec![vec![bf16::ZERO; LEN]; states],
            codes: vec![vec![0; LEN]; states],
            single,
            bf16,
        }
    }

    /// One step, with a mask that keeps every element or without one: masks go through loops of
    /// their own.
    fn step(&mut self, rule: &dyn Rule, t: u64, kinds: (Weight, Grad, State), masked: bool) {
        let mut mask = vec![0xffu8; mask_bytes(LEN)];
        *mask.last_mut().unwrap() = 0b111;
        // Numbers that every type of a gradient has.
        let grad: Vec<bf16> = gradient(t, LEN).into_iter().map(bf16::from_f64).collect();
        let single: Vec<f32> = grad.iter().map(|x| x.to_f32()).collect();
        let half: Vec<f16> = single.iter().map(|x| f16::from_f32(*x)).collect();
        let grad = match kinds.1 {
            Grad::Single => Values::F32(&single),
            Grad::Half => Values::F16(&half),
            Grad::Bf16 => Values::Bf16(&grad),
        };
        let rounding = match kinds.0 {
            Weight::Stochastic => Rounding::Stochastic,
            Weight::Kahan => Rounding::Kahan(SharedMut::new(&mut self.rest)),
            Weight::Master => Rounding::Master(SharedMut::new(&mut self.master)),
            Weight::Single | Weight::Half | Weight::Nearest => Rounding::Nearest,
        };
        let weights = match kinds.0 {
            Weight::Single => Weights::from(&mut self.single[..]),
            Weight::Half => Weights::F16(Halves {
                values: SharedMut::new(&mut self.half),
                rounding: Rounding::Nearest,
            }),
            _ => Weights::Bf16(Halves { values: SharedMut::new(&mut self.bf16), rounding }),
        };
        let kind = rule.states(1);
        let mut states: [Moments<'_, f32>; MAX_STATES] = Default::default();
        let buffers = self.states.iter_mut().zip(&mut self.bf16_states).zip(&mut self.codes);
        for (s, ((full, bf16), codes)) in buffers.enumerate() {
            states[s] = match kinds.2 {
                State::Single => Moments::from(&mut full[0][..]),
                State::Bf16 => Moments::Bf16(SharedMut::new(bf16)),
                State::Coded => Moments::Coded(Codes {
                    codes: SharedMut::new(codes),
                    scales: SharedMut::new(&mut full[1]),
                    divisor: kind[s].kind == StateKind::Divisor,
                }),
            };
        }
        let update = rule.at(t, &mut Scalars::default());
        step(&mut [Tensor::new(update, &[LEN], weights, grad, states)
            .masked(masked.then_some(&mask))
            .scaled(0.5)
            .rounded_stochastically(StochasticRounding::new(7, 3, t))]);
    }

    /// The weights as a number each, as they count in the next step.
    fn weights(&self, kind: Weight) -> Vec<f32> {
        let bf16 = || self.bf16.iter().map(|x| x.to_f32());
        match kind {
            Weight::Single => self.single.clone(),
            Weight::Half => self.half.iter().map(|x| x.to_f32()).collect(),
            Weight::Nearest | Weight::Stochastic => bf16().collect(),
            Weight::Kahan => bf16().zip(&self.rest).map(|(x, rest)| x + rest.to_f32()).collect(),
            Weight::Master => self.master.clone(),
        }
    }

    /// State `s` as numbers.
    fn state(&mut self, s: usize, kind: State, divisor: bool) -> Vec<f32> {
        match kind {
            State::Single => self.states[s][0].clone(),
            State::Bf16 => self.bf16_states[s].iter().map(|x| x.to_f32()).collect(),
            State::Coded => {
                let mut x = vec![0.0; LEN];
                let (codes, scales) = (&mut self.codes[s], &mut self.states[s][1]);
                let (codes, scales) = (SharedMut::new(codes), SharedMut::new(scales));
                Codes { codes, scales, divisor }.decode(&mut x);
                x
            }
        }
    }
}

fn rules() -> Vec<Box<dyn Rule>> {
    vec![
        Box::new(Sgd { lr: 0.1, weight_decay: 0.1, ..Default::default() }),
        Box::new(Momentum { lr: 0.1, momentum: 0.5, ..Default::default() }),
        Box::new(Adam { lr: 0.1, betas: [0.5, 0.75], eps: 0.01, ..Default::default() }),
        Box::new(RmsProp { lr: 0.1, alpha: 0.75, eps: 0.1, momentum: 0.5, ..Default::default() }),
        Box::new(AdEmaMix { lr: 0.1, betas: [0.5, 0.75, 0.9], eps: 0.01, ..Default::default() }),
    ]
}

#[test]
fn every_kind_of_storage() {
    let weights = [
        Weight::Single,
        Weight::Half,
        Weight::Nearest,
        Weight::Stochastic,
        Weight::Kahan,
        Weight::Master,
    ];
    for rule in rules() {
        let rule = &*rule;
        let kinds = rule.states(1);
        let mut truth = Owned::new(rule);
        truth.step(rule, 1, (Weight::Single, Grad::Single, State::Single), false);
        for weight in weights {
            for grad in [Grad::Single, Grad::Half, Grad::Bf16] {
                for state in [State::Single, State::Bf16, State::Coded] {
                    let at = format!("{} {weight:?} {grad:?} {state:?}", kinds.len());
                    let [mut whole, masked] = [false, true].map(|masked| {
                        let mut owned = Owned::new(rule);
                        owned.step(rule, 1, (weight, grad, state), masked);
                        owned
                    });
                    assert!(whole == masked, "{at}: loops differ");
                    // The first step reads no moment that has been rounded.
                    let last_place = match weight {
                        Weight::Single | Weight::Master => 0.0,
                        Weight::Kahan => 2f32.powi(-14),
                        Weight::Half => 2f32.powi(-11),
                        Weight::Nearest => 2f32.powi(-8),
                        Weight::Stochastic => 2f32.powi(-7),
                    };
                    let got = whole.weights(weight);
                    for (got, wanted) in got.iter().zip(&truth.single) {
                        let close = (got - wanted).abs() <= last_place * wanted.abs().max(1e-3);
                        assert!(close, "{at}: weight {got} instead of {wanted}");
                    }
                    for (s, kind) in kinds.iter().enumerate() {
                        let divisor = kind.kind == StateKind::Divisor;
                        let largest = truth.states[s][0].iter().fold(0.0f32, |a, x| a.max(x.abs()));
                        let got = whole.state(s, state, divisor);
                        for (got, wanted) in got.iter().zip(&truth.states[s][0]) {
                            let tolerance = match state {
                                State::Single => 0.0,
                                State::Bf16 => wanted.abs() / 128.0,
                                State::Coded => wanted.abs() / 8.0 + largest / 500.0,
                            };
                            let close = (got - wanted).abs() <= tolerance;
                            assert!(close, "{at}: state {s} {got} instead of {wanted}");
                        }
                    }
                    // What is stored is what the next steps read.
                    let mut masked = masked;
                    for t in 2..5 {
                        whole.step(rule, t, (weight, grad, state), false);
                        masked.step(rule, t, (weight, grad, state), true);
                        assert!(whole == masked, "{at}: loops differ in step {t}");
                    }
                }
            }
        }
    }
}

/// A weight beyond the range of its type has lost nothing that Kahan's summation could keep.
#[test]
fn weights_that_overflow_keep_no_rest() {
    // Steps of less than 2^128 - bf16::MAX: sums that single precision has a number for.
    let rule = Sgd { lr: 3e36, weight_decay: 0.0, ..Default::default() };
    for masked in [false, true] {
        let mut owned = Owned::new(&rule);
        owned.bf16.fill(bf16::MAX);
        owned.step(&rule, 1, (Weight::Kahan, Grad::Single, State::Single), masked);
        assert!(owned.bf16.contains(&bf16::INFINITY) && owned.bf16.contains(&bf16::MAX));
        for (weight, rest) in owned.bf16.iter().zip(&owned.rest) {
            assert!(rest.is_finite() && (weight.is_finite() || *rest == bf16::ZERO), "{rest}");
        }
        assert!(owned.rest.iter().any(|rest| *rest != bf16::ZERO));
    }
}
