//! The loss of Hinton and others with each divergence, teacher and option.

use compressrs_core::distill::{
    Divergence, KdLoss, PerRow, Reduction, Teacher, TopK, UNLABELLED, kd_loss,
};
use compressrs_core::numeric::element::Element;

use crate::{assert_close, exact, slopes, values};

pub const DIVERGENCES: [Divergence; 4] = [
    Divergence::ForwardKl,
    Divergence::ReverseKl,
    Divergence::JensenShannon,
    Divergence::Decoupled { alpha: 0.7, beta: 1.3 },
];

pub fn log_softmax(z: &[f64], temperature: f64) -> Vec<f64> {
    let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum = z.iter().map(|z| ((z - top) / temperature).exp()).sum::<f64>().ln();
    z.iter().map(|z| (z - top) / temperature - sum).collect()
}

/// `KL(p || q)` of logarithms.
fn kl(p: &[f64], q: &[f64]) -> f64 {
    let term = |(p, q): (&f64, &f64)| if p.exp() > 0.0 { p.exp() * (p - q) } else { 0.0 };
    p.iter().zip(q).map(term).sum()
}

fn log_sum(x: impl Iterator<Item = f64> + Clone) -> f64 {
    let top = x.clone().fold(f64::NEG_INFINITY, f64::max);
    if top == f64::NEG_INFINITY { top } else { top + x.map(|x| (x - top).exp()).sum::<f64>().ln() }
}

/// The divergence of distributions given as logarithms.
pub fn divergence(what: Divergence, p: &[f64], q: &[f64], label: Option<usize>) -> f64 {
    match what {
        Divergence::ForwardKl => kl(p, q),
        Divergence::ReverseKl => kl(q, p),
        Divergence::JensenShannon => {
            let mean = |(p, q): (&f64, &f64)| log_sum([*p, *q].into_iter()) - 2f64.ln();
            let m: Vec<f64> = p.iter().zip(q).map(mean).collect();
            0.5 * (kl(p, &m) + kl(q, &m))
        }
        Divergence::Decoupled { alpha, beta } => {
            let label = label.unwrap();
            let others = |x: &[f64]| -> (f64, Vec<f64>) {
                let rest: Vec<f64> = (0..x.len()).filter(|&j| j != label).map(|j| x[j]).collect();
                let sum = log_sum(rest.iter().copied());
                (sum, rest.iter().map(|x| x - sum).collect())
            };
            if p.len() == 1 {
                return 0.0;
            }
            let ((not_p, rest_p), (not_q, rest_q)) = (others(p), others(q));
            alpha * kl(&[p[label], not_p], &[q[label], not_q]) + beta * kl(&rest_p, &rest_q)
        }
    }
}

/// What the loss of a row is for a student's row, the teacher's probabilities being known as
/// logarithms.
fn row_loss(what: &KdLoss<'_>, rows: usize, row: usize, student: &[f64], p: &[f64]) -> f64 {
    let weight = |row: usize| what.sample_weights.map_or(1.0, |w| w[row]);
    let class_weight = |class: usize| what.class_weights.map_or(1.0, |w| w[class]);
    let label = |row: usize| what.labels.map(|l| l[row]).filter(|&label| label != UNLABELLED);
    let (mut of_soft, mut of_hard) = (1.0, 1.0);
    if what.reduction == Reduction::Mean {
        of_soft = (0..rows).map(weight).sum();
        of_hard = (0..rows)
            .map(|row| label(row).map_or(0.0, |label| weight(row) * class_weight(label)))
            .sum();
    }
    let t = what.temperature.of(row);
    let student_in_units: Vec<f64> = match what.standardize {
        true => {
            let n = student.len() as f64;
            let mean = student.iter().sum::<f64>() / n;
            let variance = student.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / n;
            student.iter().map(|s| s / (variance.sqrt() + 1e-7)).collect()
        }
        false => student.to_vec(),
    };
    let mut loss = 0.0;
    if what.alpha != 0.0 && of_soft > 0.0 {
        let q = log_softmax(&student_in_units, t);
        let value = divergence(what.divergence, p, &q, label(row));
        loss += what.alpha * weight(row) / of_soft * t * t * value;
    }
    if let Some(label) = label(row)
        && what.alpha != 1.0
        && of_hard > 0.0
    {
        let q = log_softmax(student, 1.0);
        let each = what.label_smoothing / q.len() as f64;
        let target = |j| each + if j == label { 1.0 - what.label_smoothing } else { 0.0 };
        let sum: f64 = (0..q.len()).map(|j| target(j) * class_weight(j) * -q[j]).sum();
        loss += (1.0 - what.alpha) * weight(row) / of_hard * sum;
    }
    loss
}

/// The teacher's probabilities of each row at the temperature, as logarithms.
fn log_probabilities(what: &KdLoss<'_>, teachers: &[Vec<f64>], of: Kind, row: usize) -> Vec<f64> {
    let t = what.temperature.of(row);
    let part = row * what.classes..(row + 1) * what.classes;
    let mut members: Vec<Vec<f64>> = teachers.iter().map(|z| z[part.clone()].to_vec()).collect();
    match of {
        Kind::Logits if what.standardize => {
            let z = &mut members[0];
            let n = z.len() as f64;
            let mean = z.iter().sum::<f64>() / n;
            let deviation = (z.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / n).sqrt();
            z.iter_mut().for_each(|z| *z /= deviation + 1e-7);
            log_softmax(z, t)
        }
        Kind::Logits => log_softmax(&members[0], t),
        Kind::Probabilities => {
            log_softmax(&members[0].iter().map(|p| p.ln()).collect::<Vec<_>>(), t)
        }
        Kind::Ensemble => {
            let all: Vec<Vec<f64>> = members.iter().map(|z| log_softmax(z, t)).collect();
            let share = (all.len() as f64).ln();
            (0..what.classes).map(|j| log_sum(all.iter().map(|p| p[j])) - share).collect()
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Logits,
    Probabilities,
    Ensemble,
}

/// Compares losses and gradient with the formula.
#[track_caller]
pub fn check<T: Element>(
    what: &KdLoss<'_>,
    student: &[f64],
    teachers: &[Vec<f64>],
    of: Kind,
    (of_losses, of_grad): (f64, f64),
) {
    let rows = student.len() / what.classes;
    let (student, wide) = exact::<T>(student);
    let (teachers, wide_teachers): (Vec<Vec<T>>, Vec<Vec<f64>>) =
        teachers.iter().map(|z| exact::<T>(z)).unzip();
    let teacher = match of {
        Kind::Logits => Teacher::Logits(&teachers[0]),
        Kind::Probabilities => Teacher::Probabilities(&teachers[0]),
        Kind::Ensemble => Teacher::Ensemble(teachers.iter().map(Vec::as_slice).collect()),
    };
    let (mut losses, mut grad) = (vec![f64::NAN; rows], vec![T::default(); student.len()]);
    kd_loss(what, &student, &teacher, &mut losses, &mut grad);
    for row in 0..rows {
        let part = row * what.classes..(row + 1) * what.classes;
        let p = log_probabilities(what, &wide_teachers, of, row);
        let formula = |student: &[f64]| row_loss(what, rows, row, student, &p);
        let wanted = formula(&wide[part.clone()]);
        let close = (losses[row] - wanted).abs() <= of_losses * wanted.abs() + 1e-15;
        assert!(close, "{what:?}, {of:?}, row {row}: {} instead of {wanted}", losses[row]);
        let step = 1e-5 * what.temperature.of(row).max(1.0);
        let wanted = slopes(&wide[part.clone()], step, formula);
        assert_close(&grad[part], &wanted, of_grad, &format!("{what:?}, {of:?}, row {row}"));
    }
}

const SHAPES: [(usize, usize); 6] = [(18, 3), (5, 17), (2, 64), (2, 70), (1, 129), (3, 1)];

fn for_each_option(mut f: impl FnMut(KdLoss<'_>, usize)) {
    for (rows, classes) in SHAPES {
        let mut labels: Vec<usize> = (0..rows).map(|i| (i * i + 1) % classes).collect();
        let temperatures: Vec<f64> = (0..rows).map(|i| 0.8 + (i % 4) as f64).collect();
        let class_weights: Vec<f64> = (0..classes).map(|j| 0.25 + (j % 3) as f64).collect();
        let mut sample_weights: Vec<f64> = (0..rows).map(|i| 0.5 + (i % 5) as f64).collect();
        sample_weights[0] = if rows > 1 { 0.0 } else { 2.0 };
        for divergence in DIVERGENCES {
            let decoupled = matches!(divergence, Divergence::Decoupled { .. });
            let plain = KdLoss { divergence, ..KdLoss::soft(classes, 1.7) };
            let labelled = KdLoss { labels: Some(&labels), ..plain };
            f(if decoupled { labelled } else { plain }, rows);
            f(KdLoss { alpha: 0.3, temperature: PerRow::Each(&temperatures), ..labelled }, rows);
            f(
                KdLoss {
                    alpha: 0.3,
                    label_smoothing: 0.2,
                    class_weights: Some(&class_weights),
                    sample_weights: Some(&sample_weights),
                    reduction: Reduction::Sum,
                    ..labelled
                },
                rows,
            );
        }
        if rows > 1 {
            labels[1] = UNLABELLED;
        }
        let weighted = KdLoss {
            labels: Some(&labels),
            alpha: 0.4,
            label_smoothing: 0.2,
            class_weights: Some(&class_weights),
            sample_weights: Some(&sample_weights),
            ..KdLoss::soft(classes, 1.7)
        };
        for alpha in [0.0, 0.4] {
            f(KdLoss { alpha, ..weighted }, rows);
            f(KdLoss { alpha, label_smoothing: 0.0, ..weighted }, rows);
            f(KdLoss { alpha, class_weights: None, ..weighted }, rows);
        }
    }
}

fn student_and_teacher(rows: usize, classes: usize) -> (Vec<f64>, Vec<Vec<f64>>) {
    let scaled = |seed| values(seed, rows * classes).iter().map(|z| 3.0 * z).collect();
    (scaled(1), vec![scaled(2), scaled(3), scaled(4)])
}

#[test]
fn every_divergence_option_and_teacher() {
    for_each_option(|what, rows| {
        let (student, teachers) = student_and_teacher(rows, what.classes);
        check::<f64>(&what, &student, &teachers, Kind::Logits, (1e-12, 1e-7));
        check::<f64>(&what, &student, &teachers, Kind::Ensemble, (1e-12, 1e-7));
        let probabilities = vec![teachers[0].iter().map(|z| z.exp()).collect()];
        check::<f64>(&what, &student, &probabilities, Kind::Probabilities, (1e-12, 1e-7));
    });
}

#[test]
fn in_single_precision() {
    for_each_option(|what, rows| {
        if what.classes == 1 {
            // Gradients of 0, up to rounding.
            return;
        }
        let (student, teachers) = student_and_teacher(rows, what.classes);
        check::<f32>(&what, &student, &teachers, Kind::Logits, (5e-5, 2e-5));
    });
}

#[test]
fn standardized_logits() {
    for (rows, classes) in SHAPES {
        let (student, teachers) = student_and_teacher(rows, classes);
        if classes == 1 {
            // Their deviation is 0.
            continue;
        }
        let labels: Vec<usize> = (0..rows).map(|i| i % classes).collect();
        for divergence in &DIVERGENCES[..3] {
            let soft = KdLoss { standardize: true, ..KdLoss::soft(classes, 1.7) };
            let soft = KdLoss { divergence: *divergence, ..soft };
            check::<f64>(&soft, &student, &teachers, Kind::Logits, (1e-12, 1e-7));
            let both = KdLoss { alpha: 0.3, labels: Some(&labels), ..soft };
            check::<f64>(&both, &student, &teachers, Kind::Logits, (1e-12, 1e-7));
            check::<f32>(&both, &student, &teachers, Kind::Logits, (1e-5, 1e-5));
            // Whose squares overflow.
            let large: Vec<f64> = student.iter().map(|s| s * 1e37).collect();
            let single: Vec<f32> = large.iter().map(|x| *x as f32).collect();
            let teacher: Vec<f32> = teachers[0].iter().map(|x| *x as f32).collect();
            let (mut losses, mut grad) = (vec![0.0; rows], vec![0.0f32; student.len()]);
            let teacher = Teacher::Logits(&teacher[..]);
            kd_loss(&soft, &single, &teacher, &mut losses, &mut grad);
            for row in 0..rows {
                let part = row * classes..(row + 1) * classes;
                let p = log_probabilities(&soft, &teachers, Kind::Logits, row);
                let wanted = row_loss(&soft, rows, row, &large[part], &p);
                assert!((losses[row] / wanted - 1.0).abs() < 1e-4, "{} {wanted}", losses[row]);
            }
        }
    }
}

/// The largest logits of each row, with the rest as one class.
#[test]
fn of_the_largest_logits() {
    for (rows, classes) in [(3, 5), (2, 70), (2, 129)] {
        let (student, teachers) = student_and_teacher(rows, classes);
        let labels: Vec<usize> = (0..rows).map(|i| i % classes).collect();
        let each: Vec<f64> = (0..rows).map(|i| 1.5 + i as f64).collect();
        for k in [1, 4, classes - 1, classes] {
            for (alpha, labels) in [(1.0, None), (0.3, Some(&labels[..])), (0.0, Some(&labels))] {
                let what = KdLoss { alpha, labels, ..KdLoss::soft(classes, 1.0) };
                let what = KdLoss { temperature: PerRow::Each(&each), ..what };
                check_top_k(&what, &student, &teachers[0], k, (1e-11, 1e-7));
            }
        }
    }
}

#[track_caller]
pub fn check_top_k(
    what: &KdLoss<'_>,
    student: &[f64],
    teacher: &[f64],
    k: usize,
    (of_losses, of_grad): (f64, f64),
) {
    let (classes, rows) = (what.classes, student.len() / what.classes);
    let (mut chosen, mut known, mut offsets, mut rest) = (vec![], vec![], vec![0], vec![]);
    for row in 0..rows {
        let z = &teacher[row * classes..(row + 1) * classes];
        // Not the largest, necessarily: any classes may be known.
        let these: Vec<usize> = (0..classes).filter(|j| j % classes.div_ceil(k) == 0).collect();
        let t = what.temperature.of(row);
        let others = (0..classes).filter(|j| !these.contains(j)).map(|j| z[j] / t);
        rest.push(log_sum(others));
        known.extend(these.iter().map(|&j| z[j]));
        chosen.extend(these.iter().map(|&j| j as i32));
        offsets.push(known.len());
    }
    let top = TopK { values: &known, classes: &chosen, offsets: &offsets, rest: &rest };
    let (mut losses, mut grad) = (vec![0.0; rows], vec![0.0; student.len()]);
    kd_loss(what, student, &Teacher::TopK(top), &mut losses, &mut grad);
    for row in 0..rows {
        let part = row * classes..(row + 1) * classes;
        let t = what.temperature.of(row);
        let these = &chosen[offsets[row]..offsets[row + 1]];
        let merged = |logs: &[f64]| -> Vec<f64> {
            let others = (0..classes).filter(|j| !these.contains(&(*j as i32))).map(|j| logs[j]);
            these.iter().map(|&j| logs[j as usize]).chain([log_sum(others)]).collect()
        };
        let p = merged(&log_softmax(&teacher[part.clone()], t));
        let formula = |student: &[f64]| {
            let hard = KdLoss { alpha: 0.0, ..*what };
            let hard = match what.alpha {
                1.0 => 0.0,
                alpha => (1.0 - alpha) * row_loss(&hard, rows, row, student, &p),
            };
            let q = merged(&log_softmax(student, t));
            hard + what.alpha / rows as f64 * t * t * kl(&p, &q)
        };
        let wanted = formula(&student[part.clone()]);
        let close = (losses[row] - wanted).abs() <= of_losses * wanted.abs() + 1e-15;
        assert!(close, "{k} of {classes}, row {row}: {} instead of {wanted}", losses[row]);
        let wanted = slopes(&student[part.clone()], 1e-5, formula);
        assert_close(&grad[part], &wanted, of_grad, &format!("{k} of {classes}, row {row}"));
    }
}

#[test]
fn what_is_no_row_of_largest_logits() {
    let (values, rest, offsets) = ([1.0, 2.0, 3.0], [0.0, 0.0], [0, 2, 3]);
    let valid = |classes: &[i32], offsets: &[usize], rest: &[f64], values: &[f64]| {
        TopK { values, classes, offsets, rest }.is_valid(2, 4)
    };
    assert!(valid(&[0, 3, 1], &offsets, &rest, &values));
    assert!(valid(&[0, 1, 3], &[0, 0, 3], &rest, &values));
    for classes in [[3, 0, 1], [0, 0, 1], [-1, 3, 1], [0, 4, 1], [0, 3, 4]] {
        assert!(!valid(&classes, &offsets, &rest, &values), "{classes:?}");
    }
    for offsets in [&[0, 2][..], &[1, 2, 3], &[0, 2, 2], &[0, 4, 3], &[0, 2, 3, 3]] {
        assert!(!valid(&[0, 3, 1], offsets, &rest, &values), "{offsets:?}");
    }
    assert!(!valid(&[0, 3, 1], &offsets, &rest[..1], &values));
    assert!(!valid(&[0, 3, 1], &offsets, &rest, &values[..2]));
}

#[test]
fn rows_and_classes_that_do_not_count() {
    // A row of weight 0 may hold anything.
    let what = KdLoss { sample_weights: Some(&[0.0, 1.0]), ..KdLoss::soft(2, 1.0) };
    let (mut losses, mut grad) = ([9.0; 2], [9.0; 4]);
    let teacher = Teacher::Logits(&[f64::NAN, 0.0, 1.0, 2.0][..]);
    kd_loss(&what, &[1.0, f64::INFINITY, 3.0, 1.0], &teacher, &mut losses, &mut grad);
    assert!(losses[0] == 0.0 && losses[1] > 0.0 && grad[..2] == [0.0; 2] && grad[2] > 0.0);
    // Where no row counts, the mean of none is 0.
    let what = KdLoss { sample_weights: Some(&[0.0, 0.0]), ..what };
    kd_loss(&what, &[1.0, 2.0, 3.0, 1.0], &teacher, &mut losses, &mut grad);
    assert_eq!((losses, grad), ([0.0; 2], [0.0; 4]));
    let none = [UNLABELLED; 2];
    let what = KdLoss { labels: Some(&none), alpha: 0.0, ..KdLoss::soft(2, 1.0) };
    kd_loss(&what, &[1.0, 2.0, 3.0, 1.0], &teacher, &mut losses, &mut grad);
    assert_eq!((losses, grad), ([0.0; 2], [0.0; 4]));
}

/// Where a teacher gives all to the label, nothing is said of the others.
#[test]
fn a_certain_teacher_decoupled() {
    let inf = f64::INFINITY;
    let divergence = Divergence::Decoupled { alpha: 1.0, beta: 2.0 };
    let what = KdLoss { divergence, labels: Some(&[0]), ..KdLoss::soft(3, 1.0) };
    let run = |what: &KdLoss<'_>, student: [f64; 3], teacher: [f64; 3]| {
        let (mut losses, mut grad) = ([0.0], [0.0; 3]);
        kd_loss(what, &student, &Teacher::Logits(&teacher[..]), &mut losses, &mut grad);
        (losses[0], grad)
    };
    let student = [1.0, 0.5, 0.0];
    let q = log_softmax(&student, 1.0);
    let (loss, grad) = run(&what, student, [0.0, -inf, -inf]);
    assert!((loss + q[0]).abs() < 1e-14);
    assert_close(&grad, &[q[0].exp() - 1.0, q[1].exp(), q[2].exp()], 1e-14, "gradient");
    // A student who gives the others nothing is infinitely far from a teacher who does.
    assert_eq!(run(&what, [0.0, -inf, -inf], [1.0, 0.5, 0.0]).0, inf);
    // But not if they have no weight.
    let without = Divergence::Decoupled { alpha: 1.0, beta: 0.0 };
    let what = KdLoss { divergence: without, ..what };
    let (loss, _) = run(&what, [0.0, -3.0, -inf], [1.0, 0.5, 0.0]);
    assert!(loss > 0.0 && loss < inf);
}

/// So many rows that they are computed in several tasks: each gets what it gets among few.
#[test]
fn many_rows() {
    for (rows, classes) in [(20_000, 3), (600, 70)] {
        let (few, teachers) = student_and_teacher(16, classes);
        let many =
            |x: &[f64]| -> Vec<f64> { x.iter().copied().cycle().take(rows * classes).collect() };
        let (student, teacher) = (many(&few), many(&teachers[0]));
        let what = KdLoss { reduction: Reduction::Sum, ..KdLoss::soft(classes, 1.7) };
        let run = |student: &[f64], teacher: &[f64]| {
            let (mut losses, mut grad) =
                (vec![9.0; student.len() / classes], vec![9.0; student.len()]);
            kd_loss(&what, student, &Teacher::Logits(teacher), &mut losses, &mut grad);
            (losses, grad)
        };
        let (wanted, wanted_grad) = run(&few, &teachers[0]);
        let (losses, grad) = run(&student, &teacher);
        assert!(losses.iter().zip(wanted.iter().cycle()).all(|(a, b)| a == b));
        assert!(grad.iter().zip(wanted_grad.iter().cycle()).all(|(a, b)| a == b));
    }
}

#[test]
#[should_panic(expected = "fits")]
fn labels_of_no_class() {
    let what = KdLoss { labels: Some(&[3]), alpha: 0.5, ..KdLoss::soft(3, 1.0) };
    kd_loss(&what, &[0.0; 3], &Teacher::Logits(&[0.0; 3]), &mut [0.0], &mut [0.0; 3]);
}
