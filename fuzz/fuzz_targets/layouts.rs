//! Quantization in layouts of any shape: codes in range, numbers within half a step.
#![no_main]

use arbitrary::Arbitrary;
use compressrs_core::quantize::{
    Affine, Fp8, Grid, Layout, Levels, NF4, dequantize, quantize, quantize_to_range, within,
};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    shape: (u8, u8),
    block: (u8, u8),
    bits: u8,
    signed: bool,
    symmetric: bool,
    kind: u8,
    values: Vec<f32>,
}

/// Quantizes and dequantizes; whether the values are finite.
fn there_and_back<G: Grid<f32>>(x: &[f32], layout: Layout, grid: G, tolerance: Option<f32>) {
    let blocks = layout.blocks();
    let (mut scale, mut zero) = (vec![0.0; blocks], vec![0; blocks]);
    let mut codes = vec![0; x.len()];
    let finite = x.iter().all(|x| x.is_finite());
    let done = quantize_to_range(x, layout, grid, &mut scale, &mut zero, &mut codes);
    assert_eq!(done.is_ok(), finite);
    if !finite {
        return;
    }
    assert!(scale.iter().all(|s| s.is_normal() && *s > 0.0));
    assert!(within::<f32, G>(grid, &codes));
    let mut again = vec![0; x.len()];
    quantize(x, layout, grid, &scale, &zero, &mut again);
    assert!(again == codes, "in one pass and in two");
    let mut y = vec![f32::NAN; x.len()];
    dequantize(&codes, layout, grid, &scale, &zero, &mut y);
    assert!(y.iter().all(|y| y.is_finite()));
    let Some(tolerance) = tolerance else { return };
    for chunk in layout.iter(0..layout.chunks()) {
        let step = scale[chunk.block];
        for i in chunk.range {
            let error = (f64::from(x[i]) - f64::from(y[i])).abs();
            let rounding =
                4.0 * f64::from(f32::EPSILON) * f64::from(x[i].abs()).max(f64::from(step));
            assert!(
                error <= f64::from(tolerance) * f64::from(step) + rounding * 256.0,
                "{} became {} by steps of {step}",
                x[i],
                y[i]
            );
        }
    }
}

/// Any codes stand for finite numbers or are refused.
fn any_codes<G: Grid<f32>>(codes: &[u8], layout: Layout, grid: G) {
    if within::<f32, G>(grid, codes) {
        let blocks = layout.blocks();
        let mut x = vec![f32::NAN; codes.len()];
        dequantize(codes, layout, grid, &vec![1.0; blocks], &vec![0; blocks], &mut x);
        assert!(x.iter().all(|x| x.is_finite()));
    }
}

fuzz_target!(|input: Input| {
    let (rows, columns) = (usize::from(input.shape.0 % 20), usize::from(input.shape.1));
    let (height, width) = (usize::from(input.block.0 % 20) + 1, usize::from(input.block.1) + 1);
    let layout = Layout::new(rows, columns, height, width);
    let n = layout.elements();
    let values = if input.values.is_empty() { &[0.0][..] } else { &input.values };
    let x: Vec<f32> = values.iter().copied().cycle().take(n).collect();
    let codes: Vec<u8> = x.iter().map(|x| x.to_bits() as u8).collect();
    let affine = Affine::new(u32::from(input.bits % 7) + 2, input.signed, input.symmetric);
    match input.kind % 3 {
        0 => {
            there_and_back(&x, layout, affine, Some(1.01));
            any_codes(&codes, layout, affine);
        }
        1 => {
            there_and_back(&x, layout, Levels::new(&NF4), None);
            any_codes(&codes, layout, Levels::new(&NF4));
        }
        _ => {
            there_and_back(&x, layout, Fp8::<3, 0x7E>, None);
            any_codes(&codes, layout, Fp8::<3, 0x7E>);
        }
    }
});
