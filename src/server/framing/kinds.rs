//! What bytes are to [`framing`](super), and how the first of a kind is found fast.

/// What no field value may hold; a tab it may.
pub(super) fn is_control(byte: u8) -> bool {
    (byte < b' ' && byte != b'\t') || byte == 0x7f
}

/// The characters of methods and field names (RFC 9110 5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

const TOKEN: [bool; 256] = {
    let (mut table, mut byte) = ([false; 256], 0);
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"!#$%&'*+-.^_`|~";
    let mut n = 0;
    while n < others.len() {
        table[others[n] as usize] = true;
        n += 1;
    }
    table
};

/// How many such characters there are at the beginning.
pub(super) fn tokens(bytes: &[u8]) -> usize {
    bytes.iter().position(|&b| !is_token(b)).unwrap_or(bytes.len())
}

/// A Content-Length as it is nearly always written; `None` for any other, sound or not.
pub(super) fn plain_number(value: &[u8]) -> Option<u64> {
    let digits = value.strip_prefix(b" ").unwrap_or(value);
    if digits.is_empty() || digits.len() > 15 {
        return None;
    }
    digits
        .iter()
        .try_fold(0, |number, &digit| digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0')))
}

/// How many bytes there are before the first control character, a tab included: eight at a time.
pub(super) fn printable(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let (words, rest) = bytes.as_chunks::<8>();
    for (n, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let delete = word ^ (ONES * 0x7f);
        // The high bit of each byte that is below 0x20, or 0x7f. Above the first one a borrow may set others.
        let hit = (word.wrapping_sub(ONES * 0x20) & !word | delete.wrapping_sub(ONES) & !delete) & HIGHS;
        if hit != 0 {
            return n * 8 + hit.trailing_zeros() as usize / 8;
        }
    }
    let at = bytes.len() - rest.len();
    at + rest.iter().position(|&b| b < b' ' || b == 0x7f).unwrap_or(rest.len())
}

/// The place of the first byte that is looked for, or the end. In steps of 16 without a branch inside, which the
/// compiler turns into vector code.
pub(super) fn find(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> usize {
    const STEP: usize = 16;
    let (steps, _) = bytes.as_chunks::<STEP>();
    let clear = steps.iter().take_while(|step| !step.iter().fold(false, |hit, &b| hit | wanted(b))).count();
    let at = clear * STEP;
    at + bytes[at..].iter().position(|&b| wanted(b)).unwrap_or(bytes.len() - at)
}
