//! Results have the same bits on every processor: digests of kernels, recorded on x86-64.
//!
//! Inputs are finite, since of NaN neither sign nor payload are specified: they follow from the
//! order of operands, which instruction sets and compilers choose.

use compressrs_core::codec::planes::{self, Elements};
use compressrs_core::codec::positions;
use compressrs_core::distill::{
    Axis, Dist, Divergence, Features, KdLoss, Maps, PerRow, SoftmaxOutput, Teacher, angle,
    attention, dist, distance, kd_loss, logsumexp, softmax, top_k,
};
use compressrs_core::linalg::gemm::{multiply, multiply_by_transpose};
use compressrs_core::linalg::matrix::{Matrix, MatrixMut};
use compressrs_core::nn::activation::{self, Activation};
use compressrs_core::nn::attention::{self as heads, Heads};
use compressrs_core::nn::conv::{
    self, Filters, Geometry, Scaling, Side, forward_in_codes, input_gradient, weight_gradient,
};
use compressrs_core::nn::norm::layer_norm;
use compressrs_core::numeric::element::{Element, bf16, f16};
use compressrs_core::optim::{
    AdEmaMix, Adadelta, Adafactor, Adagrad, Adam, Adamax, Asgd, BLOCK, Codes, Halves, Lamb, Lion,
    MAX_STATES, Moments, Momentum, Muon, NAdam, Prodigy, RAdam, RmsProp, Rounding, RowSums, Rows,
    Rprop, Rule, Scalars, Sgd, Shampoo, Soap, StateShape, StochasticRounding, Tensor, Values,
    Weights, block_len, estimate, step,
};
use compressrs_core::quantize::product::{
    Columns, Epilogue as ProductEpilogue, Meaning, Output, Rows as Inputs, Weights as Packed,
    multiply as multiply_codes, multiply_float,
};
use compressrs_core::quantize::{Affine, Layout, dequantize, quantize_to_range};
use compressrs_core::runtime::parallel::SharedMut;
use compressrs_core::sparse::{
    Coded, Csr, Epilogue, Groups, Keep, Pattern, Prepared, Tiling, fill, matmul, matmul_prepared,
    matmul_transposed, row_offsets, sddmm_prepared,
};

/// Adds the results of a family of kernels.
type Family = fn(&mut Digest);

/// What the results of each family hash to; the same on every processor and at every level.
/// Recorded anew where the order of sums in a kernel changes on purpose.
const RECORDED: [(&str, Family, u64); 11] = [
    ("elementwise rules", elementwise_rules, 0xfabe_cfe1_c773_4fad),
    ("rules of whole tensors", rules_of_tensors, 0x52d0_17a9_128c_5ca1),
    ("state in few bits", state_in_few_bits, 0x4e63_b63b_1c5b_99aa),
    ("gradients of rows", gradients_of_rows, 0x4fdb_2df8_763f_33e6),
    ("products", products, 0x84cd_1406_3eb2_297b),
    ("products of few bits", products_of_few_bits, 0x9a96_0c1e_a45d_50c6),
    ("rows", rows, 0xb693_29c1_959b_46db),
    ("losses", losses, 0xf2d0_b67b_a366_bd3a),
    ("numbers of few bits", few_bits, 0x303b_c07b_0efd_044a),
    ("convolutions and attention", convolutions, 0xa220_34a4_0362_6109),
    ("codec", codec, 0x5bd9_b4a9_061f_ab07),
];

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

    fn doubles(&mut self, x: &[f64]) {
        x.iter().for_each(|x| self.bytes(&x.to_bits().to_le_bytes()));
    }

    fn halves(&mut self, x: &[bf16]) {
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

fn elementwise_rules(digest: &mut Digest) {
    let adam = Adam { weight_decay: 0.1, ..Default::default() };
    let mix = AdEmaMix { warmup: 10.0, ..Default::default() };
    let rules: [Box<dyn Rule>; 17] = [
        Box::new(Sgd { momentum: 0.9, ..Default::default() }),
        Box::new(Lion::default()),
        Box::new(adam),
        Box::new(Adam { amsgrad: true, ..adam }),
        Box::new(Adamax::default()),
        Box::new(NAdam::default()),
        Box::new(RAdam::default()),
        Box::new(RmsProp { centered: true, momentum: 0.5, ..Default::default() }),
        Box::new(Adagrad::default()),
        Box::new(Adadelta::default()),
        Box::new(Momentum { nesterov: true, ..Default::default() }),
        Box::new(Rprop::default()),
        Box::new(Asgd::default()),
        Box::new(mix),
        Box::new(Adam { cautious: true, ..adam }),
        Box::new(Lion { cautious: true, ..Default::default() }),
        Box::new(AdEmaMix { cautious: true, ..mix }),
    ];
    rules.iter().for_each(|rule| train(digest, &**rule, &[N]));
}

fn rules_of_tensors(digest: &mut Digest) {
    let shampoo = Shampoo { block_size: 32.0, precondition_frequency: 2.0, ..Default::default() };
    let soap = Soap { block_size: 32.0, precondition_frequency: 2.0, ..Default::default() };
    let rules: [Box<dyn Rule>; 6] = [
        Box::new(Lamb { weight_decay: 0.1, ..Default::default() }),
        Box::new(Adafactor { beta1: Some(0.9), ..Default::default() }),
        Box::new(Prodigy { d0: 1e-3, ..Default::default() }),
        Box::new(Muon::default()),
        Box::new(shampoo),
        Box::new(soap),
    ];
    rules.iter().for_each(|rule| train(digest, &**rule, &[ROWS, COLUMNS]));
}

/// Elements of a state buffer.
fn state_len(shape: StateShape, of: &[usize]) -> usize {
    let (rows, columns) = (of[0], of[1..].iter().product::<usize>());
    match shape {
        StateShape::Parameter | StateShape::Rotated => rows * columns,
        StateShape::Rows => rows,
        StateShape::Columns => columns,
        StateShape::OfRows { block_size } => {
            columns.div_ceil(block_len(columns, block_size)) * rows * block_len(rows, block_size)
        }
        StateShape::OfColumns { block_size } => {
            rows.div_ceil(block_len(rows, block_size)) * columns * block_len(columns, block_size)
        }
    }
}

/// Some steps of a rule.
fn train(digest: &mut Digest, rule: &dyn Rule, shape: &[usize]) {
    let len = shape.iter().product();
    let mut param = values(1, len);
    let mut states: [Vec<f32>; MAX_STATES] = Default::default();
    for (state, what) in states.iter_mut().zip(rule.states(shape.len())) {
        *state = vec![what.initial as f32; state_len(what.shape, shape)];
    }
    let mut scalars = Scalars::default();
    for t in 1..5 {
        let grad = values(t + 1, len);
        let update = rule.at(t, &mut scalars);
        let states = states.each_mut().map(|s| Moments::from(s.as_mut_slice()));
        let mut tensors = [Tensor::new(update, shape, &mut param[..], &grad[..], states)];
        if let Some(found) = estimate(&mut tensors, &mut []) {
            scalars = found;
        }
        step(&mut tensors);
    }
    digest.singles(&param);
    states.iter().for_each(|state| digest.singles(state));
}

/// Adam on weights in half precision, with moments in 8 bits and in bfloat16.
fn state_in_few_bits(digest: &mut Digest) {
    let rule = Adam { weight_decay: 0.1, ..Default::default() };
    for coded in [false, true] {
        for stochastic in [false, true] {
            let mut param: Vec<bf16> = values(1, N).into_iter().map(bf16::store).collect();
            let blocks = N.div_ceil(BLOCK);
            let mut codes = [(); 2].map(|()| (vec![0u8; N], vec![0.0f32; blocks]));
            let mut halves = [(); 2].map(|()| vec![bf16::ZERO; N]);
            for t in 1..5 {
                let grad: Vec<bf16> = values(t + 1, N).into_iter().map(bf16::store).collect();
                let rounding = if stochastic { Rounding::Stochastic } else { Rounding::Nearest };
                let weights = Halves { values: SharedMut::new(&mut param), rounding };
                let mut states: [Moments<'_, f32>; MAX_STATES] = Default::default();
                for (i, ((codes, scales), halves)) in codes.iter_mut().zip(&mut halves).enumerate()
                {
                    let (codes, scales) = (SharedMut::new(codes), SharedMut::new(scales));
                    states[i] = match coded {
                        true => Moments::Coded(Codes { codes, scales, divisor: i == 1 }),
                        false => Moments::Bf16(SharedMut::new(halves)),
                    };
                }
                let update = rule.at(t, &mut Scalars::default());
                let tensor = Tensor::new(update, &[N], Weights::Bf16(weights), &grad[..], states);
                step(&mut [tensor.rounded_stochastically(StochasticRounding::new(7, 3, t))]);
            }
            digest.halves(&param);
            for ((codes, scales), halves) in codes.iter().zip(&halves) {
                digest.bytes(codes);
                digest.singles(scales);
                digest.halves(halves);
            }
        }
    }
}

/// The sums of repeated rows.
fn gradients_of_rows(digest: &mut Digest) {
    let given: Vec<i64> = (0..3 * ROWS as i64).map(|i| i * i % 37).collect();
    let rows = Rows::new(&given, ROWS).unwrap();
    let x = values(8, given.len() * COLUMNS);
    let halves: Vec<f16> = x.iter().map(|x| f16::store(*x)).collect();
    for values in [Values::F32(&x), Values::F16(&halves)] {
        let RowSums::F32(sums) = rows.sums(values, COLUMNS) else { unreachable!() };
        digest.singles(&sums);
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
        let half: Vec<f16> = data.iter().map(|x| f16::store(*x)).collect();
        let brain: Vec<bf16> = data.iter().map(|x| bf16::store(*x)).collect();
        let codes: Vec<u8> = data.iter().map(|x| (x * 127.0) as i8 as u8).collect();
        let scales = values(14, ROWS);
        let coded = Coded::new(&codes, &scales, Groups::Rows(offsets.as_slice()));
        let stored: [&dyn compressrs_core::sparse::Values<f32>; 4] =
            [&&data[..], &&half[..], &&brain[..], &coded];
        for stored in stored {
            let out = MatrixMut::new(&mut y, ROWS, n, n, 1);
            matmul_prepared(&prepared, stored, x, out, Epilogue::default());
            digest.singles(&y);
        }
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

/// Products with weights of 8 and of 4 bits, by rows of numbers and by rows in codes.
fn products_of_few_bits(digest: &mut Digest) {
    for (nibbles, group) in [(false, COLUMNS), (true, 32)] {
        let groups = COLUMNS.div_ceil(group);
        let top = if nibbles { 15 } else { 255 };
        let w: Vec<u8> =
            values(15, ROWS * COLUMNS).iter().map(|x| (x * 999.0) as u8 & top).collect();
        let zeros: Vec<u8> = (0..ROWS * groups).map(|i| i as u8 & top).collect();
        let scales = values(16, ROWS * groups);
        let row = |n: usize, to: &mut [u8]| to.copy_from_slice(&w[n * COLUMNS..(n + 1) * COLUMNS]);
        let columns = Columns::new(COLUMNS, group, nibbles);
        let meaning = Meaning::Zeros(&zeros);
        let weights = Packed::pack(ROWS, columns, row, meaning, Some(&scales)).unwrap();
        for rows in [1, 9] {
            let x = values(17, rows * COLUMNS);
            let mut y = vec![0.0; rows * ROWS];
            let epilogue = ProductEpilogue::default();
            let out = Output::Numbers(&mut y);
            multiply_codes(Inputs::Numbers(&x), rows, &weights, epilogue, out);
            digest.singles(&y);
            let epilogue = ProductEpilogue::default();
            multiply_float(&x, rows, &weights, epilogue, Output::Numbers(&mut y));
            digest.singles(&y);
        }
    }
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

fn losses(digest: &mut Digest) {
    let (s, t) = (values(41, ROWS * COLUMNS), values(42, ROWS * COLUMNS));
    let labels: Vec<usize> = (0..ROWS).map(|i| i % 5).collect();
    let mut grad = vec![0.0; s.len()];
    // Rows in lanes, and rows along lanes.
    for classes in [10, COLUMNS] {
        let len = ROWS * classes;
        for divergence in [
            Divergence::ForwardKl,
            Divergence::ReverseKl,
            Divergence::JensenShannon,
            Divergence::Decoupled { alpha: 1.0, beta: 2.0 },
        ] {
            let what = KdLoss { divergence, alpha: 0.7, ..KdLoss::soft(classes, 3.0) };
            let what = KdLoss { labels: Some(&labels), label_smoothing: 0.1, ..what };
            let mut losses = vec![0.0; ROWS];
            let teacher = Teacher::Logits(&t[..len]);
            kd_loss(&what, &s[..len], &teacher, &mut losses, &mut grad[..len]);
            digest.doubles(&losses);
            digest.singles(&grad[..len]);
        }
        let what = Dist { classes, temperature: 2.0, beta: 1.0, gamma: 2.0 };
        digest.doubles(&[dist(what, &s[..len], &t[..len], &mut grad[..len])]);
        digest.singles(&grad[..len]);
    }
    let (mut chosen, mut rest) = (vec![0; ROWS * 7], vec![0.0; ROWS]);
    top_k(&t, COLUMNS, PerRow::All(2.0), &mut chosen, &mut rest);
    chosen.iter().for_each(|class| digest.bytes(&class.to_le_bytes()));
    digest.doubles(&rest);
    let mut sums = vec![0.0; ROWS];
    logsumexp(Axis::last(ROWS, COLUMNS), PerRow::All(2.0), &t, &mut sums);
    digest.singles(&sums);
    let maps = |data| Maps { data, channels: 2 };
    digest.doubles(&[attention(ROWS / 2, COLUMNS, maps(&s), maps(&t), &mut grad)]);
    digest.singles(&grad);
    let features = |data| Features { data, width: COLUMNS };
    digest.doubles(&[distance(ROWS, features(&s), features(&t), &mut grad)]);
    digest.singles(&grad);
    let few = |data| Features { data, width: COLUMNS * ROWS / 10 };
    digest.doubles(&[angle(10, few(&s), few(&t), &mut grad, &|| false).unwrap()]);
    digest.singles(&grad);
}

fn convolutions(digest: &mut Digest) {
    let side = |input, stride| Side { input, kernel: 3, stride, padding: 1, dilation: 1 };
    for (filters, stride) in [(5, 1), (40, 2)] {
        let g = Geometry {
            images: 2,
            groups: 2,
            channels: 3,
            filters,
            rows: side(9, stride),
            columns: side(21, 1),
        };
        let [of_x, of_w, of_y] = g.lengths();
        let (x, w, dy) = (values(51, of_x), values(52, of_w), values(53, of_y));
        let (mut y, mut dx, mut dw) = (vec![0.0; of_y], vec![0.0; of_x], vec![0.0; of_w]);
        conv::forward(&g, &x, &w, None, &mut y).unwrap();
        input_gradient(&g, &dy, &w, &mut dx).unwrap();
        weight_gradient(&g, &x, &dy, &mut dw).unwrap();
        for x in [&y, &dx, &dw] {
            digest.singles(x);
        }
        let count = g.channels * 9;
        let scales = values(54, filters);
        let packed: Vec<Packed> = (0..g.groups)
            .map(|group| {
                let row = |filter: usize, to: &mut [u8]| {
                    let first = (group * filters + filter) * count;
                    for (to, w) in to.iter_mut().zip(&w[first..]) {
                        *to = (128.0 + 127.0 * w) as u8;
                    }
                };
                let columns = Columns::new(count, count, false);
                Packed::pack(filters, columns, row, Meaning::Zero(128), Some(&scales)).unwrap()
            })
            .collect();
        let groups: Vec<&Packed> = packed.iter().collect();
        let of_groups = Filters { groups: &groups, channels_last: false, bias: None };
        forward_in_codes(&g, &x, of_groups, Scaling::Dynamic, &mut y);
        digest.singles(&y);
    }
    let shape = Heads { batch: 2, queries: 7, keys: 11, heads: 3, width: 5, causal: true };
    let [of_q, of_k, of_p] = shape.lengths();
    let (q, k, v) = (values(55, of_q), values(56, of_k), values(57, of_k));
    let (mut p, mut out) = (vec![0.0; of_p], vec![0.0; of_q]);
    heads::forward(&shape, (&q, &k, &v), Some(&[11, 6]), &mut p, &mut out);
    digest.singles(&p);
    digest.singles(&out);
}

/// Streams that are written, and what is read from them.
fn codec(digest: &mut Digest) {
    let x = values(61, 5000);
    let x: Vec<f32> = x.chunks(4).flat_map(|x| [x.iter().sum::<f32>(), 0.0]).collect();
    let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    for rotate in [false, true] {
        let elements = Elements::new(4, rotate).unwrap();
        let stream = planes::encode(elements, &bytes).concat();
        digest.bytes(&stream);
        let mut back = vec![0; bytes.len()];
        planes::decode(elements, &stream, &mut back).unwrap();
        assert!(back == bytes);
    }
    let x: Vec<u32> = x.iter().map(|x| x.to_bits()).collect();
    let (mut bits, mut gaps) = (vec![0; x.len().div_ceil(8)], Vec::new());
    positions::to_bits(&x, &mut bits, &mut Vec::new());
    positions::to_gaps(&x, &mut gaps, &mut Vec::new());
    digest.bytes(&bits);
    digest.bytes(&gaps);
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
    let found = RECORDED.map(|(family, results, recorded)| {
        let mut digest = Digest(0xcbf2_9ce4_8422_2325);
        results(&mut digest);
        (family, digest.0, recorded)
    });
    let differ = found.iter().filter(|(_, found, recorded)| found != recorded);
    let differ: Vec<String> =
        differ.map(|(family, found, _)| format!("{family}: {found:#018x}")).collect();
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}
