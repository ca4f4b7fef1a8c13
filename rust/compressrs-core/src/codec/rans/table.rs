//! How often symbols occur, in 4096ths, and what encoder and decoder make of it.

use super::{BITS, TOTAL};
use crate::codec::{Damaged, push_number, take_byte, take_number};

/// Slots of a decoder: one for each value of the low bits of a state.
pub type Slots = [u32; TOTAL as usize];

/// The frequencies of the 256 symbols. They add up to [`TOTAL`], and two at least are not 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    frequencies: [u16; 256],
    slots: Box<Slots>,
}

/// What the encoder needs of a symbol.
#[derive(Clone, Copy, Default)]
pub struct Row {
    /// From here on a word must be written before the symbol.
    pub limit: u32,
    /// `TOTAL - frequency`.
    pub rest: u32,
    pub start: u32,
    /// `2^44 / frequency`, rounded up.
    pub reciprocal: u64,
}

impl Table {
    /// The table for symbols that occur so often. None if fewer than two do.
    pub fn new(counts: &[u32; 256]) -> Option<Table> {
        if counts.iter().filter(|&&count| count > 0).count() < 2 {
            return None;
        }
        Some(Table::of(normalize(counts)))
    }

    fn of(frequencies: [u16; 256]) -> Table {
        let mut slots = Box::new([0; TOTAL as usize]);
        let mut start = 0;
        for (symbol, &frequency) in frequencies.iter().enumerate() {
            for offset in 0..usize::from(frequency) {
                // 12 bits of frequency, 12 of what the state keeps, 8 of the symbol.
                slots[start + offset] =
                    u32::from(frequency) << 20 | (offset as u32) << 8 | symbol as u32;
            }
            start += usize::from(frequency);
        }
        Table { frequencies, slots }
    }

    /// The slots of a decoder.
    pub fn decoder(&self) -> &Slots {
        &self.slots
    }

    /// The rows of an encoder.
    pub fn encoder(&self) -> [Row; 256] {
        let mut rows = [Row::default(); 256];
        let mut start = 0;
        for (row, &frequency) in rows.iter_mut().zip(&self.frequencies) {
            let frequency = u32::from(frequency);
            if frequency > 0 {
                *row = Row {
                    limit: frequency << 20,
                    rest: TOTAL - frequency,
                    start,
                    reciprocal: (1u64 << 44).div_ceil(u64::from(frequency)),
                };
            }
            start += frequency;
        }
        rows
    }

    /// Bits that symbols which occur so often take, in 65536ths.
    pub fn cost(&self, counts: &[u32; 256]) -> u64 {
        counts
            .iter()
            .zip(&self.frequencies)
            .map(|(&count, &frequency)| match frequency {
                0 => 0,
                f => u64::from(count) * u64::from((BITS << 16) - log2(u32::from(f))),
            })
            .sum()
    }

    /// Appends the table: the runs of symbols that occur, then their frequencies but the last.
    pub fn write(&self, out: &mut Vec<u8>) {
        let runs: Vec<(usize, usize)> = self.runs();
        push_number(out, runs.len());
        let mut end = 0;
        for &(from, to) in &runs {
            push_number(out, from - end);
            push_number(out, to - from);
            end = to;
        }
        let mut rest: Vec<u16> = self.frequencies.iter().copied().filter(|&f| f > 0).collect();
        rest.pop();
        for frequency in rest {
            push_number(out, usize::from(frequency));
        }
    }

    /// The ranges of symbols that occur.
    fn runs(&self) -> Vec<(usize, usize)> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for symbol in (0..256).filter(|&s| self.frequencies[s] > 0) {
            match runs.last_mut() {
                Some((_, to)) if *to == symbol => *to += 1,
                _ => runs.push((symbol, symbol + 1)),
            }
        }
        runs
    }

    /// Takes what [`write`](Self::write) writes.
    ///
    /// # Errors
    /// The bytes are no table.
    pub fn read(bytes: &mut &[u8]) -> Result<Table, Damaged> {
        let runs = take_number(bytes)?;
        if !(1..=128).contains(&runs) {
            return Err(Damaged("a table has no runs of symbols, or too many"));
        }
        let mut occurs = [false; 256];
        let mut end = 0;
        for _ in 0..runs {
            let from = end + take_number(bytes)?;
            end = from + take_number(bytes)?;
            if from == end || end > 256 {
                return Err(Damaged("a table has a run of symbols beyond the last"));
            }
            occurs[from..end].fill(true);
        }
        let mut left = TOTAL as usize;
        let mut frequencies = [0; 256];
        let last = end - 1;
        for symbol in (0..last).filter(|&s| occurs[s]) {
            let frequency = match bytes.first() {
                // The most common case, and the shortest.
                Some(&byte) if byte < 0x80 => usize::from(take_byte(bytes)?),
                _ => take_number(bytes)?,
            };
            if frequency == 0 || frequency >= left {
                return Err(Damaged("a table's frequencies do not add up"));
            }
            frequencies[symbol] = frequency as u16;
            left -= frequency;
        }
        if left == TOTAL as usize {
            return Err(Damaged("a table has one symbol only"));
        }
        frequencies[last] = left as u16;
        Ok(Table::of(frequencies))
    }
}

/// The logarithm to base 2 of a positive number, in 65536ths, rounded down. In whole numbers,
/// so that every machine gives the same.
fn log2(x: u32) -> u32 {
    let whole = x.ilog2();
    // The mantissa in [1, 2) with 31 bits behind the point; each squaring gives a bit.
    let mut mantissa = u64::from(x) << 31 >> whole;
    let mut fraction = 0;
    for _ in 0..16 {
        mantissa = (mantissa * mantissa) >> 31;
        fraction <<= 1;
        if mantissa >= 1 << 32 {
            mantissa >>= 1;
            fraction |= 1;
        }
    }
    whole << 16 | fraction
}

/// Scales counts to frequencies that add up to [`TOTAL`], none of them 0 where a count is not.
fn normalize(counts: &[u32; 256]) -> [u16; 256] {
    let total: u64 = counts.iter().map(|&count| u64::from(count)).sum();
    let mut frequencies = [0u16; 256];
    for (frequency, &count) in frequencies.iter_mut().zip(counts) {
        if count > 0 {
            let scaled = (u64::from(count) * u64::from(TOTAL) + total / 2) / total;
            *frequency = scaled.clamp(1, u64::from(TOTAL) - 1) as u16;
        }
    }
    // What rounding left over goes to, or comes from, where it changes the length least: a
    // step from f changes it by about count / f.
    loop {
        let sum: u32 = frequencies.iter().map(|&f| u32::from(f)).sum();
        let occurring = (0..256).filter(|&s| counts[s] > 0);
        let ratio = |s: usize, by: i32| {
            (u64::from(counts[s]) << 24) / (2 * i64::from(frequencies[s]) + i64::from(by)) as u64
        };
        if sum == TOTAL {
            return frequencies;
        } else if sum > TOTAL {
            let least = occurring.filter(|&s| frequencies[s] > 1).min_by_key(|&s| ratio(s, -1));
            // 256 symbols of frequency 1 are less than the total.
            frequencies[least.expect("a frequency above 1")] -= 1;
        } else {
            let most = occurring.max_by_key(|&s| ratio(s, 1));
            frequencies[most.expect("a symbol occurs")] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_those_of_floating_point() {
        for x in 1..=4096u32 {
            let exact = f64::from(x).log2() * 65536.0;
            assert!((f64::from(log2(x)) - exact).abs() < 1.01, "{x}");
        }
    }

    #[test]
    fn frequencies_add_up_and_no_symbol_is_lost() {
        let cases: [Vec<u32>; 6] = [
            vec![1, 1],
            vec![1, u32::MAX],
            vec![1; 256],
            (0..256).map(|i| 1 + i * i * i).collect(),
            (0..256).map(|i| if i == 7 { 1 << 30 } else { 1 }).collect(),
            (0..255).map(|i| 1 << (i % 31)).collect(),
        ];
        for case in cases {
            let mut counts = [0; 256];
            counts[..case.len()].copy_from_slice(&case);
            let table = Table::new(&counts).unwrap();
            assert_eq!(table.frequencies.iter().map(|&f| u32::from(f)).sum::<u32>(), TOTAL);
            for (count, frequency) in counts.iter().zip(table.frequencies) {
                assert_eq!(*count > 0, frequency > 0);
            }
            let mut bytes = Vec::new();
            table.write(&mut bytes);
            let mut rest = &bytes[..];
            assert_eq!(Table::read(&mut rest), Ok(table));
            assert!(rest.is_empty());
        }
        assert_eq!(Table::new(&[0; 256]), None);
    }
}
