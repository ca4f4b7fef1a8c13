//! The driver: whatever the split, the mask, the storage type or the allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Mutex;

use compressrs_core::numeric::element::Element;
use compressrs_core::optim::{
    Adafactor, Adam, BLOCK, Codes, Gradient, Halves, Lamb, Lion, MAX_STATES, Moments, RmsProp,
    Rounding, Rule, Scalars, Sgd, Shampoo, StochasticRounding, Tensor, Values, Weights, accumulate,
    clamp, find_beyond, lerp, mask_bytes, norm, scale, step,
};
use compressrs_core::runtime::parallel::{self, SharedMut};
use half::{bf16, f16};
use proptest::prelude::*;

/// Counts what a thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: all work is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        BYTES.with(|n| n.set(n.get() + layout.size()));
        // SAFETY: the caller keeps to the contract of `GlobalAlloc::alloc`, which `System` shares.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `System` allocated it, and the caller keeps to the contract of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Serializes tests that change the number of threads.
static THREADS: Mutex<()> = Mutex::new(());

fn rules() -> Vec<Box<dyn Rule>> {
    let adam = Adam {
        lr: 0.1,
        betas: [0.9, 0.99],
        weight_decay: 0.1,
        decoupled_weight_decay: true,
        ..Default::default()
    };
    vec![
        Box::new(Sgd { lr: 0.1, weight_decay: 0.1, ..Default::default() }),
        Box::new(Sgd { lr: 0.1, momentum: 0.9, dampening: 0.1, ..Default::default() }),
        Box::new(adam),
        Box::new(Adam { amsgrad: true, ..adam }),
        Box::new(RmsProp {
            lr: 0.1,
            alpha: 0.9,
            momentum: 0.5,
            centered: true,
            ..Default::default()
        }),
        Box::new(Lion { lr: 0.1, weight_decay: 0.0, ..Default::default() }),
    ]
}

/// Parameters with their gradients, states and masks.
#[derive(Clone)]
struct Owned {
    param: Vec<f32>,
    grad: Vec<f32>,
    states: [Vec<f32>; MAX_STATES],
    mask: Option<Vec<u8>>,
}

impl Owned {
    fn new(rule: &dyn Rule, len: usize, value: impl Fn(usize) -> f32) -> Self {
        let count = rule.states(1).len();
        let state = |s| if s < count { vec![0.0; len] } else { vec![] };
        Owned {
            param: (0..len).map(&value).collect(),
            grad: (0..len).map(|i| value(7 * i + 3)).collect(),
            states: std::array::from_fn(state),
            mask: None,
        }
    }

    fn tensor(&mut self, rule: &dyn Rule, t: u64) -> Tensor<'_, f32> {
        let shape = [self.param.len()];
        let states = self.states.each_mut().map(|s| Moments::from(s.as_mut_slice()));
        let update = rule.at(t, &mut Scalars::default());
        Tensor::new(update, &shape, self.param.as_mut_slice(), self.grad.as_slice(), states)
            .masked(self.mask.as_deref())
    }
}

fn value(i: usize) -> f32 {
    ((i as u64 * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0
}

fn masks() -> impl Strategy<Value = Vec<(usize, Option<u64>)>> {
    prop::collection::vec((0usize..200, prop::option::of(any::<u64>())), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Tensors together are tensors one by one, element by element.
    #[test]
    fn tensors_do_not_touch_each_other(tensors in masks()) {
        for rule in rules() {
            let rule = &*rule;
            let mut together: Vec<Owned> = tensors
                .iter()
                .map(|&(len, seed)| {
                    let mut owned = Owned::new(rule, len, value);
                    owned.mask = seed.map(|seed| {
                        (0..mask_bytes(len)).map(|i| (seed.rotate_left(i as u32 * 11)) as u8).collect()
                    });
                    owned
                })
                .collect();
            let before = together.clone();
            step(&mut together.iter_mut().map(|o| o.tensor(rule, 3)).collect::<Vec<_>>());
            for (after, before) in together.iter().zip(&before) {
                for i in 0..before.param.len() {
                    let kept = before.mask.as_ref().is_none_or(|m| m[i / 8] >> (i % 8) & 1 != 0);
                    let mut one = Owned::new(rule, 1, |_| 0.0);
                    one.param[0] = before.param[i];
                    one.grad[0] = before.grad[i];
                    step(&mut [one.tensor(rule, 3)]);
                    prop_assert_eq!(after.param[i], if kept { one.param[0] } else { 0.0 });
                    for (after, one) in after.states.iter().zip(&one.states) {
                        if let Some(one) = one.first() {
                            prop_assert_eq!(after[i], if kept { *one } else { 0.0 });
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn norms_agree_with_sums(len in 0usize..3000, split in 0usize..3000) {
        let x: Vec<f64> = (0..len).map(|i| f64::from(value(i)) * 1e3).collect();
        let (a, b) = x.split_at(split.min(len));
        let parts = [a, b].map(|values| Gradient { values: values.into(), mask: None });
        let sum = |order: f64| x.iter().map(|x| x.abs().powf(order)).sum::<f64>().powf(1.0 / order);
        for order in [1.0, 2.0, 3.5] {
            let (got, truth) = (norm(&parts, order).get(), sum(order));
            prop_assert!((got - truth).abs() <= 1e-12 * truth, "{} {}", got, truth);
        }
        let largest = x.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        prop_assert_eq!(norm(&parts, f64::INFINITY).get(), largest);
        prop_assert_eq!(find_beyond(&parts, |_| f64::MAX), None);
    }
}

/// The formulas serve half precision as they are: the result is that of single
/// precision, rounded.
#[test]
#[expect(clippy::redundant_closure, reason = "the variants are for one lifetime only")]
fn half_precision_needs_no_formula() {
    fn check<H: Element<Compute = f32> + std::fmt::Debug>(
        weights: impl Fn(Halves<'_, H>) -> Weights<'_, f32>,
    ) where
        for<'a> &'a [H]: Into<Values<'a>>,
    {
        let lamb = Lamb { lr: 0.1, betas: [0.9, 0.99], weight_decay: 0.1, ..Default::default() };
        let cautious = Adam { lr: 0.1, cautious: true, ..Default::default() };
        let of_tensors: [Box<dyn Rule>; 4] = [
            Box::new(lamb),
            Box::new(Adafactor { lr: 0.1, ..Default::default() }),
            Box::new(Shampoo { lr: 0.1, ..Default::default() }),
            Box::new(cautious),
        ];
        for rule in rules().into_iter().chain(of_tensors) {
            let rule = &*rule;
            // More than a block, and not a whole number of them.
            let mut single = Owned::new(rule, 2 * BLOCK + 3, |i| H::store(value(i)).load());
            let mut half: Vec<H> = single.param.iter().map(|&x| H::store(x)).collect();
            let grad: Vec<H> = single.grad.iter().map(|&x| H::store(x)).collect();
            let mut states = single.states.clone();
            step(&mut [single.tensor(rule, 1)]);
            let halves = Halves { values: SharedMut::new(&mut half), rounding: Rounding::Nearest };
            step(&mut [Tensor::new(
                rule.at(1, &mut Scalars::default()),
                &[grad.len()],
                weights(halves),
                grad.as_slice(),
                states.each_mut().map(|s| Moments::from(s.as_mut_slice())),
            )]);
            let rounded: Vec<H> = single.param.iter().map(|&x| H::store(x)).collect();
            assert_eq!(half, rounded);
            assert_eq!(states, single.states);
        }
    }
    check::<f16>(|halves| Weights::F16(halves));
    check::<bf16>(|halves| Weights::Bf16(halves));
}

/// What is cut off a weight is kept, and so are weights in single precision; a weight that was
/// written to meanwhile counts.
#[test]
fn small_steps_are_not_lost() {
    let rule = Sgd { lr: 1.0, ..Default::default() };
    let (before, grad) = ([1.0f32, -3.0], [1e-4f32, -1e-4]);
    for kahan in [false, true] {
        let mut param = before.map(bf16::from_f32);
        let (mut rest, mut master) = ([bf16::ZERO; 2], before);
        let mut stepped = |param: &mut [bf16; 2], t| {
            let rounding = match kahan {
                true => Rounding::Kahan(SharedMut::new(&mut rest)),
                false => Rounding::Master(SharedMut::new(&mut master)),
            };
            let halves = Halves { values: SharedMut::new(param), rounding };
            let weights = Weights::<f32>::Bf16(halves);
            let update = rule.at(t, &mut Scalars::default());
            let tensor = Tensor::new(update, &[2], weights, &grad[..], Default::default());
            step(&mut [tensor.rounded_stochastically(StochasticRounding::new(1, 2, t))]);
        };
        for t in 1..=200 {
            stepped(&mut param, t);
        }
        // Each step is far below half of the last place; all of them are not.
        let close = |x: bf16, wanted: f32| {
            assert!((x.to_f32() - wanted).abs() < 0.006 * wanted.abs(), "{x} {wanted} {kahan}");
        };
        close(param[0], 0.98);
        close(param[1], -2.98);
        assert!(param[0] != bf16::ONE);
        param[0] = bf16::from_f32(7.0);
        (0..2).for_each(|t| stepped(&mut param, 300 + t));
        close(param[0], 7.0);
        if !kahan {
            assert!((master[0] - (7.0 - 2e-4)).abs() < 1e-5);
            assert!((master[1] - (-3.0 + 202.0 * 1e-4)).abs() < 1e-4);
        }
    }
    // What overflows has no rest.
    let (mut param, mut rest) = ([f16::MAX], [f16::ZERO]);
    let weights = Halves {
        values: SharedMut::new(&mut param),
        rounding: Rounding::Kahan(SharedMut::new(&mut rest)),
    };
    let update = rule.at(1, &mut Scalars::default());
    step(&mut [Tensor::new(
        update,
        &[1],
        Weights::<f32>::F16(weights),
        &[-1e6f32][..],
        Default::default(),
    )]);
    assert_eq!((param, rest), ([f16::INFINITY], [f16::ZERO]));
}

fn coded<'a>(codes: &'a mut [u8], scales: &'a mut [f32], divisor: bool) -> Codes<'a> {
    Codes { codes: SharedMut::new(codes), scales: SharedMut::new(scales), divisor }
}

/// A step with moments in 8 bits is one with the decoded moments, encoded.
#[test]
fn moments_in_8_bits_need_no_formula() {
    let rule = Adam { lr: 0.1, betas: [0.9, 0.99], ..Default::default() };
    let len = 2 * BLOCK + 3;
    let mut full = Owned::new(&rule, len, value);
    let (mut m, mut v) = (vec![0; len], vec![0; len]);
    let (mut m_scales, mut v_scales) = (vec![0.0; 3], vec![0.0; 3]);
    let mut param = full.param.clone();
    for t in 1..5 {
        coded(&mut m, &mut m_scales, false).decode(&mut full.states[0]);
        coded(&mut v, &mut v_scales, true).decode(&mut full.states[1]);
        step(&mut [full.tensor(&rule, t)]);
        let mut states: [Moments<'_, f32>; MAX_STATES] = Default::default();
        states[0] = Moments::Coded(coded(&mut m, &mut m_scales, false));
        states[1] = Moments::Coded(coded(&mut v, &mut v_scales, true));
        step(&mut [Tensor::new(
            rule.at(t, &mut Scalars::default()),
            &[len],
            param.as_mut_slice(),
            full.grad.as_slice(),
            states,
        )
        .rounded_stochastically(StochasticRounding::new(0, 0, t))]);
        assert_eq!(param, full.param, "step {t}");
    }
}

/// Finite numbers over many orders of magnitude.
fn numbers() -> impl Strategy<Value = Vec<f32>> {
    let number = (any::<i16>(), -60i32..30).prop_map(|(x, e)| f32::from(x) * 2f32.powi(e));
    prop::collection::vec(number, 1..600)
}

proptest! {
    /// Nothing is off by more than half the distance of neighbouring levels, and a
    /// divisor is never 0.
    #[test]
    fn codes_are_close(x in numbers()) {
        for divisor in [false, true] {
            let x: Vec<f32> = x.iter().map(|&x| if divisor { x.abs() } else { x }).collect();
            let mut scales = vec![0.0; x.len().div_ceil(BLOCK)];
            let (mut codes, mut y) = (vec![0; x.len()], x.clone());
            coded(&mut codes, &mut scales, divisor).encode(&x);
            coded(&mut codes, &mut scales, divisor).decode(&mut y);
            for (x, y) in x.chunks(BLOCK).zip(y.chunks(BLOCK)) {
                let greatest = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
                let floor = greatest / if divisor { 2f32.powi(15) } else { 2f32.powi(10) };
                for (x, y) in x.iter().zip(y) {
                    prop_assert!((x - y).abs() <= x.abs() / 32.0 + floor, "{x} {y}");
                    prop_assert!(!divisor || *y > 0.0);
                }
            }
        }
    }
}

#[test]
fn codes_keep_what_is_not_finite() {
    let mut x: Vec<f32> = (0..300).map(value).collect();
    (x[3], x[4], x[5]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
    let (mut codes, mut scales, mut y) = (vec![0; 300], vec![0.0; 2], vec![0.0; 300]);
    coded(&mut codes, &mut scales, false).encode(&x);
    coded(&mut codes, &mut scales, false).decode(&mut y);
    assert!(y[3].is_nan());
    assert_eq!(y[4..6], x[4..6]);
    for (i, (x, y)) in x.iter().zip(&y).enumerate().filter(|(i, _)| !(3..6).contains(i)) {
        assert!((x - y).abs() <= x.abs() / 16.0 + 2e-3, "{i}: {x} {y}");
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let _guard = THREADS.lock();
    let rule = Lamb { lr: 0.1, betas: [0.9, 0.99], weight_decay: 0.1, ..Default::default() };
    let before = parallel::num_threads().unwrap();
    let results = [1, 2, 3, 8].map(|threads| {
        parallel::set_num_threads(threads).unwrap();
        let mut owned = Owned::new(&rule, 300_001, value);
        step(&mut [owned.tensor(&rule, 1)]);
        let gradient = Gradient { values: owned.grad.as_slice().into(), mask: None };
        (owned.param, norm(&[gradient], 2.0).get().to_bits())
    });
    parallel::set_num_threads(before).unwrap();
    assert!(results.iter().all(|r| *r == results[0]));
}

#[test]
fn a_step_allocates_nothing() {
    let _guard = THREADS.lock();
    let before = parallel::num_threads().unwrap();
    for threads in [1, 2] {
        parallel::set_num_threads(threads).unwrap();
        for rule in rules() {
            let mut owned = Owned::new(&*rule, 500_000, value);
            let mut tensors = [owned.tensor(&*rule, 2)];
            step(&mut tensors);
            let count = || (ALLOCATIONS.with(Cell::get), BYTES.with(Cell::get));
            let (allocations, bytes) = count();
            step(&mut tensors);
            let (allocations, bytes) = (count().0 - allocations, count().1 - bytes);
            if threads == 1 {
                assert_eq!(allocations, 0);
            } else {
                // The record of the loop.
                assert!(allocations <= 1 && bytes <= 256, "{allocations} of {bytes} bytes");
            }
        }
    }
    parallel::set_num_threads(before).unwrap();
}

#[test]
fn what_is_not_finite_is_found_unless_masked() {
    let clean = [1.0f32; 70];
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut dirty = clean;
        dirty[66] = bad;
        let plain = |values| Gradient { values: Values::F32(values), mask: None };
        assert_eq!(find_beyond(&[plain(&clean), plain(&dirty)], |_| f64::MAX), Some(1));
        assert!(!norm(&[plain(&clean), plain(&dirty)], 2.0).get().is_finite());
        let mut mask = [0xff; 9];
        mask[8] &= !(1 << 2);
        let masked = Gradient { values: Values::F32(&dirty), mask: Some(&mask) };
        assert_eq!(find_beyond(&[masked], |_| f64::MAX), None);
        assert_eq!(norm(&[masked], 2.0).get(), 69f64.sqrt());
    }
    assert_eq!(
        norm(&[Gradient { values: Values::F32(&[f32::MAX; 4]), mask: None }], 2.0).get(),
        f64::from(f32::MAX) * 2.0
    );
    assert_eq!(norm(&[], 2.0).get(), 0.0);
}

#[test]
fn blending() {
    let (mut x, y) = ([1.0f64, 2.0, f64::NAN], [3.0, -2.0, 0.0]);
    lerp(&mut x[..2], Values::F64(&y[..2]), 0.25);
    assert_eq!(x[..2], [1.5, 1.0]);
    accumulate(&mut x[..2], Values::F64(&y[..2]), 2.0);
    assert_eq!(x[..2], [7.5, -3.0]);
    scale(&mut x[..2], -2.0);
    assert_eq!(x[..2], [-15.0, 6.0]);
    clamp(&mut x, 10.0);
    assert_eq!(x[..2], [-10.0, 6.0]);
    assert!(x[2].is_nan());
    let mut y = [15.0f32, -5.0, 5.5, -5.5];
    clamp(&mut y, 5.0);
    assert_eq!(y, [5.0, -5.0, 5.0, -5.0]);
}
