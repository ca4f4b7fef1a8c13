//! Sparse conversion and products against triple loops in double precision.

use compressrs_core::linalg::matrix::{Matrix, MatrixMut};
use compressrs_core::runtime::parallel;
use compressrs_core::sparse::{
    Csr, CsrError, Epilogue, Index, Keep, NOWHERE, Offsets, Pattern, Prepared, Repeats, Tiling,
    fill, locate, matmul, matmul_prepared, matmul_transposed, matmul_transposed_prepared,
    row_offsets, scatters, sddmm, sddmm_prepared, to_dense, transpose,
};
use proptest::prelude::*;

/// A sparse matrix of blocks, owned.
#[derive(Clone, Debug)]
struct Owned<I> {
    data: Vec<f64>,
    indices: Vec<I>,
    offsets: Offsets,
    columns: usize,
}

impl<I: Index> Owned<I> {
    fn new(dense: &[f64], rows: usize, columns: usize, keep: Keep<'_, f64>) -> Self {
        let offsets = row_offsets(dense, rows, columns, keep);
        let nnz = offsets.entries();
        let (mut data, mut indices) = (vec![0.0; nnz], vec![I::default(); nnz]);
        fill(dense, columns, keep, &offsets, &mut data, &mut indices);
        Owned { data, indices, offsets, columns }
    }

    /// A pattern from one value for each block, and values for the blocks.
    fn blocks(places: &[f64], rows: usize, columns: usize, size: usize, seed: u64) -> Self {
        let mut this = Owned::new(places, rows, columns, Keep::AtLeast(0.0));
        this.data = integers(seed, this.indices.len() * size, 1);
        this
    }

    fn row(&self, row: usize) -> std::ops::Range<usize> {
        let offsets = self.offsets.as_slice();
        offsets[row]..offsets[row + 1]
    }

    fn pattern(&self) -> Pattern<'_, I> {
        Pattern::new(&self.indices, &self.offsets, self.columns).unwrap()
    }

    fn csr<const R: usize, const C: usize>(&self) -> Csr<'_, f64, I, R, C> {
        Csr::new(self.pattern(), &self.data).unwrap()
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

fn transpose_dense(a: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|j| (0..rows).map(move |i| a[i * columns + j])).collect()
}

/// The order of a dense matrix, and how much wider its buffer is.
#[derive(Clone, Copy, Debug)]
enum Order {
    Rows,
    Columns,
    Strided,
}

/// Calls `multiply` with `x` and `y` in the orders given; returns `y` row by row.
fn product(
    (x, y): (&[f64], &[f64]),
    (inner, rows, n): (usize, usize, usize),
    (x_order, y_order): (Order, Order),
    multiply: impl FnOnce(Matrix<'_, f64>, MatrixMut<'_, f64>),
) -> Vec<f64> {
    let strides = |order, rows, columns| match order {
        Order::Rows => (columns, 1),
        Order::Columns => (1, rows),
        Order::Strided => (3 * columns + 2, 2),
    };
    let place = |values: &[f64], rows: usize, (row, column): (usize, usize)| {
        let mut out = vec![-1.0; rows * row + n * column + 1];
        for i in 0..rows {
            for j in 0..n {
                out[i * row + j * column] = values[i * n + j];
            }
        }
        out
    };
    let (xs, ys) = (strides(x_order, inner, n), strides(y_order, rows, n));
    let (x, mut y) = (place(x, inner, xs), place(y, rows, ys));
    multiply(Matrix::new(&x, inner, n, xs.0, xs.1), MatrixMut::new(&mut y, rows, n, ys.0, ys.1));
    let at: Vec<usize> = (0..rows * n).map(|i| i / n * ys.0 + i % n * ys.1).collect();
    if matches!(y_order, Order::Strided) {
        let gaps = (0..y.len()).filter(|i| !at.contains(i));
        assert!(gaps.into_iter().all(|i| y[i] == -1.0), "gaps are left alone");
    }
    at.into_iter().map(|i| y[i]).collect()
}

fn finish(
    sum: &[f64],
    old: &[f64],
    bias: Option<&[f64]>,
    n: usize,
    epilogue: Epilogue<'_, f64>,
) -> Vec<f64> {
    let one = |i: usize| {
        let y = sum[i] + if epilogue.accumulate { old[i] } else { 0.0 };
        let y = y + bias.map_or(0.0, |bias| bias[i / n]);
        if epilogue.relu { y.max(0.0) } else { y }
    };
    (0..sum.len()).map(one).collect()
}

/// Both products of a matrix of blocks, in all orders and with all epilogues.
fn check_products<I: Index, const R: usize, const C: usize>(
    owned: &Owned<I>,
    n: usize,
    orders: (Order, Order),
    (accumulate, relu, with_bias): (bool, bool, bool),
    seed: u64,
) {
    let a = owned.csr::<R, C>();
    let (m, k) = (a.rows(), a.columns());
    let mut dense = vec![f64::NAN; m * k];
    to_dense(a, &mut dense);
    for transposed in [false, true] {
        let (rows, inner) = if transposed { (k, m) } else { (m, k) };
        let x = integers(seed ^ 1, inner * n, 1);
        let old = integers(seed ^ 2, rows * n, 1);
        let bias = integers(seed ^ 3, rows, 1);
        let bias = with_bias.then_some(&bias[..]);
        let epilogue = Epilogue { accumulate, bias, relu };
        // One of them, whichever is best.
        let tiling = Tiling::ALL[(rows + n) % Tiling::ALL.len()];
        let prepared = match (R * C, transposed) {
            (1, false) => Some(Prepared::new(a.pattern(), tiling)),
            (1, true) => Some(Prepared::transposed(a.pattern(), tiling)),
            _ => None,
        };
        let y = product((&x, &old), (inner, rows, n), orders, |x, y| {
            if let Some(prepared) = &prepared {
                assert_eq!((prepared.rows(), prepared.columns()), (rows, inner));
                if transposed && scatters::<f64>(n) {
                    let prepared = Prepared::new(a.pattern(), tiling);
                    matmul_transposed_prepared(&prepared, &&owned.data[..], x, y, epilogue)
                } else {
                    matmul_prepared(prepared, &&owned.data[..], x, y, epilogue)
                }
            } else if transposed {
                matmul_transposed(a, x, y, epilogue)
            } else {
                matmul(a, x, y, epilogue)
            }
        });
        let left = if transposed { transpose_dense(&dense, m, k) } else { dense.clone() };
        let truth = finish(&naive(&left, &x, (rows, inner, n)), &old, bias, n, epilogue);
        assert_eq!(y, truth, "transposed: {transposed}");
    }
}

fn orders() -> impl Strategy<Value = Order> {
    prop_oneof![Just(Order::Rows), Just(Order::Columns), Just(Order::Strided)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn products_agree_with_triple_loops(
        m in 0usize..70, k in 0usize..70, n in 0usize..140, zeros in 0u64..=10,
        x_order in orders(), y_order in orders(), what: (bool, bool, bool), seed: u64,
    ) {
        let w = integers(seed, m * k, zeros);
        let orders = (x_order, y_order);
        check_products::<i16, 1, 1>(&Owned::new(&w, m, k, Keep::AtLeast(0.0)), n, orders, what, seed);
        check_products::<i64, 1, 1>(&Owned::new(&w, m, k, Keep::AtLeast(0.0)), n, orders, what, seed);
    }

    #[test]
    fn entries_are_found_in_any_order(
        rows in 0usize..40, columns in 0usize..40, zeros in 0u64..=10, others in 0u64..=10,
        seed: u64,
    ) {
        let (a, b) = (integers(seed, rows * columns, zeros), integers(!seed, rows * columns, others));
        let mut old = Owned::<i16>::new(&a, rows, columns, Keep::AtLeast(0.0));
        let mut new = Owned::<i64>::new(&b, rows, columns, Keep::AtLeast(0.0));
        // Every second row backwards, in one of them every third.
        for (step, row) in [(2, 0), (3, 1)] {
            for r in (row..rows).step_by(step) {
                if step == 2 {
                    let part = old.row(r);
                    old.indices[part].reverse();
                } else {
                    let part = new.row(r);
                    new.indices[part].reverse();
                }
            }
        }
        let mut places = vec![7; new.indices.len()];
        locate(old.pattern(), new.pattern(), &mut places).unwrap();
        for r in 0..rows {
            for p in new.row(r) {
                let mut entries = old.row(r);
                let found = entries.find(|&q| i64::from(old.indices[q]) == new.indices[p]);
                prop_assert_eq!(places[p], found.map_or(NOWHERE, |q| q as i64));
            }
        }
        if let Some(r) = (0..rows).find(|&r| old.row(r).len() > 1) {
            let first = old.row(r).start;
            old.indices[first + 1] = old.indices[first];
            prop_assert_eq!(locate(old.pattern(), new.pattern(), &mut places), Err(Repeats::Old));
            let mut places = vec![0; old.indices.len()];
            prop_assert_eq!(locate(new.pattern(), old.pattern(), &mut places), Err(Repeats::New));
        }
    }

    #[test]
    fn products_of_blocks_agree_with_triple_loops(
        m in 0usize..9, k in 0usize..9, n in 0usize..70, zeros in 0u64..=10,
        x_order in orders(), y_order in orders(), what: (bool, bool, bool), seed: u64,
    ) {
        let places = integers(seed, m * k, zeros);
        let orders = (x_order, y_order);
        check_products::<i32, 4, 4>(&Owned::blocks(&places, m, k, 16, seed), n, orders, what, seed);
        check_products::<i32, 1, 16>(&Owned::blocks(&places, m, k, 16, seed), n, orders, what, seed);
        check_products::<i32, 16, 1>(&Owned::blocks(&places, m, k, 16, seed), n, orders, what, seed);
        check_sddmm::<4, 4>(&Owned::blocks(&places, m, k, 16, seed), n, seed);
        check_sddmm::<1, 16>(&Owned::blocks(&places, m, k, 16, seed), n, seed);
        check_sddmm::<16, 1>(&Owned::blocks(&places, m, k, 16, seed), n, seed);
        check_sddmm::<1, 1>(&Owned::blocks(&places, m, k, 1, seed), n, seed);
    }

    #[test]
    fn conversions_and_sampled_products(
        m in 0usize..60, k in 0usize..400, n in 0usize..80, zeros in 0u64..=10, seed: u64,
    ) {
        let w = integers(seed, m * k, zeros);
        let owned = Owned::<i32>::new(&w, m, k, Keep::AtLeast(0.0));
        prop_assert_eq!(owned.data.len(), w.iter().filter(|&&x| x != 0.0).count());
        let mut back = vec![f64::NAN; m * k];
        to_dense(owned.csr::<1, 1>(), &mut back);
        prop_assert_eq!(&back, &w);

        // By a mask, zeros are kept where it says so: where a byte is not 0.
        let mask: Vec<u8> = integers(seed ^ 5, m * k, 5).iter().map(|&x| x as i8 as u8).collect();
        let masked = Owned::<i32>::new(&w, m, k, Keep::Mask(&mask));
        let kept: Vec<f64> = w.iter().zip(&mask).filter(|(_, m)| **m != 0).map(|(x, _)| *x).collect();
        prop_assert_eq!(&masked.data, &kept);

        let t = transpose::<i32, i64>(owned.pattern());
        let data: Vec<f64> = t.places.iter().map(|&p| owned.data[p as usize]).collect();
        let flipped = Owned { data, indices: t.indices, offsets: t.offsets, columns: m };
        let mut back = vec![f64::NAN; m * k];
        to_dense(flipped.csr::<1, 1>(), &mut back);
        prop_assert_eq!(&back, &transpose_dense(&w, m, k));
        let again = Owned::<i64>::new(&transpose_dense(&w, m, k), k, m, Keep::AtLeast(0.0));
        prop_assert_eq!(flipped.indices, again.indices);

        let (u, v) = (integers(seed ^ 3, m * n, 1), integers(seed ^ 4, n * k, 1));
        let full = naive(&u, &v, (m, n, k));
        let truth: Vec<f64> =
            full.iter().zip(&w).filter(|(_, w)| **w != 0.0).map(|(x, _)| *x).collect();
        let mut out = vec![f64::NAN; truth.len()];
        let (u, v) = (Matrix::row_major(&u, m, n), Matrix::row_major(&v, n, k));
        for tiling in Tiling::ALL {
            let prepared = Prepared::new(owned.pattern(), tiling);
            sddmm_prepared(&prepared, u, v, &mut out, false);
            prop_assert_eq!(&out, &truth);
        }
    }

    #[test]
    fn rows_need_not_be_sorted(m in 1usize..40, k in 1usize..3000, n in 1usize..70, seed: u64) {
        let w = integers(seed, m * k, 3);
        let mut owned = Owned::<i32>::new(&w, m, k, Keep::AtLeast(0.0));
        // Entries of each row, in another order.
        for row in 0..m {
            let part = owned.row(row);
            let shift = seed as usize % part.len().max(1);
            owned.data[part.clone()].rotate_left(shift);
            owned.indices[part].rotate_left(shift);
        }
        check_products::<i32, 1, 1>(&owned, n, (Order::Rows, Order::Rows), (false, false, false), seed);
        let (u, v) = (integers(seed ^ 3, m * n, 1), integers(seed ^ 4, n * k, 1));
        let full = naive(&u, &v, (m, n, k));
        let mut out = vec![f64::NAN; owned.data.len()];
        let (u, v) = (Matrix::row_major(&u, m, n), Matrix::row_major(&v, n, k));
        let tiling = Tiling::of::<f64>(n);
        sddmm_prepared(&Prepared::new(owned.pattern(), tiling), u, v, &mut out, false);
        for row in 0..m {
            for p in owned.row(row) {
                prop_assert_eq!(out[p], full[row * k + owned.indices[p] as usize]);
            }
        }
    }

    #[test]
    fn malformed_matrices_are_refused(
        indptr in prop::collection::vec(-2i32..6, 0..6),
        indices in prop::collection::vec(-2i16..6, 0..6),
        entries in 0usize..6,
    ) {
        let data = vec![1.0f32; entries];
        let good = indptr.first() == Some(&0)
            && indptr.is_sorted()
            && indptr.last().is_some_and(|&n| n as usize == indices.len())
            && indices.len() == entries
            && indices.iter().all(|i| (0..4).contains(i));
        let made = Offsets::new(&indptr, indices.len()).is_ok_and(|offsets| {
            Pattern::new(&indices, &offsets, 4)
                .is_ok_and(|pattern| Csr::<f32, i16>::new(pattern, &data).is_ok())
        });
        prop_assert_eq!(made, good);
    }
}

/// The product sampled at the blocks of a matrix, added to what is there.
fn check_sddmm<const R: usize, const C: usize>(owned: &Owned<i32>, n: usize, seed: u64) {
    let a = owned.csr::<R, C>();
    let (m, k) = (a.rows(), a.columns());
    let (u, v) = (integers(seed ^ 3, m * n, 1), integers(seed ^ 4, n * k, 1));
    let full = naive(&u, &v, (m, n, k));
    let old = integers(seed ^ 5, owned.data.len(), 1);
    let mut out = old.clone();
    let (u, v) = (Matrix::row_major(&u, m, n), Matrix::row_major(&v, n, k));
    if R * C == 1 {
        sddmm_prepared(&Prepared::new(a.pattern(), Tiling::Short), u, v, &mut out, true);
    } else {
        sddmm::<_, _, R, C>(a.pattern(), u, v, &mut out, true);
    }
    for row in 0..m / R {
        for p in owned.row(row) {
            for i in 0..R * C {
                let (r, c) = (row * R + i / C, owned.indices[p] as usize * C + i % C);
                assert_eq!(out[p * R * C + i], old[p * R * C + i] + full[r * k + c]);
            }
        }
    }
}

/// One row far longer than a task takes, beside short and empty ones.
#[test]
fn long_rows_are_cut_up() {
    let columns = 100_000;
    let mut w = vec![0.0; 3 * columns];
    w[..columns].copy_from_slice(&integers(1, columns, 1));
    w[2 * columns + 5] = 3.0;
    let owned = Owned::<i32>::new(&w, 3, columns, Keep::AtLeast(0.0));
    for n in [1, 3, 70] {
        for what in [(false, false, false), (true, true, true)] {
            check_products::<i32, 1, 1>(&owned, n, (Order::Rows, Order::Columns), what, 9);
        }
    }
}

/// An index that has become bad since it was checked is a panic, which the bindings turn
/// into an exception.
#[test]
fn changed_indices_are_noticed() {
    let (data, offsets) = ([1.0f32, 2.0], rows(&[0, 1, 2]));
    for bad in [[0i32, 7], [-1, 0]] {
        let pattern = Pattern::checked(&bad, &offsets, 2);
        let a = Csr::<_, _>::new(pattern, &data).unwrap();
        let x = [1.0f32; 4];
        let panics = |f: &dyn Fn(MatrixMut<'_, f32>)| {
            let mut y = [0.0; 4];
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                f(MatrixMut::row_major(&mut y, 2, 2));
            }))
            .is_err()
        };
        let x = Matrix::row_major(&x, 2, 2);
        assert!(panics(&|_| drop(Prepared::new(pattern, Tiling::Tall))));
        assert!(panics(&|_| drop(Prepared::transposed(pattern, Tiling::Tall))));
        assert!(panics(&|y| matmul(a, x, y, Epilogue::default())));
        assert!(panics(&|y| matmul_transposed(a, x, y, Epilogue::default())));
        assert!(panics(&|_| to_dense(a, &mut [0.0; 4])));
        assert!(panics(&|_| drop(transpose::<i32, i32>(pattern))));
    }
}

/// Offsets as they are given.
fn rows(offsets: &[i32]) -> Offsets {
    Offsets::new(offsets, offsets.last().map_or(0, |&last| last as usize)).unwrap()
}

#[test]
fn repeated_entries_add_up() {
    let offsets = rows(&[0, 3]);
    let pattern = Pattern::new(&[1i32, 1, 0], &offsets, 2).unwrap();
    let a = Csr::<_, _>::new(pattern, &[1.0, 2.0, 4.0]).unwrap();
    let mut dense = [0.0; 2];
    to_dense(a, &mut dense);
    assert_eq!(dense, [4.0, 3.0]);
    let mut y = [0.0];
    let x = Matrix::row_major(&[10.0, 100.0], 2, 1);
    matmul(a, x, MatrixMut::row_major(&mut y, 1, 1), Epilogue::default());
    assert_eq!(y, [340.0]);
    let data = [1.0, 2.0, 4.0];
    assert_eq!(y_of(&Prepared::new(pattern, Tiling::Rows), &data, &[10.0, 100.0], 1), [340.0]);
    assert_eq!(y_of(&Prepared::transposed(pattern, Tiling::Rows), &data, &[2.0], 2), [8.0, 6.0]);
}

/// The product with one column.
fn y_of(a: &Prepared, data: &[f64], x: &[f64], rows: usize) -> Vec<f64> {
    let mut y = vec![f64::NAN; rows];
    let (x, out) = (Matrix::row_major(x, x.len(), 1), MatrixMut::row_major(&mut y, rows, 1));
    matmul_prepared(a, &data, x, out, Epilogue::default());
    y
}

/// More entries of one column than a tile has columns, and more than a task sums.
#[test]
fn an_entry_may_repeat_any_number_of_times() {
    let count = 100_000;
    let (indices, data) = (vec![3i32; count], vec![1.0; count]);
    let offsets = Offsets::new(&[0, 0, count as i32], count).unwrap();
    let pattern = Pattern::new(&indices, &offsets, 5).unwrap();
    let x = [0.0, 0.0, 0.0, 2.0, 0.0];
    assert_eq!(
        y_of(&Prepared::new(pattern, Tiling::Rows), &data, &x, 2),
        [0.0, 2.0 * count as f64]
    );
    let y = y_of(&Prepared::transposed(pattern, Tiling::Rows), &data, &[1.0, 1.0], 5);
    assert_eq!(y, [0.0, 0.0, 0.0, count as f64, 0.0]);
}

/// Shapes of several bands and tiles.
#[test]
fn bands_and_tiles() {
    for (m, k, zeros) in [(300, 900, 9), (600, 70, 5), (3, 70_000, 9)] {
        let w = integers(m as u64, m * k, zeros);
        let owned = Owned::<i32>::new(&w, m, k, Keep::AtLeast(0.0));
        let orders = [(Order::Rows, Order::Rows), (Order::Strided, Order::Columns)];
        // Of all tilings, since `check_products` takes one after another.
        for (n, orders) in [1, 2, 3, 4, 36, 37, 38].into_iter().zip(orders.into_iter().cycle()) {
            check_products::<i32, 1, 1>(&owned, n, orders, (true, false, true), 7);
        }
    }
}

/// The same bits for any number of threads.
#[test]
fn prepared_products_have_the_same_bits() {
    let (m, k) = (600, 900);
    let w: Vec<f64> = integers(5, m * k, 8).iter().map(|x| x / 7.0).collect();
    let owned = Owned::<i32>::new(&w, m, k, Keep::AtLeast(0.0));
    let before = parallel::num_threads().unwrap();
    for n in [1, 2, 9, 20, 70, 130] {
        let prepared = Prepared::new(owned.pattern(), Tiling::of::<f64>(n));
        let x: Vec<f64> = integers(6, k * n, 1).iter().map(|x| x / 3.0).collect();
        let products = [1, 2, 3, 7].map(|threads| {
            parallel::set_num_threads(threads).unwrap();
            let mut y = vec![0.0; m * n];
            let (x, out) = (Matrix::row_major(&x, k, n), MatrixMut::row_major(&mut y, m, n));
            matmul_prepared(&prepared, &&owned.data[..], x, out, Epilogue::default());
            y
        });
        assert!(products.iter().all(|y| *y == products[0]), "{n}");
    }
    parallel::set_num_threads(before).unwrap();
}

#[test]
fn what_is_stored() {
    let w = [0.0, -0.0, 0.5, -1.0, 1.0, f64::NAN, f64::INFINITY, 1e-320];
    let owned = Owned::<i32>::new(&w, 2, 4, Keep::AtLeast(1.0));
    assert_eq!(owned.offsets.as_slice(), [0, 1, 4]);
    assert_eq!(owned.indices, [3, 0, 1, 2]);
    assert_eq!(Owned::<i32>::new(&w, 2, 4, Keep::AtLeast(0.0)).indices, [2, 3, 0, 1, 2, 3]);
}

#[test]
fn relu_keeps_nan() {
    let offsets = rows(&[0, 1, 2]);
    let pattern = Pattern::new(&[0i32, 0], &offsets, 1).unwrap();
    let a = Csr::<_, _>::new(pattern, &[f32::NAN, -1.0]).unwrap();
    let mut y = [0.0; 2];
    let epilogue = Epilogue { relu: true, ..Epilogue::default() };
    matmul(a, Matrix::row_major(&[1.0], 1, 1), MatrixMut::row_major(&mut y, 2, 1), epilogue);
    assert!(y[0].is_nan() && y[1] == 0.0);
}

#[test]
fn errors_say_what_is_wrong() {
    assert_eq!(Offsets::new::<i32>(&[], 0).unwrap_err(), CsrError::NoOffsets);
    assert_eq!(Offsets::new(&[0, 6, 3, 6], 6).unwrap_err(), CsrError::Decreasing(1));
    assert_eq!(Offsets::new(&[-1i32, 6], 6).unwrap_err(), CsrError::Start("-1".into()));
    assert_eq!(
        Offsets::new(&[0, 2], 1).unwrap_err().to_string(),
        "indptr must end at the number of indices, 1, got 2"
    );
    assert_eq!(
        Pattern::new(&[-1i32], &rows(&[0, 1]), 3).unwrap_err().to_string(),
        "indices must be at least 0 and below the number of columns, 3; indices[0] is -1"
    );
}
