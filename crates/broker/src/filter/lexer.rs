//! Splits an expression into tokens. Pure; used by the parser only.

use super::condition::{Comparison, Place};
use super::{MAX_TOKENS, SqlError};

/// The smallest parts of an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'e> {
    End,
    Open,
    Close,
    Comma,
    Plus,
    Minus,
    Comparison(Comparison),
    And,
    Or,
    Not,
    Between,
    In,
    Is,
    True,
    False,
    Null,
    /// `CONTAINS`, `STARTSWITH`, `ENDSWITH`
    Search(Place),
    Property(&'e str),
    Integer(&'e str),
    Double(&'e str),
    /// What stands between the quotes.
    Text(&'e str),
}

impl Token<'_> {
    /// Stands between two operands.
    pub(super) fn is_operator(self) -> bool {
        matches!(self, Self::Comparison(_) | Self::Between | Self::In | Self::Is | Self::Search(_))
    }
}

/// A token with its text and where that begins, in characters from 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lexeme<'e> {
    pub(super) token: Token<'e>,
    pub(super) text: &'e str,
    pub(super) position: usize,
}

#[derive(Debug)]
pub(super) struct Lexer<'e> {
    rest: &'e str,
    /// Where `rest` begins, in characters from 0.
    position: usize,
    tokens: usize,
}

/// Reserved, in any case; everything else that looks like a word is the name of a property.
const WORDS: [(&str, Token<'static>); 12] = [
    ("AND", Token::And),
    ("OR", Token::Or),
    ("NOT", Token::Not),
    ("BETWEEN", Token::Between),
    ("IN", Token::In),
    ("IS", Token::Is),
    ("TRUE", Token::True),
    ("FALSE", Token::False),
    ("NULL", Token::Null),
    ("CONTAINS", Token::Search(Place::Anywhere)),
    ("STARTSWITH", Token::Search(Place::Start)),
    ("ENDSWITH", Token::Search(Place::End)),
];

/// The longer ones first.
const SIGNS: [(&str, Token<'static>); 11] = [
    ("<>", Token::Comparison(Comparison::NotEqual)),
    ("<=", Token::Comparison(Comparison::LessOrEqual)),
    (">=", Token::Comparison(Comparison::GreaterOrEqual)),
    ("<", Token::Comparison(Comparison::Less)),
    (">", Token::Comparison(Comparison::Greater)),
    ("=", Token::Comparison(Comparison::Equal)),
    ("(", Token::Open),
    (")", Token::Close),
    (",", Token::Comma),
    ("+", Token::Plus),
    ("-", Token::Minus),
];

impl<'e> Lexer<'e> {
    pub(super) fn new(expression: &'e str) -> Self {
        Self { rest: expression, position: 0, tokens: 0 }
    }

    /// The next token; behind the last one, `End` again and again.
    pub(super) fn next(&mut self) -> Result<Lexeme<'e>, SqlError> {
        self.skip_blanks_and_comments()?;
        let position = self.position;
        let (token, length) = self.token()?;
        let text = self.take(length);
        self.tokens += 1;
        if self.tokens > MAX_TOKENS && token != Token::End {
            let why = format!("an expression has at most {MAX_TOKENS} words, constants, names and signs");
            return Err(SqlError::new(position, why));
        }
        Ok(Lexeme { token, text, position })
    }

    /// The token at the start of the rest, and its length in bytes.
    fn token(&self) -> Result<(Token<'e>, usize), SqlError> {
        let Some(first) = self.rest.chars().next() else { return Ok((Token::End, 0)) };
        if first == '\'' {
            return self.text();
        }
        if let Some(number) = self.number()? {
            return Ok(number);
        }
        if let Some((sign, token)) = SIGNS.iter().find(|(sign, _)| self.rest.starts_with(sign)) {
            return Ok((*token, sign.len()));
        }
        let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$');
        let name = &self.rest[..self.rest.bytes().take_while(is_name).count()];
        if name.is_empty() {
            return Err(self.unknown(first));
        }
        let word = WORDS.iter().find(|(word, _)| word.eq_ignore_ascii_case(name));
        Ok((word.map_or(Token::Property(name), |(_, token)| *token), name.len()))
    }

    /// A string, in single quotes; one within it is doubled.
    fn text(&self) -> Result<(Token<'e>, usize), SqlError> {
        let mut from = 1;
        while let Some(at) = self.rest[from..].find('\'') {
            let quote = from + at;
            if !self.rest[quote + 1..].starts_with('\'') {
                return Ok((Token::Text(&self.rest[1..quote]), quote + 1));
            }
            from = quote + 2;
        }
        Err(SqlError::new(self.position, "this string has no end: a single quote is missing"))
    }

    /// A number, if there is one: `5`, `5L`, `5.`, `.5`, `5.5E-3`, `5E3`.
    fn number(&self) -> Result<Option<(Token<'e>, usize)>, SqlError> {
        let digits = |from: usize| self.rest[from..].bytes().take_while(u8::is_ascii_digit).count();
        let whole = digits(0);
        let mut end = whole;
        if self.rest[end..].starts_with('.') {
            end += 1 + digits(end + 1);
        }
        if end <= 1 && whole == 0 {
            return Ok(None);
        }
        let exponent = self.rest[end..].strip_prefix(['e', 'E']);
        let exponent = exponent.map(|exponent| exponent.strip_prefix(['+', '-']).unwrap_or(exponent));
        if let Some(exponent) = exponent.filter(|exponent| exponent.starts_with(|c: char| c.is_ascii_digit()))
        {
            let start = self.rest.len() - exponent.len();
            end = start + digits(start);
        }
        let text = &self.rest[..end];
        if end > whole {
            return Ok(Some((Token::Double(text), end)));
        }
        if whole > 1 && text.starts_with('0') {
            return Err(SqlError::new(self.position, "a whole number does not begin with 0"));
        }
        let suffix = usize::from(self.rest[end..].starts_with(['l', 'L']));
        Ok(Some((Token::Integer(text), end + suffix)))
    }

    fn unknown(&self, found: char) -> SqlError {
        let hint = match found {
            '"' => "; a string is in single quotes",
            '!' => "; not equal is written <>",
            _ => "; the name of a property has only a-z A-Z 0-9 _ $ and begins with no digit",
        };
        SqlError::new(self.position, format!("found {found:?}, which means nothing here{hint}"))
    }

    fn skip_blanks_and_comments(&mut self) -> Result<(), SqlError> {
        loop {
            let length = if self.rest.starts_with("--") {
                self.rest.find(['\n', '\r']).unwrap_or(self.rest.len())
            } else if self.rest.starts_with("/*") {
                let end = self.rest[2..].find("*/");
                end.ok_or_else(|| SqlError::new(self.position, "this comment has no end: `*/` is missing"))?
                    + 4
            } else {
                self.rest
                    .bytes()
                    .take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'\x0c'))
                    .count()
            };
            if length == 0 {
                return Ok(());
            }
            self.take(length);
        }
    }

    fn take(&mut self, length: usize) -> &'e str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        self.position += taken.chars().count();
        taken
    }
}
