//! Health checks of one target.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    net::TcpStream,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{CheckBy, HealthCheck, Shared, header};
use crate::harness::stream;

/// Checks a target again and again.
pub(super) async fn watch(target: SocketAddr, shared: Arc<Shared>) {
    let Some(check) = shared.config.health.clone() else {
        return;
    };
    let mut turns = interval(check.interval);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        let passed = matches!(
            timeout(check.timeout, ask(target, &check)).await,
            Ok(Ok(true))
        );
        note(target, passed, &check, &shared);
    }
}

fn note(address: SocketAddr, passed: bool, check: &HealthCheck, shared: &Shared) {
    shared.books.update(|books| {
        let Some(target) = books.targets.get_mut(&address) else {
            return;
        };
        if passed {
            target.passed += 1;
        } else {
            target.failed += 1;
        }
        target.row = match target.row {
            (before, length) if before == passed => (passed, length.saturating_add(1)),
            _ => (passed, 1),
        };
        if passed && target.row.1 >= check.healthy_after {
            target.healthy = true;
        }
        if !passed && target.row.1 >= check.unhealthy_after && target.healthy {
            target.healthy = false;
            if shared.config.reset_when_unhealthy {
                target.reset.cancel();
                target.reset = shared.stop.child_token();
            }
        }
    });
}

async fn ask(target: SocketAddr, check: &HealthCheck) -> io::Result<bool> {
    let mut address = target;
    if let Some(port) = check.port {
        address.set_port(port);
    }
    let stream = TcpStream::connect(address).await?;
    let CheckBy::Http(path) = &check.by else {
        return Ok(true);
    };
    let mut request = if check.header {
        header::health_check()
    } else {
        Vec::new()
    };
    request.extend(
        format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nUser-Agent: ELB-HealthChecker/2.0\r\n\r\n"
        )
        .as_bytes(),
    );
    stream::write(&stream, &request, |_| ()).await?;
    let mut answer = Vec::new();
    while !answer.windows(2).any(|two| two == b"\r\n") && answer.len() < 1024 {
        let read = stream::read(&stream, |bytes| answer.extend_from_slice(bytes));
        if read.await?.is_none() {
            break;
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    let code = answer
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1)?.get(..3)?.parse::<u16>().ok());
    Ok(code.is_some_and(|code| (200..400).contains(&code)))
}
