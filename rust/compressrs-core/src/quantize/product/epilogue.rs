//! What becomes of a product's sums while they are in registers.

use super::activations::round;
use super::isa::{LANES, Lanes};
use super::panels::BLOCK_PANELS;
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

impl Shared<'_> {
    /// Writes sixteen sums of a row that belong to the channels from `channel` on.
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
        if let Shared::Numbers(out) = self
            && count == LANES
            && epilogue.activation != Activation::Gelu
        {
            let at = row * channels + channel;
            // SAFETY: the caller guarantees the instruction set, and that nobody else writes
            // there; slices are of sixteen elements.
            unsafe {
                let mut y = sums;
                if let Some(bias) = epilogue.bias {
                    y = V::add_f(y, V::load_f(bias[channel..channel + LANES].as_ptr()));
                }
                if epilogue.activation == Activation::Relu {
                    y = V::relu(y);
                }
                V::store_f(y, out.slice(at..at + LANES).as_mut_ptr());
            }
            return;
        }
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

    /// Writes sums of a block of panels, multiplied by the scales of their rows, to rows and
    /// channels from `(row, channel)` on. `sums` are [`BLOCK_PANELS`] times sixteen a row, of
    /// which the first panels count.
    ///
    /// # Safety
    /// As of [`write`](Self::write).
    #[inline(always)]
    pub unsafe fn write_rows<V: Lanes>(
        &self,
        epilogue: &Epilogue<'_>,
        (sums, panels): (&[f32], usize),
        scales: &[f32],
        (row, channel): (usize, usize),
        channels: usize,
    ) {
        let whole = channel + panels * LANES <= channels;
        let is_plain = whole && epilogue.activation != Activation::Gelu;
        let bias = epilogue.bias.map(|bias| &bias[channel..channels.min(channel + panels * LANES)]);
        for (r, (sums, scale)) in sums.chunks(BLOCK_PANELS * LANES).zip(scales).enumerate() {
            // SAFETY: the caller guarantees the instruction set, and that nobody else writes
            // there; all slices are of sixteen elements for each panel.
            unsafe {
                let scale = V::splat_f(*scale);
                let sums = &sums[..panels * LANES];
                let out = match self {
                    Shared::Numbers(out) if is_plain => out,
                    _ => {
                        for (p, sums) in sums.chunks_exact(LANES).enumerate() {
                            let y = V::mul_f(V::load_f(sums.as_ptr()), scale);
                            self.write::<V>(epilogue, y, (row + r, channel + p * LANES), channels);
                        }
                        continue;
                    }
                };
                let at = (row + r) * channels + channel;
                let out = out.slice(at..at + panels * LANES);
                for p in 0..panels {
                    let from = p * LANES..(p + 1) * LANES;
                    let mut y = V::mul_f(V::load_f(sums[from.clone()].as_ptr()), scale);
                    if let Some(bias) = bias {
                        y = V::add_f(y, V::load_f(bias[from.clone()].as_ptr()));
                    }
                    if epilogue.activation == Activation::Relu {
                        y = V::relu(y);
                    }
                    V::store_f(y, out[from].as_mut_ptr());
                }
            }
        }
    }

    /// Asks memory for where numbers of a row go, for so many panels from a channel on.
    #[inline(always)]
    pub fn ask(&self, (row, channel): (usize, usize), panels: usize, channels: usize) {
        if let Shared::Numbers(out) = self {
            let start = out.as_ptr().wrapping_add(row * channels + channel);
            for p in (0..panels).step_by(2) {
                simd::prefetch(start.wrapping_add(p * LANES));
            }
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
