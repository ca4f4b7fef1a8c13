//! Dense linear algebra: products, Cholesky factors and inverses, eigenvectors.

pub mod cholesky;
pub mod eigen;
mod few_rows;
pub mod gemm;
pub mod householder;
pub mod matrix;
pub mod obs;
pub(crate) mod orthogonalize;
mod pack;
pub(crate) mod transpose;
