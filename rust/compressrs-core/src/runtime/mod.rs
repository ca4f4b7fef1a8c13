//! Where and how kernels run: instruction sets, the thread pool and its CPUs, memory.

mod affinity;
mod handshake;
mod helpers;
pub mod memory;
pub mod parallel;
pub mod scratch;
pub mod simd;
