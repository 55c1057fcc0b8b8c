//! Text for people: tables, times, counts.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// A table with these headings; columns named in `right` are aligned to the right.
pub(super) fn table(headings: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(headings);
    for &index in right {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// `1.5 ms` and the like.
pub(super) fn duration(ns: u64) -> String {
    let value = ns as f64;
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} µs", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", value / 1e6),
        _ => format!("{:.2} s", value / 1e9),
    }
}

/// `1.5 GiB` and the like.
pub(super) fn bytes(bytes: u64) -> String {
    let value = bytes as f64;
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", value / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", value / 1_048_576.0),
        _ => format!("{:.2} GiB", value / 1_073_741_824.0),
    }
}

/// `12_345_678` as `12,345,678`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A point in time relative to another: `+1.5 s`, `−20.0 ms`.
pub(super) fn relative(unix_ns: u64, to_unix_ns: u64) -> String {
    match unix_ns.checked_sub(to_unix_ns) {
        Some(after) => format!("+{}", duration(after)),
        None => format!("−{}", duration(to_unix_ns - unix_ns)),
    }
}

/// Lines of `name   value`, aligned.
pub(super) fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    facts.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([count(0), count(999), count(1234567)], ["0", "999", "1,234,567"]);
        assert_eq!(
            [duration(999), duration(1500), duration(2_500_000_000)],
            ["999 ns", "1.5 µs", "2.50 s"]
        );
        assert_eq!([bytes(1023), bytes(1536), bytes(3 << 30)], ["1023 B", "1.5 KiB", "3.00 GiB"]);
        assert_eq!([relative(5, 3), relative(3, 5)], ["+2 ns", "−2 ns"]);
    }
}
