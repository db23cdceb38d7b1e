//! A program that decodes: it gets each payload on standard input and answers on standard output.

use std::io::{self, Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use crate::error::Undecodable;
use crate::schema::{Decode, json_text};

/// Longest answer, in bytes.
const MAX_ANSWER: u32 = 16 << 20;

/// A running command that decodes payloads.
///
/// For each message it reads the length of what follows (4 bytes, little-endian), the type (2 bytes, little-endian) and
/// the payload; it answers with the length of its answer (4 bytes, little-endian) and JSON. An answer of length 0 means
/// that it can't decode the payload. It must answer a message before it gets the next one, so it must flush its output.
/// Its standard error is that of this process.
#[derive(Debug)]
pub struct Command {
    child: Child,
    /// Gone once the command has ended or has broken the rules.
    pipes: Option<(ChildStdin, ChildStdout)>,
    request: Vec<u8>,
    broken: String,
}

impl Command {
    /// Starts it by `sh -c`.
    ///
    /// # Errors
    /// The shell can't be started.
    pub fn start(command: &str) -> io::Result<Self> {
        let mut shell = std::process::Command::new("sh");
        let mut child = shell
            .arg("-c")
            .arg(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        Ok(Self { child, pipes, request: Vec::new(), broken: String::new() })
    }

    fn ask(&mut self, msg_type: u16, payload: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let Some((stdin, stdout)) = &mut self.pipes else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let len = u32::try_from(payload.len() + 2).map_err(|_| io::Error::other("the payload is too long"))?;
        self.request.clear();
        self.request.extend_from_slice(&len.to_le_bytes());
        self.request.extend_from_slice(&msg_type.to_le_bytes());
        self.request.extend_from_slice(payload);
        stdin.write_all(&self.request)?;
        let mut len = [0; 4];
        stdout.read_exact(&mut len)?;
        let len = u32::from_le_bytes(len);
        if len > MAX_ANSWER {
            return Err(io::Error::other(format!("its answer has {len} bytes, more than {MAX_ANSWER}")));
        }
        let mut answer = Vec::new();
        stdout.take(u64::from(len)).read_to_end(&mut answer)?;
        if answer.len() as u64 != u64::from(len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Some(answer).filter(|answer| !answer.is_empty()))
    }
}

impl Decode for Command {
    fn name(&mut self, _msg_type: u16, _payload: &[u8]) -> Result<Option<&str>, Undecodable> {
        Ok(Some(""))
    }

    fn json(&mut self, msg_type: u16, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Undecodable> {
        if self.broken.is_empty() {
            match self.ask(msg_type, payload) {
                Ok(None) => return Err(Undecodable::new("the command can't decode it")),
                Ok(Some(answer)) => {
                    let line = json_text(&answer).map_err(|error| Undecodable::new(format!("the answer: {error}")))?;
                    out.extend_from_slice(line.as_bytes());
                    return Ok(());
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof) => {
                    self.broken = "the command has ended".to_owned();
                }
                Err(error) => self.broken = format!("the command is not used any more: {error}"),
            }
            self.pipes = None;
        }
        Err(Undecodable::new(self.broken.clone()))
    }
}

impl Drop for Command {
    /// Closes its standard input, which ends it, and waits for that; one that has broken the rules is killed.
    fn drop(&mut self) {
        if !self.broken.is_empty() {
            let _ = self.child.kill();
        }
        self.pipes = None;
        let _ = self.child.wait();
    }
}
