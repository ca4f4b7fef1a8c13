//! Products of codes against loops over 64-bit integers, at every level of this machine.

use compressrs_core::quantize::product::{
    Activation, Columns, Epilogue, Meaning, Output, Rows, Weights, multiply_at, multiply_float_at,
};
use compressrs_core::runtime::simd::Level;

/// Numbers that repeat late.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as u32
    }

    /// A byte: any, or one of the extremes.
    fn byte(&mut self, extremes: &[u8]) -> u8 {
        let n = self.next();
        if n.is_multiple_of(3) {
            (n >> 8) as u8
        } else {
            extremes[(n >> 8) as usize % extremes.len()]
        }
    }

    fn float(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 31) as f32 * 2.0 - 1.0
    }
}

/// Rows, channels, columns, columns of a group.
const SHAPES: [(usize, usize, usize, usize); 17] = [
    (0, 5, 7, 7),
    (3, 0, 7, 7),
    (2, 3, 0, 5),
    (1, 1, 1, 1),
    (1, 16, 4, 4),
    (2, 17, 33, 33),
    (3, 64, 64, 32),
    (4, 65, 100, 32),
    (5, 100, 257, 64),
    (7, 130, 100, 7),
    (8, 63, 1000, 1000),
    (9, 48, 384, 128),
    (66, 70, 300, 300),
    (67, 80, 520, 36),
    (130, 20, 700, 700),
    (1, 200, 3000, 128),
    (194, 40, 100, 32),
];

#[test]
fn integers_are_exact_at_every_level() {
    let mut random = Random(1);
    for (rows, channels, k, group) in SHAPES {
        for nibbles in [false, true] {
            let top = if nibbles { 15 } else { 255 };
            let w: Vec<u8> =
                (0..channels * k).map(|_| random.byte(&[0, top, top, 128]) & top).collect();
            let x: Vec<i8> =
                (0..rows * k).map(|_| random.byte(&[128, 128, 127, 129]).cast_signed()).collect();
            let zero = random.byte(&[0, top, 128]) & top;
            let add: Vec<i32> = (0..channels).map(|_| random.next() as i32 >> 8).collect();
            let truth: Vec<i32> = (0..rows * channels)
                .map(|at| {
                    let (i, n) = (at / channels, at % channels);
                    let dot = |j: usize| {
                        i64::from(x[i * k + j]) * (i64::from(w[n * k + j]) - i64::from(zero))
                    };
                    ((0..k).map(dot).sum::<i64>() + i64::from(add[n])).try_into().unwrap()
                })
                .collect();
            let columns = Columns::new(k, group, nibbles);
            let code = |n: usize, to: &mut [u8]| to.copy_from_slice(&w[n * k..(n + 1) * k]);
            let weights =
                Weights::pack(channels, columns, code, Meaning::Zero(zero), None).unwrap();
            for level in Level::supported() {
                let mut y = vec![-1; rows * channels];
                let out = Output::Integers(&mut y, Some(&add));
                multiply_at(level, Rows::Signed(&x), rows, &weights, Epilogue::default(), out);
                assert_eq!(y, truth, "{level:?} {rows} {channels} {k} {group} {nibbles}");
                let shifted: Vec<u8> = x.iter().map(|x| x.cast_unsigned() ^ 128).collect();
                y.fill(-1);
                let out = Output::Integers(&mut y, Some(&add));
                multiply_at(
                    level,
                    Rows::Unsigned(&shifted),
                    rows,
                    &weights,
                    Epilogue::default(),
                    out,
                );
                assert_eq!(y, truth, "{level:?} {rows} {channels} {k} {group} {nibbles}");
            }
        }
    }
}

#[test]
fn scaled_sums_are_the_formula_at_every_level() {
    let mut random = Random(2);
    for (rows, channels, k, group) in SHAPES {
        for nibbles in [false, true] {
            let top = if nibbles { 15 } else { 255 };
            let groups = k.div_ceil(group);
            let w: Vec<u8> = (0..channels * k).map(|_| random.byte(&[0, top, top]) & top).collect();
            let zeros: Vec<u8> =
                (0..channels * groups).map(|_| random.byte(&[0, top]) & top).collect();
            let scales: Vec<f32> = (0..channels * groups).map(|_| random.float()).collect();
            let bias: Vec<f32> = (0..channels).map(|_| random.float() * 100.0).collect();
            let mut x: Vec<f32> = (0..rows * k).map(|_| random.float()).collect();
            if rows > 2 && k > 0 {
                x[k..2 * k].fill(0.0);
                x[2 * k] = f32::NAN;
            }
            let of_rows: Vec<f32> = (0..rows)
                .map(|i| {
                    let row = &x[i * k..(i + 1) * k];
                    let is_nan = row.iter().any(|x| x.is_nan());
                    let largest = row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                    if is_nan { f32::NAN } else { largest / 127.0 }
                })
                .collect();
            let truth: Vec<f32> = (0..rows * channels)
                .map(|at| {
                    let (i, n) = (at / channels, at % channels);
                    let mut sum = 0.0f32;
                    for g in 0..groups {
                        let dot: i64 = (g * group..k.min((g + 1) * group))
                            .map(|j| {
                                let code = match of_rows[i] {
                                    s if s > 0.0 => (x[i * k + j] / s).round_ties_even() as i64,
                                    _ => 0,
                                };
                                let zero = zeros[n * groups + g];
                                code * (i64::from(w[n * k + j]) - i64::from(zero))
                            })
                            .sum();
                        sum += dot as f32 * scales[n * groups + g];
                    }
                    let y = sum * of_rows[i] + bias[n];
                    if y < 0.0 { 0.0 } else { y }
                })
                .collect();
            let columns = Columns::new(k, group, nibbles);
            let code = |n: usize, to: &mut [u8]| to.copy_from_slice(&w[n * k..(n + 1) * k]);
            let meaning = Meaning::Zeros(&zeros);
            let weights = Weights::pack(channels, columns, code, meaning, Some(&scales)).unwrap();
            for level in Level::supported() {
                let mut y = vec![-1.0; rows * channels];
                let epilogue = Epilogue { bias: Some(&bias), activation: Activation::Relu };
                let x = Rows::Numbers(&x);
                multiply_at(level, x, rows, &weights, epilogue, Output::Numbers(&mut y));
                let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
                assert!(
                    bits(&y) == bits(&truth)
                        || y.iter().zip(&truth).all(|(a, b)| a == b || a.is_nan() && b.is_nan()),
                    "{level:?} {rows} {channels} {k} {group} {nibbles}"
                );
            }
        }
    }
}

#[test]
fn numbers_by_codes_are_chains_at_every_level() {
    let mut random = Random(3);
    for (rows, channels, k, group) in SHAPES {
        for (nibbles, table) in [(false, false), (true, false), (true, true)] {
            let top = if nibbles { 15 } else { 255 };
            let groups = k.div_ceil(group);
            let w: Vec<u8> = (0..channels * k).map(|_| random.byte(&[0, top]) & top).collect();
            let zeros: Vec<u8> =
                (0..channels * groups).map(|_| random.byte(&[0, top]) & top).collect();
            let levels: [f32; 16] = std::array::from_fn(|_| random.float());
            let scales: Vec<f32> = (0..channels * groups).map(|_| random.float()).collect();
            let x: Vec<f32> = (0..rows * k).map(|_| random.float()).collect();
            let meaning = if table { Meaning::Table(levels) } else { Meaning::Zeros(&zeros) };
            let truth: Vec<f32> = (0..rows * channels)
                .map(|at| {
                    let (i, n) = (at / channels, at % channels);
                    (0..groups).fold(0.0, |sum, g| {
                        let zero = i32::from(zeros[n * groups + g]);
                        let dot = (g * group..k.min((g + 1) * group)).fold(0.0f32, |dot, j| {
                            let code = w[n * k + j];
                            let w = if table {
                                levels[usize::from(code)]
                            } else {
                                (i32::from(code) - zero) as f32
                            };
                            x[i * k + j].mul_add(w, dot)
                        });
                        sum + dot * scales[n * groups + g]
                    })
                })
                .collect();
            let columns = Columns::new(k, group, nibbles);
            let code = |n: usize, to: &mut [u8]| to.copy_from_slice(&w[n * k..(n + 1) * k]);
            let weights = Weights::pack(channels, columns, code, meaning, Some(&scales)).unwrap();
            for level in Level::supported() {
                let mut y = vec![-1.0; rows * channels];
                let out = Output::Numbers(&mut y);
                multiply_float_at(level, &x, rows, &weights, Epilogue::default(), out);
                assert_eq!(y, truth, "{level:?} {rows} {channels} {k} {group} {nibbles} {table}");
            }
        }
    }
}
