//! Losses of distillation against their formulas in plain double precision, and their gradients
//! against differences of the formulas.

mod close;
mod features;
mod kd;
mod softmax;

use compressrs_core::numeric::element::{Element, Float};

/// Numbers in [-1, 1) that look random.
fn values(seed: u64, len: usize) -> Vec<f64> {
    let mut state = seed * 0x9E37_79B9 + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..16).for_each(|_| _ = next());
    (0..len).map(|_| next()).collect()
}

/// Numbers of a type, which are exact in it, and the same in double precision.
fn exact<T: Element>(x: &[f64]) -> (Vec<T>, Vec<f64>) {
    let x: Vec<T> = x.iter().map(|x| T::store(T::Compute::from_f64(*x))).collect();
    let wide = x.iter().map(|x| x.load().to_f64()).collect();
    (x, wide)
}

/// The derivative of `f` in each direction, by differences.
fn slopes(x: &[f64], step: f64, f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let at = |i: usize, to: f64| {
        let mut x = x.to_vec();
        x[i] = to;
        f(&x)
    };
    let difference = |(i, x): (usize, &f64)| {
        let (up, down) = (x + step, x - step);
        (at(i, up) - at(i, down)) / (up - down)
    };
    x.iter().enumerate().map(difference).collect()
}

/// Requires that a gradient is that of the formula, in units of its largest element.
#[track_caller]
fn assert_close<T: Element>(grad: &[T], wanted: &[f64], tolerance: f64, what: &str) {
    let largest = wanted.iter().fold(f64::MIN_POSITIVE, |a, x| a.max(x.abs()));
    for (i, (grad, wanted)) in grad.iter().zip(wanted).enumerate() {
        let grad = grad.load().to_f64();
        let close = (grad - wanted).abs() <= tolerance * largest + 1e-15;
        assert!(close, "{what}, element {i}: {grad} instead of {wanted}");
    }
}
