//! Which tokens count, and a corpus of hostile ones that must not.

use super::*;

#[test]
fn placeholder() {
    let _ = SECRET_BYTES_MIN;
}
