//! Aeron IPC: its C client and an embedded media driver; nothing persisted, no checksum, no time.

use std::time::Duration;

use rusteron_client::{Aeron as Client, AeronContext, AeronExclusivePublication, AeronSubscription, Handlers};
use rusteron_media_driver::IntoCString;
use rusteron_media_driver::bindings::aeron_threading_mode_t as Mode;
use rusteron_media_driver::testing::EmbeddedDriver;

use super::{BACK, Link, Rx, Tx};
use crate::Result;
use crate::pair::Job;

const CHANNEL: &std::ffi::CStr = c"aeron:ipc";
const PATIENCE: Duration = Duration::from_secs(5);
/// Aeron's maximum: larger messages arrive in fragments.
const MTU: usize = 65_504;

pub(crate) struct Aeron {
    client: Client,
    payload: usize,
    /// In the leader. Ends when dropped, after the client.
    _driver: Option<EmbeddedDriver>,
}

fn failed(error: impl std::fmt::Debug) -> Box<dyn std::error::Error + Send + Sync> {
    format!("{error:?}").into()
}

fn connect(job: &Job, driver: Option<EmbeddedDriver>) -> Result<Aeron> {
    let context = AeronContext::new().map_err(failed)?;
    context.set_dir(&directory(job)).map_err(failed)?;
    context.set_pre_touch_mapped_memory(true).map_err(failed)?;
    let client = Client::new(&context).map_err(failed)?;
    client.start().map_err(failed)?;
    Ok(Aeron { client, payload: job.payload, _driver: driver })
}

fn directory(job: &Job) -> std::ffi::CString {
    job.memory.join("aeron").to_string_lossy().as_ref().into_c_string()
}

fn stream(name: &str) -> i32 {
    if name == BACK { 2 } else { 1 }
}

impl Link for Aeron {
    type Tx = AeronTx;
    type Rx = AeronRx;

    fn make(job: &Job) -> Result<Self> {
        let driver = EmbeddedDriver::launch_with(|context| {
            context.set_dir(&directory(job))?;
            // Messages between processes do not pass through the driver: it must not take their processors.
            context.set_threading_mode(Mode::AERON_THREADING_MODE_SHARED)?;
            context.set_term_buffer_sparse_file(false)?;
            context.set_ipc_mtu_length(MTU)?;
            Ok(())
        });
        let driver = driver.map_err(failed)?;
        // The driver starts on a thread of its own.
        let cnc = job.memory.join("aeron/cnc.dat");
        let end = std::time::Instant::now() + PATIENCE;
        while !cnc.exists() && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        connect(job, Some(driver))
    }

    fn join(job: &Job) -> Result<Self> {
        connect(job, None)
    }

    fn tx(&mut self, name: &str) -> Result<AeronTx> {
        let publication = self.client.async_add_exclusive_publication(CHANNEL, stream(name)).map_err(failed)?;
        Ok(AeronTx { publication: publication.poll_blocking(PATIENCE).map_err(failed)? })
    }

    fn rx(&mut self, name: &str) -> Result<AeronRx> {
        let subscription = self.client.async_add_subscription(CHANNEL, stream(name), Handlers::NONE, Handlers::NONE);
        let subscription = subscription.map_err(failed)?.poll_blocking(PATIENCE).map_err(failed)?;
        Ok(AeronRx { subscription, payload: self.payload, fragments: 0 })
    }
}

pub(crate) struct AeronTx {
    publication: AeronExclusivePublication,
}

impl Tx for AeronTx {
    #[inline]
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        let mut waited = None;
        loop {
            match self.publication.offer(payload) {
                Ok(_) => return Ok(()),
                Err(error) if error.is_retryable() => {
                    let since = *waited.get_or_insert_with(std::time::Instant::now);
                    if since.elapsed() > 2 * PATIENCE {
                        return Err(failed(error));
                    }
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

pub(crate) struct AeronRx {
    subscription: AeronSubscription,
    payload: usize,
    /// Bytes of the message that has not arrived completely.
    fragments: usize,
}

impl Rx for AeronRx {
    #[inline]
    fn poll(&mut self, max: usize, mut f: impl FnMut(&[u8])) -> Result<usize> {
        let (mut count, payload, fragments) = (0, self.payload, &mut self.fragments);
        let handler = |bytes: &[u8], _| {
            f(bytes);
            *fragments += bytes.len();
            if *fragments >= payload {
                *fragments = 0;
                count += 1;
            }
        };
        self.subscription.poll_fn(handler, max).map_err(failed)?;
        Ok(count)
    }

    fn wait(&mut self) -> Result<()> {
        Err("Aeron's subscribers do not sleep on the publisher".into())
    }
}
