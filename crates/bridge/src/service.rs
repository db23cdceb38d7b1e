//! What both programs are as services: signals end them, systemd is told how they are, figures are served.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

use crate::fleet::Monitors;
use crate::state::Stop;
use crate::{Failure, Result, metrics};

/// How often systemd is told how all is.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Runs a command of a program, in a runtime of the current thread. Why it failed is said on stderr.
pub fn run_program(name: &str, command: impl Future<Output = Result<ExitCode>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{name}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(command).unwrap_or_else(|failure| {
        eprintln!("{name}: {failure}");
        ExitCode::from(failure.exit_code())
    });
    // Who was told to stop does not wait for what is being computed or written on other threads: nobody needs it.
    runtime.shutdown_background();
    code
}

/// Runs what is at work in this process, until it ends: SIGTERM and SIGINT tell it to. In a runtime of the current
/// thread; `metrics`: where figures are served.
///
/// # Errors
/// Those of the work; [`Failure::Config`] if the address can't be used.
pub async fn run<F>(metrics: Option<SocketAddr>, work: impl FnOnce(Stop, Monitors) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let (stop, monitors) = (Stop::default(), Monitors::default());
    let failed = |error| Failure::Config(format!("signals: {error}"));
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    let on_signal = async {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        stop.set();
        notify(NotifyState::Stopping);
        std::future::pending::<()>().await;
    };
    let served = async {
        match metrics {
            Some(address) => metrics::serve(address, monitors.clone()).await,
            None => std::future::pending().await,
        }
    };
    let work = async {
        // That the other side can't be reached does not keep the service from starting.
        notify(NotifyState::Ready);
        work(stop.clone(), monitors.clone()).await
    };
    let all = async {
        tokio::select! {
            worked = work => worked,
            served = served => served,
            () = on_signal => Ok(()),
            () = watchdog(&monitors) => Ok(()),
            () = tell_status(&monitors) => Ok(()),
        }
    };
    tokio::task::LocalSet::new().run_until(all).await
}

/// Tells systemd that all is well, for as long as it is.
async fn watchdog(monitors: &Monitors) {
    let Some(every) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    loop {
        if monitors.are_healthy() {
            notify(NotifyState::Watchdog);
        }
        tokio::time::sleep(every / 2).await;
    }
}

/// Tells systemd what `systemctl status` shows.
async fn tell_status(monitors: &Monitors) {
    let mut told = String::new();
    loop {
        let status = monitors.summary();
        if status != told {
            notify(NotifyState::Status(&status));
            told = status;
        }
        tokio::time::sleep(TELL_EVERY).await;
    }
}

/// Without systemd, there is nobody to tell.
fn notify(state: NotifyState<'_>) {
    let _ = sd_notify::notify(&[state]);
}
