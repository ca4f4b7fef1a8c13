//! Compressed sparse rows: conversion, products, and the product sampled at a
//! pattern.
//!
//! Every element of a result is one sum in one task, in the order in which its
//! terms are stored, so results do not depend on the number of threads.

mod convert;
mod csr;
mod dense;
mod sddmm;
mod spmm;

pub use convert::{fill, row_offsets, to_dense};
pub use csr::{Csr, CsrError, Index};
pub use dense::{Dense, DenseMut};
pub use sddmm::sddmm;
pub use spmm::{matmul, matmul_transposed};
