//! The loss of Hinton, Vinyals & Dean (arXiv 1503.02531), fused with its gradient.

use super::tile::{self, MAX_CLASSES, ROWS};
use super::{CHUNK, GRAIN};
use crate::element::Float;
use crate::lanes::{self, LANES, Lanes, max_of};
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
    parallel::for_each(0..rows, GRAIN.div_ceil(classes), ROWS, |rows| {
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
        if self.input.classes <= MAX_CLASSES { self.by_tiles() } else { self.by_rows() }
    }
}

impl<C: Float> Rows<'_, C> {
    #[inline(always)]
    fn by_rows(self) {
        let KdLoss { student, teacher, labels, classes, temperature, .. } = self.input;
        let scale = C::from_f64(temperature.recip());
        let (teacher_exp, plain_exp) = self.scratch.split_at_mut(classes);
        let rows = student
            .chunks_exact(classes)
            .zip(teacher.chunks_exact(classes))
            .zip(self.grad.chunks_exact_mut(classes))
            .zip(self.losses);
        for (row, (((s, t), grad), loss)) in rows.enumerate() {
            let hard = labels.map(|labels| labels[row]).filter(|_| self.input.is_hard());
            let tops = (max_of(s), max_of(t));
            let plain = self.input.needs_plain();
            let sums = if plain {
                sweep::<C, true>(s, t, tops, scale, grad, teacher_exp, plain_exp)
            } else {
                sweep::<C, false>(s, t, tops, scale, grad, teacher_exp, plain_exp)
            };
            let distance = hard.map_or(0.0, |label| (s[label] - tops.0).to_f64());
            let weights;
            (*loss, weights) = self.input.finish(sums, distance, self.share);
            let [q, p, h] = weights.map(C::from_f64);
            if plain {
                for ((g, &t), &e) in grad.iter_mut().zip(&*teacher_exp).zip(&*plain_exp) {
                    *g = h.mul_add(e, q.mul_add(*g, p * t));
                }
            } else {
                for (g, &t) in grad.iter_mut().zip(&*teacher_exp) {
                    *g = q.mul_add(*g, p * t);
                }
            }
            if let Some(label) = hard {
                grad[label] = grad[label] - C::from_f64(self.input.hard_weight(self.share));
            }
        }
    }

    #[inline(always)]
    fn by_tiles(self) {
        let KdLoss { student, teacher, labels, classes, temperature, .. } = self.input;
        let scale = C::from_f64(temperature.recip());
        let plain = self.input.needs_plain();
        let hard_weight = C::from_f64(self.input.hard_weight(self.share));
        let labels = labels.filter(|_| self.input.is_hard());
        let (mut s, mut t, mut e) = (tile::tile::<C>(), tile::tile::<C>(), tile::tile::<C>());
        for (block, losses) in self.losses.chunks_mut(ROWS).enumerate() {
            let first = block * ROWS;
            let part = first * classes..(first + losses.len()) * classes;
            tile::load(&student[part.clone()], classes, &mut s);
            tile::load(&teacher[part.clone()], classes, &mut t);
            let grad = &mut self.grad[part];
            let (top_s, top_t) = (tile::max_of(&s[..classes]), tile::max_of(&t[..classes]));
            let distance: [f64; ROWS] = std::array::from_fn(|l| {
                let label = labels.filter(|_| l < losses.len()).map(|labels| labels[first + l]);
                label.map_or(0.0, |label| (s[label][l] - top_s[l]).to_f64())
            });
            let mut sums = [[C::zero(); ROWS]; 4];
            for j in 0..classes {
                if plain {
                    for l in 0..ROWS {
                        e[j][l] = (s[j][l] - top_s[l]).exp_fast();
                        sums[3][l] += e[j][l];
                    }
                }
                for l in 0..ROWS {
                    let terms;
                    [s[j][l], t[j][l], terms] =
                        soft_terms(s[j][l] - top_s[l], t[j][l] - top_t[l], scale);
                    sums[0][l] += s[j][l];
                    sums[1][l] += t[j][l];
                    sums[2][l] += terms;
                }
            }
            let mut weights = [[C::zero(); ROWS]; 3];
            for (l, loss) in losses.iter_mut().enumerate() {
                let [student, teacher, weighted, plain] = sums.map(|sums| sums[l].to_f64());
                let sums = Sums { student, teacher, weighted, plain };
                let row;
                (*loss, row) = self.input.finish(sums, distance[l], self.share);
                for (weights, weight) in weights.iter_mut().zip(row) {
                    weights[l] = C::from_f64(weight);
                }
            }
            let [q, p, h] = weights;
            for j in 0..classes {
                for l in 0..ROWS {
                    let soft = q[l].mul_add(s[j][l], p[l] * t[j][l]);
                    s[j][l] = if plain { h[l].mul_add(e[j][l], soft) } else { soft };
                }
            }
            tile::store(&s, classes, grad);
            if let Some(labels) = labels {
                for (row, &label) in grad.chunks_exact_mut(classes).zip(&labels[first..]) {
                    row[label] = row[label] - hard_weight;
                }
            }
        }
    }
}

impl<C> KdLoss<'_, C> {
    /// Whether the hard term counts.
    fn is_hard(&self) -> bool {
        self.alpha != 1.0 && self.labels.is_some()
    }

    /// Whether the hard term needs a softmax of its own: at `T = 1` it is the soft
    /// term's.
    fn needs_plain(&self) -> bool {
        self.is_hard() && self.temperature != 1.0
    }

    /// Weight of the hard term's gradient in one row, of which each has this share.
    fn hard_weight(&self, share: f64) -> f64 {
        if self.is_hard() { (1.0 - self.alpha) * share } else { 0.0 }
    }

    /// The loss of a row, and what the exponentials of student, teacher, and
    /// student at `T = 1` are multiplied by in its gradient. `distance` is how far
    /// the label's logit is below the largest, negative.
    #[inline(always)]
    fn finish(&self, sums: Sums, distance: f64, share: f64) -> (f64, [f64; 3]) {
        let KdLoss { temperature, alpha, .. } = *self;
        let mut loss = 0.0;
        if alpha != 0.0 {
            let kl = sums.weighted / sums.teacher + (sums.student / sums.teacher).ln();
            loss += alpha * temperature * temperature * kl;
        }
        let (soft, hard) = (alpha * temperature * share, self.hard_weight(share));
        let mut weights = [soft / sums.student, -soft / sums.teacher, 0.0];
        if self.is_hard() {
            let sum = if self.needs_plain() { sums.plain } else { sums.student };
            weights[if self.needs_plain() { 2 } else { 0 }] += hard / sum;
            loss += (1.0 - alpha) * (sum.ln() - distance);
        }
        (loss, weights)
    }
}

/// The exponentials of student and teacher at the temperature, from logits less the
/// largest, and the teacher's times the difference of both exponents.
#[inline(always)]
fn soft_terms<C: Float>(s: C, t: C, scale: C) -> [C; 3] {
    let (a, b) = (t * scale, s * scale);
    let (exp_a, exp_b) = (a.exp_fast(), b.exp_fast());
    // 0 * inf where a class is masked with -inf; p log p is 0 there.
    let weighted = if exp_a > C::zero() { exp_a * (a - b) } else { C::zero() };
    [exp_b, exp_a, weighted]
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
            |[s, t], [student, teacher, weighted], [student_exp, teacher_exp]| {
                for l in 0..LANES {
                    let term;
                    [student_exp[l], teacher_exp[l], term] =
                        soft_terms(s[l] - top_s, t[l] - top_t, scale);
                    student[l] += student_exp[l];
                    teacher[l] += teacher_exp[l];
                    weighted[l] += term;
                }
            },
        );
        let [student, teacher, weighted] = lanes.map(|l| l.sum().to_f64());
        sums.student += student;
        sums.teacher += teacher;
        sums.weighted += weighted;
        if PLAIN {
            let mut lanes = [Lanes::new(C::zero())];
            let plain = &mut plain_exp[part.clone()];
            lanes::sweep([&s[part]], [plain], &mut lanes, C::neg_infinity(), |[s], [sum], [e]| {
                for l in 0..LANES {
                    e[l] = (s[l] - top_s).exp_fast();
                    sum[l] += e[l];
                }
            });
            sums.plain += lanes[0].sum().to_f64();
        }
    }
    sums
}
