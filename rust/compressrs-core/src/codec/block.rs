//! Blocks: up to [`MAX_SYMBOLS`] bytes, in the smallest of several encodings.
//!
//! A block is its `Encoding` as one byte, the number of its symbols, the number of the bytes
//! that follow (both in groups of 7 bits, the lowest first), and those bytes.

use super::rans::{self, NARROW, Table, WIDE};
use super::{Damaged, push_number, take, take_byte, take_number};

/// Symbols of a block at most.
pub const MAX_SYMBOLS: usize = 1 << 17;

/// Blocks of at least this many symbols have 32 states.
const WIDE_FROM: usize = 1 << 15;

/// How the symbols of a block are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Encoding {
    /// As they are.
    Raw = 0,
    /// The one symbol that all are.
    Constant = 1,
    /// Coded with few states.
    Narrow = 2,
    /// Coded with many states.
    Wide = 3,
    /// One bit each, the first lowest.
    Bits1 = 4,
    /// Two bits each.
    Bits2 = 5,
    /// Four bits each.
    Bits4 = 6,
}

impl Encoding {
    fn of(byte: u8) -> Result<Encoding, Damaged> {
        use Encoding::*;
        [Raw, Constant, Narrow, Wide, Bits1, Bits2, Bits4]
            .into_iter()
            .find(|&encoding| encoding as u8 == byte)
            .ok_or(Damaged("a block has an unknown encoding"))
    }

    /// The smallest of the encodings without a table for symbols up to `max`, and its bits.
    fn packed(max: u8) -> (Encoding, usize) {
        match max {
            0..2 => (Encoding::Bits1, 1),
            2..4 => (Encoding::Bits2, 2),
            4..16 => (Encoding::Bits4, 4),
            16.. => (Encoding::Raw, 8),
        }
    }
}

/// How often each symbol occurs.
fn histogram(symbols: &[u8]) -> [u32; 256] {
    // Four tables, so that a run of one symbol does not wait for its own counter.
    let mut counts = [[0u32; 256]; 4];
    let (chunks, rest) = symbols.as_chunks::<4>();
    for chunk in chunks {
        for lane in 0..4 {
            counts[lane][usize::from(chunk[lane])] += 1;
        }
    }
    for &symbol in rest {
        counts[0][usize::from(symbol)] += 1;
    }
    std::array::from_fn(|s| counts.iter().map(|counts| counts[s]).sum())
}

/// Appends symbols as a block.
///
/// # Panics
/// If there are more than [`MAX_SYMBOLS`].
pub fn encode(symbols: &[u8], out: &mut Vec<u8>) {
    let n = symbols.len();
    assert!(n <= MAX_SYMBOLS, "a block of {n} symbols");
    let counts = histogram(symbols);
    let max = counts.iter().rposition(|&count| count > 0).unwrap_or(0) as u8;
    let (encoding, bits) = Encoding::packed(max);
    let packed = (n * bits).div_ceil(8);
    let head = |out: &mut Vec<u8>, encoding: Encoding, payload: usize| {
        out.push(encoding as u8);
        push_number(out, n);
        push_number(out, payload);
    };
    match Table::new(&counts) {
        None if n > 0 => {
            head(out, Encoding::Constant, 1);
            out.push(max);
            return;
        }
        Some(table) => {
            let mut coded = Vec::new();
            table.write(&mut coded);
            let states = if n >= WIDE_FROM { WIDE } else { NARROW };
            let estimate = coded.len() + 4 * states + (table.cost(&counts) >> 19) as usize;
            // What saves less than a hundredth is not worth the time to decode it.
            if estimate + packed / 128 < packed {
                let encoding = if states == WIDE { Encoding::Wide } else { Encoding::Narrow };
                match encoding {
                    Encoding::Wide => rans::encode::<WIDE>(&table, symbols, &mut coded),
                    _ => rans::encode::<NARROW>(&table, symbols, &mut coded),
                }
                if coded.len() < packed {
                    head(out, encoding, coded.len());
                    out.extend_from_slice(&coded);
                    return;
                }
            }
        }
        None => {}
    }
    head(out, encoding, packed);
    if bits == 8 {
        out.extend_from_slice(symbols);
        return;
    }
    let each = 8 / bits;
    out.extend(symbols.chunks(each).map(|chunk| {
        chunk.iter().enumerate().fold(0, |byte, (i, &symbol)| byte | symbol << (i * bits))
    }));
}

/// A block that was found in a stream, its payload not yet looked at.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    encoding: Encoding,
    symbols: usize,
    payload: &'a [u8],
}

impl<'a> Block<'a> {
    /// Takes a block from the front of a stream.
    ///
    /// # Errors
    /// The stream ends early, or does not begin with a block.
    pub fn take(stream: &mut &'a [u8]) -> Result<Block<'a>, Damaged> {
        let encoding = Encoding::of(take_byte(stream)?)?;
        let symbols = take_number(stream)?;
        if symbols > MAX_SYMBOLS {
            return Err(Damaged("a block has too many symbols"));
        }
        let payload = take_number(stream)?;
        Ok(Block { encoding, symbols, payload: take(stream, payload)? })
    }

    /// Number of its symbols.
    pub fn symbols(&self) -> usize {
        self.symbols
    }

    /// Its symbols, where they stand in the stream as they are.
    pub fn raw(&self) -> Option<&'a [u8]> {
        (self.encoding == Encoding::Raw && self.payload.len() == self.symbols)
            .then_some(self.payload)
    }

    /// Decodes it into as many bytes as it has symbols.
    ///
    /// # Errors
    /// It is damaged, or `out` has another length.
    pub fn decode(&self, out: &mut [u8]) -> Result<(), Damaged> {
        if out.len() != self.symbols {
            return Err(Damaged("a block has another number of symbols than is needed"));
        }
        let mut payload = self.payload;
        match self.encoding {
            Encoding::Raw => {
                if payload.len() != out.len() {
                    return Err(Damaged("a block's bytes are not as many as its symbols"));
                }
                out.copy_from_slice(payload);
            }
            Encoding::Constant => {
                out.fill(take_byte(&mut payload)?);
                if !payload.is_empty() {
                    return Err(Damaged("a block goes on behind its end"));
                }
            }
            Encoding::Narrow => {
                let table = Table::read(&mut payload)?;
                rans::decode::<NARROW>(&table, payload, out)?;
            }
            Encoding::Wide => {
                let table = Table::read(&mut payload)?;
                rans::decode::<WIDE>(&table, payload, out)?;
            }
            Encoding::Bits1 => unpack::<1>(payload, out)?,
            Encoding::Bits2 => unpack::<2>(payload, out)?,
            Encoding::Bits4 => unpack::<4>(payload, out)?,
        }
        Ok(())
    }
}

fn unpack<const BITS: usize>(payload: &[u8], out: &mut [u8]) -> Result<(), Damaged> {
    let each = 8 / BITS;
    if payload.len() != out.len().div_ceil(each) {
        return Err(Damaged("a block's bytes are not as many as its symbols"));
    }
    for (chunk, &byte) in out.chunks_mut(each).zip(payload) {
        for (i, symbol) in chunk.iter_mut().enumerate() {
            *symbol = byte >> (i * BITS) & ((1 << BITS) - 1);
        }
    }
    Ok(())
}
