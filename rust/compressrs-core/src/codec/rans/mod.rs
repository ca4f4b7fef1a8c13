//! Interleaved rANS over bytes (Duda, arXiv 1311.2540; Giesen, arXiv 1402.3392).
//!
//! A state is 32 bits, renormalized by 16-bit words; frequencies are 12 bits. Symbol `i`
//! belongs to state `i % N`, and the states take their words from one sequence in the
//! order of the symbols, which is what lets a vector of states be decoded at once.
//! A coded block is the table, the `N` initial states, and 16-bit words; the decoder
//! must end with every state at its initial value and no word left.

mod table;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use table::Table;

use super::{Damaged, take};
use crate::runtime::memory;
#[cfg(target_arch = "x86_64")]
use crate::runtime::simd::Vectors;
use crate::runtime::simd::{self, Level};

/// Bits of a frequency.
pub const BITS: u32 = 12;
/// Sum of all frequencies.
pub const TOTAL: u32 = 1 << BITS;
/// States of a block of many symbols.
pub const WIDE: usize = 32;
/// States of a block of few symbols, where 32 would cost more than they save time.
pub const NARROW: usize = 4;
/// A state is at least this.
const LOW: u32 = 1 << 16;

/// Encodes symbols, all of which the table knows. Appends states and words.
pub fn encode<const N: usize>(table: &Table, symbols: &[u8], out: &mut Vec<u8>) {
    let rows = table.encoder();
    // From the back, as a decoder reads them from the front; a symbol writes a word at most.
    let mut words = memory::zeroed::<u16>(symbols.len());
    let mut at = words.len();
    let mut states = [LOW; N];
    let whole = symbols.len() - symbols.len() % N;
    let mut put = |state: &mut u32, symbol: u8| {
        let row = &rows[usize::from(symbol)];
        let mut x = *state;
        // Below `at` lie as many words as symbols are to come, of which this is one.
        words[at - 1] = x as u16;
        let full = x >= row.limit;
        at -= usize::from(full);
        // A shift rather than a branch, which no processor could predict.
        x >>= 16 * u32::from(full);
        // x / frequency, exactly: x is below 2^20 frequencies, so the reciprocal's error
        // stays below 2^-12, and a fraction is at least 1 / 4095 from the next whole number.
        let quotient = ((u64::from(x) * row.reciprocal) >> 44) as u32;
        *state = x.wrapping_add(row.start).wrapping_add(quotient.wrapping_mul(row.rest));
    };
    for lane in (0..symbols.len() - whole).rev() {
        put(&mut states[lane], symbols[whole + lane]);
    }
    for group in symbols[..whole].rchunks_exact(N) {
        for lane in (0..N).rev() {
            put(&mut states[lane], group[lane]);
        }
    }
    out.extend(states.iter().flat_map(|state| state.to_le_bytes()));
    out.extend(words[at..].iter().flat_map(|word| word.to_le_bytes()));
}

/// Decodes all of `bytes` to exactly `out.len()` symbols.
///
/// # Errors
/// `bytes` are not what [`encode`] writes for that many symbols with this table.
pub fn decode<const N: usize>(table: &Table, bytes: &[u8], out: &mut [u8]) -> Result<(), Damaged> {
    let level = simd::level().unwrap_or(Level::Portable);
    decode_at::<N>(level, table, bytes, out)
}

/// As [`decode`], at a given level, which this machine must support.
///
/// # Errors
/// As [`decode`].
///
/// # Panics
/// If this machine does not support `level`.
pub fn decode_at<const N: usize>(
    level: Level,
    table: &Table,
    mut bytes: &[u8],
    out: &mut [u8],
) -> Result<(), Damaged> {
    assert!(level.is_supported(), "{} is not supported here", level.name());
    let mut states = [0; N];
    for (state, bytes) in states.iter_mut().zip(take(&mut bytes, 4 * N)?.as_chunks::<4>().0) {
        *state = u32::from_le_bytes(*bytes);
    }
    let (words, odd) = bytes.as_chunks::<2>();
    if !odd.is_empty() {
        return Err(Damaged("half a word is left"));
    }
    let mut words = Words { words, at: 0 };
    let slots = table.decoder();
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if let Ok(states) = <&mut [u32; WIDE]>::try_from(&mut states[..]) {
        match level.vectors() {
            Vectors::Avx512 => {
                // SAFETY: the level is supported, as asserted, so the machine has AVX-512.
                done = unsafe { x86::decode_avx512(slots, states, &mut words, out) }
            }
            Vectors::Avx2 => {
                // SAFETY: the level is supported, as asserted, so the machine has AVX2.
                done = unsafe { x86::decode_avx2(slots, states, &mut words, out) }
            }
            Vectors::Target => {}
        }
    }
    done += decode_groups(slots, &mut states, &mut words, &mut out[done..]);
    for group in out[done..].chunks_mut(N) {
        for (symbol, state) in group.iter_mut().zip(&mut states) {
            *symbol = step(slots, state);
            if *state < LOW {
                *state = *state << 16 | words.next()?;
            }
        }
    }
    if words.at != words.words.len() {
        return Err(Damaged("words are left"));
    }
    if states.iter().any(|&state| state != LOW) {
        return Err(Damaged("a state does not end where it began"));
    }
    Ok(())
}

/// Takes a symbol from a state, which may be below [`LOW`] afterwards.
#[inline(always)]
fn step(slots: &table::Slots, state: &mut u32) -> u8 {
    let slot = slots[(*state % TOTAL) as usize];
    *state = (slot >> 20) * (*state >> BITS) + (slot >> 8 & (TOTAL - 1));
    slot as u8
}

/// Decodes groups of `N` symbols while there are words for all of a group, and returns how
/// many symbols it decoded.
fn decode_groups<const N: usize>(
    slots: &table::Slots,
    states: &mut [u32; N],
    words: &mut Words<'_>,
    out: &mut [u8],
) -> usize {
    let mut done = 0;
    for group in out.as_chunks_mut::<N>().0 {
        let Some(next) = words.words[words.at..].first_chunk::<N>() else { break };
        let mut taken = 0;
        for lane in 0..N {
            group[lane] = step(slots, &mut states[lane]);
            // Without a branch, which no processor could predict: the word is read, and
            // counted where it is needed. Of N states each takes a word at most.
            let needs = states[lane] < LOW;
            let word = u32::from(u16::from_le_bytes(next[taken % N]));
            let refilled = states[lane] << 16 | word;
            states[lane] = if needs { refilled } else { states[lane] };
            taken += usize::from(needs);
        }
        words.at += taken;
        done += N;
    }
    done
}

/// The words of a block and how many of them were read.
struct Words<'a> {
    words: &'a [[u8; 2]],
    at: usize,
}

impl Words<'_> {
    #[inline(always)]
    fn next(&mut self) -> Result<u32, Damaged> {
        let word = self.words.get(self.at).ok_or(Damaged("words are missing"))?;
        self.at += 1;
        Ok(u32::from(u16::from_le_bytes(*word)))
    }
}
