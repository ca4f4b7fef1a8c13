//! Averages with a decay rate of 0, or of 1 once it is rounded.

use compressrs_core::optim::{
    AdEmaMix, Adadelta, Adafactor, Adam, Adamax, BLOCK, Codes, Lamb, Lion, MAX_STATES, Moments,
    Momentum, Muon, NAdam, RAdam, RmsProp, Rule, Scalars, Shampoo, Soap, StochasticRounding,
    Tensor, step,
};
use compressrs_core::runtime::parallel::SharedMut;

use crate::{first_weights, gradient, len};

/// Weights and states after step 2, of states that are infinite where `names` has them and hold
/// their initial value elsewhere.
fn stepped(rule: &dyn Rule, shape: &[usize], names: &[&str]) -> (Vec<f64>, [Vec<f64>; MAX_STATES]) {
    let n = shape.iter().product();
    let mut weights = first_weights(n);
    let mut buffers: [Vec<f64>; MAX_STATES] = Default::default();
    for (buffer, state) in buffers.iter_mut().zip(rule.states(shape.len())) {
        let first = if names.contains(&state.name) { f64::INFINITY } else { state.initial };
        *buffer = vec![first; len(state.shape, shape)];
    }
    let mut scalars = Scalars::default();
    rule.at(1, &mut scalars);
    let update = rule.at(2, &mut scalars);
    let states = buffers.each_mut().map(|x| Moments::from(x.as_mut_slice()));
    step(&mut [Tensor::new(update, shape, &mut weights[..], &gradient(1, n)[..], states)]);
    (weights, buffers)
}

/// Nothing is left of what a decay rate of 0 forgets, not even NaN of something infinite.
#[test]
fn a_rate_of_0_keeps_nothing() {
    let moments = &["exp_avg", "exp_avg_sq"][..];
    let adam = Adam { betas: [0.0; 2], ..Default::default() };
    let rmsprop = RmsProp { alpha: 0.0, ..Default::default() };
    let momentum = RmsProp { momentum: 0.5, ..rmsprop };
    let adafactor = Adafactor { beta2_decay: 0.0, ..Default::default() };
    let nadam = NAdam { betas: [0.0; 2], ..Default::default() };
    let radam = RAdam { betas: [0.0; 2], ..Default::default() };
    let ademamix = AdEmaMix { betas: [0.0; 3], ..Default::default() };
    let all = &["exp_avg", "exp_avg_sq", "exp_avg_slow"][..];
    let factored = &["variance", "row_var", "col_var", "exp_avg"][..];
    let of_rmsprop = &["square_avg", "grad_avg"][..];
    let rules: [(Box<dyn Rule>, &[&str]); 20] = [
        // The step reads the mean of squared steps before it is updated.
        (Box::new(Adadelta { rho: 0.0, ..Default::default() }), &["square_avg"]),
        (Box::new(adafactor), factored),
        (Box::new(Adafactor { beta1: Some(0.0), ..adafactor }), factored),
        (Box::new(adam), moments),
        (Box::new(Adam { cautious: true, ..adam }), moments),
        (Box::new(Adam { amsgrad: true, ..adam }), moments),
        (Box::new(Adamax { betas: [0.0; 2], ..Default::default() }), &["exp_avg", "exp_inf"]),
        (Box::new(ademamix), all),
        (Box::new(AdEmaMix { cautious: true, ..ademamix }), all),
        (Box::new(Lamb { betas: [0.0; 2], ..Default::default() }), moments),
        (Box::new(Lion { betas: [0.0; 2], ..Default::default() }), moments),
        (Box::new(Momentum { momentum: 0.0, ..Default::default() }), &["velocity"]),
        (Box::new(nadam), moments),
        (Box::new(radam), moments),
        (Box::new(RAdam { cautious: true, ..radam }), moments),
        (Box::new(rmsprop), of_rmsprop),
        (Box::new(RmsProp { centered: true, ..rmsprop }), of_rmsprop),
        (Box::new(momentum), of_rmsprop),
        (Box::new(RmsProp { centered: true, ..momentum }), of_rmsprop),
        (Box::new(Shampoo { betas: [0.0; 2], ..Default::default() }), moments),
    ];
    for shape in [&[5][..], &[4, 5]] {
        for (i, (rule, names)) in rules.iter().enumerate() {
            let (weights, states) = stepped(&**rule, shape, names);
            let expected = stepped(&**rule, shape, &[]);
            assert!(weights.iter().all(|w| w.is_finite()), "rule {i}: {weights:?}");
            assert_eq!((weights, states), expected, "rule {i}");
        }
    }
    let muon = Muon { momentum: 0.0, ..Default::default() };
    assert_eq!(stepped(&muon, &[4, 5], &["momentum_buffer"]), stepped(&muon, &[4, 5], &[]));
    // The second moment of a matrix is one of turned gradients.
    let soap = Soap { betas: [0.0; 2], ..Default::default() };
    for (shape, names) in [(&[5][..], moments), (&[4, 5], moments)] {
        assert_eq!(stepped(&soap, shape, names), stepped(&soap, shape, &[]));
    }
}

/// Of Lion's two averages, one may be the gradient alone, whose weight of 1 is exact or is rounded.
#[test]
fn lion_forgets_one_average_or_the_other() {
    let half = f32::MAX / 2.0;
    for (betas, cautious, wanted) in [
        ([0.0, 0.5], false, (0.5, half)),
        ([1e-9, 0.5], false, (0.5, half)),
        ([0.0, 0.5], true, (0.25, half)),
        ([0.5, 0.0], false, (-0.5, -1.0)),
        ([0.5, 1e-9], false, (-0.5, -1.0)),
        ([0.5, 0.0], true, (0.0, -1.0)),
    ] {
        let rule = Lion { lr: 0.5, betas, weight_decay: 0.0, cautious, ..Default::default() };
        // After a large gradient, in single precision.
        let (mut w, mut m) = ([0.0f32], [f32::MAX]);
        let mut states: [Moments<'_, f32>; MAX_STATES] = Default::default();
        states[0] = Moments::from(&mut m[..]);
        let update = rule.at(2, &mut Scalars::default());
        step(&mut [Tensor::new(update, &[1], &mut w[..], &[-1.0f32][..], states)]);
        assert_eq!((w[0], m[0]), wanted, "{betas:?}, cautious: {cautious}");
    }
}

/// Codes of moments that a step forgets are not read: a block whose scale is NaN decodes to NaN.
#[test]
fn codes_are_not_read() {
    let n = 2 * BLOCK + 3;
    let rule = Adam { lr: 0.1, betas: [0.0; 2], ..Default::default() };
    let grad: Vec<f32> = gradient(1, n).iter().map(|g| *g as f32).collect();
    let results = [0.0, f32::NAN].map(|scale| {
        let mut weights = vec![1.0f32; n];
        let mut codes = [(); 2].map(|()| vec![3u8; n]);
        let mut scales = [(); 2].map(|()| vec![scale; 3]);
        let mut states: [Moments<'_, f32>; MAX_STATES] = Default::default();
        let buffers = codes.iter_mut().zip(&mut scales).enumerate();
        for (state, (i, (codes, scales))) in states.iter_mut().zip(buffers) {
            let (codes, scales) = (SharedMut::new(codes), SharedMut::new(scales));
            *state = Moments::Coded(Codes { codes, scales, divisor: i == 1 });
        }
        let update = rule.at(2, &mut Scalars::default());
        let rounding = StochasticRounding::new(1, 2, 3);
        step(&mut [Tensor::new(update, &[n], &mut weights[..], &grad[..], states)
            .rounded_stochastically(rounding)]);
        (weights, codes, scales)
    });
    assert!(results[1].0.iter().all(|w| w.is_finite()));
    assert_eq!(results[0], results[1]);
}
