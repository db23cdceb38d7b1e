//! The checksums. Records carry CRC-32C, computed by the processor's own instruction if it has one; the metadata
//! blocks carry CRC-32. `format.md` says what each one covers.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use crate::sync::{Ordering, compiler_fence};

/// Payloads of at least this size go through the `crc-fast` crate; below it, one instruction after the other is faster.
#[cfg(target_arch = "x86_64")]
const LONG: usize = 384;

/// Computes record checksums; created once per queue, so that the processor is asked once.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RecordCrc {
    #[cfg(target_arch = "x86_64")]
    Sse42,
    Portable,
}

impl RecordCrc {
    pub(crate) fn new() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("pclmulqdq") {
            return Self::Sse42;
        }
        Self::Portable
    }

    /// The checksum of three words, a payload, padded with zeros to a multiple of 8 bytes, and one more word.
    #[inline]
    pub(crate) fn sum(self, words: [u64; 3], payload: &[u8], last: u64) -> u32 {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `new` chose this only after the processor said that it has SSE 4.2 and PCLMULQDQ.
            Self::Sse42 => unsafe { sum_sse42::<false>(words, payload, &mut [], last) },
            Self::Portable => {
                let sum = crc32c_from(u32::MAX, zerocopy::IntoBytes::as_bytes(&words.map(u64::to_le)));
                let sum = crc32c_from(crc32c_from(sum, payload), &[0; 8][..padding(payload.len())]);
                !crc32c_from(sum, &last.to_le_bytes())
            }
        }
    }

    /// Copies a payload and the zeros after it to `to`, which is that long or longer, and returns the checksum like
    /// [`sum`](Self::sum).
    ///
    /// The checksum comes first: a reader that polls these cache lines takes them back from the first store on, so it
    /// and the commit have to be close together.
    #[inline]
    pub(crate) fn sum_and_copy(self, words: [u64; 3], payload: &[u8], to: &mut [u8], last: u64) -> u32 {
        #[cfg(target_arch = "x86_64")]
        if matches!(self, Self::Sse42) && payload.len() < LONG {
            // SAFETY: `new` chose this only after the processor said that it has SSE 4.2 and PCLMULQDQ.
            return unsafe { sum_sse42::<true>(words, payload, to, last) };
        }
        let sum = self.sum(words, payload, last);
        to[..payload.len()].copy_from_slice(payload);
        to[payload.len()..].fill(0);
        sum
    }
}

/// The checksum of a record whose payload is added piece by piece.
#[derive(Debug)]
pub(crate) struct RunningSum(crc_fast::Digest);

impl RunningSum {
    pub(crate) fn new(words: [u64; 3]) -> Self {
        let mut sum = Self(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi));
        sum.add(zerocopy::IntoBytes::as_bytes(&words.map(u64::to_le)));
        sum
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum, with the last word; the payload had `len` bytes.
    pub(crate) fn finish(mut self, len: usize, last: u64) -> u32 {
        self.add(&[0; 8][..padding(len)]);
        self.add(&last.to_le_bytes());
        u32::try_from(self.0.finalize()).unwrap_or(0)
    }
}

/// The state of a CRC-32C after these bytes.
fn crc32c_from(state: u32, bytes: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new_with_init_state(crc_fast::CrcAlgorithm::Crc32Iscsi, u64::from(state));
    digest.update(bytes);
    // The 32-bit state is returned in 64 bits.
    !u32::try_from(digest.finalize()).unwrap_or(0)
}

/// Bytes from the end of a payload of this length to the next multiple of 8.
fn padding(len: usize) -> usize {
    len.next_multiple_of(8) - len
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2,pclmulqdq")]
#[inline]
#[allow(clippy::cast_possible_truncation)] // the instruction leaves its 32 bits in a 64-bit register
fn sum_sse42<const COPY: bool>(words: [u64; 3], payload: &[u8], to: &mut [u8], last: u64) -> u32 {
    use std::arch::x86_64::_mm_crc32_u64;
    let mut state = u64::from(u32::MAX);
    for word in words {
        state = _mm_crc32_u64(state, word);
    }
    let (body, tail) = payload.as_chunks::<8>();
    let (to, _) = to.as_chunks_mut::<8>();
    let (to, to_last) = to.split_at_mut(if COPY { body.len() } else { 0 });
    state = if !COPY && payload.len() >= LONG {
        u64::from(crc32c_from(state as u32, body.as_flattened()))
    } else {
        add_words::<COPY>(state, body, to)
    };
    if !tail.is_empty() {
        // No call of `memcpy` for this few bytes.
        let tail = tail.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        state = _mm_crc32_u64(state, tail);
        if let (true, Some(to)) = (COPY, to_last.first_mut()) {
            *to = tail.to_le_bytes();
        }
    }
    !(_mm_crc32_u64(state, last) as u32)
}

/// The state after these words, fewer than [`LONG`] bytes; with `COPY` they are copied to `to` as well.
///
/// The instruction takes three cycles, and one can start in each: of 16 words and more, three parts are
/// checksummed in parallel and combined.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2,pclmulqdq")]
#[inline]
fn add_words<const COPY: bool>(mut state: u64, words: &[[u8; 8]], to: &mut [[u8; 8]]) -> u64 {
    use std::arch::x86_64::_mm_crc32_u64;
    // Without `COPY` there is no destination.
    let part = |len| if COPY { len } else { 0 };
    macro_rules! straight {
        ($($count:literal)*) => {
            match words.len() {
                $($count => return add_words_straight::<$count, COPY>(state, words, to),)*
                _ => {}
            }
        };
    }
    straight!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    let len = words.len() / 3;
    let (lanes, rest) = words.split_at(3 * len);
    let (to_lanes, to_rest) = to.split_at_mut(part(3 * len));
    let ((first, lanes), (to_first, to_lanes)) = (lanes.split_at(len), to_lanes.split_at_mut(part(len)));
    let ((second, third), (to_second, to_third)) = (lanes.split_at(len), to_lanes.split_at_mut(part(len)));
    let (mut state_2, mut state_3) = (0, 0);
    for (index, ((first, second), third)) in first.iter().zip(second).zip(third).enumerate() {
        state = _mm_crc32_u64(state, u64::from_le_bytes(*first));
        state_2 = _mm_crc32_u64(state_2, u64::from_le_bytes(*second));
        state_3 = _mm_crc32_u64(state_3, u64::from_le_bytes(*third));
        if COPY {
            (to_first[index], to_second[index], to_third[index]) = (*first, *second, *third);
        }
    }
    state = past_zeros(state, 2 * len) ^ past_zeros(state_2, len) ^ state_3;
    for (index, word) in rest.iter().enumerate() {
        state = _mm_crc32_u64(state, u64::from_le_bytes(*word));
        if COPY {
            to_rest[index] = *word;
        }
    }
    state
}

/// [`add_words`] for so few words that the loop would cost more than its body.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2,pclmulqdq")]
#[inline]
fn add_words_straight<const COUNT: usize, const COPY: bool>(
    mut state: u64,
    words: &[[u8; 8]],
    to: &mut [[u8; 8]],
) -> u64 {
    use std::arch::x86_64::_mm_crc32_u64;
    let Some(words) = words.first_chunk::<COUNT>() else { return state };
    for word in words {
        state = _mm_crc32_u64(state, u64::from_le_bytes(*word));
    }
    // See `sum_and_copy`.
    compiler_fence(Ordering::SeqCst);
    if let (true, Some(to)) = (COPY, to.first_chunk_mut::<COUNT>()) {
        *to = *words;
    }
    state
}

/// The state after this many words of zeros: the state times x^(64 words), modulo the polynomial.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2,pclmulqdq")]
#[inline]
#[allow(clippy::cast_possible_wrap, clippy::cast_sign_loss)] // the same 64 bits
fn past_zeros(state: u64, words: usize) -> u64 {
    use std::arch::x86_64::{_mm_clmulepi64_si128, _mm_crc32_u64, _mm_cvtsi64_si128, _mm_cvtsi128_si64};
    let power = _mm_cvtsi64_si128(i64::from(POWERS[words]));
    let product = _mm_clmulepi64_si128::<0>(_mm_cvtsi64_si128(state as i64), power);
    _mm_crc32_u64(0, _mm_cvtsi128_si64(product) as u64)
}

/// x^(64 n - 33) modulo the polynomial, reflected, for n words. The instruction multiplies by x^32, and the product of
/// two reflected numbers lacks one more x.
#[cfg(target_arch = "x86_64")]
static POWERS: [u32; LONG / 8] = {
    let mut powers = [0; LONG / 8];
    let (mut power, mut exponent, mut words) = (1 << 31, 0, 1);
    while words < powers.len() {
        while exponent < 64 * words - 33 {
            power = if power & 1 == 1 { (power >> 1) ^ 0x82F6_3B78 } else { power >> 1 };
            exponent += 1;
        }
        powers[words] = power;
        words += 1;
    }
    powers
};

/// The checksum of a metadata block: everything before its last four bytes.
pub(crate) fn block_checksum(block: &[u8]) -> u32 {
    crc32fast::hash(&block[..block.len().saturating_sub(4)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition of CRC-32C, bit by bit.
    fn reference(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for &byte in bytes {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
            }
        }
        !crc
    }

    #[test]
    fn every_implementation_follows_the_definition() {
        let (words, last) = ([0x0123_4567_89ab_cdef, 2, u64::MAX], 0xdead_beef_u64);
        for len in (0..390_usize).chain([511, 512, 513, 1000, 4099]) {
            let payload: Vec<u8> = (0..len).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
            let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            bytes.extend(&payload);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            let padded = bytes[24..].to_vec();
            bytes.extend(last.to_le_bytes());
            let sum = reference(&bytes);
            for crc in [RecordCrc::new(), RecordCrc::Portable] {
                assert_eq!(crc.sum(words, &payload, last), sum, "length {len}");
                // The next record may start later.
                for more in [0, 8, 56] {
                    let mut copy = vec![0xFF; padded.len() + more];
                    assert_eq!(crc.sum_and_copy(words, &payload, &mut copy, last), sum, "length {len}");
                    assert_eq!(copy[..padded.len()], padded, "length {len}");
                }
            }
            let mut running = RunningSum::new(words);
            payload.chunks(100).for_each(|piece| running.add(piece));
            assert_eq!(running.finish(len, last), sum, "length {len}");
        }
    }
}
