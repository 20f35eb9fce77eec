//! Builds a condition from an expression, or says where and why it cannot. Pure; used by [`super::SqlFilter`] only.
//!
//! From loose to tight: OR; AND; one comparison; NOT; a sign; a constant, a property, or parentheses. It recurses at
//! parentheses only, and those are counted.

use karman_remoting::validate::shortened;

use super::condition::{Compare, Comparison, Condition, Number, Operand, Place, TextTest};
use super::lexer::{Lexeme, Lexer, Token};
use super::{
    MAX_CONTAINS, MAX_DEPTH, MAX_EXPRESSION_BYTES, MAX_IN_STRINGS, MAX_PROPERTIES, SqlError, SqlFilter,
};

const OPERAND: &str = "a property, a constant, NOT, a sign or `(`";
const OPERATOR: &str = "=, <>, <, <=, >, >=, IS, BETWEEN, IN, CONTAINS, STARTSWITH, ENDSWITH, NOT with one of the last five, AND, OR";
const JOIN: &str = "AND, OR";

/// Reads an expression.
pub(super) fn parse(expression: &str) -> Result<SqlFilter, SqlError> {
    if expression.len() > MAX_EXPRESSION_BYTES {
        let why = format!(
            "an expression has at most {MAX_EXPRESSION_BYTES} bytes, this one has {}",
            expression.len()
        );
        let position = expression.floor_char_boundary(MAX_EXPRESSION_BYTES);
        return Err(SqlError::new(expression[..position].chars().count(), why));
    }
    let mut lexer = Lexer::new(expression);
    let next = lexer.next()?;
    let mut parser = Parser { lexer, next, depth: 0, contains: 0, properties: Vec::new() };
    let whole = parser.any()?;
    if parser.next.token != Token::End {
        return Err(parser.unexpected_behind(&whole, "the end"));
    }
    Ok(SqlFilter { condition: whole.into_condition()?, properties: parser.properties.into() })
}

struct Parser<'e> {
    lexer: Lexer<'e>,
    /// The token that was read but not yet used.
    next: Lexeme<'e>,
    depth: usize,
    contains: usize,
    properties: Vec<Box<str>>,
}

/// What was read, and where it begins.
struct Part {
    operand: Operand,
    position: usize,
}

impl Part {
    fn of(condition: Condition, position: usize) -> Self {
        Self { operand: Operand::Condition(Box::new(condition)), position }
    }

    /// Where only a condition has a meaning.
    fn into_condition(self) -> Result<Condition, SqlError> {
        match self.operand {
            Operand::Condition(condition) => Ok(*condition),
            Operand::Property(index) => Ok(Condition::Property(index)),
            Operand::Number(_) | Operand::Text(_) => Err(SqlError::new(
                self.position,
                "a constant alone is no condition, compare it with a property",
            )),
        }
    }

    /// Where only what can be ordered has a meaning.
    fn check_ordered(&self) -> Result<(), SqlError> {
        match self.operand {
            Operand::Property(_) | Operand::Number(_) => Ok(()),
            _ => Err(SqlError::new(self.position, "only properties and numbers are less or greater")),
        }
    }

    /// What kind of constant it is, if it is one.
    fn constant(&self) -> Option<&'static str> {
        match &self.operand {
            Operand::Number(_) => Some("a number"),
            Operand::Text(_) => Some("a string"),
            Operand::Condition(condition) => match **condition {
                Condition::Constant(Some(_)) => Some("a boolean"),
                Condition::Constant(None) => Some("NULL"),
                _ => None,
            },
            Operand::Property(_) => None,
        }
    }
}

impl<'e> Parser<'e> {
    fn any(&mut self) -> Result<Part, SqlError> {
        self.joined(Token::Or, Self::all, Condition::Any)
    }

    fn all(&mut self) -> Result<Part, SqlError> {
        self.joined(Token::And, Self::comparison, Condition::All)
    }

    fn joined(
        &mut self,
        word: Token<'_>,
        part: fn(&mut Self) -> Result<Part, SqlError>,
        join: fn(Vec<Condition>) -> Condition,
    ) -> Result<Part, SqlError> {
        let first = part(self)?;
        if self.next.token != word {
            return Ok(first);
        }
        let position = first.position;
        let mut conditions = vec![first.into_condition()?];
        while self.accept(word)? {
            conditions.push(part(self)?.into_condition()?);
        }
        Ok(Part::of(join(conditions), position))
    }

    /// At most one operator: what a second one would mean is said by parentheses.
    fn comparison(&mut self) -> Result<Part, SqlError> {
        let negated = self.next.token == Token::Not;
        let left = self.negation()?;
        let operator = self.next;
        if !operator.token.is_operator() && operator.token != Token::Not {
            return Ok(left);
        }
        if negated {
            let why = format!(
                "NOT takes only what stands right behind it: put parentheses around what is to be negated, \
                 as in NOT (a {} ...)",
                operator.text
            );
            return Err(SqlError::new(operator.position, why));
        }
        self.advance()?;
        let position = left.position;
        let condition = match operator.token {
            Token::Comparison(comparison) => self.compare(left, comparison, operator.position)?,
            Token::Is => self.is_null(left)?,
            Token::Not => {
                let operator = self.next;
                self.advance()?;
                self.range_or_search(left, operator, true)?
            }
            _ => self.range_or_search(left, operator, false)?,
        };
        if self.next.token.is_operator() {
            let why = format!(
                "found `{}` behind a comparison: put one of the two comparisons in parentheses",
                self.next.text
            );
            return Err(SqlError::new(self.next.position, why));
        }
        Ok(Part::of(condition, position))
    }

    /// Behind `=`, `<` and the like.
    fn compare(
        &mut self,
        left: Part,
        comparison: Comparison,
        position: usize,
    ) -> Result<Condition, SqlError> {
        let right = self.negation()?;
        if !matches!(comparison, Comparison::Equal | Comparison::NotEqual) {
            return ordered(left, comparison, right, position);
        }
        for side in [&left, &right] {
            if side.constant() == Some("NULL") {
                let why = "NULL is equal to nothing: write IS NULL or IS NOT NULL";
                return Err(SqlError::new(side.position, why));
            }
        }
        if let (Some(one), Some(other)) = (left.constant(), right.constant())
            && one != other
        {
            return Err(SqlError::new(position, format!("{one} is not compared with {other}")));
        }
        let (left, right) = (left.operand, right.operand);
        Ok(Condition::Compare(Box::new(Compare { left, comparison, right, position })))
    }

    /// Behind `IS`.
    fn is_null(&mut self, tested: Part) -> Result<Condition, SqlError> {
        let negated = self.accept(Token::Not)?;
        self.expect(Token::Null, if negated { "NULL" } else { "NULL or NOT NULL" })?;
        let condition = Condition::IsNull(tested.operand);
        Ok(if negated { not(condition) } else { condition })
    }

    /// Behind `BETWEEN`, `IN`, `CONTAINS` and the like, with or without NOT.
    fn range_or_search(
        &mut self,
        left: Part,
        operator: Lexeme<'_>,
        negated: bool,
    ) -> Result<Condition, SqlError> {
        match operator.token {
            Token::Between => self.between(left, operator.position, negated),
            Token::In => {
                let Operand::Property(index) = left.operand else {
                    return Err(SqlError::new(left.position, "only a property is looked for in a list"));
                };
                let condition = Condition::In(index, self.strings()?);
                Ok(if negated { not(condition) } else { condition })
            }
            Token::Search(place) => {
                if !matches!(left.operand, Operand::Property(_) | Operand::Text(_)) {
                    let why = format!("{} looks only into a property or a string", operator.text);
                    return Err(SqlError::new(left.position, why));
                }
                self.contains += usize::from(place == Place::Anywhere);
                if self.contains > MAX_CONTAINS {
                    let why = format!("an expression has CONTAINS at most {MAX_CONTAINS} times");
                    return Err(SqlError::new(operator.position, why));
                }
                let search = self.string()?;
                Ok(Condition::Text(Box::new(TextTest { text: left.operand, place, search, negated })))
            }
            _ => Err(unexpected(&operator, "BETWEEN, IN, CONTAINS, STARTSWITH or ENDSWITH behind NOT")),
        }
    }

    fn between(&mut self, tested: Part, position: usize, negated: bool) -> Result<Condition, SqlError> {
        let low = self.negation()?;
        self.expect(Token::And, "AND and the upper bound of BETWEEN")?;
        let high = self.negation()?;
        if let (Operand::Number(least), Operand::Number(most)) = (&low.operand, &high.operand)
            && least > most
            && !negated
        {
            return Err(SqlError::new(low.position, "the lower bound of BETWEEN is above the upper one"));
        }
        let again = Part { operand: tested.operand.clone(), position: tested.position };
        let both = Condition::All(vec![
            ordered(tested, Comparison::GreaterOrEqual, low, position)?,
            ordered(again, Comparison::LessOrEqual, high, position)?,
        ]);
        Ok(if negated { not(both) } else { both })
    }

    /// The list behind `IN`, sorted.
    fn strings(&mut self) -> Result<Box<[Box<str>]>, SqlError> {
        self.expect(Token::Open, "`(`")?;
        let mut strings = vec![self.string()?];
        while self.next.token == Token::Comma {
            if strings.len() == MAX_IN_STRINGS {
                let why = format!("a list of IN has at most {MAX_IN_STRINGS} strings");
                return Err(SqlError::new(self.next.position, why));
            }
            self.advance()?;
            strings.push(self.string()?);
        }
        self.expect(Token::Close, "`,` or `)`")?;
        strings.sort_unstable();
        Ok(strings.into())
    }

    fn string(&mut self) -> Result<Box<str>, SqlError> {
        let Token::Text(text) = self.next.token else {
            return Err(unexpected(&self.next, "a string in single quotes"));
        };
        self.advance()?;
        Ok(unquoted(text))
    }

    /// Any number of NOT, and what they negate.
    fn negation(&mut self) -> Result<Part, SqlError> {
        let position = self.next.position;
        let mut negated = None;
        while self.accept(Token::Not)? {
            negated = Some(negated != Some(true));
        }
        let part = self.signed()?;
        Ok(match negated {
            None => part,
            Some(true) => Part::of(not(part.into_condition()?), position),
            Some(false) => Part::of(part.into_condition()?, position),
        })
    }

    fn signed(&mut self) -> Result<Part, SqlError> {
        let position = self.next.position;
        let (mut signs, mut negative) = (false, false);
        while let Token::Plus | Token::Minus = self.next.token {
            negative ^= self.next.token == Token::Minus;
            signs = true;
            self.advance()?;
        }
        let part = self.primary()?;
        if !signs {
            return Ok(part);
        }
        let Operand::Number(number) = part.operand else {
            return Err(SqlError::new(position, "a sign stands only in front of a number"));
        };
        let number = if negative { number.negated() } else { number };
        Ok(Part { operand: Operand::Number(number), position })
    }

    fn primary(&mut self) -> Result<Part, SqlError> {
        let Lexeme { token, position, .. } = self.next;
        let operand = match token {
            Token::Open => return self.parentheses(),
            Token::Property(name) => Operand::Property(self.property(name)?),
            Token::Text(text) => Operand::Text(unquoted(text)),
            Token::Integer(_) | Token::Double(_) => Operand::Number(number(&self.next)?),
            Token::True => Operand::Condition(Box::new(Condition::Constant(Some(true)))),
            Token::False => Operand::Condition(Box::new(Condition::Constant(Some(false)))),
            Token::Null => Operand::Condition(Box::new(Condition::Constant(None))),
            _ => return Err(unexpected(&self.next, OPERAND)),
        };
        self.advance()?;
        Ok(Part { operand, position })
    }

    fn parentheses(&mut self) -> Result<Part, SqlError> {
        let position = self.next.position;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            let why = format!("parentheses stand within each other at most {MAX_DEPTH} deep");
            return Err(SqlError::new(position, why));
        }
        self.advance()?;
        let inner = self.any()?;
        if self.next.token != Token::Close {
            return Err(self.unexpected_behind(&inner, "`)`"));
        }
        self.advance()?;
        self.depth -= 1;
        Ok(Part { operand: inner.operand, position })
    }

    /// The position of a property among those of the filter.
    fn property(&mut self, name: &str) -> Result<usize, SqlError> {
        if let Some(index) = self.properties.iter().position(|known| **known == *name) {
            return Ok(index);
        }
        if self.properties.len() == MAX_PROPERTIES {
            let why = format!("an expression names at most {MAX_PROPERTIES} different properties");
            return Err(SqlError::new(self.next.position, why));
        }
        self.properties.push(name.into());
        Ok(self.properties.len() - 1)
    }

    fn advance(&mut self) -> Result<(), SqlError> {
        self.next = self.lexer.next()?;
        Ok(())
    }

    fn accept(&mut self, token: Token<'_>) -> Result<bool, SqlError> {
        let found = self.next.token == token;
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn expect(&mut self, token: Token<'_>, expected: &str) -> Result<(), SqlError> {
        if self.accept(token)? { Ok(()) } else { Err(unexpected(&self.next, expected)) }
    }

    /// `close` is what ends the expression or the parentheses.
    fn unexpected_behind(&self, part: &Part, close: &str) -> SqlError {
        let operators = if matches!(part.operand, Operand::Condition(_)) { JOIN } else { OPERATOR };
        unexpected(&self.next, &format!("{operators} or {close}"))
    }
}

fn not(condition: Condition) -> Condition {
    Condition::Not(Box::new(condition))
}

fn ordered(left: Part, comparison: Comparison, right: Part, position: usize) -> Result<Condition, SqlError> {
    left.check_ordered()?;
    right.check_ordered()?;
    let (left, right) = (left.operand, right.operand);
    Ok(Condition::Compare(Box::new(Compare { left, comparison, right, position })))
}

fn unquoted(text: &str) -> Box<str> {
    text.replace("''", "'").into()
}

/// Of a token that is a number.
fn number(lexeme: &Lexeme<'_>) -> Result<Number, SqlError> {
    let number = match lexeme.token {
        Token::Integer(digits) => digits.parse().ok().map(Number::Integer),
        Token::Double(text) => {
            text.parse().ok().filter(|double: &f64| double.is_finite()).map(Number::Double)
        }
        _ => None,
    };
    number.ok_or_else(|| {
        let why = format!(
            "{} is too large: a whole number is at most {}, another one at most {:e}",
            shortened(lexeme.text),
            i64::MAX,
            f64::MAX
        );
        SqlError::new(lexeme.position, why)
    })
}

fn unexpected(found: &Lexeme<'_>, expected: &str) -> SqlError {
    let what = match found.token {
        Token::End => "the end".to_owned(),
        _ => format!("`{}`", shortened(found.text)),
    };
    SqlError::new(found.position, format!("found {what}, expected {expected}"))
}
