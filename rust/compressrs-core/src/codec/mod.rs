//! Lossless coding of weights, codes and positions.
//!
//! - [`planes`]: elements, split into the planes of their bytes, which are coded apart;
//! - [`positions`]: which elements are not zero, as bits or as gaps, and their values;
//! - [`block`]: up to [`block::MAX_SYMBOLS`] bytes in the smallest of several forms;
//! - [`rans`]: the entropy coder, interleaved rANS with a static table for each block.
//!
//! Decoders take bytes from anywhere: they read inside what they are given, write inside
//! what they fill, and return [`Damaged`] where a stream says what cannot be. The bytes of
//! a stream do not depend on the machine, the instruction set or the number of threads.

pub mod block;
pub mod planes;
pub mod positions;
pub mod rans;

use std::fmt;

/// Why a stream could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged(pub &'static str);

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Damaged {}

/// Takes `n` bytes from the front of a slice.
fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Result<&'a [u8], Damaged> {
    let (front, rest) = bytes.split_at_checked(n).ok_or(Damaged("it ends early"))?;
    *bytes = rest;
    Ok(front)
}

/// Takes one byte.
fn take_byte(bytes: &mut &[u8]) -> Result<u8, Damaged> {
    take(bytes, 1).map(|byte| byte[0])
}

/// Appends a number in groups of 7 bits, the lowest first.
fn push_number(out: &mut Vec<u8>, mut n: usize) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Takes a number of at most 28 bits.
fn take_number(bytes: &mut &[u8]) -> Result<usize, Damaged> {
    let mut n = 0;
    for shift in [0, 7, 14, 21] {
        let byte = take_byte(bytes)?;
        n |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(n);
        }
    }
    Err(Damaged("a number is too long"))
}
