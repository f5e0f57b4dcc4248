use super::*;
use std::io::Write;
use std::os::unix::net::UnixStream;

const SOON: Duration = Duration::from_secs(30); // longer than any test may take: nothing here waits for it

fn reactor() -> Rc<Reactor> {
    Rc::new(Reactor::new(None).unwrap())
}

/// Drives `future` as a worker drives its tasks.
fn block_on<T>(reactor: &Reactor, future: impl Future<Output = T>) -> T {
    let (mut future, waker) = (pin!(future), reactor.waker());
    let mut events = Vec::with_capacity(BATCH);
    waker.wake_by_ref();
    loop {
        if reactor.was_woken()
            && let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker))
        {
            return value;
        }
        let now = Instant::now();
        reactor
            .wait(&mut events, false, now, Some(now + SOON))
            .unwrap();
        for event in &events {
            assert_eq!(reactor.dispatch(event), None);
        }
        reactor.wake_sleepers(Instant::now());
    }
}

fn pair(reactor: &Rc<Reactor>) -> (Watched, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (Watched::new(reactor, ours.into()).unwrap(), theirs)
}

#[test]
fn another_thread_ends_the_sleep() {
    let reactor = reactor();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let other = std::thread::spawn(move || sender.send(7).unwrap());
    assert_eq!(block_on(&reactor, receiver).unwrap(), 7);
    other.join().unwrap();
}

#[test]
fn a_byte_wakes_its_task_once() {
    let reactor = reactor();
    let (ours, mut theirs) = pair(&reactor);
    theirs.write_all(b"x").unwrap();
    let seen = block_on(&reactor, ours.announced(EventFlags::IN));
    assert!(seen.contains(EventFlags::IN) && !seen.intersects(END));
    ours.drained();
    drop(theirs);
    let seen = block_on(&reactor, ours.announced(EventFlags::IN));
    assert!(
        seen.intersects(END),
        "the byte was used up, the end was not"
    );
}

#[test]
fn what_was_announced_goes_along_when_a_socket_is_handed_over() {
    let reactor = reactor();
    let (ours, mut theirs) = pair(&reactor);
    block_on(&reactor, ours.announced(EventFlags::OUT));
    theirs.write_all(b"x").unwrap();
    block_on(&reactor, ours.announced(EventFlags::IN));
    assert!(ours.hand_over(9).contains(EventFlags::IN));
    theirs.write_all(b"y").unwrap();
    let mut events = Vec::with_capacity(BATCH);
    reactor
        .wait(&mut events, false, Instant::now(), None)
        .unwrap();
    let tokens: Vec<_> = events.iter().map(|event| reactor.dispatch(event)).collect();
    assert_eq!(tokens, [Some(9)]);
}

#[test]
fn a_socket_that_is_not_listened_to_announces_its_end_and_nothing_before() {
    let reactor = reactor();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut theirs = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let ours = listener.accept().unwrap().0;
    ours.set_nonblocking(true).unwrap();
    let ours = Watched::new(&reactor, ours.into()).unwrap();
    let mut events = Vec::with_capacity(BATCH);
    let mut look = || {
        reactor.take(&mut events, Some(Duration::ZERO)).unwrap();
        let flags = events
            .iter()
            .filter(|event| event.data.u64() != BELL)
            .map(|event| event.flags);
        flags.collect::<Vec<_>>()
    };
    look();
    ours.listen(false).unwrap();
    look(); // what there is besides
    theirs.write_all(b"x").unwrap();
    assert_eq!(look(), []);
    ours.listen(true).unwrap();
    assert!(look()[0].contains(EventFlags::IN), "what came meanwhile");
    ours.listen(false).unwrap();
    look();
    theirs.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(look()[0].contains(EventFlags::RDHUP));
}

#[test]
fn a_closed_socket_leaves_nothing_behind() {
    let reactor = reactor();
    let (ours, _theirs) = pair(&reactor);
    drop(ours);
    assert!(reactor.owners.borrow().is_empty());
}

#[test]
fn a_timeout_ends_the_wait_and_leaves_nothing_behind() {
    let reactor = reactor();
    let never = std::future::pending::<()>();
    let soon = Instant::now() + Duration::from_millis(3);
    assert_eq!(block_on(&reactor, reactor.timeout_at(soon, never)), None);
    assert!(Instant::now() >= soon && reactor.sleepers.borrow().is_empty());
    let ready = async { 5 };
    let late = Instant::now() + SOON;
    assert_eq!(block_on(&reactor, reactor.timeout_at(late, ready)), Some(5));
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let other = std::thread::spawn(move || sender.send(1).unwrap());
    assert!(block_on(&reactor, reactor.timeout_at(late, receiver)).is_some());
    assert!(reactor.sleepers.borrow().is_empty());
    other.join().unwrap();
}

#[test]
fn spinning_finds_what_comes_and_sleeps_when_nothing_does() {
    let reactor = Rc::new(Reactor::new(Some(Duration::from_millis(1))).unwrap());
    let soon = Instant::now() + Duration::from_millis(3);
    block_on(&reactor, reactor.sleep_until(soon));
    let (ours, mut theirs) = pair(&reactor);
    theirs.write_all(b"x").unwrap();
    block_on(&reactor, ours.announced(EventFlags::IN));
}
