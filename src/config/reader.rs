//! Reads a TOML document key by key, collecting faults instead of stopping at the first.
//!
//! serde's `Deserialize` ends at the first fault, so the schema is walked by hand: a [`Section`]
//! is asked for each key with a rule, returns a value in any case (a placeholder after a fault),
//! and at its end reports the keys nobody asked for. Later checks ask [`Doc::sound`] before they
//! judge a value, so a placeholder never causes a second, misleading fault.

use std::cell::RefCell;
use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Fault, Severity, Source};
use super::rules::Rule;

/// The document: where its keys stand, and what has been found wrong so far.
pub(super) struct Doc {
    source: Source,
    lines: Vec<usize>,
    faults: RefCell<Vec<Fault>>,
}

impl Doc {
    pub(super) fn new(file: &str, text: &str, table: &Spanned<DeTable<'_>>) -> Self {
        let lines = std::iter::once(0)
            .chain(text.bytes().enumerate().filter(|&(_, b)| b == b'\n').map(|(at, _)| at + 1))
            .collect();
        let mut doc = Self {
            source: Source { file: file.to_owned(), positions: BTreeMap::new() },
            lines,
            faults: RefCell::new(Vec::new()),
        };
        doc.locate("", table.get_ref());
        doc
    }

    fn locate(&mut self, path: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = join(path, key.get_ref());
            let position = self.line_column(key.span().start);
            self.source.positions.insert(path.clone(), position);
            match value.get_ref() {
                DeValue::Table(table) => self.locate(&path, table),
                DeValue::Array(items) => {
                    for (index, item) in items.iter().enumerate() {
                        let path = format!("{path}[{index}]");
                        let position = self.line_column(item.span().start);
                        self.source.positions.insert(path.clone(), position);
                        if let DeValue::Table(table) = item.get_ref() {
                            self.locate(&path, table);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn line_column(&self, offset: usize) -> (u32, u32) {
        let line = self.lines.partition_point(|&start| start <= offset);
        let start = self.lines[line - 1];
        (line as u32, (offset - start + 1) as u32)
    }

    /// A fault of the TOML syntax.
    pub(super) fn syntax(&self, offset: Option<usize>, message: &str) {
        self.faults.borrow_mut().push(Fault {
            severity: Severity::Error,
            file: self.source.file.clone(),
            position: offset.map(|offset| self.line_column(offset)),
            key: String::new(),
            found: message.replace('\n', ", "),
            allowed: "a TOML 1.1 document".to_owned(),
        });
    }

    /// An error at `key`.
    pub(super) fn error(&self, key: &str, found: impl Into<String>, allowed: impl Into<String>) {
        let fault = self.source.error(key, found.into(), allowed.into());
        self.faults.borrow_mut().push(fault);
    }

    /// A warning at `key`.
    pub(super) fn warn(&self, key: &str, found: impl Into<String>, advice: impl Into<String>) {
        let fault = self.source.warning(key, found.into(), advice.into());
        self.faults.borrow_mut().push(fault);
    }

    /// Whether no error was found at any of `keys`, nor at a table around one, so that their
    /// values are what the file says.
    pub(super) fn sound(&self, keys: &[&str]) -> bool {
        let faults = self.faults.borrow();
        let mut errors = faults.iter().filter(|fault| fault.severity == Severity::Error);
        errors.all(|fault| {
            keys.iter().all(|key| {
                let rest = key.strip_prefix(fault.key.as_str());
                !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            })
        })
    }

    /// Whether the file has `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.source.positions.contains_key(key)
    }

    /// Whether an error was found at or anywhere below `key`.
    pub(super) fn any_below(&self, key: &str) -> bool {
        let faults = self.faults.borrow();
        faults.iter().any(|fault| {
            let rest = fault.key.strip_prefix(key);
            let below = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
            below && fault.severity == Severity::Error
        })
    }

    /// All faults in file order, and where the keys stand.
    pub(super) fn into_faults(self) -> (Vec<Fault>, Source) {
        let mut faults = self.faults.into_inner();
        faults.sort_by(|a, b| a.position.cmp(&b.position).then_with(|| a.key.cmp(&b.key)));
        (faults, self.source)
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// One table of the document, or the absence of one.
pub(super) struct Section<'t> {
    doc: &'t Doc,
    path: String,
    table: Option<&'t DeTable<'t>>,
    known: Vec<&'static str>,
}

impl<'t> Section<'t> {
    /// The whole document.
    pub(super) fn root(doc: &'t Doc, table: &'t DeTable<'t>) -> Self {
        Self { doc, path: String::new(), table: Some(table), known: Vec::new() }
    }

    /// Whether the table is there.
    pub(super) fn is_present(&self) -> bool {
        self.table.is_some()
    }

    /// The full path of `key`.
    pub(super) fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// The document.
    pub(super) fn doc(&self) -> &'t Doc {
        self.doc
    }

    fn value(&mut self, key: &'static str) -> Option<&'t DeValue<'t>> {
        self.known.push(key);
        self.table?.get(key).map(Spanned::get_ref)
    }

    /// Whether the table has `key`, whatever it holds.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.get(key).is_some())
    }

    fn judge<T>(&self, path: &str, value: &DeValue<'_>, rule: &Rule<T>) -> Option<T> {
        let read = rule.read(value);
        if read.is_none() {
            self.doc.error(path, describe(value), rule.allowed());
        }
        read
    }

    /// The value of a key that may be missing.
    pub(super) fn may<T>(&mut self, key: &'static str, rule: Rule<T>) -> Option<T> {
        let value = self.value(key)?;
        self.judge(&self.path_of(key), value, &rule)
    }

    /// The value of a key that has a default.
    pub(super) fn or<T>(&mut self, key: &'static str, default: T, rule: Rule<T>) -> T {
        self.may(key, rule).unwrap_or(default)
    }

    /// The value of a key that must be there; `placeholder` after a fault.
    pub(super) fn must<T>(&mut self, key: &'static str, placeholder: T, rule: Rule<T>) -> T {
        let missing = self.table.is_some() && !self.has(key);
        if missing {
            self.doc.error(&self.path_of(key), "nothing", rule.allowed());
        }
        self.may(key, rule).unwrap_or(placeholder)
    }

    /// An array, each item judged by `rule`; `None` when the key is missing.
    pub(super) fn list<T>(&mut self, key: &'static str, rule: Rule<T>) -> Option<Vec<T>> {
        let value = self.value(key)?;
        let path = self.path_of(key);
        let Some(items) = value.as_array() else {
            self.doc.error(&path, describe(value), format!("an array, each {}", rule.allowed()));
            return None;
        };
        let mut values = Vec::new();
        for (index, item) in items.iter().enumerate() {
            values.extend(self.judge(&format!("{path}[{index}]"), item.get_ref(), &rule));
        }
        Some(values)
    }

    /// A table of names, each value judged by `rule`.
    pub(super) fn named<T>(&mut self, key: &'static str, rule: Rule<T>) -> Vec<(String, T)> {
        let section = self.table(key);
        let mut values = Vec::new();
        for (name, value) in section.table.into_iter().flatten() {
            let path = section.path_of(name.get_ref());
            let value = section.judge(&path, value.get_ref(), &rule);
            values.extend(value.map(|value| (name.get_ref().clone().into_owned(), value)));
        }
        values
    }

    /// The table under `key`; an absent section when there is none.
    pub(super) fn table(&mut self, key: &'static str) -> Section<'t> {
        let path = self.path_of(key);
        let table = self.value(key).and_then(|value| {
            if value.as_table().is_none() {
                self.doc.error(&path, describe(value), "a table");
            }
            value.as_table()
        });
        Section { doc: self.doc, path, table, known: Vec::new() }
    }

    /// The table under `key`, which must be there.
    pub(super) fn must_table(&mut self, key: &'static str) -> Section<'t> {
        if self.table.is_some() && !self.has(key) {
            self.doc.error(&self.path_of(key), "nothing", "a table");
        }
        self.table(key)
    }

    /// The tables under `key`, as in `[[key]]`.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Section<'t>> {
        let path = self.path_of(key);
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(items) = value.as_array() else {
            self.doc.error(&path, describe(value), format!("tables, as in [[{key}]]"));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            match item.get_ref().as_table() {
                Some(table) => sections.push(Section {
                    doc: self.doc,
                    path,
                    table: Some(table),
                    known: Vec::new(),
                }),
                None => self.doc.error(&path, describe(item.get_ref()), "a table"),
            }
        }
        sections
    }

    /// Reports the keys that nobody asked for.
    pub(super) fn finish(self) {
        let mut known = self.known.clone();
        known.sort_unstable();
        known.dedup();
        for (key, _) in self.table.into_iter().flatten() {
            let key = key.get_ref();
            if known.iter().any(|known| known == key) {
                continue;
            }
            let allowed = match nearest(key, &known) {
                Some(near) => {
                    format!("`{near}` (if that was meant), or one of {}", known.join(", "))
                }
                None => known.join(", "),
            };
            self.doc.error(&self.path_of(key), "an unknown key", allowed);
        }
    }
}

/// The known key that `key` was probably meant to be.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    let (distance, best) = known.iter().map(|known| (edits(key, known), *known)).min()?;
    let close = distance <= 2 || best.starts_with(key) || key.starts_with(best);
    close.then_some(best)
}

/// Levenshtein's distance between two keys, by bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let next = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}

/// A value as its reader would recognise it.
pub(super) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{:?}", text.as_ref()),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(value) => value.to_string(),
        DeValue::Array(items) if items.is_empty() => "an empty array".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
