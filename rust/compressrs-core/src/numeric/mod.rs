//! Element types and loops over them, `exp`, `ln` and `erf` as vectors, reductions in a fixed order, stochastic rounding.

pub mod element;
pub mod elementwise;
pub mod erf;
pub mod exp;
pub mod gathered;
#[cfg(target_arch = "x86_64")]
mod lane_sums;
pub mod lanes;
pub mod log;
#[cfg(target_arch = "x86_64")]
mod quarters;
#[cfg(target_arch = "x86_64")]
mod squares;
pub mod stochastic_rounding;
pub mod vector;
