//! Expressions, properties, and what comes of them.

mod messages;
mod model;

use super::*;

/// `a=1 b=x` as properties; `~` stands for a blank in a value.
fn properties(text: &str) -> Vec<(String, String)> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').expect("name=value");
        (name.to_owned(), value.replace('~', " "))
    };
    text.split_whitespace().map(pair).collect()
}

fn evaluate(expression: &str, text: &str) -> Result<Option<bool>, EvaluateError> {
    let filter = SqlFilter::compile(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
    let properties = properties(text);
    filter.matches(&|name| properties.iter().find(|(known, _)| known == name).map(|(_, value)| &**value))
}

const TRUE: Option<bool> = Some(true);
const FALSE: Option<bool> = Some(false);
const UNKNOWN: Option<bool> = None;

#[track_caller]
fn check(table: &[(&str, &str, Option<bool>)]) {
    for (expression, properties, expected) in table {
        assert_eq!(evaluate(expression, properties), Ok(*expected), "{expression} with {properties}");
    }
}

#[test]
fn texts_are_equal_byte_by_byte() {
    check(&[
        ("color = 'red'", "color=red", TRUE),
        ("color = 'red'", "color=Red", FALSE),
        ("color = 'red'", "Color=red", UNKNOWN),
        ("color <> 'red'", "color=blue", TRUE),
        ("color <> 'red'", "color=red", FALSE),
        ("color <> ''", "color=red", TRUE),
        ("color = 'it''s'", "color=it's", TRUE),
        ("color = ''''", "color='", TRUE),
        ("color = 'größe 中'", "color=größe~中", TRUE),
        ("'red' = color", "color=red", TRUE),
        ("a = b", "a=1 b=1", TRUE),
        ("a = b", "a=1 b=1.0", FALSE),
        ("a <> b", "a=1 b=1.0", TRUE),
        ("'x' = 'x'", "", TRUE),
    ]);
}

#[test]
fn numbers_are_compared_by_value() {
    check(&[
        ("a = 5", "a=5", TRUE),
        ("a = 5", "a=+5", TRUE),
        ("a = 5", "a=~5~", TRUE),
        ("a = 5", "a=5.0", TRUE),
        ("a = 5", "a=0.5e1", TRUE),
        ("a = 5.", "a=5", TRUE),
        ("a > .5", "a=0.6", TRUE),
        ("a > .5", "a=0.5", FALSE),
        ("a >= 5L AND a <= 5l", "a=5", TRUE),
        ("a < 10", "a=9", TRUE),
        ("a < -1", "a=-2", TRUE),
        ("a < - - 1", "a=0", TRUE),
        ("a < -+-(+1)", "a=0", TRUE),
        ("a = -(-1)", "a=1", TRUE),
        ("a > 3.1E10", "a=31415000000.0", TRUE),
        ("a > 1e-3", "a=0.002", TRUE),
        ("a > 0.0", "a=0.002", TRUE),
        ("a = 0", "a=-0.0", TRUE),
        ("a > 5", "a=1700000000000", TRUE),
        ("a = 9223372036854775807", "a=9223372036854775807", TRUE),
        ("a = 9223372036854775807", "a=9223372036854775806", FALSE),
        ("a > 9223372036854775807", "a=1e30", TRUE),
        ("a > 5", "a=99999999999999999999", TRUE),
        ("a > b", "a=9007199254740993 b=9007199254740992", TRUE),
        ("a > b", "a=10 b=9", TRUE),
        ("5 < a", "a=6", TRUE),
        ("5 = 5.0", "", TRUE),
        ("5 > 3", "", TRUE),
    ]);
}

#[test]
fn what_is_no_number_is_an_error_where_a_number_is_needed() {
    for (expression, properties, position) in [
        ("a > 5", "a=abc", 2),
        ("a = 5", "a=abc", 2),
        ("a <> 5", "a=abc", 2),
        ("a > 5", "a=-", 2),
        ("a > 5", "a=.", 2),
        ("a > 5", "a=NaN", 2),
        ("a > 5", "a=inf", 2),
        ("a > 5", "a=-Infinity", 2),
        ("a > 5", "a=0x10", 2),
        ("a > 5", "a=1d", 2),
        ("a > b", "a=1 b=x", 2),
        ("b = 'ä' AND a BETWEEN 1 AND 2", "a=x b=ä", 14),
        ("NOT (a > 5)", "a=abc", 7),
        ("(a > 5) IS NULL", "a=abc", 3),
        ("a > 5 OR b = 1", "a=abc b=1", 2),
    ] {
        let result = evaluate(expression, properties);
        assert_eq!(result, Err(EvaluateError { position }), "{expression} with {properties}");
    }
    assert_eq!(evaluate("a > 5", &format!("a={}", "9".repeat(129))), Err(EvaluateError { position: 2 }));
    check(&[
        // Nothing is read of what need not be known.
        ("b = 1 OR a > 5", "a=abc b=1", TRUE),
        ("b = 2 AND a > 5", "a=abc b=1", FALSE),
        ("a > b", "a=abc", UNKNOWN),
    ]);
}

#[test]
fn a_text_is_true_only_when_compared_with_true() {
    check(&[
        ("a = TRUE", "a=true", TRUE),
        ("a = TRUE", "a=TrUe", TRUE),
        ("a = TRUE", "a=1", FALSE),
        ("a = FALSE", "a=false", TRUE),
        ("a = FALSE", "a=whatever", TRUE),
        ("a <> TRUE", "a=no", TRUE),
        ("TRUE = a", "a=true", TRUE),
        ("a", "a=true", FALSE),
        ("a", "", UNKNOWN),
        ("NOT a", "a=true", TRUE),
        ("NOT NOT a", "a=true", FALSE),
        ("(a > 1) = TRUE", "a=2", TRUE),
        ("(a > 1) = (b > 1)", "a=0 b=0", TRUE),
        ("(a > 1) = b", "a=2 b=true", TRUE),
        ("(a > 1) = 1", "a=2", FALSE),
        ("a = NOT b", "a=true b=x", TRUE),
    ]);
}

#[test]
fn and_or_not_have_three_values() {
    let values = [("TRUE", TRUE), ("FALSE", FALSE), ("NULL", UNKNOWN), ("(missing = 1)", UNKNOWN)];
    for (left, l) in values {
        check(&[(&format!("NOT {left}"), "", l.map(|value| !value)), (left, "", l)]);
        for (right, r) in values {
            let and = if l == FALSE || r == FALSE { FALSE } else { l.and(r) };
            let or = if l == TRUE || r == TRUE { TRUE } else { l.and(r) };
            check(&[(&format!("{left} AND {right}"), "", and), (&format!("{left} OR {right}"), "", or)]);
        }
    }
}

#[test]
fn a_missing_property_is_unknown_where_rocketmq_says_so() {
    check(&[
        ("a = 1", "", UNKNOWN),
        ("a <> 1", "", UNKNOWN),
        ("a > 1", "", UNKNOWN),
        ("1 > a", "", UNKNOWN),
        ("a BETWEEN 1 AND 2", "", UNKNOWN),
        ("a NOT BETWEEN 1 AND 2", "", UNKNOWN),
        ("a BETWEEN b AND 2", "a=3", FALSE),
        ("a BETWEEN b AND 2", "a=1", UNKNOWN),
        ("a IN ('1')", "", UNKNOWN),
        ("a NOT IN ('1')", "", UNKNOWN),
        // The left side decides.
        ("1 = a", "", FALSE),
        ("1 <> a", "", TRUE),
        ("a = b", "b=1", UNKNOWN),
        ("a = b", "a=1", FALSE),
        ("a = b", "", TRUE),
        ("a <> b", "", FALSE),
        // Never unknown.
        ("a CONTAINS 'x'", "", FALSE),
        ("a NOT CONTAINS 'x'", "", FALSE),
        ("a STARTSWITH 'x'", "", FALSE),
        ("a NOT STARTSWITH 'x'", "", FALSE),
        ("a ENDSWITH 'x'", "", FALSE),
        ("a NOT ENDSWITH 'x'", "", FALSE),
        ("a IS NULL", "", TRUE),
        ("a IS NOT NULL", "", FALSE),
        ("a IS NULL", "a=0", FALSE),
        ("a IS NOT NULL", "a=0", TRUE),
        // An empty property is a missing one.
        ("a IS NULL", "a=", TRUE),
        ("a = ''", "a=", UNKNOWN),
        ("a > 5 OR b = 1", "a= b=1", TRUE),
        ("NULL IS NULL", "", TRUE),
        ("1 IS NULL", "", FALSE),
        ("(a > 1) IS NULL", "", TRUE),
        ("(a > 1) IS NOT NULL", "a=0", TRUE),
    ]);
}

#[test]
fn ranges_lists_and_searches() {
    check(&[
        ("a BETWEEN 2 AND 10", "a=2", TRUE),
        ("a BETWEEN 2 AND 10", "a=10", TRUE),
        ("a BETWEEN 2 AND 10", "a=11", FALSE),
        ("a BETWEEN -2.5 AND -1", "a=-2", TRUE),
        ("a BETWEEN b AND c", "a=5 b=1 c=10", TRUE),
        ("5 BETWEEN a AND 10", "a=1", TRUE),
        ("a NOT BETWEEN 2 AND 10", "a=1", TRUE),
        ("a NOT BETWEEN 2 AND 10", "a=2", FALSE),
        ("a NOT BETWEEN 10 AND 2", "a=5", TRUE),
        ("a BETWEEN 1 AND 2 AND b = 1", "a=1 b=1", TRUE),
        ("a IN ('x', 'y','x')", "a=y", TRUE),
        ("a IN ('x', 'y')", "a=X", FALSE),
        ("a IN ('1', '2')", "a=1.0", FALSE),
        ("a NOT IN ('x', 'y')", "a=z", TRUE),
        ("a NOT IN ('x', 'y')", "a=x", FALSE),
        ("a CONTAINS 'ell'", "a=hello", TRUE),
        ("a CONTAINS 'Ell'", "a=hello", FALSE),
        ("a NOT CONTAINS 'ell'", "a=hello", FALSE),
        ("a NOT CONTAINS 'x'", "a=hello", TRUE),
        ("a CONTAINS 'hello!'", "a=hello", FALSE),
        ("a STARTSWITH 'he'", "a=hello", TRUE),
        ("a STARTSWITH 'lo'", "a=hello", FALSE),
        ("a NOT STARTSWITH 'lo'", "a=hello", TRUE),
        ("a ENDSWITH 'lo'", "a=hello", TRUE),
        ("a ENDSWITH 'he'", "a=hello", FALSE),
        ("a NOT ENDSWITH 'he'", "a=hello", TRUE),
        ("'hello' CONTAINS 'ell'", "", TRUE),
        // An empty search finds nothing, and does not fail to find it either.
        ("a CONTAINS ''", "a=hello", FALSE),
        ("a NOT CONTAINS ''", "a=hello", FALSE),
        ("a NOT STARTSWITH ''", "a=hello", FALSE),
        ("a NOT ENDSWITH ''", "a=hello", FALSE),
    ]);
}

#[test]
fn and_binds_tighter_than_or_and_parentheses_tighter_than_both() {
    check(&[
        ("TRUE OR FALSE AND FALSE", "", TRUE),
        ("(TRUE OR FALSE) AND FALSE", "", FALSE),
        ("FALSE AND FALSE OR TRUE", "", TRUE),
        ("NOT FALSE OR TRUE AND FALSE", "", TRUE),
        ("NOT (FALSE OR TRUE)", "", FALSE),
        ("NOT a OR b = 1", "b=1", TRUE),
        ("NOT TRUE AND FALSE", "", FALSE),
        ("NOT (TRUE AND FALSE)", "", TRUE),
        ("((a)) = ((1))", "a=1", TRUE),
    ]);
}

#[test]
fn words_have_any_case_and_anything_may_stand_between_them() {
    check(&[
        ("a bEtWeEn 1 aNd 2 Or b is nOt nuLL", "b=x", TRUE),
        ("a contains 'x' and b startswith 'y' and c endsWith 'z'", "a=x b=y c=z", TRUE),
        ("a=1AND b=2", "a=1 b=2", TRUE),
        ("a\t=\r\n1\x0c", "a=1", TRUE),
        ("a /* one ** / */ = -- two\n 1 -- three", "a=1", TRUE),
        ("a = 1/**/AND/***/b = 1", "a=1 b=1", TRUE),
        ("$a_1 = 1 AND _ = 2 AND like = 3", "$a_1=1 _=2 like=3", TRUE),
    ]);
}

#[test]
fn an_error_says_where_it_is_what_was_found_and_what_may_stand_there() {
    const OPERAND: &str = "expected a property, a constant, NOT, a sign or `(`";
    const OPERATOR: &str = "expected =, <>, <, <=, >, >=, IS, BETWEEN, IN, CONTAINS, STARTSWITH, ENDSWITH, \
                            NOT with one of the last five, AND, OR or the end";
    for (expression, position, why) in [
        ("", 0, &*format!("found the end, {OPERAND}")),
        ("  ", 2, &format!("found the end, {OPERAND}")),
        ("*", 0, "found '*', which means nothing here"),
        ("a and between 2 and 10", 6, &format!("found `between`, {OPERAND}")),
        ("a = ", 4, &format!("found the end, {OPERAND}")),
        ("a LIKE 'x%'", 2, &format!("found `LIKE`, {OPERATOR}")),
        ("a b", 2, &format!("found `b`, {OPERATOR}")),
        ("a = 1 b", 6, "found `b`, expected AND, OR or the end"),
        ("(a = 1", 6, "found the end, expected AND, OR or `)`"),
        ("a = 1)", 5, "found `)`, expected AND, OR or the end"),
        ("a = 'ä' b", 8, "found `b`, expected AND, OR or the end"),
        ("a == 1", 3, &format!("found `=`, {OPERAND}")),
        ("a != 1", 2, "found '!', which means nothing here; not equal is written <>"),
        ("a = \"x\"", 4, "found '\"', which means nothing here; a string is in single quotes"),
        ("größe = 1", 2, "found 'ö', which means nothing here; the name of a property"),
        ("a = 'x", 4, "this string has no end"),
        ("a = 'x''", 4, "this string has no end"),
        ("a = 1 /* x", 6, "this comment has no end"),
        ("a = 007", 4, "a whole number does not begin with 0"),
        ("a = 0x1F", 5, "found `x1F`, expected AND, OR or the end"),
        ("a = 9223372036854775808", 4, "9223372036854775808 is too large"),
        ("a = 1E400", 4, "1E400 is too large"),
        ("a IS 1", 5, "found `1`, expected NULL or NOT NULL"),
        ("a IS NOT 1", 9, "found `1`, expected NULL"),
        ("a IN 'x'", 5, "found `'x'`, expected `(`"),
        ("a IN ()", 6, "found `)`, expected a string in single quotes"),
        ("a IN (1)", 6, "found `1`, expected a string in single quotes"),
        ("a IN ('x' 'y')", 10, "found `'y'`, expected `,` or `)`"),
        ("a CONTAINS 1", 11, "found `1`, expected a string in single quotes"),
        ("a NOT NULL", 6, "found `NULL`, expected BETWEEN, IN, CONTAINS, STARTSWITH or ENDSWITH behind NOT"),
        ("a BETWEEN 1 OR 2", 12, "found `OR`, expected AND and the upper bound of BETWEEN"),
        ("a BETWEEN 10 AND 2", 10, "the lower bound of BETWEEN is above the upper one"),
        ("a BETWEEN NULL AND 2", 10, "only properties and numbers are less or greater"),
        ("a BETWEEN 'x' AND 'y'", 10, "only properties and numbers are less or greater"),
        ("a > 'x'", 4, "only properties and numbers are less or greater"),
        ("TRUE < a", 0, "only properties and numbers are less or greater"),
        ("(a > 1) > 1", 0, "only properties and numbers are less or greater"),
        ("a = NULL", 4, "NULL is equal to nothing: write IS NULL"),
        ("TRUE = 1", 5, "a boolean is not compared with a number"),
        ("'x' <> 1", 4, "a string is not compared with a number"),
        ("5", 0, "a constant alone is no condition"),
        ("a = 1 AND 'x'", 10, "a constant alone is no condition"),
        ("NOT 5", 4, "a constant alone is no condition"),
        ("-a > 1", 0, "a sign stands only in front of a number"),
        ("- TRUE", 0, "a sign stands only in front of a number"),
        ("'x' IN ('x')", 0, "only a property is looked for in a list"),
        ("5 contains '5'", 0, "contains looks only into a property or a string"),
        ("NOT a = 1", 6, "NOT takes only what stands right behind it"),
        ("b = 1 AND NOT a IS NULL", 16, "NOT takes only what stands right behind it"),
        ("NOT a NOT IN ('x')", 6, "NOT takes only what stands right behind it"),
        ("a = b = c", 6, "found `=` behind a comparison: put one of the two comparisons in parentheses"),
        ("a = 1 IS NULL", 6, "found `IS` behind a comparison"),
    ] {
        let error = SqlFilter::compile(expression).expect_err(expression);
        assert_eq!(error.position, position, "{expression}: {error}");
        assert!(error.why.starts_with(why), "{expression}: {error}");
    }
    let error = SqlFilter::compile("a = 1 b").unwrap_err();
    assert_eq!(error.to_string(), "at position 6: found `b`, expected AND, OR or the end");
}

#[test]
fn the_errors_in_the_documentation_are_what_is_said() {
    let page = include_str!("../../../../docs/filters.md");
    let rows =
        page.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |")?.split_once("` | at "));
    let mut count = 0;
    for (expression, said) in rows {
        let error = SqlFilter::compile(expression).expect_err(expression);
        assert_eq!(error.to_string(), format!("at {}", said.replace('\\', "")));
        count += 1;
    }
    assert_eq!(count, 9, "rows of the table");
}

/// The largest that is taken, and the smallest that is not, with its position and the number in its error.
fn check_limit(taken: &str, refused: &str, position: usize, limit: usize) {
    SqlFilter::compile(taken).unwrap_or_else(|error| panic!("{error}"));
    let error = SqlFilter::compile(refused).unwrap_err();
    assert_eq!(error.position, position, "{error}");
    assert!(error.why.contains(&limit.to_string()), "{error}");
}

#[test]
fn each_limit_has_its_error() {
    let long = |bytes: usize| format!("a = '{}'", "é".repeat((bytes - 6) / 2));
    let position = (MAX_EXPRESSION_BYTES - 5) / 2 + 5;
    check_limit(&long(MAX_EXPRESSION_BYTES), &long(MAX_EXPRESSION_BYTES + 2), position, MAX_EXPRESSION_BYTES);

    let deep = |depth: usize| format!("{}a = 1{}", "(".repeat(depth), ")".repeat(depth));
    check_limit(&deep(MAX_DEPTH), &deep(MAX_DEPTH + 1), MAX_DEPTH, MAX_DEPTH);

    let tokens = |count: usize| format!("a={}1", "-+".repeat((count - 3) / 2) + &"-".repeat((count - 3) % 2));
    check_limit(&tokens(MAX_TOKENS), &tokens(MAX_TOKENS + 1), MAX_TOKENS, MAX_TOKENS);

    let names = |count: usize| (0..count).map(|i| format!("a{i:02}")).collect::<Vec<_>>().join(" OR ");
    check_limit(&names(MAX_PROPERTIES), &names(MAX_PROPERTIES + 1), MAX_PROPERTIES * 7, MAX_PROPERTIES);

    let list = |count: usize| format!("a IN ({})", vec!["'x'"; count].join(","));
    check_limit(&list(MAX_IN_STRINGS), &list(MAX_IN_STRINGS + 1), MAX_IN_STRINGS * 4 + 5, MAX_IN_STRINGS);

    let contains = |count: usize| vec!["a CONTAINS 'x'"; count].join(" OR ");
    check_limit(&contains(MAX_CONTAINS), &contains(MAX_CONTAINS + 1), MAX_CONTAINS * 18 + 2, MAX_CONTAINS);
}

#[test]
fn the_deepest_expression_fits_into_half_the_stack_of_a_thread() {
    let deep = |inner: String, _| format!("NOT (FALSE OR TRUE AND (b = 1) = (NOT ({inner})))");
    let expression = (0..(MAX_DEPTH - 1) / 3).fold("a = 1".to_owned(), deep);
    let check = move || {
        let filter = SqlFilter::compile(&expression).unwrap();
        assert!(filter.matches(&|_| Some("1")).unwrap().is_some());
    };
    std::thread::Builder::new().stack_size(1024 * 1024).spawn(check).unwrap().join().unwrap();
}
