//! Numbers in few bits.
//!
//! - [`blockwise`]: the 8-bit codes of optimizer state, with a scale for each block.

pub mod blockwise;
