//! Small kernels, each called twice, to be counted by callgrind:
//! `python -m benches.instructions`.

use std::hint::black_box;

use compressrs_core::codec::planes::{self, Elements};
use compressrs_core::codec::positions;
use compressrs_core::distill::{Axis, KdLoss, PerRow, SoftmaxOutput, Teacher, kd_loss, softmax};
use compressrs_core::linalg::cholesky::Factor;
use compressrs_core::linalg::gemm::{multiply, multiply_by_transpose};
use compressrs_core::linalg::matrix::{Matrix, MatrixMut};
use compressrs_core::nn::activation::{self, Activation};
use compressrs_core::nn::norm::layer_norm;
use compressrs_core::optim::{
    Adagrad, Adam, BLOCK, Codes, Lion, MAX_STATES, Moments, Rule, Scalars, Sgd, StochasticRounding,
    Tensor, step,
};
use compressrs_core::prune::{Magnitude, apply_mask, rank};
use compressrs_core::quantize::product::{
    Columns, Epilogue as Finish, Meaning, Output, Rows, Weights, multiply as multiply_codes,
    multiply_float,
};
use compressrs_core::quantize::{Affine, Layout, Levels, NF4, dequantize, quantize_to_range};
use compressrs_core::runtime::parallel::{SharedMut, set_num_threads};
use compressrs_core::sparse::{
    Csr, Epilogue, Keep, Offsets, Pattern, Prepared, Tiling, fill, matmul_prepared,
    matmul_transposed_prepared, row_offsets, sddmm_prepared, transpose,
};

/// Repeatable values in [-1, 1) without a pattern.
fn values(len: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Elements of a vector; rows and columns of a matrix; columns of a dense operand.
const N: usize = 4096;
const SIDE: usize = 64;
const WIDE: usize = 8;
/// Columns of a transposed product by which sums are scattered.
const FEW: usize = 4;

/// What kernels read and write.
struct Data {
    x: Vec<f32>,
    g: Vec<f32>,
    out: Vec<f32>,
    states: [Vec<f32>; MAX_STATES],
    bytes: Vec<u8>,
    scales: Vec<f32>,
    csr: (Vec<f32>, Vec<i32>, Offsets),
    /// For few columns, and for many.
    prepared: [Prepared; 2],
    coded: Vec<u8>,
    places: (Vec<u8>, Vec<u32>),
    gram: Vec<f64>,
    packed: Weights,
}

impl Data {
    fn new() -> Self {
        let x = values(N);
        let keep: Vec<u8> = x.iter().map(|x| u8::from(*x < -0.8)).collect();
        let keep = Keep::Mask(&keep);
        let offsets = row_offsets(&x, SIDE, SIDE, keep);
        let (mut data, mut indices) = (vec![0.0; offsets.entries()], vec![0; offsets.entries()]);
        fill(&x, SIDE, keep, &offsets, &mut data, &mut indices);
        let pattern = Pattern::new(&indices, &offsets, SIDE).unwrap();
        let prepared = [Tiling::Rows, Tiling::Short].map(|tiling| Prepared::new(pattern, tiling));
        let bytes: Vec<u8> = x.iter().map(|x| (x * x * x * 20.0) as i8 as u8).collect();
        let coded = planes::encode(Elements::new(1, false).unwrap(), &bytes).concat();
        let sparse: Vec<u32> = x.iter().map(|x| if *x < -0.8 { x.to_bits() } else { 0 }).collect();
        let (mut bits, mut kept) = (vec![0; N / 8], Vec::new());
        positions::to_bits(&sparse, &mut bits, &mut kept);
        let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let mut gram = vec![0.0; N];
        multiply_by_transpose(1.0, Matrix::row_major(&wide, SIDE, SIDE), None, &mut gram);
        (0..SIDE).for_each(|i| gram[i * SIDE + i] += 1.0);
        let row = |n: usize, to: &mut [u8]| to.copy_from_slice(&bytes[n * SIDE..][..SIDE]);
        let scales = vec![0.5; N];
        let columns = Columns::new(SIDE, 32, false);
        let packed =
            Weights::pack(SIDE, columns, row, Meaning::Zero(128), Some(&scales[..2 * SIDE]))
                .unwrap();
        Data {
            g: x.iter().rev().copied().collect(),
            out: vec![0.0; N],
            states: std::array::from_fn(|_| vec![0.1; N]),
            csr: (data, indices, offsets),
            prepared,
            coded,
            places: (bits, kept),
            gram,
            packed,
            bytes,
            scales,
            x,
        }
    }

    fn optimizer(&mut self, rule: &dyn Rule) {
        let count = rule.states(1).len();
        let update = rule.at(10, &mut Scalars::default());
        let mut states = self.states.each_mut().into_iter().enumerate();
        let states = std::array::from_fn(|_| {
            let (s, state) = states.next().unwrap();
            Moments::from(&mut state[..if s < count { N } else { 0 }])
        });
        step(&mut [Tensor::new(update, &[N], &mut self.out[..], &self.g[..], states)]);
    }

    fn sparse_product(&mut self, columns: usize) {
        let prepared = &self.prepared[usize::from(columns > WIDE)];
        let x = Matrix::row_major(&self.x[..SIDE * columns], SIDE, columns);
        let y = MatrixMut::row_major(&mut self.out[..SIDE * columns], SIDE, columns);
        matmul_prepared(prepared, &&self.csr.0[..], x, y, Epilogue::default());
    }

    fn matrix(&self) -> Csr<'_, f32, i32> {
        let (data, indices, offsets) = &self.csr;
        Csr::new(Pattern::checked(indices, offsets, SIDE), data).unwrap()
    }
}

/// Functions in a module of their own, by whose name callgrind finds them.
macro_rules! kernels {
    ($($name:ident: |$data:ident| $body:expr;)*) => {
        mod counted {
            use super::*;
            $(#[inline(never)] pub fn $name($data: &mut Data) { black_box($body); })*
        }
        const ALL: &[fn(&mut Data)] = &[$(counted::$name),*];
    };
}

kernels! {
    optim_sgd: |d| d.optimizer(&Sgd { momentum: 0.9, ..Default::default() });
    optim_adam: |d| d.optimizer(&Adam::default());
    optim_adagrad: |d| d.optimizer(&Adagrad { lr: 1e-3, ..Default::default() });
    optim_lion: |d| d.optimizer(&Lion::default());
    optim_adam_in_8_bits: |d| {
        let update = Adam::default().at(10, &mut Scalars::default());
        let (mut m, mut v) = (vec![1u8; N], vec![1u8; N]);
        let (mut m_scales, mut v_scales) = (vec![0.1; N / BLOCK], vec![0.1; N / BLOCK]);
        let coded = |codes, scales, divisor| {
            let (codes, scales) = (SharedMut::new(codes), SharedMut::new(scales));
            Moments::Coded(Codes { codes, scales, divisor })
        };
        let mut states: [Moments<'_, f32>; MAX_STATES] = Default::default();
        [states[0], states[1]] = [
            coded(&mut m, &mut m_scales, false),
            coded(&mut v, &mut v_scales, true),
        ];
        step(&mut [Tensor::new(update, &[N], &mut d.out[..], &d.g[..], states)
            .rounded_stochastically(StochasticRounding::new(0, 0, 10))]);
    };
    prune_rank: |d| rank::<Magnitude, f32>(&[&d.x], N / 2).ok();
    prune_apply_mask: |d| apply_mask(&mut d.out, &d.bytes);
    sparse_from_dense: |d| row_offsets(&d.x, SIDE, SIDE, Keep::AtLeast(0.5));
    sparse_check: |d| Pattern::new(&d.csr.1, &d.csr.2, SIDE).is_ok();
    sparse_transpose: |d| transpose::<i32, i32>(d.matrix().pattern()).places.len();
    sparse_prepare: |d| Prepared::new(d.matrix().pattern(), Tiling::Short).bytes();
    sparse_product_1: |d| d.sparse_product(1);
    sparse_product_4: |d| d.sparse_product(FEW);
    sparse_product_8: |d| d.sparse_product(WIDE);
    sparse_product_64: |d| d.sparse_product(SIDE);
    sparse_scatter: |d| {
        let x = Matrix::row_major(&d.x[..SIDE * FEW], SIDE, FEW);
        let y = MatrixMut::row_major(&mut d.out[..SIDE * FEW], SIDE, FEW);
        matmul_transposed_prepared(&d.prepared[0], &&d.csr.0[..], x, y, Epilogue::default());
    };
    sparse_sddmm: |d| {
        let mut out = vec![0.0; d.csr.0.len()];
        let dense = Matrix::row_major(&d.x[..SIDE * WIDE], SIDE, WIDE);
        sddmm_prepared(&d.prepared[0], dense, dense.transposed(), &mut out, false);
    };
    linalg_multiply: |d| {
        let x = Matrix::row_major(&d.x, SIDE, SIDE);
        multiply(1.0, x, x, None, &mut d.out);
    };
    linalg_cholesky: |d| Factor::new(&d.gram, SIDE).is_ok();
    distill_softmax: |d| softmax(
        Axis::last(SIDE, SIDE),
        SoftmaxOutput::Probability,
        PerRow::All(2.0),
        Some(&d.x),
        &mut d.out,
    );
    distill_kd_loss: |d| {
        let mut losses = vec![0.0; SIDE];
        let teacher = Teacher::Logits(&d.g);
        kd_loss(&KdLoss::soft(SIDE, 4.0), &d.x, &teacher, &mut losses, &mut d.out);
    };
    codec_encode: |d| planes::encode(Elements::new(1, false).unwrap(), &d.bytes).len();
    codec_decode: |d| {
        let mut out = vec![0; N];
        planes::decode(Elements::new(1, false).unwrap(), &d.coded, &mut out).unwrap();
    };
    codec_positions: |d| {
        let mut out = vec![0u32; N];
        positions::from_bits(&d.places.0, &d.places.1, &mut out).unwrap();
    };
    quantize_int8: |d| {
        let (mut codes, mut zero) = (vec![0; N], vec![0; N / 32]);
        let layout = Layout::new(SIDE, SIDE, 1, 32);
        let grid = Affine::new(8, true, true);
        let scale = &mut d.scales[..N / 32];
        quantize_to_range(&d.x, layout, grid, scale, &mut zero, &mut codes).is_ok()
    };
    quantize_nf4_back: |d| {
        let layout = Layout::new(SIDE, SIDE, 1, 32);
        let codes: Vec<u8> = d.bytes.iter().map(|b| b & 15).collect();
        let zero = vec![0; N / 32];
        let grid = Levels::new(&NF4);
        dequantize(&codes, layout, grid, &d.scales[..N / 32], &zero, &mut d.out);
    };
    quantize_product_of_integers: |d| {
        let x = &d.x[..WIDE * SIDE];
        let out = Output::Numbers(&mut d.out[..WIDE * SIDE]);
        multiply_codes(Rows::Numbers(x), WIDE, &d.packed, Finish::default(), out);
    };
    quantize_product_of_floats: |d| {
        let out = Output::Numbers(&mut d.out[..WIDE * SIDE]);
        multiply_float(&d.x[..WIDE * SIDE], WIDE, &d.packed, Finish::default(), out);
    };
    nn_layer_norm: |d| {
        let (mut mean, mut scale) = (vec![0.0; SIDE], vec![0.0; SIDE]);
        layer_norm(&d.x, &d.g[..SIDE], None, 1e-5, &mut d.out, (&mut mean, &mut scale));
    };
    nn_gelu: |d| activation::forward(Activation::Gelu, &d.x, &mut d.out);
}

fn main() {
    // Work of one thread, so that no other is counted.
    set_num_threads(1).unwrap();
    let mut data = Data::new();
    // Twice, so that what is set up in the first call, a small part, does not decide.
    for kernel in ALL {
        kernel(&mut data);
        kernel(&mut data);
    }
}
