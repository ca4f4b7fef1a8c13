//! Numbers in few bits.
//!
//! - [`blockwise`]: the 8-bit codes of optimizer state, with a scale for each block;
//! - [`layout`]: which elements of a tensor share a scale;
//! - [`grid`]: integers with a zero point, tables of levels, and FP8: from a number to its
//!   code and back;
//! - [`range`](mod@range): smallest and largest values, and the scales they ask for;
//! - [`encode`]: whole tensors to codes and back; [`fake`]: both at once, with gradients;
//! - [`fixed`]: rows of activations to codes, by given scales;
//! - [`codebook`]: levels found by k-means;
//! - [`gptq`](mod@gptq): codes whose errors later weights compensate;
//! - [`product`]: products with quantized weights.

pub mod blockwise;
mod chunks;
pub mod codebook;
pub mod encode;
pub mod fake;
pub mod fixed;
pub mod gptq;
pub mod grid;
pub mod layout;
pub mod product;
pub mod range;

pub use codebook::kmeans;
pub use encode::{NotFinite, dequantize, quantize, quantize_to_range, within};
pub use fake::{fake_quantize, fake_quantize_backward};
pub use fixed::fixed_codes;
pub use gptq::{Codes, gptq};
pub use grid::{Affine, E4M3, E5M2, Fp8, Grid, Levels, NF4};
pub use layout::Layout;
pub use range::{ranges, scales};
