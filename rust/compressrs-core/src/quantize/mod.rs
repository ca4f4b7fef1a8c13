//! Numbers in few bits.
//!
//! - [`blockwise`]: the 8-bit codes of optimizer state, with a scale for each block;
//! - [`product`]: products with quantized weights.

pub mod blockwise;
pub mod product;
