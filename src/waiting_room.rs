//! Connections without a whole header, of one listener on one worker.
//!
//! All peers are NLB nodes, so a flood of silent connections cannot be held off per peer: their number is bounded over all
//! workers, and when the room is full the one that has been silent longest makes way.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::places::{Places, Taken};

/// See the module.
#[derive(Debug)]
pub struct WaitingRoom {
    /// `max_pending`, shared by the listener's workers.
    places: Arc<Places>,
    /// Not a byte yet, oldest first.
    silent: RefCell<BTreeMap<u64, Place>>,
    /// Part of a header, oldest first.
    begun: RefCell<BTreeMap<u64, Place>>,
    next: Cell<u64>,
}

#[derive(Debug)]
struct Place {
    place: Taken,
    shown_out: Rc<Notify>,
}

/// A connection's place; free again when this is dropped.
#[derive(Debug)]
pub struct Ticket {
    room: Rc<WaitingRoom>,
    number: u64,
    shown_out: Rc<Notify>,
}

impl WaitingRoom {
    /// A room with this worker's claim to the listener's places.
    #[must_use]
    pub fn new(places: Arc<Places>) -> Self {
        let (silent, begun) = Default::default();
        Self {
            places,
            silent,
            begun,
            next: Cell::new(0),
        }
    }

    /// Takes a place for a new connection, from whoever has been silent longest where none is free. `None` when all are with
    /// other workers.
    #[must_use]
    pub fn enter(self: &Rc<Self>) -> Option<Ticket> {
        let place = match self.places.take() {
            Some(place) => place,
            None => self.show_out()?,
        };
        let number = self.next.replace(self.next.get() + 1);
        let shown_out = Rc::new(Notify::new());
        let place = Place {
            place,
            shown_out: shown_out.clone(),
        };
        self.silent.borrow_mut().insert(number, place);
        Some(Ticket {
            room: self.clone(),
            number,
            shown_out,
        })
    }

    /// Whether those who enter take these places.
    #[must_use]
    pub fn is_of(&self, places: &Arc<Places>) -> bool {
        Arc::ptr_eq(&self.places, places)
    }

    /// Connections in the room.
    #[must_use]
    pub fn len(&self) -> usize {
        self.silent.borrow().len() + self.begun.borrow().len()
    }

    /// Whether the next to enter takes the place of another.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.places.is_full()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn show_out(&self) -> Option<Taken> {
        let oldest = self.silent.borrow_mut().pop_first();
        let (_, place) = oldest.or_else(|| self.begun.borrow_mut().pop_first())?;
        place.shown_out.notify_one();
        Some(place.place)
    }
}

impl Ticket {
    /// The first byte came: others make way before this connection does.
    pub fn heard(&self) {
        if let Some(place) = self.room.silent.borrow_mut().remove(&self.number) {
            self.room.begun.borrow_mut().insert(self.number, place);
        }
    }

    /// Resolves when the connection has to make way.
    pub async fn shown_out(&self) {
        self.shown_out.notified().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let silent = self.room.silent.borrow_mut().remove(&self.number);
        if silent.is_none() {
            self.room.begun.borrow_mut().remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_shown_out(ticket: &Ticket) -> bool {
        use std::future::Future;
        let future = std::pin::pin!(ticket.shown_out());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        future.poll(&mut context).is_ready()
    }

    #[test]
    fn the_longest_silent_makes_way_and_whoever_spoke_does_not() {
        let room = Rc::new(WaitingRoom::new(Places::new(3)));
        let [first, second, third] = [(); 3].map(|()| room.enter().unwrap());
        first.heard();
        let fourth = room.enter().unwrap();
        assert_eq!(
            [&first, &second, &third, &fourth].map(is_shown_out),
            [false, true, false, false]
        );
        drop(second);
        assert_eq!(room.len(), 3, "its place was taken, not freed twice");
        assert!(room.places.is_full());
    }

    #[test]
    fn where_all_spoke_the_oldest_makes_way() {
        let room = Rc::new(WaitingRoom::new(Places::new(2)));
        let [first, second] = [(); 2].map(|()| room.enter().unwrap());
        first.heard();
        second.heard();
        let _third = room.enter().unwrap();
        assert!(is_shown_out(&first) && !is_shown_out(&second));
    }

    #[test]
    fn places_held_by_other_workers_are_not_taken() {
        let places = Places::new(1);
        let room = Rc::new(WaitingRoom::new(places.clone()));
        let elsewhere = places.take().unwrap();
        assert!(room.enter().is_none());
        drop(elsewhere);
        assert!(room.enter().is_some() && room.is_empty());
    }
}
