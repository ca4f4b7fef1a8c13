//! Students that are near to their teacher, whose losses are computed in double precision.

use compressrs_core::distill::{Divergence, KdLoss, PerRow, Teacher, kd_loss};
use compressrs_core::numeric::element::Element;

use crate::kd::{DIVERGENCES, Kind, check, check_top_k, divergence, log_softmax};
use crate::values;

/// Logits, and others that differ by about `distance`; some classes that hardly count differ by
/// much more, and one is masked for both.
fn near(rows: usize, classes: usize, distance: f64) -> (Vec<f64>, Vec<f64>) {
    let teacher: Vec<f64> = values(1, rows * classes).iter().map(|z| 2.0 * z).collect();
    let noise = values(2, rows * classes);
    let mut student: Vec<f64> =
        teacher.iter().zip(noise).map(|(z, noise)| z + distance * noise).collect();
    let mut teacher = teacher;
    if classes > 4 {
        for row in 0..rows {
            let at = row * classes + row % classes;
            let unlikely = (distance * distance / 50.0).ln();
            (teacher[at], student[at]) = (unlikely, unlikely + 1.5);
            let next = row * classes + (row + 2) % classes;
            (teacher[next], student[next]) = (unlikely + 1.0, unlikely - 1.0);
        }
    }
    (student, teacher)
}

fn check_near<T: Element>(distances: &[f64], tolerances: (f64, f64)) {
    for (rows, classes) in [(18, 3), (3, 17), (2, 70)] {
        let labels: Vec<usize> = (0..rows).map(|i| (i + 1) % classes).collect();
        for &distance in distances {
            let (student, teacher) = near(rows, classes, distance);
            for divergence in DIVERGENCES {
                for alpha in [1.0, 0.999] {
                    let what = KdLoss { alpha, divergence, ..KdLoss::soft(classes, 1.5) };
                    let what = KdLoss { labels: Some(&labels), ..what };
                    // With the hard term, both are compared in units of their sum.
                    let teacher = [teacher.clone()];
                    check::<T>(&what, &student, &teacher, Kind::Logits, tolerances);
                }
            }
        }
    }
}

#[test]
fn in_single_precision() {
    check_near::<f32>(&[0.1, 0.03, 1e-2, 1e-3], (2e-5, 2e-5));
}

#[test]
fn in_double_precision() {
    check_near::<f64>(&[3e-4, 1e-4], (2e-5, 1e-3));
}

#[test]
fn of_the_largest_logits() {
    for distance in [1e-1, 1e-2] {
        let (student, teacher) = near(2, 70, distance);
        for k in [3, 40, 70] {
            check_top_k(&KdLoss::soft(70, 1.5), &student, &teacher, k, (1e-6, 1e-4));
        }
    }
}

/// Rows that are the same to the last bit have no loss, and no gradient.
#[test]
fn the_same() {
    for (rows, classes) in [(18, 3), (3, 17), (2, 70)] {
        let labels: Vec<usize> = (0..rows).map(|i| (i + 1) % classes).collect();
        let (_, z) = near(rows, classes, 0.1);
        // The last row differs.
        let mut student = z.clone();
        student[rows * classes - 1] += 0.25;
        for divergence in DIVERGENCES {
            let what = KdLoss { divergence, ..KdLoss::soft(classes, 1.5) };
            let what = KdLoss { labels: Some(&labels), ..what };
            let (mut losses, mut grad) = (vec![9.0; rows], vec![9.0; student.len()]);
            kd_loss(&what, &student, &Teacher::Logits(&z), &mut losses, &mut grad);
            let (same, other) = grad.split_at((rows - 1) * classes);
            assert!(losses[..rows - 1].iter().all(|loss| *loss == 0.0), "{divergence:?}");
            assert!(same.iter().all(|g| *g == 0.0), "{divergence:?}");
            assert!(losses[rows - 1] > 0.0 && other.iter().any(|g| *g != 0.0));
        }
    }
}

/// Classes that both exclude, and sums that overflow in single precision.
#[test]
fn masked_and_huge() {
    for classes in [6, 70] {
        for divergence_of in &DIVERGENCES[..3] {
            for distance in [1.0, 1e-2] {
                let (mut student, mut teacher) = near(1, classes, distance);
                (student[4], teacher[4]) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
                let what = KdLoss { divergence: *divergence_of, ..KdLoss::soft(classes, 1.5) };
                let single = |x: &[f64]| -> Vec<f32> { x.iter().map(|x| *x as f32).collect() };
                let (s, t) = (single(&student), single(&teacher));
                let (mut losses, mut grad) = ([0.0], vec![0.0; classes]);
                kd_loss(&what, &s, &Teacher::Logits(&t[..]), &mut losses, &mut grad);
                let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| x.into()).collect() };
                let logs = [&t, &s].map(|x| {
                    let mut x = wide(x);
                    x.remove(4);
                    log_softmax(&x, 1.5)
                });
                let wanted = 1.5 * 1.5 * divergence(*divergence_of, &logs[0], &logs[1], None);
                assert!((losses[0] / wanted - 1.0).abs() < 1e-5, "{} {wanted}", losses[0]);
                assert_eq!(grad[4], 0.0);
                assert!(grad.iter().all(|g| g.is_finite()));
            }
        }
        // Differences of logits that single precision has no number for.
        let (mut student, teacher) = (vec![3e38f32; classes], vec![0.0f32; classes]);
        student[1] = -3e38;
        let what = KdLoss::soft(classes, 1e30);
        let (mut losses, mut grad) = ([0.0], vec![0.0; classes]);
        kd_loss(&what, &student, &Teacher::Logits(&teacher[..]), &mut losses, &mut grad);
        let n = classes as f64;
        let gap = 2.0 * f64::from(3e38f32) / 1e30;
        let wanted = 1e60 * (gap / n - (n / (n - 1.0)).ln());
        assert!((losses[0] / wanted - 1.0).abs() < 1e-6, "{} {wanted}", losses[0]);
        assert!((f64::from(grad[1]) / (-1e30 / n) - 1.0).abs() < 1e-5, "{}", grad[1]);
    }
    // What the teacher excludes costs a student who does not a finite amount in reverse.
    let teacher = [0.0f64, f64::NEG_INFINITY];
    let what = KdLoss { divergence: Divergence::ReverseKl, ..KdLoss::soft(2, 1.0) };
    let (mut losses, mut grad) = ([0.0], [0.0; 2]);
    kd_loss(&what, &[0.0, 0.0], &Teacher::Logits(&teacher[..]), &mut losses, &mut grad);
    assert!(losses[0] > 0.0 && grad.iter().all(|g| g.is_finite()));
}

/// At temperatures at which probabilities differ by less than single precision resolves.
#[test]
fn high_temperatures() {
    for (rows, classes) in [(3, 17), (2, 70)] {
        let (student, mut teachers) = (values(5, rows * classes), vec![]);
        teachers.extend([6, 7].map(|seed| values(seed, rows * classes)));
        for temperature in [65.0, 300.0, 1e4] {
            for divergence in &DIVERGENCES[..3] {
                let what = KdLoss { divergence: *divergence, ..KdLoss::soft(classes, temperature) };
                check::<f32>(&what, &student, &teachers, Kind::Logits, (1e-4, 1e-4));
                check::<f32>(&what, &student, &teachers, Kind::Ensemble, (1e-4, 1e-4));
            }
        }
        // Of a single row.
        let mut each = vec![1.5; rows];
        each[1] = 1e4;
        let what = KdLoss { temperature: PerRow::Each(&each), ..KdLoss::soft(classes, 1.0) };
        check::<f32>(&what, &student, &teachers, Kind::Ensemble, (1e-4, 1e-4));
    }
}
