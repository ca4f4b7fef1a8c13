//! The soft term: divergences of two rows, and their gradients.
//!
//! With `a = (t - max t) / T` and `b = (s - max s) / T` for teacher and student, and
//! `A` and `B` the sums of their exponentials, `ln p = a - ln A`, `ln q = b - ln B`.

use super::super::tile::{LANES, broadcast, by_row, map_reduce, max_of, update};
use super::close::{binary, is_close, limit};
use super::loss::Divergence;
use super::pair::{Pair, Sums, not_below_0};
use super::rows::{Tile, add};
use crate::numeric::element::Float;
use crate::runtime::simd::{self, Kernel};

/// What is added to a standard deviation, as by the authors of arXiv 2403.01427.
const EPSILON: f64 = 1e-7;

impl<C: Float, const R: usize> Tile<'_, C, R> {
    /// Writes the gradient of the soft term, plus a factor times the exponentials of
    /// `plain`, and returns the term's value in each row.
    #[inline(always)]
    pub(super) fn soft(
        &self,
        t: &[C],
        at_temperature: bool,
        grad: &mut [C],
        x: &mut [C],
        y: &mut [C],
        plain: Option<(&[C], [f64; R])>,
    ) -> [f64; R] {
        if let Divergence::Decoupled { alpha, beta } = self.what.divergence {
            let losses = self.decoupled(t, at_temperature, alpha, beta, grad, x, y);
            if let Some((plain, factor)) = plain {
                add(grad, plain, factor);
            }
            return losses;
        }
        let temperatures = self.temperatures();
        let mut scale_s = temperatures.map(f64::recip);
        let mut scale_t = if at_temperature { [1.0; R] } else { scale_s };
        let statistics = self.what.standardize.then(|| {
            let (stats_s, stats_t) = (RowStatistics::<R>::of(self.s), RowStatistics::<R>::of(t));
            for r in 0..R {
                scale_s[r] /= stats_s.deviation[r] + EPSILON;
                scale_t[r] /= stats_t.deviation[r] + EPSILON;
            }
            stats_s
        });
        let pair = Pair { s: self.s, t, top_s: self.top, top_t: max_of(t), scale_s, scale_t };
        // The weight of a row's divergence, and of the gradient of its logits.
        let outer: [f64; R] =
            by_row(|r| self.weights.soft * self.weight(r) * temperatures[r] * temperatures[r]);
        let inner: [f64; R] = by_row(|r| outer[r] * scale_s[r]);
        // In one pass with the hard term, unless the soft one is not done yet.
        let fused =
            plain.filter(|_| statistics.is_none() && self.what.divergence == Divergence::ForwardKl);
        let (mut divergence, same) = match self.what.divergence {
            Divergence::ForwardKl => {
                let sums = pair.forward(grad, x);
                let divergence = sums.divergence(&sums.teacher, &sums.student);
                let same = pair.same(&sums.weighted);
                let factor = by_row::<R>(|r| if same[r] { 0.0 } else { inner[r] });
                let q: [f64; R] = by_row(|r| factor[r] / sums.student[r]);
                let p: [f64; R] = by_row(|r| -factor[r] / sums.teacher[r]);
                combine(grad, q, x, p, fused);
                (divergence, same)
            }
            Divergence::ReverseKl => {
                let sums = pair.reverse(grad, x);
                let divergence = sums.divergence(&sums.student, &sums.teacher);
                let mean: [f64; R] = std::array::from_fn(|r| sums.weighted[r] / sums.student[r]);
                let q: [f64; R] = by_row(|r| inner[r] / sums.student[r]);
                about(grad, q, x, mean);
                (divergence, pair.same(&sums.weighted))
            }
            Divergence::JensenShannon => {
                let sums = pair.forward(grad, x);
                let terms = halves(grad, x, y, &sums);
                let q: [f64; R] = by_row(|r| 0.5 * inner[r]);
                about(grad, q, y, terms[1]);
                let divergence = by_row(|r| 0.5 * (terms[0][r] + terms[1][r]));
                (divergence, pair.same(&sums.weighted))
            }
            Divergence::Decoupled { .. } => unreachable!("done above"),
        };
        let limit = limit::<C>();
        let close: [bool; R] =
            std::array::from_fn(|r| r < self.rows && !same[r] && is_close(divergence[r], limit));
        if close.contains(&true) {
            pair.close(self.what.divergence, &close, &inner, &mut divergence, grad);
            if let Some((plain, factor)) = fused {
                let factor: [f64; R] = by_row(|r| if close[r] { factor[r] } else { 0.0 });
                add(grad, plain, factor);
            }
        }
        if let Some(statistics) = &statistics {
            self.through_deviation(statistics, &scale_s, &temperatures, grad);
        }
        if let Some((plain, factor)) = plain
            && fused.is_none()
        {
            add(grad, plain, factor);
        }
        by_row(|r| outer[r] * divergence[r])
    }

    /// Decoupled distillation: the label is taken out of both rows, so that nothing is
    /// lost where it has nearly all the weight.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "tiles are slices")]
    fn decoupled(
        &self,
        t: &[C],
        at_temperature: bool,
        alpha: f64,
        beta: f64,
        grad: &mut [C],
        x: &mut [C],
        y: &mut [C],
    ) -> [f64; R] {
        if self.what.classes == 1 {
            grad.fill(C::zero());
            return [0.0; R];
        }
        let temperatures = self.temperatures();
        let scale_s = temperatures.map(f64::recip);
        let scale_t = if at_temperature { [1.0; R] } else { scale_s };
        let label = |r| Self::at(self.label(r).unwrap_or(0), r);
        let (mut own_s, mut own_t) = ([C::zero(); R], [C::zero(); R]);
        x.copy_from_slice(self.s);
        y.copy_from_slice(t);
        for r in 0..R {
            own_s[r] = std::mem::replace(&mut x[label(r)], C::neg_infinity());
            own_t[r] = std::mem::replace(&mut y[label(r)], C::neg_infinity());
        }
        // Where nothing is left there is nothing to take the largest of.
        let top = |x: &[C]| {
            max_of::<C, R>(x).map(|top| if top == C::neg_infinity() { C::zero() } else { top })
        };
        let pair = Pair { s: x, t: y, top_s: top(x), top_t: top(y), scale_s, scale_t };
        let mut teacher = crate::runtime::scratch::Scratch::<C>::new(x.len());
        let sums = pair.forward(grad, &mut teacher);
        let mut others = sums.divergence(&sums.teacher, &sums.student);
        for r in 0..R {
            // A teacher who gives the others nothing says nothing of them; a student who
            // does is infinitely far from one who does not.
            if sums.teacher[r] == 0.0 {
                others[r] = 0.0;
            } else if sums.student[r] == 0.0 {
                others[r] = f64::INFINITY;
            }
        }
        // How much likelier the label is than all others, as a logarithm.
        let odds = |own: &[C; R], top: &[C; R], scale: &[f64; R], sum: &[f64; R]| -> [f64; R] {
            by_row(|r| (own[r].to_f64() - top[r].to_f64()) * scale[r] - sum[r].ln_fast())
        };
        let mut odds_s = odds(&own_s, &pair.top_s, &scale_s, &sums.student);
        let mut odds_t = odds(&own_t, &pair.top_t, &scale_t, &sums.teacher);
        // In double precision where the sums nearly cancel.
        let limit = limit::<C>();
        let same = pair.same(&sums.weighted);
        let close: [bool; R] = std::array::from_fn(|r| {
            let sums_are_there = sums.teacher[r] > 0.0 && sums.student[r] > 0.0;
            r < self.rows && sums_are_there && !same[r] && is_close(others[r], limit)
        });
        let moments = close.contains(&true).then(|| pair.moments());
        // Where the others are the same, their sums have lost nothing.
        let mut deltas: [f64; R] =
            by_row(|r| if same[r] { odds_s[r] - odds_t[r] } else { f64::NAN });
        if let Some(moments) = &moments {
            let scaled = |own: C, top: C, scale: f64| (own.to_f64() - top.to_f64()) * scale;
            for r in 0..R {
                if close[r] {
                    others[r] = not_below_0(moments.divergence[r]);
                    let own_s = scaled(own_s[r], pair.top_s[r], scale_s[r]);
                    let own_t = scaled(own_t[r], pair.top_t[r], scale_t[r]);
                    odds_s[r] = own_s - moments.student[r].ln_fast();
                    odds_t[r] = own_t - moments.teacher[r].ln_fast();
                    deltas[r] = own_s - own_t - moments.log_ratio[r];
                }
            }
        }
        let (p, not_p) =
            (by_row::<R>(|r| sigmoid(odds_t[r])), by_row::<R>(|r| sigmoid(-odds_t[r])));
        let q: [f64; R] = by_row(|r| sigmoid(odds_s[r]));
        let mut losses = [0.0; R];
        let (mut for_q, mut for_p, mut own) = ([0.0; R], [0.0; R], [0.0; R]);
        let (mut of_q, mut of_difference) = ([0.0; R], [0.0; R]);
        let per = |x: f64, sum: f64| if sum > 0.0 { x / sum } else { 0.0 };
        for r in 0..R {
            let term = |p: f64, of_t: f64, of_s: f64| {
                if p > 0.0 { p * (log_sigmoid(of_t) - log_sigmoid(of_s)) } else { 0.0 }
            };
            let target = term(p[r], odds_t[r], odds_s[r]) + term(not_p[r], -odds_t[r], -odds_s[r]);
            let (target, difference) =
                binary(p[r], not_p[r], deltas[r]).unwrap_or((target, q[r] - p[r]));
            let weight = self.weights.soft * self.weight(r) * temperatures[r];
            // 0 for a weight of 0, however far the other is.
            let weighted = |weight: f64, x: f64| if weight > 0.0 { weight * x } else { 0.0 };
            losses[r] =
                weight * temperatures[r] * (weighted(alpha, target) + weighted(beta, others[r]));
            let of_others = if sums.teacher[r] > 0.0 && !same[r] { beta } else { 0.0 };
            for_q[r] = per(weight * (of_others - alpha * difference), sums.student[r]);
            for_p[r] = per(-weight * of_others, sums.teacher[r]);
            own[r] = weight * alpha * difference;
            (of_q[r], of_difference[r]) = (-own[r], weight * beta);
        }
        combine(grad, for_q, &teacher, for_p, None);
        if let Some(moments) = &moments {
            pair.write_others(moments, &close, &of_q, &of_difference, grad);
        }
        for r in 0..R {
            grad[label(r)] = C::from_f64(own[r]);
        }
        losses
    }

    /// Takes a gradient with respect to `z / d` where `d` does not change to one with
    /// respect to `z`, given `d = deviation(z) + epsilon`.
    #[inline(always)]
    fn through_deviation(
        &self,
        stats_s: &RowStatistics<R>,
        scale: &[f64; R],
        temperatures: &[f64; R],
        grad: &mut [C],
    ) {
        let mean = broadcast(stats_s.mean.map(C::from_f64));
        let inputs = [&*grad, self.s];
        let [moments] = map_reduce::<C, R, 2, 0, 1>(inputs, [], C::zero(), |[g, s], [sum], []| {
            for l in 0..LANES {
                sum[l] += g[l] * (s[l] - mean[l]);
            }
        });
        let factor: [C; R] = std::array::from_fn(|r| {
            let deviation = stats_s.deviation[r];
            let inverse = scale[r] * temperatures[r];
            let factor = moments[r] * inverse / (deviation * self.what.classes as f64);
            C::from_f64(if deviation > 0.0 { -factor } else { 0.0 })
        });
        let factor = broadcast(factor);
        update(grad, [self.s], |g, [s]| {
            for l in 0..LANES {
                g[l] = factor[l].mul_add(s[l] - mean[l], g[l]);
            }
        });
    }
}

/// `1 / (1 + exp(-x))`
#[inline(always)]
fn sigmoid(x: f64) -> f64 {
    (1.0 + (-x).exp_fast()).recip()
}

/// `ln sigmoid(x)`
#[inline(always)]
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (1.0 + (-x.abs()).exp_negative()).ln_fast()
}

/// `grad = q grad + p x + factor plain`
#[inline(always)]
fn combine<C: Float, const R: usize>(
    grad: &mut [C],
    q: [f64; R],
    x: &[C],
    p: [f64; R],
    plain: Option<(&[C], [f64; R])>,
) {
    let (q, p) = (broadcast(q.map(C::from_f64)), broadcast(p.map(C::from_f64)));
    update(grad, [x], |g, [x]| {
        for l in 0..LANES {
            g[l] = q[l].mul_add(g[l], p[l] * x[l]);
        }
    });
    // In a pass of its own: a closure with both was not inlined, and then a multiply-add is a
    // call of libm.
    if let Some((plain, factor)) = plain {
        add(grad, plain, factor);
    }
}

/// `grad = factor grad (x - mean)`, 0 where it was 0.
#[inline(always)]
fn about<C: Float, const R: usize>(grad: &mut [C], factor: [f64; R], x: &[C], mean: [f64; R]) {
    let (factor, mean) = (broadcast(factor.map(C::from_f64)), broadcast(mean.map(C::from_f64)));
    update(grad, [x], |g, [x]| {
        for l in 0..LANES {
            let result = factor[l] * g[l] * (x[l] - mean[l]);
            g[l] = if g[l] == C::zero() { g[l] } else { result };
        }
    });
}

/// Turns the student's exponentials into probabilities `q` and writes `ln(q / m)` for
/// `m` the mean of both distributions; returns the sums of `p ln(p / m)` and of
/// `q ln(q / m)`.
#[inline(always)]
fn halves<C: Float, const R: usize>(
    student: &mut [C],
    teacher: &[C],
    out: &mut [C],
    sums: &Sums<R>,
) -> [[f64; R]; 2] {
    let for_q = broadcast(sums.student.map(|sum| C::from_f64(sum.recip())));
    let for_p = broadcast(sums.teacher.map(|sum| C::from_f64(sum.recip())));
    update(student, [], |q, []| {
        for l in 0..LANES {
            q[l] = q[l] * for_q[l];
        }
    });
    let inputs = [&*student, teacher];
    map_reduce::<C, R, 2, 1, 2>(inputs, [out], C::zero(), |[q, e], [of_p, of_q], [out]| {
        for l in 0..LANES {
            let (q, p) = (q[l], e[l] * for_p[l]);
            // Half of it would be 0 for the least of all numbers.
            let twice_the_mean = p + q;
            let log = |x: C| {
                let log = ((x + x) / twice_the_mean).ln_fast();
                if x == C::zero() { C::zero() } else { log }
            };
            let (log_p, log_q) = (log(p), log(q));
            of_p[l] += p * log_p;
            of_q[l] += q * log_q;
            out[l] = log_q;
        }
    })
}

/// Mean and standard deviation of each row.
struct RowStatistics<const R: usize> {
    mean: [f64; R],
    deviation: [f64; R],
}

impl<const R: usize> RowStatistics<R> {
    #[inline(always)]
    fn of<C: Float>(z: &[C]) -> Self {
        simd::dispatch(StatisticsOf::<C, R>(z))
    }

    /// The same, by numbers of double precision that are divided by the largest first.
    #[inline(never)]
    fn in_range<C: Float>(z: &[C]) -> Self {
        let mut out = RowStatistics { mean: [0.0; R], deviation: [0.0; R] };
        let step = z.len().min(if R == 1 { 1 } else { LANES });
        let classes = (z.len() / step) as f64;
        for r in 0..R {
            let row = || z.iter().skip(r).step_by(step).map(|&z| Float::to_f64(z));
            let largest = row().fold(0.0, |top: f64, z| top.max(z.abs()));
            let unit = largest.max(f64::MIN_POSITIVE);
            let mean = row().map(|z| z / unit).sum::<f64>() / classes;
            let squares = row().map(|z| (z / unit - mean).powi(2)).sum::<f64>();
            out.mean[r] = mean * unit;
            out.deviation[r] = (squares / classes).sqrt() * unit;
        }
        out
    }
}

/// [`RowStatistics::of`] rows, for student and teacher.
struct StatisticsOf<'a, C, const R: usize>(&'a [C]);

impl<C: Float, const R: usize> Kernel for StatisticsOf<'_, C, R> {
    type Output = RowStatistics<R>;

    #[inline(always)]
    fn run(self) -> RowStatistics<R> {
        let z = self.0;

        let classes = (z.len() / R) as f64;
        let [sums] = map_reduce::<C, R, 1, 0, 1>([z], [], C::zero(), |[z], [sum], []| {
            for l in 0..LANES {
                sum[l] += z[l];
            }
        });
        let mean = sums.map(|sum| sum / classes);
        let center = broadcast(mean.map(C::from_f64));
        // The last line of a row is filled with its mean.
        let [squares] = map_reduce::<C, R, 1, 0, 1>([z], [], center[0], |[z], [sum], []| {
            for l in 0..LANES {
                let x = z[l] - center[l];
                sum[l] = x.mul_add(x, sum[l]);
            }
        });
        let statistics =
            RowStatistics { mean, deviation: squares.map(|sum| (sum / classes).sqrt()) };
        let in_range = |&x: &f64| x < f64::INFINITY;
        if statistics.deviation.iter().all(in_range) {
            statistics
        } else {
            RowStatistics::in_range(z)
        }
    }
}
