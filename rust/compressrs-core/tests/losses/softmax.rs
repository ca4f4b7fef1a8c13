//! Softmax, its logarithm and the logarithm of its sum along any axis; the largest logits.

use compressrs_core::distill::{Axis, PerRow, SoftmaxOutput, logsumexp, softmax, top_k};
use compressrs_core::numeric::element::{Element, Float};

use crate::{exact, values};

const AXES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (19, 3, 1),
    (5, 64, 1),
    (3, 65, 1),
    (2, 1100, 1),
    (2, 5, 3),
    (2, 7, 37),
    (1, 70, 16),
    (3, 1, 2),
];

fn naive(z: &[f64], temperature: f64) -> (Vec<f64>, f64) {
    let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum = z.iter().map(|z| ((z - top) / temperature).exp()).sum::<f64>().ln();
    (z.iter().map(|z| (z - top) / temperature - sum).collect(), top / temperature + sum)
}

fn of_every_axis<T: Element>(tolerance: f64) {
    for (outer, classes, inner) in AXES {
        let axis = Axis { outer, classes, inner };
        assert_eq!(axis.rows(), outer * inner);
        let (z, wide) = exact::<T>(&values(1, outer * classes * inner).map_by(30.0));
        let each = values(2, axis.rows()).iter().map(|t| 1.5 + t).collect::<Vec<_>>();
        for temperature in [PerRow::All(2.5), PerRow::Each(&each)] {
            let mut log = vec![T::default(); z.len()];
            softmax(axis, SoftmaxOutput::Log, temperature, Some(&z), &mut log);
            let mut probability = z.clone();
            softmax(axis, SoftmaxOutput::Probability, temperature, None, &mut probability);
            let mut sums = vec![T::default(); axis.rows()];
            logsumexp(axis, temperature, &z, &mut sums);
            for row in 0..axis.rows() {
                let at = |j: usize| (row / inner * classes + j) * inner + row % inner;
                let logits: Vec<f64> = (0..classes).map(|j| wide[at(j)]).collect();
                let (wanted, sum) = naive(&logits, temperature.of(row));
                let close = |got: T, wanted: f64| {
                    let error = (got.load().to_f64() - wanted).abs();
                    assert!(error <= tolerance * (1.0 + wanted.abs()), "{axis:?}: {wanted}");
                };
                close(sums[row], sum);
                for (j, wanted) in wanted.into_iter().enumerate() {
                    close(log[at(j)], wanted);
                    close(probability[at(j)], wanted.exp());
                }
            }
        }
    }
}

trait MapBy {
    fn map_by(self, factor: f64) -> Self;
}

impl MapBy for Vec<f64> {
    fn map_by(mut self, factor: f64) -> Self {
        self.iter_mut().for_each(|x| *x *= factor);
        self
    }
}

#[test]
fn every_axis() {
    of_every_axis::<f64>(1e-12);
    of_every_axis::<f32>(2e-6);
    of_every_axis::<half::f16>(2e-3);
}

#[test]
fn infinities() {
    let inf = f64::INFINITY;
    for classes in [3, 80] {
        let sum = |first: [f64; 3]| {
            let mut z = vec![-inf; classes];
            z[..3].copy_from_slice(&first);
            let mut out = [0.0];
            logsumexp(Axis::last(1, classes), PerRow::All(2.0), &z, &mut out);
            out[0]
        };
        assert_eq!(sum([1.0, inf, 2.0]), inf);
        assert_eq!(sum([-inf; 3]), -inf);
        assert_eq!(sum([4.0, -inf, -inf]), 2.0);
        assert!(sum([1.0, f64::NAN, 2.0]).is_nan());
    }
    let mut out = [0.0; 2];
    logsumexp::<f64>(Axis::last(2, 0), PerRow::All(2.0), &[], &mut out);
    assert_eq!(out, [-inf; 2]);
    softmax::<f64>(Axis::last(0, 3), SoftmaxOutput::Log, PerRow::All(1.0), None, &mut []);
}

#[test]
#[should_panic]
fn too_few_temperatures() {
    let mut z = [0.0; 4];
    softmax(Axis::last(2, 2), SoftmaxOutput::Log, PerRow::Each(&[1.0]), None, &mut z);
}

#[test]
fn the_largest_of_each_row() {
    for classes in [1, 2, 5, 63, 64, 65, 200, 1000] {
        for k in [1, 2, classes / 3, classes - 1, classes] {
            if !(1..=classes).contains(&k) {
                continue;
            }
            let rows = 3;
            // Few different numbers, so that many are equal; some NaN.
            let mut z = values(3, rows * classes).map_by(8.0);
            z.iter_mut().for_each(|z| *z = z.round() / 2.0);
            if classes > 4 {
                z[classes + 3] = f64::NAN;
            }
            let each = [0.5, 2.0, 3.0];
            let (mut chosen, mut rest) = (vec![-1; rows * k], vec![0.0; rows]);
            top_k(&z, classes, PerRow::Each(&each), &mut chosen, &mut rest);
            for row in 0..rows {
                let z = &z[row * classes..(row + 1) * classes];
                let value = |i: usize| if z[i].is_nan() { f64::NEG_INFINITY } else { z[i] };
                let mut order: Vec<usize> = (0..classes).collect();
                order.sort_by(|&a, &b| value(b).total_cmp(&value(a)).then(a.cmp(&b)));
                let mut wanted: Vec<i32> = order[..k].iter().map(|&i| i as i32).collect();
                wanted.sort_unstable();
                assert_eq!(chosen[row * k..(row + 1) * k], wanted, "{k} of {classes}");
                let others = order[k..].iter().map(|&i| z[i]);
                let sum: f64 = others.map(|z| (z / each[row]).exp()).sum();
                let close = rest[row] == sum.ln() || (rest[row] - sum.ln()).abs() < 1e-12;
                assert!(close || sum.is_nan(), "{k} of {classes}: {} {}", rest[row], sum.ln());
            }
        }
    }
    top_k::<f64>(&[], 3, PerRow::All(1.0), &mut [], &mut []);
}
