//! What is a refusal and what is not, however it is written and cut.

use proptest::prelude::*;

use super::*;

fn judge(body: &[u8]) -> Verdict {
    let mut inspector = Inspector::new();
    inspector.push(body);
    inspector.finish()
}

/// What `push` says on the whole of it, and then `finish`.
fn steps(body: &str) -> (Verdict, Verdict) {
    let mut inspector = Inspector::new();
    (inspector.push(body.as_bytes()), inspector.finish())
}

#[test]
fn every_sample_of_a_refusal_is_one() {
    for (code, body) in [
        (
            40001,
            r#"{"errcode":40001,"errmsg":"invalid credential, access_token is invalid or not latest rid: 62c66213-76542f8c-06b14179"}"#,
        ),
        (
            40001,
            r#"{"errcode":40001,"errmsg":"invalid credential, access_token is invalid or not latest, could get access_token by getStableAccessToken, more details at https://mmbizurl.cn/s/JtxxFh33r rid: 654df33c-64386a2f-29857782"}"#,
        ),
        (
            40001,
            r#"{"errcode":40001,"errmsg":"invalid credential, access_token is invalid or not latest hint: [9.ZaUa0975vr21]"}"#,
        ),
        (40001, r#"{"errcode":40001,"errmsg":"invalid credential, hints: [ req_id: hDexla0781ns89 ]"}"#),
        (42001, r#"{"errcode":42001,"errmsg":"access_token expired rid: 627ca5cf-7e811ede-0fbc1f73"}"#),
        (
            42001,
            r#"{"ip_list":[],"errcode":42001,"errmsg":"access_token expired, hint: [1576065934_28_e0f...], from ip: 9.30.0.138, more info at https://open.work.weixin.qq.com/devtool/query?e=42001"}"#,
        ),
        (40014, r#"{"errcode":40014,"errmsg":"invalid access_token"}"#),
    ] {
        assert_eq!(steps(body), (Verdict::Undecided, Verdict::Refused(code)), "{body}");
    }
}

#[test]
fn it_may_be_written_in_many_ways() {
    for body in [
        r#"{"errcode":40001}"#,
        r#"{"errcode":"40001"}"#,
        r#"{"errcode":" 40001 "}"#,
        r#"{"errcode":'40001'}"#,
        r#"{"errcode":40001.0}"#,
        r#"{"errcode":40001.}"#,
        r#"{"errcode":"40001.000"}"#,
        r#"{"errcode":0040001}"#,
        r#"{'errcode':40001}"#,
        r#"{errcode:40001}"#,
        "{ errcode : 40001 , }",
        "\u{feff}{\"errcode\":40001}",
        "\u{feff} \r\n\t{\n\t\"errcode\"\n:\t40001\n,\r\n \"errmsg\" : \"x\"\n}\r\n\n",
        r#"{"errmsg":"m","errcode":40001}"#,
        r#"{"errmsg":"m","errcode":"40001",}"#,
        r#"{,,"errcode":40001,,}"#,
        r#"{"errmsg":"{\"errcode\":0}","errcode":40001}"#,
        r#"{"errmsg":"quote \" brace } and \\","errcode":40001}"#,
        r#"{"errmsg":'it"s','errcode':40001}"#,
        r#"{"a":{"errcode":0},"b":[{"errcode":0},[]],"errcode":40001}"#,
        r#"{"a":["}","]",'}'],"errcode":40001}"#,
        r#"{"a":-1.5e3,"b":null,"c":true,"errcode":40001}"#,
        r#"{"\u0065rrcode":40001}"#,
        r#"{"err\u0063ode":40001}"#,
        r#"{"errcod\e":40001}"#,
        r#"{"errcode":40001,"errcode":0}"#,
        r#"{"errcode":40001,"nested":{"errcode":0}}"#,
        "{\"errmsg\":\"raw \n\t\x01 controls\",\"errcode\":40001}",
    ] {
        assert_eq!(judge(body.as_bytes()), Verdict::Refused(40001), "{body}");
    }
    assert_eq!(judge(b"{\"errmsg\":\"\xff\xfe\xc3\",\"errcode\":40001}"), Verdict::Refused(40001));
    assert_eq!(judge(b"{\"\xff\":1,\"errcode\":42001}"), Verdict::Refused(42001));
}

#[test]
fn everything_else_is_clean() {
    for body in [
        "",
        " \r\n",
        "\u{feff}",
        "{}",
        "{",
        "{ , }",
        "[]",
        r#"[{"errcode":40001}]"#,
        r#""errcode""#,
        "40001",
        "null",
        "<xml><errcode>40001</errcode></xml>",
        "<!DOCTYPE html><html>{\"errcode\":40001}</html>",
        "callback({\"errcode\":40001})",
        "x{\"errcode\":40001}",
        "\u{feff}\u{feff}{\"errcode\":40001}",
        r#"{"errcode":41001,"errmsg":"access_token missing rid: 637df9e4-4cd673ce-10c42658"}"#,
        r#"{"errcode":0,"errmsg":"ok"}"#,
        r#"{"errcode":42007}"#,
        r#"{"errcode":400010}"#,
        r#"{"errcode":4000}"#,
        r#"{"errcode":140001}"#,
        r#"{"errcode":18446744073709591617}"#,
        r#"{"errcode":-40001}"#,
        r#"{"errcode":+40001}"#,
        r#"{"errcode":"-40001"}"#,
        r#"{"errcode":"+40001"}"#,
        r#"{"errcode":40001e0}"#,
        r#"{"errcode":4.0001e4}"#,
        r#"{"errcode":40001.5}"#,
        r#"{"errcode":.40001}"#,
        r#"{"errcode":0x9c41}"#,
        r#"{"errcode":40001x}"#,
        r#"{"errcode":"40001x"}"#,
        r#"{"errcode":"400 01"}"#,
        r#"{"errcode":"40001,"}"#,
        r#"{"errcode":"40001'}"#,
        r#"{"errcode":""}"#,
        r#"{"errcode":"."}"#,
        r#"{"errcode":null}"#,
        r#"{"errcode":true}"#,
        r#"{"errcode":{}}"#,
        r#"{"errcode":[40001]}"#,
        r#"{"errcode":{"errcode":40001}}"#,
        r#"{"errcode":}"#,
        r#"{"errcode":,}"#,
        r#"{"errcode":40001]"#,
        r#"{"errcode":40001"a":1}"#,
        r#"{"errcode":40001 "a":1}"#,
        r#"{"errcode" 40001}"#,
        r#"{"errcode"}"#,
        r#"{"Errcode":40001}"#,
        r#"{"ERRCODE":40001}"#,
        r#"{"errcode ":40001}"#,
        r#"{"errcodes":40001}"#,
        r#"{"errcod":40001}"#,
        r#"{"xerrcode":40001}"#,
        r#"{"errcode\n":40001}"#,
        r#"{"\u00e5rrcode":40001}"#,
        r#"{"\u0165rrcode":40001}"#,
        r#"{"err\u00code":40001}"#,
        r#"{"error":40001}"#,
        r#"{"base_resp":{"errcode":40001}}"#,
        r#"{"list":[{"errcode":40001}]}"#,
        r#"{"data":"{\"errcode\":40001}"}"#,
        r#"{"data":"\",\"errcode\":40001,\""}"#,
        r#"{"data":'","errcode":40001,"'}"#,
        r#"{"errcode":0,"errcode":40001}"#,
        r#"{{"errcode":40001}}"#,
        r#"{["errcode":40001]}"#,
        r#"{"errcode":40001"#,
        r#"{"errcode":40001,"errmsg":"broken of"#,
        r#"{"errcode":40001,"a":{}"#,
        r#"{"errcode":40001}}"#,
        r#"{"errcode":40001}{"errcode":40001}"#,
        r#"{"errcode":40001} x"#,
        "{\"errcode\":40001}\0",
        r#"{"errcode":40001},"#,
    ] {
        assert_eq!(judge(body.as_bytes()), Verdict::Clean, "{body}");
    }
    for binary in [
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR{\"errcode\":40001}".as_slice(),
        b"\xff\xd8\xff\xe0\0\x10JFIF",
        b"GIF89a",
        b"\x1f\x8b\x08\0\0",
        b"\xef\xbb{\"errcode\":40001}",
        b"\xef{\"errcode\":40001}",
        b"\0{\"errcode\":40001}",
        &[b'{'; 4096],
        &[0; 4096],
    ] {
        assert_eq!(judge(binary), Verdict::Clean, "{binary:?}");
    }
}

#[test]
fn a_reply_goes_on_as_soon_as_it_is_clean() {
    for body in [
        "<",
        "\u{89}PNG",
        "[",
        "{}",
        r#"{"errcode":0,"#,
        r#"{"errcode":0 "#,
        r#"{"errcode":-"#,
        r#"{"errcode":n"#,
    ] {
        assert_eq!(steps(body).0, Verdict::Clean, "{body}");
    }
    for body in ["", " ", "{", r#"{"a":1"#, r#"{"errcode":"#, r#"{"errcode":40001"#, r#"{"errcode":40001}"#] {
        assert_eq!(steps(body).0, Verdict::Undecided, "{body}");
    }
}

#[test]
fn a_refusal_is_small() {
    let sized = |size: usize| {
        let head = r#"{"errcode":40001,"errmsg":""#;
        format!("{head}{}\"}}", "x".repeat(size - head.len() - 2))
    };
    assert_eq!(judge(sized(PREFIX).as_bytes()), Verdict::Refused(40001));
    assert_eq!(steps(&sized(PREFIX + 1)), (Verdict::Clean, Verdict::Clean));
    assert_eq!(steps(&format!("{{\"errcode\":40001}}{}", " ".repeat(PREFIX))).1, Verdict::Clean);

    let mut inspector = Inspector::new();
    let body = sized(5 * 1024 * 1024);
    let clean = body.as_bytes().chunks(1000).position(|chunk| inspector.push(chunk) == Verdict::Clean);
    assert_eq!(clean, Some(4), "after 5,000 bytes");
    assert_eq!(inspector.push(b""), Verdict::Clean);
    assert_eq!(inspector.finish(), Verdict::Clean);
    assert!(size_of::<Inspector>() <= 64);
}

#[test]
fn only_a_small_reply_that_can_be_read_is_looked_at() {
    for (length, looks) in
        [(None, true), (Some(0), false), (Some(1), true), (Some(4096), true), (Some(4097), false)]
    {
        assert_eq!(can_be_refusal(length, false), looks, "{length:?}");
        assert!(!can_be_refusal(length, true), "{length:?}");
    }
}

/// Bodies near the line: pieces of JSON in any order.
fn nearly_json() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => proptest::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"", "'", "\\", "\"errcode\"", "errcode", ":40001", "40001", "42001",
            "\"40014\"", "0", ".", " ", "\n", "-", "null", "\\u0065", "\"a\":", "{\"errcode\":40001",
            ",\"errcode\":42001", "\u{feff}",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..4),
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

/// Members of an object, each with its value as JSON text and as a value.
fn members() -> impl Strategy<Value = Vec<(String, serde_json::Value)>> {
    use serde_json::{Value, json};
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e6..1e6).prop_map(Value::from),
        proptest::sample::select(vec![
            json!(0),
            json!(-1),
            json!(40001),
            json!(40014),
            json!(42001),
            json!(41001),
            json!(40001.0),
            json!(40001.5),
            json!("40001"),
            json!("42001.0"),
            json!(" 40014 "),
            json!("x40001"),
            json!(-40001),
        ]),
        "[a-z\"'\\\\{}\\[\\],:\n\u{1}é微]{0,12}".prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("errcode|[a-z]{0,8}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    let key = prop_oneof![1 => Just("errcode".to_owned()), 3 => "[a-z\"'\\\\{}:,\n微]{0,9}"];
    proptest::collection::vec((key, value), 0..6)
}

/// The rule again, on a parsed document.
fn oracle(members: &[(String, serde_json::Value)]) -> Verdict {
    let Some((_, value)) = members.iter().find(|(key, _)| key == "errcode") else {
        return Verdict::Clean;
    };
    let number = match value {
        serde_json::Value::Number(number) => number.as_f64(),
        serde_json::Value::String(text) => text.trim_matches(' ').parse().ok(),
        _ => None,
    };
    [40001, 40014, 42001]
        .into_iter()
        .find(|&code| number == Some(f64::from(code)))
        .map_or(Verdict::Clean, |code| Verdict::Refused(code.into()))
}

proptest! {
    #[test]
    fn the_verdict_does_not_depend_on_how_the_body_is_cut(
        body in nearly_json(), cuts in proptest::collection::vec(1usize..9, 1..64),
    ) {
        let mut inspector = Inspector::new();
        let (mut rest, mut cuts) = (body.as_slice(), cuts.iter().cycle());
        let mut clean = false;
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            let verdict = inspector.push(chunk);
            prop_assert!(verdict == Verdict::Clean || (verdict == Verdict::Undecided && !clean));
            clean = verdict == Verdict::Clean;
            rest = after;
        }
        prop_assert_eq!(inspector.finish(), judge(&body));
        prop_assert!(!clean || judge(&body) == Verdict::Clean);
    }

    #[test]
    fn any_bytes_get_a_verdict(body in proptest::collection::vec(any::<u8>(), 0..6000)) {
        prop_assert_ne!(judge(&body), Verdict::Undecided);
        prop_assert_ne!(judge(&[b"{\"a\":[".as_slice(), &body].concat()), Verdict::Undecided);
    }

    #[test]
    fn on_strict_json_it_agrees_with_a_parser(members in members(), pretty in any::<bool>()) {
        let gap = if pretty { "\n  " } else { "" };
        let text: Vec<_> = members
            .iter()
            .map(|(key, value)| format!("{gap}{}:{gap}{value}", serde_json::Value::from(key.as_str())))
            .collect();
        let text = format!("{{{}{gap}}}{gap}", text.join(","));
        prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}", text);
        if text.len() <= PREFIX {
            prop_assert_eq!(judge(text.as_bytes()), oracle(&members), "{}", text);
        }
    }
}

#[test]
fn device_interfaces_nest_their_errcode_in_base_resp() {
    let refused = br#"{"base_resp":{"errcode":42001,"errmsg":"access_token expired"},"resp_msg":{}}"#;
    assert_eq!(base_resp(refused), Verdict::Refused(42001));
    assert_eq!(base_resp(br#"{"base_resp":{"errcode":"40001"}}"#), Verdict::Refused(40001));
    for other in [&br#"{"base_resp":{"errcode":0}}"#[..], br#"{"data":{"errcode":40001}}"#, b"", b"[]", b"{"]
    {
        assert_eq!(base_resp(other), Verdict::Clean);
    }
}
