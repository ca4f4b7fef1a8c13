//! Losses of features: hints, attention, distances, angles, correlations.

use compressrs_core::distill::{Dist, Features, Maps, angle, attention, dist, distance, hint};
use compressrs_core::numeric::element::{Element, Float};

use crate::kd::log_softmax;
use crate::{assert_close, exact, slopes, values};

/// Compares a loss and its gradient with the formula of the student's numbers.
#[track_caller]
fn check<C: Float + Element>(
    student: &[f64],
    (of_loss, of_grad): (f64, f64),
    formula: impl Fn(&[f64]) -> f64,
    loss: impl Fn(&[C], &mut [C]) -> f64,
) {
    let (narrow, wide) = exact::<C>(student);
    let mut grad = vec![C::from_f64(9.0); student.len()];
    let (got, wanted) = (loss(&narrow, &mut grad), formula(&wide));
    assert!((got - wanted).abs() <= of_loss * wanted.abs(), "{got} instead of {wanted}");
    assert_close(&grad, &slopes(&wide, 1e-5, formula), of_grad, "gradient");
}

#[test]
fn hints() {
    let (s, t) = (values(1, 3 * 25), values(2, 3 * 25));
    let formula = |s: &[f64]| s.iter().zip(&t).map(|(s, t)| (s - t).powi(2)).sum::<f64>() / 6.0;
    check::<f64>(&s, (1e-13, 1e-7), formula, |s, grad| hint(3, s, &t, grad));
    // Squares that single precision has no number for.
    let mut grad = [0.0f32; 2];
    let loss = hint(1, &[3e30f32, 0.0], &[0.0, 4e30], &mut grad);
    assert!((loss / 12.5e60 - 1.0).abs() < 1e-6 && grad == [3e30, -4e30]);
    let loss = hint(1, &[4e30f32, 1e30], &[1e30, 5e30], &mut grad);
    assert!((loss / 12.5e60 - 1.0).abs() < 1e-6, "{loss}");
    // More than a task has.
    let (s, t) = (values(1, 100_000), values(2, 100_000));
    let mut grad = vec![0.0; s.len()];
    let wanted = s.iter().zip(&t).map(|(s, t)| (s - t).powi(2)).sum::<f64>() / 2.0 / 1000.0;
    assert!((hint(1000, &s, &t, &mut grad) / wanted - 1.0).abs() < 1e-12);
    assert!((0..s.len()).all(|i| (grad[i] - (s[i] - t[i]) / 1000.0).abs() < 1e-15));
    // Of no features.
    assert_eq!(hint::<f64>(2, &[], &[], &mut []), 0.0);
}

/// The maps' squares, summed over the channels and of length 1.
fn attention_map(maps: &[f64], places: usize) -> Vec<f64> {
    let mut sum = vec![0.0; places];
    maps.iter().enumerate().for_each(|(i, x)| sum[i % places] += x * x);
    let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
    sum.iter().map(|x| x / length).collect()
}

#[test]
fn attention_maps() {
    for (samples, places, channels, others) in [(2, 5, 3, 4), (3, 33, 2, 2), (1, 1, 1, 1)] {
        let s = values(1, samples * places * channels);
        let t = values(2, samples * places * others);
        let formula = |s: &[f64]| {
            let of = |(s, t): (&[f64], &[f64])| -> f64 {
                let (a, b) = (attention_map(s, places), attention_map(t, places));
                a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum()
            };
            let pairs = s.chunks(places * channels).zip(t.chunks(places * others));
            pairs.map(of).sum::<f64>() / (samples * places) as f64
        };
        fn maps(data: &[f64], channels: usize) -> Maps<'_, f64> {
            Maps { data, channels }
        }
        let teacher = maps(&t, others);
        check::<f64>(&s, (1e-12, 1e-7), formula, |s, grad| {
            attention(samples, places, Maps { data: s, channels }, teacher, grad)
        });
        if places == 1 {
            continue;
        }
        // The loss does not depend on the size of the features, and the gradient is its inverse.
        let mut plain = vec![0.0; s.len()];
        let wanted = attention(samples, places, maps(&s, channels), teacher, &mut plain);
        for size in [1e100, 1e150] {
            let large: Vec<f64> = s.iter().map(|s| s * size).collect();
            let mut grad = vec![0.0; s.len()];
            let loss = attention(samples, places, maps(&large, channels), teacher, &mut grad);
            assert!((loss / wanted - 1.0).abs() < 1e-10, "{loss} instead of {wanted} at {size}");
            let grad: Vec<f64> = grad.iter().map(|g| g * size).collect();
            assert_close(&grad, &plain, 1e-9, "large features");
            let others: Vec<f64> = t.iter().map(|t| t * size).collect();
            let of_large = Maps { data: &others[..], ..teacher };
            let mut grad = vec![0.0; s.len()];
            let loss = attention(samples, places, maps(&s, channels), of_large, &mut grad);
            assert!((loss / wanted - 1.0).abs() < 1e-10, "{loss} instead of {wanted}");
            assert_close(&grad, &plain, 1e-9, "a teacher with large features");
        }
    }
    // Below the least length, maps are not made longer.
    let (s, t) = ([1e-8, 2e-8], [1.0, 1.0]);
    let formula = |s: &[f64]| {
        let (a, b) = ([s[0] * s[0] / 1e-12, s[1] * s[1] / 1e-12], 0.5f64.sqrt());
        ((a[0] - b).powi(2) + (a[1] - b).powi(2)) / 2.0
    };
    let mut grad = [0.0; 2];
    let maps = |data| Maps { data, channels: 1 };
    let loss = attention(1, 2, maps(&s[..]), maps(&t[..]), &mut grad);
    assert!((loss / formula(&s) - 1.0).abs() < 1e-12);
    assert_close(&grad, &slopes(&s, 1e-10, formula), 1e-4, "short maps");
}

fn huber(x: f64) -> f64 {
    if x.abs() < 1.0 { 0.5 * x * x } else { x.abs() - 0.5 }
}

fn distances(x: &[f64], width: usize) -> (Vec<f64>, f64) {
    let rows: Vec<&[f64]> = x.chunks(width).collect();
    let between =
        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let all: Vec<f64> = rows.iter().flat_map(|a| rows.iter().map(|b| between(a, b))).collect();
    let count = all.iter().filter(|d| **d > 0.0).count().max(1) as f64;
    let mean = all.iter().sum::<f64>() / count;
    (all, if mean > 0.0 { mean } else { 1.0 })
}

/// Features, one row of which is far from the others, so that both parts of Huber's loss count.
fn features(seed: u64, rows: usize, width: usize) -> Vec<f64> {
    let mut x = values(seed, rows * width);
    x[..width].iter_mut().for_each(|x| *x *= 9.0);
    x
}

#[test]
fn relations_of_distances() {
    for (rows, width, other) in [(5, 3, 4), (9, 20, 2), (2, 1, 1)] {
        let (s, t) = (features(1, rows, width), values(2, rows * other));
        let of_t = distances(&t, other);
        let formula = |s: &[f64]| {
            let of_s = distances(s, width);
            let terms = of_s.0.iter().zip(&of_t.0);
            let sum: f64 = terms.map(|(s, t)| huber(s / of_s.1 - t / of_t.1)).sum();
            sum / (rows * rows) as f64
        };
        let teacher = Features { data: &t, width: other };
        check::<f64>(&s, (1e-12, 1e-7), formula, |s, grad| {
            distance(rows, Features { data: s, width }, teacher, grad)
        });
        if rows > 2 {
            of_any_size(&s, &t, |s, t, grad| {
                let (s, t) = (Features { data: s, width }, Features { data: t, width: other });
                distance(rows, s, t, grad)
            });
        }
    }
    // Rows that are the same, and nothing but those.
    let (s, t) = ([1.0, 1.0, 3.0], [0.0, 2.0, 3.0]);
    let mut grad = [9.0f64; 3];
    let of = |data| Features { data, width: 1 };
    distance(3, of(&s[..]), of(&t[..]), &mut grad);
    assert!(grad.iter().all(|g| g.is_finite()));
    let loss = distance(3, of(&[1.0; 3][..]), of(&t[..]), &mut grad);
    assert!(loss > 0.0 && grad == [0.0; 3]);
}

/// A loss does not depend on the size of either side's features.
fn of_any_size(s: &[f64], t: &[f64], loss: impl Fn(&[f64], &[f64], &mut [f64]) -> f64) {
    let mut plain = vec![0.0; s.len()];
    let wanted = loss(s, t, &mut plain);
    for size in [1e110, 1e200, 1e-110, 1e-200] {
        let scaled = |x: &[f64]| -> Vec<f64> { x.iter().map(|x| x * size).collect() };
        let mut grad = vec![0.0; s.len()];
        let got = loss(&scaled(s), t, &mut grad);
        assert!((got / wanted - 1.0).abs() < 1e-9, "{got} instead of {wanted} at {size}");
        assert_close(&scaled(&grad), &plain, 1e-9, "features of another size");
        let got = loss(s, &scaled(t), &mut grad);
        assert!((got / wanted - 1.0).abs() < 1e-9, "{got} instead of {wanted} at {size}");
        assert_close(&grad, &plain, 1e-9, "a teacher of another size");
    }
}

/// Cosines of all angles at each sample.
fn cosines(x: &[f64], width: usize) -> Vec<f64> {
    let rows: Vec<&[f64]> = x.chunks(width).collect();
    let direction = |from: &[f64], to: &[f64]| -> Vec<f64> {
        let difference: Vec<f64> = to.iter().zip(from).map(|(a, b)| a - b).collect();
        let length = difference.iter().map(|x| x * x).sum::<f64>().sqrt();
        difference.iter().map(|x| if length > 0.0 { x / length } else { 0.0 }).collect()
    };
    let mut all = Vec::new();
    for from in &rows {
        let e: Vec<Vec<f64>> = rows.iter().map(|to| direction(from, to)).collect();
        for a in &e {
            all.extend(e.iter().map(|b| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>()));
        }
    }
    all
}

#[test]
fn relations_of_angles() {
    for (rows, width, other) in [(5, 3, 4), (11, 20, 2), (2, 1, 1)] {
        let (s, t) = (features(1, rows, width), values(2, rows * other));
        let of_t = cosines(&t, other);
        let formula = |s: &[f64]| {
            let of_s = cosines(s, width);
            of_s.iter().zip(&of_t).map(|(s, t)| huber(s - t)).sum::<f64>() / of_t.len() as f64
        };
        let teacher = Features { data: &t, width: other };
        let go_on = || false;
        if rows > 2 {
            check::<f64>(&s, (1e-12, 1e-7), formula, |s, grad| {
                angle(rows, Features { data: s, width }, teacher, grad, &go_on).unwrap()
            });
            of_any_size(&s, &t, |s, t, grad| {
                let (s, t) = (Features { data: s, width }, Features { data: t, width: other });
                angle(rows, s, t, grad, &go_on).unwrap()
            });
        }
        let mut grad = vec![9.0; s.len()];
        for size in [1.0, 1e200] {
            let s: Vec<f64> = s.iter().map(|s| s * size).collect();
            let student = Features { data: &s[..], width };
            assert_eq!(angle(rows, student, teacher, &mut grad, &|| true), None);
            assert!(grad.iter().all(|g| *g == 9.0));
        }
    }
    // Rows that are the same have no direction.
    let (s, t) = ([1.0, 1.0, 3.0, 0.5], [0.0, 2.0, 3.0, 1.0]);
    let mut grad = [9.0f64; 4];
    let of = |data| Features { data, width: 1 };
    assert!(angle(4, of(&s[..]), of(&t[..]), &mut grad, &|| false).is_some());
    assert!(grad.iter().all(|g| g.is_finite()));
}

/// Pearson's correlation.
fn correlation(x: &[f64], y: &[f64]) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let (of_x, of_y) = (mean(x), mean(y));
    let moment = |f: &dyn Fn(usize) -> f64| (0..x.len()).map(f).sum::<f64>();
    let (xx, yy) = (moment(&|i| (x[i] - of_x).powi(2)), moment(&|i| (y[i] - of_y).powi(2)));
    moment(&|i| (x[i] - of_x) * (y[i] - of_y)) / (xx.sqrt() * yy.sqrt() + 1e-8)
}

#[test]
fn correlations() {
    for (rows, classes, temperature) in [(4, 5, 2.0), (70, 3, 1.5), (3, 70, 2.0), (1, 4, 2.0)] {
        let scaled =
            |seed| -> Vec<f64> { values(seed, rows * classes).iter().map(|z| 2.0 * z).collect() };
        let (s, t) = (scaled(1), scaled(2));
        let (beta, gamma) = (0.7, 1.3);
        let probabilities = |z: &[f64]| -> Vec<Vec<f64>> {
            let row = |z: &[f64]| log_softmax(z, temperature).iter().map(|x| x.exp()).collect();
            z.chunks(classes).map(row).collect()
        };
        let p = probabilities(&t);
        let formula = |s: &[f64]| {
            let q = probabilities(s);
            let column = |x: &[Vec<f64>], j: usize| x.iter().map(|x| x[j]).collect::<Vec<f64>>();
            let of_rows = (0..rows).map(|i| correlation(&q[i], &p[i])).sum::<f64>();
            let of_columns =
                (0..classes).map(|j| correlation(&column(&q, j), &column(&p, j))).sum::<f64>();
            temperature
                * temperature
                * (beta * (1.0 - of_rows / rows as f64)
                    + gamma * (1.0 - of_columns / classes as f64))
        };
        let what = Dist { classes, temperature, beta, gamma };
        check::<f64>(&s, (1e-12, 1e-6), formula, |s, grad| dist(what, s, &t, grad));
        let single: Vec<f32> = t.iter().map(|t| *t as f32).collect();
        check::<f32>(&s, (1e-4, 1e-3), formula, |s, grad| dist(what, s, &single, grad));
    }
    // High temperatures, at which little is left of deviations in single precision.
    let (s, t) = (exact::<f32>(&values(3, 20)), exact::<f32>(&values(4, 20)));
    let what = Dist { classes: 5, temperature: 3000.0, beta: 0.7, gamma: 1.3 };
    let (mut grad, mut wide) = (vec![0.0f32; 20], vec![0.0f64; 20]);
    let loss = dist(what, &s.0, &t.0, &mut grad);
    let wanted = dist(what, &s.1, &t.1, &mut wide);
    assert!((loss / wanted - 1.0).abs() < 1e-12);
    assert_close(&grad, &wide, 1e-6, "a high temperature");
}
