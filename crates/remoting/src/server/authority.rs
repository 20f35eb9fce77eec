//! `:authority` made harmless before the HTTP/2 library sees it.
//!
//! Nobody here reads `:authority`, but the library refuses a request whose one is no host with a port (PROTOCOL_ERROR), and
//! the clients on gRPC's C core (Python, C++) make one of all addresses of their access point: `a:9876%2Cb:9876`. From the
//! first byte on that is in no address, every one that is no letter, digit, dot or hyphen becomes a hyphen. The length stays,
//! and so do the sizes of the tables that both sides of the header compression keep.
//!
//! [`Sieve`] is a pure automaton over the bytes of a connection, in whatever pieces they come; it keeps none of them. It runs
//! on the data thread of the connection. A client says the same `:authority` in all requests of a connection: the first one
//! decides whether the others are looked at. Values in Huffman code (the C core uses none) and names taken from the dynamic
//! table are left alone. Sources: RFC 9113, 4.1 and 6.2 (frames); RFC 7541, 5 and 6 (header fields).

const FRAME_HEADER_BYTES: usize = 9;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;

/// See the module's comment.
#[derive(Debug, Default)]
pub(super) struct Sieve {
    at: At,
    fields: Fields,
    /// A value had to be changed.
    changed: bool,
}

/// Where in a frame the next byte is.
#[derive(Clone, Copy, Debug)]
enum At {
    Header {
        bytes: [u8; FRAME_HEADER_BYTES],
        filled: usize,
    },
    /// It says how many bytes of padding end the frame.
    PadLength {
        rest: Body,
    },
    Body(Body),
    /// The first request was in order; the rest of the connection is not looked at.
    Over,
}

/// What is left of a frame: bytes of no interest, header fields, padding.
#[derive(Clone, Copy, Debug)]
struct Body {
    skipped: usize,
    fields: usize,
    padding: usize,
    /// With it the header fields of a request are whole.
    ends_request: bool,
}

impl Default for At {
    fn default() -> Self {
        Self::Header { bytes: [0; FRAME_HEADER_BYTES], filled: 0 }
    }
}

impl Sieve {
    /// Whether nothing more is looked at.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.at, At::Over)
    }

    /// Looks through the next bytes of the connection, behind the preface, and changes them where that is needed.
    pub(super) fn pass(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            match &mut self.at {
                At::Over => return,
                At::Header { bytes: header, filled } => {
                    header[*filled] = bytes[0];
                    *filled += 1;
                    if *filled == FRAME_HEADER_BYTES {
                        self.at = begun(*header);
                    }
                    bytes = &mut bytes[1..];
                }
                At::PadLength { rest: body } => {
                    let padding = usize::from(bytes[0]);
                    self.at =
                        At::Body(Body { fields: body.fields.saturating_sub(padding), padding, ..*body });
                    bytes = &mut bytes[1..];
                }
                At::Body(body) => {
                    let is_fields = body.skipped == 0 && body.fields > 0;
                    let left = match body {
                        Body { skipped, .. } if *skipped > 0 => skipped,
                        Body { fields, .. } if *fields > 0 => fields,
                        Body { padding, .. } => padding,
                    };
                    let (now, later) = bytes.split_at_mut((*left).min(bytes.len()));
                    *left -= now.len();
                    if is_fields {
                        self.changed |= self.fields.pass(now);
                    }
                    bytes = later;
                }
            }
            self.end_frame();
        }
    }

    fn end_frame(&mut self) {
        let At::Body(Body { skipped: 0, fields: 0, padding: 0, ends_request }) = self.at else { return };
        self.at = At::default();
        if ends_request {
            self.fields = Fields::default();
            if !self.changed {
                self.at = At::Over;
            }
        }
    }
}

/// The frame that begins with `header`.
fn begun(header: [u8; FRAME_HEADER_BYTES]) -> At {
    let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
    let (kind, flags) = (header[3], header[4]);
    if kind != HEADERS && kind != CONTINUATION {
        return At::Body(Body { skipped: length, fields: 0, padding: 0, ends_request: false });
    }
    let has = |flag: u8| kind == HEADERS && flags & flag != 0;
    let skipped = if has(PRIORITY) { PRIORITY_BYTES.min(length) } else { 0 };
    let pad_length = usize::from(has(PADDED));
    let fields = length.saturating_sub(skipped + pad_length);
    let rest = Body { skipped, fields, padding: 0, ends_request: flags & END_HEADERS != 0 };
    if has(PADDED) && length > 0 { At::PadLength { rest } } else { At::Body(rest) }
}

/// Where in the header fields of a request the next byte is.
#[derive(Debug, Default)]
struct Fields {
    state: Field,
    /// Of the name that is being read so many bytes are those of `:authority`; `None`: it is another.
    matched: Option<usize>,
    /// The value that follows is that of `:authority`.
    is_authority: bool,
    /// A byte of that value was in no address.
    is_bad: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum Field {
    #[default]
    Start,
    /// A number goes on, seven bits in each byte.
    Number {
        of: Number,
        value: usize,
        shift: u32,
    },
    /// The first byte of a text: its code and length.
    Text {
        is_name: bool,
    },
    Bytes {
        is_name: bool,
        is_plain: bool,
        left: usize,
    },
}

/// What a number says.
#[derive(Clone, Copy, Debug)]
enum Number {
    Nothing,
    NameIndex,
    Length { is_name: bool, is_plain: bool },
}

impl Fields {
    const AUTHORITY: &[u8] = b":authority";
    /// Its place in the static table.
    const AUTHORITY_INDEX: usize = 1;

    /// The next bytes; whether one had to be changed.
    fn pass(&mut self, bytes: &mut [u8]) -> bool {
        let mut changed = false;
        for byte in bytes {
            changed |= self.pass_one(byte);
        }
        changed
    }

    fn pass_one(&mut self, byte: &mut u8) -> bool {
        match &mut self.state {
            Field::Start => match *byte {
                0x80.. => self.begin(Number::Nothing, *byte, 0x7f),
                0x40.. => self.begin(Number::NameIndex, *byte, 0x3f),
                0x20.. => self.begin(Number::Nothing, *byte, 0x1f),
                _ => self.begin(Number::NameIndex, *byte, 0x0f),
            },
            Field::Number { of, value, shift } => {
                // Nothing that long is a header: the HTTP/2 library will say so.
                *value = value.saturating_add(usize::from(*byte & 0x7f) << *shift);
                *shift = (*shift + 7).min(28);
                if *byte < 0x80 {
                    let (of, value) = (*of, *value);
                    self.said(of, value);
                }
            }
            Field::Text { is_name } => {
                let of = Number::Length { is_name: *is_name, is_plain: *byte < 0x80 };
                self.begin(of, *byte, 0x7f);
            }
            Field::Bytes { is_name, is_plain, left } => {
                let (is_name, is_plain) = (*is_name, *is_plain);
                *left -= 1;
                if *left == 0 {
                    self.state = if is_name { Field::Text { is_name: false } } else { Field::Start };
                }
                if is_name {
                    self.matched =
                        self.matched.filter(|at| Self::AUTHORITY.get(*at) == Some(byte)).map(|at| at + 1);
                    self.is_authority = is_plain && self.matched == Some(Self::AUTHORITY.len());
                } else if is_plain && self.is_authority {
                    self.is_bad |= !is_harmless(*byte) && !matches!(*byte, b':' | b'[' | b']' | b'_');
                    if self.is_bad && !is_harmless(*byte) {
                        *byte = b'-';
                        return true;
                    }
                }
            }
        }
        false
    }

    /// A number begins in the bits `mask` of a byte.
    fn begin(&mut self, of: Number, byte: u8, mask: u8) {
        let value = usize::from(byte & mask);
        if byte & mask == mask {
            self.state = Field::Number { of, value, shift: 0 };
        } else {
            self.said(of, value);
        }
    }

    fn said(&mut self, of: Number, value: usize) {
        self.state = match (of, value) {
            (Number::Nothing, _) => Field::Start,
            (Number::NameIndex, 0) => {
                (self.matched, self.is_authority) = (Some(0), false);
                Field::Text { is_name: true }
            }
            (Number::NameIndex, index) => {
                self.is_authority = index == Self::AUTHORITY_INDEX;
                Field::Text { is_name: false }
            }
            (Number::Length { is_name: true, .. }, 0) => Field::Text { is_name: false },
            (Number::Length { is_name: false, .. }, 0) => Field::Start,
            (Number::Length { is_name, is_plain }, left) => Field::Bytes { is_name, is_plain, left },
        };
    }
}

/// It may stand anywhere in a host.
fn is_harmless(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEVERAL: &[u8] = b"10.0.0.1:9876%2C10.0.0.2:9876";
    const HARMLESS: &[u8] = b"10.0.0.1:9876-2C10.0.0.2-9876";

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// A text, plain or marked as Huffman code.
    fn text(of: &[u8], mark: u8) -> Vec<u8> {
        let mut said = Vec::new();
        if of.len() < 0x7f {
            said.push(mark | u8::try_from(of.len()).unwrap());
        } else {
            said.push(mark | 0x7f);
            let mut rest = of.len() - 0x7f;
            while rest >= 0x80 {
                said.push(0x80 | u8::try_from(rest & 0x7f).unwrap());
                rest >>= 7;
            }
            said.push(u8::try_from(rest).unwrap());
        }
        said.extend(of);
        said
    }

    /// As the C core says it: method and scheme from the table, the rest spelt out.
    fn request(authority: &[u8]) -> Vec<u8> {
        let long = vec![b':'; 300];
        let fields = [
            &[0x83, 0x86][..],
            &[0x40],
            &text(b":path", 0),
            &text(b"/a:%", 0),
            &[0x40],
            &text(b":authority", 0),
            &text(authority, 0),
            &[0x0f, 0x03],
            &text(b"x:%", 0),
            &[0x40],
            &text(b"", 0),
            &text(b"", 0),
            &[0x10],
            &text(b"x-authority", 0),
            &text(&long, 0),
        ];
        fields.concat()
    }

    fn passed(mut bytes: Vec<u8>) -> Vec<u8> {
        Sieve::default().pass(&mut bytes);
        bytes
    }

    #[test]
    fn several_addresses_become_a_harmless_word_and_nothing_else_is_touched() {
        let settings = frame(4, 0, &[0, 3, b'%', b':', b'%', b':']);
        for (flags, before, after) in [
            (0, &b""[..], &b""[..]),
            (PRIORITY, &[0, 0, 0, 0, 9], b""),
            (PADDED, &[2], b":%"),
            (PADDED | PRIORITY, &[2, 0, 0, 0, 0, 9], b":%"),
        ] {
            let whole = |authority| {
                let headers = [before, &request(authority), after].concat();
                let data = frame(0, 0, b"\x41\x01%:%:");
                [settings.clone(), frame(4, 1, b""), frame(HEADERS, flags | END_HEADERS, &headers), data]
                    .concat()
            };
            let twice = |authority| [whole(authority), whole(authority)].concat();
            assert_eq!(passed(twice(SEVERAL)), twice(HARMLESS), "{flags:#x}");
        }
    }

    #[test]
    fn what_comes_out_is_an_authority_and_one_that_was_in_order_is_as_it_was() {
        let authority = |said: &[u8]| {
            let passed = passed(frame(HEADERS, END_HEADERS, &[&[0x41], &text(said, 0)[..]].concat()));
            let authority = passed[FRAME_HEADER_BYTES + 2..].to_vec();
            http::uri::Authority::from_maybe_shared(authority.clone()).expect("it is one");
            authority
        };
        for said in [&b"localhost:9876"[..], b"[::1]:9876", b"IPAuthority", b"a_b.c-d"] {
            assert_eq!(authority(said), said);
        }
        for said in
            [SEVERAL, b"%5B::1%5D:9876%2C%5B::2%5D:9876", b"[::1]:1%2C[::2]:2", b"a,b", b"a:1,b:2,c:3"]
        {
            assert_eq!(authority(said).len(), said.len());
        }
    }

    #[test]
    fn the_name_may_come_from_the_static_table_and_the_block_in_parts() {
        let said = |authority: &[u8]| [&[0x83, 0x41], &text(authority, 0)[..], &[0x86]].concat();
        let whole = |authority: &[u8]| {
            let block = said(authority);
            let parts = [&block[..7], &block[7..8], &block[8..]];
            let flags = [(HEADERS, 0), (CONTINUATION, 0), (CONTINUATION, END_HEADERS)];
            let frames = parts.into_iter().zip(flags).map(|(part, (kind, flags))| frame(kind, flags, part));
            frames.collect::<Vec<_>>().concat()
        };
        assert_eq!(passed(whole(SEVERAL)), whole(HARMLESS));
    }

    #[test]
    fn what_is_in_huffman_code_is_left_alone() {
        let coded = frame(HEADERS, END_HEADERS, &[&[0x41], &text(SEVERAL, 0x80)[..]].concat());
        assert_eq!(passed(coded.clone()), coded);
    }

    #[test]
    fn after_a_request_in_order_nothing_is_looked_at() {
        let mut sieve = Sieve::default();
        let mut bytes = frame(HEADERS, END_HEADERS, &request(b"localhost"));
        sieve.pass(&mut bytes);
        assert!(sieve.is_over());
        let mut bytes = frame(HEADERS, END_HEADERS, &request(SEVERAL));
        sieve.pass(&mut bytes);
        assert_eq!(bytes, frame(HEADERS, END_HEADERS, &request(SEVERAL)));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_in_which_pieces_the_bytes_come(cuts in prop::collection::vec(1..40_usize, 0..60)) {
            let whole = |authority: &[u8]| frame(HEADERS, END_HEADERS, &request(authority)).repeat(3);
            let (mut sieve, mut bytes, mut from) = (Sieve::default(), whole(SEVERAL), 0);
            for cut in cuts {
                let to = (from + cut).min(bytes.len());
                sieve.pass(&mut bytes[from..to]);
                from = to;
            }
            sieve.pass(&mut bytes[from..]);
            prop_assert_eq!(bytes, whole(HARMLESS));
        }

        /// Whatever comes: no panic, and bytes only become hyphens.
        #[test]
        fn any_bytes_are_passed(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let after = passed(bytes.clone());
            prop_assert!(bytes.iter().zip(&after).all(|(before, after)| before == after || *after == b'-'));
        }
    }
}
