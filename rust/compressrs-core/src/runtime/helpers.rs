//! The threads that help callers with their loops.
//!
//! A thread that sleeps begins 5 microseconds after it is woken, or 80 in a virtual machine, whose
//! host takes an idle CPU away: as long as many a kernel takes. So a helper that finds no loop
//! looks for the next one for a while before it sleeps: up to [`LONGEST`] where the last loop came
//! as soon as that, and down to [`SHORTEST`] where loops are rare, so that a program that calls
//! a kernel now and then does not pay for it.
//!
//! Callers never wait for a helper that has not begun. What is here decides when a helper
//! begins, and nothing else.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, mpsc};
use std::thread::{Builder, available_parallelism};
use std::time::{Duration, Instant};

#[cfg(loom)]
use loom::{
    sync::atomic::{AtomicUsize, Ordering},
    sync::{Condvar, Mutex, MutexGuard},
    thread,
};
#[cfg(not(loom))]
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    sync::{Condvar, Mutex, MutexGuard},
    thread,
};

use super::handshake::Loop;
use super::memory;

/// For how long a helper looks for the next loop at most.
pub const LONGEST: Duration = Duration::from_micros(200);

/// For how long it does so at least.
const SHORTEST: Duration = Duration::from_micros(20);

/// For how long a caller looks whether helpers have finished their parts: about as long as it
/// takes to be woken. Less where a helper may need the caller's CPU to finish.
const FINISH: Duration = Duration::from_micros(100);

/// How often a helper looks before it lets another thread have the CPU: for about a microsecond.
const LOOKS: usize = if cfg!(loom) { 1 } else { 16 };

/// Address space that a thread takes until it works: its stack, of 2 MiB, and its thread-local
/// data and first allocations.
const MEMORY_OF_THREAD: usize = 4 << 20;

/// Threads that help until this is dropped.
pub struct Helpers {
    threads: usize,
    queue: Arc<Queue>,
}

impl Helpers {
    /// Starts so many threads; None where memory may not suffice.
    ///
    /// The C library aborts the process if it cannot allocate a thread's thread-local data, which
    /// happens at their first use, on that thread. So memory is looked for first, and the
    /// threads have used theirs before other work can take it.
    pub fn start(threads: usize) -> Option<Self> {
        // Reserved, never touched, and released again.
        drop(memory::try_with_capacity::<u8>(threads.checked_mul(MEMORY_OF_THREAD)?)?);
        // A helper that shares its CPU with a caller would only take time from it.
        let own_cpus = available_parallelism().is_ok_and(|cpus| threads < cpus.get());
        let queue = Arc::new(Queue::new(if own_cpus { LONGEST } else { Duration::ZERO }));
        let helpers = Helpers { threads, queue };
        let (begun, all_begun) = mpsc::channel::<()>();
        for i in 0..threads {
            let (queue, begun) = (Arc::clone(&helpers.queue), begun.clone());
            let help = move || {
                drop(begun);
                queue.help();
            };
            Builder::new().name(format!("compressrs-{i}")).spawn(help).ok()?;
        }
        drop(begun);
        // Nothing is ever sent: this returns when the last thread has dropped its end.
        let _ = all_begun.recv();
        Some(helpers)
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Whether a helper is awake and has nothing to do.
    pub fn lingering(&self) -> bool {
        self.queue.polling.load(Ordering::Relaxed) > 0
    }

    /// For how long a caller should look whether its loop is finished before it sleeps.
    pub fn patience(&self) -> Duration {
        if self.queue.longest.is_zero() { SHORTEST } else { FINISH }
    }

    /// Asks so many helpers to work on a loop, none of which need come.
    pub fn ask(&self, helpers: usize, this: &Arc<Loop>) {
        self.queue.ask(helpers.min(self.threads), this);
    }

    /// Asks no more for a loop whose parts are all taken.
    pub fn dismiss(&self, this: &Arc<Loop>) {
        self.queue.dismiss(this);
    }
}

impl Drop for Helpers {
    /// Threads that work on a loop end after it, and nobody waits for them.
    fn drop(&mut self) {
        self.queue.end();
    }
}

/// Where helpers find loops.
struct Queue {
    state: Mutex<State>,
    /// How many helpers are wanted, and one more when they are to end. Changed under the lock; what
    /// those that poll look at.
    wanted: AtomicUsize,
    /// How many helpers look for a loop, those included that have been called out of sleep.
    /// Decreased under the lock, so that nobody is taken for awake who is not.
    polling: AtomicUsize,
    call: Condvar,
    /// For how long a helper looks at most.
    longest: Duration,
}

#[derive(Default)]
struct State {
    /// Loops, and how many more helpers each wants; never none.
    loops: VecDeque<(Arc<Loop>, usize)>,
    sleeping: usize,
    /// How many were called out of sleep and have not noticed yet.
    called: usize,
    ended: bool,
}

/// What a helper does next.
enum Next {
    Work(Arc<Loop>),
    Look,
    End,
}

impl Queue {
    fn new(longest: Duration) -> Self {
        Queue {
            state: Mutex::new(State::default()),
            wanted: AtomicUsize::new(0),
            polling: AtomicUsize::new(0),
            call: Condvar::new(),
            longest,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, if nobody holds it. That of loom may block a thread for ever
    /// (<https://github.com/tokio-rs/loom/issues/376>), so there this one waits.
    fn try_lock(&self) -> Option<MutexGuard<'_, State>> {
        if cfg!(loom) { Some(self.lock()) } else { self.state.try_lock().ok() }
    }

    fn ask(&self, helpers: usize, this: &Arc<Loop>) {
        if helpers == 0 {
            return;
        }
        let mut state = self.lock();
        if state.loops.try_reserve(1).is_err() {
            return;
        }
        state.loops.push_back((Arc::clone(this), helpers));
        let wanted = self.wanted.fetch_add(helpers, Ordering::Relaxed) + helpers;
        // Helpers that are awake need no call.
        let calls = wanted.saturating_sub(self.polling.load(Ordering::Relaxed)).min(state.sleeping);
        self.polling.fetch_add(calls, Ordering::Relaxed);
        state.sleeping -= calls;
        state.called += calls;
        drop(state);
        for _ in 0..calls {
            self.call.notify_one();
        }
    }

    fn dismiss(&self, this: &Arc<Loop>) {
        // 0 means that helpers have taken all that was added, by this thread too.
        if self.wanted.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut state = self.lock();
        if let Some(i) = state.loops.iter().position(|(other, _)| Arc::ptr_eq(other, this))
            && let Some((_, helpers)) = state.loops.remove(i)
        {
            self.wanted.fetch_sub(helpers, Ordering::Relaxed);
        }
    }

    fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        self.wanted.fetch_add(1, Ordering::Relaxed);
        drop(state);
        self.call.notify_all();
    }

    /// What a helper's thread does.
    fn help(&self) {
        let shortest = SHORTEST.min(self.longest);
        let mut patience = shortest;
        self.polling.fetch_add(1, Ordering::Relaxed);
        loop {
            let start = Instant::now();
            let next = self.look(start, patience).unwrap_or_else(|| self.sleep());
            patience = if start.elapsed() <= self.longest {
                self.longest
            } else {
                (patience / 2).max(shortest)
            };
            match next {
                Next::Work(this) => {
                    this.help();
                    self.polling.fetch_add(1, Ordering::Relaxed);
                }
                Next::Look => {}
                Next::End => return,
            }
        }
    }

    /// Looks for something to do, without blocking.
    fn look(&self, start: Instant, patience: Duration) -> Option<Next> {
        loop {
            for _ in 0..LOOKS {
                if self.wanted.load(Ordering::Relaxed) > 0
                    && let Some(mut state) = self.try_lock()
                    && let Some(next) = self.take(&mut state)
                {
                    return Some(next);
                }
                std::hint::spin_loop();
            }
            if start.elapsed() >= patience {
                return None;
            }
            thread::yield_now();
        }
    }

    /// Sleeps until called, unless there is something to do.
    fn sleep(&self) -> Next {
        let mut state = self.lock();
        if let Some(next) = self.take(&mut state) {
            return next;
        }
        self.polling.fetch_sub(1, Ordering::Relaxed);
        state.sleeping += 1;
        while state.called == 0 && !state.ended {
            state = self.call.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.called = state.called.saturating_sub(1);
        self.take(&mut state).unwrap_or(Next::Look)
    }

    /// A helper's place in the first loop.
    fn take(&self, state: &mut State) -> Option<Next> {
        if state.ended {
            return Some(Next::End);
        }
        let (this, helpers) = state.loops.front_mut()?;
        let this = Arc::clone(this);
        *helpers -= 1;
        if *helpers == 0 {
            state.loops.pop_front();
        }
        self.wanted.fetch_sub(1, Ordering::Relaxed);
        self.polling.fetch_sub(1, Ordering::Relaxed);
        Some(Next::Work(this))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::runtime::handshake::Parts;
    use std::sync::Barrier;

    /// Runs a loop of so many parts, and returns whether helpers are still wanted for it.
    fn run(helpers: &Helpers, parts: usize, body: &(dyn Fn(usize) + Sync)) -> bool {
        let body = |parts: &mut Parts<'_>| parts.for_each(body);
        // SAFETY: `finish` returns before `body` ends.
        let this = Arc::new(unsafe { Loop::new(parts, &body) });
        helpers.ask(parts - 1, &this);
        this.work();
        helpers.dismiss(&this);
        this.finish(helpers.patience());
        helpers.queue.lock().loops.iter().any(|(other, _)| Arc::ptr_eq(other, &this))
    }

    #[test]
    fn helpers_come_out_of_sleep_and_while_they_linger() {
        for threads in [1, 3] {
            let helpers = Helpers::start(threads).unwrap();
            for pause in [0, 0, 50, 5000, 0, 100, 1000, 0] {
                thread::sleep(Duration::from_micros(pause));
                // Each part waits for all others, so that each needs a thread.
                let all = Barrier::new(threads + 1);
                let body = |_| {
                    all.wait();
                };
                assert!(!run(&helpers, threads + 1, &body));
            }
        }
    }

    #[test]
    fn nobody_waits_for_helpers_that_are_busy() {
        let helpers = Helpers::start(1).unwrap();
        let (begin, end) = (Barrier::new(3), Barrier::new(3));
        thread::scope(|scope| {
            scope.spawn(|| {
                run(&helpers, 2, &|_| {
                    begin.wait();
                    end.wait();
                })
            });
            // Both threads are in that loop.
            begin.wait();
            for _ in 0..100 {
                assert!(!run(&helpers, 9, &|_| ()));
            }
            assert_eq!(helpers.queue.wanted.load(Ordering::Relaxed), 0);
            end.wait();
        });
    }

    #[test]
    fn threads_end_when_nobody_can_ask_them() {
        for pause in [0, 50, 5000] {
            let helpers = Helpers::start(2).unwrap();
            run(&helpers, 9, &|_| ());
            thread::sleep(Duration::from_micros(pause));
            let queue = Arc::downgrade(&helpers.queue);
            drop(helpers);
            let start = Instant::now();
            while queue.strong_count() > 0 {
                assert!(start.elapsed() < Duration::from_secs(60));
                thread::yield_now();
            }
        }
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use crate::runtime::handshake::Parts;

    /// Asks for help that is not needed, and then for help without which nothing is done, so that
    /// loom finds a deadlock if a helper misses its call.
    ///
    /// The caller waits for no lock once its parts may be finished: loom's `unpark` continues
    /// a thread that waits for a lock as well.
    fn call(queue: &Queue, helpers: usize) {
        let done = AtomicUsize::new(0);
        let body = |parts: &mut Parts<'_>| {
            done.fetch_add(parts.count(), Ordering::Relaxed);
        };
        // SAFETY: there are no parts.
        let none = Arc::new(unsafe { Loop::new(0, &body) });
        queue.ask(helpers, &none);
        queue.dismiss(&none);
        // SAFETY: `finish` returns before `body` ends.
        let some = Arc::new(unsafe { Loop::new(helpers, &body) });
        queue.ask(helpers, &some);
        some.finish(Duration::ZERO);
        assert_eq!(done.load(Ordering::Relaxed), helpers);
    }

    #[test]
    fn helpers_come_when_they_are_asked_in_every_order() {
        for (callers, helpers) in [(1, 1), (1, 2), (2, 1)] {
            let mut model = loom::model::Builder::new();
            model.preemption_bound = Some(2);
            model.check(move || {
                let queue = Arc::new(Queue::new(Duration::ZERO));
                let spawn = |run: fn(&Queue, usize)| {
                    let queue = Arc::clone(&queue);
                    thread::spawn(move || run(&queue, helpers))
                };
                let threads: Vec<_> =
                    (0..helpers).map(|_| spawn(|queue, _| queue.help())).collect();
                let callers: Vec<_> = (0..callers).map(|_| spawn(call)).collect();
                for caller in callers {
                    caller.join().unwrap();
                }
                queue.end();
                for thread in threads {
                    thread.join().unwrap();
                }
            });
        }
    }
}
