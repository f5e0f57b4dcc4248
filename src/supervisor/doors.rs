//! The addresses that are listened on, over all configurations of a process: which are open, which have to be bound, and who may come in.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use super::{SupervisorError, bind_error};
use crate::activation::{Activated, Passed};
use crate::admin::Room;
use crate::config::Config;
use crate::listener::{bind, claim};
use crate::places::Places;
use crate::worker::{Door, Gate};

/// How long an address that was given up may still be taken by our own sockets: they take what waits first.
const CLOSING: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(super) struct Doors {
    workers: usize,
    /// Connections that there are descriptors for, once that is known.
    fit: Option<usize>,
    open: Vec<Open>,
    rooms: Vec<Room>,
    /// Given up lately.
    closing: Vec<(SocketAddr, Instant)>,
    next: u64,
}

/// An address that is listened on.
#[derive(Debug, Clone)]
struct Open {
    id: u64,
    /// As configured; the listener's name tells those apart whose port the kernel chooses.
    configured: (SocketAddr, Option<Arc<str>>),
    at: SocketAddr,
}

/// What a configuration asks for: everything new is bound, and nothing has changed.
#[derive(Debug)]
pub(super) struct Plan {
    /// For each worker, in the order of the configuration.
    pub(super) doors: Vec<Vec<Door>>,
    open: Vec<Open>,
    rooms: Vec<Room>,
    /// Numbers that places are to have.
    bounds: Vec<(Arc<Places>, usize)>,
    next: u64,
}

impl Doors {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            workers,
            fit: None,
            open: Vec::new(),
            rooms: Vec::new(),
            closing: Vec::new(),
            next: 0,
        }
    }

    /// Binds what is not open yet and was not `passed`, for every worker.
    ///
    /// # Errors
    /// An address cannot be had: then everything is as before.
    pub(super) fn plan(
        &self,
        config: &Config,
        passed: &mut Passed,
    ) -> Result<Plan, SupervisorError> {
        let mut plan = Plan {
            doors: (0..self.workers).map(|_| Vec::new()).collect(),
            open: Vec::new(),
            rooms: Vec::new(),
            bounds: Vec::new(),
            next: self.next,
        };
        for listener in &config.listeners {
            let limits = config.client_leg(listener);
            let what = || format!("listener {:?}", &*listener.name);
            let refused = |address: SocketAddr| move |error| bind_error(address, what(), error);
            let before = self
                .rooms
                .iter()
                .find(|room| room.listener == listener.name);
            let (pending, sessions) = match before {
                Some(room) => (room.pending.clone(), room.sessions.clone()),
                None => (Places::new(0), Places::new(0)),
            };
            plan.bounds.push((sessions.clone(), listener.max_sessions));
            plan.bounds
                .push((pending.clone(), self.pending(listener.max_pending)));
            let mut gates: Vec<Vec<Gate>> = (0..self.workers).map(|_| Vec::new()).collect();
            let mut addresses = Vec::new();
            for address in &listener.bind {
                let chosen = (address.port() == 0).then(|| listener.name.clone());
                let configured = (*address, chosen);
                let mut open = self.open.iter();
                if let Some(open) = open.find(|open| open.configured == configured) {
                    addresses.push(open.at);
                    plan.open.push(open.clone());
                    for gates in &mut gates {
                        gates.push(Gate {
                            id: open.id,
                            sockets: None,
                            passed: false,
                        });
                    }
                    continue;
                }
                let activated = passed.sockets(*address, &limits, &listener.socket);
                let activated = activated.map_err(refused(*address))?;
                let at = match activated.is_some() || self.is_ours(*address) {
                    true => *address,
                    false => claim(*address).map_err(refused(*address))?,
                };
                let id = plan.next;
                plan.next += 1;
                let bind = || bind(at, &limits, &listener.socket);
                let was_passed = activated.is_some();
                let each = match activated {
                    Some(activated) => shared_out(activated, self.workers, bind),
                    None => (0..self.workers)
                        .map(|_| bind().map(|socket| vec![socket]))
                        .collect::<Result<_, _>>()
                        .map_err(refused(at))?,
                };
                for (gates, sockets) in gates.iter_mut().zip(each) {
                    gates.push(Gate {
                        id,
                        sockets: Some(sockets),
                        passed: was_passed,
                    });
                }
                addresses.push(at);
                plan.open.push(Open { id, configured, at });
            }
            for (doors, gates) in plan.doors.iter_mut().zip(gates) {
                let (pending, sessions) = (pending.clone(), sessions.clone());
                doors.push(Door {
                    gates,
                    pending,
                    sessions,
                });
            }
            plan.rooms.push(Room {
                listener: listener.name.clone(),
                addresses,
                pending,
                sessions,
            });
        }
        Ok(plan)
    }

    /// What was planned is so from now on.
    pub(super) fn adopt(&mut self, plan: Plan) {
        let now = Instant::now();
        self.closing.retain(|(_, until)| *until > now);
        for open in &self.open {
            if !plan.open.iter().any(|stays| stays.id == open.id) {
                info!(address = %open.at, "listened on no longer");
                self.closing.push((open.at, now + CLOSING));
            }
        }
        for open in &plan.open {
            if !self.open.iter().any(|before| before.id == open.id) {
                let of = |room: &&Room| room.addresses.contains(&open.at);
                let room = plan.rooms.iter().find(of);
                let listener = room.map(|room| &*room.listener);
                info!(listener, address = %open.at, "listening");
            }
        }
        for (places, most) in plan.bounds {
            places.set_most(most);
        }
        (self.open, self.rooms, self.next) = (plan.open, plan.rooms, plan.next);
    }

    pub(super) fn rooms(&self) -> Vec<Room> {
        self.rooms.clone()
    }

    /// So many connections fit into the process.
    pub(super) fn set_fit(&mut self, fit: usize) {
        self.fit = Some(fit);
        for room in &self.rooms {
            room.pending.set_most(self.pending(room.pending.most()));
        }
    }

    /// Where only so many connections fit into the process, those that say nothing may have half of them.
    fn pending(&self, most: usize) -> usize {
        self.fit.map_or(most, |fit| most.min((fit / 2).max(1)))
    }

    /// Whether an address is in use by sockets of ours, which let another one join them: no one else's can be there.
    fn is_ours(&self, address: SocketAddr) -> bool {
        let open = self.open.iter().map(|open| &open.at);
        let closing = self.closing.iter().map(|(at, _)| at);
        open.chain(closing).any(|ours| overlap(*ours, address))
    }
}

/// Every socket that was passed has a worker that accepts there, and every worker one, if there can be one for it.
fn shared_out(
    activated: Activated,
    workers: usize,
    bind: impl Fn() -> io::Result<TcpListener>,
) -> Vec<Vec<TcpListener>> {
    let mut each: Vec<Vec<TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
    for (nth, socket) in activated.sockets.into_iter().enumerate() {
        each[nth % workers].push(socket);
    }
    if activated.is_shared {
        for none in each.iter_mut().filter(|sockets| sockets.is_empty()) {
            // It is somebody else's, who lets nobody join: then others accept for this worker.
            none.extend(bind().ok());
        }
    }
    each
}

/// Whether sockets of two addresses are in each other's way.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_in_the_way_of_every_address_of_its_port() {
        let overlap = |a: &str, b: &str| overlap(a.parse().unwrap(), b.parse().unwrap());
        assert!(overlap("0.0.0.0:1", "10.0.0.1:1") && overlap("10.0.0.1:1", "[::]:1"));
        assert!(!overlap("0.0.0.0:1", "10.0.0.1:2") && !overlap("10.0.0.2:1", "10.0.0.1:1"));
    }

    fn config(listeners: &str) -> Config {
        let text = format!("{listeners}\n[[upstream]]\nname = \"cp\"\ntargets = [\"10.0.0.1:1\"]");
        Config::from_str(&text, "test").unwrap()
    }

    fn listener(name: &str, bind: &str, more: &str) -> String {
        format!(
            "[[listener]]\nname = \"{name}\"\nbind = \"{bind}\"\nproxy_protocol = \"off\"\nupstream = \"cp\"\n{more}\n"
        )
    }

    #[test]
    fn what_is_open_stays_open_whatever_it_is_called() {
        let mut doors = Doors::new(2);
        let free = claim("127.0.0.1:0".parse().unwrap()).unwrap().to_string();
        let plan = doors
            .plan(&config(&listener("a", &free, "")), &mut Passed::default())
            .unwrap();
        assert!(
            plan.doors
                .iter()
                .all(|doors| doors[0].gates[0].sockets.is_some())
        );
        let held = plan.doors.iter().flatten().flat_map(|door| &door.gates);
        let held: Vec<_> = held.map(|gate| gate.id).collect();
        assert_eq!(held, [0, 0], "the same number on each worker");
        doors.adopt(plan);
        let plan = doors
            .plan(
                &config(&listener("b", &free, "max_sessions = 7")),
                &mut Passed::default(),
            )
            .unwrap();
        assert!(
            plan.doors
                .iter()
                .all(|doors| doors[0].gates[0].sockets.is_none())
        );
        doors.adopt(plan);
        assert_eq!(doors.rooms()[0].sessions.most(), 7);
    }

    #[test]
    fn what_cannot_be_bound_changes_nothing() {
        let mut doors = Doors::new(1);
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = taken.local_addr().unwrap().to_string();
        let free = claim("127.0.0.1:0".parse().unwrap()).unwrap().to_string();
        let one = listener("a", &free, "max_sessions = 5");
        doors.adopt(doors.plan(&config(&one), &mut Passed::default()).unwrap());
        let both = listener("a", &free, "max_sessions = 9") + &listener("b", &taken, "");
        assert!(doors.plan(&config(&both), &mut Passed::default()).is_err());
        assert_eq!(doors.rooms()[0].sessions.most(), 5);
    }
}
