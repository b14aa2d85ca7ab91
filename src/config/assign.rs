//! Assignments: `--set section.key=value` and named flags, read like lines of the file but without the need for quotes.
//!
//! ```text
//!  --set fetch.concurrency=8                     a TOML value, if it is one of the key's kind
//!  --set window.start=2024-09-27-00:00:00        else plain text
//!  --set network.allow=127.0.0.0/8               a list of one; commas part the elements (not of source.files)
//!  --set network.allow+=10.0.0.0/8               added to what the list has
//! ```

use crate::config::keys::{Form, Key};
use crate::config::read::{Read, fault};
use crate::config::settings::Settings;
use crate::config::written::{Data, Place, Value};

/// One setting from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// `window.start`; a `+` at its end adds to a list.
    pub key: String,
    /// As typed.
    pub value: String,
    /// How people wrote it, for messages: `--set window.start=...` or `--start-timestamp`.
    pub origin: String,
}

impl Assignment {
    /// Splits `section.key=value`, the argument of `--set`.
    ///
    /// # Errors
    /// What the argument must look like.
    pub fn parse(argument: &str) -> Result<Self, String> {
        let wanted = "expected section.key=value, such as fetch.concurrency=8";
        let (key, value) = argument.split_once('=').ok_or(wanted)?;
        let (key, origin) = (key.trim().to_owned(), format!("--set {argument}"));
        if key.is_empty() {
            return Err(wanted.to_owned());
        }
        Ok(Self { key, value: value.to_owned(), origin })
    }

    /// A named flag's value for `key`.
    #[must_use]
    pub fn flag(flag: &str, key: &str, value: impl Into<String>) -> Self {
        Self { key: key.to_owned(), value: value.into(), origin: flag.to_owned() }
    }

    /// The key's name without the `+`, and whether there was one.
    #[must_use]
    pub fn target(&self) -> (&str, bool) {
        match self.key.strip_suffix('+') {
            Some(name) => (name.trim_end(), true),
            None => (&self.key, false),
        }
    }

    /// Where it was written.
    #[must_use]
    pub fn place(&self) -> Place {
        Place::Origin(self.origin.clone())
    }

    /// Puts its value into `settings`.
    ///
    /// # Errors
    /// Everything that is wrong with the value.
    pub fn apply(&self, key: &Key, settings: &mut Settings) -> Read<()> {
        let value = self.read(key)?;
        let (_, is_addition) = self.target();
        if !is_addition {
            return key.set(settings, &value);
        }
        if key.form.element().is_none() {
            return Err(fault(&value, "+= adds to a list, and this is none"));
        }
        let mut added = settings.clone();
        key.set(&mut added, &value)?;
        prepend(&mut added, settings);
        *settings = added;
        Ok(())
    }

    /// Its value where a text is wanted.
    #[must_use]
    pub fn text(&self) -> Value {
        self.scalar(&self.value, Form::Text)
    }

    fn read(&self, key: &Key) -> Read<Value> {
        let Some(element) = key.form.element() else {
            return Ok(self.scalar(&self.value, key.form));
        };
        let typed = Value::parse(&self.value, &self.origin);
        if let Some(list) = typed.filter(|value| matches!(value.data, Data::List(_))) {
            return Ok(list);
        }
        let plain = Value::plain(&self.value, &self.origin);
        if self.value.trim_start().starts_with('[') {
            let text = "not a list: write [\"a\", \"b\"], in single quotes for the shell, or a,b";
            return Err(fault(&plain, text));
        }
        let items = match Value::parse(&self.value, &self.origin) {
            Some(value) if element.accepts(&value.data) => vec![value],
            _ if key.name == "source.files" => vec![plain.clone()],
            _ => {
                let pieces = self.value.split(',').map(str::trim).filter(|piece| !piece.is_empty());
                pieces.map(|piece| self.scalar(piece, element)).collect()
            }
        };
        Ok(Value { data: Data::List(items), ..plain })
    }

    fn scalar(&self, text: &str, form: Form) -> Value {
        let typed = Value::parse(text, &self.origin).filter(|value| form.accepts(&value.data));
        typed.unwrap_or_else(|| Value::plain(text, &self.origin))
    }
}

/// Puts the lists of `before` in front of those of `settings` that an addition has replaced.
fn prepend(settings: &mut Settings, before: &Settings) {
    fn join<T: Clone + PartialEq>(now: &mut Vec<T>, before: &[T]) {
        if now != before {
            let new: Vec<T> = now.iter().filter(|item| !before.contains(item)).cloned().collect();
            *now = [before, &new].concat();
        }
    }
    join(&mut settings.source.files, &before.source.files);
    join(&mut settings.source.dids, &before.source.dids);
    join(&mut settings.filter.types, &before.filter.types);
    join(&mut settings.network.allow, &before.network.allow);
    join(&mut settings.network.ports, &before.network.ports);
}
