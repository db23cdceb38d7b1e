//! Memory that two processes share, and a bare futex in it: the floors that `bench` measures against.
//!
//! The only unsafe code of chron-cli. Everything that the other process may touch is an atomic.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64};

use memmap2::MmapMut;
use rustix::thread::futex;

/// Bytes of a cache line; each slot has one of its own.
const LINE: usize = 64;

/// A mapped file of zeros, divided into slots of a cache line each.
pub(super) struct Shared {
    map: MmapMut,
}

impl Shared {
    /// Creates the file, with every page in memory.
    pub(super) fn create(path: &Path, slots: usize) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.set_len((slots * LINE) as u64)?;
        let mut shared = Self::map(&file)?;
        shared.map.fill(0);
        Ok(shared)
    }

    /// Memory of this process alone, all of it mapped. A file as large would have the queue's syncs wait for the disk.
    #[allow(dead_code)] // not used by `bench-peers/`
    pub(super) fn private(slots: usize) -> io::Result<Self> {
        let mut shared = Self { map: MmapMut::map_anon(slots * LINE)? };
        shared.map.fill(0);
        Ok(shared)
    }

    /// Opens the file that the other process has created.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let shared = Self::map(&File::options().read(true).write(true).open(path)?)?;
        // Prefault every page.
        (0..shared.map.len() / LINE).for_each(|slot| {
            std::hint::black_box(shared.slot(slot).load(std::sync::atomic::Ordering::Relaxed));
        });
        Ok(shared)
    }

    fn map(file: &File) -> io::Result<Self> {
        // SAFETY: nobody truncates the file: it lies in a directory that only this command and its child know.
        Ok(Self { map: unsafe { MmapMut::map_mut(file)? } })
    }

    /// The word at the start of a slot.
    pub(super) fn slot(&self, slot: usize) -> &AtomicU64 {
        let bytes = &self.map[slot * LINE..(slot + 1) * LINE];
        // SAFETY: the slot lies in the mapping, which is aligned to pages, and lives as long as `self`. Both processes
        // touch it as an atomic only.
        unsafe { AtomicU64::from_ptr(bytes.as_ptr().cast_mut().cast()) }
    }

    /// The same as a word to sleep on. A slot is used in one way or the other.
    fn futex(&self, slot: usize) -> &AtomicU32 {
        let bytes = &self.map[slot * LINE..(slot + 1) * LINE];
        // SAFETY: as in `slot`.
        unsafe { AtomicU32::from_ptr(bytes.as_ptr().cast_mut().cast()) }
    }

    /// Sleeps until the word is `value`.
    pub(super) fn sleep_until(&self, slot: usize, value: u32) {
        use std::sync::atomic::Ordering::Acquire;
        let word = self.futex(slot);
        loop {
            let now = word.load(Acquire);
            if now == value {
                return;
            }
            // Woken, interrupted or too late: check again.
            let _ = futex::wait(word, futex::Flags::empty(), now, None);
        }
    }

    /// Sets the word and wakes those that sleep on it.
    pub(super) fn wake(&self, slot: usize, value: u32) -> io::Result<()> {
        let word = self.futex(slot);
        word.store(value, std::sync::atomic::Ordering::Release);
        futex::wake(word, futex::Flags::empty(), 1)?;
        Ok(())
    }

    /// Copies `payload` after the word of record number `n`, and then stores its length there, as an append would
    /// without checksum, time and wake; `meta` is put between them. Records follow each other round and round.
    #[inline]
    pub(super) fn copy_in(&mut self, at: &mut usize, payload: &[u8], meta: Option<[u64; 2]>) {
        let len = 32 + payload.len().next_multiple_of(8);
        if *at + len > self.map.len() {
            *at = 0;
        }
        let record = &mut self.map[*at..*at + len];
        record[32..32 + payload.len()].copy_from_slice(payload);
        record[8..16].copy_from_slice(&(*at as u64).to_le_bytes());
        if let Some([first, second]) = meta {
            record[16..24].copy_from_slice(&first.to_le_bytes());
            record[24..32].copy_from_slice(&second.to_le_bytes());
        }
        // SAFETY: the record is aligned to 8 bytes in a mapping aligned to pages.
        let word = unsafe { AtomicU64::from_ptr(record.as_mut_ptr().cast()) };
        word.store(len as u64, std::sync::atomic::Ordering::Release);
        *at += len;
    }

    /// The second half of `meta` and the padded payload that `copy_in` has put at `at`; None if there is none yet. Does
    /// not wrap around.
    #[allow(dead_code)] // used where this floor takes two processes: `bench-peers/`
    #[inline]
    pub(super) fn copied_in(&self, at: &mut usize) -> Option<(u64, &[u8])> {
        let record = self.map.get(*at..*at + 32)?;
        // SAFETY: as in `copy_in`.
        let word = unsafe { AtomicU64::from_ptr(record.as_ptr().cast_mut().cast()) };
        let len = usize::try_from(word.load(std::sync::atomic::Ordering::Acquire)).ok()?;
        let payload = self.map.get(*at + 32..*at + len).filter(|_| len > 0)?;
        *at += len;
        Some((u64::from_le_bytes(*record.last_chunk()?), payload))
    }
}
