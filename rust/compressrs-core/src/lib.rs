//! The arithmetic of compressrs: slices in, slices out, no Python.
//!
//! - [`optim`]: update rules of optimizers, applied to many tensors at once;
//! - [`prune`]: scores, exact order statistics, masks, reconstruction;
//! - [`sparse`]: CSR matrices and their products;
//! - [`distill`]: softmax with temperature and distillation losses.
//!
//! These stand on [`element`] (storage and compute types), [`simd`] (one body
//! for every instruction set), [`lanes`] (reductions in a fixed order),
//! [`mod@exp`] and [`log`] (as vectors), [`gemm`], [`cholesky`], [`scratch`] (memory for a call) and
//! [`parallel`] (our thread pool). Results have the same bits for every instruction set
//! and every number of threads.

pub mod cholesky;
pub mod distill;
pub mod element;
pub mod exp;
pub mod gemm;
pub mod lanes;
pub mod log;
pub mod optim;
pub mod parallel;
mod place;
pub mod prune;
pub mod scratch;
pub mod simd;
pub mod sparse;
