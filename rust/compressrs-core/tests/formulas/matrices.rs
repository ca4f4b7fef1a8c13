//! Rules that take products of whole matrices.

use compressrs_core::optim::{
    AdjustLr, Grafting, MAX_STATES, Moments, Muon, Rule, Scalars, Shampoo, Soap, StateKind,
    StateShape, Tensor, step,
};

use crate::Run;

/// A matrix, row after row.
#[derive(Clone, Debug)]
struct Matrix {
    rows: usize,
    columns: usize,
    x: Vec<f64>,
}

impl Matrix {
    fn new(rows: usize, columns: usize, f: impl Fn(usize, usize) -> f64) -> Self {
        let x = (0..rows * columns).map(|i| f(i / columns, i % columns)).collect();
        Matrix { rows, columns, x }
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        self.x[i * self.columns + j]
    }

    fn transposed(&self) -> Self {
        Matrix::new(self.columns, self.rows, |i, j| self.at(j, i))
    }

    fn times(&self, other: &Matrix) -> Self {
        assert_eq!(self.columns, other.rows);
        let sum = |i, j| (0..self.columns).map(|k| self.at(i, k) * other.at(k, j)).sum();
        Matrix::new(self.rows, other.columns, sum)
    }

    fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Matrix::new(self.rows, self.columns, |i, j| f(self.at(i, j)))
    }

    fn plus(&self, factor: f64, other: &Matrix) -> Self {
        Matrix::new(self.rows, self.columns, |i, j| self.at(i, j) + factor * other.at(i, j))
    }

    fn norm(&self) -> f64 {
        self.x.iter().map(|x| x * x).sum::<f64>().sqrt()
    }

    fn columns_in_order(&self, order: &[usize]) -> Self {
        Matrix::new(self.rows, self.columns, |i, j| self.at(i, order[j]))
    }
}

fn identity(n: usize) -> Matrix {
    Matrix::new(n, n, |i, j| f64::from(u8::from(i == j)))
}

/// Eigenvalues, largest first, and eigenvectors in columns, by Jacobi's rotations.
fn eigen(a: &Matrix) -> (Vec<f64>, Matrix) {
    let n = a.rows;
    let (mut a, mut vectors) = (a.clone(), identity(n));
    for _ in 0..10 {
        for p in 0..n {
            for q in p + 1..n {
                let angle = 0.5 * (2.0 * a.at(p, q)).atan2(a.at(q, q) - a.at(p, p));
                let (sin, cos) = angle.sin_cos();
                let mut rotation = identity(n);
                rotation.x[p * n + p] = cos;
                rotation.x[q * n + q] = cos;
                rotation.x[p * n + q] = sin;
                rotation.x[q * n + p] = -sin;
                a = rotation.transposed().times(&a).times(&rotation);
                vectors = vectors.times(&rotation);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a.at(j, j).total_cmp(&a.at(i, i)));
    (order.iter().map(|&i| a.at(i, i)).collect(), vectors.columns_in_order(&order))
}

/// The orthogonal factor, by Gram and Schmidt.
fn orthogonal_factor(a: &Matrix) -> Matrix {
    let mut columns: Vec<Vec<f64>> = Vec::new();
    for j in 0..a.columns {
        let mut column: Vec<f64> = (0..a.rows).map(|i| a.at(i, j)).collect();
        // Twice, for the sake of rounding.
        for before in columns.iter().chain(&columns) {
            let product: f64 = before.iter().zip(&column).map(|(a, b)| a * b).sum();
            column.iter_mut().zip(before).for_each(|(x, b)| *x -= product * b);
        }
        let norm = column.iter().map(|x| x * x).sum::<f64>().sqrt();
        column.iter_mut().for_each(|x| *x /= norm);
        columns.push(column);
    }
    Matrix::new(a.rows, a.columns, |i, j| columns[j][i])
}

/// The ranges of an axis in blocks as equal as can be.
fn ranges(len: usize, most: usize) -> Vec<std::ops::Range<usize>> {
    let size = len.div_ceil(len.div_ceil(most));
    (0..len).step_by(size).map(|start| start..len.min(start + size)).collect()
}

/// The blocks of a matrix of this shape, with a function that takes them from it.
fn blocks(shape: (usize, usize), size: usize) -> Vec<[std::ops::Range<usize>; 2]> {
    let columns = ranges(shape.1, size);
    let with = |rows: std::ops::Range<usize>| {
        columns.clone().into_iter().map(move |columns| [rows.clone(), columns])
    };
    ranges(shape.0, size).into_iter().flat_map(with).collect()
}

impl Matrix {
    fn block(&self, [rows, columns]: &[std::ops::Range<usize>; 2]) -> Self {
        let (top, left) = (rows.start, columns.start);
        Matrix::new(rows.len(), columns.len(), |i, j| self.at(top + i, left + j))
    }

    fn put(&mut self, [rows, columns]: &[std::ops::Range<usize>; 2], block: &Matrix) {
        for (i, row) in rows.clone().enumerate() {
            for (j, column) in columns.clone().enumerate() {
                self.x[row * self.columns + column] = block.at(i, j);
            }
        }
    }
}

#[test]
fn muon() {
    let rule = Muon {
        lr: 0.1,
        weight_decay: 0.2,
        momentum: 0.7,
        ns_coefficients: [3.0, -4.0, 2.0],
        ns_steps: 3.0,
        ..Default::default()
    };
    for shape in [[3, 7], [7, 3], [4, 4]] {
        for adjust_lr_fn in
            [AdjustLr::Original, AdjustLr::MatchRmsAdamW, AdjustLr::SpectralUnclamped]
        {
            // An epsilon below and above the norm.
            for (nesterov, eps) in [(true, 1e-7), (false, 1e-7), (true, 100.0)] {
                for run in Run::of(&shape).variants() {
                    compare_muon(&Muon { nesterov, adjust_lr_fn, eps, ..rule }, run);
                }
            }
        }
    }
}

fn compare_muon(rule: &Muon, run: Run<'_>) {
    let (m, n) = (run.shape[0], run.shape[1]);
    let mut buf = vec![0.0; m * n];
    run.compare(rule, |_, weights, grad| {
        buf.iter_mut().zip(grad).for_each(|(b, g)| *b = 0.7 * *b + 0.3 * g);
        let u = Matrix::new(m, n, |i, j| {
            let (b, g) = (buf[i * n + j], grad[i * n + j]);
            if rule.nesterov { 0.7 * b + 0.3 * g } else { b }
        });
        let mut x = if m > n { u.transposed() } else { u };
        let norm = x.norm().max(rule.eps);
        x = x.map(|x| x / norm);
        for _ in 0..3 {
            let a = x.times(&x.transposed());
            let factor = a.map(|a| -4.0 * a).plus(2.0, &a.times(&a));
            x = x.map(|x| 3.0 * x).plus(1.0, &factor.times(&x));
        }
        let x = if m > n { x.transposed() } else { x };
        let (a, b) = (m as f64, n as f64);
        let adjustment = match rule.adjust_lr_fn {
            AdjustLr::Original => (a / b).max(1.0).sqrt(),
            AdjustLr::MatchRmsAdamW => 0.2 * a.max(b).sqrt(),
            AdjustLr::SpectralUnclamped => (a / b).sqrt(),
        };
        for (w, x) in weights.iter_mut().zip(&x.x) {
            *w = (1.0 - 0.1 * 0.2) * *w - 0.1 * adjustment * x;
        }
    });
}

#[test]
fn what_muon_takes() {
    assert!(Muon::default().accepts(2).is_ok());
    for axes in [0, 1, 3] {
        assert!(Muon::default().accepts(axes).unwrap_err().contains("two axes"));
    }
    assert!(Shampoo::default().accepts(1).is_ok());
    let states = Muon::default().states(2);
    assert_eq!((states[0].name, states[0].kind), ("momentum_buffer", StateKind::Moment));
}

/// The state of a block: second moments of rows and of columns, and what they are replaced by.
#[derive(Clone)]
struct Sides {
    moments: [Matrix; 2],
    roots: [Matrix; 2],
}

impl Sides {
    fn new(block: &[std::ops::Range<usize>; 2]) -> Self {
        let zeros = block.each_ref().map(|range| Matrix::new(range.len(), range.len(), |_, _| 0.0));
        Sides { moments: zeros.clone(), roots: zeros }
    }

    fn accumulate(&mut self, keep: f64, add: f64, x: &Matrix) {
        let squares = [x.times(&x.transposed()), x.transposed().times(x)];
        for (moment, square) in self.moments.iter_mut().zip(squares) {
            *moment = moment.map(|x| keep * x).plus(add, &square);
        }
    }
}

#[test]
fn shampoo() {
    let rule = Shampoo {
        lr: 0.1,
        betas: [0.7, 0.6],
        eps: 0.01,
        weight_decay: 0.2,
        matrix_eps: 0.03,
        precondition_frequency: 3.0,
        ..Default::default()
    };
    for grafting in [Grafting::Adam, Grafting::Sgd, Grafting::Nothing] {
        for (beta2, block_size) in [(0.6, 512.0), (1.0, 512.0), (0.6, 3.0)] {
            for shape in [&[4, 5][..], &[3, 2, 4], &[6]] {
                for run in Run::of(shape).variants() {
                    let rule = Shampoo { grafting, betas: [0.7, beta2], block_size, ..rule };
                    compare_shampoo(&rule, run);
                }
            }
        }
    }
}

fn compare_shampoo(rule: &Shampoo, run: Run<'_>) {
    let n = run.len();
    let shape = (run.shape.len() > 1).then(|| (run.shape[0], n / run.shape[0]));
    let blocks = shape.map_or(vec![], |shape| blocks(shape, rule.block_size as usize));
    let mut sides: Vec<Sides> = blocks.iter().map(Sides::new).collect();
    let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
    let [_, beta2] = rule.betas;
    run.compare(rule, |t, weights, grad| {
        let (weight, correction) =
            if beta2 == 1.0 { (1.0, 1.0) } else { (0.4, 1.0 / (1.0 - 0.6f64.powi(t as i32))) };
        v.iter_mut().zip(grad).for_each(|(v, g)| *v = beta2 * *v + weight * g * g);
        let diagonal = |i: usize| grad[i] / ((v[i] * correction).sqrt() + 0.01);
        let mut u: Vec<f64> = (0..n).map(diagonal).collect();
        if let Some((rows, columns)) = shape {
            let adam = Matrix { rows, columns, x: u.clone() };
            let whole = Matrix { rows, columns, x: grad.to_vec() };
            let mut direction = whole.clone();
            for (block, sides) in blocks.iter().zip(&mut sides) {
                let x = whole.block(block);
                sides.accumulate(beta2, weight, &x);
                if (t - 1) % 3 == 0 {
                    for (moment, root) in sides.moments.iter().zip(&mut sides.roots) {
                        let (values, vectors) = eigen(&moment.map(|x| correction * x));
                        let least = f64::EPSILON * values[0].max(0.0);
                        let scaled = Matrix::new(values.len(), values.len(), |i, j| {
                            vectors.at(i, j) * (values[j].max(least) + 0.03).powf(-0.25)
                        });
                        *root = scaled.times(&vectors.transposed());
                    }
                }
                let y = sides.roots[0].times(&x).times(&sides.roots[1]);
                let scale = match rule.grafting {
                    Grafting::Adam => adam.block(block).norm() / y.norm(),
                    Grafting::Sgd => x.norm() / y.norm(),
                    Grafting::Nothing => 1.0,
                };
                direction.put(block, &y.map(|y| scale * y));
            }
            u = direction.x;
        }
        for i in 0..n {
            m[i] = 0.7 * m[i] + 0.3 * u[i];
            let step = 0.1 / (1.0 - 0.7f64.powi(t as i32)) * m[i];
            weights[i] = (1.0 - 0.1 * 0.2) * weights[i] - step;
        }
    });
}

#[test]
fn soap() {
    let rule = Soap {
        lr: 0.1,
        betas: [0.7, 0.6],
        shampoo_beta: Some(0.8),
        eps: 0.01,
        weight_decay: 0.2,
        precondition_frequency: 2.0,
        ..Default::default()
    };
    for (shampoo_beta, block_size) in [(Some(0.8), 512.0), (None, 512.0), (Some(0.8), 3.0)] {
        // The second moments lack one rank at most, so that their eigenvectors are unique.
        for shape in [&[4, 5][..], &[3, 2, 2], &[6]] {
            let run = Run::of(shape);
            compare_soap(&Soap { shampoo_beta, block_size, ..rule }, run);
            compare_soap(&Soap { shampoo_beta, block_size, ..rule }, Run { scale: 0.25, ..run });
        }
    }
}

fn compare_soap(rule: &Soap, run: Run<'_>) {
    let n = run.len();
    let (rows, columns) =
        if run.shape.len() > 1 { (run.shape[0], n / run.shape[0]) } else { (1, n) };
    let blocks = if run.shape.len() > 1 {
        blocks((rows, columns), rule.block_size as usize)
    } else {
        // Both bases are 1.
        (0..n).map(|i| [0..1, i..i + 1]).collect()
    };
    let mut sides: Vec<Sides> = blocks.iter().map(Sides::new).collect();
    let zeros = Matrix::new(rows, columns, |_, _| 0.0);
    let (mut m, mut v) = (zeros.clone(), zeros.clone());
    let keep = rule.shampoo_beta.unwrap_or(0.6);
    run.compare(rule, |t, weights, grad| {
        let g = Matrix { rows, columns, x: grad.to_vec() };
        let s = t as i32 - 1;
        if s > 0 {
            m = m.map(|m| 0.7 * m).plus(0.3, &g);
        }
        let mut direction = zeros.clone();
        for (block, sides) in blocks.iter().zip(&mut sides) {
            let x = g.block(block);
            if s > 0 {
                let [left, right] = &sides.roots;
                let into = |x: &Matrix| left.transposed().times(x).times(right);
                let rotated = into(&x).map(|x| x * x);
                let variance = v.block(block).map(|v| 0.6 * v).plus(0.4, &rotated);
                v.put(block, &variance);
                let mut u = into(&m.block(block));
                u.x.iter_mut().zip(&variance.x).for_each(|(u, v)| *u /= v.sqrt() + 0.01);
                direction.put(block, &left.times(&u).times(&right.transposed()));
            }
            sides.accumulate(keep, 1.0 - keep, &x);
            for side in 0..2 {
                let moment = &sides.moments[side];
                if s == 0 {
                    sides.roots[side] = eigen(moment).1;
                } else if s % 2 == 0 {
                    let basis = &sides.roots[side];
                    let product = moment.times(basis);
                    let value = |j: usize| -> f64 {
                        (0..moment.rows).map(|i| basis.at(i, j) * product.at(i, j)).sum()
                    };
                    let mut order: Vec<usize> = (0..moment.rows).collect();
                    order.sort_by(|&i, &j| value(j).total_cmp(&value(i)));
                    let old = v.block(block);
                    v.put(
                        block,
                        &match side {
                            0 => old.transposed().columns_in_order(&order).transposed(),
                            _ => old.columns_in_order(&order),
                        },
                    );
                    sides.roots[side] = orthogonal_factor(&product.columns_in_order(&order));
                }
            }
        }
        if s == 0 {
            return;
        }
        let rate = 0.1 * (1.0 - 0.6f64.powi(s)).sqrt() / (1.0 - 0.7f64.powi(s));
        for (w, u) in weights.iter_mut().zip(&direction.x) {
            *w = (1.0 - 0.1 * 0.2) * (*w - rate * u);
        }
    });
}

#[test]
fn states_of_shampoo_and_soap() {
    let names = |rule: &dyn Rule, axes| -> Vec<_> {
        rule.states(axes).iter().map(|s| (s.name, s.shape, s.kind)).collect()
    };
    use StateKind::{Divisor, Exact, Moment};
    let [rows, columns] =
        [StateShape::OfRows { block_size: 3 }, StateShape::OfColumns { block_size: 3 }];
    let shampoo = Shampoo { block_size: 3.0, ..Default::default() };
    let diagonal = [
        ("exp_avg", StateShape::Parameter, Moment),
        ("exp_avg_sq", StateShape::Parameter, Divisor),
    ];
    assert_eq!(names(&shampoo, 1), diagonal);
    let whole = names(&shampoo, 2);
    assert_eq!(whole[..2], diagonal);
    assert_eq!(
        whole[2..],
        [
            ("left", rows, Exact),
            ("right", columns, Exact),
            ("left_root", rows, Exact),
            ("right_root", columns, Exact)
        ]
    );
    let soap = Soap { block_size: 3.0, ..Default::default() };
    assert_eq!(names(&soap, 1), diagonal);
    let whole = names(&soap, 3);
    assert_eq!(whole[0], diagonal[0]);
    assert_eq!(whole[1], ("exp_avg_sq", StateShape::Rotated, Exact));
    assert_eq!(whole[4], ("left_basis", rows, Exact));
    assert_eq!(whole[5], ("right_basis", columns, Exact));
}

/// Steps of a rule in single precision, with gradients of a size; the weights and the states.
fn in_single_precision(
    rule: &dyn Rule,
    size: f64,
    steps: u64,
) -> (Vec<f32>, [Vec<f32>; MAX_STATES]) {
    let shape = [4, 5];
    let mut weights: Vec<f32> = crate::first_weights(20).iter().map(|x| *x as f32).collect();
    let mut buffers: [Vec<f32>; MAX_STATES] = Default::default();
    for (buffer, state) in buffers.iter_mut().zip(rule.states(2)) {
        *buffer = vec![0.0; crate::len(state.shape, &shape)];
    }
    for t in 1..=steps {
        let grad: Vec<f32> =
            crate::gradient(t, 20).iter().map(|g| (size * f64::from(*g as f32)) as f32).collect();
        let states = buffers.each_mut().map(|x| Moments::from(x.as_mut_slice()));
        let update = rule.at(t, &mut Scalars::default());
        step(&mut [Tensor::new(update, &shape, &mut weights[..], &grad[..], states)]);
    }
    (weights, buffers)
}

/// Without an epsilon, steps do not depend on the size of the gradients, even of those whose
/// squares are beyond the range of their type, as long as their averages are not.
#[test]
fn gradients_of_any_size() {
    let shampoo = Shampoo { lr: 0.1, eps: 0.0, matrix_eps: 0.0, ..Default::default() };
    let soap = Soap {
        lr: 0.1,
        betas: [0.9, 0.999],
        eps: 0.0,
        precondition_frequency: 2.0,
        ..Default::default()
    };
    let rules: [Box<dyn Rule>; 3] = [
        Box::new(shampoo),
        Box::new(Shampoo { grafting: Grafting::Nothing, ..shampoo }),
        Box::new(soap),
    ];
    for rule in rules {
        let (plain, _) = in_single_precision(&*rule, 1.0, 4);
        for exponent in [-20, 40, 62, 63, 64] {
            let (got, _) = in_single_precision(&*rule, 2f64.powi(exponent), 4);
            for (got, wanted) in got.iter().zip(&plain) {
                let close = (got - wanted).abs() < 2e-3;
                assert!(close, "{got} instead of {wanted} at 2^{exponent}: {got:?} {plain:?}");
            }
        }
    }
}

/// Where second moments overflow, nothing moves, and bases are the parameter's own.
#[test]
fn second_moments_beyond_the_range() {
    for rule in [
        &Shampoo::default() as &dyn Rule,
        &Shampoo { grafting: Grafting::Sgd, ..Default::default() },
        &Soap { weight_decay: 0.0, ..Default::default() },
    ] {
        let before = in_single_precision(rule, 1.0, 0).0;
        let (weights, states) = in_single_precision(rule, 1e30, 2);
        assert_eq!(weights, before);
        if rule.states(2).len() == 6 && rule.states(2)[4].name == "left_basis" {
            let identity = |n: usize| (0..n * n).map(move |i| f32::from(u8::from(i / n == i % n)));
            assert!(states[4].iter().copied().eq(identity(4)));
            assert!(states[5].iter().copied().eq(identity(5)));
        }
    }
}

/// Norms of gradients whose squares are below the range.
#[test]
fn tiny_gradients() {
    let stepped = |rule: &dyn Rule, size: f64| {
        let shape = [2, 3];
        let mut weights = vec![0.0; 6];
        let mut buffers: [Vec<f64>; MAX_STATES] = Default::default();
        for (buffer, state) in buffers.iter_mut().zip(rule.states(2)) {
            *buffer = vec![0.0; crate::len(state.shape, &shape)];
        }
        let grad: Vec<f64> = crate::gradient(1, 6).iter().map(|g| size * g).collect();
        let states = buffers.each_mut().map(|x| Moments::from(x.as_mut_slice()));
        let update = rule.at(1, &mut Scalars::default());
        step(&mut [Tensor::new(update, &shape, &mut weights[..], &grad[..], states)]);
        weights
    };
    let close = |got: &[f64], wanted: &[f64]| {
        assert!(got.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-9), "{got:?} {wanted:?}");
    };
    // An epsilon below the norm, and above it.
    for eps in [1e-40, 100.0] {
        let muon = Muon { lr: 0.1, eps, ..Default::default() };
        for size in [1e-200, 1e200] {
            let scaled = Muon { eps: eps * size, ..muon };
            close(&stepped(&scaled, size), &stepped(&muon, 1.0));
        }
    }
    // The direction is that of the gradient, as the second moments are 0.
    let size = 1e-170;
    let wanted: Vec<f64> = crate::gradient(1, 6).iter().map(|g| -g).collect();
    // The second divides the gradient by so little that only the norm grafted is out of range.
    for matrix_eps in [1e-12, 1e-300] {
        let shampoo = Shampoo { grafting: Grafting::Sgd, matrix_eps, ..Default::default() };
        close(&stepped(&Shampoo { lr: 1.0 / size, ..shampoo }, size), &wanted);
    }
}
