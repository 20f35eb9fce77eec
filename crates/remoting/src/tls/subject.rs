//! Whom a certificate names: one field, read where the library that verifies certificates leaves it (a parser for all of them
//! would be more code than the rest of TLS). Pure.

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// What stands in a subject. Source: RFC 5280, 4.1.2.4, and X.690, 8.
const SET: u8 = 0x31;
const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// The common name of a certificate's subject. `None`: it has none, or several, of which none counts more than the others.
pub(crate) fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    name_in(certificate.subject())
}

fn name_in(mut subject: &[u8]) -> Option<String> {
    let mut found = None;
    while !subject.is_empty() {
        let (mut set, rest) = element(subject, &[SET])?;
        subject = rest;
        while !set.is_empty() {
            let (pair, rest) = element(set, &[SEQUENCE])?;
            set = rest;
            let (kind, value) = element(pair, &[OBJECT_IDENTIFIER])?;
            if kind == COMMON_NAME {
                let (text, _) = element(value, &[UTF8_STRING, PRINTABLE_STRING])?;
                if found.replace(text).is_some() {
                    return None;
                }
            }
        }
    }
    str::from_utf8(found?).ok().map(str::to_owned)
}

/// The content of the element that `bytes` begin with, if it is one of `kinds`, and what is behind it.
fn element<'a>(bytes: &'a [u8], kinds: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (_, bytes) = bytes.split_first().filter(|(kind, _)| kinds.contains(kind))?;
    let (length, bytes) = match bytes {
        [short @ 0..=0x7f, rest @ ..] => (usize::from(*short), rest),
        [0x81, length, rest @ ..] => (usize::from(*length), rest),
        [0x82, high, low, rest @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), rest),
        _ => return None,
    };
    bytes.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};

    use super::*;

    fn named(names: &[(DnType, DnValue)]) -> Option<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, name) in names {
            params.distinguished_name.push(kind.clone(), name.clone());
        }
        common_name(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der())
    }

    #[test]
    fn the_one_common_name_is_found_in_any_company() {
        let utf8 = |text: &str| DnValue::Utf8String(text.to_owned());
        let company = (DnType::OrganizationName, utf8(&"a company ".repeat(20)));
        let printable = DnValue::PrintableString("shop-1".try_into().unwrap());
        assert_eq!(named(&[(DnType::CommonName, utf8("Läden"))]).as_deref(), Some("Läden"));
        assert_eq!(named(&[company.clone(), (DnType::CommonName, printable)]).as_deref(), Some("shop-1"));
        let long = "x".repeat(300);
        assert_eq!(named(&[(DnType::CommonName, utf8(&long)), company.clone()]), Some(long));
        assert_eq!(named(&[company]), None);
        assert_eq!(named(&[]), None);
    }

    #[test]
    fn of_two_names_none_counts() {
        let name = |text: &[u8]| {
            let value = [&[UTF8_STRING, u8::try_from(text.len()).unwrap()], text].concat();
            let kind = [&[OBJECT_IDENTIFIER, 3], COMMON_NAME].concat();
            let length = |bytes: usize| u8::try_from(bytes).unwrap();
            let pair = [&[SEQUENCE, length(kind.len() + value.len())], &kind[..], &value].concat();
            [&[SET, length(pair.len())], &pair[..]].concat()
        };
        assert_eq!(name_in(&name(b"a")).as_deref(), Some("a"));
        assert_eq!(name_in(&[name(b"a"), name(b"b")].concat()), None);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_to_its_end(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = name_in(&bytes);
        }
    }
}
