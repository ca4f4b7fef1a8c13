//! The Newton-Schulz iteration, which moves all singular values of a matrix towards 1.

use super::gemm::{multiply, multiply_by_transpose, multiply_symmetric};
use super::matrix::Matrix;
use crate::numeric::element::Float;
use crate::runtime::scratch::Scratch;

/// How many numbers [`orthogonalize`] computes on the side, at most, with what products pack.
pub(crate) fn scratch_len(rows: usize, columns: usize) -> usize {
    let (short, elements) = (rows.min(columns), rows.saturating_mul(columns));
    elements.saturating_mul(3).saturating_add(short.saturating_mul(short).saturating_mul(6))
}

/// Repeats `x <- a x + (b g + c g g) x` with `g = x x'`, or `x' x` if that is smaller, so many
/// times; `x` is in row-major order.
///
/// `steps` products with the longer side are saved where it is so much longer that it pays:
/// all the polynomials are of the first `g`, so that they commute, and the iteration can be
/// followed on `g` alone, whose side is the shorter one. The polynomials are multiplied
/// together, and `x` by their product at the end. It is less exact for singular values below
/// the root of the precision, but a hundred times more so than the iteration in bfloat16.
///
/// # Panics
/// If `x` is not of this size.
pub(crate) fn orthogonalize<T: Float>(
    x: &mut Scratch<T>,
    rows: usize,
    columns: usize,
    coefficients: [T; 3],
    steps: u32,
) {
    assert_eq!(x.len(), rows * columns);
    let (short, long) = (rows.min(columns), rows.max(columns));
    let shape = Shape { rows, columns };
    let mut next = Scratch::<T>::new(x.len());
    // Multiply-adds over `short^3`, as `symmetric` products take half of them:
    // `steps (3/2 long / short + 1/2)` against `2 steps - 3/2 + 3/2 long / short`.
    if steps >= 2 && long >= short + short / 2 {
        let [mut gram, mut polynomial, mut all, mut other] =
            [(); 4].map(|()| Scratch::<T>::new(short * short));
        shape.gram(x, &mut gram);
        for step in 0..steps {
            shape.polynomial(coefficients, &gram, &mut polynomial);
            polynomial.iter_mut().step_by(short + 1).for_each(|p| *p += coefficients[0]);
            let p = square(&polynomial, short);
            if step == 0 {
                all.copy_from_slice(&polynomial);
            } else {
                multiply_symmetric(T::one(), p, square(&all, short), None, &mut other);
                std::mem::swap(&mut all, &mut other);
            }
            if step + 1 < steps {
                multiply_symmetric(T::one(), p, square(&gram, short), None, &mut other);
                multiply_symmetric(T::one(), p, square(&other, short), None, &mut gram);
            }
        }
        shape.apply(&all, x, None, &mut next);
        std::mem::swap(x, &mut next);
        return;
    }
    let [mut gram, mut polynomial] = [(); 2].map(|()| Scratch::<T>::new(short * short));
    for _ in 0..steps {
        shape.gram(x, &mut gram);
        shape.polynomial(coefficients, &gram, &mut polynomial);
        shape.apply(&polynomial, x, Some((coefficients[0], x)), &mut next);
        std::mem::swap(x, &mut next);
    }
}

fn square<T: Float>(elements: &[T], n: usize) -> Matrix<'_, T> {
    Matrix::row_major(elements, n, n)
}

/// That of the matrix that is iterated on.
struct Shape {
    rows: usize,
    columns: usize,
}

impl Shape {
    fn short(&self) -> usize {
        self.rows.min(self.columns)
    }

    fn matrix<'a, T: Float>(&self, x: &'a [T]) -> Matrix<'a, T> {
        Matrix::row_major(x, self.rows, self.columns)
    }

    /// The products of the vectors along the longer side.
    fn gram<T: Float>(&self, x: &[T], out: &mut [T]) {
        let x = self.matrix(x);
        let wide = if self.rows > self.columns { x.transposed() } else { x };
        multiply_by_transpose(T::one(), wide, None, out);
    }

    /// `b g + c g g`
    fn polynomial<T: Float>(&self, [_, b, c]: [T; 3], gram: &[T], out: &mut [T]) {
        multiply_by_transpose(c, square(gram, self.short()), Some((b, gram)), out);
    }

    /// Multiplies the shorter side by a symmetric matrix.
    fn apply<T: Float>(&self, symmetric: &[T], x: &[T], add: Option<(T, &[T])>, out: &mut [T]) {
        let (s, x) = (square(symmetric, self.short()), self.matrix(x));
        let (a, b) = if self.rows > self.columns { (x, s) } else { (s, x) };
        multiply(T::one(), a, b, add, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COEFFICIENTS: [f64; 3] = [3.4445, -4.775, 2.0315];

    /// The polynomial of a singular value.
    fn value(mut s: f64, steps: u32) -> f64 {
        let [a, b, c] = COEFFICIENTS;
        for _ in 0..steps {
            s *= a + b * s * s + c * s.powi(4);
        }
        s
    }

    #[test]
    fn singular_values_follow_the_polynomial_whatever_the_shape() {
        for (rows, columns) in [(1, 1), (1, 9), (9, 1), (8, 8), (8, 11), (8, 12), (40, 8)] {
            for steps in [0, 1, 2, 5] {
                let short = rows.min(columns);
                // Diagonal, so that the singular values are seen.
                let mut x = Scratch::<f64>::new(rows * columns);
                x.fill(0.0);
                for i in 0..short {
                    x[i * columns + i] = 0.9f64.powi(3 * i as i32);
                }
                let before = x.to_vec();
                orthogonalize(&mut x, rows, columns, COEFFICIENTS, steps);
                for (i, (&x, &before)) in x.iter().zip(&before).enumerate() {
                    let expected = if before == 0.0 { 0.0 } else { value(before, steps) };
                    assert!((x - expected).abs() < 1e-12, "{rows} {columns} {steps} {i}");
                }
            }
        }
        let mut empty = Scratch::<f64>::new(0);
        orthogonalize(&mut empty, 0, 5, COEFFICIENTS, 5);
    }
}
