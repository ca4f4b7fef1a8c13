//! Allocation that can fail: sizes come from the user, and a process must outlive a request
//! that does not fit into its memory.
//!
//! A failed allocation unwinds, from whatever depth and whatever thread of the pool, up to
//! the caller of the kernel, with [`OutOfMemory`] as the payload: what the standard library
//! would do with `-Z oom=panic`. No message is printed. The bindings catch it and raise a
//! MemoryError.

use std::alloc::{Layout, alloc_zeroed};

use crate::numeric::element::Number;

/// The payload of the unwinding that a failed allocation starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutOfMemory {
    /// How many bytes were asked for; the largest number where they are more than that.
    pub bytes: usize,
}

/// Starts the unwinding that is described at the [module](self).
#[cold]
pub fn out_of_memory(bytes: usize) -> ! {
    std::panic::resume_unwind(Box::new(OutOfMemory { bytes }))
}

/// The product of two lengths.
///
/// # Unwinds
/// With [`OutOfMemory`] if nothing can be so long.
#[inline]
pub fn product(a: usize, b: usize) -> usize {
    a.checked_mul(b).unwrap_or_else(|| out_of_memory(usize::MAX))
}

/// An empty vector with this capacity.
///
/// # Unwinds
/// With [`OutOfMemory`].
pub fn with_capacity<T>(len: usize) -> Vec<T> {
    try_with_capacity(len).unwrap_or_else(|| out_of_memory(len.saturating_mul(size_of::<T>())))
}

/// As [`with_capacity`]; None where that would unwind.
pub fn try_with_capacity<T>(len: usize) -> Option<Vec<T>> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(len).ok().map(|()| vec)
}

/// So many zeros, which need not be touched to be 0.
///
/// # Unwinds
/// With [`OutOfMemory`].
pub fn zeroed<T: Number>(len: usize) -> Vec<T> {
    try_zeroed(len).unwrap_or_else(|| out_of_memory(len.saturating_mul(size_of::<T>())))
}

/// As [`zeroed`]; None where that would unwind.
pub fn try_zeroed<T: Number>(len: usize) -> Option<Vec<T>> {
    let layout = Layout::array::<T>(len).ok()?;
    if layout.size() == 0 {
        return Some(Vec::new()).filter(|_| len == 0);
    }
    // SAFETY: the layout is not empty.
    let start = unsafe { alloc_zeroed(layout) };
    if start.is_null() {
        return None;
    }
    // SAFETY: allocated just now, by the global allocator, for an array of `len` elements,
    // whose bytes, all 0, are numbers (see `Number`).
    Some(unsafe { Vec::from_raw_parts(start.cast(), len, len) })
}

/// A copy of a slice.
///
/// # Unwinds
/// With [`OutOfMemory`].
pub fn copied<T: Copy>(slice: &[T]) -> Vec<T> {
    let mut vec = with_capacity(slice.len());
    vec.extend_from_slice(slice);
    vec
}

/// The elements of an iterator that knows how many there are.
///
/// # Unwinds
/// With [`OutOfMemory`].
pub fn collect<T>(elements: impl ExactSizeIterator<Item = T>) -> Vec<T> {
    let mut vec = with_capacity(elements.len());
    vec.extend(elements);
    vec
}

/// Reserves memory for more elements, so that adding them does not allocate.
///
/// # Unwinds
/// With [`OutOfMemory`].
pub fn reserve<T>(vec: &mut Vec<T>, more: usize) {
    if vec.try_reserve(more).is_err() {
        out_of_memory(vec.len().saturating_add(more).saturating_mul(size_of::<T>()));
    }
}

/// Looks for memory that tasks are going to ask for when others have written already. It is
/// reserved, not touched, and released again: what other work takes meanwhile may still be missing
/// then.
///
/// # Unwinds
/// With [`OutOfMemory`].
pub fn look_for<T>(len: usize) {
    drop(with_capacity::<T>(len));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn payload<T>(f: impl FnOnce() -> T) -> OutOfMemory {
        let panic = catch_unwind(AssertUnwindSafe(f)).err().expect("no memory for that");
        *panic.downcast_ref().expect("the payload of a failed allocation")
    }

    /// Numbers of 8 bytes that no machine has the memory for.
    const HUGE: usize = 1 << (usize::BITS - 4);

    #[test]
    fn what_fits_is_what_was_asked_for() {
        assert_eq!(zeroed::<f32>(3), [0.0; 3]);
        assert_eq!(zeroed::<[i16; 4]>(2), [[0; 4]; 2]);
        assert!(zeroed::<f64>(0).is_empty());
        assert_eq!(copied(&[1, 2, 3]), [1, 2, 3]);
        assert_eq!(collect((0..3).map(|i| 2 * i)), [0, 2, 4]);
        assert_eq!(product(3, 4), 12);
    }

    #[test]
    fn what_does_not_fit_unwinds_with_its_size() {
        assert_eq!(payload(|| zeroed::<f64>(HUGE)).bytes, HUGE * 8);
        assert_eq!(payload(|| with_capacity::<f64>(HUGE)).bytes, HUGE * 8);
        assert_eq!(payload(|| zeroed::<f64>(usize::MAX)).bytes, usize::MAX);
        assert_eq!(payload(|| product(usize::MAX, 2)).bytes, usize::MAX);
    }

    #[test]
    fn a_task_of_the_pool_that_runs_out_of_memory_ends_the_loop() {
        let threads = super::super::parallel::num_threads().unwrap();
        super::super::parallel::set_num_threads(3).unwrap();
        let found = payload(|| {
            super::super::parallel::for_each(0..100, 1, 1, |part| {
                if part.contains(&70) {
                    drop(zeroed::<f64>(HUGE));
                }
            });
        });
        super::super::parallel::set_num_threads(threads).unwrap();
        assert_eq!(found.bytes, HUGE * 8);
    }
}
