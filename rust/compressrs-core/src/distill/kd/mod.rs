//! The loss of Hinton, Vinyals & Dean (arXiv 1503.02531), fused with its gradient.

mod block;
mod close;
mod hard;
mod loss;
mod pair;
mod rows;
mod soft;
mod top_k;

use super::GRAIN_ELEMENTS;
use super::tile::{LANES, MAX_TRANSPOSED, TILE_ROWS};
use super::wide::{MAX_SINGLE_TEMPERATURE, Wide, from_double, is_single, to_double};
use crate::numeric::element::Element;
use crate::numeric::elementwise::Convert;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;
use crate::runtime::simd;
use block::{Block, Source};
use loss::Weights;
use rows::PerClass;

pub use loss::{Divergence, KdLoss, Reduction, Teacher, TopK, UNLABELLED};
pub use top_k::top_k;

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
