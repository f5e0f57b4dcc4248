//! What `top` knows, and what keys do to it. No terminal here.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::ask::Answer;
use crate::admin::{Asked, Live, Sort};

/// Longest filter.
const LONGEST: usize = 100;

/// What is to be done after a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Go on.
    Go,
    /// Give the shell its turn.
    Pause,
    /// End.
    End,
}

/// What is shown, and how.
#[derive(Debug)]
pub(super) struct App {
    pub(super) asked: Asked,
    pub(super) interval: Duration,
    /// The last look.
    pub(super) look: Option<Live>,
    /// Why there is none since, and since when.
    pub(super) trouble: Option<(String, Instant)>,
    /// Nothing is asked.
    pub(super) still: bool,
    pub(super) help: bool,
    /// The filter is being written.
    pub(super) writing: bool,
    /// Addresses have most of the room.
    pub(super) addresses: bool,
    /// First row that is shown, of the table that has most of the room.
    pub(super) offset: usize,
    /// Rows that were shown at once when it was last drawn.
    pub(super) page: usize,
    /// It is printed, and has no keys.
    pub(super) text: bool,
    /// When the next question is due; `None` while one is under way.
    due: Option<Instant>,
    /// What was asked is not what is wanted now.
    changed: bool,
}

impl App {
    pub(super) fn new(asked: Asked, interval: Duration) -> Self {
        Self {
            asked,
            interval,
            look: None,
            trouble: None,
            still: false,
            help: false,
            writing: false,
            addresses: false,
            offset: 0,
            page: 1,
            text: false,
            due: None,
            changed: false,
        }
    }

    pub(super) fn is_text(&mut self) {
        self.text = true;
    }

    /// What the relay said at `now`.
    pub(super) fn told(&mut self, answer: Answer, now: Instant) {
        // The second look is wanted as soon as it tells rates.
        let first = self.look.is_none();
        match answer {
            Ok(look) => {
                let soon = first && look.rates.is_none();
                self.look = Some(look);
                self.trouble = None;
                let wait = if soon {
                    Duration::from_secs(1)
                } else {
                    self.interval
                };
                self.due = Some(now + wait);
            }
            Err(why) => {
                let since = self.trouble.take().map_or(now, |(_, since)| since);
                self.trouble = Some((why, since));
                self.due = Some(now + self.interval);
            }
        }
    }

    /// What is to be asked now.
    pub(super) fn wants_to_ask(&mut self, now: Instant) -> Option<Asked> {
        let due = self.due?;
        let wanted = self.changed || now >= due && !self.still;
        wanted.then(|| {
            self.due = None;
            self.changed = false;
            self.asked.clone()
        })
    }

    pub(super) fn key(&mut self, key: KeyEvent) -> Next {
        if key.kind == KeyEventKind::Release {
            return Next::Go;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Next::End,
                KeyCode::Char('z') => Next::Pause,
                KeyCode::Char('u') if self.writing => {
                    self.filter(String::new());
                    Next::Go
                }
                _ => Next::Go,
            };
        }
        if self.writing {
            self.write(key.code);
            return Next::Go;
        }
        if self.help && key.code != KeyCode::Char('q') {
            self.help = false;
            return Next::Go;
        }
        match key.code {
            KeyCode::Char('q') => return Next::End,
            KeyCode::Esc if self.asked.filter.is_empty() => return Next::End,
            KeyCode::Esc => self.filter(String::new()),
            KeyCode::Char('?' | 'h') => self.help = true,
            KeyCode::Char('/' | 'f') => self.writing = true,
            KeyCode::Char('s') => self.sort(1),
            KeyCode::Char('S') => self.sort(Sort::value_variants().len() - 1),
            KeyCode::Char(' ' | 'p') => self.still = !self.still,
            KeyCode::Char('+') => self.pace(self.interval + Duration::from_secs(1)),
            KeyCode::Char('-') => {
                self.pace(self.interval.saturating_sub(Duration::from_secs(1)));
            }
            KeyCode::Tab => {
                self.addresses = !self.addresses;
                self.offset = 0;
            }
            KeyCode::Char(digit @ '1'..='9') => {
                let n = digit.to_digit(10).unwrap_or(1) as usize - 1;
                if let Some(sort) = Sort::value_variants().get(n) {
                    self.order(*sort);
                }
            }
            KeyCode::Up | KeyCode::Char('k') => self.offset = self.offset.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.offset += 1,
            KeyCode::PageUp => self.offset = self.offset.saturating_sub(self.page),
            KeyCode::PageDown => self.offset += self.page,
            KeyCode::Home => self.offset = 0,
            KeyCode::End => self.offset = usize::MAX / 2, // drawing knows where the end is
            _ => {}
        }
        Next::Go
    }

    fn write(&mut self, code: KeyCode) {
        let mut filter = self.asked.filter.clone();
        match code {
            KeyCode::Enter => {
                self.writing = false;
                return;
            }
            KeyCode::Esc => {
                self.writing = false;
                filter.clear();
            }
            KeyCode::Backspace => {
                filter.pop();
            }
            KeyCode::Char(c) if filter.len() < LONGEST && !c.is_control() => filter.push(c),
            _ => return,
        }
        self.filter(filter);
    }

    fn filter(&mut self, filter: String) {
        if filter != self.asked.filter {
            self.asked.filter = filter;
            self.again();
        }
    }

    fn sort(&mut self, further: usize) {
        let all = Sort::value_variants();
        let now = all.iter().position(|sort| *sort == self.asked.sort);
        self.order(all[(now.unwrap_or(0) + further) % all.len()]);
    }

    fn order(&mut self, sort: Sort) {
        self.asked.sort = sort;
        self.again();
    }

    fn pace(&mut self, interval: Duration) {
        self.interval = interval.clamp(Duration::from_secs(1), Duration::from_secs(60));
    }

    /// From the beginning, and at once.
    fn again(&mut self) {
        self.offset = 0;
        self.changed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> App {
        App::new(Asked::default(), Duration::from_secs(2))
    }

    fn press(app: &mut App, code: KeyCode) -> Next {
        app.key(KeyEvent::new(code, KeyModifiers::NONE))
    }

    fn write(app: &mut App, text: &str) {
        for c in text.chars() {
            assert_eq!(press(app, KeyCode::Char(c)), Next::Go);
        }
    }

    #[test]
    fn what_is_typed_into_a_filter_is_no_key() {
        let mut app = app();
        write(&mut app, "/qs?");
        assert_eq!((&*app.asked.filter, app.writing), ("qs?", true));
        press(&mut app, KeyCode::Backspace);
        press(&mut app, KeyCode::Enter);
        assert_eq!((&*app.asked.filter, app.writing), ("qs", false));
        assert_eq!(
            press(&mut app, KeyCode::Esc),
            Next::Go,
            "the filter goes first"
        );
        assert_eq!(app.asked.filter, "");
        assert_eq!(press(&mut app, KeyCode::Esc), Next::End);
    }

    #[test]
    fn control_c_ends_it_even_while_a_filter_is_written() {
        let mut app = app();
        write(&mut app, "/a");
        let control = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
        assert_eq!(app.key(control('z')), Next::Pause);
        assert_eq!(app.key(control('c')), Next::End);
    }

    #[test]
    fn every_order_is_reached_both_ways() {
        let mut app = app();
        let all = Sort::value_variants();
        for sort in all.iter().skip(1).chain(&all[..1]) {
            write(&mut app, "s");
            assert_eq!(app.asked.sort, *sort);
        }
        write(&mut app, "S");
        assert_eq!(Some(&app.asked.sort), all.last());
        write(&mut app, "1");
        assert_eq!(app.asked.sort, Sort::Rate);
    }

    #[test]
    fn one_question_is_under_way_at_a_time_and_a_new_wish_does_not_wait() {
        let (mut app, now) = (app(), Instant::now());
        assert_eq!(app.wants_to_ask(now), None, "the first was asked already");
        app.told(Err("gone".to_owned()), now);
        assert_eq!(app.wants_to_ask(now), None);
        write(&mut app, "s");
        assert!(app.wants_to_ask(now).is_some(), "at once");
        write(&mut app, "s");
        assert_eq!(app.wants_to_ask(now), None, "not while one is under way");
        app.told(Err("gone".to_owned()), now);
        assert!(app.wants_to_ask(now).is_some());
        app.told(Err("gone".to_owned()), now);
        let later = now + Duration::from_secs(2);
        write(&mut app, " ");
        assert_eq!(app.wants_to_ask(later), None, "it stands still");
        write(&mut app, " ");
        assert!(app.wants_to_ask(later).is_some());
    }

    #[test]
    fn what_did_not_answer_is_said_since_when() {
        let (mut app, now) = (app(), Instant::now());
        app.told(Err("one".to_owned()), now);
        app.told(Err("two".to_owned()), now + Duration::from_secs(9));
        assert_eq!(app.trouble, Some(("two".to_owned(), now)));
    }
}
