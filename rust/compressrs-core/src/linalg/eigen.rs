//! Eigenvalues and eigenvectors of symmetric matrices, on one thread: reduction to a
//! tridiagonal matrix by Householder reflections, then the implicit QL iteration.
//!
//! Source: Golub & Van Loan, "Matrix Computations", sections 8.3.1 and 8.3.3, in the form of
//! EISPACK's `tred2` and `imtql2`.

use super::householder::{accumulate, reflection};
use crate::numeric::lanes::sums;
use crate::runtime::memory;
use crate::runtime::simd::{self, Kernel};

/// Rotations of the whole matrix for an eigenvalue, of which two or three usually suffice.
const MOST_ITERATIONS: usize = 100;

/// The matrix holds NaN or infinity, or the iteration did not converge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoEigenvalues;

/// Eigenvalues, largest first, and their eigenvectors.
#[derive(Clone, Debug)]
pub struct Eigen {
    /// The eigenvalues.
    pub values: Vec<f64>,
    /// The eigenvectors, of norm 1, one after another.
    pub vectors: Vec<f64>,
}

/// Decomposes a symmetric matrix.
///
/// # Errors
/// If an element is not finite.
///
/// # Panics
/// If `a` is not of size `n * n`.
pub fn eigen(mut a: Vec<f64>, n: usize) -> Result<Eigen, NoEigenvalues> {
    assert_eq!(a.len(), n * n);
    if !a.iter().all(|x| x.is_finite()) {
        return Err(NoEigenvalues);
    }
    // With elements of at most 1, no square overflows.
    let largest = a.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
    if largest > 0.0 {
        a.iter_mut().for_each(|x| *x /= largest);
    }
    let (mut values, vectors) = simd::dispatch(Solve { a: &mut a, n })?;
    values.iter_mut().for_each(|value| *value *= largest);
    let mut order: Vec<usize> = memory::collect(0..n);
    order.sort_by(|&i, &j| values[j].total_cmp(&values[i]));
    let mut sorted = memory::with_capacity(n * n);
    for &i in &order {
        sorted.extend_from_slice(&vectors[i * n..(i + 1) * n]);
    }
    Ok(Eigen { values: memory::collect(order.iter().map(|&i| values[i])), vectors: sorted })
}

struct Solve<'a> {
    a: &'a mut [f64],
    n: usize,
}

impl Kernel for Solve<'_> {
    type Output = Result<(Vec<f64>, Vec<f64>), NoEigenvalues>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let Solve { a, n } = self;
        let [mut diagonal, mut beside] = [(); 2].map(|()| memory::zeroed::<f64>(n));
        let mut factors = memory::zeroed(n.saturating_sub(1));
        tridiagonal(a, n, &mut diagonal, &mut beside, &mut factors);
        let mut vectors = accumulate(a, &factors, n, 1);
        iterate(&mut diagonal, &mut beside, &mut vectors, n)?;
        Ok((diagonal, vectors))
    }
}

/// Reduces `a` to its diagonal and the elements beside it; row `k` of `a` keeps the vector of
/// the reflection that clears column `k`, from its element `k + 1` on.
#[inline(always)]
fn tridiagonal(
    a: &mut [f64],
    n: usize,
    diagonal: &mut [f64],
    beside: &mut [f64],
    factors: &mut [f64],
) {
    let mut w = memory::zeroed::<f64>(n);
    for k in 0..n {
        diagonal[k] = a[k * n + k];
        if k + 1 == n {
            break;
        }
        let (done, rest) = a.split_at_mut((k + 1) * n);
        let v = &mut done[k * n + k + 1..];
        (beside[k], factors[k]) = reflection(v);
        let (v, factor, len) = (&*v, factors[k], n - k - 1);
        if factor == 0.0 {
            continue;
        }
        // p = factor A v, then w = p - (factor / 2) (p' v) v, then A <- A - v w' - w v'.
        let w = &mut w[..len];
        for (w, row) in w.iter_mut().zip(rest.chunks_exact(n)) {
            let row = &row[k + 1..];
            let [dot] = sums(len, |i| [row[i] * v[i]]);
            *w = factor * dot;
        }
        let [dot] = sums(len, |i| [w[i] * v[i]]);
        let share = -0.5 * factor * dot;
        for i in 0..len {
            w[i] = share.mul_add(v[i], w[i]);
        }
        for (i, row) in rest.chunks_exact_mut(n).enumerate() {
            let (row, of_w, of_v) = (&mut row[k + 1..][..len], -v[i], -w[i]);
            for j in 0..len {
                // The same of (i, j) and (j, i), whichever product is rounded first.
                row[j] += of_w * w[j] + of_v * v[j];
            }
        }
    }
}

/// Moves the elements beside the diagonal to 0 by rotations, which the vectors follow.
#[inline(always)]
fn iterate(
    d: &mut [f64],
    e: &mut [f64],
    vectors: &mut [f64],
    n: usize,
) -> Result<(), NoEigenvalues> {
    // Reducing the matrix has left errors of this size everywhere.
    let largest = d.iter().zip(&*e).fold(0.0, |norm: f64, (d, e)| norm.max(d.abs() + e.abs()));
    let negligible = f64::EPSILON * largest;
    for first in 0..n {
        let mut iterations = 0;
        loop {
            // The matrix falls apart where the element beside the diagonal is negligible.
            let falls_apart = |&m: &usize| m + 1 == n || e[m].abs() <= negligible;
            let last = (first..n).find(falls_apart).unwrap_or(n - 1);
            if last == first {
                break;
            }
            iterations += 1;
            if iterations > MOST_ITERATIONS {
                return Err(NoEigenvalues);
            }
            rotate_all(d, e, vectors, n, first, last);
        }
    }
    Ok(())
}

/// One iteration with Wilkinson's shift, on the part of the matrix from `first` to `last`.
#[inline(always)]
fn rotate_all(
    d: &mut [f64],
    e: &mut [f64],
    vectors: &mut [f64],
    n: usize,
    first: usize,
    last: usize,
) {
    let g = (d[first + 1] - d[first]) / (2.0 * e[first]);
    let root = (g * g + 1.0).sqrt();
    let root = if g < 0.0 { -root } else { root };
    let mut g = d[last] - d[first] + e[first] / (g + root);
    let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
    for i in (first..last).rev() {
        let (f, b) = (s * e[i], c * e[i]);
        let r = (f * f + g * g).sqrt();
        e[i + 1] = r;
        if r == 0.0 {
            // The matrix falls apart here already.
            d[i + 1] -= p;
            e[last] = 0.0;
            return;
        }
        (s, c) = (f / r, g / r);
        g = d[i + 1] - p;
        let r = (d[i] - g) * s + 2.0 * c * b;
        p = s * r;
        d[i + 1] = g + p;
        g = c * r - b;
        let (above, below) = vectors[i * n..(i + 2) * n].split_at_mut(n);
        for j in 0..n {
            let (x, y) = (above[j], below[j]);
            below[j] = s.mul_add(x, c * y);
            above[j] = c.mul_add(x, -(s * y));
        }
    }
    d[first] -= p;
    e[first] = g;
    e[last] = 0.0;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(a: &[f64], n: usize) -> Vec<f64> {
        let Eigen { values, vectors } = eigen(a.to_vec(), n).unwrap();
        let scale = a.iter().fold(1e-300, |s: f64, x| s.max(x.abs()));
        assert!(values.is_sorted_by(|a, b| a >= b));
        for i in 0..n {
            let v = &vectors[i * n..(i + 1) * n];
            for j in 0..n {
                let dot: f64 = (0..n).map(|k| v[k] * vectors[j * n + k]).sum();
                assert!((dot - f64::from(i == j)).abs() < 1e-12, "{n}: {i}, {j}: {dot}");
                let product: f64 = (0..n).map(|k| a[j * n + k] * v[k]).sum();
                assert!((product - values[i] * v[j]).abs() < 1e-12 * scale * n as f64);
            }
        }
        values
    }

    fn factor(i: usize, k: usize) -> f64 {
        ((i * 37 + k * 11 + i * i * 3) % 19) as f64 - 9.0
    }

    #[test]
    fn vectors_are_those_of_the_matrix() {
        for n in [0, 1, 2, 3, 7, 16, 33, 70, 180] {
            let random = |i: usize, j: usize| {
                let (i, j) = (i.min(j), i.max(j));
                ((i * 31 + j * 17 + i * i * j) % 101) as f64 / 50.0 - 1.0
            };
            for scale in [1.0, 1e-200, 1e200] {
                let a: Vec<f64> = (0..n * n).map(|at| scale * random(at / n, at % n)).collect();
                check(&a, n);
            }
            // Of rank 1, diagonal, and all 0: elements beside the diagonal that are 0.
            let one: Vec<f64> =
                (0..n * n).map(|at| (1 + at / n) as f64 * (1 + at % n) as f64).collect();
            let values = check(&one, n);
            let square: f64 = (1..=n).map(|i| (i * i) as f64).sum();
            assert!(n == 0 || (values[0] / square - 1.0).abs() < 1e-12);
            let diagonal: Vec<f64> =
                (0..n * n).map(|at| if at / n == at % n { (at % 5) as f64 } else { 0.0 }).collect();
            check(&diagonal, n);
            check(&vec![0.0; n * n], n);
            // Of low rank: most eigenvalues are rounding errors.
            let low = |i: usize, j: usize| (0..3).map(|k| factor(i, k) * factor(j, k)).sum();
            check(&(0..n * n).map(|at| low(at / n, at % n)).collect::<Vec<_>>(), n);
        }
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        for bad in [f64::NAN, f64::INFINITY] {
            assert_eq!(eigen(vec![1.0, bad, bad, 1.0], 2).err(), Some(NoEigenvalues));
        }
    }
}
