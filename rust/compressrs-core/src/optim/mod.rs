//! Update rules of optimizers, and what is done to gradients and weights around
//! a step.
//!
//! A rule is one file: its hyperparameters, declared with defaults and ranges, and its
//! scalar formula ([`Formula`]). The one driver ([`step`](fn@step)) applies a
//! formula to any number of tensors, in parallel, in place. [`Lamb`],
//! [`Adafactor`], [`Muon`], [`Shampoo`] and [`Soap`] also look at a tensor as a whole.

mod adadelta;
mod adafactor;
mod adagrad;
mod adam;
mod adamax;
mod ademamix;
mod asgd;
mod blend;
mod cautious;
mod full_tensor;
mod fused;
mod hyperparameters;
mod kronecker;
mod lamb;
mod lion;
mod momentum;
mod muon;
mod nadam;
mod norm;
mod prodigy;
mod radam;
mod rmsprop;
mod rows;
mod rprop;
mod rule;
mod sgd;
mod shampoo;
mod soap;
mod step;
mod storage;
mod tensor;
mod update;
mod values;

pub use crate::numeric::stochastic_rounding::StochasticRounding;
pub use crate::quantize::blockwise::{BLOCK, CODE_VERSION, MIN_LEN};
pub use adadelta::Adadelta;
pub use adafactor::Adafactor;
pub use adagrad::Adagrad;
pub use adam::Adam;
pub use adamax::Adamax;
pub use ademamix::AdEmaMix;
pub use asgd::Asgd;
pub use blend::{accumulate, clamp, lerp, scale};
pub use hyperparameters::{Common, Hyperparameters, OutOfRange, Parameter, Range, Source, Value};
pub use kronecker::block_len;
pub use lamb::Lamb;
pub use lion::Lion;
pub use momentum::Momentum;
pub use muon::{AdjustLr, Muon};
pub use nadam::NAdam;
pub use norm::{
    Fault, Gradient, Norm, PARTIAL_SUM_ELEMENTS, Reduction, combine, find_beyond, norm, norm_by,
    partial_reductions,
};
pub use prodigy::{Prodigy, estimate};
pub use radam::RAdam;
pub use rmsprop::RmsProp;
pub use rows::{RowSums, Rows};
pub use rprop::Rprop;
pub use rule::{
    Formula, MAX_SCALARS, MAX_STATES, Reader, Rule, Scalars, State, StateKind, StateShape, Update,
    reader, rules,
};
pub use sgd::Sgd;
pub use shampoo::{Grafting, Shampoo};
pub use soap::Soap;
pub use step::{reserve, step};
pub use storage::{Codes, Halves, Moments, Rounding, Weights};
pub use tensor::{Tensor, mask_bytes};
pub use values::Values;
