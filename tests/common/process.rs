//! Processes beside a test, and waiting for them.
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

/// Time limit for anything that must happen.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A program that runs beside the test; killed when dropped.
pub struct Running(Option<Child>);

impl Running {
    pub fn new(child: Child) -> Self {
        Self(Some(child))
    }

    pub fn id(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    pub fn child(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }

    pub fn signal(&self, signal: &str) {
        signal_to(self.id(), signal);
    }

    /// Waits for it to exit, which must happen soon.
    pub fn output(mut self) -> Output {
        let mut child = self.0.take().unwrap();
        wait(&mut child);
        child.wait_with_output().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Sends a signal to a process that this test started.
pub fn signal_to(pid: u32, signal: &str) {
    let status = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// Waits for a child to exit, which must happen soon; returns how long it took.
pub fn wait(child: &mut Child) -> Duration {
    let started = Instant::now();
    until("the process ends", || child.try_wait().unwrap().is_some());
    started.elapsed()
}

/// Waits until a condition holds.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "timed out: until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
