//! The masking of RFC 6455 section 5.3, eight bytes at a time.
//!
//! Safe code is enough: the compiler turns the loop over 8-byte chunks into vector instructions, whatever the
//! alignment of the bytes.

/// Applies `mask` to `bytes`, the first of which stands at `offset` of the frame's payload. Masks and unmasks.
pub(super) fn apply(bytes: &mut [u8], mask: [u8; 4], offset: usize) {
    let turned = turned(mask, offset);
    let [a, b, c, d] = turned;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut chunks = bytes.chunks_exact_mut(8);
    for chunk in &mut chunks {
        let mut eight = [0; 8];
        eight.copy_from_slice(chunk);
        chunk.copy_from_slice(&(u64::from_ne_bytes(eight) ^ word).to_ne_bytes());
    }
    for (byte, key) in chunks.into_remainder().iter_mut().zip(turned.iter().cycle()) {
        *byte ^= key;
    }
}

/// `mask` as it applies to bytes from `offset` on.
fn turned(mut mask: [u8; 4], offset: usize) -> [u8; 4] {
    mask.rotate_left(offset % 4);
    mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn byte_by_byte(bytes: &mut [u8], mask: [u8; 4], offset: usize) {
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte ^= mask[(index + offset) % 4];
        }
    }

    #[test]
    fn every_length_alignment_and_offset_gives_what_the_rfc_says() {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let source: Vec<u8> = (0..=255).collect();
        for start in 0..9 {
            for length in 0..70 {
                for offset in 0..5 {
                    let mut fast = source.clone();
                    let mut slow = source.clone();
                    apply(&mut fast[start..start + length], mask, offset);
                    byte_by_byte(&mut slow[start..start + length], mask, offset);
                    assert_eq!(fast, slow, "start {start} length {length} offset {offset}");
                }
            }
        }
    }

    proptest! {

        #![proptest_config(crate::seeded())]

        #[test]
        fn two_parts_are_as_good_as_one(bytes: Vec<u8>, mask: [u8; 4], cut: prop::sample::Index) {
            let cut = cut.index(bytes.len() + 1);
            let mut whole = bytes.clone();
            apply(&mut whole, mask, 0);
            let mut parts = bytes;
            apply(&mut parts[..cut], mask, 0);
            apply(&mut parts[cut..], mask, cut);
            prop_assert_eq!(whole, parts);
        }
    }
}
