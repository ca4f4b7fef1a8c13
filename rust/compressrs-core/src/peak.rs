//! What this machine can do at most, at the level and with the threads in force: the
//! ceilings that benchmarks compare kernels with.
//!
//! Each function does a known amount of work, which the caller times.

use std::hint::black_box;

use crate::numeric::vector::{Vector, WithVector, by_level};
use crate::runtime::parallel;

pub use crate::quantize::product::dot_products;

/// Sums that do not wait for each other: more than latency times ports of any machine here,
/// few enough for 16 registers with two factors.
const SUMS: usize = 12;

/// Parts that the rounds of all threads are divided into, so that none waits long.
const PARTS: usize = 64;

/// Multiplies and adds in registers alone, `rounds` times in each of some tasks, and
/// returns how many multiply-adds of `f32` that was.
pub fn multiply_adds(rounds: usize) -> usize {
    let lanes = by_level::<f32, _>(Lanes);
    parallel::for_each(0..PARTS, 1, 1, |part| {
        for _ in part {
            by_level::<f32, _>(MultiplyAdds(rounds));
        }
    });
    PARTS * rounds * SUMS * lanes
}

struct Lanes;

impl WithVector<f32> for Lanes {
    type Output = usize;

    #[inline(always)]
    fn run<V: Vector<f32>, const R: usize, const Q: usize>(self) -> usize {
        V::LANES
    }
}

struct MultiplyAdds(usize);

impl WithVector<f32> for MultiplyAdds {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector<f32>, const R: usize, const Q: usize>(self) {
        // Values that the compiler does not know, and no two alike, or it would add once for all.
        let start: [f32; SUMS] = black_box(std::array::from_fn(|i| i as f32));
        let (a, b) = black_box((1e-3, 1e-4));
        let (a, b) = (V::splat(a), V::splat(b));
        let mut sums = start.map(V::splat);
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = sum.add_product(a, b);
            }
        }
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted() {
        assert_eq!(multiply_adds(0), 0);
        assert_eq!(multiply_adds(20), 2 * multiply_adds(10));
        assert_eq!(dot_products(0), 0);
        assert_eq!(dot_products(20), 2 * dot_products(10));
    }
}
