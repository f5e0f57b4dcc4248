//! The end of the story: three who counted by themselves, side by side, and whether they agree.

use std::fmt;

use crate::{
    control_plane::Seen,
    grouped,
    harness::relay::Metrics,
    say,
    world::{CONSUMERS, Consumer, World},
};

/// The reason of an orderly close; with any other, what was on its way may be lost.
const IN_ORDER: &str = "completed";

/// What one direction of one endpoint comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// All three counted the same.
    Equal,
    /// Connections were cut, and the relay's number lies between what was sent and what arrived, as it must.
    Cut { lost: u64 },
    /// They do not agree.
    Differs { by: u64 },
}

impl Verdict {
    fn of(sent: u64, relayed: u64, received: u64, cut: bool) -> Self {
        if sent == relayed && relayed == received {
            Self::Equal
        } else if cut && received <= relayed && relayed <= sent {
            Self::Cut {
                lost: sent - received,
            }
        } else {
            let most = sent.max(relayed).max(received);
            let least = sent.min(relayed).min(received);
            Self::Differs { by: most - least }
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Equal => f.write_str("equal"),
            Self::Cut { lost } => write!(f, "in bounds, {} lost", grouped(*lost)),
            Self::Differs { by } => write!(f, "DIFFERS by {}", grouped(*by)),
        }
    }
}

/// Prints the books; true when they are as they must be.
pub(crate) fn settle(world: &World, metrics: &Metrics) -> bool {
    let seen = world
        .control_plane_books
        .look(|books| [0, 1].map(|index| books.of(CONSUMERS[index].name)));
    let mut right = true;
    if (0..CONSUMERS.len()).any(|index| world.was_cut(index)) {
        say("   Parts were killed, and what was on its way then is lost. The relay's number");
        say("   must lie between what was sent and what arrived.");
    }
    for (index, consumer) in CONSUMERS.iter().enumerate() {
        right &= endpoint(world, index, consumer, seen[index], metrics);
    }
    right
}

fn endpoint(
    world: &World,
    index: usize,
    consumer: &Consumer,
    seen: Seen,
    metrics: &Metrics,
) -> bool {
    let labels = [("endpoint", consumer.endpoint)];
    let opened = metrics.sum("tollgate_connections_opened_total", &labels);
    let closed = metrics.sum("tollgate_connections_closed_total", &labels);
    let in_order = metrics.sum(
        "tollgate_connections_closed_total",
        &[labels[0], ("reason", IN_ORDER)],
    );
    let booked = |direction| {
        let labels = [labels[0], ("direction", direction)];
        metrics.sum("tollgate_bytes_total", &labels)
    };
    let counts = &world.counts[index];
    // A push that failed may have been cut on the balancer's or the agent's side of the relay alone.
    let cut = in_order != closed || counts.failures() > 0 || world.was_cut(index);
    let rows = [
        (
            "to_upstream",
            [counts.bytes.sent(), booked("to_upstream"), seen.received],
        ),
        (
            "to_client",
            [seen.sent, booked("to_client"), counts.bytes.received()],
        ),
    ];
    say("");
    say(&format!(
        "  {}, {}: {} pushes in {} connections,",
        consumer.endpoint,
        consumer.name,
        grouped(counts.pushes()),
        grouped(opened),
    ));
    say(&format!("  {in_order} of {closed} closed in order"));
    say(&format!(
        "  {:<12}{:>14}{:>14}{:>14}",
        "", "agents", "relay", "control plane"
    ));
    let mut right = opened == closed;
    if !right {
        say(&format!(
            "  WRONG: {opened} connections opened, {closed} closed, none is open"
        ));
    }
    for (direction, [sent, relayed, received]) in rows {
        let verdict = Verdict::of(sent, relayed, received, cut);
        let (agents, control_plane) = if direction == "to_upstream" {
            (sent, received)
        } else {
            (received, sent)
        };
        let [agents, relay, control_plane] = [agents, relayed, control_plane].map(grouped);
        say(&format!(
            "  {direction:<12}{agents:>14}{relay:>14}{control_plane:>14}   {verdict}"
        ));
        right &= !matches!(verdict, Verdict::Differs { .. });
    }
    if !cut && counts.connections() != opened {
        say(&format!(
            "  WRONG: the agents made {} connections",
            counts.connections()
        ));
        right = false;
    }
    right
}
