//! Turns an unavailable page of a mapped file (the file was truncated, there is no room for the page, or the disk can't
//! read it) into an error, instead of the death of the process by `SIGBUS`.
//!
//! Every mapping of ours is entered in a table. If the processor can't reach a page of one, the kernel sends `SIGBUS`
//! to the very thread that touched it; the handler looks the address up, replaces the page with a page of zeros, marks
//! the mapping as *lost* and lets the thread continue. To the protocols a page of zeros reads as "nothing committed";
//! the reader then checks the mark ([`Entry::is_lost`]) and reports it or continues by `pread`. The writer checks the
//! one mark of the whole process ([`is_any_lost`]) before it reports anything as stored. A fault anywhere else goes to
//! the handler that was installed before: the program dies as it would have without us.
//!
//! Invariants:
//! - The handler only reads the table (atomics, memory that is never freed) and makes one system call; it takes no lock
//!   and allocates nothing.
//! - An entry's range is in the table for as long as its mapping can be touched: entered before the mapping is
//!   returned, removed before it is unmapped. So an address that is found belongs to a live mapping of ours.
//! - A range is changed while its start is [`CLAIMED`], and a reader accepts it only if the start is the same before
//!   and after: it never sees a range that is half one mapping's and half another's.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr;
use std::sync::{Once, OnceLock};

use crate::sync::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// The start of an unused entry.
const NOWHERE: usize = usize::MAX;
/// The start of an entry that has been claimed and is being filled in. No range begins or ends after it.
const CLAIMED: usize = usize::MAX - 1;
/// Entries allocated at once.
const CHUNK: usize = 64;

#[derive(Debug)]
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    writable: AtomicBool,
    /// The first address that was out of reach; 0: none.
    lost: AtomicUsize,
}

#[derive(Debug)]
struct Chunk {
    slots: [Slot; CHUNK],
    next: AtomicPtr<Chunk>,
}

/// Chunks are added at the front and never removed.
static CHUNKS: AtomicPtr<Chunk> = AtomicPtr::new(ptr::null_mut());
static INSTALL: Once = Once::new();
static ANY_LOST: AtomicBool = AtomicBool::new(false);
static LEFT_ALONE: AtomicBool = AtomicBool::new(false);
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
/// Whether this process has raised the signal itself since the last fault that was handled. A handler that was installed
/// after ours, such as Python's faulthandler, does not call ours but puts it back and raises the signal again, without
/// the address. If the first one of those is ignored, the handler returns and the fault repeats, as itself.
static IS_RAISED: AtomicBool = AtomicBool::new(false);
static PAGE: AtomicUsize = AtomicUsize::new(4096);

/// Leaves `SIGBUS` alone: for programs that must be the only ones to handle it. Must be called before anything else of
/// chronfs; returns false if it is too late.
///
/// Without the handler, a process that uses a [`QueueWriter`](crate::queue::QueueWriter) or a
/// [`QueueReader`](crate::queue::QueueReader) dies when one of the queue's files is truncated under it. A handler that
/// is installed later must pass on the faults that it does not know, or the same holds.
pub fn disable_sigbus_handler() -> bool {
    LEFT_ALONE.store(true, Ordering::SeqCst);
    !INSTALL.is_completed()
}

/// Whether any mapping of this process has ever been lost. One load: for the hot path.
#[inline]
pub(in crate::queue) fn is_any_lost() -> bool {
    ANY_LOST.load(Ordering::Relaxed)
}

/// A mapping's entry in the table, for as long as it lives.
#[derive(Debug)]
pub(in crate::queue) struct Entry(&'static Slot);

impl Entry {
    /// Enters the mapping of `range`; the first call installs the handler before that.
    pub(in crate::queue) fn new(range: Range<*const u8>, writable: bool) -> Self {
        INSTALL.call_once(install);
        let page = PAGE.load(Ordering::Relaxed);
        let slot = claim();
        slot.writable.store(writable, Ordering::SeqCst);
        slot.lost.store(0, Ordering::SeqCst);
        slot.end.store(range.end.addr().next_multiple_of(page), Ordering::SeqCst);
        slot.start.store(range.start.addr(), Ordering::SeqCst);
        Self(slot)
    }

    /// Whether a part of the file was out of reach and has been replaced with zeros. Permanent.
    pub(in crate::queue) fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire) != 0
    }

    /// Marks the mapping as one whose stores no longer reach its file, although it can be touched.
    pub(super) fn give_up(&self) {
        self.0.lost.store(self.0.start.load(Ordering::Relaxed), Ordering::SeqCst);
        ANY_LOST.store(true, Ordering::SeqCst);
    }

    /// The offset of a byte that was out of reach; meaningless unless the mapping is lost.
    pub(in crate::queue) fn lost_at(&self) -> usize {
        self.0.lost.load(Ordering::Acquire).saturating_sub(self.0.start.load(Ordering::Relaxed))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.0.start.store(NOWHERE, Ordering::SeqCst);
    }
}

/// Claims an unused entry. Without a lock: a child forked while another thread holds one would never get it.
fn claim() -> &'static Slot {
    loop {
        let first = CHUNKS.load(Ordering::SeqCst);
        let mut chunk = first;
        // SAFETY: the list holds chunks only, complete when they were added, and never freed.
        while let Some(this) = unsafe { chunk.as_ref() } {
            let take = |slot: &&Slot| {
                slot.start.compare_exchange(NOWHERE, CLAIMED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
            };
            if let Some(slot) = this.slots.iter().find(take) {
                return slot;
            }
            chunk = this.next.load(Ordering::SeqCst);
        }
        let slot = || Slot {
            start: AtomicUsize::new(NOWHERE),
            end: AtomicUsize::new(0),
            writable: AtomicBool::new(false),
            lost: AtomicUsize::new(0),
        };
        let made = Box::new(Chunk { slots: std::array::from_fn(|_| slot()), next: AtomicPtr::new(first) });
        let made = Box::into_raw(made);
        if CHUNKS.compare_exchange(first, made, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            // SAFETY: no other thread has seen it.
            drop(unsafe { Box::from_raw(made) });
        }
    }
}

fn install() {
    if LEFT_ALONE.load(Ordering::SeqCst) {
        return;
    }
    // SAFETY: only queries.
    if let Ok(page) = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) {
        PAGE.store(page, Ordering::SeqCst);
    }
    let mut previous = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: all zeros is a valid `sigaction`: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    action.sa_sigaction = handler as *const () as usize;
    // On the thread's alternate stack, if it has one, like the standard library's own handler.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: only queries; `previous` is valid for writing.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), previous.as_mut_ptr()) } == 0 {
        // SAFETY: the call has filled it in. Set before our handler can run.
        let _ = PREVIOUS.set(unsafe { previous.assume_init() });
        // SAFETY: `action` is complete, and the handler does only what a handler may do (see the head of this file). On
        // failure nothing changes.
        unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
    }
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t`, and that of a fault has an address, that of a signal sent a sender.
    let (code, address, sender) = unsafe { ((*info).si_code, (*info).si_addr().addr(), (*info).si_pid()) };
    // Only "no such page in the file": not a memory error, not a signal sent by a process.
    if code == libc::BUS_ADRERR
        && let Some(slot) = find(address)
    {
        // Before the zeros: another thread may store into them at once, and must find the mark then.
        slot.lost.store(address, Ordering::SeqCst);
        ANY_LOST.store(true, Ordering::SeqCst);
        if put_zeros(address, slot.writable.load(Ordering::SeqCst)) {
            IS_RAISED.store(false, Ordering::SeqCst);
            return;
        }
    }
    // SAFETY: a plain call.
    if code == libc::SI_TKILL && sender == unsafe { libc::getpid() } && !IS_RAISED.swap(true, Ordering::SeqCst) {
        return;
    }
    pass_on(signal, info, context);
}

/// The entry of the mapping that contains an address.
fn find(address: usize) -> Option<&'static Slot> {
    let mut chunk = CHUNKS.load(Ordering::SeqCst);
    // SAFETY: the list holds chunks only, complete when they were added, and never freed.
    while let Some(this) = unsafe { chunk.as_ref() } {
        let holds = |slot: &&Slot| {
            let (start, end) = (slot.start.load(Ordering::SeqCst), slot.end.load(Ordering::SeqCst));
            (start..end).contains(&address) && slot.start.load(Ordering::SeqCst) == start
        };
        if let Some(slot) = this.slots.iter().find(holds) {
            return Some(slot);
        }
        chunk = this.next.load(Ordering::SeqCst);
    }
    None
}

/// Replaces the page at `address`, which belongs to a live mapping of ours, with a page of zeros.
fn put_zeros(address: usize, writable: bool) -> bool {
    let page = PAGE.load(Ordering::SeqCst);
    let start = ptr::without_provenance_mut(address / page * page);
    let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: the page belongs to a live mapping of ours, which only raw pointers and atomics reach and whose bytes may
    // change under them at any time (`mapping.rs`); unmapping the mapping's range later unmaps this page with it.
    // `mmap` is a plain system call; the interrupted code's errno is kept.
    unsafe {
        let errno = *libc::__errno_location();
        let mapped = libc::mmap(start, page, protection, flags, -1, 0);
        *libc::__errno_location() = errno;
        mapped != libc::MAP_FAILED
    }
}

/// Does what would have happened without us.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    static IS_SPENT: AtomicBool = AtomicBool::new(false);
    // A handler that asked to be called once has been called.
    let is_left = |p: &&libc::sigaction| p.sa_flags & libc::SA_RESETHAND == 0 || !IS_SPENT.swap(true, Ordering::SeqCst);
    let is_handler = |p: &&libc::sigaction| ![libc::SIG_DFL, libc::SIG_IGN].contains(&p.sa_sigaction);
    let previous = PREVIOUS.get();
    if let Some(previous) = previous.filter(is_handler) {
        return if is_left(&previous) { call(previous, signal, info, context) } else { die(signal, info) };
    }
    // SAFETY: the kernel passes a valid `siginfo_t`.
    let was_sent = unsafe { (*info).si_code } <= 0;
    if !(was_sent && previous.is_some_and(|previous| previous.sa_sigaction == libc::SIG_IGN)) {
        die(signal, info);
    }
}

/// Ends the process as the signal does by default. A fault can't be ignored: the instruction is retried. A signal sent
/// by a process is not repeated by itself.
fn die(signal: libc::c_int, info: *mut libc::siginfo_t) {
    // SAFETY: plain calls; the kernel passes a valid `siginfo_t`.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        if (*info).si_code <= 0 {
            libc::raise(signal);
        }
    }
}

/// Calls another handler as the kernel would: with the signals blocked, or not, as it requested.
fn call(handler: &libc::sigaction, signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: plain calls that a handler may make, with valid sets; the first one fills `before` in.
    unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const handler.sa_mask, before.as_mut_ptr());
        if handler.sa_flags & libc::SA_NODEFER != 0 {
            let mut this = MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(this.as_mut_ptr());
            libc::sigaddset(this.as_mut_ptr(), signal);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, this.as_ptr(), ptr::null_mut());
        }
    }
    if handler.sa_flags & libc::SA_SIGINFO != 0 {
        type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
        // SAFETY: it was installed with SA_SIGINFO, which says that it is such a function.
        let function = unsafe { std::mem::transmute::<usize, Handler>(handler.sa_sigaction) };
        function(signal, info, context);
    } else {
        // SAFETY: it was installed without SA_SIGINFO, which says that it is such a function.
        let function = unsafe { std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler.sa_sigaction) };
        function(signal);
    }
    // SAFETY: as above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
}
