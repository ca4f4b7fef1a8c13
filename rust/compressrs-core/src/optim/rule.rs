//! What a rule is.

use std::fmt;

use super::adam::{self, Adam};
use super::momentum::{self, Momentum};
use super::sgd::{self, Sgd};
use crate::element::Float;

/// The formula of a rule, for one element: all that differs between rules.
pub trait Formula<C: Float, const S: usize>: Copy + Sync {
    /// The new value of the parameter `theta` whose gradient is `g`; `state`
    /// holds the rule's state of this element and is updated.
    fn apply(&self, theta: C, g: C, state: &mut [C; S]) -> C;
}

/// Declares the coefficients of one step of a rule, generic over the type they
/// are used in, with `cast` from the double precision they are computed in.
macro_rules! coefficients {
    (
        $(#[$doc:meta])* $name:ident {
            $($(#[$field_doc:meta])* $field:ident,)*
        } $(flags { $($flag:ident,)* })?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct $name<C> {
            $($(#[$field_doc])* $field: C,)*
            $($($flag: bool,)*)?
        }
        impl $name<f64> {
            pub(super) fn cast<C: $crate::element::Float>(self) -> $name<C> {
                $name {
                    $($field: C::from_f64(self.$field),)*
                    $($($flag: self.$flag,)*)?
                }
            }
        }
    };
}
pub(super) use coefficients;

/// Most state buffers that a rule keeps for a tensor.
pub const MAX_STATES: usize = 3;

/// The hyperparameters of one parameter group, checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// See [`Sgd`].
    Sgd(Sgd),
    /// See [`Momentum`].
    Momentum(Momentum),
    /// See [`Adam`].
    Adam(Adam),
}

/// The coefficients of one step of a [`Rule`], in double precision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Update {
    /// Of [`Sgd`] without momentum.
    Sgd(sgd::Plain<f64>),
    /// Of [`Sgd`] with momentum.
    SgdMomentum(sgd::WithMomentum<f64>),
    /// Of [`Momentum`].
    Momentum(momentum::Classical<f64>),
    /// Of [`Adam`].
    Adam(adam::Moments<f64>),
    /// Of [`Adam`] with the largest second moment kept.
    Amsgrad(adam::LargestMoments<f64>),
}

impl Rule {
    /// The names of the state buffers, in the order the formula takes them.
    pub fn states(&self) -> &'static [&'static str] {
        match self {
            Rule::Sgd(rule) => rule.states(),
            Rule::Momentum(_) => Momentum::STATES,
            Rule::Adam(rule) => rule.states(),
        }
    }

    /// The coefficients of step number `t`, counted from 1.
    pub fn at(&self, t: u64) -> Update {
        match self {
            Rule::Sgd(rule) => rule.at(t),
            Rule::Momentum(rule) => rule.at(),
            Rule::Adam(rule) => rule.at(t),
        }
    }

    /// The factor on every gradient: -1 to maximize, else 1.
    pub fn gradient_sign(&self) -> f64 {
        let maximize = match self {
            Rule::Sgd(rule) => rule.maximize,
            Rule::Momentum(rule) => rule.maximize,
            Rule::Adam(rule) => rule.maximize,
        };
        if maximize { -1.0 } else { 1.0 }
    }
}

/// A hyperparameter outside its range.
#[derive(Clone, Debug, PartialEq)]
pub struct OutOfRange {
    /// Name of the hyperparameter.
    pub name: &'static str,
    /// The value given.
    pub value: f64,
    /// What the value must be, as in "a finite number >= 0".
    pub need: &'static str,
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} must be {}, got {}", self.name, self.need, self.value)
    }
}

impl std::error::Error for OutOfRange {}

/// `value` if it is finite and not negative.
pub(super) fn non_negative(name: &'static str, value: f64) -> Result<f64, OutOfRange> {
    require(name, value, value.is_finite() && value >= 0.0, "a finite number >= 0")
}

/// `value` if it lies in `[0, 1)`.
pub(super) fn decay_rate(name: &'static str, value: f64) -> Result<f64, OutOfRange> {
    require(name, value, (0.0..1.0).contains(&value), "in [0, 1)")
}

/// `value` if `ok`.
pub(super) fn require(
    name: &'static str,
    value: f64,
    ok: bool,
    need: &'static str,
) -> Result<f64, OutOfRange> {
    if ok { Ok(value) } else { Err(OutOfRange { name, value, need }) }
}
