//! Choosing what to remove: scores, exact order statistics, masks, reconstruction.
//!
//! A mask is a slice of bytes, not 0 where a value is kept: the bytes of a NumPy
//! boolean array, which need not be those that Rust allows in a `bool`. Of equal values,
//! those that come first are removed.

mod groups;
mod mask;
mod order;
mod reconstruct;
mod score;
mod statistics;
mod threshold;

pub use groups::{Norm, block_norms, expand_blocks, mask_n_of_m, mask_rows};
pub use mask::{apply_mask, mask_below, mask_smallest};
pub use order::{Magnitude, Order, Value};
pub use reconstruct::{Target, Unchanged, reconstruct};
pub use score::{Term, accumulate_products};
pub use statistics::{Overflow, accumulate_gram, accumulate_squares};
pub use threshold::{HasNan, Rank, find_nan, rank};
