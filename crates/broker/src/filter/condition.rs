//! What an expression is compiled to, and its evaluation: RocketMQ's rules for missing properties and for types.
//!
//! The parser builds only what has a meaning and bounds its depth; both recursions here are as deep as that. Nothing is
//! allocated. Pure; any thread.

use std::cmp::Ordering;

use super::EvaluateError;

/// What is TRUE, FALSE or unknown.
#[derive(Clone, Debug)]
pub(super) enum Condition {
    /// `TRUE`, `FALSE`, `NULL`
    Constant(Option<bool>),
    /// A property alone. Its value is a text, which is never TRUE.
    Property(usize),
    Not(Box<Condition>),
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Compare(Box<Compare>),
    IsNull(Operand),
    /// The strings are sorted.
    In(usize, Box<[Box<str>]>),
    Text(Box<TextTest>),
}

/// `left comparison right`
#[derive(Clone, Debug)]
pub(super) struct Compare {
    pub(super) left: Operand,
    pub(super) comparison: Comparison,
    pub(super) right: Operand,
    /// Of the operator in the expression.
    pub(super) position: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// `text CONTAINS 'search'` and its like.
#[derive(Clone, Debug)]
pub(super) struct TextTest {
    pub(super) text: Operand,
    pub(super) place: Place,
    pub(super) search: Box<str>,
    pub(super) negated: bool,
}

/// Where a text is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Anywhere,
    Start,
    End,
}

/// What stands on a side of an operator.
#[derive(Clone, Debug)]
pub(super) enum Operand {
    /// By its position among the filter's properties.
    Property(usize),
    Number(Number),
    Text(Box<str>),
    Condition(Box<Condition>),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    Integer(i64),
    /// Never NaN: it was read from digits.
    Double(f64),
}

/// What an operand is for one message.
enum Value<'a> {
    Text(&'a str),
    Number(Number),
    Boolean(bool),
}

impl Condition {
    /// `text_of` finds the property of a message by its position among the filter's properties.
    pub(super) fn evaluate<'a>(
        &self,
        text_of: &impl Fn(usize) -> Option<&'a str>,
    ) -> Result<Option<bool>, EvaluateError> {
        match self {
            Self::Constant(constant) => Ok(*constant),
            Self::Property(index) => Ok(text_of(*index).map(|_| false)),
            Self::Not(condition) => Ok(condition.evaluate(text_of)?.map(|result| !result)),
            Self::All(conditions) => until(false, conditions, text_of),
            Self::Any(conditions) => until(true, conditions, text_of),
            Self::Compare(compare) => compare.evaluate(text_of),
            Self::IsNull(operand) => Ok(Some(operand.value(text_of)?.is_none())),
            Self::In(index, strings) => {
                let found = |text| strings.binary_search_by(|string| (**string).cmp(text)).is_ok();
                Ok(text_of(*index).map(found))
            }
            Self::Text(test) => test.evaluate(text_of).map(Some),
        }
    }
}

/// AND is decided by the first FALSE, OR by the first TRUE; otherwise one unknown makes the whole unknown.
fn until<'a>(
    decisive: bool,
    conditions: &[Condition],
    text_of: &impl Fn(usize) -> Option<&'a str>,
) -> Result<Option<bool>, EvaluateError> {
    let mut result = Some(!decisive);
    for condition in conditions {
        match condition.evaluate(text_of)? {
            Some(found) if found == decisive => return Ok(Some(decisive)),
            Some(_) => {}
            None => result = None,
        }
    }
    Ok(result)
}

impl Compare {
    fn evaluate<'a>(
        &self,
        text_of: &impl Fn(usize) -> Option<&'a str>,
    ) -> Result<Option<bool>, EvaluateError> {
        let (left, right) = (self.left.value(text_of)?, self.right.value(text_of)?);
        match self.comparison {
            Comparison::Equal => self.equal(left, right),
            Comparison::NotEqual => Ok(self.equal(left, right)?.map(|equal| !equal)),
            ordering => {
                let (Some(left), Some(right)) = (left, right) else { return Ok(None) };
                let (left, right) = (self.number(left)?, self.number(right)?);
                Ok(Some(match ordering {
                    Comparison::Less => left < right,
                    Comparison::LessOrEqual => left <= right,
                    Comparison::Greater => left > right,
                    _ => left >= right,
                }))
            }
        }
    }

    /// RocketMQ looks at the left side first: only a NULL there makes the result unknown.
    fn equal(&self, left: Option<Value>, right: Option<Value>) -> Result<Option<bool>, EvaluateError> {
        let (left, right) = match (left, right) {
            (Some(left), Some(right)) => (left, right),
            (None, None) => return Ok(Some(true)),
            (None, Some(_)) => return Ok(None),
            (Some(_), None) => return Ok(Some(false)),
        };
        Ok(Some(match (left, right) {
            (Value::Text(left), Value::Text(right)) => left == right,
            (Value::Boolean(left), Value::Boolean(right)) => left == right,
            (Value::Text(text), Value::Boolean(boolean)) | (Value::Boolean(boolean), Value::Text(text)) => {
                text.eq_ignore_ascii_case("true") == boolean
            }
            (Value::Boolean(_), Value::Number(_)) | (Value::Number(_), Value::Boolean(_)) => false,
            (left, right) => self.number(left)? == self.number(right)?,
        }))
    }

    fn number(&self, value: Value) -> Result<Number, EvaluateError> {
        let number = match value {
            Value::Number(number) => Some(number),
            Value::Text(text) => Number::read(text),
            Value::Boolean(_) => None,
        };
        number.ok_or(EvaluateError { position: self.position })
    }
}

impl TextTest {
    /// Never unknown: RocketMQ says FALSE of a missing property and of an empty search, negated or not.
    fn evaluate<'a>(&self, text_of: &impl Fn(usize) -> Option<&'a str>) -> Result<bool, EvaluateError> {
        let Some(Value::Text(text)) = self.text.value(text_of)? else { return Ok(false) };
        let search = &*self.search;
        let found = match self.place {
            Place::Anywhere => text.contains(search),
            Place::Start => text.starts_with(search),
            Place::End => text.ends_with(search),
        };
        Ok(!search.is_empty() && found != self.negated)
    }
}

impl Operand {
    fn value<'v, 'a: 'v>(
        &'v self,
        text_of: &impl Fn(usize) -> Option<&'a str>,
    ) -> Result<Option<Value<'v>>, EvaluateError> {
        Ok(match self {
            Self::Property(index) => text_of(*index).map(Value::Text),
            Self::Number(number) => Some(Value::Number(*number)),
            Self::Text(text) => Some(Value::Text(text)),
            Self::Condition(condition) => condition.evaluate(text_of)?.map(Value::Boolean),
        })
    }
}

impl Number {
    /// Longer texts are no numbers, so that reading one costs little.
    const MAX_BYTES: usize = 128;

    /// Reads a property: a decimal number, with or without sign, fraction and exponent, and blanks around it.
    fn read(text: &str) -> Option<Self> {
        if text.len() > Self::MAX_BYTES {
            return None;
        }
        let text = text.trim_matches(|c| c <= ' ');
        if let Ok(integer) = text.parse() {
            return Some(Self::Integer(integer));
        }
        // `parse` would take `inf` and `nan` as well.
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        unsigned
            .starts_with(|c: char| c == '.' || c.is_ascii_digit())
            .then(|| text.parse().ok())?
            .map(Self::Double)
    }

    /// With the other sign.
    pub(super) fn negated(self) -> Self {
        match self {
            Self::Integer(integer) => Self::Integer(-integer),
            Self::Double(double) => Self::Double(-double),
        }
    }

    fn as_double(self) -> f64 {
        match self {
            Self::Integer(integer) => integer as f64,
            Self::Double(double) => double,
        }
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.partial_cmp(other) == Some(Ordering::Equal)
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Integer(left), Self::Integer(right)) => Some(left.cmp(right)),
            (left, right) => left.as_double().partial_cmp(&right.as_double()),
        }
    }
}
