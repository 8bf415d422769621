//! Makes inputs from inputs: flips, moves, cuts, repeats and copies bytes, and falsifies lengths. It also changes
//! fields of JSON, fields of protobuf messages and parts of a signed token, so that the results pass the parser.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::encoding::{decode_varint, encode_varint};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use serde_json::{Value, json};
use spacetime_sync_proto::limit;

/// Numbers near limits, of this project or of any computer.
const NUMBERS: &[u64] = &[
    0,
    1,
    2,
    7,
    127,
    128,
    255,
    256,
    i16::MAX as u64,
    u16::MAX as u64,
    i32::MAX as u64,
    i32::MAX as u64 + 1,
    u32::MAX as u64,
    u32::MAX as u64 + 1,
    i64::MAX as u64 - 1,
    i64::MAX as u64,
    i64::MAX as u64 + 1,
    u64::MAX - 1,
    u64::MAX,
    limit::STREAM_ID_BYTES as u64 + 1,
    limit::FRAME_PADDED_BYTES as u64,
    limit::FRAME_EVENTS as u64,
    limit::FRAME_EVENTS as u64 + 1,
    limit::PAYLOAD_BYTES as u64 + 1,
    limit::FRAME_BYTES as u64 + 1,
];

/// A number near a limit.
fn number(rng: &mut StdRng) -> u64 {
    let number = NUMBERS.choose(rng).copied().unwrap_or_default();
    match rng.random_range(0..4) {
        0 => number.wrapping_add(1),
        1 => number.wrapping_sub(1),
        _ => number,
    }
}

/// Changes bytes a few times, regardless of their meaning. `other` is another input of the same target.
pub fn bytes(rng: &mut StdRng, input: &mut Vec<u8>, other: &[u8], dictionary: &[&[u8]], most: usize) {
    let times = 1 << rng.random_range(0..4);
    for _ in 0..times {
        change(rng, input, other, dictionary);
    }
    input.truncate(most);
}

fn change(rng: &mut StdRng, input: &mut Vec<u8>, other: &[u8], dictionary: &[&[u8]]) {
    let at = rng.random_range(0..=input.len());
    let most = (input.len() - at).min(1 << rng.random_range(0..10));
    let long = rng.random_range(0..=most);
    match rng.random_range(0..14) {
        0 if at < input.len() => input[at] ^= 1 << rng.random_range(0..8),
        1 if at < input.len() => input[at] = number(rng) as u8,
        2 if at < input.len() => input[at] = input[at].wrapping_add(rng.random_range(0..8)).wrapping_sub(4),
        3 => drop(input.drain(at..at + long)),
        4 => input.truncate(at),
        5 => {
            // Repeats a part, here or elsewhere.
            let part = input[at..at + long].to_vec();
            let to = rng.random_range(0..=input.len());
            input.splice(to..to, part);
        }
        6 => {
            let from = rng.random_range(0..=other.len());
            let to = rng.random_range(from..=other.len());
            input.splice(at..at + long, other[from..to].iter().copied());
        }
        7 => {
            let from = rng.random_range(0..=other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        8 | 9 => {
            let word = dictionary.choose(rng).copied().unwrap_or(b"\0");
            let over = if rng.random_bool(0.5) {
                word.len().min(input.len() - at)
            } else {
                0
            };
            input.splice(at..at + over, word.iter().copied());
        }
        10 => fixed_number(rng, input, at),
        11 => length(rng, input, at),
        12 => digits(rng, input, at),
        _ => {
            let byte = rng.random();
            input.splice(at..at, std::iter::repeat_n(byte, long.max(1)));
        }
    }
}

/// Overwrites bytes with a number of one of the usual widths.
fn fixed_number(rng: &mut StdRng, input: &mut [u8], at: usize) {
    let width = 1 << rng.random_range(0..4);
    let Some(place) = input.get_mut(at..at + width) else {
        return;
    };
    let little = number(rng).to_le_bytes();
    place.copy_from_slice(&little[..width]);
    if rng.random_bool(0.5) {
        place.reverse();
    }
}

/// Finds what may be the length of the following bytes and changes it, with or without adjusting the bytes to it.
fn length(rng: &mut StdRng, input: &mut Vec<u8>, from: usize) {
    let found = (from..input.len().saturating_sub(4)).find_map(|at| {
        let fixed = u32::from_le_bytes([input[at], input[at + 1], input[at + 2], input[at + 3]]) as usize;
        let varint = usize::from(input[at]);
        let fits = |length: usize, width: usize| length > 1 && at + width + length <= input.len();
        let width = match (fits(fixed, 4), fits(varint, 1)) {
            (true, _) => 4,
            (false, true) => 1,
            (false, false) => return None,
        };
        Some((at, width, if width == 4 { fixed } else { varint }))
    });
    let Some((at, width, said)) = found else { return };
    let body = at + width..at + width + said;
    let says = match rng.random_range(0..5) {
        0 => said + 1,
        1 => said - 1,
        2 => number(rng) as usize,
        3 => {
            let keep = rng.random_range(0..said);
            input.drain(body.start + keep..body.end);
            keep
        }
        _ => {
            let part = input[body.clone()].to_vec();
            input.splice(body.end..body.end, part);
            said * 2
        }
    };
    let bytes = (says as u64).to_le_bytes();
    input[at..at + width].copy_from_slice(&bytes[..width]);
}

/// Finds a decimal number in the text and replaces it.
fn digits(rng: &mut StdRng, input: &mut Vec<u8>, from: usize) {
    let Some(start) = (from..input.len()).find(|at| input[*at].is_ascii_digit()) else {
        return;
    };
    let end = (start..input.len())
        .find(|at| !input[*at].is_ascii_digit())
        .unwrap_or(input.len());
    let text = match rng.random_range(0..6) {
        0 => format!("-{}", number(rng)),
        1 => format!("0{}", number(rng)),
        2 => format!("{}.5", number(rng)),
        3 => "1e999".to_owned(),
        _ => number(rng).to_string(),
    };
    input.splice(start..end, text.into_bytes());
}

/// Changes one value of a JSON text, or the fields of an object.
pub fn json(rng: &mut StdRng, text: &[u8], dictionary: &[&[u8]]) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(text).ok()?;
    for _ in 0..1 << rng.random_range(0..3) {
        let mut target = rng.random_range(0..count(&value));
        node(rng, &mut value, &mut target, dictionary);
    }
    let mut text = serde_json::to_vec(&value).ok()?;
    if rng.random_bool(0.1) {
        repeat_field(rng, &value, &mut text);
    }
    Some(text)
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// Changes the node with this number, in the order in which nodes are written.
fn node(rng: &mut StdRng, value: &mut Value, target: &mut usize, dictionary: &[&[u8]]) -> bool {
    if *target == 0 {
        change_value(rng, value, dictionary);
        return true;
    }
    *target -= 1;
    match value {
        Value::Array(items) => items.iter_mut().any(|item| node(rng, item, target, dictionary)),
        Value::Object(fields) => fields.values_mut().any(|field| node(rng, field, target, dictionary)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn change_value(rng: &mut StdRng, value: &mut Value, dictionary: &[&[u8]]) {
    match value {
        Value::Object(fields) if rng.random_bool(0.8) => {
            let names: Vec<String> = fields.keys().cloned().collect();
            let name = names.choose(rng).cloned().unwrap_or_default();
            match rng.random_range(0..3) {
                0 => drop(fields.remove(&name)),
                1 => {
                    let taken = fields.remove(&name).unwrap_or_default();
                    fields.insert(word(rng, dictionary), taken);
                }
                _ => {
                    let made = any_value(rng, dictionary);
                    fields.insert(
                        if rng.random_bool(0.5) {
                            name
                        } else {
                            word(rng, dictionary)
                        },
                        made,
                    );
                }
            }
        }
        Value::Array(items) if rng.random_bool(0.8) => match rng.random_range(0..4) {
            0 => items.push(any_value(rng, dictionary)),
            1 => drop(items.pop()),
            2 => {
                let many = std::iter::repeat_n(items.first().cloned().unwrap_or_default(), 300);
                items.extend(many);
            }
            _ => items.insert(0, Value::String(word(rng, dictionary))),
        },
        Value::String(text) if rng.random_bool(0.7) => {
            let mut changed = text.clone().into_bytes();
            let other = word(rng, dictionary);
            change(rng, &mut changed, other.as_bytes(), dictionary);
            *text = String::from_utf8_lossy(&changed).into_owned();
        }
        Value::Number(found) if rng.random_bool(0.7) => {
            let near = found
                .as_u64()
                .unwrap_or_default()
                .wrapping_add(rng.random_range(0..200))
                .wrapping_sub(100);
            *value = json!(if rng.random_bool(0.5) { near } else { number(rng) });
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
            *value = any_value(rng, dictionary)
        }
    }
}

fn any_value(rng: &mut StdRng, dictionary: &[&[u8]]) -> Value {
    match rng.random_range(0..12) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(number(rng)),
        3 => json!(-(number(rng) as i64 >> 1)),
        4 => json!(1.5),
        5 => json!(1e300),
        6 => json!([]),
        7 => json!({}),
        8 => json!("x".repeat(number(rng).min(70_000) as usize)),
        9 => {
            // Deeper than a recursive parser should follow.
            let depth = rng.random_range(1..300);
            (0..depth).fold(json!(1), |inner, _| json!([inner]))
        }
        _ => Value::String(word(rng, dictionary)),
    }
}

fn word(rng: &mut StdRng, dictionary: &[&[u8]]) -> String {
    let odd: &[&str] = &[
        "",
        "\0",
        "*",
        "\u{430}",
        "a b",
        "%2E",
        "\n",
        "../",
        "'",
        "\u{7f}",
        "__proto__",
    ];
    match dictionary.choose(rng) {
        Some(word) if rng.random_bool(0.7) => String::from_utf8_lossy(word).into_owned(),
        Some(_) | None => odd.choose(rng).copied().unwrap_or_default().to_owned(),
    }
}

/// Repeats a field. Which of the two counts?
fn repeat_field(rng: &mut StdRng, value: &Value, text: &mut Vec<u8>) {
    let Value::Object(fields) = value else { return };
    let names: Vec<&String> = fields.keys().collect();
    if let Some(name) = names.choose(rng) {
        let other = any_value(rng, &[]);
        let said = format!("{}:{other},", Value::String((*name).clone()));
        text.splice(1..1, said.into_bytes());
    }
}

/// Changes a field of a protobuf message at any depth, and keeps the surrounding lengths correct.
pub fn protobuf(rng: &mut StdRng, message: &[u8], dictionary: &[&[u8]]) -> Option<Vec<u8>> {
    let mut fields = fields(message)?;
    let at = rng.random_range(0..fields.len());
    match rng.random_range(0..12) {
        0 => drop(fields.remove(at)),
        1 => {
            let other = rng.random_range(0..fields.len());
            fields.swap(at, other);
        }
        2 => fields.insert(at, fields[at].clone()),
        3 => {
            let many = 1 << rng.random_range(0..11);
            let copies = std::iter::repeat_n(fields[at].clone(), many);
            fields.splice(at..at, copies.collect::<Vec<_>>());
        }
        4 => fields[at].key = number(rng),
        5 => fields[at].key ^= 1 << rng.random_range(0..5),
        _ => match &mut fields[at].body {
            Body::Varint(value) => *value = number(rng),
            Body::Fixed(bytes) => fixed_number(rng, bytes, 0),
            Body::Bytes(bytes) => match protobuf(rng, bytes, dictionary).filter(|_| rng.random_bool(0.8)) {
                Some(changed) => *bytes = changed,
                None if rng.random_bool(0.1) => {
                    let byte = rng.random();
                    bytes.resize(number(rng).min(limit::FRAME_BYTES as u64) as usize, byte);
                }
                None => change(rng, bytes, message, dictionary),
            },
        },
    }
    let mut out = Vec::with_capacity(message.len());
    for field in &fields {
        encode_varint(field.key, &mut out);
        match &field.body {
            Body::Varint(value) => encode_varint(*value, &mut out),
            Body::Fixed(bytes) => out.extend_from_slice(bytes),
            Body::Bytes(bytes) => {
                encode_varint(bytes.len() as u64, &mut out);
                out.extend_from_slice(bytes);
            }
        }
    }
    Some(out)
}

#[derive(Clone)]
struct Field {
    key: u64,
    body: Body,
}

#[derive(Clone)]
enum Body {
    Varint(u64),
    Fixed(Vec<u8>),
    Bytes(Vec<u8>),
}

/// The fields of a message, at least one. `None` if the bytes are not a message.
fn fields(mut message: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = decode_varint(&mut message).ok()?;
        let mut fixed = |width: usize| {
            let (body, rest) = message.split_at_checked(width)?;
            message = rest;
            Some(body.to_vec())
        };
        let body = match key & 7 {
            1 => Body::Fixed(fixed(8)?),
            5 => Body::Fixed(fixed(4)?),
            0 => Body::Varint(decode_varint(&mut message).ok()?),
            2 => {
                let length = usize::try_from(decode_varint(&mut message).ok()?).ok()?;
                let (body, rest) = message.split_at_checked(length)?;
                message = rest;
                Body::Bytes(body.to_vec())
            }
            _ => return None,
        };
        fields.push(Field { key, body });
    }
    (!fields.is_empty()).then_some(fields)
}

/// Changes one part of a signed token in compact form.
pub fn compact(rng: &mut StdRng, token: &[u8], dictionary: &[&[u8]]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(token).ok()?;
    let mut parts: Vec<String> = text.split('.').map(str::to_owned).collect();
    let at = rng.random_range(0..parts.len());
    let mut said = URL_SAFE_NO_PAD.decode(&parts[at]).ok()?;
    said = match json(rng, &said, dictionary) {
        Some(changed) if rng.random_bool(0.8) => changed,
        Some(_) | None => {
            change(rng, &mut said, &[], dictionary);
            said
        }
    };
    parts[at] = URL_SAFE_NO_PAD.encode(said);
    Some(parts.join(".").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    #[test]
    fn the_same_seed_makes_the_same_inputs() {
        let made = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut input = b"{\"a\": 17}".to_vec();
            for _ in 0..50 {
                bytes(&mut rng, &mut input, b"other", &[b"word"], 1_000);
            }
            input
        };
        assert_eq!(made(7), made(7));
        assert_ne!(made(7), made(8));
    }

    #[test]
    fn mutations_of_a_format_stay_valid_in_that_format() {
        let mut rng = StdRng::seed_from_u64(1);
        let text = br#"{"a":[1,"x",{"b":null}],"c":"y"}"#;
        let token = format!("{}.{}.AAAA", URL_SAFE_NO_PAD.encode(text), URL_SAFE_NO_PAD.encode(text));
        // Field 1 holds a message whose field 2 is a number. Field 3 is eight bytes.
        let message = [0x0a, 0x02, 0x10, 0x07, 0x19, 1, 2, 3, 4, 5, 6, 7, 8];
        let (mut texts, mut messages, mut tokens) = (0, 0, 0);
        for _ in 0..200 {
            let changed = json(&mut rng, text, &[b"word"]).unwrap();
            serde_json::from_slice::<serde::de::IgnoredAny>(&changed).unwrap();
            texts += usize::from(changed != text);
            let changed = protobuf(&mut rng, &message, &[]).unwrap();
            messages += usize::from(changed != message);
            let changed = compact(&mut rng, token.as_bytes(), &[]).unwrap();
            let parts = std::str::from_utf8(&changed)
                .unwrap()
                .split('.')
                .map(|part| URL_SAFE_NO_PAD.decode(part));
            assert!(parts.clone().count() == 3 && parts.clone().all(|part| part.is_ok()));
            tokens += usize::from(changed != token.as_bytes());
        }
        assert!(
            texts > 100 && messages > 100 && tokens > 100,
            "{texts} {messages} {tokens}"
        );
    }
}
