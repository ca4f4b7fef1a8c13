//! Our own thread pool: lazy, resizable, safe after fork.
//!
//! The pool belongs to a process: the `Runtime` remembers the process id it was
//! made in, and a forked child, which has none of its parent's threads, makes a
//! new one. The parent's is leaked there on purpose: its locks may be held by
//! threads that do not exist in the child. What the threads do between loops is
//! in `helpers`.
//!
//! Splitting never decides a result: elementwise kernels do not care, and
//! reductions use [`reduce`], whose tree depends on the length alone.

use std::cell::Cell;
use std::iter::successors;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::handshake::{Body, Loop};
use super::helpers::{Helpers, LONGEST};
use super::memory;

/// Name of the environment variable that sets the number of threads.
pub const ENV: &str = "COMPRESSRS_NUM_THREADS";

/// Most threads that can be asked for.
pub const MAX_THREADS: usize = 1024;

/// Number of threads asked for; 0 until first needed. Survives a fork.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// The pool of one process.
struct Runtime {
    pid: u32,
    pool: Mutex<Option<Pool>>,
}

/// The threads besides the caller's.
struct Pool {
    /// How many were asked for; there are fewer where memory did not suffice.
    wanted: usize,
    helpers: Arc<Helpers>,
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

/// The helpers, or None where work should run on the caller's thread: for one
/// thread, or where threads cannot be started.
fn helpers() -> Option<Arc<Helpers>> {
    let wanted = num_threads().ok().filter(|&n| n > 1)? - 1;
    let mut slot = runtime().pool.lock().unwrap_or_else(PoisonError::into_inner);
    if slot.as_ref().is_none_or(|pool| pool.wanted != wanted) {
        *slot = None;
        let fewer = successors(Some(wanted), |n| Some(n / 2)).take_while(|&n| n > 0);
        let helpers = { fewer }.find_map(Helpers::start);
        *slot = helpers.map(|helpers| Pool { wanted, helpers: Arc::new(helpers) });
    }
    slot.as_ref().map(|pool| Arc::clone(&pool.helpers))
}

/// As [`helpers`], but None unless one is awake and has nothing to do.
fn lingering() -> Option<Arc<Helpers>> {
    let slot = runtime().pool.lock().unwrap_or_else(PoisonError::into_inner);
    slot.as_ref().map(|pool| &pool.helpers).filter(|helpers| helpers.lingering()).map(Arc::clone)
}

/// Loops of a thread, of a grain or more, of which each began soon after the one before.
#[derive(Clone, Copy)]
struct Row {
    loops: usize,
    end: Option<Instant>,
}

thread_local! {
    static ROW: Cell<Row> = const { Cell::new(Row { loops: 0, end: None }) };
}

impl Row {
    /// Begins a loop of this thread.
    fn next() -> Self {
        let Row { loops, end } = ROW.get();
        let follows = end.is_some_and(|end| end.elapsed() <= LONGEST);
        Row { loops: if follows { loops.saturating_add(1) } else { 1 }, end }
    }

    /// The helpers for this loop.
    ///
    /// Waking them pays for a long loop, and for a shorter one if others follow, for which
    /// they are awake then.
    fn helpers(self, len: usize, grain: usize) -> Option<Arc<Helpers>> {
        let pays = match len / grain.max(1) {
            // Many grains may be a single item.
            2.. if grain == 1 => true,
            4.. => true,
            2.. => self.loops >= 2,
            1 => self.loops >= 4,
            0 => self.loops >= 8,
        };
        if pays { helpers() } else { lingering() }
    }

    fn end(self) {
        ROW.set(Row { end: Some(Instant::now()), ..self });
    }
}

/// Parts that a loop is divided into, for each thread: enough that a thread
/// which lost its CPU for a while does not hold up the others.
const PARTS: usize = 8;

/// Calls `body` on parts of `range`, in parallel where the range is longer than
/// a grain and helpers are awake, or worth waking.
///
/// `grain` is the number of items that are worth a task of their own: about 20
/// microseconds of work. Parts start at multiples of `align` items from the start
/// of the range.
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
    divide(range, (grain, grain), align, || (), |(), part| body(part));
}

/// As [`for_each`], for loops that compute much with what they read, or read most of it from
/// memory that other threads do not write: a quarter of a grain is worth the help of a thread
/// that is awake. Where most comes from the caller's cache, fetching it takes longer.
///
/// Each thread makes something for itself that its parts share, such as a copy of an operand in
/// its own cache.
pub fn for_each_fine<S>(
    range: Range<usize>,
    grain: usize,
    init: impl Fn() -> S + Sync,
    body: impl Fn(&mut S, Range<usize>) + Sync,
) {
    divide(range, (grain, grain.div_ceil(4)), 1, init, body);
}

/// As [`for_each`]; `least` items are worth the help of a thread that is awake.
fn divide<S>(
    range: Range<usize>,
    (grain, least): (usize, usize),
    align: usize,
    init: impl Fn() -> S + Sync,
    body: impl Fn(&mut S, Range<usize>) + Sync,
) {
    let len = range.len();
    if len < least || len <= align || num_threads() == Ok(1) {
        return body(&mut init(), range);
    }
    let row = Row::next();
    match row.helpers(len, grain) {
        None => body(&mut init(), range),
        Some(helpers) => {
            let threads = helpers.threads() + 1;
            // One for each thread where that takes little longer than asking for help.
            let parts = if len < grain { threads } else { PARTS * threads };
            // Half of the least, so that few parts divide evenly.
            let size = len.div_ceil(parts).max(least.div_ceil(2)).next_multiple_of(align);
            run(&helpers, len.div_ceil(size), &|parts| {
                let mut own = init();
                for part in parts {
                    let start = range.start + part * size;
                    body(&mut own, start..range.end.min(start + size));
                }
            });
        }
    }
    row.end();
}

/// Runs the parts of a loop on this thread and those of the helpers that come.
fn run(helpers: &Helpers, parts: usize, body: &Body<'_>) {
    // SAFETY: `finish` returns after the last part, before `body` ends, and nothing
    // before it returns from here or unwinds: `work` keeps panics of the parts for it.
    let shared = Arc::new(unsafe { Loop::new(parts, body) });
    helpers.ask(parts.saturating_sub(1), &shared);
    shared.work();
    helpers.dismiss(&shared);
    shared.finish(helpers.patience());
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
    fn loops_of_several_callers_and_within_loops_are_complete() {
        let before = num_threads().unwrap();
        set_num_threads(3).unwrap();
        let total = AtomicUsize::new(0);
        let inner = |_| {
            for_each(0..100, 1, 1, |part| {
                total.fetch_add(part.len(), Ordering::Relaxed);
            });
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| for_each(0..50, 1, 1, |part| part.for_each(inner)));
            }
        });
        set_num_threads(before).unwrap();
        assert_eq!(total.into_inner(), 4 * 50 * 100);
    }

    #[test]
    fn the_pool_works_after_a_panic_of_a_part_and_while_it_is_resized() {
        let before = num_threads().unwrap();
        for n in (2..5).cycle().take(30) {
            set_num_threads(n).unwrap();
            let failed = std::panic::catch_unwind(|| {
                for_each(0..64, 1, 1, |part| {
                    // No message.
                    std::panic::resume_unwind(Box::new(part.start));
                });
            });
            assert!(failed.is_err_and(|payload| payload.is::<usize>()));
            let total = AtomicUsize::new(0);
            for_each(0..64, 1, 1, |part| {
                total.fetch_add(part.len(), Ordering::Relaxed);
            });
            assert_eq!(total.into_inner(), 64);
        }
        set_num_threads(before).unwrap();
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
