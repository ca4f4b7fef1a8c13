//! Ranges of hyperparameters, and how they are read.

use compressrs_core::optim::{
    Adafactor, AdjustLr, Grafting, Hyperparameters, Muon, OutOfRange, Parameter, Range, Rprop, Sgd,
    Shampoo, Source, Value,
};

#[test]
fn ranges() {
    const INF: f64 = f64::INFINITY;
    let numbers = [
        -INF,
        -1.0,
        -0.5,
        0.0,
        0.5,
        0.999,
        1.0,
        1.5,
        2.0,
        99.0,
        99.5,
        100.0,
        1e9,
        1e9 + 1.0,
        1e300,
        INF,
        f64::NAN,
    ];
    let finite = |x: f64| x.abs() < INF;
    let whole = |x: f64| x == x.floor();
    type Expected<'a> = &'a dyn Fn(f64) -> bool;
    let ranges: [(Range, Expected<'_>); 10] = [
        (Range::FINITE, &finite),
        (Range::NON_NEGATIVE, &|x| finite(x) && x >= 0.0),
        (Range::NON_POSITIVE, &|x| finite(x) && x <= 0.0),
        (Range::POSITIVE, &|x| finite(x) && x > 0.0),
        (Range::AT_LEAST_ONE, &|x| finite(x) && x >= 1.0),
        (Range::GROWTH, &|x| x >= 1.0),
        (Range::BELOW_100, &|x| whole(x) && (0.0..100.0).contains(&x)),
        (Range::COUNT, &|x| whole(x) && (1.0..1e9 + 0.5).contains(&x)),
        (Range::UP_TO_ONE, &|x| (0.0..=1.0).contains(&x)),
        (Range::DECAY_RATE, &|x| (0.0..1.0).contains(&x)),
    ];
    for (range, expected) in ranges {
        for x in numbers {
            assert_eq!((range.holds)(x), expected(x), "{x} is {}", range.need);
        }
    }
}

/// The values of a rule, some of them changed.
struct Changed(Vec<(&'static str, Value)>);

impl Changed {
    fn new<R: Hyperparameters>(changes: &[(&'static str, Value)]) -> Self {
        let mut values = R::default().values();
        for (name, value) in changes {
            let known = values.iter_mut().find(|(known, _)| known == name);
            known.expect("a hyperparameter").1 = value.clone();
        }
        Changed(values)
    }

    fn get(&self, name: &str) -> Value {
        self.0.iter().find(|(known, _)| *known == name).expect("a hyperparameter").1.clone()
    }
}

impl Source for Changed {
    type Error = OutOfRange;

    fn number(&self, name: &'static str) -> Result<f64, OutOfRange> {
        let Value::Number(x) = self.get(name) else { panic!("{name} is no number") };
        Ok(x)
    }

    fn optional(&self, name: &'static str) -> Result<Option<f64>, OutOfRange> {
        match self.get(name) {
            Value::Nothing => Ok(None),
            _ => self.number(name).map(Some),
        }
    }

    fn flag(&self, name: &'static str) -> Result<bool, OutOfRange> {
        let Value::Flag(x) = self.get(name) else { panic!("{name} is no flag") };
        Ok(x)
    }

    fn numbers<const N: usize>(
        &self,
        name: &'static str,
        optional: [bool; N],
    ) -> Result<[Option<f64>; N], OutOfRange> {
        let Value::Numbers(x) = self.get(name) else { panic!("{name} are no numbers") };
        let x: [Option<f64>; N] = x.try_into().expect("as many");
        assert!(x.iter().zip(optional).all(|(x, optional)| x.is_some() || optional), "{name}");
        Ok(x)
    }

    fn choice(&self, name: &'static str, options: &[&str]) -> Result<Option<usize>, OutOfRange> {
        match self.get(name) {
            Value::Choice(x) => Ok(Some(options.iter().position(|o| *o == x).expect("known"))),
            _ => Ok(None),
        }
    }
}

/// What reading a changed rule gives, or the name of what is out of range.
fn read<R: Hyperparameters>(changes: &[(&'static str, Value)]) -> Result<R, String> {
    let named = |error: OutOfRange| match error.index {
        Some(index) => format!("{}[{index}]", error.name),
        None => error.name.to_string(),
    };
    R::read(&Changed::new::<R>(changes)).map_err(named)
}

#[test]
fn choices_are_read_by_name() {
    let names = [
        ("original", AdjustLr::Original, 1.0),
        ("match_rms_adamw", AdjustLr::MatchRmsAdamW, 2.0),
        ("spectral_unclamped", AdjustLr::SpectralUnclamped, 3.0),
    ];
    for (name, choice, lr) in names {
        let changes = [("adjust_lr_fn", Value::Choice(name)), ("lr", Value::Number(lr))];
        let rule: Muon = read(&changes).unwrap();
        assert_eq!(rule, Muon { adjust_lr_fn: choice, lr, ..Default::default() });
        assert_eq!(choice.value(), Value::Choice(name));
    }
    let left_out: Muon = read(&[("adjust_lr_fn", Value::Nothing)]).unwrap();
    assert_eq!(left_out.adjust_lr_fn, AdjustLr::Original);
    let names = [("adam", Grafting::Adam), ("sgd", Grafting::Sgd), ("none", Grafting::Nothing)];
    for (name, grafting) in names {
        let rule: Shampoo = read(&[("grafting", Value::Choice(name))]).unwrap();
        assert_eq!(rule.grafting, grafting);
        assert_eq!(grafting.value(), Value::Choice(name));
    }
}

#[test]
fn numbers_that_may_be_left_out() {
    let eps = |first| Value::Numbers(vec![first, Some(0.25)]);
    for (first, beta1) in [(None, None), (Some(0.5), Some(0.125))] {
        let beta = beta1.map_or(Value::Nothing, Value::Number);
        let rule: Adafactor = read(&[("eps", eps(first)), ("beta1", beta.clone())]).unwrap();
        assert_eq!((rule.eps, rule.beta1), ((first, 0.25), beta1));
        assert_eq!((rule.eps.value(), rule.beta1.value()), (eps(first), beta));
    }
    assert_eq!(read::<Adafactor>(&[("eps", eps(Some(-1.0)))]), Err("eps[0]".into()));
    assert_eq!(read::<Adafactor>(&[("beta1", Value::Number(1.0))]), Err("beta1".into()));
}

#[test]
fn what_no_range_can_say() {
    let etas = |low, high| ("etas", Value::Numbers(vec![Some(low), Some(high)]));
    for (low, high, wrong) in [
        (0.5, 1.2, None),
        (0.0, 1.2, Some("etas[0]")),
        (1.0, 1.2, Some("etas[0]")),
        (0.5, 1.0, Some("etas[1]")),
        (0.5, f64::INFINITY, Some("etas[1]")),
    ] {
        assert_eq!(read::<Rprop>(&[etas(low, high)]).err().as_deref(), wrong);
    }
    let sizes = |low, high| ("step_sizes", Value::Numbers(vec![Some(low), Some(high)]));
    assert!(read::<Rprop>(&[sizes(1.0, 1.0)]).is_ok());
    assert_eq!(read::<Rprop>(&[sizes(1.0, 0.5)]), Err("step_sizes[1]".into()));
    let nesterov = ("nesterov", Value::Flag(true));
    let number = |name, x| (name, Value::Number(x));
    assert_eq!(read::<Sgd>(std::slice::from_ref(&nesterov)), Err("momentum".into()));
    assert!(read::<Sgd>(&[nesterov.clone(), number("momentum", 0.5)]).is_ok());
    let dampened = [nesterov, number("momentum", 0.5), number("dampening", 0.5)];
    assert_eq!(read::<Sgd>(&dampened), Err("dampening".into()));
    assert!(read::<Sgd>(&dampened[1..]).is_ok());
    let betas = |first, second| ("betas", Value::Numbers(vec![Some(first), Some(second)]));
    assert!(read::<Shampoo>(&[betas(0.5, 1.0)]).is_ok());
    assert_eq!(read::<Shampoo>(&[betas(1.0, 1.0)]), Err("betas[0]".into()));
}
