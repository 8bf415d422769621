#!/usr/bin/env python3
"""Writes the vectors of the contract, or says which of them differ from what it would write.

usage: generate.py [--check]

It computes everything itself, with Python's hashes and integers and nothing of the code that the vectors test. The inputs
stand in this file. What they mean is written in README.md beside it.
"""

import base64
import hashlib
import hmac
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MAX_SEQ = 2**63 - 1
MAX_NUMBER = 2**53 - 1
DEPTH = 64


def sha256(data):
    return hashlib.sha256(data).digest()


def named(digest):
    return "sha256:" + digest.hex()


# The chain.


def genesis(stream_id):
    return sha256(b"spacetime.sync.v1/stream\0" + stream_id.encode())


def link(chain, seq, at, payload_hash, key, kind):
    key, kind = key.encode(), kind.encode()
    numbers = seq.to_bytes(8, "big") + at.to_bytes(8, "big", signed=True)
    return sha256(chain + numbers + payload_hash + len(key).to_bytes(2, "big") + key + kind)


# ECDSA over P-256 with the nonces of RFC 6979, so that the same text has the same signature each time.

P = 2**256 - 2**224 + 2**192 + 2**96 - 1
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
# The key of RFC 6979, A.2.5. Everybody knows it: it signs vectors and nothing else.
KEY = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721


def add(a, b):
    if a is None or b is None:
        return a or b
    if a[0] == b[0]:
        if (a[1] + b[1]) % P == 0:
            return None
        slope = (3 * a[0] * a[0] - 3) * pow(2 * a[1], -1, P)
    else:
        slope = (b[1] - a[1]) * pow(b[0] - a[0], -1, P)
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def multiply(point, scalar):
    result = None
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point, scalar = add(point, point), scalar >> 1
    return result


def sign(text, key=KEY):
    digest = sha256(text)
    number = int.from_bytes(digest, "big")
    seed = key.to_bytes(32, "big") + (number % N).to_bytes(32, "big")
    k, v = b"\0" * 32, b"\1" * 32
    for separator in (b"\0", b"\1"):
        k = hmac.digest(k, v + separator + seed, "sha256")
        v = hmac.digest(k, v, "sha256")
    while True:
        v = hmac.digest(k, v, "sha256")
        nonce = int.from_bytes(v, "big")
        if 0 < nonce < N:
            r = multiply(G, nonce)[0] % N
            s = pow(nonce, -1, N) * (number + r * key) % N
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")
        k = hmac.digest(k, v + b"\0", "sha256")
        v = hmac.digest(k, v, "sha256")


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def public_key():
    x, y = multiply(G, KEY)
    jwk = {"crv": "P-256", "kty": "EC", "x": base64url(x.to_bytes(32, "big")), "y": base64url(y.to_bytes(32, "big"))}
    # RFC 7638: the members in this order, without blanks.
    thumbprint = sha256(json.dumps(jwk, separators=(",", ":")).encode())
    return {"kid": base64url(thumbprint), **jwk}, thumbprint


def private_key():
    """The key as PKCS#8."""
    x, y = multiply(G, KEY)
    point = b"\4" + x.to_bytes(32, "big") + y.to_bytes(32, "big")
    head = bytes.fromhex("308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420")
    der = head + KEY.to_bytes(32, "big") + bytes.fromhex("a144034200") + point
    text = base64.b64encode(der).decode()
    rows = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join(["-----BEGIN PRIVATE KEY-----", *rows, "-----END PRIVATE KEY-----", ""])


def seal(stream_id, seq, chain):
    stream = stream_id.encode()
    text = b"spacetime.sync.v1 seal\0" + len(stream).to_bytes(2, "big") + stream + seq.to_bytes(8, "big") + chain
    return public_key()[1][:8] + sign(text)


# Protobuf.


def varint(number):
    number &= 2**64 - 1
    out = b""
    while number >= 0x80:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def number_field(tag, number):
    return varint(tag << 3) + varint(number) if number else b""


def bytes_field(tag, data):
    return varint(tag << 3 | 2) + varint(len(data)) + data if data else b""


def wire_event(key, kind, payload, at, payload_hash=None):
    payload_hash = sha256(payload) if payload_hash is None else payload_hash
    key = key.encode() if isinstance(key, str) else key
    return (
        bytes_field(1, key)
        + bytes_field(2, kind.encode())
        + bytes_field(3, payload)
        + bytes_field(4, payload_hash)
        + number_field(5, at)
    )


def wire_frame(events, sealed=b""):
    bare = b"".join(bytes_field(1, event) for event in events) + bytes_field(2, sealed)
    return bare + bytes_field(15, b"\0" * max(0, 993 - len(bare)))


# Logs that hashes and frames are made of: stream, and of each event key, kind, payload and time.

LOGS = [
    (
        "the log of docs/protocol.md",
        "runtime.run.1.events",
        [
            ("key-0", "test.event", b"\0\0\0", 1000),
            ("key-1", "test.event", b"\1\0\0", 1001),
            ("key-2", "test.event", b"\2\0\0", 1002),
        ],
    ),
    (
        "texts beyond ASCII, times before 1970 and at the ends",
        "user:7:a/b",
        [
            ("topic:käse:seq:1", "k", b"{}", 0),
            ("\U0001f600", "run.step+finished@v2=x~%41", b"\xff\xfe\x00", -1),
            ("'\"\\", "a/b", "ü".encode(), -(2**63)),
            ("k", "k", b"x", 2**63 - 1),
        ],
    ),
    (
        "the longest names",
        "s" * 255,
        [("k" * 512, "n" * 128, b"p" * 1000, 1), ("ü" * 256, "n", b"p", 2**53 + 1)],
    ),
    (
        "length and texts that would be mistaken for one another without the length",
        "a",
        [("ab", "c", b"x", 1), ("a", "bc", b"x", 1)],
    ),
]


def events_of(stream_id, events, first_seq=1, chain=None):
    chain = genesis(stream_id) if chain is None else chain
    rows = []
    for seq, (key, kind, payload, at) in enumerate(events, first_seq):
        chain = link(chain, seq, at, sha256(payload), key, kind)
        rows.append(
            {
                "seq": str(seq),
                "idempotency_key": key,
                "kind": kind,
                "payload": payload.hex(),
                "payload_hash": named(sha256(payload)),
                "committed_at_us": str(at),
                "chain_hash": named(chain),
            }
        )
    return rows, chain


def hashes():
    payloads = [b"{}", b"\0", b"abc", b"\xff" * 100, "käse".encode(), b'{"a":1}', b'{"a": 1}']
    # FIPS 180-2 has this one.
    assert sha256(b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    return [{"payload": payload.hex(), "payload_hash": named(sha256(payload))} for payload in payloads]


def chains():
    result = []
    for name, stream_id, events in LOGS:
        rows, _ = events_of(stream_id, events)
        result.append({"name": name, "stream_id": stream_id, "genesis": named(genesis(stream_id)), "events": rows})
    assert result[0]["genesis"].endswith("305184485a25b6d379033854dd952c8715a27105783fe7c51c172fafec4da258")
    return result


def frames():
    result = []

    def good(name, stream_id, events, sealed=False, first_seq=1, base=None, make=None, payloads_match=True):
        base = genesis(stream_id) if base is None else base
        rows, last = events_of(stream_id, events, first_seq, base)
        last_seq = first_seq + len(events) - 1
        encoded = [wire_event(*event) for event in events]
        seal_bytes = seal(stream_id, last_seq, last) if sealed else b""
        frame = make(encoded, seal_bytes) if make else wire_frame(encoded, seal_bytes)
        vector = {
            "name": name,
            "stream_id": stream_id,
            "first_seq": str(first_seq),
            "last_seq": str(last_seq),
            "base_chain": named(base),
            "last_chain": named(last),
            "frame": frame.hex(),
            "seal": seal_bytes.hex(),
            "encodes_alike": make is None,
            "events": rows,
        }
        result.append(vector)

    def bad(name, reason, frame, first_seq=1):
        base = named(genesis("a"))
        result.append(
            {"name": name, "first_seq": str(first_seq), "base_chain": base, "frame": frame.hex(), "refused": reason}
        )

    first, beyond, longest = LOGS[:3]
    good("one event, padded", first[1], first[2][:1])
    good("three events, sealed", first[1], first[2], sealed=True)
    good("texts beyond ASCII, and a time of 0", beyond[1], beyond[2])
    good("as long as it is", longest[1], longest[2])
    good("before the largest seq", "a", [("k", "t", b"x", 1)], first_seq=MAX_SEQ - 1, base=sha256(b"earlier"))
    good("in the middle of a log", "a", first[2][1:], first_seq=7, base=sha256(b"earlier"), sealed=True)
    unknown = bytes_field(9, b"later") + number_field(10, 5)
    good(
        "fields that a later release has",
        "a",
        first[2][:2],
        make=lambda events, _: b"".join(bytes_field(1, event + unknown) for event in events) + bytes_field(14, b"more"),
    )
    good(
        "fields in another order",
        "a",
        [("k", "t", b"x", 5)],
        make=lambda _, __: bytes_field(15, b"\0")
        + bytes_field(
            1,
            number_field(5, 5)
            + bytes_field(4, sha256(b"x"))
            + bytes_field(3, b"x")
            + bytes_field(2, b"t")
            + bytes_field(1, b"k"),
        ),
    )

    event = wire_event("k", "t", b"x", 1)
    padded = wire_frame([event])
    bad("nothing", "event_count", b"")
    bad("padding alone", "event_count", wire_frame([]))
    bad("a page of a web server", "malformed", b"<html></html>")
    bad("a part of a frame", "malformed", padded[:-1])
    bad("a key that is not UTF-8", "malformed", wire_frame([wire_event(b"\xff", "t", b"x", 1)]))
    bad("a number where a text belongs", "malformed", bytes_field(1, number_field(1, 7)))
    bad("no key", "id", wire_frame([wire_event("", "t", b"x", 1)]))
    bad("a key with a line break", "id", wire_frame([wire_event("a\nb", "t", b"x", 1)]))
    bad("a key of 513 bytes", "id", wire_frame([wire_event("k" * 513, "t", b"x", 1)]))
    bad("no kind", "id", wire_frame([wire_event("k", "", b"x", 1)]))
    bad("a kind with a blank", "id", wire_frame([wire_event("k", "a b", b"x", 1)]))
    bad("no payload", "payload_size", wire_frame([wire_event("k", "t", b"", 1)]))
    bad("no payload hash", "payload_hash_length", wire_frame([wire_event("k", "t", b"x", 1, b"")]))
    bad("a short payload hash", "payload_hash_length", wire_frame([wire_event("k", "t", b"x", 1, b"\1" * 31)]))
    bad("a short seal", "seal_length", wire_frame([event], b"\1" * 71))
    bad("seq 0", "first_seq", padded, first_seq=0)
    bad("the largest seq, after which nothing could come", "first_seq", padded, first_seq=MAX_SEQ)
    bad("past the largest seq", "first_seq", padded, first_seq=MAX_SEQ + 1)
    bad("an end at the largest seq", "first_seq", wire_frame([event, event]), first_seq=MAX_SEQ - 1)
    return result


def pages():
    result = []
    name, stream_id, events = LOGS[0]
    rows, head = events_of(stream_id, events)

    def wire_page(head_seq, head_chain, oldest_seq, frames):
        return (
            number_field(1, head_seq)
            + bytes_field(2, head_chain)
            + number_field(3, oldest_seq)
            + b"".join(bytes_field(4, frame) for frame in frames)
        )

    def page_frame(first_seq, last_seq, base, frame):
        return number_field(1, first_seq) + number_field(2, last_seq) + bytes_field(3, base) + bytes_field(4, frame)

    first = bytes.fromhex(rows[0]["chain_hash"][7:])
    one = wire_frame([wire_event(*events[0])])
    rest = wire_frame([wire_event(*event) for event in events[1:]])
    listed = [(1, 1, genesis(stream_id), one), (2, 3, first, rest)]
    result.append(
        {
            "name": "a whole log in two frames",
            "message": "EventPage",
            "stream_id": stream_id,
            "bytes": wire_page(3, head, 1, [page_frame(*frame) for frame in listed]).hex(),
            "head_seq": "3",
            "head_chain": named(head),
            "oldest_seq": "1",
            "frames": [
                {"first_seq": str(a), "last_seq": str(b), "base_chain": named(base), "frame": frame.hex()}
                for a, b, base, frame in listed
            ],
        }
    )
    result.append(
        {
            "name": "at the head",
            "message": "EventPage",
            "stream_id": stream_id,
            "bytes": wire_page(3, head, 2, []).hex(),
            "head_seq": "3",
            "head_chain": named(head),
            "oldest_seq": "2",
            "frames": [],
        }
    )

    def wire_snapshot(doc_key, seq, chain, payload, payload_hash):
        fields = [bytes_field(1, doc_key.encode()), number_field(2, seq), bytes_field(3, chain)]
        return b"".join(fields) + bytes_field(4, payload) + bytes_field(5, payload_hash)

    document = b'{"run_id":"1","steps":3}'
    for name, payload_hash in [("a document", sha256(document)), ("an altered document", sha256(b"{}"))]:
        result.append(
            {
                "name": name,
                "message": "Snapshot",
                "bytes": wire_snapshot("runtime/run_summary:1", 3, head, document, payload_hash).hex(),
                "doc_key": "runtime/run_summary:1",
                "seq": "3",
                "chain_hash": named(head),
                "payload": document.hex(),
                "payload_hash": named(payload_hash),
                "payload_matches": payload_hash == sha256(document),
            }
        )

    def bad(name, message, reason, data):
        result.append({"name": name, "message": message, "bytes": data.hex(), "refused": reason})

    bad("a page of a web server", "EventPage", "malformed", b"<html></html>")
    bad("nothing", "EventPage", "hash", b"")
    bad("a short chain hash", "EventPage", "hash", wire_page(3, head[:-1], 1, []))
    bad("a seq that Postgres cannot hold", "EventPage", "seq", wire_page(MAX_SEQ + 1, head, 1, []))
    bad("a frame past every seq", "EventPage", "seq", wire_page(3, head, 1, [page_frame(1, 2**64 - 1, head, one)]))
    bad("a frame without a base", "EventPage", "hash", wire_page(3, head, 1, [page_frame(1, 1, b"", one)]))
    bad("no document", "Snapshot", "doc_key", b"")
    bad("a long name", "Snapshot", "doc_key", wire_snapshot("d" * 513, 1, head, b"{}", sha256(b"{}")))
    bad("an empty document", "Snapshot", "document", wire_snapshot("d", 1, head, b"", sha256(b"")))
    bad("a document without its hash", "Snapshot", "hash", wire_snapshot("d", 1, head, b"{}", b""))
    bad("a document past every seq", "Snapshot", "seq", wire_snapshot("d", MAX_SEQ + 1, head, b"{}", sha256(b"{}")))
    return result


# Canonical JSON.


def canonical_text(value):
    if isinstance(value, dict):
        # RFC 8785, 3.2.3: by the code units of UTF-16.
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(canonical_text(name) + ":" + canonical_text(value[name]) for name in names) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical_text, value)) + "]"
    # Python writes texts and integers as the RFC wants them.
    return json.dumps(value, ensure_ascii=False)


def canonical():
    result = []

    def good(name, text, expected=None):
        written = canonical_text(json.loads(text))
        assert expected is None or written == expected, (name, written, expected)
        result.append({"name": name, "input": text, "canonical": written})

    def bad(name, text, reason, jsonb=None):
        vector = {"name": name, "input": text, "refused": reason}
        if isinstance(text, bytes):
            vector = {"name": name, "input_hex": text.hex(), "refused": reason}
        if jsonb is not None:
            vector["jsonb"] = jsonb
        result.append(vector)

    # RFC 8785, 3.2.3.
    weird = (
        '{"\\u20ac":"Euro Sign","\\r":"Carriage Return","\\ufb33":"Hebrew Letter Dalet With Dagesh","1":"One",'
        '"\\ud83d\\ude00":"Emoji: Grinning Face","\\u0080":"Control","\\u00f6":"Latin Small Letter O With Diaeresis"}'
    )
    sorted_weird = (
        '{"\\r":"Carriage Return","1":"One","\x80":"Control","ö":"Latin Small Letter O With Diaeresis","€":"Euro Sign",'
        '"\U0001f600":"Emoji: Grinning Face","\ufb33":"Hebrew Letter Dalet With Dagesh"}'
    )
    good("RFC 8785, 3.2.3: names are sorted by the code units of UTF-16", weird, sorted_weird)
    rfc = (
        '{\n  "numbers": [333333333.33333329, 1E30, 4.50,\n              2e-3, 0.000000000000000000000000001],\n'
        '  "string": "\\u20ac$\\u000F\\u000aA\'\\u0042\\u0022\\u005c\\\\\\"\\/",\n  "literals": [null, true, false]\n}'
    )
    bad("RFC 8785, 3.2.2: its numbers are no integers", rfc, "number")
    good(
        "RFC 8785, 3.2.2, without its numbers",
        '{\n  "string": "\\u20ac$\\u000F\\u000aA\'\\u0042\\u0022\\u005c\\\\\\"\\/",\n  "literals": [null, true, false]\n}',
        '{"literals":[null,true,false],"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}',
    )
    # The test data of the RFC's authors.
    good("arrays.json", '[\n  56,\n  {\n    "d": true,\n    "10": null,\n    "1": [ ]\n  }\n]', '[56,{"1":[],"10":null,"d":true}]')
    good(
        "french.json",
        '{\n  "peach": "This sorting order",\n  "p\\u00e9ch\\u00e9": "is wrong according to French",\n'
        '  "p\\u00eache": "but canonicalization MUST",\n  "sin":   "ignore locale"\n}',
        '{"peach":"This sorting order","péché":"is wrong according to French","pêche":"but canonicalization MUST",'
        '"sin":"ignore locale"}',
    )
    structures = (
        '{\n  "1": {"f": {"f": "hi","F": 5} ,"\\n": 56%s},\n  "10": { },\n  "": "empty",\n  "a": { },\n'
        '  "111": [ {"e": "yes","E": "no" } ],\n  "A": { }\n}'
    )
    good(
        "structures.json, with 56 for 56.0",
        structures % "",
        '{"":"empty","1":{"\\n":56,"f":{"F":5,"f":"hi"}},"10":{},"111":[{"E":"no","e":"yes"}],"A":{},"a":{}}',
    )
    bad("structures.json", structures % ".0", "number")
    good("unicode.json: nothing is normalised", '{\n  "Unnormalized Unicode":"A\\u030a"\n}', '{"Unnormalized Unicode":"A\u030a"}')

    for text in ["null", "true", "false", '""', "0", "-1", "[]", "{}", str(MAX_NUMBER), str(-MAX_NUMBER)]:
        good(f"{text} alone", text, text)
    good("blanks of every kind", ' \t\r\n{ "a" :\t[ 1 ,\r2 ] \n} ', '{"a":[1,2]}')
    good("every escape", '"\\b\\t\\n\\f\\r\\"\\\\\\/\\u0001\\u001f\\u007f\\u0041"', '"\\b\\t\\n\\f\\r\\"\\\\/\\u0001\\u001f\x7fA"')
    good("a pair of surrogates, escaped in upper case", '"\\uD83D\\uDE00"', '"\U0001f600"')
    good("noncharacters and a byte order mark within a text", '"\\ufffe\\uffff\\ufeff"', '"\ufffe\uffff\ufeff"')
    good("a fraction is a text", '{"price":"1.50"}', '{"price":"1.50"}')
    good("names of different lengths", '{"aa":1,"a":2,"":3,"B":4}', '{"":3,"B":4,"a":2,"aa":1}')
    good("names that sort otherwise by bytes", '{"\\ue000":1,"\\ud800\\udc00":2}', '{"\U00010000":2,"\ue000":1}')
    good("names like array indices keep their place", '{"10":1,"9":2,"1":3,"-1":4}', '{"-1":4,"1":3,"10":1,"9":2}')
    good("a name that means something to other languages", '{"__proto__":1,"constructor":2}', '{"__proto__":1,"constructor":2}')
    good("order of arrays", "[3,1,2,[2,1]]", "[3,1,2,[2,1]]")
    good("64 levels", "[" * DEPTH + "]" * DEPTH, "[" * DEPTH + "]" * DEPTH)
    good("64 levels of both", '{"a":[' * 32 + "]}" * 32, '{"a":[' * 32 + "]}" * 32)

    bad("65 levels", "[" * (DEPTH + 1) + "]" * (DEPTH + 1), "too_deep")
    bad("65 levels of objects", '{"a":' * (DEPTH + 1) + "1" + "}" * (DEPTH + 1), "too_deep")
    bad("many levels", "[" * 2_000 + "]" * 2_000, "too_deep")
    bad("2^53", str(2**53), "number")
    bad("-2^53", str(-(2**53)), "number")
    bad("a number past 64 bits", '{"a":123456789012345678901234567890}', "number")
    bad("a fraction", "[1.5]", "number")
    bad("a fraction that a double rounds to an integer", "4503599627370496.5", "number")
    bad("an integer with a fraction", "1.0", "number")
    bad("an exponent", "1e2", "number", jsonb="100")
    bad("an exponent in upper case", "[15E-1]", "number")
    bad("a number past every double", "1e999", "number")
    bad("minus zero", "-0", "number", jsonb="0")
    bad("minus zero as a fraction", "-0.0", "number")
    bad("a name twice", '{"a":1,"a":1}', "duplicate_key", jsonb='{"a":1}')
    bad("a name twice, with another value", '{"a":1,"b":2,"a":3}', "duplicate_key", jsonb='{"a":3,"b":2}')
    bad("a name twice, once escaped", '{"a":1,"\\u0061":2}', "duplicate_key", jsonb='{"a":2}')
    bad("a name twice, deep within", '[{"x":{"a":[],"a":[]}}]', "duplicate_key", jsonb='[{"x":{"a":[]}}]')
    bad("a high surrogate alone", '"\\ud800"', "lone_surrogate")
    bad("a low surrogate alone", '"\\udc00"', "lone_surrogate")
    bad("surrogates in the wrong order", '"\\udc00\\ud800"', "lone_surrogate")
    bad("a high surrogate before something else", '"\\ud800\\u0041"', "lone_surrogate")
    bad("a lone surrogate in a name", '{"\\ud800":1}', "lone_surrogate")
    bad("a zero character, which Postgres has not", '"\\u0000"', "nul")
    bad("a zero character in a name", '{"a\\u0000":1}', "nul")
    bad("an octet that is no UTF-8", b'"\xff"', "invalid_utf8")
    bad("an overlong encoding", b'"\xc0\xaf"', "invalid_utf8")
    bad("a surrogate in UTF-8", b'"\xed\xa0\x80"', "invalid_utf8")
    bad("a character that is cut off", b'"\xe2\x82"', "invalid_utf8")
    for name, text in [
        ("nothing", ""),
        ("blanks alone", " "),
        ("two values", "1 2"),
        ("a comma at the end of an array", "[1,]"),
        ("a comma at the end of an object", '{"a":1,}'),
        ("no colon", '{"a" 1}'),
        ("a name without quotes", "{a:1}"),
        ("single quotes", "'a'"),
        ("a line break in a text", '"a\nb"'),
        ("a text without an end", '"a'),
        ("an unknown escape", '"\\x41"'),
        ("an escape that is cut off", '"\\u004"'),
        ("an array without an end", "[1"),
        ("an object without an end", '{"a":1'),
        ("a zero before a number", "01"),
        ("a plus before a number", "+1"),
        ("a point without digits", "1."),
        ("a point before digits", ".5"),
        ("an exponent without digits", "1e"),
        ("a minus alone", "-"),
        ("NaN", "NaN"),
        ("Infinity", "-Infinity"),
        ("a literal in upper case", "True"),
        ("a comment", "1 // one"),
        ("a byte order mark at the beginning", "\ufeff1"),
        ("a blank that JSON has not", "\u00a01"),
    ]:
        bad(name, text, "malformed")
    return result


# Topics.


def escaped(part):
    plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-/@+=~"
    return "".join(chr(byte) if byte in plain else f"%{byte:02X}" for byte in part.encode())


def stream_of(topic):
    parts = topic.split(":")
    ids = [escaped(part) for part in parts]
    if parts[0] == "run" and parts[2:] == ["events"]:
        return f"runtime.run.{ids[1]}.events"
    if parts[0] == "worker" and parts[2:] == ["lifecycle"]:
        return f"runtime.worker.{ids[1]}.lifecycle"
    if parts[0] == "fleet" and parts[1:2] in (["user"], ["guest"]) and parts[3:] == ["workers"]:
        return f"runtime.fleet.{parts[1]}.{ids[2]}.workers"
    if topic == "runtime.codex_worker_events":
        return "runtime.codex.worker.events"
    if parts[0] in ("runtime.run_summaries", "runtime.codex_worker_summaries", "runtime.notifications"):
        return ".".join([parts[0], *ids[1:]])
    return "runtime.topic." + ".".join(ids)


def topics():
    pairs = [
        ("run:42:events", "runtime.run.42.events"),
        ("worker:7:lifecycle", "runtime.worker.7.lifecycle"),
        ("fleet:user:7:workers", "runtime.fleet.user.7.workers"),
        ("fleet:guest:x:workers", "runtime.fleet.guest.x.workers"),
        ("runtime.codex_worker_events", "runtime.codex.worker.events"),
        ("runtime.run_summaries", "runtime.run_summaries"),
        ("runtime.run_summaries:org:acme", "runtime.run_summaries.org.acme"),
        ("runtime.codex_worker_summaries", "runtime.codex_worker_summaries"),
        ("runtime.notifications:user:7", "runtime.notifications.user.7"),
        ("run:a.b:events", "runtime.run.a%2Eb.events"),
        ("run::events", "runtime.run..events"),
        ("run:42", "runtime.topic.run.42"),
        ("run:42:events:more", "runtime.topic.run.42.events.more"),
        ("fleet:org:7:workers", "runtime.topic.fleet.org.7.workers"),
        ("notes", "runtime.topic.notes"),
        ("a:b", "runtime.topic.a.b"),
        ("a.b", "runtime.topic.a%2Eb"),
        ("käse 100%", "runtime.topic.k%C3%A4se%20100%25"),
        ("\U0001f600", "runtime.topic.%F0%9F%98%80"),
        ("a:", "runtime.topic.a."),
        (":", "runtime.topic.."),
        ("x" * 241, "runtime.topic." + "x" * 241),
    ]
    result = []
    for topic, stream_id in pairs:
        assert stream_of(topic) == stream_id, (topic, stream_of(topic))
        result.append({"topic": topic, "stream_id": stream_id})
    for name, topic in [("empty", ""), ("its stream would have 256 bytes", "x" * 242), ("escapes make it too long", "ü" * 81)]:
        result.append({"name": name, "topic": topic, "refused": True})
    strays = ["notes", "runtime.run.42", "runtime.run.a.b.events", "runtime.topic.", "runtime.topic.%zz", "runtime.topic.a%2e"]
    strays += ["runtime.topic.%41", "runtime.topic.%FF", "runtime.topic.run.42.events", "runtime.topic.runtime%2Erun_summaries"]
    strays += ["runtime.run_summaries.a:b", "runtime.run_summary", "runtime.topic.a:b"]
    result += [{"stream_id": stream_id, "topic": None} for stream_id in strays]
    return result


# Tokens.

NOW = 1_893_456_100


def claims():
    return {
        "iss": "https://sync.example",
        "aud": "openagents-sync",
        "sub": "user:7/session:s1",
        "iat": 1_893_456_000,
        "oa_iat_us": 1_893_456_000_000_007,
        "nbf": 1_893_456_000,
        "exp": 1_893_456_300,
        "jti": "sync_5f0c1c52-6f0f-4f0e-9c53-1a3d3d0f7f11",
        "oa_user_id": "7",
        "oa_org_id": "acme",
        "oa_session_id": "s1",
        "oa_device_id": "d1",
        "oa_sync_scopes": ["sync.subscribe", "runtime.run_events"],
        "oa_sync_topics": ["run:42:events"],
        "oa_sync_streams": ["runtime.run.42.events", "user:7:*"],
        "oa_claims_version": "oa_sync_claims_v1",
        "oa_client_surface": "desktop",
        "oa_client_build_id": "20261101T000000Z",
        "oa_protocol_version": "spacetime.sync.v1",
        "oa_schema_version": 10,
    }


def compact(header, body, key=KEY):
    def part(value):
        return base64url(json.dumps(value, separators=(",", ":")).encode())

    text = f"{part(header)}.{part(body)}"
    return f"{text}.{base64url(sign(text.encode(), key))}"


def tokens():
    # RFC 6979, A.2.5: SHA-256 of "sample".
    assert sign(b"sample").hex().upper() == (
        "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716"
        "F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8"
    )
    jwk, _ = public_key()
    header = {"alg": "ES256", "typ": "oa-sync+jwt", "kid": jwk["kid"]}
    good = compact(header, claims())
    text, _, signature = good.rpartition(".")
    none = {"alg": "none", "typ": "oa-sync+jwt", "kid": jwk["kid"]}
    vectors = [
        {"name": "a token", "token": good, "claims": claims()},
        {"name": "another key signed it", "token": compact(header, claims(), KEY + 1), "refused": "invalid_token"},
        {"name": "a byte was changed", "token": f"{text}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}", "refused": "invalid_token"},
        {"name": "without a signature", "token": f"{compact(none, claims()).rpartition('.')[0]}.", "refused": "invalid_token"},
        {"name": "of another type", "token": compact({**header, "typ": "JWT"}, claims()), "refused": "invalid_token"},
        {"name": "after its end", "token": compact(header, {**claims(), "exp": NOW}), "refused": "token_expired"},
        {"name": "before its beginning", "token": compact(header, {**claims(), "nbf": NOW + 61}), "refused": "token_not_yet_valid"},
        {"name": "for another audience", "token": compact(header, {**claims(), "aud": "other"}), "refused": "invalid_token"},
        {"name": "of another issuer", "token": compact(header, {**claims(), "iss": "https://other.example"}), "refused": "invalid_token"},
        {"name": "no token", "token": "abc", "refused": "invalid_token"},
    ]
    policy = {"issuer": "https://sync.example", "audience": "openagents-sync", "now": NOW}
    return {"key": jwk, "private_key": private_key(), "policy": policy, "tokens": vectors}


# Refusals: code, class, and status over HTTP.

REFUSALS = """
unauthorized fatal 401
forbidden_stream reject 403
not_configured fatal 503
wrong_database retry 503
invalid_argument reject 422
invalid_frame reject 422
seq_gap retry 409
chain_mismatch reject 409
event_conflict reject 409
below_window retry 409
checkpoint_behind reject 409
checkpoint_ahead reject 409
capability_conflict reject 409
assignment_conflict reject 409
forbidden_assignment reject 403
outbox_conflict reject 409
outbox_full retry 429
being_brought_back retry 503
lacking reject 503
challenge_refused reject 403
signature_refused reject 403
epoch_behind fatal 409
key_secret_fixed fatal 409
missing_authorization fatal 401
invalid_authorization_scheme fatal 401
invalid_token fatal 401
token_expired retry 401
token_not_yet_valid retry 401
missing_jti fatal 401
missing_iat fatal 401
token_too_old retry 401
token_revoked fatal 401
session_bound fatal 403
missing_scope reject 403
invalid_scope fatal 422
forbidden fatal 403
surface_policy_denied fatal 403
invalid_request fatal 422
too_many_grants fatal 422
rate_limited retry 429
sync_token_unavailable retry 503
not_found fatal 404
invalid_client_build fatal 426
unsupported_protocol_version fatal 426
unsupported_schema_version fatal 426
upgrade_required fatal 426
unsupported_client_build fatal 426
"""


def refusals():
    result = []
    for nth, row in enumerate(REFUSALS.split("\n")[1:-1]):
        code, family, status = row.split()
        body = {"code": code, "message": "expected this, found that"}
        # Some say where the stream's head is.
        if nth % 3 == 0:
            body["head_seq"] = nth
        result.append({"code": code, "class": family, "status": int(status), "body": json.dumps(body, separators=(",", ":"))})
    return result


# Messages that are JSON, as they stand on the wire.


def messages():
    jwk, _ = public_key()
    chain = named(sha256(b"chain"))
    pin = {"database_identity": "c200" * 16, "owner_identity": "ab" * 32}
    version = {"min_client_build_id": "20260101T000000Z", "max_client_build_id": "20261231T235959Z"}
    version |= {"min_schema_version": 9, "max_schema_version": 10}
    granted = {
        "token": tokens()["tokens"][0]["token"],
        "token_type": "Bearer",
        "transport": "spacetime_ws",
        "protocol_version": "spacetime.sync.v1",
        "expires_in": 300,
        "refresh_after_in": 270,
        "issued_at": 1_893_456_000,
        "refresh_after": 1_893_456_270,
        "expires_at": 1_893_456_300,
        "issuer": "https://sync.example",
        "audience": "openagents-sync",
        "subject": "user:7/session:s1",
        "org_id": "acme",
        "claims_version": "oa_sync_claims_v1",
        "scopes": ["sync.subscribe", "runtime.run_events"],
        "granted_topics": ["run:42:events"],
        "granted_streams": ["runtime.run.42.events"],
        "kid": jwk["kid"],
        "token_id": "sync_5f0c1c52-6f0f-4f0e-9c53-1a3d3d0f7f11",
        "session_id": "s1",
        "device_id": "d1",
        "seal_keys": [{member: jwk[member] for member in ("kid", "kty", "crv", "x", "y")}],
        "pin": pin,
    }
    without_pin = {name: value for name, value in granted.items() if name != "pin"} | {"org_id": None}
    asked = {
        "scopes": ["sync.subscribe"],
        "streams": ["user:7:*"],
        "topics": ["run:42:events"],
        "ttl_seconds": 300,
        "device_id": "d1",
    }
    stale = {
        "code": "stale_cursor",
        "stream_id": "runtime.run.1.events",
        "requested_after_seq": 3,
        "oldest_available_cursor": 10,
        "oldest_available_chain": chain,
        "head_cursor": 90,
        "reason_codes": ["retention_floor_breach", "replay_budget_exceeded", "ahead_of_head", "chain_mismatch"],
        "replay_lag": 87,
        "replay_budget_events": 50,
        "snapshot_cursor": 12,
    }
    too_old = {
        "code": "upgrade_required",
        "message": "builds from 20260101T000000Z on are served: update the client",
        "retryable": False,
        "upgrade_required": True,
        "surface": "desktop",
        **version,
        "protocol_version": "spacetime.sync.v1",
    }
    limited = {"code": "rate_limited", "message": "too many requests", "retryable": True, "retry_after_ms": 1500}
    head = {"stream_id": "runtime.run.1.events", "seq": 2**53 + 1, "chain_hash": chain, "published_seq": 2**53}
    listed = [
        ("TokenRequest", asked),
        ("TokenRequest", {name: asked[name] for name in ("scopes", "streams", "topics")}),
        ("TokenResponse", granted),
        ("TokenResponse", without_pin),
        ("SyncClaims", claims()),
        ("TokenRefusal", limited),
        ("TokenRefusal", {"code": "not_found", "message": "there is nothing here", "retryable": False}),
        ("Refusal", {"code": "seq_gap", "message": "expected 5, found 9", "head_seq": 4}),
        ("StaleCursor", stale),
        ("StaleCursor", {**stale, "replay_budget_events": None, "snapshot_cursor": None}),
        ("Incompatible", too_old),
        ("HeadsRequest", {"streams": ["runtime.run.1.events"], "reported": ["runtime.run.1.events"]}),
        ("HeadsRequest", {"streams": []}),
        ("Heads", {"heads": [head]}),
    ]
    return [{"message": name, "json": json.dumps(body, separators=(",", ":"))} for name, body in listed]


def lines(vectors):
    rows = ",\n".join("  " + json.dumps(vector) for vector in vectors)
    return "[\n" + rows + "\n]\n"


def main():
    files = {
        "hashes.json": lines(hashes()),
        "chain.json": lines(chains()),
        "frames.json": lines(frames()),
        "pages.json": lines(pages()),
        "canonical.json": lines(canonical()),
        "topics.json": lines(topics()),
        "refusals.json": lines(refusals()),
        "messages.json": lines(messages()),
        "tokens.json": json.dumps(tokens(), indent=2) + "\n",
    }
    stale = []
    for name, text in files.items():
        path = HERE / name
        if "--check" in sys.argv[1:]:
            if not path.exists() or path.read_text() != text:
                stale.append(name)
        else:
            path.write_text(text)
    if stale:
        sys.exit(f"differ from what proto/vectors/generate.py writes, run it: {', '.join(stale)}")


if __name__ == "__main__":
    main()
