//! Random expressions, written as text in random style, against an evaluation that is as plain as can be; and random
//! text that is no expression.

mod generate;
mod naive;

use proptest::prelude::*;

use super::super::{EvaluateError, SqlFilter};
use super::messages::encoded;
use generate::{messages, token_soup, tree, write};

/// An expression.
#[derive(Clone, Debug)]
enum Tree {
    Property(&'static str),
    /// Its signs, and its digits.
    Number(&'static str, &'static str),
    Text(&'static str),
    Constant(Option<bool>),
    Not(Box<Tree>),
    And(Vec<Tree>),
    Or(Vec<Tree>),
    Compare(Box<Tree>, &'static str, Box<Tree>),
    Between(Box<[Tree; 3]>, bool),
    In(&'static str, Vec<&'static str>, bool),
    Search(Box<Tree>, &'static str, &'static str, bool),
    IsNull(Box<Tree>, bool),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn a_compiled_expression_says_what_the_model_says(
        tree in tree(), style in any::<u64>(), properties in messages(),
    ) {
        let text = write(&tree, style);
        let find = |name: &str| properties.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        let expected = tree.condition(&|name| find(name).filter(|text| !text.is_empty()));
        let filter = match SqlFilter::compile(&text) {
            Ok(filter) => filter,
            // What is written `NOT NOT TRUE` is a constant, and constants of two kinds are not compared.
            Err(error) if error.why.contains("NULL") || error.why.contains("is not compared with") => {
                return Ok(());
            }
            Err(error) => return Err(TestCaseError::fail(format!("{text}: {error}"))),
        };
        let result = filter.matches(&find);
        prop_assert_eq!(result.map_err(|EvaluateError { .. }| ()), expected, "{}", text);

        let message = encoded(&properties, Default::default());
        let matched = filter.matches_message(&message.bytes, &message.system_properties_field);
        prop_assert_eq!(matched.map_err(|_| ()), expected.map(|value| value == Some(true)), "{}", text);
    }

    #[test]
    fn no_text_makes_the_compiler_panic(text in ".{0,60}", soup in token_soup()) {
        for expression in [text, soup] {
            match SqlFilter::compile(&expression) {
                Ok(filter) => {
                    let _ = filter.matches(&|name| (name == "a").then_some("1"));
                }
                Err(error) => prop_assert!(error.position <= expression.chars().count(), "{}", expression),
            }
        }
    }
}
