//! Codebooks: k-means over the values of each block (Han et al., arXiv 1510.00149).

use super::layout::Layout;
use crate::numeric::element::{Element, Float};
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};

/// Writes `count` levels for each block, in ascending order: the means of k-means, begun at
/// equal distances from the smallest to the largest value.
///
/// With `keep_zero`, one of them is 0, and values that are 0 take no part in the others.
/// `rounds` is how often values are assigned at most. Values are finite.
///
/// # Panics
/// If lengths do not fit the layout, or `count` is 0.
pub fn kmeans<E: Element>(
    x: &[E],
    layout: Layout,
    count: usize,
    keep_zero: bool,
    rounds: usize,
    levels: &mut [E::Compute],
) {
    assert!(x.len() == layout.elements() && count > 0);
    assert_eq!(levels.len(), layout.blocks() * count);
    let shared = SharedMut::new(levels);
    parallel::for_each(0..layout.blocks(), 1, 1, |part| {
        for block in part {
            // SAFETY: `levels` is borrowed until the loop ends; each block is visited once.
            let levels = unsafe { shared.slice(block * count..(block + 1) * count) };
            let rows = || layout.rows_of(block);
            let mut values = memory::with_capacity(rows().map(|row| row.len()).sum());
            for row in rows() {
                values.extend(x[row].iter().map(|x| x.load().to_f64()));
            }
            if keep_zero {
                values.retain(|x| *x != 0.0);
            }
            let mut means = memory::with_capacity(count);
            lloyd(values, count - usize::from(keep_zero), rounds, &mut means);
            if keep_zero {
                // At most `count`, since one mean was left out.
                means.push(0.0);
                means.sort_unstable_by(f64::total_cmp);
            }
            for (level, mean) in levels.iter_mut().zip(means) {
                *level = E::Compute::from_f64(mean);
            }
        }
    });
}

/// Appends the means of k-means over values, of which each belongs to the nearest, of two the
/// lower, to an empty vector.
fn lloyd(mut values: Vec<f64>, count: usize, rounds: usize, means: &mut Vec<f64>) {
    values.sort_unstable_by(f64::total_cmp);
    let (Some(&low), Some(&high)) = (values.first(), values.last()) else {
        return means.resize(count, 0.0);
    };
    // In order, each mean has neighbours: their sum is a difference of two of these.
    let mut sums = memory::with_capacity(values.len() + 1);
    sums.push(0.0);
    for x in &values {
        sums.push(sums[sums.len() - 1] + x);
    }
    let step = |i: usize| if count == 1 { 0.5 } else { i as f64 / (count - 1) as f64 };
    means.extend((0..count).map(|i| low * (1.0 - step(i)) + high * step(i)));
    let mut ends = memory::collect((0..count).map(|_| 0));
    for _ in 0..rounds {
        let mut changed = false;
        for (i, end) in ends.iter_mut().enumerate() {
            let new = match means.get(i..i + 2) {
                Some(pair) => values.partition_point(|x| *x <= pair[0] * 0.5 + pair[1] * 0.5),
                None => values.len(),
            };
            changed |= new != *end;
            *end = new;
        }
        if !changed {
            break;
        }
        let mut start = 0;
        for (mean, &end) in means.iter_mut().zip(&ends) {
            // One without values stays.
            if end > start {
                *mean = (sums[end] - sums[start]) / (end - start) as f64;
            }
            start = end;
        }
        // One that stayed may be behind its neighbour now.
        means.sort_unstable_by(f64::total_cmp);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_are_found() {
        let x = [0.0f32, 0.1, 0.2, 5.0, 5.1, 5.2, 9.9, 10.0, 10.1, 0.0];
        let mut levels = [0.0; 4];
        kmeans(&x, Layout::new(1, 10, 1, 10), 4, true, 100, &mut levels);
        for (level, truth) in levels.iter().zip([0.0f32, 0.15, 5.1, 10.0]) {
            assert!((level - truth).abs() < 1e-6, "{levels:?}");
        }
        let mut levels = [9.0; 6];
        kmeans(&[1.0f64, 1.0, 2.0, 4.0], Layout::new(2, 2, 1, 2), 3, false, 100, &mut levels);
        assert_eq!(levels, [1.0, 1.0, 1.0, 2.0, 3.0, 4.0]);
        kmeans(&[0.0f64; 4], Layout::new(2, 2, 1, 2), 3, true, 100, &mut levels);
        assert_eq!(levels, [0.0; 6]);
    }
}
