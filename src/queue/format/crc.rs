//! The checksums. Records carry CRC-32C, computed by the processor's own instructions if it has them; the metadata
//! blocks carry CRC-32. `format.md` says what each one covers.

#[cfg(target_arch = "x86_64")]
mod x86;

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
    X86(x86::Crc),
    Portable,
}

impl RecordCrc {
    pub(crate) fn new() -> Self {
        Self::all().next().unwrap_or(Self::Portable)
    }

    /// What this processor can do, the fastest first.
    fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let own = x86::Crc::all().map(Self::X86);
        #[cfg(not(target_arch = "x86_64"))]
        let own = std::iter::empty();
        own.chain([Self::Portable])
    }

    /// Does this work in a function that is compiled for the processor; short checksums are a part of it, not calls.
    #[inline(always)]
    pub(crate) fn run<W: SumWork>(self, work: W) -> W::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::X86(crc) => crc.run(work),
            Self::Portable => work.run(|words, payload, last| self.sum(words, payload, last)),
        }
    }

    /// The checksum of three words, a payload, padded with zeros to a multiple of 8 bytes, and one more word.
    #[inline]
    pub(crate) fn sum(self, words: [u64; 3], payload: &[u8], last: u64) -> u32 {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::X86(crc) => crc.sum(words, payload, last),
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
        if let Self::X86(crc) = self
            && let Some(sum) = crc.sum_and_copy(words, payload, to, last)
        {
            return sum;
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
