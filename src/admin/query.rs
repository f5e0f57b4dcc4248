//! The part of an address behind the question mark: what was asked for, key by key (RFC 3986, section 3.4).

/// Key and value of each pair, escapes undone; `None` where they make no sense, or no text.
pub(super) fn decode(query: &str) -> Option<Vec<(String, String)>> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let decoded = pairs.map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((unescape(key)?, unescape(value)?))
    });
    decoded.collect()
}

/// The same for those who ask.
#[must_use]
pub fn encode(pairs: &[(&str, String)]) -> String {
    let pairs = pairs.iter();
    let encoded = pairs.map(|(key, value)| format!("{}={}", escape(key), escape(value)));
    encoded.collect::<Vec<_>>().join("&")
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            b'+' => b' ',
            plain => plain,
        });
    }
    String::from_utf8(bytes).ok()
}

fn escape(text: &str) -> String {
    let escaped = text.bytes().map(|byte| match byte {
        plain if plain.is_ascii_alphanumeric() || b"-._~:/".contains(&plain) => {
            char::from(plain).to_string()
        }
        other => format!("%{other:02X}"),
    });
    escaped.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pairs(given: &[(&str, &str)]) -> Option<Vec<(String, String)>> {
        let owned = given.iter();
        Some(
            owned
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn pairs_are_read_as_browsers_and_curl_write_them() {
        for (query, read) in [
            ("", pairs(&[])),
            ("by=hour&by=day", pairs(&[("by", "hour"), ("by", "day")])),
            ("all", pairs(&[("all", "")])),
            ("to=/a%20b+c%2F&&", pairs(&[("to", "/a b c/")])),
            ("a=b=c", pairs(&[("a", "b=c")])),
            ("a=%", None),
            ("a=%4", None),
            ("a=%zz", None),
            ("a=%ff", None),
            ("a=%é", None),
        ] {
            assert_eq!(decode(query), read, "{query}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(key in ".{1,9}", value in ".{0,9}") {
            let written = encode(&[(&key, value.clone())]);
            prop_assert!(written.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert_eq!(decode(&written), Some(vec![(key, value)]));
        }
    }
}
