//! The exact order statistic of values or magnitudes, over one or many arrays, without
//! sorting, concatenating or copying them.
//!
//! Of many values, a sample brackets the one that is looked for; one pass counts
//! what lies below the bracket and keeps what lies within, less than a hundredth, of
//! which a radix histogram then finds it. Where the sample misled, the histogram
//! goes over all.

use std::marker::PhantomData;
use std::ops::Range;

use num_traits::Float as _;

use super::order::Order;
use crate::numeric::element::Element;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// Bits of a key that one pass decides.
const DIGIT: u32 = 16;

/// Values counted into one table.
const TABLE_VALUES: usize = 1 << 20;

/// Values of which a sample is taken.
const MANY: usize = 1 << 20;

/// Size of the sample.
const SAMPLE: usize = 1 << 17;

/// Values of the sample worth a task of their own.
const SAMPLE_GRAIN_ELEMENTS: usize = 1 << 13;

/// Half the width of the bracket in standard deviations of the sample's rank.
const DEVIATIONS: f64 = 4.0;

/// Values that [`Partition`] looks through at a time.
const UNIT: usize = 64;

/// Values that are counted before those within the bracket are kept.
const PANEL: usize = 16 * UNIT;

/// Counters of each kind, that is, lanes.
const LANES: usize = 16;

/// Values whose lanes are looked at together for what is within the bracket.
const WORD: usize = 8;

/// The place of a value among all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rank<E> {
    /// The value, or the magnitude; see [`Order::key`].
    pub value: E,
    /// How many come before it and are not equal.
    pub smaller: usize,
}

/// There is a NaN, which has no place in an order; [`find_nan`] says where.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HasNan;

/// The value with `k` others before it in ascending order, that is, element `k` of the
/// sorted values. None if there are no more than `k`.
///
/// # Errors
/// If a value is NaN.
pub fn rank<O: Order, E: Element>(arrays: &[&[E]], k: usize) -> Result<Option<Rank<E>>, HasNan> {
    let total: usize = arrays.iter().map(|a| a.len()).sum();
    if k < total && total >= MANY {
        let parts = rank_by_sample::<O, E>(arrays, k, total)?;
        if parts.is_some() {
            return Ok(parts);
        }
    } else if find_nan(arrays).is_some() {
        return Err(HasNan);
    }
    Ok(if k < total { rank_by_radix::<O, E>(arrays, k, total) } else { None })
}

/// As [`rank`]; None where the sample misled, or the bracket holds too much. Fails
/// wherever there is a NaN.
fn rank_by_sample<O: Order, E: Element>(
    arrays: &[&[E]],
    k: usize,
    total: usize,
) -> Result<Option<Rank<E>>, HasNan> {
    let mut sample = memory::zeroed::<u64>(SAMPLE);
    let shared = SharedMut::new(&mut sample);
    parallel::for_each(0..SAMPLE, SAMPLE_GRAIN_ELEMENTS, 1, |part| {
        // SAFETY: `sample` is borrowed until the loop ends; parts do not overlap.
        let keys = unsafe { shared.slice(part.clone()) };
        let (mut array, mut start) = (0, 0);
        for (key, i) in keys.iter_mut().zip(part) {
            // At equal distances; never beyond the last array.
            let position = (i as u128 * total as u128 / SAMPLE as u128) as usize;
            while position - start >= arrays[array].len() {
                start += arrays[array].len();
                array += 1;
            }
            *key = O::key(arrays[array][position - start]);
        }
    });
    let share = k as f64 / total as f64;
    let middle = share * SAMPLE as f64;
    let margin = DEVIATIONS * (middle * (1.0 - share)).sqrt() + 8.0;
    let index = |at: f64| at.clamp(0.0, (SAMPLE - 1) as f64) as usize;
    let (first, last) = (index(middle - margin), index(middle + margin));
    let (_, &mut low, above) = sample.select_nth_unstable(first);
    let high = if last > first { *above.select_nth_unstable(last - first - 1).1 } else { low };
    let bracket = [low, high].map(|key| O::value(O::from_key::<E>(key)));

    let parts = parallel::reduce(
        total,
        TABLE_VALUES,
        |part| {
            let mut parts = Partitioned::default();
            for slice in slices(arrays, part) {
                simd::dispatch(Partition {
                    order: PhantomData::<O>,
                    slice,
                    bracket,
                    parts: &mut parts,
                });
            }
            parts
        },
        Partitioned::join,
    );
    let Some(Partitioned { below, at_low, at_high, between, overflow, has_nan }) = parts else {
        return Ok(None);
    };
    if has_nan {
        return Err(HasNan);
    }
    let inner = below + at_low;
    let outer = inner + between.len();
    Ok(if overflow || k < below || k >= outer + at_high {
        None
    } else if k < inner {
        Some(Rank { value: O::from_key(low), smaller: below })
    } else if k >= outer {
        Some(Rank { value: O::from_key(high), smaller: outer })
    } else {
        rank_by_radix::<O, E>(&[&between], k - inner, between.len())
            .map(|within| Rank { smaller: inner + within.smaller, ..within })
    })
}

/// What lies where against a bracket.
struct Partitioned<E> {
    below: usize,
    /// Equal to the bracket's ends; counted as low if those are equal.
    at_low: usize,
    at_high: usize,
    /// Strictly within.
    between: Vec<E>,
    /// Whether too much was within to be kept.
    overflow: bool,
    has_nan: bool,
}

impl<E> Default for Partitioned<E> {
    fn default() -> Self {
        Partitioned {
            below: 0,
            at_low: 0,
            at_high: 0,
            between: Vec::new(),
            overflow: false,
            has_nan: false,
        }
    }
}

impl<E: Element> Partitioned<E> {
    fn join(mut self, other: Self) -> Self {
        self.below += other.below;
        self.at_low += other.at_low;
        self.at_high += other.at_high;
        self.overflow |= other.overflow;
        self.has_nan |= other.has_nan;
        memory::reserve(&mut self.between, other.between.len());
        self.between.extend(other.between);
        self
    }
}

/// Partitions the values of a slice by a bracket.
struct Partition<'a, O, E: Element> {
    order: PhantomData<O>,
    slice: &'a [E],
    bracket: [E::Compute; 2],
    parts: &'a mut Partitioned<E>,
}

/// Counts in each lane: below the bracket, at its lower end, at its upper end, NaN.
type Counts = [[u32; LANES]; 4];

impl<O: Order, E: Element> Kernel for Partition<'_, O, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (panels, rest) = self.slice.as_chunks::<PANEL>();
        let mut counts: Counts = [[0; LANES]; 4];
        for panel in panels {
            // Loops without calls, so that counters stay in registers.
            let mut hits = [false; PANEL / UNIT];
            for (hit, unit) in hits.iter_mut().zip(panel.as_chunks::<UNIT>().0) {
                *hit = self.count(unit, &mut counts);
            }
            let (mut kept, mut n) = ([E::default(); PANEL], 0);
            for (_, unit) in hits.iter().zip(panel.as_chunks::<UNIT>().0).filter(|(hit, _)| **hit) {
                self.keep(unit, &mut kept, &mut n);
            }
            if self.parts.between.len() + n > TABLE_VALUES / 8 {
                self.parts.overflow = true;
            } else {
                memory::reserve(&mut self.parts.between, n);
                self.parts.between.extend_from_slice(&kept[..n]);
            }
        }
        for x in rest {
            // The same value in all lanes, of which one counts.
            let mut all = Counts::default();
            if self.count(&[*x; LANES], &mut all) {
                memory::reserve(&mut self.parts.between, 1);
                self.parts.between.push(*x);
            }
            counts.iter_mut().zip(all).for_each(|(counts, all)| counts[0] += all[0]);
        }
        // At most TABLE_VALUES in each, so that no count overflows.
        let [below, at_low, at_high, nan] =
            counts.map(|c| c.iter().map(|&n| n as usize).sum::<usize>());
        self.parts.below += below;
        self.parts.at_low += at_low;
        // Counted once where both ends are the same value.
        self.parts.at_high += if self.bracket[0] == self.bracket[1] { 0 } else { at_high };
        self.parts.has_nan |= nan > 0;
    }
}

impl<O: Order, E: Element> Partition<'_, O, E> {
    /// Counts in lanes; returns whether anything is within the bracket.
    #[inline(always)]
    fn count<const N: usize>(&self, unit: &[E; N], counts: &mut Counts) -> bool {
        let [low, high] = self.bracket;
        let mut within = [0; LANES];
        for line in unit.as_chunks::<LANES>().0 {
            for l in 0..LANES {
                let x = O::value(line[l]);
                counts[0][l] += u32::from(x < low);
                counts[1][l] += u32::from(x == low);
                counts[2][l] += u32::from(x == high);
                counts[3][l] |= u32::from(x.is_nan());
                within[l] |= u32::from(x > low) & u32::from(x < high);
            }
        }
        within.iter().fold(0, |any, w| any | w) != 0
    }

    /// Appends what is within the bracket to the first `n`.
    #[inline(always)]
    fn keep(&self, unit: &[E; UNIT], kept: &mut [E; PANEL], n: &mut usize) {
        let [low, high] = self.bracket;
        let within = unit.map(|x| {
            let x = O::value(x);
            u8::from(x > low) & u8::from(x < high)
        });
        for (w, word) in within.as_chunks::<WORD>().0.iter().enumerate() {
            let mut bits = u64::from_le_bytes(*word);
            while bits != 0 {
                let l = bits.trailing_zeros() / u8::BITS;
                // A panel has no more, so that `%` changes nothing but the check.
                kept[*n % PANEL] = unit[w * WORD + l as usize];
                *n += 1;
                bits &= bits - 1;
            }
        }
    }
}

/// As [`rank`], by a radix histogram from the highest digit down: two passes for
/// `f32`, four for `f64`.
fn rank_by_radix<O: Order, E: Element>(arrays: &[&[E]], k: usize, total: usize) -> Option<Rank<E>> {
    let mut prefix = 0u64;
    let mut shift = O::key_bits::<E>();
    let mut smaller = 0;
    while shift > 0 {
        let digit = shift.min(DIGIT);
        let above = shift;
        shift -= digit;
        let counts = parallel::reduce(
            total,
            TABLE_VALUES,
            |part| {
                let mut counts = memory::zeroed::<usize>(1 << digit);
                for slice in slices(arrays, part) {
                    count::<O, E>(slice, prefix, above, shift, &mut counts);
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
    Some(Rank { value: O::from_key(prefix), smaller })
}

/// Counts the digit above `shift` of the values whose bits from `above` on are `prefix`.
fn count<O: Order, E: Element>(
    slice: &[E],
    prefix: u64,
    above: u32,
    shift: u32,
    counts: &mut [usize],
) {
    let mask = counts.len() - 1;
    for &x in slice {
        let key = O::key(x);
        // Nothing is above a key of 64 bits.
        if key.checked_shr(above).unwrap_or(0) == prefix {
            counts[(key >> shift) as usize & mask] += 1;
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
    arrays.iter().enumerate().find_map(|(a, array)| {
        let any = parallel::reduce(
            array.len(),
            TABLE_VALUES,
            |part| simd::dispatch(AnyNan(&array[part])),
            |a, b| a | b,
        );
        if any != Some(true) {
            return None;
        }
        array.iter().position(|x| x.load().is_nan()).map(|i| (a, i))
    })
}

/// Whether a slice holds a NaN.
struct AnyNan<'a, E>(&'a [E]);

impl<E: Element> Kernel for AnyNan<'_, E> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        // Without an early exit, so that it vectorizes.
        self.0.iter().fold(false, |any, x| any | x.load().is_nan())
    }
}
