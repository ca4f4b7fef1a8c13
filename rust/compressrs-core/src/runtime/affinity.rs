//! On which CPU a thread runs.
//!
//! Linux wakes a thread on the CPU of the one that wakes it, if it takes the others for
//! busy; in a virtual machine it takes an idle CPU, which the host may have put to sleep,
//! for busy. Then caller and helper share one CPU for as long as a burst of short
//! kernels lasts, which is slower than the caller alone. A helper that finds itself there
//! keeps off the caller's CPU from then on.

/// A CPU, or None where that cannot be known.
#[cfg(target_os = "linux")]
pub fn current() -> Option<usize> {
    // SAFETY: takes no arguments.
    usize::try_from(unsafe { libc::sched_getcpu() }).ok()
}

/// A CPU, or None where that cannot be known.
#[cfg(not(target_os = "linux"))]
pub fn current() -> Option<usize> {
    None
}

/// Moves this thread to another of its CPUs, and has it stay off this one, if it is on it
/// and there is another.
#[cfg(target_os = "linux")]
pub fn leave(cpu: Option<usize>) {
    if cpu.is_some() && cpu == current() {
        // On failure nothing changes: the thread remains on its CPU.
        let _ = cpu.and_then(linux::leave);
    }
}

/// Moves this thread to another of its CPUs, where that is possible.
#[cfg(not(target_os = "linux"))]
pub fn leave(_: Option<usize>) {}

#[cfg(target_os = "linux")]
mod linux {
    use std::cell::Cell;

    use libc::cpu_set_t;

    thread_local! {
        /// The CPUs this thread may use, and those of them that it was kept to here.
        static KEPT: Cell<Option<(cpu_set_t, cpu_set_t)>> = const { Cell::new(None) };
    }

    pub fn leave(cpu: usize) -> Option<()> {
        // SAFETY: a set of bits, for which zeros are valid.
        let mut now: cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: writes a set of this size; 0 is this thread. It fails on a machine with
        // more CPUs than the set has bits.
        let got = unsafe { libc::sched_getaffinity(0, size_of::<cpu_set_t>(), &raw mut now) };
        if got != 0 || cpu >= libc::CPU_SETSIZE as usize {
            return None;
        }
        let mut all = now;
        if let Some((before, kept)) = KEPT.get() {
            // If the set is not what it was kept to here, somebody else has chosen it.
            // SAFETY: reads two sets.
            if unsafe { libc::CPU_EQUAL(&kept, &now) } {
                all = before;
            }
        }
        let mut rest = all;
        // SAFETY: the CPU is within the set.
        unsafe { libc::CPU_CLR(cpu, &mut rest) };
        // SAFETY: reads a set.
        if unsafe { libc::CPU_COUNT(&rest) } == 0 {
            return None;
        }
        // SAFETY: reads a set of this size.
        let set = unsafe { libc::sched_setaffinity(0, size_of::<cpu_set_t>(), &raw const rest) };
        (set == 0).then(|| KEPT.set(Some((all, rest))))
    }

    #[cfg(test)]
    mod tests {
        use crate::runtime::affinity;

        #[test]
        fn a_thread_leaves_a_cpu_for_another_and_may_come_back() {
            std::thread::spawn(|| {
                if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
                    return affinity::leave(affinity::current());
                }
                for _ in 0..4 {
                    let cpu = affinity::current();
                    affinity::leave(cpu);
                    assert_ne!(affinity::current(), cpu);
                }
                // Not where it is: nothing to leave.
                let cpu = affinity::current();
                affinity::leave(cpu.map(|cpu| cpu + 1));
                assert_eq!(affinity::current(), cpu);
            })
            .join()
            .unwrap();
        }
    }
}
