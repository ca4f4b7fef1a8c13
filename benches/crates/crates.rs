//! Dense and sparse products of the core beside crates that a Rust user would choose, on one
//! thread: `cargo bench --manifest-path benches/crates/Cargo.toml`.

use compressrs_core::linalg::gemm::multiply;
use compressrs_core::linalg::matrix::{Matrix, MatrixMut};
use compressrs_core::runtime::parallel;
use compressrs_core::sparse::{
    Epilogue, Keep, Pattern, Prepared, Tiling, fill, matmul_prepared, row_offsets,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use faer::linalg::matmul::matmul;
use faer::sparse::linalg::matmul::sparse_dense_matmul;
use faer::sparse::{SparseRowMatRef, SymbolicSparseRowMatRef};
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::{ArrayView2, ArrayViewMut2, linalg::general_mat_mul};
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::NdTensorView;
use sprs::CsMatView;
use sprs::prod::csr_mulacc_dense_rowmaj;

/// Repeatable values in [-1, 1).
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

/// Fails if a contender computes something else.
fn check(name: &str, found: &[f32], wanted: &[f32]) {
    let scale = wanted.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    for (a, b) in found.iter().zip(wanted) {
        assert!((a - b).abs() <= 1e-4 * scale, "{name}: {a} instead of {b}");
    }
}

fn one_thread() {
    parallel::set_num_threads(1).unwrap();
    // rten-gemm's; a second call finds it done.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(1).build_global();
}

/// `x [m, k] @ w [k, n]`; elements are multiply-adds.
fn dense(c: &mut Criterion) {
    one_thread();
    for (m, k, n) in [(512, 384, 1536), (512, 1536, 384), (1024, 1024, 1024)] {
        let (x, w) = (values(m * k), values(k * n));
        let mut wanted = vec![0.0; m * n];
        let (a, b) = (Matrix::row_major(&x, m, k), Matrix::row_major(&w, k, n));
        multiply(1.0, a, b, None, &mut wanted);

        let mut group = c.benchmark_group(format!("dense, {m} x {k} x {n}"));
        group.sample_size(20).throughput(Throughput::Elements((m * k * n) as u64));
        let mut contend = |name: &str, product: &mut dyn FnMut(&mut [f32])| {
            let mut out = vec![0.0; m * n];
            product(&mut out);
            check(name, &out, &wanted);
            group.bench_function(name, |bencher| bencher.iter(|| product(&mut out)));
        };
        contend("compressrs", &mut |out| multiply(1.0, a, b, None, out));
        contend("faer", &mut |out| {
            matmul(
                MatMut::from_row_major_slice_mut(out, m, n),
                Accum::Replace,
                MatRef::from_row_major_slice(&x, m, k),
                MatRef::from_row_major_slice(&w, k, n),
                1.0,
                Par::Seq,
            );
        });
        contend("ndarray", &mut |out| {
            general_mat_mul(
                1.0,
                &ArrayView2::from_shape((m, k), &x).unwrap(),
                &ArrayView2::from_shape((k, n), &w).unwrap(),
                0.0,
                &mut ArrayViewMut2::from_shape((m, n), out).unwrap(),
            );
        });
        let executor = GemmExecutor::<f32>::new();
        contend("rten-gemm", &mut |out| {
            executor
                .gemm(
                    out,
                    GemmInputA::Unpacked(NdTensorView::from_data([m, k], &x[..])),
                    GemmInputB::Unpacked(NdTensorView::from_data([k, n], &w[..])),
                    GemmOptions::default(),
                )
                .unwrap();
        });
    }
}

/// `A [m, k] @ X [k, columns]` with 90 % zeros in A; elements are multiply-adds.
fn sparse(c: &mut Criterion) {
    one_thread();
    let (m, k) = (1536, 384);
    let chance = values(m * k);
    let mask: Vec<u8> = chance.iter().map(|x| u8::from(*x < -0.8)).collect();
    let keep = Keep::Mask(&mask);
    let offsets = row_offsets(&chance, m, k, keep);
    let nnz = offsets.entries();
    let (mut data, mut indices) = (vec![0.0f32; nnz], vec![0i32; nnz]);
    fill(&chance, m, keep, &offsets, &mut data, &mut indices);
    let pattern = Pattern::new(&indices, &offsets, k).unwrap();

    // What the others take.
    let mut starts = vec![0usize];
    for row in mask.chunks(k) {
        starts.push(
            starts.last().unwrap() + row.iter().map(|kept| usize::from(*kept)).sum::<usize>(),
        );
    }
    let wide: Vec<usize> = indices.iter().map(|i| *i as usize).collect();
    let sprs = CsMatView::new((m, k), &starts, &wide, &data);
    let symbolic = SymbolicSparseRowMatRef::new_checked(m, k, &starts, None, &wide);
    let faer = SparseRowMatRef::new(symbolic, &data[..]);

    for columns in [1, 8, 32, 128, 512] {
        let prepared = Prepared::new(pattern, Tiling::of::<f32>(columns));
        let x = values(k * columns);
        let mut wanted = vec![0.0; m * columns];
        let w: Vec<f32> =
            chance.iter().zip(&mask).map(|(x, kept)| if *kept == 1 { *x } else { 0.0 }).collect();
        let (a, b) = (Matrix::row_major(&w, m, k), Matrix::row_major(&x, k, columns));
        multiply(1.0, a, b, None, &mut wanted);

        let mut group = c.benchmark_group(format!("CSR, {m} x {k}, 90 % zeros, {columns} columns"));
        group.sample_size(20).throughput(Throughput::Elements((nnz * columns) as u64));
        let mut contend = |name: &str, product: &mut dyn FnMut(&mut [f32])| {
            let mut out = vec![0.0; m * columns];
            product(&mut out);
            check(name, &out, &wanted);
            group.bench_function(name, |bencher| bencher.iter(|| product(&mut out)));
        };
        contend("compressrs", &mut |out| {
            let y = MatrixMut::row_major(out, m, columns);
            matmul_prepared(&prepared, &&data[..], b, y, Epilogue::default());
        });
        contend("sprs", &mut |out| {
            out.fill(0.0);
            csr_mulacc_dense_rowmaj(
                sprs,
                ArrayView2::from_shape((k, columns), &x).unwrap(),
                ArrayViewMut2::from_shape((m, columns), out).unwrap(),
            );
        });
        contend("faer", &mut |out| {
            sparse_dense_matmul(
                MatMut::from_row_major_slice_mut(out, m, columns),
                Accum::Replace,
                faer,
                MatRef::from_row_major_slice(&x, k, columns),
                1.0,
                Par::Seq,
            );
        });
        contend("dense, compressrs", &mut |out| multiply(1.0, a, b, None, out));
    }
}

criterion_group!(benches, dense, sparse);
criterion_main!(benches);
