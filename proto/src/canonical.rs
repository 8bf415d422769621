//! Canonical JSON (RFC 8785): the one text of a document, so that everybody computes the same hash of it.
//!
//! A document is made of objects, arrays, texts, `true`, `false`, `null`, and integers below 2^53 in absolute value, written
//! without fraction and exponent. A fraction is a text. So no two languages, and not Postgres' jsonb either, can
//! differ about what a document says. Everything else is refused with a reason.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::hash::PayloadHash;
use crate::names::names;

/// The deepest nesting of objects and arrays.
pub const DEPTH: usize = 64;
/// The largest number, and the smallest without its sign: 2^53 − 1. Every language that counts in doubles has it exactly.
pub const MAX_NUMBER: i64 = (1 << 53) - 1;

names!(
    /// Why bytes are not a document.
    Fault,
    "fault",
    /// They are not UTF-8.
    InvalidUtf8 = "invalid_utf8",
    /// They are not one value of JSON.
    Malformed = "malformed",
    /// A number has a fraction or an exponent, is minus zero, or is past [`MAX_NUMBER`].
    Number = "number",
    /// An object has a name twice.
    DuplicateKey = "duplicate_key",
    /// A text escapes half a pair of surrogates, which is no character.
    LoneSurrogate = "lone_surrogate",
    /// A text has U+0000, which Postgres cannot hold.
    Nul = "nul",
    /// Objects and arrays are nested deeper than [`DEPTH`].
    TooDeep = "too_deep",
);

impl Fault {
    fn expected(self) -> &'static str {
        match self {
            Self::InvalidUtf8 => "expected UTF-8",
            Self::Malformed => "expected one value of JSON (RFC 8259)",
            Self::Number => "expected an integer below 2^53; write a fraction as a text",
            Self::DuplicateKey => "expected each name of an object once",
            Self::LoneSurrogate => "expected surrogates in pairs",
            Self::Nul => "expected no character U+0000",
            Self::TooDeep => "expected at most 64 levels of objects and arrays",
        }
    }
}

/// Where bytes cease to be a document, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: {fault}: {}", fault.expected())]
pub struct NotADocument {
    /// The offset of what is wrong, in bytes.
    pub at: usize,
    /// What is wrong.
    pub fault: Fault,
}

/// The canonical text of a document.
pub fn canonical_json(document: &[u8]) -> Result<String, NotADocument> {
    let text = std::str::from_utf8(document).map_err(|error| NotADocument {
        at: error.valid_up_to(),
        fault: Fault::InvalidUtf8,
    })?;
    let mut reader = Reader { text, at: 0 };
    let mut out = String::with_capacity(text.len());
    reader.value(0, &mut out)?;
    reader.blanks();
    match reader.peek() {
        None => Ok(out),
        Some(_) => Err(reader.fault(Fault::Malformed)),
    }
}

/// The hash of a document, which does not depend on how the document is written: sha256 of its canonical text.
pub fn document_hash(document: &[u8]) -> Result<PayloadHash, NotADocument> {
    Ok(PayloadHash::of(canonical_json(document)?.as_bytes()))
}

/// A name of an object, where it stands, and its value in canonical form.
struct Member<'a> {
    name: Cow<'a, str>,
    at: usize,
    value: String,
}

/// Reads a text from front to back. [`DEPTH`] bounds its recursion.
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn fault(&self, fault: Fault) -> NotADocument {
        NotADocument { at: self.at, fault }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn blanks(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// Passes over a text if it comes next.
    fn passes(&mut self, expected: &str) -> bool {
        let passes = self.text.as_bytes()[self.at..].starts_with(expected.as_bytes());
        if passes {
            self.at += expected.len();
        }
        passes
    }

    fn expect(&mut self, expected: &str) -> Result<(), NotADocument> {
        if self.passes(expected) {
            Ok(())
        } else {
            Err(self.fault(Fault::Malformed))
        }
    }

    /// Reads a value, and the blanks before it.
    fn value(&mut self, depth: usize, out: &mut String) -> Result<(), NotADocument> {
        self.blanks();
        match self.peek() {
            Some(b'{' | b'[') if depth == DEPTH => Err(self.fault(Fault::TooDeep)),
            Some(b'{') => self.object(depth + 1, out),
            Some(b'[') => self.array(depth + 1, out),
            Some(b'"') => {
                write_text(&self.string()?, out);
                Ok(())
            }
            Some(b'-' | b'0'..=b'9') => self.number(out),
            _ => {
                let literal = ["null", "true", "false"].into_iter().find(|known| self.passes(known));
                out.push_str(literal.ok_or_else(|| self.fault(Fault::Malformed))?);
                Ok(())
            }
        }
    }

    fn array(&mut self, depth: usize, out: &mut String) -> Result<(), NotADocument> {
        self.at += 1;
        out.push('[');
        self.blanks();
        if !self.passes("]") {
            loop {
                self.value(depth, out)?;
                self.blanks();
                if self.passes("]") {
                    break;
                }
                self.expect(",")?;
                out.push(',');
            }
        }
        out.push(']');
        Ok(())
    }

    fn object(&mut self, depth: usize, out: &mut String) -> Result<(), NotADocument> {
        self.at += 1;
        let mut members: Vec<Member<'a>> = Vec::new();
        self.blanks();
        if !self.passes("}") {
            loop {
                self.blanks();
                let at = self.at;
                let name = self.string()?;
                self.blanks();
                self.expect(":")?;
                let mut value = String::new();
                self.value(depth, &mut value)?;
                members.push(Member { name, at, value });
                self.blanks();
                if self.passes("}") {
                    break;
                }
                self.expect(",")?;
            }
        }
        // RFC 8785, 3.2.3: by the code units of UTF-16, which is not the order of bytes where surrogates are.
        members.sort_by(|a, b| a.name.encode_utf16().cmp(b.name.encode_utf16()).then(a.at.cmp(&b.at)));
        if let Some(twice) = members.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(NotADocument {
                at: twice[1].at,
                fault: Fault::DuplicateKey,
            });
        }
        out.push('{');
        for (nth, member) in members.iter().enumerate() {
            if nth > 0 {
                out.push(',');
            }
            write_text(&member.name, out);
            out.push(':');
            out.push_str(&member.value);
        }
        out.push('}');
        Ok(())
    }

    fn digits(&mut self) -> Result<(), NotADocument> {
        let first = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == first {
            return Err(self.fault(Fault::Malformed));
        }
        Ok(())
    }

    fn number(&mut self, out: &mut String) -> Result<(), NotADocument> {
        let first = self.at;
        let is_negative = self.passes("-");
        // Whatever follows a zero is no part of the number.
        if !self.passes("0") {
            self.digits()?;
        }
        let integer = &self.text[first..self.at];
        let mut is_integer = !(is_negative && integer == "-0");
        if self.passes(".") {
            is_integer = false;
            self.digits()?;
        }
        if self.passes("e") || self.passes("E") {
            is_integer = false;
            let _ = self.passes("+") || self.passes("-");
            self.digits()?;
        }
        let fits = |number: i64| (-MAX_NUMBER..=MAX_NUMBER).contains(&number);
        if !is_integer || !integer.parse().is_ok_and(fits) {
            return Err(NotADocument {
                at: first,
                fault: Fault::Number,
            });
        }
        out.push_str(integer);
        Ok(())
    }

    /// Reads a text in quotes. It borrows what has no escapes.
    fn string(&mut self) -> Result<Cow<'a, str>, NotADocument> {
        self.expect("\"")?;
        let mut from = self.at;
        let mut text = Cow::Borrowed("");
        loop {
            match self.peek() {
                Some(b'"') => {
                    text += &self.text[from..self.at];
                    self.at += 1;
                    return Ok(text);
                }
                Some(b'\\') => {
                    text += &self.text[from..self.at];
                    text.to_mut().push(self.escape()?);
                    from = self.at;
                }
                None | Some(..0x20) => return Err(self.fault(Fault::Malformed)),
                // Quotes and backslashes are no parts of longer characters, so bytes can be looked at one by one.
                Some(_) => self.at += 1,
            }
        }
    }

    fn escape(&mut self) -> Result<char, NotADocument> {
        let first = self.at;
        let fault = |fault| NotADocument { at: first, fault };
        self.at += 1;
        let plain = match self.peek() {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.at += 1;
                let unit = self.code_unit()?;
                let low = match unit {
                    0xd800..=0xdbff if self.passes("\\u") => Some(self.code_unit()?),
                    _ => None,
                };
                let units = [Some(unit), low].into_iter().flatten();
                return match char::decode_utf16(units).next() {
                    Some(Ok('\0')) => Err(fault(Fault::Nul)),
                    Some(Ok(character)) => Ok(character),
                    _ => Err(fault(Fault::LoneSurrogate)),
                };
            }
            _ => return Err(fault(Fault::Malformed)),
        };
        self.at += 1;
        Ok(plain)
    }

    fn code_unit(&mut self) -> Result<u16, NotADocument> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4);
        let mut unit = 0;
        for byte in digits.ok_or_else(|| self.fault(Fault::Malformed))? {
            let digit = char::from(*byte).to_digit(16);
            unit = unit << 4 | digit.ok_or_else(|| self.fault(Fault::Malformed))? as u16;
        }
        self.at += 4;
        Ok(unit)
    }
}

/// RFC 8785, 3.2.2.2.
fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            '\0'..='\u{1f}' => {
                // Writing to a string never fails.
                let _ = write!(out, "\\u{:04x}", u32::from(character));
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};
    use serde_json::{Map, Value};

    use super::*;

    fn text(random: &mut StdRng) -> String {
        let length = random.random_range(0..4);
        let ranges = [
            '\u{1}'..='\u{7f}',
            '\u{80}'..='\u{7ff}',
            '\u{800}'..='\u{d7ff}',
            '\u{e000}'..='\u{ffff}',
        ];
        let characters = (0..length).map(|_| match random.random_range(0..5) {
            4 => random.random_range('\u{10000}'..='\u{10ffff}'),
            range => random.random_range(ranges[range].clone()),
        });
        characters.collect()
    }

    fn value(random: &mut StdRng, depth: usize) -> Value {
        match random.random_range(0..if depth == 0 { 5 } else { 8 }) {
            0 => Value::Null,
            1 => random.random_bool(0.5).into(),
            2 => random.random_range(-MAX_NUMBER..=MAX_NUMBER).into(),
            3 => random.random_range(-9..=9).into(),
            4 => text(random).into(),
            5 => (0..random.random_range(0..5))
                .map(|_| value(random, depth - 1))
                .collect(),
            _ => {
                let members = (0..random.random_range(0..6)).map(|_| (text(random), value(random, depth - 1)));
                Value::Object(members.collect::<Map<_, _>>())
            }
        }
    }

    /// Writes a value in one of its many forms: with blanks, members in any order, and characters escaped or not.
    fn written(value: &Value, random: &mut StdRng, out: &mut String) {
        let blank = |random: &mut StdRng| [" ", "\n", "\t\r", ""][random.random_range(0..4)];
        out.push_str(blank(random));
        match value {
            Value::Array(items) => {
                out.push('[');
                for (nth, item) in items.iter().enumerate() {
                    out.push_str(if nth > 0 { "," } else { "" });
                    written(item, random, out);
                }
                out.push(']');
            }
            Value::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                for nth in (1..members.len()).rev() {
                    members.swap(nth, random.random_range(0..=nth));
                }
                out.push('{');
                for (nth, (name, value)) in members.into_iter().enumerate() {
                    out.push_str(if nth > 0 { "," } else { "" });
                    written(&name.as_str().into(), random, out);
                    out.push(':');
                    written(value, random, out);
                }
                out.push('}');
            }
            Value::String(text) => {
                out.push('"');
                for character in text.chars() {
                    if random.random_bool(0.3) || matches!(character, '"' | '\\' | '\0'..='\u{1f}') {
                        for unit in character.encode_utf16(&mut [0; 2]) {
                            let _ = write!(out, "\\u{unit:04X}");
                        }
                    } else {
                        out.push(character);
                    }
                }
                out.push('"');
            }
            other => out.push_str(&other.to_string()),
        }
        out.push_str(blank(random));
    }

    /// What RFC 8785 says, on a value that somebody else has read. Integers and texts serde_json writes as the RFC does.
    fn canonical(value: &Value) -> String {
        let list = |parts: Vec<String>| parts.join(",");
        match value {
            Value::Array(items) => format!("[{}]", list(items.iter().map(canonical).collect())),
            Value::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                members.sort_by_key(|(name, _)| name.encode_utf16().collect::<Vec<_>>());
                let member =
                    |(name, value): (&String, &Value)| format!("{}:{}", Value::from(name.as_str()), canonical(value));
                format!("{{{}}}", list(members.into_iter().map(member).collect()))
            }
            other => other.to_string(),
        }
    }

    #[test]
    fn a_document_has_one_canonical_text_however_it_is_written() {
        let random = &mut StdRng::seed_from_u64(8785);
        for _ in 0..5_000 {
            let value = value(random, 5);
            let expected = canonical(&value);
            let mut text = String::new();
            written(&value, random, &mut text);
            assert_eq!(canonical_json(text.as_bytes()).as_ref(), Ok(&expected), "{text}");
            assert_eq!(canonical_json(expected.as_bytes()).as_ref(), Ok(&expected));
            assert_eq!(
                document_hash(text.as_bytes()),
                Ok(PayloadHash::of(expected.as_bytes())),
                "{text}"
            );
        }
    }

    #[test]
    fn whatever_the_bytes_the_answer_is_a_document_or_a_fault_within_them() {
        let random = &mut StdRng::seed_from_u64(8259);
        for _ in 0..20_000 {
            let mut text = String::new();
            let value = value(random, 3);
            written(&value, random, &mut text);
            let mut bytes = text.into_bytes();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..=bytes.len());
                match random.random_range(0..3) {
                    0 => bytes.truncate(at),
                    1 => bytes.insert(at, b"\"\\{}[],:0-e.u"[random.random_range(0..13)]),
                    _ if at < bytes.len() => bytes[at] = random.random(),
                    _ => {}
                }
            }
            match canonical_json(&bytes) {
                // What is taken is JSON to others, too, and says the same.
                Ok(text) => {
                    let read: Value = serde_json::from_slice(&bytes).unwrap();
                    assert_eq!(canonical(&read), text);
                }
                Err(NotADocument { at, fault }) => {
                    assert!(at <= bytes.len());
                    if fault == Fault::Malformed || fault == Fault::InvalidUtf8 {
                        let read: Result<Value, _> = serde_json::from_slice(&bytes);
                        assert!(read.is_err(), "{:?} {fault} at {at}", String::from_utf8_lossy(&bytes));
                    }
                }
            }
        }
    }

    #[derive(serde::Deserialize)]
    struct Vector {
        name: String,
        input: Option<String>,
        canonical: Option<String>,
        refused: Option<String>,
    }

    #[test]
    fn the_bounds_are_those_of_the_vectors() {
        let vectors: Vec<Vector> = serde_json::from_str(include_str!("../vectors/canonical.json")).unwrap();
        for vector in vectors {
            let Some(input) = vector.input else { continue };
            let found = canonical_json(input.as_bytes()).map_err(|refused| refused.fault.to_string());
            let expected = vector.canonical.ok_or_else(|| vector.refused.unwrap_or_default());
            assert_eq!(found, expected, "{}", vector.name);
        }
    }

    #[test]
    fn a_fault_says_where_it_is_and_what_was_expected() {
        for (text, at, said) in [
            (
                r#"{"a":1,"b":2,"a":3}"#,
                13,
                "byte 13: duplicate_key: expected each name of an object once",
            ),
            (
                "[1, 2.5]",
                4,
                "byte 4: number: expected an integer below 2^53; write a fraction as a text",
            ),
            ("[1 2]", 3, "byte 3: malformed: expected one value of JSON (RFC 8259)"),
        ] {
            let refused = canonical_json(text.as_bytes()).unwrap_err();
            assert_eq!((refused.at, refused.to_string().as_str()), (at, said));
        }
    }
}
