//! Where a head ends.

/// Finds the end of a head that arrives in pieces, without looking for it twice in any byte.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadScanner {
    scanned: u32,
}

impl HeadScanner {
    /// `head` is all that has arrived so far. Gives the head's length, through its empty line, once it is complete.
    ///
    /// An empty line counts also where its line ends are bare LF, so that [`super::parse`] can refuse such a head at
    /// once and need not wait for a CRLF that will never come.
    pub fn find_end(&mut self, head: &[u8]) -> Option<usize> {
        let scanned = usize::try_from(self.scanned).unwrap_or(usize::MAX).min(head.len());
        for (index, _) in head.iter().enumerate().skip(scanned).filter(|&(_, &byte)| byte == b'\n') {
            // The line that ends here is empty if only a CR, or nothing, stands between its LF and the one before.
            let line = head[..index].strip_suffix(b"\r").unwrap_or(&head[..index]);
            if matches!(line.last(), None | Some(b'\n')) {
                self.scanned = u32::try_from(index).unwrap_or(u32::MAX);
                return Some(index + 1);
            }
        }
        self.scanned = u32::try_from(head.len()).unwrap_or(u32::MAX);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    #[test]
    fn the_end_is_found_at_every_cut() {
        let with_frame = [HEAD, b"\x81\x80\r\n\r\n"].concat();
        for cut in 0..=with_frame.len() {
            let mut scanner = HeadScanner::default();
            let first = scanner.find_end(&with_frame[..cut]);
            assert_eq!(first, (cut >= HEAD.len()).then_some(HEAD.len()), "cut {cut}");
            assert_eq!(scanner.find_end(&with_frame), Some(HEAD.len()), "cut {cut}");
        }
        let mut scanner = HeadScanner::default();
        for length in 0..HEAD.len() {
            assert_eq!(scanner.find_end(&HEAD[..length]), None);
            assert_eq!(scanner.scanned as usize, length, "each byte is looked at when it comes, and not again");
        }
        assert_eq!(scanner.find_end(HEAD), Some(HEAD.len()));
    }

    #[test]
    fn bare_line_feeds_end_a_head_too() {
        for (head, end) in [("a\n\n", 3), ("a\n\r\n", 4), ("a\r\n\n", 4), ("\n", 1), ("\r\n", 2), ("a\r\r\n\r\n", 6)] {
            assert_eq!(HeadScanner::default().find_end(head.as_bytes()), Some(end), "{head:?}");
        }
        for head in ["", "\r", "a\n", "a\r\n", "a\r\r", "a\n\r", "a\n\r\r\n"] {
            assert_eq!(HeadScanner::default().find_end(head.as_bytes()), None, "{head:?}");
        }
    }
}
