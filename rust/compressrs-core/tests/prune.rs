//! Order statistics, masks, scores and reconstruction against what is easy to read.

use compressrs_core::linalg::cholesky::Factor;
use compressrs_core::numeric::element::Element;
use compressrs_core::prune::{
    HasNan, Magnitude, Norm, Order, Target, Term, Unchanged, Value, accumulate_gram,
    accumulate_products, accumulate_squares, apply_mask, block_norms, expand_blocks, find_nan,
    mask_below, mask_n_of_m, mask_rows, mask_smallest, rank, reconstruct,
};
use half::{bf16, f16};
use proptest::prelude::*;

/// Element `k` of the sorted keys.
fn sorted<O: Order, E: Element>(arrays: &[Vec<E>]) -> Vec<u64> {
    let mut all: Vec<u64> = arrays.iter().flatten().map(|x| O::key(*x)).collect();
    all.sort_unstable();
    all
}

fn check_rank<O: Order, E: Element + std::fmt::Debug>(arrays: &[Vec<E>]) {
    let slices: Vec<&[E]> = arrays.iter().map(Vec::as_slice).collect();
    let truth = sorted::<O, E>(arrays);
    for k in 0..truth.len() {
        let rank = rank::<O, E>(&slices, k).unwrap().unwrap();
        assert_eq!(O::key(rank.value), truth[k], "k = {k}");
        assert_eq!(rank.smaller, truth.partition_point(|&x| x < truth[k]), "k = {k}");
    }
    assert_eq!(rank::<O, E>(&slices, truth.len()), Ok(None));
}

/// The mask of a stable sort, in which the first of equal ones come first.
fn removes_first<O: Order, E: Element>(w: &[E], k: usize) -> Vec<u8> {
    let mut places: Vec<usize> = (0..w.len()).collect();
    places.sort_by_key(|&i| O::key(w[i]));
    let mut mask = vec![1; w.len()];
    places[..k].iter().for_each(|&i| mask[i] = 0);
    mask
}

fn check_masks<O: Order, E: Element>(arrays: &[Vec<E>]) {
    let slices: Vec<&[E]> = arrays.iter().map(Vec::as_slice).collect();
    let all = arrays.concat();
    for k in 0..=all.len() {
        let mut masks: Vec<Vec<u8>> = arrays.iter().map(|a| vec![9; a.len()]).collect();
        let mut views: Vec<&mut [u8]> = masks.iter_mut().map(Vec::as_mut_slice).collect();
        mask_smallest::<O, E>(&slices, k, &mut views).unwrap();
        assert_eq!(masks.concat(), removes_first::<O, E>(&all, k), "k = {k}");
    }
}

fn values() -> impl Strategy<Value = Vec<Vec<f32>>> {
    // Few distinct values, so that ties are common, and any bit pattern but NaN.
    let value = prop_oneof![
        (-3i8..3).prop_map(f32::from),
        any::<u32>().prop_map(f32::from_bits).prop_filter("NaN", |x| !x.is_nan()),
    ];
    prop::collection::vec(prop::collection::vec(value, 0..20), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn order_statistics_and_masks_agree_with_sorting(arrays in values()) {
        check_rank::<Magnitude, f32>(&arrays);
        check_masks::<Magnitude, f32>(&arrays);
        check_rank::<Value, f32>(&arrays);
        check_masks::<Value, f32>(&arrays);
    }

    #[test]
    fn rows_and_groups_agree_with_sorting(
        values in prop::collection::vec((-3i8..3).prop_map(f64::from), 120),
        columns in prop::sample::select(vec![1usize, 2, 3, 4, 5, 8, 12, 40, 120]),
    ) {
        for k in 0..=columns {
            let mut mask = vec![9; values.len()];
            let mut groups = mask.clone();
            mask_rows::<Value, f64>(&values, columns, k, &mut mask).unwrap();
            mask_n_of_m::<Value, f64>(&values, columns - k, columns, &mut groups);
            let rows = values.chunks(columns);
            let truth: Vec<u8> = rows.flat_map(|row| removes_first::<Value, f64>(row, k)).collect();
            prop_assert_eq!(&mask, &truth);
            prop_assert_eq!(&groups, &truth);
        }
    }

    #[test]
    fn every_storage_type(arrays in values()) {
        let widen = |x: &f32| f64::from(*x) * 1.000_000_1;
        check_rank::<Value, f64>(&arrays.iter().map(|a| a.iter().map(widen).collect()).collect::<Vec<_>>());
        let narrow = |x: &f32| f16::from_f32(*x);
        check_rank::<Value, f16>(&arrays.iter().map(|a| a.iter().map(narrow).collect()).collect::<Vec<_>>());
        let narrow = |x: &f32| bf16::from_f32(*x);
        check_rank::<Value, bf16>(&arrays.iter().map(|a| a.iter().map(narrow).collect()).collect::<Vec<_>>());
    }
}

#[test]
fn blocks_of_a_long_array_are_counted_together() {
    let w: Vec<f32> = (0..3_000_000u32).map(|i| i.wrapping_mul(2_654_435_761) as f32).collect();
    let truth = sorted::<Magnitude, f32>(std::slice::from_ref(&w));
    let (a, b) = w.split_at(1_234_567);
    for k in [0, 1, 1_500_000, 2_999_999] {
        let rank = rank::<Magnitude, f32>(&[a, &[], b], k).unwrap().unwrap();
        assert_eq!(rank.value.magnitude(), truth[k]);
    }
}

/// Enough values that a sample brackets the rank, whatever they are like.
#[test]
fn samples_do_not_change_the_rank() {
    const N: u32 = 1_100_003;
    fn check<E: Element + std::fmt::Debug>(name: &str, value: impl Fn(u32) -> E) {
        let w: Vec<E> = (0..N).map(value).collect();
        check_order::<Magnitude, E>(name, &w);
        check_order::<Value, E>(name, &w);
    }
    fn check_order<O: Order, E: Element + std::fmt::Debug>(name: &str, w: &[E]) {
        let truth = sorted::<O, E>(&[w.to_vec()]);
        let n = w.len();
        for k in [0, 1, 7, n / 1000, n / 3, n / 2, n / 10 * 9, n - 1000, n - 2, n - 1] {
            let rank = rank::<O, E>(&[&w[..100], &[], &w[100..]], k).unwrap().unwrap();
            assert_eq!(O::key(rank.value), truth[k], "{name}, k = {k}");
            assert_eq!(rank.smaller, truth.partition_point(|&x| x < truth[k]), "{name}, k = {k}");
        }
    }
    let mixed = |i: u32| i.wrapping_mul(2_654_435_761);
    check("f32", |i| (mixed(i) as f32 - 2e9) / 1e9);
    check("f64", |i| f64::from(mixed(i)).ln());
    check("f16", |i| f16::from_f32((mixed(i) % 5000) as f32 / 100.0 - 25.0));
    check("all equal", |_| -1.5f32);
    check("half zeros", |i| if mixed(i) % 2 == 0 { 0.0 } else { mixed(i) as f32 });
    check("two values", |i| if i < 700_000 { 1.0f32 } else { 2.0 });
    check("ascending", |i| i as f32);
    check("descending", |i| -((2_000_000 - i) as f32));
    // Small where the sample looks, and nowhere else.
    let sample = 1 << 17;
    let sampled = |i: u32| {
        let next = (u64::from(i) * sample).div_ceil(u64::from(N));
        next * u64::from(N) / sample == u64::from(i)
    };
    check("a pattern", |i| if sampled(i) { mixed(i) as f32 / 1e12 } else { mixed(i) as f32 });
    check("infinite", |i| if mixed(i) % 3 == 0 { f32::NEG_INFINITY } else { i as f32 });
    check("subnormal", |i| f32::from_bits(mixed(i) % 1_000_000));
}

#[test]
fn the_threshold_itself_is_kept() {
    let mut w = [-2.0f32, -1.0, -0.5, 0.0, 0.5, 1.0, f32::INFINITY];
    let mut mask = [9; 7];
    mask_below::<Magnitude, f32>(&w, 1.0, &mut mask).unwrap();
    assert_eq!(mask, [1, 1, 0, 0, 0, 1, 1]);
    apply_mask(&mut w, &mask);
    assert_eq!(w[..6], [-2.0, -1.0, 0.0, 0.0, 0.0, 1.0]);
}

/// In short and long arrays, in whole units and in remainders.
#[test]
fn nan_is_found() {
    let clean = [1.0f64; 10];
    assert_eq!(find_nan(&[&clean[..], &[]]), None);
    for (n, at) in [(10, 7), (1_100_003, 0), (1_100_003, 777_777), (1_100_003, 1_100_002)] {
        let mut dirty: Vec<f64> = (0..n).map(f64::from).collect();
        dirty[at] = f64::NAN;
        let arrays: [&[f64]; 2] = [&clean, &dirty];
        assert_eq!(find_nan(&arrays), Some((1, at)));
        let n = n as usize;
        for k in [0, n / 2, n, n + 10] {
            assert_eq!(rank::<Magnitude, f64>(&arrays, k), Err(HasNan));
            let (mut a, mut b) = (vec![9; 10], vec![9; n]);
            let mut masks: [&mut [u8]; 2] = [&mut a, &mut b];
            assert_eq!(mask_smallest::<Value, f64>(&arrays, k, &mut masks), Err(HasNan));
            assert!(b.iter().all(|keep| *keep == 9));
        }
        let mut mask = vec![0; n];
        assert_eq!(mask_rows::<Value, f64>(&dirty, 1, 0, &mut mask), Err(HasNan));
        assert_eq!(mask_below::<Magnitude, f64>(&dirty, 1.0, &mut mask), Err(HasNan));
    }
}

#[test]
fn norms_of_blocks() {
    let w = [3.0f32, -4.0, 0.0, 1.0, 1.0, 1.0];
    let check = |block, norm, truth: &[f64]| {
        let mut out = vec![9.0; truth.len()];
        block_norms(&w, 3, block, norm, &mut out);
        assert_eq!(out, truth, "{block:?} {norm:?}");
    };
    check((1, 3), Norm::Sum, &[-1.0, 3.0]);
    check((1, 3), Norm::One, &[7.0, 3.0]);
    check((1, 3), Norm::Two, &[5.0, 3f64.sqrt()]);
    check((1, 3), Norm::Max, &[4.0, 1.0]);
    check((2, 1), Norm::Sum, &[4.0, -3.0, 1.0]);
    check((2, 3), Norm::One, &[10.0]);
    check((1, 1), Norm::Max, &[3.0, 4.0, 0.0, 1.0, 1.0, 1.0]);
    let mut out = [9.0];
    block_norms(&[1.0f64, f64::NAN, 0.0], 3, (1, 3), Norm::Max, &mut out);
    assert!(out[0].is_nan());
    block_norms::<f32>(&[], 0, (3, 1), Norm::Two, &mut []);
    // Long rows, many blocks either way, and masks of them.
    for (rows, columns, block) in
        [(6, 3000, (2, 100)), (600, 90, (3, 90)), (600, 90, (600, 1)), (4, 80_000, (4, 4))]
    {
        let w: Vec<f64> = (0..rows * columns).map(|i| (i * 7 % 13) as f64 - 6.0).collect();
        let (height, width) = block;
        let mut out = vec![9.0; w.len() / (height * width)];
        block_norms(&w, columns, block, Norm::One, &mut out);
        let mut truth = vec![0.0; out.len()];
        let place = |i: usize| i / columns / height * (columns / width) + i % columns / width;
        (0..w.len()).for_each(|i| truth[place(i)] += w[i].abs());
        assert_eq!(out, truth);
        let keep: Vec<u8> = (0..out.len()).map(|b| u8::from(b % 3 == 0)).collect();
        let mut mask = vec![9; w.len()];
        expand_blocks(&keep, block, columns, &mut mask);
        assert!((0..w.len()).all(|i| mask[i] == keep[place(i)]));
    }
}

#[test]
fn scores_add_up() {
    let (w, g) = ([2.0f32, -3.0], [0.5f32, 1.0]);
    for (form, truth) in
        [(Term::Product, [11.0, 7.0]), (Term::Opposite, [9.0, 13.0]), (Term::Square, [11.0, 19.0])]
    {
        let mut scores = [10.0f32; 2];
        accumulate_products(&mut scores, &w, &g, form);
        assert_eq!(scores, truth, "{form:?}");
    }
}

#[test]
fn sums_over_inputs() {
    for (rows, columns) in [(0, 3), (3, 0), (1, 1), (7, 5), (600, 3), (2000, 130)] {
        let x: Vec<f32> = (0..rows * columns).map(|i| (i * 7 % 13) as f32 - 6.0).collect();
        let (mut squares, mut gram) = (vec![1.0; columns], vec![1.0; columns * columns]);
        accumulate_squares(&x, &mut squares).unwrap();
        accumulate_gram(&x, columns, &mut gram).unwrap();
        for i in 0..columns {
            for j in (0..columns).step_by(7) {
                let at = |r: usize, c: usize| f64::from(x[r * columns + c]);
                let truth: f64 = (0..rows).map(|r| at(r, i) * at(r, j)).sum();
                assert_eq!(gram[i * columns + j], 1.0 + truth);
            }
            assert_eq!(squares[i], gram[i * columns + i]);
        }
    }
}

/// The columns that stay are those of least squares, given which go.
#[test]
fn what_stays_makes_up_for_what_goes() {
    let (rows, columns, samples) = (5, 12, 40);
    let mixed = |i: usize| ((i * i * 31 + i * 17) % 101) as f64 / 50.0 - 1.0;
    let x: Vec<f64> = (0..samples * columns).map(mixed).collect();
    let mut gram = vec![0.0; columns * columns];
    accumulate_gram(&x, columns, &mut gram).unwrap();
    let u = Factor::new(&gram, columns).unwrap().inverse();
    let before: Vec<f64> = (0..rows * columns).map(|i| mixed(i + 1000)).collect();
    for (target, block) in [
        (Target::Total(30), 4),
        (Target::Total(30), 12),
        (Target::Total(0), 5),
        (Target::Total(60), 5),
        (Target::NOfM { n: 2, m: 4 }, 8),
    ] {
        let (mut w, mut mask) = (before.clone(), vec![9; before.len()]);
        reconstruct(&mut w, columns, &u, target, block, &mut mask, &mut Unchanged).unwrap();
        let removed = mask.iter().filter(|keep| **keep == 0).count();
        assert_eq!(removed, if let Target::Total(k) = target { k } else { 30 });
        for (i, (w, before)) in w.chunks(columns).zip(before.chunks(columns)).enumerate() {
            let keep = &mask[i * columns..][..columns];
            assert!(w.iter().zip(keep).all(|(w, keep)| *keep == 1 || *w == 0.0));
            // What is lost is orthogonal to the inputs that stay and come after all that go.
            let last = keep.iter().rposition(|keep| *keep == 0).map_or(0, |j| j + 1);
            for j in last..columns {
                let slope: f64 =
                    (0..columns).map(|c| gram[j * columns + c] * (w[c] - before[c])).sum();
                assert!(slope.abs() < 1e-9, "{target:?}: {slope}");
            }
        }
    }
}
