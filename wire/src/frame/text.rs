//! Text that arrives in pieces: each piece is validated once, when it comes, and only with what it may still become.

use std::str;

/// A text message under assembly. Bad UTF-8 shows with the first byte that makes it bad, wherever pieces are cut.
#[derive(Debug, Default)]
pub(super) struct PartialText {
    text: String,
    /// The first bytes of a character whose rest has not come.
    begun: [u8; 4],
    begun_length: u8,
}

/// The bytes can never become UTF-8.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadText;

impl PartialText {
    /// How many bytes have come.
    pub(super) fn len(&self) -> usize {
        self.text.len() + usize::from(self.begun_length)
    }

    /// Takes the next piece.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), BadText> {
        let piece = self.finish_character(piece)?;
        let (whole, begun) = piece.split_at(piece.len() - begun_length(piece));
        self.text.push_str(simdutf8::basic::from_utf8(whole).map_err(|_| BadText)?);
        for &byte in begun {
            self.begin(byte)?;
        }
        Ok(())
    }

    /// The text, if no character is left unfinished.
    pub(super) fn as_str(&self) -> Result<&str, BadText> {
        if self.begun_length == 0 { Ok(&self.text) } else { Err(BadText) }
    }

    /// Feeds the unfinished character, if there is one. Gives what it did not need.
    fn finish_character<'p>(&mut self, mut piece: &'p [u8]) -> Result<&'p [u8], BadText> {
        while self.begun_length > 0 {
            let Some((&byte, rest)) = piece.split_first() else { break };
            self.begin(byte)?;
            piece = rest;
        }
        Ok(piece)
    }

    /// Adds one byte to the unfinished character. A character has at most four bytes, so there is always space: with
    /// four it is either whole or bad.
    fn begin(&mut self, byte: u8) -> Result<(), BadText> {
        let length = usize::from(self.begun_length);
        self.begun[length] = byte;
        match str::from_utf8(&self.begun[..=length]) {
            Ok(character) => {
                self.text.push_str(character);
                self.begun_length = 0;
            }
            Err(error) if error.error_len().is_none() => self.begun_length += 1,
            Err(_) => return Err(BadText),
        }
        Ok(())
    }
}

/// How many bytes at the end of `piece` look like the beginning of a character that is not complete.
fn begun_length(piece: &[u8]) -> usize {
    let last_three = piece.iter().rev().take(3).enumerate();
    for (index, &byte) in last_three {
        let needed = match byte {
            0x80..=0xBF => continue,
            0xC0..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xFF => 4,
            _ => 1,
        };
        return if needed > index + 1 { index + 1 } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// How many bytes can be taken, one after the other, before it is certain that the text is bad.
    fn bytes_until_bad(bytes: &[u8]) -> Option<usize> {
        (1..=bytes.len()).find(|&length| match str::from_utf8(&bytes[..length]) {
            Ok(_) => false,
            Err(error) => error.error_len().is_some(),
        })
    }

    fn check_all_cuts(bytes: &[u8]) {
        let bad_at = bytes_until_bad(bytes);
        let mut one_by_one = PartialText::default();
        for (index, &byte) in bytes.iter().enumerate() {
            let expect = if bad_at == Some(index + 1) { Err(BadText) } else { Ok(()) };
            assert_eq!(one_by_one.push(&[byte]), expect, "byte {index} of {bytes:02x?}");
            if expect.is_err() {
                break;
            }
        }
        for cut in 0..=bytes.len() {
            let mut text = PartialText::default();
            let mut verdict = text.push(&bytes[..cut]);
            assert_eq!(verdict.is_err(), bad_at.is_some_and(|at| at <= cut), "cut {cut} of {bytes:02x?}");
            if verdict.is_ok() {
                assert_eq!(text.len(), cut);
                verdict = text.push(&bytes[cut..]);
                assert_eq!(verdict.is_err(), bad_at.is_some(), "cut {cut} of {bytes:02x?}");
            }
            if verdict.is_ok() {
                assert_eq!(text.as_str().ok(), str::from_utf8(bytes).ok());
            }
        }
    }

    #[test]
    fn every_cut_of_hard_texts_is_judged_as_soon_as_it_can_be() {
        let texts: [&[u8]; 22] = [
            b"",
            b"plain",
            "κόσμε".as_bytes(),
            "h\u{e9}llo \u{10ffff}\u{1f600}\u{feff}\0".as_bytes(),
            b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited",
            b"\xed\xa0\x80",
            b"\xed\x9f\xbf\xee\x80\x80",
            b"\xc0\xaf",
            b"\xc1\xbf",
            b"\xe0\x80\xaf",
            b"\xe0\x9f\xbf",
            b"\xf0\x80\x80\xaf",
            b"\xf0\x8f\xbf\xbf",
            b"\xf4\x8f\xbf\xbf",
            b"\xf5\x80\x80\x80",
            b"\xfe",
            b"\xff\xff",
            b"\x80",
            b"a\x80\x80\x80\x80",
            b"\xe2\x82",
            b"\xe2\x82\x28",
            b"\xf0\x9f\x98",
        ];
        for text in texts {
            check_all_cuts(text);
        }
    }

    proptest! {

        #![proptest_config(crate::seeded())]

        #[test]
        fn any_bytes_are_judged_as_std_judges_them(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            check_all_cuts(&bytes);
        }

        #[test]
        fn any_text_survives_any_cut(text in "\\PC{0,40}") {
            check_all_cuts(text.as_bytes());
        }
    }
}
