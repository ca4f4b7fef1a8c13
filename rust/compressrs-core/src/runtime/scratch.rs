//! Memory that kernels need for the time of a call.
//!
//! A large allocation is new to the process each time, and the first touch of each of
//! its pages costs about as much as a kernel does with what it holds. What a thread
//! gives back is therefore kept for its next call, up to a limit.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use super::memory;
use crate::numeric::element::Number;

/// Bytes that a thread keeps at most.
const LIMIT: usize = 32 << 20;

/// Whether scratch memory begins as NaN, or -1, in builds with assertions: so that tests fail
/// where a kernel reads what it has not written, which is otherwise 0 in a new process.
const POISON: bool = cfg!(debug_assertions);

/// A line of the cache, to which scratch memory is aligned.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read as numbers")] [u8; 64]);

// SAFETY: bytes, aligned to 64.
unsafe impl Number for Line {}

thread_local! {
    static KEPT: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// A slice that begins with a line of the cache. What it holds at first is
/// unspecified: what others left there.
pub struct Scratch<T: Number> {
    lines: Vec<Line>,
    len: usize,
    of: std::marker::PhantomData<T>,
}

impl<T: Number> Scratch<T> {
    /// So many elements.
    ///
    /// # Unwinds
    /// With [`OutOfMemory`](memory::OutOfMemory).
    pub fn new(len: usize) -> Self {
        let count = memory::product(len, size_of::<T>()).div_ceil(64);
        let mut lines = take(count);
        if lines.capacity() < count {
            // What is kept but too short is given back first, and the rest if need be.
            drop(std::mem::take(&mut lines));
            lines = memory::try_zeroed(count).unwrap_or_else(|| {
                let _ = KEPT.try_with(|kept| kept.borrow_mut().clear());
                memory::zeroed(count)
            });
        } else if lines.len() < count {
            lines.resize(count, Line([0; 64]));
        }
        if POISON {
            lines.fill(Line([0xff; 64]));
        }
        Scratch { lines, len, of: std::marker::PhantomData }
    }
}

/// The smallest buffer of this thread that is large enough, else the largest.
fn take(count: usize) -> Vec<Line> {
    KEPT.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        let fits = kept.partition_point(|lines| lines.capacity() < count);
        if fits < kept.len() { kept.remove(fits) } else { kept.pop().unwrap_or_default() }
    })
    .unwrap_or_default()
}

impl<T: Number> Drop for Scratch<T> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        // A thread that ends keeps nothing.
        let _ = KEPT.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            let held: usize = kept.iter().map(Vec::capacity).sum();
            let is_kept = (held + lines.capacity()) * size_of::<Line>() <= LIMIT;
            if is_kept && kept.try_reserve(1).is_ok() {
                let at = kept.partition_point(|other| other.capacity() < lines.capacity());
                kept.insert(at, lines);
            }
        });
    }
}

impl<T: Number> Deref for Scratch<T> {
    type Target = [T];
    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the lines are initialized, aligned for every number, and long enough;
        // any bytes are a number (see `Number`).
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<T: Number> DerefMut for Scratch<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_used_again() {
        let mut first = Scratch::<f64>::new(1000);
        first.fill(7.0);
        let address = first.as_ptr().addr();
        assert!(address.is_multiple_of(64));
        drop(first);
        let second = Scratch::<f32>::new(1500);
        assert_eq!(second.as_ptr().addr(), address);
        assert_eq!(second.len(), 1500);
        let third = Scratch::<f32>::new(0);
        assert!(third.is_empty());
    }

    #[test]
    fn what_is_not_written_is_not_a_number() {
        for len in [1, 100, 40] {
            let mut numbers = Scratch::<f64>::new(len);
            assert!(!POISON || numbers.iter().all(|x| x.is_nan()));
            numbers.fill(0.0);
        }
    }

    #[test]
    fn no_more_is_kept_than_the_limit() {
        let some: Vec<_> = (0..5).map(|_| Scratch::<f32>::new(LIMIT / 8)).collect();
        drop(some);
        let held: usize = KEPT.with(|kept| kept.borrow().iter().map(Vec::capacity).sum());
        assert!(held * size_of::<Line>() <= LIMIT);
    }
}
