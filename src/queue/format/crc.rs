//! The checksums. Records carry CRC-32C, computed by the processor's own instructions if it has them; the metadata
//! blocks carry CRC-32. `format.md` says what each one covers.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m512i;

#[cfg(target_arch = "x86_64")]
use crate::sync::{Ordering, compiler_fence};

/// Payloads of at least this size are multiplied, 64 bytes at a time, by processors that can.
#[cfg(target_arch = "x86_64")]
const WIDE: usize = 256;
/// Payloads of fewer bytes are checksummed word after word.
#[cfg(target_arch = "x86_64")]
const SHORT: usize = 96;
/// By others, payloads of at least this size go through the `crc-fast` crate; below it, one instruction after the other is
/// faster.
#[cfg(target_arch = "x86_64")]
const LONG: usize = 384;

/// A way to compute [`RecordCrc::sum`].
pub(crate) trait Sum: Fn([u64; 3], &[u8], u64) -> u32 {}

impl<F: Fn([u64; 3], &[u8], u64) -> u32> Sum for F {}

/// Work that needs checksums: see [`RecordCrc::run`].
pub(crate) trait SumWork {
    type Output;

    /// Has to be `#[inline(always)]`: only what becomes a part of the function for the processor is compiled for it.
    fn run(self, sum: impl Sum) -> Self::Output;
}

/// Computes record checksums, by what the processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordCrc {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Sse42,
    Portable,
}

impl RecordCrc {
    pub(crate) fn new() -> Self {
        Self::all().next().unwrap_or(Self::Portable)
    }

    /// What this processor can do, the fastest first.
    fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let (has_sse42, has_avx512) = (
            is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("pclmulqdq"),
            is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("vpclmulqdq"),
        );
        [
            #[cfg(target_arch = "x86_64")]
            (has_sse42 && has_avx512).then_some(Self::Avx512),
            #[cfg(target_arch = "x86_64")]
            has_sse42.then_some(Self::Sse42),
            Some(Self::Portable),
        ]
        .into_iter()
        .flatten()
    }

    /// Does this work in a function that is compiled for the processor; short checksums are a part of it, not calls.
    #[inline(always)]
    pub(crate) fn run<W: SumWork>(self, work: W) -> W::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `all` has these only after the processor said that it has SSE 4.2 and PCLMULQDQ.
            Self::Avx512 | Self::Sse42 => unsafe { run_sse42(self, work) },
            Self::Portable => work.run(|words, payload, last| self.sum(words, payload, last)),
        }
    }

    /// The checksum of three words, a payload, padded with zeros to a multiple of 8 bytes, and one more word.
    #[inline]
    pub(crate) fn sum(self, words: [u64; 3], payload: &[u8], last: u64) -> u32 {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `all` has this only after the processor said that it has what `sum_avx512` is enabled for.
            Self::Avx512 if payload.len() >= WIDE => unsafe { sum_avx512::<false>(words, payload, &mut [], last) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `all` has these only after the processor said that it has SSE 4.2 and PCLMULQDQ.
            Self::Avx512 | Self::Sse42 => unsafe { sum_sse42::<false, false>(words, payload, &mut [], last) },
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
        match self {
            // SAFETY: `all` has this only after the processor said that it has what `sum_avx512` is enabled for.
            Self::Avx512 if payload.len() >= WIDE => return unsafe { sum_avx512::<true>(words, payload, to, last) },
            Self::Avx512 | Self::Sse42 if payload.len() < LONG => {
                // SAFETY: `all` has these only after the processor said that it has SSE 4.2 and PCLMULQDQ.
                return unsafe { sum_sse42::<true, false>(words, payload, to, last) };
            }
            _ => {}
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

/// [`RecordCrc::run`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2,pclmulqdq")]
fn run_sse42<W: SumWork>(crc: RecordCrc, work: W) -> W::Output {
    work.run(|words, payload, last| match payload.len() {
        ..SHORT => sum_sse42::<false, true>(words, payload, &mut [], last),
        _ => crc.sum(words, payload, last),
    })
}

/// [`RecordCrc::sum`], or [`RecordCrc::sum_and_copy`] with `COPY`; `IS_SHORT`: of a payload of fewer than [`SHORT`] bytes,
/// which is so little code that it becomes a part of the caller's.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2,pclmulqdq")]
#[inline]
#[allow(clippy::cast_possible_truncation)] // the instruction leaves its 32 bits in a 64-bit register
fn sum_sse42<const COPY: bool, const IS_SHORT: bool>(words: [u64; 3], payload: &[u8], to: &mut [u8], last: u64) -> u32 {
    use std::arch::x86_64::_mm_crc32_u64;
    let mut state = u64::from(u32::MAX);
    for word in words {
        state = _mm_crc32_u64(state, word);
    }
    let (body, tail) = payload.as_chunks::<8>();
    let (to, _) = to.as_chunks_mut::<8>();
    let (to, to_last) = to.split_at_mut(if COPY { body.len() } else { 0 });
    state = if IS_SHORT || payload.len() < SHORT {
        add_few::<COPY>(state, body, to)
    } else if !COPY && payload.len() >= LONG {
        u64::from(crc32c_from(state as u32, body.as_flattened()))
    } else {
        add_lanes::<COPY>(state, body, to)
    };
    state = add_tail::<COPY>(state, tail, to_last.as_flattened_mut());
    !(_mm_crc32_u64(state, last) as u32)
}

/// The state after these words, fewer than [`SHORT`] bytes; with `COPY` they are copied to `to` as well.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2,pclmulqdq")]
#[inline]
fn add_few<const COPY: bool>(state: u64, words: &[[u8; 8]], to: &mut [[u8; 8]]) -> u64 {
    let (state, rest) = add_chunk::<8>(state, words);
    let (state, rest) = add_chunk::<4>(state, rest);
    let (state, rest) = add_chunk::<2>(state, rest);
    let (state, _) = add_chunk::<1>(state, rest);
    if COPY {
        // See `sum_and_copy`.
        compiler_fence(Ordering::SeqCst);
        let (words, to) = copy_chunk::<8>(words, to);
        let (words, to) = copy_chunk::<4>(words, to);
        let (words, to) = copy_chunk::<2>(words, to);
        copy_chunk::<1>(words, to);
    }
    state
}

/// [`add_few`] for more words: the instruction takes three cycles, and one can start in each, so three parts are
/// checksummed in parallel and combined.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2,pclmulqdq")]
#[inline(never)]
fn add_lanes<const COPY: bool>(mut state: u64, words: &[[u8; 8]], to: &mut [[u8; 8]]) -> u64 {
    use std::arch::x86_64::_mm_crc32_u64;
    // Without `COPY` there is no destination.
    let part = |len| if COPY { len } else { 0 };
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

/// The state after the first words, if there are that many, and what is left.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2,pclmulqdq")]
#[inline]
fn add_chunk<const COUNT: usize>(mut state: u64, words: &[[u8; 8]]) -> (u64, &[[u8; 8]]) {
    use std::arch::x86_64::_mm_crc32_u64;
    let Some((chunk, rest)) = words.split_first_chunk::<COUNT>() else { return (state, words) };
    for word in chunk {
        state = _mm_crc32_u64(state, u64::from_le_bytes(*word));
    }
    (state, rest)
}

/// Copies the first words, if there are that many; returns what is left.
#[cfg(target_arch = "x86_64")]
#[inline]
fn copy_chunk<'a, const COUNT: usize>(
    words: &'a [[u8; 8]],
    to: &'a mut [[u8; 8]],
) -> (&'a [[u8; 8]], &'a mut [[u8; 8]]) {
    let Some((chunk, rest)) = words.split_first_chunk::<COUNT>() else { return (words, to) };
    let (to_chunk, to_rest) = to.split_at_mut(COUNT);
    to_chunk.copy_from_slice(chunk);
    (rest, to_rest)
}

/// [`RecordCrc::sum`], or [`RecordCrc::sum_and_copy`] with `COPY`, of a payload of at least [`WIDE`] bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,vpclmulqdq,pclmulqdq,sse4.2")]
#[allow(clippy::cast_possible_truncation)] // as in `sum_sse42`
fn sum_avx512<const COPY: bool>(words: [u64; 3], payload: &[u8], to: &mut [u8], last: u64) -> u32 {
    use std::arch::x86_64::_mm_crc32_u64;
    // The words that make no whole block come first: only one of four blocks waits for them.
    let (head, rest) = payload.split_at(payload.len() / 8 % 8 * 8);
    let (blocks, tail) = rest.as_chunks::<64>();
    let (to_head, to) = to.split_at_mut(if COPY { head.len() } else { 0 });
    let (to_blocks, to_tail) = to.split_at_mut(if COPY { 64 * blocks.len() } else { 0 });
    let (to_blocks, _) = to_blocks.as_chunks_mut::<64>();
    let (head, _) = head.as_chunks::<8>();

    let mut state = u64::from(u32::MAX);
    for word in words {
        state = _mm_crc32_u64(state, word);
    }
    for word in head {
        state = _mm_crc32_u64(state, u64::from_le_bytes(*word));
    }
    state = add_blocks::<COPY>(state, blocks, to_blocks);
    state = add_tail::<COPY>(state, tail, to_tail);
    if COPY {
        // What shares lines with the commit word, or follows it: see `sum_and_copy`.
        compiler_fence(Ordering::SeqCst);
        to_head.as_chunks_mut::<8>().0.copy_from_slice(head);
        to_blocks[..COPIED_LAST].copy_from_slice(&blocks[..COPIED_LAST]);
    }
    !(_mm_crc32_u64(state, last) as u32)
}

/// Blocks of 64 bytes that [`add_blocks`] does not copy.
#[cfg(target_arch = "x86_64")]
const COPIED_LAST: usize = 2;

/// The state after at least four blocks; with `COPY` all but the first ones are copied to `to` as well.
///
/// A block is four numbers of 128 bits. A number times x^n, modulo the polynomial, can be added to the one n bits after it,
/// until one is left. Four blocks are moved at a time, which don't wait for each other.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,vpclmulqdq,pclmulqdq,sse4.2")]
#[inline]
#[allow(clippy::cast_possible_wrap, clippy::cast_sign_loss)] // the same 64 bits
fn add_blocks<const COPY: bool>(state: u64, blocks: &[[u8; 64]], to: &mut [[u8; 64]]) -> u64 {
    use std::arch::x86_64::{
        _mm_crc32_u64, _mm_cvtsi64_si128, _mm_cvtsi128_si64, _mm_extract_epi64, _mm_xor_si128, _mm256_castsi256_si128,
        _mm256_extracti128_si256, _mm256_xor_si256, _mm512_castsi512_si256, _mm512_extracti64x4_epi64,
        _mm512_loadu_si512, _mm512_maskz_mov_epi64, _mm512_set_epi64, _mm512_storeu_si512, _mm512_xor_si512,
        _mm512_zextsi128_si512,
    };
    let mut block = |index: usize| {
        // SAFETY: it reads the 64 bytes of the block, wherever they start.
        let block = unsafe { _mm512_loadu_si512(blocks[index].as_ptr().cast()) };
        if COPY && index >= COPIED_LAST {
            // SAFETY: it writes the 64 bytes of the block, wherever they start.
            unsafe { _mm512_storeu_si512(to[index].as_mut_ptr().cast(), block) };
        }
        block
    };
    let first = _mm512_xor_si512(block(0), _mm512_zextsi128_si512(_mm_cvtsi64_si128(state as i64)));
    let (mut a, mut b, mut c, mut d, mut next) = (first, block(1), block(2), block(3), 4);
    let by_four = by_words(32);
    while next + 4 <= blocks.len() {
        b = add_moved(block(next + 1), b, by_four);
        c = add_moved(block(next + 2), c, by_four);
        d = add_moved(block(next + 3), d, by_four);
        a = add_moved(block(next), a, by_four);
        next += 4;
    }
    let mut moved = |sum, index| add_moved(block(index), sum, by_four);
    (a, b, c, d) = match blocks.len() - next {
        0 => (a, b, c, d),
        1 => (b, c, d, moved(a, next)),
        2 => (c, d, moved(a, next), moved(b, next + 1)),
        _ => (d, moved(a, next), moved(b, next + 1), moved(c, next + 2)),
    };
    let sum = add_moved(add_moved(add_moved(d, c, by_words(8)), b, by_words(16)), a, by_words(24));
    // The numbers of the last block: each moves to where the last one is.
    let power = |words: usize| i64::from(POWERS[words]);
    let to_last = _mm512_set_epi64(0, 0, power(2), power(3), power(4), power(5), power(6), power(7));
    let sum = add_moved(_mm512_maskz_mov_epi64(0b1100_0000, sum), sum, to_last);
    let sum = _mm256_xor_si256(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64::<1>(sum));
    let sum = _mm_xor_si128(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
    _mm_crc32_u64(_mm_crc32_u64(0, _mm_cvtsi128_si64(sum) as u64), _mm_extract_epi64::<1>(sum) as u64)
}

/// `sum`, and each number of `block` times the powers for its two halves.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,vpclmulqdq")]
#[inline]
fn add_moved(sum: __m512i, block: __m512i, powers: __m512i) -> __m512i {
    use std::arch::x86_64::{_mm512_clmulepi64_epi128, _mm512_ternarylogic_epi64};
    let low = _mm512_clmulepi64_epi128::<0x00>(block, powers);
    _mm512_ternarylogic_epi64::<0x96>(sum, low, _mm512_clmulepi64_epi128::<0x11>(block, powers))
}

/// What [`add_moved`] moves all numbers of a block by this many words with.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn by_words(words: usize) -> __m512i {
    use std::arch::x86_64::{_mm_set_epi64x, _mm512_broadcast_i32x4};
    _mm512_broadcast_i32x4(_mm_set_epi64x(POWERS[words].into(), POWERS[words + 1].into()))
}

/// The state after fewer than 8 bytes, if there are any, padded with zeros; with `COPY` they are copied to `to` as well.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
#[inline]
fn add_tail<const COPY: bool>(state: u64, tail: &[u8], to: &mut [u8]) -> u64 {
    use std::arch::x86_64::_mm_crc32_u64;
    if tail.is_empty() {
        return state;
    }
    // No call of `memcpy` for this few bytes.
    let word = tail.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    if let (true, Some(to)) = (COPY, to.first_chunk_mut()) {
        *to = word.to_le_bytes();
    }
    _mm_crc32_u64(state, word)
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

    struct JustSum<'a>([u64; 3], &'a [u8], u64);

    impl SumWork for JustSum<'_> {
        type Output = u32;

        #[inline(always)]
        fn run(self, sum: impl Sum) -> u32 {
            sum(self.0, self.1, self.2)
        }
    }

    #[test]
    fn every_implementation_follows_the_definition() {
        println!("by {:?}", RecordCrc::all().collect::<Vec<_>>());
        let (words, last) = ([0x0123_4567_89ab_cdef, 2, u64::MAX], 0xdead_beef_u64);
        for len in (0..840_usize).chain([1000, 4099, 65_504]) {
            let payload: Vec<u8> = (0..len).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
            let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            bytes.extend(&payload);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            let padded = bytes[24..].to_vec();
            bytes.extend(last.to_le_bytes());
            let sum = reference(&bytes);
            for crc in RecordCrc::all() {
                assert_eq!(crc.sum(words, &payload, last), sum, "length {len} by {crc:?}");
                assert_eq!(crc.run(JustSum(words, &payload, last)), sum, "length {len} by {crc:?}");
                // The next record may start later.
                for more in [0, 8, 56] {
                    let mut copy = vec![0xFF; padded.len() + more];
                    assert_eq!(crc.sum_and_copy(words, &payload, &mut copy, last), sum, "length {len} by {crc:?}");
                    assert_eq!(copy[..padded.len()], padded, "length {len} by {crc:?}");
                }
            }
            let mut running = RunningSum::new(words);
            payload.chunks(100).for_each(|piece| running.add(piece));
            assert_eq!(running.finish(len, last), sum, "length {len}");
        }
    }
}
