//! Softmax and the distillation loss against the formulas, term by term.

use compressrs_core::distill::{KdLoss, Softmax, kd_loss};
use compressrs_core::element::Float;
use proptest::prelude::*;

fn softmax<C: Float>(z: &[C], classes: usize, temperature: f64, out: &mut [C]) {
    let what = Softmax { classes, temperature, log: false };
    compressrs_core::distill::softmax(what, Some(z), out);
    let mut in_place = z.to_vec();
    compressrs_core::distill::softmax(what, None, &mut in_place);
    assert!(in_place.iter().zip(out).all(|(a, b)| a == b || b.is_nan()));
}

fn log_softmax<C: Float>(z: &[C], classes: usize, temperature: f64, out: &mut [C]) {
    let what = Softmax { classes, temperature, log: true };
    compressrs_core::distill::softmax(what, Some(z), out);
}

fn naive_log_softmax(z: &[f64], temperature: f64) -> Vec<f64> {
    let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let x: Vec<f64> = z.iter().map(|z| (z - top) / temperature).collect();
    let log_sum = x.iter().map(|x| x.exp()).sum::<f64>().ln();
    x.iter().map(|x| x - log_sum).collect()
}

fn logits() -> impl Strategy<Value = (Vec<f64>, Vec<f64>, usize, Vec<usize>)> {
    (1usize..6, prop_oneof![1usize..12, 60usize..200, Just(5000)]).prop_flat_map(
        |(rows, classes)| {
            let row = || prop::collection::vec(-30.0..30.0f64, rows * classes);
            (row(), row(), Just(classes), prop::collection::vec(0..classes, rows))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn softmax_follows_its_formula((z, _, classes, _) in logits(), t in 0.1..20.0f64) {
        let (mut p, mut log_p) = (z.clone(), z.clone());
        softmax(&z, classes, t, &mut p);
        log_softmax(&z, classes, t, &mut log_p);
        for (i, z) in z.chunks(classes).enumerate() {
            for (j, truth) in naive_log_softmax(z, t).into_iter().enumerate() {
                prop_assert!((log_p[i * classes + j] - truth).abs() <= 1e-12 * (1.0 + truth.abs()));
                prop_assert!((p[i * classes + j] - truth.exp()).abs() <= 1e-13);
            }
        }
    }

    #[test]
    fn loss_and_gradient_follow_their_formulas(
        (student, teacher, classes, labels) in logits(),
        t in prop_oneof![Just(1.0), 0.5..20.0f64],
        alpha in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64],
    ) {
        let rows = labels.len() as f64;
        let mut grad = vec![f64::NAN; student.len()];
        let input = KdLoss {
            student: &student, teacher: &teacher, labels: Some(&labels), classes, temperature: t, alpha,
        };
        let loss = kd_loss(input, &mut grad);
        let mut truth = 0.0;
        for (i, &label) in labels.iter().enumerate() {
            let row = i * classes..(i + 1) * classes;
            let (s, p) = (&student[row.clone()], naive_log_softmax(&teacher[row.clone()], t));
            let (q, hard) = (naive_log_softmax(s, t), naive_log_softmax(s, 1.0));
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
            truth += (alpha * t * t * kl - (1.0 - alpha) * hard[label]) / rows;
            for j in 0..classes {
                let onehot = if j == label { 1.0 } else { 0.0 };
                let g = alpha * t * (q[j].exp() - p[j].exp()) + (1.0 - alpha) * (hard[j].exp() - onehot);
                prop_assert!((grad[row.start + j] - g / rows).abs() <= 1e-12 * (1.0 + t), "{i} {j}");
            }
        }
        prop_assert!((loss - truth).abs() <= 1e-11 * (1.0 + truth.abs()), "{loss} {truth}");
    }
}

#[test]
fn extreme_logits() {
    let z = [1e30f32, -1e30, 0.0, f32::NEG_INFINITY];
    for t in [1e-3, 1.0, 1e6] {
        let mut p = z;
        softmax(&z, 4, t, &mut p);
        assert_eq!(p, [1.0, 0.0, 0.0, 0.0], "T = {t}");
        let mut log_p = z;
        log_softmax(&z, 4, t, &mut log_p);
        assert!(log_p[0] == 0.0 && log_p[3] == f32::NEG_INFINITY, "T = {t}: {log_p:?}");
    }
    let mut p = [0.0f64; 3];
    softmax(&[7.0; 3], 3, 1e-3, &mut p);
    assert_eq!(p, [1.0 / 3.0; 3]);
    softmax(&[1.0, f64::NAN, 2.0], 3, 1.0, &mut p);
    assert!(p.iter().all(|p| p.is_nan()));
}

#[test]
fn a_class_masked_for_both_costs_nothing() {
    let masked = [1.0f64, f64::NEG_INFINITY, 2.0];
    let plain = [1.0f64, 2.0];
    let loss = |student: &[f64], teacher: &[f64]| {
        let mut grad = vec![0.0; student.len()];
        let classes = student.len();
        let input =
            KdLoss { student, teacher, labels: None, classes, temperature: 2.0, alpha: 1.0 };
        (kd_loss(input, &mut grad), grad)
    };
    let (a, grad) = loss(&masked, &[3.0, f64::NEG_INFINITY, 1.0]);
    assert_eq!(a, loss(&plain, &[3.0, 1.0]).0);
    assert_eq!(grad[1], 0.0);
    assert_eq!(loss(&masked, &masked).0, 0.0);
    // The student excludes what the teacher expects.
    assert_eq!(loss(&masked, &[3.0, 1.0, 1.0]).0, f64::INFINITY);
}
