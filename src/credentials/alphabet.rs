//! Which bytes a credential is made of: [`Alphabet`] tells at a glance that a text does not hold it.
//!
//! Every reply is searched for the account's credentials, and hardly any has one. A credential is a long run of its own
//! few characters, and a text of words, quotes and braces has none: looking at every n-th byte tells.

/// The bytes that a credential is made of, in all its spellings. SECURITY: not the credential, and still not to be
/// shown: it has no `Debug`.
#[derive(Clone, Copy, Default)]
pub struct Alphabet([u64; 4]);

impl Alphabet {
    /// Of these texts.
    #[must_use]
    pub fn of(texts: &[&str]) -> Self {
        let mut set = Self::default();
        for byte in texts.iter().flat_map(|text| text.bytes()) {
            set.0[usize::from(byte / 64)] |= 1 << (byte % 64);
        }
        set
    }

    /// Whether this byte is one of them.
    #[must_use]
    pub fn has(&self, byte: u8) -> bool {
        self.0[usize::from(byte / 64)] >> (byte % 64) & 1 == 1
    }

    /// Whether there is a run of `length` of them in `bytes`, so that a credential of that length may stand there.
    #[must_use]
    pub fn may_spell(&self, bytes: &[u8], length: usize) -> bool {
        let Some(step) = length.checked_sub(1) else { return true };
        // No run that long fits between two of these places.
        let mut at = step;
        while let Some(&byte) = bytes.get(at) {
            if self.has(byte) {
                let before = bytes[..at].iter().rev().take_while(|&&byte| self.has(byte)).count();
                let after = bytes[at..].iter().take(length).take_while(|&&byte| self.has(byte)).count();
                if before + after >= length {
                    return true;
                }
                // Its end is no part of the next one.
                at += after;
            }
            at += length;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_text_without_a_long_run_cannot_hold_it() {
        let secret = Alphabet::of(&["0123456789abcdef"]);
        assert!(secret.has(b'f') && !secret.has(b'g') && !secret.has(0xff));
        assert!(!secret.may_spell(b"{\"errcode\":0,\"errmsg\":\"ok\"}", 16));
        assert!(secret.may_spell(b"x=0123456789abcdef", 16));
        assert!(!secret.may_spell(b"x=0123456789abcde", 16));
        assert!(secret.may_spell(b"", 0), "whatever it is");
    }

    proptest! {
        #[test]
        fn a_run_is_found_wherever_it_stands(text in "[abXY]{0,60}", length in 1_usize..12) {
            let set = Alphabet::of(&["a", "b"]);
            let mut runs = text.split(['X', 'Y']).map(str::len);
            prop_assert_eq!(set.may_spell(text.as_bytes(), length), runs.any(|run| run >= length));
        }
    }
}
