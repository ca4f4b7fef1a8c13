//! Relational knowledge distillation (Park et al., arXiv 1904.05068): what distances
//! and angles between the samples of a batch are for the teacher, they shall be for
//! the student. Means are taken as in the authors' code: over all pairs and triples,
//! those of a sample with itself included.

use std::sync::atomic::{AtomicBool, Ordering};

use super::range::{multiply, of_largest, times, unit};
use super::tile::{LANES, broadcast, map_reduce, update};
use super::wide::{from_double, is_single, to_double};
use crate::numeric::element::Float;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, Kernel};

/// Multiply-adds worth a task of their own; see [`parallel::for_each`].
const GRAIN_MULTIPLY_ADDS: usize = 128 * 1024;

/// Rows of features.
#[derive(Clone, Copy, Debug)]
pub struct Features<'a, C> {
    /// The rows, one after another.
    pub data: &'a [C],
    /// Length of a row.
    pub width: usize,
}

impl<'a, C: Float> Features<'a, C> {
    #[inline(always)]
    fn row(self, i: usize) -> &'a [C] {
        &self.data[i * self.width..(i + 1) * self.width]
    }

    fn check(self, rows: usize) {
        assert!(rows > 0 && self.width > 0 && self.data.len() == rows * self.width);
    }
}

/// Calls a loss that does not depend on the size of the features with such that their largest
/// magnitude is near 1; None if their squares are in range as they stand. The loss may be None,
/// with `grad` unchanged.
fn in_unit<C: Float>(
    loss: impl Fn(Features<'_, C>, Features<'_, C>, &mut [C]) -> Option<f64>,
    student: Features<'_, C>,
    teacher: Features<'_, C>,
    grad: &mut [C],
) -> Option<Option<f64>> {
    let units = [student, teacher].map(|x| unit(x.data));
    if units == [None, None] {
        return None;
    }
    let [of_s, of_t] = units.map(|unit| unit.unwrap_or(1.0).recip());
    let (s, t) = (times(student.data, of_s), times(teacher.data, of_t));
    let value = loss(Features { data: &s, ..student }, Features { data: &t, ..teacher }, grad);
    if value.is_some() {
        multiply(grad, of_s);
    }
    Some(value)
}

/// Calls a loss with the features in double precision, in which no distance of numbers of single
/// precision is out of range, small ones beside large ones included. The loss may be None, with
/// `grad` unchanged.
fn in_double<C: Float>(
    loss: impl Fn(Features<'_, f64>, Features<'_, f64>, &mut [f64]) -> Option<f64>,
    student: Features<'_, C>,
    teacher: Features<'_, C>,
    grad: &mut [C],
) -> Option<f64> {
    let (s, t) = (to_double(student.data), to_double(teacher.data));
    let mut wide = memory::zeroed::<f64>(grad.len());
    let student = Features { data: &s, width: student.width };
    let teacher = Features { data: &t, width: teacher.width };
    let value = loss(student, teacher, &mut wide)?;
    from_double(&wide, grad);
    Some(value)
}

/// Whether no term of a sum of squares that counts was rounded by underflow, and neither the sum
/// nor what a gradient divides by it is near overflow.
#[inline(always)]
fn is_near<C: Float>(squares: f64, width: usize) -> bool {
    let least = C::min_positive_value().to_f64() / C::epsilon().to_f64();
    let most = C::max_value().to_f64().cbrt().powi(2);
    width as f64 * least <= squares && squares <= most
}

/// The length of `x - y`, whose squares may be out of range, as a power of 2 and the length in
/// units of it; both 0 if the rows are the same.
#[inline(always)]
fn length_of_difference<C: Float>(x: &[C], y: &[C]) -> (f64, f64) {
    let difference = |(x, y): (&C, &C)| Float::to_f64(*x) - Float::to_f64(*y);
    let largest = x.iter().zip(y).map(difference).fold(0.0, |top: f64, d: f64| top.max(d.abs()));
    if largest == 0.0 {
        return (0.0, 0.0);
    }
    let unit = of_largest(&[largest]);
    let squares = x.iter().zip(y).fold(0.0, |sum, pair| {
        let d = difference(pair) / unit;
        f64::mul_add(d, d, sum)
    });
    (unit, squares.sqrt())
}

/// Huber's loss with its bend at 1, and its derivative.
#[inline(always)]
fn huber(x: f64) -> (f64, f64) {
    let near = x.abs() < 1.0;
    (if near { 0.5 * x * x } else { x.abs() - 0.5 }, x.clamp(-1.0, 1.0))
}

/// The mean over all pairs of Huber's loss of the difference of distances, each divided
/// by the mean of the batch's distances that are not 0 (equations 5 to 7).
///
/// # Panics
/// If lengths disagree, or something is empty.
pub fn distance<C: Float>(
    rows: usize,
    student: Features<'_, C>,
    teacher: Features<'_, C>,
    grad: &mut [C],
) -> f64 {
    student.check(rows);
    teacher.check(rows);
    assert_eq!(grad.len(), student.data.len());
    if !is_single::<C>() {
        let loss =
            |s: Features<'_, _>, t: Features<'_, _>, g: &mut [_]| Some(distance(rows, s, t, g));
        if let Some(loss) = in_unit(loss, student, teacher, grad).flatten() {
            return loss;
        }
    }
    let Distances { all: of_s, mean: mean_s, count, are_near } = distances(rows, student);
    let Distances { all: of_t, mean: mean_t, are_near: of_teacher, .. } = distances(rows, teacher);
    if is_single::<C>() && !(are_near && of_teacher) {
        let loss =
            |s: Features<'_, _>, t: Features<'_, _>, g: &mut [_]| Some(distance(rows, s, t, g));
        return in_double(loss, student, teacher, grad).expect("a distance is not interrupted");
    }
    let share = 1.0 / (rows * rows) as f64;
    let mut slopes = memory::copied(&of_s);
    let (mut loss, mut moment) = (0.0, 0.0);
    for ((slope, s), t) in slopes.iter_mut().zip(&of_s).zip(&of_t) {
        let (value, derivative) = huber(s / mean_s - t / mean_t);
        loss += share * value;
        *slope = share * derivative;
        moment += share * derivative * s;
    }
    // The mean depends on each distance too.
    let common = moment / (mean_s * mean_s * count);
    for (slope, s) in slopes.iter_mut().zip(&of_s) {
        let down = 2.0 * (*slope / mean_s - common) / s;
        *slope = if *s > 0.0 { down } else { 0.0 };
    }
    let grad = SharedMut::new(grad);
    parallel::for_each(0..rows, GRAIN_MULTIPLY_ADDS.div_ceil(rows * student.width), 1, |part| {
        for i in part {
            // SAFETY: rows do not overlap.
            let grad = unsafe { grad.slice(i * student.width..(i + 1) * student.width) };
            simd::dispatch(Pull { student, i, slopes: &slopes[i * rows..(i + 1) * rows], grad });
        }
    });
    loss
}

/// The distances of all pairs of rows.
struct Distances {
    all: Vec<f64>,
    /// The mean of those that are not 0; 1 if there are none.
    mean: f64,
    /// The number of those that are not 0; at least 1.
    count: f64,
    /// Whether the squares of all that are not 0 are far from the limits of the type.
    are_near: bool,
}

fn distances<C: Float>(rows: usize, x: Features<'_, C>) -> Distances {
    let mut all = memory::zeroed::<f64>(memory::product(rows, rows));
    let (shared, far) = (SharedMut::new(&mut all), AtomicBool::new(false));
    parallel::for_each(0..rows, GRAIN_MULTIPLY_ADDS.div_ceil(rows * x.width), 1, |part| {
        for i in part {
            // SAFETY: rows do not overlap.
            let out = unsafe { shared.slice(i * rows..(i + 1) * rows) };
            if !simd::dispatch(OfRow { x, i, out }) {
                far.store(true, Ordering::Relaxed);
            }
        }
    });
    let count = all.iter().filter(|&&d| d > 0.0).count() as f64;
    let mean = if count > 0.0 { all.iter().sum::<f64>() / count } else { 1.0 };
    Distances { all, mean, count: count.max(1.0), are_near: !far.into_inner() }
}

/// The distances of a row from all; returns whether they are near, see [`Distances`].
struct OfRow<'a, C> {
    x: Features<'a, C>,
    i: usize,
    out: &'a mut [f64],
}

impl<C: Float> Kernel for OfRow<'_, C> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let from = self.x.row(self.i);
        let mut are_near = true;
        for (j, out) in self.out.iter_mut().enumerate() {
            let other = self.x.row(j);
            let inputs = [from, other];
            let [[squares]] =
                map_reduce::<C, 1, 2, 0, 1>(inputs, [], C::zero(), |[x, y], [sum], []| {
                    for l in 0..LANES {
                        let difference = x[l] - y[l];
                        sum[l] = difference.mul_add(difference, sum[l]);
                    }
                });
            if is_near::<C>(squares, self.x.width) {
                *out = squares.sqrt();
            } else if j != self.i {
                let (unit, of_unit) = length_of_difference(other, from);
                *out = unit * of_unit;
                are_near &= unit == 0.0;
            }
        }
        are_near
    }
}

/// `grad = sum_j slopes[j] (x_i - x_j)`
struct Pull<'a, C> {
    student: Features<'a, C>,
    i: usize,
    slopes: &'a [f64],
    grad: &'a mut [C],
}

impl<C: Float> Kernel for Pull<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let from = self.student.row(self.i);
        self.grad.fill(C::zero());
        for (j, &slope) in self.slopes.iter().enumerate() {
            if slope != 0.0 {
                let slope = broadcast([C::from_f64(slope)]);
                update(self.grad, [from, self.student.row(j)], |g, [x, y]| {
                    for l in 0..LANES {
                        g[l] = slope[l].mul_add(x[l] - y[l], g[l]);
                    }
                });
            }
        }
    }
}

/// Samples whose angles are added up before the sums are.
const ANCHORS: usize = 8;

/// The mean over all triples of Huber's loss of the difference of the cosines of the
/// angles at the first sample between the other two (equations 8 to 10).
///
/// The time is cubic in `rows`, so that it may be interrupted: `is_interrupted` is called for each
/// sample that the caller's thread works on. If it returns true, the result is None, and `grad`
/// is unchanged.
///
/// # Panics
/// If lengths disagree, or something is empty.
pub fn angle<C: Float>(
    rows: usize,
    student: Features<'_, C>,
    teacher: Features<'_, C>,
    grad: &mut [C],
    is_interrupted: &(impl Fn() -> bool + Sync),
) -> Option<f64> {
    student.check(rows);
    teacher.check(rows);
    assert_eq!(grad.len(), student.data.len());
    if is_single::<C>() {
        if ![student, teacher].iter().all(|&x| distances(rows, x).are_near) {
            let loss = |s: Features<'_, _>, t: Features<'_, _>, g: &mut [_]| {
                angle(rows, s, t, g, is_interrupted)
            };
            return in_double(loss, student, teacher, grad);
        }
    } else {
        let loss = |s: Features<'_, _>, t: Features<'_, _>, g: &mut [_]| {
            angle(rows, s, t, g, is_interrupted)
        };
        if let Some(loss) = in_unit(loss, student, teacher, grad) {
            return loss;
        }
    }
    let caller = std::thread::current().id();
    let stop = AtomicBool::new(false);
    let block = |anchors: std::ops::Range<usize>| {
        let mut grad = memory::zeroed::<C>(student.data.len());
        let mut loss = 0.0;
        for anchor in anchors {
            if std::thread::current().id() == caller && is_interrupted() {
                stop.store(true, Ordering::Relaxed);
            }
            if stop.load(Ordering::Relaxed) {
                break;
            }
            loss += simd::dispatch(Angles { rows, student, teacher, anchor, grad: &mut grad });
        }
        (loss, grad)
    };
    let add = |a: (f64, Vec<C>), b: (f64, Vec<C>)| {
        let mut grad = a.1;
        for (a, b) in grad.iter_mut().zip(&b.1) {
            *a += *b;
        }
        (a.0 + b.0, grad)
    };
    let (loss, sum) = parallel::reduce(rows, ANCHORS, block, add).expect("there are rows");
    if stop.into_inner() {
        return None;
    }
    grad.copy_from_slice(&sum);
    Some(loss)
}

/// The angles at one sample.
struct Angles<'a, C> {
    rows: usize,
    student: Features<'a, C>,
    teacher: Features<'a, C>,
    anchor: usize,
    grad: &'a mut [C],
}

impl<C: Float> Kernel for Angles<'_, C> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let Angles { rows, student, teacher, anchor, grad } = self;
        let width = student.width;
        let mut e_s = Scratch::<C>::new(rows * width);
        let mut e_t = Scratch::<C>::new(rows * teacher.width);
        let [mut lengths, mut others] = [(); 2].map(|()| memory::zeroed(rows));
        directions(student, anchor, &mut e_s, &mut lengths);
        directions(teacher, anchor, &mut e_t, &mut others);
        let (e_s, e_t) =
            (Features { data: &e_s, width }, Features { data: &e_t, width: teacher.width });
        let share = 1.0 / (rows as f64).powi(3);
        let mut loss = 0.0;
        let mut down = Scratch::<C>::new(width);
        let (before, rest) = grad.split_at_mut(anchor * width);
        let (own, after) = rest.split_at_mut(width);
        for j in 0..rows {
            if j == anchor {
                // The cosines with a vector of length 0 are 0 for both.
                continue;
            }
            down.fill(C::zero());
            for k in 0..rows {
                let (x, y) = (dot(e_s.row(j), e_s.row(k)), dot(e_t.row(j), e_t.row(k)));
                let (value, derivative) = huber(x - y);
                loss += share * value;
                // Of this triple, and of that with the others exchanged.
                let factor = broadcast([C::from_f64(2.0 * share * derivative)]);
                update(&mut down, [e_s.row(k)], |d, [e]| {
                    for l in 0..LANES {
                        d[l] = factor[l].mul_add(e[l], d[l]);
                    }
                });
            }
            if lengths[j] == 0.0 {
                continue;
            }
            let e = e_s.row(j);
            let along = broadcast([C::from_f64(dot(&down, e))]);
            let factor = broadcast([C::from_f64(lengths[j].recip())]);
            update(&mut down, [e], |d, [e]| {
                for l in 0..LANES {
                    d[l] = factor[l] * (d[l] - along[l] * e[l]);
                }
            });
            let other = if j < anchor {
                &mut before[j * width..(j + 1) * width]
            } else {
                &mut after[(j - anchor - 1) * width..(j - anchor) * width]
            };
            for ((other, own), &down) in other.iter_mut().zip(&mut *own).zip(&*down) {
                *other += down;
                *own = *own - down;
            }
        }
        loss
    }
}

/// The differences of all rows from one, divided by their lengths.
#[inline(always)]
fn directions<C: Float>(x: Features<'_, C>, anchor: usize, out: &mut [C], lengths: &mut [f64]) {
    let from = x.row(anchor);
    for (j, (out, length)) in out.chunks_exact_mut(x.width).zip(lengths).enumerate() {
        let inputs = [x.row(j), from];
        let [[squares]] = map_reduce::<C, 1, 2, 1, 1>(inputs, [&mut *out], C::zero(), {
            |[x, y], [sum], [out]| {
                for l in 0..LANES {
                    out[l] = x[l] - y[l];
                    sum[l] = out[l].mul_add(out[l], sum[l]);
                }
            }
        });
        let mut factor = 0.0;
        if is_near::<C>(squares, x.width) {
            *length = squares.sqrt();
            factor = length.recip();
        } else {
            let (unit, of_unit) = length_of_difference(x.row(j), from);
            *length = unit * of_unit;
            if unit > 0.0 {
                // As one factor it could overflow.
                multiply(out, unit.recip());
                factor = of_unit.recip();
            }
        }
        let factor = broadcast([C::from_f64(factor)]);
        update(out, [], |x, []| {
            for l in 0..LANES {
                x[l] = x[l] * factor[l];
            }
        });
    }
}

#[inline(always)]
fn dot<C: Float>(x: &[C], y: &[C]) -> f64 {
    let [[sum]] = map_reduce::<C, 1, 2, 0, 1>([x, y], [], C::zero(), |[x, y], [sum], []| {
        for l in 0..LANES {
            sum[l] = x[l].mul_add(y[l], sum[l]);
        }
    });
    sum
}
