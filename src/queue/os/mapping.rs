//! Mapped files: the only place where the engine touches shared memory.
//!
//! Other processes store into the same memory. Therefore:
//! 1. every access is checked against the mapping's length and its alignment, here, not by the caller;
//! 2. what others may be storing into (commit words, wake words) is read and written through atomics only;
//! 3. a slice is handed out only for bytes that a commit word, loaded with Acquire, has published; a writer that
//!    keeps to the protocol never touches those again;
//! 4. the caller that maps a file has checked that it is long enough, and one that stores into it has reserved its room
//!    (`room.rs`). What is truncated afterwards, or turns out to have no room nevertheless, reads as zeros, and the
//!    mapping is *lost* (`sigbus.rs`): what is stored there reaches nobody. Lent bytes may turn to zeros then; callers
//!    that must not see that read by `pread` (`scan.rs`).
#![allow(unsafe_code)]

use std::fs::File;
use std::marker::PhantomData;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::ptr;
use std::sync::Arc;

use memmap2::{Advice, MmapOptions, MmapRaw};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::queue::error::{Error, Result};
use crate::queue::format::layout::{HEADER_LEN, MessageHeader, TRAILER_LEN};
use crate::queue::os::sigbus;
use crate::sync::{AtomicU32, AtomicU64, Ordering, compiler_fence};

/// Bytes of a cache line.
pub(crate) const CACHE_LINE: u32 = 64;
/// Bytes of a huge page, if the system has them.
pub(crate) const HUGE_PAGE: u32 = 2 << 20;
const HEADER: usize = HEADER_LEN as usize;
/// The longest range prefetched at once.
const MAX_PREFETCH: u32 = 1088;

/// A shared mapping of the first bytes of a file. Clones are the same mapping, which lasts as long as one of them.
#[derive(Debug, Clone)]
pub(crate) struct Mapping {
    // Here, too: reaching them through `whole` would take one more load.
    start: Start,
    len: usize,
    writable: bool,
    whole: Arc<Whole>,
}

#[derive(Debug)]
struct Whole {
    /// Before `raw`: the table forgets the range before it is unmapped.
    entry: sigbus::Entry,
    raw: MmapRaw,
}

/// Where a mapping starts.
#[derive(Debug, Clone, Copy)]
struct Start(*mut u8);

// SAFETY: it is a number until it is dereferenced, which `Mapping` does for any thread while it keeps the mapping.
unsafe impl Send for Start {}
// SAFETY: as above.
unsafe impl Sync for Start {}

impl Mapping {
    /// Maps the first `len` bytes for reading; a shorter file is reported as damaged.
    pub(crate) fn read_only(file: &File, path: &Path, len: u32) -> Result<Self> {
        check_len(file, path, len)?;
        let raw = MmapOptions::new().len(len as usize).map_raw_read_only(file).map_err(Error::io(path, "map it"))?;
        Ok(Self::of(raw, false))
    }

    /// Maps the first `len` bytes for reading and writing; a shorter file is reported as damaged.
    pub(crate) fn read_write(file: &File, path: &Path, len: u32) -> Result<Self> {
        check_len(file, path, len)?;
        let raw = MmapOptions::new().len(len as usize).map_raw(file).map_err(Error::io(path, "map it"))?;
        Ok(Self::of(raw, true))
    }

    fn of(raw: MmapRaw, writable: bool) -> Self {
        let (start, len) = (Start(raw.as_mut_ptr()), raw.len());
        let entry = sigbus::Entry::new(range(&raw), writable);
        Self { start, len, writable, whole: Arc::new(Whole { entry, raw }) }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether a part of the file was out of reach when it was touched: see rule 4.
    pub(crate) fn is_lost(&self) -> bool {
        self.whole.entry.is_lost()
    }

    /// Marks the mapping as lost: its file is out of reach, though the kernel accepts stores.
    pub(crate) fn give_up(&self) {
        self.whole.entry.give_up();
    }

    /// Whether the file has everything that this thread has stored through the mapping.
    #[inline]
    pub(crate) fn has_stores(&self) -> bool {
        // A store that faults has been handled before the next instruction; only the compiler must keep the order.
        compiler_fence(Ordering::SeqCst);
        !sigbus::is_any_lost() || self.is_whole()
    }

    #[cold]
    #[inline(never)]
    fn is_whole(&self) -> bool {
        !self.is_lost()
    }

    /// Why the mapping is lost; `file` is the mapped file. `remedy`: what to do about a truncated file.
    pub(crate) fn loss(&self, file: &File, path: &Path, remedy: &str) -> Error {
        let at = self.whole.entry.lost_at() as u64;
        match file.read_at(&mut [0], at) {
            Ok(0) => Error::damaged(path, at, format!("{CUT_SHORT}; {remedy}")),
            Ok(_) => Error::io(path, "store into it")(std::io::Error::from_raw_os_error(libc::ENOSPC)),
            Err(error) => Error::io(path, "read a part of it that is in use")(error),
        }
    }

    /// The address of `len` bytes at `offset`, aligned to `align`.
    ///
    /// # Panics
    /// If they are not within the mapping: a bug of the caller, which must check what it reads from files.
    #[inline]
    fn at(&self, offset: u32, len: usize, align: usize) -> *mut u8 {
        let offset = offset as usize;
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len) && offset.is_multiple_of(align),
            "access outside the mapping"
        );
        // SAFETY: just checked that the offset is within the mapping.
        unsafe { self.start.0.add(offset) }
    }

    /// Like `at`, for storing.
    #[inline]
    fn at_mut(&self, offset: u32, len: usize, align: usize) -> *mut u8 {
        assert!(self.writable, "store into a read-only mapping");
        self.at(offset, len, align)
    }

    /// The word at `offset`, shared with other processes.
    #[inline]
    pub(crate) fn word(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: in bounds and aligned (checked by `at`), valid as long as `self`, and accessed by atomics only
        // (rule 2). In a read-only mapping callers only load.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4, 4).cast()) }
    }

    /// The 64-bit word at `offset`, shared with other processes.
    #[inline]
    pub(crate) fn word64(&self, offset: u32) -> &AtomicU64 {
        // SAFETY: as in `word`.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8, 8).cast()) }
    }

    /// Stores 0 into the commit word of the record at `offset`: there is no record yet.
    #[inline]
    pub(crate) fn clear_record(&self, offset: u32) {
        assert!(self.writable, "store into a read-only mapping");
        self.word64(offset).store(0, Ordering::Relaxed);
    }

    /// Stores zeros into the cache line at `offset`: there are no records.
    #[inline]
    pub(crate) fn clear_line(&self, offset: u32) {
        let line: *mut [u64; CACHE_LINE as usize / 8] = self.at_mut(offset, CACHE_LINE as usize, 8).cast();
        // SAFETY: in bounds, writable and aligned (checked by `at_mut`). Only the holder of the writer lock, the caller,
        // stores after its last record, where nothing is published.
        unsafe { line.write([0; CACHE_LINE as usize / 8]) };
    }

    /// Published bytes (rule 3), or the writer's own unpublished ones.
    #[inline]
    pub(crate) fn bytes(&self, offset: u32, len: usize) -> &[u8] {
        // SAFETY: in bounds (checked by `at`); published by a commit word that the caller has loaded with Acquire,
        // and not stored into since (rule 3), or the caller is the writer and has them exclusively.
        unsafe { std::slice::from_raw_parts(self.at(offset, len, 1), len) }
    }

    /// Copies a block out. It may be torn if another process stores into it meanwhile; its checksum shows that.
    pub(crate) fn read<T: FromBytes>(&self, offset: u32) -> T {
        // SAFETY: in bounds (checked by `at`); any bytes are a valid `T`.
        unsafe { ptr::read_unaligned(self.at(offset, size_of::<T>(), 1).cast::<T>()) }
    }

    /// Copies a block in. Only for blocks that belong to this process by a lock.
    pub(crate) fn write<T: IntoBytes + Immutable>(&self, offset: u32, value: &T) {
        let bytes = value.as_bytes();
        // SAFETY: in bounds and writable (checked by `at_mut`). Other processes read the block by `pread`, or copy it
        // out with `read`, where any bytes are a valid value: a torn one fails its checksum or, where the block has
        // none, is a hint.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.at_mut(offset, bytes.len(), 1), bytes.len()) };
    }

    /// The place of a record at `offset` of a mapped segment; None if that is not a multiple of 8, or if there is no room
    /// for a header before the segment's trailer.
    #[inline(always)]
    pub(crate) fn record(&self, offset: u32) -> Option<Record<'_>> {
        let room = self.len.checked_sub(TRAILER_LEN as usize)?.checked_sub(offset as usize)?.checked_sub(HEADER)?;
        let record = Record { start: self.start.0.wrapping_add(offset as usize), room, map: PhantomData };
        offset.is_multiple_of(8).then_some(record)
    }

    /// Unpublished bytes, for filling them.
    #[inline]
    #[allow(clippy::mut_from_ref)] // exclusive nevertheless, see below
    pub(crate) fn unpublished(&self, offset: u32, len: usize) -> &mut [u8] {
        // SAFETY: in bounds and writable (checked by `at_mut`). Only the holder of the writer lock stores into
        // uncommitted bytes; the callers (`writer.rs`, `reserve.rs`) hold its one writer exclusively while they hold
        // the slice. Readers do not read the bytes until the commit word is stored.
        unsafe { std::slice::from_raw_parts_mut(self.at_mut(offset, len, 1), len) }
    }

    /// Where a record of `len` bytes is about to be stored at `offset`, with the commit word after it: all that an
    /// append stores, checked at once.
    #[inline]
    pub(crate) fn place(&self, offset: u32, len: u32) -> Place<'_> {
        let len = len as usize;
        assert!(len >= HEADER_LEN as usize && len.is_multiple_of(8), "no record has this length");
        Place { start: self.at_mut(offset, len + 8, 8), len, map: PhantomData }
    }

    /// Publishes the record at `offset`, whose payload is in place: see [`Place::publish`].
    pub(crate) fn publish(&self, offset: u32, header: [u64; 4]) {
        self.place(offset, HEADER_LEN).publish(header);
    }

    /// Tells the processor that the cache lines of `offset..offset + len` will be written soon; of a long range only
    /// the first ones, because the processor detects a long one by itself. A hint: any offset is fine.
    #[inline]
    pub(crate) fn prefetch_for_write(&self, offset: u32, len: u32) {
        self.prefetch(offset, len, |line| {
            // SAFETY: a prefetch never faults, and changes neither memory nor flags. Every processor with long mode
            // accepts the instruction, if only as a no-op. The intrinsic would emit a prefetch for reading, unless the
            // whole program is built for newer processors.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                std::arch::asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = line;
        });
    }

    /// Likewise, for reading.
    #[inline]
    pub(crate) fn prefetch_for_read(&self, offset: u32, len: u32) {
        self.prefetch(offset, len, |line| {
            // SAFETY: a prefetch never faults.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_T0>(line.cast());
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = line;
        });
    }

    /// Tells the processor that another one is about to read these lines: it may hand them to the cache that both share.
    /// A hint, like the other two.
    #[inline]
    pub(crate) fn demote(&self, offset: u32, len: u32) {
        self.prefetch(offset, len, |line| {
            // SAFETY: it never faults, and changes neither memory nor flags. Processors that don't know the instruction
            // take it for a no-op, as which it is encoded.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                std::arch::asm!("cldemote [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = line;
        });
    }

    #[inline(always)]
    fn prefetch(&self, offset: u32, len: u32, prefetch: impl Fn(*const u8)) {
        for line in 0..len.min(MAX_PREFETCH).div_ceil(CACHE_LINE) {
            let at = offset as usize + (line * CACHE_LINE) as usize;
            if at < self.len {
                prefetch(self.start.0.cast_const().wrapping_add(at));
            }
        }
    }

    /// Tells the system that the bytes from `offset` to the end will be used soon: it may use huge pages, which costs
    /// half as much. A hint; not for mappings of which little is used, as each page is up to 2 MiB.
    pub(crate) fn expect_use_from(&self, offset: u32) {
        // Systems without huge pages refuse it.
        let _ = self.advise(Advice::HugePage, offset, self.len);
    }

    /// Prefaults the pages of `offset..offset + len` of a writable mapping. If there is no room for them, this returns an
    /// error rather than raising SIGBUS later; the caller must know that the file is long enough.
    pub(crate) fn populate(&self, offset: u32, len: usize) -> std::io::Result<()> {
        self.advise(Advice::PopulateWrite, offset, len).map_err(|error| match error.raw_os_error() {
            // The page is unavailable, in a file that is long enough: for lack of room.
            Some(libc::EFAULT) => std::io::Error::from_raw_os_error(libc::ENOSPC),
            _ => error,
        })
    }

    /// Maps the pages of `offset..offset + len`, reading them if they are not in memory. A hint.
    pub(crate) fn read_in(&self, offset: u32, len: u32) {
        let _ = self.advise(Advice::PopulateRead, offset, len as usize);
    }

    /// What of `offset..offset + len` is in the mapping.
    fn advise(&self, advice: Advice, offset: u32, len: usize) -> std::io::Result<()> {
        let offset = (offset as usize).min(self.len);
        match len.min(self.len - offset) {
            0 => Ok(()),
            len => self.whole.raw.advise_range(advice, offset, len),
        }
    }

    /// Syncs `offset..offset + len` to disk and waits for it. What was lost is not written: see
    /// [`is_lost`](Self::is_lost).
    pub(crate) fn sync(&self, offset: u32, len: usize) -> std::io::Result<()> {
        self.whole.raw.flush_range(offset as usize, len)
    }
}

/// The place of a record, for reading.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a> {
    /// 8-aligned; a header, and `room` bytes after it, are within the mapping, before the segment's trailer.
    start: *const u8,
    room: usize,
    map: PhantomData<&'a Mapping>,
}

impl<'a> Record<'a> {
    /// Whether it has been committed; then what it holds may be read.
    ///
    /// SYNC POINT with `Place::publish`.
    #[inline(always)]
    pub(crate) fn is_committed(self) -> bool {
        // SAFETY: in bounds and aligned, by what `record` has checked, and accessed by atomics only (rule 2). The mapping
        // may be read-only; this only loads.
        let word = unsafe { AtomicU64::from_ptr(self.start.cast_mut().cast()) }.load(Ordering::Acquire);
        word & u64::from(u32::MAX) != 0
    }

    /// The header of a committed record, each word loaded once: whoever stores there nevertheless can't change it
    /// between a check and its use.
    #[inline(always)]
    pub(crate) fn header(self) -> MessageHeader {
        // SAFETY: in bounds and aligned, by what `record` has checked. It was published by the commit word (rule 3).
        let words = unsafe { self.start.cast::<[u64; HEADER / 8]>().read_volatile() };
        zerocopy::transmute!(words)
    }

    /// The payload of a committed record, if it has room in the segment.
    #[inline(always)]
    pub(crate) fn payload(self, len: u32) -> Option<&'a [u8]> {
        // SAFETY: in bounds, as just compared, and published by the commit word (rule 3).
        (len as usize <= self.room).then(|| unsafe { std::slice::from_raw_parts(self.start.add(HEADER), len as usize) })
    }
}

/// The place of a record that is not published yet. Only the holder of the writer lock may have one.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    /// 8-aligned, as `len` is; `len` bytes and a word from here on are within the mapping, and writable.
    start: *mut u8,
    /// At least that of a header.
    len: usize,
    map: PhantomData<&'a Mapping>,
}

impl Place<'_> {
    /// What follows the header, for filling it.
    #[inline]
    pub(crate) fn body(&mut self) -> &mut [u8] {
        // SAFETY: in bounds and writable, by what `place` has checked. Only the holder of the writer lock stores into
        // uncommitted bytes, and it has this place exclusively while it holds the slice. Readers do not read the bytes
        // until the commit word is stored.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(HEADER), self.len - HEADER) }
    }

    /// Stores 0 into the commit word after the record: there is no record yet.
    #[inline]
    pub(crate) fn clear_next(&self) {
        // SAFETY: the word is in bounds and writable, by what `place` has checked, and aligned, as the length of a
        // record is; it is accessed by atomics only (rule 2).
        unsafe { AtomicU64::from_ptr(self.start.add(self.len).cast()) }.store(0, Ordering::Relaxed);
    }

    /// Writes the header's words, the commit word last with Release.
    ///
    /// SYNC POINT with `Record::is_committed`: a reader that loads the commit word with Acquire sees the whole record.
    #[inline]
    pub(crate) fn publish(self, header: [u64; 4]) {
        let [first, seq, timestamp, last] = header.map(u64::to_le);
        // SAFETY: the header is within the mapping, writable and 8-aligned, by what `place` has checked. It is not
        // published yet, and only the holder of the writer lock, the caller, stores there.
        unsafe {
            self.start.add(8).cast::<u64>().write(seq);
            self.start.add(16).cast::<u64>().write(timestamp);
            self.start.add(24).cast::<u64>().write(last);
            // The commit word is the low half of the first word; type and flags are published in the same store.
            AtomicU64::from_ptr(self.start.cast()).store(first, Ordering::Release);
        }
    }
}

pub(crate) const CUT_SHORT: &str = "the file was cut short while it was in use";

fn range(raw: &MmapRaw) -> std::ops::Range<*const u8> {
    let start = raw.as_ptr();
    start..start.wrapping_add(raw.len())
}

fn check_len(file: &File, path: &Path, len: u32) -> Result<()> {
    let metadata = file.metadata().map_err(Error::io(path, "stat it"))?;
    if metadata.len() < u64::from(len) {
        let what = format!("the file has {} bytes instead of {len}: it was cut short", metadata.len());
        return Err(Error::damaged(path, metadata.len(), what));
    }
    Ok(())
}
