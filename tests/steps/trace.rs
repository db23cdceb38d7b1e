//! Runs work in a child process one machine instruction at a time (ptrace), and checks the files after each.
//!
//! The child is a fork: it has the queue's code at hand without another program. Only its main thread is traced and
//! stepped; a thread that the work starts (the writer's helper) runs freely beside it, as it does beside a thread that
//! is descheduled after every instruction. The child is killed when the run ends, also by a panic.
#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};

/// No run takes longer; a child that hangs ends the test instead.
const LONGEST_RUN_SECS: u32 = 1800;

struct Child(libc::pid_t);

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: signals and awaits the child that this run has started and not yet awaited.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            let mut status = 0;
            while libc::waitpid(self.0, &raw mut status, libc::__WALL) == self.0 && libc::WIFSTOPPED(status) {}
        }
    }
}

/// What the child has just done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    SystemCall,
    /// Anything else: of the files it can have changed mapped bytes only.
    Instruction,
}

/// Calls `work` in a child. Between the first and the second call of `mark` (its argument) it is stepped, and
/// `look` is called after each instruction. Returns the number of instructions.
pub(crate) fn stepped(work: impl FnOnce(&dyn Fn()), mut look: impl FnMut(Seen)) -> u64 {
    // SAFETY: the child calls only `work`, on its one thread, and ends without returning here.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        run_child(work);
    }
    let child = Child(pid);
    assert_eq!(wait(&child), libc::SIGSTOP, "the child did not get to its first mark");
    let mut steps = 0;
    loop {
        let seen = if is_system_call(&child) { Seen::SystemCall } else { Seen::Instruction };
        let nothing = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: the child is stopped and traced by this thread.
        let done = unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, child.0, nothing, nothing) };
        assert_eq!(done, 0, "single step: {}", std::io::Error::last_os_error());
        let signal = wait(&child);
        look(seen);
        match signal {
            libc::SIGTRAP => steps += 1,
            libc::SIGSTOP => return steps,
            other => panic!("the child got signal {other} after {steps} instructions"),
        }
    }
}

fn run_child(work: impl FnOnce(&dyn Fn())) -> ! {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: plain calls that concern this process alone.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::alarm(LONGEST_RUN_SECS);
        libc::ptrace(libc::PTRACE_TRACEME, 0, nothing, nothing);
    }
    let mark = || {
        // SAFETY: stops this process; its tracer resumes it.
        unsafe { libc::raise(libc::SIGSTOP) };
    };
    let worked = catch_unwind(AssertUnwindSafe(|| work(&mark)));
    // SAFETY: ends this process without running what belongs to the parent.
    unsafe { libc::_exit(if worked.is_ok() { 0 } else { 101 }) }
}

/// Whether the child's next instruction is a system call.
fn is_system_call(child: &Child) -> bool {
    let offset = std::mem::offset_of!(libc::user_regs_struct, rip);
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the child is stopped and traced by this thread.
    let address = unsafe { libc::ptrace(libc::PTRACE_PEEKUSER, child.0, offset, nothing) };
    // SAFETY: as above.
    let word = unsafe { libc::ptrace(libc::PTRACE_PEEKTEXT, child.0, address, nothing) };
    word & 0xFFFF == 0x050F
}

/// Waits for the child's next stop; returns the signal.
fn wait(child: &Child) -> libc::c_int {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    let pid = unsafe { libc::waitpid(child.0, &raw mut status, libc::__WALL) };
    assert_eq!(pid, child.0, "wait: {}", std::io::Error::last_os_error());
    assert!(libc::WIFSTOPPED(status), "the child has exited: status {status:#x}");
    libc::WSTOPSIG(status)
}
