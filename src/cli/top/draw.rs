//! A frame: two lines about the relay, its endpoints, its upstream addresses, and a line of keys. What has no room is left out, last things first.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Clear, Paragraph, Row as TableRow, Table};

use super::super::table::{grouped, plain};
use super::app::App;
use crate::admin::{Live, LiveAddress, Rates, Row, Sort};

/// Lines around the rows of both tables: two at the top, one empty, two heads, one between the tables, one of keys.
pub(super) const AROUND: usize = 7;

/// Columns between which nothing stands.
const GAP: u16 = 2;

/// Width from which on names have columns.
const WIDE: u16 = 120;

const KEYS: [(&str, &str); 12] = [
    ("q, Esc, Ctrl-C", "end; Esc takes away a filter first"),
    ("s, S", "order by the next column, by the one before"),
    (
        "1 to 8",
        "rate, to upstream, to client, sessions, opened, refused, bytes, id",
    ),
    (
        "/",
        "filter by id, consumer, name, account; Enter keeps, Esc clears",
    ),
    (
        "Tab",
        "room for the upstream addresses, or for the endpoints",
    ),
    ("arrows, PgUp, End", "scroll"),
    ("Space", "stand still, go on"),
    ("+, -", "look less often, more often"),
    ("Ctrl-Z", "back to the shell; fg returns"),
    ("", ""),
    (
        "opened, refused",
        "in a second; to upstream, to client: bytes in a second",
    ),
    (
        "(none), overflow",
        "nobody knew the endpoint; it came beyond accounts.max",
    ),
];

pub(super) fn draw(frame: &mut Frame<'_>, app: &mut App) {
    let area = frame.area();
    if area.is_empty() {
        return;
    }
    let [head, tables, keys] = parts(area);
    let lines = match &app.look {
        Some(look) => vec![about(look, app), moving(look, app, head.width)],
        None => vec![Line::from("no answer yet")],
    };
    frame.render_widget(Paragraph::new(lines), head);
    frame.render_widget(Paragraph::new(foot(app)), keys);
    // It is taken out for as long as it is drawn, so that the rest can be told what was drawn.
    if let Some(look) = app.look.take() {
        draw_tables(frame, tables, &look, app);
        app.look = Some(look);
    }
    if app.help {
        help(frame, area);
    }
}

/// Two lines, what is between, and one.
fn parts(area: Rect) -> [Rect; 3] {
    let line = |y: u16, height: u16| Rect {
        y: area.y + y,
        height,
        ..area
    };
    let height = area.height;
    let head = height.min(2);
    let keys = u16::from(height > 3);
    let between = height - head - keys;
    [
        line(0, head),
        line(head, between),
        line(height - keys, keys),
    ]
}

fn about<'a>(look: &Live, app: &App) -> Line<'a> {
    if let Some((why, since)) = &app.trouble {
        let seconds = since.elapsed().as_secs();
        let text = format!("no answer for {seconds} s: {}", plain(why));
        return Line::styled(
            text,
            Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
        );
    }
    let phase = match look.phase.as_str() {
        "serving" => Style::new().fg(Color::Green),
        _ => Style::new().fg(Color::Yellow).add_modifier(Modifier::BOLD),
    };
    let sessions = format!(
        "  {} sessions, {} without a header  up {}",
        grouped(look.sessions),
        grouped(look.pending),
        uptime(look.uptime_seconds)
    );
    Line::from(vec![
        Span::raw(format!("tollgate {}  ", plain(&look.version))),
        Span::styled(plain(&look.phase), phase),
        Span::raw(sessions),
    ])
}

fn moving<'a>(look: &Live, app: &App, width: u16) -> Line<'a> {
    let mut text = match &look.rates {
        Some(rates) => format!(
            "{} to upstream  {} to client  {} opened/s  {} refused/s",
            bytes_rate(rates.bytes_to_upstream),
            bytes_rate(rates.bytes_to_client),
            per_second(rates.opened),
            per_second(rates.refused)
        ),
        None => "rates come with the second look".to_owned(),
    };
    if width >= WIDE && !app.text {
        text += &format!("  every {} s", app.interval.as_secs());
    }
    if app.still {
        text += "  standing still";
    }
    Line::from(text)
}

fn foot<'a>(app: &App) -> Line<'a> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    if app.writing {
        let filter = format!("filter: {}_", plain_or_empty(&app.asked.filter));
        return Line::from(vec![
            Span::styled(filter, bold),
            Span::raw("  Enter keeps, Esc clears"),
        ]);
    }
    if app.text {
        return Line::default();
    }
    let mut spans = Vec::new();
    if !app.asked.filter.is_empty() {
        let filter = format!("filter: {}  ", plain_or_empty(&app.asked.filter));
        spans.push(Span::styled(filter, bold));
    }
    spans.push(Span::raw(
        "? keys  s order  / filter  Tab addresses  Space still  q end",
    ));
    Line::from(spans)
}

fn draw_tables(frame: &mut Frame<'_>, area: Rect, look: &Live, app: &mut App) {
    let (first, second) = (look.endpoints.len(), look.addresses.len());
    let room = usize::from(area.height);
    // A head each, an empty line in front of both.
    let rows = room.saturating_sub(4);
    let (endpoints, addresses) = match (app.text, app.addresses) {
        (true, _) => (first, second),
        // The other has a third at most, and no more than it needs.
        (false, false) => {
            let addresses = second.min(rows / 3);
            (rows - addresses, addresses)
        }
        (false, true) => {
            let endpoints = first.min(rows / 3);
            (endpoints, rows - endpoints)
        }
    };
    let (main, page) = match app.addresses {
        false => (first, endpoints),
        true => (second, addresses),
    };
    app.page = page.max(1);
    app.offset = app.offset.min(main.saturating_sub(page));
    let offset = |of_addresses: bool| {
        if app.addresses == of_addresses {
            app.offset
        } else {
            0
        }
    };
    let part = |y: usize, height: usize| {
        let y = u16::try_from(y).unwrap_or(u16::MAX).min(area.height);
        let height = u16::try_from(height)
            .unwrap_or(u16::MAX)
            .min(area.height - y);
        Rect {
            y: area.y + y,
            height,
            ..area
        }
    };
    let dim = match app.trouble {
        Some(_) => Style::new().add_modifier(Modifier::DIM),
        None => Style::new(),
    };
    let own = part(1, endpoints + 1);
    let table = endpoints_table(look, app.asked.sort, area.width, offset(false)..first);
    frame.render_widget(table.style(dim), own);
    let own = part(endpoints + 3, addresses + 1);
    let table = addresses_table(look, area.width, offset(true)..second);
    frame.render_widget(table.style(dim), own);
}

/// A column: its title, its width, whether it has numbers, and what is in it.
struct Column<'a, T> {
    title: String,
    width: u16,
    number: bool,
    sorted: bool,
    cell: Box<dyn Fn(&T) -> Span<'static> + 'a>,
}

fn column<'a, T>(
    title: &str,
    width: u16,
    number: bool,
    cell: impl Fn(&T) -> String + 'a,
) -> Column<'a, T> {
    Column {
        title: title.to_owned(),
        width,
        number,
        sorted: false,
        cell: Box::new(move |row| Span::raw(cell(row))),
    }
}

fn table<T>(columns: Vec<Column<'_, T>>, rows: &[T]) -> Table<'static> {
    let align = |number: bool| match number {
        true => Alignment::Right,
        false => Alignment::Left,
    };
    let head = columns.iter().map(|column| {
        let underline = Style::new().add_modifier(Modifier::UNDERLINED);
        let style = if column.sorted {
            underline
        } else {
            Style::new()
        };
        let title = Span::styled(column.title.clone(), style);
        Cell::new(Line::from(title).alignment(align(column.number)))
    });
    let head = TableRow::new(head.collect::<Vec<_>>());
    let head = head.style(Style::new().add_modifier(Modifier::BOLD));
    let rows = rows.iter().map(|row| {
        let cells = columns.iter().map(|column| {
            Cell::new(Line::from((column.cell)(row)).alignment(align(column.number)))
        });
        TableRow::new(cells.collect::<Vec<_>>())
    });
    let rows: Vec<_> = rows.collect();
    let widths: Vec<_> = columns
        .iter()
        .map(|column| Constraint::Length(column.width))
        .collect();
    Table::new(rows, widths).header(head).column_spacing(GAP)
}

/// As many of the columns, from the first on, as have room; the first has what is left up to its most.
fn fitting<T>(mut columns: Vec<Column<'_, T>>, width: u16, most: u16) -> Vec<Column<'_, T>> {
    let mut taken = 0;
    let mut fit = 0;
    for column in &columns {
        let gap = if fit == 0 { 0 } else { GAP };
        if taken + gap + column.width > width && fit > 0 {
            break;
        }
        taken += gap + column.width;
        fit += 1;
    }
    columns.truncate(fit);
    if let Some(first) = columns.first_mut() {
        let left = width.saturating_sub(taken);
        first.width = (first.width + left).min(most).min(width.max(1));
    }
    columns
}

fn endpoints_table(
    look: &Live,
    sort: Sort,
    width: u16,
    shown: std::ops::Range<usize>,
) -> Table<'static> {
    let rate = |of: fn(&Rates) -> f64, text: fn(f64) -> String| {
        move |row: &Row| {
            row.rates
                .as_ref()
                .map_or("-".to_owned(), |rates| text(of(rates)))
        }
    };
    let longest = look.endpoints.iter().map(|row| row.endpoint.len()).max();
    let title = match look.endpoints_found {
        found if found < look.endpoints_in_all => {
            format!(
                "endpoint ({} of {})",
                grouped(found as u64),
                grouped(look.endpoints_in_all as u64)
            )
        }
        all => format!("endpoint ({})", grouped(all as u64)),
    };
    let longest = longest.unwrap_or(0).max(title.len());
    let mut columns = vec![
        column(&title, 22, false, |row: &Row| plain(&row.endpoint)),
        column("sessions", 9, true, |row: &Row| grouped(row.sessions)),
        column(
            "to upstream",
            11,
            true,
            rate(|rates| rates.bytes_to_upstream, bytes_rate),
        ),
        column(
            "to client",
            11,
            true,
            rate(|rates| rates.bytes_to_client, bytes_rate),
        ),
        column("opened", 8, true, rate(|rates| rates.opened, per_second)),
        column("refused", 8, true, rate(|rates| rates.refused, per_second)),
        column("bytes", 9, true, |row: &Row| bytes(row.bytes as f64)),
    ];
    // By rate is by both: neither is marked alone.
    let sorted: &[usize] = match sort {
        Sort::Endpoint => &[0],
        Sort::Sessions => &[1],
        Sort::Rate => &[2, 3],
        Sort::ToUpstream => &[2],
        Sort::ToClient => &[3],
        Sort::Opened => &[4],
        Sort::Refused => &[5],
        Sort::Bytes => &[6],
    };
    for at in sorted {
        columns[*at].sorted = true;
    }
    let any = |of: fn(&Row) -> &String| look.endpoints.iter().any(|row| !of(row).is_empty());
    if any(|row| &row.consumer) {
        columns.push(column("consumer", 16, false, |row: &Row| {
            plain_or_empty(&row.consumer)
        }));
    }
    if any(|row| &row.name) {
        columns.push(column("name", 24, false, |row: &Row| {
            plain_or_empty(&row.name)
        }));
    }
    if any(|row| &row.account) {
        columns.push(column("account", 24, false, |row: &Row| {
            plain_or_empty(&row.account)
        }));
    }
    let most = u16::try_from(longest).unwrap_or(u16::MAX).max(22);
    table(fitting(columns, width, most), &look.endpoints[shown])
}

fn addresses_table(look: &Live, width: u16, shown: std::ops::Range<usize>) -> Table<'static> {
    let title = format!(
        "upstream address ({})",
        grouped(look.addresses_in_all as u64)
    );
    let longest = look
        .addresses
        .iter()
        .map(|row| row.upstream.len() + 1 + row.address.len())
        .max();
    let time = |of: fn(&LiveAddress) -> Option<f64>| {
        move |row: &LiveAddress| of(row).map_or("-".to_owned(), milliseconds)
    };
    let mut columns = vec![
        column(&title, 30, false, |row: &LiveAddress| {
            plain(&format!("{} {}", row.upstream, row.address))
        }),
        column("state", 10, false, |row: &LiveAddress| plain(&row.state)),
        column("sessions", 9, true, |row: &LiveAddress| {
            grouped(row.sessions)
        }),
        column("rtt", 9, true, time(|row| row.rtt_ms)),
        column("connect", 9, true, time(|row| row.connect_ms)),
        column("opened", 11, true, |row: &LiveAddress| grouped(row.opened)),
        column("group", 5, true, |row: &LiveAddress| {
            row.priority.to_string()
        }),
        column("why", 60, false, |row: &LiveAddress| {
            plain_or_empty(&row.why)
        }),
    ];
    columns[1].cell = Box::new(|row| {
        let colour = match row.state.as_str() {
            "usable" => Color::Green,
            "slow_start" => Color::Yellow,
            _ => Color::Red,
        };
        Span::styled(plain(&row.state), Style::new().fg(colour))
    });
    let most = u16::try_from(longest.unwrap_or(0).max(title.len()))
        .unwrap_or(u16::MAX)
        .max(30);
    table(fitting(columns, width, most), &look.addresses[shown])
}

fn help(frame: &mut Frame<'_>, area: Rect) {
    let lines: Vec<Line<'_>> = KEYS
        .iter()
        .map(|(key, what)| {
            let bold = Style::new().add_modifier(Modifier::BOLD);
            Line::from(vec![
                Span::styled(format!("{key:<18}"), bold),
                Span::raw(*what),
            ])
        })
        .collect();
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX);
    let top = area.height.min(2);
    let over = Rect {
        y: area.y + top,
        height: height.min(area.height - top),
        ..area
    };
    frame.render_widget(Clear, over);
    frame.render_widget(Paragraph::new(lines), over);
}

fn plain_or_empty(text: &str) -> String {
    match text {
        "" => String::new(),
        text => plain(text),
    }
}

/// Three digits and a unit.
fn bytes(n: f64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut n = n;
    let mut unit = 0;
    while n >= 999.5 && unit + 1 < units.len() {
        n /= 1000.0;
        unit += 1;
    }
    match (unit, n) {
        (0, n) => format!("{n:.0} B"),
        (_, n) if n < 9.995 => format!("{n:.2} {}", units[unit]),
        (_, n) if n < 99.95 => format!("{n:.1} {}", units[unit]),
        (_, n) => format!("{n:.0} {}", units[unit]),
    }
}

fn bytes_rate(n: f64) -> String {
    bytes(n) + "/s"
}

fn per_second(n: f64) -> String {
    match n {
        n if n < 0.05 => "0".to_owned(),
        n if n < 99.95 => format!("{n:.1}"),
        n => format!("{n:.0}"),
    }
}

fn milliseconds(n: f64) -> String {
    match n {
        n if n < 9.995 => format!("{n:.2} ms"),
        n if n < 99.95 => format!("{n:.1} ms"),
        n => format!("{n:.0} ms"),
    }
}

fn uptime(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours) {
        (0, 0) => crate::config::duration_text(Duration::from_secs(seconds)),
        (0, hours) => format!("{hours}h {minutes}m"),
        (days, hours) => format!("{days}d {hours}h"),
    }
}
