//! Softmax with temperature, and losses of distillation with their gradients.

mod correlation;
mod features;
mod kd;
mod range;
mod relation;
mod softmax;
mod tile;
mod wide;

pub use correlation::{Dist, dist};
pub use features::{Maps, attention, hint};
pub use kd::{Divergence, KdLoss, Reduction, Teacher, TopK, UNLABELLED, kd_loss, top_k};
pub use relation::{Features, angle, distance};
pub use softmax::{Axis, PerRow, SoftmaxOutput, logsumexp, softmax};

/// Elements worth a task of their own; see [`crate::runtime::parallel::for_each`].
const GRAIN_ELEMENTS: usize = 16 * 1024;
