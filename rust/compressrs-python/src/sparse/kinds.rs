//! The dtypes of indices and the shapes of blocks that there are kernels for.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::buffers::Array;

/// A dtype of indices.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Width {
    I16,
    I32,
    I64,
}

impl Width {
    pub fn of(array: &Array<'_, '_>) -> Option<Width> {
        if array.require_element::<i32>().is_ok() {
            Some(Width::I32)
        } else if array.require_element::<i64>().is_ok() {
            Some(Width::I64)
        } else if array.require_element::<i16>().is_ok() {
            Some(Width::I16)
        } else {
            None
        }
    }
}

/// Runs `$body` with `$I` the type that belongs to a [`Width`].
macro_rules! with_index {
    ($width:expr, $I:ident => $body:expr) => {
        match $width {
            Width::I16 => {
                type $I = i16;
                $body
            }
            Width::I32 => {
                type $I = i32;
                $body
            }
            Width::I64 => {
                type $I = i64;
                $body
            }
        }
    };
}
pub(super) use with_index;

/// Rows and columns of a block, of those that there are kernels for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Block {
    One,
    Square,
    Wide,
    Tall,
}

impl Block {
    pub fn new(shape: (usize, usize)) -> PyResult<Block> {
        match shape {
            (1, 1) => Ok(Block::One),
            (4, 4) => Ok(Block::Square),
            (1, 16) => Ok(Block::Wide),
            (16, 1) => Ok(Block::Tall),
            _ => Err(PyValueError::new_err(format!(
                "blocksize must be (4, 4), (1, 16) or (16, 1), got {shape:?}"
            ))),
        }
    }

    pub fn shape(self) -> (usize, usize) {
        match self {
            Block::One => (1, 1),
            Block::Square => (4, 4),
            Block::Wide => (1, 16),
            Block::Tall => (16, 1),
        }
    }
}

/// Runs `$body` with `$R` and `$C` the shape of blocks, and `$I` the type of their indices.
macro_rules! with_blocks {
    ($block:expr, $I:ident, $R:ident, $C:ident => $body:expr) => {
        match $block {
            Block::One => unreachable!("entries are no blocks"),
            Block::Square => {
                type $I = i32;
                const $R: usize = 4;
                const $C: usize = 4;
                $body
            }
            Block::Wide => {
                type $I = i32;
                const $R: usize = 1;
                const $C: usize = 16;
                $body
            }
            Block::Tall => {
                type $I = i32;
                const $R: usize = 16;
                const $C: usize = 1;
                $body
            }
        }
    };
}
pub(super) use with_blocks;

/// Runs `$body` with `$I` the type of the indices of a [`Sparse`], and `$R` and `$C` the shape of
/// its blocks.
macro_rules! with_types {
    ($sparse:expr, $I:ident, $R:ident, $C:ident => $body:expr) => {
        match $sparse.block {
            Block::One => with_index!($sparse.width, $I => {
                const $R: usize = 1;
                const $C: usize = 1;
                $body
            }),
            blocks => with_blocks!(blocks, $I, $R, $C => $body),
        }
    };
}
pub(super) use with_types;
