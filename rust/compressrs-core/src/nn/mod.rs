//! Layers of neural networks: forward and backward.
//!
//! Dense products are [`crate::linalg::gemm`]'s, softmax is [`crate::distill`]'s.

pub mod activation;
pub mod attention;
pub mod conv;
pub mod embedding;
pub mod norm;
mod norm_scaled;
pub mod pool;

/// Elements worth a task of their own; see [`crate::runtime::parallel::for_each`].
const GRAIN_ELEMENTS: usize = 16 * 1024;
