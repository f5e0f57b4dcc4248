//! `POST /reload`, `/drain` and `/undrain` on the admin socket.

use hyper::StatusCode;

use super::View;
use super::http::{Json, Text};
use super::socket::{Answered, nonsense, pairs};
use crate::orders::{Declined, DeclinedKind, Order};

pub(super) const RELOAD: &str = "/reload";
pub(super) const DRAIN: &str = "/drain";
pub(super) const UNDRAIN: &str = "/undrain";

/// Gives the order that `path` is, for one who may, and tells what became of it.
pub(super) async fn carry_out(
    view: &View,
    trusted: bool,
    path: &str,
    query: Option<&str>,
) -> Answered {
    if !trusted {
        let why = "only root and the relay's own user may change what the relay does\n";
        return Err(Text(StatusCode::FORBIDDEN, why.to_owned()));
    }
    let order = order(path, query)?;
    match view.orders.give(order).await {
        Ok(done) => Ok(Json(done).into()),
        Err(Declined { kind, why }) => Err(Text(status(kind), why + "\n")),
    }
}

fn order(path: &str, query: Option<&str>) -> Result<Order, Text> {
    let mut now = false;
    for (key, value) in pairs(query)? {
        match (path, &*key) {
            (DRAIN, "now") => now = !matches!(&*value, "0" | "false"),
            (DRAIN, _) => return Err(nonsense("known here: now=1")),
            _ => {
                return Err(nonsense(
                    "nothing may be written behind a question mark here",
                ));
            }
        }
    }
    Ok(match path {
        DRAIN => Order::Drain { now },
        UNDRAIN => Order::Undrain,
        _ => Order::Reload,
    })
}

/// What the command line makes its exit code of.
fn status(kind: DeclinedKind) -> StatusCode {
    match kind {
        DeclinedKind::Configuration => StatusCode::UNPROCESSABLE_ENTITY,
        DeclinedKind::Missing => StatusCode::FAILED_DEPENDENCY,
        DeclinedKind::Permission => StatusCode::FORBIDDEN,
        DeclinedKind::NotNow => StatusCode::CONFLICT,
        DeclinedKind::Failed => StatusCode::SERVICE_UNAVAILABLE,
    }
}
