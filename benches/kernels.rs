//! Kernels of the core beside what bounds them or competes with them:
//! `cargo bench`, or `cargo bench -- optim` for some.

use std::hint::black_box;

use compressrs_core::distill::{Axis, KdLoss, PerRow, SoftmaxOutput, Teacher, kd_loss, softmax};
use compressrs_core::linalg::cholesky::Factor;
use compressrs_core::linalg::gemm::{multiply, multiply_by_transpose};
use compressrs_core::linalg::matrix::{Matrix, MatrixMut};
use compressrs_core::numeric::element::Float;
use compressrs_core::optim::{
    Adagrad, Adam, BLOCK, Codes, Halves, MAX_STATES, Moments, Rounding, Rule, Scalars, Sgd,
    StochasticRounding, Tensor, Weights, step,
};
use compressrs_core::prune::{Magnitude, rank};
use compressrs_core::runtime::parallel::{self, SharedMut};
use compressrs_core::runtime::simd::{self, Kernel};
use compressrs_core::sparse::{
    Csr, Epilogue, Keep, Pattern, Prepared, Tiling, fill, matmul_prepared,
    matmul_transposed_prepared, row_offsets, scatters, sddmm_prepared, to_dense, transpose,
};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;

/// Repeatable values in [-1, 1) without a pattern that a kernel could notice.
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

/// `out = factor x`: what memory allows a kernel that reads and writes. A plain copy
/// would become a call of memcpy, which is slower on some machines.
struct Copy<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
    factor: f32,
}

impl Kernel for Copy<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (out, x) in self.out.iter_mut().zip(self.x) {
            *out = self.factor * x;
        }
    }
}

/// Rules, and a copy by the same pool. All count the bytes that are read and written.
fn optim(c: &mut Criterion) {
    let adam = Adam::default();
    let momentum = Sgd { momentum: 0.9, ..Default::default() };
    let adagrad = Adagrad { lr: 1e-3, ..Default::default() };
    let rules: [(&str, &dyn Rule); 3] =
        [("Adam", &adam), ("SGD with momentum", &momentum), ("Adagrad", &adagrad)];
    for n in [4_096, 65_536, 50_000_000] {
        let mut group = c.benchmark_group(format!("optim {n}"));
        if n > 1_000_000 {
            group.sample_size(20);
        }
        let (mut param, grad) = (values(n), values(n));
        for (name, rule) in rules {
            let count = rule.states(1).len();
            let mut states: [Vec<f32>; MAX_STATES] =
                std::array::from_fn(|s| vec![0.0; if s < count { n } else { 0 }]);
            let update = rule.at(10, &mut Scalars::default());
            group.throughput(Throughput::Bytes((3 + 2 * count as u64) * 4 * n as u64));
            group.bench_function(name, |b| {
                b.iter(|| {
                    let states = states.each_mut().map(|s| Moments::from(s.as_mut_slice()));
                    let (param, grad) = (param.as_mut_slice(), grad.as_slice());
                    step(&mut [Tensor::new(update, &[n], param, grad, states)]);
                });
            });
        }
        few_bytes(&mut group, &adam, &mut param, &grad);
        group.throughput(Throughput::Bytes(2 * 4 * n as u64));
        group.bench_function("copy", |b| {
            b.iter(|| {
                let out = SharedMut::new(&mut param);
                parallel::for_each(0..n, 32 * 1024, 64, |part| {
                    // SAFETY: `param` is borrowed until the loop ends; parts do not overlap.
                    let out = unsafe { out.slice(part.clone()) };
                    simd::dispatch(Copy { x: &grad[part], out, factor: black_box(1.0) });
                });
            });
        });
    }
}

/// Adam with moments in 8 bits, and with all in bfloat16.
fn few_bytes(
    group: &mut BenchmarkGroup<'_, WallTime>,
    adam: &Adam,
    param: &mut [f32],
    grad: &[f32],
) {
    let n = param.len();
    let (update, rounding) =
        (adam.at(10, &mut Scalars::default()), StochasticRounding::new(0, 0, 10));
    let blocks = n.div_ceil(BLOCK);
    let (mut m, mut v) = (vec![0u8; n], vec![0u8; n]);
    let (mut m_scales, mut v_scales) = (vec![0.0f32; blocks], vec![0.0f32; blocks]);
    group.throughput(Throughput::Bytes(16 * n as u64 + 16 * blocks as u64));
    group.bench_function("Adam, 8-bit moments", |b| {
        b.iter(|| {
            let coded = |codes, scales, divisor| {
                let (codes, scales) = (SharedMut::new(codes), SharedMut::new(scales));
                Moments::Coded(Codes { codes, scales, divisor })
            };
            let mut states: [Moments<'_, f32>; MAX_STATES] = Default::default();
            [states[0], states[1]] =
                [coded(&mut m, &mut m_scales, false), coded(&mut v, &mut v_scales, true)];
            step(&mut [Tensor::new(update, &[n], &mut *param, grad, states)
                .rounded_stochastically(rounding)]);
        });
    });
    let halves = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
    let (mut param, grad) = (halves(param), halves(grad));
    let (mut m, mut v) = (vec![bf16::ZERO; n], vec![bf16::ZERO; n]);
    group.throughput(Throughput::Bytes(14 * n as u64));
    group.bench_function("Adam, bfloat16", |b| {
        b.iter(|| {
            let param: Weights<'_, f32> = Weights::Bf16(Halves {
                values: SharedMut::new(&mut param),
                rounding: Rounding::Stochastic,
            });
            let mut states: [Moments<'_, f32>; MAX_STATES] = Default::default();
            [states[0], states[1]] =
                [Moments::Bf16(SharedMut::new(&mut m)), Moments::Bf16(SharedMut::new(&mut v))];
            step(&mut [
                Tensor::new(update, &[n], param, &*grad, states).rounded_stochastically(rounding)
            ]);
        });
    });
}

/// Multiply-adds in registers: the most that a thread can do.
struct Peak(usize);

impl Kernel for Peak {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let (mut sums, a, b) = ([0.0f32; 64], black_box(0.5f32), black_box(1.0f32));
        for _ in 0..self.0 {
            for l in 0..64 {
                sums[l] = sums[l].mul_add(a, b);
            }
        }
        sums.iter().sum()
    }
}

/// A matrix with a share of its elements kept, and the dense operands of a layer.
fn csr(c: &mut Criterion) {
    let mut group = c.benchmark_group("csr, what a thread can do at most");
    group.throughput(Throughput::Elements(64 * 10_000));
    group.bench_function("multiply-adds", |b| b.iter(|| simd::dispatch(Peak(10_000))));
    group.finish();
    for (n, columns, kept) in [
        (4096, 64, 0.1f32),
        (4096, 64, 0.02),
        (4096, 1, 0.1),
        (4096, 8, 0.1),
        (4096, 256, 0.1),
        (512, 64, 0.2),
        (512, 8, 0.2),
        (512, 1, 0.02),
    ] {
        let chance = values(n * n);
        let keep: Vec<u8> = chance.iter().map(|x| u8::from(*x < 2.0 * kept - 1.0)).collect();
        let keep = Keep::Mask(&keep);
        let offsets = row_offsets(&chance, n, n, keep);
        let nnz = offsets.entries();
        let (mut data, mut indices) = (vec![0.0f32; nnz], vec![0i32; nnz]);
        fill(&chance, n, keep, &offsets, &mut data, &mut indices);
        let pattern = Pattern::new(&indices, &offsets, n).unwrap();
        let a = Csr::<_, _>::new(pattern, &data).unwrap();
        let tiling = Tiling::of::<f32>(columns);
        let (prepared, prepared_transposed) =
            (Prepared::new(pattern, tiling), Prepared::transposed(pattern, tiling));
        let x = values(n * columns);
        let mut y = vec![0.0f32; n * columns];
        let mut grad = vec![0.0f32; nnz];

        let title = format!("csr {n} x {n}, {} %, {columns} columns", 100.0 * kept);
        let mut group = c.benchmark_group(title);
        group.sample_size(20).throughput(Throughput::Elements((nnz * columns) as u64));
        let dense = Matrix::row_major(&x, n, columns);
        let turned = Matrix::row_major(&x, columns, n).transposed();
        let epilogue = Epilogue::default();
        group.bench_function("A X", |b| {
            b.iter(|| {
                let y = MatrixMut::row_major(&mut y, n, columns);
                matmul_prepared(&prepared, &&data[..], dense, y, epilogue)
            });
        });
        group.bench_function("X A^T", |b| {
            b.iter(|| {
                let y = MatrixMut::row_major(&mut y, columns, n).transposed();
                matmul_prepared(&prepared, &&data[..], turned, y, epilogue);
            });
        });
        group.bench_function("A^T X", |b| {
            b.iter(|| {
                let y = MatrixMut::row_major(&mut y, n, columns);
                if scatters::<f32>(columns) {
                    matmul_transposed_prepared(&prepared, &&data[..], dense, y, epilogue);
                } else {
                    matmul_prepared(&prepared_transposed, &&data[..], dense, y, epilogue);
                }
            });
        });
        group.bench_function("sddmm", |b| {
            b.iter(|| sddmm_prepared(&prepared, dense, turned.transposed(), &mut grad, false));
        });
        // Entries, not products of them: docs/sparse.md says what one takes.
        group.throughput(Throughput::Elements(nnz as u64));
        group.bench_function("prepare", |b| b.iter(|| Prepared::new(pattern, tiling)));
        group.bench_function("prepare transposed", |b| {
            b.iter(|| Prepared::transposed(pattern, tiling));
        });
        if columns == 64 {
            group.bench_function("transpose", |b| {
                b.iter(|| transpose::<i32, i32>(pattern));
            });
            let mut w = vec![0.0; n * n];
            to_dense(a, &mut w);
            let keep = Keep::AtLeast(0.0);
            group.bench_function("from dense", |b| {
                b.iter(|| {
                    let offsets = row_offsets(&w, n, n, keep);
                    fill(&w, n, keep, &offsets, &mut data.clone(), &mut indices.clone());
                });
            });
        }
    }
}

fn distill(c: &mut Criterion) {
    for (rows, classes) in [(256, 32_000), (1024, 1000), (4096, 10)] {
        let mut group = c.benchmark_group(format!("distill {rows} x {classes}"));
        group.sample_size(20).throughput(Throughput::Elements((rows * classes) as u64));
        let (student, teacher) = (values(rows * classes), values(rows * classes));
        let mut out = vec![0.0; rows * classes];
        let what = KdLoss::soft(classes, 4.0);
        let (logits, mut losses) = (Teacher::Logits(&teacher), vec![0.0; rows]);
        group.bench_function("kd_loss", |b| {
            b.iter(|| kd_loss(&what, &student, &logits, &mut losses, &mut out));
        });
        let axis = Axis::last(rows, classes);
        group.bench_function("softmax", |b| {
            b.iter(|| {
                softmax(
                    axis,
                    SoftmaxOutput::Probability,
                    PerRow::All(1.0),
                    Some(&student),
                    &mut out,
                )
            });
        });
        group.bench_function("copy", |b| {
            b.iter(|| {
                let shared = SharedMut::new(&mut out);
                parallel::for_each(0..student.len(), 1 << 16, 64, |part| {
                    // SAFETY: parts do not overlap.
                    let out = unsafe { shared.slice(part.clone()) };
                    simd::dispatch(Copy { x: &student[part], out, factor: black_box(1.0) });
                });
            });
        });
    }
}

fn prune(c: &mut Criterion) {
    let w = values(50_000_000);
    let mut group = c.benchmark_group("rank of 50,000,000 magnitudes");
    group.sample_size(10).throughput(Throughput::Elements(w.len() as u64));
    group.bench_function("sample and radix", |b| {
        b.iter(|| rank::<Magnitude, f32>(&[&w], 45_000_000))
    });
    let mut scratch = Vec::new();
    group.bench_function("select_nth_unstable", |b| {
        b.iter(|| {
            scratch.clear();
            scratch.extend(w.iter().map(|x| x.abs()));
            *scratch.select_nth_unstable_by(45_000_000, f32::total_cmp).1
        });
    });
}

/// Dense products; elements are multiply-adds, of which a symmetric product needs half.
fn dense(c: &mut Criterion) {
    const N: usize = 1024;
    let x = values(N * N);
    let wide: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let mut group = c.benchmark_group("dense products, 1,024 x 1,024");
    group.sample_size(20).throughput(Throughput::Elements((N * N * N) as u64));
    dense_of(&mut group, "f32", &x, N);
    dense_of(&mut group, "f64", &wide, N);
    group.throughput(Throughput::Elements((N * N * N / 3) as u64));
    let mut gram = vec![0.0; N * N];
    multiply_by_transpose(1.0, Matrix::row_major(&wide, N, N), None, &mut gram);
    (0..N).for_each(|i| gram[i * N + i] += 1.0);
    group.bench_function("factor, f64", |b| b.iter(|| Factor::new(&gram, N).unwrap()));
    let factor = Factor::new(&gram, N).unwrap();
    group.bench_function("its inverse, f64", |b| b.iter(|| factor.inverse()));
}

fn dense_of<T: Float>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, x: &[T], n: usize) {
    let (x, mut out) = (Matrix::row_major(x, n, n), vec![T::zero(); n * n]);
    group.bench_function(format!("x x, {name}"), |b| {
        b.iter(|| multiply(T::one(), x, x, None, &mut out));
    });
    group.bench_function(format!("x x', {name}"), |b| {
        b.iter(|| multiply_by_transpose(T::one(), x, None, &mut out));
    });
}

/// The vector exponential, and that of the C library.
fn exp(c: &mut Criterion) {
    let x: Vec<f32> = values(4096).into_iter().map(|x| 20.0 * x).collect();
    let mut out = vec![0.0f32; 4096];
    let mut group = c.benchmark_group("exp of 4,096 f32");
    group.throughput(Throughput::Elements(4096));
    group.bench_function("softmax row", |b| {
        let axis = Axis::last(1, 4096);
        b.iter(|| softmax(axis, SoftmaxOutput::Probability, PerRow::All(1.0), Some(&x), &mut out));
    });
    group.bench_function("ours, not vectorized", |b| {
        b.iter(|| x.iter().map(|x| black_box(*x).exp_fast()).sum::<f32>());
    });
    group.bench_function("C library", |b| {
        b.iter(|| x.iter().map(|x| black_box(*x).exp()).sum::<f32>());
    });
}

criterion_group!(benches, optim, csr, distill, prune, dense, exp);
criterion_main!(benches);
