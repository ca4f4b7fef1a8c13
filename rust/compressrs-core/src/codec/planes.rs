//! Elements of 1, 2, 4 or 8 bytes, whose bytes are coded apart.
//!
//! The bytes of trained weights differ in kind: an exponent takes few values, the low bits
//! of a mantissa all of them alike. Up to [`MAX_SYMBOLS`] elements are therefore split into
//! planes, one for each byte of an element, the highest first, and each plane is a
//! [`block`]. Floating-point numbers are rotated by one bit to the left before,
//! so that the sign, which is a coin's toss, leaves the byte of the exponent; single bytes
//! are not.
//!
//! A stream is a sequence of such groups of blocks; two streams one after the other are
//! the stream of their elements one after the other.

use std::sync::{Mutex, OnceLock, PoisonError};

use super::Damaged;
use super::block::{self, Block, MAX_SYMBOLS};
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, Kernel};

/// What the elements of a stream are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elements {
    width: usize,
    rotate: bool,
}

impl Elements {
    /// Elements of `width` bytes, which is 1, 2, 4 or 8; those of floating point are rotated.
    pub fn new(width: usize, rotate: bool) -> Option<Elements> {
        matches!(width, 1 | 2 | 4 | 8).then_some(Elements { width, rotate })
    }

    /// Bytes of an element.
    pub fn width(self) -> usize {
        self.width
    }
}

/// The stream of elements in native memory order of a little-endian machine, in parts that
/// follow each other.
///
/// # Panics
/// If `data` is not a whole number of elements.
pub fn encode(elements: Elements, data: &[u8]) -> Vec<Vec<u8>> {
    let width = elements.width;
    assert!(data.len().is_multiple_of(width), "{} bytes of elements of {width}", data.len());
    let chunk = MAX_SYMBOLS * width;
    let parts: Vec<OnceLock<Vec<u8>>> =
        (0..data.len().div_ceil(chunk)).map(|_| OnceLock::new()).collect();
    parallel::for_each(0..parts.len(), 1, 1, |range| {
        for i in range {
            let data = &data[i * chunk..data.len().min((i + 1) * chunk)];
            // A private copy, which no other thread can change between counting and coding.
            let mut planes = Scratch::<u8>::new(data.len());
            simd::dispatch(Split { elements, data, planes: &mut planes });
            let mut out = memory::with_capacity(data.len() + 16 * width);
            for plane in planes.chunks(data.len() / width) {
                block::encode(plane, &mut out);
            }
            // A part is written once, by the task that has its number.
            let _ = parts[i].set(out);
        }
    });
    parts.into_iter().filter_map(OnceLock::into_inner).collect()
}

/// The blocks of up to [`MAX_SYMBOLS`] elements, one for each of their bytes.
struct Group<'a> {
    planes: [Option<Block<'a>>; 8],
    /// The first byte of its elements.
    start: usize,
    elements: usize,
}

/// Decodes a stream to exactly `out.len()` elements.
///
/// # Errors
/// The stream is damaged, or holds another number of elements. `out` is unspecified then.
///
/// # Panics
/// If `out` is not a whole number of elements.
pub fn decode(elements: Elements, mut stream: &[u8], out: &mut [u8]) -> Result<(), Damaged> {
    let width = elements.width;
    assert!(out.len().is_multiple_of(width), "{} bytes of elements of {width}", out.len());
    let mut groups = Vec::new();
    let mut start = 0;
    while !stream.is_empty() {
        let group = Group::take(width, start, &mut stream)?;
        // Before it is kept, so that a stream of empty blocks costs no memory.
        if group.elements == 0 || group.elements * width > out.len() - start {
            return Err(Damaged("it holds another number of elements than is needed"));
        }
        start += group.elements * width;
        groups.push(group);
    }
    if start != out.len() {
        return Err(Damaged("it holds another number of elements than is needed"));
    }
    let shared = SharedMut::new(out);
    let damaged: Mutex<Option<(usize, Damaged)>> = Mutex::new(None);
    parallel::for_each(0..groups.len(), 1, 1, |range| {
        for i in range {
            let group = &groups[i];
            // SAFETY: groups follow each other, and each is decoded by one task.
            let out = unsafe { shared.slice(group.start..group.start + group.elements * width) };
            if let Err(reason) = group.decode(elements, out) {
                let mut first = damaged.lock().unwrap_or_else(PoisonError::into_inner);
                if first.is_none_or(|(j, _)| i < j) {
                    *first = Some((i, reason));
                }
            }
        }
    });
    match damaged.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, reason)) => Err(reason),
        None => Ok(()),
    }
}

impl<'a> Group<'a> {
    fn take(width: usize, start: usize, stream: &mut &'a [u8]) -> Result<Group<'a>, Damaged> {
        let mut planes = [None; 8];
        let mut elements = None;
        for plane in &mut planes[..width] {
            let block = Block::take(stream)?;
            if *elements.get_or_insert(block.symbols()) != block.symbols() {
                return Err(Damaged("the planes of its elements differ in length"));
            }
            *plane = Some(block);
        }
        Ok(Group { planes, start, elements: elements.unwrap_or(0) })
    }

    fn decode(&self, elements: Elements, out: &mut [u8]) -> Result<(), Damaged> {
        let n = self.elements;
        let blocks = self.planes.iter().flatten();
        if elements.width == 1 {
            return blocks.take(1).try_for_each(|block| block.decode(out));
        }
        let mut decoded = Scratch::<u8>::new(n * elements.width);
        let mut planes: [&[u8]; 8] = [&[]; 8];
        let buffers = decoded.chunks_exact_mut(n);
        for ((plane, block), buffer) in planes.iter_mut().zip(blocks).zip(buffers) {
            *plane = match block.raw() {
                Some(raw) => raw,
                None => {
                    block.decode(buffer)?;
                    buffer
                }
            };
        }
        simd::dispatch(Merge { elements, planes, out });
        Ok(())
    }
}

/// Writes planes, the highest first, one after the other.
struct Split<'a> {
    elements: Elements,
    data: &'a [u8],
    planes: &'a mut [u8],
}

/// Puts elements together from planes.
struct Merge<'a> {
    elements: Elements,
    planes: [&'a [u8]; 8],
    out: &'a mut [u8],
}

macro_rules! word {
    ($split:ident, $merge:ident, $word:ty, $width:literal, [$($plane:literal)*]) => {
        #[inline(always)]
        fn $split(data: &[u8], rotate: u32, planes: &mut [u8]) {
            let (words, _) = data.as_chunks::<$width>();
            for (plane, out) in planes.chunks_exact_mut(words.len()).enumerate() {
                let shift = 8 * ($width - 1 - plane as u32);
                for (out, word) in out.iter_mut().zip(words) {
                    *out = (<$word>::from_le_bytes(*word).rotate_left(rotate) >> shift) as u8;
                }
            }
        }

        #[inline(always)]
        fn $merge(planes: [&[u8]; 8], rotate: u32, out: &mut [u8]) {
            let (words, _) = out.as_chunks_mut::<$width>();
            let n = words.len();
            let planes = planes.map(|plane| &plane[..n.min(plane.len())]);
            $( assert_eq!(planes[$plane].len(), n); )*
            for i in 0..n {
                let mut word: $word = 0;
                $( word = word << 8 | <$word>::from(planes[$plane][i]); )*
                words[i] = word.rotate_right(rotate).to_le_bytes();
            }
        }
    };
}
word!(split2, merge2, u16, 2, [0 1]);
word!(split4, merge4, u32, 4, [0 1 2 3]);
word!(split8, merge8, u64, 8, [0 1 2 3 4 5 6 7]);

impl Kernel for Split<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let rotate = u32::from(self.elements.rotate);
        match self.elements.width {
            1 => self.planes.copy_from_slice(self.data),
            2 => split2(self.data, rotate, self.planes),
            4 => split4(self.data, rotate, self.planes),
            _ => split8(self.data, rotate, self.planes),
        }
    }
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let rotate = u32::from(self.elements.rotate);
        match self.elements.width {
            2 => merge2(self.planes, rotate, self.out),
            4 => merge4(self.planes, rotate, self.out),
            _ => merge8(self.planes, rotate, self.out),
        }
    }
}
