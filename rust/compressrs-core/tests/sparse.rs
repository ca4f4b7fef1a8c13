//! CSR conversion and products against triple loops in double precision.

use compressrs_core::sparse::{
    Csr, CsrError, Dense, DenseMut, fill, matmul, matmul_transposed, row_offsets, sddmm, to_dense,
};
use proptest::prelude::*;

/// A CSR matrix with int64 indices, owned.
struct Owned {
    data: Vec<f64>,
    indices: Vec<i64>,
    indptr: Vec<i64>,
    columns: usize,
}

impl Owned {
    fn new(dense: &[f64], rows: usize, columns: usize, threshold: f64) -> Self {
        let offsets = row_offsets(dense, rows, columns, threshold);
        let nnz = offsets[rows];
        let (mut data, mut indices) = (vec![0.0; nnz], vec![0i64; nnz]);
        fill(dense, columns, threshold, &offsets, &mut data, &mut indices);
        let indptr = offsets.into_iter().map(|i| i as i64).collect();
        Owned { data, indices, indptr, columns }
    }

    fn csr(&self) -> Csr<'_, f64, i64> {
        Csr::new(&self.data, &self.indices, &self.indptr, self.columns).unwrap()
    }
}

/// Integers, so that every order of summation gives the same sum.
fn integers(seed: u64, len: usize, zeros: u64) -> Vec<f64> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len).map(|_| if next() % 10 < zeros { 0.0 } else { (next() % 17) as f64 - 8.0 }).collect()
}

fn naive(a: &[f64], b: &[f64], (m, k, n): (usize, usize, usize)) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            c[i * n + j] = (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
        }
    }
    c
}

fn transpose(a: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|j| (0..rows).map(move |i| a[i * columns + j])).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn products_agree_with_triple_loops(
        m in 0usize..40, k in 0usize..40, n in 0usize..140, zeros in 0u64..=10, seed: u64,
    ) {
        let a = integers(seed, m * k, zeros);
        let owned = Owned::new(&a, m, k, 0.0);
        let csr = owned.csr();
        prop_assert_eq!(csr.nnz(), a.iter().filter(|&&x| x != 0.0).count());

        let mut back = vec![f64::NAN; m * k];
        to_dense(csr, &mut back);
        prop_assert_eq!(&back, &a);

        // x and y in both orders
        let x = integers(seed ^ 1, k * n, 1);
        let truth = naive(&a, &x, (m, k, n));
        let mut y = vec![f64::NAN; m * n];
        matmul(csr, Dense::row_major(&x, k, n), DenseMut::row_major(&mut y, m, n));
        prop_assert_eq!(&y, &truth);
        let xt = transpose(&x, k, n);
        let mut yt = vec![f64::NAN; m * n];
        matmul(csr, Dense::row_major(&xt, n, k).transposed(), DenseMut::row_major(&mut yt, n, m).transposed());
        prop_assert_eq!(&yt, &transpose(&truth, m, n));

        let z = integers(seed ^ 2, m * n, 1);
        let truth = naive(&transpose(&a, m, k), &z, (k, m, n));
        let mut y = vec![f64::NAN; k * n];
        matmul_transposed(csr, Dense::row_major(&z, m, n), DenseMut::row_major(&mut y, k, n));
        prop_assert_eq!(&y, &truth);

        let u = integers(seed ^ 3, m * n, 1);
        let v = integers(seed ^ 4, n * k, 1);
        let full = naive(&u, &v, (m, n, k));
        let truth: Vec<f64> = full.iter().zip(&a).filter(|(_, a)| **a != 0.0).map(|(x, _)| *x).collect();
        let mut out = vec![f64::NAN; csr.nnz()];
        sddmm(csr, Dense::row_major(&u, m, n), Dense::row_major(&v, n, k), &mut out);
        prop_assert_eq!(&out, &truth);
    }

    #[test]
    fn malformed_matrices_are_refused(
        indptr in prop::collection::vec(-2i32..6, 0..6),
        indices in prop::collection::vec(-2i32..6, 0..6),
        entries in 0usize..6,
    ) {
        let data = vec![1.0f32; entries];
        let good = indptr.first() == Some(&0)
            && indptr.is_sorted()
            && indptr.last().is_some_and(|&n| n as usize == indices.len())
            && indices.len() == entries
            && indices.iter().all(|i| (0..4).contains(i));
        prop_assert_eq!(Csr::new(&data, &indices, &indptr, 4).is_ok(), good);
    }
}

#[test]
fn strided_views_with_gaps() {
    let a = integers(7, 12, 3);
    let owned = Owned::new(&a, 3, 4, 0.0);
    let x = integers(8, 4 * 5, 0);
    // Every second column of a wider buffer, in and out.
    let mut wide = vec![-1.0; 4 * 10];
    for i in 0..20 {
        wide[2 * i] = x[i];
    }
    let mut y = vec![-1.0; 3 * 10];
    matmul(owned.csr(), Dense::new(&wide, 4, 5, 10, 2), DenseMut::new(&mut y, 3, 5, 10, 2));
    let every_second: Vec<f64> = y.iter().copied().step_by(2).collect();
    assert_eq!(every_second, naive(&a, &x, (3, 4, 5)));
    assert!(y.iter().skip(1).step_by(2).all(|&gap| gap == -1.0), "gaps are left alone");
}

#[test]
fn repeated_entries_add_up() {
    let a = Csr::new(&[1.0, 2.0, 4.0], &[1i32, 1, 0], &[0, 3], 2).unwrap();
    let mut dense = [0.0; 2];
    to_dense(a, &mut dense);
    assert_eq!(dense, [4.0, 3.0]);
    let mut y = [0.0];
    matmul(a, Dense::row_major(&[10.0, 100.0], 2, 1), DenseMut::row_major(&mut y, 1, 1));
    assert_eq!(y, [340.0]);
}

#[test]
fn what_is_stored() {
    let w = [0.0, -0.0, 0.5, -1.0, 1.0, f64::NAN, f64::INFINITY, 1e-320];
    let owned = Owned::new(&w, 2, 4, 1.0);
    assert_eq!(owned.indptr, [0, 1, 4]);
    assert_eq!(owned.indices, [3, 0, 1, 2]);
    assert_eq!(Owned::new(&w, 2, 4, 0.0).indices, [2, 3, 0, 1, 2, 3]);
}

#[test]
fn errors_say_what_is_wrong() {
    let check = |data: &[f32], indices: &[i32], indptr: &[i32]| {
        Csr::new(data, indices, indptr, 3).unwrap_err()
    };
    assert_eq!(check(&[], &[], &[]), CsrError::NoOffsets);
    let error = check(&[1.0], &[-1], &[0, 1]);
    assert_eq!(
        error.to_string(),
        "indices must be at least 0 and below the number of columns, 3; indices[0] is -1"
    );
    assert_eq!(check(&[1.0], &[0], &[0, 2, 1]), CsrError::Decreasing(1));
}
