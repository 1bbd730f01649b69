//! Values of the file with their positions, and errors about them in terms of the file.

use std::{fmt::Display, ops::RangeInclusive};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

pub(crate) type Value<'a> = Spanned<DeValue<'a>>;

/// An error about the file, with the key and the position.
#[derive(Debug)]
pub(crate) struct Wrong {
    /// Byte offset in the file.
    pub(crate) at: Option<usize>,
    /// Such as `limits.nice`; empty for the whole.
    pub(crate) key: String,
    pub(crate) what: Box<str>,
}

impl Wrong {
    pub(crate) fn at(at: usize, what: impl Into<Box<str>>) -> Self {
        Self { at: Some(at), key: String::new(), what: what.into() }
    }

    pub(crate) fn with(value: &Value<'_>, what: impl Into<Box<str>>) -> Self {
        Self::at(value.span().start, what)
    }

    /// A value of the wrong type.
    pub(crate) fn misplaced(value: &Value<'_>, wanted: &str) -> Self {
        let found = match value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(true) => "`true`",
            DeValue::Boolean(false) => "`false`",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        Self::with(value, format!("expected {wanted}, found {found}"))
    }

    /// The value is that of this key.
    pub(crate) fn within(self, key: &str) -> Self {
        let key = if self.key.is_empty() { key.to_owned() } else { format!("{key}.{}", self.key) };
        Self { key, ..self }
    }
}

/// A table of which it is known what may be in it.
pub(crate) struct Keys<'a>(&'a Value<'a>);

impl<'a> Keys<'a> {
    /// `wanted` describes the expected value.
    pub(crate) fn of(value: &'a Value<'a>, wanted: &str, known: &[&str]) -> Result<Self, Wrong> {
        let table = value.get_ref().as_table().ok_or_else(|| Wrong::misplaced(value, wanted))?;
        let unknown = table.keys().filter(|key| !known.contains(&&**key.get_ref()));
        match unknown.min_by_key(|key| key.span().start) {
            Some(key) => {
                let known: Vec<_> = known.iter().map(|key| format!("`{key}`")).collect();
                let what = format!("unknown key, expected one of {}", known.join(", "));
                Err(Wrong::at(key.span().start, what).within(key.get_ref()))
            }
            None => Ok(Self(value)),
        }
    }

    pub(crate) fn get<T>(
        &self,
        key: &str,
        read: impl FnOnce(&'a Value<'a>) -> Result<T, Wrong>,
    ) -> Result<Option<T>, Wrong> {
        let value = self.0.get_ref().get(key);
        value.map(|value| read(value).map_err(|wrong| wrong.within(key))).transpose()
    }

    pub(crate) fn need<T>(&self, key: &str, read: impl FnOnce(&'a Value<'a>) -> Result<T, Wrong>) -> Result<T, Wrong> {
        self.get(key, read)?.ok_or_else(|| Wrong::with(self.0, format!("missing key `{key}`")))
    }
}

/// The position of the value of a key such as `limits.nice`, or of the table in which it is missing.
pub(crate) fn place(value: &Value<'_>, key: &str) -> usize {
    let deepest = key.split('.').try_fold(value, |value, key| value.get_ref().get(key).ok_or(value));
    deepest.unwrap_or_else(|value| value).span().start
}

/// Everything in a table, in the order of the file.
pub(crate) fn entries<'a>(table: &'a DeTable<'a>) -> Vec<(&'a str, &'a Value<'a>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries.into_iter().map(|(key, value)| (&**key.get_ref(), value)).collect()
}

pub(crate) fn text<'a>(value: &'a Value<'a>) -> Result<&'a str, Wrong> {
    match value.get_ref().as_str() {
        Some(text) if text.contains('\0') => Err(Wrong::with(value, "the string contains a NUL byte")),
        Some(text) => Ok(text),
        None => Err(Wrong::misplaced(value, "a string")),
    }
}

/// Parses a string value.
pub(crate) fn parsed<T>(value: &Value<'_>, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, Wrong> {
    parse(text(value)?).map_err(|what| Wrong::with(value, what))
}

pub(crate) fn flag(value: &Value<'_>) -> Result<bool, Wrong> {
    value.get_ref().as_bool().ok_or_else(|| Wrong::misplaced(value, "`true` or `false`"))
}

/// Looks up a word.
pub(crate) fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    let known = || words.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>().join(", ");
    let found = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
    found.ok_or_else(|| format!("{text:?} is not one of {}", known()))
}

pub(crate) fn number<T>(value: &Value<'_>, range: RangeInclusive<T>) -> Result<T, Wrong>
where
    T: Copy + Display + Into<i128> + TryFrom<i128>,
{
    let (least, most) = (*range.start(), *range.end());
    // An upper bound beyond this is not worth showing.
    let is_bounded = most.into() < i128::from(u32::MAX);
    let wanted = if is_bounded { format!("from {least} to {most}") } else { format!("of at least {least}") };
    let Some(number) = value.get_ref().as_integer() else {
        return Err(Wrong::misplaced(value, &format!("an integer {wanted}")));
    };
    let whole = i128::from_str_radix(number.as_str(), number.radix()).ok();
    let whole = whole.filter(|whole| (least.into()..=most.into()).contains(whole));
    let whole = whole.and_then(|whole| T::try_from(whole).ok());
    whole.ok_or_else(|| Wrong::with(value, format!("{number} is out of range, expected an integer {wanted}")))
}

/// `wanted` describes the expected value.
pub(crate) fn list<'a, T>(
    value: &'a Value<'a>,
    wanted: &str,
    read: impl Fn(&'a Value<'a>) -> Result<T, Wrong>,
) -> Result<Vec<T>, Wrong> {
    let list = value.get_ref().as_array().ok_or_else(|| Wrong::misplaced(value, wanted))?;
    list.iter().map(read).collect()
}

/// A table with any keys; `wanted` describes the expected value.
pub(crate) fn table<'a, T, C: FromIterator<(String, T)>>(
    value: &'a Value<'a>,
    wanted: &str,
    read: impl Fn(&'a Value<'a>) -> Result<T, Wrong>,
) -> Result<C, Wrong> {
    let table = value.get_ref().as_table().ok_or_else(|| Wrong::misplaced(value, wanted))?;
    let read = |(key, value): (&'a str, &'a Value<'a>)| match read(value) {
        Ok(value) => Ok((key.to_owned(), value)),
        Err(wrong) => Err(wrong.within(key)),
    };
    entries(table).into_iter().map(read).collect()
}
