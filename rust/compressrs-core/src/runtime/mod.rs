//! Where and how kernels run: instruction sets, the thread pool and its CPUs, scratch memory.

mod affinity;
pub mod parallel;
pub mod scratch;
pub mod simd;
