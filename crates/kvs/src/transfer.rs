//! Keys and values as lines of JSON, out of the store and into it.

use std::io::{self, BufRead, Read, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value};

use crate::feed::Change;
use crate::record::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// A line is at most this long: both limits in base64 or with every byte escaped, and the names.
const LINE_BYTES_MAX: u64 = 6 * (KEY_BYTES_MAX + VALUE_BYTES_MAX) as u64 + 1024;

/// A key, and the value it is set to; `None` removes it.
pub type KeyChange = (Vec<u8>, Option<Vec<u8>>);

/// Reads lines of JSON: `{"key":"k","value":"v"}`, with `null` for a remove, and `key_base64` or `value_base64` instead
/// for bytes that are not UTF-8. Empty lines are skipped.
#[derive(Debug)]
pub struct JsonLines<R> {
    source: R,
    line_number: u64,
}

impl<R: BufRead> JsonLines<R> {
    /// Reads from a source.
    pub fn new(source: R) -> JsonLines<R> {
        JsonLines { source, line_number: 0 }
    }

    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for a line that is not of this form; else an error of the source.
    pub fn next_change(&mut self) -> io::Result<Option<KeyChange>> {
        loop {
            self.line_number += 1;
            let mut line = Vec::new();
            (&mut self.source).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
            if line.is_empty() {
                return Ok(None);
            }
            if line.len() as u64 == LINE_BYTES_MAX {
                return Err(self.wrong("it is too long"));
            }
            if !line.trim_ascii().is_empty() {
                return parse(&line).map(Some).map_err(|reason| self.wrong(&reason));
            }
        }
    }

    fn wrong(&self, reason: &str) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, format!("line {}: {reason}", self.line_number))
    }
}

fn parse(line: &[u8]) -> Result<KeyChange, String> {
    let object: Map<String, Value> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    // The position of a change is there for who reads it; it changes nothing.
    let known = ["key", "key_base64", "value", "value_base64", "position"];
    if let Some(unknown) = object.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(format!(
            "{unknown:?} is not known; expected key or key_base64, and value or value_base64"
        ));
    }
    let key = field(&object, "key", "key_base64")?.ok_or("the key is null")?;
    Ok((key, field(&object, "value", "value_base64")?))
}

fn field(object: &Map<String, Value>, plain: &str, encoded: &str) -> Result<Option<Vec<u8>>, String> {
    match (object.get(plain), object.get(encoded)) {
        (Some(Value::Null), None) => Ok(None),
        (Some(Value::String(text)), None) => Ok(Some(text.clone().into_bytes())),
        (None, Some(Value::String(text))) => {
            BASE64.decode(text).map(Some).map_err(|error| format!("{encoded}: {error}"))
        }
        (None, None) => Err(format!("neither {plain} nor {encoded} is there")),
        (Some(_), Some(_)) => Err(format!("both {plain} and {encoded} are there")),
        (Some(_), None) => Err(format!("{plain} is not a string")),
        (None, Some(_)) => Err(format!("{encoded} is not a string")),
    }
}

/// Writes a line that [`JsonLines`] reads; without a value, one that has the key only.
///
/// # Errors
/// Those of `target`.
pub fn write_json_line(target: impl Write, key: &[u8], value: Option<&[u8]>) -> io::Result<()> {
    let mut object = Map::new();
    insert_bytes(&mut object, "key", "key_base64", key);
    if let Some(value) = value {
        insert_bytes(&mut object, "value", "value_base64", value);
    }
    write_object(target, object)
}

impl Change {
    /// Writes the change as a line that [`JsonLines`] reads, with its position; `null` is the value of a remove.
    ///
    /// # Errors
    /// Those of `target`.
    pub fn write_line(&self, target: impl Write) -> io::Result<()> {
        let mut object = Map::new();
        insert_bytes(&mut object, "key", "key_base64", &self.key);
        match &self.value {
            Some(value) => insert_bytes(&mut object, "value", "value_base64", value),
            None => drop(object.insert("value".to_string(), Value::Null)),
        }
        object.insert("position".to_string(), Value::String(self.position.to_string()));
        write_object(target, object)
    }
}

/// Bytes that are UTF-8 go under the plain name, others under the one for base64.
fn insert_bytes(object: &mut Map<String, Value>, plain: &str, encoded: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(plain.to_string(), Value::String(text.to_string())),
        Err(_) => object.insert(encoded.to_string(), Value::String(BASE64.encode(bytes))),
    };
}

fn write_object(mut target: impl Write, object: Map<String, Value>) -> io::Result<()> {
    serde_json::to_writer(&mut target, &Value::Object(object))?;
    target.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_back() {
        let pairs: [(&[u8], &[u8]); 4] = [
            (b"", b""),
            (b"key", b"two\nlines \"quoted\""),
            (b"\xff\0", b"\xc3"),
            ("\u{fc}".as_bytes(), b"v"),
        ];
        let mut text = Vec::new();
        for (key, value) in pairs {
            write_json_line(&mut text, key, Some(value)).unwrap();
        }
        assert_eq!(text.iter().filter(|&&byte| byte == b'\n').count(), 4);
        let mut lines = JsonLines::new(&text[..]);
        for (key, value) in pairs {
            assert_eq!(lines.next_change().unwrap(), Some((key.to_vec(), Some(value.to_vec()))));
        }
        assert_eq!(lines.next_change().unwrap(), None);
    }

    #[test]
    fn wrong_lines_are_named() {
        let fault = |line: &str| {
            let text = format!("\n{line}\n");
            let error = JsonLines::new(text.as_bytes()).next_change().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            error.to_string()
        };
        assert!(fault("[1]").starts_with("line 2: "));
        assert!(fault("{").contains("EOF"));
        assert!(fault(r#"{"key":"k"}"#).contains("neither value nor value_base64"));
        assert!(fault(r#"{"key":null,"value":"v"}"#).contains("the key is null"));
        assert!(fault(r#"{"key":1,"value":"v"}"#).contains("key is not a string"));
        assert!(fault(r#"{"key":"k","value":"v","value_base64":""}"#).contains("both"));
        assert!(fault(r#"{"key":"k","value_base64":"%"}"#).contains("value_base64"));
        assert!(fault(r#"{"key":"k","value":"v","ttl":1}"#).contains("ttl"));
        let removal = JsonLines::new(&br#"{"key":"k","value":null}"#[..]).next_change().unwrap();
        assert_eq!(removal, Some((b"k".to_vec(), None)));
    }
}
