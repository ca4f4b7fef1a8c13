//! What the numbers of a tensor are stored as, and the way from there to the type
//! that formulas are computed in, and back, block by block.

use std::ops::Range;

use half::{bf16, f16};

use crate::numeric::element::{Element, Float};
use crate::numeric::elementwise::{Convert, convert};
use crate::numeric::stochastic_rounding::{Nearest, Of, StochasticRounding, Threshold};
use crate::quantize::blockwise::{self, BLOCK};
use crate::runtime::parallel::SharedMut;
use crate::runtime::simd::{self, Kernel};

/// How a weight in half precision is rounded after a step in single precision.
pub enum Rounding<'a, H> {
    /// To the nearest; what moves by less than half of the last place stays.
    Nearest,
    /// Up or down, so that the mean is right; see [`StochasticRounding`].
    Stochastic,
    /// To the nearest, with what was cut off kept in a buffer and added again
    /// before the next step. Being of the same few digits, the buffer is rounded
    /// stochastically: it would lose steps that are small beside what it holds.
    Kahan(SharedMut<'a, H>),
    /// To the nearest, from weights kept in single precision.
    Master(SharedMut<'a, f32>),
}

/// Weights in half precision.
pub struct Halves<'a, H> {
    /// The weights.
    pub values: SharedMut<'a, H>,
    /// How they are rounded.
    pub rounding: Rounding<'a, H>,
}

/// The weights of a tensor.
pub enum Weights<'a, C> {
    /// In the type that is computed in.
    Full(SharedMut<'a, C>),
    /// In half precision of IEEE 754.
    F16(Halves<'a, f16>),
    /// In bfloat16.
    Bf16(Halves<'a, bf16>),
}

/// A state of a tensor.
pub enum Moments<'a, C> {
    /// In the type that is computed in.
    Full(SharedMut<'a, C>),
    /// In bfloat16, rounded up or down so that the mean is right.
    Bf16(SharedMut<'a, bf16>),
    /// In 8 bits.
    Coded(Codes<'a>),
}

/// Moments in 8 bits.
pub struct Codes<'a> {
    /// A code for each moment.
    pub codes: SharedMut<'a, u8>,
    /// A scale for each block of [`BLOCK`] codes.
    pub scales: SharedMut<'a, f32>,
    /// Whether the moments are divisors, which are not negative; their code is
    /// another, in which what is beside others of its block is never 0.
    pub divisor: bool,
}

impl<'a, C> From<&'a mut [C]> for Weights<'a, C> {
    fn from(slice: &'a mut [C]) -> Self {
        Weights::Full(SharedMut::new(slice))
    }
}

impl<'a, C> From<&'a mut [C]> for Moments<'a, C> {
    fn from(slice: &'a mut [C]) -> Self {
        Moments::Full(SharedMut::new(slice))
    }
}

impl<C> Default for Moments<'_, C> {
    fn default() -> Self {
        Moments::Full(SharedMut::new(&mut []))
    }
}

/// Numbers that are read and written in blocks.
///
/// # Safety
/// For the methods that are unsafe: nothing else may use the numbers of the range
/// meanwhile. Ranges begin at multiples of [`BLOCK`] and are no longer than that.
pub(super) trait BlockAccess<'a, C: Float>: Sync {
    fn len(&self) -> usize;

    /// The numbers themselves, if they are of the type that is computed in.
    fn in_place(&self) -> Option<SharedMut<'a, C>>;

    /// Converts to the type that is computed in; elements of `to` beyond the range
    /// are left as they are.
    unsafe fn load(&self, range: Range<usize>, to: &mut [C; BLOCK]);

    /// Converts back; elements of `from` beyond the range do not count and may be
    /// changed.
    unsafe fn store(
        &self,
        range: Range<usize>,
        from: &mut [C; BLOCK],
        rounding: StochasticRounding,
    );
}

impl<'a, C: Float> BlockAccess<'a, C> for Weights<'a, C> {
    fn len(&self) -> usize {
        match self {
            Weights::Full(x) => x.len(),
            Weights::F16(x) => x.values.len(),
            Weights::Bf16(x) => x.values.len(),
        }
    }

    fn in_place(&self) -> Option<SharedMut<'a, C>> {
        if let Weights::Full(x) = self { Some(x.alias()) } else { None }
    }

    unsafe fn load(&self, range: Range<usize>, to: &mut [C; BLOCK]) {
        let to = &mut to[..range.len()];
        // SAFETY: the caller guarantees that nothing writes to the range meanwhile.
        unsafe {
            match self {
                Weights::Full(x) => to.copy_from_slice(x.read(range)),
                Weights::F16(x) => x.load(range, to),
                Weights::Bf16(x) => x.load(range, to),
            }
        }
    }

    unsafe fn store(
        &self,
        range: Range<usize>,
        from: &mut [C; BLOCK],
        rounding: StochasticRounding,
    ) {
        let from = &from[..range.len()];
        let thresholds = rounding.thresholds(Of::Weights, range.start / BLOCK);
        // SAFETY: the caller guarantees that nothing else uses the range meanwhile.
        unsafe {
            match self {
                Weights::Full(x) => x.slice(range).copy_from_slice(from),
                Weights::F16(x) => x.store(range, from, thresholds),
                Weights::Bf16(x) => x.store(range, from, thresholds),
            }
        }
    }
}

impl<H: Element<Compute = f32>> Halves<'_, H> {
    /// # Safety
    /// As for [`BlockAccess`].
    unsafe fn load<C: Float>(&self, range: Range<usize>, to: &mut [C]) {
        // SAFETY: the caller guarantees that nothing writes to the range meanwhile.
        unsafe {
            let from = self.values.read(range.clone());
            match &self.rounding {
                Rounding::Nearest | Rounding::Stochastic => simd::dispatch(Convert { from, to }),
                Rounding::Kahan(rest) => {
                    simd::dispatch(Restore { from, rest: rest.read(range), to });
                }
                Rounding::Master(master) => {
                    simd::dispatch(Recall { from, master: master.read(range), to });
                }
            }
        }
    }

    /// # Safety
    /// As for [`BlockAccess`].
    unsafe fn store<C: Float>(&self, range: Range<usize>, from: &[C], threshold: impl Threshold) {
        // SAFETY: the caller guarantees that nothing else uses the range meanwhile.
        unsafe {
            let to = self.values.slice(range.clone());
            match &self.rounding {
                Rounding::Nearest => simd::dispatch(Convert { from, to }),
                Rounding::Stochastic => simd::dispatch(RoundStochastically { from, to, threshold }),
                Rounding::Kahan(rest) => {
                    let rest = rest.slice(range);
                    simd::dispatch(RoundAndKeep { from, to, rest, threshold });
                }
                Rounding::Master(master) => {
                    simd::dispatch(Convert { from, to: master.slice(range) });
                    simd::dispatch(Convert { from, to });
                }
            }
        }
    }
}

struct RoundStochastically<'a, C, H, T> {
    from: &'a [C],
    to: &'a mut [H],
    threshold: T,
}

impl<C: Float, H: Element<Compute = f32>, T: Threshold> Kernel
    for RoundStochastically<'_, C, H, T>
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let round = |i: usize, x: C| H::store_stochastic(x.to_f32(), self.threshold.at(i));
        match (self.from.first_chunk::<BLOCK>(), self.to.first_chunk_mut::<BLOCK>()) {
            (Some(from), Some(to)) => {
                for i in 0..BLOCK {
                    to[i] = round(i, from[i]);
                }
            }
            _ => {
                for (i, (to, &from)) in self.to.iter_mut().zip(self.from).enumerate() {
                    *to = round(i, from);
                }
            }
        }
    }
}

struct RoundAndKeep<'a, C, H, T> {
    from: &'a [C],
    to: &'a mut [H],
    rest: &'a mut [H],
    threshold: T,
}

impl<C: Float, H: Element<Compute = f32>, T: Threshold> Kernel for RoundAndKeep<'_, C, H, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let numbers = self.to.iter_mut().zip(self.rest).zip(self.from);
        for (i, ((to, rest), &from)) in numbers.enumerate() {
            let from = from.to_f32();
            *to = H::store(from);
            let cut = from - to.load();
            // What overflowed has no rest.
            let cut = if cut.abs() < f32::INFINITY { cut } else { 0.0 };
            *rest = H::store_stochastic(cut, self.threshold.at(i));
        }
    }
}

struct Restore<'a, H, C> {
    from: &'a [H],
    rest: &'a [H],
    to: &'a mut [C],
}

impl<C: Float, H: Element<Compute = f32>> Kernel for Restore<'_, H, C> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for ((to, from), rest) in self.to.iter_mut().zip(self.from).zip(self.rest) {
            *to = convert(from.load() + rest.load());
        }
    }
}

struct Recall<'a, H, C> {
    from: &'a [H],
    master: &'a [f32],
    to: &'a mut [C],
}

impl<C: Float, H: Element<Compute = f32>> Kernel for Recall<'_, H, C> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for ((to, &from), &master) in self.to.iter_mut().zip(self.from).zip(self.master) {
            // A weight that is not its master's was written to by others: it counts.
            *to = convert(if H::store(master) == from { master } else { from.load() });
        }
    }
}

impl<'a, C: Float> BlockAccess<'a, C> for Moments<'a, C> {
    fn len(&self) -> usize {
        match self {
            Moments::Full(x) => x.len(),
            Moments::Bf16(x) => x.len(),
            Moments::Coded(x) => x.codes.len(),
        }
    }

    fn in_place(&self) -> Option<SharedMut<'a, C>> {
        if let Moments::Full(x) = self { Some(x.alias()) } else { None }
    }

    unsafe fn load(&self, range: Range<usize>, to: &mut [C; BLOCK]) {
        // SAFETY: the caller guarantees that nothing writes to the range meanwhile.
        unsafe {
            match self {
                Moments::Full(x) => to[..range.len()].copy_from_slice(x.read(range)),
                Moments::Bf16(x) => {
                    let to = &mut to[..range.len()];
                    simd::dispatch(Convert { from: x.read(range), to });
                }
                Moments::Coded(x) => x.load(range, to),
            }
        }
    }

    unsafe fn store(
        &self,
        range: Range<usize>,
        from: &mut [C; BLOCK],
        rounding: StochasticRounding,
    ) {
        let threshold = rounding.thresholds(Of::States, range.start / BLOCK);
        // SAFETY: the caller guarantees that nothing else uses the range meanwhile.
        unsafe {
            match self {
                Moments::Full(x) => {
                    let from = &from[..range.len()];
                    x.slice(range).copy_from_slice(from);
                }
                Moments::Bf16(x) => {
                    let from = &from[..range.len()];
                    simd::dispatch(RoundStochastically { from, to: x.slice(range), threshold });
                }
                Moments::Coded(x) => x.store(range, from, threshold),
            }
        }
    }
}

impl Codes<'_> {
    /// # Safety
    /// As for [`BlockAccess`].
    unsafe fn load<C: Float>(&self, range: Range<usize>, to: &mut [C; BLOCK]) {
        let block = range.start / BLOCK;
        // SAFETY: the caller guarantees that nothing writes to the range, a
        // block, meanwhile; its scale is written with it alone.
        let (codes, scale) =
            unsafe { (self.codes.read(range), self.scales.read(block..block + 1)[0]) };
        if self.divisor {
            simd::dispatch(blockwise::Decode { codes, scale, to, kind: blockwise::Divisor });
        } else {
            simd::dispatch(blockwise::Decode { codes, scale, to, kind: blockwise::Signed });
        }
    }

    /// # Safety
    /// As for [`BlockAccess`].
    unsafe fn store<C: Float>(
        &self,
        range: Range<usize>,
        from: &mut [C; BLOCK],
        threshold: impl Threshold,
    ) {
        let block = range.start / BLOCK;
        from[range.len()..].fill(C::zero());
        let from = &*from;
        // SAFETY: the caller guarantees that nothing else uses the range, a
        // block, meanwhile; its scale is used with it alone.
        let (codes, scale) =
            unsafe { (self.codes.slice(range), &mut self.scales.slice(block..block + 1)[0]) };
        *scale = if self.divisor {
            simd::dispatch(blockwise::Encode { from, codes, threshold, kind: blockwise::Divisor })
        } else {
            simd::dispatch(blockwise::Encode { from, codes, threshold, kind: blockwise::Signed })
        };
    }

    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let len = self.codes.len();
        assert_eq!(len.div_ceil(BLOCK), self.scales.len(), "number of scales");
        (0..len).step_by(BLOCK).map(move |start| start..len.min(start + BLOCK))
    }

    /// Encodes numbers, rounded to nearest.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub fn encode(&mut self, x: &[f32]) {
        assert_eq!(x.len(), self.codes.len(), "number of codes");
        let mut block = [0.0; BLOCK];
        for range in self.blocks() {
            block[..range.len()].copy_from_slice(&x[range.clone()]);
            // SAFETY: one block after another.
            unsafe { self.store(range, &mut block, Nearest) };
        }
    }

    /// Decodes what [`encode`](Self::encode) or a step made.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub fn decode(&self, x: &mut [f32]) {
        assert_eq!(x.len(), self.codes.len(), "number of codes");
        let mut block = [0.0; BLOCK];
        for range in self.blocks() {
            // SAFETY: nothing writes to the codes.
            unsafe { self.load(range.clone(), &mut block) };
            x[range.clone()].copy_from_slice(&block[..range.len()]);
        }
    }
}
