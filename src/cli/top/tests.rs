use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::admin::{LiveAddress, Rates, Row};

fn row(endpoint: &str) -> Row {
    Row {
        endpoint: endpoint.to_owned(),
        consumer: String::new(),
        name: String::new(),
        account: String::new(),
        sessions: 1234,
        bytes: 5_600_000,
        rates: Some(Rates {
            opened: 2.5,
            refused: 0.0,
            bytes_to_upstream: 999.0,
            bytes_to_client: 12_345_678.0,
        }),
    }
}

fn address(n: usize, state: &str) -> LiveAddress {
    LiveAddress {
        upstream: "control-plane".to_owned(),
        address: format!("10.0.0.{n}:443"),
        state: state.to_owned(),
        why: if state == "usable" {
            String::new()
        } else {
            "3 failures in a row".to_owned()
        },
        priority: 0,
        sessions: 7,
        opened: 8,
        rtt_ms: Some(70.25),
        connect_ms: None,
    }
}

fn look(endpoints: usize, addresses: usize) -> Live {
    Live {
        version: "0.1.0".to_owned(),
        phase: "serving".to_owned(),
        uptime_seconds: 93_784,
        sessions: 1234,
        pending: 5,
        rates: row("").rates,
        endpoints_in_all: endpoints,
        endpoints_found: endpoints,
        endpoints: (0..endpoints)
            .map(|n| row(&format!("vpce-{n:017}")))
            .collect(),
        addresses_in_all: addresses,
        addresses: (0..addresses).map(|n| address(n, "usable")).collect(),
    }
}

fn printed(look: Live, width: u16) -> String {
    frame(look, &Asked::default(), Duration::from_secs(2), width)
}

/// A frame of a terminal of this size.
fn drawn(app: &mut App, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("memory");
    terminal
        .draw(|frame| draw::draw(frame, app))
        .expect("memory");
    terminal.backend().to_string()
}

#[test]
fn a_look_has_its_numbers_in_80_columns() {
    let text = printed(look(2, 1), 80);
    let expected = "\
tollgate 0.1.0  serving  1,234 sessions, 5 without a header  up 1d 2h
999 B/s to upstream  12.3 MB/s to client  2.5 opened/s  0 refused/s

endpoint (2)             sessions  to upstream    to client    opened   refused
vpce-00000000000000000      1,234      999 B/s    12.3 MB/s       2.5         0
vpce-00000000000000001      1,234      999 B/s    12.3 MB/s       2.5         0

upstream address (1)            state        sessions        rtt    connect
control-plane 10.0.0.0:443      usable              7    70.2 ms          -

";
    assert_eq!(text, expected, "\n{text}");
}

#[test]
fn a_wide_terminal_has_names_and_reasons() {
    let mut look = look(1, 1);
    look.endpoints[0].name = "billing agents".to_owned();
    look.endpoints[0].account = "finance".to_owned();
    look.addresses[0] = address(1, "ejected");
    let text = printed(look, 200);
    for part in [
        "billing agents",
        "finance",
        "5.60 MB",
        "ejected",
        "3 failures in a row",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn no_name_moves_the_cursor_or_leaves_its_column() {
    let mut look = look(1, 1);
    look.endpoints[0].endpoint = "\u{1b}[2J\u{202e}x\n".to_owned();
    look.endpoints[0].name = "\u{9b}2J".to_owned();
    look.addresses[0].upstream = "a\r\u{7}".to_owned();
    look.phase = "\u{1b}]0;x\u{7}".to_owned();
    let text = printed(look, 200);
    let wrong = text
        .chars()
        .find(|c| c.is_control() && *c != '\n' || *c == '\u{202e}');
    assert_eq!(wrong, None, "{text:?}");
    assert!(text.contains("\\u{1b}[2J"), "{text}");
}

#[test]
fn any_size_of_a_terminal_is_drawn_on() {
    for width in [1, 2, 20, 39, 80, 200] {
        for height in [1, 2, 3, 4, 5, 6, 7, 8, 24] {
            let mut app = App::new(Asked::default(), Duration::from_secs(2));
            app.told(Ok(look(50, 30)), Instant::now());
            for (addresses, help) in [(false, false), (true, false), (false, true)] {
                (app.addresses, app.help) = (addresses, help);
                app.offset = usize::MAX / 2;
                drawn(&mut app, width, height);
            }
        }
    }
    drawn(
        &mut App::new(Asked::default(), Duration::from_secs(2)),
        80,
        24,
    );
}

#[test]
fn the_end_of_a_list_is_reached_and_not_passed() {
    let mut app = App::new(Asked::default(), Duration::from_secs(2));
    app.told(Ok(look(50, 2)), Instant::now());
    app.offset = usize::MAX / 2;
    let text = drawn(&mut app, 80, 24);
    assert!(text.contains("vpce-00000000000000049"), "{text}");
    assert!(text.contains("10.0.0.1:443"), "both addresses: {text}");
    // Two lines at the top, two heads, two empty ones, two addresses, one of keys.
    assert_eq!((app.page, app.offset), (15, 35), "{text}");
}

#[test]
fn a_relay_that_has_gone_is_said_and_what_it_said_last_stays() {
    let mut app = App::new(Asked::default(), Duration::from_secs(2));
    app.told(Ok(look(1, 1)), Instant::now());
    app.told(Err("no relay answers at /x".to_owned()), Instant::now());
    let text = drawn(&mut app, 80, 24);
    assert!(
        text.contains("no answer for 0 s: no relay answers at /x"),
        "{text}"
    );
    assert!(text.contains("vpce-00000000000000000"), "{text}");
}
