//! Rows of the batch as tiles, and the losses of a tile.

use std::ops::Range;

use super::super::softmax::{SoftmaxOutput, softmax_tile};
use super::super::tile::{LANES, TILE_ROWS, broadcast, max_of, transpose, transpose_back, update};
use super::super::wide::Wide;
use super::loss::{KdLoss, Teacher, TopK, Weights};
use super::rows::{PerClass, Tile, add};
use crate::numeric::element::{Element, Float};
use crate::runtime::memory;
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::Kernel;

/// The rows of a block's teacher.
pub(super) enum Source<'a, C> {
    Logits(&'a [C]),
    Probabilities(&'a [C]),
    Ensemble(Vec<&'a [C]>),
    TopK(TopK<'a>),
}

impl<'a, C: Float> Source<'a, C> {
    pub fn new<T: Element<Compute = C>>(
        teacher: &'a Teacher<'_, T>,
        wide: &'a [Wide<T>],
        cells: &Range<usize>,
    ) -> Self {
        match teacher {
            Teacher::Logits(z) => Source::Logits(wide[0].get(&z[cells.clone()])),
            Teacher::Probabilities(p) => Source::Probabilities(wide[0].get(&p[cells.clone()])),
            Teacher::Ensemble(members) => Source::Ensemble(memory::collect(
                members.iter().zip(wide).map(|(z, wide)| wide.get(&z[cells.clone()])),
            )),
            Teacher::TopK(top) => Source::TopK(*top),
        }
    }
}

/// Some rows of the batch.
pub(super) struct Block<'a, C> {
    pub what: &'a KdLoss<'a>,
    pub weights: Weights,
    pub per_class: &'a PerClass<C>,
    /// The first row's number in the batch.
    pub first: usize,
    pub student: &'a [C],
    pub source: Source<'a, C>,
    pub losses: &'a mut [f64],
    pub grad: &'a mut [C],
    pub transposed: bool,
}

impl<C: Float> Kernel for Block<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        if self.transposed { self.run_transposed() } else { self.run_rows() }
    }
}

impl<C: Float> Block<'_, C> {
    #[inline(always)]
    fn run_transposed(self) {
        let classes = self.what.classes;
        let len = classes * LANES;
        let [mut s, mut t, mut z, mut grad] = [(); 4].map(|()| Scratch::<C>::new(len));
        let mut workspace = Workspace::new(len);
        for x in [&mut s, &mut t, &mut z] {
            // Lanes without a row hold numbers, not what was left there.
            x.fill(C::zero());
        }
        for (i, losses) in self.losses.chunks_mut(TILE_ROWS).enumerate() {
            let first = i * TILE_ROWS;
            let part = first * classes..(first + losses.len()) * classes;
            transpose(&self.student[part.clone()], classes, &mut s);
            let tile = Tile::<C, TILE_ROWS> {
                what: self.what,
                weights: self.weights,
                per_class: self.per_class,
                first: self.first + first,
                rows: losses.len(),
                s: &s,
                top: max_of(&s),
            };
            let at_temperature = match &self.source {
                _ if !self.what.is_soft() => true,
                Source::Logits(rows) => {
                    transpose(&rows[part.clone()], classes, &mut t);
                    false
                }
                Source::Probabilities(rows) => {
                    transpose(&rows[part.clone()], classes, &mut t);
                    logarithms(&mut t);
                    false
                }
                Source::Ensemble(members) => {
                    tile.average(members.len(), &mut t, &mut z, &mut workspace.x, |member, z| {
                        transpose(&members[member][part.clone()], classes, z);
                    });
                    true
                }
                Source::TopK(_) => unreachable!("rows of a sparse teacher are not transposed"),
            };
            let sums = tile.run(&t, at_temperature, &mut grad, &mut workspace);
            losses.copy_from_slice(&sums[..losses.len()]);
            transpose_back(&grad, classes, &mut self.grad[part]);
        }
        zero_ignored_rows(self.what, self.first, self.losses, self.grad);
    }

    #[inline(always)]
    fn run_rows(self) {
        let classes = self.what.classes;
        let mut t = Scratch::<C>::new(classes);
        let mut workspace = Workspace::new(classes);
        let rows = self.losses.iter_mut().zip(self.grad.chunks_exact_mut(classes));
        for (i, (loss, grad)) in rows.enumerate() {
            let part = i * classes..(i + 1) * classes;
            let s = &self.student[part.clone()];
            let tile = Tile::<C, 1> {
                what: self.what,
                weights: self.weights,
                per_class: self.per_class,
                first: self.first + i,
                rows: 1,
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
                    tile.average(
                        members.len(),
                        &mut t,
                        &mut workspace.y,
                        &mut workspace.x,
                        |member, z| {
                            z.copy_from_slice(&members[member][part.clone()]);
                        },
                    );
                    (&*t, true)
                }
                Source::TopK(top) => {
                    *loss = tile.run_top_k(top, grad, &mut workspace);
                    continue;
                }
            };
            [*loss] = tile.run(t, at_temperature, grad, &mut workspace);
        }
        zero_ignored_rows(self.what, self.first, self.losses, self.grad);
    }
}

/// Rows of weight 0 have a loss and a gradient of 0, even where they hold NaN.
#[inline(always)]
fn zero_ignored_rows<C: Float>(
    what: &KdLoss<'_>,
    first: usize,
    losses: &mut [f64],
    grad: &mut [C],
) {
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

/// Memory for the exponentials of a tile, and the like.
struct Workspace<C: Float> {
    x: Scratch<C>,
    y: Scratch<C>,
    plain: Scratch<C>,
}

impl<C: Float> Workspace<C> {
    fn new(len: usize) -> Self {
        let [x, y, plain] = [(); 3].map(|()| Scratch::new(len));
        Workspace { x, y, plain }
    }
}

impl<C: Float, const R: usize> Tile<'_, C, R> {
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
            softmax_tile::<C, R>(SoftmaxOutput::Log, scale, z, log_p);
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

    /// The gradient and the losses of the hard term without a soft one.
    #[inline(always)]
    fn hard_alone(&self, grad: &mut [C]) -> [f64; R] {
        let sums = self.plain(grad);
        let hard = self.hard(sums);
        let factor = broadcast(hard.factor.map(C::from_f64));
        update(grad, [], |g, []| {
            for l in 0..LANES {
                g[l] = factor[l] * g[l];
            }
        });
        self.finish([0.0; R], Some(hard), grad)
    }

    /// Writes the gradient and returns the loss of each row. The teacher's logits `t`
    /// are divided by the temperature, unless that has been done.
    #[inline(always)]
    fn run(
        &self,
        t: &[C],
        at_temperature: bool,
        grad: &mut [C],
        workspace: &mut Workspace<C>,
    ) -> [f64; R] {
        if !self.what.is_soft() {
            return self.hard_alone(grad);
        }
        let hard = self.what.is_hard().then(|| {
            let sums = self.plain(&mut workspace.plain);
            self.hard(sums)
        });
        let plain = hard.as_ref().map(|hard| (&*workspace.plain, hard.factor));
        let losses = self.soft(t, at_temperature, grad, &mut workspace.x, &mut workspace.y, plain);
        self.finish(losses, hard, grad)
    }
}

impl<C: Float> Tile<'_, C, 1> {
    /// As [`run`](Self::run), for a teacher of whom only the largest logits are known.
    #[inline(always)]
    fn run_top_k(&self, top: &TopK<'_>, grad: &mut [C], workspace: &mut Workspace<C>) -> f64 {
        if !self.what.is_soft() {
            return self.hard_alone(grad)[0];
        }
        let hard = self.what.is_hard().then(|| {
            let sums = self.plain(&mut workspace.plain);
            self.hard(sums)
        });
        let loss = self.soft_top_k(top, grad, &mut workspace.x);
        if let Some(hard) = &hard {
            add(grad, &workspace.plain, hard.factor);
        }
        self.finish([loss], hard, grad)[0]
    }
}
