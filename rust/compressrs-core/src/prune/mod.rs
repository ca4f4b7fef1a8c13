//! Choosing what to remove: exact magnitude thresholds, and masks.
//!
//! A mask is a slice of bytes, not 0 where a value is kept: the bytes of a NumPy
//! boolean array, which need not be those that Rust allows in a `bool`.

mod mask;
mod threshold;

pub use mask::{apply_mask, mask_below, mask_smallest};
pub use threshold::{Rank, find_nan, rank};
