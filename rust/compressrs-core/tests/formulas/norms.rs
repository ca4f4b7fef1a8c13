//! Norms of gradients, also where powers are beyond the range of numbers.

use compressrs_core::optim::{
    Gradient, Norm, PARTIAL_SUM_ELEMENTS, Reduction, Values, combine, find_beyond, mask_bytes,
    norm, norm_by, partial_reductions, scale,
};

use crate::values;

fn gradient<'a>(values: &'a [f64], mask: Option<&'a [u8]>) -> Gradient<'a> {
    Gradient { values: Values::F64(values), mask }
}

/// The norm of numbers in units of the largest.
fn naive(x: impl Iterator<Item = f64> + Clone, order: f64) -> f64 {
    let largest = x.clone().fold(0.0, |a: f64, x| a.max(x.abs()));
    if largest == 0.0 || order == f64::INFINITY {
        return largest;
    }
    largest * x.map(|x| (x / largest).abs().powf(order)).sum::<f64>().powf(1.0 / order)
}

#[test]
fn of_any_order_and_size() {
    let x = values(5, 100);
    let mut mask = vec![0u8; mask_bytes(x.len())];
    (0..x.len()).filter(|i| i % 3 != 1).for_each(|i| mask[i / 8] |= 1 << (i % 8));
    let kept = |x: &[f64]| -> Vec<f64> {
        x.iter().enumerate().filter(|(i, _)| i % 3 != 1).map(|(_, x)| *x).collect()
    };
    for size in [1.0, 1e-3, 1e170, 1e-170, 1e300, 1e-300] {
        let x: Vec<f64> = x.iter().map(|x| size * x).collect();
        for order in [0.5, 1.0, 2.0, 3.5, 40.0, 1e5, f64::INFINITY] {
            if order == 0.5 && !(1e-200..1e200).contains(&size) {
                continue;
            }
            let whole = norm(&[gradient(&x, None)], order);
            let some = norm(&[gradient(&x, Some(&mask))], order);
            let two = norm(&[gradient(&x[..30], None), gradient(&x[30..], None)], order);
            let truths = [
                naive(x.iter().copied(), order),
                naive(kept(&x).into_iter(), order),
                naive(x.iter().copied(), order),
            ];
            for (norm, truth) in [whole, some, two].into_iter().zip(truths) {
                let close = (norm.get() / truth - 1.0).abs() < 1e-10;
                assert!(close, "order {order}, size {size}: {norm:?} instead of {truth}");
                // A unit only where it is needed.
                assert!(norm.unit == 1.0 || size != 1.0 || order > 1e4, "{norm:?}");
                assert_eq!(norm.unit.log2().fract(), 0.0);
            }
        }
    }
    // Below this sum, smaller squares would lose their digits.
    assert_eq!(norm(&[gradient(&[1e-140], None)], 2.0).unit, 1.0);
    assert_ne!(norm(&[gradient(&[1e-150], None)], 2.0).unit, 1.0);
    for order in [1.0, 2.0, 5.0] {
        assert_eq!(norm(&[gradient(&[0.0; 3], None)], order).get(), 0.0);
        assert_eq!(norm(&[gradient(&[f64::INFINITY, 1.0], None)], order).get(), f64::INFINITY);
        assert!(norm(&[gradient(&[f64::NAN, f64::INFINITY], None)], order).get().is_nan());
        // Beyond the range, but not in units.
        let beyond = norm(&[gradient(&[f64::MAX; 16], None)], order);
        assert!(beyond.value.is_finite() && beyond.get() == f64::INFINITY, "{beyond:?}");
    }
}

#[test]
fn reductions_are_asked_for_only_when_needed() {
    let asked = |x: &[f64], order| {
        let mut asked = Vec::new();
        let found = norm_by(order, |reduction| {
            asked.push(reduction);
            Ok::<_, ()>(match reduction {
                Reduction::Largest => x.iter().fold(0.0, |a: f64, x| a.max(x.abs())),
                Reduction::Powers { order, unit } => {
                    x.iter().map(|x| (x / unit).abs().powf(order)).sum()
                }
            })
        });
        (asked, found.unwrap().get())
    };
    let powers = |unit| Reduction::Powers { order: 2.0, unit };
    assert_eq!(asked(&[3.0, 4.0], 2.0), (vec![powers(1.0)], 5.0));
    assert_eq!(asked(&[3.0, 4.0], f64::INFINITY), (vec![Reduction::Largest], 4.0));
    let (two, large) = (2f64, 2f64.powi(600));
    let (reductions, found) = asked(&[3.0 * large, 4.0 * large], 2.0);
    let all = [powers(1.0), Reduction::Largest, powers(4.0 * large)];
    assert_eq!((&reductions[..], found), (&all[..], 5.0 * large));
    assert_eq!(asked(&[0.0], 2.0).0, [powers(1.0), Reduction::Largest]);
    // Powers of numbers between 1 and 2 overflow as well.
    let (reductions, found) = asked(&[1.5, 1.5], 1e4);
    assert_eq!(reductions.len(), 4);
    assert!((found - 1.5 * two.powf(1e-4)).abs() < 1e-12);
    assert_eq!(norm_by(2.0, |_| Err::<f64, _>("lost")), Err("lost"));
}

#[test]
fn clipping() {
    let plain = Norm { value: 5.0, unit: 1.0 };
    assert!((plain.clip(1.0, 1.0) - 1.0 / (5.0 + 1e-6)).abs() < 1e-15);
    assert!((plain.clip(-0.5, 1.0) - 1.0 / (2.5 + 1e-6)).abs() < 1e-15);
    assert_eq!(plain.clip(1.0, 7.0), 1.0);
    assert!(Norm { value: f64::NAN, unit: 1.0 }.clip(1.0, 7.0).is_nan());
    let large = Norm { value: 5.0, unit: 2f64.powi(1000) };
    assert!((large.clip(1.0, 2f64.powi(1000)) - 0.2).abs() < 1e-12);
    let small = Norm { value: 5.0, unit: 2f64.powi(-10) };
    let wanted = 1e-3 / (5.0 * 2f64.powi(-10) + 1e-6);
    assert!((small.clip(1.0, 1e-3) - wanted).abs() < 1e-12);
    assert_eq!(large.get(), 5.0 * 2f64.powi(1000));
}

#[test]
fn partial_reductions_combine_to_the_whole() {
    let x = values(6, 2 * PARTIAL_SUM_ELEMENTS + 77);
    let mut mask = vec![0u8; mask_bytes(x.len())];
    (0..x.len()).filter(|i| i % 3 != 1).for_each(|i| mask[i / 8] |= 1 << (i % 8));
    for mask in [None, Some(&mask[..])] {
        let gradient = gradient(&x, mask);
        for order in [1.0, 2.0, 3.0, f64::INFINITY] {
            let whole = norm(&[gradient], order);
            let counted = x.iter().enumerate().filter(|(i, _)| mask.is_none() || i % 3 != 1);
            let truth = naive(counted.map(|(_, x)| *x), order);
            assert!((whole.get() / truth - 1.0).abs() < 1e-10);
            let parts = norm_by(order, |reduction| {
                let mut parts = vec![f64::NAN; 3];
                partial_reductions(&gradient, reduction, &mut parts);
                assert!(parts.iter().all(|part| *part > 0.0));
                Ok::<_, ()>(combine(&[&parts], reduction))
            });
            assert_eq!(parts, Ok(whole));
        }
    }
    let largest = [2.0, f64::NAN, 3.0];
    assert!(combine(&[&largest], Reduction::Largest).is_nan());
    assert_eq!(combine(&[&[2.0, 4.0], &[3.0]], Reduction::Largest), 4.0);
    assert_eq!(combine(&[&[2.0, 4.0], &[3.0]], Reduction::Powers { order: 2.0, unit: 1.0 }), 9.0);
    assert_eq!(combine(&[], Reduction::Largest), 0.0);
}

#[test]
fn what_is_beyond_a_limit() {
    let (small, large) = ([1.0, -2.0], [1.0, -3.0]);
    let both = [gradient(&small, None), gradient(&large, None)];
    assert_eq!(find_beyond(&both, |_| 3.0), None);
    assert_eq!(find_beyond(&both, |_| 2.0), Some(1));
    assert_eq!(find_beyond(&both, |i| if i == 0 { 1.5 } else { 9.0 }), Some(0));
}

#[test]
fn factors_beyond_the_range_of_the_type() {
    let mut x = [1e30f32, -2e-30];
    scale(&mut x[..1], 1e-60);
    scale(&mut x[1..], 1e60);
    assert_eq!(x, [1e-30, -2e30]);
    scale(&mut x, 0.0);
    assert_eq!(x, [0.0, 0.0]);
    // In the type itself where it can be.
    let (mut x, before) = (values(7, 50), values(7, 50));
    scale(&mut x, 0.1);
    assert!(x.iter().zip(&before).all(|(x, before)| *x == 0.1 * before));
    let mut single: Vec<f32> = before.iter().map(|x| *x as f32).collect();
    scale(&mut single, 0.1);
    assert!(single.iter().zip(&before).all(|(x, before)| *x == 0.1f32 * *before as f32));
    let mut x = [f32::MAX];
    scale(&mut x, 1e-44);
    assert!((f64::from(x[0]) / (f64::from(f32::MAX) * 1e-44) - 1.0).abs() < 1e-6);
}
