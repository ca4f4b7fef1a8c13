//! The loss of Hinton, Vinyals & Dean (arXiv 1503.02531), fused with its gradient.

use super::{CHUNK, GRAIN};
use crate::element::Float;
use crate::lanes::{self, Lanes, max_of};
use crate::parallel::{self, SharedMut};
use crate::simd::{self, Kernel};

/// Inputs of [`kd_loss`]: rows of `classes` logits.
#[derive(Clone, Copy)]
pub struct KdLoss<'a, C> {
    /// The student's logits.
    pub student: &'a [C],
    /// The teacher's logits.
    pub teacher: &'a [C],
    /// The class of each row, if the hard term counts.
    pub labels: Option<&'a [usize]>,
    /// Length of a row.
    pub classes: usize,
    /// Temperature of both softmaxes in the soft term.
    pub temperature: f64,
    /// Weight of the soft term; `1 - alpha` is that of the hard term.
    pub alpha: f64,
}

/// The mean over the rows of
///
/// ```text
/// alpha T^2 KL(p || q) + (1 - alpha) (-log softmax(student)[label])
/// p = softmax(teacher / T),  q = softmax(student / T)
/// ```
///
/// and its gradient with respect to the student's logits,
///
/// ```text
/// (alpha T (q - p) + (1 - alpha) (softmax(student) - onehot(label))) / rows
/// ```
///
/// A class to which the teacher gives probability 0 adds nothing to KL,
/// whatever the student says.
///
/// # Panics
/// If lengths disagree, there are no rows, a label is not below `classes`, or
/// labels are missing though `alpha` is not 1.
pub fn kd_loss<C: Float>(input: KdLoss<'_, C>, grad: &mut [C]) -> f64 {
    let KdLoss { student, teacher, labels, classes, alpha, .. } = input;
    assert!(!student.is_empty() && student.len() % classes == 0);
    assert!(student.len() == teacher.len() && student.len() == grad.len());
    let rows = student.len() / classes;
    assert!(labels.is_none_or(|l| l.len() == rows && l.iter().all(|&l| l < classes)));
    assert!(labels.is_some() || alpha == 1.0);

    let mut losses = vec![0.0; rows];
    let (shared_losses, shared_grad) = (SharedMut::new(&mut losses), SharedMut::new(grad));
    // A row costs three exponentials an element where a step costs one root.
    parallel::for_each(0..rows, GRAIN.div_ceil(classes), 1, |rows| {
        let part = rows.start * classes..rows.end * classes;
        // SAFETY: both are borrowed for the whole call and parts do not overlap.
        let (losses, grad) =
            unsafe { (shared_losses.slice(rows.clone()), shared_grad.slice(part.clone())) };
        simd::dispatch(Rows {
            input: KdLoss {
                student: &student[part.clone()],
                teacher: &teacher[part],
                labels: labels.map(|l| &l[rows]),
                ..input
            },
            share: 1.0 / (student.len() / classes) as f64,
            losses,
            grad,
            scratch: &mut vec![C::zero(); 2 * classes],
        });
    });
    losses.iter().sum::<f64>() / rows as f64
}

struct Rows<'a, C> {
    input: KdLoss<'a, C>,
    /// What a row counts in the mean.
    share: f64,
    losses: &'a mut [f64],
    grad: &'a mut [C],
    scratch: &'a mut [C],
}

impl<C: Float> Kernel for Rows<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let KdLoss { student, teacher, labels, classes, temperature, alpha } = self.input;
        let (teacher_exp, plain_exp) = self.scratch.split_at_mut(classes);
        let rows = student
            .chunks_exact(classes)
            .zip(teacher.chunks_exact(classes))
            .zip(self.grad.chunks_exact_mut(classes))
            .zip(self.losses);
        for (row, (((s, t), grad), loss)) in rows.enumerate() {
            // At T = 1 the hard term's softmax is the soft term's.
            let hard = labels.map(|l| l[row]).filter(|_| alpha != 1.0);
            let (top_s, top_t) = (max_of(s), max_of(t));
            let tops = (top_s, top_t);
            let scale = C::from_f64(temperature.recip());
            let sums = if hard.is_some() && temperature != 1.0 {
                sweep::<C, true>(s, t, tops, scale, grad, teacher_exp, plain_exp)
            } else {
                sweep::<C, false>(s, t, tops, scale, grad, teacher_exp, plain_exp)
            };
            *loss = 0.0;
            if alpha != 0.0 {
                let kl = sums.weighted / sums.teacher - sums.teacher.ln() + sums.student.ln();
                *loss += alpha * temperature * temperature * kl;
            }
            let soft_weight = alpha * temperature * self.share;
            let q = C::from_f64(soft_weight / sums.student);
            let p = C::from_f64(-soft_weight / sums.teacher);
            let Some(label) = hard else {
                for (g, &t) in grad.iter_mut().zip(&*teacher_exp) {
                    *g = q.mul_add(*g, p * t);
                }
                continue;
            };
            let hard_weight = (1.0 - alpha) * self.share;
            if temperature == 1.0 {
                let q = C::from_f64((soft_weight + hard_weight) / sums.student);
                for (g, &t) in grad.iter_mut().zip(&*teacher_exp) {
                    *g = q.mul_add(*g, p * t);
                }
                *loss += (1.0 - alpha) * (sums.student.ln() - (s[label] - top_s).to_f64());
            } else {
                let h = C::from_f64(hard_weight / sums.plain);
                for ((g, &t), &e) in grad.iter_mut().zip(&*teacher_exp).zip(&*plain_exp) {
                    *g = h.mul_add(e, q.mul_add(*g, p * t));
                }
                *loss += (1.0 - alpha) * (sums.plain.ln() - (s[label] - top_s).to_f64());
            }
            grad[label] = grad[label] - C::from_f64(hard_weight);
        }
    }
}

/// Sums over a row, with `a = (t - max t) / T` and `b = (s - max s) / T`.
struct Sums {
    /// Of `exp b`.
    student: f64,
    /// Of `exp a`.
    teacher: f64,
    /// Of `exp(a) (a - b)`.
    weighted: f64,
    /// Of `exp(s - max s)`, where asked for.
    plain: f64,
}

/// One pass over a row; keeps `exp b` in `student_exp`, and so on.
#[inline(always)]
fn sweep<C: Float, const PLAIN: bool>(
    s: &[C],
    t: &[C],
    (top_s, top_t): (C, C),
    scale: C,
    student_exp: &mut [C],
    teacher_exp: &mut [C],
    plain_exp: &mut [C],
) -> Sums {
    let mut sums = Sums { student: 0.0, teacher: 0.0, weighted: 0.0, plain: 0.0 };
    for start in (0..s.len()).step_by(CHUNK) {
        let part = start..s.len().min(start + CHUNK);
        let mut lanes = [Lanes::new(C::zero()); 3];
        lanes::sweep(
            [&s[part.clone()], &t[part.clone()]],
            [&mut student_exp[part.clone()], &mut teacher_exp[part.clone()]],
            &mut lanes,
            C::neg_infinity(),
            |[s, t], [student, teacher, weighted]| {
                let (a, b) = ((t - top_t) * scale, (s - top_s) * scale);
                let (exp_a, exp_b) = (a.exp_fast(), b.exp_fast());
                *student += exp_b;
                *teacher += exp_a;
                // 0 * inf where a class is masked with -inf; p log p is 0 there.
                *weighted += if exp_a > C::zero() { exp_a * (a - b) } else { C::zero() };
                [exp_b, exp_a]
            },
        );
        let [student, teacher, weighted] = lanes.map(|l| l.sum().to_f64());
        sums.student += student;
        sums.teacher += teacher;
        sums.weighted += weighted;
        if PLAIN {
            let mut lanes = [Lanes::new(C::zero())];
            let plain = &mut plain_exp[part.clone()];
            lanes::sweep([&s[part]], [plain], &mut lanes, C::neg_infinity(), |[s], [sum]| {
                let e = (s - top_s).exp_fast();
                *sum += e;
                [e]
            });
            sums.plain += lanes[0].sum().to_f64();
        }
    }
    sums
}
