//! `top`: who is busy now, live.
//!
//! Three threads: this one draws and hears keys, one asks the relay, so that one which does not answer stops nothing, and one hears signals. The terminal
//! is given back as it was, whichever way this ends.

mod app;
mod ask;
mod draw;
mod screen;

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event};

use super::places;
use super::relay::Relay;
use super::{Error, ExitCode};
use crate::admin::{Asked, Live, Sort, query};
use app::{App, Next};
use ask::Asking;
use screen::Screen;

/// Longest sleep of whoever draws: so late it notices what came from the relay, or a signal.
const NAP: Duration = Duration::from_millis(100);

/// How wide one frame is where nobody says.
const WIDTH: u16 = 132;

/// Show who is busy now, live: endpoints by what they move, sessions, what is opened and refused, and how upstream addresses do
///
/// Asks the relay that runs, through its admin socket; any user may. Press ? for the keys.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tollgate top\n  \
    tollgate top --sort refused --filter billing\n  \
    tollgate top --once --rows 10")]
pub(super) struct Args {
    #[command(flatten)]
    places: places::Args,
    /// What endpoints are ordered by
    #[arg(long, value_enum, default_value_t)]
    sort: Sort,
    /// Only endpoints in whose id, consumer, name or account this stands
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Most endpoints shown, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rows: u16,
    /// Seconds between two looks, 1 to 60
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=60))]
    interval: u8,
    /// Print one look as text and end; takes one interval, over which rates are told
    #[arg(long)]
    once: bool,
}

pub(super) fn run(arguments: &Args) -> Result<ExitCode, Error> {
    let places = arguments.places.find()?;
    let relay = Relay::at(&places)?;
    let asked = Asked {
        sort: arguments.sort,
        filter: arguments.filter.clone(),
        rows: arguments.rows.into(),
    };
    let interval = Duration::from_secs(arguments.interval.into());
    if arguments.once {
        return once(&relay, &asked, interval);
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let what = "top draws on a terminal, and this is none: --once prints one look as text";
        return Err(Error::Input(what.to_owned()));
    }
    // Who is not there at all is said as every command says it.
    let first: Live = relay.json("GET", &target(&asked))?;
    let mut app = App::new(asked, interval);
    app.told(Ok(first), Instant::now());
    live(app, relay).map_err(Error::Output)?;
    Ok(ExitCode::Ok)
}

/// What the relay is asked.
fn target(asked: &Asked) -> String {
    use clap::ValueEnum;
    let sort = asked.sort.to_possible_value();
    let pairs = [
        (
            "sort",
            sort.map_or(String::new(), |sort| sort.get_name().to_owned()),
        ),
        ("filter", asked.filter.clone()),
        ("rows", asked.rows.to_string()),
    ];
    format!("/top?{}", query::encode(&pairs))
}

fn once(relay: &Relay, asked: &Asked, interval: Duration) -> Result<ExitCode, Error> {
    let mut look: Live = relay.json("GET", &target(asked))?;
    if look.rates.is_none() {
        std::thread::sleep(interval);
        look = relay.json("GET", &target(asked))?;
    }
    let columns = std::env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok());
    let width = columns
        .filter(|columns| (20..=1000).contains(columns))
        .unwrap_or(WIDTH);
    let text = frame(look, asked, interval, width);
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(Error::Output)?;
    Ok(ExitCode::Ok)
}

/// A frame in which everything has room, as text.
fn frame(look: Live, asked: &Asked, interval: Duration, width: u16) -> String {
    let lines = look.endpoints.len() + look.addresses.len() + draw::AROUND;
    let height = u16::try_from(lines).unwrap_or(u16::MAX);
    let mut app = App::new(asked.clone(), interval);
    app.told(Ok(look), Instant::now());
    app.is_text();
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    let Ok(_) = terminal.draw(|frame| draw::draw(frame, &mut app));
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for line in buffer.content().chunks(usize::from(width)) {
        let symbols: String = line.iter().map(ratatui::buffer::Cell::symbol).collect();
        text += symbols.trim_end();
        text.push('\n');
    }
    text
}

/// Until it is told to end.
fn live(mut app: App, relay: Relay) -> io::Result<()> {
    let asking = Asking::begin(relay);
    let mut screen = Screen::take()?;
    loop {
        if let Some(answer) = asking.answer() {
            app.told(answer, Instant::now());
        }
        if let Some(asked) = app.wants_to_ask(Instant::now()) {
            asking.ask(asked);
        }
        screen.draw(&mut app)?;
        if screen.is_over() {
            return Ok(());
        }
        if !event::poll(NAP)? {
            continue;
        }
        // All that waits, before it is drawn again: a key that is held is many.
        while event::poll(Duration::ZERO)? {
            match event::read()? {
                Event::Key(key) => match app.key(key) {
                    Next::Go => {}
                    Next::Pause => screen.pause()?,
                    Next::End => return Ok(()),
                },
                Event::Resize(..) => screen.resized()?,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
