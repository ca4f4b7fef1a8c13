//! Our own thread pool: lazy, resizable, safe after fork.
//!
//! The pool is not rayon's global one, since that cannot be resized and hangs in
//! a forked child, whose threads are gone. Ours belongs to a process: the
//! `Runtime` remembers the process id it was made in, and a child that finds
//! its parent's makes a new one. The parent's is leaked there on purpose: its
//! locks may be held by threads that do not exist in the child.
//!
//! Splitting never decides a result: elementwise kernels do not care, and
//! reductions use [`reduce`], whose tree depends on the length alone.

use std::iter::successors;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::handshake::Loop;
use super::{affinity, memory};

/// Name of the environment variable that sets the number of threads.
pub const ENV: &str = "COMPRESSRS_NUM_THREADS";

/// Most threads that can be asked for.
pub const MAX_THREADS: usize = 1024;

/// Number of threads asked for; 0 until first needed. Survives a fork.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// The pool of one process.
struct Runtime {
    pid: u32,
    pool: Mutex<Option<Helpers>>,
}

/// The threads besides the caller's.
struct Helpers {
    /// How many were asked for; there are fewer where memory did not suffice.
    wanted: usize,
    pool: Arc<ThreadPool>,
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
        Some(text) => {
            text.parse().ok().filter(|n| (1..=MAX_THREADS).contains(n)).ok_or_else(|| {
                format!("{ENV} must be a whole number from 1 to {MAX_THREADS}, got {text:?}")
            })
        }
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
    let wanted = num_threads().ok().filter(|&n| n > 1)? - 1;
    let mut slot = runtime().pool.lock().unwrap_or_else(PoisonError::into_inner);
    if slot.as_ref().is_none_or(|helpers| helpers.wanted != wanted) {
        *slot = None;
        let pool = successors(Some(wanted), |n| Some(n / 2)).take_while(|&n| n > 0).find_map(start);
        *slot = pool.map(|pool| Helpers { wanted, pool: Arc::new(pool) });
    }
    slot.as_ref().map(|helpers| Arc::clone(&helpers.pool))
}

/// Address space that a thread takes until it works: its stack, of 2 MiB, and its thread-local
/// data and first allocations.
const MEMORY_OF_THREAD: usize = 4 << 20;

/// Starts so many threads; None where memory may not suffice.
///
/// The C library aborts the process if it cannot allocate a thread's thread-local data, which
/// happens at their first use, on that thread. So memory is looked for first, and the
/// threads have used theirs before other work can take it.
fn start(threads: usize) -> Option<ThreadPool> {
    // Reserved, never touched, and released again.
    drop(memory::try_with_capacity::<u8>(threads.checked_mul(MEMORY_OF_THREAD)?)?);
    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("compressrs-{i}"))
        .build()
        .ok()?;
    pool.broadcast(|_| ());
    Some(pool)
}

/// Parts that a loop is divided into, for each thread: enough that a thread
/// which lost its CPU for a while does not hold up the others.
const PARTS: usize = 8;

/// Calls `body` on parts of `range`, in parallel where the range is longer than
/// two grains.
///
/// `grain` is the number of items that are worth a task of their own: about 20
/// microseconds of work, twice what it takes to wake a sleeping thread. Parts
/// start at multiples of `align` items from the start of the range.
///
/// The caller works too, and never waits for a thread that has not begun: on a
/// machine whose CPUs are taken (another library's threads that spin while they
/// wait, say), the caller does it all.
pub fn for_each(
    range: Range<usize>,
    grain: usize,
    align: usize,
    body: impl Fn(Range<usize>) + Sync,
) {
    let len = range.len();
    if len < 2 * grain {
        return body(range);
    }
    let Some(pool) = pool() else { return body(range) };
    let threads = pool.current_num_threads() + 1;
    // Half a grain once threads are awake, so that few parts divide evenly.
    let size = grain.div_ceil(2).max(len.div_ceil(PARTS * threads)).next_multiple_of(align);
    let parts = len.div_ceil(size);
    let of_part = |part: usize| {
        let start = range.start + part * size;
        body(start..range.end.min(start + size));
    };
    run(&pool, parts, &of_part);
}

/// Runs the parts of a loop on the pool and on this thread.
fn run(pool: &ThreadPool, parts: usize, body: &(dyn Fn(usize) + Sync)) {
    // SAFETY: `finish` returns after the last part, before `body` ends, and nothing
    // before it returns from here: `work` hands on panics of the parts, and the pool
    // catches those of a thread.
    let shared = Arc::new(unsafe { Loop::new(parts, body) });
    let cpu = affinity::current();
    for _ in 0..pool.current_num_threads().min(parts - 1) {
        let helper = Arc::clone(&shared);
        pool.spawn(move || {
            affinity::leave(cpu);
            helper.work();
        });
    }
    shared.work();
    shared.finish();
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
    if len == 0 {
        return None;
    }
    let blocks = len.div_ceil(block);
    // A heap: node i has children 2i and 2i + 1, the blocks are the leaves
    // blocks..2 * blocks, and 1 is the root. A node keeps the result of the
    // child that came first until the other comes.
    // Nobody waits at node 0, so the root's result stays there.
    let waiting: Vec<Mutex<Option<T>>> = memory::collect((0..blocks).map(|_| Mutex::new(None)));
    let slot = |node: usize| waiting[node].lock().unwrap_or_else(PoisonError::into_inner);
    for_each(0..blocks, 1, 1, |part| {
        for i in part {
            let mut node = blocks + i;
            let mut result = map(i * block..len.min((i + 1) * block));
            loop {
                let mut slot = slot(node / 2);
                let Some(other) = slot.take() else {
                    *slot = Some(result);
                    break;
                };
                drop(slot);
                let (left, right) =
                    if node.is_multiple_of(2) { (result, other) } else { (other, result) };
                result = combine(left, right);
                node /= 2;
            }
        }
    });
    slot(0).take()
}

/// A slice that tasks may share, each writing its own part.
pub struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: a mutable borrow may be sent to another thread where its elements may.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: threads that share it get parts to write (`slice`), which sends elements, and
// parts to read that others may read as well (`read`), which shares them. The callers of
// both guarantee that no part is written while another reference to it is alive.
unsafe impl<T: Send + Sync> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Shares a slice.
    pub fn new(slice: &'a mut [T]) -> Self {
        SharedMut { start: slice.as_mut_ptr(), len: slice.len(), borrowed: PhantomData }
    }

    /// The same slice once more. Not for others: they could make two of what must
    /// be one.
    pub(crate) fn alias(&self) -> Self {
        SharedMut { start: self.start, len: self.len, borrowed: PhantomData }
    }

    /// Number of elements.
    #[expect(clippy::len_without_is_empty, reason = "not needed")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where the slice begins.
    pub(crate) fn as_ptr(&self) -> *const T {
        self.start
    }

    /// Where the slice begins, to write single elements.
    pub(crate) fn as_mut_ptr(&self) -> *mut T {
        self.start
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// No other reference into `range` may be alive while the result is used.
    pub unsafe fn slice(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds by the assertion, borrowed for 'a; the caller guarantees that
        // no other reference into `range` is alive.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// A part of the slice, to read.
    ///
    /// # Safety
    /// Nothing may write to `range` while the result is used.
    pub unsafe fn read(&self, range: Range<usize>) -> &'a [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds by the assertion, borrowed for 'a; the caller guarantees that
        // nothing writes to `range`.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
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
