//! Softmax and the distillation loss against the formulas, term by term.

use compressrs_core::distill::{
    Axis, KdLoss, PerRow, SoftmaxOutput, Teacher, TopK, kd_loss, top_k,
};
use compressrs_core::numeric::element::{Element, Float, f16};
use proptest::prelude::*;

fn softmax<C: Float>(z: &[C], classes: usize, temperature: f64, out: &mut [C]) {
    apply(SoftmaxOutput::Probability, z, classes, temperature, out);
}

fn log_softmax<C: Float>(z: &[C], classes: usize, temperature: f64, out: &mut [C]) {
    apply(SoftmaxOutput::Log, z, classes, temperature, out);
}

fn apply<T: Element>(
    form: SoftmaxOutput,
    z: &[T],
    classes: usize,
    temperature: f64,
    out: &mut [T],
) {
    let (axis, t) = (Axis::last(z.len() / classes, classes), PerRow::All(temperature));
    compressrs_core::distill::softmax(axis, form, t, Some(z), out);
    let mut in_place = z.to_vec();
    compressrs_core::distill::softmax(axis, form, t, None, &mut in_place);
    assert!(in_place.iter().zip(out).all(|(a, b)| *a == *b || b.load().to_f64().is_nan()));
}

/// The loss and its gradient.
fn loss<T: Element>(what: KdLoss<'_>, student: &[T], teacher: &[T]) -> (f64, Vec<T>) {
    let mut losses = vec![0.0; student.len() / what.classes];
    let mut grad = vec![T::default(); student.len()];
    kd_loss(&what, student, &Teacher::Logits(teacher), &mut losses, &mut grad);
    (losses.iter().sum(), grad)
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
        let what = KdLoss { labels: Some(&labels), alpha, ..KdLoss::soft(classes, t) };
        let (loss, grad) = loss(what, &student, &teacher);
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
    let loss =
        |student: &[f64], teacher: &[f64]| loss(KdLoss::soft(student.len(), 2.0), student, teacher);
    let (a, grad) = loss(&masked, &[3.0, f64::NEG_INFINITY, 1.0]);
    assert_eq!(a, loss(&plain, &[3.0, 1.0]).0);
    assert_eq!(grad[1], 0.0);
    assert_eq!(loss(&masked, &masked).0, 0.0);
    // The student excludes what the teacher expects.
    assert_eq!(loss(&masked, &[3.0, 1.0, 1.0]).0, f64::INFINITY);
}

#[test]
fn half_precision_is_that_of_what_it_stores() {
    for classes in [3, 10, 70, 5000] {
        let z: Vec<f16> = (0..2 * classes).map(|i| f16::from_f32((i as f32).sin() * 4.0)).collect();
        let wide: Vec<f32> = z.iter().map(|x| x.to_f32()).collect();
        let (mut p, mut q) = (z.clone(), wide.clone());
        apply(SoftmaxOutput::Log, &z, classes, 2.0, &mut p);
        apply(SoftmaxOutput::Log, &wide, classes, 2.0, &mut q);
        assert!(p.iter().zip(&q).all(|(p, &q)| *p == f16::store(q)));
        let what = KdLoss::soft(classes, 2.0);
        let (transposed, wide_turned): (Vec<f16>, Vec<f32>) =
            (z.iter().rev().copied().collect(), wide.iter().rev().copied().collect());
        let (a, grad) = loss(what, &z, &transposed);
        let (b, wide_grad) = loss(what, &wide, &wide_turned);
        assert_eq!(a, b);
        assert!(grad.iter().zip(&wide_grad).all(|(g, &w)| *g == f16::store(w)));
    }
}

#[test]
fn all_axes_have_the_same_numbers() {
    let (outer, classes, inner) = (3, 70, 21);
    let z: Vec<f32> = (0..outer * classes * inner).map(|i| ((i * i) as f32).sin()).collect();
    let mut out = vec![0.0; z.len()];
    let axis = Axis { outer, classes, inner };
    compressrs_core::distill::softmax(
        axis,
        SoftmaxOutput::Log,
        PerRow::All(0.5),
        Some(&z),
        &mut out,
    );
    for o in 0..outer {
        for i in 0..inner {
            let at = |j: usize| (o * classes + j) * inner + i;
            let row: Vec<f64> = (0..classes).map(|j| f64::from(z[at(j)])).collect();
            for (j, truth) in naive_log_softmax(&row, 0.5).into_iter().enumerate() {
                assert!((f64::from(out[at(j)]) - truth).abs() < 1e-5);
            }
        }
    }
}

#[test]
fn the_largest_are_chosen_and_the_first_of_equals() {
    let z: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 / 10.0).collect();
    let (mut chosen, mut rest) = ([0; 15], [0.0]);
    top_k(&z, z.len(), PerRow::All(2.0), &mut chosen, &mut rest);
    let mut order: Vec<usize> = (0..z.len()).collect();
    order.sort_by(|&a, &b| z[b].total_cmp(&z[a]).then(a.cmp(&b)));
    let mut truth: Vec<i32> = order[..15].iter().map(|&i| i as i32).collect();
    truth.sort_unstable();
    assert_eq!(chosen[..], truth);
    let others: f64 = order[15..].iter().map(|&i| (f64::from(z[i]) / 2.0).exp()).sum();
    assert!((rest[0] - others.ln()).abs() < 1e-6);
}

#[test]
fn a_sparse_teacher_who_knows_all_is_a_dense_one() {
    let classes = 90;
    let (s, t): (Vec<f64>, Vec<f64>) =
        (0..classes).map(|i| (f64::from(i).sin() * 5.0, f64::from(i).cos() * 3.0)).unzip();
    let what = KdLoss::soft(90, 3.0);
    let (dense, dense_grad) = loss(what, &s, &t);
    let known: Vec<i32> = (0..classes).collect();
    let top = TopK { values: &t, classes: &known, offsets: &[0, 90], rest: &[f64::NEG_INFINITY] };
    let (mut losses, mut grad) = ([0.0], vec![0.0; 90]);
    kd_loss(&what, &s, &Teacher::TopK(top), &mut losses, &mut grad);
    assert!((losses[0] - dense).abs() < 1e-12);
    assert!(grad.iter().zip(&dense_grad).all(|(a, b)| (a - b).abs() < 1e-13));
}
