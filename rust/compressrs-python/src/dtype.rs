//! Floating-point dtypes, and the types that belong to them.

use std::fmt::{self, Display};

/// A floating-point dtype that numbers are stored in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// float32
    F32,
    /// float64
    F64,
    /// float16
    F16,
    /// bfloat16, of ml_dtypes
    Bf16,
}

impl Dtype {
    /// The type that arithmetic on it is done in.
    pub fn compute(self) -> Compute {
        if self == Dtype::F64 { Compute::F64 } else { Compute::F32 }
    }
}

impl Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "float32",
            Dtype::F64 => "float64",
            Dtype::F16 => "float16",
            Dtype::Bf16 => "bfloat16",
        })
    }
}

/// A floating-point dtype that arithmetic is done in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Compute {
    /// float32
    F32,
    /// float64
    F64,
}

impl From<Compute> for Dtype {
    fn from(compute: Compute) -> Dtype {
        match compute {
            Compute::F32 => Dtype::F32,
            Compute::F64 => Dtype::F64,
        }
    }
}

/// Runs `$body` with `$T` the type that belongs to a [`Dtype`].
macro_rules! with_dtype {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::dtype::Dtype::F32 => {
                type $T = f32;
                $body
            }
            $crate::dtype::Dtype::F64 => {
                type $T = f64;
                $body
            }
            $crate::dtype::Dtype::F16 => {
                type $T = ::compressrs_core::numeric::element::f16;
                $body
            }
            $crate::dtype::Dtype::Bf16 => {
                type $T = ::compressrs_core::numeric::element::bf16;
                $body
            }
        }
    };
}
pub(crate) use with_dtype;

/// Runs `$body` with `$T` the type that belongs to a [`Compute`].
macro_rules! with_compute {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::dtype::Compute::F32 => {
                type $T = f32;
                $body
            }
            $crate::dtype::Compute::F64 => {
                type $T = f64;
                $body
            }
        }
    };
}
pub(crate) use with_compute;
