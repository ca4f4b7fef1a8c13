//! `compressrs._core`: the bindings between NumPy arrays and the arithmetic of
//! [`compressrs_core`].
//!
//! Functions here check their arguments, give up the GIL, call the core, and
//! turn every failure into an exception that names the argument. They contain no
//! arithmetic. The Python package wraps them; they are not public themselves.

mod arguments;
mod blend;
mod buffers;
mod codec;
mod distill;
mod dtype;
mod errors;
mod nn;
mod operand;
mod optim;
mod overlap;
mod prune;
mod quantize;
mod quantized_matrix;
mod rules;
mod sparse;
mod storage;
mod threads;

/// See the crate's documentation.
#[pyo3::pymodule]
mod _core {
    use pyo3::exceptions::PyImportError;
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::blend::{accumulate, clamp, lerp, norm, scale};
    #[pymodule_export]
    use crate::buffers::address;
    #[pymodule_export]
    use crate::codec::{Checksum, decode_planes, encode_planes, merge_positions, split_positions};
    #[pymodule_export]
    use crate::distill::features::{attention_loss, dist_loss, hint_loss, rkd_loss};
    #[pymodule_export]
    use crate::distill::kd::{kd_loss, top_k};
    #[pymodule_export]
    use crate::distill::softmax::{logsumexp, softmax};
    #[pymodule_export]
    use crate::errors::NonFiniteGradientError;
    #[pymodule_export]
    use crate::nn::activation::{activate, activate_backward};
    #[pymodule_export]
    use crate::nn::attention::{attend, attend_backward, softmax_backward};
    #[pymodule_export]
    use crate::nn::conv::{conv2d, conv2d_backward, conv2d_shape};
    #[pymodule_export]
    use crate::nn::embedding::add_rows;
    #[pymodule_export]
    use crate::nn::linear::{linear, linear_backward};
    #[pymodule_export]
    use crate::nn::norm::{
        batch_norm_backward, channel_moments, layer_norm, layer_norm_backward, scale_channels,
    };
    #[pymodule_export]
    use crate::nn::pool::{pool, pool_backward, pool_shape};
    #[pymodule_export]
    use crate::nn::quantized::{conv2d_in_codes, fixed_codes};
    #[pymodule_export]
    use crate::optim::{Stepper, gradient_scale, partial_norms};
    #[pymodule_export]
    use crate::prune::{
        Factor, accumulate_inputs, accumulate_products, apply_mask, block_norms, expand_blocks,
        magnitude_threshold, mask_below, mask_n_of_m, mask_rows, mask_smallest, reconstruct,
        refuse_nan,
    };
    #[pymodule_export]
    use crate::quantize::{
        block_ranges, dequantize, fake_quantize, fake_quantize_backward, gptq, kmeans, quantize,
        scales,
    };
    #[pymodule_export]
    use crate::quantized_matrix::{PackedWeights, matmul_integer};
    #[pymodule_export]
    use crate::rules::{rule_buffers, rule_is_elementwise, rule_scalars, rule_types, rules};
    #[pymodule_export]
    use crate::sparse::Sparse;
    #[pymodule_export]
    use crate::sparse::convert::csr_from_dense;
    #[pymodule_export]
    use crate::storage::{decode_state, encode_state};
    #[pymodule_export]
    use crate::threads::{
        get_num_threads, peak_dot_products, peak_multiply_adds, set_num_threads, shutdown,
        simd_level, simd_levels,
    };

    /// Wrong settings in the environment are reported at import, not in the
    /// middle of a kernel.
    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        compressrs_core::runtime::simd::level().map_err(PyImportError::new_err)?;
        compressrs_core::runtime::parallel::num_threads().map_err(PyImportError::new_err)?;
        crate::errors::set_default_reason(module.py())?;
        module.add("CODE_BLOCK", compressrs_core::optim::BLOCK)?;
        module.add("CODE_VERSION", compressrs_core::optim::CODE_VERSION)?;
        module.add("MAX_SCALARS", compressrs_core::optim::MAX_SCALARS)?;
        module.add("NORM_BLOCK", compressrs_core::optim::PARTIAL_SUM_ELEMENTS)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
