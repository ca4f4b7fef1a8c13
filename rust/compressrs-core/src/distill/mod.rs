//! Softmax with temperature, and the distillation loss with its gradient.
//!
//! All work on rows that lie one after another in memory. Sums run in fixed
//! lanes over some thousand elements in the compute type and over chunks in double
//! precision, so that rows of any length keep their accuracy.

mod kd;
mod softmax;
mod tile;

pub use kd::{KdLoss, kd_loss};
pub use softmax::{Softmax, softmax};

/// Elements that are summed in the compute type.
const CHUNK: usize = 4096;

/// Elements worth a task of their own; see [`crate::parallel::for_each`].
const GRAIN: usize = 16 * 1024;
