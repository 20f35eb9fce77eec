//! What was measured, for people and for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::process::median;
use crate::rows::{Goal, Row};

pub(crate) struct Measured {
    pub(crate) row: &'static Row,
    /// For each round a value for each of the row's figures.
    pub(crate) rounds: Vec<Vec<f64>>,
    /// The part of the processors' time that others had meanwhile.
    pub(crate) others: f64,
}

impl Measured {
    fn median(&self, figure: usize) -> f64 {
        median(self.rounds.iter().map(|round| round[figure]))
    }

    fn least_and_most(&self, figure: usize) -> (f64, f64) {
        let values = self.rounds.iter().map(|round| round[figure]);
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| {
            (least.min(value), most.max(value))
        })
    }

    /// Whether a figure reaches its goal; `None` if it has none.
    fn reaches(&self, figure: usize) -> Option<bool> {
        match self.row.figures[figure].goal {
            Goal::None => None,
            Goal::AtLeast(goal) => Some(self.median(figure) >= goal),
            Goal::AtMost(goal) => Some(self.median(figure) <= goal),
        }
    }

    fn is_met(&self) -> bool {
        let mut reached = (0..self.row.figures.len()).filter_map(|figure| self.reaches(figure));
        if self.row.one_goal_suffices {
            reached.any(|reached| reached)
        } else {
            reached.all(|reached| reached)
        }
    }
}

/// A table of 80 columns.
pub(crate) fn table(measured: &[Measured]) -> String {
    let mut out = format!("{:<33}{:>11}{:>11}{:>11}{:>14}\n", "", "median", "least", "most", "goal");
    for measured in measured {
        let verdict = if measured.is_met() { "met" } else { "missed" };
        let title = format!("{}: {}", measured.row.name, measured.row.about);
        let others = format!("others {:.0} %", measured.others * 100.0);
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{title:<60}{others:>13}{verdict:>7}");
        for (at, figure) in measured.row.figures.iter().enumerate() {
            let goal = match figure.goal {
                Goal::None => String::new(),
                Goal::AtLeast(goal) => format!(">= {}", digits(goal)),
                Goal::AtMost(goal) => format!("<= {}", digits(goal)),
            };
            let (least, most) = measured.least_and_most(at);
            let [median, least, most] = [measured.median(at), least, most].map(digits);
            let _ = writeln!(out, "  {:<31}{median:>11}{least:>11}{most:>11}{goal:>14}", figure.name);
        }
    }
    out.push_str("others: part of the processors' time that other processes and the kernel had\n");
    out
}

/// One object: rows by name, in them figures by name.
pub(crate) fn json(measured: &[Measured]) -> Value {
    let rows = measured.iter().map(|measured| {
        let figures = measured.row.figures.iter().enumerate().map(|(at, figure)| {
            let (least, most) = measured.least_and_most(at);
            let goal = match figure.goal {
                Goal::None => Value::Null,
                Goal::AtLeast(goal) => json!({ "at_least": goal }),
                Goal::AtMost(goal) => json!({ "at_most": goal }),
            };
            let median = measured.median(at);
            (figure.name.to_owned(), json!({ "median": median, "least": least, "most": most, "goal": goal }))
        });
        let figures: serde_json::Map<_, _> = figures.collect();
        let about = json!({ "about": measured.row.about, "met": measured.is_met(), "others": measured.others, "figures": figures });
        (measured.row.name.to_owned(), about)
    });
    Value::Object(rows.collect())
}

/// Three significant digits or the whole number, with commas.
fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        small if small < 0.1 => 4,
        small if small < 10.0 => 2,
        small if small < 100.0 => 1,
        _ => 0,
    };
    let plain = format!("{value:.decimals$}");
    let whole = plain.split('.').next().unwrap_or_default().len();
    let mut out = String::new();
    for (at, digit) in plain.char_indices() {
        if at > 0 && at < whole && (whole - at).is_multiple_of(3) && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
