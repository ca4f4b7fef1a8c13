//! DIST (Huang et al., arXiv 2205.10536): the student's probabilities shall be
//! correlated with the teacher's, in each row and in each column.

use super::GRAIN_ELEMENTS;
use super::softmax::{Axis, PerRow, SoftmaxOutput, softmax};
use super::tile::{LANES, broadcast, map_reduce, update};
use super::wide::{MAX_SINGLE_TEMPERATURE, from_double, is_single, to_double};
use crate::numeric::element::Float;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// What [`dist`] computes.
#[derive(Clone, Copy, Debug)]
pub struct Dist {
    /// Length of a row.
    pub classes: usize,
    /// `T` of both softmaxes.
    pub temperature: f64,
    /// Weight of the relation between the classes of a row.
    pub beta: f64,
    /// Weight of the relation between the rows in a class.
    pub gamma: f64,
}

/// What is added to the product of two lengths, as by the authors.
const EPSILON: f64 = 1e-8;

/// Rows whose columns are added up before the sums are.
const ROWS: usize = 64;

/// The loss and its gradient with respect to the student's logits:
///
/// ```text
/// T^2 (beta (1 - mean_i r(q_i, p_i)) + gamma (1 - mean_j r(q_:j, p_:j)))
/// ```
///
/// with `r` Pearson's correlation, 0 where one side does not vary.
///
/// # Panics
/// If lengths disagree, or something is empty.
pub fn dist<C: Float>(what: Dist, student: &[C], teacher: &[C], grad: &mut [C]) -> f64 {
    let Dist { classes, temperature, beta, gamma } = what;
    assert!(!student.is_empty() && student.len().is_multiple_of(classes));
    assert!(student.len() == teacher.len() && student.len() == grad.len());
    if is_single::<C>() && temperature > MAX_SINGLE_TEMPERATURE {
        // Probabilities are then so near to uniform that little is left of their deviations.
        let mut found = memory::zeroed(grad.len());
        let loss = dist::<f64>(what, &to_double(student), &to_double(teacher), &mut found);
        from_double(&found, grad);
        return loss;
    }
    let rows = student.len() / classes;
    let probabilities = |z: &[C]| {
        let mut p = memory::zeroed(z.len());
        let (axis, t) = (Axis::last(rows, classes), PerRow::All(temperature));
        softmax(axis, SoftmaxOutput::Probability, t, Some(z), &mut p);
        p
    };
    let (q, p) = (probabilities(student), probabilities(teacher));
    let squared = temperature * temperature;
    let columns = Columns::new(&q, &p, classes);
    // What of its own and of the teacher's deviation each column brings to a gradient.
    let weight = -squared * gamma / classes as f64;
    let mut by_column = [(); 2].map(|()| memory::with_capacity(classes));
    let mut loss = squared * gamma;
    for j in 0..classes {
        let (r, [own, other]) = correlation(columns.moments.each_ref().map(|m| m[j]));
        loss += weight * r;
        by_column[0].push(C::from_f64(weight * own));
        by_column[1].push(C::from_f64(weight * other));
    }
    let means = columns.means.each_ref();
    let means = means.map(|mean| memory::collect(mean.iter().map(|&x| C::from_f64(x))));
    let mut of_rows = memory::zeroed::<f64>(rows);
    let (shared, grad) = (SharedMut::new(&mut of_rows), SharedMut::new(grad));
    let weight = -squared * beta / rows as f64;
    parallel::for_each(0..rows, GRAIN_ELEMENTS.div_ceil(2 * classes), 1, |part| {
        for i in part {
            let cells = i * classes..(i + 1) * classes;
            // SAFETY: rows do not overlap.
            let (r, grad) = unsafe { (shared.slice(i..i + 1), grad.slice(cells.clone())) };
            r[0] = simd::dispatch(Row {
                q: &q[cells.clone()],
                p: &p[cells],
                means: &means,
                by_column: &by_column,
                weight,
                scale: temperature.recip(),
                grad,
            });
        }
    });
    loss + squared * beta + weight * of_rows.iter().sum::<f64>()
}

/// Pearson's correlation given the moments of the deviations `u` and `v`: those of
/// `u u`, `v v` and `u v`; and its derivative as factors of `u` and `v`.
fn correlation([uu, vv, uv]: [f64; 3]) -> (f64, [f64; 2]) {
    let (u, v) = (uu.sqrt(), vv.sqrt());
    let product = u * v + EPSILON;
    let own = if u > 0.0 { -uv * v / (product * product * u) } else { 0.0 };
    (uv / product, [own, product.recip()])
}

/// Mean of student and teacher in each column, and moments of their deviations.
struct Columns {
    means: [Vec<f64>; 2],
    moments: [Vec<f64>; 3],
}

impl Columns {
    fn new<C: Float>(q: &[C], p: &[C], classes: usize) -> Self {
        let rows = q.len() / classes;
        let mut means = sums(q, p, classes, |_, q, p| [q, p]);
        means.iter_mut().flatten().for_each(|x| *x /= rows as f64);
        let moments = sums(q, p, classes, |j, q, p| {
            let (u, v) = (q - means[0][j], p - means[1][j]);
            [u * u, v * v, u * v]
        });
        Columns { means, moments }
    }
}

/// The sums over the rows of the terms that `f` gives for each class.
fn sums<C: Float, const K: usize>(
    q: &[C],
    p: &[C],
    classes: usize,
    f: impl Fn(usize, f64, f64) -> [f64; K] + Sync,
) -> [Vec<f64>; K] {
    let block = |rows: std::ops::Range<usize>| {
        let mut sums: [Vec<f64>; K] = std::array::from_fn(|_| memory::zeroed(classes));
        for i in rows {
            let cells = i * classes..(i + 1) * classes;
            for (j, (q, p)) in q[cells.clone()].iter().zip(&p[cells]).enumerate() {
                for (sums, term) in sums.iter_mut().zip(f(j, Float::to_f64(*q), Float::to_f64(*p)))
                {
                    sums[j] += term;
                }
            }
        }
        sums
    };
    let add = |mut a: [Vec<f64>; K], b: [Vec<f64>; K]| {
        for (a, b) in a.iter_mut().flatten().zip(b.iter().flatten()) {
            *a += b;
        }
        a
    };
    parallel::reduce(q.len() / classes, ROWS, block, add).expect("there are rows")
}

/// A row: returns its correlation, and writes the gradient.
struct Row<'a, C> {
    q: &'a [C],
    p: &'a [C],
    means: &'a [Vec<C>; 2],
    by_column: &'a [Vec<C>; 2],
    weight: f64,
    scale: f64,
    grad: &'a mut [C],
}

impl<C: Float> Kernel for Row<'_, C> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let Row { q, p, means, by_column, weight, scale, grad } = self;
        // Probabilities of a row have this mean.
        let mean = broadcast([C::from_f64((q.len() as f64).recip())]);
        let sums = map_reduce::<C, 1, 2, 0, 3>([q, p], [], mean[0], |[q, p], [uu, vv, uv], []| {
            for l in 0..LANES {
                let (u, v) = (q[l] - mean[l], p[l] - mean[l]);
                uu[l] = u.mul_add(u, uu[l]);
                vv[l] = v.mul_add(v, vv[l]);
                uv[l] = u.mul_add(v, uv[l]);
            }
        });
        let (r, factors) = correlation(sums.map(|[sum]| sum));
        let [own, other] = factors.map(|factor| broadcast([C::from_f64(weight * factor)]));
        let inputs = [q, p, &means[0], &means[1], &by_column[0], &by_column[1]];
        // The gradient with respect to q, and through the softmax.
        let [[dot]] = map_reduce::<C, 1, 6, 1, 1>(inputs, [&mut *grad], C::zero(), {
            |[q, p, mean_q, mean_p, of_q, of_p], [sum], [g]| {
                for l in 0..LANES {
                    let row = own[l] * (q[l] - mean[l]) + other[l] * (p[l] - mean[l]);
                    let column = of_q[l] * (q[l] - mean_q[l]) + of_p[l] * (p[l] - mean_p[l]);
                    g[l] = row + column;
                    sum[l] = g[l].mul_add(q[l], sum[l]);
                }
            }
        });
        let (dot, scale) = (broadcast([C::from_f64(dot)]), broadcast([C::from_f64(scale)]));
        update(grad, [q], |g, [q]| {
            for l in 0..LANES {
                g[l] = scale[l] * q[l] * (g[l] - dot[l]);
            }
        });
        r
    }
}
