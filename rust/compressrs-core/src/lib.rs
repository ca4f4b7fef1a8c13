//! The arithmetic of compressrs: slices in, slices out, no Python.
//!
//! - [`optim`]: update rules of optimizers, applied to many tensors at once;
//! - [`quantize`]: numbers in few bits;
//! - [`prune`]: scores, exact order statistics, masks, reconstruction;
//! - [`sparse`]: CSR matrices and their products;
//! - [`distill`]: softmax with temperature and distillation losses;
//! - [`codec`]: lossless coding of weights, codes and positions.
//!
//! These stand on [`numeric`] (element types, `exp` and `ln`, reductions in a fixed order),
//! [`linalg`] (dense products and factors) and [`runtime`] (one body for every instruction
//! set, the thread pool, scratch memory). Results have the same bits for every instruction
//! set and every number of threads, but for sign and payload of NaN, which Rust does not specify
//! either. [`peak`] shows what a machine can do at most.

pub mod codec;
pub mod distill;
pub mod linalg;
pub mod nn;
pub mod numeric;
pub mod optim;
pub mod peak;
pub mod prune;
pub mod quantize;
pub mod runtime;
pub mod sparse;
