//! Rules that take norms and means of whole tensors.

use compressrs_core::optim::{
    Adafactor, Lamb, MAX_STATES, Moments, Prodigy, Rule, Scalars, StateKind, StateShape, Tensor,
    estimate, step,
};

use crate::{Run, first_weights, gradient, values};

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn mean_of_squares(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64
}

#[test]
fn lamb() {
    let rule = Lamb {
        lr: 0.1,
        betas: [0.7, 0.6],
        eps: 0.01,
        eps_root: 0.02,
        weight_decay: 0.2,
        ..Default::default()
    };
    for run in Run::of(&[45]).variants() {
        let kept = run.kept;
        let mut moments = vec![(0.0, 0.0); run.len()];
        run.compare(&rule, |t, weights, grad| {
            let corrections = (1.0 - 0.7f64.powi(t as i32), 1.0 - 0.6f64.powi(t as i32));
            let mut direction = vec![0.0; weights.len()];
            for (i, (m, v)) in moments.iter_mut().enumerate() {
                weights[i] = if kept(i) { weights[i] } else { 0.0 };
                *m = 0.7 * *m + 0.3 * grad[i];
                *v = 0.6 * *v + 0.4 * grad[i] * grad[i];
                let root = (*v / corrections.1 + 0.02).sqrt() + 0.01;
                direction[i] = *m / corrections.0 / root + 0.2 * weights[i];
            }
            let ratio = norm(weights) / norm(&direction);
            weights.iter_mut().zip(direction).for_each(|(w, u)| *w -= 0.1 * ratio * u);
        });
    }
}

/// Directions that are far below the range of squares.
#[test]
fn the_ratio_of_lamb_for_tiny_directions() {
    let rule = Lamb { lr: 0.1, eps: 1e200, ..Default::default() };
    let got = stepped(&rule, &[3.0, 4.0], &[2.0, -3.0]);
    let rate = 0.1 * 5.0 / 13f64.sqrt();
    for (got, wanted) in got.iter().zip([3.0 - 2.0 * rate, 4.0 + 3.0 * rate]) {
        assert!((got - wanted).abs() < 1e-12, "{got} instead of {wanted}");
    }
}

/// More elements than one task sums up.
#[test]
fn a_large_matrix_of_adafactor() {
    let rule = Adafactor { lr: 0.4, eps: (Some(0.3), 1e-3), ..Default::default() };
    let mut memory = FactoredMemory::new(2 * 300 * 260, Some((300, 260)));
    Run::of(&[2, 300, 260]).compare(&rule, |t, weights, grad| {
        let mut u = memory.direction(t, grad, -0.8, 0.3);
        scaled(&mut u, weights, t, 0.4, (1e-3, 1.0));
        weights.iter_mut().zip(u).for_each(|(w, u)| *w -= u);
    });
}

/// One step of a rule on its own weights and gradient.
fn stepped(rule: &dyn Rule, weights: &[f64], grad: &[f64]) -> Vec<f64> {
    let mut weights = weights.to_vec();
    let mut buffers: [Vec<f64>; MAX_STATES] = std::array::from_fn(|_| vec![0.0; weights.len()]);
    let states = buffers.each_mut().map(|x| Moments::from(x.as_mut_slice()));
    let update = rule.at(1, &mut Scalars::default());
    step(&mut [Tensor::new(update, &[weights.len()], &mut weights[..], grad, states)]);
    weights
}

#[test]
fn the_ratio_of_lamb_where_a_norm_is_0_or_beyond_the_range() {
    let rule = Lamb { lr: 0.1, eps: 0.0, ..Default::default() };
    // 1 where a norm is 0.
    assert_eq!(stepped(&rule, &[0.0, 0.0], &[2.0, -3.0]), [-0.1, 0.1]);
    assert_eq!(stepped(&rule, &[3.0, 4.0], &[0.0, 0.0]), [3.0, 4.0]);
    // The direction is one of signs; squares of the weights overflow, or lose their digits.
    for size in [1e200, 1e-200] {
        let got = stepped(&rule, &[3.0 * size, 4.0 * size], &[2.0, -3.0]);
        let ratio = 5.0 / 2f64.sqrt();
        for (got, wanted) in got.iter().zip([3.0 - 0.1 * ratio, 4.0 + 0.1 * ratio]) {
            assert!((got / size - wanted).abs() < 1e-12, "{got} instead of {wanted} times {size}");
        }
    }
}

/// The clipped step of Adafactor, from its second moment.
fn scaled(u: &mut [f64], weights: &[f64], t: u64, lr: f64, (eps2, d): (f64, f64)) {
    let alpha = f64::max(eps2, mean_of_squares(weights).sqrt()) * lr.min(1.0 / (t as f64).sqrt());
    let clip = f64::max(1.0, mean_of_squares(u).sqrt() / d);
    u.iter_mut().for_each(|u| *u *= alpha / clip);
}

#[test]
fn adafactor() {
    let rule = Adafactor {
        lr: 0.4,
        beta2_decay: -0.6,
        eps: (Some(0.3), 1e-3),
        d: 1.05,
        weight_decay: 0.2,
        ..Default::default()
    };
    // A rate below and above 1 / sqrt(t), and a scale of weights below and above its least.
    for (lr, eps2) in [(0.4, 1e-3), (0.3, 2.0), (2.0, 1e-3)] {
        for beta1 in [None, Some(0.7)] {
            for shape in [&[24][..], &[4, 6], &[2, 3, 4]] {
                for run in Run::of(shape).variants() {
                    let kept = run.kept;
                    let rule = Adafactor { lr, beta1, eps: (Some(0.3), eps2), ..rule };
                    let matrix =
                        (shape.len() > 1).then(|| (shape[shape.len() - 2], shape[shape.len() - 1]));
                    let mut memory = FactoredMemory::new(24, matrix);
                    run.compare(&rule, |t, weights, grad| {
                        let mut u = memory.direction(t, grad, -0.6, 0.3);
                        if t > 1 {
                            // Masked weights become 0 in the first step.
                            let of = |i| if kept(i) { weights[i] } else { 0.0 };
                            let now: Vec<f64> = (0..24).map(of).collect();
                            weights.copy_from_slice(&now);
                        }
                        scaled(&mut u, weights, t, lr, (eps2, 1.05));
                        for i in 0..24 {
                            if let Some(beta1) = beta1 {
                                let m = &mut memory.average[i];
                                *m = beta1 * *m + (1.0 - beta1) * u[i];
                                u[i] = *m;
                            }
                            weights[i] = (1.0 - lr * 0.2) * weights[i] - u[i];
                        }
                    });
                }
            }
        }
    }
}

/// The second moment of Adafactor, whole or as rows and columns, and its first one.
struct FactoredMemory {
    matrix: Option<(usize, usize)>,
    rows: Vec<f64>,
    columns: Vec<f64>,
    average: Vec<f64>,
}

impl FactoredMemory {
    fn new(len: usize, matrix: Option<(usize, usize)>) -> Self {
        let zeros = || vec![0.0; len];
        FactoredMemory { matrix, rows: zeros(), columns: zeros(), average: zeros() }
    }

    fn direction(&mut self, t: u64, g: &[f64], decay: f64, eps1: f64) -> Vec<f64> {
        let blend = (t as f64).powf(decay);
        let towards = |mean: &mut f64, new: f64| *mean += blend * (new - *mean);
        let Some((m, n)) = self.matrix else {
            g.iter().zip(&mut self.rows).for_each(|(g, v)| towards(v, g * g));
            let of = |(g, v): (&f64, &f64)| g / v.max(eps1 * eps1).sqrt();
            return g.iter().zip(&self.rows).map(of).collect();
        };
        let mut u = vec![0.0; g.len()];
        for (matrix, g) in g.chunks(m * n).enumerate() {
            let rows = &mut self.rows[matrix * m..][..m];
            let columns = &mut self.columns[matrix * n..][..n];
            for i in 0..m {
                towards(&mut rows[i], (0..n).map(|j| g[i * n + j].powi(2)).sum::<f64>() / n as f64);
            }
            for j in 0..n {
                let sum = (0..m).map(|i| g[i * n + j].powi(2)).sum::<f64>();
                towards(&mut columns[j], sum / m as f64);
            }
            let mean = f64::max(rows.iter().sum::<f64>() / m as f64, eps1);
            for i in 0..m * n {
                let v = rows[i / n] * columns[i % n] / mean;
                u[matrix * m * n + i] = g[i] / v.max(eps1 * eps1).sqrt();
            }
        }
        u
    }
}

#[test]
fn adafactor_beyond_the_range_of_squares() {
    // The first step is that of the signs times the root mean square of the weights, which do not
    // depend on the size of the gradient; clipping does nothing.
    let rule = Adafactor { lr: 0.1, d: 10.0, eps: (Some(0.0), 0.0), ..Default::default() };
    for size in [1.0, 1e120, 1e-120] {
        let grad = [3.0 * size, -size, 3.0 * size, -size];
        let got = stepped(&rule, &[3.0, -4.0, 3.0, -4.0], &grad);
        let rate = 0.1 * 12.5f64.sqrt();
        for (got, wanted) in got.iter().zip([3.0 - rate, rate - 4.0, 3.0 - rate, rate - 4.0]) {
            assert!((got - wanted).abs() < 1e-12, "{got} instead of {wanted} at {size}");
        }
    }
    for size in [1e200, 1e-200] {
        let got = stepped(&rule, &[3.0 * size, -4.0 * size], &[1.0, -1.0]);
        let rate = 0.1 * 12.5f64.sqrt();
        for (got, wanted) in got.iter().zip([3.0 - rate, rate - 4.0]) {
            assert!((got / size - wanted).abs() < 1e-12, "{got} instead of {wanted} of {size}");
        }
    }
    // No gradient at all: nothing moves.
    assert_eq!(stepped(&rule, &[3.0, 4.0], &[0.0, 0.0]), [3.0, 4.0]);
}

#[test]
fn matrices_of_adafactor_beyond_the_range_of_products() {
    let rule = Adafactor { lr: 0.1, d: 10.0, eps: (Some(0.0), 1.0), ..Default::default() };
    for size in [1.0, 1e100, 1e-100] {
        // The means' product is beyond the range where they are not.
        let mut weights = vec![0.0; 6];
        let mut buffers: [Vec<f64>; MAX_STATES] = std::array::from_fn(|_| vec![0.0; 6]);
        let states = buffers.each_mut().map(|x| Moments::from(x.as_mut_slice()));
        // Factors of rows and of columns, whose second moment is of rank one.
        let grad: Vec<f64> =
            (0..6).map(|i| -size * [1.0, 4.0][i / 3] * [1.0, 2.0, 3.0][i % 3]).collect();
        let update = rule.at(1, &mut Scalars::default());
        step(&mut [Tensor::new(update, &[2, 3], &mut weights[..], &grad[..], states)]);
        assert!(weights.iter().all(|w| (w - 0.1).abs() < 1e-12), "{weights:?} at {size}");
    }
    let mut weights = vec![1.0; 6];
    let mut buffers: [Vec<f64>; MAX_STATES] = std::array::from_fn(|_| vec![0.0; 6]);
    let states = buffers.each_mut().map(|x| Moments::from(x.as_mut_slice()));
    let update = rule.at(1, &mut Scalars::default());
    step(&mut [Tensor::new(update, &[2, 3], &mut weights[..], &[0.0; 6][..], states)]);
    assert_eq!(weights, [1.0; 6]);
}

#[test]
fn states_of_adafactor() {
    let names = |beta1, axes| -> Vec<_> {
        let rule = Adafactor { beta1, ..Default::default() };
        rule.states(axes).iter().map(|s| (s.name, s.shape, s.kind)).collect()
    };
    let exact = |name, shape| (name, shape, StateKind::Exact);
    assert_eq!(names(None, 1), [exact("variance", StateShape::Parameter)]);
    let factors = [exact("row_var", StateShape::Rows), exact("col_var", StateShape::Columns)];
    assert_eq!(names(None, 2), factors);
    assert_eq!(names(None, 3), factors);
    let average = ("exp_avg", StateShape::Parameter, StateKind::Moment);
    assert_eq!(names(Some(0.5), 2)[2], average);
    assert_eq!(
        Lamb::default().states(1).iter().map(|s| s.name).collect::<Vec<_>>(),
        ["exp_avg", "exp_avg_sq"]
    );
}

#[test]
fn prodigy() {
    let rule = Prodigy {
        lr: 0.7,
        betas: [0.7, 0.6],
        eps: 0.01,
        weight_decay: 0.2,
        d0: 0.01,
        d_coef: 1.5,
        ..Default::default()
    };
    for (decoupled, correct, safeguard) in
        [(true, false, false), (false, true, false), (true, true, true), (false, false, true)]
    {
        for growth_rate in [1.2, f64::INFINITY] {
            let plain = Run { drift: 0.8, ..Run::of(&[45]) };
            // Of one direction mostly, so that the estimate grows.
            for run in plain.variants() {
                let rule = Prodigy {
                    decoupled_weight_decay: decoupled,
                    use_bias_correction: correct,
                    safeguard_warmup: safeguard,
                    growth_rate,
                    ..rule
                };
                compare_prodigy(rule, run);
            }
        }
    }
}

fn compare_prodigy(rule: Prodigy, run: Run<'_>) {
    let (n, kept) = (run.len(), run.kept);
    let start: Vec<f64> = first_weights(n);
    let (mut s, mut m, mut v) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
    let (mut d, mut largest, mut r) = (rule.d0, rule.d0, 0.0);
    run.compare(&rule, |t, weights, grad| {
        let mut rate = d * rule.lr;
        if rule.use_bias_correction {
            rate *= (1.0 - 0.6f64.powi(t as i32)).sqrt() / (1.0 - 0.7f64.powi(t as i32));
        }
        let penalty = if rule.decoupled_weight_decay { 0.0 } else { rule.weight_decay };
        let gain = d / rule.d0 * if rule.safeguard_warmup { d } else { rate };
        let beta3 = 0.6f64.sqrt();
        let (mut product, mut size) = (0.0, 0.0);
        for i in 0..n {
            if !kept(i) {
                // Masked weights have neither a gradient nor, after the first step, a value.
                weights[i] = if t == 1 { weights[i] } else { 0.0 };
            }
            let g = grad[i] + penalty * weights[i];
            product += g * (start[i] - weights[i]);
            s[i] = beta3 * s[i] + gain * g;
            size += s[i].abs();
            m[i] = 0.7 * m[i] + 0.3 * d * g;
            v[i] = 0.6 * v[i] + 0.4 * (d * g).powi(2);
        }
        r = beta3 * r + d / rule.d0 * rate * product;
        let found = rule.d_coef * r / size;
        let first = if d == rule.d0 { d.max(found) } else { d };
        largest = f64::max(largest, found);
        d = f64::min(largest, first * rule.growth_rate);
        let shrink = if rule.decoupled_weight_decay { 1.0 - rate * rule.weight_decay } else { 1.0 };
        for i in 0..n {
            weights[i] = shrink * weights[i] - rate * m[i] / (v[i].sqrt() + d * rule.eps);
        }
    });
    assert!(d > rule.d0);
}

/// The estimate is one for all tensors, of either type; it stays until there is a gradient.
#[test]
fn the_estimate_of_prodigy_is_of_all_tensors() {
    let rule = Prodigy { d0: 0.01, betas: [0.7, 0.6], ..Default::default() };
    let both = values(3, 12);
    // Exactly representable in single precision.
    let both: Vec<f64> = both.iter().map(|x| f64::from(*x as f32)).collect();
    let mut whole = Trainee::new(&both);
    let (mut singles, mut doubles) = (Trainee::new(&both[..5]), Trainee::new(&both[5..]));
    let (mut known, mut known_of_parts) = (Scalars::default(), Scalars::default());
    for t in 1..=6 {
        let grad: Vec<f64> = match t {
            // No gradient yet.
            1 => vec![0.0; 12],
            _ => gradient(t, 12).iter().map(|x| f64::from((x + 0.8) as f32)).collect(),
        };
        let before = whole.weights.clone();
        let found = {
            let mut tensors = [whole.tensor(&rule, t, known, &grad)];
            let found = estimate(&mut [], &mut tensors);
            step(&mut tensors);
            found.unwrap()
        };
        if t == 1 {
            assert_eq!(found, [0.01, 0.01, 0.0]);
            assert_eq!(whole.weights, both);
        }
        if t == 3 {
            // The last step was the first to move, so that nothing is left of earlier products.
            let way = before.iter().zip(&both).map(|(now, start)| start - now);
            let product: f64 = way.zip(&grad).map(|(way, g)| way * g).sum();
            let wanted = known[0] / 0.01 * known[0] * product;
            assert!((found[2] / wanted - 1.0).abs() < 1e-12, "{} instead of {wanted}", found[2]);
        }
        known = found;
        let single_grad: Vec<f32> = grad[..5].iter().map(|&x| x as f32).collect();
        let found = {
            let mut weights: Vec<f32> = singles.weights.iter().map(|&x| x as f32).collect();
            let mut buffers =
                singles.buffers.each_ref().map(|x| x.iter().map(|&x| x as f32).collect::<Vec<_>>());
            let found = {
                let states = buffers.each_mut().map(|x| Moments::from(x.as_mut_slice()));
                let update = rule.at(t, &mut known_of_parts.clone());
                let mut a = [Tensor::new(update, &[5], &mut weights[..], &single_grad[..], states)];
                let mut b = [doubles.tensor(&rule, t, known_of_parts, &grad[5..])];
                let found = estimate(&mut a, &mut b);
                step(&mut a);
                step(&mut b);
                found.unwrap()
            };
            singles.weights = weights.iter().map(|&x| x.into()).collect();
            singles.buffers = buffers.map(|x| x.iter().map(|&x| x.into()).collect());
            found
        };
        for (a, b) in found.iter().zip(known) {
            assert!((a - b).abs() <= 1e-5 * b.abs(), "step {t}: {a} instead of {b}");
        }
        known_of_parts = found;
        let parts = singles.weights.iter().chain(&doubles.weights);
        for (a, b) in parts.zip(&whole.weights) {
            assert!((a - b).abs() <= 1e-5, "step {t}: {a} instead of {b}");
        }
    }
    assert!(known[0] > 0.01 && known[1] >= known[0]);
    assert_eq!(estimate(&mut [], &mut []), None);
    assert_eq!(rule.scalars(), ["d", "d_max", "d_numerator"]);
    let kinds: Vec<_> = rule.states(1).iter().map(|s| (s.name, s.kind)).collect();
    assert_eq!(
        kinds,
        [
            ("exp_avg", StateKind::Moment),
            ("exp_avg_sq", StateKind::Divisor),
            ("s", StateKind::Exact),
            ("p0", StateKind::Exact)
        ]
    );
}

/// Weights with four states.
struct Trainee {
    weights: Vec<f64>,
    buffers: [Vec<f64>; MAX_STATES],
}

impl Trainee {
    fn new(weights: &[f64]) -> Self {
        let buffers = std::array::from_fn(|_| vec![0.0; weights.len()]);
        Trainee { weights: weights.to_vec(), buffers }
    }

    fn tensor<'a>(
        &'a mut self,
        rule: &dyn Rule,
        t: u64,
        mut known: Scalars,
        grad: &'a [f64],
    ) -> Tensor<'a, f64> {
        let states = self.buffers.each_mut().map(|x| Moments::from(x.as_mut_slice()));
        let update = rule.at(t, &mut known);
        Tensor::new(update, &[grad.len()], &mut self.weights[..], grad, states)
    }
}

/// Without a learning rate nothing is learned of the distance, nor moved.
#[test]
fn prodigy_at_a_learning_rate_of_0() {
    let rule = Prodigy { lr: 0.0, d0: 0.01, ..Default::default() };
    let mut trainee = Trainee::new(&[1.0, 2.0]);
    let mut tensors = [trainee.tensor(&rule, 1, Scalars::default(), &[3.0, 4.0])];
    assert_eq!(estimate(&mut [], &mut tensors), Some([0.01, 0.01, 0.0]));
    step(&mut tensors);
    assert_eq!(trainee.weights, [1.0, 2.0]);
}
