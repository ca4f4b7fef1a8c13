//! The exact order statistic of magnitudes, over one or many arrays, without
//! sorting, concatenating or copying them.

use std::ops::Range;

use crate::element::Element;
use crate::parallel;

/// Bits of a magnitude that one pass decides.
const DIGIT: u32 = 16;

/// Values counted into one table.
const BLOCK: usize = 1 << 20;

/// The place of a magnitude among all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rank<E> {
    /// The magnitude.
    pub value: E,
    /// How many magnitudes are smaller.
    pub smaller: usize,
}

/// The magnitude with `k` others before it in ascending order, that is, element
/// `k` of the sorted magnitudes, by a radix histogram from the highest digit
/// down: two passes for `f32`, four for `f64`. NaN counts as the largest.
/// None if there are no more than `k` values.
pub fn rank<E: Element>(arrays: &[&[E]], k: usize) -> Option<Rank<E>> {
    let total: usize = arrays.iter().map(|a| a.len()).sum();
    if k >= total {
        return None;
    }
    let mut prefix = 0u64;
    let mut shift = E::MAGNITUDE_BITS;
    let mut smaller = 0;
    while shift > 0 {
        let digit = shift.min(DIGIT);
        let above = shift;
        shift -= digit;
        let counts = parallel::reduce(
            total,
            BLOCK,
            |part| {
                let mut counts = vec![0usize; 1 << digit];
                for slice in slices(arrays, part) {
                    count(slice, prefix, above, shift, &mut counts);
                }
                counts
            },
            |mut a, b| {
                a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
                a
            },
        )?;
        let mut bucket = 0;
        while smaller + counts[bucket] <= k {
            smaller += counts[bucket];
            bucket += 1;
        }
        prefix = prefix << digit | bucket as u64;
    }
    Some(Rank { value: E::from_magnitude(prefix), smaller })
}

/// Counts the digit above `shift` of the values whose bits from `above` on are `prefix`.
fn count<E: Element>(slice: &[E], prefix: u64, above: u32, shift: u32, counts: &mut [usize]) {
    let mask = counts.len() - 1;
    for x in slice {
        let bits = x.magnitude();
        // A magnitude has at most 63 bits, so `above` is a valid shift.
        if bits >> above == prefix {
            counts[(bits >> shift) as usize & mask] += 1;
        }
    }
}

/// The parts of `arrays`, laid end to end, that `range` covers.
fn slices<'a, E>(arrays: &'a [&'a [E]], range: Range<usize>) -> impl Iterator<Item = &'a [E]> {
    let mut start = 0;
    arrays.iter().filter_map(move |array| {
        let begin = range.start.saturating_sub(start).min(array.len());
        let end = range.end.saturating_sub(start).min(array.len());
        start += array.len();
        (begin < end).then(|| &array[begin..end])
    })
}

/// Array and index of the first NaN.
pub fn find_nan<E: Element>(arrays: &[&[E]]) -> Option<(usize, usize)> {
    use num_traits::Float;
    let is_nan = |x: &E| x.load().is_nan();
    arrays.iter().enumerate().find_map(|(a, array)| {
        let any = parallel::reduce(
            array.len(),
            BLOCK,
            // Without an early exit, so that it vectorizes.
            |part| array[part].iter().fold(false, |any, x| any | is_nan(x)),
            |a, b| a | b,
        );
        if any == Some(true) { array.iter().position(is_nan).map(|i| (a, i)) } else { None }
    })
}
