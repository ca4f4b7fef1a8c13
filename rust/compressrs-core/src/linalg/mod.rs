//! Dense linear algebra: products, Cholesky factors and inverses.

pub mod cholesky;
mod few_rows;
pub mod gemm;
pub mod matrix;
pub mod obs;
pub(crate) mod orthogonalize;
mod pack;
