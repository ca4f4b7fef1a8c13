//! The loss of Hinton, Vinyals & Dean (arXiv 1503.02531), fused with its gradient.

mod soft;
mod top_k;

use std::ops::Range;

use super::GRAIN;
use super::sheet::{
    LANES, MAX_TURNED, TURNED, by_row, max_of, spread, sweep, turn, turn_back, update,
};
use super::softmax::{Form, PerRow, narrow, softmax_sheet, wide_len, widen};
use crate::element::{Element, Float};
use crate::parallel::{self, SharedMut};
use crate::scratch::Scratch;
use crate::simd::{self, Kernel};

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

    let turned = classes <= MAX_TURNED && !matches!(teacher, Teacher::TopK(_));
    let weights = Weights::new(what, rows);
    let per_class = PerClass::<T::Compute>::new(what, if turned { LANES } else { 1 });
    let (losses, grad) = (SharedMut::new(losses), SharedMut::new(grad));
    let align = if turned { TURNED } else { 1 };
    // What must be widened first is so a few rows at a time, which stay in cache.
    let at_once = if T::as_compute(&[]).is_some() {
        usize::MAX
    } else {
        GRAIN.div_ceil(classes).next_multiple_of(align)
    };
    parallel::for_each(0..rows, GRAIN.div_ceil(classes), align, |part| {
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
                    Teacher::Ensemble(members) => members.iter().map(|z| wide(z)).collect(),
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
                turned,
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
                    simd::dispatch(Narrow { from: &wide, to: grad });
                }
            }
        }
    });
}

/// Elements in the compute type, where that is another.
struct Wide<T: Element>(Scratch<T::Compute>);

impl<T: Element> Wide<T> {
    fn new(x: &[T]) -> Self {
        let mut wide = Scratch::new(wide_len::<T>(x.len()));
        simd::dispatch(Widen { from: x, to: &mut wide });
        Wide(wide)
    }

    fn get<'a>(&'a self, x: &'a [T]) -> &'a [T::Compute] {
        T::as_compute(x).unwrap_or(&self.0)
    }
}

struct Widen<'a, T: Element> {
    from: &'a [T],
    to: &'a mut [T::Compute],
}

impl<T: Element> Kernel for Widen<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        widen(self.from, self.to);
    }
}

struct Narrow<'a, T: Element> {
    from: &'a [T::Compute],
    to: &'a mut [T],
}

impl<T: Element> Kernel for Narrow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        narrow(self.from, self.to);
    }
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

/// The weights of classes as a sheet that goes with those of the logits, for label
/// smoothing; empty without.
struct PerClass<C> {
    sheet: Vec<C>,
    /// The sum of the weights.
    total: f64,
}

impl<C: Float> PerClass<C> {
    fn new(what: &KdLoss<'_>, times: usize) -> Self {
        if what.label_smoothing == 0.0 || !what.is_hard() {
            return PerClass { sheet: vec![], total: 0.0 };
        }
        let weight = |class| what.class_weights.map_or(1.0, |w: &[f64]| w[class]);
        let all = (0..what.classes).map(weight);
        PerClass {
            total: all.clone().sum(),
            sheet: all.flat_map(|w| std::iter::repeat_n(C::from_f64(w), times)).collect(),
        }
    }
}

/// The rows of a block's teacher.
enum Source<'a, C> {
    Logits(&'a [C]),
    Probabilities(&'a [C]),
    Ensemble(Vec<&'a [C]>),
    TopK(TopK<'a>),
}

impl<'a, C: Float> Source<'a, C> {
    fn new<T: Element<Compute = C>>(
        teacher: &'a Teacher<'_, T>,
        wide: &'a [Wide<T>],
        cells: &Range<usize>,
    ) -> Self {
        match teacher {
            Teacher::Logits(z) => Source::Logits(wide[0].get(&z[cells.clone()])),
            Teacher::Probabilities(p) => Source::Probabilities(wide[0].get(&p[cells.clone()])),
            Teacher::Ensemble(members) => Source::Ensemble(
                members.iter().zip(wide).map(|(z, wide)| wide.get(&z[cells.clone()])).collect(),
            ),
            Teacher::TopK(top) => Source::TopK(*top),
        }
    }
}

/// Some rows of the batch.
struct Block<'a, C> {
    what: &'a KdLoss<'a>,
    weights: Weights,
    per_class: &'a PerClass<C>,
    /// The first row's number in the batch.
    first: usize,
    student: &'a [C],
    source: Source<'a, C>,
    losses: &'a mut [f64],
    grad: &'a mut [C],
    turned: bool,
}

impl<C: Float> Kernel for Block<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        if self.turned { self.run_turned() } else { self.run_rows() }
    }
}

/// A few rows as a sheet, and what is known of them.
struct Sheet<'a, C, const R: usize> {
    what: &'a KdLoss<'a>,
    weights: Weights,
    per_class: &'a PerClass<C>,
    /// The first row's number in the batch.
    first: usize,
    /// The student's logits, and the largest of each row.
    s: &'a [C],
    top: [C; R],
}

impl<C: Float> Block<'_, C> {
    #[inline(always)]
    fn run_turned(self) {
        let classes = self.what.classes;
        let len = classes * LANES;
        let [mut s, mut t, mut z, mut grad] = [(); 4].map(|()| Scratch::<C>::new(len));
        let mut room = Room::new(len);
        for x in [&mut s, &mut t, &mut z] {
            // Lanes without a row hold numbers, not what was left there.
            x.fill(C::zero());
        }
        for (i, losses) in self.losses.chunks_mut(TURNED).enumerate() {
            let first = i * TURNED;
            let part = first * classes..(first + losses.len()) * classes;
            turn(&self.student[part.clone()], classes, &mut s);
            let sheet = Sheet::<C, TURNED> {
                what: self.what,
                weights: self.weights,
                per_class: self.per_class,
                first: self.first + first,
                s: &s,
                top: max_of(&s),
            };
            let at_temperature = match &self.source {
                _ if !self.what.is_soft() => true,
                Source::Logits(rows) => {
                    turn(&rows[part.clone()], classes, &mut t);
                    false
                }
                Source::Probabilities(rows) => {
                    turn(&rows[part.clone()], classes, &mut t);
                    logarithms(&mut t);
                    false
                }
                Source::Ensemble(members) => {
                    sheet.average(members.len(), &mut t, &mut z, &mut room.x, |member, z| {
                        turn(&members[member][part.clone()], classes, z);
                    });
                    true
                }
                Source::TopK(_) => unreachable!("rows of a sparse teacher are not turned"),
            };
            let sums = sheet.run(&t, at_temperature, &mut grad, &mut room);
            losses.copy_from_slice(&sums[..losses.len()]);
            turn_back(&grad, classes, &mut self.grad[part]);
        }
        silence(self.what, self.first, self.losses, self.grad);
    }

    #[inline(always)]
    fn run_rows(self) {
        let classes = self.what.classes;
        let mut t = Scratch::<C>::new(classes);
        let mut room = Room::new(classes);
        let rows = self.losses.iter_mut().zip(self.grad.chunks_exact_mut(classes));
        for (i, (loss, grad)) in rows.enumerate() {
            let part = i * classes..(i + 1) * classes;
            let s = &self.student[part.clone()];
            let sheet = Sheet::<C, 1> {
                what: self.what,
                weights: self.weights,
                per_class: self.per_class,
                first: self.first + i,
                s,
                top: max_of(s),
            };
            let (t, at_temperature) = match &self.source {
                _ if !self.what.is_soft() => (s, true),
                Source::Logits(rows) => (&rows[part], false),
                Source::Probabilities(rows) => {
                    t.copy_from_slice(&rows[part]);
                    logarithms(&mut t);
                    (&*t, false)
                }
                Source::Ensemble(members) => {
                    sheet.average(members.len(), &mut t, &mut room.y, &mut room.x, |member, z| {
                        z.copy_from_slice(&members[member][part.clone()]);
                    });
                    (&*t, true)
                }
                Source::TopK(top) => {
                    *loss = sheet.run_top_k(top, grad, &mut room);
                    continue;
                }
            };
            [*loss] = sheet.run(t, at_temperature, grad, &mut room);
        }
        silence(self.what, self.first, self.losses, self.grad);
    }
}

/// What does not count gives 0, even where it holds NaN.
#[inline(always)]
fn silence<C: Float>(what: &KdLoss<'_>, first: usize, losses: &mut [f64], grad: &mut [C]) {
    let Some(weights) = what.sample_weights else { return };
    let rows = losses.iter_mut().zip(grad.chunks_exact_mut(what.classes));
    for ((loss, grad), &weight) in rows.zip(&weights[first..]) {
        if weight == 0.0 {
            *loss = 0.0;
            grad.fill(C::zero());
        }
    }
}

/// Turns probabilities into logits.
#[inline(always)]
fn logarithms<C: Float>(p: &mut [C]) {
    update(p, [], |p, []| {
        for l in 0..LANES {
            p[l] = p[l].ln_fast();
        }
    });
}

/// Memory for the exponentials of a sheet, and the like.
struct Room<C: Float> {
    x: Scratch<C>,
    y: Scratch<C>,
    plain: Scratch<C>,
}

impl<C: Float> Room<C> {
    fn new(len: usize) -> Self {
        let [x, y, plain] = [(); 3].map(|()| Scratch::new(len));
        Room { x, y, plain }
    }
}

/// What the hard term adds to the loss of each row, and how its gradient is made of
/// the exponentials of the logits less the largest.
struct Hard<const R: usize> {
    losses: [f64; R],
    factor: [f64; R],
    /// The label of each row, and what is taken from its gradient.
    labels: [Option<(usize, f64)>; R],
    /// What is taken from the gradient of each class for its weight of 1.
    smooth: [f64; R],
}

impl<C: Float, const R: usize> Sheet<'_, C, R> {
    /// Where a sheet has a class of a row.
    #[inline(always)]
    fn at(class: usize, row: usize) -> usize {
        if R == 1 { class } else { class * LANES + row }
    }

    /// Weight of a row.
    #[inline(always)]
    fn weight(&self, row: usize) -> f64 {
        match self.what.sample_weights {
            Some(v) => v[(self.first + row).min(v.len() - 1)],
            None => 1.0,
        }
    }

    #[inline(always)]
    fn label(&self, row: usize) -> Option<usize> {
        let labels = self.what.labels?;
        labels.get(self.first + row).copied().filter(|&label| label != UNLABELLED)
    }

    #[inline(always)]
    fn temperatures(&self) -> [f64; R] {
        std::array::from_fn(|r| self.what.temperature.of(self.first + r))
    }

    /// `t = ln mean softmax(z / T)` over the members that `load` puts into `z`.
    #[inline(always)]
    fn average(
        &self,
        members: usize,
        t: &mut [C],
        z: &mut [C],
        log_p: &mut [C],
        load: impl Fn(usize, &mut [C]),
    ) {
        let scale = self.temperatures().map(|t| C::from_f64(t.recip()));
        let share = C::from_f64((members as f64).ln());
        t.fill(C::neg_infinity());
        for i in 0..members {
            load(i, z);
            softmax_sheet::<C, R>(Form::Log, scale, z, log_p);
            // As logarithms, since a probability that is 0 in this type need not be 0.
            update(t, [log_p], |t, [log_p]| {
                for l in 0..LANES {
                    let (x, y) = (t[l], log_p[l] - share);
                    let (high, low) = if x > y { (x, y) } else { (y, x) };
                    let sum = high + (C::one() + (low - high).exp_negative()).ln_fast();
                    t[l] = if low == C::neg_infinity() { high } else { sum };
                }
            });
        }
    }

    /// Writes the gradient and returns the loss of each row. The teacher's logits `t`
    /// are divided by the temperature, unless that has been done.
    #[inline(always)]
    fn run(&self, t: &[C], at_temperature: bool, grad: &mut [C], room: &mut Room<C>) -> [f64; R] {
        if !self.what.is_soft() {
            let sums = self.plain(grad);
            let hard = self.hard(sums);
            let factor = spread(hard.factor.map(C::from_f64));
            update(grad, [], |g, []| {
                for l in 0..LANES {
                    g[l] = factor[l] * g[l];
                }
            });
            return self.finish([0.0; R], Some(hard), grad);
        }
        let hard = self.what.is_hard().then(|| {
            let sums = self.plain(&mut room.plain);
            self.hard(sums)
        });
        let plain = hard.as_ref().map(|hard| (&*room.plain, hard.factor));
        let losses = self.soft(t, at_temperature, grad, &mut room.x, &mut room.y, plain);
        self.finish(losses, hard, grad)
    }
}

impl<C: Float> Sheet<'_, C, 1> {
    /// As [`run`](Self::run), for a teacher of whom only the largest logits are known.
    #[inline(always)]
    fn run_top_k(&self, top: &TopK<'_>, grad: &mut [C], room: &mut Room<C>) -> f64 {
        if !self.what.is_soft() {
            return self.run(&[], true, grad, room)[0];
        }
        let hard = self.what.is_hard().then(|| {
            let sums = self.plain(&mut room.plain);
            self.hard(sums)
        });
        let loss = self.soft_top_k(top, grad, &mut room.x);
        if let Some(hard) = &hard {
            add(grad, &room.plain, hard.factor);
        }
        self.finish([loss], hard, grad)[0]
    }
}

impl<C: Float, const R: usize> Sheet<'_, C, R> {
    /// Writes the exponentials of the logits less the largest; returns their sums.
    #[inline(always)]
    fn plain(&self, out: &mut [C]) -> [f64; R] {
        let top = spread(self.top);
        let [sums] =
            sweep::<C, R, 1, 1, 1>([self.s], [out], C::neg_infinity(), |[s], [sum], [e]| {
                for l in 0..LANES {
                    e[l] = (s[l] - top[l]).exp_negative();
                    sum[l] += e[l];
                }
            });
        sums
    }

    /// The hard term, given the sums of the exponentials.
    #[inline(always)]
    fn hard(&self, sums: [f64; R]) -> Hard<R> {
        let KdLoss { class_weights, label_smoothing, classes, .. } = *self.what;
        let weighted = self.weighted_logits();
        // What label smoothing leaves to the label, and gives to each class.
        let (own, each) = (1.0 - label_smoothing, label_smoothing / classes as f64);
        let logs: [f64; R] = by_row(|r| Float::ln_fast(sums[r]));
        let mut hard =
            Hard { losses: [0.0; R], factor: [0.0; R], labels: [None; R], smooth: [0.0; R] };
        for r in 0..R {
            let Some(label) = self.label(r) else { continue };
            let weight = self.weights.hard * self.weight(r);
            let own = own * class_weights.map_or(1.0, |w| w[label]);
            let distance = (self.s[Self::at(label, r)] - self.top[r]).to_f64();
            let mut loss = own * (logs[r] - distance);
            if label_smoothing != 0.0 {
                loss += each * (self.per_class.total * logs[r] - weighted[r]);
            }
            hard.losses[r] = weight * loss;
            hard.factor[r] = weight * (own + each * self.per_class.total) / sums[r];
            hard.labels[r] = Some((label, weight * own));
            hard.smooth[r] = weight * each;
        }
        hard
    }

    /// The sum of the classes' weights times the logits less the largest.
    #[inline(always)]
    fn weighted_logits(&self) -> [f64; R] {
        if self.what.label_smoothing == 0.0 {
            return [0.0; R];
        }
        let top = spread(self.top);
        let inputs = [self.s, &self.per_class.sheet];
        // The last line is filled with weights of 0.
        let [sums] = sweep::<C, R, 2, 0, 1>(inputs, [], C::zero(), |[s, w], [sum], []| {
            for l in 0..LANES {
                let term = w[l] * (s[l] - top[l]);
                sum[l] += if w[l] == C::zero() { C::zero() } else { term };
            }
        });
        sums
    }

    /// Adds what concerns labels.
    #[inline(always)]
    fn finish(&self, mut losses: [f64; R], hard: Option<Hard<R>>, grad: &mut [C]) -> [f64; R] {
        let Some(hard) = hard else { return losses };
        if self.what.label_smoothing != 0.0 {
            let smooth = spread(hard.smooth.map(C::from_f64));
            update(grad, [&self.per_class.sheet], |g, [w]| {
                for l in 0..LANES {
                    g[l] = (-smooth[l]).mul_add(w[l], g[l]);
                }
            });
        }
        for r in 0..R {
            losses[r] += hard.losses[r];
            if let Some((label, taken)) = hard.labels[r] {
                let g = &mut grad[Self::at(label, r)];
                *g = *g - C::from_f64(taken);
            }
        }
        losses
    }
}

/// `grad += factor x`
#[inline(always)]
fn add<C: Float, const R: usize>(grad: &mut [C], x: &[C], factor: [f64; R]) {
    let factor = spread(factor.map(C::from_f64));
    update(grad, [x], |g, [x]| {
        for l in 0..LANES {
            g[l] = factor[l].mul_add(x[l], g[l]);
        }
    });
}
