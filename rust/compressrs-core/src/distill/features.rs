//! Losses on what layers in the middle give: hints and attention maps.

use super::GRAIN_ELEMENTS;
use super::range::{multiply, of_largest, times};
use super::tile::{LANES, broadcast, map_reduce, update};
use super::wide::{from_double, is_single, to_double};
use crate::numeric::element::Float;
use crate::numeric::lanes;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, Kernel};

/// Half the squared distance of student and teacher (Romero et al., arXiv 1412.6550,
/// equation 3), the mean over the rows, and its gradient:
///
/// ```text
/// sum (s - t)^2 / (2 rows),  (s - t) / rows
/// ```
///
/// # Panics
/// If lengths differ or there are no rows.
pub fn hint<C: Float>(rows: usize, student: &[C], teacher: &[C], grad: &mut [C]) -> f64 {
    assert!(rows > 0 && student.len() == teacher.len() && student.len() == grad.len());
    let share = (rows as f64).recip();
    let grad = SharedMut::new(grad);
    let block = |part: std::ops::Range<usize>| {
        // SAFETY: parts do not overlap.
        let grad = unsafe { grad.slice(part.clone()) };
        simd::dispatch(Hint { s: &student[part.clone()], t: &teacher[part], grad, share })
    };
    let mut total =
        parallel::reduce(student.len(), GRAIN_ELEMENTS, block, |a, b| a + b).unwrap_or(0.0);
    let least = C::min_positive_value().to_f64() / C::epsilon().to_f64();
    if total == f64::INFINITY || total < student.len() as f64 * least {
        // Squares may be in the range of double precision.
        [total] = lanes::total(student.len(), |i| {
            let difference = student[i].to_f64() - teacher[i].to_f64();
            [difference * difference]
        });
    }
    0.5 * share * total
}

struct Hint<'a, C> {
    s: &'a [C],
    t: &'a [C],
    grad: &'a mut [C],
    share: f64,
}

impl<C: Float> Kernel for Hint<'_, C> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let share = C::from_f64(self.share);
        let inputs = [self.s, self.t];
        let [[sum]] =
            map_reduce::<C, 1, 2, 1, 1>(inputs, [self.grad], C::zero(), |[s, t], [sum], [g]| {
                for l in 0..LANES {
                    let difference = s[l] - t[l];
                    sum[l] = difference.mul_add(difference, sum[l]);
                    g[l] = share * difference;
                }
            });
        sum
    }
}

/// Feature maps: the channels of each sample, and the positions of each channel.
#[derive(Clone, Copy, Debug)]
pub struct Maps<'a, C> {
    /// The values, place by place, channel by channel, sample by sample.
    pub data: &'a [C],
    /// Channels of a sample.
    pub channels: usize,
}

/// Below this length a vector is not made one of length 1.
const EPSILON: f64 = 1e-12;

/// Attention transfer (Zagoruyko & Komodakis, arXiv 1612.03928), as in its authors'
/// code: the mean over samples and places of `(a_s - a_t)^2`, where a sample's `a` is
/// the sum over the channels of the squares, divided by its length.
///
/// # Panics
/// If lengths disagree, or something is empty.
pub fn attention<C: Float>(
    samples: usize,
    places: usize,
    student: Maps<'_, C>,
    teacher: Maps<'_, C>,
    grad: &mut [C],
) -> f64 {
    assert!(samples * places > 0 && grad.len() == student.data.len());
    let size = |maps: Maps<'_, C>| {
        assert!(maps.channels > 0 && maps.data.len() == samples * places * maps.channels);
        places * maps.channels
    };
    let (size_s, size_t) = (size(student), size(teacher));
    let share = ((samples * places) as f64).recip();
    let mut losses = memory::zeroed::<f64>(samples);
    let (shared, grad) = (SharedMut::new(&mut losses), SharedMut::new(grad));
    parallel::for_each(0..samples, GRAIN_ELEMENTS.div_ceil(size_s + size_t), 1, |part| {
        for i in part {
            let range = i * size_s..(i + 1) * size_s;
            // SAFETY: samples do not overlap.
            let (loss, grad) =
                unsafe { (&mut shared.slice(i..i + 1)[0], grad.slice(range.clone())) };
            let s = &student.data[range];
            let t = &teacher.data[i * size_t..(i + 1) * size_t];
            let longest;
            (*loss, longest) = simd::dispatch(Attention { s, t, places, grad, share });
            if longest == f64::INFINITY {
                // The loss does not depend on the size of either.
                let [unit_s, unit_t] = [s, t].map(|x| of_largest(x).recip());
                let (s, t) = (times(s, unit_s), times(t, unit_t));
                (*loss, _) = simd::dispatch(Attention { s: &s, t: &t, places, grad, share });
                multiply(grad, unit_s);
            } else if longest <= EPSILON && is_single::<C>() {
                // Neither is made one of length 1, and squares may have underflowed.
                let (s, t) = (to_double(s), to_double(t));
                let mut wide = memory::zeroed::<f64>(grad.len());
                let of_sample = Attention { s: &s, t: &t, places, grad: &mut wide, share };
                (*loss, _) = simd::dispatch(of_sample);
                from_double(&wide, grad);
            }
        }
    });
    share * losses.iter().sum::<f64>()
}

/// A sample's maps: returns the loss, and the larger of the lengths.
struct Attention<'a, C> {
    s: &'a [C],
    t: &'a [C],
    places: usize,
    grad: &'a mut [C],
    share: f64,
}

impl<C: Float> Kernel for Attention<'_, C> {
    type Output = (f64, f64);

    #[inline(always)]
    fn run(self) -> (f64, f64) {
        let [mut a_s, mut a_t] = [(); 2].map(|()| Scratch::<C>::new(self.places));
        let length = direction(self.s, &mut a_s);
        let longest = length.max(direction(self.t, &mut a_t));
        // Of the loss: the sum, and what the gradient has along `a_s`.
        let inputs = [&*a_s, &*a_t];
        let [[sum], [along]] = map_reduce::<C, 1, 2, 0, 2>(inputs, [], C::zero(), {
            |[s, t], [sum, along], []| {
                for l in 0..LANES {
                    let difference = s[l] - t[l];
                    sum[l] = difference.mul_add(difference, sum[l]);
                    along[l] = difference.mul_add(s[l], along[l]);
                }
            }
        });
        // Below EPSILON the length does not depend on the maps.
        let along = if length > EPSILON { along } else { 0.0 };
        let (factor, along) = (4.0 * self.share / length.max(EPSILON), C::from_f64(along));
        let (factor, along) = (broadcast([C::from_f64(factor)]), broadcast([along]));
        update(&mut a_t, [&a_s], |t, [s]| {
            for l in 0..LANES {
                t[l] = factor[l] * ((s[l] - t[l]) - along[l] * s[l]);
            }
        });
        for (grad, s) in self.grad.chunks_exact_mut(self.places).zip(self.s.chunks(self.places)) {
            update(grad, [s, &a_t], |g, [s, factor]| {
                for l in 0..LANES {
                    g[l] = s[l] * factor[l];
                }
            });
        }
        (sum, longest)
    }
}

/// Writes the sum of the squares over the channels, divided by its length, which is
/// returned.
#[inline(always)]
fn direction<C: Float>(maps: &[C], out: &mut [C]) -> f64 {
    out.fill(C::zero());
    for map in maps.chunks(out.len()) {
        update(out, [map], |sum, [x]| {
            for l in 0..LANES {
                sum[l] = x[l].mul_add(x[l], sum[l]);
            }
        });
    }
    let [[squares]] = map_reduce::<C, 1, 1, 0, 1>([&*out], [], C::zero(), |[x], [sum], []| {
        for l in 0..LANES {
            sum[l] = x[l].mul_add(x[l], sum[l]);
        }
    });
    let length = squares.sqrt();
    let factor = broadcast([C::from_f64(length.max(EPSILON).recip())]);
    update(out, [], |x, []| {
        for l in 0..LANES {
            x[l] = x[l] * factor[l];
        }
    });
    length
}
