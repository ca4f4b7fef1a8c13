//! Element types, `exp` and `ln` as vectors, reductions in a fixed order, stochastic rounding.

pub mod element;
pub mod exp;
pub mod lanes;
pub mod log;
pub mod stochastic_rounding;
