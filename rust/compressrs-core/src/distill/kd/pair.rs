//! Rows of student and teacher, their exponentials, and the sums of these.

use super::super::tile::{LANES, broadcast, by_row, map_reduce};
use crate::numeric::element::Float;
use crate::runtime::simd::{self, Kernel};

/// Tiles of student and teacher, with the weights of each row.
pub(super) struct Pair<'a, C, const R: usize> {
    pub s: &'a [C],
    pub t: &'a [C],
    pub top_s: [C; R],
    pub top_t: [C; R],
    /// What logits are multiplied by.
    pub scale_s: [f64; R],
    pub scale_t: [f64; R],
}

/// Sums over rows: `A`, `B`, and those of a divergence's terms.
pub(super) struct Sums<const R: usize> {
    pub student: [f64; R],
    pub teacher: [f64; R],
    pub weighted: [f64; R],
}

impl<const R: usize> Sums<R> {
    /// `weighted / total + ln(other / total)`.
    #[inline(always)]
    pub fn divergence(&self, total: &[f64; R], other: &[f64; R]) -> [f64; R] {
        by_row(|r| self.weighted[r] / total[r] + (other[r] / total[r]).ln_fast())
    }
}

impl<C: Float, const R: usize> Pair<'_, C, R> {
    /// Writes the exponentials of student and teacher. The terms are `exp(a) (a - b)`.
    #[inline(always)]
    pub fn forward(&self, student: &mut [C], teacher: &mut [C]) -> Sums<R> {
        simd::dispatch(Forward { pair: self, student, teacher })
    }

    /// Writes the student's exponentials, and `b - a`. The terms are `exp(b) (b - a)`.
    #[inline(always)]
    pub fn reverse(&self, student: &mut [C], difference: &mut [C]) -> Sums<R> {
        self.map_reduce(student, difference, |a, b| {
            let (exp_a, exp_b) = (a.exp_negative(), b.exp_negative());
            let difference = if exp_b > C::zero() { b - a } else { C::zero() };
            [exp_b, difference, exp_b, exp_a, exp_b * difference]
        })
    }

    /// `f` gives of `a` and `b` what is written for each, and what is summed.
    #[inline(always)]
    fn map_reduce(&self, x: &mut [C], y: &mut [C], f: impl Fn(C, C) -> [C; 5]) -> Sums<R> {
        let (top_s, top_t) = (broadcast(self.top_s), broadcast(self.top_t));
        let scale_s = broadcast(self.scale_s.map(C::from_f64));
        let scale_t = broadcast(self.scale_t.map(C::from_f64));
        let [student, teacher, weighted] = map_reduce::<C, R, 2, 2, 3>(
            [self.s, self.t],
            [x, y],
            C::neg_infinity(),
            |[s, t], [student, teacher, weighted], [x, y]| {
                for l in 0..LANES {
                    let (a, b) = ((t[l] - top_t[l]) * scale_t[l], (s[l] - top_s[l]) * scale_s[l]);
                    let [for_x, for_y, exp_b, exp_a, term] = f(a, b);
                    x[l] = for_x;
                    y[l] = for_y;
                    student[l] += exp_b;
                    teacher[l] += exp_a;
                    weighted[l] += term;
                }
            },
        );
        Sums { student, teacher, weighted }
    }
}

/// [`Pair::forward`], which several divergences share: compiled once.
struct Forward<'a, 'b, C, const R: usize> {
    pair: &'b Pair<'a, C, R>,
    student: &'b mut [C],
    teacher: &'b mut [C],
}

impl<C: Float, const R: usize> Kernel for Forward<'_, '_, C, R> {
    type Output = Sums<R>;

    #[inline(always)]
    fn run(self) -> Sums<R> {
        self.pair.map_reduce(self.student, self.teacher, |a, b| {
            let (exp_a, exp_b) = (a.exp_negative(), b.exp_negative());
            // 0 * inf where a class is masked with -inf; p ln p is 0 there.
            let term = if exp_a > C::zero() { exp_a * (a - b) } else { C::zero() };
            [exp_b, exp_a, exp_b, exp_a, term]
        })
    }
}

/// What rounding may have left next to 0, but below it.
#[inline(always)]
pub(super) fn not_below_0(x: f64) -> f64 {
    if x < 0.0 { 0.0 } else { x }
}
