//! Rules each of whose elements depends on itself alone, and their cautious variants.

use compressrs_core::optim::{
    AdEmaMix, Adadelta, Adagrad, Adam, Adamax, Asgd, Lion, MAX_STATES, Moments, Momentum, NAdam,
    RAdam, RmsProp, Rprop, Rule, Scalars, Sgd, StateKind, StateShape, Tensor, Values, step,
};

use crate::{Run, first_weights, gradient};

/// State of an element, 0 at first.
type State = [f64; 4];

/// Compares a rule with the formula of an element: step, weight, gradient, state.
#[track_caller]
fn check(rule: impl Rule, formula: impl Fn(i32, f64, f64, &mut State) -> f64) {
    // Not a whole number of bytes of a mask, nor of the elements that a masked loop takes.
    for run in Run::of(&[45]).variants() {
        let mut states = vec![State::default(); run.len()];
        run.compare(&rule, |t, weights, grad| {
            for (i, weight) in weights.iter_mut().enumerate() {
                *weight = formula(t as i32, *weight, grad[i], &mut states[i]);
            }
        });
    }
}

/// What a cautious step is made of: the weight after its decoupled decay, what is subtracted from
/// it, and the gradient with its penalty.
type Parts = (f64, f64, f64);

/// Compares a rule with the formula of an element, and its cautious variant with that where it
/// agrees with the gradient.
#[track_caller]
fn check_both(
    plain: impl Rule,
    cautious: impl Rule,
    formula: impl Fn(i32, f64, f64, &mut State) -> Parts,
) {
    check(plain, |t, weight, grad, state| {
        let (base, step, _) = formula(t, weight, grad, state);
        base - step
    });
    for run in Run::of(&[45]).variants() {
        check_cautious(&cautious, run, &formula);
    }
}

#[track_caller]
fn check_cautious(
    rule: &dyn Rule,
    run: Run<'_>,
    formula: impl Fn(i32, f64, f64, &mut State) -> Parts,
) {
    let mut states = vec![State::default(); run.len()];
    run.compare(rule, |t, weights, grad| {
        let of = |i: usize, state| formula(t as i32, weights[i], grad[i], state);
        let parts: Vec<Parts> = states.iter_mut().enumerate().map(|(i, s)| of(i, s)).collect();
        let counted = parts.iter().enumerate().filter(|(i, _)| (run.kept)(*i));
        let all = counted.clone().count() as f64;
        let agree = counted.filter(|(_, (_, step, grad))| step * grad > 0.0).count() as f64;
        for (weight, (base, step, grad)) in weights.iter_mut().zip(parts) {
            let moves = if step * grad > 0.0 { step } else { 0.0 };
            *weight = base - all / (agree + 1.0) * moves;
        }
    });
}

#[test]
fn sgd() {
    let rule = Sgd { lr: 0.1, weight_decay: 0.2, ..Default::default() };
    check(rule, |_, w, g, _| w - 0.1 * (g + 0.2 * w));
    let rule = Sgd { momentum: 0.8, dampening: 0.3, ..rule };
    check(rule, |t, w, g, [b, ..]| {
        let g = g + 0.2 * w;
        *b = if t == 1 { g } else { 0.8 * *b + 0.7 * g };
        w - 0.1 * *b
    });
    let rule = Sgd { nesterov: true, dampening: 0.0, ..rule };
    check(rule, |t, w, g, [b, ..]| {
        let g = g + 0.2 * w;
        *b = if t == 1 { g } else { 0.8 * *b + g };
        w - 0.1 * (g + 0.8 * *b)
    });
}

#[test]
fn momentum() {
    let rule = Momentum { lr: 0.1, momentum: 0.8, weight_decay: 0.2, ..Default::default() };
    for nesterov in [false, true] {
        check(Momentum { nesterov, ..rule }, |_, w, g, [v, ..]| {
            let pull = 0.1 * (g + 0.2 * w);
            *v = 0.8 * *v - pull;
            if nesterov { w + 0.8 * *v - pull } else { w + *v }
        });
    }
}

#[test]
fn adagrad() {
    let rule = Adagrad {
        lr: 0.1,
        lr_decay: 0.3,
        weight_decay: 0.2,
        initial_accumulator_value: 0.5,
        eps: 0.01,
        ..Default::default()
    };
    check(rule, |t, w, g, [sum, ..]| {
        let g = g + 0.2 * w;
        *sum += g * g + if t == 1 { 0.5 } else { 0.0 };
        w - 0.1 / (1.0 + f64::from(t - 1) * 0.3) * g / (sum.sqrt() + 0.01)
    });
}

#[test]
fn rmsprop() {
    let rule = RmsProp { lr: 0.1, alpha: 0.7, eps: 0.01, weight_decay: 0.2, ..Default::default() };
    for (momentum, centered) in [(0.0, false), (0.6, false), (0.0, true), (0.6, true)] {
        check(RmsProp { momentum, centered, ..rule }, |_, w, g, [sq, mean, buf, _]| {
            let g = g + 0.2 * w;
            *sq = 0.7 * *sq + 0.3 * g * g;
            *mean = 0.7 * *mean + 0.3 * g;
            let variance = if centered { *sq - *mean * *mean } else { *sq };
            *buf = momentum * *buf + g / (variance.sqrt() + 0.01);
            w - 0.1 * *buf
        });
    }
}

#[test]
fn adadelta() {
    let rule = Adadelta { lr: 0.5, rho: 0.7, eps: 0.01, weight_decay: 0.2, ..Default::default() };
    check(rule, |_, w, g, [sq, acc, ..]| {
        let g = g + 0.2 * w;
        *sq = 0.7 * *sq + 0.3 * g * g;
        let delta = (*acc + 0.01).sqrt() / (*sq + 0.01).sqrt() * g;
        *acc = 0.7 * *acc + 0.3 * delta * delta;
        w - 0.5 * delta
    });
}

#[test]
fn adam() {
    let rule =
        Adam { lr: 0.1, betas: [0.7, 0.6], eps: 0.01, weight_decay: 0.2, ..Default::default() };
    for (amsgrad, decoupled) in [(false, false), (false, true), (true, false), (true, true)] {
        let rule = Adam { amsgrad, decoupled_weight_decay: decoupled, ..rule };
        check_both(rule, Adam { cautious: true, ..rule }, |t, w, g, [m, v, largest, _]| {
            let (base, g) = decayed(w, g, decoupled);
            *m = 0.7 * *m + 0.3 * g;
            *v = 0.6 * *v + 0.4 * g * g;
            *largest = largest.max(*v);
            let v = if amsgrad { *largest } else { *v } / (1.0 - 0.6f64.powi(t));
            (base, 0.1 * *m / (1.0 - 0.7f64.powi(t)) / (v.sqrt() + 0.01), g)
        });
    }
}

/// Weight and gradient after a decay of 0.2 of either kind, at a learning rate of 0.1.
fn decayed(w: f64, g: f64, decoupled: bool) -> (f64, f64) {
    if decoupled { (w - 0.1 * 0.2 * w, g) } else { (w, g + 0.2 * w) }
}

#[test]
fn adamax() {
    let rule =
        Adamax { lr: 0.1, betas: [0.7, 0.6], eps: 0.01, weight_decay: 0.2, ..Default::default() };
    check(rule, |t, w, g, [m, u, ..]| {
        let g = g + 0.2 * w;
        *m = 0.7 * *m + 0.3 * g;
        *u = f64::max(0.6 * *u, g.abs() + 0.01);
        w - 0.1 / (1.0 - 0.7f64.powi(t)) * *m / *u
    });
}

#[test]
fn nadam() {
    let rule = NAdam {
        lr: 0.1,
        betas: [0.7, 0.6],
        eps: 0.01,
        weight_decay: 0.2,
        momentum_decay: 0.3,
        ..Default::default()
    };
    for decoupled in [false, true] {
        let rule = NAdam { decoupled_weight_decay: decoupled, ..rule };
        check_both(rule, NAdam { cautious: true, ..rule }, |t, w, g, [m, v, product, _]| {
            let (base, g) = decayed(w, g, decoupled);
            let mu = |t: i32| 0.7 * (1.0 - 0.5 * 0.96f64.powf(0.3 * f64::from(t)));
            let before = if t == 1 { 1.0 } else { *product as f32 };
            // In single precision, as PyTorch has it.
            *product = f64::from(before * mu(t) as f32);
            *m = 0.7 * *m + 0.3 * g;
            *v = 0.6 * *v + 0.4 * g * g;
            let (now, next) = (mu(t), mu(t + 1));
            let ahead = next * *m / (1.0 - *product * next) + (1.0 - now) * g / (1.0 - *product);
            (base, 0.1 * ahead / ((*v / (1.0 - 0.6f64.powi(t))).sqrt() + 0.01), g)
        });
    }
}

#[test]
fn radam() {
    let rule =
        RAdam { lr: 0.1, betas: [0.7, 0.9], eps: 0.01, weight_decay: 0.2, ..Default::default() };
    let mut adaptive = 0;
    for decoupled in [false, true] {
        let rule = RAdam { decoupled_weight_decay: decoupled, ..rule };
        check_both(rule, RAdam { cautious: true, ..rule }, |t, w, g, [m, v, ..]| {
            let (base, g) = decayed(w, g, decoupled);
            *m = 0.7 * *m + 0.3 * g;
            *v = 0.9 * *v + 0.1 * g * g;
            let mean = *m / (1.0 - 0.7f64.powi(t));
            let most = 2.0 / (1.0 - 0.9) - 1.0;
            let correction = 1.0 - 0.9f64.powi(t);
            let rho = most - 2.0 * f64::from(t) * 0.9f64.powi(t) / correction;
            if rho <= 5.0 {
                return (base, 0.1 * mean, g);
            }
            let r = (rho - 4.0) * (rho - 2.0) * most / ((most - 4.0) * (most - 2.0) * rho);
            (base, 0.1 * mean * r.sqrt() * correction.sqrt() / (v.sqrt() + 0.01), g)
        });
    }
    // Both branches are taken: at a decay rate of 0.9 from the sixth step on.
    for t in 1..=crate::STEPS as i32 {
        let power = 0.9f64.powi(t);
        adaptive += i32::from(19.0 - 2.0 * f64::from(t) * power / (1.0 - power) > 5.0);
    }
    assert_eq!(adaptive, 2);
}

#[test]
fn lion() {
    let rule = Lion { lr: 0.1, betas: [0.7, 0.6], weight_decay: 0.2, ..Default::default() };
    check_both(rule, Lion { cautious: true, ..rule }, |_, w, g, [m, ..]| {
        let direction = 0.7 * *m + 0.3 * g;
        *m = 0.6 * *m + 0.4 * g;
        let sign = if direction == 0.0 { 0.0 } else { direction.signum() };
        (w - 0.1 * 0.2 * w, 0.1 * sign, g)
    });
}

#[test]
fn rprop() {
    let rule = Rprop { lr: 0.1, etas: [0.4, 1.7], step_sizes: [0.03, 0.2], ..Default::default() };
    check(rule, |t, w, g, [before, size, ..]| {
        let agreement = g * *before;
        let factor = if agreement > 0.0 {
            1.7
        } else if agreement < 0.0 {
            0.4
        } else {
            1.0
        };
        *size = (factor * if t == 1 { 0.1 } else { *size }).clamp(0.03, 0.2);
        *before = if agreement < 0.0 { 0.0 } else { g };
        if *before == 0.0 { w } else { w - before.signum() * *size }
    });
}

#[test]
fn asgd() {
    let rule =
        Asgd { lr: 0.1, lambd: 0.5, alpha: 0.6, t0: 2.0, weight_decay: 0.2, ..Default::default() };
    check(rule, |t, w, g, _| {
        let g = g + 0.2 * w;
        let before = f64::from(t - 1);
        let eta = if t == 1 { 0.1 } else { 0.1 / (1.0 + 0.5 * 0.1 * before).powf(0.6) };
        let eta = f64::from(eta as f32);
        (1.0 - 0.5 * eta) * w - eta * g
    });
}

#[test]
fn the_average_of_asgd() {
    let rule = Asgd { lr: 0.1, t0: 2.0, ..Default::default() };
    let (mut weight, mut average, mut scalars) = ([1.0f64], [5.0], Scalars::default());
    let mut expected = 0.0;
    for t in 1..=6u64 {
        let mut states: [Moments<'_, f64>; MAX_STATES] = Default::default();
        states[0] = Moments::from(&mut average[..]);
        let update = rule.at(t, &mut scalars);
        step(&mut [Tensor::new(update, &[1], &mut weight[..], &[0.5 / t as f64][..], states)]);
        // The last one until step `t0`, and one share of every later one.
        let share = 1.0 / f64::max(1.0, t as f64 - 1.0 - 2.0);
        expected += f64::from(share as f32) * (weight[0] - expected);
        assert!((average[0] - expected).abs() < 1e-12, "step {t}");
        assert_eq!(scalars[1], f64::from((1.0 / f64::max(1.0, t as f64 - 2.0)) as f32));
    }
}

#[test]
fn ademamix() {
    let rule = AdEmaMix {
        lr: 0.1,
        betas: [0.7, 0.6, 0.95],
        alpha: 3.0,
        eps: 0.01,
        weight_decay: 0.2,
        ..Default::default()
    };
    // A decay rate of 0 has no logarithm, and keeps nothing.
    for betas in [rule.betas, [0.0, 0.6, 0.95], [0.7, 0.6, 0.0]] {
        for warmup in [0.0, 5.0, 50.0] {
            let rule = AdEmaMix { warmup, betas, ..rule };
            let [beta1, _, last] = betas;
            check_both(rule, AdEmaMix { cautious: true, ..rule }, |t, w, g, [m, v, slow, _]| {
                let share = if warmup > f64::from(t) { f64::from(t) / warmup } else { 1.0 };
                // Steps in which the average loses half, which grow linearly.
                let half = |beta: f64| if beta > 0.0 { 0.5f64.ln() / beta.ln() } else { 0.0 };
                let steps = (1.0 - share) * half(beta1) + share * half(last);
                let beta3 = if last > 0.0 { 0.5f64.powf(1.0 / steps) } else { 0.0 };
                *m = beta1 * *m + (1.0 - beta1) * g;
                *v = 0.6 * *v + 0.4 * g * g;
                *slow = beta3 * *slow + (1.0 - beta3) * g;
                let mixed = *m / (1.0 - beta1.powi(t)) + share * 3.0 * *slow;
                let step = 0.1 * mixed / ((*v / (1.0 - 0.6f64.powi(t))).sqrt() + 0.01);
                (w - 0.1 * 0.2 * w, step, g)
            });
        }
    }
}

/// Without an epsilon, no step is made where there has been no gradient yet, and gradients that
/// are not numbers show.
#[test]
fn zeros_and_nan() {
    let rules: [Box<dyn Rule>; 7] = [
        Box::new(Adam { eps: 0.0, ..Default::default() }),
        Box::new(Adam { eps: 0.0, amsgrad: true, ..Default::default() }),
        Box::new(Adagrad { eps: 0.0, ..Default::default() }),
        Box::new(RmsProp { eps: 0.0, centered: true, ..Default::default() }),
        Box::new(Adadelta { eps: 0.0, ..Default::default() }),
        Box::new(Adamax { eps: 0.0, ..Default::default() }),
        Box::new(Lion { weight_decay: 0.0, ..Default::default() }),
    ];
    for rule in rules {
        for (grad, unchanged) in [(0.0f64, true), (-0.0, true), (f64::NAN, false)] {
            let mut weight = [1.5f64];
            let mut buffers = [[0.0]; MAX_STATES];
            let states = buffers.each_mut().map(|x| Moments::from(x.as_mut_slice()));
            let update = rule.at(1, &mut Scalars::default());
            step(&mut [Tensor::new(update, &[1], &mut weight[..], &[grad][..], states)]);
            assert!(if unchanged { weight[0] == 1.5 } else { weight[0].is_nan() }, "{grad}");
        }
    }
}

/// Signs of what is too small for products.
#[test]
fn agreement_is_of_signs() {
    let tiny = f64::MIN_POSITIVE;
    let rule = Rprop { lr: 0.1, ..Default::default() };
    let (mut weight, mut buffers) = ([0.0], [[0.0]; MAX_STATES]);
    for t in 1..3 {
        let states = buffers.each_mut().map(|x| Moments::from(x.as_mut_slice()));
        let update = rule.at(t, &mut Scalars::default());
        step(&mut [Tensor::new(update, &[1], &mut weight[..], &[tiny][..], states)]);
    }
    assert_eq!(weight, [-0.1 - 0.1 * 1.2]);
}

/// A step that is infinite or not a number shows, also where it cannot agree with the gradient.
#[test]
fn cautious_steps_beyond_the_range() {
    let rule = Adam { eps: 0.0, cautious: true, ..Default::default() };
    // A quotient beyond the range, and NaN of either.
    let nan = f64::NAN;
    for (average, square, grad) in [(1e300, 1e-300, 0.0), (nan, 1.0, 1.0), (0.5, 1.0, nan)] {
        let (mut weight, mut buffers) = ([0.0], [[average], [square]]);
        let mut states: [Moments<'_, f64>; MAX_STATES] = Default::default();
        for (state, buffer) in states.iter_mut().zip(&mut buffers) {
            *state = Moments::from(&mut buffer[..]);
        }
        let update = rule.at(2, &mut Scalars::default());
        step(&mut [Tensor::new(update, &[1], &mut weight[..], &[grad][..], states)]);
        assert!(!weight[0].is_finite(), "{average} {square} {grad}: {weight:?}");
    }
}

/// Counts over more elements than a task has.
#[test]
fn many_cautious_elements() {
    let rule = Lion { lr: 0.1, betas: [0.7, 0.6], weight_decay: 0.2, ..Default::default() };
    for run in Run::of(&[70_001]).variants() {
        check_cautious(&Lion { cautious: true, ..rule }, run, |_, w, g, [m, ..]| {
            let direction = 0.7 * *m + 0.3 * g;
            *m = 0.6 * *m + 0.4 * g;
            let sign = if direction == 0.0 { 0.0 } else { direction.signum() };
            (w - 0.1 * 0.2 * w, 0.1 * sign, g)
        });
    }
}

/// A variance of gradients that are all the same is 0, not below it by what rounding leaves.
#[test]
fn no_variance() {
    let rule = RmsProp { alpha: 0.7, centered: true, eps: 0.01, ..Default::default() };
    let grad: Vec<f64> = (1..40).map(|i| f64::from(i) / 7.0).collect();
    let mut weights = vec![0.0; grad.len()];
    let mut buffers: [Vec<f64>; MAX_STATES] = std::array::from_fn(|_| vec![0.0; grad.len()]);
    for t in 1..60 {
        let states = buffers.each_mut().map(|x| Moments::from(x.as_mut_slice()));
        let update = rule.at(t, &mut Scalars::default());
        step(&mut [Tensor::new(update, &[grad.len()], &mut weights[..], &grad[..], states)]);
        assert!(weights.iter().all(|w| w.is_finite()), "step {t}");
    }
}

/// Gradients and factors beyond the range of the type, whose product is not.
#[test]
fn factors_on_gradients() {
    let rule = Sgd { lr: 1.0, ..Default::default() };
    let stepped = |grad: Values<'_>, scale: f64| {
        let mut weight = [0.0f32];
        let update = rule.at(1, &mut Scalars::default());
        let states: [Moments<'_, f32>; MAX_STATES] = Default::default();
        step(&mut [Tensor::new(update, &[1], &mut weight[..], grad, states).scaled(scale)]);
        weight[0]
    };
    assert_eq!(stepped(Values::F64(&[3e200]), 1e-200), -3.0);
    assert_eq!(stepped(Values::F32(&[3e30]), 1e-45), -3e-15);
    assert_eq!(stepped(Values::F32(&[3e-30]), 1e45), -3e15);
    assert_eq!(stepped(Values::F32(&[3e38]), 0.0), 0.0);
    // In the type of the gradient, and then rounded.
    assert_eq!(stepped(Values::F32(&[3.0]), 0.1), -3.0 * 0.1f32);
    assert_eq!(stepped(Values::F64(&[3.0]), 0.1), -(3.0 * 0.1f64) as f32);
}

/// Large tensors beside small ones are tensors one by one.
#[test]
fn tensors_of_several_tasks() {
    let rule = Adam { lr: 0.1, ..Default::default() };
    let lens = [50_001, 7, 0, 70_000];
    let new = |len| (first_weights(len), std::array::from_fn(|_| vec![0.0; len]));
    let mut together: Vec<(Vec<f64>, [Vec<f64>; MAX_STATES])> = lens.map(new).into();
    let mut alone = together.clone();
    let grads = lens.map(|len| gradient(1, len));
    fn tensor<'a>(
        rule: &Adam,
        (weights, buffers): &'a mut (Vec<f64>, [Vec<f64>; MAX_STATES]),
        grad: &'a [f64],
    ) -> Tensor<'a, f64> {
        let states = buffers.each_mut().map(|x| Moments::from(x.as_mut_slice()));
        let update = rule.at(1, &mut Scalars::default());
        Tensor::new(update, &[grad.len()], &mut weights[..], grad, states)
    }
    let all = together.iter_mut().zip(&grads);
    step(&mut all.map(|(owned, grad)| tensor(&rule, owned, grad)).collect::<Vec<_>>());
    for (owned, grad) in alone.iter_mut().zip(&grads) {
        step(&mut [tensor(&rule, owned, grad)]);
    }
    assert!(together == alone);
    assert!(alone[3].0.iter().zip(first_weights(70_000)).all(|(a, b)| *a != b));
}

#[test]
fn states_are_those_of_pytorch_where_it_has_the_rule() {
    use StateKind::{Divisor, Exact, Moment};
    fn states(rule: &dyn Rule) -> Vec<(&'static str, StateKind, f64)> {
        let states = rule.states(1);
        assert!(states.iter().all(|state| state.shape == StateShape::Parameter));
        states.iter().map(|state| (state.name, state.kind, state.initial)).collect()
    }
    let (moment, divisor) = (("exp_avg", Moment, 0.0), ("exp_avg_sq", Divisor, 0.0));
    assert_eq!(states(&Sgd::default()), []);
    let sgd = Sgd { momentum: 0.5, ..Default::default() };
    assert_eq!(states(&sgd), [("momentum_buffer", Moment, 0.0)]);
    assert_eq!(states(&Momentum::default()), [("velocity", Moment, 0.0)]);
    let adagrad = Adagrad { initial_accumulator_value: 0.5, ..Default::default() };
    assert_eq!(states(&adagrad), [("sum", Divisor, 0.5)]);
    assert_eq!(
        states(&Adadelta::default()),
        [("square_avg", Divisor, 0.0), ("acc_delta", Divisor, 0.0)]
    );
    assert_eq!(states(&Adam::default()), [moment, divisor]);
    let amsgrad = Adam { amsgrad: true, ..Default::default() };
    assert_eq!(states(&amsgrad), [moment, divisor, ("max_exp_avg_sq", Divisor, 0.0)]);
    assert_eq!(states(&Adamax::default()), [moment, ("exp_inf", Divisor, 0.0)]);
    assert_eq!(states(&NAdam::default()), [moment, divisor]);
    assert_eq!(states(&RAdam::default()), [moment, divisor]);
    assert_eq!(states(&Lion::default()), [moment]);
    assert_eq!(states(&AdEmaMix::default()), [moment, divisor, ("exp_avg_slow", Moment, 0.0)]);
    assert_eq!(states(&Rprop::default()), [("prev", Exact, 0.0), ("step_size", Exact, 0.0)]);
    assert_eq!(states(&Asgd::default()), [("ax", Exact, 0.0)]);
    let plain = RmsProp::default();
    assert_eq!(states(&plain), [("square_avg", Divisor, 0.0)]);
    let both = RmsProp { centered: true, momentum: 0.5, ..plain };
    assert_eq!(
        states(&both),
        [("square_avg", Exact, 0.0), ("momentum_buffer", Moment, 0.0), ("grad_avg", Exact, 0.0)]
    );
    assert_eq!(NAdam::default().scalars(), ["mu_product"]);
    assert_eq!(Asgd::default().scalars(), ["eta", "mu"]);
    assert!(Adam::default().scalars().is_empty());
}

#[test]
fn gradients_of_rows_are_for_rules_that_leave_other_rows_alone() {
    let decayed = Adam { weight_decay: 0.1, ..Default::default() };
    assert!(Adam::default().accepts_rows().is_ok());
    assert!(decayed.accepts_rows().unwrap_err().contains("weight_decay"));
    assert!(Asgd::default().accepts_rows().unwrap_err().contains("averages"));
    let cautious = Adam { cautious: true, ..Default::default() };
    assert!(cautious.accepts_rows().unwrap_err().contains("whole parameter"));
}
