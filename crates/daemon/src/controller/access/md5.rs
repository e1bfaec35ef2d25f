//! MD5 (RFC 1321). It names rules as the cloud provider names them, and secures nothing.

/// How far each step of a round turns.
const TURNS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];
const START: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// The digest as 32 digits.
pub(super) fn hex(message: &[u8]) -> String {
    let bits = u64::try_from(message.len()).unwrap_or(u64::MAX).wrapping_mul(8);
    let mut padded = message.to_vec();
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    padded.extend(bits.to_le_bytes());
    let mut state = START;
    for block in padded.chunks_exact(64) {
        absorb(&mut state, block);
    }
    // A digest's first byte is its most significant one, and each word's is its least.
    state.iter().fold(String::new(), |text, word| format!("{text}{:08x}", word.swap_bytes()))
}

fn absorb(state: &mut [u32; 4], block: &[u8]) {
    let mut words = [0; 16];
    for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
        *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
    }
    let [mut a, mut b, mut c, mut d] = *state;
    let tables = constants();
    for (i, constant) in tables.iter().enumerate() {
        let (mixed, word) = match i / 16 {
            0 => ((b & c) | (!b & d), i),
            1 => ((d & b) | (!d & c), 5 * i + 1),
            2 => (b ^ c ^ d, 3 * i + 5),
            _ => (c ^ (b | !d), 7 * i),
        };
        let sum = a.wrapping_add(mixed).wrapping_add(*constant).wrapping_add(words[word % 16]);
        let turned = b.wrapping_add(sum.rotate_left(TURNS[i / 16][i % 4]));
        (a, b, c, d) = (d, turned, b, c);
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(add);
    }
}

/// The integer parts of 2³² × |sin i|, i from 1 to 64 in radians (RFC 1321, 3.4).
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a positive number below 2³² is what the definition has"
)]
fn constants() -> [u32; 64] {
    std::array::from_fn(|i| {
        let angle = f64::from(u8::try_from(i + 1).unwrap_or(u8::MAX));
        (angle.sin().abs() * 4_294_967_296.0) as u32
    })
}

#[cfg(test)]
mod tests {
    use super::hex;

    /// The test suite of RFC 1321, A.5.
    #[test]
    fn digests_are_those_of_the_rfc() {
        for (text, digest) in [
            ("", "d41d8cd98f00b204e9800998ecf8427e"),
            ("a", "0cc175b9c0f1b6a831c399e269772661"),
            ("abc", "900150983cd24fb0d6963f7d28e17f72"),
            ("message digest", "f96b697d7cb7938d525a2f31aaf161d0"),
            ("abcdefghijklmnopqrstuvwxyz", "c3fcd3d76192e4007dfb496cca67e13b"),
            (
                "12345678901234567890123456789012345678901234567890123456789012345678901234567890",
                "57edf4a22be3c955ac49da2e2107b67a",
            ),
        ] {
            assert_eq!(hex(text.as_bytes()), digest, "{text}");
        }
    }
}
