//! Compressed sparse rows: conversion, products, and the product sampled at a
//! pattern.
//!
//! The order in which an element of a result is summed depends on the pattern and the
//! number of columns, so results do not depend on the number of threads. Products of single
//! entries go through a form of the pattern that is [`Prepared`] once, those of blocks read
//! the pattern itself.

mod computed;
mod convert;
mod csr;
mod dense;
mod dots;
mod epilogue;
mod locate;
mod panel;
mod prepared;
mod sddmm;
mod spmm;
mod spmm_transposed;
mod values;

pub use computed::{Computed, store_computed, store_computed_slice};
pub use convert::{Keep, Transpose, fill, row_offsets, to_dense, transpose};
pub use csr::{Csr, CsrError, Index, Indices, Offsets, Pattern};
pub use dense::Cells;
pub use epilogue::Epilogue;
pub use locate::{NOWHERE, Repeats, locate};
pub use prepared::{
    Prepared, Tiling, matmul_prepared, matmul_transposed_prepared, scatters, sddmm_prepared,
};
pub use sddmm::sddmm;
pub use spmm::matmul;
pub use spmm_transposed::matmul_transposed;
pub use values::{Coded, Groups, Values};
