//! The fuzz targets as plain loops on stable: what is in their corpora, and a few thousand mutations of it, from a seed.

#[path = "../fuzz/targets.rs"]
mod targets;

use std::fs;
use std::path::Path;

use crate::corpus::entry::{Act, read};

/// `FUZZ_ROUNDS=100` makes it a hundred times as many.
fn rounds(few: u64) -> u64 {
    let times = std::env::var("FUZZ_ROUNDS").ok().and_then(|text| text.parse::<u64>().ok());
    few * times.unwrap_or(1)
}

/// Bits that tell where they get in.
const WORDS: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    "\0",
    " ",
    "\t",
    "#",
    ":",
    ";",
    ",",
    "/",
    "//",
    "/../",
    "%2e",
    "%2f",
    "%00",
    "%",
    "?",
    "&",
    "=",
    "\\",
    "\r\n\r\n",
    "0\r\n\r\n",
    "5\r\nhello\r\n",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Connection: close\r\n",
    "Connection: host, content-length\r\n",
    "Host: evil.example\r\n",
    "Expect: 100-continue\r\n",
    "HTTP/1.0",
    "HEAD ",
    "OPTIONS ",
    "access_token=x",
    "%61ccess_token=y",
    "component_access_token=c",
    "/cgi-bin/token",
    "/cgi-bin/stable_token",
    "/sns/jscode2session",
    "GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "\"errcode\"",
    "40001",
    "42001",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "'",
    "\\u0065",
    "\u{feff}",
    "access_token",
    "expires_in",
    "7200",
    "-1",
    "1e400",
    "null",
    "18446744073709551615",
    "1785000000000",
    "age_seconds",
    "\"v\":1",
    "\"sealed\":",
    "\"standing\":\"refused\"",
    "s:5:\"",
    "\";",
    "[[account]]\n",
    "secret = \"x\"\n",
    "appid = \"wx1\"\n",
    "listen = ",
    "upstream = \"",
    "= 5\n",
];

fn mutate(rng: &mut fastrand::Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = rng.choice(seeds).expect("a seed").clone();
    for _ in 0..rng.usize(1..6) {
        let at = rng.usize(..=bytes.len());
        let end = (at + rng.usize(..12)).min(bytes.len());
        match rng.u8(..6) {
            0 => drop(bytes.splice(at..end, Vec::new())),
            1 if at < bytes.len() => bytes[at] = rng.u8(..),
            2 => {
                let piece = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, piece));
            }
            3 => {
                let other = rng.choice(seeds).expect("a seed");
                let from = rng.usize(..=other.len());
                drop(bytes.splice(at.., other[from..].iter().copied()));
            }
            _ => {
                let word = rng.choice(WORDS).expect("a word");
                drop(bytes.splice(at..at, word.bytes()));
            }
        }
    }
    bytes.truncate(100_000);
    bytes
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let files = fs::read_dir(folder).expect("the target's corpus");
    let mut files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    files.sort();
    assert!(files.len() > 2, "a few seeds");
    files.iter().map(|file| fs::read(file).expect("a seed")).collect()
}

fn run(mut seeds: Vec<Vec<u8>>, more: Vec<Vec<u8>>, few: u64, target: fn(&[u8])) {
    seeds.extend(more);
    seeds.iter().for_each(|seed| target(seed));
    for round in 0..rounds(few) {
        let input = mutate(&mut fastrand::Rng::with_seed(round), &seeds);
        if std::panic::catch_unwind(|| target(&input)).is_err() {
            panic!("round {round}, {} bytes: {:?}", input.len(), String::from_utf8_lossy(&input));
        }
    }
}

#[test]
fn fuzzed_bytes_of_an_app_reach_wechat_as_sound_calls_or_not_at_all() {
    // Those that end in time, and not after a wait for what does not come.
    let requests = read("requests").into_iter().filter_map(|entry| match &entry.acts[..] {
        [Act::Send(bytes)] if bytes.len() < 4096 => Some(bytes.clone()),
        _ => None,
    });
    run(corpus("head"), requests.collect(), 3000, targets::head);
}

#[test]
fn fuzzed_replies_are_judged_alike_however_they_are_cut() {
    run(corpus("inspect"), Vec::new(), 30_000, targets::inspect);
}

#[test]
fn fuzzed_settings_are_taken_or_told_and_show_no_secret() {
    run(corpus("settings"), Vec::new(), 3000, targets::settings);
}

#[test]
fn fuzzed_token_replies_are_sound_tokens_or_errors_without_a_secret() {
    run(corpus("reply"), Vec::new(), 20_000, targets::reply);
}

#[test]
fn fuzzed_records_of_a_store_are_sound_or_none() {
    run(corpus("records"), Vec::new(), 20_000, targets::records);
}

#[test]
fn fuzzed_replies_of_a_central_server_are_sound_tokens_or_errors_without_a_key() {
    run(corpus("central"), Vec::new(), 20_000, targets::central);
}

#[test]
fn fuzzed_values_of_other_apps_are_tokens_worth_taking_or_left() {
    run(corpus("bridge"), Vec::new(), 20_000, targets::bridge);
}
