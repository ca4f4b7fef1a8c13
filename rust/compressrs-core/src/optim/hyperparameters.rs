//! Hyperparameters: declared once by each rule, with defaults and ranges, and read by
//! name from whatever the caller keeps them in.

use std::fmt;

/// Where the hyperparameters of a parameter group come from.
///
/// Values are returned as they are; ranges are checked by [`Hyperparameters::checked`].
pub trait Source {
    /// What is reported of a value that is missing, of another type, or out of range.
    type Error: From<OutOfRange>;
    /// A number.
    ///
    /// # Errors
    /// If it is missing or no number.
    fn number(&self, name: &'static str) -> Result<f64, Self::Error>;
    /// A number; None if it is left out.
    ///
    /// # Errors
    /// If it is missing or no number.
    fn optional(&self, name: &'static str) -> Result<Option<f64>, Self::Error>;
    /// A truth value.
    ///
    /// # Errors
    /// If it is missing or no truth value.
    fn flag(&self, name: &'static str) -> Result<bool, Self::Error>;
    /// `N` numbers, of which those that are `optional` may be left out as None.
    ///
    /// # Errors
    /// If they are missing, no numbers, or not `N`.
    fn numbers<const N: usize>(
        &self,
        name: &'static str,
        optional: [bool; N],
    ) -> Result<[Option<f64>; N], Self::Error>;
    /// The index of one of the options; None if it is left out.
    ///
    /// # Errors
    /// If it is missing or none of the options.
    fn choice(&self, name: &'static str, options: &[&str]) -> Result<Option<usize>, Self::Error>;
}

/// A default, for those who show or compare it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number.
    Number(f64),
    /// A truth value.
    Flag(bool),
    /// Several numbers; None where one is left out.
    Numbers(Vec<Option<f64>>),
    /// Left out.
    Nothing,
    /// One of several options.
    Choice(&'static str),
}

/// The type of a hyperparameter.
pub trait Parameter: Copy {
    /// Reads it.
    ///
    /// # Errors
    /// As the source says.
    fn read<S: Source>(source: &S, name: &'static str) -> Result<Self, S::Error>;
    /// The value.
    fn value(&self) -> Value;
    /// Requires that each of its numbers lies in the range.
    ///
    /// # Errors
    /// If one does not.
    fn check(&self, name: &'static str, range: &Range) -> Result<(), OutOfRange> {
        match self.value() {
            Value::Number(x) => range.check(name, None, x),
            Value::Numbers(all) => all
                .into_iter()
                .enumerate()
                .filter_map(|(i, x)| Some((i, x?)))
                .try_for_each(|(i, x)| range.check(name, Some(i), x)),
            Value::Flag(_) | Value::Nothing | Value::Choice(_) => Ok(()),
        }
    }
}

impl Parameter for f64 {
    fn read<S: Source>(source: &S, name: &'static str) -> Result<Self, S::Error> {
        source.number(name)
    }
    fn value(&self) -> Value {
        Value::Number(*self)
    }
}

impl Parameter for Option<f64> {
    fn read<S: Source>(source: &S, name: &'static str) -> Result<Self, S::Error> {
        source.optional(name)
    }
    fn value(&self) -> Value {
        self.map_or(Value::Nothing, Value::Number)
    }
}

impl Parameter for bool {
    fn read<S: Source>(source: &S, name: &'static str) -> Result<Self, S::Error> {
        source.flag(name)
    }
    fn value(&self) -> Value {
        Value::Flag(*self)
    }
}

impl<const N: usize> Parameter for [f64; N] {
    fn read<S: Source>(source: &S, name: &'static str) -> Result<Self, S::Error> {
        // None is NaN, which no range takes.
        Ok(source.numbers(name, [false; N])?.map(|x| x.unwrap_or(f64::NAN)))
    }
    fn value(&self) -> Value {
        Value::Numbers(self.iter().copied().map(Some).collect())
    }
}

impl Parameter for (Option<f64>, f64) {
    fn read<S: Source>(source: &S, name: &'static str) -> Result<Self, S::Error> {
        let [first, second] = source.numbers(name, [true, false])?;
        Ok((first, second.unwrap_or(f64::NAN)))
    }
    fn value(&self) -> Value {
        Value::Numbers(vec![self.0, Some(self.1)])
    }
}

/// A range of numbers.
pub struct Range {
    /// What a number must be, as in "a finite number >= 0".
    pub need: &'static str,
    /// Whether a number is that.
    pub holds: fn(f64) -> bool,
}

impl Range {
    /// Finite.
    pub const FINITE: Range = Range { need: "a finite number", holds: |x| x.is_finite() };
    /// `[0, inf)`
    pub const NON_NEGATIVE: Range =
        Range { need: "a finite number >= 0", holds: |x| x.is_finite() && x >= 0.0 };
    /// `(-inf, 0]`
    pub const NON_POSITIVE: Range =
        Range { need: "a finite number <= 0", holds: |x| x.is_finite() && x <= 0.0 };
    /// `(0, inf)`
    pub const POSITIVE: Range =
        Range { need: "a finite number > 0", holds: |x| x.is_finite() && x > 0.0 };
    /// `[1, inf)`
    pub const AT_LEAST_ONE: Range =
        Range { need: "a finite number >= 1", holds: |x| x.is_finite() && x >= 1.0 };
    /// `[1, inf]`
    pub const GROWTH: Range = Range { need: "a number >= 1", holds: |x| x >= 1.0 };
    /// Whole numbers from 0 to 99.
    pub const BELOW_100: Range = Range {
        need: "a whole number from 0 to 99",
        holds: |x| (0.0..100.0).contains(&x) && x.fract() == 0.0,
    };
    /// Whole numbers from 1 on.
    pub const COUNT: Range = Range {
        need: "a whole number from 1 to 10^9",
        holds: |x| (1.0..=1e9).contains(&x) && x.fract() == 0.0,
    };
    /// `[0, 1]`, of what a moving average keeps of its old value, or a sum.
    pub const UP_TO_ONE: Range = Range { need: "in [0, 1]", holds: |x| (0.0..=1.0).contains(&x) };
    /// `[0, 1)`, of what a moving average keeps of its old value.
    pub const DECAY_RATE: Range = Range { need: "in [0, 1)", holds: |x| (0.0..1.0).contains(&x) };

    fn check(
        &self,
        name: &'static str,
        index: Option<usize>,
        value: f64,
    ) -> Result<(), OutOfRange> {
        require(name, index, value, (self.holds)(value), self.need)
    }
}

/// A hyperparameter outside its range.
#[derive(Clone, Debug, PartialEq)]
pub struct OutOfRange {
    /// Name of the hyperparameter.
    pub name: &'static str,
    /// Which of its numbers, if it has several.
    pub index: Option<usize>,
    /// The value given.
    pub value: f64,
    /// What the value must be, as in "a finite number >= 0".
    pub need: &'static str,
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if let Some(index) = self.index {
            write!(f, "[{index}]")?;
        }
        write!(f, " must be {}, got {}", self.need, self.value)
    }
}

impl std::error::Error for OutOfRange {}

/// Requires `ok` of a number.
pub(super) fn require(
    name: &'static str,
    index: Option<usize>,
    value: f64,
    ok: bool,
    need: &'static str,
) -> Result<(), OutOfRange> {
    if ok { Ok(()) } else { Err(OutOfRange { name, index, value, need }) }
}

/// What `hyperparameters!` gives a rule.
pub trait Hyperparameters: Copy + Default {
    /// The rule's name.
    const NAME: &'static str;

    /// Reads and checks them.
    ///
    /// # Errors
    /// If one is missing, of another type, or out of range.
    fn read<S: Source>(source: &S) -> Result<Self, S::Error> {
        Ok(Self::read_unchecked(source)?.checked()?)
    }

    /// Reads them.
    ///
    /// # Errors
    /// If one is missing or of another type.
    fn read_unchecked<S: Source>(source: &S) -> Result<Self, S::Error>;

    /// Checks them: rules assume values in range.
    ///
    /// # Errors
    /// If one is out of range.
    fn checked(self) -> Result<Self, OutOfRange>;

    /// Names and values.
    fn values(&self) -> Vec<(&'static str, Value)>;
}

/// What `hyperparameters!` gives a rule for those who know no more of it than that it is one.
pub trait Common {
    /// Whether the objective is to be maximized: the gradient's sign is flipped.
    fn maximize(&self) -> bool;

    /// Whether weights decay by themselves.
    fn decays_weights(&self) -> bool;
}

/// Declares a rule's hyperparameters: its name, then `name: type = default, range;` for
/// each, where flags need no range, and a check of what no range can say after `where`.
/// Every rule has `maximize` as well.
macro_rules! hyperparameters {
    (
        $(#[$doc:meta])*
        $rule:ident = $name:literal {
            $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr $(, $range:ident)?;)*
        }
        $(where $check:expr)?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct $rule {
            $($(#[$field_doc])* pub $field: $type,)*
            /// Whether the objective is maximized rather than minimized.
            pub maximize: bool,
        }

        impl Default for $rule {
            fn default() -> Self {
                $rule { $($field: $default,)* maximize: false }
            }
        }

        impl $crate::optim::hyperparameters::Common for $rule {
            fn maximize(&self) -> bool {
                self.maximize
            }

            fn decays_weights(&self) -> bool {
                use $crate::optim::hyperparameters::{Hyperparameters, Value};
                let of_decay = |(name, value): &(&str, Value)| {
                    *name == "weight_decay" && *value != Value::Number(0.0)
                };
                self.values().iter().any(of_decay)
            }
        }

        impl $crate::optim::hyperparameters::Hyperparameters for $rule {
            const NAME: &'static str = $name;

            fn read_unchecked<S: $crate::optim::hyperparameters::Source>(
                source: &S,
            ) -> Result<Self, S::Error> {
                use $crate::optim::hyperparameters::Parameter;
                Ok($rule {
                    $($field: Parameter::read(source, stringify!($field))?,)*
                    maximize: Parameter::read(source, "maximize")?,
                })
            }

            fn checked(self) -> Result<Self, $crate::optim::hyperparameters::OutOfRange> {
                use $crate::optim::hyperparameters::{Parameter, Range};
                $($(Parameter::check(&self.$field, stringify!($field), &Range::$range)?;)?)*
                $(($check)(&self)?;)?
                Ok(self)
            }

            fn values(&self) -> Vec<(&'static str, $crate::optim::hyperparameters::Value)> {
                use $crate::optim::hyperparameters::Parameter;
                vec![
                    $((stringify!($field), Parameter::value(&self.$field)),)*
                    ("maximize", Parameter::value(&self.maximize)),
                ]
            }
        }
    };
}
pub(super) use hyperparameters;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::optim::reader;

    hyperparameters! {
        /// A made-up rule, to show what a declaration gives.
        MadeUp = "made_up" {
            /// A number.
            lr: f64 = 0.5, NON_NEGATIVE;
            /// Two numbers.
            betas: [f64; 2] = [0.5, 0.25], DECAY_RATE;
            /// A flag.
            nesterov: bool = false;
        }
        where |rule: &MadeUp| {
            let ok = !rule.nesterov || rule.lr > 0.0;
            require("lr", None, rule.lr, ok, "> 0 for nesterov=True")
        }
    }

    /// Named values; those that are not there are errors.
    struct Values(HashMap<&'static str, Value>);

    #[derive(Debug, PartialEq)]
    enum Refused {
        Missing(&'static str),
        Range(OutOfRange),
    }

    impl From<OutOfRange> for Refused {
        fn from(error: OutOfRange) -> Self {
            Refused::Range(error)
        }
    }

    impl Source for Values {
        type Error = Refused;
        fn number(&self, name: &'static str) -> Result<f64, Refused> {
            match self.0.get(name) {
                Some(Value::Number(x)) => Ok(*x),
                _ => Err(Refused::Missing(name)),
            }
        }
        fn optional(&self, name: &'static str) -> Result<Option<f64>, Refused> {
            match self.0.get(name) {
                Some(Value::Nothing) => Ok(None),
                _ => self.number(name).map(Some),
            }
        }
        fn flag(&self, name: &'static str) -> Result<bool, Refused> {
            match self.0.get(name) {
                Some(Value::Flag(x)) => Ok(*x),
                _ => Err(Refused::Missing(name)),
            }
        }
        fn numbers<const N: usize>(
            &self,
            name: &'static str,
            _: [bool; N],
        ) -> Result<[Option<f64>; N], Refused> {
            match self.0.get(name) {
                Some(Value::Numbers(x)) => x.clone().try_into().map_err(|_| Refused::Missing(name)),
                _ => Err(Refused::Missing(name)),
            }
        }
        fn choice(&self, name: &'static str, options: &[&str]) -> Result<Option<usize>, Refused> {
            match self.0.get(name) {
                Some(Value::Choice(x)) => Ok(options.iter().position(|option| option == x)),
                _ => Err(Refused::Missing(name)),
            }
        }
    }

    fn with(changes: &[(&'static str, Value)]) -> Values {
        let defaults = MadeUp::default().values();
        Values(defaults.into_iter().chain(changes.iter().cloned()).collect())
    }

    #[test]
    fn defaults_are_read_back() {
        assert_eq!(MadeUp::read(&with(&[])), Ok(MadeUp::default()));
        assert_eq!(MadeUp::NAME, "made_up");
        let rule = MadeUp::read(&with(&[("maximize", Value::Flag(true))])).unwrap();
        assert!(rule.maximize());
    }

    #[test]
    fn what_is_out_of_range_is_named_with_its_place() {
        let message = |changes: &[_]| match MadeUp::read(&with(changes)) {
            Err(Refused::Range(error)) => error.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            message(&[("lr", Value::Number(f64::NAN))]),
            "lr must be a finite number >= 0, got NaN"
        );
        assert_eq!(
            message(&[("betas", Value::Numbers(vec![Some(0.5), Some(1.0)]))]),
            "betas[1] must be in [0, 1), got 1"
        );
        assert_eq!(
            message(&[("lr", Value::Number(0.0)), ("nesterov", Value::Flag(true))]),
            "lr must be > 0 for nesterov=True, got 0"
        );
        let missing = Values(HashMap::new());
        assert_eq!(MadeUp::read(&missing), Err(Refused::Missing("lr")));
    }

    #[test]
    fn every_rule_is_read_from_its_own_defaults() {
        for (name, values) in crate::optim::rules() {
            let values = Values(values.into_iter().collect());
            assert!(reader(name).unwrap()(&values).is_ok(), "{name}");
        }
        assert!(reader::<Values>("no such rule").is_none());
    }
}
