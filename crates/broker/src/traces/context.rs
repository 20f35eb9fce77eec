//! The W3C context that a message carries: its user properties `traceparent` and `tracestate`, where OpenTelemetry's instrumentation
//! of clients puts them; or its system property `trace_context`, a `traceparent` too. What is malformed is as if it were not there.
//! Pure.

use std::str;

use karman_remoting::message::EncodedMessage;
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{SpanContext, TraceContextExt as _};
use opentelemetry_sdk::propagation::TraceContextPropagator;

const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";
/// Longer ones are left out: W3C asks nobody to carry more.
const STATE_MAX_BYTES: usize = 512;
/// Version, trace id, span id, flags, and what is between them.
const PARENT_BYTES: usize = 55;

/// What the message says of its trace.
pub(super) fn of(message: &EncodedMessage) -> Option<SpanContext> {
    let property = |name: &str| {
        let found = message.user_properties.iter().find(|(key, _)| key == name.as_bytes());
        found.and_then(|(_, value)| str::from_utf8(value).ok())
    };
    let system = || message.system_properties.trace_context.as_deref();
    let parent = property(PARENT).or_else(system).filter(|text| is_well_formed(text))?;
    let state = property(STATE).filter(|state| state.len() <= STATE_MAX_BYTES);
    let context =
        TraceContextPropagator::new().extract_with_context(&Context::new(), &Carried { parent, state });
    Some(context.span().span_context().clone()).filter(SpanContext::is_valid)
}

/// The library takes more than W3C allows: numbers that are too short, for one.
fn is_well_formed(text: &str) -> bool {
    let bytes = text.as_bytes();
    let Some((fixed, rest)) = bytes.split_at_checked(PARENT_BYTES) else { return false };
    let allowed = |(at, byte): (usize, &u8)| match at {
        2 | 35 | 52 => *byte == b'-',
        _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
    };
    let ends = rest.is_empty() || (!fixed.starts_with(b"00") && rest[0] == b'-');
    ends && fixed.iter().enumerate().all(allowed)
}

struct Carried<'a> {
    parent: &'a str,
    state: Option<&'a str>,
}

impl Extractor for Carried<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            PARENT => Some(self.parent),
            STATE => self.state,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![PARENT, STATE]
    }
}
