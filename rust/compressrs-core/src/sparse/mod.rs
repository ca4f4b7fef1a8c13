//! Compressed sparse rows: conversion, products, and the product sampled at a
//! pattern.
//!
//! Every element of a result is one sum in one task, in the order in which its
//! terms are stored, so results do not depend on the number of threads.

mod convert;
mod csr;
mod dense;
mod epilogue;
mod locate;
mod panel;
mod prepared;
mod sddmm;
mod spmm;
mod spmm_transposed;

pub use convert::{Keep, Transpose, fill, row_offsets, to_dense, transpose};
pub use csr::{Csr, CsrError, Index, Indices, Offsets, Pattern};
pub use epilogue::Epilogue;
pub use locate::{NOWHERE, Repeats, locate};
pub use prepared::{Prepared, matmul_prepared, matmul_transposed_prepared, scatters};
pub use sddmm::sddmm;
pub use spmm::matmul;
pub use spmm_transposed::matmul_transposed;
