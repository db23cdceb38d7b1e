//! iceoryx2: publish and subscribe in shared memory, nothing persisted; nothing dropped here either.

use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;

use super::{Link, Rx, Tx};
use crate::Result;
use crate::pair::{Job, Test};

/// Messages by which the receiver may lag.
const BUFFER: usize = 1024;

pub(crate) struct Iceoryx {
    job: Job,
    node: Node<ipc::Service>,
}

pub(crate) struct IceoryxTx {
    publisher: Publisher<ipc::Service, [u8], ()>,
    notifier: Option<Notifier<ipc::Service>>,
}

pub(crate) struct IceoryxRx {
    subscriber: Subscriber<ipc::Service, [u8], ()>,
    listener: Option<Listener<ipc::Service>>,
}

impl Link for Iceoryx {
    type Tx = IceoryxTx;
    type Rx = IceoryxRx;

    fn make(job: &Job) -> Result<Self> {
        Self::join(job)
    }

    fn join(job: &Job) -> Result<Self> {
        set_log_level(LogLevel::Fatal);
        let mut config = Config::default();
        config.global.set_root_path(&Path::new(job.memory.to_string_lossy().as_bytes())?);
        config.global.prefix = FileName::new(job.prefix.as_bytes())?;
        Ok(Self { job: job.clone(), node: NodeBuilder::new().config(&config).create::<ipc::Service>()? })
    }

    fn tx(&mut self, name: &str) -> Result<IceoryxTx> {
        let service = self.messages(name)?;
        let publisher = service
            .publisher_builder()
            .initial_max_slice_len(self.job.payload)
            .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
            .create()?;
        let notifier = match self.job.test {
            Test::Wake => Some(self.events(name)?.notifier_builder().create()?),
            _ => None,
        };
        Ok(IceoryxTx { publisher, notifier })
    }

    fn rx(&mut self, name: &str) -> Result<IceoryxRx> {
        let subscriber = self.messages(name)?.subscriber_builder().create()?;
        let listener = match self.job.test {
            Test::Wake => Some(self.events(name)?.listener_builder().create()?),
            _ => None,
        };
        Ok(IceoryxRx { subscriber, listener })
    }
}

type Messages = iceoryx2::service::port_factory::publish_subscribe::PortFactory<ipc::Service, [u8], ()>;
type Events = iceoryx2::service::port_factory::event::PortFactory<ipc::Service>;

impl Iceoryx {
    fn messages(&self, name: &str) -> Result<Messages> {
        let service = self.node.service_builder(&ServiceName::new(name)?).publish_subscribe::<[u8]>();
        let service = service.enable_safe_overflow(false).subscriber_max_buffer_size(BUFFER);
        Ok(service.open_or_create()?)
    }

    fn events(&self, name: &str) -> Result<Events> {
        Ok(self.node.service_builder(&ServiceName::new(name)?).event().open_or_create()?)
    }
}

impl Tx for IceoryxTx {
    #[inline]
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        self.publisher.loan_slice_uninit(payload.len())?.write_from_slice(payload).send()?;
        if let Some(notifier) = &self.notifier {
            notifier.notify()?;
        }
        Ok(())
    }
}

impl Rx for IceoryxRx {
    #[inline]
    fn poll(&mut self, max: usize, mut f: impl FnMut(&[u8])) -> Result<usize> {
        for count in 0..max {
            match self.subscriber.receive()? {
                None => return Ok(count),
                Some(sample) => f(sample.payload()),
            }
        }
        Ok(max)
    }

    fn wait(&mut self) -> Result<()> {
        if let Some(listener) = &self.listener {
            listener.blocking_wait(|_| {})?;
        }
        Ok(())
    }
}
