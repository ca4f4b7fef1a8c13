//! The one driver: applies the formulas of any number of tensors, in place.

use std::ops::Range;

use super::fused;
use super::rule::{Formula, MAX_STATES, Update, dispatch_elementwise};
use super::storage::{BlockAccess, Moments, Weights};
use super::values::Values;
use crate::numeric::element::Float;
use crate::numeric::lanes;
use crate::numeric::stochastic_rounding::StochasticRounding;
use crate::quantize::blockwise::BLOCK;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::simd::{self, Kernel};

/// Elements worth a task of their own; see [`parallel::for_each`].
pub(super) const GRAIN_ELEMENTS: usize = 32 * 1024;

/// Tasks start at multiples of this many elements, so that inside a tensor none
/// shares a cache line with another, nor a byte of a mask, nor a block of moments.
pub(super) const ALIGN: usize = BLOCK;

/// Elements that the masked loop takes at a time.
const UNIT: usize = 16;

/// Number of bytes of a mask for `len` elements; see [`Tensor::new`].
pub fn mask_bytes(len: usize) -> usize {
    len.div_ceil(8)
}

/// Whether element `i` is kept by a mask of bits, the lowest of a byte first.
#[inline(always)]
pub(super) fn is_kept(mask: &[u8], i: usize) -> bool {
    mask[i / 8] >> (i % 8) & 1 != 0
}

/// One tensor and what a step does to it.
pub struct Tensor<'a, C: Float> {
    update: Update,
    scale: f64,
    /// Lengths of the last two axes, if there are two.
    matrix: Option<(usize, usize)>,
    param: Weights<'a, C>,
    grad: Values<'a>,
    states: [Moments<'a, C>; MAX_STATES],
    mask: Option<&'a [u8]>,
    rounding: StochasticRounding,
    /// Where its elements stand among those of all elementwise tensors.
    range: Range<usize>,
}

impl<'a, C: Float> Tensor<'a, C> {
    /// A tensor to be updated by `update`.
    ///
    /// `states` are the rule's, in the order of
    /// [`states`](super::Rule::states); the rest is empty. `shape` is
    /// the parameter's.
    ///
    /// # Panics
    /// If the shape or the gradient is not of the parameter's length.
    pub fn new(
        update: Update,
        shape: &[usize],
        param: impl Into<Weights<'a, C>>,
        grad: impl Into<Values<'a>>,
        states: [Moments<'a, C>; MAX_STATES],
    ) -> Self {
        let (param, grad) = (param.into(), grad.into());
        assert_eq!(shape.iter().product::<usize>(), param.len(), "length of a parameter");
        assert_eq!(grad.len(), param.len(), "length of a gradient");
        let matrix = match *shape {
            [.., rows, columns] => Some((rows, columns)),
            _ => None,
        };
        Tensor {
            update,
            scale: 1.0,
            matrix,
            param,
            grad,
            states,
            mask: None,
            rounding: StochasticRounding::new(0, 0, 0),
            range: 0..0,
        }
    }

    /// Multiplies the gradient by `scale` first.
    pub fn scaled(self, scale: f64) -> Self {
        Tensor { scale, ..self }
    }

    /// `mask` holds a bit for each element, the lowest of a byte first: where it is
    /// 0, the parameter and its state are set to 0, and the gradient does not count.
    ///
    /// # Panics
    /// If the mask is not of the parameter's length.
    pub fn masked(self, mask: Option<&'a [u8]>) -> Self {
        assert!(mask.is_none_or(|m| m.len() == mask_bytes(self.len())), "length of a mask");
        Tensor { mask, ..self }
    }

    /// What rounding that is not to nearest decides by.
    pub fn rounded_stochastically(self, rounding: StochasticRounding) -> Self {
        Tensor { rounding, ..self }
    }

    fn len(&self) -> usize {
        self.grad.len()
    }

    /// What the gradient is multiplied by in the type that is computed in. None if the
    /// product must be taken in double precision, of which the gradient is or whose
    /// range the factor needs: only the product has to fit the narrower type.
    fn factor(&self) -> Option<C> {
        let factor = C::from_f64(self.scale);
        let is_wider = matches!(self.grad, Values::F64(_)) && self.grad.as_slice::<C>().is_none();
        (!is_wider && (self.scale == 0.0 || factor.is_normal())).then_some(factor)
    }

    /// Whether all numbers are of the type that is computed in.
    fn is_in_place(&self) -> bool {
        self.param.in_place().is_some()
            && self.grad.as_slice::<C>().is_some()
            && self.states.iter().all(|state| state.in_place().is_some())
    }

    /// Applies a formula to every element, in parallel.
    pub(super) fn apply<const S: usize>(&self, formula: impl Formula<C, S>) {
        parallel::for_each(0..self.len(), GRAIN_ELEMENTS, ALIGN, |part| {
            // SAFETY: parts do not overlap, and only one loop at a time works on
            // a tensor.
            unsafe { update_part(self, part, formula) };
        });
    }

    /// The sums of the terms that `f` gives for each parameter and its states.
    pub(super) fn sums<const S: usize, const K: usize>(
        &self,
        f: impl Fn(C, [C; S]) -> [f64; K] + Copy + Sync,
    ) -> [f64; K] {
        let add = |a: [f64; K], b: [f64; K]| std::array::from_fn(|k| a[k] + b[k]);
        let part = |part: Range<usize>| {
            let mut scratch = BlockBuffers::<C, S>::default();
            let mut sum = [0.0; K];
            for start in part.clone().step_by(BLOCK) {
                let block = start..part.end.min(start + BLOCK);
                // SAFETY: nothing writes to the tensor meanwhile.
                let terms = unsafe {
                    let param = view(&self.param, &block, &mut scratch.param);
                    let mut buffers = scratch.states.iter_mut();
                    let states: [&[C]; S] = std::array::from_fn(|s| {
                        &*view(&self.states[s], &block, buffers.next().expect("one a state"))
                    });
                    simd::dispatch(Terms { param, states, f })
                };
                sum = add(sum, terms);
            }
            sum
        };
        parallel::reduce(self.len(), GRAIN_ELEMENTS, part, add).unwrap_or([0.0; K])
    }

    /// How many numbers a step copies and computes on the side, at most.
    fn scratch_len(&self) -> usize {
        let of_rule = match self.update {
            Update::Muon(orthogonal) => {
                self.matrix.map_or(0, |matrix| orthogonal.scratch_len(matrix))
            }
            Update::Adafactor(_) => 0,
            _ => return 0,
        };
        let mut len = of_rule;
        if self.param.in_place().is_none() {
            len += self.param.len();
        }
        if self.grad.as_slice::<C>().is_none() || self.factor().is_none() {
            len += self.grad.len();
        }
        for state in self.states.iter().filter(|state| state.in_place().is_none()) {
            len += state.len();
        }
        len
    }

    /// Calls `f` with this tensor, all of its numbers being of the type that is
    /// computed in: itself, or a copy that is then stored here.
    fn with_full(&self, f: impl FnOnce(&FullTensor<'_, C>)) {
        let mut param = ComputeCopy::new(&self.param);
        let mut states = self.states.each_ref().map(ComputeCopy::new);
        let factor = self.factor();
        let grad = match factor {
            Some(_) => self.grad.as_compute(),
            None => self.grad.times(self.scale).into(),
        };
        let shared = param.shared();
        let shared_states = states.each_mut().map(ComputeCopy::shared);
        f(&FullTensor {
            tensor: Tensor {
                param: Weights::Full(shared.alias()),
                grad: self.grad,
                states: shared_states.each_ref().map(|s| Moments::Full(s.alias())),
                range: 0..0,
                ..*self
            },
            scale: factor.unwrap_or(C::one()),
            matrix: self.matrix,
            param: shared,
            grad: &grad,
            states: shared_states,
            mask: self.mask,
        });
        param.store(&self.param, self.rounding);
        for (state, target) in states.iter_mut().zip(&self.states) {
            state.store(target, self.rounding);
        }
    }
}

/// A tensor all of whose numbers are of the type that is computed in, for rules
/// that look at it as a whole.
pub(super) struct FullTensor<'a, C: Float> {
    scale: C,
    /// Lengths of the last two axes, if there are two.
    pub matrix: Option<(usize, usize)>,
    pub param: SharedMut<'a, C>,
    pub grad: &'a [C],
    pub states: [SharedMut<'a, C>; MAX_STATES],
    pub mask: Option<&'a [u8]>,
    tensor: Tensor<'a, C>,
}

impl<C: Float> FullTensor<'_, C> {
    /// The gradient of element `i` as the rule takes it.
    #[inline(always)]
    pub fn gradient(&self, i: usize) -> C {
        if self.mask.is_some_and(|mask| !is_kept(mask, i)) {
            return C::zero();
        }
        self.grad[i] * self.scale
    }

    /// Applies a formula to every element, in parallel.
    pub fn apply<const S: usize>(&self, formula: impl Formula<C, S>) {
        self.tensor.apply(formula);
    }
}

/// Numbers of a tensor where they are, or copied to the type that is computed in.
enum ComputeCopy<'a, C> {
    InPlace(SharedMut<'a, C>),
    Copy(Vec<C>),
}

impl<'a, C: Float> ComputeCopy<'a, C> {
    fn new(source: &impl BlockAccess<'a, C>) -> Self {
        if let Some(numbers) = source.in_place() {
            return ComputeCopy::InPlace(numbers);
        }
        let len = source.len();
        let mut copy = memory::zeroed(len);
        let shared = SharedMut::new(&mut copy);
        parallel::for_each(0..len, GRAIN_ELEMENTS, ALIGN, |part| {
            let mut scratch = [C::zero(); BLOCK];
            for start in part.clone().step_by(BLOCK) {
                let block = start..part.end.min(start + BLOCK);
                // SAFETY: parts do not overlap, and nothing writes to the source.
                unsafe {
                    source.load(block.clone(), &mut scratch);
                    shared.slice(block.clone()).copy_from_slice(&scratch[..block.len()]);
                }
            }
        });
        ComputeCopy::Copy(copy)
    }

    fn shared(&mut self) -> SharedMut<'_, C> {
        match self {
            ComputeCopy::InPlace(numbers) => numbers.alias(),
            ComputeCopy::Copy(copy) => SharedMut::new(copy),
        }
    }

    /// Stores what was copied.
    fn store(&mut self, target: &impl BlockAccess<'a, C>, rounding: StochasticRounding) {
        let ComputeCopy::Copy(copy) = self else { return };
        parallel::for_each(0..copy.len(), GRAIN_ELEMENTS, ALIGN, |part| {
            let mut scratch = [C::zero(); BLOCK];
            for start in part.clone().step_by(BLOCK) {
                let block = start..part.end.min(start + BLOCK);
                scratch[..block.len()].copy_from_slice(&copy[block.clone()]);
                // SAFETY: parts do not overlap, and nothing else uses the target.
                unsafe { target.store(block, &mut scratch, rounding) };
            }
        });
    }
}

/// Where blocks are decoded to.
struct BlockBuffers<C, const S: usize> {
    param: [C; BLOCK],
    grad: [C; BLOCK],
    states: [[C; BLOCK]; S],
}

impl<C: Float, const S: usize> Default for BlockBuffers<C, S> {
    fn default() -> Self {
        let zeros = [C::zero(); BLOCK];
        BlockBuffers { param: zeros, grad: zeros, states: [zeros; S] }
    }
}

/// The numbers of a block where they are, or decoded to `scratch`.
///
/// # Safety
/// Nothing else may use the numbers of the block while the result is used.
unsafe fn view<'s, 'a: 's, C: Float>(
    source: &impl BlockAccess<'a, C>,
    block: &Range<usize>,
    scratch: &'s mut [C; BLOCK],
) -> &'s mut [C] {
    // SAFETY: the caller guarantees that nothing else uses the block while
    // the result is used.
    unsafe {
        if let Some(numbers) = source.in_place() {
            return numbers.slice(block.clone());
        }
        source.load(block.clone(), scratch);
    }
    &mut scratch[..block.len()]
}

/// Makes sure that there is memory for what [`step`] copies and computes on the side, so that
/// a lack of it is found before anything has been written.
///
/// # Unwinds
/// With [`OutOfMemory`](crate::runtime::memory::OutOfMemory).
pub fn reserve<C: Float>(tensors: &[Tensor<'_, C>]) {
    let most = tensors.iter().map(Tensor::scratch_len).max().unwrap_or(0);
    // It is not kept: the allocator has it at hand for the step.
    drop(memory::with_capacity::<C>(most));
}

/// Updates every tensor.
///
/// All elementwise tensors are seen as one long range of elements that is divided
/// into tasks, so that many small tensors cost no more than one large one.
///
/// # Panics
/// If a state is shorter than its rule needs.
pub fn step<C: Float>(tensors: &mut [Tensor<'_, C>]) {
    let mut total = 0;
    for tensor in &mut *tensors {
        let elements = match tensor.update {
            Update::Lamb(layerwise) => {
                layerwise.step(tensor);
                0
            }
            Update::Adafactor(factored) => {
                tensor.with_full(|tensor| factored.step(tensor));
                0
            }
            Update::Muon(orthogonal) => {
                tensor.with_full(|tensor| orthogonal.step(tensor));
                0
            }
            _ => tensor.len(),
        };
        tensor.range = total..total + elements;
        total += elements;
    }
    let tensors = &*tensors;
    // Converting takes time.
    let converts = tensors.iter().any(|t| !t.range.is_empty() && !t.is_in_place());
    let grain = if converts { GRAIN_ELEMENTS / 4 } else { GRAIN_ELEMENTS };
    parallel::for_each(0..total, grain, ALIGN, |range| {
        let first = tensors.partition_point(|t| t.range.end <= range.start);
        for tensor in &tensors[first..] {
            if tensor.range.start >= range.end {
                break;
            }
            let begin = range.start.saturating_sub(tensor.range.start);
            let end = (range.end - tensor.range.start).min(tensor.range.len());
            // A tensor need not start at a multiple of ALIGN, but its tasks must
            // for the sake of its mask. The one before takes what is left of one.
            let part = round_up(begin, tensor.range.len())..round_up(end, tensor.range.len());
            if part.is_empty() {
                continue;
            }
            // SAFETY: the tensors are borrowed by `step`, and its tasks get parts
            // that do not overlap, since both ends are rounded alike.
            dispatch_elementwise!(tensor.update, formula => unsafe { update_part(tensor, part, formula) }, {});
        }
    });
}

/// The next multiple of ALIGN, or the end.
fn round_up(i: usize, len: usize) -> usize {
    i.next_multiple_of(ALIGN).min(len)
}

/// # Safety
/// No reference to this part of the parameter or its states may be alive. The
/// part starts at a multiple of ALIGN.
unsafe fn update_part<C: Float, const S: usize>(
    t: &Tensor<'_, C>,
    part: Range<usize>,
    formula: impl Formula<C, S>,
) {
    // Parts start at multiples of ALIGN, and so of 8.
    let mask = |range: &Range<usize>| t.mask.map(|m| &m[range.start / 8..mask_bytes(range.end)]);
    let factor = t.factor();
    let states_in_place = || {
        let mut states: [SharedMut<'_, C>; S] = std::array::from_fn(|_| SharedMut::new(&mut []));
        for (state, moments) in states.iter_mut().zip(&t.states) {
            *state = moments.in_place()?;
        }
        Some(states)
    };
    if let (Some(scale), Some(param), Some(grad), Some(states)) =
        (factor, t.param.in_place(), t.grad.as_slice(), states_in_place())
    {
        // SAFETY: the caller guarantees that no reference to this part is alive.
        let (param, states) =
            unsafe { (param.slice(part.clone()), states.map(|state| state.slice(part.clone()))) };
        let (grad, mask) = (&grad[part.clone()], mask(&part));
        simd::dispatch(Elementwise { formula, scale, param, grad, states, mask });
        return;
    }
    let mut scratch = BlockBuffers::<C, S>::default();
    for start in part.clone().step_by(BLOCK) {
        let block = start..part.end.min(start + BLOCK);
        // SAFETY: the caller guarantees that no reference to this part, in which
        // the block lies, is alive.
        unsafe { update_block(t, &block, formula, factor, mask(&block), &mut scratch) };
    }
}

/// Decodes a block, updates it, encodes it.
///
/// # Safety
/// No reference to this block of the parameter or its states may be alive.
unsafe fn update_block<C: Float, const S: usize>(
    t: &Tensor<'_, C>,
    block: &Range<usize>,
    formula: impl Formula<C, S>,
    factor: Option<C>,
    mask: Option<&[u8]>,
    scratch: &mut BlockBuffers<C, S>,
) {
    let Tensor { param, grad, states, rounding, .. } = t;
    if let (Some(scale), None) = (factor, mask) {
        // SAFETY: the caller guarantees that nothing else uses this block, which
        // starts at a multiple of BLOCK.
        if unsafe { fused::update(formula, scale, param, grad, states, block, *rounding) } {
            return;
        }
    }
    let (scale, grad) = match (factor, t.grad.as_slice()) {
        (Some(scale), Some(grad)) => (scale, &grad[block.clone()]),
        (factor, _) => {
            let grad = &mut scratch.grad[..block.len()];
            match factor {
                Some(_) => t.grad.load(block.clone(), grad),
                None => t.grad.load_times(t.scale, block.clone(), grad),
            }
            (factor.unwrap_or(C::one()), &*grad)
        }
    };
    // SAFETY: the caller guarantees that nothing else uses this block; what
    // is in place is not stored.
    unsafe {
        let param = view(&t.param, block, &mut scratch.param);
        let mut buffers = scratch.states.iter_mut();
        let states = std::array::from_fn(|s| {
            view(&t.states[s], block, buffers.next().expect("one a state"))
        });
        simd::dispatch(Elementwise { formula, scale, param, grad, states, mask });
        if t.param.in_place().is_none() {
            t.param.store(block.clone(), &mut scratch.param, t.rounding);
        }
        for (state, numbers) in t.states.iter().zip(&mut scratch.states) {
            if state.in_place().is_none() {
                state.store(block.clone(), numbers, t.rounding);
            }
        }
    }
}

struct Terms<'a, C, F, const S: usize> {
    param: &'a [C],
    states: [&'a [C]; S],
    f: F,
}

impl<C, F, const S: usize, const K: usize> Kernel for Terms<'_, C, F, S>
where
    C: Float,
    F: Fn(C, [C; S]) -> [f64; K],
{
    type Output = [f64; K];

    #[inline(always)]
    fn run(self) -> [f64; K] {
        let n = self.param.len();
        let states = self.states.map(|state| &state[..n]);
        lanes::sums(n, |i| (self.f)(self.param[i], states.map(|state| state[i])))
    }
}

struct Elementwise<'a, C, F, const S: usize> {
    formula: F,
    scale: C,
    param: &'a mut [C],
    grad: &'a [C],
    states: [&'a mut [C]; S],
    mask: Option<&'a [u8]>,
}

impl<C: Float, F: Formula<C, S>, const S: usize> Kernel for Elementwise<'_, C, F, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match self.mask {
            None => self.update(),
            Some(mask) => self.update_masked(mask),
        }
    }
}

impl<C: Float, F: Formula<C, S>, const S: usize> Elementwise<'_, C, F, S> {
    /// The new parameter of one element, its state updated.
    #[inline(always)]
    fn element(&self, param: C, grad: C, state: &mut [C; S]) -> C {
        self.formula.apply(param, grad * self.scale, state)
    }

    #[inline(always)]
    fn update(mut self) {
        // Lengths that the compiler can see are equal need no bounds checks.
        let n = self.param.len();
        let (param, grad) = (&mut std::mem::take(&mut self.param)[..n], &self.grad[..n]);
        let states = self.states.each_mut().map(|state| &mut std::mem::take(state)[..n]);
        for i in 0..n {
            let mut state: [C; S] = std::array::from_fn(|s| states[s][i]);
            param[i] = self.element(param[i], grad[i], &mut state);
            for s in 0..S {
                states[s][i] = state[s];
            }
        }
    }

    #[inline(always)]
    fn update_masked(mut self, mask: &[u8]) {
        let n = self.param.len();
        let (param, grad) = (&mut std::mem::take(&mut self.param)[..n], &self.grad[..n]);
        let mut states = self.states.each_mut().map(|state| &mut std::mem::take(state)[..n]);
        let full = n / UNIT * UNIT;
        for start in (0..full).step_by(UNIT) {
            let bits = u32::from(mask[start / 8]) | u32::from(mask[start / 8 + 1]) << 8;
            self.update_unit(param, grad, &mut states, bits, start, UNIT);
        }
        if full < n {
            let bytes = mask[full / 8..].iter().rev();
            let bits = bytes.fold(0u32, |bits, &byte| bits << 8 | u32::from(byte));
            self.update_unit(param, grad, &mut states, bits, full, n - full);
        }
    }

    /// Updates `len` elements from `start` on, of which `bits` are kept, by way of
    /// locals of a fixed length: the loop over them becomes vector instructions,
    /// with the bits spread over a register.
    #[inline(always)]
    fn update_unit(
        &self,
        param: &mut [C],
        grad: &[C],
        states: &mut [&mut [C]; S],
        bits: u32,
        start: usize,
        len: usize,
    ) {
        let unit = start..start + len;
        let (mut theta, mut g) = ([C::zero(); UNIT], [C::zero(); UNIT]);
        theta[..len].copy_from_slice(&param[unit.clone()]);
        g[..len].copy_from_slice(&grad[unit.clone()]);
        let mut kept = [[C::zero(); UNIT]; S];
        for s in 0..S {
            kept[s][..len].copy_from_slice(&states[s][unit.clone()]);
        }
        for l in 0..UNIT {
            let mut state: [C; S] = std::array::from_fn(|s| kept[s][l]);
            let new = self.element(theta[l], g[l], &mut state);
            let keep = bits >> l & 1 != 0;
            theta[l] = if keep { new } else { C::zero() };
            for s in 0..S {
                kept[s][l] = if keep { state[s] } else { C::zero() };
            }
        }
        param[unit.clone()].copy_from_slice(&theta[..len]);
        for s in 0..S {
            states[s][unit.clone()].copy_from_slice(&kept[s][..len]);
        }
    }
}
