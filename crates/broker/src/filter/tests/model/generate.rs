//! Random trees that are expressions, random messages, and how a tree is written.

use proptest::prelude::*;
use proptest::sample::select;

use super::Tree;

const NAMES: [&str; 5] = ["a", "A", "b", "c", "in_"];
const VALUES: [&str; 26] = [
    "",
    "0",
    "1",
    "2",
    "10",
    "-3",
    "+5",
    "2.5",
    "-0.0",
    ".5",
    "5.",
    "1e1",
    " 7 ",
    "007",
    "true",
    "TRUE",
    "false",
    "abc",
    "it's",
    "größe",
    "9223372036854775807",
    "9223372036854775806",
    "9223372036854775808",
    "NaN",
    "Infinity",
    "0x10",
];
const NUMBERS: [&str; 12] =
    ["0", "1", "2", "5L", "7", "10", "2.5", ".5", "5.", "1E1", "9223372036854775807", "00.25"];
const SEARCHES: [&str; 6] = ["", "1", "e", "ru", "0", "'"];

/// Properties of a message.
pub(super) fn messages() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    prop::sample::subsequence(NAMES.to_vec(), 0..=NAMES.len()).prop_flat_map(|names| {
        let values = prop::collection::vec(select(&VALUES[..]), names.len());
        values.prop_map(move |values| names.iter().copied().zip(values).collect())
    })
}

fn property() -> impl Strategy<Value = Tree> + Clone {
    select(&NAMES[..]).prop_map(Tree::Property)
}

fn number() -> impl Strategy<Value = Tree> + Clone {
    let signs = select(&["", "", "", "-", "+", "- -", "-+"][..]);
    (signs, select(&NUMBERS[..])).prop_map(|(signs, digits)| Tree::Number(signs, digits))
}

fn text() -> impl Strategy<Value = Tree> + Clone {
    select(&VALUES[..]).prop_map(Tree::Text)
}

fn constant() -> impl Strategy<Value = Tree> + Clone {
    select(&[Some(true), Some(false), None][..]).prop_map(Tree::Constant)
}

fn compare(left: Tree, operator: &'static str, right: Tree) -> Tree {
    Tree::Compare(Box::new(left), operator, Box::new(right))
}

/// Conditions that hold no others.
fn simple() -> impl Strategy<Value = Tree> {
    let equality = select(&["=", "<>"][..]);
    let order = select(&["<", "<=", ">", ">="][..]);
    let ordered = prop_oneof![2 => property(), 1 => number()];
    let boolean = any::<bool>().prop_map(|value| Tree::Constant(Some(value)));
    let any_operand = prop_oneof![property(), number(), text(), boolean];
    let swapped = |(left, operator, right, swap): (Tree, _, Tree, _)| match swap {
        false => compare(left, operator, right),
        true => compare(right, operator, left),
    };
    let list = prop::collection::vec(select(&VALUES[..]), 1..6);
    let place = select(&["CONTAINS", "STARTSWITH", "ENDSWITH"][..]);
    prop_oneof![
        1 => constant(),
        1 => property(),
        4 => (property(), equality.clone(), any_operand, any::<bool>()).prop_map(swapped),
        1 => (number(), equality.clone(), number()).prop_map(|(l, o, r)| compare(l, o, r)),
        1 => (text(), equality, text()).prop_map(|(l, o, r)| compare(l, o, r)),
        4 => (ordered.clone(), order, ordered.clone()).prop_map(|(l, o, r)| compare(l, o, r)),
        2 => ([ordered.clone(), ordered.clone(), ordered], any::<bool>()).prop_map(between),
        2 => (select(&NAMES[..]), list, any::<bool>()).prop_map(|(name, list, not)| Tree::In(name, list, not)),
        2 => (prop_oneof![property(), text()], place, select(&SEARCHES[..]), any::<bool>())
            .prop_map(|(tree, place, search, not)| Tree::Search(Box::new(tree), place, search, not)),
        1 => (prop_oneof![property(), number(), text(), constant()], any::<bool>())
            .prop_map(|(tree, not)| Tree::IsNull(Box::new(tree), not)),
    ]
}

/// Bounds in the wrong order are an error of the expression.
fn between((operands, negated): ([Tree; 3], bool)) -> Tree {
    let [_, low, high] = &operands;
    let numbers = matches!((low, high), (Tree::Number(..), Tree::Number(..)));
    let wrong = numbers && compare(low.clone(), ">", high.clone()).condition(&|_| None) == Ok(Some(true));
    Tree::Between(Box::new(operands), negated || wrong)
}

pub(super) fn tree() -> impl Strategy<Value = Tree> {
    simple().prop_recursive(4, 24, 4, |inner| {
        // A constant is compared with its own kind only.
        let condition = inner.clone().prop_map(|tree| match tree {
            Tree::Constant(_) => Tree::Not(Box::new(tree)),
            other => other,
        });
        let side = prop_oneof![condition.clone(), property(), text(), number()];
        let equality = select(&["=", "<>"][..]);
        prop_oneof![
            inner.clone().prop_map(|tree| Tree::Not(Box::new(tree))),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Tree::And),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Tree::Or),
            (condition, equality, side, any::<bool>()).prop_map(|(left, operator, right, swap)| match swap {
                false => compare(left, operator, right),
                true => compare(right, operator, left),
            }),
            (inner, any::<bool>()).prop_map(|(tree, not)| Tree::IsNull(Box::new(tree), not)),
        ]
    })
}

/// Tokens in any order.
pub(super) fn token_soup() -> impl Strategy<Value = String> {
    let token = select(
        &[
            "a",
            "b",
            "1",
            "2.5",
            "1e",
            "'x'",
            "''",
            "'",
            "(",
            ")",
            ",",
            "+",
            "-",
            "--",
            "/*",
            "*/",
            "=",
            "<>",
            "<",
            ">",
            "<=",
            "AND",
            "OR",
            "NOT",
            "BETWEEN",
            "IN",
            "IS",
            "NULL",
            "TRUE",
            "CONTAINS",
            "STARTSWITH",
            "é",
            "\n",
            "!",
        ][..],
    );
    let gap = select(&[" ", " ", ""][..]);
    prop::collection::vec((token, gap), 0..16)
        .prop_map(|parts| parts.into_iter().flat_map(|(token, gap)| [token, gap]).collect())
}

/// Writes a tree with as few parentheses as the grammar allows, and some more; with words in any case, and blanks and
/// comments in any place, as `style` has it.
pub(super) fn write(tree: &Tree, style: u64) -> String {
    let mut writer = Writer { style, text: String::new() };
    writer.part(tree, 0);
    writer.text
}

struct Writer {
    style: u64,
    text: String,
}

/// How tight a tree binds.
fn level(tree: &Tree) -> u8 {
    match tree {
        Tree::Or(_) => 0,
        Tree::And(_) => 1,
        Tree::Compare(..) | Tree::Between(..) | Tree::In(..) | Tree::Search(..) | Tree::IsNull(..) => 2,
        Tree::Not(_) => 3,
        Tree::Property(_) | Tree::Number(..) | Tree::Text(_) | Tree::Constant(_) => 4,
    }
}

impl Writer {
    fn choice(&mut self, of: u64) -> u64 {
        self.style =
            self.style.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.style >> 33) % of
    }

    fn token(&mut self, token: &str) {
        let wordlike = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let needed = wordlike(self.text.chars().last()) == wordlike(token.chars().next());
        let gaps = ["", " ", "\n", "/* and */", "\t-- or '\r\n", "  "];
        let gap = self.choice(gaps.len() as u64) as usize;
        self.text.push_str(if needed && gap == 0 { " " } else { gaps[gap] });
        self.text.push_str(token);
    }

    fn words(&mut self, words: &str) {
        for word in words.split(' ').filter(|word| !word.is_empty()) {
            let word = if self.choice(2) == 0 { word.to_lowercase() } else { word.to_owned() };
            self.token(&word);
        }
    }

    fn string(&mut self, text: &str) {
        self.token(&format!("'{}'", text.replace('\'', "''")));
    }

    /// In parentheses unless it binds at least as tight as `least`.
    fn part(&mut self, tree: &Tree, least: u8) {
        if level(tree) < least || self.choice(8) == 0 {
            self.token("(");
            self.tree(tree);
            self.token(")");
        } else {
            self.tree(tree);
        }
    }

    fn tree(&mut self, tree: &Tree) {
        let not = |negated: &bool| if *negated { "NOT" } else { "" };
        match tree {
            Tree::Property(name) => self.token(name),
            Tree::Number(signs, digits) => self.token(&format!("{signs}{digits}")),
            Tree::Text(text) => self.string(text),
            Tree::Constant(None) => self.words("NULL"),
            Tree::Constant(Some(value)) => self.words(if *value { "TRUE" } else { "FALSE" }),
            Tree::Not(inner) => {
                self.words("NOT");
                self.part(inner, 3);
            }
            Tree::And(trees) => self.joined(trees, "AND", 2),
            Tree::Or(trees) => self.joined(trees, "OR", 1),
            Tree::Compare(left, operator, right) => {
                self.part(left, 4);
                self.token(operator);
                self.part(right, 3);
            }
            Tree::Between(operands, negated) => {
                self.part(&operands[0], 4);
                self.words(&format!("{} BETWEEN", not(negated)));
                self.part(&operands[1], 3);
                self.words("AND");
                self.part(&operands[2], 3);
            }
            Tree::In(name, list, negated) => {
                self.token(name);
                self.words(&format!("{} IN", not(negated)));
                for (index, text) in list.iter().enumerate() {
                    self.token(if index == 0 { "(" } else { "," });
                    self.string(text);
                }
                self.token(")");
            }
            Tree::Search(inner, place, search, negated) => {
                self.part(inner, 4);
                self.words(&format!("{} {place}", not(negated)));
                self.string(search);
            }
            Tree::IsNull(inner, negated) => {
                self.part(inner, 4);
                self.words(&format!("IS {} NULL", not(negated)));
            }
        }
    }

    fn joined(&mut self, trees: &[Tree], word: &str, least: u8) {
        for (index, tree) in trees.iter().enumerate() {
            if index > 0 {
                self.words(word);
            }
            self.part(tree, least);
        }
    }
}
