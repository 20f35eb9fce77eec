//! Words that nobody may see: in what is printed, logged or shown of a configuration they are hidden. Used by every node and
//! by the tools, on any thread.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

/// What is shown in place of a secret that is set.
pub const HIDDEN: &str = "<hidden>";

/// What [`Secret::is_header`] wants, in the words of an error.
pub const SECRET_ALLOWED: &str = "letters, digits and signs of ASCII are allowed, without spaces";

/// A password or the like. It is read from a configuration as a text; written and formatted it is [`HIDDEN`].
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("writeOnly" = true))]
pub struct Secret(String);

impl Secret {
    /// The word itself, for whoever has to send or compare it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a header can carry it: it goes from node to node in one.
    pub fn is_header(&self) -> bool {
        self.0.bytes().all(|byte| byte.is_ascii_graphic())
    }

    /// [`HIDDEN`] if it is set.
    pub fn shown(&self) -> &'static str {
        if self.is_empty() { "" } else { HIDDEN }
    }
}

impl From<&str> for Secret {
    fn from(word: &str) -> Self {
        Self(word.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.shown())
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.shown())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_and_never_written() {
        let secret: Secret = serde_json::from_str("\"pssst\"").unwrap();
        assert_eq!(secret.reveal(), "pssst");
        assert_eq!(format!("{secret:?} {:#?}", Some(&secret)), "\"<hidden>\" Some(\n    \"<hidden>\",\n)");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"<hidden>\"");
        // Whether one is set may be seen.
        assert_eq!(format!("{:?}", Secret::default()), "\"\"");
        assert_eq!(serde_json::to_string(&Secret::default()).unwrap(), "\"\"");
    }
}
