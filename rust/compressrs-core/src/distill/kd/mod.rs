//! The loss of Hinton, Vinyals & Dean (arXiv 1503.02531), fused with its gradient.

mod block;
mod close;
mod hard;
mod soft;
mod top_k;

use super::GRAIN_ELEMENTS;
use super::softmax::PerRow;
use super::tile::{LANES, MAX_TRANSPOSED, TILE_ROWS};
use super::wide::{MAX_SINGLE_TEMPERATURE, Wide, from_double, is_single, to_double};
use crate::numeric::element::Element;
use crate::numeric::elementwise::Convert;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;
use crate::runtime::simd;
use block::{Block, Source};
use hard::PerClass;

pub use top_k::{TopK, top_k};

/// The label of a row that has none.
pub const UNLABELLED: usize = usize::MAX;

/// What measures how far the student's distribution `q` is from the teacher's `p`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// `KL(p || q)`
    ForwardKl,
    /// `KL(q || p)`
    ReverseKl,
    /// `KL(p || m) / 2 + KL(q || m) / 2` with `m = (p + q) / 2`
    JensenShannon,
    /// Decoupled (arXiv 2203.08679): `alpha` times the divergence of the label's
    /// probability against that of all others, `beta` times that among the others.
    Decoupled {
        /// Weight of the target class.
        alpha: f64,
        /// Weight of the others.
        beta: f64,
    },
}

/// What the teacher says of each row.
#[derive(Clone, Debug)]
pub enum Teacher<'a, T> {
    /// Logits.
    Logits(&'a [T]),
    /// Probabilities at `T = 1`: their logarithms are logits.
    Probabilities(&'a [T]),
    /// Logits of several teachers, whose probabilities at the temperature are averaged.
    Ensemble(Vec<&'a [T]>),
    /// The largest logits, and what the others come to.
    TopK(TopK<'a>),
}

/// How the losses of rows become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Each term is the weighted mean over the rows that have it.
    Mean,
    /// Their sum; also for losses that stay apart.
    Sum,
}

/// What [`kd_loss`] computes.
#[derive(Clone, Copy, Debug)]
pub struct KdLoss<'a> {
    /// Length of a row.
    pub classes: usize,
    /// Temperature of both softmaxes in the soft term.
    pub temperature: PerRow<'a>,
    /// What the soft term measures.
    pub divergence: Divergence,
    /// Whether logits are divided by their standard deviation first (arXiv 2403.01427).
    pub standardize: bool,
    /// Weight of the soft term; `1 - alpha` is that of the hard term.
    pub alpha: f64,
    /// The class of each row, or [`UNLABELLED`].
    pub labels: Option<&'a [usize]>,
    /// Part of the label's weight that all classes share.
    pub label_smoothing: f64,
    /// Weight of each class in the hard term.
    pub class_weights: Option<&'a [f64]>,
    /// Weight of each row in both terms.
    pub sample_weights: Option<&'a [f64]>,
    /// How rows become one number.
    pub reduction: Reduction,
}

/// For each row what it adds to the loss, and the gradient of their sum:
///
/// ```text
/// alpha T^2 D(p, q) + (1 - alpha) (-log softmax(student)[label])
/// p = softmax(teacher / T),  q = softmax(student / T)
/// ```
///
/// A row of weight 0 adds nothing, whatever it holds. A class to which `p` gives
/// nothing adds nothing to `KL(p || q)`, whatever the student says.
///
/// # Panics
/// If lengths disagree, there are no rows, a label is not below `classes`, labels are
/// missing though `alpha` is not 1 or the divergence needs them, or options exclude
/// each other: `standardize` and [`TopK`] take logits and no decoupling.
pub fn kd_loss<T: Element>(
    what: &KdLoss<'_>,
    student: &[T],
    teacher: &Teacher<'_, T>,
    losses: &mut [f64],
    grad: &mut [T],
) {
    let (rows, classes) = (losses.len(), what.classes);
    let len = rows * classes;
    assert!(len > 0 && student.len() == len && grad.len() == len);
    let each = |x: Option<&[f64]>, n| x.is_none_or(|x| x.len() == n);
    assert!(what.temperature.fits(rows) && each(what.sample_weights, rows));
    assert!(each(what.class_weights, classes));
    let fits = |&label: &usize| label < classes || label == UNLABELLED;
    assert!(what.labels.is_none_or(|l| l.len() == rows && l.iter().all(fits)));
    let decoupled = matches!(what.divergence, Divergence::Decoupled { .. });
    assert!(what.labels.is_some() || what.alpha == 1.0 && !decoupled);
    assert!(!decoupled || what.labels.is_some_and(|l| !l.contains(&UNLABELLED)));
    match teacher {
        Teacher::Logits(z) => assert!(z.len() == len && !(what.standardize && decoupled)),
        Teacher::Probabilities(p) => assert!(p.len() == len && !what.standardize),
        Teacher::Ensemble(z) => {
            assert!(!z.is_empty() && z.iter().all(|z| z.len() == len) && !what.standardize);
        }
        Teacher::TopK(top) => {
            assert!(top.is_valid(rows, classes));
            assert!(what.divergence == Divergence::ForwardKl && !what.standardize);
        }
    }

    // Probabilities that are averaged or added up are rounded, and so near to uniform at high
    // temperatures that nothing is left of their differences in single precision.
    let rounded = matches!(teacher, Teacher::Ensemble(_) | Teacher::TopK(_));
    if rounded && is_single::<T>() && what.temperature.any_above(MAX_SINGLE_TEMPERATURE) {
        return kd_loss_in_double(what, student, teacher, losses, grad);
    }

    let transposed = classes <= MAX_TRANSPOSED && !matches!(teacher, Teacher::TopK(_));
    let weights = Weights::new(what, rows);
    let per_class = PerClass::<T::Compute>::new(what, if transposed { LANES } else { 1 });
    let (losses, grad) = (SharedMut::new(losses), SharedMut::new(grad));
    let align = if transposed { TILE_ROWS } else { 1 };
    // What must be widened first is so a few rows at a time, which stay in cache.
    let at_once = if T::as_compute(&[]).is_some() {
        usize::MAX
    } else {
        GRAIN_ELEMENTS.div_ceil(classes).next_multiple_of(align)
    };
    parallel::for_each(0..rows, GRAIN_ELEMENTS.div_ceil(classes), align, |part| {
        for start in part.clone().step_by(at_once) {
            let rows = start..part.end.min(start.saturating_add(at_once));
            let cells = rows.start * classes..rows.end * classes;
            // SAFETY: both are borrowed for the whole call and parts do not overlap.
            let (losses, grad) = unsafe { (losses.slice(rows.clone()), grad.slice(cells.clone())) };
            let wide = |x: &[T]| Wide::new(&x[cells.clone()]);
            let (student_wide, teacher_wide) = (
                wide(student),
                match teacher {
                    Teacher::Logits(z) | Teacher::Probabilities(z) => vec![wide(z)],
                    Teacher::Ensemble(members) => memory::collect(members.iter().map(|z| wide(z))),
                    Teacher::TopK(_) => vec![],
                },
            );
            let mut block = Block {
                what,
                weights,
                per_class: &per_class,
                first: rows.start,
                student: student_wide.get(&student[cells.clone()]),
                source: Source::new(teacher, &teacher_wide, &cells),
                losses,
                grad: &mut [],
                transposed,
            };
            match T::as_compute_mut(grad) {
                Some(grad) => {
                    block.grad = grad;
                    simd::dispatch(block);
                }
                None => {
                    let mut wide = Scratch::new(cells.len());
                    block.grad = &mut wide;
                    simd::dispatch(block);
                    simd::dispatch(Convert { from: &wide, to: grad });
                }
            }
        }
    });
}

/// As [`kd_loss`], computed in double precision.
fn kd_loss_in_double<T: Element>(
    what: &KdLoss<'_>,
    student: &[T],
    teacher: &Teacher<'_, T>,
    losses: &mut [f64],
    grad: &mut [T],
) {
    let members = match teacher {
        Teacher::Logits(z) | Teacher::Probabilities(z) => vec![to_double(z)],
        Teacher::Ensemble(members) => memory::collect(members.iter().map(|z| to_double(z))),
        Teacher::TopK(_) => vec![],
    };
    let teacher = match teacher {
        Teacher::Logits(_) => Teacher::Logits(&members[0]),
        Teacher::Probabilities(_) => Teacher::Probabilities(&members[0]),
        Teacher::Ensemble(_) => {
            Teacher::Ensemble(memory::collect(members.iter().map(Vec::as_slice)))
        }
        Teacher::TopK(top) => Teacher::TopK(*top),
    };
    let mut found = memory::zeroed(grad.len());
    kd_loss::<f64>(what, &to_double(student), &teacher, losses, &mut found);
    from_double(&found, grad);
}

/// What the soft and the hard term of a row count, before its own weight.
#[derive(Clone, Copy)]
struct Weights {
    soft: f64,
    hard: f64,
}

impl Weights {
    fn new(what: &KdLoss<'_>, rows: usize) -> Self {
        let (mut soft, mut hard) = (1.0, 1.0);
        if what.reduction == Reduction::Mean {
            let weight = |row| what.sample_weights.map_or(1.0, |v| v[row]);
            soft = (0..rows).map(weight).sum();
            hard = (0..rows)
                .filter_map(|row| {
                    let label = what.label(row)?;
                    Some(weight(row) * what.class_weights.map_or(1.0, |w| w[label]))
                })
                .sum();
        }
        // Where no row counts, there is nothing to take the mean of.
        let share = |part: f64, total: f64| if total > 0.0 { part / total } else { 0.0 };
        Weights { soft: share(what.alpha, soft), hard: share(1.0 - what.alpha, hard) }
    }
}

impl KdLoss<'_> {
    /// The mean of the soft term alone, by forward KL.
    pub fn soft(classes: usize, temperature: f64) -> Self {
        KdLoss {
            classes,
            temperature: PerRow::All(temperature),
            divergence: Divergence::ForwardKl,
            standardize: false,
            alpha: 1.0,
            labels: None,
            label_smoothing: 0.0,
            class_weights: None,
            sample_weights: None,
            reduction: Reduction::Mean,
        }
    }

    fn label(&self, row: usize) -> Option<usize> {
        self.labels.map(|labels| labels[row]).filter(|&label| label != UNLABELLED)
    }

    fn is_soft(&self) -> bool {
        self.alpha != 0.0
    }

    fn is_hard(&self) -> bool {
        self.alpha != 1.0
    }
}
