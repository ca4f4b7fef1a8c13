//! Thresholds and masks against sorting.

use compressrs_core::element::Element;
use compressrs_core::prune::{apply_mask, find_nan, mask_below, mask_smallest, rank};
use half::{bf16, f16};
use proptest::prelude::*;

/// Element `k` of the sorted magnitudes.
fn sorted<E: Element>(arrays: &[Vec<E>]) -> Vec<u64> {
    let mut all: Vec<u64> = arrays.iter().flatten().map(|x| x.magnitude()).collect();
    all.sort_unstable();
    all
}

fn check_rank<E: Element + std::fmt::Debug>(arrays: &[Vec<E>]) {
    let slices: Vec<&[E]> = arrays.iter().map(Vec::as_slice).collect();
    let truth = sorted(arrays);
    for k in 0..truth.len() {
        let rank = rank(&slices, k).unwrap();
        assert_eq!(rank.value.magnitude(), truth[k], "k = {k}");
        assert_eq!(rank.smaller, truth.partition_point(|&x| x < truth[k]), "k = {k}");
    }
    assert_eq!(rank(&slices, truth.len()), None);
}

fn check_masks<E: Element>(arrays: &[Vec<E>]) {
    let slices: Vec<&[E]> = arrays.iter().map(Vec::as_slice).collect();
    let truth = sorted(arrays);
    for k in 0..=truth.len() {
        let mut masks: Vec<Vec<u8>> = arrays.iter().map(|a| vec![1; a.len()]).collect();
        let mut views: Vec<&mut [u8]> = masks.iter_mut().map(Vec::as_mut_slice).collect();
        mask_smallest(&slices, k, &mut views);
        let mut removed: Vec<u64> = arrays
            .iter()
            .flatten()
            .zip(masks.iter().flatten())
            .filter(|(_, keep)| **keep == 0)
            .map(|(x, _)| x.magnitude())
            .collect();
        removed.sort_unstable();
        assert_eq!(removed, truth[..k], "k = {k}");
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
        check_rank(&arrays);
        check_masks(&arrays);
    }

    #[test]
    fn every_storage_type(arrays in values()) {
        let widen = |x: &f32| f64::from(*x) * 1.000_000_1;
        check_rank(&arrays.iter().map(|a| a.iter().map(widen).collect()).collect::<Vec<_>>());
        let narrow = |x: &f32| f16::from_f32(*x);
        check_rank(&arrays.iter().map(|a| a.iter().map(narrow).collect()).collect::<Vec<_>>());
        let narrow = |x: &f32| bf16::from_f32(*x);
        check_rank(&arrays.iter().map(|a| a.iter().map(narrow).collect()).collect::<Vec<_>>());
    }
}

#[test]
fn blocks_of_a_long_array_are_counted_together() {
    let w: Vec<f32> = (0..3_000_000u32).map(|i| i.wrapping_mul(2_654_435_761) as f32).collect();
    let truth = sorted(std::slice::from_ref(&w));
    let (a, b) = w.split_at(1_234_567);
    for k in [0, 1, 1_500_000, 2_999_999] {
        assert_eq!(rank(&[a, &[], b], k).unwrap().value.magnitude(), truth[k]);
    }
}

/// Enough values that a sample brackets the rank, whatever they are like.
#[test]
fn samples_do_not_change_the_rank() {
    fn check<E: Element + std::fmt::Debug>(name: &str, value: impl Fn(u32) -> E) {
        let n = 1_100_003;
        let w: Vec<E> = (0..n).map(value).collect();
        let truth = sorted(std::slice::from_ref(&w));
        let n = n as usize;
        for k in [0, 1, 7, n / 1000, n / 3, n / 2, n / 10 * 9, n - 1000, n - 2, n - 1] {
            let rank = rank(&[&w[..100], &[], &w[100..]], k).unwrap();
            assert_eq!(rank.value.magnitude(), truth[k], "{name}, k = {k}");
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
    // Every 22nd or 23rd value is sampled: small ones only, none of the rest.
    check("a pattern", |i| if i % 11 == 0 { mixed(i) as f32 / 1e12 } else { mixed(i) as f32 });
    check("NaN", |i| if mixed(i) % 3 == 0 { f32::NAN } else { mixed(i) as f32 });
    check("infinite", |i| if mixed(i) % 3 == 0 { f32::NEG_INFINITY } else { i as f32 });
    check("subnormal", |i| f32::from_bits(mixed(i) % 1_000_000));
}

#[test]
fn the_threshold_itself_is_kept() {
    let w = [-2.0f32, -1.0, -0.5, 0.0, 0.5, 1.0, f32::INFINITY, f32::NAN];
    let mut mask = [9; 8];
    mask_below(&w, 1.0, &mut mask);
    assert_eq!(mask, [1, 1, 0, 0, 0, 1, 1, 1]);
    let mut w = w;
    apply_mask(&mut w, &mask);
    assert_eq!(w[..6], [-2.0, -1.0, 0.0, 0.0, 0.0, 1.0]);
}

#[test]
fn nan_is_found() {
    let clean = [1.0f64; 10];
    let mut dirty = clean;
    dirty[7] = f64::NAN;
    assert_eq!(find_nan(&[&clean, &dirty]), Some((1, 7)));
    assert_eq!(find_nan(&[&clean[..], &[]]), None);
}
