//! What becomes of a product's sums while they are in registers.

use super::activations::round;
use super::isa::{LANES, Lanes};
use crate::numeric::erf::gelu;
use crate::runtime::parallel::SharedMut;
use crate::runtime::simd;

/// What is applied to each element of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `max(x, 0)`; NaN stays NaN.
    Relu,
    /// `x Phi(x)`, with the normal distribution's `Phi`.
    Gelu,
}

/// A result, of a row of channels for each row of activations.
pub enum Output<'a> {
    /// The sums themselves, added to an integer for each channel.
    Integers(&'a mut [i32], Option<&'a [i32]>),
    /// Numbers.
    Numbers(&'a mut [f32]),
    /// Numbers, divided by a scale and rounded to nearest, ties to even, plus a zero point,
    /// clamped to eight bits.
    Codes(&'a mut [i8], f32, i32),
}

impl Output<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Output::Integers(y, _) => y.len(),
            Output::Numbers(y) => y.len(),
            Output::Codes(y, ..) => y.len(),
        }
    }

    pub(super) fn is_integers(&self) -> bool {
        matches!(self, Output::Integers(..))
    }

    pub(super) fn share(&mut self) -> Shared<'_> {
        match self {
            Output::Integers(y, add) => Shared::Integers(SharedMut::new(y), *add),
            Output::Numbers(y) => Shared::Numbers(SharedMut::new(y)),
            Output::Codes(y, scale, zero) => Shared::Codes(SharedMut::new(y), *scale, *zero),
        }
    }
}

/// A result that tasks share.
pub(super) enum Shared<'a> {
    Integers(SharedMut<'a, i32>, Option<&'a [i32]>),
    Numbers(SharedMut<'a, f32>),
    Codes(SharedMut<'a, i8>, f32, i32),
}

/// What follows the sums of a product.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// For each channel.
    pub bias: Option<&'a [f32]>,
    /// At last.
    pub activation: Activation,
}

impl Epilogue<'_> {
    pub(super) fn require(&self, channels: usize) {
        assert!(self.bias.is_none_or(|bias| bias.len() == channels));
    }
}

/// A result of numbers that takes sixteen sums at once, from a register: no function follows
/// them that works lane by lane.
#[derive(Clone, Copy)]
pub(super) struct Direct<'a> {
    out: &'a SharedMut<'a, f32>,
    channels: usize,
    bias: Option<&'a [f32]>,
    relu: bool,
}

impl Direct<'_> {
    /// Writes the sums of a row for `P` panels, the first of which begins with `channel`.
    ///
    /// # Safety
    /// The caller guarantees the instruction set, and that no other task writes there.
    ///
    /// # Panics
    /// If there are fewer channels.
    #[inline(always)]
    pub unsafe fn write<V: Lanes, const P: usize>(
        &self,
        mut sums: [V::F; P],
        (row, channel): (usize, usize),
    ) {
        let at = row * self.channels + channel;
        let bias = self.bias.map(|bias| &bias[channel..channel + P * LANES]);
        // SAFETY: the caller guarantees the instruction set, and that nobody else writes
        // there; slices are of sixteen elements for each panel.
        unsafe {
            let out = self.out.slice(at..at + P * LANES).as_mut_ptr();
            if let Some(bias) = bias {
                for p in 0..P {
                    sums[p] = V::add_f(sums[p], V::load_f(bias.as_ptr().add(p * LANES)));
                }
            }
            if self.relu {
                sums = sums.map(|y| V::relu(y));
            }
            for p in 0..P {
                V::store_f(sums[p], out.add(p * LANES));
            }
        }
    }

    /// Asks memory for where sums of a row go, for so many panels from a channel on.
    #[inline(always)]
    pub fn ask(&self, (row, channel): (usize, usize), panels: usize) {
        let start = self.out.as_ptr().wrapping_add(row * self.channels + channel);
        for p in (0..panels).step_by(2) {
            simd::prefetch(start.wrapping_add(p * LANES));
        }
    }
}

impl Shared<'_> {
    /// How channels up to `last` are written from registers, if they can be.
    pub fn direct<'a>(
        &'a self,
        epilogue: &Epilogue<'a>,
        last: usize,
        channels: usize,
    ) -> Option<Direct<'a>> {
        let Shared::Numbers(out) = self else { return None };
        let relu = epilogue.activation == Activation::Relu;
        let is_direct = last <= channels && epilogue.activation != Activation::Gelu;
        is_direct.then_some(Direct { out, channels, bias: epilogue.bias, relu })
    }

    /// Writes sixteen sums of a row that belong to the channels from `channel` on, of which
    /// there may be fewer.
    ///
    /// # Safety
    /// The caller guarantees the instruction set, and that no other task writes there.
    #[inline(always)]
    pub unsafe fn write<V: Lanes>(
        &self,
        epilogue: &Epilogue<'_>,
        sums: V::F,
        (row, channel): (usize, usize),
        channels: usize,
    ) {
        let count = LANES.min(channels - channel);
        let mut y = [0.0; LANES];
        // SAFETY: the caller guarantees the instruction set; there are sixteen places.
        unsafe { V::store_f(sums, y.as_mut_ptr()) };
        if let Some(bias) = epilogue.bias {
            let bias = &bias[channel..channel + count];
            match bias.first_chunk::<LANES>() {
                Some(bias) => (0..LANES).for_each(|l| y[l] += bias[l]),
                None => y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias),
            }
        }
        match epilogue.activation {
            Activation::None => {}
            // Written so that NaN stays.
            Activation::Relu => y = y.map(|y| if y < 0.0 { 0.0 } else { y }),
            Activation::Gelu => y = y.map(gelu),
        }
        let at = row * channels + channel;
        match self {
            Shared::Numbers(out) => {
                // SAFETY: the caller guarantees that nobody else writes there.
                unsafe { out.slice(at..at + count) }.copy_from_slice(&y[..count]);
            }
            Shared::Codes(out, scale, zero) => {
                let codes = y.map(|y| {
                    // In the range of what `round` takes; NaN becomes its lower end.
                    let y = y / scale;
                    let y = if y > 1024.0 { 1024.0 } else { y };
                    let y = if y > -1024.0 { y } else { -1024.0 };
                    (round(y) + zero).clamp(-128, 127) as i8
                });
                // SAFETY: as above.
                let out = unsafe { out.slice(at..at + count) };
                out.copy_from_slice(&codes[..count]);
            }
            Shared::Integers(..) => unreachable!("integers have no scale"),
        }
    }

    /// Writes sixteen integers, as [`write`](Self::write) does sums.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub unsafe fn write_integers<V: Lanes>(
        &self,
        sums: V::I,
        (row, channel): (usize, usize),
        channels: usize,
    ) {
        let Shared::Integers(out, add) = self else { unreachable!("numbers have a scale") };
        let count = LANES.min(channels - channel);
        let mut y = [0; LANES];
        // SAFETY: the caller guarantees the instruction set; there are sixteen places.
        unsafe { V::store(sums, y.as_mut_ptr()) };
        if let Some(add) = add {
            let add = &add[channel..channel + count];
            y.iter_mut().zip(add).for_each(|(y, add)| *y = y.wrapping_add(*add));
        }
        let at = row * channels + channel;
        // SAFETY: the caller guarantees that nobody else writes there.
        unsafe { out.slice(at..at + count) }.copy_from_slice(&y[..count]);
    }
}
