//! Products of rows of activations with quantized weights, packed once.
//!
//! `integer` multiplies codes exactly, on any instruction set; `float` multiplies
//! numbers by what the codes stand for. Both have the same bits at every level and for any
//! number of threads.

mod activations;
mod epilogue;
mod float;
mod integer;
mod isa;
mod panels;
mod peak;
mod weights;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use activations::{Rows, row_scales};
pub use epilogue::{Activation, Epilogue, Output};
pub use float::{multiply_float, multiply_float_at};
pub use integer::{multiply, multiply_at};
pub use panels::{Columns, MAX_GROUP};
pub use peak::dot_products;
pub use weights::{Meaning, Weights, transposed};
