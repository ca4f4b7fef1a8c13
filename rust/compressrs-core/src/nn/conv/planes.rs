//! What a correlation reads: bands of an image, padded, by remainders of the stride.

use super::OutOfMemory;
use crate::numeric::element::Float;

/// One direction of a correlation: result `j` reads the places `step j + tap` of a source.
#[derive(Clone, Debug)]
pub struct Line {
    /// Places of the source.
    pub source: usize,
    /// Results.
    pub results: usize,
    step: usize,
    /// Which places of the kernel have a part in it.
    pub kernel: Vec<usize>,
    /// For each of these, which of `phases`, and how many places further in it.
    pub taps: Vec<(usize, usize)>,
    /// Remainders modulo `step` that are read, of places counted from `base`.
    phases: Vec<usize>,
    base: isize,
    /// The largest shift among `taps`.
    pub reach: usize,
}

impl Line {
    /// A direction in which `taps` are the places of the kernel and what they read for the
    /// first result.
    pub fn new(
        source: usize,
        results: usize,
        step: usize,
        taps: impl Iterator<Item = (usize, isize)> + Clone,
    ) -> Line {
        let base = taps.clone().map(|(_, at)| at).min().unwrap_or(0);
        let mut line = Line {
            source,
            results,
            step,
            kernel: vec![],
            taps: vec![],
            phases: vec![],
            base,
            reach: 0,
        };
        for (kernel, at) in taps {
            let from = (at - base) as usize;
            let (phase, shift) = (from % step, from / step);
            let slot = line.phases.iter().position(|&p| p == phase).unwrap_or_else(|| {
                line.phases.push(phase);
                line.phases.len() - 1
            });
            line.kernel.push(kernel);
            line.taps.push((slot, shift));
            line.reach = line.reach.max(shift);
        }
        line
    }

    /// The place of the source at `q` of a phase, which may be outside of it.
    #[inline(always)]
    fn place(&self, phase: usize, q: usize) -> isize {
        self.base + (self.step * q + phase) as isize
    }
}

/// Where things are in the planes of a band.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// From one row of a plane to the next.
    pub pitch: usize,
    /// Rows of results in a full band.
    pub band: usize,
    /// Places that results of a full band take, those between its rows included.
    pub places: usize,
    /// From one plane to the next.
    plane: usize,
    /// Planes of a channel.
    planes: usize,
}

impl Layout {
    /// The planes of so many channels; tiles read up to `beyond` places behind the last.
    pub fn new(
        rows: &Line,
        columns: &Line,
        band: usize,
        beyond: usize,
    ) -> Result<Layout, OutOfMemory> {
        let layout = || {
            let pitch = columns.results.checked_add(columns.reach)?;
            let band = band.div_ceil(pitch.max(1)).clamp(1, rows.results.max(1));
            let height = band.checked_add(rows.reach)?;
            let plane = height.checked_mul(pitch)?.checked_add(beyond)?;
            let planes = rows.phases.len() * columns.phases.len();
            let places = (band - 1).checked_mul(pitch)?.checked_add(columns.results)?;
            Some(Layout { pitch, band, places, plane, planes })
        };
        layout().ok_or(OutOfMemory)
    }

    /// Elements of the planes of so many channels.
    pub fn len(&self, channels: usize) -> Option<usize> {
        self.plane.checked_mul(self.planes)?.checked_mul(channels)
    }

    /// Where the first result of a band reads, for each channel and place of the kernel.
    pub fn offsets(&self, rows: &Line, columns: &Line, channels: usize) -> Vec<usize> {
        let mut offsets = Vec::with_capacity(channels * rows.taps.len() * columns.taps.len());
        for c in 0..channels {
            for &(y, down) in &rows.taps {
                for &(x, right) in &columns.taps {
                    let plane = c * self.planes + y * columns.phases.len() + x;
                    offsets.push(plane * self.plane + down * self.pitch + right);
                }
            }
        }
        offsets
    }

    /// Copies what the results from row `first` on read of channels that lie one after
    /// another.
    #[inline(always)]
    pub fn fill<T: Float>(
        &self,
        rows: &Line,
        columns: &Line,
        source: &[T],
        first: usize,
        out: &mut [T],
    ) {
        let of_channel = rows.source * columns.source;
        let planes = out.chunks_exact_mut((self.plane * self.planes).max(1));
        let height = self.band + rows.reach;
        for (c, planes) in planes.enumerate() {
            let channel = &source[c * of_channel..(c + 1) * of_channel];
            let mut planes = planes.chunks_exact_mut(self.plane);
            for &y in &rows.phases {
                for &x in &columns.phases {
                    let Some(plane) = planes.next() else { return };
                    let (lines, beyond) = plane.split_at_mut(height * self.pitch);
                    beyond.fill(T::zero());
                    for (q, line) in lines.chunks_exact_mut(self.pitch.max(1)).enumerate() {
                        let row = rows.place(y, first + q);
                        if row < 0 || row as usize >= rows.source {
                            line.fill(T::zero());
                            continue;
                        }
                        let start = row as usize * columns.source;
                        copy_line(columns, x, &channel[start..start + columns.source], line);
                    }
                }
            }
        }
    }
}

/// Copies the places of a phase, and zeros for those outside.
#[inline(always)]
fn copy_line<T: Float>(columns: &Line, phase: usize, source: &[T], line: &mut [T]) {
    let first = columns.place(phase, 0);
    let step = columns.step;
    // From and to where the places are inside.
    let before = if first < 0 { first.unsigned_abs().div_ceil(step) } else { 0 };
    let before = before.min(line.len());
    let from = (first + (step * before) as isize) as usize;
    let inside = source.len().saturating_sub(from).div_ceil(step).min(line.len() - before);
    line[..before].fill(T::zero());
    let (middle, behind) = line[before..].split_at_mut(inside);
    if step == 1 && inside > 0 {
        middle.copy_from_slice(&source[from..from + inside]);
    } else {
        for (i, x) in middle.iter_mut().enumerate() {
            *x = source[from + step * i];
        }
    }
    behind.fill(T::zero());
}
