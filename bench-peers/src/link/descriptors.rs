//! What every system has: a pipe and a UNIX stream socket. One write per message; each read takes all there is.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use super::{BACK, Link, Rx, THERE, Tx};
use crate::Result;
use crate::pair::Job;

const BUFFER: usize = 64 << 10;
/// Longest wait.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Pipe {
    job: Job,
}

pub(crate) struct Socket {
    job: Job,
    listeners: Option<[UnixListener; 2]>,
}

pub(crate) struct Sender<F>(F);

pub(crate) struct Receiver<F> {
    from: F,
    payload: usize,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<F> Receiver<F> {
    fn new(from: F, payload: usize) -> Self {
        Self { from, payload, buffer: vec![0; BUFFER.max(payload)], start: 0, end: 0 }
    }
}

impl Link for Pipe {
    type Tx = Sender<std::fs::File>;
    type Rx = Receiver<std::fs::File>;

    fn make(job: &Job) -> Result<Self> {
        for name in [THERE, BACK] {
            mknodat(CWD, job.dir.join(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        }
        Self::join(job)
    }

    fn join(job: &Job) -> Result<Self> {
        Ok(Self { job: job.clone() })
    }

    fn tx(&mut self, name: &str) -> Result<Self::Tx> {
        // Both ends open it for reading and writing, so neither needs to be first.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let file = std::fs::File::options().read(true).write(true).custom_flags(flags).open(self.job.dir.join(name))?;
        Ok(Sender(file))
    }

    fn rx(&mut self, name: &str) -> Result<Self::Rx> {
        Ok(Receiver::new(self.tx(name)?.0, self.job.payload))
    }
}

impl Link for Socket {
    type Tx = Sender<UnixStream>;
    type Rx = Receiver<UnixStream>;

    fn make(job: &Job) -> Result<Self> {
        let bind = |name| {
            let listener = UnixListener::bind(job.memory.join(name))?;
            listener.set_nonblocking(true)?;
            io::Result::Ok(listener)
        };
        Ok(Self { job: job.clone(), listeners: Some([bind(THERE)?, bind(BACK)?]) })
    }

    fn join(job: &Job) -> Result<Self> {
        Ok(Self { job: job.clone(), listeners: None })
    }

    fn tx(&mut self, name: &str) -> Result<Self::Tx> {
        let stream = match &self.listeners {
            None => UnixStream::connect(self.job.memory.join(name))?,
            Some(listeners) => {
                let listener = &listeners[usize::from(name == BACK)];
                ready(listener, PollFlags::IN)?;
                listener.accept()?.0
            }
        };
        stream.set_nonblocking(true)?;
        Ok(Sender(stream))
    }

    fn rx(&mut self, name: &str) -> Result<Self::Rx> {
        Ok(Receiver::new(self.tx(name)?.0, self.job.payload))
    }
}

/// Sleeps until the descriptor is ready, or fails after a while.
fn ready(fd: &impl AsFd, flags: PollFlags) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("the other end does nothing".into());
        }
        match poll(&mut [PollFd::new(fd, flags)], Some(&Timespec::try_from(left)?)) {
            Ok(1..) => return Ok(()),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

impl<F: Write + AsFd> Tx for Sender<F> {
    fn send(&mut self, mut payload: &[u8]) -> Result<()> {
        while !payload.is_empty() {
            match self.0.write(payload) {
                Ok(written) => payload = &payload[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready(&self.0, PollFlags::OUT)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl<F: Read + AsFd> Rx for Receiver<F> {
    fn poll(&mut self, max: usize, mut f: impl FnMut(&[u8])) -> Result<usize> {
        if self.end - self.start < self.payload {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            match self.from.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err("the other end is gone".into()),
                Ok(read) => self.end += read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        let count = ((self.end - self.start) / self.payload).min(max);
        for message in self.buffer[self.start..].chunks_exact(self.payload).take(count) {
            f(message);
        }
        self.start += count * self.payload;
        Ok(count)
    }

    fn wait(&mut self) -> Result<()> {
        ready(&self.from, PollFlags::IN)
    }
}
