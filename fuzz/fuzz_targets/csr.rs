//! CSR matrices of any arrays: refused, or products as those of the dense matrix.
#![no_main]

use arbitrary::Arbitrary;
use compressrs_core::linalg::matrix::{Matrix, MatrixMut};
use compressrs_core::sparse::{
    Csr, Epilogue, Index, Offsets, Pattern, Prepared, Tiling, matmul, matmul_prepared,
    matmul_transposed, matmul_transposed_prepared, scatters, sddmm_prepared, to_dense, transpose,
};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Arrays {
    /// The columns of each row's entries; taken modulo the number of columns.
    rows: Vec<Vec<u16>>,
    columns: u8,
    /// Columns of the dense operand.
    n: u8,
    short: bool,
    /// What an element of an array is replaced by.
    index: Option<(u8, i64)>,
    offset: Option<(u8, i64)>,
}

fn valid(indptr: &[i64], indices: &[i64], columns: usize) -> bool {
    indptr.first() == Some(&0)
        && indptr.windows(2).all(|w| w[0] <= w[1])
        && indptr.last() == Some(&(indices.len() as i64))
        && indices.iter().all(|&i| (0..columns as i64).contains(&i))
}

/// Integers, so that every order of summation gives the same sum.
fn integers(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 31 + seed * 7) % 17) as f32 - 8.0).collect()
}

fn check<I: Index>(indptr: &[i64], indices: &[I], wide: &[i64], columns: usize, n: usize) {
    let good = valid(indptr, wide, columns);
    let Ok(offsets) = Offsets::new(indptr, indices.len()) else { return assert!(!good) };
    let pattern = match Pattern::new(indices, &offsets, columns) {
        Ok(pattern) => pattern,
        Err(error) => {
            assert!(!good && !error.to_string().is_empty());
            return;
        }
    };
    assert!(good);
    let (rows, entries) = (offsets.rows(), indices.len());
    let data = integers(entries, 3);
    let a = Csr::<f32, I>::new(pattern, &data).unwrap();
    let mut dense = vec![0.0f32; rows * columns];
    for row in 0..rows {
        for p in offsets.as_slice()[row]..offsets.as_slice()[row + 1] {
            dense[row * columns + wide[p] as usize] += data[p];
        }
    }
    let mut found = vec![9.0; rows * columns];
    to_dense(a, &mut found);
    assert_eq!(found, dense);

    let (x, z) = (integers(columns * n, 1), integers(rows * n, 2));
    let (mut y, mut w) = (vec![7.0; rows * n], vec![7.0; columns * n]);
    let of = |values| Matrix::new(values, columns, n, n, 1);
    matmul(a, of(&x), MatrixMut::new(&mut y, rows, n, n, 1), Epilogue::default());
    let u = Matrix::new(&z, rows, n, n, 1);
    matmul_transposed(a, u, MatrixMut::new(&mut w, columns, n, n, 1), Epilogue::default());
    let dot = |i: usize, j: usize| -> f32 {
        (0..columns).map(|k| dense[i * columns + k] * x[k * n + j]).sum()
    };
    for i in 0..rows {
        for j in 0..n {
            assert_eq!(y[i * n + j], dot(i, j));
        }
    }
    for k in 0..columns {
        for j in 0..n {
            let sum: f32 = (0..rows).map(|i| dense[i * columns + k] * z[i * n + j]).sum();
            assert_eq!(w[k * n + j], sum);
        }
    }

    for tiling in Tiling::ALL {
        let prepared = Prepared::new(pattern, tiling);
        let mut again = vec![6.0; rows * n];
        let out = MatrixMut::new(&mut again, rows, n, n, 1);
        matmul_prepared(&prepared, &&data[..], of(&x), out, Epilogue::default());
        assert_eq!(again, y);

        let mut again = vec![6.0; columns * n];
        let out = MatrixMut::new(&mut again, columns, n, n, 1);
        if scatters::<f32>(n) {
            matmul_transposed_prepared(&prepared, &&data[..], u, out, Epilogue::default());
        } else {
            let transposed = Prepared::transposed(pattern, tiling);
            matmul_prepared(&transposed, &&data[..], u, out, Epilogue::default());
        }
        assert_eq!(again, w);

        let mut sampled = vec![5.0; entries];
        // The transpose of x, as a view.
        sddmm_prepared(&prepared, u, Matrix::new(&x, n, columns, 1, n), &mut sampled, false);
        for row in 0..rows {
            for p in offsets.as_slice()[row]..offsets.as_slice()[row + 1] {
                let k = wide[p] as usize;
                let sum: f32 = (0..n).map(|j| z[row * n + j] * x[k * n + j]).sum();
                assert_eq!(sampled[p], sum);
            }
        }
    }

    let t = transpose::<I, i64>(pattern);
    assert_eq!((t.indices.len(), t.places.len()), (entries, entries));
}

fuzz_target!(|arrays: Arrays| {
    let (columns, n) = (usize::from(arrays.columns), usize::from(arrays.n % 40));
    let mut indptr = vec![0i64];
    let mut indices: Vec<i64> = Vec::new();
    for row in &arrays.rows {
        indices.extend(row.iter().map(|&c| i64::from(c) % columns.max(1) as i64));
        indptr.push(indices.len() as i64);
    }
    if let Some((at, value)) = arrays.offset {
        let at = usize::from(at) % indptr.len();
        indptr[at] = value;
    }
    if let (Some((at, value)), false) = (arrays.index, indices.is_empty()) {
        let at = usize::from(at) % indices.len();
        indices[at] = if arrays.short { i64::from(value as i16) } else { value };
    }
    if arrays.short {
        let short: Vec<i16> = indices.iter().map(|&i| i as i16).collect();
        check(&indptr, &short, &indices, columns, n);
    } else {
        check(&indptr, &indices, &indices, columns, n);
    }
});
