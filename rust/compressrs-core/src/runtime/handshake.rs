//! A loop whose parts several threads take, and how its caller learns that all are finished.
//!
//! A module of its own, so that loom can try every order of its atomic operations: see the
//! model below.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

#[cfg(loom)]
use loom::{
    sync::atomic::{AtomicUsize, Ordering},
    thread::{self, Thread},
};
#[cfg(not(loom))]
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread::{self, Thread},
};

use super::affinity;

/// What a thread does with the parts that it takes.
pub type Body<'a> = dyn Fn(&mut Parts<'_>) + Sync + 'a;

/// A loop that several threads take parts from.
pub struct Loop {
    /// Only to be called with a part that is taken and not finished, for then `finish` has not
    /// returned.
    body: *const Body<'static>,
    parts: usize,
    /// How many parts have been taken, or asked for in vain.
    taken: AtomicUsize,
    /// How many of them by the caller, from the first on, and by helpers, from the last on: so that
    /// of loops over the same memory that follow one another, most of it stays in the cache of the
    /// thread that wrote it.
    first: AtomicUsize,
    last: AtomicUsize,
    /// Parts not finished yet.
    left: AtomicUsize,
    caller: Thread,
    /// Where the caller was when it began.
    cpu: Option<usize>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `body` is Sync, and is called only while it lives; see there.
unsafe impl Send for Loop {}
// SAFETY: as above.
unsafe impl Sync for Loop {}

/// The parts that a thread takes, one after another.
pub struct Parts<'a> {
    shared: &'a Loop,
    taker: Taker,
    first: Option<usize>,
}

/// Who takes a part.
#[derive(Clone, Copy)]
enum Taker {
    Caller,
    Helper,
}

impl Iterator for Parts<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let next = self.shared.take(self.taker)?;
        // The one before. The last is finished when `body` has returned, which may use what it
        // has borrowed until then.
        self.shared.finish_part();
        Some(next)
    }
}

impl Loop {
    /// A loop whose caller is this thread.
    ///
    /// # Safety
    /// The caller guarantees that [`finish`](Loop::finish) returns, or panics, before `body` ends
    /// if `work` or `help` has been called.
    pub unsafe fn new(parts: usize, body: &Body<'_>) -> Self {
        let body: *const Body<'_> = body;
        // SAFETY: only the lifetime changes; the caller guarantees what it protected.
        let body: *const Body<'static> = unsafe { std::mem::transmute(body) };
        Loop {
            body,
            parts,
            taken: AtomicUsize::new(0),
            first: AtomicUsize::new(0),
            last: AtomicUsize::new(0),
            left: AtomicUsize::new(parts),
            caller: thread::current(),
            cpu: affinity::current(),
            panic: Mutex::new(None),
        }
    }

    /// As `work`, on a thread that keeps off the caller's CPU.
    pub fn help(&self) {
        affinity::leave(self.cpu);
        self.run(Taker::Helper);
    }

    /// Runs parts, on the caller's thread, until none is left to take. A panic of one is kept
    /// for `finish`.
    pub fn work(&self) {
        self.run(Taker::Caller);
    }

    fn run(&self, taker: Taker) {
        while let Some(first) = self.take(taker) {
            // SAFETY: the part is not finished before `body` returns, so `finish` has not
            // returned.
            let body = unsafe { &*self.body };
            let mut parts = Parts { shared: self, taker, first: Some(first) };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(&mut parts))) {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
            self.finish_part();
        }
    }

    /// The next part.
    fn take(&self, taker: Taker) -> Option<usize> {
        if self.taken.fetch_add(1, Ordering::Relaxed) >= self.parts {
            return None;
        }
        // The ends do not meet: as many parts are taken from both as have been taken.
        Some(match taker {
            Taker::Caller => self.first.fetch_add(1, Ordering::Relaxed),
            Taker::Helper => self.parts - 1 - self.last.fetch_add(1, Ordering::Relaxed),
        })
    }

    fn finish_part(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.caller.unpark();
        }
    }

    /// Waits on the caller's thread until all parts are finished: looks for as long as `patience`,
    /// and then sleeps.
    ///
    /// # Unwinds
    /// With the panic of a part.
    pub fn finish(&self, patience: Duration) {
        let start = Instant::now();
        while self.left.load(Ordering::Acquire) > 0 {
            if cfg!(loom) || start.elapsed() > patience {
                thread::park();
            } else {
                std::hint::spin_loop();
            }
        }
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_a_part_is_that_of_the_loop() {
        let body = |parts: &mut Parts<'_>| parts.for_each(|part| assert_ne!(part, 3, "the third"));
        // SAFETY: `finish` returns before `body` ends.
        let this = unsafe { Loop::new(9, &body) };
        thread::scope(|scope| {
            scope.spawn(|| this.help());
            this.work();
            let found = catch_unwind(AssertUnwindSafe(|| this.finish(Duration::ZERO))).unwrap_err();
            assert!(found.downcast_ref::<String>().unwrap().contains("the third"));
        });
        assert_eq!(this.left.load(Ordering::Relaxed), 0);
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::cell::UnsafeCell;
    use std::sync::Arc;

    /// What parts write. A cell that two threads access without an order between them, or
    /// after the caller went on, fails the model.
    struct Cells(Vec<UnsafeCell<usize>>);

    // SAFETY: loom checks that accesses are ordered.
    unsafe impl Sync for Cells {}

    #[test]
    fn the_caller_goes_on_after_every_part_in_every_order() {
        for (parts, helpers) in [(1, 1), (2, 1), (3, 1), (2, 2)] {
            loom::model(move || {
                let cells = Cells((0..parts).map(|_| UnsafeCell::new(0)).collect());
                let all = &cells;
                let body = |parts: &mut Parts<'_>| {
                    for part in parts {
                        // SAFETY: each part is taken once, which this test verifies.
                        all.0[part].with_mut(|cell| unsafe { *cell += 1 });
                    }
                };
                // SAFETY: `finish` returns before `body` ends.
                let this = Arc::new(unsafe { Loop::new(parts, &body) });
                let others: Vec<_> = (0..helpers)
                    .map(|_| {
                        let helper = Arc::clone(&this);
                        thread::spawn(move || helper.help())
                    })
                    .collect();
                this.work();
                this.finish(Duration::ZERO);
                for cell in &cells.0 {
                    // SAFETY: no part is running.
                    cell.with(|cell| assert_eq!(unsafe { *cell }, 1));
                }
                // Helpers that come late find nothing to do, and these are gone by then.
                drop(cells);
                for other in others {
                    other.join().unwrap();
                }
            });
        }
    }
}
