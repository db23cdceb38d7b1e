//! Record checksums by the instructions of x86-64 processors.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m128i, __m256i, __m512i, _mm_clmulepi64_si128, _mm_crc32_u64, _mm_cvtsi64_si128, _mm_cvtsi128_si64,
    _mm_extract_epi64, _mm_set_epi64x, _mm_xor_si128, _mm256_broadcastsi128_si256, _mm256_castsi256_si128,
    _mm256_clmulepi64_epi128, _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_storeu_si256, _mm256_xor_si256,
    _mm256_zextsi128_si256, _mm512_broadcast_i32x4, _mm512_castsi512_si256, _mm512_clmulepi64_epi128,
    _mm512_extracti64x4_epi64, _mm512_loadu_si512, _mm512_maskz_mov_epi64, _mm512_set_epi64, _mm512_storeu_si512,
    _mm512_ternarylogic_epi64, _mm512_xor_si512, _mm512_zextsi128_si512,
};

use super::{SumWork, crc32c_from};
use crate::sync::{Ordering, compiler_fence};

/// Payloads of at least this size are multiplied, 64 bytes at a time, by processors that can.
const WIDE: usize = 256;
/// Payloads of fewer bytes are checksummed word after word.
const SHORT: usize = 96;
/// By others, payloads of at least this size go through the `crc-fast` crate; below it, one instruction after the other is
/// faster.
const LONG: usize = 384;

/// [`RecordCrc`](super::RecordCrc) of a processor that has what one of these needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Crc(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Avx512,
    Avx2,
    Sse42,
}

impl Crc {
    /// What this processor can do, the fastest first.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let has_sse42 = is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("pclmulqdq");
        let is_wide = has_sse42 && is_x86_feature_detected!("vpclmulqdq");
        [
            (is_wide && is_x86_feature_detected!("avx512f")).then_some(Self(Kind::Avx512)),
            (is_wide && is_x86_feature_detected!("avx2")).then_some(Self(Kind::Avx2)),
            has_sse42.then_some(Self(Kind::Sse42)),
        ]
        .into_iter()
        .flatten()
    }

    #[inline(always)]
    pub(super) fn run<W: SumWork>(self, work: W) -> W::Output {
        // SAFETY: `all` has made this only after the processor said that it has SSE 4.2 and PCLMULQDQ.
        unsafe { run_sse42(self, work) }
    }

    #[inline]
    pub(super) fn sum(self, words: [u64; 3], payload: &[u8], last: u64) -> u32 {
        match self.0 {
            // SAFETY: `all` has made this only after the processor said that it has what `sum_avx512` is enabled for.
            Kind::Avx512 if payload.len() >= WIDE => unsafe { sum_avx512::<false>(words, payload, &mut [], last) },
            // SAFETY: the same for `sum_avx2`.
            Kind::Avx2 if payload.len() >= WIDE => unsafe { sum_avx2::<false>(words, payload, &mut [], last) },
            // SAFETY: the same for `sum_sse42`, whatever the kind.
            _ => unsafe { sum_sse42::<false, false>(words, payload, &mut [], last) },
        }
    }

    /// None if a sum and a copy after it are as fast.
    #[inline]
    pub(super) fn sum_and_copy(self, words: [u64; 3], payload: &[u8], to: &mut [u8], last: u64) -> Option<u32> {
        match self.0 {
            // SAFETY: `all` has made this only after the processor said that it has what `sum_avx512` is enabled for.
            Kind::Avx512 if payload.len() >= WIDE => Some(unsafe { sum_avx512::<true>(words, payload, to, last) }),
            // SAFETY: the same for `sum_avx2`.
            Kind::Avx2 if payload.len() >= WIDE => Some(unsafe { sum_avx2::<true>(words, payload, to, last) }),
            // SAFETY: the same for `sum_sse42`, whatever the kind.
            _ if payload.len() < LONG => Some(unsafe { sum_sse42::<true, false>(words, payload, to, last) }),
            _ => None,
        }
    }
}

/// [`RecordCrc::run`](super::RecordCrc::run).
#[target_feature(enable = "sse4.2,pclmulqdq")]
fn run_sse42<W: SumWork>(crc: Crc, work: W) -> W::Output {
    work.run(|words, payload, last| match payload.len() {
        ..SHORT => sum_sse42::<false, true>(words, payload, &mut [], last),
        _ => crc.sum(words, payload, last),
    })
}

/// [`Crc::sum`], or [`Crc::sum_and_copy`] with `COPY`; `IS_SHORT`: of a payload of fewer than [`SHORT`] bytes,
/// which is so little code that it becomes a part of the caller's.
#[target_feature(enable = "sse4.2,pclmulqdq")]
#[inline]
#[allow(clippy::cast_possible_truncation)] // the instruction leaves its 32 bits in a 64-bit register
fn sum_sse42<const COPY: bool, const IS_SHORT: bool>(words: [u64; 3], payload: &[u8], to: &mut [u8], last: u64) -> u32 {
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
#[target_feature(enable = "sse4.2,pclmulqdq")]
#[inline]
fn add_few<const COPY: bool>(state: u64, words: &[[u8; 8]], to: &mut [[u8; 8]]) -> u64 {
    let (state, rest) = add_chunk::<8>(state, words);
    let (state, rest) = add_chunk::<4>(state, rest);
    let (state, rest) = add_chunk::<2>(state, rest);
    let (state, _) = add_chunk::<1>(state, rest);
    if COPY {
        // See `RecordCrc::sum_and_copy`.
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
#[target_feature(enable = "sse4.2,pclmulqdq")]
#[inline(never)]
fn add_lanes<const COPY: bool>(mut state: u64, words: &[[u8; 8]], to: &mut [[u8; 8]]) -> u64 {
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
#[target_feature(enable = "sse4.2,pclmulqdq")]
#[inline]
fn add_chunk<const COUNT: usize>(mut state: u64, words: &[[u8; 8]]) -> (u64, &[[u8; 8]]) {
    let Some((chunk, rest)) = words.split_first_chunk::<COUNT>() else { return (state, words) };
    for word in chunk {
        state = _mm_crc32_u64(state, u64::from_le_bytes(*word));
    }
    (state, rest)
}

/// Copies the first words, if there are that many; returns what is left.
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

/// [`Crc::sum`], or [`Crc::sum_and_copy`] with `COPY`, of a payload of at least [`WIDE`] bytes.
#[target_feature(enable = "avx512f,vpclmulqdq,pclmulqdq,sse4.2")]
fn sum_avx512<const COPY: bool>(words: [u64; 3], payload: &[u8], to: &mut [u8], last: u64) -> u32 {
    // SAFETY: this function has what `Avx512` needs, and SSE 4.2.
    unsafe { sum_blocks::<Avx512, COPY>(words, payload, to, last) }
}

/// The same.
#[target_feature(enable = "avx2,vpclmulqdq,pclmulqdq,sse4.2")]
fn sum_avx2<const COPY: bool>(words: [u64; 3], payload: &[u8], to: &mut [u8], last: u64) -> u32 {
    // SAFETY: this function has what `Avx2` needs, and SSE 4.2.
    unsafe { sum_blocks::<Avx2, COPY>(words, payload, to, last) }
}

/// [`sum_avx512`], [`sum_avx2`].
///
/// # Safety
///
/// The processor has what `B` needs, and SSE 4.2.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // as in `sum_sse42`
unsafe fn sum_blocks<B: Block, const COPY: bool>(words: [u64; 3], payload: &[u8], to: &mut [u8], last: u64) -> u32 {
    // The words that make no whole block come first: only one of four blocks waits for them.
    let (head, rest) = payload.split_at(payload.len() / 8 % 8 * 8);
    let (blocks, tail) = rest.as_chunks::<64>();
    let (to_head, to) = to.split_at_mut(if COPY { head.len() } else { 0 });
    let (to_blocks, to_tail) = to.split_at_mut(if COPY { 64 * blocks.len() } else { 0 });
    let (to_blocks, _) = to_blocks.as_chunks_mut::<64>();
    let (head, _) = head.as_chunks::<8>();

    // SAFETY: the caller says that the processor has it.
    let add_word = |state, word| unsafe { _mm_crc32_u64(state, word) };
    let mut state = u64::from(u32::MAX);
    for word in words {
        state = add_word(state, word);
    }
    for word in head {
        state = add_word(state, u64::from_le_bytes(*word));
    }
    // SAFETY: the same.
    unsafe {
        state = add_blocks::<B, COPY>(state, blocks, to_blocks);
        state = add_tail::<COPY>(state, tail, to_tail);
    }
    if COPY {
        // What shares lines with the commit word, or follows it: see `RecordCrc::sum_and_copy`.
        compiler_fence(Ordering::SeqCst);
        to_head.as_chunks_mut::<8>().0.copy_from_slice(head);
        to_blocks[..COPIED_LAST].copy_from_slice(&blocks[..COPIED_LAST]);
    }
    !(add_word(state, last) as u32)
}

/// Blocks of 64 bytes that [`add_blocks`] does not copy.
const COPIED_LAST: usize = 2;

/// The state after at least four blocks; with `COPY` all but the first ones are copied to `to` as well.
///
/// A block is four numbers of 128 bits. A number times x^n, modulo the polynomial, can be added to the one n bits after it,
/// until one is left. Four blocks are moved at a time, which don't wait for each other.
///
/// # Safety
///
/// The processor has what `B` needs, and SSE 4.2.
#[inline(always)]
#[allow(clippy::cast_sign_loss)] // the same 64 bits
unsafe fn add_blocks<B: Block, const COPY: bool>(state: u64, blocks: &[[u8; 64]], to: &mut [[u8; 64]]) -> u64 {
    let mut block = |index: usize| {
        // SAFETY: the caller says that the processor has what this needs.
        let block = unsafe { B::load(&blocks[index]) };
        if COPY && index >= COPIED_LAST {
            // SAFETY: the same.
            unsafe { block.store(&mut to[index]) };
        }
        block
    };
    // SAFETY: the same.
    unsafe {
        let first = block(0).add_state(state);
        let (mut a, mut b, mut c, mut d, mut next) = (first, block(1), block(2), block(3), 4);
        while next + 4 <= blocks.len() {
            b = block(next + 1).add_moved(b, 32);
            c = block(next + 2).add_moved(c, 32);
            d = block(next + 3).add_moved(d, 32);
            a = block(next).add_moved(a, 32);
            next += 4;
        }
        let mut moved = |sum, index| block(index).add_moved(sum, 32);
        (a, b, c, d) = match blocks.len() - next {
            0 => (a, b, c, d),
            1 => (b, c, d, moved(a, next)),
            2 => (c, d, moved(a, next), moved(b, next + 1)),
            _ => (d, moved(a, next), moved(b, next + 1), moved(c, next + 2)),
        };
        let sum = d.add_moved(c, 8).add_moved(b, 16).add_moved(a, 24).to_one_number();
        _mm_crc32_u64(_mm_crc32_u64(0, _mm_cvtsi128_si64(sum) as u64), _mm_extract_epi64::<1>(sum) as u64)
    }
}

/// 64 bytes in the processor's widest registers.
///
/// # Safety
///
/// Each function: the processor has what the type says.
trait Block: Copy {
    unsafe fn load(from: &[u8; 64]) -> Self;
    unsafe fn store(self, to: &mut [u8; 64]);
    /// Adds a state to the first word.
    unsafe fn add_state(self, state: u64) -> Self;
    /// Adds another block, moved by this many words: each of its numbers times the powers for its two halves.
    unsafe fn add_moved(self, other: Self, words: usize) -> Self;
    /// The last number, to which the others have been moved.
    unsafe fn to_one_number(self) -> __m128i;
}

/// Needs AVX-512F, VPCLMULQDQ and PCLMULQDQ.
#[derive(Clone, Copy)]
struct Avx512(__m512i);

impl Block for Avx512 {
    #[inline(always)]
    unsafe fn load(from: &[u8; 64]) -> Self {
        // SAFETY: it reads the 64 bytes, wherever they start.
        Self(unsafe { _mm512_loadu_si512(from.as_ptr().cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, to: &mut [u8; 64]) {
        // SAFETY: it writes the 64 bytes, wherever they start.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), self.0) }
    }

    #[inline(always)]
    #[allow(clippy::cast_possible_wrap)] // the same 64 bits
    unsafe fn add_state(self, state: u64) -> Self {
        // SAFETY: the caller says that the processor has it.
        Self(unsafe { _mm512_xor_si512(self.0, _mm512_zextsi128_si512(_mm_cvtsi64_si128(state as i64))) })
    }

    #[inline(always)]
    unsafe fn add_moved(self, other: Self, words: usize) -> Self {
        // SAFETY: the caller says that the processor has it.
        unsafe {
            let powers = _mm512_broadcast_i32x4(powers(words));
            let low = _mm512_clmulepi64_epi128::<0x00>(other.0, powers);
            let high = _mm512_clmulepi64_epi128::<0x11>(other.0, powers);
            Self(_mm512_ternarylogic_epi64::<0x96>(self.0, low, high))
        }
    }

    #[inline(always)]
    unsafe fn to_one_number(self) -> __m128i {
        let power = |words: usize| i64::from(POWERS[words]);
        // SAFETY: the caller says that the processor has it.
        unsafe {
            let to_last = _mm512_set_epi64(0, 0, power(2), power(3), power(4), power(5), power(6), power(7));
            let low = _mm512_clmulepi64_epi128::<0x00>(self.0, to_last);
            let high = _mm512_clmulepi64_epi128::<0x11>(self.0, to_last);
            let last = _mm512_maskz_mov_epi64(0b1100_0000, self.0);
            let sum = _mm512_ternarylogic_epi64::<0x96>(last, low, high);
            let sum = _mm256_xor_si256(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64::<1>(sum));
            _mm_xor_si128(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum))
        }
    }
}

/// Needs AVX2, VPCLMULQDQ and PCLMULQDQ.
#[derive(Clone, Copy)]
struct Avx2(__m256i, __m256i);

impl Block for Avx2 {
    #[inline(always)]
    unsafe fn load(from: &[u8; 64]) -> Self {
        let from: *const __m256i = from.as_ptr().cast();
        // SAFETY: they read the two halves of the 64 bytes, wherever these start.
        unsafe { Self(_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: &mut [u8; 64]) {
        let to: *mut __m256i = to.as_mut_ptr().cast();
        // SAFETY: they write the two halves of the 64 bytes, wherever these start.
        unsafe {
            _mm256_storeu_si256(to, self.0);
            _mm256_storeu_si256(to.add(1), self.1);
        }
    }

    #[inline(always)]
    #[allow(clippy::cast_possible_wrap)] // the same 64 bits
    unsafe fn add_state(self, state: u64) -> Self {
        // SAFETY: the caller says that the processor has it.
        Self(unsafe { _mm256_xor_si256(self.0, _mm256_zextsi128_si256(_mm_cvtsi64_si128(state as i64))) }, self.1)
    }

    #[inline(always)]
    unsafe fn add_moved(self, other: Self, words: usize) -> Self {
        // SAFETY: the caller says that the processor has it.
        unsafe {
            let powers = _mm256_broadcastsi128_si256(powers(words));
            Self(add_product(self.0, other.0, powers), add_product(self.1, other.1, powers))
        }
    }

    #[inline(always)]
    unsafe fn to_one_number(self) -> __m128i {
        // SAFETY: the caller says that the processor has it.
        unsafe {
            let sum = add_product(self.1, self.0, _mm256_broadcastsi128_si256(powers(4)));
            let (first, second) = (_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
            let powers = powers(2);
            let low = _mm_clmulepi64_si128::<0x00>(first, powers);
            let high = _mm_clmulepi64_si128::<0x11>(first, powers);
            _mm_xor_si128(_mm_xor_si128(second, low), high)
        }
    }
}

/// `sum`, and each number of `block` times the powers for its two halves.
#[target_feature(enable = "avx2,vpclmulqdq")]
#[inline]
fn add_product(sum: __m256i, block: __m256i, powers: __m256i) -> __m256i {
    let low = _mm256_clmulepi64_epi128::<0x00>(block, powers);
    _mm256_xor_si256(_mm256_xor_si256(sum, low), _mm256_clmulepi64_epi128::<0x11>(block, powers))
}

/// What moves a number by this many words.
#[inline(always)]
fn powers(words: usize) -> __m128i {
    // SAFETY: all processors of this architecture have SSE 2.
    unsafe { _mm_set_epi64x(POWERS[words].into(), POWERS[words + 1].into()) }
}

/// The state after fewer than 8 bytes, if there are any, padded with zeros; with `COPY` they are copied to `to` as well.
#[target_feature(enable = "sse4.2")]
#[inline]
fn add_tail<const COPY: bool>(state: u64, tail: &[u8], to: &mut [u8]) -> u64 {
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
#[target_feature(enable = "sse4.2,pclmulqdq")]
#[inline]
#[allow(clippy::cast_possible_wrap, clippy::cast_sign_loss)] // the same 64 bits
fn past_zeros(state: u64, words: usize) -> u64 {
    let power = _mm_cvtsi64_si128(i64::from(POWERS[words]));
    let product = _mm_clmulepi64_si128::<0>(_mm_cvtsi64_si128(state as i64), power);
    _mm_crc32_u64(0, _mm_cvtsi128_si64(product) as u64)
}

/// x^(64 n - 33) modulo the polynomial, reflected, for n words. The instruction multiplies by x^32, and the product of
/// two reflected numbers lacks one more x.
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
