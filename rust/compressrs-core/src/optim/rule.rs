//! What a rule is, and the lists of all rules and of all elementwise formulas.
//!
//! Rules and [`Update`] know each other: an update is a closed enum, so that a step over
//! many small tensors calls no function by its address.

use super::hyperparameters::{Common, Hyperparameters, Source, Value};
use super::{
    adadelta, adafactor, adagrad, adam, adamax, ademamix, asgd, cautious, lamb, lion, momentum,
    muon, nadam, prodigy, radam, rmsprop, rprop, sgd, shampoo, soap,
};
use crate::numeric::element::Float;

/// The formula of a rule, for one element: all that differs between rules.
pub trait Formula<C: Float, const S: usize>: Copy + Sync {
    /// Which states are [`StateKind::Divisor`]s.
    const DIVISORS: [bool; S] = [false; S];

    /// Whether [`apply`](Self::apply) is [`advance`](Self::advance), then
    /// [`step`](Self::step): what comes slowly, divisions and roots, can then be
    /// waited for while the states are stored.
    const IN_TWO: bool = false;

    /// Which states this step replaces: those of which it keeps nothing, as a moving average
    /// with a decay rate of 0. The loops clear them first, so that [`apply`](Self::apply) adds to
    /// 0: a larger old value would cost the new one digits, an infinite one make it NaN.
    #[inline(always)]
    fn replaces(&self) -> [bool; S] {
        [false; S]
    }

    /// The new value of the parameter `theta` whose gradient is `g`; `state`
    /// holds the rule's state of this element and is updated.
    fn apply(&self, theta: C, g: C, state: &mut [C; S]) -> C;

    /// Updates the state alone.
    #[inline(always)]
    fn advance(&self, theta: C, g: C, state: &mut [C; S]) {
        self.apply(theta, g, state);
    }

    /// The new value of the parameter, given the updated state.
    #[inline(always)]
    fn step(&self, theta: C, _g: C, _state: &[C; S]) -> C {
        theta
    }
}

/// Declares the coefficients of one step of a rule, generic over the type they
/// are used in, with `cast` from the double precision they are computed in.
macro_rules! coefficients {
    (
        $(#[$doc:meta])* $name:ident {
            $($(#[$field_doc:meta])* $field:ident,)*
        } $(flags { $($(#[$flag_doc:meta])* $flag:ident,)* })?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct $name<C> {
            $($(#[$field_doc])* $field: C,)*
            $($($(#[$flag_doc])* $flag: bool,)*)?
        }
        impl $name<f64> {
            pub(super) fn cast<C: $crate::numeric::element::Float>(self) -> $name<C> {
                $name {
                    $($field: C::from_f64(self.$field),)*
                    $($($flag: self.$flag,)*)?
                }
            }
        }
    };
}
pub(super) use coefficients;

/// Declares a variant of a formula: the same coefficients, another `apply`.
macro_rules! variant {
    ($(#[$doc:meta])* $name:ident($inner:ident)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct $name<C>(pub(super) $inner<C>);
        impl $name<f64> {
            pub(super) fn cast<C: $crate::numeric::element::Float>(self) -> $name<C> {
                $name(self.0.cast())
            }
        }
    };
}
pub(super) use variant;

/// The [`Update`] with these coefficients, or its cautious variant of the same name.
macro_rules! variant_of {
    ($cautious:expr, $name:ident, $coefficients:expr) => {
        if $cautious {
            $crate::optim::rule::Update::Cautious($crate::optim::cautious::Cautious::$name(
                $coefficients,
            ))
        } else {
            $crate::optim::rule::Update::$name($coefficients)
        }
    };
}
pub(super) use variant_of;

/// Most state buffers that a rule keeps for a tensor.
pub const MAX_STATES: usize = 6;

/// Most numbers that a rule keeps for a tensor as a whole.
pub const MAX_SCALARS: usize = 3;

/// Numbers kept for a tensor as a whole.
pub type Scalars = [f64; MAX_SCALARS];

/// The shape of a state buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateShape {
    /// That of the parameter.
    Parameter,
    /// That of the parameter, but 1 in the last axis.
    Rows,
    /// That of the parameter, but 1 in the last axis but one.
    Columns,
    /// A square matrix for the rows of each block of the parameter as a matrix, whose rows are
    /// the first axis: `(blocks of columns, rows, rows of a block)`; see `kronecker::block_len`.
    OfRows {
        /// Most rows of a block.
        block_size: usize,
    },
    /// One for the columns of each block: `(blocks of rows, columns, columns of a block)`.
    OfColumns {
        /// Most columns of a block.
        block_size: usize,
    },
    /// That of the parameter as a matrix, and 1 more axis: what belongs to other axes than the
    /// parameter's, so that its masks do not apply.
    Rotated,
}

/// What a state buffer is, which decides how it may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateKind {
    /// A mean of gradients or of steps.
    Moment,
    /// A mean, sum or maximum of squares or magnitudes, that steps are divided by.
    Divisor,
    /// What must not be rounded.
    Exact,
}

/// A state buffer that a rule keeps for each tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct State {
    /// Its name, that of PyTorch where PyTorch has the rule.
    pub name: &'static str,
    /// Its shape.
    pub shape: StateShape,
    /// What it is.
    pub kind: StateKind,
    /// What it holds before the first step.
    pub initial: f64,
}

impl State {
    /// One of the parameter's shape that is 0 at first.
    const fn zeros(name: &'static str, kind: StateKind) -> State {
        State { name, shape: StateShape::Parameter, kind, initial: 0.0 }
    }

    /// A [`StateKind::Moment`] that is 0 at first.
    pub(super) const fn moment(name: &'static str) -> State {
        State::zeros(name, StateKind::Moment)
    }

    /// A [`StateKind::Divisor`] that is 0 at first.
    pub(super) const fn divisor(name: &'static str) -> State {
        State::zeros(name, StateKind::Divisor)
    }

    /// A [`StateKind::Exact`] that is 0 at first.
    pub(super) const fn exact(name: &'static str) -> State {
        State::zeros(name, StateKind::Exact)
    }
}

/// A rule: the hyperparameters of one parameter group, checked.
pub trait Rule: Common {
    /// The state buffers, in the order the formula takes them, for a parameter
    /// with this number of axes.
    fn states(&self, axes: usize) -> Vec<State>;

    /// Names of the numbers that are kept for a tensor as a whole. Before the
    /// first step they are 0.
    fn scalars(&self) -> &'static [&'static str] {
        &[]
    }

    /// The coefficients of step number `t`, counted from 1. `scalars` are updated.
    fn at(&self, t: u64, scalars: &mut Scalars) -> Update;

    /// Whether the rule can update a parameter with this number of axes.
    ///
    /// # Errors
    /// What the number must be.
    fn accepts(&self, _axes: usize) -> Result<(), &'static str> {
        Ok(())
    }

    /// Whether a step may leave out the rows of a parameter that have no gradient. Moments may
    /// be left as they are, as `torch.optim.SparseAdam` does.
    ///
    /// # Errors
    /// What the rule does to all rows in every step.
    fn accepts_rows(&self) -> Result<(), &'static str> {
        if !self.at(1, &mut Scalars::default()).is_elementwise() {
            return Err("takes sums over the whole parameter");
        }
        if self.decays_weights() {
            return Err("decays all weights in every step, unless weight_decay is 0");
        }
        Ok(())
    }
}

/// Lists the elementwise formulas, once for all that is done with each.
macro_rules! updates {
    ($($(#[$doc:meta])* $name:ident($coefficients:ty),)*) => {
        /// The coefficients of one step of a rule, in double precision.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub enum Update {
            $($(#[$doc])* $name($coefficients),)*
            /// Of [`lamb::Lamb`]; needs norms of whole tensors.
            Lamb(lamb::Layerwise<f64>),
            /// Of [`adafactor::Adafactor`]; needs means over rows and columns.
            Adafactor(adafactor::Factored),
            /// Of [`muon::Muon`]; needs products of whole matrices.
            Muon(muon::Orthogonal),
            /// Of cautious rules; needs counts over whole tensors.
            Cautious(cautious::Cautious),
            /// Of [`prodigy::Prodigy`]; needs sums over all tensors.
            Prodigy(prodigy::Distance),
            /// Of [`shampoo::Shampoo`]; needs products of whole matrices.
            Shampoo(shampoo::Preconditioned),
            /// Of [`soap::Soap`]; needs products of whole matrices.
            Soap(soap::Rotated),
        }

        impl Update {
            /// Whether an element's update depends on that element alone.
            pub fn is_elementwise(&self) -> bool {
                matches!(self, $(Update::$name(_))|*)
            }
        }

        /// Runs `$body` with the coefficients of an elementwise [`Update`] as
        /// `$formula`, cast to the compute type, else `$other`.
        macro_rules! dispatch_elementwise {
            ($update:expr, $formula:ident => $body:expr, $other:expr) => {
                match $update {
                    $(Update::$name($formula) => { let $formula = $formula.cast(); $body })*
                    _ => $other,
                }
            };
        }
        pub(super) use dispatch_elementwise;
    };
}

updates! {
    /// Of [`sgd::Sgd`] without momentum.
    Sgd(sgd::Plain<f64>),
    /// Of [`sgd::Sgd`] with momentum.
    SgdMomentum(sgd::WithMomentum<f64>),
    /// Of [`momentum::Momentum`].
    Momentum(momentum::Classical<f64>),
    /// Of [`adagrad::Adagrad`].
    Adagrad(adagrad::Accumulated<f64>),
    /// Of [`rmsprop::RmsProp`].
    RmsProp(rmsprop::Scaled<f64>),
    /// Of [`rmsprop::RmsProp`] with momentum.
    RmsPropMomentum(rmsprop::WithMomentum<f64>),
    /// Of [`rmsprop::RmsProp`], centered.
    RmsPropCentered(rmsprop::Centered<f64>),
    /// Of [`rmsprop::RmsProp`], centered, with momentum.
    RmsPropCenteredMomentum(rmsprop::CenteredMomentum<f64>),
    /// Of [`adadelta::Adadelta`].
    Adadelta(adadelta::Deltas<f64>),
    /// Of [`adam::Adam`].
    Adam(adam::Moments<f64>),
    /// Of [`adam::Adam`] with the largest second moment kept.
    Amsgrad(adam::LargestMoments<f64>),
    /// Of [`adamax::Adamax`].
    Adamax(adamax::InfinityNorm<f64>),
    /// Of [`nadam::NAdam`].
    NAdam(nadam::Nesterov<f64>),
    /// Of [`radam::RAdam`].
    RAdam(radam::Rectified<f64>),
    /// Of [`lion::Lion`].
    Lion(lion::Signs<f64>),
    /// Of [`lion::Lion`] with a decay rate of 0.
    LionReplacing(lion::Replacing<f64>),
    /// Of [`rprop::Rprop`].
    Rprop(rprop::StepSizes<f64>),
    /// Of [`ademamix::AdEmaMix`].
    AdEmaMix(ademamix::Mixed<f64>),
    /// Of [`asgd::Asgd`].
    Asgd(asgd::Averaged<f64>),
}

/// What makes a rule of a group's hyperparameters.
pub type Reader<S> = fn(&S) -> Result<Box<dyn Rule>, <S as Source>::Error>;

/// Lists the rules, once for all that looks them up.
macro_rules! rules {
    ($($rule:ty,)*) => {
        /// Name and default hyperparameters of every rule.
        pub fn rules() -> Vec<(&'static str, Vec<(&'static str, Value)>)> {
            vec![$((<$rule>::NAME, <$rule>::default().values()),)*]
        }

        /// What makes the rule of this name; None if there is none.
        pub fn reader<S: Source>(name: &str) -> Option<Reader<S>> {
            $(if name == <$rule>::NAME {
                return Some(|source| Ok(Box::new(<$rule>::read(source)?)));
            })*
            None
        }
    };
}

rules! {
    adadelta::Adadelta,
    adafactor::Adafactor,
    adagrad::Adagrad,
    adam::Adam,
    adamax::Adamax,
    ademamix::AdEmaMix,
    asgd::Asgd,
    lamb::Lamb,
    lion::Lion,
    momentum::Momentum,
    muon::Muon,
    nadam::NAdam,
    prodigy::Prodigy,
    radam::RAdam,
    rmsprop::RmsProp,
    rprop::Rprop,
    sgd::Sgd,
    shampoo::Shampoo,
    soap::Soap,
}

/// `1 - beta^t`: what a moving average that starts at 0 is divided by.
pub(super) fn bias_correction(beta: f64, t: u64) -> f64 {
    1.0 - beta.powf(t as f64)
}

/// Weight decay as the factor on the parameter that is added to the gradient (an
/// L2 penalty) and the factor that the parameter is multiplied by (decoupled):
/// one of them is neutral.
pub(super) fn weight_decay(lr: f64, weight_decay: f64, decoupled: bool) -> (f64, f64) {
    if decoupled { (0.0, 1.0 - lr * weight_decay) } else { (weight_decay, 1.0) }
}

/// `x / y`, but 0 where `y` is 0: with an `eps` of 0 there is no step where there has
/// been no gradient yet, nor one whose square is above 0.
#[inline(always)]
pub(super) fn quotient<C: Float>(x: C, y: C) -> C {
    let quotient = x / y;
    if y == C::zero() { C::zero() } else { quotient }
}

/// `1` or `-1` with the sign of `x`; 0 and NaN are returned as they are.
#[inline(always)]
pub(super) fn sign<C: Float>(x: C) -> C {
    let one = if x < C::zero() { -C::one() } else { C::one() };
    if x < C::zero() || x > C::zero() { one } else { x }
}
