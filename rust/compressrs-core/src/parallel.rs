//! Our own thread pool: lazy, resizable, safe after fork.
//!
//! The pool is not rayon's global one, since that cannot be resized and hangs in
//! a forked child, whose threads are gone. Ours belongs to a process: the
//! [`Runtime`] remembers the process id it was made in, and a child that finds
//! its parent's makes a new one. The parent's is leaked there on purpose: its
//! locks may be held by threads that do not exist in the child.
//!
//! Splitting never decides a result: elementwise kernels do not care, and
//! reductions use [`reduce`], whose tree depends on the length alone.

use std::ops::Range;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

/// Name of the environment variable that sets the number of threads.
pub const ENV: &str = "COMPRESSRS_NUM_THREADS";

/// Most threads that can be asked for.
pub const MAX_THREADS: usize = 1024;

/// Number of threads asked for; 0 until first needed. Survives a fork.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// The pool of one process.
struct Runtime {
    pid: u32,
    pool: Mutex<Option<Arc<ThreadPool>>>,
}

static RUNTIME: AtomicPtr<Runtime> = AtomicPtr::new(std::ptr::null_mut());

fn runtime() -> &'static Runtime {
    let pid = std::process::id();
    let mut current = RUNTIME.load(Ordering::Acquire);
    loop {
        // SAFETY: the pointer is null or came from Box::into_raw below and is
        // never freed once published.
        if let Some(runtime) = unsafe { current.as_ref() }
            && runtime.pid == pid
        {
            return runtime;
        }
        let new = Box::into_raw(Box::new(Runtime { pid, pool: Mutex::new(None) }));
        match RUNTIME.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: published just now, never freed.
            Ok(_) => return unsafe { &*new },
            Err(other) => {
                // SAFETY: `new` was not published, so this is its only owner.
                drop(unsafe { Box::from_raw(new) });
                current = other;
            }
        }
    }
}

/// The number of threads that kernels use.
///
/// At first [`ENV`], else the CPUs this process may use (affinity mask and
/// cgroup quota).
///
/// # Errors
/// [`ENV`] is not a whole number from 1 to [`MAX_THREADS`].
pub fn num_threads() -> Result<usize, String> {
    match THREADS.load(Ordering::Relaxed) {
        0 => {
            let n = default_threads(std::env::var(ENV).ok().as_deref())?;
            // A set_num_threads that came first wins.
            let _ = THREADS.compare_exchange(0, n, Ordering::Relaxed, Ordering::Relaxed);
            Ok(THREADS.load(Ordering::Relaxed))
        }
        n => Ok(n),
    }
}

fn default_threads(request: Option<&str>) -> Result<usize, String> {
    match request.map(str::trim) {
        None | Some("") => {
            Ok(std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS))
        }
        Some(text) => text
            .parse()
            .ok()
            .filter(|n| (1..=MAX_THREADS).contains(n))
            .ok_or_else(|| format!("{ENV} must be a whole number from 1 to {MAX_THREADS}, got {text:?}")),
    }
}

/// Sets the number of threads that kernels use from now on.
///
/// Kernels that are running keep the pool they have.
///
/// # Errors
/// `n` is not from 1 to [`MAX_THREADS`].
pub fn set_num_threads(n: usize) -> Result<(), String> {
    if !(1..=MAX_THREADS).contains(&n) {
        return Err(format!("n must be from 1 to {MAX_THREADS}, got {n}"));
    }
    if THREADS.swap(n, Ordering::Relaxed) != n {
        shutdown();
    }
    Ok(())
}

/// Ends the pool's threads once the work in progress is done; the next large
/// kernel starts them again.
pub fn shutdown() {
    let pool = &runtime().pool;
    let old = pool.lock().unwrap_or_else(PoisonError::into_inner).take();
    drop(old);
}

/// The pool, or None where work should run on the caller's thread: for one
/// thread, or where threads cannot be started.
fn pool() -> Option<Arc<ThreadPool>> {
    let threads = num_threads().ok().filter(|&n| n > 1)?;
    let mut slot = runtime().pool.lock().unwrap_or_else(PoisonError::into_inner);
    if slot.as_ref().is_none_or(|p| p.current_num_threads() != threads) {
        *slot = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("compressrs-{i}"))
            .build()
            .ok()
            .map(Arc::new);
    }
    slot.clone()
}

/// Calls `body` on parts of `range`, in parallel where the range is longer than
/// two grains.
///
/// `grain` is the number of items that are worth a task of their own: about 20
/// microseconds of work, twice what it takes to wake a sleeping thread. Parts
/// start at multiples of `align` items from the start of the range.
pub fn for_each(range: Range<usize>, grain: usize, align: usize, body: impl Fn(Range<usize>) + Sync) {
    if range.len() < 2 * grain {
        return body(range);
    }
    match pool() {
        None => body(range),
        Some(pool) => {
            // A few parts a thread, so that a thread that lost its CPU for a
            // while does not hold up the others.
            let parts = 8 * pool.current_num_threads();
            let grain = grain.max(range.len().div_ceil(parts));
            pool.install(|| split(range, grain, align, &body));
        }
    }
}

fn split(range: Range<usize>, grain: usize, align: usize, body: &(impl Fn(Range<usize>) + Sync)) {
    let half = (range.len() / 2).next_multiple_of(align);
    if range.len() < 2 * grain || half >= range.len() {
        return body(range);
    }
    let middle = range.start + half;
    rayon::join(
        || split(range.start..middle, grain, align, body),
        || split(middle..range.end, grain, align, body),
    );
}

/// Maps blocks of `block` items (the last may be shorter) and combines the
/// results as a binary tree that depends on `len` and `block` only. None if
/// `len` is 0.
pub fn reduce<T: Send>(
    len: usize,
    block: usize,
    map: impl Fn(Range<usize>) -> T + Sync,
    combine: impl Fn(T, T) -> T + Sync,
) -> Option<T> {
    struct Tree<'a, M, F> {
        len: usize,
        block: usize,
        map: &'a M,
        combine: &'a F,
    }
    impl<M, F> Tree<'_, M, F> {
        fn node<T: Send>(&self, blocks: Range<usize>, parallel: bool) -> T
        where
            M: Fn(Range<usize>) -> T + Sync,
            F: Fn(T, T) -> T + Sync,
        {
            if blocks.len() == 1 {
                let start = blocks.start * self.block;
                return (self.map)(start..self.len.min(start + self.block));
            }
            let middle = blocks.start + blocks.len() / 2;
            let left = || self.node(blocks.start..middle, parallel);
            let right = || self.node(middle..blocks.end, parallel);
            let (a, b) = if parallel { rayon::join(left, right) } else { (left(), right()) };
            (self.combine)(a, b)
        }
    }
    if len == 0 {
        return None;
    }
    let blocks = len.div_ceil(block);
    let tree = Tree { len, block, map: &map, combine: &combine };
    Some(match if blocks > 1 { pool() } else { None } {
        Some(pool) => pool.install(|| tree.node(0..blocks, true)),
        None => tree.node(0..blocks, false),
    })
}

/// A base pointer that tasks may share, each writing its own part.
#[derive(Clone, Copy)]
pub struct SharedMut<T>(*mut T, usize);

// SAFETY: access goes through `slice`, whose caller promises that parts do not
// overlap.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    /// Shares a slice for the duration of a parallel loop.
    pub fn new(slice: &mut [T]) -> Self {
        SharedMut(slice.as_mut_ptr(), slice.len())
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// The slice that this was made from must still be borrowed, and no other
    /// reference into `range` may be alive.
    #[expect(clippy::mut_from_ref, reason = "that is the point; see Safety")]
    pub unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.1);
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU8;

    #[test]
    fn every_item_is_visited_once_and_parts_are_aligned() {
        for len in [0, 1, 63, 64, 1000, 4096, 100_001] {
            let seen: Vec<AtomicU8> = (0..len).map(|_| AtomicU8::new(0)).collect();
            for_each(0..len, 100, 64, |part| {
                assert!(part.start % 64 == 0);
                for i in part {
                    seen[i].fetch_add(1, Ordering::Relaxed);
                }
            });
            assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1), "{len}");
        }
    }

    #[test]
    fn a_reduction_does_not_depend_on_the_number_of_threads() {
        let x: Vec<f32> = (0..100_000).map(|i| (i as f32 * 0.7).sin()).collect();
        let sum = || reduce(x.len(), 1000, |r| x[r].iter().sum::<f32>(), |a, b| a + b).unwrap();
        let before = num_threads().unwrap();
        let sums: Vec<u32> = [1, 2, 3, 7]
            .map(|n| {
                set_num_threads(n).unwrap();
                sum().to_bits()
            })
            .to_vec();
        set_num_threads(before).unwrap();
        assert!(sums.iter().all(|&s| s == sums[0]), "{sums:?}");
        assert_eq!(reduce(0, 10, |_| 1, |a, b| a + b), None);
    }

    #[test]
    fn thread_counts_are_checked() {
        assert_eq!(default_threads(Some(" 3 ")), Ok(3));
        assert!(default_threads(None).unwrap() >= 1);
        for bad in ["0", "-1", "two", "1025", "1.5"] {
            let message = default_threads(Some(bad)).unwrap_err();
            assert!(message.contains(bad) && message.contains("1024"), "{message}");
        }
        assert!(set_num_threads(0).is_err());
        assert!(set_num_threads(MAX_THREADS + 1).is_err());
    }
}
