//! What a shell would do: a blocked read of `follow.bin` in a mount, and `tail -f` of a log file.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use chronfs::QueueWriter;
use chronfs::queue::{Queue, Settings};

use super::{Link, Rx, THERE, Tx};
use crate::Result;
use crate::mount::Mount;
use crate::pair::Job;

/// A native writer, and a reader that knows only files.
pub(crate) struct Follow {
    job: Job,
    _mount: Option<Mount>,
}

impl Link for Follow {
    type Tx = QueueWriter;
    type Rx = FollowRx;

    fn make(job: &Job) -> Result<Self> {
        Queue::create(job.dir.join("bus").join(THERE), &Settings::default())?;
        Ok(Self { job: job.clone(), _mount: Some(Mount::new(&job.cli, &job.dir.join("bus"), &job.dir.join("mnt"))?) })
    }

    fn join(job: &Job) -> Result<Self> {
        Ok(Self { job: job.clone(), _mount: None })
    }

    fn tx(&mut self, name: &str) -> Result<QueueWriter> {
        Ok(Queue::open(self.job.dir.join("bus").join(name))?.writer()?)
    }

    fn rx(&mut self, name: &str) -> Result<FollowRx> {
        let file = File::open(self.job.dir.join("mnt").join(name).join("follow.bin"))?;
        Ok(FollowRx { file, buffer: vec![0; self.job.payload] })
    }
}

pub(crate) struct FollowRx {
    file: File,
    buffer: Vec<u8>,
}

impl Rx for FollowRx {
    fn poll(&mut self, _max: usize, mut f: impl FnMut(&[u8])) -> Result<usize> {
        // Blocks.
        self.file.read_exact(&mut self.buffer)?;
        f(&self.buffer);
        Ok(1)
    }

    fn wait(&mut self) -> Result<()> {
        Ok(())
    }
}

/// One line per message, appended to a file that `tail -f` follows.
pub(crate) struct TailF {
    path: PathBuf,
}

impl Link for TailF {
    type Tx = Lines;
    type Rx = Tail;

    fn make(job: &Job) -> Result<Self> {
        let link = Self::join(job)?;
        File::create_new(&link.path)?;
        Ok(link)
    }

    fn join(job: &Job) -> Result<Self> {
        Ok(Self { path: job.dir.join("log") })
    }

    fn tx(&mut self, _name: &str) -> Result<Lines> {
        Ok(Lines(File::options().append(true).open(&self.path)?))
    }

    fn rx(&mut self, _name: &str) -> Result<Tail> {
        let pid = format!("--pid={}", std::process::id());
        let mut child = Command::new("tail")
            .args(["-f", "-c", "+1", &pid])
            .arg(&self.path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = child.stdout.take().ok_or("no output of tail")?;
        Ok(Tail { child, out })
    }
}

pub(crate) struct Lines(File);

impl Tx for Lines {
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        let stamp = payload.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        // One write per line, as loggers do.
        self.0.write_all(format!("{stamp:063}\n").as_bytes())?;
        Ok(())
    }
}

pub(crate) struct Tail {
    child: Child,
    out: ChildStdout,
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Rx for Tail {
    fn poll(&mut self, _max: usize, mut f: impl FnMut(&[u8])) -> Result<usize> {
        let mut line = [0; 64];
        self.out.read_exact(&mut line)?;
        let stamp: u64 = std::str::from_utf8(&line)?.trim_end().parse()?;
        f(&stamp.to_le_bytes());
        Ok(1)
    }

    fn wait(&mut self) -> Result<()> {
        Ok(())
    }
}
