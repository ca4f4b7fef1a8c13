//! Orthogonal matrices as products of Householder reflections.

use crate::numeric::lanes::sums;
use crate::runtime::memory;
use crate::runtime::simd::{self, Kernel};

/// The factor `Q` of `A = Q R`, with `R` upper triangular; both matrices by columns, one after
/// another, that is, as the rows of their transposes. Where columns of `A` depend on those
/// before them, the columns of `Q` complete an orthonormal basis.
///
/// # Panics
/// If `a` is not of size `n * n`.
pub fn orthonormal(mut a: Vec<f64>, n: usize) -> Vec<f64> {
    assert_eq!(a.len(), n * n);
    simd::dispatch(Orthonormal { a: &mut a, n })
}

struct Orthonormal<'a> {
    a: &'a mut [f64],
    n: usize,
}

impl Kernel for Orthonormal<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn run(self) -> Vec<f64> {
        let Orthonormal { a, n } = self;
        let mut factors = memory::zeroed(n);
        for k in 0..n {
            let (done, rest) = a.split_at_mut((k + 1) * n);
            let v = &mut done[k * n + k..];
            (_, factors[k]) = reflection(v);
            for column in rest.chunks_exact_mut(n) {
                reflect(&mut column[k..], v, factors[k]);
            }
        }
        accumulate(a, &factors, n, 0)
    }
}

/// Overwrites `x` by `v`, so that `1 - factor v v'` maps `x` to `(alpha, 0, 0, ...)`; returns
/// `alpha` and `factor`.
#[inline(always)]
pub(super) fn reflection(x: &mut [f64]) -> (f64, f64) {
    let largest = x.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
    if largest == 0.0 {
        return (0.0, 0.0);
    }
    // Scaled, so that squares are in range.
    let [square] = sums(x.len(), |i| {
        let x = x[i] / largest;
        [x * x]
    });
    let norm = square.sqrt();
    x.iter_mut().for_each(|x| *x /= largest);
    let alpha = if x[0] > 0.0 { -norm } else { norm };
    x[0] -= alpha;
    // |v|^2 / 2 = norm (norm + |x0|)
    (alpha * largest, (norm * x[0].abs()).recip())
}

/// `x <- (1 - factor v v') x`
#[inline(always)]
pub(super) fn reflect(x: &mut [f64], v: &[f64], factor: f64) {
    let n = x.len();
    let v = &v[..n];
    let [dot] = sums(n, |i| [x[i] * v[i]]);
    let share = -factor * dot;
    for i in 0..n {
        x[i] = share.mul_add(v[i], x[i]);
    }
}

/// The columns of the product of the reflections: row `k` of `vectors` holds that of the `k`-th
/// one, from its element `k + offset` on.
#[inline(always)]
pub(super) fn accumulate(vectors: &[f64], factors: &[f64], n: usize, offset: usize) -> Vec<f64> {
    let mut q = memory::zeroed(n * n);
    // A column at a time, which stays in the first cache.
    for (i, column) in q.chunks_exact_mut(n.max(1)).enumerate() {
        column[i] = 1.0;
        for k in (0..factors.len().min((i + 1).saturating_sub(offset))).rev() {
            let first = k + offset;
            reflect(&mut column[first..], &vectors[k * n + first..(k + 1) * n], factors[k]);
        }
    }
    q
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_orthonormal_and_span_those_of_the_matrix() {
        for n in [0, 1, 2, 3, 8, 17, 40] {
            for rank in [n, n / 2] {
                let value = |j: usize, i: usize| ((i * 7 + j * j * 5 + i * j) % 11) as f64 - 5.0;
                let a: Vec<f64> =
                    (0..n * n).map(|at| value((at / n) % rank.max(1), at % n)).collect();
                let q = orthonormal(a.clone(), n);
                for j in 0..n {
                    for k in 0..n {
                        let dot: f64 = (0..n).map(|i| q[j * n + i] * q[k * n + i]).sum();
                        let expected = if j == k { 1.0 } else { 0.0 };
                        assert!((dot - expected).abs() < 1e-12, "{n} {rank}: {j}, {k}");
                        // Column j of the matrix has no part along later columns.
                        let r: f64 = (0..n).map(|i| q[k * n + i] * a[j * n + i]).sum();
                        assert!(k <= j || r.abs() < 1e-11, "{n} {rank}: {r}");
                    }
                }
            }
        }
    }
}
