//! Packed codes of any shape: integer products are exact, those of floats chains.
#![no_main]

use arbitrary::Arbitrary;
use compressrs_core::quantize::product::{
    Columns, Epilogue, Meaning, Output, Rows, Weights, multiply_at, multiply_float_at,
};
use compressrs_core::runtime::simd::Level;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    shape: (u8, u8, u8),
    group: u8,
    nibbles: bool,
    zero: u8,
    weights: Vec<u8>,
    x: Vec<i8>,
}

fn cycled<T: Copy + Default>(values: &[T], n: usize) -> Vec<T> {
    if values.is_empty() {
        return vec![T::default(); n];
    }
    values.iter().copied().cycle().take(n).collect()
}

fuzz_target!(|input: Input| {
    let (rows, channels) = (usize::from(input.shape.0 % 24), usize::from(input.shape.1 % 90));
    let (k, group) = (usize::from(input.shape.2), usize::from(input.group) + 1);
    let top = if input.nibbles { 15 } else { 255 };
    let w: Vec<u8> = cycled(&input.weights, channels * k).iter().map(|w| w & top).collect();
    let x = cycled(&input.x, rows * k);
    let zero = input.zero & top;
    let group = group.min(k.max(1));
    let columns = Columns::new(k, group, input.nibbles);
    let code = |n: usize, to: &mut [u8]| to.copy_from_slice(&w[n * k..(n + 1) * k]);
    let weights = Weights::pack(channels, columns, code, Meaning::Zero(zero), None).unwrap();
    for n in 0..channels.min(3) {
        let mut row = vec![0; k];
        code(n, &mut row);
        assert_eq!(row, w[n * k..(n + 1) * k]);
    }
    let value = |n: usize, j: usize| i32::from(w[n * k + j]) - i32::from(zero);
    let truth: Vec<i32> = (0..rows * channels)
        .map(|at| {
            let (i, n) = (at / channels, at % channels);
            (0..k).map(|j| i32::from(x[i * k + j]) * value(n, j)).sum()
        })
        .collect();
    let groups = k.div_ceil(group);
    let scales = vec![0.5f32; channels * groups];
    let scaled =
        Weights::pack(channels, columns, code, Meaning::Zero(zero), Some(&scales)).unwrap();
    let numbers: Vec<f32> = x.iter().map(|&x| f32::from(x)).collect();
    for level in Level::supported() {
        let mut y = vec![-1; rows * channels];
        let out = Output::Integers(&mut y, None);
        multiply_at(level, Rows::Signed(&x), rows, &weights, Epilogue::default(), out);
        assert_eq!(y, truth, "{}", level.name());
        // Sums of integers below 2^24, so that they are exact.
        let mut y = vec![-1.0; rows * channels];
        let out = Output::Numbers(&mut y);
        multiply_float_at(level, &numbers, rows, &scaled, Epilogue::default(), out);
        assert!(y.iter().zip(&truth).all(|(y, t)| *y == *t as f32 * 0.5), "{}", level.name());
    }
});
