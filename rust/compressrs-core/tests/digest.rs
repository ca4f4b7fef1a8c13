//! Results have the same bits on every processor: a digest of kernels, recorded on x86-64.
//!
//! Inputs are finite, since of NaN neither sign nor payload are specified: they follow from the
//! order of operands, which instruction sets and compilers choose.

use compressrs_core::distill::{Axis, KdLoss, PerRow, SoftmaxOutput, Teacher, kd_loss, softmax};
use compressrs_core::linalg::gemm::{multiply, multiply_by_transpose};
use compressrs_core::linalg::matrix::{Matrix, MatrixMut};
use compressrs_core::nn::activation::{self, Activation};
use compressrs_core::nn::norm::layer_norm;
use compressrs_core::numeric::element::{Element, bf16, f16};
use compressrs_core::optim::{
    Adadelta, Adagrad, Adam, Adamax, Lion, MAX_STATES, Moments, NAdam, RAdam, RmsProp, Rule,
    Scalars, Sgd, Tensor, step,
};
use compressrs_core::quantize::{Affine, Layout, dequantize, quantize_to_range};
use compressrs_core::sparse::{
    Csr, Epilogue, Keep, Pattern, Prepared, Tiling, fill, matmul, matmul_prepared,
    matmul_transposed, row_offsets, sddmm_prepared,
};

/// What all results together hash to; the same on every processor and at every level. Recorded anew
/// where the order of sums in a kernel changes on purpose.
const RECORDED: u64 = 0x9f84_c7c0_961d_96e4;

const N: usize = 4100;
const ROWS: usize = 50;
const COLUMNS: usize = 82;

/// FNV-1a of the bits.
struct Digest(u64);

impl Digest {
    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    fn singles(&mut self, x: &[f32]) {
        x.iter().for_each(|x| self.bytes(&x.to_bits().to_le_bytes()));
    }
}

fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed * 2 + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn optimizers(digest: &mut Digest) {
    let (sgd, lion) = (Sgd { momentum: 0.9, ..Default::default() }, Lion::default());
    let (adam, adamax) = (Adam { weight_decay: 0.1, ..Default::default() }, Adamax::default());
    let (nadam, radam, rmsprop) = (NAdam::default(), RAdam::default(), RmsProp::default());
    let (adagrad, adadelta) = (Adagrad::default(), Adadelta::default());
    let rules: [&dyn Rule; 9] =
        [&sgd, &lion, &adam, &adamax, &nadam, &radam, &rmsprop, &adagrad, &adadelta];
    for rule in rules {
        let mut param = values(1, N);
        let count = rule.states(1).len();
        let mut states: [Vec<f32>; MAX_STATES] =
            std::array::from_fn(|s| vec![0.0; if s < count { N } else { 0 }]);
        let mut scalars = Scalars::default();
        for t in 1..4 {
            let grad = values(t + 1, N);
            let update = rule.at(t, &mut scalars);
            let states = states.each_mut().map(|s| Moments::from(s.as_mut_slice()));
            step(&mut [Tensor::new(update, &[N], &mut param[..], &grad[..], states)]);
        }
        digest.singles(&param);
        states.iter().for_each(|state| digest.singles(state));
    }
}

fn products(digest: &mut Digest) {
    let w = values(11, ROWS * COLUMNS);
    let keep = Keep::AtLeast(0.6);
    let offsets = row_offsets(&w, ROWS, COLUMNS, keep);
    let (mut data, mut indices) = (vec![0.0; offsets.entries()], vec![0i32; offsets.entries()]);
    fill(&w, COLUMNS, keep, &offsets, &mut data, &mut indices);
    let a =
        Csr::<f32, i32>::new(Pattern::new(&indices, &offsets, COLUMNS).unwrap(), &data).unwrap();
    for n in [1, 8, 37] {
        let prepared = Prepared::new(a.pattern(), Tiling::of::<f32>(n));
        let (x, z) = (values(12, COLUMNS * n), values(13, ROWS * n));
        let (mut y, mut t) = (vec![0.0; ROWS * n], vec![0.0; COLUMNS * n]);
        let (x, z) = (Matrix::row_major(&x, COLUMNS, n), Matrix::row_major(&z, ROWS, n));
        matmul(a, x, MatrixMut::new(&mut y, ROWS, n, n, 1), Epilogue::default());
        matmul_transposed(a, z, MatrixMut::new(&mut t, COLUMNS, n, n, 1), Epilogue::default());
        let mut sampled = vec![0.0; data.len()];
        sddmm_prepared(&prepared, z, x.transposed(), &mut sampled, false);
        for x in [&y, &t, &sampled] {
            digest.singles(x);
        }
        let out = MatrixMut::new(&mut y, ROWS, n, n, 1);
        matmul_prepared(&prepared, &&data[..], x, out, Epilogue::default());
        digest.singles(&y);
    }
    let x = Matrix::row_major(&w, ROWS, COLUMNS);
    let (mut gram, mut square) = (vec![0.0; ROWS * ROWS], vec![0.0; ROWS * ROWS]);
    multiply_by_transpose(1.0, x, None, &mut gram);
    multiply(
        1.0,
        Matrix::row_major(&gram, ROWS, ROWS),
        x.block(0..ROWS, 0..ROWS),
        None,
        &mut square,
    );
    digest.singles(&gram);
    digest.singles(&square);
}

fn rows(digest: &mut Digest) {
    let (x, g) = (values(21, ROWS * COLUMNS), values(22, ROWS * COLUMNS));
    let large: Vec<f32> = x.iter().map(|x| 20.0 * x).collect();
    let mut out = vec![0.0; x.len()];
    for what in [SoftmaxOutput::Probability, SoftmaxOutput::Log] {
        let axis = Axis::last(ROWS, COLUMNS);
        softmax(axis, what, PerRow::All(2.0), Some(&large), &mut out);
        digest.singles(&out);
    }
    let mut losses = vec![0.0; ROWS];
    let what = KdLoss::soft(COLUMNS, 4.0);
    kd_loss(&what, &large, &Teacher::Logits(&g), &mut losses, &mut out);
    digest.singles(&out);
    losses.iter().for_each(|loss| digest.bytes(&loss.to_bits().to_le_bytes()));
    for of in [Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
        activation::forward(of, &large, &mut out);
        digest.singles(&out);
    }
    let (mut mean, mut scale) = (vec![0.0; ROWS], vec![0.0; ROWS]);
    layer_norm(&x, &g[..COLUMNS], None, 1e-5, &mut out, (&mut mean, &mut scale));
    for x in [&out, &mean, &scale] {
        digest.singles(x);
    }
}

fn few_bits(digest: &mut Digest) {
    let x = values(31, ROWS * COLUMNS);
    for (bits, width) in [(8, 32), (4, 100), (3, 7)] {
        let layout = Layout::new(ROWS, COLUMNS, 1, width);
        let grid = Affine::new(bits, true, false);
        let (mut scale, mut zero) = (vec![0.0; layout.blocks()], vec![0; layout.blocks()]);
        let (mut codes, mut back) = (vec![0; x.len()], vec![0.0; x.len()]);
        quantize_to_range(&x, layout, grid, &mut scale, &mut zero, &mut codes).unwrap();
        dequantize(&codes, layout, grid, &scale, &zero, &mut back);
        for x in [&zero, &codes] {
            digest.bytes(x);
        }
        for x in [&scale, &back] {
            digest.singles(x);
        }
    }
    for (i, x) in x.iter().enumerate() {
        let threshold = (i as u32).wrapping_mul(0x9E37_79B9);
        digest.bytes(&f16::store(*x).to_bits().to_le_bytes());
        digest.bytes(&bf16::store(*x).to_bits().to_le_bytes());
        digest.bytes(&f16::store_stochastic(*x, threshold).to_bits().to_le_bytes());
        digest.bytes(&bf16::store_stochastic(*x, threshold).to_bits().to_le_bytes());
    }
}

#[test]
fn bits_are_those_of_every_processor() {
    let mut digest = Digest(0xcbf2_9ce4_8422_2325);
    optimizers(&mut digest);
    products(&mut digest);
    rows(&mut digest);
    few_bits(&mut digest);
    assert_eq!(digest.0, RECORDED, "{:#018x}", digest.0);
}
