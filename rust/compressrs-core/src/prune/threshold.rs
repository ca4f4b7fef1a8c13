//! The exact order statistic of magnitudes, over one or many arrays, without
//! sorting, concatenating or copying them.
//!
//! Of many values, a sample brackets the one that is looked for; one pass counts
//! what lies below the bracket and keeps what lies within, less than a hundredth, of
//! which a radix histogram then finds it. Where the sample misled, the histogram
//! goes over all.

use std::ops::Range;

use num_traits::Float as _;

use crate::element::Element;
use crate::parallel;
use crate::simd::{self, Kernel};

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

/// Values of which a sample is taken.
const MANY: usize = 1 << 20;

/// Size of the sample.
const SAMPLE: usize = 1 << 18;

/// Half the width of the bracket in standard deviations of the sample's rank.
const DEVIATIONS: f64 = 4.0;

/// Values that [`Sift`] looks through at a time.
const UNIT: usize = 64;

/// The magnitude with `k` others before it in ascending order, that is, element
/// `k` of the sorted magnitudes. NaN counts as the largest. None if there are no
/// more than `k` values.
pub fn rank<E: Element>(arrays: &[&[E]], k: usize) -> Option<Rank<E>> {
    let total: usize = arrays.iter().map(|a| a.len()).sum();
    if k >= total {
        return None;
    }
    let sifted = if total >= MANY { rank_by_sample(arrays, k, total) } else { None };
    sifted.or_else(|| rank_by_radix(arrays, k, total))
}

/// As [`rank`]; None where the sample misled, or the bracket holds too much.
fn rank_by_sample<E: Element>(arrays: &[&[E]], k: usize, total: usize) -> Option<Rank<E>> {
    let mut sample = Vec::with_capacity(SAMPLE);
    let (mut array, mut start) = (0, 0);
    for i in 0..SAMPLE {
        // Evenly spread; never beyond the last array.
        let position = (i as u128 * total as u128 / SAMPLE as u128) as usize;
        while position - start >= arrays[array].len() {
            start += arrays[array].len();
            array += 1;
        }
        sample.push(arrays[array][position - start].magnitude());
    }
    let share = k as f64 / total as f64;
    let middle = share * SAMPLE as f64;
    let margin = DEVIATIONS * (middle * (1.0 - share)).sqrt() + 8.0;
    let mut quantile = |at: f64| {
        let at = at.clamp(0.0, (SAMPLE - 1) as f64) as usize;
        E::from_magnitude(*sample.select_nth_unstable(at).1)
    };
    let (low, high) = (quantile(middle - margin), quantile(middle + margin));

    let sifted = parallel::reduce(
        total,
        BLOCK,
        |part| {
            let mut sifted = Sifted::default();
            for slice in slices(arrays, part) {
                let (low, high) = (low.load().abs(), high.load().abs());
                simd::dispatch(Sift { slice, low, high, sifted: &mut sifted });
            }
            sifted
        },
        Sifted::join,
    )?;
    let Sifted { below, at_low, at_high, between, overflow } = sifted;
    let inner = below + at_low;
    let outer = inner + between.len();
    if overflow || k < below || k >= outer + at_high {
        return None;
    }
    if k < inner {
        return Some(Rank { value: low, smaller: below });
    }
    if k >= outer {
        return Some(Rank { value: high, smaller: outer });
    }
    let within = rank_by_radix(&[&between], k - inner, between.len())?;
    Some(Rank { smaller: inner + within.smaller, ..within })
}

/// What lies where against a bracket. NaN lies nowhere, that is, above.
struct Sifted<E> {
    below: usize,
    /// Equal to the bracket's ends; counted as low if those are equal.
    at_low: usize,
    at_high: usize,
    /// Strictly within.
    between: Vec<E>,
    /// Whether too much was within to be kept.
    overflow: bool,
}

impl<E> Default for Sifted<E> {
    fn default() -> Self {
        Sifted { below: 0, at_low: 0, at_high: 0, between: Vec::new(), overflow: false }
    }
}

impl<E: Element> Sifted<E> {
    fn join(mut self, other: Self) -> Self {
        self.below += other.below;
        self.at_low += other.at_low;
        self.at_high += other.at_high;
        self.overflow |= other.overflow;
        self.between.extend(other.between);
        self
    }
}

/// Sifts the values of a slice by a bracket.
struct Sift<'a, E: Element> {
    slice: &'a [E],
    low: E::Compute,
    high: E::Compute,
    sifted: &'a mut Sifted<E>,
}

impl<E: Element> Kernel for Sift<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        let (units, rest) = self.slice.as_chunks::<UNIT>();
        let mut counts = [[0u32; UNIT]; 3];
        for unit in units {
            self.unit(unit, &mut counts);
        }
        // Filled up with NaN, the largest magnitude, which counts nowhere.
        let mut last = [E::from_magnitude((1 << E::MAGNITUDE_BITS) - 1); UNIT];
        last[..rest.len()].copy_from_slice(rest);
        self.unit(&last, &mut counts);
        // At most BLOCK in each, so that no count overflows.
        let [below, at_low, at_high] = counts.map(|c| c.iter().map(|&n| n as usize).sum::<usize>());
        self.sifted.below += below;
        self.sifted.at_low += at_low;
        // Counted once where both ends are the same value.
        self.sifted.at_high += if self.low == self.high { 0 } else { at_high };
    }
}

impl<E: Element> Sift<'_, E> {
    /// Counts, lane by lane, what is below the bracket and at its ends, and keeps
    /// what is within.
    #[inline(always)]
    fn unit(&mut self, unit: &[E; UNIT], counts: &mut [[u32; UNIT]; 3]) {
        let (low, high) = (self.low, self.high);
        let mut any = 0;
        for l in 0..UNIT {
            let x = unit[l].load().abs();
            counts[0][l] += u32::from(x < low);
            counts[1][l] += u32::from(x == low);
            counts[2][l] += u32::from(x == high);
            any |= u32::from(x > low) & u32::from(x < high);
        }
        if any == 0 {
            return;
        }
        if self.sifted.between.len() > BLOCK / 8 {
            self.sifted.overflow = true;
            return;
        }
        // Without branches, which nothing could predict.
        let (mut kept, mut n) = ([E::default(); UNIT], 0);
        for &x in unit {
            kept[n % UNIT] = x;
            n += usize::from((x.load().abs() > low) & (x.load().abs() < high));
        }
        self.sifted.between.extend_from_slice(&kept[..n]);
    }
}

/// As [`rank`], by a radix histogram from the highest digit down: two passes for
/// `f32`, four for `f64`.
fn rank_by_radix<E: Element>(arrays: &[&[E]], k: usize, total: usize) -> Option<Rank<E>> {
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
