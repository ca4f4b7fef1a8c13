//! Choosing what to remove: exact magnitude thresholds, and masks.
//!
//! A mask is a slice of `bool`, true where a value is kept.

mod mask;
mod threshold;

pub use mask::{apply_mask, mask_below, mask_smallest};
pub use threshold::{Rank, find_nan, rank};
