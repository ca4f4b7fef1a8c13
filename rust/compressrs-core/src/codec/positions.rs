//! Which elements are not zero, and those alone.
//!
//! Bits: one for each element, the first lowest. Gaps: for each element that is not zero
//! the number of zeros before it, as one byte; 255 stands for 255 zeros and no element.
//! Bits cost the same however sparse an array is, until they are entropy coded, and then
//! about as much as gaps; gaps are fewer where less than one of eight elements is kept.

use super::Damaged;

/// An element, of which zero is the one whose bits are all 0: -0.0 is not zero here.
pub trait Element: Copy + Default + PartialEq {}

impl Element for u8 {}
impl Element for u16 {}
impl Element for u32 {}
impl Element for u64 {}

/// The gap of a run of zeros without an element after it.
const SKIP: u8 = 255;

/// Number of elements that are not zero.
pub fn count<T: Element>(x: &[T]) -> usize {
    x.iter().filter(|&&x| x != T::default()).count()
}

/// Writes the bits of `x` and appends what is not zero to `values`.
///
/// # Panics
/// If `bits` does not have a bit for each element, and less than a byte more.
pub fn to_bits<T: Element>(x: &[T], bits: &mut [u8], values: &mut Vec<T>) {
    assert_eq!(bits.len(), x.len().div_ceil(8));
    for (byte, x) in bits.iter_mut().zip(x.chunks(8)) {
        *byte = 0;
        for (i, &x) in x.iter().enumerate() {
            if x != T::default() {
                *byte |= 1 << i;
                values.push(x);
            }
        }
    }
}

/// Puts values where a bit is set, and zeros elsewhere.
///
/// # Errors
/// There are not as many values as bits, or not as many bits as elements.
pub fn from_bits<T: Element>(bits: &[u8], values: &[T], out: &mut [T]) -> Result<(), Damaged> {
    if bits.len() != out.len().div_ceil(8) {
        return Err(Damaged("its bits are not as many as its elements"));
    }
    let mut values = values.iter();
    for (&byte, out) in bits.iter().zip(out.chunks_mut(8)) {
        if out.len() < 8 && byte >> out.len() != 0 {
            return Err(Damaged("a bit is set behind the last element"));
        }
        for (i, out) in out.iter_mut().enumerate() {
            *out = match byte >> i & 1 {
                0 => T::default(),
                _ => *values.next().ok_or(Damaged("its values are fewer than its bits"))?,
            };
        }
    }
    if values.len() > 0 {
        return Err(Damaged("its values are more than its bits"));
    }
    Ok(())
}

/// Appends the gaps of `x` to `gaps` and what is not zero to `values`.
pub fn to_gaps<T: Element>(x: &[T], gaps: &mut Vec<u8>, values: &mut Vec<T>) {
    let mut gap = 0;
    for &x in x {
        if x != T::default() {
            gaps.push(gap);
            values.push(x);
            gap = 0;
        } else {
            gap += 1;
            if gap == SKIP {
                gaps.push(SKIP);
                gap = 0;
            }
        }
    }
}

/// Puts each value behind as many zeros as its gap says, and zeros behind the last.
///
/// # Errors
/// There are not as many values as gaps, or the gaps lead beyond the last element.
pub fn from_gaps<T: Element>(gaps: &[u8], values: &[T], out: &mut [T]) -> Result<(), Damaged> {
    let beyond = Damaged("its gaps lead beyond the last element");
    let mut values = values.iter();
    let mut rest = out;
    for &gap in gaps {
        let (zeros, after) = rest.split_at_mut_checked(usize::from(gap)).ok_or(beyond)?;
        zeros.fill(T::default());
        rest = after;
        if gap != SKIP {
            let (first, after) = rest.split_first_mut().ok_or(beyond)?;
            *first = *values.next().ok_or(Damaged("its values are fewer than its gaps"))?;
            rest = after;
        }
    }
    rest.fill(T::default());
    if values.len() > 0 {
        return Err(Damaged("its values are more than its gaps"));
    }
    Ok(())
}
