//! Products of a sparse matrix whose operands have been checked.

use compressrs_core::numeric::element::Element;
use compressrs_core::sparse::{self as core, Computed, Csr, Epilogue, Pattern, Tiling};
use pyo3::prelude::*;

use super::kinds::{Block, with_blocks};
use super::prepared::Form;
use super::values::FromData;
use super::{Sparse, invalid};
use crate::buffers::Array;
use crate::errors::run;
use crate::operand::Operand;

/// Which product, and what becomes of it.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub transposed: bool,
    pub accumulate: bool,
    pub relu: bool,
}

impl Sparse {
    /// The product with operands that store `O`, checked.
    pub(super) fn multiply<O: Element<Compute = T>, T: FromData>(
        &self,
        py: Python<'_>,
        (own, scale): (&[Array<'_, 'static>; 3], Option<&Array<'_, 'static>>),
        Product { transposed, accumulate, relu }: Product,
        x: &Operand<'_, '_>,
        out: &mut Operand<'_, '_>,
        bias: Option<&Array<'_, '_>>,
    ) -> PyResult<()> {
        if self.block == Block::One {
            // Few columns need no pattern of the transpose, nor values in its order.
            let scatter = transposed && core::scatters::<T>(x.columns);
            let transposed = transposed && !scatter;
            let prepared =
                self.prepared(py, own, Form { transposed, tiling: Tiling::of::<T>(x.columns) })?;
            // SAFETY: slices are made last, with the GIL held; `out` overlaps nothing.
            let (data, x, out, bias) = unsafe {
                let bias = bias.map(|bias| bias.slice::<O>()).transpose()?;
                let data = self.data(own, scale)?;
                (data, x.matrix::<O>()?, out.matrix_mut::<O>()?, bias)
            };
            let values = T::values(&data)?;
            return run(py, || {
                let (x, bias) = (Computed::new(x), bias.map(Computed::vector));
                let bias = bias.as_ref().map(Computed::elements);
                let epilogue = Epilogue { accumulate, bias, relu };
                core::store_computed(out, accumulate, |out| {
                    if scatter {
                        core::matmul_transposed_prepared(
                            &prepared,
                            values,
                            x.matrix(),
                            out,
                            epilogue,
                        );
                    } else {
                        core::matmul_prepared(&prepared, values, x.matrix(), out, epilogue);
                    }
                });
            });
        }
        with_blocks!(self.block, I, R, C => {
            let (indices, offsets) = self.pattern::<I>(py, own)?;
            // SAFETY: as above.
            let (data, x, out, bias) = unsafe {
                let bias = bias.map(|bias| bias.slice::<O>()).transpose()?;
                let data = self.data(own, scale)?;
                (data, x.matrix::<O>()?, out.matrix_mut::<O>()?, bias)
            };
            let values = T::values(&data)?;
            let pattern = Pattern::checked(indices, &offsets, self.shape.1 / C);
            run(py, || {
                let a = Csr::<T, I, R, C>::of_values(pattern, values)?;
                let (x, bias) = (Computed::new(x), bias.map(Computed::vector));
                let bias = bias.as_ref().map(Computed::elements);
                let epilogue = Epilogue { accumulate, bias, relu };
                core::store_computed(out, accumulate, |out| {
                    if transposed {
                        core::matmul_transposed(a, x.matrix(), out, epilogue);
                    } else {
                        core::matmul(a, x.matrix(), out, epilogue);
                    }
                });
                Ok(())
            })?
            .map_err(invalid)
        })
    }

    /// The sampled product of operands that store `O`, into results that store `E`, checked.
    pub(super) fn sample<E: Element, O: Element<Compute = E::Compute>>(
        &self,
        py: Python<'_>,
        own: &[Array<'_, 'static>; 3],
        (u, v): (&Operand<'_, '_>, &Operand<'_, '_>),
        out: &mut Array<'_, '_>,
        accumulate: bool,
    ) -> PyResult<()> {
        if self.block == Block::One {
            let tiling = Tiling::of::<E::Compute>(u.columns);
            let prepared = self.prepared(py, own, Form { transposed: false, tiling })?;
            // SAFETY: as in `multiply`.
            let (u, v, out) =
                unsafe { (u.matrix::<O>()?, v.matrix::<O>()?, out.slice_mut::<E>()?) };
            return run(py, || {
                let (u, v) = (Computed::new(u), Computed::new(v));
                core::store_computed_slice(out, accumulate, |out| {
                    core::sddmm_prepared(&prepared, u.matrix(), v.matrix(), out, accumulate);
                });
            });
        }
        with_blocks!(self.block, I, R, C => {
            let (indices, offsets) = self.pattern::<I>(py, own)?;
            // SAFETY: as in `multiply`.
            let (u, v, out) =
                unsafe { (u.matrix::<O>()?, v.matrix::<O>()?, out.slice_mut::<E>()?) };
            let pattern = Pattern::checked(indices, &offsets, self.shape.1 / C);
            run(py, || {
                let (u, v) = (Computed::new(u), Computed::new(v));
                core::store_computed_slice(out, accumulate, |out| {
                    core::sddmm::<E::Compute, I, R, C>(
                        pattern, u.matrix(), v.matrix(), out, accumulate,
                    );
                });
            })
        })
    }
}
