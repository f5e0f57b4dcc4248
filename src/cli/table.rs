//! How lists are printed. Tables are for people: columns under each other, numbers to the right with their thousands apart.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

/// What a list is printed as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Format {
    /// For people, with sums
    #[default]
    Table,
    /// RFC 4180, with a header
    Csv,
    /// An array of objects
    Json,
}

/// A column: its title, its cells, and whether they are numbers.
#[derive(Debug)]
pub(super) struct Column {
    title: &'static str,
    cells: Vec<String>,
    number: bool,
}

impl Column {
    pub(super) fn text<T>(title: &'static str, rows: &[T], cell: impl Fn(&T) -> &str) -> Self {
        Self {
            title,
            cells: rows.iter().map(|row| plain(cell(row))).collect(),
            number: false,
        }
    }

    /// As [`Column::text`], where any row has something to say.
    pub(super) fn text_if_any<T>(
        title: &'static str,
        rows: &[T],
        cell: impl Fn(&T) -> &str,
    ) -> Option<Self> {
        let any = rows.iter().any(|row| !cell(row).is_empty());
        any.then(|| Self::text(title, rows, cell))
    }

    /// With the sum of all below them.
    pub(super) fn sum<T>(title: &'static str, rows: &[T], cell: impl Fn(&T) -> u64) -> Self {
        let numbers = || rows.iter().map(&cell);
        let total = numbers().fold(0_u64, u64::saturating_add);
        Self {
            title,
            cells: numbers().chain([total]).map(grouped).collect(),
            number: true,
        }
    }

    /// As [`Column::sum`], of thousandths.
    pub(super) fn sum_of_thousandths<T>(
        title: &'static str,
        rows: &[T],
        cell: impl Fn(&T) -> u64,
    ) -> Self {
        let numbers = || rows.iter().map(&cell);
        let total = numbers().fold(0_u64, u64::saturating_add);
        let text = |n: u64| format!("{}.{:03}", grouped(n / 1000), n % 1000);
        Self {
            title,
            cells: numbers().chain([total]).map(text).collect(),
            number: true,
        }
    }
}

/// The table, with a last line that has the sums; it begins with the word for that.
pub(super) fn table(columns: Vec<Column>, rows: usize) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    let cell = |column: &Column, text: &str| match column.number {
        true => Cell::new(text).set_alignment(CellAlignment::Right),
        false => Cell::new(text),
    };
    table.set_header(columns.iter().map(|column| cell(column, column.title)));
    for row in 0..=rows {
        let cells = columns.iter().enumerate().map(|(place, column)| {
            let text = column.cells.get(row).map(String::as_str);
            let below = if place == 0 { "total" } else { "" };
            cell(column, text.unwrap_or(below))
        });
        table.add_row(cells);
    }
    let lines = table
        .lines()
        .map(|line| line.trim_end().trim_start_matches(' ').to_owned());
    let lines: Vec<_> = lines.collect();
    lines.join("\n") + "\n"
}

/// What is not there shows; what would move the cursor does not.
pub(super) fn plain(text: &str) -> String {
    match text {
        "" => "-".to_owned(),
        text => text
            .escape_debug()
            .to_string()
            .replace("\\'", "'")
            .replace("\\\"", "\""),
    }
}

/// `1234567` as `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_each_other_and_sums_below_them() {
        let rows = [("vpce-1", 1_234_567, 1500), ("", 8, 2)];
        let columns = vec![
            Column::text("endpoint", &rows, |row| row.0),
            Column::sum("bytes", &rows, |row| row.1),
            Column::sum_of_thousandths("seconds", &rows, |row| row.2),
        ];
        let text = table(columns, rows.len());
        let expected = "\
endpoint      bytes  seconds
vpce-1    1,234,567    1.500
-                 8    0.002
total     1,234,575    1.502
";
        assert_eq!(text, expected);
    }

    #[test]
    fn nothing_sums_up_to_nothing() {
        let rows: [(&str, u64); 0] = [];
        let columns = vec![
            Column::text("endpoint", &rows, |row| row.0),
            Column::sum("bytes", &rows, |row| row.1),
        ];
        assert_eq!(table(columns, 0), "endpoint  bytes\ntotal         0\n");
        assert!(Column::text_if_any("name", &rows, |row| row.0).is_none());
    }

    #[test]
    fn a_cell_stays_on_its_line() {
        let rows = ["a\u{1b}[2Jb\nc", "it's \"x\""];
        let text = table(vec![Column::text("name", &rows, |row| row)], rows.len());
        assert_eq!(text, "name\na\\u{1b}[2Jb\\nc\nit's \"x\"\ntotal\n");
    }
}
