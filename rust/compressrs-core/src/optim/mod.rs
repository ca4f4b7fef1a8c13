//! Update rules of optimizers.
//!
//! A rule is one file: its hyperparameters, checked when they are made, and its
//! scalar formula ([`Formula`]). The one driver ([`step`](fn@step)) applies a
//! formula to any number of tensors, in parallel, in place.

mod adam;
mod momentum;
mod rule;
mod sgd;
mod step;

pub use adam::Adam;
pub use momentum::Momentum;
pub use rule::{Formula, MAX_STATES, OutOfRange, Rule, Update};
pub use sgd::Sgd;
pub use step::{Tensor, step};
