//! The soft term in double precision, for rows whose divergence is the difference of sums
//! that nearly cancel, as at high temperatures, or that overflow.
//!
//! With `d = b - a` (see [`super::soft`]) the sums of `p d` and of `p (e^d - 1 - d)`,
//! called `m` and `f`, give `ln(B / A) = ln(1 + m + f)` and
//! `KL(p || q) = ln(1 + m + f) - m`, without a difference of numbers near 1.

use super::super::tile::{LANES, Line, broadcast, fold};
use super::loss::Divergence;
use super::pair::{Pair, not_below_0};
use crate::numeric::element::Float;
use crate::runtime::simd::{self, Kernel};

/// Below this divergence a row is computed here: where the sums of the compute type
/// leave little more than half of its digits.
pub(super) fn limit<C: Float>() -> f64 {
    8.0 * <C as num_traits::Float>::epsilon().to_f64().sqrt()
}

/// Whether a row with this divergence is computed here.
pub(super) fn is_close(divergence: f64, limit: f64) -> bool {
    divergence < limit || divergence == f64::INFINITY
}

/// `1 / (k + 2)!`
const EXPONENTIAL: [f64; 14] = {
    let mut c = [0.5; 14];
    let mut k = 1;
    while k < 14 {
        c[k] = c[k - 1] / (k + 2) as f64;
        k += 1;
    }
    c
};

/// `1 / (2 k + 3)`
const LOGARITHM: [f64; 16] = {
    let mut c = [0.0; 16];
    let mut k = 0;
    while k < 16 {
        c[k] = 1.0 / (2 * k + 3) as f64;
        k += 1;
    }
    c
};

/// `2 / ((2 k + 2) (2 k + 1))`
const ENTROPY: [f64; 14] = {
    let mut c = [0.0; 14];
    let mut k = 0;
    while k < 14 {
        c[k] = 2.0 / ((2 * k + 2) * (2 * k + 1)) as f64;
        k += 1;
    }
    c
};

#[inline(always)]
fn polynomial<const N: usize>(c: &[f64; N], x: f64) -> f64 {
    let mut sum = c[N - 1];
    let mut k = N - 1;
    while k > 0 {
        k -= 1;
        sum = sum.mul_add(x, c[k]);
    }
    sum
}

/// Below this magnitude the series are taken.
pub(super) const SMALL: f64 = 0.5;

/// `e^d - 1 - d` for small `d`.
#[inline(always)]
pub(super) fn exponential_rest(d: f64) -> f64 {
    d * d * polynomial(&EXPONENTIAL, d)
}

/// `ln(1 + x) - x` for small `x`.
#[inline(always)]
fn logarithm_rest(x: f64) -> f64 {
    let s = x / (2.0 + x);
    let square = s * s;
    (2.0 * s * square).mul_add(polynomial(&LOGARITHM, square), -x * s)
}

/// `ln(1 + x)`
#[inline(always)]
fn ln_1p(x: f64) -> f64 {
    let small = x + logarithm_rest(x);
    if x.abs() < SMALL { small } else { (1.0 + x).ln_fast() }
}

/// `(1 - h) ln(1 - h) + (1 + h) ln(1 + h)`
#[inline(always)]
fn entropy(h: f64) -> f64 {
    let square = h * h;
    let small = square * polynomial(&ENTROPY, square);
    let term = |x: f64| if x > 0.0 { x * x.ln_fast() } else { 0.0 };
    let large = term(1.0 - h) + term(1.0 + h);
    if h.abs() < 0.25 { small } else { large }
}

/// Two outcomes of which the first has the odds `e^odds_t` for the teacher, and
/// `e^(odds_t + delta)` for the student: `KL(p || q)`, and `q - p` of the first, for
/// small `delta`.
#[inline(always)]
pub(super) fn binary(p: f64, not_p: f64, delta: f64) -> Option<(f64, f64)> {
    let rest = exponential_rest(delta);
    let x = p * (delta + rest);
    let target = logarithm_rest(x) + p * rest;
    (delta.abs() < SMALL).then_some((target, not_p * x / (1.0 + x)))
}

/// What is summed of each row.
pub(super) struct Moments<const R: usize> {
    /// `A` and `B`.
    pub teacher: [f64; R],
    pub student: [f64; R],
    /// `ln(B / A)`
    pub log_ratio: [f64; R],
    /// `KL(p || q)`
    pub divergence: [f64; R],
}

/// Rows in double precision.
struct Lines<const R: usize> {
    top_s: Line<f64>,
    top_t: Line<f64>,
    scale_s: Line<f64>,
    scale_t: Line<f64>,
}

impl<const R: usize> Lines<R> {
    #[inline(always)]
    fn of<C: Float>(pair: &Pair<'_, C, R>) -> Self {
        Lines {
            top_s: broadcast(pair.top_s.map(Float::to_f64)),
            top_t: broadcast(pair.top_t.map(Float::to_f64)),
            scale_s: broadcast(pair.scale_s),
            scale_t: broadcast(pair.scale_t),
        }
    }

    /// `a` and `b` of lane `l`.
    #[inline(always)]
    fn logits<C: Float>(&self, l: usize, s: C, t: C) -> (f64, f64) {
        let (s, t) = (s.to_f64(), t.to_f64());
        ((t - self.top_t[l]) * self.scale_t[l], (s - self.top_s[l]) * self.scale_s[l])
    }

    /// The sums over the classes of what `f` gives of the lane, `a` and `b`.
    #[inline(always)]
    fn sums<C: Float, const K: usize>(
        &self,
        pair: &Pair<'_, C, R>,
        f: impl Fn(usize, f64, f64) -> [f64; K],
    ) -> [[f64; R]; K] {
        let mut sums = [[0.0; LANES]; K];
        for (s, t) in pair.s.chunks(LANES).zip(pair.t.chunks(LANES)) {
            for (l, (&s, &t)) in s.iter().zip(t).enumerate() {
                let (a, b) = self.logits(l, s, t);
                let terms = f(l, a, b);
                for k in 0..K {
                    sums[k][l] += terms[k];
                }
            }
        }
        sums.map(|sums| fold::<f64, R>(sums, |a, b| a + b))
    }

    /// Replaces the numbers of the rows that are `close` by what `f` gives.
    #[inline(always)]
    fn write<C: Float>(
        &self,
        pair: &Pair<'_, C, R>,
        close: &[bool; R],
        grad: &mut [C],
        f: impl Fn(usize, f64, f64) -> f64,
    ) {
        let close: Line<bool> = broadcast(*close);
        let inputs = pair.s.chunks(LANES).zip(pair.t.chunks(LANES));
        for (grad, (s, t)) in grad.chunks_mut(LANES).zip(inputs) {
            for (l, (g, (&s, &t))) in grad.iter_mut().zip(s.iter().zip(t)).enumerate() {
                let (a, b) = self.logits(l, s, t);
                let new = C::from_f64(f(l, a, b));
                *g = if close[l] { new } else { *g };
            }
        }
    }
}

/// In which rows all of student and teacher is the same.
struct Same<'a, 'b, C, const R: usize>(&'b Pair<'a, C, R>);

impl<C: Float, const R: usize> Kernel for Same<'_, '_, C, R> {
    type Output = [bool; R];

    #[inline(always)]
    fn run(self) -> [bool; R] {
        let lines = Lines::of(self.0);
        let differing = lines.sums(self.0, |_, a, b| [if a == b { 0.0 } else { 1.0 }]);
        std::array::from_fn(|r| differing[0][r] == 0.0)
    }
}

/// The moments of rows; `swapped`, those with student and teacher in each other's place.
struct MomentsOf<'a, 'b, C, const R: usize> {
    pair: &'b Pair<'a, C, R>,
    swapped: bool,
}

impl<C: Float, const R: usize> Kernel for MomentsOf<'_, '_, C, R> {
    type Output = Moments<R>;

    #[inline(always)]
    fn run(self) -> Moments<R> {
        let MomentsOf { pair, swapped } = self;

        let [teacher, student, first, rest] = Lines::of(pair).sums(pair, |_, a, b| {
            let (a, b) = if swapped { (b, a) } else { (a, b) };
            let (exp_a, exp_b) = (a.exp_negative(), b.exp_negative());
            let d = b - a;
            // 0 where p is 0, whatever d is.
            let first = if exp_a > 0.0 { exp_a * d } else { 0.0 };
            let small = exp_a * exponential_rest(d);
            let rest = if d.abs() < SMALL { small } else { exp_b - exp_a - first };
            [exp_a, exp_b, first, rest]
        });
        let (mut log_ratio, mut divergence) = ([0.0; R], [0.0; R]);
        for r in 0..R {
            let (m, f) = (first[r] / teacher[r], rest[r] / teacher[r]);
            let x = m + f;
            let ratio = (student[r] / teacher[r]).ln_fast();
            let small = x.abs() < SMALL;
            log_ratio[r] = if small { ln_1p(x) } else { ratio };
            divergence[r] = if small { logarithm_rest(x) + f } else { ratio - m };
        }
        let (teacher, student) = if swapped { (student, teacher) } else { (teacher, student) };
        if swapped {
            log_ratio = log_ratio.map(|x| -x);
        }
        Moments { teacher, student, log_ratio, divergence }
    }
}

impl<C: Float, const R: usize> Pair<'_, C, R> {
    /// In which rows student and teacher are the same, so that nothing is to be
    /// computed, given the sums of `exp(a) (a - b)`.
    #[inline(always)]
    pub(super) fn same(&self, weighted: &[f64; R]) -> [bool; R] {
        // Which are 0 then; elements are compared only if one is.
        if !weighted.contains(&0.0) {
            return [false; R];
        }
        simd::dispatch(Same(self))
    }

    /// Replaces the divergences of the rows that are `close`, and their gradients:
    /// `inner` times that of the divergence, plus `plain` times a factor.
    #[inline(always)]
    pub(super) fn close(
        &self,
        divergence: Divergence,
        close: &[bool; R],
        inner: &[f64; R],
        values: &mut [f64; R],
        grad: &mut [C],
    ) {
        let lines = Lines::of(self);
        let inner: Line<f64> = broadcast(*inner);
        let reverse = divergence == Divergence::ReverseKl;
        let m = simd::dispatch(MomentsOf { pair: self, swapped: reverse });
        let found = match divergence {
            Divergence::ForwardKl => {
                lines.write(self, close, grad, m.difference(|l| inner[l]));
                m.divergence
            }
            Divergence::ReverseKl => {
                let difference = m.log_quotient(C::min_positive_value().to_f64().ln_fast());
                let share = m.probability();
                let [mean] = lines.sums(self, |l, a, b| {
                    let q = share(l, b);
                    [if q > 0.0 { q * difference(l, a, b) } else { 0.0 }]
                });
                let mean: Line<f64> = broadcast(mean);
                lines.write(self, close, grad, |l, a, b| {
                    let q = share(l, b);
                    if q > 0.0 { inner[l] * q * (difference(l, a, b) - mean[l]) } else { 0.0 }
                });
                m.divergence
            }
            Divergence::JensenShannon => {
                let contrast = m.contrast();
                // ln(q / m) with m the mean of both, 0 where q is; h may be -1 where it is not.
                let log_of = |p: f64, q: f64, h: f64| {
                    let large = ((q + q) / (p + q)).ln_fast();
                    let log = if h.abs() < SMALL { ln_1p(h) } else { large };
                    if q > 0.0 { log } else { 0.0 }
                };
                let [value, mean] = lines.sums(self, |l, a, b| {
                    let (p, q, h) = contrast(l, a, b);
                    [0.25 * (p + q) * entropy(h), q * log_of(p, q, h)]
                });
                let mean: Line<f64> = broadcast(mean);
                lines.write(self, close, grad, |l, a, b| {
                    let (p, q, h) = contrast(l, a, b);
                    0.5 * inner[l] * q * (log_of(p, q, h) - mean[l])
                });
                value
            }
            Divergence::Decoupled { .. } => unreachable!("see `close_others`"),
        };
        for r in 0..R {
            if close[r] {
                values[r] = not_below_0(found[r]);
            }
        }
    }

    /// The moments of the rows in double precision, for those whose gradient
    /// [`write_others`](Self::write_others) writes.
    #[inline(always)]
    pub(super) fn moments(&self) -> Moments<R> {
        simd::dispatch(MomentsOf { pair: self, swapped: false })
    }

    /// Replaces the gradients of the rows that are `close` by
    /// `of_q q + of_difference (q - p)`.
    #[inline(always)]
    pub(super) fn write_others(
        &self,
        m: &Moments<R>,
        close: &[bool; R],
        of_q: &[f64; R],
        of_difference: &[f64; R],
        grad: &mut [C],
    ) {
        let of_q: Line<f64> = broadcast(*of_q);
        let of_difference: Line<f64> = broadcast(*of_difference);
        let (q, difference) = (m.probability(), m.difference(|l| of_difference[l]));
        Lines::of(self)
            .write(self, close, grad, |l, a, b| of_q[l].mul_add(q(l, b), difference(l, a, b)));
    }
}

impl<const R: usize> Moments<R> {
    /// `q` of a lane, given `b`.
    #[inline(always)]
    fn probability(&self) -> impl Fn(usize, f64) -> f64 {
        let share: Line<f64> = broadcast(self.student.map(f64::recip));
        move |l, b| share[l] * b.exp_negative()
    }

    /// `factor (q - p)` of a lane, given `a` and `b`.
    #[inline(always)]
    fn difference(&self, factor: impl Fn(usize) -> f64) -> impl Fn(usize, f64, f64) -> f64 {
        let of_p: Line<f64> = broadcast(self.teacher.map(f64::recip));
        let of_q: Line<f64> = broadcast(self.student.map(f64::recip));
        let log_ratio: Line<f64> = broadcast(self.log_ratio);
        move |l, a, b| {
            let (p, q) = (of_p[l] * a.exp_negative(), of_q[l] * b.exp_negative());
            let log = b - a - log_ratio[l];
            let small = p * (log + exponential_rest(log));
            factor(l) * if log.abs() < SMALL { small } else { q - p }
        }
    }

    /// `ln(q / p)` of a lane, given `a` and `b`; `floor` is taken for `ln p` where p is 0.
    #[inline(always)]
    fn log_quotient(&self, floor: f64) -> impl Fn(usize, f64, f64) -> f64 {
        let log_ratio: Line<f64> = broadcast(self.log_ratio);
        let log_b: Line<f64> = broadcast(self.student.map(Float::ln_fast));
        move |l, a, b| {
            let masked = b - log_b[l] - floor;
            if a == f64::NEG_INFINITY { masked } else { b - a - log_ratio[l] }
        }
    }

    /// `p`, `q` and `(q - p) / (q + p)` of a lane, given `a` and `b`.
    #[inline(always)]
    fn contrast(&self) -> impl Fn(usize, f64, f64) -> (f64, f64, f64) {
        let of_p: Line<f64> = broadcast(self.teacher.map(f64::recip));
        let of_q: Line<f64> = broadcast(self.student.map(f64::recip));
        let log_ratio: Line<f64> = broadcast(self.log_ratio);
        move |l, a, b| {
            let (p, q) = (of_p[l] * a.exp_negative(), of_q[l] * b.exp_negative());
            let log = b - a - log_ratio[l];
            let growth = log + exponential_rest(log);
            let sum = p + q;
            let large = if sum > 0.0 { (q - p) / sum } else { 0.0 };
            (p, q, if log.abs() < SMALL { growth / (2.0 + growth) } else { large })
        }
    }
}
