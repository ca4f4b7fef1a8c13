//! What a loss is computed of: the teacher, the options, and what rows count.

use super::super::softmax::PerRow;

/// The label of a row that has none.
pub const UNLABELLED: usize = usize::MAX;

/// What measures how far the student's distribution `q` is from the teacher's `p`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// `KL(p || q)`
    ForwardKl,
    /// `KL(q || p)`
    ReverseKl,
    /// `KL(p || m) / 2 + KL(q || m) / 2` with `m = (p + q) / 2`
    JensenShannon,
    /// Decoupled (arXiv 2203.08679): `alpha` times the divergence of the label's
    /// probability against that of all others, `beta` times that among the others.
    Decoupled {
        /// Weight of the target class.
        alpha: f64,
        /// Weight of the others.
        beta: f64,
    },
}

/// What the teacher says of each row.
#[derive(Clone, Debug)]
pub enum Teacher<'a, T> {
    /// Logits.
    Logits(&'a [T]),
    /// Probabilities at `T = 1`: their logarithms are logits.
    Probabilities(&'a [T]),
    /// Logits of several teachers, whose probabilities at the temperature are averaged.
    Ensemble(Vec<&'a [T]>),
    /// The largest logits, and what the others come to.
    TopK(TopK<'a>),
}

/// How the losses of rows become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Each term is the weighted mean over the rows that have it.
    Mean,
    /// Their sum; also for losses that stay apart.
    Sum,
}

/// What [`kd_loss`](super::kd_loss) computes.
#[derive(Clone, Copy, Debug)]
pub struct KdLoss<'a> {
    /// Length of a row.
    pub classes: usize,
    /// Temperature of both softmaxes in the soft term.
    pub temperature: PerRow<'a>,
    /// What the soft term measures.
    pub divergence: Divergence,
    /// Whether logits are divided by their standard deviation first (arXiv 2403.01427).
    pub standardize: bool,
    /// Weight of the soft term; `1 - alpha` is that of the hard term.
    pub alpha: f64,
    /// The class of each row, or [`UNLABELLED`].
    pub labels: Option<&'a [usize]>,
    /// Part of the label's weight that all classes share.
    pub label_smoothing: f64,
    /// Weight of each class in the hard term.
    pub class_weights: Option<&'a [f64]>,
    /// Weight of each row in both terms.
    pub sample_weights: Option<&'a [f64]>,
    /// How rows become one number.
    pub reduction: Reduction,
}

/// The largest logits of each row, in compressed rows.
#[derive(Clone, Copy, Debug)]
pub struct TopK<'a> {
    /// The logits.
    pub values: &'a [f64],
    /// Their classes, ascending in each row.
    pub classes: &'a [i32],
    /// Where each row begins, and the last ends.
    pub offsets: &'a [usize],
    /// `ln sum exp(z / T)` over the classes that are not there; -inf for none.
    pub rest: &'a [f64],
}

impl TopK<'_> {
    /// Whether classes ascend in each row and are in range.
    pub fn is_valid(&self, rows: usize, classes: usize) -> bool {
        self.values.len() == self.classes.len()
            && self.offsets.len() == rows + 1
            && self.rest.len() == rows
            && self.offsets[0] == 0
            && self.offsets[rows] == self.values.len()
            && self.offsets.windows(2).all(|w| {
                w[0] <= w[1]
                    && self.classes.get(w[0]..w[1]).is_some_and(|row| {
                        row.windows(2).all(|c| c[0] < c[1])
                            && row.first().is_none_or(|&c| c >= 0)
                            && row.last().is_none_or(|&c| (c as usize) < classes)
                    })
            })
    }

    pub(super) fn row(&self, row: usize) -> (&[f64], &[i32], f64) {
        let part = self.offsets[row]..self.offsets[row + 1];
        (&self.values[part.clone()], &self.classes[part], self.rest[row])
    }
}

/// What the soft and the hard term of a row count, before its own weight.
#[derive(Clone, Copy)]
pub(super) struct Weights {
    pub soft: f64,
    pub hard: f64,
}

impl Weights {
    pub fn new(what: &KdLoss<'_>, rows: usize) -> Self {
        let (mut soft, mut hard) = (1.0, 1.0);
        if what.reduction == Reduction::Mean {
            let weight = |row| what.sample_weights.map_or(1.0, |v| v[row]);
            soft = (0..rows).map(weight).sum();
            hard = (0..rows)
                .filter_map(|row| {
                    let label = what.label(row)?;
                    Some(weight(row) * what.class_weights.map_or(1.0, |w| w[label]))
                })
                .sum();
        }
        // Where no row counts, there is nothing to take the mean of.
        let share = |part: f64, total: f64| if total > 0.0 { part / total } else { 0.0 };
        Weights { soft: share(what.alpha, soft), hard: share(1.0 - what.alpha, hard) }
    }
}

impl KdLoss<'_> {
    /// The mean of the soft term alone, by forward KL.
    pub fn soft(classes: usize, temperature: f64) -> Self {
        KdLoss {
            classes,
            temperature: PerRow::All(temperature),
            divergence: Divergence::ForwardKl,
            standardize: false,
            alpha: 1.0,
            labels: None,
            label_smoothing: 0.0,
            class_weights: None,
            sample_weights: None,
            reduction: Reduction::Mean,
        }
    }

    pub(super) fn label(&self, row: usize) -> Option<usize> {
        self.labels.map(|labels| labels[row]).filter(|&label| label != UNLABELLED)
    }

    pub(super) fn is_soft(&self) -> bool {
        self.alpha != 0.0
    }

    pub(super) fn is_hard(&self) -> bool {
        self.alpha != 1.0
    }
}
