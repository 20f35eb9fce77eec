//! The evaluation of an expression, as plain as can be: values are text, numbers are read again each time.

use super::Tree;

/// How a value is told from others of the same text.
enum Kind {
    Text,
    Number,
    Boolean,
}

type Value = Option<(Kind, String)>;
type Find<'f> = &'f dyn Fn(&str) -> Option<&'static str>;

impl Tree {
    /// `Err` when a number is needed and there is none.
    pub(super) fn condition(&self, find: Find) -> Result<Option<bool>, ()> {
        Ok(match self {
            Self::Constant(constant) => *constant,
            Self::Property(name) => find(name).map(|_| false),
            Self::Not(tree) => tree.condition(find)?.map(|value| !value),
            Self::And(trees) => trees.iter().try_fold(Some(true), |so_far, tree| match so_far {
                Some(false) => Ok(so_far),
                _ => Ok(match (so_far, tree.condition(find)?) {
                    (_, Some(false)) => Some(false),
                    (Some(true), Some(true)) => Some(true),
                    _ => None,
                }),
            })?,
            // By De Morgan; the order of evaluation is the same.
            Self::Or(trees) => {
                let negated = trees.iter().map(|tree| Self::Not(Box::new(tree.clone()))).collect();
                Self::And(negated).condition(find)?.map(|value| !value)
            }
            Self::Compare(left, operator, right) => compare(left.value(find)?, operator, right.value(find)?)?,
            Self::Between(operands, negated) => {
                let [value, low, high] = &**operands;
                let part = |operator, bound: &Self| {
                    Self::Compare(Box::new(value.clone()), operator, Box::new(bound.clone()))
                };
                match negated {
                    false => Self::And(vec![part(">=", low), part("<=", high)]).condition(find)?,
                    true => Self::Or(vec![part("<", low), part(">", high)]).condition(find)?,
                }
            }
            Self::In(name, list, negated) => find(name).map(|text| list.contains(&text) != *negated),
            Self::Search(tree, place, search, negated) => {
                let found = |text: &str| match *place {
                    "CONTAINS" => text.contains(search),
                    "STARTSWITH" => text.starts_with(search),
                    _ => text.ends_with(search),
                };
                let text = tree.value(find)?.filter(|_| !search.is_empty());
                Some(text.is_some_and(|(_, text)| found(&text) != *negated))
            }
            Self::IsNull(tree, negated) => Some(tree.value(find)?.is_none() != *negated),
            Self::Number(..) | Self::Text(_) => unreachable!("a number and a text are no conditions"),
        })
    }

    fn value(&self, find: Find) -> Result<Value, ()> {
        Ok(match self {
            Self::Property(name) => find(name).map(|text| (Kind::Text, text.to_owned())),
            Self::Text(text) => Some((Kind::Text, (*text).to_owned())),
            Self::Number(signs, digits) => {
                let sign = if signs.matches('-').count() % 2 == 1 { "-" } else { "" };
                Some((Kind::Number, format!("{sign}{}", digits.trim_end_matches('L'))))
            }
            _ => self.condition(find)?.map(|value| (Kind::Boolean, value.to_string())),
        })
    }
}

fn compare(left: Value, operator: &str, right: Value) -> Result<Option<bool>, ()> {
    let equality = matches!(operator, "=" | "<>");
    let ((left_kind, left), (right_kind, right)) = match (left, right) {
        (Some(left), Some(right)) => (left, right),
        (None, Some(_)) => return Ok(None),
        (left, _) => return Ok(equality.then(|| left.is_none() == (operator == "="))),
    };
    let order = match (left_kind, right_kind) {
        (Kind::Text, Kind::Text) if equality => left.cmp(&right),
        (Kind::Text | Kind::Boolean, Kind::Text | Kind::Boolean) if equality => {
            left.eq_ignore_ascii_case("true").cmp(&right.eq_ignore_ascii_case("true"))
        }
        (Kind::Boolean, _) | (_, Kind::Boolean) => std::cmp::Ordering::Less,
        _ => match (left.trim().parse::<i64>(), right.trim().parse::<i64>()) {
            (Ok(left), Ok(right)) => left.cmp(&right),
            _ => double(&left)?.partial_cmp(&double(&right)?).ok_or(())?,
        },
    };
    let sign = ["<", "=", ">"][(order as i8 + 1) as usize];
    Ok(Some(operator.contains(sign)))
}

fn double(text: &str) -> Result<f64, ()> {
    let text = text.trim();
    let plain = text.chars().all(|c| "0123456789+-.eE".contains(c));
    if plain { text.parse().map_err(|_| ()) } else { Err(()) }
}
